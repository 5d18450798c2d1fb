"""Writes a trace aside, so that nothing unfinished ever stands where a whole one is expected."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tracekit.errors import InputError, OutputExistsError
from tracekit.store import Manifest, create_trace
from tracekit.store.layout import JOURNAL
from tracekit.store.lease import live_writers


@contextlib.contextmanager
def written_aside(out: Path, parent: Manifest) -> Iterator[Path]:
    """Yields an empty trace that becomes `out` when the block ends well, and is removed when it does not."""
    partial = out.with_name(f"{out.name}.partial")
    _remove_leftover(partial)
    create_trace(partial, "replay", parent=parent.trace_id)
    try:
        yield partial
        try:
            os.rename(partial, out)
        except OSError as error:
            raise OutputExistsError(f"{out} appeared while the replay ran; choose another path") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _remove_leftover(partial: Path) -> None:
    """Removes what a killed replay left; nothing else is ever removed."""
    if not (partial.exists() or partial.is_symlink()):
        return
    try:
        is_replay = not partial.is_symlink() and Manifest.read(partial).role == "replay"
    except InputError:
        is_replay = False
    if not is_replay:
        raise OutputExistsError(f"{partial} is in the way and no unfinished replay; move it, or choose another output")
    if live_writers(partial / JOURNAL):
        raise OutputExistsError(f"another replay is writing {partial}; wait for it, or choose another output")
    shutil.rmtree(partial)
