"""What the engine returned, as JSON, so that a test in another process can hold the trace against it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

SHARED_PREFIX = "You are a careful assistant. " + " ".join(
    f"Rule {i}: answer question number {i} in one short sentence and give a reason for it." for i in range(1, 24)
)


def write(path: Path, outputs: list[Any], **more: Any) -> None:
    """Writes RequestOutputs, and whatever else the run wants to tell."""
    path.write_text(json.dumps({"requests": [_request(output) for output in outputs], **more}))


def _request(output: Any) -> dict[str, Any]:
    return {
        "request_id": output.request_id,
        "prompt": output.prompt,
        "prompt_token_ids": list(output.prompt_token_ids),
        "num_cached_tokens": output.num_cached_tokens,
        "prompt_logprobs": _logprobs(output.prompt_logprobs),
        "samples": [_sample(sample) for sample in output.outputs],
    }


def _sample(sample: Any) -> dict[str, Any]:
    return {
        "index": sample.index,
        "token_ids": list(sample.token_ids),
        "text": sample.text,
        "finish_reason": sample.finish_reason,
        "stop_reason": sample.stop_reason,
        "logprobs": _logprobs(sample.logprobs),
    }


def _logprobs(positions: Any) -> list[dict[int, list[Any]] | None] | None:
    """[logprob, rank] by token id for each position; the first position of a prompt has none."""
    if positions is None:
        return None
    return [
        position and {token_id: [_finite(entry.logprob), entry.rank] for token_id, entry in position.items()}
        for position in positions
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
