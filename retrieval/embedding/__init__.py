"""The job that embeds a catalogue's products into a folder of vectors."""
