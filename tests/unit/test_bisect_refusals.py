"""What cannot be bisected: one line that says so and what to do, before anything is replayed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import bisected
from bisected import made, values
from factories import make_request, make_trace
from tracekit.cli.main import main


@pytest.fixture(scope="module", autouse=True)
def _announced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield from bisected.announced(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traces")
    a = made(folder / "a", values())
    made(folder / "b", values(x=True), parent=a)
    make_trace(folder / "stranger", requests=[make_request("other", prompt=[900])])
    make_trace(folder / "silent", requests=[make_request(token_ids=[])])
    make_trace(folder / "promptless", requests=[make_request("p1", prompt=None)])
    return folder


BAD = [
    (["a", "--against", "b", "--vary", "cache"], 2, "replay backend 'linear' cannot vary 'cache'; it can vary broken"),
    (["a", "--against", "b", "--vary", "w"], 2, "there is no factor 'w'"),
    (["a", "--against", "b", "--vary", "x=of"], 2, "factor 'x' has no level 'of' (did you mean 'off'?)"),
    (["a", "--against", "stranger"], 2, "a and stranger do not align: "),
    (["a", "--against", "nowhere"], 2, "nowhere: no such trace;"),
    (["silent", "--against", "b"], 2, "silent holds no output tokens to score; was the recording stopped too early?"),
    (["promptless", "--against", "promptless"], 2, "request 'p1' has no prompt_token_ids, so it cannot be replayed"),
    (["a", "--against", "b", "--backend", "lineal"], 2, "there is no replay backend 'lineal' (did you mean 'linear'?)"),
    (["a", "--against", "b", "--vary", "x", "-O", "x=true"], 2, "factor 'x' sets the option 'x', which is given too"),
    (["a", "--against", "b", "--vary", "x", "--python", "p"], 2, "replay backend 'linear' has no option 'python'"),
    (["a", "--against", "b", "--vary", "x", "-O", "broken=true"], 2, "it is broken"),
    (["a"], 2, "Missing option '--against'"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[bad[2][:40] for bad in BAD])
def test_refusals(
    arguments: list[str],
    code: int,
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    command = ["bisect", *arguments]
    assert main(command if "--backend" in command else [*command, "--backend", "linear"]) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert message in line
    assert not list(folder.glob("*.bisect/*.trace"))


def test_a_backend_without_processed_logprobs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    command = ["bisect", "a", "--against", "b", "--backend", "linear", "--vary", "x", "--basis", "processed"]
    assert main([*command, "--out", str(tmp_path)]) == 2
    assert "has no processed logprob of a token that A and B have one of" in capsys.readouterr().err


def test_software_that_is_not_there_ends_with_3(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that has no vLLM."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.chdir(folder)
    command = ["bisect", "a", "--against", "b", "--backend", "vllm", "--vary", "cache", "--model", str(tmp_path / "m")]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text("{}")
    assert main([*command, "--python", str(python), "--out", str(tmp_path / "out")]) == 3
    assert str(python) in capsys.readouterr().err
