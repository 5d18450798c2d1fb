"""sampling.py against vLLM's own V1 sampler, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm.sampling_params import SamplingParams as EngineParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors
from vllm.v1.sample.logits_processor.builtin import (
    LogitBiasLogitsProcessor,
    MinPLogitsProcessor,
    MinTokensLogitsProcessor,
)
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

from tracekit import truncation
from tracekit.sampling import SamplingParams, processed_logits, truncate

VOCAB = 1000
BIAS = {3: 5.0, 17: -60.0, 999: 0.1}
SINGLE = {
    "neutral": SamplingParams(),
    "greedy": SamplingParams(temperature=0.0, top_p=0.5, top_k=3, min_p=0.2),
    "cold": SamplingParams(temperature=0.3),
    "hot": SamplingParams(temperature=1.7),
    "top_p": SamplingParams(top_p=0.9),
    "tiny_top_p": SamplingParams(top_p=1e-6),
    "top_k": SamplingParams(top_k=20),
    "top_k_1": SamplingParams(top_k=1),
    "top_k_minus_1": SamplingParams(top_k=-1),
    "top_k_beyond_vocabulary": SamplingParams(top_k=VOCAB + 1),
    "min_p": SamplingParams(min_p=0.05),
    "top_k_top_p": SamplingParams(temperature=0.8, top_k=50, top_p=0.95),
    "all_truncations": SamplingParams(temperature=0.8, top_k=50, top_p=0.95, min_p=0.02),
    "repetition": SamplingParams(repetition_penalty=1.3),
    "reward_repetition": SamplingParams(repetition_penalty=0.7),
    "frequency": SamplingParams(frequency_penalty=0.37),
    "presence": SamplingParams(presence_penalty=-0.61),
    "all_penalties": SamplingParams(repetition_penalty=1.1, frequency_penalty=0.3, presence_penalty=0.7),
    "greedy_with_penalties": SamplingParams(temperature=0.0, repetition_penalty=1.1, frequency_penalty=0.3),
    "bias": SamplingParams(logit_bias=BIAS),
    "allowed": SamplingParams(allowed_token_ids=(1, 5, 8, 700)),
    "bad_words": SamplingParams(bad_words_token_ids=((7,), (41, 42, 9), (1, 2, 3))),
    "min_tokens": SamplingParams(min_tokens=100, stop_token_ids=(2, 11)),
    "min_tokens_reached": SamplingParams(min_tokens=3, stop_token_ids=(2, 11)),
    "everything": SamplingParams(
        temperature=0.7,
        top_p=0.9,
        top_k=100,
        min_p=0.001,
        presence_penalty=0.5,
        frequency_penalty=0.2,
        repetition_penalty=1.2,
        min_tokens=50,
        stop_token_ids=(2, 11),
        logit_bias=BIAS,
        allowed_token_ids=tuple(range(0, VOCAB, 2)),
        bad_words_token_ids=((8,), (42, 10)),
    ),
}
MIXTURES = {name: [params] for name, params in SINGLE.items()} | {
    "all_in_one_batch": list(SINGLE.values()),
    "no_truncation_by_mass": [row for row in SINGLE.values() if row.top_p == 1],
    "all_greedy": [row for row in SINGLE.values() if row.is_greedy],
    "twice_the_same": [SINGLE["everything"]] * 2,
}


def make_logits(num_rows: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows as a model gives them: a few large logits, and ties (in float32 by rounding to a coarse grid)."""
    logits = torch.randn(num_rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    return torch.round(logits * 16).div(16) if dtype == torch.float32 else logits.to(dtype)


def make_contexts(num_rows: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    random = np.random.default_rng(seed)
    prompts = [random.integers(0, VOCAB, 30).tolist() for _ in range(num_rows)]
    outputs = [[*random.integers(0, 40, 20).tolist(), 41, 42] for _ in range(num_rows)]
    return prompts, outputs


def engine_processed(
    logits_BV: torch.Tensor, params: list[SamplingParams], prompts: list[list[int]], outputs: list[list[int]]
) -> torch.Tensor:
    """What vLLM's V1 sampler makes of the rows, with the metadata its input batch would build."""
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=len(params)))
    processors = [
        MinTokensLogitsProcessor(config, torch.device("cpu"), False),
        LogitBiasLogitsProcessor(config, torch.device("cpu"), False),
        MinPLogitsProcessor(config, torch.device("cpu"), False),
    ]
    added = [
        (index, engine_params(row), prompt, output)
        for index, (row, prompt, output) in enumerate(zip(params, prompts, outputs, strict=True))
    ]
    for processor in processors:
        processor.update_state(BatchUpdate(batch_size=len(params), removed=[], added=added, moved=[]))

    truncating = [replace(row, top_k=0, top_p=1.0) if row.is_greedy else row for row in params]
    top_p = torch.tensor([row.top_p for row in truncating]) if any(row.top_p < 1 for row in truncating) else None
    top_k = [row.top_k if 0 < row.top_k < VOCAB else VOCAB for row in truncating]
    temperature = torch.tensor([0.0 if row.is_greedy else row.temperature for row in params])
    mask = torch.zeros(len(params), VOCAB, dtype=torch.bool)
    for index, row in enumerate(params):
        if row.allowed_token_ids:
            mask[index] = True
            mask[index, list(row.allowed_token_ids)] = False
    all_greedy = all(row.is_greedy for row in params)
    metadata = SamplingMetadata(
        temperature=None if all_greedy else temperature,
        all_greedy=all_greedy,
        all_random=not any(row.is_greedy for row in params),
        top_p=top_p,
        top_k=torch.tensor(top_k, dtype=torch.int32) if min(top_k) < VOCAB else None,
        generators={},
        max_num_logprobs=1,
        no_penalties=not any(row.has_penalties for row in params),
        prompt_token_ids=torch.tensor(prompts),
        frequency_penalties=torch.tensor([row.frequency_penalty for row in params]),
        presence_penalties=torch.tensor([row.presence_penalty for row in params]),
        repetition_penalties=torch.tensor([row.repetition_penalty for row in params]),
        output_token_ids=outputs,
        allowed_token_ids_mask=mask if mask.any() else None,
        bad_words_token_ids={
            index: [list(word) for word in row.bad_words_token_ids]
            for index, row in enumerate(params)
            if row.bad_words_token_ids
        },
        logitsprocs=LogitsProcessors(processors),
    )
    sampler = Sampler(logprobs_mode="processed_logits")
    logits = sampler.apply_logits_processors(logits_BV.to(torch.float32, copy=True), metadata, False)
    _, processed = sampler.sample(logits, metadata)
    assert processed is not None
    return processed


