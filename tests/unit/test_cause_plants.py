"""What the benchmark of causes plants: valid traces, columns that agree with one another, and truths that add up."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import make_request, make_trace
from tracekit.store import Trace

sys.path.insert(0, str(Path(__file__).parents[2] / "tools" / "causes"))

from arithmetic import Sampling, logsumexp, processed_columns, raw_columns, to_bf16
from base import PERTURBED, Base, Truth
from page import page
from registry import all_plants
from run import run, tasks_of
from scoring import Named, Outcome, estimate
from trial import LEAST_SHARE, Expected, Trial, compatible, paired, planted, repeated

VOCABULARY, HIDDEN, CANDIDATES, TOKENS = 300, 16, 8, 6
# As many requests of each kind as the recording's smallest trial needs.
KINDS: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 0.0},
    {"temperature": 1.0, "top_k": 20},
    {"temperature": 1.0, "repetition_penalty": 1.2},
    {"temperature": 1.0, "logit_bias": json.dumps({"7": 4.0, "9": -3.0})},
)
NUM_REQUESTS = 12 * len(KINDS)
LN2 = math.log(2)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Recordings of random rows in place of an engine's; their tokens are drawn by the test."""
    folder = tmp_path_factory.mktemp("recordings")
    chance = np.random.default_rng(4)
    head = to_bf16(chance.normal(0, 0.5, (VOCABULARY, HIDDEN)))
    hidden = to_bf16(chance.normal(0, 2, (NUM_REQUESTS * TOKENS, HIDDEN)))
    exact = hidden @ head.T
    np.save(folder / "head.npy", head.astype(np.float32))
    # Two equal tokens at the top of some rows, for ties.
    exact[::5, 7] = exact[::5, 9] = np.max(exact[::5], axis=1) + 1
    tokens = np.argmax(exact + chance.gumbel(size=exact.shape), axis=1)
    greedy = np.repeat([KINDS[i % len(KINDS)]["temperature"] == 0 for i in range(NUM_REQUESTS)], TOKENS)
    tokens = np.where(greedy, np.argmax(to_bf16(exact), axis=1), tokens)
    sizes = {"reference": 0.0, "forced": 0.02, **dict.fromkeys(PERTURBED, 1.0), "quantised": 0.1, "rotated": 0.3}
    for name, size in sizes.items():
        rows = to_bf16(exact + size * chance.normal(size=exact.shape))
        _recording(folder / name, rows, hidden, tokens)
    for number in range(3):
        rows = to_bf16(exact + 0.02 * chance.normal(size=exact.shape))
        _recording(folder / f"repeat-{number}", rows, hidden, tokens)
    return Base(folder)


