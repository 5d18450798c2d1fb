"""Keeps the parts that a reader has listed in place until it has read them, and others' hands off them meanwhile.

Readers share a lock on the manifest; whoever replaces parts (`compact`, `recover`) takes it for itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import weakref
from collections.abc import Iterator
from pathlib import Path

from tracekit.store.layout import MANIFEST

_POLL_SECONDS = 0.02


class Hold:
    """A reader's share in the lock, from before it lists files until `release`, or until nobody refers to it.

    On a file system without locks it holds nothing.
    """

    def __init__(self, root: Path) -> None:
        descriptor = os.open(root / MANIFEST, os.O_RDONLY)
        self._close = weakref.finalize(self, os.close, descriptor)
        with contextlib.suppress(OSError):  # a file system without locks: nothing can be held there
            fcntl.flock(descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Lets the files be replaced."""
        self._close()


@contextlib.contextmanager
def exclusively(root: Path, patience_seconds: float) -> Iterator[bool]:
    """Waits until nobody reads, and keeps readers waiting; yields False where some still read when patience ends."""
    deadline = time.monotonic() + patience_seconds
    descriptor = os.open(root / MANIFEST, os.O_RDONLY)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    yield False
                    return
                time.sleep(_POLL_SECONDS)
            else:
                yield True
                return
    finally:
        os.close(descriptor)