def engine_params(row: SamplingParams) -> EngineParams:
    return EngineParams(
        temperature=row.temperature,
        top_p=row.top_p,
        top_k=row.top_k if row.top_k >= 0 else 0,
        min_p=row.min_p,
        min_tokens=row.min_tokens,
        max_tokens=1000,
        stop_token_ids=list(row.stop_token_ids),
        logit_bias=dict(row.logit_bias) or None,
    )


def assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal in every bit, but for the sign of zero: -0.0 minus a penalty of -0.0 becomes 0.0 in the engine."""
    assert ours.dtype == theirs.dtype == torch.float32
    different = (ours != theirs).nonzero().tolist()
    assert not different, f"{len(different)} entries differ, first {different[:3]}"


def assert_same_but_for_ties(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal in every bit, but for which of equal logits at the edge of top-p stay."""
    assert_same_bits(ours.sort(1).values, theirs.sort(1).values)
    least = torch.where(ours > -torch.inf, ours, torch.inf).amin(1, keepdim=True).expand_as(ours)
    different = ours != theirs
    assert torch.equal(torch.maximum(ours, theirs)[different], least[different])


@pytest.fixture
def _stable_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the engine's sort leave equals in the order of their ids; by itself it promises no order."""
    monkeypatch.setattr(torch.Tensor, "sort", partialmethod(torch.Tensor.sort, stable=True))


@pytest.mark.usefixtures("_stable_sort")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("mixture", MIXTURES)
def test_equals_the_engines_sampler_bit_for_bit(mixture: str, dtype: torch.dtype) -> None:
    params = MIXTURES[mixture]
    logits = make_logits(len(params), dtype)
    prompts, outputs = make_contexts(len(params))

    ours = processed_logits(logits, params, prompts, outputs).logits_BV

    assert_same_bits(ours, engine_processed(logits, params, prompts, outputs))


