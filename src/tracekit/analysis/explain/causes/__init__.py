"""Causes of differences, a file and an .sql each; `registry` finds them by name."""
