"""Whole rows of a real engine: the head makes them of hidden states, and how far two precisions of it are apart.

In bf16 an engine's logits depend on the number of rows of its product: kernels for AMX round others from 33 rows on. So
batches are of several sizes.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import safetensors

from engine import run_engine
from factories import make_request, make_trace
from logit_rows import Floats, Wide, both_kls
from tracekit import connect

pytestmark = pytest.mark.engine

BATCH_SIZES = (1, 7, 48, 111)
NUM_ROWS = 6 * sum(BATCH_SIZES)
TOP_K = 200
BOUNDS = ("kl_ab_lower", "kl_ab_upper", "kl_ba_lower", "kl_ba_upper")


@dataclass(frozen=True)
class Traces:
    """A recording that keeps hidden states and whole rows, and replays of its head, by the dtype of its operands."""

    run: Path
    bf16: Path
    fp32: Path


def tracekit(*args: object) -> str:
    command = [sys.executable, "-m", "tracekit.cli.main", *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def traces(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Traces:
    folder = tmp_path_factory.mktemp("traces")
    found = Traces(*(folder / name for name in ("run", "bf16", "fp32")))
    keeping = {
        "TRACEKIT_RECORD_HIDDEN": "true",
        "TRACEKIT_RECORD_LOGITS": "true",
        "TRACEKIT_RECORD_TOP_K": str(TOP_K),
    }
    run_engine("batches", shallow_model, *map(str, BATCH_SIZES), record_to=found.run, env=keeping)
    settings = ("--backend", "head", "--model", shallow_model, "--logits")
    tracekit("replay", found.run, "-o", found.bf16, "--head-dtype", "bfloat16", *settings)
    tracekit("replay", found.run, "-o", found.fp32, "--head-dtype", "float32", *settings)
    return found


def rows_of(trace: Path, table: str) -> pa.Table:
    """Rows of all requests in one order, straight from their Parquet files."""
    found = pa.concat_tables(pq.read_table(path) for path in sorted((trace / table).glob("*.parquet")))
    return found.sort_by([("request_id", "ascending"), ("output_index", "ascending")])


def whole_rows(trace: Path, table: str) -> Floats:
    """Logits or hidden states, [rows, entries]."""
    found = rows_of(trace, table)
    values: Any = found.column(table).combine_chunks()
    return values.flatten().to_numpy().reshape(len(found), -1)  # type: ignore[no-any-return]


def query(a: Path, b: Path, columns: tuple[str, ...], view: str) -> np.ndarray:
    """What `tracekit query` says of each position, [rows, columns]."""
    sql = f"SELECT {', '.join(columns)} FROM {view} ORDER BY request_id, output_index"
    rows = json.loads(tracekit("query", a, b, sql, "--format", "json"))
    return np.array([[row[column] for column in columns] for row in rows], np.float64)


def test_recorded_hidden_states_give_the_recorded_logits(traces: Traces, shallow_model: Path) -> None:
    recorded, in_bf16, in_fp32 = (whole_rows(trace, "logits") for trace in (traces.run, traces.bf16, traces.fp32))
    assert len(recorded) == NUM_ROWS
    assert np.array_equal(in_bf16, recorded)
    with safetensors.safe_open(shallow_model / "model.safetensors", "pt") as tensors:
        weight = tensors.get_tensor("model.embed_tokens.weight").double().numpy()
    hidden = whole_rows(traces.run, "hidden").astype(np.float64)
    for start in range(0, NUM_ROWS, 100):
        some = slice(start, start + 100)
        assert np.abs(in_fp32[some] - hidden[some] @ weight.T).max() < 1e-4


@pytest.fixture(scope="module")
def true_kls(traces: Traces) -> tuple[Wide, Wide]:
    """KL of the recording to the replay in fp32 and back, of each row; few rows at a time, for they are wide."""
    a, b = whole_rows(traces.run, "logits"), whole_rows(traces.fp32, "logits")
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(both_kls, np.array_split(a, 20), np.array_split(b, 20)))
    return np.concatenate([forward for forward, _ in found]), np.concatenate([backward for _, backward in found])


def test_kl_over_the_whole_vocabulary(traces: Traces, true_kls: tuple[Wide, Wide]) -> None:
    found = query(traces.run, traces.fp32, ("kl_ab", "kl_ba"), "kld")
    assert len(found) == NUM_ROWS >= 1000
    for column, true in enumerate(true_kls):
        assert (true > 0).all()
        np.testing.assert_allclose(found[:, column], true.astype(np.float64), rtol=1e-9, atol=1e-15)


def test_bounds_hold_and_tighten(traces: Traces, true_kls: tuple[Wide, Wide], tmp_path: Path) -> None:
    found = [first_candidates(tmp_path / str(k), traces, k) for k in (1, 4, 20)]
    found.append(query(traces.run, traces.fp32, BOUNDS, "kld_bounds"))
    for bounds in found:
        assert len(bounds) == NUM_ROWS
        for column, true in enumerate(true_kls):
            assert (bounds[:, 2 * column] <= true).all()
            assert (bounds[:, 2 * column + 1] >= true).all()
        assert (bounds >= 0).all()
    for fewer, more in itertools.pairwise(found):
        assert (more[:, [0, 2]] >= fewer[:, [0, 2]] - 1e-9).all()
        assert (more[:, [1, 3]] <= fewer[:, [1, 3]] + 1e-9).all()
    shares = [np.median(bounds[:, 0] / true_kls[0]) for bounds in found]
    assert shares == sorted(shares)
    assert shares[-1] > 0.9


def first_candidates(folder: Path, traces: Traces, k: int) -> np.ndarray:
    """Returns the bounds from the first k candidates of each token, as if no more had been kept."""
    folder.mkdir()
    names = ["token_id", "logit", "logsumexp", "logit_min", "argmax_token_id", "top_token_ids", "top_logits"]
    parent = None
    for name, trace, more, backend in (("a", traces.run, [], None), ("b", traces.fp32, ["parent_top_logits"], "head")):
        table = rows_of(trace, "tokens")
        columns: dict[str, Any] = {column: table.column(column).to_pylist() for column in (*names, *more)}
        for column in ("top_token_ids", "top_logits", *more):
            columns[column] = pc.list_slice(table.column(column), 0, k).to_pylist()
        request = make_request(token_ids=columns.pop("token_id"), tokens=columns)
        run = {"vocab_size": pq.read_table(trace / "runs").column("vocab_size")[0].as_py(), "backend": backend}
        role = "replay" if parent else "record"
        parent = make_trace(folder / name, requests=[request], role=role, parent=parent, run=run, run_id=name)
    with connect(folder / "a", folder / "b") as session:
        return np.array(session.sql(f"SELECT {', '.join(BOUNDS)} FROM kld_bounds ORDER BY output_index").rows())
