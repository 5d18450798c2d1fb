"""AsyncLLM in a program: streams, samples, two ways to leave: async_llm.py MODEL OUT."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm import SamplingParams
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM


async def stream(
    engine: AsyncLLM, request_id: str, on_tokens: Callable[[int], bool] = lambda _: False, **params: Any
) -> dict[int, list[int]]:
    """Returns the tokens of each sample, up to where `on_tokens`, asked with the count of the first one, is true."""
    samples: dict[int, list[int]] = {}
    settings = {"ignore_eos": True, "output_kind": RequestOutputKind.DELTA, **params}
    outputs = engine.generate(f"The {request_id} of them", SamplingParams(**settings), request_id)
    async for output in outputs:
        for sample in output.outputs:
            samples.setdefault(sample.index, []).extend(sample.token_ids)
        if on_tokens(len(samples.get(0, ()))):
            await outputs.aclose()
            break
    return samples


async def abort(engine: AsyncLLM, request_id: str) -> dict[int, list[int]]:
    """Streams, and aborts the request from outside once it has four tokens."""
    has_some = asyncio.Event()

    def tell(num_tokens: int) -> bool:
        if num_tokens >= 4:
            has_some.set()
        return False

    task = asyncio.create_task(stream(engine, request_id, tell, max_tokens=400, temperature=0.0))
    await has_some.wait()
    await engine.abort(request_id)
    return await task


async def main() -> None:
    model, out = sys.argv[1], Path(sys.argv[2])
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=model, enforce_eager=True, max_model_len=512))
    try:
        await stream(engine, "warm-up", max_tokens=1)
        names = ("streamed", "whole", "samples", "left", "aborted")
        results = await asyncio.gather(
            stream(engine, "streamed", max_tokens=9, temperature=0.0),
            stream(engine, "whole", max_tokens=5, output_kind=RequestOutputKind.FINAL_ONLY),
            stream(engine, "samples", max_tokens=6, n=3, seed=1),
            stream(engine, "left", lambda num_tokens: num_tokens >= 4, max_tokens=400),
            abort(engine, "aborted"),
        )
        out.write_text(json.dumps(dict(zip(names, results, strict=True))))
    finally:
        engine.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
