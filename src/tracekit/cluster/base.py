"""Which Ray cluster, and how much of it; Ray itself is not needed to say so."""

from __future__ import annotations

from dataclasses import dataclass

from tracekit.errors import ConfigError


@dataclass(frozen=True)
class Cluster:
    """The Ray cluster that work is spread over.

    Attributes:
        address: as `ray.init` takes it: 'auto', 'HOST:PORT', 'ray://HOST:PORT', or 'local' for a Ray of this process
            alone, which is the default unless RAY_ADDRESS names a cluster. Where the process is connected to a
            cluster already, that one is used.
        num_workers: how many are at work at a time; by default as many as its GPUs suffice for, or one on each node
            where workers have none.
        gpus_per_worker: what Ray sets aside for each, perhaps a part of one; by default 1 where the cluster has
            GPUs, else 0.
        cpus_per_worker: the same of CPUs; it does not change how many threads a replay's backend computes with.

    Raises:
        ConfigError: an impossible value.
    """

    address: str | None = None
    num_workers: int | None = None
    gpus_per_worker: float | None = None
    cpus_per_worker: float = 1.0

    def __post_init__(self) -> None:
        if self.num_workers is not None and self.num_workers < 1:
            raise ConfigError(f"num-workers must be at least 1, not {self.num_workers}")
        for name, value in (("gpus-per-worker", self.gpus_per_worker), ("cpus-per-worker", self.cpus_per_worker)):
            if value is not None and (value < 0 or (value > 1 and value % 1)):
                raise ConfigError(f"{name} must be a whole number, or one between 0 and 1, not {value:g}")
