"""A whole replay with a tiny random model: what is written, and what is left when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from click.testing import CliRunner

from factories import MadeRequest, make_request, make_trace
from replayed import odd_values
from tracekit.cli.replay import command
from tracekit.errors import ConfigError, InputError, ModelError, NotATraceError, OutputExistsError
from tracekit.fingerprint import model_fingerprint
from tracekit.replay import Progress, ReplaySummary, driver, replay
from tracekit.store import Trace, TraceWriter, create_trace

VOCAB = 100


def requests_of_all_kinds() -> list[MadeRequest]:
    return [
        make_request("greedy", token_ids=[5, 6, 7], temperature=0.0, seed=3, external_id="mine", tags='{"k": 1}'),
        make_request("sampled", prompt=[9, 8, 7, 6], token_ids=[1, 2], top_p=0.9, stop=[["x", "y"]]),
        make_request("one", prompt=[4], token_ids=[3], outcome={"finish_reason": "stop", "stop_reason": "3"}),
        make_request("grammar", token_ids=[1, 2, 3, 4], structured_output='{"json": {}}'),
        make_request("aborted", token_ids=[1, 2], ended=False),
        make_request("cut", token_ids=[1, 2, 3], outcome={"num_output_tokens": 2}),
        make_request("silent", token_ids=[]),
    ]


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    return make_trace(tmp_path / "parent", requests=requests_of_all_kinds())


def rows_of(path: Path, table: str) -> dict[Any, dict[str, Any]]:
    return {(row["request_id"], row.get("output_index")): row for row in Trace(path).read(table).to_pylist()}


def test_a_replay_is_a_trace_of_the_same_tokens(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    summary = replay(parent, tmp_path / "out", model=tiny_model)

    out = Trace(tmp_path / "out")
    assert (out.manifest.role, out.manifest.parent) == ("replay", Trace(parent).manifest.trace_id)
    assert summary == ReplaySummary(
        tmp_path / "out", out.manifest.trace_id, 6, 14, 0, 0, summary.seconds, summary.peak_bytes
    )
    assert 100 << 20 < summary.peak_bytes < 100 << 30
    assert summary.tokens_per_second == pytest.approx(14 / summary.seconds)
    theirs, ours = rows_of(parent, "tokens"), rows_of(tmp_path / "out", "tokens")
    assert ours.keys() == theirs.keys() - {("cut", 2)}
    for key, row in ours.items():
        same = ("token_id", "position", "is_prompt")
        assert {name: row[name] for name in same} == {name: theirs[key][name] for name in same}
        assert row["forced"]
        assert len(row["top_token_ids"]) == len(row["parent_top_logits"]) == 2
        assert row["parent_top_logits"][0] == row["logit"]  # The factory's first candidate is the token.
        assert row["logprob"] == pytest.approx(row["logit"] - row["logsumexp"], abs=1e-5)
        assert row["weight_version"] is row["reported_logprob"] is row["step_id"] is None
        if key[0] == "grammar":
            assert row["processed_logprob"] is row["kept_count"] is row["processed_source"] is None
        else:
            assert row["processed_source"] == "recomputed"
        if key[0] == "greedy":
            assert row["processed_logprob"] == pytest.approx(row["logprob"], abs=1e-6)
            assert (row["kept_count"], row["kept_mass"]) == (VOCAB, pytest.approx(1))
        if key[0] == "sampled":
            assert 0 < row["kept_count"] < VOCAB
            assert 0.9 <= row["kept_mass"] < 1


def test_requests_and_outcomes_stand_on_their_own(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    replay(parent, tmp_path / "out", model=tiny_model)
    theirs, ours = rows_of(parent, "requests"), rows_of(tmp_path / "out", "requests")
    assert ours.keys() == theirs.keys() - {("silent", None)}
    for key, row in ours.items():
        assert row | {"run_id": None} == theirs[key] | {"run_id": None}
    outcomes = {key[0]: row for key, row in rows_of(tmp_path / "out", "outcomes").items()}
    found = {
        name: (row["num_output_tokens"], row["finish_reason"], row["stop_reason"]) for name, row in outcomes.items()
    }
    assert found == {
        "greedy": (3, "length", None),
        "sampled": (2, "length", None),
        "one": (1, "stop", "3"),
        "grammar": (4, "length", None),
        "aborted": (2, None, None),
        "cut": (2, "length", None),
    }


def test_the_run_says_what_computed_it(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    replay(parent, tmp_path / "out", model=tiny_model, dtype="bfloat16", head_dtype="float32", batch_tokens=7, limit=3)
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    expected = {
        "role": "replay",
        "engine": "transformers",
        "engine_version": transformers.__version__,
        "torch_version": torch.__version__,
        "model": str(tiny_model),
        "model_fingerprint": model_fingerprint(tiny_model),
        "dtype": "bfloat16",
        "head_weight_dtype": "bfloat16",
        "head_operand_dtype": "float32",
        "head_output_dtype": "float32",
        "vocab_size": VOCAB,
        "max_model_len": 32,
        "backend": "hf",
        "mode": "prefill",
    }
    assert {name: run[name] for name in expected} == expected
    options = json.loads(run["options"])
    expected = {"dtype": "bfloat16", "head_dtype": "float32", "batch_tokens": 7, "limit": 3, "parent_run_id": "run"}
    assert {name: options[name] for name in expected} == expected
    assert set(options) - set(expected) == {
        *("mode", "head_output_dtype", "attention", "autocast", "log_softmax_dtype", "device", "max_num_seqs"),
        *("weights", "weights_schedule", "kv", "lora", "fingerprints"),
        *("num_only", "sample", "top_k", "hidden", "logits", "free", "weight_label", "any_tokenizer"),
    }
    assert {row["run_id"] for row in Trace(tmp_path / "out").read("tokens").to_pylist()} == {run["run_id"]}
    assert not odd_values(tmp_path / "out")


def test_a_replay_of_a_replay_scores_the_same(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    replay(parent, tmp_path / "first", model=tiny_model)
    replay(tmp_path / "first", tmp_path / "second", model=tiny_model)
    first, second = rows_of(tmp_path / "first", "tokens"), rows_of(tmp_path / "second", "tokens")
    assert Trace(tmp_path / "second").manifest.parent == Trace(tmp_path / "first").manifest.trace_id
    assert first.keys() == second.keys()
    for key, row in second.items():
        assert row["parent_top_logits"] == row["top_logits"]
        for name in ("logit", "logprob", "processed_logprob", "top_token_ids"):
            assert row[name] == first[key][name], name


def test_every_run_of_the_parent_becomes_a_run(tmp_path: Path, tiny_model: Path) -> None:
    path = make_trace(tmp_path / "t", run_id="one", requests=[make_request("0", prompt=[1], token_ids=[7])])
    second = make_request("0", prompt=[2, 3], token_ids=[8, 9])
    with TraceWriter(path, run_id="two", writer="w1") as writer:
        writer.append("requests", second.request)
        writer.append("tokens", second.tokens)
    replay(path, tmp_path / "out", model=tiny_model)
    out = Trace(tmp_path / "out")
    parents = {row["run_id"]: json.loads(row["options"])["parent_run_id"] for row in out.read("runs").to_pylist()}
    found = [(parents[row["run_id"]], row["token_id"]) for row in out.read("tokens").to_pylist()]
    assert sorted(found) == [("one", 7), ("two", 8), ("two", 9)]


def test_progress_reaches_the_total(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    seen: list[Progress] = []
    replay(parent, tmp_path / "out", model=tiny_model, batch_tokens=6, progress=seen.append)
    assert len(seen) > 2
    assert seen[0] == Progress(0, 14, 0, 25, 0, 6, 0)
    assert [entry.num_tokens for entry in seen] == sorted(entry.num_tokens for entry in seen)
    assert seen[-1] == Progress(14, 14, 25, 25, 6, 6, 0)


def test_top_k_may_be_chosen(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    replay(parent, tmp_path / "out", model=tiny_model, top_k=11)
    rows = rows_of(tmp_path / "out", "tokens").values()
    assert {(len(row["top_token_ids"]), len(row["parent_top_logits"])) for row in rows} == {(11, 2)}


def test_a_failure_in_the_middle_leaves_nothing(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    def fail(progress: Progress) -> None:
        if progress.num_tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(parent, tmp_path / "out", model=tiny_model, batch_tokens=6, progress=fail)
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_a_killed_replay_leaves_no_output_and_can_be_started_again(
    parent: Path, tmp_path: Path, tiny_model: Path
) -> None:
    code = (
        "import os, signal, sys; from tracekit.replay import replay\n"
        "parent, out, model = sys.argv[1:]\n"
        "def kill(progress):\n"
        "    if progress.num_tokens: os.kill(os.getpid(), signal.SIGKILL)\n"
        "replay(parent, out, model=model, batch_tokens=6, progress=kill)"
    )
    out = tmp_path / "out"
    done = subprocess.run([sys.executable, "-c", code, parent, out, tiny_model], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    assert (tmp_path / "out.partial").is_dir()

    replay(parent, out, model=tiny_model, batch_tokens=6)
    assert Trace(out).num_rows("tokens") == 14
    assert not (tmp_path / "out.partial").exists()


def all_rows(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Everything but ids and times that no two replays share, in an order of its own."""
    found = {}
    for table in ("runs", "requests", "tokens", "outcomes", "hidden", "logits"):
        rows = [
            row | {"run_id": None, "started_ns": None, "process_id": None}
            for row in Trace(path).read(table).to_pylist()
        ]
        found[table] = sorted(rows, key=lambda row: (row.get("request_id") or "", row.get("output_index") or 0))
    return found


