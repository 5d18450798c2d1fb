"""Engines that ask for the recorder themselves, one after the other: own_settings.py MODEL OUT TRACE.

The first one's settings are wrong; the two after it record into one trace.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from outputs import write
from vllm import LLM, SamplingParams


def main() -> None:
    model, out, trace = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    wrong = generate(model, {"trace": f"{trace}-wrong", "topk": 5})
    good = {"trace": trace, "top_k": 5, "append": True, "strict": True}
    first, second = generate(model, good), generate(model, good)
    write(out, first + second, wrong=[list(output.outputs[0].token_ids) for output in wrong])


def generate(model: str, settings: dict[str, Any]) -> list[Any]:
    # The engine, and its processes, end with this function.
    llm = LLM(model, enforce_eager=True, max_model_len=512, additional_config={"tracekit": settings})
    prompts = [f"Once upon a time, in the year {year}," for year in (1300, 1800)]
    outputs: list[Any] = llm.generate(prompts, SamplingParams(temperature=0.0, max_tokens=6), use_tqdm=False)
    return outputs


if __name__ == "__main__":
    main()
