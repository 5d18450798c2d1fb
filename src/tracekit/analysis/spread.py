"""Measures two compacted traces on a Ray cluster: each task a share of their buckets, by the SQL of any comparison."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError

from tracekit.analysis import sharing
from tracekit.analysis.session import Session
from tracekit.analysis.sharing import Comparing, Share
from tracekit.cluster import Cluster
from tracekit.cluster.connection import Room, connect, raised, reason, room_for
from tracekit.errors import BackendUnavailableError, NotATraceError, TracekitError
from tracekit.store import Trace

# So that one who is done with a small share takes another; but a session takes as long to open as so many tokens.
_SHARES_PER_WORKER = 4
_TOKENS_PER_SHARE = 2_000_000
# Of a task whose worker was lost.
_MAX_RETRIES = 3
# What DuckDB takes of a machine by default.
_MEMORY_SHARE = 0.8
_LEAST_MEGABYTES = 512
_WATCH_SECONDS = 0.5


class Spread:
    """Measures two traces on a cluster.

    Args:
        comparing: what is compared; all nodes have both traces under the same absolute paths.
        cluster: where. GPUs are not used unless some are asked for.
        progress: is told how much is done, in per cent.

    Raises:
        ConfigError: a trace is not compacted.
    """

    def __init__(self, comparing: Comparing, cluster: Cluster, progress: Callable[[float], None] | None) -> None:
        self._comparing = comparing
        self._cluster = dataclasses.replace(cluster, gpus_per_worker=cluster.gpus_per_worker or 0)
        self._progress = progress
        self._most_shares = sharing.most_shares((comparing.a, comparing.b))
        self._cancelled = threading.Event()

    def __call__(self, method: str) -> dict[str, pa.Table]:
        """Returns the tables of `sharing.MEASURED`, over all requests.

        Args:
            method: how requests are paired, in every share.

        Raises:
            ConfigError: the cluster has no room.
            BackendUnavailableError: there is no cluster, or its workers are lost.
            TracekitError: what a worker raised.
        """
        is_ours = connect(self._cluster)
        try:
            room = room_for(self._cluster)
            return sharing.together(self._measured(self._asked(method, room), self._shares(room), room))
        except RayTaskError as error:
            raise raised(error) from (None if isinstance(error.cause, TracekitError) else error)
        except RayError as error:
            raise BackendUnavailableError(f"the Ray cluster failed: {reason(error)}") from error
        finally:
            if is_ours:
                ray.shutdown()

    def cancel(self) -> None:
        self._cancelled.set()

    def _shares(self, room: Room) -> list[Share]:
        num_tokens = max(trace.num_rows("tokens") for trace in (self._comparing.a, self._comparing.b))
        wanted = min(max(num_tokens // _TOKENS_PER_SHARE, room.num_workers), _SHARES_PER_WORKER * room.num_workers)
        number = 1
        while number < wanted and number < self._most_shares:
            number *= 2
        return [Share(index, number) for index in range(number)]

    def _asked(self, method: str, room: Room) -> Mapping[str, Any]:
        """Returns the arguments of `_measure_share` but for the share."""
        traces = (self._comparing.a, self._comparing.b)
        limits = self._comparing.limits
        if limits.threads is None:
            limits = dataclasses.replace(limits, threads=max(1, int(room.num_cpus)))
        return {
            "paths": [Path(os.path.abspath(trace.path)) for trace in traces],
            "trace_ids": [trace.manifest.trace_id for trace in traces],
            "pairing": dataclasses.replace(self._comparing.pairing, method=method),
            "limits": limits,
            "num_neighbours": room.num_workers,
        }

    def _measured(self, asked: Mapping[str, Any], shares: list[Share], room: Room) -> list[dict[str, pa.Table]]:
        """Returns what each share gave, in their order, whoever was ready first."""
        task: Any = ray.remote(_measure_share).options(
            num_cpus=room.num_cpus, num_gpus=room.num_gpus, max_retries=_MAX_RETRIES, scheduling_strategy="SPREAD"
        )
        sent: dict[Any, int] = {}
        left = list(reversed(shares))
        found: dict[int, dict[str, pa.Table]] = {}
        while len(found) < len(shares):
            while left and len(sent) < room.num_workers:
                share = left.pop()
                sent[task.remote(share, **asked)] = share.number
            done, _ = ray.wait(list(sent), num_returns=1, timeout=_WATCH_SECONDS)
            if self._cancelled.is_set():
                for ref in sent:
                    ray.cancel(ref, force=True)
                raise BackendUnavailableError("the comparison was cancelled")
            for ref in done:
                found[sent.pop(ref)] = ray.get(ref)
            if self._progress is not None:
                self._progress(100 * len(found) / len(shares))
        return [found[share.number] for share in shares]


def _measure_share(
    share: Share, *, paths: list[Path], trace_ids: list[str], pairing: Any, limits: Any, num_neighbours: int
) -> dict[str, pa.Table]:
    """Runs in a worker."""
    traces = [Trace(path) for path in paths]
    for trace, trace_id in zip(traces, trace_ids, strict=True):
        if trace.manifest.trace_id != trace_id:
            raise NotATraceError(
                f"worker on {os.uname().nodename}: {trace.path} holds trace {trace.manifest.trace_id}, not {trace_id}; "
                "all nodes must see the same files under one path"
            )
    if limits.memory_limit is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        megabytes = max(_LEAST_MEGABYTES, int(memory * _MEMORY_SHARE / num_neighbours / 1e6))
        limits = dataclasses.replace(limits, memory_limit=f"{megabytes}MB")
    with Session(*traces, pairing=pairing, limits=limits, share=share) as session:
        return {name: session.sql(query).arrow() for name, query in sharing.MEASURED.items()}
