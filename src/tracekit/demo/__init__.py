"""A small pair of real traces that comes with the package: a recording of vLLM in bf16, and its replay in fp32.

754 tokens of 20 requests, sampled by SmolLM2-135M-Instruct; tools/make_demo_traces.py made them. Reading them needs no
software of machine learning.
"""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

ROLLOUT = _HERE / "traces" / "rollout.trace"
FP32 = _HERE / "traces" / "fp32.trace"
# The texts of the tokens in them, for `connect(…, tokenizer=VOCABULARY)`.
VOCABULARY = _HERE / "traces" / "vocabulary.parquet"


def queries() -> list[str]:
    """Returns the queries that `tracekit demo` runs, in order; each begins with a comment that says what it asks."""
    return [path.read_text(encoding="utf-8") for path in sorted((_HERE / "queries").glob("*.sql"))]
