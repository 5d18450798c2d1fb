"""A replay backend as another package would bring it, which does on request what backends must not do.

Its figures are made from the tokens by whole numbers, so that a test can work them out too.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tracekit.errors import ModelError
from tracekit.replay.backends.base import Backend, BatchLimits, Kept, Rows, RunRows
from tracekit.replay.backends.base import Sequence as RecordedSequence

_PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class MadeOptions:
    """Options of the backend.

    Attributes:
        diary: a folder where it notes what happens, a file each.
        batch_sequences: sequences of a batch.
        scale: what figures are multiplied by.
        num_needed: batches are not begun before so many backends are open.
        dies_at: the request at whose batch the process is killed, where the diary does not say that it was.
        dies_again: also where it does.
        fails_at: the request at whose batch it raises.
        dies_opening: the process is killed while it opens the backend.
        differs: it describes itself by its process.
    """

    diary: str = ""
    batch_sequences: int = 1
    scale: float = 1.0
    num_needed: int = 0
    dies_at: str | None = None
    dies_again: bool = False
    fails_at: str | None = None
    dies_opening: bool = False
    differs: bool = False


class MadeBackend(Backend):
    options_type = MadeOptions

    def __init__(self, options: MadeOptions) -> None:
        self._options = options
        self._diary = Path(options.diary)
        self.vocab_size = 1000
        self.batch_limits = BatchLimits(num_sequences=options.batch_sequences, of_one_run=True)

    @classmethod
    def open(cls, model: Path | None, options: MadeOptions, kept: Kept) -> Self:  # noqa: ARG003
        backend = cls(options)
        backend._note(f"opened-{os.getpid()}")
        if options.dies_opening:
            os.kill(os.getpid(), signal.SIGKILL)
        return backend

    def close(self) -> None:
        self._note(f"closed-{os.getpid()}")

    def description(self) -> Mapping[str, Any]:
        version = str(os.getpid()) if self._options.differs else "1"
        return {"engine": "made", "engine_version": version}

    def score(self, batch: Sequence[RecordedSequence]) -> Iterator[Rows | RunRows]:
        self._wait_for_others()
        for sequence in batch:
            self._note(f"scored-{sequence.request_id}-{os.getpid()}")
            if sequence.request_id == self._options.fails_at:
                raise ModelError(f"request '{sequence.request_id}' is not to my liking")
            if sequence.request_id == self._options.dies_at:
                self._die()
            logprob = -made_figures([*sequence.prompt_ids.tolist(), *sequence.output_ids.tolist()])
            logprob = self._options.scale * logprob[len(sequence.prompt_ids) :]
            yield Rows(sequence, {"token_id": sequence.output_ids, "logprob": logprob.astype(np.float32)})
        num_tokens = sum(len(sequence.output_ids) for sequence in batch)
        yield RunRows(batch[0].run_id, {"step_id": [0], "num_scheduled_tokens": [num_tokens]}, "steps")
        yield RunRows(batch[0].run_id, {"time_ns": [num_tokens], "kind": "paused"}, "events")

    def _note(self, what: str) -> None:
        (self._diary / what).touch()

    def _die(self) -> None:
        died = self._diary / "died"
        if self._options.dies_again or not died.exists():
            died.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def _wait_for_others(self) -> None:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while len(list(self._diary.glob("opened-*"))) < self._options.num_needed:
            assert time.monotonic() < deadline, "the others never came"
            time.sleep(0.01)


def made_figures(token_ids: list[int]) -> npt.NDArray[np.float64]:
    """Returns a figure for each token of a sequence: a sixteenth of its id and those of all before it, modulo 97."""
    return (np.cumsum(token_ids) % 97) / 16


def install(folder: Path, entry_points: Mapping[str, str]) -> None:
    """Makes a folder on the import path announce backends, as an installed package does."""
    metadata = folder / "made_backends-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: made-backends\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in entry_points.items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[tracekit.backends]", *lines]) + "\n")
