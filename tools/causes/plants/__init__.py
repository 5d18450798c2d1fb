"""The plants: one known cause a file."""
