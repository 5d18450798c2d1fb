"""The body of a hook: timed, and unable to harm the engine."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tracekit.record.pipeline import Recorder
from tracekit.record.registry import active_config

logger = logging.getLogger("tracekit")


class Hook:
    """Everything a hook does beside calling the original stands in one of these.

    An exception ends the body, is told to the recorder, and goes no further (unless the settings are strict).

    Attributes:
        failed: whether the body ended with an exception.
    """

    __slots__ = ("_before_ns", "_entered_ns", "_recorder", "_where", "failed")

    def __init__(self, recorder: Recorder, where: str) -> None:
        self._recorder = recorder
        self._where = where
        self.failed = False

    def __enter__(self) -> Self:
        self._before_ns = self._recorder.hook_ns
        self._entered_ns = time.perf_counter_ns()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if isinstance(error, Exception):
            self.failed = True
            self._recorder.failed(self._where, error)
        # What hooks within this one have added is part of its own time.
        self._recorder.hook_ns = self._before_ns + time.perf_counter_ns() - self._entered_ns
        return self.failed


@dataclass
class Watched:
    """What is noted of an inner call, which knows neither runner nor recorder: its hooks keep failures for later."""

    failure: Exception | None = field(default=None, init=False)

    def raise_failure(self) -> None:
        """Raises what went wrong while the call was watched; there it must not."""
        if self.failure is not None:
            raise self.failure


def noting(see: Callable[..., None]) -> Callable[..., None]:
    """Makes `see(watched, ...)` keep its failure in what it notes into: an exception must not leave a hook."""

    @functools.wraps(see)
    def guarded(watched: Watched, *args: Any) -> None:
        try:
            see(watched, *args)
        except Exception as error:  # noqa: BLE001 - whatever it is, the engine must not notice
            watched.failure = error

    return guarded


@contextlib.contextmanager
def harmless(what: str) -> Iterator[None]:
    """Surrounds what a hook does in a process that has no recorder to tell of failures.

    Args:
        what: what is not recorded where it fails.
    """
    try:
        yield
    except Exception as error:
        config = active_config()
        if config is not None and config.strict:
            raise
        logger.error("tracekit: %s is not recorded, the engine goes on: %r", what, error)
