"""What runs in the process of a worker: one backend, which is sent batches."""

from __future__ import annotations

import collections.abc
import contextlib
import os
import socket
from dataclasses import dataclass, fields
from typing import Any

from tracekit.memory import peak_memory
from tracekit.replay.backends.base import Backend, Rows, RunRows, Sequence
from tracekit.replay.workers.base import Facts, Opening
from tracekit.version import __version__

# A sequence stays where it came from: its rows name it by its place in the batch.
_SENT_FIELDS = tuple(field.name for field in fields(Rows) if field.name != "sequence")


@dataclass(frozen=True)
class OpenedBackend:
    """What a worker found when it opened its backend."""

    facts: Facts
    version: str
    hostname: str


@dataclass(frozen=True)
class ScoredBatch:
    """What a worker found for a batch.

    Attributes:
        rows: rows about the run, or the place of a sequence in the batch and the other fields of its rows.
        peak_bytes: most memory that the worker has held so far.
    """

    rows: list[RunRows | tuple[int, dict[str, Any]]]
    peak_bytes: int

    def of(self, batch: collections.abc.Sequence[Sequence]) -> list[Rows | RunRows]:
        """Returns the rows, those of sequences with these of the batch."""
        return [row if isinstance(row, RunRows) else Rows(batch[row[0]], **row[1]) for row in self.rows]


class BackendActor:
    """Opens a backend once, and scores one batch after the other.

    Args:
        folder: where relative paths begin; not entered where it does not exist.
    """

    def __init__(self, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._backend: Backend | None = None

    def open(self, opening: Opening) -> OpenedBackend:
        self._backend = opening.open()
        return OpenedBackend(Facts.of(self._backend), __version__, socket.gethostname())

    def score(self, batch: collections.abc.Sequence[Sequence]) -> ScoredBatch:
        assert self._backend is not None
        places = {(sequence.run_id, sequence.request_id): place for place, sequence in enumerate(batch)}
        found: list[RunRows | tuple[int, dict[str, Any]]] = []
        for rows in self._backend.score(batch):
            if isinstance(rows, RunRows):
                found.append(rows)
            else:
                place = places[rows.sequence.run_id, rows.sequence.request_id]
                found.append((place, {name: getattr(rows, name) for name in _SENT_FIELDS}))
        return ScoredBatch(found, peak_memory())

    def close(self) -> None:
        if self._backend is not None:
            self._backend.close()
