"""Pairs of traces with a known cause between them: logits rows of a small vocabulary, in NumPy float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from factories import make_request, make_trace

NUM_REQUESTS = 60
NUM_TOKENS = 24
VOCAB_SIZE = 64
NUM_PROMPT = 8
K = 20


@dataclass
class Side:
    """One side's rows.

    Attributes:
        logits: float64 [R, T, V].
        temperature: of all requests.
        top_p: of all requests.
        tokens, requests: further columns, [R, T] and [R].
        runs: further columns of the run.
        steps: rows of `steps`.
        experts: which expert made the logits of each token, [R, T]; None for a dense model.
        hidden: float32 [R, T, H], what the head took; None where it was not recorded.
        num_prompt: of each request's prompt tokens, [R].
    """

    logits: np.ndarray
    temperature: float = 1.0
    top_p: float = 1.0
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    requests: dict[str, np.ndarray] = field(default_factory=dict)
    runs: dict[str, Any] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)
    experts: np.ndarray | None = None
    hidden: np.ndarray | None = None
    num_prompt: np.ndarray = field(default_factory=lambda: np.full(NUM_REQUESTS, NUM_PROMPT))


def logits_of(seed: int, spread: float = 3.0) -> np.ndarray:
    """Random logits [R, T, V]."""
    chance = np.random.default_rng(seed)
    # Tokens of very different certainty, as models have them.
    scale = chance.uniform(0.5, 1.5, (NUM_REQUESTS, NUM_TOKENS, 1))
    return chance.normal(2.0, spread, (NUM_REQUESTS, NUM_TOKENS, VOCAB_SIZE)) * scale


def to_bf16(values: np.ndarray) -> np.ndarray:
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)


def sampled(side: Side, seed: int = 1) -> np.ndarray:
    """Token ids [R, T], drawn from a side's processed distribution."""
    logprobs = processed(side)[0]
    noise = np.random.default_rng(seed).gumbel(size=logprobs.shape)
    return np.asarray(np.argmax(logprobs + noise, axis=-1))


def raw(logits: np.ndarray) -> np.ndarray:
    return logits - logsumexp(logits)[..., None]


def logsumexp(logits: np.ndarray) -> np.ndarray:
    largest = logits.max(axis=-1)
    return np.asarray(largest + np.log(np.exp(logits - largest[..., None]).sum(axis=-1)))


def processed(side: Side) -> tuple[np.ndarray, np.ndarray]:
    """Processed logprobs [R, T, V] and kept mass [R, T]."""
    logprobs = raw(side.logits / side.temperature)
    order = np.argsort(-logprobs, axis=-1, kind="stable")
    ordered = np.take_along_axis(np.exp(logprobs), order, axis=-1)
    kept_ordered = np.cumsum(ordered, axis=-1) - ordered < side.top_p
    kept = np.zeros_like(kept_ordered)
    np.put_along_axis(kept, order, kept_ordered, axis=-1)
    mass = np.where(kept, np.exp(logprobs), 0).sum(axis=-1)
    if side.top_p >= 1:
        kept, mass = np.ones_like(kept), np.ones_like(mass)
    return np.where(kept, logprobs - np.log(mass)[..., None], -np.inf), mass


def at(values: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.take_along_axis(values, tokens[..., None], axis=-1)[..., 0]


def columns(side: Side, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """All columns of `tokens`, [R, T] or [R, T, K]."""
    logprobs = raw(side.logits)
    order = np.argsort(-side.logits, axis=-1, kind="stable")[..., :K]
    top = np.take_along_axis(side.logits, order, axis=-1)
    values, mass = processed(side)
    found = {
        "logit": at(side.logits, tokens),
        "logsumexp": logsumexp(side.logits),
        "logprob": at(logprobs, tokens),
        "entropy": -(np.exp(logprobs) * logprobs).sum(axis=-1),
        "logit_min": side.logits.min(axis=-1),
        "argmax_token_id": order[..., 0],
        "top1_margin": top[..., 0] - top[..., 1],
        "top_token_ids": order,
        "top_logits": top,
        "processed_logprob": at(values, tokens),
        "kept_mass": mass,
        "step_id": np.tile(np.arange(NUM_TOKENS), (NUM_REQUESTS, 1)),
        "weight_version": np.zeros(tokens.shape, np.int64),
        "kv_weight_version_min": np.zeros(tokens.shape, np.int64),
    }
    return {**found, **side.tokens}


def write(path: Path, side: Side, tokens: np.ndarray, parent: Path | None = None, role: str = "record") -> Path:
    """Writes a side as a trace."""
    rows = columns(side, tokens)
    if role == "trainer":
        rows = {name: rows[name] for name in ("processed_logprob", "weight_version", *side.tokens)}
    made = []
    for request in range(NUM_REQUESTS):
        own = {name: values[request] for name, values in side.requests.items()}
        made.append(
            make_request(
                f"r{request}",
                prompt=[request, *range(side.num_prompt[request] - 1)],
                token_ids=tokens[request].tolist(),
                temperature=side.temperature,
                tokens={name: _listed(values[request]) for name, values in rows.items()},
                top_p=side.top_p,
                **{name: value for name, value in own.items() if name not in ("num_preemptions",)},
                outcome={name: int(value) for name, value in own.items() if name == "num_preemptions"},
            )
        )
    if role == "trainer":
        made = [replace(one, tokens=_only(one.tokens, rows)) for one in made]
    run = {"vocab_size": VOCAB_SIZE, "head_output_dtype": "float32", "dtype": "float32", **side.runs}
    routes = [
        {
            "request_id": f"r{request}",
            "position": int(side.num_prompt[request]) + index - 1,
            "experts": [[[int(expert)]]],
        }
        for request, chosen in enumerate(() if side.experts is None else side.experts)
        for index, expert in enumerate(chosen)
    ]
    hidden = [
        {
            "request_id": [f"r{request}"] * NUM_TOKENS,
            "output_index": list(range(NUM_TOKENS)),
            "position": [int(side.num_prompt[request]) + index for index in range(NUM_TOKENS)],
            "hidden": rows.tolist(),
            "source_dtype": ["float32"] * NUM_TOKENS,
        }
        for request, rows in enumerate(() if side.hidden is None else side.hidden)
    ]
    return make_trace(
        path,
        requests=made,
        role=role,
        parent=parent,
        run_id=path.name,
        run=run,
        steps=side.steps,
        routes=routes,
        hidden=hidden,
    )


def pair(folder: Path, a: Side, b: Side, *, role: str = "replay") -> tuple[Path, Path, np.ndarray]:
    """Writes both sides of tokens that A samples; returns the paths and d in float64 of the processed logprobs."""
    tokens = sampled(a)
    first = write(folder / "a", a, tokens)
    second = write(folder / "b", b, tokens, first, role)
    return first, second, columns(b, tokens)["processed_logprob"] - columns(a, tokens)["processed_logprob"]


def _only(tokens: Mapping[str, Any], rows: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("request_id", "output_index", "position", "token_id", "forced", "is_prompt", *rows)
    return {name: values for name, values in tokens.items() if name in kept}


def _listed(values: np.ndarray) -> list[Any]:
    return [None if value is None else value for value in values.tolist()]
