"""Every kind of sampling parameter, with the engine's own logprobs beside: truth.py MODEL OUT LOGPROBS_MODE."""

from __future__ import annotations

import sys
from pathlib import Path

from outputs import SHARED_PREFIX, write
from vllm import LLM, SamplingParams

PARAMS = [
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 1.1, "top_k": 7},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.8, "repetition_penalty": 1.3},
    {"temperature": 1.0, "logit_bias": {260: 3.0, 253: -5.0}},
    {"temperature": 0.8, "top_p": 0.95, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.1, "logit_bias": {28: 1.5}},
    {"temperature": 1.0, "presence_penalty": 0.6, "frequency_penalty": 0.4},
    {"temperature": 0.0, "repetition_penalty": 1.2},
]
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Count from one to ten.",
    "def fibonacci(n):",
]


def main() -> None:
    model, out, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    llm = LLM(model, enforce_eager=True, max_model_len=1024, logprobs_mode=mode, max_logprobs=20)
    params = [SamplingParams(seed=100 + i, max_tokens=16, logprobs=20, **kind) for i, kind in enumerate(PARAMS)]
    prompts = [f"Question {i}: {QUESTIONS[i % len(QUESTIONS)]}\nAnswer:" for i in range(len(params))]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    # The second of two prompts with a long common beginning finds it in the prefix cache.
    for question in QUESTIONS[:3]:
        single = SamplingParams(temperature=1.0, top_p=0.8, seed=7, max_tokens=8, logprobs=20)
        outputs += llm.generate([f"{SHARED_PREFIX}\n{question}"], single, use_tqdm=False)
    write(out, outputs)


if __name__ == "__main__":
    main()
