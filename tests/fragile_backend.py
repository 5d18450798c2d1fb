"""The transformers backend, in a process that is killed in the middle of a batch, once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tracekit.replay.backends.base import Kept, Rows
from tracekit.replay.backends.base import Sequence as RecordedSequence
from tracekit.replay.backends.hf import HfBackend
from tracekit.replay.backends.hf.backend import HfOptions


@dataclass(frozen=True)
class FragileOptions(HfOptions):
    """Options of the backend.

    Attributes:
        accident: a file that stands for the accident; there is none where it exists.
        dies_at: the request at whose batch it happens.
    """

    accident: str = ""
    dies_at: str = ""


class FragileBackend(HfBackend):
    options_type = FragileOptions
    _fragile: FragileOptions

    @classmethod
    def open(cls, model: Path | None, options: FragileOptions, kept: Kept) -> Self:  # type: ignore[override]
        backend = super().open(model, options, kept)
        backend._fragile = options
        return backend

    def score(self, batch: Sequence[RecordedSequence]) -> Iterator[Rows]:
        rows = super().score(batch)
        yield next(rows)
        accident = Path(self._fragile.accident)
        if self._fragile.dies_at in {sequence.request_id for sequence in batch} and not accident.exists():
            accident.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield from rows
