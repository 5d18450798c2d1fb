"""What is asked of two releases, as data: from traces to the figures of the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from ladder import Rung, climb
from prompts import requests

import tracekit
from engines import Engine, Workshop
from tracekit.store import Trace

_SAMPLING = """
    SELECT r.temperature, r.top_p, r.top_k, r.min_p, r.repetition_penalty, r.presence_penalty, r.frequency_penalty,
        count(*), sum(d * d), max(abs(d))
    FROM (SELECT a_run_id, a_request_id, d_processed::DOUBLE AS d FROM pairs WHERE isfinite(d_processed)) AS p
    JOIN a.requests AS r ON p.a_run_id = r.run_id AND p.a_request_id = r.request_id
    GROUP BY ALL
    ORDER BY 9 / 8 DESC
"""
_SMALLEST = """
    SELECT output_index, token_id, a_logprob, a_processed_logprob, b_processed_logprob, d_processed
    FROM pairs
    ORDER BY output_index
"""
_PROMPTS = """
    SELECT r.prompt_token_ids, count(*), sum(d * d)
    FROM (SELECT a_run_id, a_request_id, d_processed::DOUBLE AS d FROM pairs WHERE isfinite(d_processed)) AS p
    JOIN a.requests AS r ON p.a_run_id = r.run_id AND p.a_request_id = r.request_id
    GROUP BY r.run_id, r.request_id, r.prompt_token_ids
"""


# A release whose sampler is off by less does its arithmetic as it is written.
_FAULT = 0.002


def compare(shop: Workshop, engines: Sequence[Engine], num_requests: int | None, num_tokens: int) -> dict[str, Any]:
    """Records on every release but the last, and compares each with all later ones.

    Args:
        shop: where it is done.
        engines: the oldest first.
        num_requests: None for all prompts.
        num_tokens: of an output, on average.
    """
    pairs = []
    for old, new in combinations(engines, 2):
        known = shop.folder / f"{old.version}-{new.version}.json"
        if not known.exists():
            pair = _pair(shop, old, new, shop.record(old, num_requests, num_tokens))
            known.write_text(json.dumps(pair, indent=1))
        pairs.append(json.loads(known.read_text()))
    samplers = [_sampler(shop, engine, shop.record(engine, num_requests, num_tokens)) for engine in engines[:-1]]
    roundings = {engine.version: shop.rounding(engine) for engine in engines}
    document = {"num_tokens": num_tokens, "wide_products": shop.wide, "processor": _processor()}
    return {**document, "pairs": pairs, "samplers": samplers, "roundings": roundings}


def _processor() -> list[str]:
    """Returns what the processor has for narrow numbers."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("flags")[2].partition("\n")[0].split()
    return [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]


def _pair(shop: Workshop, old: Engine, new: Engine, a: Path) -> dict[str, Any]:
    b = shop.on(new, a)
    bisected = shop.bisect(old, new, a, b)
    steps = {step["label"]: step for step in bisected["steps"]}
    baseline = Path(steps["baseline"]["path"])
    document = {
        "old": old.version,
        "new": new.version,
        "runs": {"a": _run(a), "b": _run(b)},
        "bisected": bisected,
        "explained": shop.explain(a, b, baseline),
        "by_default": _by_default(shop, a, b),
        "kinds": _kinds(shop, a, b),
        "ladder": [],
    }
    if way := bisected["way"]:
        # In the middle both run in float32.
        middle = way[len(way) // 2]
        corners = [steps[middle[end]]["path"] for end in ("start", "end")]
        rungs = [
            Rung(f"sampler of {old.version}", shop.head(a, "bfloat16")),
            Rung(f"head of {old.version}: float32", shop.head(a, "float32")),
            Rung(f"body of {old.version}: float32", Path(corners[0])),
            Rung(f"release: {old.version} to {new.version}, both in float32", Path(corners[1])),
            Rung(f"body of {new.version}: bfloat16, head in float32", shop.head(b, "float32")),
            Rung(f"head of {new.version}: bfloat16", shop.head(b, "bfloat16")),
            Rung(f"sampler of {new.version}", b),
        ]
        document["ladder"] = climb(a, b, rungs)
    return document


def _by_default(shop: Workshop, a: Path, b: Path) -> dict[str, Any]:
    """Returns what explains A's reported values against B's raw ones, which a V1 engine reports by default."""
    out = shop.folder / f"{b.stem}-reported.trace"
    if not out.exists():
        with tracekit.connect(b) as session:
            query = (
                "SELECT request_id, list(logprob ORDER BY output_index) FROM tokens WHERE NOT is_prompt GROUP BY ALL"
            )
            values = dict(session.sql(query).rows())
        with tracekit.TrainerTrace(out, source=a) as client:
            client.log(list(values), list(values.values()))
    return shop.explain(a, out)


def _kinds(shop: Workshop, a: Path, b: Path) -> dict[str, dict[str, float]]:
    """Returns k2 by kind of prompt."""
    kinds = {tuple(ids): one.kind for one, ids in zip(requests(), _tokenised(shop.model), strict=True)}
    found: dict[str, dict[str, float]] = {}
    with tracekit.connect(a, b) as session:
        for ids, num, square in session.sql(_PROMPTS).rows():
            of_kind = found.setdefault(kinds[tuple(ids)], {"num_requests": 0, "num_tokens": 0, "square": 0.0})
            of_kind["num_requests"] += 1
            of_kind["num_tokens"] += num
            of_kind["square"] += square
    return found


def _tokenised(model: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    found: list[list[int]] = tokenizer([one.prompt for one in requests()])["input_ids"]
    return found


def _sampler(shop: Workshop, engine: Engine, a: Path) -> dict[str, Any]:
    """Returns what a release's sampler does to its own logits, against tracekit's arithmetic on the same."""
    exact = shop.head(a, "bfloat16")
    with tracekit.connect(a, exact) as session:
        equal = session.sql("SELECT avg((a_logit = b_logit)::INT) FROM pairs").rows()[0][0]
        rows = session.sql(_SAMPLING).rows()
    document = {"version": engine.version, "equal_logits": equal, "by_sampling": [list(row) for row in rows]}
    if max(row[-1] for row in rows) >= _FAULT:
        document["explained"] = shop.explain(a, exact)
        document["smallest"] = _smallest(shop.smallest(engine, a, exact), shop.model)
    return document


def _smallest(folder: Path, model: Path) -> dict[str, Any]:
    """Returns what the smallest two traces hold."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
    columns = [*names, "request_id", "prompt_token_ids"]
    with tracekit.connect(folder / "a.trace", folder / "b.trace") as session:
        rows = [list(row) for row in session.sql(_SMALLEST).rows()]
        found = [
            dict(zip(columns, row, strict=True))
            for row in session.sql(f"SELECT {', '.join(columns)} FROM a.requests").rows()
        ]
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    for request in found:
        request["prompt"] = tokenizer.decode(request["prompt_token_ids"])
    tokens = [[row[0], tokenizer.decode([row[1]]), *row[1:]] for row in rows]
    return {"requests": found, "tokens": tokens, "num_bytes": size}


def _run(trace: Path) -> Mapping[str, Any]:
    names = ["engine_version", "torch_version", "attention_backend", "prefix_caching", "chunked_prefill", "num_threads"]
    rows = Trace(trace).read("runs", names).to_pylist()
    return {name: next((row[name] for row in rows if row[name] is not None), None) for name in names}
