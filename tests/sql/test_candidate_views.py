"""Candidates as rows, side by side, and how far they agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from factories import make_request, make_trace
from logit_rows import candidates, logit_rows, logsumexps, token_columns
from tracekit import connect

V, K = 30, 6


def traces(folder: Path, *, is_replay: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Path, Path]:
    """Returns the rows of A and B, their tokens, and two traces of them; requests have one token each."""
    rng = np.random.default_rng(2)
    a, b = logit_rows(rng, 200, V)
    a_tokens, b_tokens = rng.integers(0, V, (2, len(a)))
    b_tokens[::2] = a_tokens[::2]
    a_columns = token_columns(a, a_tokens, K, logsumexps(a).astype(np.float32))
    b_columns: dict[str, Any] = token_columns(b, b_tokens, K, logsumexps(b).astype(np.float32))
    logit = b_columns["logit"][:, None]
    b_columns["rank"] = 1 + (b > logit).sum(axis=1)
    b_columns["num_tied"] = (b == logit).sum(axis=1) - 1
    if is_replay:
        b_columns["parent_top_logits"] = list(np.take_along_axis(b, candidates(a, K)[0], axis=1))

    def requests(tokens: np.ndarray, columns: dict[str, Any]) -> list[Any]:
        return [
            make_request(
                f"r{i:03d}", token_ids=[tokens[i]], tokens={name: [values[i]] for name, values in columns.items()}
            )
            for i in range(len(tokens))
        ]

    first = make_trace(folder / "a", requests=requests(a_tokens, a_columns), run_id="run a")
    second = make_trace(
        folder / "b",
        requests=requests(b_tokens, b_columns),
        run_id="run b",
        role="replay" if is_replay else "record",
        parent=first if is_replay else None,
    )
    return a, b, a_tokens, b_tokens, first, second


def test_one_trace(tmp_path: Path) -> None:
    a, _, tokens, _, trace, _ = traces(tmp_path, is_replay=False)
    with connect(trace) as session:
        found = session.sql("SELECT * EXCLUDE (run_id) FROM candidates ORDER BY request_id, place").rows()
    ids, logits = candidates(a, K)
    norm = logsumexps(a).astype(np.float32).astype(np.float64)
    assert found == [
        (
            f"r{i:03d}",
            0,
            3,
            k + 1,
            ids[i, k],
            logits[i, k],
            float(logits[i, k]) - norm[i],
            bool(ids[i, k] == tokens[i]),
        )
        for i in range(len(a))
        for k in range(K)
    ]


def known(logits: np.ndarray, tokens: np.ndarray, extra: np.ndarray | None, row: int) -> dict[int, float]:
    ids = {
        *candidates(logits, K)[0][row].tolist(),
        int(tokens[row]),
        *(extra[row].tolist() if extra is not None else []),
    }
    return {token: float(logits[row, token]) for token in ids}


def test_side_by_side_in_a_replay(tmp_path: Path) -> None:
    a, b, a_tokens, b_tokens, first, second = traces(tmp_path, is_replay=True)
    columns = "request_id, token_id, a_place, b_place, a_logit, b_logit"
    with connect(first, second) as session:
        found = session.sql(f"SELECT {columns} FROM pair_candidates ORDER BY 1, 2").rows()
        logprob = np.array(
            session.sql(
                "SELECT a_logit - a_logprob FROM pair_candidates WHERE isfinite(a_logit) ORDER BY request_id"
            ).rows()
        )
    a_ids, b_ids = candidates(a, K)[0].tolist(), candidates(b, K)[0].tolist()
    expected = []
    for i in range(len(a)):
        of_a, of_b = known(a, a_tokens, None, i), known(b, b_tokens, candidates(a, K)[0], i)
        for token in sorted({*of_a, *of_b}):
            places = [ids[i].index(token) + 1 if token in ids[i] else None for ids in (a_ids, b_ids)]
            expected.append((f"r{i:03d}", token, *places, of_a.get(token), of_b.get(token)))
    assert found == expected
    assert np.isfinite(logprob).all()


def test_overlap(tmp_path: Path) -> None:
    a, b, a_tokens, b_tokens, first, second = traces(tmp_path, is_replay=True)
    columns = (
        "num_candidates, num_common, jaccard, num_common_tied, a_contains_token, b_contains_token, b_rank, b_num_tied"
    )
    with connect(first, second) as session:
        found = session.sql(f"SELECT {columns} FROM candidate_overlap ORDER BY request_id").rows()
    a_ids, b_ids = candidates(a, K)[0], candidates(b, K)[0]
    for i, row in enumerate(found):
        in_a, in_b = set(a_ids[i].tolist()), set(b_ids[i].tolist())
        common = len(in_a & in_b)
        a_known, b_known = known(a, a_tokens, None, i), known(b, b_tokens, a_ids, i)
        of_a = sum(t in in_b or b_known[t] >= b[i, b_ids[i, -1]] for t in in_a)
        of_b = sum(t in in_a or (a_known.get(t, -np.inf) >= a[i, a_ids[i, -1]] and t in a_known) for t in in_b)
        token = int(a_tokens[i])
        assert row[:6] == (K, common, common / (2 * K - common), max(of_a, of_b), token in in_a, token in in_b)
        rank, num_tied = 1 + int((b[i] > b[i, token]).sum()), int((b[i] == b[i, token]).sum()) - 1
        if b_tokens[i] == token:
            assert row[6:] == (rank, num_tied)
        elif token in in_b:
            assert row[6] == rank
            assert row[7] in (num_tied, None)
            assert (row[7] is None) == (b[i, token] == b[i, b_ids[i, -1]])
        else:
            assert row[6:] == (None, None)