def _recording(path: Path, rows: np.ndarray, hidden: np.ndarray, tokens: np.ndarray) -> None:
    requests, steps = [], []
    keys = []
    for number in range(NUM_REQUESTS):
        kind, prompt = KINDS[number % len(KINDS)], [1 + number, 2, 3]
        start = number * TOKENS
        own = [int(token) for token in tokens[start : start + TOKENS]]
        columns = [
            {
                **raw_columns(rows[start + place], own[place], CANDIDATES),
                **processed_columns(rows[start + place], own[place], Sampling.of(kind), prompt, own[:place]),
            }
            for place in range(TOKENS)
        ]
        cells = {name: [row[name] for row in columns] for name in columns[0]}
        cells["step_id"] = [number // 6 * TOKENS + place for place in range(TOKENS)]
        request_id = f"r{number}"
        keys += [(request_id, place) for place in range(TOKENS)]
        requests.append(
            make_request(
                request_id,
                external_id=f"request-{number}",
                prompt=prompt,
                token_ids=own,
                tokens=cells,
                num_cached_tokens=number % 2,
                **{"top_p": 1.0, **kind},
            )
        )
    for step in range(NUM_REQUESTS // 6 * TOKENS):
        batch = [f"r{step // TOKENS * 6 + i}" for i in range(1 + step % 6)]
        num = 3 if step % TOKENS == 0 else 1
        steps.append(
            {
                "num_requests": len(batch),
                "request_ids": [batch],
                "scheduled_tokens": [[num] * len(batch)],
                "computed_tokens": [[0 if num == 3 else 2 + step % TOKENS] * len(batch)],
                "num_scheduled_tokens": num * len(batch),
                "num_prefill_tokens": num * len(batch) if num == 3 else 0,
                "num_decode_tokens": 0 if num == 3 else len(batch),
            }
        )
    make_trace(path, requests=requests, steps=[{"step_id": i, **step} for i, step in enumerate(steps)])
    bits = (rows.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    for table, values in (("logits", bits), ("hidden", hidden.astype(np.float32))):
        np.save(path.with_suffix(f".{table}.npy"), values)
        path.with_suffix(f".{table}.json").write_text(json.dumps(keys))


def _planted(base: Base, folder: Path, *names: str, seed: int = 0) -> Trial:
    plants = all_plants()
    return planted(base, [plants[name] for name in names], np.random.default_rng(seed), folder)


def _tokens(path: Path) -> dict[tuple[str, int], dict[str, Any]]:
    return {(row["request_id"], row["output_index"]): row for row in Trace(path).read("tokens").to_pylist()}


@pytest.mark.parametrize("name", sorted(all_plants()))
def test_a_planted_trace_agrees_with_itself(base: Base, name: str, tmp_path: Path) -> None:
    trial = _planted(base, tmp_path, name)
    for path in (trial.a, trial.b):
        rows = _tokens(path)
        assert rows
        for row in rows.values():
            if row["logit"] is None:
                continue
            assert row["logprob"] == pytest.approx(row["logit"] - row["logsumexp"], abs=3e-6)
            assert row["top_logits"] == sorted(row["top_logits"], reverse=True)
            assert row["argmax_token_id"] == row["top_token_ids"][0]
            assert row["top1_margin"] == pytest.approx(row["top_logits"][0] - row["top_logits"][1], abs=1e-5)
            assert row["logit_min"] <= row["top_logits"][-1]
            assert row["kept_mass"] <= 1 + 1e-6
            if row["rank"] <= CANDIDATES - row["num_tied"]:
                assert row["logit"] == row["top_logits"][row["rank"] - 1]


@pytest.mark.parametrize("name", [name for name, plant in all_plants().items() if not plant.is_fork])
def test_a_plant_changes_what_it_is_about(base: Base, name: str, tmp_path: Path) -> None:
    trial = _planted(base, tmp_path, name)
    # Noise of the made repeat is 0.02 nat: what is planted is most of the difference.
    assert sum(expected.share for expected in trial.expected if expected.share) > 0.5
    assert trial.num_tokens > 0


def test_forks_end_where_tokens_differ(base: Base, tmp_path: Path) -> None:
    for name in ("tie_break", "random_numbers"):
        trial = _planted(base, tmp_path / name, name)
        a, b = _tokens(trial.a), _tokens(trial.b)
        forks = [key for key in a if a[key]["token_id"] != b[key]["token_id"]]
        assert forks
        ends = {row["request_id"]: row["num_output_tokens"] for row in Trace(trial.b).read("outcomes").to_pylist()}
        assert all(ends[request] == index + 1 for request, index in forks)
        assert trial.expected[0].share is None


def test_shares_are_those_of_the_written_values(base: Base, tmp_path: Path) -> None:
    trial = _planted(base, tmp_path, "soft_cap", seed=3)
    cap = trial.expected[0].parameters["cap"]
    a, b = _tokens(trial.a), _tokens(trial.b)
    logits = {(f"r{name.removeprefix('request-')}", index): (name, index) for name, index in _keys(base)}
    total = carried = 0.0
    temperatures = {row["request_id"]: row["temperature"] for row in Trace(trial.a).read("requests").to_pylist()}
    for key in a:
        if a[key]["kept_count"] != VOCABULARY or b[key]["kept_count"] != VOCABULARY:
            continue
        row = base["forced"].logits(logits[key])
        expected = cap * np.tanh(row / cap)
        assert b[key]["logit"] == pytest.approx(expected[b[key]["token_id"]], abs=1e-5)
        assert b[key]["logsumexp"] == pytest.approx(np.log(np.sum(np.exp(expected))), abs=1e-5)
        if temperatures[key[0]] == 0:
            d = b[key]["logprob"] - a[key]["logprob"]
            own = row[b[key]["token_id"]] - np.log(np.sum(np.exp(row)))
            carried += (b[key]["logprob"] - own) * d
            total += d * d
    # Greedy requests are a part of the trial: theirs is near the whole trial's, as both are nearly one.
    assert carried / total == pytest.approx(trial.expected[0].share, abs=0.1)


def _keys(base: Base) -> list[tuple[str, int]]:
    return [(name, index) for name in base["reference"].requests for index in range(TOKENS)]


def test_raw_against_processed_is_temperature_and_truncation(base: Base, tmp_path: Path) -> None:
    trial = _planted(base, tmp_path, "raw_processed")
    assert [expected.cause for expected in trial.expected] == ["truncation", "temperature"]
    a, b = _tokens(trial.a), _tokens(trial.b)
    assert all(row["reported_logprob"] == row["logprob"] for row in a.values())
    assert all(row["logprob"] is None and row["top_logits"] is None for row in b.values())
    assert Trace(trial.b).manifest.role == "trainer"
    assert Trace(trial.b).manifest.parent == Trace(trial.a).manifest.trace_id


def test_repeats_have_nothing_planted(base: Base, tmp_path: Path) -> None:
    trial = repeated(base, np.random.default_rng(0), tmp_path)
    assert trial.expected == ()
    assert 0 < trial.size < 0.1


def test_two_plants_have_both_contributions(base: Base, tmp_path: Path) -> None:
    plants = all_plants()
    assert compatible(base, [plants["attention_split"], plants["soft_cap"]])
    assert not compatible(base, [plants["soft_cap"], plants["head_operands"]])
    assert not compatible(base, [plants["stale_kv"], plants["weight_update"]])
    trial = _planted(base, tmp_path, "attention_split", "soft_cap")
    assert [expected.plant for expected in trial.expected] == ["soft_cap", "attention_split"]
    # What is left is the repeat's noise.
    assert sum(expected.share or 0 for expected in trial.expected) == pytest.approx(1, abs=0.05)


def test_each_of_two_plants_can_be_told(base: Base, tmp_path: Path) -> None:
    plants = all_plants()
    two = [plants["attention_split"], plants["penalties"]]
    trial = paired(base, two, np.random.default_rng(1), tmp_path / "told")
    assert all(expected.share is not None and expected.share >= LEAST_SHARE for expected in trial.expected)
    with pytest.raises(ValueError, match="no strengths at which soft_cap and lora"):
        paired(base, [_Weak(), plants["lora"]], np.random.default_rng(1), tmp_path / "drowned")


class _Weak(type(all_plants()["soft_cap"])):  # type: ignore[misc]
    """A cap that does next to nothing."""

    def plant(self, pair: Any, _: np.random.Generator) -> Any:
        pair.b.add(lambda _, row: row * 1.000001)
        yield Truth("soft_cap")


def test_trials_are_run_and_kept(base: Base, tmp_path: Path) -> None:
    tasks = list(tasks_of(1, 1, 1, ["transport_dtype", "trainer_temperature"], 0))
    assert [kind for kind, _, _ in tasks] == ["single", "single", "null", "pair"]
    results = tmp_path / "results.jsonl"
    first = run(base.folder, tasks[:3], results, jobs=1)
    assert [[e.plant for e in outcome.expected] for outcome in first] == [
        ["transport_dtype"],
        ["trainer_temperature"],
        [],
    ]
    # One side's values lie on the grid of bf16, the other's do not.
    assert first[0].all_found
    kept = results.read_text()
    assert run(base.folder, tasks[:3], results, jobs=1) == first
    assert results.read_text() == kept


def test_arithmetic_on_a_row_worked_out_by_hand() -> None:
    # Weights 1, 1/2, 1/4, 1/4, which add up to 2.
    row = np.array([0.0, -LN2, -2 * LN2, -2 * LN2])
    assert logsumexp(row) == pytest.approx(LN2, abs=1e-12)
    found = raw_columns(row, 2, 2)
    assert found["rank"] == 3
    assert found["num_tied"] == 1
    assert found["logprob"] == pytest.approx(-3 * LN2)
    assert found["entropy"] == pytest.approx(1.75 * LN2)
    assert found["top_token_ids"] == [0, 1]
    assert found["top1_margin"] == pytest.approx(LN2)
    # Top-p 0.7 keeps 1/2 and 1/4, of which the second is a third.
    nucleus = processed_columns(row, 1, Sampling(top_p=0.7), [], [])
    assert nucleus == {
        "processed_logprob": pytest.approx(-math.log(3)),
        "kept_count": 2,
        "kept_mass": pytest.approx(0.75),
    }
    # At temperature 1/2 the weights are squared: 1/4, 1/16, 1/64, 1/64 of 22/64.
    cold = processed_columns(row, 1, Sampling(temperature=0.5), [], [])
    assert cold["processed_logprob"] == pytest.approx(math.log(4 / 22))
    # Top-k keeps both that tie for the last place; min-p of a quarter keeps what has a quarter of the largest.
    assert processed_columns(row, 2, Sampling(top_k=3), [], [])["kept_count"] == 4
    assert processed_columns(row, 0, Sampling(min_p=0.3), [], [])["kept_count"] == 2
    # A token that was generated twice loses two steps of frequency and one of presence.
    penalised = processed_columns(row, 0, Sampling(presence_penalty=LN2, frequency_penalty=LN2), [], [0, 0])
    assert penalised["processed_logprob"] == pytest.approx(math.log((1 / 16) / (1 / 16 + 1 / 2)))
    # Repetition: positive logits are divided, negative ones multiplied.
    repeated_ = processed_columns(row, 1, Sampling(repetition_penalty=2.0), [1], [])
    assert repeated_["processed_logprob"] == pytest.approx(math.log(0.25 / 1.75))
    assert processed_columns(row, 3, Sampling(logit_bias={3: 2 * LN2}), [], [])["processed_logprob"] == pytest.approx(
        math.log(1 / (1 + 0.5 + 0.25 + 1))
    )


def test_bf16_is_rounded_to_the_nearest_and_to_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-12, -100.3])
    assert list(to_bf16(values)) == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -100.5]


