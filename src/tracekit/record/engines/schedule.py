"""What a worker learns from the scheduler's messages; the V1 runner and Model Runner V2 are sent the same ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tracekit.record.capture import Ints, RequestGone, RequestSeen, RowsOf, known_row
from tracekit.record.engines.describe import request_columns
from tracekit.record.labels import labels_of
from tracekit.record.pipeline import Recorder

# Step ids of different data-parallel ranks are this far apart.
STEPS_PER_RANK = 1 << 40


class KnownRequest(NamedTuple):
    """What a runner still knows of a request that came before the recorder did."""

    prompt_token_ids: list[int] | None
    sampling_params: Any
    lora_request: Any
    output_token_ids: tuple[int, ...]


@dataclass
class Schedule:
    """The requests of one runner, over one recording.

    Attributes:
        seen: requests that are known to the recorder.
        num_resumed: how often each came back from a preemption.
        step_counter: forward passes with sampling so far.
        tells_events: whether events are this process's to tell, where several work on the same requests.
    """

    session: str
    dp_rank: int
    seen: set[str] = field(default_factory=set)
    num_resumed: dict[str, int] = field(default_factory=dict)
    step_counter: int = 0
    tells_events: bool = True

    @property
    def step_id(self) -> int:
        # A rank of independent data-parallel engines does not know how many there are.
        return self.dp_rank * STEPS_PER_RANK + self.step_counter

    def note_departures(self, recorder: Recorder, scheduler_output: Any) -> None:
        """Passes on which requests ended."""
        # Others ended before this recording began, or before they were ever scheduled.
        for request_id in self.seen.intersection(scheduler_output.finished_req_ids):
            self.seen.discard(request_id)
            row = {"request_id": request_id, "num_preemptions": self.num_resumed.pop(request_id, 0)}
            recorder.put(known_row("outcomes", row))
            recorder.put(RequestGone(request_id))

    def note_arrivals(
        self,
        recorder: Recorder,
        scheduler_output: Any,
        request_ids: Iterable[str],
        known: Callable[[str], KnownRequest | None],
    ) -> None:
        """Passes on which requests came, and which came back.

        Args:
            request_ids: the requests of the batch.
            known: finds a request that is running already when the recorder first sees it.
        """
        resumed = set(scheduler_output.scheduled_cached_reqs.resumed_req_ids)
        new: dict[str, Any] = {data.req_id: data for data in scheduler_output.scheduled_new_reqs}
        if not new and not resumed and self.seen.issuperset(request_ids):
            return
        # Model Runner V2 is sent a preempted request once more in full.
        resumed |= new.keys() & self.seen
        for request_id in sorted(resumed):
            self.num_resumed[request_id] = self.num_resumed.get(request_id, 0) + 1
            if self.tells_events:
                recorder.event("request_resumed", request_id=request_id, step_id=self.step_id)
        for request_id in request_ids:
            if request_id in self.seen:
                continue
            self.seen.add(request_id)
            data = new.get(request_id)
            if data is not None:
                request: KnownRequest | None = KnownRequest(
                    data.prompt_token_ids, data.sampling_params, data.lora_request, ()
                )
            else:
                request = known(request_id)
            if request is not None:
                cached = None if data is None else data.num_computed_tokens
                row = _request_row(request_id, request, cached)
                extra_args = getattr(request.sampling_params, "extra_args", None)
                recorder.wants_hidden |= bool(labels_of(extra_args).wishes.hidden)
                recorder.put(RequestSeen("requests", row, request.output_token_ids, extra_args))


def _request_row(request_id: str, request: KnownRequest, num_cached_tokens: int | None) -> Any:
    def columns() -> dict[str, Any]:
        own = request_columns(request_id, request.prompt_token_ids, request.sampling_params, request.lora_request)
        # For n > 1 a worker sees one of the samples: how many there are is the front end's to say.
        own.pop("n", None)
        return own | {"num_cached_tokens": num_cached_tokens}

    return columns


def step_row(
    request_ids: list[str],
    scheduled_B: Ints,
    computed_B: Ints,
    is_decode_B: npt.NDArray[np.bool_],
    **known: Any,
) -> RowsOf:
    """Returns a step's row of `steps`. What it is given must stay as it is: the row is worked out later.

    Args:
        scheduled_B: tokens computed for each request.
        computed_B: tokens of each whose KV existed before.
        is_decode_B: whether they are its newest token (and drafts), rather than a prompt or a recomputation.
        known: columns that do not follow from these, or are to replace them.
    """
    return RowsOf("steps", lambda: step_columns(request_ids, scheduled_B, computed_B, is_decode_B) | known)


def step_columns(
    request_ids: list[str], scheduled_B: Ints, computed_B: Ints, is_decode_B: npt.NDArray[np.bool_]
) -> dict[str, Any]:
    """Returns the columns of `steps` that follow from a batch; see `step_row`."""
    num_scheduled = int(scheduled_B.sum())
    num_decode = int(scheduled_B[is_decode_B].sum())
    return {
        "num_requests": len(request_ids),
        "num_scheduled_tokens": num_scheduled,
        "num_prefill_tokens": num_scheduled - num_decode,
        "num_decode_tokens": num_decode,
        "request_ids": request_ids,
        "scheduled_tokens": scheduled_B.tolist(),
        "computed_tokens": computed_B.tolist(),
    }


class SampleRows(NamedTuple):
    """Where the logits rows of a step belong; all int arrays of length L but the last, which counts a batch row's."""

    batch_row_L: Ints
    draft_L: Ints
    num_drafts_B: Ints


def sample_rows(num_drafts_B: npt.NDArray[np.int64]) -> SampleRows:
    """Returns the batch row and draft position of each logits row: drafts in order, then one more row each."""
    if not num_drafts_B.any():
        row_L = np.arange(len(num_drafts_B))
        return SampleRows(row_L, np.zeros_like(row_L), num_drafts_B)
    counts_B = num_drafts_B + 1
    batch_row_L = np.repeat(np.arange(len(counts_B)), counts_B)
    starts_B = np.cumsum(counts_B) - counts_B
    return SampleRows(batch_row_L, np.arange(len(batch_row_L)) - starts_B[batch_row_L], num_drafts_B)
