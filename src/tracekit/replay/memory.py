"""How much memory this process has needed."""

from __future__ import annotations

import resource
import sys


def peak_memory() -> int:
    """Returns the most bytes of memory that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
