"""The formats that rows are written in: one file each, called like the format, found by name."""
