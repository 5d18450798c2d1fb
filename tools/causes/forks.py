"""Where B has another token than A; what would follow it is not made up."""

from __future__ import annotations

from arithmetic import Sampling, processed_columns, raw_columns
from side import Side


def end_with(side: Side, name: str, output_index: int, token: int) -> None:
    """Lets a request end with another token at a place."""
    rows = side.recording.tokens[name]
    key = (name, output_index)
    row = side.recording.logits(key)
    request = side.recording.requests[name]
    output = [other["token_id"] for other in rows if other["output_index"] < output_index]
    num_candidates = len(rows[0]["top_token_ids"])
    processed = processed_columns(row, token, Sampling.of(request), request["prompt_token_ids"], output)
    side.token[key] = {"token_id": token, **raw_columns(row, token, num_candidates), **processed}
    side.outcome[name] = {"num_output_tokens": output_index + 1}