@pytest.mark.usefixtures("_stable_sort")
def test_the_whole_mixture_holds_for_many_logits() -> None:
    params = list(SINGLE.values())
    for seed in range(20):
        logits = make_logits(len(params), torch.bfloat16, seed)
        prompts, outputs = make_contexts(len(params), seed)
        ours = processed_logits(logits, params, prompts, outputs).logits_BV
        assert_same_bits(ours, engine_processed(logits, params, prompts, outputs))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    params = list(SINGLE.values())
    logits = make_logits(len(params), torch.bfloat16)
    prompts, outputs = make_contexts(len(params))
    together = processed_logits(logits, params, prompts, outputs)
    for index in range(len(params)):
        row = slice(index, index + 1)
        alone = processed_logits(logits[row], params[row], prompts[row], outputs[row])
        assert_same_bits(alone.logits_BV, together.logits_BV[row])


def test_a_row_without_top_p_keeps_what_the_engine_drops_beside_a_row_with_it() -> None:
    params = [SamplingParams(logit_bias={17: -200.0}), SamplingParams(top_p=0.9)]
    logits = make_logits(2, torch.float32)
    contexts = make_contexts(2)

    ours = processed_logits(logits, params, *contexts).logits_BV[0]

    assert_same_bits(ours[None], engine_processed(logits[:1], params[:1], contexts[0][:1], contexts[1][:1]))
    theirs = engine_processed(logits, params, *contexts)[0]
    assert (ours != theirs).nonzero().tolist() == [[17]]
    assert theirs[17] == -torch.inf
    assert torch.softmax(ours, 0)[17] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocab_size", [49_152, 151_936])
def test_truncation_of_a_real_vocabulary_equals_the_engines(vocab_size: int, dtype: torch.dtype) -> None:
    """In 2 of 8,000 rows of a model the engine's float32 sums put one token on the other side of the edge; not here."""
    logits = (torch.randn(8, vocab_size, generator=torch.Generator().manual_seed(1)) * 2.5).to(dtype)
    top_p = [0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 0.95, 0.9]
    top_k = [vocab_size] * 5 + [40, 1000, 1]
    params = [SamplingParams(top_p=p, top_k=k) for p, k in zip(top_p, top_k, strict=True)]

    ours = processed_logits(logits, params, [[]] * 8, [[]] * 8).logits_BV

    assert_same_but_for_ties(ours, apply_top_k_top_p(logits.float(), torch.tensor(top_k), torch.tensor(top_p)))


def test_a_drawn_token_stays_before_its_equals() -> None:
    logits = torch.cat([torch.full((1, 3), 4.0), torch.zeros(1, 97)], 1)
    params = [SamplingParams(temperature=0.5, top_p=0.995)]
    arguments = (logits, params, [[]], [[]])
    kept = (processed_logits(*arguments).logits_BV[0] > -torch.inf).nonzero().squeeze(1).tolist()
    num_equals = len(kept) - 3
    assert 1 < num_equals < 97
    assert kept == [0, 1, 2, *range(100 - num_equals, 100)]

    with_drawn = processed_logits(*arguments, torch.tensor([10])).logits_BV[0]
    assert (with_drawn > -torch.inf).nonzero().squeeze(1).tolist() == [0, 1, 2, 10, *range(101 - num_equals, 100)]
    drawn_anyway = processed_logits(*arguments, torch.tensor([2])).logits_BV[0]
    assert (drawn_anyway > -torch.inf).nonzero().squeeze(1).tolist() == kept


@pytest.mark.parametrize("min_p_applied", [False, True])
def test_truncate_is_the_last_step_alone(min_p_applied: bool) -> None:
    params = [row for row in SINGLE.values() if row.only_scales]
    logits = make_logits(len(params), torch.bfloat16)
    contexts = ([[]] * len(params), [[]] * len(params))
    whole = processed_logits(logits, params, *contexts)
    done = [replace(row, top_k=0, top_p=1.0, min_p=row.min_p * min_p_applied) for row in params]
    given = processed_logits(logits, done, *contexts).logits_BV
    before = given.clone()

    truncated = truncate(given, params, min_p_applied=min_p_applied, keep_ties=False)

    assert_same_bits(truncated.logits_BV, whole.logits_BV)
    assert torch.equal(given, before)
    hidden = torch.tensor([min_p_applied and row.truncates and row.min_p > 0 for row in params])
    assert torch.equal(truncated.untruncated_logsumexp_B.isnan(), hidden)
    assert torch.equal(truncated.untruncated_logsumexp_B[~hidden], whole.untruncated_logsumexp_B[~hidden])


