"""One side of a pair of traces, in memory: what a recording has of some requests, and what is changed in it.

Raw logits are read from files of NumPy row by row. A fault changes rows, how they are processed, or what the side's
client got of them; `compute` then fills all columns of `tokens` that follow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from arithmetic import Floats, Sampling, processed_columns, raw_columns, to_bf16
from numpy.typing import NDArray

from tracekit.store import Trace

Key = tuple[str, int]
Change = Callable[[Key, Floats], Floats | None]


class Recording:
    """A real recording: its rows, and its logits where it has them.

    Attributes:
        requests: rows of `requests` by external id, each column its first value that is there.
        outcomes: rows of `outcomes` by external id.
        tokens: rows of `tokens` by external id, in their order.
        steps, runs: rows of these tables.
        names: external ids by the engine's own.

    Args:
        path: the trace.
        known: names that are taken where it has the same ids: a replay has them from the trace that it replays.
    """

    def __init__(self, path: Path, known: Mapping[str, str] | None = None) -> None:
        trace = Trace(path)
        self.path = path
        merged: dict[str, dict[str, Any]] = {}
        for row in trace.read("requests").to_pylist():
            _fill(merged.setdefault(row["request_id"], {}), row)
        known = known or {}
        names = {
            request_id: known.get(request_id) or row.get("external_id") or request_id
            for request_id, row in merged.items()
        }
        self.names = names
        self.requests = {names[request_id]: row for request_id, row in merged.items()}
        outcomes = trace.read("outcomes").to_pylist()
        self.outcomes: dict[str, dict[str, Any]] = {}
        for row in outcomes:
            _fill(self.outcomes.setdefault(names[row["request_id"]], {}), row)
        self.tokens: dict[str, list[dict[str, Any]]] = {name: [] for name in self.requests}
        for row in trace.read("tokens").to_pylist():
            if row["output_index"] is not None:
                self.tokens[names[row["request_id"]]].append(row)
        for rows in self.tokens.values():
            rows.sort(key=lambda row: int(row["output_index"]))
        self.steps = trace.read("steps").to_pylist()
        self.runs = trace.read("runs").to_pylist()
        self._arrays = {table: _Rows(path, table, names) for table in ("logits", "hidden")}

    def logits(self, key: Key) -> Floats:
        """Returns the raw logits [V] of a token."""
        return self._arrays["logits"][key]

    def hidden(self, key: Key) -> Floats:
        """Returns the hidden state [H] of a token."""
        return self._arrays["hidden"][key]


def _fill(known: dict[str, Any], row: Mapping[str, Any]) -> None:
    """Takes over what is not known yet: several processes know something of a request."""
    known.update({name: value for name, value in row.items() if value is not None and name not in known})


class _Rows:
    """Rows of a .npy file by token, opened when first asked for."""

    def __init__(self, path: Path, table: str, names: dict[str, str]) -> None:
        self._file = path.with_suffix(f".{table}.npy")
        self._names = names
        self._values: NDArray[Any] | None = None
        self._places: dict[Key, int] = {}

    def __getitem__(self, key: Key) -> Floats:
        if self._values is None:
            self._values = np.load(self._file, mmap_mode="r")
            keys = json.loads(self._file.with_suffix(".json").read_text())
            self._places = {(self._names[name], index): place for place, (name, index) in enumerate(keys)}
        row = self._values[self._places[key]]
        if row.dtype == np.uint16:
            row = (row.astype(np.uint32) << 16).view(np.float32)
        return np.asarray(row, np.float64)


@dataclass
class Client:
    """What the side's client got.

    Attributes:
        kind: none; the engine's report; or a trainer's own figure, which is all that its trace has.
        value: of which distribution it is.
        is_bf16: whether it was rounded to bf16 on its way.
        shift: by how many tokens its rows are off.
    """

    kind: Literal["none", "reported", "trainer"] = "none"
    value: Literal["raw", "processed"] = "processed"
    is_bf16: bool = False
    shift: int = 0


@dataclass
class Side:
    """Some requests of a recording, as one side of a pair.

    Attributes:
        recording: where rows come from.
        names: external ids of the requests.
        changes: each makes of a token's raw row another one, or None to leave it; in their order.
        reprocess: makes of a request's sampling the one that this side applied.
        client: what its client got.
        run: columns of `runs` that are set.
        request, outcome: columns that are set, by external id.
        token: columns of `tokens` that are set, by token.
        steps: rows of `steps`.
        events, routes: rows of these tables, without ids of the run.
        keeps_rows: whether the trace has whole rows of logits and hidden states.
    """

    recording: Recording
    names: list[str]
    changes: list[Change] = field(default_factory=list)
    reprocess: Callable[[Sampling], Sampling] | None = None
    client: Client = field(default_factory=Client)
    run: dict[str, Any] = field(default_factory=dict)
    request: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcome: dict[str, dict[str, Any]] = field(default_factory=dict)
    token: dict[Key, dict[str, Any]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    routes: list[dict[str, Any]] = field(default_factory=list)
    keeps_rows: bool = False

    def __post_init__(self) -> None:
        self.steps = self.steps or [dict(row) for row in self.recording.steps]
        self._computed: dict[Key, dict[str, Any]] = {}
        self._of: tuple[Any, ...] = ()

    def add(self, change: Change) -> None:
        """Adds a change before the others: plants come from the client to the weights, logits the other way."""
        self.changes.insert(0, change)

    def process(self, change: Callable[[Sampling], Sampling]) -> None:
        """Lets this side process logits by other sampling parameters than the request's."""
        before = self.reprocess
        self.reprocess = change if before is None else lambda sampling: change(before(sampling))

    def token_keys(self) -> Iterable[Key]:
        """Returns all tokens, request after request."""
        return ((name, row["output_index"]) for name in self.names for row in self.recording.tokens[name])

    def request_of(self, name: str) -> dict[str, Any]:
        """Returns a request's row as this side has it."""
        return {**self.recording.requests[name], **self.request.get(name, {})}

    def row(self, key: Key) -> Floats | None:
        """Returns a token's raw logits [V] after all changes; None where there are none."""
        found = None
        for change in self.changes:
            changed = change(key, self.recording.logits(key) if found is None else found)
            found = found if changed is None else changed
        return found

    def tokens(self) -> dict[Key, dict[str, Any]]:
        """Returns the rows of `tokens`, with all that follows from the changes."""
        changed_by = (*self.changes, self.reprocess)
        if self._of != changed_by or not self._computed:
            self._computed = {}
            for name in self.names:
                self._computed.update(self._of_request(name))
            self._of = changed_by
        rows = {key: {**row, **self.token.get(key, {})} for key, row in self._computed.items()}
        return self._with_client(rows)

    def values(self) -> dict[Key, float]:
        """Returns what is compared of each token: its client's figure, else the processed logprob if it was sampled."""
        found = {}
        for key, row in self.tokens().items():
            is_greedy = Sampling.of(self.request_of(key[0])).is_greedy
            value = row["reported_logprob"]
            if value is None and self.client.kind != "trainer":
                value = row["logprob"] if is_greedy else row["processed_logprob"]
            elif value is None:
                value = row["logprob"] if row["processed_logprob"] is None else row["processed_logprob"]
            found[key] = float("nan") if value is None else float(value)
        return found

    def _of_request(self, name: str) -> dict[Key, dict[str, Any]]:
        rows = self.recording.tokens[name]
        recorded = Sampling.of(self.recording.requests[name])
        sampling = self.reprocess(recorded) if self.reprocess else recorded
        prompt = self.recording.requests[name]["prompt_token_ids"]
        found = {}
        for place, row in enumerate(rows):
            key = (name, row["output_index"])
            changed = self.row(key)
            if changed is None and sampling == recorded:
                found[key] = dict(row)
                continue
            logits = self.recording.logits(key) if changed is None else changed
            output = [other["token_id"] for other in rows[:place]]
            columns: dict[str, Any] = {"processed_source": "recomputed", "reported_logprob": None}
            if changed is not None:
                columns |= raw_columns(logits, row["token_id"], len(row["top_token_ids"]))
            columns |= processed_columns(logits, row["token_id"], sampling, prompt, output)
            found[key] = {**row, **columns}
        return found

    def _with_client(self, rows: dict[Key, dict[str, Any]]) -> dict[Key, dict[str, Any]]:
        client = self.client
        if client.kind == "none":
            return rows
        column = "logprob" if client.value == "raw" else "processed_logprob"
        found = {}
        for (name, index), row in rows.items():
            # At the ends of a request a row that is off by one is its own.
            source = rows.get((name, index + client.shift), row)
            value = source[column]
            if client.is_bf16 and value is not None:
                value = float(to_bf16(np.array([value]))[0])
            if client.kind == "reported":
                found[name, index] = {**row, "reported_logprob": value}
            else:
                kept = {name: row.get(name) for name in _OF_TRAINERS}
                found[name, index] = {**kept, **dict.fromkeys(_FIGURES), column: value}
        return found


# What a trainer's trace has of a token, beside its figure.
_OF_TRAINERS = (
    "request_id",
    "output_index",
    "position",
    "token_id",
    "forced",
    "is_prompt",
    "weight_version",
    "weight_label",
    "trainer_step",
    "policy",
)
_FIGURES = ("logprob", "processed_logprob", "reported_logprob")


def without_truncation(sampling: Sampling) -> Sampling:
    """Returns the same without top-p, top-k and min-p."""
    return replace(sampling, top_p=1.0, top_k=0, min_p=0.0)


def without_penalties(sampling: Sampling) -> Sampling:
    """Returns the same without penalties and bias."""
    return replace(sampling, presence_penalty=0.0, frequency_penalty=0.0, repetition_penalty=1.0, logit_bias={})
