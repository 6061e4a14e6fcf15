"""The command line: what is typed, which options there are, and how they become the arguments of a function."""
