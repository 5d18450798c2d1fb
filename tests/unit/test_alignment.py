"""How requests are paired, and what is refused before anything is subtracted."""

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
            with connect(first, second) as session:
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
        with connect(a, b) as session:
            assert session.alignment == Alignment("external_id", 3, 0, 1)
            assert matches(session) == {("a-one", "b-one"), ("a-0", "b-0"), ("a-1", "b-1")}

    def test_prompt_and_order_of_arrival(self, recordings: Pair) -> None:
        def arriving(prefix: str, order: list[int]) -> list[MadeRequest]:
            times = enumerate(order)
            equal = [make_request(f"{prefix}{n}", prompt=[5], arrival_ns=START_NS + place) for place, n in times]
            return [*equal, make_request(f"{prefix}-other", prompt=[6])]

        a, b = recordings(arriving("a", [0, 1, 2]), arriving("b", [2, 0]))
        with connect(a, b) as session:
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
        with connect(a, b, align="prompt") as session:
            assert matches(session) == {("a", "b2")}

    def test_unknown_method(self, replay: Pair) -> None:
        with pytest.raises(ConfigError, match=r"no alignment 'promt' \(did you mean 'prompt'\?\)"):
            connect(*replay([make_request()], [make_request()]), align="promt")

    def test_requests_known_by_tokens_only_are_counted(self, replay: Pair) -> None:
        a, b = replay([make_request()], [make_request()])
        with TraceWriter(a, run_id="run", writer="w1") as writer:
            writer.append("tokens", make_request("lost").tokens)
        with connect(a, b) as session:
            assert session.alignment == Alignment("request_id", 1, 1, 0)


class TestObjections:
    def objection(self, pair: tuple[Path, Path]) -> str:
        with pytest.raises(AlignmentError) as failure:
            connect(*pair)
        message = str(failure.value)
        start = f"{pair[0]} and {pair[1]} do not align: "
        assert message.startswith(start)
        assert "\n" not in message
        return message.removeprefix(start)

    def test_prompts_differ(self, replay: Pair) -> None:
        equal = make_request("r0", prompt=[1])
        a = [make_request("r2"), make_request("r1", prompt=[4, 5, 6, 7]), equal]
        b = [make_request("r2"), make_request("r1", prompt=[4, 5, 8]), equal]
        assert self.objection(replay(a, b)) == (
            "request 'r1': the prompts differ at position 2, token 6 in A, 8 in B (4 prompt tokens in A, 3 in B); "
            "pair them by prompt (align='prompt', --align prompt), or compare traces of the same prompts"
        )

    def test_one_prompt_begins_the_other(self, replay: Pair) -> None:
        pair = replay([make_request(prompt=[4, 5, 6])], [make_request(prompt=[4, 5])])
        expected = "request 'r0': 3 prompt tokens in A, 2 in B, equal up to position 2 where the shorter one ends;"
        assert self.objection(pair).startswith(expected)

    def test_hashes_stand_in_for_prompts(self, replay: Pair) -> None:
        def hashed(value: str) -> list[MadeRequest]:
            return [make_request(prompt_token_ids=None, prompt_hash=value)]

        a, b = replay(hashed("x"), hashed("y"))
        assert self.objection((a, b)).startswith("request 'r0': the prompt hashes differ;")

    def test_equal_hashes_are_enough(self, replay: Pair) -> None:
        a, b = replay([make_request()], [make_request(prompt_token_ids=None)])
        with connect(a, b) as session:
            assert session.sql("SELECT count(*) FROM pairs").rows() == [(3,)]

    def test_an_unknown_prompt_proves_nothing(self, replay: Pair) -> None:
        unknown = make_request(prompt=None, tokens={"position": [3, 4, 5]})
        assert self.objection(replay([make_request()], [unknown])) == (
            "request 'r0': trace B does not hold its prompt, so equal context cannot be proven; "
            "record the prompt ids too"
        )

    def test_a_request_that_never_ran_needs_no_prompt(self, replay: Pair) -> None:
        waiting = make_request("waiting", prompt=None, token_ids=[])
        with connect(*replay([make_request(), waiting], [make_request(), waiting])) as session:
            assert session.alignment == Alignment("request_id", 2, 0, 0)

    def test_nothing_in_common(self, replay: Pair) -> None:
        pair = replay([make_request("x")], [make_request("y"), make_request("z")])
        expected = "none of 1 request(s) of A has a counterpart among 2 of B by request_id; pair them by prompt"
        assert self.objection(pair).startswith(expected)

    def test_two_recordings_of_other_prompts(self, recordings: Pair) -> None:
        pair = recordings([make_request(prompt=[1])], [make_request(prompt=[2])])
        assert self.objection(pair) == (
            "none of 1 request(s) of A has a counterpart among 1 of B by prompt; compare traces of the same prompts"
        )

    def test_a_request_id_in_two_runs(self, replay: Pair) -> None:
        a, b = replay([make_request()], [make_request()])
        with TraceWriter(a, run_id="another run", writer="w1") as writer:
            writer.append("requests", make_request().request)
        assert self.objection((a, b)).startswith(
            "request 'r0' of B has 2 counterparts by request_id, for it stands in several runs of one trace;"
        )

    def test_duplicate_rows(self, replay: Pair) -> None:
        a, b = replay([make_request()], [make_request(), make_request("r1")])
        with TraceWriter(b, run_id="run b", writer="w1") as writer:
            row = {"output_index": [1], "position": [4]}
            writer.append("tokens", make_request(token_ids=[11], tokens=row).tokens)
        assert self.objection((a, b)).startswith(
            "trace B holds 1 output index(es) of request 'r0' twice, first 1; remove the part that was written twice"
        )

    def test_positions_that_differ(self, replay: Pair) -> None:
        a, b = replay([make_request()], [make_request(tokens={"position": [3, 5, 6]})])
        assert self.objection((a, b)).startswith("request 'r0': output token 1 stands at different positions")

    def test_other_names_on_both_sides(self, recordings: Pair) -> None:
        a, b = recordings([make_request("x", external_id="1")], [make_request("y", external_id="1", prompt=[9])])
        assert self.objection((a, b)).startswith("request 'x' of A with 'y' of B: the prompts differ at position 0,")


def test_rows_without_an_index_are_no_duplicates(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "a", requests=[make_request(tokens={"output_index": [0, None, None]})])
    with connect(path, path) as session:
        assert session.sql("SELECT output_index FROM pairs").rows() == [(0,)]
