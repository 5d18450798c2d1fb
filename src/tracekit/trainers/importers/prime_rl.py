"""prime-rl's token exports: `token_exports/step_N/rank_R.jsonl`, schema version 1.

Read from src/prime_rl/trainer/rl/token_export.py of prime-rl at commits 004274ec and d2f82fa6; both write version 1.
A record holds one packed sequence; logprobs stand at their own tokens, of temperature-scaled logits on both sides
(the server runs with processed_logprobs). Prompts, and tokens between turns, have an inference logprob of 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tracekit.errors import InputError
from tracekit.trainers.importers.base import Importer, Record, as_ids, checked, required, sampled_span
from tracekit.trainers.importers.json_lines import objects
from tracekit.trainers.passes import Pass

SCHEMA_VERSION = 1
_OF_TRAINER = {"trainer_logprobs": "processed_logprob", "entropy": "processed_entropy", "advantages": "advantage"}


class PrimeRlImporter(Importer):
    """Reads token exports; each holds both sides."""

    suffix: ClassVar[str] = ".jsonl"
    engine: ClassVar[str | None] = "vllm"
    trainer: ClassVar[str | None] = "prime-rl"

    def has_trainer(self, path: Path) -> bool:  # noqa: ARG002
        return True

    def records(self, path: Path) -> Iterator[Record]:
        for where, record in objects(path):
            version = required(record, "schema_version", where)
            if version != SCHEMA_VERSION:
                raise InputError(f"{where}: schema_version is {version}, this release reads {SCHEMA_VERSION}")
            yield _record(where, record)


def _record(where: str, record: Mapping[str, Any]) -> Record:
    ids = as_ids(required(record, "token_ids", where), "token_ids", where)
    num = len(ids)
    needed = ("loss_mask", "inference_logprobs", "trainer_logprobs")
    columns = {name: checked(required(record, name, where), name, num, where) for name in needed}
    columns |= {
        name: checked(record[name], name, num, where)
        for name in ("entropy", "advantages", "losses", "rewards")
        if record.get(name) is not None
    }
    sampled = _sampled(columns)
    span = sampled_span(sampled, where)
    step = record.get("export_step", required(record, "step", where))
    sequence = required(record, "export_sequence_idx", where)
    run = f"{record['run_id']}/" if record.get("run_id") is not None else ""
    logprobs = [value if drawn else None for value, drawn in zip(columns["inference_logprobs"], sampled, strict=True)]
    trainer = {column: columns[name][span] for name, column in _OF_TRAINER.items() if name in columns}
    tags = {"env_name": record.get("env_name"), "reward": _first_number(columns.get("rewards", [])[span])}
    return Record(
        where,
        f"{run}step_{step}/rank_{record.get('rank', 0)}/{sequence}",
        ids[: span.start],
        ids[span],
        sampled[span],
        rollout={"processed_logprob": logprobs[span], "reported_logprob": logprobs[span]},
        passes={Pass("current", step): trainer | {"loss_mask": [bool(kept) for kept in columns["loss_mask"][span]]}},
        request={"tags": json.dumps({name: value for name, value in tags.items() if value is not None})},
    )


def _sampled(columns: Mapping[str, Any]) -> Any:
    """Returns which tokens the policy sampled: those of the RL loss, and those with a logprob other than 0.

    A logprob that was not finite is null in the file, and stands for a sampled token.
    """
    if "losses" in columns:
        trained = [bool(channels.get("rl", {}).get("mask")) for channels in columns["losses"]]
    else:
        trained = [bool(kept) for kept in columns["loss_mask"]]
    return np.array(trained, bool) | np.array([value != 0 for value in columns["inference_logprobs"]], bool)


def _first_number(values: Any) -> Any:
    return next((value for value in values if value is not None), None)
