"""Runs a command and measures it: seconds, processor time, most memory.

    python tools/measured.py REPORT COMMAND [ARGUMENT ...]

A process of its own stands between: what the system tells of a child's memory begins with the memory of whoever
started it, which is large in a program that has torch loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Measured:
    """What a command took, its own start included.

    Attributes:
        returncode: its exit code.
        seconds: by the clock.
        cpu_seconds: of all its threads and of the processes it waited for.
        peak_bytes: the most memory of any one process.
    """

    returncode: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def run_measured(command: list[str], *, stdout: int | None = None, stderr: int | None = None) -> Measured:
    """Runs a command, with output as `subprocess.run` takes it, and returns what it took."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        subprocess.run([sys.executable, __file__, str(report), *command], stdout=stdout, stderr=stderr, check=True)
        return Measured(**json.loads(report.read_text()))


def main() -> None:
    report, *command = sys.argv[1:]
    started = time.monotonic()
    process = subprocess.Popen(command)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    figures = {
        "returncode": process.returncode,
        "seconds": time.monotonic() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_bytes": used.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
    }
    Path(report).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
