"""Pairs of logits rows of every shape that a KL divergence may trip over, and their KL in extended precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.longdouble]

KINDS = ("close", "noise", "peaked", "flat", "ties", "disjoint", "masked", "masked_alike", "unrelated", "equal")


def bfloat16(x: Floats) -> Floats:
    """Rounds to the nearest bfloat16, ties to even."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def logit_rows(rng: np.random.Generator, num: int, vocab_size: int) -> tuple[Floats, Floats]:
    """Returns float32 logits of both sides, [num, vocab_size], the kinds in turn."""
    a = rng.normal(0, 3, (num, vocab_size)) + rng.normal(0, 10, (num, 1))
    b = a.copy()
    for row in range(num):
        kind = KINDS[row % len(KINDS)]
        if kind == "close":
            b[row] += rng.normal(0, 1e-4, vocab_size)
        elif kind == "noise":
            a[row], b[row] = bfloat16(a[row]), bfloat16(b[row] + rng.normal(0, 0.05, vocab_size))
        elif kind == "peaked":
            a[row, rng.integers(vocab_size)] += 30
            b[row] = a[row] + rng.normal(0, 0.5, vocab_size)
        elif kind == "flat":
            a[row] = a[row, 0] + rng.normal(0, 1e-3, vocab_size)
            b[row] = a[row, 0] + rng.normal(0, 1e-3, vocab_size)
        elif kind == "ties":
            a[row] = rng.integers(0, 3, vocab_size)
            b[row] = np.where(rng.random(vocab_size) < 0.8, a[row], rng.integers(0, 3, vocab_size))
        elif kind == "disjoint":
            half = rng.random(vocab_size) < 0.5
            a[row] += np.where(half, 40, 0)
            b[row] += np.where(half, 0, 40)
        elif kind == "masked":
            a[row, rng.random(vocab_size) < 0.3] = -np.inf
            b[row, rng.random(vocab_size) < 0.05] = -np.inf
        elif kind == "masked_alike":
            b[row] += rng.normal(0, 0.1, vocab_size)
            hidden = rng.random(vocab_size) < 0.6
            a[row, hidden], b[row, hidden] = -np.inf, -np.inf
        elif kind == "unrelated":
            b[row] = rng.normal(0, 3, vocab_size)
    # No row may exclude everything.
    a[:, 0] = np.where(np.isfinite(a[:, 0]), a[:, 0], 1)
    b[:, 0] = np.where(np.isfinite(b[:, 0]), b[:, 0], 1)
    return a.astype(np.float32), b.astype(np.float32)


def logsumexps(logits: Floats) -> Wide:
    """Returns the logsumexp of each row in extended precision."""
    wide = logits.astype(np.longdouble)
    largest = wide.max(axis=1)
    return largest + np.log(np.exp(wide - largest[:, None]).sum(axis=1))


def kls(a: Floats, b: Floats, *, above: float = -np.inf) -> Wide:
    """Returns KL(A, B) of each row in extended precision, over entries whose logprob in A is more than `above`."""
    p, q = a.astype(np.longdouble) - logsumexps(a)[:, None], b.astype(np.longdouble) - logsumexps(b)[:, None]
    with np.errstate(invalid="ignore"):
        terms = np.where((a == -np.inf) | (p <= above), 0, np.exp(p) * (p - q))
    # inf where an entry of A, however unlikely, is excluded by B.
    terms[(a > -np.inf) & (b == -np.inf) & (p > above)] = np.inf
    return terms.sum(axis=1)  # type: ignore[no-any-return]


def both_kls(a: Floats, b: Floats) -> tuple[Wide, Wide]:
    """Returns KL(A, B) and KL(B, A) of each row of finite logits, as `kls` does, in half the time."""
    p, q = a.astype(np.longdouble) - logsumexps(a)[:, None], b.astype(np.longdouble) - logsumexps(b)[:, None]
    return (np.exp(p) * (p - q)).sum(axis=1), (np.exp(q) * (q - p)).sum(axis=1)


def serial_logsumexps(logits: Floats, lanes: int = 8) -> Floats:
    """Returns float32 logsumexps as an engine's kernel sums them: each lane one term after the other."""
    largest = logits.max(axis=1)
    terms = np.exp(logits - largest[:, None], dtype=np.float32)
    padded = np.pad(terms, ((0, 0), (0, -terms.shape[1] % lanes))).reshape(len(terms), -1, lanes)
    sums = np.add.accumulate(padded, axis=1, dtype=np.float32)[:, -1]
    total = np.add.accumulate(sums, axis=1, dtype=np.float32)[:, -1]
    return (largest + np.log(total, dtype=np.float32)).astype(np.float32)


def candidates(logits: Floats, k: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Returns ids and logits of the k largest of each row, by logit, then by id."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(logits, order, axis=1)


def token_columns(logits: Floats, token_ids: npt.NDArray[np.int64], k: int, logsumexp: Floats) -> dict[str, Any]:
    """Returns columns of `tokens` that describe these rows."""
    ids, top = candidates(logits, k)
    logit = np.take_along_axis(logits, token_ids[:, None], axis=1)[:, 0]
    return {
        "logit": logit,
        "logsumexp": logsumexp,
        "logprob": logit - logsumexp,
        "logit_min": logits.min(axis=1),
        "argmax_token_id": logits.argmax(axis=1),
        "top_token_ids": list(ids),
        "top_logits": list(top),
    }
