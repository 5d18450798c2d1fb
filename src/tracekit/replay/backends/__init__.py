"""Replay backends, one file each; `base` holds what they have in common and finds them by name."""
