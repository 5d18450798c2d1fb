"""The passes of a trainer's trace: each is a run of its own, since a request stands once in a run."""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tracekit.errors import ConfigError, nearest
from tracekit.version import __version__

POLICIES = ("current", "old", "reference")
DISTRIBUTIONS = ("processed", "raw")


@dataclass(frozen=True)
class Pass:
    """One scoring of requests by one policy.

    Attributes:
        policy: whose logprobs: 'current', the one being updated; 'old', that at rollout, computed again; 'reference'.
        trainer_step: the trainer's step.
        weight_version: how many times the weights had changed, counted as the rollout's engine counts.
        weight_label: what the trainer calls that version.
        distribution: 'processed' where logits were divided by the temperature, 'raw' where they were not.
    """

    policy: str = "current"
    trainer_step: int | None = None
    weight_version: int | None = None
    weight_label: str | None = None
    distribution: str = "processed"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise ConfigError(f"there is no policy '{self.policy}'{nearest(self.policy, POLICIES)}")
        if self.distribution not in DISTRIBUTIONS:
            raise ConfigError(
                f"there is no distribution '{self.distribution}'{nearest(self.distribution, DISTRIBUTIONS)}"
            )

    @property
    def columns(self) -> dict[str, Any]:
        """What it says in each row of `tokens`."""
        return {name: value for name, value in asdict(self).items() if name != "distribution"}

    def described(self) -> str:
        """Returns it in words, for messages."""
        parts = {"policy": self.policy, "trainer_step": self.trainer_step, "weight_version": self.weight_version}
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


def new_run_id() -> str:
    """Returns the id of a run that nobody else writes."""
    return f"trainer-{uuid.uuid4().hex}"


def runs_row(
    of: Pass, *, run_id: str, writer: str, source_run_id: str, known: Mapping[str, Any], more: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the row of `runs` that stands for one pass over requests of one run of the source.

    Args:
        of: the pass.
        run_id, writer: whose rows they are.
        source_run_id: the run of the source; request ids are unique in it only.
        known: columns that the caller knows, such as model and dtype.
        more: what else goes into `options`.
    """
    return {
        "process": "worker",
        "process_id": os.getpid(),
        "hostname": socket.gethostname(),
        "tracekit_version": __version__,
        **known,
        "run_id": run_id,
        "writer": writer,
        "role": "trainer",
        "started_ns": time.time_ns(),
        "options": json.dumps({**asdict(of), "source_run_id": source_run_id, **more}),
    }
