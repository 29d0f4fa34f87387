"""Model cards: the facts of a checkpoint, the template, offline checks of the hub's metadata, and publishing."""
