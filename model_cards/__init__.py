"""Model cards: the facts of a checkpoint as plain data, the template, the hub's metadata checked offline, and publishing."""
