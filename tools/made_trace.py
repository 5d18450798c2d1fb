"""Makes pairs of large traces: columns as a recorder and a replayer write them, values drawn at random.

A is a recording: requests in waves, the rows of a wave interleaved step by step, groups of eight requests with
one prompt. B is a replay of it: the same tokens, forced, sequence after sequence, with logprobs that are a little off.
Equal arguments make equal rows.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tracekit.fingerprint import prompt_hash
from tracekit.schema import record_batch
from tracekit.store import Manifest, create_trace
from tracekit.store.layout import Segment
from tracekit.store.parts import PartWriter

VOCAB = 151_936
_WAVE = 256
_GROUP = 8
_MEAN_TOKENS = 300
_START_NS = 1_760_000_000_000_000_000


@dataclass(frozen=True)
class Made:
    """What is made.

    Attributes:
        num_tokens: output tokens of each trace, about.
        num_candidates: entries of the candidate lists; 0 leaves them out.
        num_parts: of the table tokens; by default as many as a recorder makes, of about 32 MiB in memory.
    """

    num_tokens: int
    num_candidates: int = 0
    num_parts: int | None = None

    @property
    def name(self) -> str:
        parts = f"-{self.num_parts}-parts" if self.num_parts else ""
        return f"{self.num_tokens}-top{self.num_candidates}{parts}"

    @property
    def rows_per_part(self) -> int:
        if self.num_parts:
            return -(-self.num_tokens // self.num_parts)
        return (32 << 20) // (190 + 16 * self.num_candidates)


@dataclass(frozen=True)
class _Wave:
    """Requests that run side by side, and the columns that both traces share."""

    number: int
    request_ids: list[str]
    prompts: list[np.ndarray]
    lengths: np.ndarray
    tokens: dict[str, Any]


def make_pair(cache: Path, made: Made) -> tuple[Path, Path]:
    """Returns the two traces from the cache, made first where they are not there."""
    folder = cache / made.name
    a, b = folder / "a.trace", folder / "b.trace"
    if not folder.exists():
        aside = cache / f".{made.name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _make(aside / "a.trace", made, parent=None)
        _make(aside / "b.trace", made, parent=Manifest.read(aside / "a.trace"))
        aside.rename(folder)
    return a, b


def _make(path: Path, made: Made, parent: Manifest | None) -> None:
    create_trace(path, "replay" if parent else "record", parent=parent.trace_id if parent else None)
    run_id = "replayed" if parent else "recorded"
    tables = {
        "tokens": _Parts(path, "tokens", made.rows_per_part),
        "requests": _Parts(path, "requests", 20_000),
        "outcomes": _Parts(path, "outcomes", 200_000),
        "steps": _Parts(path, "steps", 20_000),
        "runs": _Parts(path, "runs", 1),
    }
    run = {
        "run_id": run_id,
        "writer": "w0",
        "role": "replay" if parent else "record",
        "model": "made",
        "dtype": "bfloat16",
    }
    tables["runs"].add(pa.Table.from_batches([record_batch("runs", run)]))
    for wave in _waves(made.num_tokens):
        for table, columns in (_replayed if parent else _recorded)(wave, made).items():
            tables[table].add(pa.Table.from_batches([record_batch(table, {"run_id": run_id, **columns})]))
    for parts in tables.values():
        parts.close()


def _waves(num_tokens: int) -> Iterator[_Wave]:
    number = left = 0
    left = num_tokens
    while left > 0:
        chance = np.random.default_rng([7, number])
        lengths = np.minimum(chance.geometric(1 / _MEAN_TOKENS, _WAVE), 4096)
        lengths = np.diff(np.minimum(np.cumsum([0, *lengths]), left))
        lengths = lengths[lengths > 0]
        left -= int(lengths.sum())
        prompts = [
            chance.integers(0, VOCAB, int(size)) for size in chance.integers(40, 160, -(-len(lengths) // _GROUP))
        ]
        names = [hashlib.md5(f"{number}-{index}".encode()).hexdigest() for index in range(len(lengths))]
        num = int(lengths.sum())
        sure = chance.random(num) < 0.7
        logsumexp = chance.normal(24, 3, num).astype(np.float32)
        logprob = np.where(sure, -chance.exponential(0.05, num), -chance.exponential(1.5, num)).astype(np.float32)
        logit = _bf16(logsumexp + logprob)
        token = chance.zipf(1.2, num) % VOCAB
        first = np.where(logprob > -0.69, token, chance.zipf(1.2, num) % VOCAB)
        yield _Wave(
            number,
            [f"cmpl-{name}-0" for name in names],
            [prompts[index // _GROUP] for index in range(len(lengths))],
            lengths,
            {
                "token_id": token.astype(np.int32),
                "argmax_token_id": first.astype(np.int32),
                "logit": logit,
                "logsumexp": logsumexp,
                "logprob": logit - logsumexp,
                "rank": np.where(token == first, 1, 1 + chance.geometric(0.4, num)).astype(np.int32),
                "entropy": chance.exponential(0.6, num).astype(np.float32),
                "logit_min": _bf16(chance.normal(-14, 2, num)),
                "top1_margin": _bf16(chance.exponential(2.5, num)),
            },
        )
        number += 1


def _recorded(wave: _Wave, made: Made) -> dict[str, dict[str, Any]]:
    chance = np.random.default_rng([8, wave.number])
    request, index = _places(wave)
    # Step by step, as an engine's batches are.
    order = np.lexsort((request, index))
    steps, batch = np.unique(index, return_counts=True)
    prompts = [list(map(int, prompt)) for prompt in wave.prompts]
    running = [np.flatnonzero(wave.lengths > step) for step in steps]
    tokens = _tokens(wave, made, order, chance)
    tokens |= {
        "step_id": wave.number * 5000 + index[order],
        "batch_index": np.concatenate([np.arange(size) for size in batch]),
        "processed_source": "engine",
        "forced": False,
        "reported_logprob": tokens["processed_logprob"],
    }
    return {
        "requests": {
            "request_id": wave.request_ids,
            "external_id": [name[:-2] for name in wave.request_ids],
            "prompt_token_ids": prompts,
            "prompt_hash": [prompt_hash(prompt) for prompt in prompts],
            "num_prompt_tokens": [len(prompt) for prompt in prompts],
            "arrival_ns": _START_NS + wave.number * 10**10 + np.arange(len(prompts)),
            "temperature": 1.0,
            "top_p": 1.0,
        },
        "outcomes": {
            "request_id": wave.request_ids,
            "finish_reason": "stop",
            "num_output_tokens": wave.lengths,
            "finished_ns": _START_NS + wave.number * 10**10 + wave.lengths,
        },
        "steps": {
            "step_id": wave.number * 5000 + steps,
            "num_requests": batch,
            "request_ids": [[wave.request_ids[place] for place in places] for places in running],
            "scheduled_tokens": [[1] * size for size in batch.tolist()],
        },
        "tokens": tokens,
    }


def _replayed(wave: _Wave, made: Made) -> dict[str, dict[str, Any]]:
    chance = np.random.default_rng([9, wave.number])
    order = np.arange(int(wave.lengths.sum()))
    tokens = _tokens(wave, made, order, chance)
    prompts = [list(map(int, prompt)) for prompt in wave.prompts]
    off = chance.normal(0, 0.02, len(order)).astype(np.float32)
    tokens["logsumexp"] = tokens["logsumexp"] + off
    tokens["logprob"] = tokens["logit"] - tokens["logsumexp"]
    tokens |= {"processed_source": "recomputed", "forced": True, "processed_logprob": tokens["logprob"]}
    return {
        "requests": {
            "request_id": wave.request_ids,
            "prompt_token_ids": prompts,
            "prompt_hash": [prompt_hash(prompt) for prompt in prompts],
            "num_prompt_tokens": [len(prompt) for prompt in prompts],
            "temperature": 1.0,
        },
        "outcomes": {"request_id": wave.request_ids, "num_output_tokens": wave.lengths},
        "tokens": tokens,
    }


def _tokens(wave: _Wave, made: Made, order: np.ndarray, chance: np.random.Generator) -> dict[str, Any]:
    request, index = _places(wave)
    num_prompt = np.array([len(prompt) for prompt in wave.prompts])
    shared = {name: values[order] for name, values in wave.tokens.items()}
    ids = pa.DictionaryArray.from_arrays(pa.array(request[order].astype(np.int32)), pa.array(wave.request_ids))
    found = {
        "request_id": ids.cast(pa.string()),
        "output_index": index[order],
        "position": num_prompt[request[order]] + index[order],
        **shared,
        "num_tied": 0,
        "processed_logprob": shared["logprob"],
        "kept_count": VOCAB,
        "kept_mass": 1.0,
        "weight_version": wave.number // 64,
        "weight_label": f"step-{wave.number // 64}",
        "weights_partial": False,
        "is_prompt": False,
    }
    if made.num_candidates:
        shape = (len(order), made.num_candidates)
        below = np.sort(chance.exponential(4, shape).astype(np.float32), axis=1)
        below[:, 0] = 0
        found["top_token_ids"] = chance.integers(0, VOCAB, shape, dtype=np.int32)
        found["top_logits"] = _bf16(shared["logit"][:, None] - below)
    return found


def _places(wave: _Wave) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each row, sequence after sequence, its request's place in the wave and its output_index."""
    request = np.repeat(np.arange(len(wave.lengths)), wave.lengths)
    starts = np.cumsum(wave.lengths) - wave.lengths
    return request, np.arange(len(request)) - starts[request]


def _bf16(values: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return (bits & np.uint32(0xFFFF0000)).view(np.float32)


class _Parts:
    """The parts of one table, each of so many rows, in row groups of a quarter of that."""

    def __init__(self, root: Path, table: str, num_rows: int) -> None:
        self._root = root
        self._table = table
        self._num_rows = num_rows
        self._rows: list[pa.Table] = []
        self._num_gathered = 0
        self._seq = 0

    def add(self, rows: pa.Table) -> None:
        self._rows.append(rows)
        self._num_gathered += rows.num_rows
        while self._num_gathered >= self._num_rows:
            whole = pa.concat_tables(self._rows)
            self._write(whole.slice(0, self._num_rows))
            self._rows = [whole.slice(self._num_rows)]
            self._num_gathered -= self._num_rows

    def close(self) -> None:
        if self._num_gathered:
            self._write(pa.concat_tables(self._rows))

    def _write(self, rows: pa.Table) -> None:
        part = PartWriter(Segment(self._table, "w0", self._seq).part(self._root), rows.schema)
        group = max(1, -(-self._num_rows // 4))
        for start in range(0, rows.num_rows, group):
            part.write(rows.slice(start, group))
        part.finish()
        self._seq += 1
