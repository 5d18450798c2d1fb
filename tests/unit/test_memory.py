"""What a process says of its memory is its own, whoever started it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np

from tracekit.memory import peak_memory

LARGE = 1 << 29


def test_a_large_parents_memory_is_not_its_childs() -> None:
    before = peak_memory()
    held = np.ones(LARGE, np.uint8)
    assert peak_memory() >= LARGE
    code = "from tracekit.memory import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < LARGE
    assert peak_memory() >= before
    assert held[-1] == 1


def test_memory_that_was_given_back_still_counts() -> None:
    code = (
        "import numpy\n"
        "from tracekit.memory import peak_memory\n"
        f"held = numpy.ones({LARGE}, numpy.uint8)\n"
        "del held\n"
        "print(peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert LARGE < int(done.stdout) < 2 * LARGE
