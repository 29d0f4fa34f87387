"""The command line: one file for each command, which parses its arguments, calls the library and prints what came of it."""
