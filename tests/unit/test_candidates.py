"""Candidates against a full sort in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tracekit.candidates import ordered_bits, top_candidates

DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def _best(row: np.ndarray, k: int) -> list[int]:
    return np.lexsort((np.arange(len(row)), -row))[:k].tolist()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 3, 63, 64, 65, 1000, 1280, 49153])
@pytest.mark.parametrize("k", [1, 2, 20, 200])
def test_candidates_are_the_k_best_by_logit_then_id(dtype: torch.dtype, vocab: int, k: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(7, vocab, generator=generator) * 4).to(dtype)
    logits[0] = 1.5  # all equal
    logits[1] = torch.randint(-2, 3, (vocab,), generator=generator).to(dtype)  # ties everywhere
    logits[2, :] = -torch.inf
    logits[2, vocab // 2] = 0.0
    logits[3] -= 100  # none positive
    ids, values = top_candidates(logits, k)
    wide = logits.double().numpy()
    for row, got_ids, got in zip(wide, ids.tolist(), values.tolist(), strict=True):
        expected = _best(row, k)
        assert got_ids == expected
        assert got == row[expected].tolist()


def test_blocks_that_tie_are_taken_in_the_order_of_their_ids() -> None:
    logits = torch.zeros(1, 64 * 40)
    logits[0, 64 * torch.arange(40) + 63 - torch.arange(40)] = 1.0  # one best entry a block, ever earlier in it
    assert top_candidates(logits, 5)[0].tolist() == [[63, 126, 189, 252, 315]]


def test_negative_zero_ties_with_zero() -> None:
    logits = torch.tensor([[-0.0, 0.0, -1.0, 0.0]])
    assert top_candidates(logits, 3)[0].tolist() == [[0, 1, 3]]


def test_rows_need_not_lie_side_by_side() -> None:
    logits = torch.randn(300, 6, generator=torch.Generator().manual_seed(0)).T
    assert not logits.is_contiguous()
    for row, ids in zip(logits.double().numpy(), top_candidates(logits, 9)[0].tolist(), strict=True):
        assert ids == _best(row, 9)


@pytest.mark.parametrize(("rows", "k"), [(0, 20), (3, 0)])
def test_nothing_asked_gives_nothing(rows: int, k: int) -> None:
    ids, values = top_candidates(torch.zeros(rows, 500), k)
    assert ids.shape == values.shape == (rows, k)


def test_infinities_are_in_their_place_and_nan_gives_ids_of_the_vocabulary() -> None:
    logits = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0))
    logits[0, 7], logits[0, 8] = torch.inf, -torch.inf
    logits[1] = torch.nan
    logits[2, 5] = -torch.tensor(torch.nan)
    ids, values = top_candidates(logits, 20)
    assert ids[0, 0] == 7
    assert values[0, 0] == torch.inf
    assert ((ids >= 0) & (ids < 1000)).all()
    assert all(len(set(row)) == 20 for row in ids.tolist())


def test_ordered_bits_order_as_floats_do() -> None:
    values = torch.tensor([-torch.inf, -3.4e38, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 3.4e38, torch.inf])
    bits = ordered_bits(values).long()
    assert bits[4] == bits[5]
    assert (bits.diff() >= 0).all()
    assert (bits.diff() == 0).sum() == 1


def test_a_device_is_never_read_back() -> None:
    ids, values = top_candidates(torch.empty(3, 1000, device="meta"), 20)
    assert ids.shape == values.shape == (3, 20)
