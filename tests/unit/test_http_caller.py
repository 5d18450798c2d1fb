"""Who calls over HTTP: the middleware's context, and the ids that callers know their requests by."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tracekit.record.engines.http import Caller, CallerMiddleware, current_caller, external_id
from tracekit.record.labels import Labels


def _caller(request_id: str | None) -> Caller:
    return Caller(request_id, Labels())


@pytest.mark.parametrize(
    ("engine_id", "sent", "expected"),
    [
        ("cmpl-my-id-7-0", "my-id-7", "my-id-7"),
        ("cmpl-my-id-7-3", "my-id-7", "my-id-7-3"),
        ("chatcmpl-my-id-7", "my-id-7", "my-id-7"),
        ("chatcmpl-my-id-7_0", "my-id-7", "my-id-7"),
        ("chatcmpl-my-id-7_2", "my-id-7", "my-id-7-2"),
        ("generate-tokens-x", "x", "x"),
        # Ids that look like what the server adds to them.
        ("cmpl-1-1", "1", "1-1"),
        ("cmpl-1-0", "1", "1"),
        ("cmpl-a-0-0", "a-0", "a-0"),
        ("cmpl-cmpl-0", "cmpl", "cmpl"),
        ("chatcmpl-a-0", "a-0", "a-0"),
        ("cmpl-.*-0", ".*", ".*"),
        # An endpoint that makes ids of its own.
        ("resp_8f2e_0", "my-id-7", "my-id-7"),
        ("resp_8f2e_1", "my-id-7", "my-id-7-1"),
        ("something else", "my-id-7", "my-id-7"),
        ("cmpl-8f2e-0", None, "cmpl-8f2e"),
        ("cmpl-8f2e-1", None, "cmpl-8f2e-1"),
        ("chatcmpl-8f2e", None, "chatcmpl-8f2e"),
        ("chatcmpl-a_0", None, "chatcmpl-a_0"),
        ("resp_8f2e_0", None, "resp_8f2e"),
        ("whatever-0", None, "whatever-0"),
    ],
)
def test_external_ids(engine_id: str, sent: str | None, expected: str) -> None:
    assert external_id(engine_id, _caller(sent)) == expected


@pytest.mark.parametrize("engine_id", ["0", "cmpl-x-0", "my request"])
def test_outside_of_http_ids_are_the_callers_already(engine_id: str) -> None:
    assert external_id(engine_id, None) == engine_id


def _serve(*scopes: dict[str, Any]) -> list[Caller | None]:
    """Serves requests at once, each looking at its caller before and after a pause."""
    seen: dict[int, list[Caller | None]] = {}

    async def app(scope: Any, _receive: Any, send: Any) -> None:
        seen[scope["n"]] = [current_caller()]
        await asyncio.sleep(0)
        # Responses are streamed from tasks that the request starts.
        seen[scope["n"]].append(await asyncio.create_task(_look()))
        await send(scope["n"])

    async def _look() -> Caller | None:
        return current_caller()

    async def serve() -> list[int]:
        sent: list[int] = []

        async def send(n: int) -> None:
            sent.append(n)

        served = CallerMiddleware(app)
        await asyncio.gather(*(served(scope, None, send) for scope in scopes))
        assert current_caller() is None
        return sent

    assert sorted(asyncio.run(serve())) == list(range(len(scopes)))
    assert all(before == after for before, after in seen.values())
    return [seen[n][0] for n in range(len(scopes))]


def _http(n: int, **headers: str) -> dict[str, Any]:
    pairs = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "n": n, "headers": pairs}


def test_every_request_has_its_own_caller() -> None:
    first, second, third, socket = _serve(
        _http(0, X_Request_Id="a", X_Tracekit_Group_Id="g\xe9"),
        _http(1, x_request_id=""),
        _http(2, x_request_id="c", x_tracekit_turn_index="x"),
        {"type": "websocket", "n": 3, "headers": []},
    )
    assert first == Caller("a", Labels({"group_id": "g\xe9"}))
    assert second == Caller(None, Labels())
    assert third is not None
    assert "a whole number from 0 on" in third.labels.refused[0]
    assert socket is None


def test_headers_that_cannot_be_read_do_no_harm() -> None:
    assert _serve({"type": "http", "n": 0}) == [None]
