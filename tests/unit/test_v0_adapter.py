"""What the V0 adapter makes of steps that its CPU engine does not take by itself: cache hits, chunks of prompts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from tracekit.record.capture import RequestSeen, RowsOf
from tracekit.record.config import RecordConfig
from tracekit.record.device import HostDevice
from tracekit.record.drawn import LiveRequest, Slice
from tracekit.record.engines.v0 import runner as v0
from tracekit.record.engines.v0.sampler import Passing
from tracekit.record.engines.v0.state import EngineState
from tracekit.record.selection import Choice, Selection
from tracekit.record.unknown import UNKNOWN
from tracekit.reduction import reduce_raw
from tracekit.sampling import SamplingParams

BLOCK = 16


class Data(SimpleNamespace):
    """As much of vLLM's SequenceData as the adapter reads."""

    def get_len(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def get_prompt_len(self) -> int:
        return len(self.prompt_token_ids)


def _data(num_prompt: int, num_output: int = 0) -> Data:
    return Data(prompt_token_ids=tuple(range(num_prompt)), output_token_ids=tuple(range(num_output)))


def _prompt(data: Data, *, computed: int, scheduled: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(
        seq_data={0: data}, is_prompt=True, seq_len=computed + scheduled, query_len=scheduled, **more
    )


def _decode(data: Data) -> SimpleNamespace:
    return SimpleNamespace(seq_data={0: data}, is_prompt=False, seq_len=None, query_len=1)


def test_a_step_is_counted_by_what_was_computed() -> None:
    groups = [
        _prompt(_data(100), computed=0, scheduled=64),  # the first chunk
        _prompt(_data(100), computed=64, scheduled=36),  # the second
        _prompt(_data(100), computed=3 * BLOCK, scheduled=52),  # after a hit
        _prompt(_data(20, 7), computed=0, scheduled=27),  # again, after a preemption
        _decode(_data(20, 7)),
    ]
    names = [SimpleNamespace(request_id=name) for name in "abcde"]
    batch = v0._batch(names, SimpleNamespace(seq_groups=groups))
    assert batch.request_ids == list("abcde")
    assert batch.computed_B.tolist() == [0, 64, 48, 0, 26]
    assert batch.scheduled_B.tolist() == [64, 36, 52, 27, 1]
    assert batch.num_prompt_B.tolist() == [100, 100, 100, 20, 20]
    assert batch.is_decode_B.tolist() == [False, False, False, False, True]


def test_scored_positions_of_a_chunk_stand_behind_what_was_computed() -> None:
    tokens = tuple(range(500, 600))
    data = Data(prompt_token_ids=tokens, output_token_ids=())
    params = SimpleNamespace(logprobs=None)
    first = _prompt(data, computed=0, scheduled=3, prompt_logprob_indices=[0, 1, 2], sample_indices=[])
    last = _prompt(data, computed=97, scheduled=3, prompt_logprob_indices=[3, 4], sample_indices=[5])
    for group in (first, last):
        group.sampling_params = params
    batch = v0._batch([SimpleNamespace(request_id=n) for n in "ab"], SimpleNamespace(seq_groups=[first, last]))
    scores = {token: SimpleNamespace(logprob=-float(token)) for token in tokens}
    sample = SimpleNamespace(output_token=7, logprobs={7: SimpleNamespace(logprob=-0.5)})
    output = SimpleNamespace(
        outputs=[
            SimpleNamespace(prompt_logprobs=[scores] * 3, samples=[]),
            SimpleNamespace(prompt_logprobs=[scores] * 2, samples=[sample]),
        ]
    )
    rows = v0._scored_prompts(batch, output)
    assert rows.positions == [1, 2, 3, 98, 99]
    assert rows.token_ids == [501, 502, 503, 598, 599]
    assert rows.reported == [-501, -502, -503, -598, -599]
    assert (rows.logits_rows, rows.batch_rows) == ([0, 1, 2, 3, 4], [0, 0, 0, 1, 1])
    sampled = v0._sampled(batch, output)
    assert (sampled.positions, sampled.token_ids, sampled.logits_rows) == ([100], [7], [5])
    assert sampled.reported == [UNKNOWN], "logprobs were not asked for"


class Recorder:
    """Keeps what a hook hands over."""

    def __init__(self) -> None:
        self.items: list[RowsOf] = []
        self.events: list[tuple[str, str | None]] = []

    def put(self, item: RowsOf) -> None:
        self.items.append(item)

    def event(self, kind: str, *, request_id: str | None = None, step_id: int | None = None) -> None:  # noqa: ARG002
        self.events.append((kind, request_id))


@pytest.mark.parametrize(("blocks", "window", "cached"), [([], None, 0), ([4, 5, 6], None, 48), ([4, 5], 128, 0)])
def test_cached_tokens_are_the_blocks_that_were_found(blocks: list[int], window: int | None, cached: int) -> None:
    recorder = Recorder()
    state = EngineState("session", recorder, Selection(RecordConfig("trace")))  # type: ignore[arg-type]
    state.announced.add("r")
    runner = SimpleNamespace(block_size=BLOCK, sliding_window=window)
    metadata = SimpleNamespace(request_id="r", seq_data={0: _data(100)}, computed_block_nums=blocks)
    v0._note_scheduled(runner, state, metadata)
    v0._note_scheduled(runner, state, metadata)
    assert [item.columns() for item in recorder.items] == [{"request_id": "r", "num_cached_tokens": cached}]


def test_a_request_that_is_older_than_the_recorder_brings_its_tokens() -> None:
    recorder = Recorder()
    state = EngineState("session", recorder, Selection(RecordConfig("trace")))  # type: ignore[arg-type]
    params = msgspec.defstruct("Params", [("temperature", float, 0.5), ("stop", list, []), ("extra_args", dict, {})])()
    metadata = SimpleNamespace(
        request_id="r",
        seq_data={0: _data(5, 3)},
        computed_block_nums=None,
        sampling_params=params,
        lora_request=None,
    )
    v0._note_scheduled(SimpleNamespace(block_size=BLOCK, sliding_window=None), state, metadata)
    (seen,) = recorder.items
    assert isinstance(seen, RequestSeen)
    row = seen.columns()
    assert seen.output_token_ids == (0, 1, 2)
    assert (row["num_prompt_tokens"], row["temperature"], row["n"]) == (5, 0.5, None)
    assert "num_cached_tokens" not in row


def test_a_preempted_request_that_comes_back_is_counted() -> None:
    recorder = Recorder()
    state = EngineState("session", recorder, Selection(RecordConfig("trace")))  # type: ignore[arg-type]
    state.announced.add("r")
    runner = SimpleNamespace(block_size=BLOCK, sliding_window=None)
    metadata = SimpleNamespace(request_id="r", seq_data={0: _data(5)}, computed_block_nums=[])
    v0._note_scheduled(runner, state, metadata)
    for _ in range(2):
        state.preempted.add("r")
        v0._note_scheduled(runner, state, metadata)
        v0._note_scheduled(runner, state, metadata)
    assert recorder.events == [("request_resumed", "r")] * 2
    assert state.forget("r") == 2
    assert not state.seen


def test_a_top_p_that_v0_ignores_keeps_everything() -> None:
    """V0 does not truncate at all where no top-p of the batch is below 1 - 1e-5."""
    row = torch.linspace(-8, 9, 50)
    logprobs = row.log_softmax(0)[None]
    passing = Passing(with_hidden=False, logprobs_LV=logprobs)
    (drawn,) = passing.drawn
    ids = torch.tensor([3])
    raw = reduce_raw(row[None], ids, 4, as_engine=True)
    live = LiveRequest(SamplingParams(top_p=1 - 5e-6), [], [], Choice(True, False, False))
    rows = Slice(row[None], ids, [live], raw, HostDevice(), as_engine=True).reduce(
        drawn.logits_PV, drawn.scaled_PV, is_truncated=drawn.truncated
    )
    assert rows.kept_count.tolist() == [50]
    assert abs(float(rows.kept_mass[0]) - 1) < 1e-6
    assert abs(float(rows.processed_logprob[0] - logprobs[0, 3])) < 1e-6


def test_min_p_alone_is_measured_against_what_was_there_before() -> None:
    scaled = torch.tensor([[2.0, 1.0, -3.0, 0.0]])
    truncated = torch.tensor([[2.0, 1.0, -torch.inf, -torch.inf]])
    passing = Passing(False, scaled_LV=scaled, truncated_LV=truncated, logprobs_LV=truncated.log_softmax(1))
    (drawn,) = passing.drawn
    ids = torch.tensor([1])
    raw = reduce_raw(scaled, ids, 2, as_engine=True)
    live = LiveRequest(SamplingParams(temperature=0.7, min_p=0.2), [], [], Choice(True, False, False))
    rows = Slice(scaled, ids, [live], raw, HostDevice(), as_engine=True).reduce(
        drawn.logits_PV, drawn.scaled_PV, is_truncated=drawn.truncated
    )
    weights = np.exp(scaled[0].double().numpy())
    assert rows.kept_count.tolist() == [2]
    assert abs(float(rows.kept_mass[0]) - weights[:2].sum() / weights.sum()) < 1e-6
    assert abs(float(rows.processed_logprob[0]) - np.log(weights[1] / weights[:2].sum())) < 1e-6
