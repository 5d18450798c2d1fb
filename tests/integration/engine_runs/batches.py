"""Batches of several sizes, one after the other: batches.py MODEL SIZE...; each request generates six tokens."""

from __future__ import annotations

import os
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from vllm import LLM, SamplingParams

TOPICS = ("lamps", "a recipe for bread", "def parse(line):", "Der Hund", "the war of 1812:", "x = 3 + 4 =", "she said")


def main() -> None:
    model, sizes = sys.argv[1], list(map(int, sys.argv[2:]))
    llm = LLM(model, dtype="bfloat16", enforce_eager=True, max_model_len=256, max_num_seqs=max(sizes))
    for size in sizes:
        prompts = [f"{number} of {size}. {TOPICS[number % len(TOPICS)]}" for number in range(size)]
        params = [SamplingParams(temperature=1.0, seed=number, max_tokens=6, ignore_eos=True) for number in range(size)]
        llm.generate(prompts, params, use_tqdm=False)


if __name__ == "__main__":
    main()
