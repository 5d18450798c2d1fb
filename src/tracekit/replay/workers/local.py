"""Scores in this process, one batch after the other."""

from __future__ import annotations

import collections.abc
from collections.abc import Iterable, Iterator

from tracekit.replay.backends.base import Rows, RunRows, Sequence
from tracekit.replay.workers.base import Facts, Opening


class LocalWorker:
    """The one backend of this process."""

    def __init__(self, opening: Opening) -> None:
        self._backend = opening.open()
        try:
            self._facts = Facts.of(self._backend)
        except BaseException:
            self.close()
            raise

    @property
    def peak_bytes(self) -> int:
        return self._backend.peak_bytes

    @property
    def facts(self) -> Facts:
        return self._facts

    def score(self, batches: Iterable[collections.abc.Sequence[Sequence]]) -> Iterator[Iterable[Rows | RunRows]]:
        return map(self._backend.score, batches)

    def close(self) -> None:
        self._backend.close()
