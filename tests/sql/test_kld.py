"""KL over the whole vocabulary, against extended precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from logit_rows import kls, logit_rows, logsumexps
from logit_traces import opened

V = 200


def assert_close(found: np.ndarray, true: np.ndarray) -> None:
    """To 1e-9 relative or 1e-15 absolute."""
    true = np.asarray(true, np.float64)
    infinite = np.isinf(true)
    assert (found[infinite] == np.inf).all()
    difference = np.abs(found[~infinite] - true[~infinite])
    allowed = np.maximum(1e-15, 1e-9 * true[~infinite])
    assert (difference <= allowed).all(), (difference / allowed).max()


def test_equals_extended_precision_on_all_kinds_of_rows(tmp_path: Path) -> None:
    a, b = logit_rows(np.random.default_rng(3), 1000, V)
    with opened(tmp_path, a, b) as session:
        found = np.array(session.sql("SELECT kl_ab, kl_ba, kl_llama_cpp FROM kld ORDER BY output_index").rows())
    assert_close(found[:, 0], kls(a, b))
    assert_close(found[:, 1], kls(b, a))
    skipping = np.asarray(kls(a, b, above=-16), np.float64)
    np.testing.assert_allclose(found[:, 2], skipping, rtol=1e-9, atol=1e-13)


def test_without_recorded_sums(tmp_path: Path) -> None:
    a, b = logit_rows(np.random.default_rng(4), 200, V)
    with opened(tmp_path, a, b, known_sums=False) as session:
        found = np.array(session.sql("SELECT kl_ab, kl_ba FROM kld ORDER BY output_index").rows())
    assert_close(found[:, 0], kls(a, b))
    assert_close(found[:, 1], kls(b, a))


def test_the_table_of_llama_cpp(tmp_path: Path) -> None:
    a = np.random.default_rng(6).normal(0, 3, (300, V)).astype(np.float32)
    b = (a + np.random.default_rng(7).normal(0, 0.2, a.shape)).astype(np.float32)
    with opened(tmp_path, a, b) as session:
        rows = session.sql("SELECT name, value, exact, num_positions FROM kld_summary").rows()
        tokens = [row[0] for row in session.sql("SELECT token_id FROM kld ORDER BY output_index").rows()]
    found = {name: value for name, value, _, _ in rows}
    exact = {name: value for name, _, value, _ in rows}
    kld, full = (np.asarray(kls(a, b, above=above), np.float64) for above in (-16, -np.inf))
    index = (np.arange(300), tokens)
    delta = np.asarray(np.exp(b[index] - logsumexps(b)) - np.exp(a[index] - logsumexps(a)), np.float64)

    def percentiles(kind: str, values: np.ndarray) -> dict[str, float]:
        named = {
            f"{q}% {kind}": float(np.quantile(values, q / 100)) for q in (0.1, 1.0, 5.0, 10.0, 90.0, 95.0, 99.0, 99.9)
        }
        ends = {f"Minimum {kind}": values.min(), f"Maximum {kind}": values.max(), f"Median {kind}": np.median(values)}
        return {**named, **ends, f"Mean {kind}": values.mean()}

    deltas = percentiles("Δp", delta) | {f"{q}% Δp": float(np.quantile(delta, q / 100)) for q in (25.0, 75.0)}
    deltas |= {"RMS Δp": float(np.sqrt((delta**2).mean()))}
    deltas |= {"Same top p": float((a.argmax(1) == b.argmax(1)).mean())}
    expected, expected_exact = percentiles("KLD", kld) | deltas, percentiles("KLD", full) | deltas
    assert set(found) == set(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-13, err_msg=name)
        np.testing.assert_allclose(exact[name], expected_exact[name], rtol=1e-9, atol=1e-13, err_msg=name)
    assert {num for *_, num in rows} == {300}


def test_rows_of_unequal_length_are_left_out(tmp_path: Path) -> None:
    a = np.zeros((2, 5), np.float32)
    with opened(tmp_path, a, np.zeros((2, 8), np.float32)) as session:
        assert session.sql("FROM kld").rows() == []
        assert session.sql("SELECT value, num_positions FROM kld_summary WHERE name = 'Mean KLD'").rows() == [(None, 0)]
