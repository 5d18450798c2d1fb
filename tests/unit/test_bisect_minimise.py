"""Reduced traces: the fewest requests and tokens that still show a difference, and all of their rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import bisected
import linear_backend
from bisected import IDS, PROMPTS, made, values
from factories import make_request, make_trace
from tracekit import connect
from tracekit.bisect.excerpt import write_excerpt
from tracekit.bisect.minimise import minimise
from tracekit.bisect.plan import make_plan
from tracekit.bisect.search import search
from tracekit.cli.main import main
from tracekit.errors import InputError
from tracekit.store import Manifest, Trace, TraceWriter


@pytest.fixture(scope="module", autouse=True)
def _announced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from bisected.announced(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def a(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("a") / "a.trace", values())


def cheapest(d: np.ndarray, threshold: float) -> tuple[str, int]:
    """Returns the request and token that differs by the threshold with the fewest tokens before it."""
    rows = zip(IDS, np.abs(d).reshape(len(IDS), -1) >= threshold, strict=True)
    found = [(len(PROMPTS[name]) + int(np.argmax(row)), name, int(np.argmax(row))) for name, row in rows if row.any()]
    return min(found)[1:]


def test_the_command_writes_two_small_traces_and_a_page(
    a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = made(tmp_path / "b.trace", values(x=True), parent=a)
    command = [
        "bisect",
        str(a),
        "--against",
        str(b),
        "--backend",
        "linear",
        "--vary",
        "x",
        "--out",
        str(tmp_path / "o"),
    ]
    assert main([*command, "--minimise", str(tmp_path / "small")]) == 0
    d = values(x=True) - values()
    name, index = cheapest(d, np.max(np.abs(d)) / 2)
    told = capsys.readouterr().err
    assert "1 request, " in told
    assert f"token {index} of request '{name}'" in told
    assert "shown by a replay of the reduced trace" in told
    small = [tmp_path / "small" / f"{side}.trace" for side in "ab"]
    assert sum(file.stat().st_size for path in small for file in path.rglob("*") if file.is_file()) < 400_000
    with connect(*small) as session:
        assert session.alignment is not None
        assert session.alignment.method == "request_id"
        rows = session.sql("SELECT request_id, output_index, d FROM pairs ORDER BY output_index").rows()
    start = list(IDS).index(name) * 9
    assert rows == [(name, place, d[start + place]) for place in range(index + 1)]
    page = (tmp_path / "small" / "report.md").read_text()
    assert "| x | off | on |" in page
    assert "tracekit diff a.trace b.trace" in page
    assert main([*command, "--minimise", str(tmp_path / "small")]) == 2
    assert "a.trace exists already; choose another folder" in capsys.readouterr().err


def test_without_settings_that_do_it_the_scores_are_the_evidence(a: Path, tmp_path: Path) -> None:
    own = np.zeros(90)
    own[[13, 14, 80]] = [0.25, -0.5, 0.5]
    plan = make_plan(
        a, made(tmp_path / "b.trace", values() + own, parent=a), vary=["x"], backend="linear", out=tmp_path
    )
    found = search(plan)
    small = minimise(plan, found, tmp_path / "half")
    assert (small.request_id, small.output_index) == cheapest(own, 0.25)
    assert (small.evidence, small.num_trials, small.threshold) == ("the scores of both traces", 0, 0.25)
    small = minimise(plan, found, tmp_path / "more", threshold=0.4)
    assert (small.request_id, small.output_index, abs(small.d)) == (*cheapest(own, 0.4), 0.5)
    with pytest.raises(
        InputError, match=r"no token differs by 0\.6 nat between A and B, the largest difference is 0\.5;"
    ):
        minimise(plan, found, tmp_path / "none", threshold=0.6)


def test_a_difference_that_takes_a_neighbour_keeps_it(a: Path, tmp_path: Path) -> None:
    """Alone in its batch the request is scored as ever."""
    b = made(tmp_path / "b.trace", values(neighbour=True), parent=a)
    only = [("run", name) for name in ("r01", *linear_backend.NEIGHBOURS)]
    plan = make_plan(a, b, vary=["neighbour"], backend="linear", out=tmp_path / "out", only=only)
    small = minimise(plan, search(plan), tmp_path / "small")
    assert {request_id for _, request_id in small.cuts} == set(linear_backend.NEIGHBOURS)
    assert small.request_id == linear_backend.NEIGHBOURS[1]
    d = (values(neighbour=True) - values()).reshape(len(IDS), -1)[list(IDS).index(small.request_id)]
    assert small.d == d[small.output_index]
    assert abs(small.d) >= np.max(np.abs(d)) / 4
    assert small.cuts["run", small.request_id] == small.output_index + 1
    assert small.cuts["run", linear_backend.NEIGHBOURS[0]] == 9
    assert small.evidence == "a replay of the reduced trace"
    assert 2 < small.num_trials < 64


def test_an_excerpt_has_the_rows_of_all_tables(tmp_path: Path) -> None:
    requests = [make_request(name, token_ids=[5, 6, 7, 8], outcome={"finish_reason": "stop"}) for name in ("p", "q")]
    steps = [{"request_ids": [["p", "q"]], "scheduled_tokens": [[1, 1]], "num_requests": 2} for _ in range(4)]
    events = [
        {"kind": "preempted", "request_id": "p", "step_id": 3},
        {"kind": "preempted", "request_id": "q", "step_id": 1},
        {"kind": "weights_updated", "step_id": 1},
        {"kind": "weights_updated", "step_id": 3},
    ]
    whole = make_trace(tmp_path / "whole", requests=requests, steps=steps, events=events, sealed=False)
    found = write_excerpt(Trace(whole), tmp_path / "part", {("run", "q"): 2}, parent=None)
    part = Trace(tmp_path / "part")
    assert (found.num_tokens, found.left_out, part.manifest.role) == (2, (), "record")
    theirs = [row for row in Trace(whole).read("tokens").to_pylist() if row["request_id"] == "q"]
    assert part.read("tokens").to_pylist() == theirs[:2]
    assert part.read("runs").to_pylist() == Trace(whole).read("runs").to_pylist()
    assert [row["request_id"] for row in part.read("requests").to_pylist()] == ["q"]
    (outcome,) = part.read("outcomes").to_pylist()
    assert (outcome["num_output_tokens"], outcome["finish_reason"]) == (2, "length")
    assert part.read("steps", ["step_id"]).column(0).to_pylist() == [0, 1]
    kept = [(row["kind"], row["request_id"], row["step_id"]) for row in part.read("events").to_pylist()]
    assert kept == [("preempted", "q", 1), ("weights_updated", None, 1)]
    assert Manifest.read(part.path).trace_id != Manifest.read(whole).trace_id


def test_an_excerpt_leaves_wide_rows_out_where_they_are_large(tmp_path: Path) -> None:
    for name, width in (("small", 100), ("large", 100_000)):
        whole = make_trace(tmp_path / name, requests=[make_request("p", token_ids=[5, 6])])
        with TraceWriter(whole, run_id="run", writer="w1") as writer:
            for index in range(2):
                row = {"request_id": "p", "output_index": index, "position": 3 + index, "source_dtype": "float32"}
                writer.append("logits", {**row, "logits": [[0.5] * width]})
        found = write_excerpt(Trace(whole), tmp_path / f"{name}-part", {("run", "p"): 1}, parent=None)
        assert found.left_out == (("logits",) if name == "large" else ())
        assert Trace(found.path).num_rows("logits") == (0 if name == "large" else 1)
