"""A model or a trace that does not fit, from the command line: one line, an exit code, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from factories import MadeRequest, make_request, make_trace
from tracekit.cli.main import main
from tracekit.fingerprint import tokenizer_hash
from tracekit.store import Trace, TraceWriter

pytestmark = pytest.mark.usefixtures("one_thread")

VOCAB, MOST_TOKENS, HIDDEN_SIZE = 100, 32, 32
GOOD = make_request("good", token_ids=[5, 6])


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model with a tokenizer."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"words": []}')
    return folder


def call(*arguments: object) -> int:
    return main(["replay", *map(str, arguments)])


def make_hidden(path: Path, num_entries: int) -> Path:
    make_trace(path, requests=[GOOD])
    with TraceWriter(path, run_id="run", writer="hidden") as writer:
        keys = {"request_id": "good", "output_index": [0, 1], "position": [3, 4], "source_dtype": "float32"}
        writer.append("hidden", keys | {"hidden": [[0.5] * num_entries] * 2})
    return path


LONG = make_request("odd", prompt=range(1, MOST_TOKENS + 1), token_ids=[1, 2])
CASES: dict[str, tuple[list[MadeRequest], str, str]] = {
    "token beyond the vocabulary": (
        [GOOD, make_request("odd", token_ids=[5, VOCAB])],
        "hf",
        f"request 'odd' has token id {VOCAB}, but {{model}} has a vocabulary of {VOCAB}; give the model that",
    ),
    "prompt beyond the vocabulary": ([GOOD, make_request("odd", prompt=[1, 700])], "hf", "'odd' has token id 700, but"),
    "candidate beyond the vocabulary": (
        [GOOD, make_request("odd", token_ids=[VOCAB - 1])],
        "hf",
        f"request 'odd' has token id {VOCAB} among its candidates",
    ),
    "too long": (
        [GOOD, LONG],
        "hf",
        f"request 'odd' has {MOST_TOKENS + 1} tokens to read, but {{model}} takes at most",
    ),
    "no prompt": ([GOOD, make_request("odd", prompt=None)], "hf", "request 'odd' has no prompt_token_ids, so it"),
    "empty prompt": ([GOOD, make_request("odd", prompt=[])], "hf", "request 'odd' has an empty prompt"),
    "no tokens": ([make_request("odd", token_ids=[])], "hf", "holds no output tokens to score"),
    "no hidden states": ([GOOD], "head", "has no hidden states; record with --hidden, or replay with a backend that"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_trace_that_does_not_fit(case: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requests, backend, message = CASES[case]
    parent = make_trace(tmp_path / "parent", requests=requests)
    assert call(parent, "-o", tmp_path / "out", "--model", model, "--backend", backend) == 2
    _assert_one_line(message.format(model=model), tmp_path, capsys)


def test_hidden_states_of_another_size(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = make_hidden(tmp_path / "parent", HIDDEN_SIZE - 1)
    assert call(parent, "-o", tmp_path / "out", "--model", model, "--backend", "head") == 2
    _assert_one_line("request 'good' has hidden states of 31 entries, but the head takes 32", tmp_path, capsys)


@pytest.mark.parametrize("backend", ["hf", "head"])
def test_another_tokenizer(backend: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = make_hidden(tmp_path / "parent", HIDDEN_SIZE)
    with TraceWriter(parent, run_id="run", writer="worker") as writer:
        writer.append("runs", {"writer": "worker", "role": "record", "tokenizer_hash": "00ff"})
    arguments = (parent, "-o", tmp_path / "out", "--model", model, "--backend", backend)
    assert call(*arguments) == 2
    own = tokenizer_hash(model)
    message = f"the tokenizer of {model} ({own}) is not the recorded one (00ff), so token ids may stand for other texts"
    _assert_one_line(message, tmp_path, capsys, way_out="--any-tokenizer")

    assert call(*arguments, "--any-tokenizer") == 0
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    assert run["tokenizer_hash"] == own
    assert json.loads(run["options"])["any_tokenizer"] is True
    # What is known of one side only proves nothing.
    (model / "tokenizer.json").unlink()
    assert call(parent, "-o", tmp_path / "unknown", "--model", model, "--backend", backend) == 0


def test_the_same_tokenizer_and_another_size_of_the_vocabulary(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows that are longer by padding are no reason to stop."""
    run: dict[str, Any] = {"tokenizer_hash": tokenizer_hash(model), "vocab_size": VOCAB + 28}
    parent = make_trace(tmp_path / "parent", requests=[GOOD], run=run)
    assert call(parent, "-o", tmp_path / "out", "--model", model) == 0
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert f"{model} has a vocabulary of 100, the recorded one is of 128" in record.getMessage()
    assert call(tmp_path / "out", "-o", tmp_path / "again", "--model", model) == 0
    assert len(caplog.records) == 1


def _assert_one_line(message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], way_out: str = "") -> None:
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("tracekit: error: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert way_out in printed.err
    assert not list(tmp_path.glob("out*"))
