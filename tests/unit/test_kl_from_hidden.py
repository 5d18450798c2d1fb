"""The way from hidden states to KL that docs/distributions.md shows, as it stands there, on a small model."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
from click.testing import CliRunner

from factories import make_request, make_trace
from logit_rows import both_kls
from tracekit.cli.main import cli
from tracekit.store import Trace

PAGE = Path(__file__).parents[2] / "docs" / "distributions.md"
KL = "SELECT kl_ab, kl_ba FROM kld ORDER BY request_id, output_index"

pytestmark = pytest.mark.usefixtures("one_thread")


def documented_commands() -> list[list[str]]:
    section = PAGE.read_text(encoding="utf-8").partition("## From hidden states")[2].partition("\n## ")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^    (tracekit .*)$", section, flags=re.M)]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result.stdout


def whole_rows(trace: Path, table: str) -> np.ndarray:
    """Logits or hidden states, [rows, entries]."""
    found = Trace(trace).read(table).sort_by([("request_id", "ascending"), ("output_index", "ascending")])
    return np.array(found.column(table).to_pylist(), np.float32)


def test_documented_commands(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording, replaying, *others = documented_commands()
    assert (recording[0], replaying[0], [other[0] for other in others]) == (
        "record",
        "replay",
        ["replay", "replay", "query"],
    )
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny_model)
    requests = [make_request(f"r{i}", prompt=[i, 5], token_ids=[7, 8 + i, 9], ended=False) for i in range(4)]
    make_trace(tmp_path / "source", requests=requests)
    # Stands in for the recording: hidden states in bf16, of a trace that has no rows.
    run("replay", "source", "-o", recording[2], "--model", "model", "--dtype", "bfloat16", "--hidden")
    run(*replaying)
    for command in others:
        printed = run(*command)
    assert "Mean KLD" in printed
    found = json.loads(run("query", *others[-1][1:3], KL, "--format", "json"))
    a, b = (whole_rows(tmp_path / name, "logits") for name in others[-1][1:3])
    forward, backward = both_kls(a, b)
    assert len(found) == 12
    assert (forward > 0).all()
    np.testing.assert_allclose([row["kl_ab"] for row in found], forward.astype(np.float64), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose([row["kl_ba"] for row in found], backward.astype(np.float64), rtol=1e-9, atol=1e-15)

    weight = safetensors.torch.load_file(tiny_model / "model.safetensors")["lm_head.weight"].double().numpy()
    for rows, name, rounding in ((a, recording[2], 2**-8), (b, replaying[3], 2**-20)):
        np.testing.assert_allclose(rows, whole_rows(tmp_path / name, "hidden") @ weight.T, rtol=rounding, atol=1e-6)
