"""How requests are paired."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from factories import START_NS, MadeRequest, make_request, make_trace
from tracekit import Session, TraceWriter, connect
from tracekit.analysis import Alignment
from tracekit.errors import AlignmentError, ConfigError

Pair = Callable[..., tuple[Path, Path]]
NAMES = {"c": "xyz", "d": "zxy"}


@pytest.fixture
def recordings(tmp_path: Path) -> Pair:
    """Writes two traces that are not related."""

    def make(a: list[MadeRequest], b: list[MadeRequest], **over: Any) -> tuple[Path, Path]:
        return make_trace(tmp_path / "a", requests=a, **over), make_trace(tmp_path / "b", requests=b, run_id="run b")

    return make


@pytest.fixture
def replay(tmp_path: Path) -> Pair:
    """Writes a trace and a replay of it."""

    def make(a: list[MadeRequest], b: list[MadeRequest]) -> tuple[Path, Path]:
        parent = make_trace(tmp_path / "a", requests=a)
        return parent, make_trace(tmp_path / "b", requests=b, role="replay", parent=parent, run_id="run b")

    return make


def matches(session: Session) -> set[tuple[str, str]]:
    return set(session.sql("SELECT a_request_id, b_request_id FROM pairs").rows())


class TestMethods:
    def test_parent_and_child_in_either_order(self, replay: Pair) -> None:
        requests = [make_request("x", prompt=[1]), make_request("y", prompt=[2])]
        a, b = replay(requests, [*requests[:1], make_request("z")])
        for first, second in ((a, b), (b, a)):
            with connect(first, second, partial=True) as session:
                assert session.alignment == Alignment("request_id", 1, 1, 1)
                assert matches(session) == {("x", "x")}

    def test_two_children_of_one_parent(self, tmp_path: Path) -> None:
        parent = make_trace(tmp_path / "parent")
        a, b = (make_trace(tmp_path / name, role="replay", parent=parent, run_id=name) for name in "ab")
        with connect(a, b) as session:
            assert session.alignment == Alignment("request_id", 1, 0, 0)

    def test_a_trace_with_itself(self, tmp_path: Path) -> None:
        path = make_trace(tmp_path / "a")
        with connect(path, path) as session:
            assert session.sql("SELECT count(*), max(abs(d)) FROM pairs").rows() == [(3, 0.0)]

    def test_external_id_and_sample_index(self, recordings: Pair) -> None:
        def samples(prefix: str) -> list[MadeRequest]:
            one = make_request(f"{prefix}-one", external_id="7", prompt=[7])
            two = [make_request(f"{prefix}-{i}", external_id="8", sample_index=i, prompt=[8]) for i in range(2)]
            return [one, *two]

        a, b = recordings(samples("a"), [*reversed(samples("b")), make_request("b-new", external_id="9")])
        with connect(a, b, partial=True) as session:
            assert session.alignment == Alignment("external_id", 3, 0, 1)
            assert matches(session) == {("a-one", "b-one"), ("a-0", "b-0"), ("a-1", "b-1")}

    def test_prompt_and_order_of_arrival(self, recordings: Pair) -> None:
        def arriving(prefix: str, order: list[int]) -> list[MadeRequest]:
            times = enumerate(order)
            equal = [make_request(f"{prefix}{n}", prompt=[5], arrival_ns=START_NS + place) for place, n in times]
            return [*equal, make_request(f"{prefix}-other", prompt=[6])]

        a, b = recordings(arriving("a", [0, 1, 2]), arriving("b", [2, 0]))
        with connect(a, b, partial=True) as session:
            assert session.alignment == Alignment("prompt", 3, 1, 0)
            assert matches(session) == {("a0", "b2"), ("a1", "b0"), ("a-other", "b-other")}

    @pytest.mark.parametrize("external_ids", [("1", "1"), ("1", "2"), (None, None)])
    def test_external_ids_that_name_nothing_in_common(
        self, recordings: Pair, external_ids: tuple[str | None, str | None]
    ) -> None:
        ids = [make_request(f"a{i}", prompt=[i], external_id=name) for i, name in enumerate(external_ids)]
        other = [make_request(f"b{i}", prompt=[i], external_id=f"x{i}") for i in range(2)]
        a, b = recordings(ids, other)
        with connect(a, b) as session:
            assert session.alignment == Alignment("prompt", 2, 0, 0)

    def test_the_method_may_be_chosen(self, recordings: Pair) -> None:
        a, b = recordings(
            [make_request("a", external_id="1", prompt=[1])],
            [make_request("b1", external_id="1", prompt=[2]), make_request("b2", external_id="2", prompt=[1])],
        )
        with pytest.raises(AlignmentError, match=r"align='prompt'"):
            connect(a, b)
        with connect(a, b, align="prompt", partial=True) as session:
            assert matches(session) == {("a", "b2")}

    def test_unknown_method(self, replay: Pair) -> None:
        with pytest.raises(ConfigError, match=r"no alignment 'promt' \(did you mean 'prompt'\?\)"):
            connect(*replay([make_request()], [make_request()]), align="promt")

    def test_requests_known_by_tokens_only_are_counted(self, replay: Pair) -> None:
        a, b = replay([make_request()], [make_request()])
        with TraceWriter(a, run_id="run", writer="w1") as writer:
            writer.append("tokens", make_request("lost").tokens)
        with connect(a, b, partial=True) as session:
            assert session.alignment == Alignment("request_id", 1, 1, 0)

    def test_n_samples_of_a_prompt(self, recordings: Pair) -> None:
        """Samples arrive together: in the caller's order, whatever the engine calls them."""

        def samples(names: str, external_id: str) -> list[MadeRequest]:
            made = [
                make_request(name, external_id=external_id, sample_index=index, n=3, token_ids=[index, 7, index])
                for index, name in enumerate(names)
            ]
            return made[::-1]

        a, b = recordings(samples("xyz", "1"), samples("zxy", "2"))
        expected = {("x", "z"), ("y", "x"), ("z", "y")}
        with connect(a, b) as session:
            assert session.alignment == Alignment("prompt", 3, 0, 0)
            assert matches(session) == expected
            assert session.sql("FROM first_divergence WHERE kind IS NOT NULL").rows() == []
        same = [make_trace(a.parent / name, requests=samples(names, "1"), run_id=name) for name, names in NAMES.items()]
        with connect(*same) as session:
            assert session.alignment == Alignment("external_id", 3, 0, 0)
            assert matches(session) == expected

    @pytest.mark.parametrize(
        ("asked", "method"),
        [("request", "request_id"), ("request_id", "request_id"), ("external", "external_id"), ("prompt", "prompt")],
    )
    def test_names_of_methods(self, recordings: Pair, asked: str, method: str) -> None:
        a, b = recordings([make_request(external_id="1")], [make_request(external_id="1")])
        with connect(a, b, align=asked) as session:
            assert session.alignment == Alignment(method, 1, 0, 0)

    def test_one_external_id_for_all(self, recordings: Pair) -> None:
        equal = [make_request(f"r{i}", external_id="x", prompt=[i]) for i in range(3)]
        a, b = recordings(equal, equal)
        with connect(a, b) as session:
            assert session.alignment == Alignment("prompt", 3, 0, 0)
        with pytest.raises(AlignmentError, match=r"request 'r0' of A has 3 counterparts by external_id, for its ext"):
            connect(a, b, align="external")


