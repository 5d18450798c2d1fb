"""A few greedy tokens, whatever is recorded of them: greedy.py MODEL OUT."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from outputs import write
from vllm import LLM, SamplingParams


def generate(model: str, **arguments: Any) -> list[Any]:
    """Starts an engine, which ends with this function, and returns what it makes of two prompts."""
    llm = LLM(model, enforce_eager=True, max_model_len=512, **arguments)
    prompts = [f"Once upon a time, in the year {year}," for year in (1300, 1800)]
    outputs: list[Any] = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=6), use_tqdm=False)
    return outputs


if __name__ == "__main__":
    write(Path(sys.argv[2]), generate(sys.argv[1]))
