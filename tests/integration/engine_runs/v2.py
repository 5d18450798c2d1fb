"""Model Runner V2, off and then recorded, with every value that its sampler can return: v2.py MODEL OUT TRACE MODE."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from outputs import SHARED_PREFIX, write
from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

import tracekit

NUM_TOKENS = 8
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "greedy-penalty": {"temperature": 0.0, "repetition_penalty": 1.3},
    "neutral": {"temperature": 1.0},
    "warm": {"temperature": 1.5},
    "top-p": {"temperature": 0.9, "top_p": 0.8},
    "top-k-bias": {"temperature": 1.1, "top_k": 7, "logit_bias": {65: 4.0, 70: -100.0}},
    "min-p-penalties": {"min_p": 0.1, "presence_penalty": 0.6, "frequency_penalty": 0.4, "repetition_penalty": 1.1},
    "all": {"temperature": 0.8, "top_p": 0.95, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.2},
    "allowed": {"temperature": 1.0, "allowed_token_ids": list(range(64, 96))},
    "bad-words": {"temperature": 1.0, "top_k": 3, "bad_words": ["a", "e", "qu"]},
    "min-tokens": {"temperature": 2.0, "min_tokens": 6, "stop_token_ids": list(range(100))},
    "grammar": {"temperature": 1.0, "structured_outputs": StructuredOutputsParams(regex="[0-9]{8}")},
    "grammar-greedy": {"temperature": 0.0, "structured_outputs": StructuredOutputsParams(choice=["left", "right"])},
    "prompt": {"temperature": 1.0, "prompt_logprobs": 1},
    "long-prompt": {"temperature": 1.0, "prompt_logprobs": 0},
    "silent": {"temperature": 0.7, "top_p": 0.9, "logprobs": None},
}


def main() -> None:
    model, out, trace, mode = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    llm = LLM(
        model,
        enforce_eager=True,
        max_model_len=512,
        max_num_batched_tokens=64,
        logprobs_mode=mode,
        max_logprobs=-1,
        enable_prefix_caching=False,
    )
    common = {"max_tokens": NUM_TOKENS, "logprobs": -1}
    params = [SamplingParams(seed=100 + i, **(common | kind)) for i, kind in enumerate(KINDS.values())]
    prompts = [SHARED_PREFIX[:150] if name == "long-prompt" else f"Prompt {name}:" for name in KINDS]

    off = llm.generate(prompts, params, use_tqdm=False)
    with tracekit.recording(trace, strict=True, logits=True, hidden=True):
        on = llm.generate(prompts, params, use_tqdm=False)
    prompt_logprobs = {
        name: [None if entry is None else {str(i): e.logprob for i, e in entry.items()} for entry in o.prompt_logprobs]
        for name, o in zip(KINDS, on, strict=True)
        if o.prompt_logprobs is not None
    }
    write(
        out,
        on,
        names=dict(zip((o.request_id for o in on), KINDS, strict=True)),
        off=[list(o.outputs[0].token_ids) for o in off],
        prompt_logprobs=prompt_logprobs,
    )


if __name__ == "__main__":
    main()
