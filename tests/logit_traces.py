"""Pairs of traces that hold whole logits rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from factories import make_request, make_trace
from logit_rows import Floats, serial_logsumexps, token_columns
from tracekit import Session, TraceWriter, connect


def opened(folder: Path, a: Floats, b: Floats, *, known_sums: bool = True) -> Session:
    """Opens two traces that hold these rows whole."""
    tokens = np.random.default_rng(5).integers(0, a.shape[1], len(a))
    paths = []
    for name, logits in (("a", a), ("b", b)):
        columns = token_columns(logits, tokens, 2, serial_logsumexps(logits))
        if not known_sums:
            columns["logsumexp"] = None
        request = make_request(token_ids=tokens, tokens=columns)
        paths.append(make_trace(folder / name, requests=[request], run_id=f"run {name}"))
        with TraceWriter(paths[-1], run_id=f"run {name}", writer="w1") as writer:
            rows = {"output_index": np.arange(len(a)), "position": 3 + np.arange(len(a)), "source_dtype": "float32"}
            writer.append("logits", {"request_id": "r0", **rows, "logits": list(logits)})
    return connect(*paths, align="request_id")
