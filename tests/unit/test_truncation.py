"""Truncation against a sorted cumulative sum in NumPy, float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from tracekit import truncation
from tracekit.truncation import Cut, apply_cut, find_cut, truncates

VOCAB = 3001
LIMITS = [
    (0, 0.9),
    (0, 0.1),
    (0, 1e-9),
    (0, 0.999999),
    (1, 1.0),
    (20, 1.0),
    (63, 1.0),
    (64, 1.0),
    (2000, 1.0),
    (20, 0.8),
    (64, 0.97),
    (1500, 0.8),
    (VOCAB, 0.3),
    (-1, 0.6),
    (0, 1.0),
    (VOCAB + 5, 1.0),
]


def make_rows(dtype: torch.dtype) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(9, VOCAB, generator=random) * 3
    logits[1] *= 4  # a few candidates hold all the mass
    logits[2] *= 0.01  # all hold as much
    logits[3] = torch.randint(-3, 4, (VOCAB,), generator=random)  # equals everywhere
    logits[4, 40:] = -torch.inf
    logits[5] -= 1000
    logits[6, :] = 0.5
    logits[7, ::3] = -torch.inf
    logits[8] = torch.where(torch.randn(VOCAB, generator=random) > 0, 0.0, -0.0)
    return logits.to(dtype)


def reference(row: npt.NDArray[np.float64], top_k: int, top_p: float, keep_ties: bool) -> npt.NDArray[np.bool_]:
    """What stays, by the definition: the best by logit, then by higher id, until p of the mass is reached."""
    kept = row > -np.inf
    if 0 < top_k < len(row):
        kept &= row >= np.sort(row)[-top_k]
    if np.float32(top_p) < 1:
        weights = np.where(kept, np.exp(row - row.max()), 0.0)
        best_first = np.lexsort((np.arange(len(row)), row))[::-1]
        better = np.cumsum(weights[best_first]) - weights[best_first]
        within = better < float(np.float32(top_p)) * weights.sum()
        within[0] = True
        if keep_ties:
            within |= row[best_first] == row[best_first][within].min()
        kept[best_first] &= within
    return kept


@pytest.fixture(params=["host", "device"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test on the shortcuts of a host, and on the search that a device takes."""
    if request.param == "device":
        monkeypatch.setattr(truncation, "is_on_host", lambda _: False)
    return str(request.param)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("keep_ties", [False, True])
@pytest.mark.parametrize(("top_k", "top_p"), LIMITS)
def test_keeps_what_the_definition_keeps(top_k: int, top_p: float, keep_ties: bool, dtype: torch.dtype) -> None:
    logits = make_rows(dtype)
    cut = find_cut(logits, [top_k] * 9, [top_p] * 9, keep_ties=keep_ties)
    truncated = logits.float().clone()
    apply_cut(truncated, cut)
    for index, row in enumerate(logits.double().numpy()):
        expected = reference(row, top_k, top_p, keep_ties)
        assert np.array_equal(truncated[index].numpy() > -np.inf, expected), index
        assert cut.num_kept_R[index] == expected.sum()
        assert float(cut.kept_R[index]) == pytest.approx(np.exp(row - row.max())[expected].sum(), rel=1e-12)
        assert np.array_equal(truncated[index].double().numpy()[expected], row[expected])


@pytest.mark.usefixtures("place")
def test_rows_have_limits_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = make_rows(torch.float32)[[0, 3]].repeat(len(LIMITS), 1)
    top_k, top_p = zip(*(limit for limit in LIMITS for _ in range(2)), strict=True)
    together = find_cut(logits, top_k, top_p)
    for index in range(len(logits)):
        alone = find_cut(logits[index : index + 1], [top_k[index]], [top_p[index]])
        assert all(a[0] == b[index] for a, b in zip(alone[:3], together[:3], strict=True))
        assert float(alone.kept_R[0]) == pytest.approx(float(together.kept_R[index]), rel=1e-12)
    monkeypatch.setattr(truncation, "_HOST_CHUNK_BYTES", 3 * 8 * VOCAB)
    monkeypatch.setattr(truncation, "_DEVICE_CHUNK_BYTES", 8)
    assert all(torch.equal(a, b) for a, b in zip(find_cut(logits, top_k, top_p), together, strict=True))


