"""Spreads batches over workers of a Ray cluster, and gives their rows back in order.

Each worker opens the backend once. Batches are sent in their order to whoever is free. A worker that is lost is
replaced, and what it had not finished goes to others: as a batch's rows depend on the batch alone, they are the same.
"""

from __future__ import annotations

import collections.abc
import contextlib
import itertools
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
    WorkerCrashedError,
)

from tracekit.cluster import Cluster
from tracekit.cluster.connection import connect, raised, reason, room_for
from tracekit.errors import BackendUnavailableError, TracekitError
from tracekit.replay.backends.base import Rows, RunRows, Sequence
from tracekit.replay.workers.actor import BackendActor, OpenedBackend, ScoredBatch
from tracekit.replay.workers.base import Facts, Opening

# One is scored, one waits, so that a worker need not wait.
_SENT_PER_WORKER = 2
# Planned batches in memory, for each worker: those that are sent, and those that are done before their turn.
_HELD_PER_WORKER = 4
_MAX_LOSSES = 3
_CLOSE_SECONDS = 5.0

_ACTOR: Any = ray.remote(BackendActor)
_LOST = (RayActorError, WorkerCrashedError, NodeDiedError, ObjectLostError, OutOfMemoryError)


class RayWorkers:
    """Backends on a Ray cluster.

    Args:
        opening: how each of them is opened.
        cluster: where.

    Raises:
        BackendUnavailableError: there is no cluster at the address, or its workers die.
        ConfigError: the cluster has no room for the workers.
        TracekitError: what opening a backend raises.
    """

    def __init__(self, opening: Opening, cluster: Cluster) -> None:
        self._opening = opening
        self._workers: list[_Worker] = []
        self._num_failed_openings = 0
        self._opened: OpenedBackend | None = None
        self.peak_bytes = 0
        self._is_ours = connect(cluster)
        try:
            self._room = room_for(cluster)
            for _ in range(self._room.num_workers):
                self._start()
            while self._opened is None:
                self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def facts(self) -> Facts:
        assert self._opened is not None
        return self._opened.facts

    def score(self, batches: Iterable[collections.abc.Sequence[Sequence]]) -> Iterator[Iterable[Rows | RunRows]]:
        source = iter(batches)
        held: deque[_Batch] = deque()
        while True:
            room = _HELD_PER_WORKER * self._room.num_workers - len(held)
            held.extend(_Batch(sequences) for sequences in itertools.islice(source, room))
            if not held:
                return
            self._send(held)
            if held[0].rows is None:
                self._wait()
            else:
                yield held.popleft().rows or ()

    def close(self) -> None:
        try:
            closed = [worker.actor.close.remote() for worker in self._workers if worker.is_open]
            if closed:
                with contextlib.suppress(RayError):
                    ray.wait(closed, num_returns=len(closed), timeout=_CLOSE_SECONDS)
            for worker in self._workers:
                worker.kill()
        finally:
            if self._is_ours:
                ray.shutdown()

    def _start(self) -> None:
        options: dict[str, Any] = {
            "num_cpus": self._room.num_cpus,
            "num_gpus": self._room.num_gpus,
            "scheduling_strategy": "SPREAD",
            "runtime_env": {"env_vars": _threads(self._room.num_workers)},
        }
        actor = _ACTOR.options(**options).remote(os.getcwd())
        self._workers.append(_Worker(actor, actor.open.remote(self._opening)))

    def _send(self, held: Iterable[_Batch]) -> None:
        for batch in held:
            if batch.rows is None and not batch.is_sent:
                free = [worker for worker in self._workers if worker.has_room_for(batch)]
                if not free:
                    return
                min(free, key=lambda worker: len(worker.sent)).send(batch)

    def _wait(self) -> None:
        """Waits until a worker has opened its backend, has scored a batch, or is lost."""
        worker_of = {ref: worker for worker in self._workers for ref in worker.awaited}
        (ref, *_), _ = ray.wait(list(worker_of), num_returns=1)
        worker = worker_of[ref]
        try:
            found = ray.get(ref)
        except RayTaskError as error:
            raise raised(error) from (None if isinstance(error.cause, TracekitError) else error)
        except _LOST as error:
            self._replace(worker, error)
        except RayError as error:
            raise BackendUnavailableError(f"the Ray cluster failed: {reason(error)}") from error
        else:
            if isinstance(found, OpenedBackend):
                self._take(worker, found)
            else:
                self._receive(worker, ref, found)

    def _take(self, worker: _Worker, found: OpenedBackend) -> None:
        worker.opening = None
        self._num_failed_openings = 0
        expected = self._opened = self._opened or found
        if (found.facts, found.version) != (expected.facts, expected.version):
            raise BackendUnavailableError(
                f"workers are not alike: {found.hostname} has {_differing(found, expected)} "
                f"{expected.hostname}, so figures would depend on which of them scored what; use nodes of one kind"
            )

    def _receive(self, worker: _Worker, ref: Any, found: ScoredBatch) -> None:
        batch = worker.sent.pop(ref)
        batch.rows = found.of(batch.sequences)
        self.peak_bytes = max(self.peak_bytes, found.peak_bytes)

    def _replace(self, worker: _Worker, error: Exception) -> None:
        self._workers.remove(worker)
        worker.kill()
        for batch in worker.sent.values():
            batch.num_losses += 1
            batch.is_sent = False
            if batch.num_losses == _MAX_LOSSES:
                raise _given_up(f"the batch that begins with request '{batch.sequences[0].request_id}'", error)
        if not worker.is_open:
            self._num_failed_openings += 1
            if self._num_failed_openings == _MAX_LOSSES:
                raise _given_up(f"the opening of backend '{self._opening.name}'", error)
        self._start()


