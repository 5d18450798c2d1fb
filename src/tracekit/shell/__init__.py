"""Asks traces interactively: statements and dot-commands from a terminal, a pipe or a file."""
