"""Where a command's data goes: standard output, or a file that is complete or absent."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tracekit.errors import InputError


@contextlib.contextmanager
def data_sink(path: Path | None) -> Iterator[BinaryIO]:
    """Opens a file that appears when it is whole, or standard output for None."""
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder; give -o a file")
    temporary = path.parent / f".{path.name}.{os.getpid()}"
    try:
        with temporary.open("wb") as sink:
            yield sink
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
