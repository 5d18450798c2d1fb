"""Where backends run: in this process, or as workers of a Ray cluster."""
