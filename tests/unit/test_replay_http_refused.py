"""What the http backend does where a fake server cannot score, refuses, fails, dies, or quotes the key."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from factories import make_trace
from fake_replays import NUM_CANDIDATES, everything, expected_logprobs, fails, make_requests, rows_of, score
from fake_server import FakeServer, Reply
from tracekit.cli.main import main
from tracekit.errors import BackendUnavailableError, ConfigError, ModelError
from tracekit.replay import driver
from tracekit.replay.backends.http import transport


@pytest.fixture(scope="module")
def made_parent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trace(tmp_path_factory.mktemp("made") / "parent", requests=make_requests())


@pytest.fixture
def parent(made_parent: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made_parent, tmp_path / "parent")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "BACK_OFF_SECONDS", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as running:
        yield running


KEY = "sk-do-not-tell-0123456789"


CANNOT_SCORE = [
    ({"dialects": set()}, {}, "no prompt logprobs (dialect 'vllm'), no prompt logprobs (dialect 'openai')"),
    ({"dialects": set()}, {"dialect": "openai"}, "takes prompt logprobs: no prompt logprobs (dialect 'openai')"),
    ({"dialects": set()}, {"dialect": "sglang"}, "404 Not Found: Not Found (dialect 'sglang')"),
    # llama-cpp-python's echo.
    ({"dialects": {"openai"}, "shift": 1}, {}, "prompt logprobs that are shifted by one"),
    ({"dialects": {"openai"}, "shift": 1, "names_ids": True}, {}, "prompt logprobs that are shifted by one"),
    ({"shift": 1}, {"dialect": "vllm"}, "prompt logprobs that are shifted by one"),
    ({"shift": -1}, {"dialect": "vllm"}, "prompt logprobs that are shifted by one"),
    ({"shift": -1}, {"dialect": "sglang"}, "prompt logprobs that are shifted by one"),
    ({"num_missing": 1}, {"dialect": "vllm"}, "7 prompt logprobs for 8 tokens"),
    ({"num_missing": 2}, {"dialect": "openai"}, "7 prompt logprobs for 8 tokens"),
    ({"num_missing": 1}, {"dialect": "sglang"}, "7 prompt logprobs for 8 tokens"),
    ({"num_missing": 1}, {"dialect": "openai"}, "a prompt logprob for the first token, which nothing predicts"),
    ({"offset": 9.0}, {"dialect": "vllm"}, "above 0, as where logits are given"),
    ({"offset": -1.0}, {"dialect": "vllm"}, "differ from those of the same tokens when generated, by 1 nats"),
]


@pytest.mark.parametrize(("conduct", "options", "message"), CANNOT_SCORE, ids=str)
def test_a_server_that_cannot_score_is_found_out_before(
    conduct: dict[str, Any], options: dict[str, Any], message: str, parent: Path
) -> None:
    with FakeServer(**conduct) as server:
        found = fails(parent, server, BackendUnavailableError, **options)
        assert found.startswith(f"{server.url} cannot score recorded tokens, which takes prompt logprobs: ")
    assert message in found
    assert [path.name for path in parent.parent.iterdir()] == ["parent"]


def test_noise_between_prompt_and_generation_is_no_shift(parent: Path) -> None:
    with FakeServer(offset=-0.1) as server:
        rows = score(parent, server)
    assert len(rows) == len(expected_logprobs(make_requests()))


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        ("openai", "an echo of other tokens"),
        ("vllm", "prompt logprobs without the prompt's own token"),
        ("sglang", "a prompt logprob of token 1 in place of"),
    ],
)
def test_an_answer_about_other_tokens_is_refused(dialect: str, message: str, parent: Path, server: FakeServer) -> None:
    def other_tokens(path: str, body: Any, headers: dict[str, str]) -> Reply | None:  # noqa: ARG001
        num = len(body.get("prompt") or body["input_ids"]) - 1 if body else 0
        logprobs = {"tokens": ["token_id:1"] * (num + 1), "token_logprobs": [None, *[-1.0] * num]}
        places = [None, *[{"1": {"logprob": -1.0}}] * num]
        if body and (body.get("echo") or "prompt_logprobs" in body):
            return Reply(200, {"choices": [{"logprobs": logprobs, "prompt_logprobs": places}]})
        if body and body.get("sampling_params", {}).get("max_new_tokens") == 0:
            return Reply(200, {"meta_info": {"input_token_logprobs": [[None, 1, None], *[[-1.0, 1, None]] * num]}})
        return None

    server.conduct.instead = other_tokens
    assert message in fails(parent, server, BackendUnavailableError, dialect=dialect)


def test_a_refused_request_is_named(parent: Path) -> None:
    with FakeServer(max_logprobs=4) as server:
        found = fails(parent, server, ModelError, dialect="vllm")
        assert found.startswith(f"{server.url} refuses request 'r")
        assert "5 candidates each: 400 Bad Request: 5 logprobs, where 4 are allowed; give a server" in found
        assert len(score(parent, server, top_k=4)) == len(expected_logprobs(make_requests()))


def test_an_answer_that_is_not_to_be_used_stops_the_replay(parent: Path, server: FakeServer) -> None:
    def of_others(path: str, body: Any, headers: dict[str, str]) -> Reply | None:  # noqa: ARG001
        if body and body.get("prompt_logprobs") == NUM_CANDIDATES:
            return Reply(200, {"choices": [{"prompt_logprobs": [None] * 3}]})
        return None

    server.conduct.instead = of_others
    found = fails(parent, server, BackendUnavailableError)
    assert "answers request 'r" in found
    assert "with 3 prompt logprobs for " in found


def test_a_sequence_that_is_too_long_is_named_before(parent: Path) -> None:
    # Its tokens are 12 to 27, of which all are sent, and one is generated.
    lengths = [len(made.request["prompt_token_ids"][0]) + len(made.tokens["token_id"]) for made in make_requests()]
    with FakeServer(max_model_len=max(lengths)) as server:
        found = fails(parent, server, ModelError)
        assert f"has {max(lengths) - 1} tokens to read, but the model takes at most {max(lengths) - 2}" in found
    with FakeServer(max_model_len=max(lengths) + 1) as server:
        assert score(parent, server)


def test_models_of_a_server(parent: Path, server: FakeServer) -> None:
    assert "serves no model 'fak' (did you mean 'fake'?)" in fails(parent, server, ModelError, model="fak")
    server.conduct.models = ("a/b", "c/")
    assert "serves 2 models; name one of them with --model: a/b, c/" in fails(parent, server, ConfigError)
    server.conduct.models = ()
    assert "/v1/models does not list what is served (no model)" in fails(parent, server, BackendUnavailableError)
    server.conduct.models = ("a/b", "c/")
    score(parent, server, model="c")
    assert {body["model"] for _, body in server.requests if body} == {"c/"}


IMPOSSIBLE = [
    ({"url": None}, "needs a server: give --url"),
    ({"url": "localhost:8000"}, "url 'localhost:8000' is not the address of a server"),
    ({"url": "ftp://host"}, "is not the address of a server"),
    ({"url": "http://host:port"}, "is not the address of a server"),
    ({"dialect": "vlm"}, r"dialect 'vlm' is not known (did you mean 'vllm'?)"),
    ({"concurrency": 0}, "concurrency must be at least 1, not 0"),
    ({"retries": -1}, "retries must be at least 0, not -1"),
    ({"timeout": 0.0}, "timeout must be more than 0 seconds, not 0"),
    ({"api_key_env": "TRACEKIT_TEST_NOT_SET"}, "the environment variable that api-key-env names is not set"),
    ({"hidden": True}, "replay backend 'http' does not see hidden"),
    ({"logits": True}, "replay backend 'http' does not see logits"),
]


@pytest.mark.parametrize(("options", "message"), IMPOSSIBLE, ids=str)
def test_impossible_settings(options: dict[str, Any], message: str, parent: Path, server: FakeServer) -> None:
    found = fails(parent, server, ConfigError, **options)
    assert message in found
    assert server.requests == []


@pytest.mark.parametrize("url", ["http://me:hush@host", "http://host/v1?key=hush", "http://host/#hush", "me:hush@host"])
def test_a_url_with_a_secret_is_refused_and_not_quoted(url: str, parent: Path, server: FakeServer) -> None:
    assert "hush" not in fails(parent, server, ConfigError, url=url)


def test_what_passes_is_asked_for_again(parent: Path, server: FakeServer) -> None:
    failing = iter([429, 500, 503, 502])

    def sometimes(path: str, body: Any, headers: dict[str, str]) -> Reply | None:  # noqa: ARG001
        if body and len(body.get("prompt", ())) > 20 and (status := next(failing, None)):
            return Reply(status, {"error": {"message": "not now"}})
        return None

    server.conduct.instead = sometimes
    rows = score(parent, server, retries=4, concurrency=1)
    assert len(rows) == len(expected_logprobs(make_requests()))
    assert next(failing, None) is None


def test_the_server_says_how_long_to_leave_it_alone(parent: Path, server: FakeServer) -> None:
    times: list[float] = []

    def once(path: str, body: Any, headers: dict[str, str]) -> Reply | None:  # noqa: ARG001
        times.append(time.monotonic())
        return Reply(429, {}, {"Retry-After": "1"}) if len(times) == 1 else None

    server.conduct.instead = once
    score(parent, server, retries=1)
    assert times[1] - times[0] > 0.9


@pytest.mark.parametrize("later", ["3600", "Fri, 31 Dec 2999 23:59:59 GMT"])
def test_a_server_that_wants_more_patience_than_an_answer_may_take(
    later: str, parent: Path, server: FakeServer
) -> None:
    server.conduct.instead = lambda *_: Reply(503, "busy", {"Retry-After": later})
    found = fails(parent, server, BackendUnavailableError, retries=4)
    assert "answers 503 Service Unavailable: busy and asks for " in found
    assert len(server.requests) == 1


def test_a_server_that_goes_on_failing(parent: Path, server: FakeServer) -> None:
    server.conduct.instead = lambda *_: Reply(500, {"error": {"message": "engine is\ndead"}})
    found = fails(parent, server, BackendUnavailableError, retries=2)
    assert found == (
        f"{server.url} answers 500 Internal Server Error: engine is dead, asked 3 times; see that the server runs, "
        "and what its log says, then give the same command again"
    )
    assert len(server.requests) == 3


def test_a_server_that_hangs(parent: Path, server: FakeServer) -> None:
    server.conduct.instead = lambda *_: Reply(200, {}) if server.ended.wait(60) else None
    found = fails(parent, server, BackendUnavailableError, retries=1, timeout=0.2)
    assert "does not answer (no answer in 0.2 s), asked 2 times" in found


def test_nobody_there(parent: Path) -> None:
    with FakeServer() as server:
        pass
    found = fails(parent, server, BackendUnavailableError, retries=1)
    assert found.startswith(f"{server.url} does not answer (")
    assert "asked 2 times; see that the server runs" in found


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(307, "", {"Location": "http://elsewhere"}), "answers 307, a redirection; give --url the address"),
        (Reply(200, b"<html>"), "/v1/models does not list what is served (an answer that is no JSON)"),
        (Reply(404, b"<html>"), "/v1/models does not list what is served (404 Not Found: <html>)"),
        (Reply(200, ["a"]), "/v1/models does not list what is served (no model)"),
    ],
)
def test_something_else_than_a_server_of_models(reply: Reply, message: str, parent: Path, server: FakeServer) -> None:
    server.conduct.instead = lambda *_: reply
    assert message in fails(parent, server, BackendUnavailableError)


def test_a_server_that_dies_in_the_middle_and_comes_back(
    parent: Path,
    tmp_path: Path,
    server: FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)

    def command(out: str) -> list[str]:
        where = ["replay", str(parent), "-o", str(tmp_path / out), "--backend", "http", "--url", server.url]
        return [*where, "--concurrency", "1", "--retries", "1"]

    assert main(command("whole")) == 0
    num_of_one_run = len(server.requests)
    num_left = num_of_one_run - 3

    def die(*_: Any) -> None:
        server.is_dead = len(server.requests) >= num_of_one_run + num_left

    server.conduct.instead = die
    assert main(command("out")) == 3
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"tracekit: error: {server.url} does not answer (")
    assert error.endswith(
        "asked 2 times; see that the server runs, and what its log says, then give the same command again"
    )
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial").is_dir()
    assert main(command("out")) == 3
    assert main([*command("out"), "--concurrency", "2"]) == 2
    assert "was begun with concurrency 1, not 2" in capsys.readouterr().err

    server.is_dead, server.conduct.instead = False, lambda *_: None
    assert main([*command("out"), "--timeout", "60", "--retries", "2"]) == 0
    assert "of the tokens had been scored before" in capsys.readouterr().err
    assert everything(tmp_path / "out") == everything(tmp_path / "whole")
    assert not (tmp_path / "out.partial").exists()


def all_bytes(path: Path) -> bytes:
    """Returns what a trace's files hold, and what is compressed in them."""
    files = b"".join(file.read_bytes() for file in path.rglob("*") if file.is_file())
    return files + json.dumps(everything(path), default=str).encode()


