"""Imports of what trainers write, against the files read anew by json, torch and pyarrow."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner

import tracekit.cli.main
from tracekit import connect
from tracekit.errors import ConfigError, InputError, OutputExistsError, TracekitError
from tracekit.fingerprint import prompt_hash
from tracekit.store import Manifest, Trace
from tracekit.trainers.importers import import_files, importer_names
from tracekit.trainers.importers.torch_file import read_torch_file

DUMPS = Path(__file__).parents[1] / "trainer_dumps"


def by_request(path: Path, table: str = "tokens") -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in Trace(path).read(table).to_pylist():
        found.setdefault(row["request_id"], []).append(row)
    return found


def test_importers_are_found_by_name() -> None:
    assert importer_names() == ["prime-rl", "slime", "trl", "verl"]


def test_prime_rl(tmp_path: Path) -> None:
    rollout, trainer = tmp_path / "rollout", tmp_path / "trainer"
    summary = import_files("prime-rl", [DUMPS / "prime-rl"], trainer, rollout_out=rollout, temperature=1.0)
    assert (summary.num_sequences, summary.temperature_unknown) == (3, False)
    a, b, requests = by_request(rollout), by_request(trainer), by_request(rollout, "requests")
    d: list[float] = []
    num_given = 0
    for rank in (0, 1):
        for line in (DUMPS / "prime-rl" / f"rank_{rank}.jsonl").read_text().splitlines():
            record = json.loads(line)
            name = f"step_12/rank_{rank}/{record['export_sequence_idx']}"
            kept = np.flatnonzero(record["loss_mask"])
            first, last = int(kept[0]), int(kept[-1])
            (request,) = requests[name]
            assert request["prompt_token_ids"] == record["token_ids"][:first]
            assert request["prompt_hash"] == prompt_hash(record["token_ids"][:first])
            assert json.loads(request["tags"]) == {"env_name": "gsm8k", "reward": 1.0}
            assert [row["position"] for row in a[name]] == list(range(first, last + 1))
            for mine, theirs in zip(a[name], b[name], strict=True):
                place = mine["position"]
                sampled = record["loss_mask"][place]
                assert mine["token_id"] == theirs["token_id"] == record["token_ids"][place]
                assert mine["forced"] == (not sampled)
                assert mine["processed_logprob"] == (record["inference_logprobs"][place] if sampled else None)
                assert mine["reported_logprob"] == mine["processed_logprob"]
                assert theirs["processed_logprob"] == record["trainer_logprobs"][place]
                assert theirs["processed_entropy"] == pytest.approx(record["entropy"][place])
                assert theirs["advantage"] == record["advantages"][place]
                assert theirs["loss_mask"] == sampled
                assert (theirs["policy"], theirs["trainer_step"], theirs["weight_version"]) == ("current", 12, None)
                num_given += not sampled
                if sampled and record["trainer_logprobs"][place] is not None:
                    d.append(record["trainer_logprobs"][place] - record["inference_logprobs"][place])
    assert num_given == 2
    assert (Manifest.read(rollout).role, Manifest.read(trainer).role) == ("record", "trainer")
    with connect(rollout, trainer) as session:
        found = {row[0]: row[1:] for row in session.sql("SELECT name, value, num_tokens FROM metrics").rows()}
    array = np.array(d)
    assert found["k3_kl"] == (pytest.approx(np.mean(np.exp(array) - 1 - array), rel=1e-9), len(d))
    assert found["kl"] == (pytest.approx(np.mean(-array), rel=1e-9), len(d))


@pytest.mark.parametrize("file", ["train_5.pt", "train_5_rank_1.pt"])
def test_slime_training_data(tmp_path: Path, file: str) -> None:
    rollout, trainer = tmp_path / "rollout", tmp_path / "trainer"
    import_files("slime", [DUMPS / "slime" / file], trainer, rollout_out=rollout, temperature=0.8)
    saved = torch.load(DUMPS / "slime" / "train_5.pt", weights_only=False)["samples"]
    rank = "rank_1/" if "rank_1" in file else ""
    a, b = by_request(rollout), by_request(trainer)
    for index, sample in enumerate(saved):
        name = f"rollout_5/{rank}{index}"
        tokens, mask = sample["tokens"].tolist(), sample["loss_masks"].tolist()
        num_prompt = len(tokens) - len(mask)
        assert [row["token_id"] for row in a[name]] == tokens[num_prompt:]
        assert [row["forced"] for row in a[name]] == [not one for one in mask]
        expected = [
            value if one else None for value, one in zip(sample["rollout_log_probs"].tolist(), mask, strict=True)
        ]
        assert [row["processed_logprob"] for row in a[name]] == expected
        for policy, field in (("old", "log_probs"), ("reference", "ref_log_probs")):
            rows = [row for row in b[name] if row["policy"] == policy]
            assert [row["processed_logprob"] for row in rows] == sample[field].float().tolist()
            assert [row["loss_mask"] for row in rows] == [bool(one) for one in mask]
        old = [row for row in b[name] if row["policy"] == "old"]
        assert [row["advantage"] for row in old] == sample["advantages"].tolist()
        assert [row["processed_entropy"] for row in old] == sample["entropy"].tolist()
    with connect(rollout, trainer) as session:
        assert session.sql("SELECT DISTINCT b_policy FROM pairs").rows() == [("old",)]
    with connect(rollout, trainer, policy="reference") as session:
        assert session.sql("SELECT DISTINCT b_policy FROM pairs").rows() == [("reference",)]


def test_slime_rollouts(tmp_path: Path) -> None:
    import_files("slime", [DUMPS / "slime" / "rollout_5.pt"], tmp_path / "rollout", temperature=0.8)
    saved = torch.load(DUMPS / "slime" / "rollout_5.pt", weights_only=False)["samples"]
    tokens, requests, outcomes = (
        by_request(tmp_path / "rollout", table) for table in ("tokens", "requests", "outcomes")
    )
    ends = {"completed": "stop", "truncated": "length", "aborted": "abort"}
    versions = [(3, "3"), (None, None), (4, "4")]
    for index, sample in enumerate(saved):
        name = f"rollout_5/{index}"
        num = sample["response_length"]
        assert requests[name][0]["prompt_token_ids"] == sample["tokens"][:-num]
        assert (requests[name][0]["group_id"], requests[name][0]["temperature"]) == (str(index // 2), 0.8)
        assert [row["token_id"] for row in tokens[name]] == sample["tokens"][-num:]
        assert {(row["weight_version"], row["weight_label"]) for row in tokens[name]} == {versions[index]}
        assert (outcomes[name][0]["finish_reason"], outcomes[name][0]["num_output_tokens"]) == (
            ends[sample["status"]],
            num,
        )


def test_verl(tmp_path: Path) -> None:
    summary = import_files("verl", [DUMPS / "verl"], tmp_path / "texts")
    assert (summary.trainer, summary.num_tokens) == (None, 0)
    lines = [json.loads(line) for line in (DUMPS / "verl" / "7.jsonl").read_text().splitlines()]
    found = by_request(tmp_path / "texts", "requests")
    for index, record in enumerate(lines):
        (row,) = found[f"step_7/{index}"]
        assert (row["prompt_text"], row["external_id"]) == (record["input"], record["request_id"])
        assert json.loads(row["tags"]) == {k: record[k] for k in ("output", "gts", "score", "step", "acc")}
        assert row["prompt_token_ids"] is None
    assert Trace(tmp_path / "texts").num_rows("tokens") == 0


def test_trl(tmp_path: Path) -> None:
    import_files("trl", [DUMPS / "trl"], tmp_path / "rollout", temperature=0.9)
    saved = pq.read_table(DUMPS / "trl" / "completions_00001.parquet").to_pylist()
    tokens, requests = by_request(tmp_path / "rollout"), by_request(tmp_path / "rollout", "requests")
    for index, record in enumerate(saved):
        name = f"step_1/{index}"
        (row,) = requests[name]
        tags = json.loads(row["tags"])
        assert (row["prompt_text"], row["prompt_token_ids"]) == (record["prompt"], None)
        assert (tags["completion"], tags["reward"]) == (record["completion"], record["reward"])
        assert [one["token_id"] for one in tokens[name]] == record["completion_ids"]
        assert {one["advantage"] for one in tokens[name]} == {np.float32(record["advantage"])}
        assert {one["processed_logprob"] for one in tokens[name]} == {None}


Change = Callable[[dict[str, Any]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("trainer_logprobs"), "field 'trainer_logprobs' is missing; found advantages, "),
        (lambda r: r["loss_mask"].pop(), "field 'loss_mask' has 6 values, expected 7, one a token"),
        (lambda r: r.update(schema_version=2), "schema_version is 2, this release reads 1"),
        (lambda r: r.update(token_ids="abc"), "field 'token_ids' is not a list of token ids"),
        (lambda r: r.update(entropy=5), "field 'entropy' is int, expected a list of 7 values"),
        (lambda r: r.update(entropy=["x"] * 7), "a value is of another type than expected: "),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, change: Change, message: str) -> None:
    lines = (DUMPS / "prime-rl" / "rank_0.jsonl").read_text().splitlines()
    record = json.loads(lines[0])
    change(record)
    file = tmp_path / "rank_0.jsonl"
    file.write_text("\n".join([lines[1], json.dumps(record)]))
    with pytest.raises(InputError) as caught:
        import_files("prime-rl", [file], tmp_path / "t", rollout_out=tmp_path / "r")
    assert str(caught.value).startswith(f"{file}, line 2: {message}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank_0.jsonl"]


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    attempts = [
        ("prime-rl", DUMPS / "verl" / "7.jsonl", "field 'schema_version' is missing"),
        ("prime-rl", DUMPS / "slime" / "train_5.pt", "is no text file"),
        ("slime", DUMPS / "verl" / "7.jsonl", "is not a file of torch.save"),
        ("trl", DUMPS / "verl" / "7.jsonl", "cannot be read as Parquet"),
        ("verl", DUMPS / "prime-rl" / "rank_0.jsonl", "field 'input' is missing"),
    ]
    for name, file, message in attempts:
        with pytest.raises(InputError) as caught:
            import_files(name, [file], tmp_path / "t", rollout_out=tmp_path / "r" if name == "prime-rl" else None)
        assert message in str(caught.value)
        assert str(file) in str(caught.value)
        assert list(tmp_path.iterdir()) == []


def test_a_cut_off_file_is_named(tmp_path: Path) -> None:
    whole = (DUMPS / "prime-rl" / "rank_0.jsonl").read_text()
    file = tmp_path / "rank_0.jsonl"
    file.write_text(whole[:-100])
    with pytest.raises(InputError) as caught:
        import_files("prime-rl", [file], tmp_path / "t", rollout_out=tmp_path / "r")
    assert "line 2: no JSON" in str(caught.value)
    assert "is the file cut off" in str(caught.value)


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    prime_rl, verl = DUMPS / "prime-rl", DUMPS / "verl"
    attempts: list[tuple[type[TracekitError], str, list[Path], dict[str, Any], str]] = [
        (ConfigError, "prime", [prime_rl], {}, "there is no importer 'prime' (did you mean 'prime-rl'?)"),
        (ConfigError, "prime-rl", [prime_rl], {}, "say where the rollout's goes"),
        (ConfigError, "verl", [verl], {"rollout_out": tmp_path / "r"}, "holds the rollout's side only"),
        (InputError, "verl", [verl, verl], {}, "sequence 'step_7/0' is there twice"),
        (InputError, "verl", [tmp_path / "none"], {}, "no such file"),
        (InputError, "verl", [tmp_path], {}, "holds no file that ends in .jsonl"),
    ]
    for kind, name, paths, more, message in attempts:
        with pytest.raises(kind) as caught:
            import_files(name, paths, tmp_path / "t", **more)
        assert message in str(caught.value)
    import_files("verl", [verl], tmp_path / "t")
    with pytest.raises(OutputExistsError):
        import_files("verl", [verl], tmp_path / "t")


def test_the_command_says_what_it_made(tmp_path: Path) -> None:
    shutil.copytree(DUMPS / "slime", tmp_path / "in")
    file = str(tmp_path / "in" / "train_5.pt")
    arguments = ["import", "slime", file, "-o", str(tmp_path / "t"), "--rollout-out", str(tmp_path / "r")]
    done = CliRunner().invoke(tracekit.cli.main.cli, arguments)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'r'}\trecord\n{tmp_path / 't'}\ttrainer\n"
    assert "tracekit: 3 sequences, 12 tokens" in done.stderr
    assert "give --temperature" in done.stderr


class _Dangerous:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('it was run')",))


def test_reading_runs_nothing_that_a_file_names(tmp_path: Path) -> None:
    half = torch.arange(6, dtype=torch.float16).reshape(2, 3).T
    torch.save(
        {"bad": _Dangerous(), "good": half, "narrow": torch.tensor([1.5, -2.0], dtype=torch.bfloat16)},
        tmp_path / "x.pt",
    )
    found = read_torch_file(tmp_path / "x.pt")
    assert type(found["bad"]).__name__ == "Opaque"
    assert found["good"].load().tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
    assert found["narrow"].load().tolist() == [1.5, -2.0]
