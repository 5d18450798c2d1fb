"""Layouts in which trainers hold a value for each token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tracekit.errors import InputError
from tracekit.trainers.values import lay_out

ROWS = [[-1.0, -2.0], [-3.0], [-4.0, -5.0, -6.0]]
FLAT = [value for row in ROWS for value in row]
PADDED = np.array([[-1.0, -2.0, 9.0], [-3.0, 9.0, 9.0], [-4.0, -5.0, -6.0]])
KEPT = PADDED < 0

LAYOUTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "lists": (ROWS, {}),
    "arrays": ([np.array(row) for row in ROWS], {}),
    "tensors": ([torch.tensor(row, requires_grad=True) for row in ROWS], {}),
    "padded with a mask": (torch.tensor(PADDED, dtype=torch.bfloat16), {"mask": torch.tensor(KEPT)}),
    "padded with lengths": (PADDED.astype(np.float16), {"lengths": [2, 1, 3]}),
    "padded on the left": (PADDED[:, ::-1], {"mask": KEPT[:, ::-1]}),
    "packed": (torch.tensor(FLAT, dtype=torch.float64), {"cu_seqlens": torch.tensor([0, 2, 3, 6], dtype=torch.int32)}),
    "packed with lengths": (FLAT, {"lengths": np.array([2, 1, 3])}),
    "packed with a mask": (
        np.array([9, -1, -2, 9, -3, 9, -4, -5, -6]),
        {"cu_seqlens": [0, 3, 5, 9], "mask": [0, 1, 1, 0, 1, 0, 1, 1, 1]},
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(name: str) -> None:
    values, how = LAYOUTS[name]
    layout, flat = lay_out(values, 3, **how)
    expected = [-2.0, -1.0, -3.0, -6.0, -5.0, -4.0] if name == "padded on the left" else FLAT
    assert flat.dtype == np.float32
    assert flat.tolist() == expected
    assert layout.counts.tolist() == [2, 1, 3]
    assert layout.flatten("other", values).tolist() == expected
    assert layout.flatten("advantage", torch.tensor([0.5, 1.0, 2.0])).tolist() == [0.5, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert layout.flatten("advantage", 3.0).tolist() == [3.0] * 6


def test_what_is_handed_in_is_copied() -> None:
    values = np.array([[-1.0, -2.0]], np.float32)
    _, flat = lay_out(values, 1)
    values[:] = 7
    assert flat.tolist() == [-1.0, -2.0]


def test_infinite_logprobs_stay() -> None:
    _, flat = lay_out([[-np.inf, -1.0]], 1)
    assert flat.tolist() == [-np.inf, -1.0]


@pytest.mark.parametrize(
    ("values", "num_rows", "how", "message"),
    [
        (ROWS, 2, {}, "a list of rows has 3 rows, but there are 2 request ids"),
        (PADDED, 2, {}, "logprobs of shape (3, 3) has 3 rows, but there are 2 request ids"),
        (FLAT, 3, {}, "packed logprobs of 3 requests need cu_seqlens or lengths"),
        (FLAT, 3, {"cu_seqlens": [0, 2, 3]}, "cu_seqlens has 3 entries, expected 4"),
        (FLAT, 3, {"cu_seqlens": [0, 2, 3, 7]}, "rows of 7 tokens in all do not fit packed logprobs of 6"),
        (PADDED, 3, {"mask": KEPT[:, :2]}, "mask has shape (3, 2), but logprobs have (3, 3)"),
        (PADDED, 3, {"lengths": [2, 1, 4]}, "lengths go from 1 to 4, but logprobs have shape (3, 3)"),
        (np.zeros((2, 2, 2)), 2, {}, "logprobs have shape (2, 2, 2)"),
        (ROWS, 3, {"lengths": [2, 1, 3]}, "are for logprobs in one tensor"),
    ],
)
def test_misfits_are_said(values: Any, num_rows: int, how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        lay_out(values, num_rows, **how)
    assert message in str(caught.value)


def test_other_columns_must_have_the_same_layout() -> None:
    layout, _ = lay_out(ROWS, 3)
    with pytest.raises(InputError) as caught:
        layout.flatten("entropy", [[1.0], [1.0], [1.0]])
    assert "entropy has rows of [1, 1, 1] values, but logprobs have rows of [2, 1, 3] values" in str(caught.value)
