"""Record, replay in fp32, compare: every command as a user runs it, every figure worked out again in NumPy."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.engine

ROLLOUT = Path(__file__).parents[2] / "tools" / "demo_rollout.py"
Floats = npt.NDArray[np.float64]


def tracekit(*args: object) -> subprocess.CompletedProcess[str]:
    env = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"} | dict(os.environ)
    command = [sys.executable, "-m", "tracekit.cli.main", *map(str, args)]
    return subprocess.run(command, env=env, capture_output=True, text=True)


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def traces(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("path")
    rollout, fp32 = folder / "rollout.trace", folder / "fp32.trace"
    recorded = tracekit("record", "-o", rollout, "--", sys.executable, ROLLOUT, model_path)
    succeeded(recorded)
    assert "of 24 requests" in recorded.stderr
    succeeded(tracekit("replay", rollout, "-o", fp32, "--backend", "hf", "--model", model_path, "--dtype", "float32"))
    return rollout, fp32


def rows(trace: Path, table: str) -> list[dict[str, Any]]:
    """All rows of a table, straight from its Parquet files."""
    return pa.concat_tables(pq.read_table(path) for path in sorted((trace / table).glob("*.parquet"))).to_pylist()


def merged(trace: Path, table: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for row in rows(trace, table):
        own = found.setdefault(row["request_id"], {})
        own.update({name: value for name, value in row.items() if value is not None and name not in own})
    return found


class Pairs:
    """The aligned positions of a recording and its replay, without any SQL."""

    def __init__(self, a: Path, b: Path) -> None:
        requests, outcomes = merged(a, "requests"), merged(a, "outcomes")
        other = {(row["request_id"], row["output_index"]): row for row in rows(b, "tokens")}
        self.rows = []
        for row in rows(a, "tokens"):
            if row["output_index"] < outcomes[row["request_id"]]["num_output_tokens"]:
                self.rows.append((row, other.pop((row["request_id"], row["output_index"]))))
        assert not other
        self.sampled = np.array([requests[row["request_id"]]["temperature"] > 0 for row, _ in self.rows])
        self.requests = np.array([row["request_id"] for row, _ in self.rows])

    def column(self, side: int, name: str) -> Floats:
        return np.array([pair[side][name] for pair in self.rows], np.float64)


def expected(pairs: Pairs, column: str, keep: npt.NDArray[np.bool_]) -> dict[str, float]:
    d = (pairs.column(1, column) - pairs.column(0, column))[keep]
    requests = pairs.requests[keep]
    equal = (pairs.column(0, "argmax_token_id") == pairs.column(1, "argmax_token_id"))[keep]
    rho = np.exp(d)
    per_request = [np.exp(np.mean(-d[requests == request])) for request in np.unique(requests)]
    return {
        "kl": float(np.mean(-d)),
        "k3_kl": float(np.mean(np.expm1(d) - d)),
        "logprob_abs_diff_mean": float(np.mean(np.abs(d))),
        "logprob_abs_diff_max": float(np.max(np.abs(d))),
        "ppl_ratio": float(np.mean(per_request)),
        "same_top_p": float(np.mean(equal)),
        "effective_sample_size": float(rho.sum() ** 2 / (len(rho) * (rho**2).sum())),
        "ratio_oob_fraction": float(np.mean((rho < 0.8) | (rho > 1.2))),
    }


def test_diff_prints_what_numpy_finds(traces: tuple[Path, Path]) -> None:
    printed = json.loads(succeeded(tracekit("diff", *traces, "--format", "json")))
    pairs = Pairs(*traces)
    assert printed["num_requests"] == 24
    assert printed["num_pairs"] == len(pairs.rows)
    everything = np.ones(len(pairs.rows), bool)
    for basis, column, keep in (
        ("raw", "logprob", everything),
        ("processed", "processed_logprob", pairs.sampled),
    ):
        wanted = expected(pairs, column, keep)
        assert printed["metrics"][basis].keys() > wanted.keys()
        for name, value in wanted.items():
            got = printed["metrics"][basis][name]
            assert got["num_tokens"] == int(keep.sum())
            if math.isinf(value):
                assert got["value"] == "inf", (basis, name)
            else:
                assert abs(got["value"] - value) <= 1e-6, (basis, name)


def test_first_divergence_is_where_numpy_finds_it(traces: tuple[Path, Path]) -> None:
    pairs = Pairs(*traces)
    first: dict[str, int] = {}
    for a, b in pairs.rows:
        tie = a["top1_margin"] == 0 and b["argmax_token_id"] in _best(a)
        tie = tie or (b["top1_margin"] == 0 and a["argmax_token_id"] in _best(b))
        if a["argmax_token_id"] != b["argmax_token_id"] and not tie:
            first[a["request_id"]] = min(first.get(a["request_id"], 10**9), a["output_index"])
    query = "SELECT request_id, output_index, kind FROM first_divergence"
    found = json.loads(succeeded(tracekit("query", *traces, query, "--format", "json")))
    assert len(found) == 24
    assert {row["request_id"]: row["output_index"] for row in found if row["kind"]} == first
    assert {row["kind"] for row in found if row["kind"]} <= {"argmax"}


def _best(row: dict[str, Any]) -> set[int]:
    pairs = zip(row["top_token_ids"], row["top_logits"], strict=True)
    return {token_id for token_id, logit in pairs if logit == row["top_logits"][0]}


def test_fp32_is_close_to_bf16_and_the_prefix_cache_was_hit(traces: tuple[Path, Path]) -> None:
    pairs = Pairs(*traces)
    d = np.abs(pairs.column(1, "logprob") - pairs.column(0, "logprob"))
    assert 0.001 < d.mean() < 0.1
    cached = [row["num_cached_tokens"] for row in merged(traces[0], "requests").values()]
    assert sum(count > 0 for count in cached) >= 6
    assert (
        json.loads((traces[1] / "manifest.json").read_text())["parent"]
        == (json.loads((traces[0] / "manifest.json").read_text())["trace_id"])
    )


WRONG = {
    "recording into a trace": "record -o {rollout} -- true",
    "replaying into a trace": "replay {rollout} -o {fp32} --model {model}",
    "a model that is not there": "replay {rollout} -o {folder}/out --model {folder}/no-model",
    "a column that is not there": "query {rollout} FROM(tokens)WHERE(logprobb>0)",
    "an empty folder": "inspect {folder}",
    "a file": "diff {rollout} {folder}/../../file",
    "an unknown backend": "replay {rollout} -o {folder}/out --backend hg --model {model}",
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_use_is_told_in_one_line(what: str, traces: tuple[Path, Path], model_path: Path, tmp_path: Path) -> None:
    words = WRONG[what].format(rollout=traces[0], fp32=traces[1], model=model_path, folder=tmp_path).split()
    result = tracekit(*words)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    assert result.stderr.startswith("tracekit: error: ")
