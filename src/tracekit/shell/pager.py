"""Shows what is longer than the terminal through a pager, as it comes."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any, BinaryIO

# Of those that are there, the first: -R lets colours through.
_KNOWN = (("less", "-R"), ("more",))


class PagerLeft(Exception):  # noqa: N818
    """The reader left the pager before the end: the rest need not be made."""


@contextlib.contextmanager
def paged(terminal: BinaryIO, *, height: int | None = None) -> Iterator[BinaryIO]:
    """Gives a sink whose bytes go to a terminal, or to a pager on it where they are more than it has lines.

    The pager is what the variable PAGER says, else less or more. Without any, all goes to the terminal.

    Args:
        terminal: standard output.
        height: its lines; asked of the system by default.
    """
    command = _pager()
    sink: Any = _PagedSink(terminal, command, height or shutil.get_terminal_size().lines)
    try:
        yield sink
        sink.flush()
    except PagerLeft:
        pass
    finally:
        sink.finish()


class _PagedSink(io.RawIOBase):
    def __init__(self, terminal: BinaryIO, command: list[str] | None, height: int) -> None:
        self._terminal = terminal
        self._command = command
        # The prompt takes a line, too.
        self._room = height - 1
        self._held = bytearray()
        self._process: subprocess.Popen[bytes] | None = None

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def write(self, data: Any, /) -> int:
        if self._command is None:
            return self._terminal.write(data)
        if self._process is None:
            self._held += data
            if self._held.count(b"\n") <= self._room:
                return len(bytes(data))
            self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, env=_environment())
            data, self._held = self._held, bytearray()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(data)
        except BrokenPipeError as error:
            raise PagerLeft from error
        return len(bytes(data))

    def finish(self) -> None:
        """Shows what is held, or waits for the reader of the pager."""
        if self._process is None:
            self._terminal.write(self._held)
            self._terminal.flush()
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        while True:
            # Ctrl-C is the pager's own key, but all of the terminal's processes get it.
            with contextlib.suppress(KeyboardInterrupt):
                self._process.wait()
                return


def _pager() -> list[str] | None:
    named = shlex.split(os.environ.get("PAGER", ""))
    if named:
        return named if shutil.which(named[0]) else None
    return next((list(words) for words in _KNOWN if shutil.which(words[0])), None)


def _environment() -> dict[str, str]:
    # As for $PAGER=less of a user who set no options.
    return {"LESS": "-R", **os.environ}
