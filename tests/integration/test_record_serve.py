"""`vllm serve` under an OpenAI client: every token the client got is in the trace, under the client's own names.

One server answers all requests. It leaves out requests of seven tokens, so that the front end, where requests are
chosen, and the worker, where tokens are recorded, are seen to agree.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from tracekit.analysis import connect
from tracekit.store import Trace

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

from serving import MODEL_NAME, Server

pytestmark = pytest.mark.engine

Requests = dict[tuple[str, int | None], dict[str, Any]]


@dataclass
class Answer:
    """What the client got of one sample."""

    response_id: str
    token_ids: list[int] = field(default_factory=list)
    finish_reason: str | None = None


class Client:
    """Asks the server, and keeps what it got by (the id it knows the request by, index of the choice)."""

    def __init__(self, url: str) -> None:
        self.answers: dict[tuple[str, int], Answer] = {}
        self._openai = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    async def complete(
        self, request_id: str | None, prompt: Any, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        await self._ask(self._openai.completions.create, request_id, headers, {"prompt": prompt, **more})

    async def chat(self, request_id: str | None, text: str, headers: dict[str, str] | None = None, **more: Any) -> None:
        messages = [{"role": "user", "content": text}]
        await self._ask(self._openai.chat.completions.create, request_id, headers, {"messages": messages, **more})

    async def _ask(
        self, create: Any, request_id: str | None, headers: dict[str, str] | None, arguments: dict[str, Any]
    ) -> None:
        stop_after = arguments.pop("stop_after", None)
        body = {"return_token_ids": True, "ignore_eos": True, **arguments.pop("body", {})}
        sent = (headers or {}) | ({} if request_id is None else {"X-Request-Id": request_id})
        reply = await create(model=MODEL_NAME, extra_headers=sent, extra_body=body, **arguments)
        if not arguments.get("stream"):
            self._take(request_id, reply)
            return
        async for chunk in reply:
            self._take(request_id, chunk)
            if stop_after and sum(len(answer.token_ids) for answer in self._of(request_id)) >= stop_after:
                await reply.close()
                return

    def _take(self, request_id: str | None, reply: Any) -> None:
        for choice in reply.choices:
            answer = self.answers.setdefault((request_id or reply.id, choice.index), Answer(reply.id))
            answer.token_ids += getattr(choice, "token_ids", None) or []
            answer.finish_reason = choice.finish_reason or answer.finish_reason

    def _of(self, request_id: str | None) -> list[Answer]:
        return [answer for (known_id, _), answer in self.answers.items() if known_id == request_id]


LABELS = {
    "X-Tracekit-Group-Id": "from-header",
    "X-Tracekit-Trajectory-Id": "t-header",
    "X-Tracekit-Turn-Index": "4",
    "X-Tracekit-Tags": '{"from": "header"}',
}


async def converse(client: Client) -> None:
    """Asks for everything at once, as a rollout would."""
    xargs = {"tracekit_group_id": "from-body", "tracekit_tags": '{"from": "body"}', "tracekit_hidden": True}
    await asyncio.gather(
        client.complete("plain", "The capital of France is", max_tokens=5, temperature=0),
        client.complete("headers", "One", LABELS, max_tokens=6, stream=True),
        client.complete("both", "Two", LABELS, max_tokens=6, body={"vllm_xargs": xargs}),
        client.chat("chat", "Say hello.", max_tokens=8, body={"vllm_xargs": {"tracekit_turn_index": 0}}),
        client.chat("chat stream", "Say goodbye.", max_tokens=9, stream=True, n=2, seed=5),
        client.chat(None, "Say nothing.", max_tokens=4),
        client.complete(None, [1, 2, 3, 4], max_tokens=4, stream=True),
        client.complete("several", ["First", "Second", "Third"], max_tokens=3),
        client.complete("aborted", "A story that never ends:", max_tokens=900, stream=True, stop_after=20),
        client.complete("left out", "Seven", max_tokens=7),
        client.complete(
            "asked for", "Seven", max_tokens=7, stream=True, body={"vllm_xargs": {"tracekit_record": True}}
        ),
        client.chat("refused", "No.", max_tokens=5, body={"vllm_xargs": {"tracekit_record": False}}),
    )


@pytest.fixture(scope="module")
def served(shallow_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Client, Path]:
    folder = tmp_path_factory.mktemp("serve")
    options = ("--strict", "--where", "max_tokens != 7")
    with Server(shallow_model, folder / "trace", folder / "log", options) as server:
        client = Client(server.url)
        asyncio.run(converse(client))
        _wait_until_flushed(folder / "trace")
        code = server.stop()
        assert code in (0, 128 + 15), server.tail()
    return client, folder / "trace"


def _wait_until_flushed(trace: Path, timeout: float = 60.0) -> None:
    """Waits for the aborted request's end, and for all tokens: vLLM kills a worker soon after asking it to stop."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        with connect(trace) as session:
            ended = session.sql("SELECT finish_reason, num_output_tokens FROM outcomes").rows()
            ((num_tokens,),) = session.sql("SELECT count(*) FROM tokens").rows()
        if ("abort" in {reason for reason, _ in ended}) and num_tokens == sum(count for _, count in ended):
            return
        time.sleep(0.5)
    raise AssertionError(f"not all tokens are in the trace after {timeout:.0f} s")


