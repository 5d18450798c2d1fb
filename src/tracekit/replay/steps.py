"""What the steps of a parent trace tell: when each request was scheduled, and how large batches were."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tracekit.errors import InputError
from tracekit.replay.parent import Ints, Key, TablePieces
from tracekit.store import Trace


class RecordedSteps:
    """The steps of a parent trace, by request.

    Args:
        trace: the parent.

    Raises:
        InputError: it has none.
    """

    def __init__(self, trace: Trace) -> None:
        table = TablePieces(trace, "steps")
        codes_of: dict[Key, int] = {}
        codes, steps = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for piece in range(len(table)):
            rows = table.read(piece, ["run_id", "step_id", "request_ids"])
            lists: pa.ListArray = rows.column("request_ids").combine_chunks()
            encoded = lists.flatten().dictionary_encode()
            counts = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            requests = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
            ids = encoded.dictionary.to_pylist()
            runs = np.repeat(np.array(rows.column("run_id").to_pylist(), object), counts)
            for run in dict.fromkeys(runs.tolist()):
                of_run = np.flatnonzero(runs == run)
                code_of = np.array([codes_of.setdefault((run, request), len(codes_of)) for request in ids], np.int64)
                codes.append(code_of[requests[of_run]])
                steps.append(np.repeat(rows.column("step_id").to_numpy(), counts)[of_run])
        if not codes_of:
            raise InputError(
                f"{trace.path} has no steps, so its schedule is not known; leave --schedule recorded out, or replay "
                "the recording itself"
            )
        self._code_of = codes_of
        order = np.lexsort((np.concatenate(steps), np.concatenate(codes)))
        self._steps: Ints = np.concatenate(steps)[order]
        self._starts = np.searchsorted(np.concatenate(codes)[order], np.arange(len(codes_of) + 1))

    def of(self, key: Key) -> Ints:
        """Returns the ids of the steps at which a request was scheduled, in order; none where none is known."""
        code = self._code_of.get(key)
        return self._steps[:0] if code is None else self._steps[self._starts[code] : self._starts[code + 1]]


class BatchSizes:
    """How many requests were in the batch of each step of a parent trace.

    Args:
        trace: the parent; it may have no steps.
    """

    def __init__(self, trace: Trace) -> None:
        rows = trace.read("steps", ["run_id", "step_id", "num_requests"])
        self._of_run: dict[str, tuple[Ints, npt.NDArray[np.int32]]] = {}
        for run_id in pc.unique(rows.column("run_id")).to_pylist():
            of_run = rows.filter(pc.equal(rows.column("run_id"), run_id)).sort_by("step_id")
            sizes = pc.fill_null(of_run.column("num_requests"), 0).to_numpy()
            self._of_run[run_id] = of_run.column("step_id").to_numpy(), sizes

    def of(self, run_id: str, step_ids: Ints) -> npt.NDArray[np.int32]:
        """Returns the size of the batch of each step, 0 where it is not known."""
        found = np.zeros(len(step_ids), np.int32)
        if run_id in self._of_run:
            known, sizes = self._of_run[run_id]
            places = np.searchsorted(known, step_ids).clip(max=len(known) - 1)
            is_known = known[places] == step_ids
            found[is_known] = sizes[places[is_known]]
        return found
