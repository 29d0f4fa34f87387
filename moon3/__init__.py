"""The command line: one file for each command, which parses its arguments, calls the library and prints the result."""