def test_a_mass_too_near_to_the_edge_for_float32_is_searched() -> None:
    # The best entry holds 0.9 - 1e-8 of the mass, or 0.9 + 1e-8: float32 sums cannot tell.
    for offset, num_kept in ((-1e-8, 2), (1e-8, 1)):
        share = float(np.float32(0.9)) + offset
        logits = torch.full((1, 1001), 0.0, dtype=torch.float64)
        logits[0, 7] = np.log(share / (1 - share) * 1000)
        logits[0, 7] = logits[0, 7].float()
        weights = torch.exp(logits - logits.max()).numpy()[0]
        expected = 1 if weights[7] / weights.sum() >= float(np.float32(0.9)) else 2
        assert expected in (1, num_kept, 2)
        assert find_cut(logits, [0], [0.9]).num_kept_R.tolist() == [expected]


@pytest.mark.usefixtures("place")
def test_a_drawn_token_stays_before_its_equals() -> None:
    logits = make_rows(torch.bfloat16).float()[[3, 6]]
    cut = find_cut(logits, [0, 0], [0.95, 0.95])
    assert (cut.num_dropped_R > 2).all()
    drawn = (logits == cut.threshold_R[:, None]).int().argmax(1)  # the lowest id, else the first to go
    truncated = logits.clone()
    apply_cut(truncated, cut, drawn)
    assert (truncated.gather(1, drawn[:, None]) > -torch.inf).all()
    assert torch.equal((truncated > -torch.inf).sum(1), cut.num_kept_R)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.9), (30, 1.0), (1000, 0.5), (0, 0.0)])
def test_rows_that_no_model_should_give_keep_to_themselves(top_k: int, top_p: float) -> None:
    good = make_rows(torch.float32)[[0] * 6]
    logits = good.clone()
    logits[1] = torch.nan
    logits[2, 5] = torch.inf
    logits[3] = -torch.inf
    logits[4, 8] = -torch.tensor(torch.nan)
    expected, cut = (find_cut(rows, [top_k] * 6, [top_p] * 6) for rows in (good, logits))
    assert cut.kept_R[1:4].isnan().all()
    assert all(torch.equal(a[[0, 5]], b[[0, 5]]) for a, b in zip(cut, expected, strict=True))
    assert ((cut.num_kept_R >= 0) & (cut.num_kept_R <= VOCAB)).all()
    apply_cut(logits, cut)
    assert expected.num_kept_R[0] == (logits[5] > -torch.inf).sum()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("num_rows", "vocab"), [(0, 50), (1, 1), (1, 2), (3, 64), (2, 65)])
def test_shapes_at_the_edge(num_rows: int, vocab: int) -> None:
    logits = torch.randn(vocab, num_rows, generator=torch.Generator().manual_seed(0)).T
    cut = find_cut(logits, [2] * num_rows, [0.5] * num_rows)
    for index, row in enumerate(logits.double().numpy()):
        assert cut.num_kept_R[index] == reference(row, 2, 0.5, False).sum()
    assert all(len(column) == num_rows for column in cut)


def test_a_device_is_never_read_back() -> None:
    # A meta tensor has no values: whatever would wait for a device's fails here.
    logits = torch.empty(3, 1000, device="meta")
    cut = find_cut(logits, [0, 5, 5], [0.9, 1.0, 0.5])
    apply_cut(logits, cut, torch.empty(3, dtype=torch.int64, device="meta"))
    assert isinstance(cut, Cut)
    assert cut.kept_R.shape == (3,)


def test_truncates() -> None:
    assert truncates(5, 1.0, 10)
    assert truncates(0, 0.9, 10)
    assert not truncates(10, 1.0, 10)
    assert not truncates(-1, 1 - 1e-9, 10)  # 1 in float32