@pytest.fixture(scope="module")
def requests(served: tuple[Client, Path]) -> Requests:
    """Rows of the trace by external id and sample, with the delivered token ids."""
    query = (
        "SELECT requests.*, outcomes.finish_reason, outcomes.num_output_tokens, t.ids AS token_ids, t.places "
        "FROM requests LEFT JOIN outcomes USING (run_id, request_id) LEFT JOIN ("
        "SELECT request_id, list(token_id ORDER BY output_index) AS ids, "
        "list(output_index ORDER BY output_index) AS places FROM tokens GROUP BY 1) t USING (request_id)"
    )
    with connect(served[1]) as session:
        rows = session.sql(query).arrow().to_pylist()
    found = {(row["external_id"], row["sample_index"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def _row_of(requests: Requests, known_id: str, index: int) -> dict[str, Any] | None:
    """Finds a choice of the client's: by its id, and by the prompt's or sample's number."""
    if known_id == "several":
        return requests[known_id if index == 0 else f"{known_id}-{index}", None]
    return requests.get((known_id, index if known_id == "chat stream" else None))


def test_the_trace_holds_what_the_client_got(served: tuple[Client, Path], requests: Requests) -> None:
    client, _ = served
    checked = 0
    for (known_id, index), answer in client.answers.items():
        row = _row_of(requests, known_id, index)
        if known_id in ("left out", "refused"):
            assert row is None
            continue
        assert row is not None, known_id
        assert row["places"] == list(range(len(row["places"])))
        if known_id == "aborted":
            # The engine may be ahead of the client that left.
            assert 20 <= len(answer.token_ids) <= len(row["token_ids"]) == row["num_output_tokens"] < 900
            assert row["token_ids"][: len(answer.token_ids)] == answer.token_ids
            assert row["finish_reason"] == "abort"
        else:
            assert row["token_ids"] == answer.token_ids, known_id
            assert row["num_output_tokens"] == len(answer.token_ids)
            assert row["finish_reason"] == answer.finish_reason == "length"
        checked += 1
    assert checked == len(requests) == 13


def test_ids_are_the_clients_or_those_of_the_responses(served: tuple[Client, Path], requests: Requests) -> None:
    client, _ = served
    ids = {answer.response_id for (known_id, _), answer in client.answers.items() if known_id == answer.response_id}
    assert len(ids) == 2, "two requests were sent without an id"
    assert {external_id for external_id, _ in requests} == {
        *(
            "plain",
            "headers",
            "both",
            "chat",
            "chat stream",
            "several",
            "several-1",
            "several-2",
            "aborted",
            "asked for",
        ),
        *ids,
    }
    assert client.answers["plain", 0].response_id == "cmpl-plain"
    assert client.answers["chat", 0].response_id == "chatcmpl-chat"


def test_labels_come_from_body_and_headers(requests: Requests) -> None:
    names = ("group_id", "trajectory_id", "turn_index", "tags")
    found = {
        known_id: tuple(requests[known_id, None][name] for name in names)
        for known_id in ("headers", "both", "chat", "plain")
    }
    assert found == {
        "headers": ("from-header", "t-header", 4, '{"from": "header"}'),
        "both": ("from-body", "t-header", 4, '{"from": "body"}'),
        "chat": (None, None, 0, None),
        "plain": (None, None, None, None),
    }


def test_prompts_are_as_the_model_saw_them(requests: Requests) -> None:
    assert requests["plain", None]["prompt_text"] == "The capital of France is"
    text = requests["chat", None]["prompt_text"]
    assert text.endswith("user\nSay hello.<|im_end|>\n<|im_start|>assistant\n")
    assert requests["chat stream", 0]["n"] == requests["chat stream", 1]["n"] == 2
    (ids_only,) = (row for row in requests.values() if row["prompt_token_ids"] == [1, 2, 3, 4])
    assert ids_only["prompt_text"] is None
    assert ids_only["external_id"].startswith("cmpl-")


def test_hidden_states_of_the_request_that_asked(served: tuple[Client, Path]) -> None:
    with connect(served[1]) as session:
        query = "SELECT external_id, count(*) FROM hidden JOIN requests USING (run_id, request_id) GROUP BY 1"
        assert session.sql(query).rows() == [("both", 6)]


def test_nothing_was_dropped_and_one_run_holds_it_all(served: tuple[Client, Path]) -> None:
    trace = Trace(served[1])
    kinds = {row["kind"] for row in trace.read("events").to_pylist()}
    assert kinds <= {"writer_closed"}
    runs = trace.read("runs").to_pylist()
    assert {row["process"] for row in runs} == {"front_end", "worker"}
    assert len({row["run_id"] for row in runs}) == 1
    assert {json.loads(row["capture_config"])["where"] for row in runs} == {"max_tokens != 7"}
