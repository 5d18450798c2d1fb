"""The package in docs/backends.md, made, installed and run as the page says, against NumPy in float64."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from factories import make_request, make_trace
from tracekit.store import Trace

PAGE = Path(__file__).parents[2] / "docs" / "backends.md"
VOCAB_SIZE = 12
SCALE = 0.5
TOP_P = 0.6
SEQUENCES = {"greedy": ([3, 1, 4], [1, 5, 9, 2]), "sampled": ([6], [5, 3, 5])}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def run(arguments: list[str], cwd: Path, site: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        arguments, cwd=cwd, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the page's commands were run but the comparison, with a table of random logits."""
    folder = tmp_path_factory.mktemp("page")
    package, site = folder / "tracekit-bigram", folder / "site"
    package.mkdir()
    (module,), (project,) = blocks("python"), blocks("toml")
    (package / "tracekit_bigram.py").write_text(module)
    (package / "pyproject.toml").write_text(project)
    requests = [
        make_request("greedy", prompt=SEQUENCES["greedy"][0], token_ids=SEQUENCES["greedy"][1], temperature=0.0),
        make_request("sampled", prompt=SEQUENCES["sampled"][0], token_ids=SEQUENCES["sampled"][1], top_p=TOP_P),
    ]
    make_trace(folder / "run.trace", requests=requests)
    table = np.random.default_rng(0).normal(0.0, 3.0, (VOCAB_SIZE, VOCAB_SIZE)).astype(np.float32)
    (folder / "bigram.json").write_text(json.dumps(table.tolist()))
    install, replay, diff = map(shlex.split, blocks("sh")[0].splitlines())
    assert (install[:2], replay[:2], diff[:2]) == (["pip", "install"], ["tracekit", "replay"], ["tracekit", "diff"])
    # Without a network and without touching this environment.
    offline = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(site)]
    done = run([sys.executable, "-m", *install, *offline], folder, site)
    assert done.returncode == 0, done.stderr
    for command in (replay, diff):
        done = run([sys.executable, "-m", "tracekit.cli.main", *command[1:]], folder, site)
        assert done.returncode == 0, done.stderr
    return folder


def test_the_module_is_short() -> None:
    (module,) = blocks("python")
    code = [line for line in module.splitlines() if line.strip()]
    assert len(code) <= 40


def test_figures_are_those_of_the_table(folder: Path) -> None:
    table = np.array(json.loads((folder / "bigram.json").read_text()), np.float64) * SCALE
    rows = Trace(folder / "bigram.trace").read("tokens").to_pylist()
    assert {(row["request_id"], row["output_index"]) for row in rows} == {
        (name, index) for name, (_, output) in SEQUENCES.items() for index in range(len(output))
    }
    for row in rows:
        prompt, output = SEQUENCES[row["request_id"]]
        token = output[row["output_index"]]
        logits = table[[*prompt, *output][row["position"] - 1]]
        logsumexp = np.log(np.exp(logits).sum())
        assert row["token_id"] == token
        assert row["logprob"] == pytest.approx(logits[token] - logsumexp, abs=1e-5)
        assert row["rank"] == 1 + (logits > logits[token]).sum()
        if row["request_id"] == "greedy":
            assert row["processed_logprob"] == pytest.approx(row["logprob"], abs=1e-6)
        else:
            assert row["processed_logprob"] == pytest.approx(_processed(logits / 0.8, token), abs=1e-5)


def _processed(logits: npt.NDArray[np.float64], token: int) -> float:
    """Returns the logprob after top-p: of the likeliest tokens that together have at least that much."""
    probabilities = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-probabilities)
    before = np.cumsum(probabilities[order]) - probabilities[order]
    kept = order[before < TOP_P]
    return float(np.log(probabilities[token] / probabilities[kept].sum())) if token in kept else -np.inf


def test_the_run_says_what_computed_it(folder: Path) -> None:
    (run_row,) = Trace(folder / "bigram.trace").read("runs").to_pylist()
    found = {name: run_row[name] for name in ("backend", "engine", "engine_version", "mode", "vocab_size")}
    assert found == {
        "backend": "bigram",
        "engine": "bigram",
        "engine_version": "1.0",
        "mode": "prefill",
        "vocab_size": VOCAB_SIZE,
    }
    assert json.loads(run_row["options"])["scale"] == SCALE


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("scale=much", "option 'scale=much': expected float after the equals sign"),
        ("scal=1", "replay backend 'bigram' has no option 'scal' (did you mean 'scale'?)"),
    ],
)
def test_a_wrong_option_is_an_error_in_one_line(option: str, message: str, folder: Path) -> None:
    arguments = ["replay", "run.trace", "-o", "o", "--backend", "bigram", "--model", "bigram.json", "-O", option]
    done = run([sys.executable, "-m", "tracekit.cli.main", *arguments], folder, folder / "site")
    assert (done.returncode, done.stderr) == (2, f"tracekit: error: {message}\n")
