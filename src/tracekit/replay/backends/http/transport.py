"""JSON over HTTP with one server: so many requests at a time, repeated where that may help, from any thread."""

from __future__ import annotations

import asyncio
import email.utils
import random
import re
import threading
import time
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

import httpx

from tracekit.errors import BackendUnavailableError
from tracekit.replay.backends.http.access import ApiKey
from tracekit.replay.backends.http.answers import RefusedError, UnusableAnswerError, part_of

__all__ = ["Transport", "all_of"]

# Before the second attempt; twice as long before each further one, and less by chance, so that clients spread.
BACK_OFF_SECONDS = 0.5
_LONGEST_BACK_OFF_SECONDS = 30.0
_CONNECT_SECONDS = 10.0

_NOT_IMPLEMENTED, _TOO_MANY_REQUESTS = 501, 429
_KEY_IS_WRONG = (401, 403)

T = TypeVar("T")


class Transport:
    """Connections to one server.

    Args:
        address: its root, without a slash at the end.
        key: what it is asked with.
        concurrency: most requests at a time.
        timeout: seconds that one answer may take.
        retries: how often a request is repeated.
    """

    def __init__(self, address: str, key: ApiKey, *, concurrency: int, timeout: float, retries: int) -> None:
        self.address = address
        self._key = key
        self._timeout = timeout
        self._retries = retries
        # Waiting for one is no part of the time that an answer takes.
        self._slots = asyncio.Semaphore(concurrency)
        self._client = httpx.AsyncClient(
            headers=key.headers(),
            timeout=httpx.Timeout(None, connect=min(timeout, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )
        # A caller may have an event loop of its own that is running, as a notebook has.
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tracekit-http", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns what requests come to; an interruption ends them."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self.run(self._client.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def get(self, path: str) -> Any:
        """Returns the parsed answer.

        Raises:
            BackendUnavailableError: there is none, however often it is asked for, or the key is not accepted.
            RefusedError: the server refuses the request.
            UnusableAnswerError: the answer is no JSON.
        """
        return await self._ask("GET", path, None)

    async def post(self, path: str, body: dict[str, Any]) -> Any:
        """Returns the parsed answer to a request with a body; raises as `get` does."""
        return await self._ask("POST", path, body)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        async with self._slots:
            for attempt in range(self._retries + 1):
                try:
                    async with asyncio.timeout(self._timeout):
                        response = await self._client.request(method, f"{self.address}{path}", json=body)
                except (httpx.RequestError, TimeoutError) as error:
                    found, wanted = f"does not answer ({self._reason(error)})", 0.0
                else:
                    if not _may_pass(response.status_code):
                        return self._content(response)
                    found, wanted = f"answers {self._told(response)}", _retry_after(response)
                if wanted > self._timeout:
                    raise self._unavailable(f"{found} and asks for {wanted:.0f} s of patience", attempt + 1)
                if attempt < self._retries:
                    await asyncio.sleep(max(wanted, _back_off(attempt)))
        raise self._unavailable(found, self._retries + 1)

    def _unavailable(self, found: str, num_attempts: int) -> BackendUnavailableError:
        times = "" if num_attempts == 1 else f", asked {num_attempts} times"
        return BackendUnavailableError(
            f"{self.address} {found}{times}; see that the server runs, and what its log says, then give the same "
            "command again"
        )

    def _content(self, response: httpx.Response) -> Any:
        status = response.status_code
        if status in _KEY_IS_WRONG:
            raise BackendUnavailableError(
                f"{self.address} answers {status} {response.reason_phrase}: {self._key.advice}"
            )
        if response.is_redirect:
            raise BackendUnavailableError(
                f"{self.address} answers {status}, a redirection; give --url the address that it leads to"
            )
        if not response.is_success:
            raise RefusedError(self._told(response))
        try:
            return response.json()
        except ValueError:
            raise UnusableAnswerError("an answer that is no JSON") from None

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return f"no answer in {self._timeout:g} s"
        return self._key.hidden_in(str(error) or type(error).__name__)

    def _told(self, response: httpx.Response) -> str:
        """Returns the status, and what the server says of it."""
        try:
            answer: Any = response.json()
        except ValueError:
            answer = response.text
        told = part_of(answer, "error", "message") or part_of(answer, "message") or part_of(answer, "detail") or answer
        text = self._key.hidden_in(" ".join(str(told).split()))[:300]
        return f"{response.status_code} {response.reason_phrase}" + (f": {text}" if text else "")


async def all_of(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Returns all results in order; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


def _may_pass(status: int) -> bool:
    return status == _TOO_MANY_REQUESTS or (status >= 500 and status != _NOT_IMPLEMENTED)


def _back_off(attempt: int) -> float:
    return min(BACK_OFF_SECONDS * 2.0**attempt, _LONGEST_BACK_OFF_SECONDS) * random.uniform(0.5, 1.0)


def _retry_after(response: httpx.Response) -> float:
    """Returns how many seconds the server wants to be left alone: a number, or until a date."""
    text = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return max(email.utils.parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0
