"""A fake completions server: distributions made up from prefixes, told in three dialects, and many a misconduct."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

VOCAB_SIZE = 64
OWNER = "a fake of tracekit's tests"

Floats = npt.NDArray[np.float64]


def logprobs_after(prefix: Sequence[int]) -> Floats:
    """Returns the distribution [V] after a prefix: in steps of 1/4 before it is normalised, so that many tokens tie."""
    logits = np.round(np.random.default_rng([len(prefix), *prefix]).normal(scale=2.0, size=VOCAB_SIZE) * 4) / 4
    largest = logits.max()
    normalised: Floats = logits - largest - np.log(np.exp(logits - largest).sum())
    return normalised


@dataclass
class Reply:
    """What is answered in place of the truth."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Conduct:
    """What the server does.

    Attributes:
        dialects: what it answers to.
        shift: a prompt's logprobs are those of the token so many places on.
        num_missing: so many prompt logprobs are left out at the front.
        offset: is added to a prompt's logprobs.
        names_ids: tokens of the completions API are called 'token_id:123', not by their text.
        max_logprobs: the most candidates that it gives.
        owner, version, models, max_model_len: what it tells of itself.
        parents: base models of those that are adapters.
        instead: called with (path, body, headers) of each request; what it returns, if anything, is answered instead.
    """

    dialects: frozenset[str] = frozenset(("vllm", "openai", "sglang"))
    shift: int = 0
    num_missing: int = 0
    offset: float = 0.0
    names_ids: bool = False
    max_logprobs: int = 20
    owner: str = OWNER
    version: str | None = None
    models: tuple[str, ...] = ("fake",)
    max_model_len: int | None = 200
    parents: dict[str, str] = field(default_factory=dict)
    instead: Callable[[str, Any, dict[str, str]], Reply | None] = lambda *_: None


