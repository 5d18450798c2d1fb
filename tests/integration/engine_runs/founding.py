"""Two rollouts of one engine: founding.py MODEL FOLDER makes FOLDER/tempered (0.7, top-p 0.9) and FOLDER/plain."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

import tracekit

THINGS = ("river", "lamp", "engine", "garden", "letter", "captain", "winter", "market", "bridge", "violin", "key")


def main() -> None:
    model, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir()
    llm = LLM(model, dtype="bfloat16", enforce_eager=True, max_model_len=256, max_num_seqs=32, seed=0)
    prompts = [f"A story about a {first} and a {second}:" for first, second in zip(THINGS, THINGS[::-1], strict=True)]
    prompts += [
        f"def {first}_of_{second}(self):\n" for first, second in zip(THINGS, THINGS[5:] + THINGS[:5], strict=True)
    ]
    for name, sampling in (("tempered", {"temperature": 0.7, "top_p": 0.9}), ("plain", {"temperature": 1.0})):
        params = [
            SamplingParams(**sampling, seed=seed, max_tokens=24, ignore_eos=True, logprobs=0)
            for seed in range(len(prompts))
        ]
        with tracekit.recording(folder / name, hidden=True):
            llm.generate(prompts, params, use_tqdm=False)
        llm.reset_prefix_cache()


if __name__ == "__main__":
    main()
