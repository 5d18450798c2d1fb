"""Recorded tokens forced through real vLLM engines: the one that recorded, and others."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import V0, V1, V1_OLD, V2, Engine, run_engine
from replayed import odd_values
from tracekit import Trace, connect
from tracekit.errors import BackendUnavailableError
from tracekit.replay import driver, replay

pytestmark = pytest.mark.engine

NUM_REQUESTS = 20
QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}


def command(trace: Path, out: Path, *args: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tracekit.cli.main", "replay", trace, "-o", out, "--backend", "vllm", *args]
    return subprocess.run(list(map(str, line)), env=QUIET | dict(os.environ), capture_output=True, text=True)


def on(engine: Engine) -> list[str]:
    """The options that name an engine."""
    variables = engine.variables() | ({"VLLM_USE_V1": "0"} if engine is V0 else {})
    options = [] if engine.variable is None else ["--python", engine.python]
    # Under Triton's interpreter nothing can be compiled.
    options += ["--engine-arg", "enforce_eager=true"]
    return [*options, *(part for name, value in variables.items() for part in ("--env", f"{name}={value}"))]


def rows_of(trace: Path, table: str = "tokens") -> dict[tuple[str, int], dict[str, Any]]:
    rows = Trace(trace).read(table).to_pylist()
    return {(row["request_id"], row["output_index"]): row for row in rows}


@pytest.fixture(scope="module")
def recording(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recorded") / "run"
    run_engine(
        "to_replay", shallow_model, str(NUM_REQUESTS), "12", record_to=path, env={"TRACEKIT_RECORD_HIDDEN": "true"}
    )
    assert Trace(path).num_rows("tokens") > NUM_REQUESTS * 10
    return path


@pytest.fixture(scope="module")
def same(recording: Path, shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A replay on the engine that recorded, in its batches, and what it said."""
    out = tmp_path_factory.mktemp("same") / "out"
    done = command(recording, out, "--model", shallow_model, "--schedule", "recorded", "--hidden", "--logits")
    assert done.returncode == 0, done.stderr
    return out, done.stderr


class TestTheEngineThatRecorded:
    def test_logprobs_are_equal_bit_for_bit(self, recording: Path, same: tuple[Path, str]) -> None:
        before, after = rows_of(recording), rows_of(same[0])
        assert before.keys() == after.keys()
        for name in ("logprob", "processed_logprob", "logsumexp", "kept_mass"):
            equal = [before[key][name] == after[key][name] for key in before]
            assert np.mean(equal) >= 0.99, name
        assert all(row["forced"] for row in after.values())
        assert {row["processed_source"] for row in after.values()} == {"engine"}

    def test_batches_are_the_recorded_ones(self, recording: Path, same: tuple[Path, str]) -> None:
        def batches(trace: Path) -> list[tuple[Any, ...]]:
            rows = sorted(Trace(trace).read("steps").to_pylist(), key=lambda row: row["step_id"])
            return [(row["request_ids"], row["scheduled_tokens"], row["computed_tokens"]) for row in rows]

        before, after = batches(recording), batches(same[0])
        num_equal = sum(batch in after for batch in before)
        assert num_equal >= 0.99 * len(before)
        assert max(len(ids) for ids, _, _ in before) == 6
        cached = {row["request_id"]: row["num_cached_tokens"] for row in Trace(same[0]).read("requests").to_pylist()}
        assert sum(cached.values()) > 0
        for row in Trace(recording).read("requests").to_pylist():
            assert row["num_cached_tokens"] in (None, cached[row["request_id"]])

    def test_it_says_how_near_it_came(self, recording: Path, same: tuple[Path, str]) -> None:
        num_tokens = Trace(recording).num_rows("tokens")
        told = re.search(r"([\d,]+) of ([\d,]+) tokens were sampled in a batch of the same composition", same[1])
        assert told is not None, same[1]
        assert told[2].replace(",", "") == str(num_tokens)
        with connect(recording, same[0]) as session:
            listed = session.sql("SELECT count(*), count_if(same_batch) FROM pair_batches").rows()
        assert listed == [(num_tokens, int(told[1].replace(",", "")))]

    def test_what_is_kept_is_what_was_recorded(self, recording: Path, same: tuple[Path, str]) -> None:
        before, after = rows_of(recording), rows_of(same[0])
        hidden, logits = rows_of(same[0], "hidden"), rows_of(same[0], "logits")
        assert before.keys() == hidden.keys() == logits.keys()
        exact = [key for key, row in rows_of(recording, "hidden").items() if row["hidden"] == hidden[key]["hidden"]]
        assert len(exact) >= 0.99 * len(before)
        for key, row in after.items():
            whole = np.array(logits[key]["logits"])
            assert row["top_logits"] == np.sort(whole)[::-1][: len(row["top_logits"])].tolist()
            assert row["parent_top_logits"] == whole[before[key]["top_token_ids"]].tolist()

    def test_memory_is_that_of_the_engine(self, same: tuple[Path, str]) -> None:
        told = re.search(r"peak memory ([\d.]+) GiB", same[1])
        assert told is not None, same[1]
        # Weights and KV cache alone; the command itself needs 0.2.
        assert float(told[1]) > 0.7

    def test_its_run_is_that_engine(self, same: tuple[Path, str]) -> None:
        (run,) = Trace(same[0]).read("runs").to_pylist()
        assert (run["role"], run["backend"], run["mode"]) == ("replay", "vllm", "decode")
        assert (run["engine"], run["engine_version"], run["engine_generation"]) == ("vllm", V1.version, V1.generation)
        assert (run["max_num_seqs"], run["max_model_len"], run["prefix_caching"]) == (6, 512, True)
        assert not odd_values(same[0])


