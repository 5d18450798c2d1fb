"""Keeps the recorder's thread out of the engine's way."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import torch

_NICENESS = 10
_OPENMP = re.compile(r"/[^/ ]*lib[gi]?omp[^/ ]*\.so[^/ ]*$")


def settle_thread() -> None:
    """Moves this thread off the engine's cores, behind other threads, and keeps its arithmetic on one core.

    vLLM pins its compute threads on a CPU host, and threads inherit that: a recorder that kept it would take
    turns with the engine on one core.
    """
    cores = set(range(os.cpu_count() or 1))
    pinned: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # a thread that ended meanwhile
            affinity = os.sched_getaffinity(int(task))
            if len(affinity) == 1 and int(task) != threading.get_native_id():
                pinned |= affinity
    # A container may forbid either; the recorder then works where, and as, the engine does.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, (cores - pinned) or cores)
    with contextlib.suppress(OSError):
        # Linux keeps this for each thread; the scheduler and the front end may share the spare core.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
    _compute_on_one_core()


def hurry(thread: threading.Thread) -> None:
    """Lets that thread compete as others do, on any core: it is waited for, and whoever waits may be killed soon."""
    if thread.native_id is None:
        return
    # Where a container forbids either, or the thread has just ended, nothing is lost: it then takes as long as before.
    with contextlib.suppress(OSError):
        os.sched_setaffinity(thread.native_id, range(os.cpu_count() or 1))
    # This one needs a privilege, which root in a container mostly has.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, thread.native_id, 0)


def _compute_on_one_core() -> None:
    """Has OpenMP use one thread for work that this thread starts.

    torch.set_num_threads would set it for threads to come as well, and vLLM's CPU worker makes it do nothing.
    """
    if torch.get_num_threads() == 1:  # asked first: torch sets up each thread when it is first used there
        return
    for path in _openmp_libraries():
        with contextlib.suppress(OSError, AttributeError):  # one that is gone again, or is none
            ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY).omp_set_num_threads(1)


def _openmp_libraries() -> Iterator[str]:
    """Yields the OpenMP runtimes that this process has loaded."""
    with open("/proc/self/maps") as maps:
        paths = {line.split(None, 5)[-1].strip() for line in maps if "/" in line}
    yield from (path for path in sorted(paths) if _OPENMP.search(path))


def cpu_milliseconds(thread: threading.Thread) -> int:
    """Returns how long a thread of this process has computed; 0 where the system does not tell, and after its end."""
    # Not pthread_getcpuclockid, which must not be asked about a thread that has just ended.
    try:
        return int(Path(f"/proc/self/task/{thread.native_id}/schedstat").read_text().split()[0]) // 1_000_000
    except (OSError, IndexError, ValueError):
        return 0
