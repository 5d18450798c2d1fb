"""Columns of many tokens, which several threads read, against the trace's own files."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import explained_pairs

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from made_trace import Made, make_pair
from tracekit import connect
from tracekit.analysis import Session
from tracekit.analysis.explain.tokens import Tokens

# Six groups of rows in memory: a thread each, as they come.
NUM_TOKENS = 700_000


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("large"), Made(NUM_TOKENS))


@pytest.fixture(scope="module")
def session(traces: tuple[Path, Path]) -> Iterator[Session]:
    with connect(*traces, threads=4) as session:
        yield session


@pytest.fixture(scope="module", params=["few", "many"])
def tokens(request: pytest.FixtureRequest, session: Session) -> Iterator[Tokens]:
    """As they are, and as if they were so many that memory holds some columns only."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "many":
            patch.setattr("tracekit.analysis.explain.tokens._FEW", 1000)
        yield Tokens(session.workspace())


@pytest.fixture(scope="module")
def files(traces: tuple[Path, Path], session: Session) -> dict[str, np.ndarray]:
    """What the files of both sides say of each token, in the order of places."""
    found: dict[str, np.ndarray] = {}
    matches = {row["request_id"]: row["match_id"] for row in session.sql("FROM _explained_requests").dicts()}
    for side, path in zip("ab", traces, strict=True):
        names = [
            "request_id",
            "output_index",
            "position",
            "token_id",
            "logprob",
            "reported_logprob",
            "logit",
            "step_id",
        ]
        table = ds.dataset(path / "tokens").to_table(columns=names)
        match = np.array([matches[name] for name in table["request_id"].to_pylist()], np.int64)
        place = (match << 32) + table["output_index"].to_numpy()
        order = np.argsort(place)
        found[f"{side}_place"] = place[order]
        found |= {f"{side}_{name}": _floats(table[name])[order] for name in names if name != "request_id"}
    lengths = ds.dataset(traces[0] / "requests").to_table(columns=["request_id", "num_prompt_tokens"]).to_pylist()
    by_match = {matches[row["request_id"]]: row["num_prompt_tokens"] for row in lengths}
    found["num_prompt_tokens"] = np.array([by_match[match] for match in found["a_place"] >> 32], float)
    return found


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(column.cast("double").to_numpy(), np.float64)


def test_columns_are_of_the_same_tokens(tokens: Tokens, files: dict[str, np.ndarray]) -> None:
    assert tokens.num >= NUM_TOKENS * 0.9
    np.testing.assert_array_equal(tokens.place, files["a_place"])
    np.testing.assert_array_equal(tokens.place, files["b_place"])
    np.testing.assert_array_equal(tokens.d, files["b_logprob"] - files["a_reported_logprob"])
    # Twice, for some are read anew.
    for ours, theirs in 2 * (
        ("a_raw", "a_logprob"),
        ("b_raw", "b_logprob"),
        ("a_logit", "a_logit"),
        ("b_logit", "b_logit"),
        ("token_id", "a_token_id"),
        ("position", "a_position"),
        ("a_step_id", "a_step_id"),
        ("b_step_id", "b_step_id"),
        ("num_prompt_tokens", "num_prompt_tokens"),
    ):
        np.testing.assert_array_equal(tokens[ours], files[theirs], err_msg=ours)


def test_what_queries_find_is_of_the_same_tokens(tokens: Tokens, files: dict[str, np.ndarray]) -> None:
    found = tokens.values("SELECT place, a_logit * 2 AS twice FROM explained WHERE d > 0", "twice")
    assert 0 < np.sum(~np.isnan(found)) < tokens.num
    np.testing.assert_array_equal(found, np.where(tokens.d > 0, files["a_logit"] * 2, np.nan))
    odd = tokens.mask("FROM explained WHERE output_index % 2 = 1 UNION ALL BY NAME SELECT -1 AS place")
    np.testing.assert_array_equal(odd, files["a_output_index"] % 2 == 1)
    # Few are kept without the others, for whoever asks again.
    for _ in range(2):
        first = tokens.values("SELECT place, a_logit AS value FROM explained WHERE output_index = 0")
        np.testing.assert_array_equal(first, np.where(files["a_output_index"] == 0, files["a_logit"], np.nan))
        is_first = tokens.mask("FROM explained WHERE output_index = 0")
        np.testing.assert_array_equal(is_first, files["a_output_index"] == 0)
    rows = np.flatnonzero(odd)[::7]
    found = tokens.values_at(rows, "SELECT place, position AS value FROM explained")
    np.testing.assert_array_equal(found, files["a_position"][rows])


def test_places_that_are_not_compared_are_no_rows(tokens: Tokens) -> None:
    places = tokens.place[[0, 5, tokens.num - 1]] + np.array([0, 1 << 31, 1 << 40])
    found = tokens.mask(f"SELECT unnest({places.tolist()}) AS place")
    assert np.flatnonzero(found).tolist() == [0]


def test_tokens_of_requests_with_gaps(tmp_path: Path) -> None:
    side = explained_pairs.Side(explained_pairs.logits_of(0))
    drawn = explained_pairs.sampled(side)
    values = explained_pairs.columns(side, drawn)["processed_logprob"]
    missing = np.isin(np.arange(values.shape[1]), (0, 3))
    values = np.where(missing, None, values)
    a = explained_pairs.write(tmp_path / "a", side, drawn)
    trained = dataclasses.replace(side, tokens={"processed_logprob": values})
    b = explained_pairs.write(tmp_path / "b", trained, drawn, a, "trainer")
    with connect(a, b) as session:
        tokens = Tokens(session.workspace())
        compared = np.flatnonzero(~missing)
        assert tokens.num == len(values) * len(compared)
        found = tokens.values("SELECT place, output_index AS value FROM explained")
        np.testing.assert_array_equal(found, np.tile(compared, len(values)))