def test_outcomes_are_counted() -> None:
    temperature = Expected("raw", "temperature", ("temperature", "logprob_semantics"), 0.9, {"temperature": 0.7})
    cap = Expected("soft_cap", "soft_cap", ("soft_cap",), 0.4, {"cap": 30.0})
    other = Named("logprob_semantics", "found", 0.85, {"temperatures": [0.77]}, 0.001)
    wrong = Named("logit_scale", "found", 0.5, {}, 0.001)
    right = Outcome("single", [1], (temperature,), (other,), {}, (), 0.3, 100)
    missed = Outcome("pair", [2], (temperature, cap), (wrong, other), {}, (), 0.3, 100)
    forked = Expected("tie_break", "tie_break", ("tie_break",), None)
    tokens = Outcome("single", [3], (forked,), (), {"tie_break": 4, "logits": 1}, (), 0.0, 100)
    alarm = Outcome("null", [4], (), (wrong,), {}, (), 0.05, 100)
    assert (right.first_is_right, right.all_found) == (True, True)
    assert right.share_errors() == [pytest.approx(-0.05)]
    assert right.parameter_errors() == [("temperature.temperature", pytest.approx(0.1))]
    assert (missed.first_is_right, missed.all_found) == (False, False)
    assert (tokens.first, tokens.first_is_right, tokens.all_found) == ("tie_break", True, True)
    assert estimate({"position": True}, "position") is None
    text = page([right, missed, tokens, alarm])
    assert "first cause right: 2 of 2 (100.0%, at least 95%)  [met]" in text
    assert "pairs, both found: 0 of 1 (0.0%, at least 85%)  [MISSED]" in text
    assert "A/A pairs with a finding: 1 of 1 (100.0%, at most 2%)  [MISSED]" in text
    assert Outcome.from_json(missed.as_json()) == missed
