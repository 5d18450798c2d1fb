"""The same seeded requests four times: off, off, recorded, off again: harmless.py MODEL OUT TRACE."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

import tracekit

NUM_REQUESTS, NUM_TOKENS = 24, 64


def main() -> None:
    model, out, trace = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    # Without prefix caching all rounds compute the same thing.
    eager = os.environ.get("TRACEKIT_TEST_EAGER") != "0"
    llm = LLM(model, enforce_eager=eager, max_model_len=512, enable_prefix_caching=False)
    prompts = [f"Story number {i}: once upon a time there was" for i in range(NUM_REQUESTS)]
    params = [
        SamplingParams(temperature=1.0, top_p=0.95 if i % 2 else 1.0, seed=i, max_tokens=NUM_TOKENS, ignore_eos=True)
        for i in range(NUM_REQUESTS)
    ]

    def generate() -> list[list[int]]:
        return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]

    rounds = {"off": generate(), "off_again": generate()}
    with tracekit.recording(trace, strict=True):
        rounds["on"] = generate()
    rounds["after"] = generate()
    out.write_text(json.dumps(rounds))


if __name__ == "__main__":
    main()
