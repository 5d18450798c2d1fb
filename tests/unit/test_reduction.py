"""Reductions against NumPy in float64, with ties, masks and vocabularies of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracekit import reduction, truncation
from tracekit.candidates import top_candidates
from tracekit.normaliser import logsumexp
from tracekit.reduction import (
    ProcessedRows,
    RawRows,
    concat_rows,
    reduce_processed,
    reduce_raw,
    reduce_truncated,
)
from tracekit.sampling import SamplingParams, truncate

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _rows(num_rows: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, vocab, generator=generator) * 4).to(dtype)


def _best(row: np.ndarray, k: int) -> list[int]:
    return np.lexsort((np.arange(len(row)), -row))[:k].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_engine", [False, True])
def test_figures_equal_float64(dtype: torch.dtype, as_engine: bool) -> None:
    logits = _rows(11, 5003, dtype)
    logits[3, 100:4000] = -torch.inf
    tokens = torch.randint(0, 100, (11,))
    rows = reduce_raw(logits, tokens, 5, as_engine=as_engine)
    wide = logits.double().numpy()
    for i, (row, token) in enumerate(zip(wide, tokens.tolist(), strict=True)):
        shifted = np.exp(row - row.max())
        log_sum = np.log(shifted.sum()) + row.max()
        probability = shifted / shifted.sum()
        with np.errstate(divide="ignore", invalid="ignore"):
            entropy = -np.nansum(probability * np.log(probability))
        tolerance = 2e-5 if as_engine else 2e-6
        assert rows.logit[i] == row[token]
        assert abs(float(rows.logsumexp[i]) - log_sum) < tolerance
        assert abs(float(rows.logprob[i]) - (row[token] - log_sum)) < tolerance
        assert abs(float(rows.entropy[i]) - entropy) < 5e-6
        assert rows.rank[i] == 1 + (row > row[token]).sum()
        assert rows.num_tied[i] == (row == row[token]).sum() - 1
        assert rows.logit_min[i] == row.min()
        best = _best(row, 5)
        assert rows.argmax_token_id[i] == best[0]
        assert rows.top1_margin[i] == row[best[0]] - row[best[1]]
        assert rows.top_token_ids[i].tolist() == best


def test_as_engine_is_bit_equal_to_log_softmax() -> None:
    logits, tokens = _rows(9, 49152, torch.bfloat16), torch.arange(9)
    expected = torch.log_softmax(logits, dim=-1, dtype=torch.float32).gather(1, tokens[:, None])[:, 0]
    assert torch.equal(reduce_raw(logits, tokens, 20, as_engine=True).logprob, expected)
    # A row's figures do not depend on the rows beside it.
    pieces = [reduce_raw(logits[i : i + 2], tokens[i : i + 2], 20, as_engine=True) for i in range(0, 9, 2)]
    assert torch.equal(concat_rows(pieces).logprob, expected)


def test_no_candidates_on_request() -> None:
    rows = reduce_raw(_rows(2, 100, torch.float32), torch.tensor([1, 2]), 0)
    assert rows.top_token_ids.shape == (2, 0)
    assert rows.columns()["top_logits"].shape == (2, 0)
    assert (rows.top1_margin >= 0).all()


def test_processed_rows_count_what_is_kept() -> None:
    logits = _rows(4, 1000, torch.float32)
    whole = torch.logsumexp(logits, 1)
    kept = logits.clone()
    kept[:, 10:] = -torch.inf
    rows = reduce_processed(kept, torch.tensor([0, 9, 10, 3]), whole)
    wide = logits.double().numpy()
    for i, token in enumerate([0, 9, 10, 3]):
        weights = np.exp(wide[i])
        mass = weights[:10].sum() / weights.sum()
        assert rows.kept_count[i] == 10
        assert abs(float(rows.kept_mass[i]) - mass) < 1e-6
        if token < 10:
            expected = wide[i][token] - np.log(weights.sum()) - np.log(mass)
            assert abs(float(rows.processed_logprob[i]) - expected) < 2e-6
        else:
            assert rows.processed_logprob[i] == -torch.inf


def test_inputs_are_left_alone() -> None:
    logits = _rows(3, 500, torch.float32)
    before = logits.clone()
    reduce_raw(logits, torch.tensor([0, 1, 2]), 5, as_engine=True)
    reduce_processed(logits, torch.tensor([0, 1, 2]), torch.zeros(3), as_engine=True)
    assert torch.equal(logits, before)


def _equal(left: RawRows | ProcessedRows, right: RawRows | ProcessedRows) -> bool:
    pairs = zip(left.columns().values(), right.columns().values(), strict=True)
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@pytest.mark.parametrize("as_engine", [False, True])
@pytest.mark.parametrize("top_k", [0, 3, 20])
def test_a_device_gives_the_figures_of_a_host(monkeypatch: pytest.MonkeyPatch, top_k: int, as_engine: bool) -> None:
    logits, tokens = _rows(40, 3001, torch.bfloat16), torch.arange(40) * 7
    logits[1, 50:] = -torch.inf
    logits[2] = 1.0
    logits[3, 9] = torch.nan
    tokens[::2] = top_candidates(logits[::2], 5)[0][:, 2]  # others lie below any candidate
    raw = reduce_raw(logits, tokens, top_k, as_engine=as_engine)
    processed = reduce_processed(logits, tokens, raw.logsumexp, as_engine=as_engine)
    assert raw.rank.min() < 3
    assert raw.rank.max() > 20
    monkeypatch.setattr(reduction, "is_on_host", lambda _: False)
    assert _equal(raw, reduce_raw(logits, tokens, top_k, as_engine=as_engine))
    of_device = reduce_processed(logits, tokens, raw.logsumexp, as_engine=as_engine)
    assert torch.equal(processed.kept_count, of_device.kept_count)
    for name in ("processed_logprob", "kept_mass"):
        torch.testing.assert_close(getattr(processed, name), getattr(of_device, name), equal_nan=True)


@pytest.mark.parametrize("as_engine", [False, True])
def test_a_device_is_never_read_back(as_engine: bool) -> None:
    # A meta tensor has no values: whatever would wait for a device's fails here.
    logits, tokens = torch.empty(3, 1000, device="meta"), torch.empty(3, dtype=torch.int64, device="meta")
    raw = reduce_raw(logits, tokens, 20, as_engine=as_engine)
    assert raw.top_logits.shape == (3, 20)
    assert reduce_processed(logits, tokens, raw.logsumexp, as_engine=as_engine).kept_mass.shape == (3,)
    assert logsumexp(logits).shape == (3,)


def test_sums_are_right_to_float32_rounding() -> None:
    logits, tokens = _rows(8, 49152, torch.bfloat16), torch.arange(8)
    wide = logits.double()
    log_sums = torch.logsumexp(wide, 1)
    entropy = -(torch.softmax(wide, 1) * torch.log_softmax(wide, 1)).sum(1)
    assert (logsumexp(logits) - log_sums).abs().max() < 2e-6
    for as_engine in (False, True):
        raw = reduce_raw(logits, tokens, 20, as_engine=as_engine)
        assert (raw.entropy - entropy).abs().max() < 2e-6
        half = wide.masked_fill(wide < 0, -torch.inf)
        mass = (torch.logsumexp(half, 1) - log_sums).exp()
        processed = reduce_processed(half.float(), tokens, log_sums.float(), as_engine=as_engine)
        assert (processed.kept_mass - mass).abs().max() < 2e-6


def test_rows_that_no_model_should_give_keep_to_themselves() -> None:
    good = _rows(5, 700, torch.float32)
    tokens = torch.arange(5)
    logits = good.clone()
    logits[1] = torch.nan
    logits[2, 3] = torch.inf
    logits[3] = -torch.inf
    for as_engine in (False, True):
        expected = reduce_raw(good, tokens, 20, as_engine=as_engine)
        rows = reduce_raw(logits, tokens, 20, as_engine=as_engine)
        processed = reduce_processed(logits, tokens, expected.logsumexp, as_engine=as_engine)
        for figures in (rows.logsumexp, rows.logprob, rows.entropy, processed.processed_logprob, processed.kept_mass):
            assert figures.isnan().tolist() == [False, True, True, True, False]
        for name, column in rows.columns().items():
            assert np.array_equal(column[[0, 4]], expected.columns()[name][[0, 4]])
        assert rows.argmax_token_id[2] == 3
        assert rows.rank[1] == 1
        assert (rows.num_tied >= 0).all()
        assert processed.kept_count.tolist() == [700, 0, 700, 0, 700]


@pytest.mark.parametrize("as_engine", [False, True])
def test_shapes_at_the_edge(as_engine: bool) -> None:
    for num_rows, vocab in ((0, 500), (1, 1), (1, 2), (2, 15)):
        logits = _rows(num_rows, vocab, torch.float16)
        tokens = torch.zeros(num_rows, dtype=torch.int64)
        rows = reduce_raw(logits, tokens, 20, as_engine=as_engine)
        assert rows.top_token_ids.shape == (num_rows, min(20, vocab))
        assert rows.rank.tolist() == [1 + int((row > row[0]).sum()) for row in logits]
        processed = reduce_processed(logits, tokens, rows.logsumexp, as_engine=as_engine)
        assert processed.kept_count.tolist() == [vocab] * num_rows
    alone = reduce_raw(torch.tensor([[3.0]]), torch.tensor([0]), 20)
    assert alone.top1_margin.isnan().all()
    assert alone.logprob.tolist() == alone.entropy.tolist() == [0.0]


@pytest.mark.parametrize("as_engine", [False, True])
def test_rows_need_not_lie_side_by_side(as_engine: bool) -> None:
    apart = _rows(400, 9, torch.float32).T
    tokens = torch.arange(9)
    together = reduce_raw(apart.contiguous(), tokens, 20, as_engine=as_engine)
    assert _equal(reduce_raw(apart, tokens, 20, as_engine=as_engine), together)
    expected = reduce_processed(apart.contiguous(), tokens, together.logsumexp, as_engine=as_engine)
    assert _equal(reduce_processed(apart, tokens, together.logsumexp, as_engine=as_engine), expected)


def test_figures_do_not_share_memory_with_a_later_call() -> None:
    logits, tokens = _rows(3, 500, torch.bfloat16), torch.arange(3)
    rows = reduce_raw(logits, tokens, 20)
    before = {name: column.copy() for name, column in rows.columns().items()}
    reduce_raw(logits * 2 + 1, tokens, 20)
    reduce_processed(logits * 2 + 1, tokens)
    assert all(np.array_equal(column, before[name]) for name, column in rows.columns().items())


def test_inference_mode_may_come_and_go() -> None:
    logits, tokens = _rows(3, 611, torch.bfloat16), torch.arange(3)
    with torch.inference_mode():
        inside = reduce_raw(logits.clone(), tokens.clone(), 20)
    assert _equal(inside, reduce_raw(logits, tokens, 20))
    assert _equal(inside, reduce_raw(logits.float().requires_grad_(), tokens, 20))


def test_processed_logprob_is_bit_equal_to_log_softmax_of_truncated_rows() -> None:
    logits = _rows(6, 49152, torch.float32)
    kept = logits.masked_fill(logits < torch.tensor([15.0, 12.0, 8.0, 4.0, 0.0, -50.0]).unsqueeze(1), -torch.inf)
    tokens = kept.argmax(1)
    expected = torch.log_softmax(kept, dim=-1).gather(1, tokens[:, None])[:, 0]
    assert torch.equal(reduce_processed(kept, tokens, logsumexp(logits), as_engine=True).processed_logprob, expected)


TRUNCATED = [
    SamplingParams(top_p=0.9),
    SamplingParams(top_p=0.3, top_k=50),
    SamplingParams(top_k=7),
    SamplingParams(top_k=2000, top_p=0.99),
    SamplingParams(),
]


@pytest.mark.parametrize("keep_ties", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_truncated_rows_are_reduced_without_being_made(dtype: torch.dtype, keep_ties: bool) -> None:
    logits = _rows(len(TRUNCATED), 5003, dtype)
    tokens = top_candidates(logits, 9)[0][:, 5]
    tokens[4] = 4000
    made = truncate(logits, TRUNCATED, tokens, min_p_applied=True, keep_ties=keep_ties).logits_BV.double()
    limits = ([row.top_k for row in TRUNCATED], [row.top_p for row in TRUNCATED])

    rows = reduce_truncated(logits, tokens, *limits, keep_ties=keep_ties)

    wide = logits.double()
    expected = torch.log_softmax(made, 1).gather(1, tokens[:, None])[:, 0]
    assert torch.equal(rows.kept_count, (made > -torch.inf).sum(1).int())
    torch.testing.assert_close(rows.processed_logprob.double(), expected, atol=1e-6, rtol=1e-6)
    mass = (torch.logsumexp(made, 1) - torch.logsumexp(wide, 1)).exp()
    torch.testing.assert_close(rows.kept_mass.double(), mass, atol=0, rtol=1e-6)
    # As if min-p had taken a quarter of the mass before.
    before = (torch.logsumexp(wide, 1) - np.log(0.75)).float()
    rows = reduce_truncated(logits, tokens, *limits, before, keep_ties=keep_ties)
    torch.testing.assert_close(rows.kept_mass.double(), mass * 0.75, atol=0, rtol=3e-6)


def test_a_token_that_truncation_excludes_has_no_probability_but_an_equal_of_the_last_one_has() -> None:
    logits = torch.cat([torch.full((1, 3), 4.0), torch.ones(1, 97), torch.zeros(1, 100)], 1)
    tokens = torch.tensor([3, 150])
    rows = reduce_truncated(logits.repeat(2, 1), tokens, [0, 0], [0.5, 0.5])
    num_ones = int(rows.kept_count[0]) - 3
    assert 1 < num_ones < 90  # so id 3 is not among those that stay
    expected = 1 - np.log(3 * np.exp(4) + num_ones * np.exp(1))
    assert rows.processed_logprob.tolist() == pytest.approx([expected, -np.inf])


def test_truncated_rows_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, tokens = _rows(5, 5003, torch.bfloat16), torch.arange(5)
    logits[2, 7] = torch.nan
    limits = ([row.top_k for row in TRUNCATED], [row.top_p for row in TRUNCATED])
    on_host = reduce_truncated(logits, tokens, *limits)
    assert on_host.processed_logprob.isnan().tolist() == [False, False, True, False, False]
    monkeypatch.setattr(truncation, "is_on_host", lambda _: False)
    on_device = reduce_truncated(logits, tokens, *limits)
    assert torch.equal(on_device.kept_count[[0, 1, 3, 4]], on_host.kept_count[[0, 1, 3, 4]])
    for name in ("processed_logprob", "kept_mass"):
        torch.testing.assert_close(getattr(on_device, name), getattr(on_host, name), equal_nan=True)

    meta = torch.empty(5, 5003, device="meta")
    assert reduce_truncated(meta, torch.empty(5, dtype=torch.int64, device="meta"), *limits).kept_mass.shape == (5,)
