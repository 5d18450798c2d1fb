"""A replay in the making: a trace beside the place where it will stand, which a killed replay goes on with."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from tracekit.errors import InputError, OutputExistsError
from tracekit.store import Checkpoint, Manifest, Trace, TraceWriter, create_trace, roll_back
from tracekit.store.layout import JOURNAL, PARTIAL_SUFFIX
from tracekit.store.lease import live_writers

WRITER = "replay"
_STATE = "replay.json"


class PartialReplay:
    """The trace `<out>.partial`, and how far it is.

    Args:
        out: where the whole trace will stand.
        command: what was asked for, as JSON has it; one that was begun for something else is not gone on with.
        restart: begin anew, whatever was begun before.

    Attributes:
        path: the trace in the making.
        num_batches: how many of the planned batches it holds for good.
        run_ids: by the parent's run, the run of the new trace that stands for it.

    Raises:
        OutputExistsError: `out` is taken, something else is in the way, or another replay is at work on it.
    """

    def __init__(self, out: Path, command: Mapping[str, Any], *, restart: bool = False) -> None:
        self._out = out
        self._command = _as_json(command)
        self._plan: dict[str, Any] = {}
        self.path = out.with_name(f"{out.name}{PARTIAL_SUFFIX}")
        self.num_batches = 0
        self.run_ids: dict[str, str] = {}
        self._parts: Checkpoint = {}
        # Something stands there that is to go, once all else is known to be well.
        self._replaces = False
        # Held by this process: what is another's is not removed.
        self._is_ours = False
        if out.exists() or out.is_symlink():
            raise OutputExistsError(f"{out} exists already; choose another path or remove it first")
        self._found = self._find(restart)

    def _find(self, restart: bool) -> bool:
        if not (self.path.exists() or self.path.is_symlink()):
            return False
        state = self._read_state()
        if live_writers(self.path / JOURNAL):
            raise OutputExistsError(f"another replay is writing {self.path}; wait for it, or choose another output")
        if restart or state is None:
            self._replaces = True
            return False
        self._check(state["command"], self._command)
        self.num_batches, self.run_ids, self._parts = state["num_batches"], state["run_ids"], state["parts"]
        return True

    def _read_state(self) -> dict[str, Any] | None:
        """Returns what is known of the replay that stands there; None where it had not begun."""
        try:
            if self.path.is_symlink() or Manifest.read(self.path).role != "replay":
                raise InputError("no replay")
            if not (self.path / _STATE).exists():
                if Trace(self.path).num_rows("tokens"):
                    raise InputError("no replay of this release")
                return None
            state: dict[str, Any] = json.loads((self.path / _STATE).read_text(encoding="utf-8"))
        except (InputError, ValueError, OSError) as error:
            raise OutputExistsError(
                f"{self.path} is in the way and no unfinished replay; move it, or choose another output"
            ) from error
        return state

    def _check(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        for name in [*before, *now]:
            if before.get(name) != now.get(name):
                raise OutputExistsError(
                    f"{self.path} was begun with {name} {json.dumps(before.get(name))}, not "
                    f"{json.dumps(now.get(name))}; give the command that began it, or --restart to begin anew"
                )

    def begin(self, parent: Manifest, plan: Mapping[str, Any], run_ids: Iterable[str]) -> None:
        """Makes the trace, or takes it back to its last checkpoint.

        Args:
            parent: of the trace that is replayed.
            plan: what its batches depend on, as JSON has it.
            run_ids: the parent's runs.
        """
        self._plan = _as_json(plan)
        if self._found:
            state = self._read_state()
            assert state is not None
            self._check(state["plan"], self._plan)
            roll_back(self.path, WRITER, self._parts)
        else:
            if self._replaces:
                self._remove()
            create_trace(self.path, "replay", parent=parent.trace_id)
            self.run_ids = {run_id: uuid.uuid4().hex for run_id in run_ids}

    def writer(self) -> TraceWriter:
        writer = TraceWriter(self.path, run_id=next(iter(self.run_ids.values())), writer=WRITER)
        self._is_ours = True
        return writer

    def save(self, writer: TraceWriter, num_batches: int) -> None:
        """Keeps everything written so far for good."""
        self._parts = writer.checkpoint()
        self.num_batches = num_batches
        state = {
            "command": self._command,
            "plan": self._plan,
            "num_batches": num_batches,
            "run_ids": self.run_ids,
            "parts": self._parts,
        }
        aside = self.path / f".{_STATE}"
        with aside.open("w", encoding="utf-8") as file:
            json.dump(state, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, self.path / _STATE)

    def finish(self) -> None:
        """Gives the whole trace its name."""
        try:
            os.rename(self.path, self._out)
        except OSError as error:
            raise OutputExistsError(f"{self._out} appeared while the replay ran; choose another path") from error
        (self._out / _STATE).unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # Nothing that was scored is thrown away.
        if kind is not None and self._is_ours and self.num_batches == 0:
            with contextlib.suppress(OSError):
                self._remove()

    def _remove(self) -> None:
        # Out of the way at once: half of one would look like a replay to go on with.
        aside = self.path.with_name(f".{self.path.name}.removed")
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(self.path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _as_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values as they come back from a file."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found