@dataclass
class _Batch:
    """A batch whose rows are not written yet.

    Attributes:
        sequences: what is to be scored.
        num_losses: how many workers were lost that had it, and had perhaps begun with it.
        is_sent: whether a worker has it.
        rows: what was found; None until then.
    """

    sequences: collections.abc.Sequence[Sequence]
    num_losses: int = 0
    is_sent: bool = False
    rows: list[Rows | RunRows] | None = None


class _Worker:
    """An actor, and what it is at.

    Attributes:
        actor: its handle.
        opening: the reference of its opening; None when it is open.
        sent: batches that it has, by the reference of their rows, in the order in which it scores them.
    """

    def __init__(self, actor: Any, opening: Any) -> None:
        self.actor = actor
        self.opening: Any | None = opening
        self.sent: dict[Any, _Batch] = {}

    @property
    def is_open(self) -> bool:
        return self.opening is None

    @property
    def awaited(self) -> list[Any]:
        return list(self.sent) if self.opening is None else [self.opening]

    def has_room_for(self, batch: _Batch) -> bool:
        # What a worker was lost with is scored alone: then it is clear what the next one is lost over.
        alone = any(held.num_losses for held in (batch, *self.sent.values()))
        return self.is_open and len(self.sent) < (1 if alone else _SENT_PER_WORKER)

    def send(self, batch: _Batch) -> None:
        batch.is_sent = True
        self.sent[self.actor.score.remote(batch.sequences)] = batch

    def kill(self) -> None:
        with contextlib.suppress(RayError, ValueError):
            ray.kill(self.actor)


def _threads(num_workers: int) -> dict[str, str]:
    """Returns variables by which workers compute with as many threads as this process would: results depend on it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        num_threads = int(torch.get_num_threads())
    else:
        given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        num_threads = int(given or len(os.sched_getaffinity(0)))
    found = {"OMP_NUM_THREADS": str(num_threads)}
    if num_workers * num_threads > ray.cluster_resources().get("CPU", 0):
        # Threads that wait must not keep others from their core: four on two cores take a quarter of the time so.
        found["OMP_WAIT_POLICY"] = os.environ.get("OMP_WAIT_POLICY", "PASSIVE")
    return found


def _given_up(what: str, error: Exception) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"{_MAX_LOSSES} workers were lost over {what}: {reason(error)}; see that nodes have memory enough, or start "
        "fewer workers"
    )


def _differing(found: OpenedBackend, expected: OpenedBackend) -> str:
    def flat(opened: OpenedBackend) -> dict[str, Any]:
        return {"tracekit": opened.version, **vars(opened.facts), **opened.facts.description}

    ours, theirs = flat(found), flat(expected)
    name = next(name for name in reversed([*theirs, *ours]) if ours.get(name) != theirs.get(name))
    return f"{name} {ours.get(name)!r}, not {theirs.get(name)!r} as"
