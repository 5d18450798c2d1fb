"""TRL's completions: `<output_dir>/completions/completions_<step>.parquet`, written where `log_completions` is set.

Read from TRL 1.16.0, trainer/grpo_trainer.py (GRPOTrainer.log). A row holds texts, rewards and an advantage, no token
ids and no logprobs. A reward function may add columns (`log_extra`): `completion_ids`, `prompt_ids` and `logprobs`, the
names that TRL itself has for them, are taken for what they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from tracekit.errors import InputError
from tracekit.trainers.importers.base import Importer, Record, as_ids, checked, required

_ROWS = 256
_TOKENS = ("prompt_ids", "completion_ids", "logprobs")


class TrlImporter(Importer):
    """Reads tables of completions; the rollout's side alone."""

    suffix: ClassVar[str] = ".parquet"

    def has_trainer(self, path: Path) -> bool:  # noqa: ARG002
        return False

    def records(self, path: Path) -> Iterator[Record]:
        number = 0
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_ROWS):
                    for row in batch.to_pylist():
                        yield _record(f"{path}, row {number}", row, number)
                        number += 1
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} cannot be read as Parquet ({str(error).splitlines()[0]})") from error


def _record(where: str, row: Mapping[str, Any], number: int) -> Record:
    prompt, completion = required(row, "prompt", where), required(row, "completion", where)
    ids = row.get("completion_ids")
    token_ids = None if ids is None else as_ids(ids, "completion_ids", where)
    prompt_ids = None if row.get("prompt_ids") is None else as_ids(row["prompt_ids"], "prompt_ids", where)
    rollout: dict[str, Any] = {}
    if token_ids is not None:
        if row.get("logprobs") is not None:
            logprobs = checked(row["logprobs"], "logprobs", len(token_ids), where)
            rollout |= {"processed_logprob": logprobs, "reported_logprob": logprobs}
        rollout["advantage"] = [row.get("advantage")] * len(token_ids)
    is_text = isinstance(prompt, str)
    others = {name: value for name, value in row.items() if name not in (*_TOKENS, "prompt")}
    others |= {"completion": completion} | ({} if is_text else {"messages": prompt})
    return Record(
        where,
        f"step_{row.get('step', 0)}/{number}",
        prompt_ids,
        token_ids,
        rollout=rollout,
        request={"prompt_text": prompt if is_text else None, "tags": json.dumps(others, default=str)},
    )
