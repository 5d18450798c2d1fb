"""How much memory this process has needed."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_PEAK = "VmHWM:"


def peak_memory() -> int:
    """Returns the most bytes of memory that this process has held.

    Not what getrusage reports where Linux tells more: there a program that a large process started has its parent's
    peak from the beginning, since it is counted for the process, and not for the program that it became.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith(_PEAK):
                return int(line.removeprefix(_PEAK).split()[0]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