def test_a_fused_sampler_keeps_all_equals() -> None:
    logits = torch.tensor([[3.0, 2.0, 1.0, 1.0, 1.0, 0.0]])
    params = [SamplingParams(top_p=0.85)]
    kept = truncate(logits, params, min_p_applied=True, keep_ties=True).logits_BV
    assert kept.tolist() == [[3.0, 2.0, 1.0, 1.0, 1.0, -torch.inf]]
    kept = truncate(logits, params, min_p_applied=True, keep_ties=False).logits_BV
    assert kept.tolist() == [[3.0, 2.0, -torch.inf, 1.0, 1.0, -torch.inf]]
    with pytest.raises(ValueError, match="params has 2 entries for 1 rows"):
        truncate(logits, params * 2, min_p_applied=True, keep_ties=True)


def test_a_device_gives_what_a_host_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    params = list(SINGLE.values())
    arguments = (make_logits(len(params), torch.bfloat16), params, *make_contexts(len(params)))
    on_host = processed_logits(*arguments)
    monkeypatch.setattr(truncation, "is_on_host", lambda _: False)
    on_device = processed_logits(*arguments)
    assert_same_bits(on_device.logits_BV, on_host.logits_BV)
    assert torch.equal(on_device.untruncated_logsumexp_B, on_host.untruncated_logsumexp_B)


def test_a_device_is_never_read_back() -> None:
    # A meta tensor has no values: whatever would wait for a device's fails here.
    params = list(SINGLE.values())
    logits = torch.empty(len(params), VOCAB, device="meta")
    drawn = torch.empty(len(params), dtype=torch.int64, device="meta")
    assert processed_logits(logits, params, *make_contexts(len(params)), drawn).logits_BV.shape == logits.shape
    assert truncate(logits, params, drawn, min_p_applied=True, keep_ties=True).logits_BV.shape == logits.shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_raw_logits_are_never_modified(dtype: torch.dtype) -> None:
    params = list(SINGLE.values())
    logits = make_logits(len(params), dtype)
    before = logits.clone()
    processed_logits(logits, params, *make_contexts(len(params)))
    assert torch.equal(logits, before)


def test_neutral_float32_rows_cost_no_copy() -> None:
    logits = make_logits(2, torch.float32)
    greedy = SINGLE["greedy"]
    assert processed_logits(logits, [SamplingParams(), greedy], [[1], [1]], [[], []]).logits_BV is logits


def test_untruncated_logsumexp_is_after_temperature_and_before_truncation() -> None:
    params = [SamplingParams(temperature=0.5, top_k=2, top_p=0.4, min_p=0.1, logit_bias={1: 2.0}), SamplingParams()]
    logits = make_logits(2, torch.float32)
    expected = logits.double().numpy()
    expected[0, 1] += 2.0
    expected[0] /= 0.5
    largest = expected.max(axis=1, keepdims=True)
    expected = np.log(np.exp(expected - largest).sum(axis=1)) + largest[:, 0]

    processed = processed_logits(logits, params, [[1], [1]], [[], []])

    assert processed.untruncated_logsumexp_B.numpy() == pytest.approx(expected, abs=1e-5)
    assert processed.untruncated_logsumexp_B.dtype == torch.float32


def test_contexts_may_be_arrays_and_hold_ids_beyond_the_vocabulary() -> None:
    params = [SINGLE["everything"]]
    logits = make_logits(1, torch.float32)
    prompts, outputs = make_contexts(1)
    as_arrays = processed_logits(
        logits, params, [np.array([*prompts[0], VOCAB + 5])], [np.array([VOCAB, -1, *outputs[0]])]
    )
    assert_same_bits(as_arrays.logits_BV, processed_logits(logits, params, prompts, outputs).logits_BV)


def test_no_rows_give_no_rows() -> None:
    assert processed_logits(torch.empty(0, VOCAB), [], [], []).logits_BV.shape == (0, VOCAB)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="output_ids has 1 entries for 2 rows"):
        processed_logits(torch.zeros(2, VOCAB), [SamplingParams()] * 2, [[1]] * 2, [[1]])


def test_properties() -> None:
    assert SamplingParams(temperature=9e-6).is_greedy
    assert not SamplingParams(temperature=1e-5).is_greedy
    assert not SINGLE["greedy"].truncates
    assert SINGLE["min_p"].truncates
    assert SINGLE["top_k"].truncates
    assert SINGLE["top_p"].truncates
    assert not SINGLE["top_k_minus_1"].truncates
    assert SINGLE["presence"].has_penalties
    assert not SINGLE["bias"].has_penalties
