"""Reductions against NumPy in float64, with ties, masks and vocabularies of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracekit.reduction import concat_rows, reduce_processed, reduce_raw, top_candidates

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _rows(num_rows: int, vocab: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(num_rows, vocab, generator=generator) * 4).to(dtype)


def _best(row: np.ndarray, k: int) -> list[int]:
    return np.lexsort((np.arange(len(row)), -row))[:k].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [3, 63, 64, 65, 1000, 49153])
@pytest.mark.parametrize("k", [1, 2, 20])
def test_candidates_are_the_k_best_by_logit_then_id(dtype: torch.dtype, vocab: int, k: int) -> None:
    logits = _rows(7, vocab, dtype)
    logits[0] = 1.5  # all equal
    logits[1] = torch.randint(-2, 3, (vocab,)).to(dtype)  # ties everywhere
    logits[2, :] = -torch.inf
    logits[2, vocab // 2] = 0.0
    ids, values = top_candidates(logits, k)
    wide = logits.double().numpy()
    for row, got_ids, got in zip(wide, ids.tolist(), values.tolist(), strict=True):
        expected = _best(row, k)
        assert got_ids == expected
        assert got == row[expected].tolist()


def test_negative_zero_ties_with_zero() -> None:
    logits = torch.tensor([[-0.0, 0.0, -1.0, 0.0]])
    assert top_candidates(logits, 3)[0].tolist() == [[0, 1, 3]]


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