def test_the_key_is_sent_and_told_to_nobody(
    parent: Path, tmp_path: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(driver, "SAVE_SECONDS", 0.0)
    sent: set[str | None] = set()

    shortest = min(len(made.request["prompt_token_ids"][0]) + len(made.tokens["token_id"]) for made in make_requests())
    refusals: list[int] = []

    def quoting(path: str, body: Any, headers: dict[str, str]) -> Reply | None:  # noqa: ARG001
        sent.add(headers.get("Authorization"))
        if refusals and body and len(body["prompt"]) == shortest:
            return Reply(refusals[-1], {"error": {"message": f"no: {headers.get('Authorization')}"}})
        return None

    server.conduct.instead = quoting
    out = tmp_path / "out"
    command = ["replay", str(parent), "-o", str(out), "--backend", "http", "--url", server.url, "--retries", "0"]
    command += ["--concurrency", "1", "--api-key-env", "TRACEKIT_TEST_KEY"]
    monkeypatch.setenv("TRACEKIT_TEST_KEY", f" {KEY}\n")
    for refusal, code in ((400, 2), (500, 3), (401, 3)):
        refusals.append(refusal)
        assert main(command) == code
        told = capfd.readouterr()
        assert told.err.count("\n") == 1
        assert KEY not in told.out + told.err
        # The shortest comes last: what was scored before it stays.
        assert KEY.encode() not in all_bytes(tmp_path / "out.partial")
        assert rows_of(tmp_path / "out.partial")
    assert "the key in the environment variable TRACEKIT_TEST_KEY is not accepted" in told.err
    refusals.clear()
    assert main(command) == 0
    assert KEY not in capfd.readouterr().err
    assert KEY.encode() not in all_bytes(out)
    assert sent == {f"Bearer {KEY}"}


def test_a_key_that_is_given_for_its_name_or_is_none(
    parent: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = fails(parent, server, ConfigError, api_key_env=KEY)
    assert "is the name of an environment variable that holds a key" in found
    assert KEY not in found
    monkeypatch.setenv("TRACEKIT_TEST_KEY", f"{KEY}\n{KEY}")
    found = fails(parent, server, ConfigError, api_key_env="TRACEKIT_TEST_KEY")
    assert "holds characters that no key has" in found
    assert KEY not in found


def test_a_server_that_wants_a_key(parent: Path, server: FakeServer) -> None:
    server.conduct.instead = lambda *_: Reply(401, {"error": "Unauthorized"})
    found = fails(parent, server, BackendUnavailableError)
    assert "answers 401 Unauthorized: a key is wanted, but the environment variable OPENAI_API_KEY is not set" in found
