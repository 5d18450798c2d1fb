"""A trainer's trace: complete, aligned with its rollout, safe on kills, and clear about what does not fit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from factories import MadeRequest, make_request, make_trace
from tracekit import TrainerTrace, connect
from tracekit.errors import ConfigError, InputError, OutputExistsError, TracekitError
from tracekit.store import Manifest, Trace, TraceWriter, compact, recover

LENGTHS = {"one": 3, "two": 1, "three": 5}


def made(rng: np.random.Generator, **more: Any) -> list[MadeRequest]:
    requests = []
    for place, (name, num) in enumerate(LENGTHS.items()):
        columns = {"weight_version": [place] * num, "weight_label": f"step {place}"}
        requests.append(
            make_request(
                name,
                prompt=[place, 7],
                token_ids=rng.integers(0, 90, num).tolist(),
                logprob=(-rng.exponential(1, num)).astype(np.float32),
                external_id=f"mine {name}",
                tokens=columns,
                **more,
            )
        )
    return requests


@pytest.fixture
def rollout(tmp_path: Path) -> Path:
    return make_trace(tmp_path / "rollout", requests=made(np.random.default_rng(0)))


def values(rng: np.random.Generator) -> list[np.ndarray]:
    return [(-rng.exponential(1, num)).astype(np.float32) for num in LENGTHS.values()]


def tokens(path: Path) -> list[dict[str, Any]]:
    rows = Trace(path).read("tokens").to_pylist()
    return sorted(rows, key=lambda row: (row["policy"], row["trainer_step"] or 0, row["request_id"], row["position"]))


def test_it_is_complete(tmp_path: Path, rollout: Path) -> None:
    logprobs = values(np.random.default_rng(1))
    with TrainerTrace(tmp_path / "t", source=rollout, run={"dtype": "bfloat16", "model": "m"}, rank=3) as trace:
        trace.log(
            list(LENGTHS),
            [torch.tensor(one) for one in logprobs],
            trainer_step=4,
            weight_version=5,
            weight_label="v5",
            loss_mask=[[True] * num for num in LENGTHS.values()],
            advantage=[1.0, -1.0, 0.25],
            entropy=logprobs,
        )
        trace.flush()
        assert (trace.num_tokens, trace.num_skipped) == (9, 0)
    manifest = Manifest.read(tmp_path / "t")
    assert (manifest.role, manifest.parent) == ("trainer", Manifest.read(rollout).trace_id)
    recorded = {(row["request_id"], row["output_index"]): row for row in Trace(rollout).read("tokens").to_pylist()}
    given = dict(zip(LENGTHS, logprobs, strict=True))
    advantages = dict(zip(LENGTHS, [1.0, -1.0, 0.25], strict=True))
    rows = tokens(tmp_path / "t")
    assert len(rows) == len(recorded)
    for row in rows:
        source = recorded[row["request_id"], row["output_index"]]
        assert (row["token_id"], row["position"]) == (source["token_id"], source["position"])
        assert row["processed_logprob"] == given[row["request_id"]][row["output_index"]]
        assert row["processed_entropy"] == row["processed_logprob"]
        assert row["advantage"] == advantages[row["request_id"]]
        assert (row["policy"], row["trainer_step"], row["weight_version"], row["weight_label"]) == (
            "current",
            4,
            5,
            "v5",
        )
        assert (row["forced"], row["is_prompt"], row["loss_mask"]) == (True, False, True)
        assert [row[name] for name in ("logprob", "entropy", "processed_source", "kept_mass")] == [None] * 4
    with connect(tmp_path / "t") as session, connect(rollout) as source:
        query = "SELECT * EXCLUDE (run_id) FROM {} ORDER BY request_id"
        for view in ("requests", "outcomes"):
            assert session.sql(query.format(view)).rows() == source.sql(query.format(view)).rows()
    (run,) = Trace(tmp_path / "t").read("runs").to_pylist()
    assert (run["role"], run["dtype"], run["model"]) == ("trainer", "bfloat16", "m")
    options = json.loads(run["options"])
    assert (options["source_run_id"], options["rank"], options["trainer_step"]) == ("run", 3, 4)


def test_figures_of_diff_are_those_of_numpy(tmp_path: Path, rollout: Path) -> None:
    logprobs = values(np.random.default_rng(2))
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        trace.log([f"mine {name}" for name in LENGTHS], logprobs)
    sampled = {
        name: np.array([row["processed_logprob"] for row in tokens_of(rollout, name)], np.float64) for name in LENGTHS
    }
    d = np.concatenate([logprobs[i].astype(np.float64) - sampled[name] for i, name in enumerate(LENGTHS)])
    with connect(rollout, tmp_path / "t") as session:
        found = dict(session.sql("SELECT name, value FROM metrics WHERE basis = 'processed'").rows())
        assert session.sql("SELECT count(*) FROM metrics WHERE basis = 'raw' AND num_tokens > 0").rows() == [(0,)]
    assert found["kl"] == pytest.approx(np.mean(-d), rel=1e-12)
    assert found["k3_kl"] == pytest.approx(np.mean(np.exp(d) - 1 - d), rel=1e-12)
    assert found["logprob_abs_diff_max"] == pytest.approx(np.abs(d).max(), rel=1e-12)


def tokens_of(path: Path, name: str) -> list[dict[str, Any]]:
    rows = [row for row in Trace(path).read("tokens").to_pylist() if row["request_id"] == name]
    return sorted(rows, key=lambda row: row["output_index"])


def test_raw_logprobs_are_in_the_other_column(tmp_path: Path, rollout: Path) -> None:
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        trace.log(["two"], [[-1.5]], distribution="raw", entropy=[[0.5]])
    (row,) = tokens(tmp_path / "t")
    assert (row["logprob"], row["processed_logprob"]) == (-1.5, None)
    assert (row["entropy"], row["processed_entropy"]) == (0.5, None)


def test_of_several_passes_the_nearest_to_the_rollout_is_compared(tmp_path: Path, rollout: Path) -> None:
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        for policy, step, value in (
            ("current", 2, -2.0),
            ("current", 1, -1.0),
            ("old", 1, -3.0),
            ("reference", 0, -9.0),
        ):
            trace.log(["two"], [[value]], policy=policy, trainer_step=step)
        trace.log(["one"], [[-4.0] * 3], policy="current", trainer_step=2)
    chosen: dict[str, dict[str, Any]] = {
        "default": {},
        "current": {"policy": "current"},
        "second": {"policy": "current", "trainer_step": 2},
        "reference": {"policy": "reference"},
    }
    expected = {
        "default": {("two", -3.0), ("one", -4.0)},
        "current": {("two", -1.0), ("one", -4.0)},
        "second": {("two", -2.0), ("one", -4.0)},
        "reference": {("two", -9.0)},
    }
    for name, choice in chosen.items():
        with connect(rollout, tmp_path / "t", **choice) as session:
            found = session.sql("SELECT DISTINCT request_id, b_processed_logprob FROM pairs").rows()
        assert set(found) == expected[name]


def test_a_restarted_trainer_replaces_what_it_did_before(tmp_path: Path, rollout: Path) -> None:
    for value in (-1.0, -2.0):
        with TrainerTrace(tmp_path / "t", rollout) as trace:
            trace.log(["two"], [[value]], trainer_step=1)
    with connect(rollout, tmp_path / "t") as session:
        assert session.sql("SELECT b_processed_logprob FROM pairs").rows() == [(-2.0,)]


def test_ranks_write_one_trace(tmp_path: Path, rollout: Path) -> None:
    logprobs = values(np.random.default_rng(3))
    traces = [TrainerTrace(tmp_path / "t", rollout, rank=rank) for rank in range(3)]
    for trace, name, one in zip(traces, LENGTHS, logprobs, strict=True):
        trace.log([name], one, trainer_step=1)
    for trace in traces:
        trace.close()
    with connect(rollout, tmp_path / "t") as session:
        found = session.sql("SELECT request_id, count(*) FROM pairs GROUP BY 1").rows()
        assert dict(found) == LENGTHS
        assert len(session.sql("SELECT DISTINCT writer FROM b.runs").rows()) == 3


def test_turns_of_a_conversation_come_in_one_row(tmp_path: Path, rollout: Path) -> None:
    row = np.arange(1, 9, dtype=np.float32)
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        # A tool's answer, masked, stands between the turns.
        mask = np.array([[1, 1, 1, 0, 0, 1, 1, 1, 1, 1]])
        trace.log([["one", "three"]], -np.insert(row, 3, [0, 0])[None], mask=mask)
    found = [(one["request_id"], one["processed_logprob"]) for one in tokens(tmp_path / "t")]
    assert found == [("one", -v) for v in (1.0, 2.0, 3.0)] + [("three", -v) for v in (4.0, 5.0, 6.0, 7.0, 8.0)]


def test_tokens_that_trainers_leave_out_or_in(tmp_path: Path) -> None:
    stopped = make_request("r", token_ids=[1, 2, 3, 4], outcome={"num_output_tokens": 3})
    rollout = make_trace(tmp_path / "rollout", requests=[stopped])
    for covers, num in (("delivered", 3), ("sampled", 4), ("without_last", 2)):
        with TrainerTrace(tmp_path / covers, rollout) as trace:
            trace.log(["r"], [[-1.0] * num], covers=covers)
        assert [row["output_index"] for row in tokens(tmp_path / covers)] == list(range(num))
        with connect(rollout, tmp_path / covers) as session:
            assert session.sql("SELECT count(*) FROM pairs").rows() == [(min(num, 3),)]


@pytest.mark.parametrize(
    ("found", "hint"),
    [
        (2, "off by one: is the end-of-sequence token left out (covers='without_last')?"),
        (4, "off by one: are logprobs shifted, or does the mask take in the last prompt token?"),
        (7, "expected (delivered tokens of the source)"),
    ],
)
def test_a_wrong_number_of_tokens_is_said_by_the_call(tmp_path: Path, rollout: Path, found: int, hint: str) -> None:
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        with pytest.raises(InputError) as caught:
            trace.log(["two", "one"], [[-1.0], [-1.0] * found])
        assert str(caught.value).startswith(f"request 'one': {found} logprobs found, 3 expected")
        assert hint in str(caught.value)


def test_a_request_is_logged_once_in_a_pass(tmp_path: Path, rollout: Path) -> None:
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        trace.log(["two"], [[-1.0]], trainer_step=1)
        with pytest.raises(InputError) as caught:
            trace.log(["two"], [[-1.0]], trainer_step=1)
    expected = "request 'two' was logged already (policy current, trainer_step 1); give another trainer_step"
    assert str(caught.value).startswith(expected)


def test_requests_that_the_source_lacks(tmp_path: Path, rollout: Path) -> None:
    trace = TrainerTrace(tmp_path / "t", rollout)
    trace.log(["unknown", "two"], [[-1.0], [-2.0]])
    with pytest.raises(InputError) as caught:
        trace.close()
    assert str(caught.value).startswith("request 'unknown' is not in the source (1 such row(s) of a call)")
    assert [row["request_id"] for row in tokens(tmp_path / "t")] == ["two"]
    with TrainerTrace(tmp_path / "skipped", rollout, unknown="skip") as skipping:
        skipping.log(["unknown", "two"], [[-1.0], [-2.0]])
    assert (skipping.num_tokens, skipping.num_skipped) == (1, 1)


def test_names_that_are_not_unique(tmp_path: Path) -> None:
    samples = [
        make_request(f"r{i}", token_ids=[i], logprob=-1.0, external_id="x", sample_index=i, parent_request_id="r")
        for i in range(2)
    ]
    rollout = make_trace(tmp_path / "rollout", requests=samples)
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        with pytest.raises(InputError) as caught:
            trace.log(["x"], [[-1.0]])
        assert str(caught.value) == (
            "'x' names 2 samples of the source; give (external id, sample index), or request ids"
        )
        trace.log([("x", 1), "r0"], [[-1.0], [-2.0]])
    assert [(row["request_id"], row["token_id"], row["processed_logprob"]) for row in tokens(tmp_path / "t")] == [
        ("r0", 0, -2.0),
        ("r1", 1, -1.0),
    ]


def test_request_ids_of_several_runs_need_one_of_them(tmp_path: Path) -> None:
    rollout = make_trace(tmp_path / "rollout", requests=[make_request("0", token_ids=[1])], run_id="first")
    with TraceWriter(rollout, run_id="second") as writer:
        again = make_request("0", token_ids=[2])
        writer.append("requests", again.request)
        writer.append("outcomes", again.outcome or {})
        writer.append("tokens", again.tokens)
    with TrainerTrace(tmp_path / "t", rollout) as trace, pytest.raises(InputError) as caught:
        trace.log(["0"], [[-1.0]])
    assert str(caught.value) == "request '0' stands in 2 runs of the source (first, second); give source_run"
    with TrainerTrace(tmp_path / "u", rollout, source_run="second") as trace:
        trace.log(["0"], [[-1.0]])
    assert [row["token_id"] for row in tokens(tmp_path / "u")] == [2]


def test_a_rollout_that_is_recorded_meanwhile(tmp_path: Path) -> None:
    rollout = make_trace(tmp_path / "rollout", requests=[])
    late = make_request("late", token_ids=[4, 5], external_id="mine")
    with TraceWriter(rollout, run_id="run", writer="later") as writer, TrainerTrace(tmp_path / "t", rollout) as trace:
        trace.log(["mine"], [[-1.0, -2.0]])
        writer.append("requests", late.request)
        writer.append("tokens", {**late.tokens, "output_index": [0, 1]})
        writer.flush()
        trace.flush()
        # It may go on: without an end, two tokens might be some of many.
        writer.append("outcomes", late.outcome or {})
        writer.flush()
    assert [row["token_id"] for row in tokens(tmp_path / "t")] == [4, 5]


_LOGS = """
import sys, time
from tracekit import TrainerTrace
trace = TrainerTrace(sys.argv[1], sys.argv[2])
trace.log(["one", "two"], [[-1.0, -2.0, -3.0], [-4.0]], trainer_step=1)
trace.flush()
print("flushed", flush=True)
time.sleep(60)
"""


def test_a_killed_trainer_keeps_what_was_flushed(tmp_path: Path, rollout: Path) -> None:
    command = [sys.executable, "-c", _LOGS, str(tmp_path / "t"), str(rollout)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "flushed\n"
        os.kill(process.pid, signal.SIGKILL)
    with connect(rollout, tmp_path / "t") as session:
        assert session.sql("SELECT count(*) FROM pairs").rows() == [(4,)]
    assert recover(tmp_path / "t")["tokens"] == 4


def test_settings_that_cannot_be(tmp_path: Path, rollout: Path) -> None:
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        for wrong, message in (
            ({"policy": "currant"}, "there is no policy 'currant' (did you mean 'current'?)"),
            ({"distribution": "scaled"}, "there is no distribution 'scaled'"),
            ({"covers": "all"}, "covers='all' is not known"),
        ):
            with pytest.raises(ConfigError) as caught:
                trace.log(["two"], [[-1.0]], **wrong)  # type: ignore[arg-type]
            assert str(caught.value).startswith(message)
    with pytest.raises(OutputExistsError) as taken:
        TrainerTrace(rollout, rollout)
    assert "is a record trace of another source" in str(taken.value)
    with pytest.raises(TracekitError):
        TrainerTrace(tmp_path / "u", tmp_path / "missing")


def test_an_error_of_the_loop_is_not_hidden(tmp_path: Path, rollout: Path) -> None:
    def loop() -> None:
        with TrainerTrace(tmp_path / "t", rollout) as trace:
            trace.log(["two"], [[-1.0]])
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        loop()
    assert len(tokens(tmp_path / "t")) == 1


def test_a_rollout_that_is_compacted_meanwhile(tmp_path: Path, rollout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # No part stays in memory, so all are read again.
    monkeypatch.setattr("tracekit.trainers.source._CACHE_BYTES", 0)
    with TraceWriter(rollout, run_id="run") as writer:
        more = make_request("more", token_ids=[8])
        writer.append("requests", more.request)
        writer.append("tokens", more.tokens)
        writer.append("outcomes", more.outcome or {})
    with TrainerTrace(tmp_path / "t", rollout) as trace:
        compact(rollout)
        trace.log([*LENGTHS, "more"], [*values(np.random.default_rng(4)), [-1.0]])
    with connect(rollout, tmp_path / "t") as session:
        found = session.sql("SELECT request_id, count(*) FROM pairs GROUP BY 1").rows()
    assert dict(found) == LENGTHS | {"more": 1}
