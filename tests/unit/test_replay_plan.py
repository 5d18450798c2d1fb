"""What a replay scores, and in which batches."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import START_NS, MadeRequest, make_request, make_trace
from tracekit.errors import ConfigError, InputError, ModelError, TraceFormatError
from tracekit.replay import plan as plan_module
from tracekit.replay.backends.base import BatchLimits
from tracekit.replay.plan import Plan, cut_batches
from tracekit.replay.selection import Selection
from tracekit.store import Trace, TraceWriter


def make_plan(path: Path, requests: list[MadeRequest], *, sealed: bool = True, **selection: Any) -> Plan:
    make_trace(path, requests=requests, sealed=sealed)
    return Plan(Trace(path), Selection(**selection))


def ids_of(plan: Plan) -> list[str]:
    return [sequence.key[1] for sequence in plan.sequences]


def loaded(plan: Plan, batch_tokens: int = 1000) -> dict[str, Any]:
    batches = plan.load(plan.cut(BatchLimits(batch_tokens)))
    return {sequence.request_id: sequence for batch in batches for sequence in batch}


@pytest.mark.parametrize("sealed", [True, False])
def test_sequences_hold_prompt_tokens_candidates_and_parameters(tmp_path: Path, sealed: bool) -> None:
    requests = [
        make_request("a", prompt=[1, 2, 3, 4], token_ids=[7, 8], top_p=0.9),
        make_request("b", prompt=[5], token_ids=[9, 10, 11], temperature=0.0),
    ]
    plan = make_plan(tmp_path / "t", requests, sealed=sealed)

    assert (plan.num_output_tokens, plan.num_input_tokens, plan.num_unscored_tokens) == (5, 8, 0)
    assert plan.run_ids == ["run"]
    a, b = loaded(plan)["a"], loaded(plan)["b"]
    assert (a.run_id, a.prompt_ids.tolist(), a.output_ids.tolist()) == ("run", [1, 2, 3, 4], [7, 8])
    assert a.candidate_ids.tolist() == [[7, 8], [8, 9]]
    assert (a.request["top_p"], a.request["temperature"], a.request["arrival_ns"]) == (0.9, 0.8, START_NS)
    assert a.num_input_tokens == 5
    assert (b.prompt_ids.tolist(), b.output_ids.tolist()) == ([5], [9, 10, 11])
    assert b.candidate_ids.tolist() == [[9, 10], [10, 11], [11, 12]]


def test_rows_of_several_processes_and_parts_are_merged(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "t", requests=[make_request("a", token_ids=[7, 8, 9], ended=False)])
    with TraceWriter(path, run_id="run", writer="front") as front:
        front.append("requests", {"request_id": "a", "external_id": "mine", "temperature": None})
        front.append("outcomes", {"request_id": "a", "finish_reason": "stop"})
        front.append("outcomes", {"request_id": "a", "num_output_tokens": 2})
    plan = Plan(Trace(path), Selection())
    request = loaded(plan)["a"].request
    assert (request["external_id"], request["temperature"], request["prompt_token_ids"]) == ("mine", 0.8, [1, 2, 3])
    assert plan.sequences[0].outcome == {"finish_reason": "stop", "stop_reason": None, "num_output_tokens": 2}
    assert plan.num_output_tokens == 2


def test_discarded_tokens_and_prompt_positions_are_not_scored(tmp_path: Path) -> None:
    prompt_row = {"output_index": [None, 0, 1, 2], "position": [2, 3, 4, 5], "is_prompt": [True, False, False, False]}
    request = make_request("a", token_ids=[3, 7, 8, 9], tokens=prompt_row, outcome={"num_output_tokens": 2})
    plan = make_plan(tmp_path / "t", [request])
    assert loaded(plan)["a"].output_ids.tolist() == [7, 8]
    assert loaded(plan)["a"].candidate_ids.tolist() == [[7, 8], [8, 9]]


def test_rows_may_stand_in_any_order(tmp_path: Path) -> None:
    tokens = {"output_index": [2, 0, 1], "position": [5, 3, 4]}
    plan = make_plan(tmp_path / "t", [make_request("a", token_ids=[9, 7, 8], tokens=tokens)])
    assert loaded(plan)["a"].output_ids.tolist() == [7, 8, 9]
    assert loaded(plan)["a"].candidate_ids.tolist() == [[7, 8], [8, 9], [9, 10]]


def test_scoring_stops_where_a_row_is_missing_and_says_how_many_follow(tmp_path: Path) -> None:
    gap = {"output_index": [0, 1, 3, 4], "position": [3, 4, 6, 7]}
    headless = {"output_index": [1, 2], "position": [4, 5]}
    requests = [
        make_request("gap", token_ids=[7, 8, 9, 10], tokens=gap, outcome={"num_output_tokens": 6}),
        make_request("headless", token_ids=[7, 8], tokens=headless, ended=False),
    ]
    plan = make_plan(tmp_path / "t", requests)
    assert ids_of(plan) == ["gap"]
    assert loaded(plan)["gap"].output_ids.tolist() == [7, 8]
    assert plan.num_unscored_tokens == 4 + 2


def test_several_rows_for_one_place_count_once_and_must_agree(tmp_path: Path) -> None:
    twice = {"output_index": [0, 0, 1], "position": [3, 3, 4]}
    plan = make_plan(tmp_path / "t", [make_request("a", token_ids=[7, 7, 8], tokens=twice)])
    assert loaded(plan)["a"].output_ids.tolist() == [7, 8]
    with pytest.raises(TraceFormatError, match="request 'a' has two tokens at output_index 0: 7 and 5"):
        make_plan(tmp_path / "u", [make_request("a", token_ids=[7, 5, 8], tokens=twice)])


def test_order_is_of_arrival_then_of_numbers_in_ids(tmp_path: Path) -> None:
    requests = [
        make_request("10", arrival_ns=None),
        make_request("9", arrival_ns=None),
        make_request("late", arrival_ns=START_NS + 2),
        make_request("early", arrival_ns=START_NS + 1),
    ]
    plan = make_plan(tmp_path / "t", requests)
    assert ids_of(plan) == ["early", "late", "9", "10"]
    assert ids_of(Plan(Trace(tmp_path / "t"), Selection(limit=2))) == ["early", "late"]


def test_journals_and_parts_give_one_and_the_same_plan(tmp_path: Path) -> None:
    requests = [make_request(f"r{i}", prompt=range(1, i % 5 + 2), token_ids=range(i % 7 + 1)) for i in range(40)]
    plans = [
        make_plan(tmp_path / f"t{sealed}", requests[:: 1 if sealed else -1], sealed=sealed) for sealed in (True, False)
    ]
    cuts = [plan.cut(BatchLimits(num_tokens=20)) for plan in plans]
    batches = [
        [[sequence.request_id for sequence in batch] for batch in plan.load(cut)]
        for plan, cut in zip(plans, cuts, strict=True)
    ]
    assert batches[0] == batches[1] == [[planned.key[1] for planned in batch] for batch in cuts[0]]
    assert plans[0].digest() == plans[1].digest()


def test_equal_ids_of_two_runs_stay_apart(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "t", run_id="one", requests=[make_request("0", prompt=[1], token_ids=[7])])
    second = make_request("0", prompt=[2, 3], token_ids=[8, 9])
    with TraceWriter(path, run_id="two", writer="w1") as writer:
        writer.append("requests", second.request)
        writer.append("tokens", second.tokens)
    plan = Plan(Trace(path), Selection())
    found = {sequence.run_id: sequence for batch in plan.load(plan.cut(BatchLimits())) for sequence in batch}
    assert plan.run_ids == ["one", "two"]
    assert (found["one"].prompt_ids.tolist(), found["one"].output_ids.tolist()) == ([1], [7])
    assert (found["two"].prompt_ids.tolist(), found["two"].output_ids.tolist()) == ([2, 3], [8, 9])


@pytest.mark.parametrize("window_tokens", [1, 7, 1000])
def test_windows_change_neither_what_is_scored_nor_its_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window_tokens: int
) -> None:
    monkeypatch.setattr(plan_module, "_WINDOW_TOKENS", window_tokens)
    requests = [make_request(f"r{i}", prompt=range(1, i % 3 + 2), token_ids=range(i, i + i % 4 + 1)) for i in range(15)]
    found = loaded(make_plan(tmp_path / "t", requests), batch_tokens=12)
    assert len(found) == 15
    for i in range(15):
        assert found[f"r{i}"].output_ids.tolist() == list(range(i, i + i % 4 + 1))
        assert found[f"r{i}"].candidate_ids.tolist() == [[t, t + 1] for t in range(i, i + i % 4 + 1)]


def test_batches_hold_every_sequence_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    batches = list(cut_batches(lengths, BatchLimits(num_tokens=128)))
    assert sorted(itertools.chain(*batches)) == list(range(200))
    sizes = [sum(lengths[i] for i in batch) for batch in batches]
    assert max(sizes) <= 128
    assert sum(sizes) > 0.8 * 128 * len(batches)
    firsts = [lengths[batch[0]] for batch in batches]
    assert firsts == sorted(firsts, reverse=True)


def test_batches_hold_no_more_sequences_than_they_may() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    assert [len(batch) for batch in cut_batches(lengths, BatchLimits(num_sequences=64))] == [64, 64, 64, 8]
    both = list(cut_batches(lengths, BatchLimits(num_tokens=128, num_sequences=5)))
    assert max(len(batch) for batch in both) == 5
    assert max(sum(lengths[i] for i in batch) for batch in both) <= 128


def test_a_sequence_beyond_the_budget_goes_alone() -> None:
    assert list(cut_batches([3, 100, 4], BatchLimits(num_tokens=10))) == [[1], [2, 0]]


def test_selection(tmp_path: Path) -> None:
    requests = [make_request(f"r{i}", arrival_ns=START_NS + i) for i in range(50)]
    plan = make_plan(tmp_path / "t", requests, sample=20)
    chosen = ids_of(plan)
    assert len(set(chosen)) == 20
    assert chosen == sorted(chosen, key=lambda name: int(name[1:]))
    # The same ones when others are there or not, and spread over all of them.
    fewer = ids_of(make_plan(tmp_path / "u", requests[10:], sample=20))
    assert len(set(fewer) & set(chosen)) >= len([name for name in chosen if int(name[1:]) >= 10])
    assert {int(name[1:]) // 10 for name in chosen} == set(range(5))
    only = frozenset(("run", f"r{i}") for i in (3, 40, 7, 99))
    assert ids_of(Plan(Trace(tmp_path / "t"), Selection(only=only))) == ["r3", "r7", "r40"]
    assert ids_of(Plan(Trace(tmp_path / "t"), Selection(only=only, sample=2, limit=1)))[0] in ("r3", "r7", "r40")
    with pytest.raises(InputError, match=r"none of the 50 requests of .* was selected"):
        Plan(Trace(tmp_path / "t"), Selection(only=frozenset()))
    for name in ("sample", "limit"):
        with pytest.raises(ConfigError, match=f"{name} must be at least 1, not 0"):
            Selection(**{name: 0})


def test_lists_of_different_lengths_are_padded(tmp_path: Path) -> None:
    tokens = {"top_token_ids": [[1, 2, 3], None, [4]], "top_logits": [[3.0, 2.0, 1.0], None, [1.0]]}
    plan = make_plan(tmp_path / "t", [make_request("a", tokens=tokens)])
    assert loaded(plan)["a"].candidate_ids.tolist() == [[1, 2, 3], [-1, -1, -1], [4, -1, -1]]
    none = {"top_token_ids": None, "top_logits": None}
    assert loaded(make_plan(tmp_path / "u", [make_request("a", tokens=none)]))["a"].candidate_ids is None


def test_what_cannot_be_scored_is_an_error_that_names_the_request(tmp_path: Path) -> None:
    unknown = make_request("odd", prompt=None, tokens={"position": [3, 4, 5]})
    with pytest.raises(InputError, match="request 'odd' has no prompt_token_ids"):
        make_plan(tmp_path / "a", [unknown])
    with pytest.raises(InputError, match="request 'odd' has an empty prompt"):
        make_plan(tmp_path / "b", [make_request("odd", prompt=[])])
    with pytest.raises(InputError, match="holds no output tokens to score"):
        make_plan(tmp_path / "c", [make_request("odd", token_ids=[])])
    with pytest.raises(TraceFormatError, match=r"'odd'.*position 5, but its prompt has 3 tokens"):
        make_plan(tmp_path / "d", [make_request("odd", tokens={"position": [5, 6, 7]})])
    plan = make_plan(tmp_path / "e", [make_request("good"), make_request("odd", prompt=None)], limit=1)
    assert ids_of(plan) == ["good"]


def test_check_model_names_the_request_that_does_not_fit(tmp_path: Path) -> None:
    requests = [make_request("a", prompt=[1, 2], token_ids=[3]), make_request("b", prompt=[1, 50], token_ids=[3, 60])]
    plan = make_plan(tmp_path / "t", requests)
    plan.check_model("m", 61, 3)
    plan.check_model("m", None, None)
    with pytest.raises(ModelError, match="request 'b' has token id 60, but m has a vocabulary of 60"):
        plan.check_model("m", 60, None)
    with pytest.raises(ModelError, match="request 'b' has 3 tokens to read, but m takes at most 2"):
        plan.check_model("m", None, 2)


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    path = make_trace(tmp_path / "t")
    (part,) = path.glob("tokens/w0-*.parquet")
    part.write_bytes(part.read_bytes()[:-10])
    with pytest.raises(TraceFormatError, match=part.name):
        Plan(Trace(path), Selection())


def test_sizes_of_the_batches_that_sampled_each_token(tmp_path: Path) -> None:
    requests = [make_request("a", token_ids=[7, 8, 9], tokens={"step_id": [2, 0, None]}), make_request("b")]
    path = make_trace(tmp_path / "t", requests=requests, steps=[{"num_requests": 5}, {"num_requests": 1}])
    with TraceWriter(path, run_id="other", writer="other") as writer:
        writer.append("steps", {"step_id": 2, "num_requests": 9})
    found = loaded(Plan(Trace(path), Selection(), needs=("batch_sizes",)))
    assert {name: of.batch_sizes.tolist() for name, of in found.items()} == {"a": [0, 5, 0], "b": [5, 1, 0]}
    make_trace(tmp_path / "without", requests=requests)
    found = loaded(Plan(Trace(tmp_path / "without"), Selection(), needs=("batch_sizes",)))
    assert found["b"].batch_sizes.tolist() == [0, 0, 0]
    assert loaded(Plan(Trace(path), Selection()))["b"].batch_sizes is None
