"""Replays on the fake server of fake_server.py: nine requests, and what must come of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from factories import MadeRequest, make_request
from fake_server import VOCAB_SIZE, FakeServer, logprobs_after
from tracekit.errors import TracekitError
from tracekit.replay import replay
from tracekit.schema import table_names
from tracekit.store import Trace

NUM_CANDIDATES = 5


def make_requests(num: int = 9) -> list[MadeRequest]:
    random = np.random.default_rng(0)
    made = []
    for index in range(num):
        prompt = random.integers(VOCAB_SIZE, size=random.integers(1, 12)).tolist()
        token_ids = random.integers(VOCAB_SIZE, size=random.integers(1, 15)).tolist()
        # One that is likely, for ranks among the candidates.
        token_ids.append(int(np.argsort(-logprobs_after(prompt + token_ids))[index % 4]))
        candidates = [[0, 1, 2, 3, 4]] * len(token_ids)
        made.append(make_request(f"r{index}", prompt=prompt, token_ids=token_ids, tokens={"top_token_ids": candidates}))
    return made


def score(parent: Path, server: FakeServer, **options: Any) -> list[dict[str, Any]]:
    """Replays, and returns the rows of tokens, in order."""
    out = parent.with_name("out")
    replay(parent, out, backend="http", **{"url": server.url, "retries": 0, **options})
    return rows_of(out)


def rows_of(path: Path, table: str = "tokens") -> list[dict[str, Any]]:
    rows = Trace(path).read(table).to_pylist()
    return sorted(rows, key=lambda row: (row["request_id"], row.get("output_index") or 0))


def expected_logprobs(requests: list[MadeRequest]) -> list[tuple[str, int, Any]]:
    """Returns for each token its request, id and distribution."""
    found = []
    for made in requests:
        (prompt,) = made.request["prompt_token_ids"]
        token_ids = made.tokens["token_id"]
        for index, token_id in enumerate(token_ids):
            found.append((made.request["request_id"], token_id, logprobs_after(prompt + token_ids[:index])))
    return found


def fails(parent: Path, server: FakeServer, kind: type[TracekitError], **options: Any) -> str:
    """Replays in vain, and returns the message."""
    with pytest.raises(kind) as info:
        score(parent, server, **options)
    assert type(info.value) is kind
    assert "\n" not in str(info.value)
    assert not (parent.with_name("out")).exists()
    return str(info.value)


def everything(path: Path) -> dict[str, list[dict[str, Any]]]:
    """All rows but ids and times that no two replays share."""
    own = {"run_id": None, "started_ns": None, "process_id": None}
    return {
        table: sorted([row | own for row in Trace(path).read(table).to_pylist()], key=str) for table in table_names()
    }