def test_prefill_after_the_engine_was_killed(
    recording: Path, shallow_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, seen = tmp_path / "out", []
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)
    for name, value in QUIET.items():
        monkeypatch.setenv(name, os.environ.get(name, value))

    def kill_engine(progress: Any) -> None:
        seen.append(progress.num_tokens)
        if len(seen) == 2:
            (pid,) = (int(path.parent.name) for path in Path("/proc").glob("[0-9]*/cmdline") if _is_our_engine(path))
            os.kill(pid, signal.SIGKILL)

    settings: dict[str, Any] = {"backend": "vllm", "model": shallow_model, "mode": "prefill", "batch_tokens": 1500}
    with pytest.raises(BackendUnavailableError, match="was ended by signal 9"):
        replay(recording, out, progress=kill_engine, **settings)
    assert not out.exists()
    summary = replay(recording, out, **settings)
    assert summary.num_resumed_tokens == seen[1] > 0

    before, after = rows_of(recording), rows_of(out)
    assert before.keys() == after.keys()
    differences = [abs(before[key]["logprob"] - after[key]["logprob"]) for key in before]
    # One row off, and it would be nats.
    assert np.mean(differences) < 0.05
    processed = [key for key, row in before.items() if np.isfinite(row["processed_logprob"])]
    assert np.mean([abs(before[k]["processed_logprob"] - after[k]["processed_logprob"]) for k in processed]) < 0.05
    assert {row["processed_source"] for row in after.values()} == {"recomputed"}
    (run,) = Trace(out).read("runs").to_pylist()
    assert (run["mode"], run["prefix_caching"]) == ("prefill", False)


def _is_our_engine(cmdline: Path) -> bool:
    try:
        parent = int((cmdline.parent / "stat").read_text().rpartition(")")[2].split()[1])
        return parent == os.getpid() and b"backends.vllm.worker" in cmdline.read_bytes()
    except OSError:
        return False


