"""A rollout whose tokens are proposed by their own prompts: drafts.py MODEL TRACE."""

from __future__ import annotations

import os
import random
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

import tracekit

THINGS = ("river", "lamp", "engine", "garden", "letter", "captain")


def main() -> None:
    model, trace = sys.argv[1:]
    drafts = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    llm = LLM(
        model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=8,
        seed=0,
        logprobs_mode="processed_logprobs",
        speculative_config=drafts,
    )
    chance = random.Random(1)
    prompts, params = [], []
    for seed in range(32):
        first, second = chance.sample(THINGS, 2)
        prompts.append(f"The {first} saw the {second}. " * chance.randrange(3, 8) + f"The {first}")
        params.append(SamplingParams(temperature=0.7, seed=seed, max_tokens=24, logprobs=0, ignore_eos=True))
    with tracekit.recording(trace, hidden=True):
        llm.generate(prompts, params, use_tqdm=False)


if __name__ == "__main__":
    main()