def test_a_replay_goes_on_where_it_was_killed(
    parent: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)
    settings: dict[str, Any] = {"model": tiny_model, "batch_tokens": 4, "hidden": True, "logits": True}
    replay(parent, tmp_path / "whole", **settings)
    expected = all_rows(tmp_path / "whole")
    assert {table: len(rows) for table, rows in expected.items()} == {
        "runs": 1,
        "requests": 6,
        "tokens": 14,
        "outcomes": 6,
        "hidden": 14,
        "logits": 14,
    }
    code = (
        "import itertools, os, signal, sys; from pathlib import Path\n"
        "from tracekit.replay import driver, replay\n"
        "driver.SAVE_SECONDS = 0.0\n"
        "parent, out, model, last = sys.argv[1:]\n"
        "count = itertools.count()\n"
        "def kill(progress):\n"
        "    if next(count) == int(last): os.kill(os.getpid(), signal.SIGKILL)\n"
        "replay(parent, out, model=Path(model), batch_tokens=4, hidden=True, logits=True, progress=kill)"
    )
    out = tmp_path / "out"
    for num_batches in (1, 2):
        # Each is killed so many batches after those that the one before had done.
        done = subprocess.run([sys.executable, "-c", code, parent, out, tiny_model, str(num_batches)], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not out.exists()
    seen: list[Progress] = []
    summary = replay(parent, out, progress=seen.append, **settings)
    assert 0 < summary.num_resumed_tokens == seen[0].num_tokens == seen[0].num_resumed_tokens < 14
    assert summary.num_tokens == 14
    assert all_rows(out) == expected


def test_a_replay_of_another_kind_is_not_gone_on_with(
    parent: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)
    out = tmp_path / "out"

    def stop(progress: Progress) -> None:
        if progress.num_tokens:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replay(parent, out, model=tiny_model, batch_tokens=6, progress=stop)
    with pytest.raises(OutputExistsError, match=r"was begun with dtype \"float32\", not \"bfloat16\"; .* --restart"):
        replay(parent, out, model=tiny_model, batch_tokens=6, dtype="bfloat16")
    with TraceWriter(parent, run_id="run", writer="later") as writer:
        late = make_request("late", token_ids=[1])
        writer.append("requests", late.request)
        writer.append("tokens", late.tokens)
    with pytest.raises(OutputExistsError, match="was begun with plan"):
        replay(parent, out, model=tiny_model, batch_tokens=6)
    summary = replay(parent, out, model=tiny_model, batch_tokens=6, restart=True)
    assert (summary.num_tokens, summary.num_resumed_tokens) == (15, 0)


def test_a_replay_that_began_meanwhile_is_left_alone(
    parent: Path, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading a model takes a while, in which another process may begin the same replay."""
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    load = driver.load_backend

    def load_meanwhile(name: str) -> Any:
        found = load(name)
        real = found.open

        def begun_by_another(*args: Any) -> Any:
            create_trace(partial, "replay")
            with TraceWriter(partial, run_id="other", writer="replay") as writer:
                writer.append("events", {"time_ns": [1], "kind": "paused"})
            return real(*args)

        monkeypatch.setattr(found, "open", begun_by_another)
        return found

    monkeypatch.setattr(driver, "load_backend", load_meanwhile)
    with pytest.raises(OutputExistsError, match=r"out\.partial exists already"):
        replay(parent, out, model=tiny_model)
    assert Trace(partial).num_rows("events") == 1


def test_nothing_that_is_in_the_way_is_removed(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    out, partial = tmp_path / "out", tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"out\.partial is in the way and no unfinished replay"):
        replay(parent, out, model=tiny_model)
    assert (partial / "thesis.txt").read_text() == "mine"

    os.rename(partial, tmp_path / "elsewhere")
    create_trace(partial, "replay")
    with (
        TraceWriter(partial, run_id="other"),
        pytest.raises(OutputExistsError, match="another replay is writing"),
    ):
        replay(parent, out, model=tiny_model)
    out.mkdir()
    with pytest.raises(OutputExistsError, match="out exists already"):
        replay(parent, out, model=tiny_model)


def test_wrong_models_and_settings_are_errors_in_one_line(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    cases: list[tuple[type[InputError], str, dict[str, Any]]] = [
        (ModelError, "nowhere: no such model folder", {"model": tmp_path / "nowhere"}),
        (ModelError, "empty is not a model folder: it has no config.json", {"model": tmp_path / "empty"}),
        (ModelError, "broken cannot be loaded as a causal language model", {"model": tmp_path / "broken"}),
        (ConfigError, "needs a model: give --model", {"model": None}),
        (
            ConfigError,
            r"dtype 'float3' is not known \(did you mean 'float32'",
            {"model": tiny_model, "dtype": "float3"},
        ),
        (ConfigError, "head-dtype 'int8' is not known", {"model": tiny_model, "head_dtype": "int8"}),
        (ConfigError, "device 'abacus' cannot be used", {"model": tiny_model, "device": "abacus"}),
        (ConfigError, "no option 'dtipe'", {"model": tiny_model, "dtipe": "float32"}),
        (ConfigError, "batch-tokens must be at least 1", {"model": tiny_model, "batch_tokens": 0}),
        (ConfigError, "limit must be at least 1", {"model": tiny_model, "limit": 0}),
    ]
    for kind, message, options in cases:
        with pytest.raises(kind, match=message) as info:
            replay(parent, tmp_path / "out", **options)
        assert info.value.exit_code == 2
        assert "\n" not in str(info.value)
    with pytest.raises(NotATraceError):
        replay(tmp_path / "nowhere", tmp_path / "out", model=tiny_model)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (make_request("odd", token_ids=[VOCAB]), f"request 'odd' has token id {VOCAB}, but .* vocabulary of {VOCAB}"),
        (make_request("odd", prompt=[1, 500]), "request 'odd' has token id 500"),
        (make_request("odd", prompt=range(1, 31), token_ids=[1, 2, 3, 4]), "request 'odd' has 33 tokens to read"),
        (make_request("odd", token_ids=[VOCAB - 1]), f"'odd' has token id {VOCAB} among its candidates"),
    ],
)
def test_a_model_that_does_not_fit_names_the_request(
    request_: MadeRequest, message: str, tmp_path: Path, tiny_model: Path
) -> None:
    path = make_trace(tmp_path / "t", requests=[make_request("good"), request_])
    with pytest.raises(ModelError, match=message):
        replay(path, tmp_path / "out", model=tiny_model)
    assert not list(tmp_path.glob("out*"))


def test_command_prints_a_summary_and_keeps_stdout_for_data(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    done = CliRunner().invoke(
        command, [str(parent), "-o", str(tmp_path / "out"), "--model", str(tiny_model), "--head-dtype", "float32"]
    )
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert "14 tokens of 6 requests scored in" in done.stderr
    assert done.stderr.count("\n") == 1


def test_command_scores_the_requests_of_a_condition(parent: Path, tmp_path: Path, tiny_model: Path) -> None:
    arguments = [str(parent), "-o", str(tmp_path / "out"), "--model", str(tiny_model), "--where"]
    done = CliRunner().invoke(command, [*arguments, "temperature = 0 OR request_id = 'one'"])
    assert done.exit_code == 0, done.output
    assert {row["request_id"] for row in Trace(tmp_path / "out").read("requests").to_pylist()} == {"greedy", "one"}


def test_command_says_what_was_left_out(tmp_path: Path, tiny_model: Path) -> None:
    path = make_trace(tmp_path / "t", requests=[make_request("a", outcome={"num_output_tokens": 9})])
    done = CliRunner().invoke(command, [str(path), "-o", str(tmp_path / "out"), "--model", str(tiny_model)])
    assert "3 tokens of 1 requests scored" in done.stderr
    assert "6 left out, as their rows or rows before them are missing" in done.stderr


def test_help_has_an_example() -> None:
    assert "tracekit replay run.trace -o fp32.trace" in CliRunner().invoke(command, ["--help"]).output
