"""A tiny mixture of experts on Model Runner V2, recorded, made to return its routes: v2_routes.py MODEL OUT TRACE."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

import tracekit


def main() -> None:
    model, out, trace = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    llm = LLM(
        model,
        enforce_eager=True,
        max_model_len=256,
        enable_return_routed_experts=True,
    )
    params = [
        SamplingParams(temperature=1.0, seed=1, max_tokens=4, ignore_eos=True),
        SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True),
        # The caller wants no routes of the first three prompt positions.
        SamplingParams(temperature=1.0, seed=2, max_tokens=3, ignore_eos=True, routed_experts_prompt_start=3),
    ]
    prompts = ["A route", "Another", "A third one"]
    off = llm.generate(prompts, params, use_tqdm=False)
    with tracekit.recording(trace, strict=True):
        on = llm.generate(prompts, params, use_tqdm=False)
    found = {
        "off": [list(output.outputs[0].token_ids) for output in off],
        "on": [list(output.outputs[0].token_ids) for output in on],
        "external_ids": [output.request_id for output in on],
        "num_prompt": [len(output.prompt_token_ids or ()) for output in on],
        "routes": [_routes(output.outputs[0].routed_experts) for output in on],
    }
    out.write_text(json.dumps(found))


def _routes(routes: object) -> object:
    assert routes is not None, "the engine returned no routes"
    return routes.tolist()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