class FakeServer:
    """The server, in threads of this process.

    Attributes:
        conduct: may be changed while it runs.
        requests: (path, body) of all requests.
        is_dead: connections are closed without an answer, as those of a killed process are.
        most_at_once: the largest number of requests that were under way together.
    """

    def __init__(self, **conduct: Any) -> None:
        self.conduct = Conduct(**conduct)
        self.requests: list[tuple[str, Any]] = []
        self.is_dead = False
        self.most_at_once = 0
        self.ended = threading.Event()
        self._num_at_once = 0
        self._lock = threading.Lock()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        # A client that went away is no error of the server's.
        self._http.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ended.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def scored(self) -> list[list[int]]:
        """Returns the tokens of all requests that were to be scored."""
        found = []
        for _, body in self.requests:
            if body and any(name in body for name in ("prompt_logprobs", "echo", "logprob_start_len")):
                found.append(body.get("prompt") or body.get("input_ids"))
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            server_version = "FakeServer"

            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                self._do(None)

            def do_POST(self) -> None:
                self._do(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _do(self, body: Any) -> None:
                with fake._counted(self.path, body):
                    reply = None if fake.is_dead else fake._reply(self.path, body, dict(self.headers))
                if reply is None or fake.is_dead:
                    self.close_connection = True
                    return
                content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
                self.send_response(reply.status)
                for name, value in {**reply.headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

        return Handler

    @contextlib.contextmanager
    def _counted(self, path: str, body: Any) -> Iterator[None]:
        with self._lock:
            self.requests.append((path, body))
            self._num_at_once += 1
            self.most_at_once = max(self.most_at_once, self._num_at_once)
        try:
            yield
        finally:
            with self._lock:
                self._num_at_once -= 1

    def _reply(self, path: str, body: Any, headers: dict[str, str]) -> Reply:
        instead = self.conduct.instead(path, body, headers)
        if instead is not None:
            return instead
        if path == "/v1/models":
            return Reply(200, {"object": "list", "data": [self._card(name) for name in self.conduct.models]})
        if path == "/version" and self.conduct.version is not None:
            return Reply(200, {"version": self.conduct.version})
        if path == "/v1/completions":
            return self._completion(body)
        if path == "/generate" and "sglang" in self.conduct.dialects:
            return Reply(200, self._generated(body))
        return Reply(404, {"detail": "Not Found"})

    def _card(self, name: str) -> dict[str, Any]:
        card: dict[str, Any] = {"id": name, "owned_by": self.conduct.owner, "root": f"/models/{name}"}
        card["parent"] = self.conduct.parents.get(name)
        return card if self.conduct.max_model_len is None else card | {"max_model_len": self.conduct.max_model_len}

    def _completion(self, body: Any) -> Reply:
        prompt = body["prompt"]
        num_asked = max(body.get("prompt_logprobs", 0), body.get("logprobs", 0))
        if num_asked > self.conduct.max_logprobs:
            return Reply(
                400, {"error": {"message": f"{num_asked} logprobs,\nwhere {self.conduct.max_logprobs} are allowed"}}
            )
        greedy = int(logprobs_after(prompt).argmax())
        choice: dict[str, Any] = {"index": 0, "text": self._text(greedy), "logprobs": None, "finish_reason": "length"}
        if "logprobs" in body:
            rows = [(greedy, logprobs_after(prompt))]
            if body.get("echo") and "openai" in self.conduct.dialects:
                rows = [*self._rows([*prompt, greedy])[:-1], *rows]
            choice["logprobs"] = self._named(rows, body["logprobs"])
        if "prompt_logprobs" in body and "vllm" in self.conduct.dialects:
            rows = self._rows(prompt)
            choice["prompt_logprobs"] = [_by_id(*row, body["prompt_logprobs"]) for row in rows]
        return Reply(200, {"object": "text_completion", "choices": [choice]})

    def _rows(self, token_ids: list[int]) -> list[tuple[int, Floats | None]]:
        """Returns for each token the distribution that is said to have predicted it."""
        rows: list[tuple[int, Floats | None]] = [(token_ids[0], None)]
        for index in range(1, len(token_ids)):
            known = min(max(index + self.conduct.shift, 0), len(token_ids))
            rows.append((token_ids[index], logprobs_after(token_ids[:known]) + self.conduct.offset))
        return rows[self.conduct.num_missing :]

    def _text(self, token_id: int) -> str:
        # Two ids have one text.
        return f"token_id:{token_id}" if self.conduct.names_ids else f"t{token_id // 2}"

    def _named(self, rows: list[tuple[int, Floats | None]], num: int) -> dict[str, Any]:
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
        for token_id, logprobs in rows:
            found["tokens"].append(self._text(token_id))
            found["token_logprobs"].append(None if logprobs is None else float(logprobs[token_id]))
            listed = None if logprobs is None else [token_id, *_best(logprobs, num)]
            found["top_logprobs"].append(listed and {self._text(one): float(logprobs[one]) for one in listed})
        return found

    def _generated(self, body: Any) -> dict[str, Any]:
        token_ids, num = body["input_ids"], body["top_logprobs_num"]
        rows = self._rows(token_ids)
        greedy = int(logprobs_after(token_ids).argmax())
        output = [(greedy, logprobs_after(token_ids))] * body["sampling_params"]["max_new_tokens"]

        def own(row: tuple[int, Floats | None]) -> list[Any]:
            return [None if row[1] is None else float(row[1][row[0]]), row[0], None]

        def top(row: tuple[int, Floats | None]) -> list[list[Any]] | None:
            return None if row[1] is None else [[float(row[1][one]), one, None] for one in _best(row[1], num)]

        return {
            "text": "",
            "meta_info": {
                "prompt_tokens": len(token_ids),
                "input_token_logprobs": [own(row) for row in rows],
                "input_top_logprobs": [top(row) for row in rows],
                "output_token_logprobs": [own(row) for row in output],
                "output_top_logprobs": [top(row) for row in output],
            },
        }


def _best(logprobs: Floats, num: int) -> list[int]:
    """Returns the ids of the best tokens; equal ones in an order that is not tracekit's."""
    order: list[int] = np.lexsort((-np.arange(VOCAB_SIZE), -logprobs))[:num].tolist()
    return order


def _by_id(token_id: int, logprobs: Floats | None, num: int) -> dict[str, Any] | None:
    """As vLLM has it: the token itself first, with a rank that counts equal ones, then the best ones by place."""
    if logprobs is None:
        return None
    rank = int((logprobs >= logprobs[token_id]).sum())
    ranks = {token_id: rank} | {one: place for place, one in enumerate(_best(logprobs, num), 1)}
    return {
        str(one): {"logprob": max(float(logprobs[one]), -9999.0), "rank": rank, "decoded_token": f"t{one}"}
        for one, rank in ranks.items()
    }
