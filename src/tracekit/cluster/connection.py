"""Connects this process to a Ray cluster, and says what there is room for."""

from __future__ import annotations

import logging
import math
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayTaskError

from tracekit.cluster.base import Cluster
from tracekit.errors import BackendUnavailableError, ConfigError

# Ray itself tries for minutes.
_CONNECT_SECONDS = 5.0
_CLIENT = "ray://"
_LOCAL = "local"


@dataclass(frozen=True)
class Room:
    """How many workers there are, and what Ray sets aside for each."""

    num_workers: int
    num_cpus: float
    num_gpus: float


def connect(cluster: Cluster) -> bool:
    """Connects to a cluster, or starts one; returns whether this call did, so that the caller ends it.

    Raises:
        BackendUnavailableError: there is no cluster at the address, or not one of this Ray.
    """
    if ray.is_initialized():
        return False
    address = cluster.address or os.environ.get("RAY_ADDRESS") or _LOCAL
    _check_that_it_answers(address)
    own: dict[str, Any] = {}
    if address == _LOCAL:
        # More workers than CPUs are slow, not impossible.
        num_cpus = max(os.cpu_count() or 1, math.ceil((cluster.num_workers or 1) * cluster.cpus_per_worker))
        own = {"num_cpus": num_cpus, "include_dashboard": False}
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ImportError, OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise _unusable(address, error) from error
    return True


def _check_that_it_answers(address: str) -> None:
    host, colon, port = address.removeprefix(_CLIENT).partition("/")[0].rpartition(":")
    if not colon or not port.isdigit():
        return  # A name such as 'auto', which Ray looks up at once.
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise _unusable(address, error) from error


def _unusable(address: str, error: Exception) -> BackendUnavailableError:
    reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
    return BackendUnavailableError(
        f"no Ray cluster can be used at address '{address}': {reason}; start one with `ray start --head`, or give "
        "--address local for one on this machine alone"
    )


def room_for(cluster: Cluster) -> Room:
    """Returns how many workers are started on the cluster that this process is connected to.

    Raises:
        ConfigError: its nodes have no room for so many.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    has_gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    num_gpus = float(has_gpus) if cluster.gpus_per_worker is None else cluster.gpus_per_worker
    places = [_places(node, {"CPU": cluster.cpus_per_worker, "GPU": num_gpus}) for node in nodes]
    default = sum(places) if num_gpus else sum(place > 0 for place in places)
    num_workers = cluster.num_workers or int(default)
    if not num_workers or sum(places) < num_workers:
        found = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes[:4])
        raise ConfigError(
            f"the Ray cluster has no room for {num_workers or 1} workers of {cluster.cpus_per_worker:g} CPUs and "
            f"{num_gpus:g} GPUs: its {len(nodes)} nodes have {found}{', …' if nodes[4:] else ''}; ask for fewer "
            "with --num-workers, or less for each"
        )
    return Room(num_workers, cluster.cpus_per_worker, num_gpus)


def _places(node: dict[str, float], wanted: dict[str, float]) -> float:
    return min((node.get(name, 0) // amount for name, amount in wanted.items() if amount), default=math.inf)


def raised(error: RayTaskError) -> BaseException:
    """Returns what was raised in a worker: to be raised from None where it is tracekit's own, else from `error`."""
    return error.cause if isinstance(error.cause, Exception) else error


def reason(error: Exception) -> str:
    """Returns the sentence that tells the cause, of the many that Ray writes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("The actor ") and "unexpectedly" not in line]
    return (causes or lines or [type(error).__name__])[0][:300].rstrip(".")
