"""Hooks of vLLM's API server: what the headers of an HTTP request say, for the front end's hook to find.

A middleware keeps it in a context variable: the server works on each HTTP request, streaming included, in one task.

Sites: build_app where it is called, in vllm.entrypoints.openai.api_server (0.18) and
vllm.entrypoints.launchers.api_server.entry (0.32): they may have been imported before the plugin was loaded.
"""

from __future__ import annotations

import contextvars
import logging
import re
from types import ModuleType
from typing import Any, NamedTuple

from tracekit.record.engines.patching import wrap
from tracekit.record.labels import Labels, labels_of_headers

logger = logging.getLogger("tracekit")


class Caller(NamedTuple):
    """The HTTP request that the current task works on.

    Attributes:
        request_id: its header X-Request-Id.
        labels: in its headers.
    """

    request_id: str | None
    labels: Labels


_caller: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("tracekit_caller", default=None)


def current_caller() -> Caller | None:
    """Returns who is being served, or None outside of an HTTP request."""
    return _caller.get()


class CallerMiddleware:
    """ASGI middleware around vLLM's own; changes nothing of requests and responses."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serves one HTTP request, connection, or the server's life."""
        token = _caller.set(_caller_of(scope)) if scope.get("type") == "http" else None
        try:
            await self.app(scope, receive, send)
        finally:
            if token is not None:
                _caller.reset(token)


def _caller_of(scope: Any) -> Caller | None:
    try:
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))
        return Caller(headers.get("x-request-id") or None, labels_of_headers(headers))
    except Exception as error:  # noqa: BLE001 - the request is served whatever we make of its headers
        logger.warning("tracekit: headers of a request could not be read: %r", error)
        return None


# vLLM numbers the prompts of one HTTP request, also where there is only one.
_NUMBERED = re.compile(r"((?:cmpl-|resp_).+)[-_](\d+)")


def external_id(engine_id: str, caller: Caller | None) -> str:
    """Returns the id by which the caller knows a request, see schemas/README.md, External ids.

    Args:
        engine_id: the id that the API server gave to the engine, such as 'cmpl-my-id-7-0'.
        caller: who is being served; None where requests do not come by HTTP.
    """
    if caller is None:
        return engine_id
    if caller.request_id is None:
        numbered = _NUMBERED.fullmatch(engine_id)
        return numbered[1] if numbered and numbered[2] == "0" else engine_id
    own = re.fullmatch(rf"[a-z-]+-{re.escape(caller.request_id)}(?:[-_](?P<index>\d+))?", engine_id)
    index = own["index"] if own else (numbered[2] if (numbered := _NUMBERED.fullmatch(engine_id)) else None)
    return caller.request_id if index in (None, "0") else f"{caller.request_id}-{index}"


def _patch_app(module: ModuleType) -> None:
    if hasattr(module, "build_app"):
        wrap(module, "build_app", _around_build_app)
    else:
        logger.warning("tracekit: labels in HTTP headers are not recorded: %s has no build_app", module.__name__)


HOOKS = {
    "vllm.entrypoints.launchers.api_server.entry": _patch_app,
    "vllm.entrypoints.openai.api_server": _patch_app,
}


def _around_build_app(original: Any, *args: Any, **kwargs: Any) -> Any:
    app = original(*args, **kwargs)
    try:
        if app.middleware_stack is None:
            app.add_middleware(CallerMiddleware)
        else:
            # Built already, by hooks of a cloud provider in vLLM's own build_app.
            app.middleware_stack = CallerMiddleware(app.middleware_stack)
    except Exception as error:  # noqa: BLE001 - the server must start
        logger.error("tracekit: labels in HTTP headers are not recorded, the server goes on: %r", error)
    return app
