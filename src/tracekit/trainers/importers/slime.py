"""slime's dumps: `--save-debug-rollout-data` (the rollout's side) and `--save-debug-train-data` (both sides).

Read from slime's source: slime/utils/types.py (Sample.to_dict) and slime/observability/rollout_data_utils.py at commit
4c4adbbf, slime/backends/megatron_utils/train_dump_utils.py at 1706a092 (format_version 2), and
slime/utils/train_dump_utils.py at 429eb3df (one file a rank). Logprobs are of the response's tokens, temperature-scaled
on both sides. Tokens that a tool gave are out of the loss mask, with a logprob of 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tracekit.errors import InputError
from tracekit.trainers.importers.base import Importer, Record, as_ids, checked, required
from tracekit.trainers.importers.torch_file import Tensor, read_torch_file
from tracekit.trainers.passes import Pass

_ENDS = {"completed": "stop", "truncated": "length", "aborted": "abort", "failed": "error"}
_POLICIES = {"log_probs": "old", "ref_log_probs": "reference"}
# A rollout dump calls them in the singular.
_NAMES = {"response_length": "response_lengths", "loss_mask": "loss_masks"}


class SlimeImporter(Importer):
    """Reads debug dumps of rollouts and of training data."""

    suffix: ClassVar[str] = ".pt"
    engine: ClassVar[str | None] = "sglang"
    trainer: ClassVar[str | None] = "slime"

    def has_trainer(self, path: Path) -> bool:
        _, samples = _samples(path)
        return any("log_probs" in sample or "ref_log_probs" in sample for sample in samples)

    def records(self, path: Path) -> Iterator[Record]:
        rollout_id, samples = _samples(path)
        for number, sample in enumerate(samples):
            yield _record(f"{path}, sample {number}", sample, rollout_id, number)


def _samples(path: Path) -> tuple[Any, list[dict[str, Any]]]:
    dump = read_torch_file(path)
    if not isinstance(dump, dict) or not ("samples" in dump or "rollout_data" in dump):
        found = ", ".join(map(str, dump)) if isinstance(dump, dict) else type(dump).__name__
        raise InputError(f"{path}: field 'samples' or 'rollout_data' is missing; found {found}")
    if "samples" in dump:
        return dump.get("rollout_id"), dump["samples"]
    data = dump["rollout_data"]
    num = len(required(data, "response_lengths", str(path)))
    rank = dump.get("rank")
    columns = {name: value for name, value in data.items() if isinstance(value, list | tuple) and len(value) == num}
    samples = [{name: value[i] for name, value in columns.items()} | {"rank": rank} for i in range(num)]
    return dump.get("rollout_id"), samples


def _record(where: str, given: Mapping[str, Any], rollout_id: Any, number: int) -> Record:
    sample = {_NAMES.get(name, name): value for name, value in given.items()}
    ids = as_ids(_loaded(required(sample, "tokens", where)), "tokens", where)
    num = int(required(sample, "response_lengths", where))
    if not 0 <= num <= len(ids):
        raise InputError(f"{where}: response_length is {num}, but there are {len(ids)} tokens in all")
    mask = _column(sample, "loss_masks", num, where)
    logprobs = _column(sample, "rollout_log_probs", num, where)
    kept = np.ones(num, bool) if mask is None else np.asarray(mask, bool)
    sampled = kept if logprobs is None else kept | (np.asarray(logprobs) != 0)
    rollout: dict[str, Any] = {"loss_mask": kept} if mask is not None else {}
    if logprobs is not None:
        shown = [float(value) if drawn else None for value, drawn in zip(logprobs, sampled, strict=True)]
        rollout |= {"processed_logprob": shown, "reported_logprob": shown}
    place = sample.get("rollout_position")
    rank = f"/rank_{sample['rank']}" if sample.get("rank") is not None else ""
    return Record(
        where,
        f"rollout_{rollout_id}{rank}/{number if place is None else place}",
        ids[: len(ids) - num],
        ids[len(ids) - num :],
        sampled,
        rollout=rollout | _weights(sample),
        passes=_passes(sample, rollout_id, num, kept, where),
        request=_request(sample),
        outcome={"finish_reason": _ENDS.get(str(sample.get("status")))},
    )


def _passes(sample: Mapping[str, Any], rollout_id: Any, num: int, kept: Any, where: str) -> dict[Pass, dict[str, Any]]:
    step = rollout_id if isinstance(rollout_id, int) else None
    found: dict[Pass, dict[str, Any]] = {}
    for name, policy in _POLICIES.items():
        logprobs = _column(sample, name, num, where)
        if logprobs is None:
            continue
        columns = {"processed_logprob": logprobs, "loss_mask": kept}
        if policy == "old":
            others = {"advantage": _column(sample, "advantages", num, where)}
            others["processed_entropy"] = _column(sample, "entropy", num, where)
            columns |= {column: values for column, values in others.items() if values is not None}
        found[Pass(policy, step)] = columns
    return found


def _request(sample: Mapping[str, Any]) -> dict[str, Any]:
    group, index, reward = (sample.get(name) for name in ("group_index", "index", "reward"))
    tags = {"label": sample.get("label"), "reward": reward, "remove_sample": sample.get("remove_sample")}
    prompt = sample.get("prompt")
    return {
        "group_id": None if group is None else str(group),
        "external_id": None if index is None else str(index),
        "trajectory_id": sample.get("session_id"),
        "prompt_text": prompt if isinstance(prompt, str) and prompt else None,
        "tags": json.dumps({name: value for name, value in tags.items() if value is not None}, default=str),
    }


def _weights(sample: Mapping[str, Any]) -> dict[str, Any]:
    """One version for all turns is that of every token; of several it is not known which token has which."""
    versions = {str(version) for version in sample.get("weight_versions") or ()}
    if len(versions) != 1:
        return {}
    (label,) = versions
    return {"weight_label": label, "weight_version": int(label) if label.isdecimal() else None}


def _column(sample: Mapping[str, Any], name: str, num: int, where: str) -> Any:
    value = sample.get(name)
    return None if value is None else checked(_loaded(value), name, num, where)


def _loaded(value: Any) -> Any:
    return value.load() if isinstance(value, Tensor) else value
