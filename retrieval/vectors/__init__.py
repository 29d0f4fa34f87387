"""Files of a catalogue's vectors: shards, facts, and the fingerprints that say what made them."""
