"""Several ranks, one trace: parallel.py MODEL OUT TRACE tensor|data."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

# One core for each rank: without NUMA nodes vLLM does not choose by itself.
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"

from vllm import LLM, AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

import tracekit

NUM_REQUESTS = 12
PROMPTS = {f"request-{i}": f"This is story {i}, and it begins" for i in range(NUM_REQUESTS)}


def params(index: int) -> SamplingParams:
    return SamplingParams(
        temperature=1.0,
        seed=index,
        max_tokens=10 + index,
        ignore_eos=True,
        logprobs=0,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def tensor(model: str) -> dict[str, Any]:
    llm = LLM(model, enforce_eager=True, max_model_len=256, tensor_parallel_size=2)
    outputs = llm.generate(list(PROMPTS.values()), [params(i) for i in range(NUM_REQUESTS)], use_tqdm=False)
    return {output.request_id: sample(output) for output in outputs}


async def data(model: str) -> dict[str, Any]:
    engine = AsyncLLM.from_engine_args(
        AsyncEngineArgs(model=model, enforce_eager=True, max_model_len=256, data_parallel_size=2)
    )

    async def one(index: int, request_id: str, prompt: str) -> tuple[str, Any]:
        async for output in engine.generate(prompt, params(index), request_id):
            last = output
        return request_id, sample(last)

    found = await asyncio.gather(*(one(i, *item) for i, item in enumerate(PROMPTS.items())))
    engine.shutdown()
    return dict(found)


def sample(output: Any) -> dict[str, Any]:
    ids = list(output.outputs[0].token_ids)
    logprobs = [entry[token].logprob for entry, token in zip(output.outputs[0].logprobs, ids, strict=True)]
    return {"token_ids": ids, "logprobs": logprobs}


def main() -> None:
    model, out, trace, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    with tracekit.recording(trace, strict=True):
        found = tensor(model) if how == "tensor" else asyncio.run(data(model))
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()
