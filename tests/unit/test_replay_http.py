"""The http backend against a fake server, which says that it is one; figures are worked out from its distributions."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import make_request, make_trace
from fake_replays import NUM_CANDIDATES, expected_logprobs, make_requests, rows_of, score
from fake_server import VOCAB_SIZE, FakeServer, Reply
from tracekit.cli.main import main
from tracekit.replay.backends.http import transport
from tracekit.replay.backends.http.dialects import DIALECTS
from tracekit.store import Trace


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


NULL_COLUMNS = ("logit", "logsumexp", "entropy", "num_tied", "logit_min", "top_logits", "parent_top_logits")


PROCESSED = ("processed_logprob", "processed_source", "kept_count", "kept_mass", "reported_logprob")


@pytest.mark.parametrize(
    ("conduct", "options"),
    [
        ({}, {}),
        ({"dialects": {"vllm"}}, {"dialect": "vllm", "concurrency": 1}),
        ({"dialects": {"openai"}, "names_ids": True}, {}),
        ({"names_ids": True}, {"dialect": "openai", "concurrency": 3}),
        ({}, {"dialect": "sglang"}),
    ],
    ids=str,
)
def test_scores_and_what_follows_equal_numpy(conduct: dict[str, Any], options: dict[str, Any], parent: Path) -> None:
    with FakeServer(**conduct) as server:
        rows = score(parent, server, **options)
    expected = expected_logprobs(make_requests())
    assert len(rows) == len(expected)
    ranks = set()
    for row, (request_id, token_id, logprobs) in zip(rows, expected, strict=True):
        assert (row["request_id"], row["token_id"], row["forced"], row["is_prompt"]) == (
            request_id,
            token_id,
            True,
            False,
        )
        assert row["logprob"] == np.float32(logprobs[token_id])
        order = np.lexsort((np.arange(VOCAB_SIZE), -logprobs))
        assert row["argmax_token_id"] == logprobs.argmax()
        assert row["top1_margin"] == pytest.approx(logprobs[order[0]] - logprobs[order[1]], abs=1e-6)
        top = row["top_token_ids"]
        assert logprobs[top].tolist() == logprobs[order[:NUM_CANDIDATES]].tolist()
        assert sorted(top, key=lambda one: (-logprobs[one], one)) == top
        rank = 1 + int((logprobs > logprobs[token_id]).sum())
        assert row["rank"] == (rank if token_id in top else None)
        ranks.add(row["rank"])
        assert all(row[name] is None for name in (*NULL_COLUMNS, *PROCESSED))
    assert {None, 1, 2, 3} <= ranks


def test_tokens_by_their_text_tell_the_logprob_alone(parent: Path) -> None:
    with FakeServer(dialects={"openai"}) as server:
        rows = score(parent, server)
    for row, (_, token_id, logprobs) in zip(rows, expected_logprobs(make_requests()), strict=True):
        assert row["logprob"] == np.float32(logprobs[token_id])
        assert row["rank"] is row["argmax_token_id"] is row["top1_margin"] is row["top_token_ids"] is None


def test_only_what_was_recorded_is_sent_with_one_token_more(parent: Path, server: FakeServer) -> None:
    score(parent, server, dialect="vllm")
    sent = {tuple(made.request["prompt_token_ids"][0] + made.tokens["token_id"]) for made in make_requests()}
    assert sent <= {tuple(token_ids) for token_ids in server.scored}
    assert len(server.scored) == len(sent) + 1
    bodies = [body for path, body in server.requests if path == "/v1/completions"]
    assert {(body["max_tokens"], body["temperature"], body["model"]) for body in bodies} == {(1, 0, "fake")}


def test_one_candidate_is_kept_where_one_is_wanted(parent: Path, server: FakeServer) -> None:
    rows = score(parent, server, top_k=1)
    assert {len(row["top_token_ids"]) for row in rows} == {1}
    assert all(row["top_token_ids"] == [row["argmax_token_id"]] for row in rows)
    assert None not in {row["top1_margin"] for row in rows}


def test_minus_infinity_as_servers_write_it() -> None:
    places = [None, {"5": {"logprob": -9999.0, "rank": 9}, "2": {"logprob": -0.5}, "3": {"logprob": -1.5}}]
    (found,) = DIALECTS["vllm"].scores({"choices": [{"prompt_logprobs": places}]}, [1, 5], 1, 2)
    assert (found.logprob, found.candidates) == (-np.inf, [(2, -0.5), (3, -1.5)])
    logprobs = {"token_logprobs": [None, -9999.0], "top_logprobs": [None, {"a": -0.5}]}
    (found,) = DIALECTS["openai"].scores({"choices": [{"logprobs": logprobs}]}, [1, 5], 1, 1)
    assert (found.logprob, found.best) == (-np.inf, -0.5)


def test_the_run_says_what_is_known_of_the_server(parent: Path, tmp_path: Path, server: FakeServer) -> None:
    # A folder of the model's name is not what is served.
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake" / "config.json").write_text("{}")
    score(parent, server, model="fake", url=f"{server.url}/v1/", top_k=3, concurrency=2)
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    expected = {
        "backend": "http",
        "mode": "prefill",
        "model": "/models/fake",
        "max_model_len": 200,
        **dict.fromkeys(("engine", "engine_version", "model_fingerprint", "tokenizer", "vocab_size", "dtype")),
    }
    assert {name: run[name] for name in expected} == expected
    options = json.loads(run["options"])
    assert (options["url"], options["concurrency"], options["dialect"]) == (f"{server.url}/v1/", 2, None)


@pytest.mark.parametrize(("model", "adapter"), [("base", None), ("tuned", "tuned")])
def test_requests_say_which_adapter_scored_them(
    model: str, adapter: str | None, tmp_path: Path, server: FakeServer
) -> None:
    requests = [make_request("r0"), make_request("r1", lora="recorded", lora_version="3")]
    parent = make_trace(tmp_path / "parent", requests=requests)
    server.conduct.models, server.conduct.parents = ("base", "tuned"), {"tuned": "base"}
    score(parent, server, model=model)
    found = rows_of(tmp_path / "out", "requests")
    assert [(row["lora"], row["lora_version"]) for row in found] == [(adapter, None)] * 2
    (run,) = Trace(tmp_path / "out").read("runs").to_pylist()
    assert run["model"] == "/models/base"


@pytest.mark.parametrize(
    ("owner", "engine", "version"), [("vllm", "vllm", "0.32.0+fake"), ("sglang", "sglang", None), ("me", None, None)]
)
def test_an_engine_is_named_where_the_server_names_it(
    owner: str, engine: str | None, version: str | None, parent: Path
) -> None:
    with FakeServer(owner=owner, version="0.32.0+fake") as server:
        score(parent, server)
    (run,) = Trace(parent.with_name("out")).read("runs").to_pylist()
    assert (run["engine"], run["engine_version"]) == (engine, version)


def test_so_many_requests_are_under_way_and_no_more(parent: Path, server: FakeServer) -> None:
    recorded = {tuple(made.request["prompt_token_ids"][0] + made.tokens["token_id"]) for made in make_requests()}
    together = threading.Barrier(3)

    def wait(path: str, body: Any, headers: dict[str, str]) -> Reply | None:  # noqa: ARG001
        if body and tuple(body["prompt"]) in recorded:
            together.wait(60)
        return None

    server.conduct.instead = wait
    score(parent, server, concurrency=3)
    assert len(recorded) == 9
    assert server.most_at_once == 3


def test_a_replay_inside_a_running_event_loop(parent: Path, server: FakeServer) -> None:
    async def notebook() -> list[dict[str, Any]]:
        return score(parent, server, limit=2)

    rows = asyncio.run(notebook())
    assert {row["request_id"] for row in rows} == {"r0", "r1"}


def test_requests_may_be_chosen_as_everywhere(parent: Path, tmp_path: Path, server: FakeServer) -> None:
    where = ["replay", str(parent), "-o", str(tmp_path / "out"), "--backend", "http", "--url", server.url]
    assert main([*where, "--where", "request_id IN ('r1', 'r4')"]) == 0
    assert {row["request_id"] for row in rows_of(tmp_path / "out", "requests")} == {"r1", "r4"}


def test_a_served_replay_is_compared_like_any_other(
    parent: Path, tmp_path: Path, server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    score(parent, server)
    assert main(["diff", str(parent), str(tmp_path / "out"), "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]
    expected = [logprobs[token_id] + 0.5 for _, token_id, logprobs in expected_logprobs(make_requests())]
    assert found["raw"]["kl"]["value"] == pytest.approx(-np.mean(expected), rel=1e-5)
    assert found["processed"]["kl"]["num_tokens"] == 0


def test_without_its_software_it_is_not_available(parent: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from tracekit.cli.main import main\n"
        f"sys.exit(main(['replay', {str(parent)!r}, '-o', {str(tmp_path / 'out')!r}, '--backend', 'http']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "replay backend 'http' cannot be loaded: 'httpx' is not installed" in done.stderr
    assert "pip install 'tracekit[http]'" in done.stderr


def test_it_needs_no_torch(parent: Path, tmp_path: Path, server: FakeServer) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from tracekit.cli.main import main\n"
        f"sys.exit(main(['replay', {str(parent)!r}, '-o', {str(tmp_path / 'out')!r}, '--backend', 'http', "
        f"'--url', {server.url!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_says_what_was_not_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Server (http): --url" in shown
    assert "SGLang's /generate (written to its documentation, not run here)" in shown
