"""What is refused before anything is subtracted: one line that names the first request and the difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from factories import START_NS, MadeRequest, make_request, make_trace
from tracekit import TraceWriter, connect
from tracekit.cli.main import main
from tracekit.errors import AlignmentError

Pair = tuple[Path, Path]
Make = Callable[..., Pair]
WAY_OUT = "pair them by prompt (align='prompt', --align prompt), or compare traces of the same prompts"


@pytest.fixture
def replay(tmp_path: Path) -> Make:
    """Writes a recording and a replay of it."""

    def make(a: Sequence[MadeRequest], b: Sequence[MadeRequest], role: str = "replay", **run: Any) -> Pair:
        parent = make_trace(tmp_path / "a", requests=a)
        return parent, make_trace(tmp_path / "b", requests=b, role=role, parent=parent, run_id="run b", run=run)

    return make


@pytest.fixture
def recordings(tmp_path: Path) -> Make:
    """Writes two traces that are not related."""

    def make(a: Sequence[MadeRequest], b: Sequence[MadeRequest], **run: Any) -> Pair:
        return make_trace(tmp_path / "a", requests=a), make_trace(tmp_path / "b", requests=b, run_id="run b", run=run)

    return make


def objection(pair: Pair, **options: Any) -> str:
    with pytest.raises(AlignmentError) as failure:
        connect(*pair, **options)
    message = str(failure.value)
    start = f"{pair[0]} and {pair[1]} do not align: "
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


class TestPrompts:
    def test_they_differ(self, replay: Make) -> None:
        equal = make_request("r0", prompt=[1])
        a = [make_request("r2"), make_request("r1", prompt=[4, 5, 6, 7]), equal]
        b = [make_request("r2"), make_request("r1", prompt=[4, 5, 8]), equal]
        assert objection(replay(a, b)) == (
            "request 'r1': the prompts differ at position 2, token 6 in A, 8 in B (4 prompt tokens in A, 3 in B); "
            + WAY_OUT
        )

    def test_one_begins_the_other(self, replay: Make) -> None:
        pair = replay([make_request(prompt=[4, 5, 6])], [make_request(prompt=[4, 5])])
        expected = (
            "request 'r0': the prompts differ at position 2 where the shorter one ends (3 prompt tokens in A, 2 in B)"
        )
        assert objection(pair) == f"{expected}; {WAY_OUT}"

    def test_swapped(self, replay: Make) -> None:
        a = [make_request("x", prompt=[1, 2]), make_request("y", prompt=[1, 3])]
        b = [make_request("x", prompt=[1, 3]), make_request("y", prompt=[1, 2])]
        assert objection(replay(a, b)) == (
            "request 'x': the prompts differ at position 1, token 2 in A, 3 in B (2 prompt tokens in A, 2 in B); "
            f"the prompt of B is that of request 'y' of A (and so do those of 1 more request(s)); {WAY_OUT}"
        )

    def test_swapped_ids_under_hashes_that_stayed(self, replay: Make) -> None:
        a = [make_request("x", prompt=[1, 2]), make_request("y", prompt=[1, 3])]
        b = [
            make_request("x", prompt=[1, 2], prompt_token_ids=[[1, 3]]),
            make_request("y", prompt=[1, 3], prompt_token_ids=[[1, 2]]),
        ]
        assert "the prompt of B is that of request 'y' of A" in objection(replay(a, b))

    def test_swapped_among_recordings_without_ids(self, recordings: Make) -> None:
        """Paired by prompt, prompts are equal: the outputs tell."""
        outputs = [[5, 6, 7, 8], [9, 8, 7, 6], [1, 2, 3, 4]]
        a = [make_request(f"a{i}", prompt=[i], token_ids=ids) for i, ids in enumerate(outputs)]
        b = [make_request(f"b{i}", prompt=[(i + 1) % 3], token_ids=ids) for i, ids in enumerate(outputs)]
        assert objection(recordings(a, b)) == (
            "request 'a0' of A with 'b2' of B: they differ at the first output token, and that output of A is the one "
            "of request 'b0' of B, whose prompt is another: prompts or outputs are swapped; compare traces that keep "
            "them together"
        )

    def test_equal_short_answers_are_not_swapped(self, recordings: Make) -> None:
        a = [make_request(f"a{i}", prompt=[i], token_ids=[5 + i, 0]) for i in range(2)]
        b = [make_request(f"b{i}", prompt=[i], token_ids=[6 - i, 0]) for i in range(2)]
        with connect(*recordings(a, b)) as session:
            assert session.sql("SELECT count(*) FROM first_divergence WHERE output_index = 0").rows() == [(2,)]

    def test_retokenised(self, replay: Make) -> None:
        a = [make_request(prompt=[1, 2, 3], prompt_text="the cat")]
        b = [make_request(prompt=[1, 9], prompt_text="the cat")]
        assert objection(replay(a, b)).startswith(
            "request 'r0': retokenised: same text, ids differ at position 1, token 2 in A, 9 in B "
            "(3 prompt tokens in A, 2 in B); "
        )

    def test_retokenised_as_a_tokenizer_tells(self, replay: Make, tmp_path: Path) -> None:
        words = {"<unk>": 0, "ab": 1, "a": 2, "b": 3, "c": 4}
        Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
        pair = replay([make_request(prompt=[1, 4])], [make_request(prompt=[2, 3, 4])])
        expected = "request 'r0': retokenised: same text when decoded, ids differ at position 0, token 1 in A, 2 in B"
        assert objection(pair, tokenizer=tmp_path).startswith(expected)
        assert objection(pair).startswith("request 'r0': the prompts differ at position 0, token 1 in A, 2 in B")

    def test_retokenised_and_paired_by_prompt(self, recordings: Make) -> None:
        a = [make_request("a0", prompt=[1, 2], prompt_text="x"), make_request("a1", prompt=[5])]
        b = [make_request("b0", prompt=[3], prompt_text="x"), make_request("b1", prompt=[5])]
        assert objection(recordings(a, b)) == (
            "request 'a0' of A has no counterpart by prompt: request 'b0' of B has the same prompt text with other ids "
            "(and 1 more); if one trace holds a part of the other, say so (partial=True, --partial)"
        )

    def test_hashes_stand_in_for_prompts(self, replay: Make) -> None:
        def hashed(value: str) -> list[MadeRequest]:
            return [make_request(prompt_token_ids=None, prompt_hash=value)]

        assert objection(replay(hashed("x"), hashed("y"))) == f"request 'r0': the prompt hashes differ; {WAY_OUT}"

    def test_equal_hashes_are_enough(self, replay: Make) -> None:
        with connect(*replay([make_request()], [make_request(prompt_token_ids=None)])) as session:
            assert session.sql("SELECT count(*) FROM pairs").rows() == [(3,)]

    def test_an_unknown_one_proves_nothing(self, replay: Make) -> None:
        unknown = make_request(prompt=None, tokens={"position": [3, 4, 5]})
        assert objection(replay([make_request()], [unknown])) == (
            "request 'r0': trace B does not hold its prompt, so equal context cannot be proven; "
            "record the prompt ids too"
        )

    def test_a_request_that_never_ran_needs_none(self, replay: Make) -> None:
        waiting = make_request("waiting", prompt=None, token_ids=[])
        with connect(*replay([make_request(), waiting], [make_request(), waiting])) as session:
            assert session.sql("SELECT count(*) FROM aligned").rows() == [(2,)]


class TestIdentities:
    def test_nothing_in_common(self, replay: Make) -> None:
        assert objection(replay([make_request("x")], [make_request("y"), make_request("z")])) == (
            "none of 1 request(s) of A has a counterpart among 2 of B by request_id, first 'x': no request of B has "
            f"this id; {WAY_OUT}"
        )

    def test_two_recordings_of_other_prompts(self, recordings: Make) -> None:
        assert objection(recordings([make_request(prompt=[1])], [make_request(prompt=[2])])) == (
            "none of 1 request(s) of A has a counterpart among 1 of B by prompt, first 'r0': no request of B has its "
            "prompt; compare traces of the same prompts"
        )

    def test_a_request_id_in_two_runs(self, replay: Make) -> None:
        a, b = replay([make_request()], [make_request()])
        with TraceWriter(a, run_id="another run", writer="w1") as writer:
            writer.append("requests", make_request().request)
        assert objection((a, b)) == (
            "request 'r0' of B has 2 counterparts by request_id, for it stands in several runs of one trace; " + WAY_OUT
        )

    def test_other_names_on_both_sides(self, recordings: Make) -> None:
        pair = recordings([make_request("x", external_id="1")], [make_request("y", external_id="1", prompt=[9])])
        assert objection(pair).startswith("request 'x' of A with 'y' of B: the prompts differ at position 0,")


class TestTokens:
    def test_duplicate_rows(self, replay: Make) -> None:
        a, b = replay([make_request()], [make_request(), make_request("r1")])
        with TraceWriter(b, run_id="run b", writer="w1") as writer:
            row = {"output_index": [1], "position": [4]}
            writer.append("tokens", make_request(token_ids=[11], tokens=row).tokens)
        assert objection((a, b)).startswith(
            "trace B holds 1 output index(es) of request 'r0' twice, first 1; remove the part that was written twice"
        )

    @pytest.mark.parametrize(
        ("indexes", "repeated"),
        [
            ([0, 1, 1, 3], (1, 1)),
            ([0, 0, 3, 3], (2, 0)),
            # As many rows, the same sum and the same sum of squares as 0 to 8.
            ([0, 2, 2, 3, 3, 4, 7, 7, 8], (3, 2)),
            ([5, 5], (1, 5)),
        ],
    )
    def test_duplicates_among_gaps(self, replay: Make, indexes: list[int], repeated: tuple[int, int]) -> None:
        rows = {"output_index": indexes, "position": [3 + index for index in indexes]}
        pair = replay([make_request(token_ids=indexes, tokens=rows)], [make_request(token_ids=range(9))])
        num, first = repeated
        assert objection(pair).startswith(f"trace A holds {num} output index(es) of request 'r0' twice, first {first};")

    @pytest.mark.parametrize("indexes", [[0, 1, 3], [2, 1, 0], [4]])
    def test_gaps_and_disorder_are_no_duplicates(self, replay: Make, indexes: list[int]) -> None:
        rows = {"output_index": indexes, "position": [3 + index for index in indexes]}
        requests = [make_request(token_ids=indexes, tokens=rows, ended=False)]
        with connect(*replay(requests, requests)) as session:
            assert session.sql("SELECT output_index FROM pairs ORDER BY 1").rows() == [(i,) for i in sorted(indexes)]

    def test_positions_that_differ(self, replay: Make) -> None:
        pair = replay([make_request()], [make_request(tokens={"position": [3, 5, 6]})])
        assert objection(pair) == (
            "request 'r0': output token 1 stands at position 4 of the sequence in A, 5 in B; "
            "one of the traces is malformed"
        )

    def test_positions_of_another_prompt_length(self, recordings: Make) -> None:
        pair = recordings([make_request()], [make_request(tokens={"position": [4, 5, 6]})])
        assert objection(pair).startswith(
            "request 'r0': output token 0 stands at position 3 of the sequence in A, 4 in"
        )


class TestOffByOne:
    @pytest.mark.parametrize(("turned", "sign"), [(1, "+"), (-1, "-")])
    def test_rolled_tokens(self, replay: Make, turned: int, sign: str) -> None:
        outputs = {"r1": [5, 6, 7, 8], "r2": [9, 9, 4, 3, 9]}
        rolled = {name: ids[turned:] + ids[:turned] for name, ids in outputs.items()}
        pair = replay(
            *([make_request(name, token_ids=ids) for name, ids in side.items()] for side in (outputs, rolled))
        )
        assert objection(pair) == (
            f"request 'r1': the outputs are off by one: B has at output token i what A has at i {sign} 1, in "
            "2 request(s); write each token's row under its own output_index"
        )

    def test_the_first_token_is_lost(self, recordings: Make) -> None:
        pair = recordings([make_request(token_ids=range(10, 90))], [make_request(token_ids=range(11, 90))])
        assert objection(pair).startswith(
            "request 'r0': the outputs are off by one: B has at output token i what A has"
        )

    def test_rows_one_place_later(self, replay: Make) -> None:
        rows = {"output_index": [1, 2, 3], "position": [4, 5, 6]}
        late = make_request(tokens=rows, outcome={"num_output_tokens": 4})
        assert "off by one: B has at output token i what A has at i - 1" in objection(replay([make_request()], [late]))

    def test_rows_one_place_later_at_the_old_positions(self, replay: Make) -> None:
        late = make_request(tokens={"output_index": [1, 2, 3]}, outcome={"num_output_tokens": 4})
        expected = "request 'r0': output token 1 stands at position 4 of the sequence in A, 3 in B;"
        assert objection(replay([make_request()], [late])).startswith(expected)

    @pytest.mark.parametrize(
        ("a", "b"),
        [
            ([[5, 5, 5, 5, 6]], [[5, 5, 5, 5, 7]]),
            ([[1, 2, 3, 4, 5, 6]], [[2, 9, 8, 7, 5, 6]]),
            ([[1, 2]], [[2, 3]]),
            # One of three requests drops its first token by itself.
            ([[1, 2, 3, 4], [5, 6, 7, 8], [9, 8, 7, 6]], [[2, 3, 4], [6, 5, 7, 8], [7, 7, 7, 6]]),
        ],
    )
    def test_forks_are_none(self, recordings: Make, a: list[list[int]], b: list[list[int]]) -> None:
        sides = [[make_request(f"r{i}", prompt=[i], token_ids=ids) for i, ids in enumerate(side)] for side in (a, b)]
        with connect(*recordings(*sides)) as session:
            assert session.sql("SELECT count(fork_index) FROM aligned").rows() == [(len(a),)]


class TestTokenizers:
    def traces(self, tmp_path: Path, b_prompt: list[int], b_hash: str | None = "t2", **b_run: Any) -> Pair:
        a = make_trace(tmp_path / "a", requests=[make_request(external_id="7")], run={"tokenizer_hash": "t1"})
        request = make_request("s0", external_id="7", prompt=b_prompt)
        run = {"tokenizer_hash": b_hash, **b_run}
        return a, make_trace(tmp_path / "b", requests=[request], run=run, run_id="run b")

    def test_they_differ(self, tmp_path: Path) -> None:
        pair = self.traces(tmp_path, [1, 2, 3])
        assert objection(pair) == (
            "the tokenizers differ: hash t1 in A, t2 in B; the prompt ids of all requests are equal; "
            "if only their files do, say so (any_tokenizer=True, --any-tokenizer)"
        )
        with connect(*pair, any_tokenizer=True) as session:
            assert session.sql("SELECT count(*) FROM pairs").rows() == [(3,)]

    def test_the_first_request_is_named(self, tmp_path: Path) -> None:
        pair = self.traces(tmp_path, [1, 4, 3])
        assert objection(pair).startswith(
            "the tokenizers differ: hash t1 in A, t2 in B; request 'r0' of A with 's0' of B: the prompts differ at "
            "position 1, token 2 in A, 4 in B (3 prompt tokens in A, 3 in B); "
        )
        assert objection(pair, any_tokenizer=True).startswith("request 'r0' of A with 's0' of B: the prompts differ at")

    @pytest.mark.parametrize(
        ("tokenizer_hash", "options"), [(None, None), ("t1", None), ("t2", '{"any_tokenizer": true}')]
    )
    def test_it_may_be_unknown_equal_or_allowed(
        self, tmp_path: Path, tokenizer_hash: str | None, options: str | None
    ) -> None:
        with connect(*self.traces(tmp_path, [1, 2, 3], tokenizer_hash, options=options)) as session:
            assert session.sql("SELECT count(*) FROM pairs").rows() == [(3,)]

    @pytest.mark.parametrize("options", ['{"any_tokenizer": false}', "[1]", "not json", '"true"'])
    def test_other_options_allow_nothing(self, tmp_path: Path, options: str) -> None:
        assert objection(self.traces(tmp_path, [1, 2, 3], options=options)).startswith("the tokenizers differ:")


class TestParts:
    requests = tuple(make_request(f"r{i}", prompt=[i], token_ids=[i, 1]) for i in range(5))

    def num_aligned(self, pair: Pair, **options: Any) -> int:
        with connect(*pair, **options) as session:
            assert session.alignment is not None
            return session.alignment.num_matched

    def test_a_selection_of_itself(self, replay: Make) -> None:
        a, b = replay(self.requests, self.requests[2:])
        way_out = "if one trace holds a part of the other, say so (partial=True, --partial)"
        for first, second, side, other in ((a, b, "A", "B"), (b, a, "B", "A")):
            assert objection((first, second)) == (
                f"request 'r0' of {side} has no counterpart by request_id: no request of {other} has this id "
                f"(and 1 more); {way_out}"
            )
        assert self.num_aligned((a, b), partial=True) == 3

    def test_the_command_line_says_so_too(self, replay: Make, capsys: pytest.CaptureFixture[str]) -> None:
        pair = [str(path) for path in replay(self.requests, self.requests[2:])]
        query = ["query", *pair, "SELECT count(*) AS num FROM aligned", "--format", "csv"]
        assert main(query) == 2
        assert "request 'r0' of A has no counterpart by request_id" in capsys.readouterr().err
        assert main([*query, "--partial", "--any-tokenizer", "--align", "request"]) == 0
        assert main(["diff", *pair, "--format", "csv", "--partial"]) == 0

    def test_recordings_of_different_requests(self, recordings: Make) -> None:
        pair = recordings(self.requests[:3], self.requests[1:])
        assert objection(pair).startswith(
            "request 'r0' of A has no counterpart by prompt: no request of B has its prompt (and 2 more); "
        )
        assert self.num_aligned(pair, partial=True) == 2

    @pytest.mark.parametrize("options", [{"limit": 3}, {"sample": 3}, {"num_only": 3}])
    def test_a_replay_that_says_it_selected(self, replay: Make, options: dict[str, int]) -> None:
        recorded = {"num_only": None, "sample": None, "limit": None, **options}
        a, b = replay(self.requests, self.requests[:3], options=json.dumps(recorded))
        assert self.num_aligned((a, b)) == self.num_aligned((b, a)) == 3

    def test_it_may_miss_requests_but_have_none_of_its_own(self, replay: Make) -> None:
        pair = replay(self.requests[:3], self.requests[1:4], options='{"limit": 3}')
        assert objection(pair).startswith(
            "request 'r3' of B has no counterpart by request_id: no request of A has this"
        )

    def test_whole_and_chosen_replays_of_one_parent(self, tmp_path: Path) -> None:
        parent = make_trace(tmp_path / "parent", requests=self.requests)

        def child(name: str, number: int, options: str) -> Path:
            run = {"options": options}
            requests = self.requests[:number]
            path = tmp_path / name
            return make_trace(path, requests=requests, role="replay", parent=parent, run_id=name, run=run)

        whole, chosen, lost = child("w", 5, "{}"), child("c", 2, '{"limit": 2}'), child("l", 2, '{"limit": null}')
        assert self.num_aligned((whole, chosen)) == 2
        assert objection((whole, lost)).startswith("request 'r2' of A has no counterpart")

    def test_a_selection_of_something_else(self, recordings: Make) -> None:
        """Options of a replay tell of its own parent only."""
        assert "has no counterpart" in objection(recordings(self.requests, self.requests[:2], options='{"limit": 2}'))

    def test_a_trainer_takes_what_it_trains_on(self, replay: Make) -> None:
        assert self.num_aligned(replay(self.requests, self.requests[:2], role="trainer")) == 2

    def test_a_head_replay_takes_what_has_hidden_states(self, replay: Make) -> None:
        assert self.num_aligned(replay(self.requests, self.requests[:2], backend="head")) == 2

    def test_a_recording_that_ended_in_mid_flight(self, replay: Make) -> None:
        """What waited has no token that could be scored, and what was dropped at its first row neither."""
        waiting = make_request("waiting", token_ids=[], ended=False)
        aborted = make_request("aborted", token_ids=[4], outcome={"num_output_tokens": 0})
        torn = make_request("torn", token_ids=[4, 5], tokens={"output_index": [1, 2], "position": [4, 5]})
        a, b = replay([*self.requests, waiting, aborted, torn], self.requests)
        with connect(a, b) as session:
            reasons = dict(session.sql("SELECT request_id, reason FROM unaligned").rows())
            assert session.alignment is not None
            assert (session.alignment.num_only_a, session.alignment.num_only_b) == (3, 0)
        assert reasons == {"aborted": "no tokens", "torn": "not scored", "waiting": "no tokens"}

    def test_what_one_recording_did_not_reach(self, recordings: Make) -> None:
        unreached = make_request("r0", prompt=[0], token_ids=[], ended=False)
        with connect(*recordings(self.requests, [unreached, *self.requests[1:]])) as session:
            assert session.sql("SELECT count(DISTINCT request_id) FROM pairs").rows() == [(4,)]
            assert session.sql("FROM unaligned").rows() == [
                ("A", "r0", "counterpart without tokens", "its counterpart 'r0' in B has no output token")
            ]


class TestReport:
    def test_reasons(self, recordings: Make) -> None:
        def arriving(name: str, **columns: Any) -> MadeRequest:
            return make_request(name, **columns)

        a = [
            arriving("both", prompt=[1]),
            arriving("equal1", prompt=[2], arrival_ns=START_NS),
            arriving("equal2", prompt=[2], arrival_ns=START_NS + 1),
            arriving("new", prompt=[3]),
            arriving("text", prompt=[4], prompt_text="t"),
            arriving("unknown", prompt=None, token_ids=[1]),
            arriving("waiting", prompt=[9], token_ids=[], ended=False),
        ]
        b = [arriving("both", prompt=[1]), arriving("equal", prompt=[2]), arriving("ids", prompt=[5], prompt_text="t")]
        with connect(*recordings(a, b), partial=True) as session:
            rows = session.sql("FROM unaligned").rows()
            summary = session.unaligned()
        assert rows == [
            ("A", "equal2", "fewer equal prompts", "B has only 1 request(s) with this prompt"),
            ("A", "new", "no counterpart", "no request of B has its prompt"),
            ("A", "text", "retokenised", "request 'ids' of B has the same prompt text with other ids"),
            ("A", "unknown", "no prompt", "its prompt is not known, so it cannot be paired by it"),
            ("A", "waiting", "no tokens", "it has no output token to compare"),
            ("B", "ids", "retokenised", "request 'text' of A has the same prompt text with other ids"),
        ]
        assert [(each.side, each.reason, each.num_requests, each.request_id) for each in summary] == [
            ("A", "fewer equal prompts", 1, "equal2"),
            ("A", "no counterpart", 1, "new"),
            ("A", "no prompt", 1, "unknown"),
            ("A", "no tokens", 1, "waiting"),
            ("A", "retokenised", 1, "text"),
            ("B", "retokenised", 1, "ids"),
        ]

    def test_by_external_id(self, recordings: Make) -> None:
        a = [make_request("x", external_id="1"), make_request("y", external_id="2"), make_request("z")]
        b = [make_request("x", external_id="1"), make_request("s", external_id="2", sample_index=1)]
        with connect(*recordings(a, b), partial=True) as session:
            assert session.sql("FROM unaligned").rows() == [
                ("A", "y", "no counterpart", "no request of B has its external id '2' and sample index"),
                ("A", "z", "no external id", "it has no external id to be paired by"),
                ("B", "s", "no counterpart", "no request of A has its external id '2' and sample index"),
            ]

    def test_not_selected(self, replay: Make) -> None:
        requests = [make_request("x"), make_request("y")]
        options = json.dumps({"num_only": 9, "sample": 4, "limit": 1})
        with connect(*replay(requests, requests[:1], options=options)) as session:
            detail = "B is a replay of a part: 9 by --where, --sample 4, --limit 1"
            assert session.sql("FROM unaligned").rows() == [("A", "y", "not selected", detail)]

    def test_nothing(self, replay: Make) -> None:
        with connect(*replay([make_request()], [make_request()])) as session:
            assert session.unaligned() == []
