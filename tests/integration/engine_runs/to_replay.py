"""A rollout that is replayed: to_replay.py MODEL NUM_REQUESTS NUM_TOKENS.

Requests share prefixes that the cache keeps, come in two lots, and differ in everything that shapes a distribution.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from vllm import LLM, SamplingParams

SHARED = "In a small village by the sea, where fishermen rose before dawn, there lived a teller of stories. " * 9


def main() -> None:
    model, num_requests, num_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    is_small = num_requests < 8
    llm = LLM(model, enforce_eager=True, max_model_len=512, max_num_seqs=2 if is_small else 6)
    prompts, params = [], []
    for i in range(num_requests):
        shared = SHARED if i % 3 == 0 and not is_small else ""
        prompts.append(shared + f"Question {i}: name {i + 2} animals and say why. " * (1 + i % 3))
        params.append(
            SamplingParams(
                temperature=(0.7, 0.0, 1.0, 1.3)[i % 4],
                top_p=0.9 if i % 3 == 0 else 1.0,
                top_k=20 if i % 5 == 1 else -1,
                min_p=0.05 if i % 7 == 2 else 0.0,
                repetition_penalty=1.2 if i % 6 == 2 else 1.0,
                logit_bias={260: 2.0} if i % 8 == 3 else None,
                seed=i,
                max_tokens=num_tokens + i % 5,
                ignore_eos=i % 2 == 0,
            )
        )
    half = num_requests // 2
    llm.generate(prompts[:half], params[:half], use_tqdm=False)
    llm.generate(prompts[half:], params[half:], use_tqdm=False)


if __name__ == "__main__":
    main()
