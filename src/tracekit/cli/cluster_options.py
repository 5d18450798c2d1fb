"""The options of commands whose work may be spread over a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from tracekit.cluster import Cluster

_OF_THE_CLUSTER = ("address", "num_workers", "gpus_per_worker", "cpus_per_worker")

_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where tokens are compared: in this process, or by workers of a Ray cluster, where both traces are "
        "compacted; the figures are the same.",
    ),
    click.option(
        "--address",
        help="The Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local, one on this machine alone "
        "[default: what RAY_ADDRESS says, else local].",
    ),
    click.option("--num-workers", type=click.IntRange(min=1), help="Workers at a time [default: one a node]."),
    click.option(
        "--cpus-per-worker",
        type=click.FloatRange(min=0),
        help="CPUs that Ray sets aside for each, and threads that each computes with [default: 1].",
    ),
)


def cluster_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds these options to a command, which `take_cluster` takes back out of its arguments."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def take_cluster(options: dict[str, Any]) -> Cluster | None:
    """Removes the options of a cluster, and returns what they name; None for this process.

    Raises:
        click.UsageError: they name a cluster that is not asked for.
    """
    engine = options.pop("engine")
    given = {name: options.pop(name, None) for name in _OF_THE_CLUSTER}
    given = {name: value for name, value in given.items() if value is not None}
    if engine == "ray":
        return Cluster(**given)
    if given:
        raise click.UsageError(f"--{next(iter(given)).replace('_', '-')} is of a cluster: give --engine ray with it")
    return None
