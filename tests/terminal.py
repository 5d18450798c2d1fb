"""A terminal to drive programs in: a real pseudo-terminal, and an emulator that says what is on its screen."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pyte

KEYS = {
    "Enter": "\r",
    "Tab": "\t",
    "Up": "\x1b[A",
    "Down": "\x1b[B",
    "C-c": "\x03",
    "C-d": "\x04",
    "C-r": "\x12",
    "C-u": "\x15",
}


class Terminal:
    """A program in a terminal of its own.

    Args:
        command: the program.
        env: its environment.
        cwd: where it runs.
        columns, lines: size of the terminal.
    """

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path, columns: int = 100, lines: int = 30
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._screen = pyte.HistoryScreen(columns, lines, history=10_000, ratio=0.5)
        # The shell asks where the cursor is, as any terminal can say.
        self._screen.write_process_input = self.type  # type: ignore[method-assign]
        self._stream = pyte.ByteStream(self._screen)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            # A parent's size in the environment would stand above the terminal's own.
            env={**{name: env[name] for name in env if name not in ("LINES", "COLUMNS")}, "TERM": "xterm"},
            cwd=cwd,
            start_new_session=True,
            # The new session has no terminal until one is made its own: Ctrl-C comes from there.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)

    def press(self, *keys: str) -> None:
        """Types keys, by name or as text."""
        self.type("".join(KEYS.get(key, key) for key in keys))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def text(self) -> str:
        """What is on the screen, and above it."""
        above = ["".join(line[x].data for x in range(self._screen.columns)) for line in self._screen.history.top]
        return "\n".join(line.rstrip() for line in [*above, *self._screen.display])

    def screen(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def wait_for(self, wanted: str, *, count: int = 1, timeout: float = 60.0) -> str:
        """Returns what is on the screen and above as soon as a text is there as often as said."""
        deadline = time.monotonic() + timeout
        while self.text().count(wanted) < count:
            left = deadline - time.monotonic()
            if left < 0 or not self._take(left):
                raise AssertionError(f"no {wanted!r} ({count}x) on the terminal, but:\n{self.text()}")
        return self.text()

    def settle(self, seconds: float) -> str:
        """Returns what is on the screen and above after some time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and self.process.poll() is None:
            self._take(left)
        return self.text()

    def wait_end(self, timeout: float = 60.0) -> int:
        """Waits for the program's end, and returns its exit code."""
        while self._take(timeout):
            pass
        return self.process.wait(timeout)

    def _take(self, timeout: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], timeout)
        try:
            data = os.read(self._master, 65536) if ready else b""
        except OSError:  # The program ended, and with it the terminal's other side.
            data = b""
        self._stream.feed(data)
        return bool(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