def test_how_far_outputs_agree(replay: Pair) -> None:
    a = [
        make_request("same", token_ids=[1, 2]),
        make_request("forks", token_ids=[1, 2, 3, 4, 5, 6]),
        make_request("longer", token_ids=[1, 2, 3], ended=False),
        make_request("shorter", token_ids=[1]),
        make_request(
            "torn", token_ids=[1, 3, 4], tokens={"output_index": [0, 2, 3], "position": [3, 5, 6]}, ended=False
        ),
        make_request("cut", token_ids=[1, 2, 3], outcome={"num_output_tokens": 2}),
        make_request("waiting", token_ids=[]),
    ]
    b = [
        make_request("same", token_ids=[1, 2]),
        make_request("forks", token_ids=[1, 2, 9, 8, 7]),
        make_request("longer", token_ids=[1, 2]),
        make_request("shorter", token_ids=[1, 2]),
        make_request("torn", token_ids=[1, 2, 3], ended=False),
        make_request("cut", token_ids=[1, 2, 4], outcome={"num_output_tokens": 2}),
        make_request("waiting", token_ids=[]),
    ]
    with connect(*replay(a, b)) as session:
        rows = session.sql("FROM aligned ORDER BY request_id").rows()
        pairs = dict(session.sql("SELECT request_id, count(*) FROM pairs GROUP BY ALL").rows())
    assert rows == [
        ("cut", "cut", 2, 2, 2, None, "equal"),
        ("forks", "forks", 6, 5, 5, 2, "fork"),
        ("longer", "longer", 3, 2, 2, None, "B has fewer"),
        ("same", "same", 2, 2, 2, None, "equal"),
        ("shorter", "shorter", 1, 2, 1, None, "A has fewer"),
        ("torn", "torn", 3, 3, 2, None, "rows missing"),
        ("waiting", "waiting", 0, 0, 0, None, "equal"),
    ]
    assert pairs == {"cut": 2, "forks": 3, "longer": 2, "same": 2, "shorter": 1, "torn": 2}


def test_rows_without_an_index_are_no_duplicates(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a", requests=[make_request(tokens={"output_index": [0, None, None]})])
    with connect(path, path) as session:
        assert session.sql("SELECT output_index FROM pairs").rows() == [(0,)]