@pytest.mark.parametrize("engine", [V1_OLD, V0, V2], ids=lambda engine: engine.name)
def test_other_engines(engine: Engine, recording: Path, shallow_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    limit = ("--limit", 2, "--where", "num_prompt_tokens < 50") if engine is V2 else ()
    done = command(recording, out, "--model", shallow_model, *limit, *on(engine))
    assert done.returncode == 0, done.stderr
    before, after = rows_of(recording), rows_of(out)
    assert len(after) >= 24
    assert after.keys() <= before.keys()
    differences = [abs(before[key]["logprob"] - row["logprob"]) for key, row in after.items()]
    assert 0 <= np.mean(differences) < 0.2
    (run,) = Trace(out).read("runs").to_pylist()
    assert run["engine_version"].startswith(engine.version)
    assert run["engine_generation"] == engine.generation
    with connect(recording, out) as session:
        ((num_pairs, num_differing),) = session.sql(
            "SELECT count(*), count_if(a_token_id <> b_token_id) FROM pairs"
        ).rows()
    assert (num_pairs, num_differing) == (len(after), 0)


@pytest.mark.parametrize("engine", [V1_OLD, V0, V2], ids=lambda engine: engine.name)
def test_recordings_of_other_engines(engine: Engine, shallow_model: Path, tmp_path: Path) -> None:
    """Replayed on today's engine and by transformers; recording and replays are held against each other."""
    run, vllm, hf = (tmp_path / name for name in ("run", "vllm", "hf"))
    # An interpreted engine is slow.
    num_requests = 2 if engine is V2 else 4
    env = {"VLLM_USE_V1": "0"} if engine is V0 else {}
    run_engine("to_replay", shallow_model, str(num_requests), "6", engine=engine, record_to=run, env=env)
    done = command(run, vllm, "--model", shallow_model, *on(V1))
    assert done.returncode == 0, done.stderr
    replay(run, hf, model=shallow_model, dtype="bfloat16")

    # Two releases may compute the same bits: that it was another engine, runs tell.
    versions = [Trace(path).read("runs").to_pylist()[0]["engine_version"] for path in (run, vllm)]
    assert all(found.startswith(told.version) for found, told in zip(versions, (engine, V1), strict=True))
    before = rows_of(run)
    assert len(before) >= 6 * num_requests
    for one, other in ((run, vllm), (vllm, hf)):
        found = rows_of(other)
        assert found.keys() == before.keys()
        assert all(found[key]["token_id"] == row["token_id"] for key, row in before.items())
        differences = [abs(row["logprob"] - found[key]["logprob"]) for key, row in rows_of(one).items()]
        assert np.mean(differences) < 0.2
        line = [sys.executable, "-m", "tracekit.cli.main", "diff", str(one), str(other), "--format", "json"]
        diff = subprocess.run(line, capture_output=True, text=True)
        assert diff.returncode == 0, diff.stderr
        told = json.loads(diff.stdout)
        assert (told["num_requests"], told["num_pairs"]) == (num_requests, len(before))
        assert told["first_divergence"]["num_token"] == 0
        assert told["metrics"]["raw"]["logprob_abs_diff_mean"]["value"] == pytest.approx(np.mean(differences))


class TestWrongUse:
    @pytest.mark.parametrize(
        ("args", "code", "message"),
        [
            (("--python", "/no/such/python"), 2, "/no/such/python: no such interpreter"),
            (("--engine-arg", "max_model_lenn=3"), 2, "has no engine argument 'max_model_lenn' (did you mean"),
            (("--engine-arg", "dtype"), 2, "engine-arg 'dtype' is not of the kind NAME=VALUE"),
            (("--schedule", "recorded", "--mode", "prefill"), 2, "schedule 'recorded' needs --mode decode"),
            (("--model", "/no/such/model"), 2, "/no/such/model: no such model folder"),
            (("--model", Path(__file__).parent), 2, "is not a model folder: it has no config.json"),
        ],
    )
    def test_is_told_in_one_line(
        self, recording: Path, shallow_model: Path, tmp_path: Path, args: tuple[object, ...], code: int, message: str
    ) -> None:
        done = command(recording, tmp_path / "out", "--model", shallow_model, *args)
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert message in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_an_interpreter_without_vllm(self, recording: Path, shallow_model: Path, tmp_path: Path) -> None:
        (tmp_path / "path").mkdir()
        (tmp_path / "path" / "vllm.py").write_text("raise ImportError('not here')")
        done = command(
            recording, tmp_path / "out", "--model", shallow_model, "--env", f"PYTHONPATH={tmp_path / 'path'}"
        )
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert "has no vLLM that can be imported (ImportError: not here)" in done.stderr

    def test_an_interpreter_without_tracekit(self, recording: Path, shallow_model: Path, tmp_path: Path) -> None:
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        python.chmod(0o755)
        done = command(
            recording, tmp_path / "out", "--model", shallow_model, "--python", python, "--env", "PYTHONPATH="
        )
        assert (done.returncode, done.stderr.count("\n")) == (3, 1), done.stderr
        assert f"{python} has no module 'tracekit'" in done.stderr

    def test_secrets_stay_out_of_the_trace(self, same: tuple[Path, str]) -> None:
        from tracekit.replay.backends.vllm.options import VllmOptions

        options = VllmOptions(env=("HF_TOKEN=abc", "A=1"))
        assert options.without_secrets() == ["HF_TOKEN=***", "A=1"]
        assert "recorded" not in json.loads(Trace(same[0]).read("runs").to_pylist()[0]["options"])
