"""The commands: the parser of the command line, and what each command does."""
