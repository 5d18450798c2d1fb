"""verl's rollout dumps: `<trainer.rollout_data_dir>/<step>.jsonl`, of decoded text.

Read from verl 0.9.1, trainer/ppo/ray_trainer.py and trainer/ppo/v1/trainer_base.py (_write_generations). A record holds
decoded texts, without special tokens: no token ids and no logprobs, so none are in the trace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from tracekit.trainers.importers.base import Importer, Record, required
from tracekit.trainers.importers.json_lines import objects

_COLUMNS = ("input", "request_id")


class VerlImporter(Importer):
    """Reads dumps of generations; the rollout's side alone."""

    suffix: ClassVar[str] = ".jsonl"

    def has_trainer(self, path: Path) -> bool:  # noqa: ARG002
        return False

    def records(self, path: Path) -> Iterator[Record]:
        for number, (where, record) in enumerate(objects(path)):
            for name in ("input", "output", "score"):
                required(record, name, where)
            step = record.get("step", path.stem)
            external_id = record.get("request_id", record.get("uid"))
            yield Record(
                where,
                f"step_{step}/{number}",
                None,
                None,
                request={
                    "external_id": None if external_id is None else str(external_id),
                    "prompt_text": record["input"],
                    "tags": json.dumps({name: value for name, value in record.items() if name not in _COLUMNS}),
                },
            )
