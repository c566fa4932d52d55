"""The commands, and the parser of the command line."""
