"""What only the V0 engine can show of its adapter: v0.py MODEL OUT TRACE.

One engine whose KV cache is too small for its requests (preemption by recomputation), with prompt logprobs, guided
decoding, whole rows, samples, an abort, and requests that are not recorded; then an asynchronous one.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from pathlib import Path
from typing import Any

import torch
from outputs import write
from safetensors.torch import load_file
from vllm import LLM, AsyncEngineArgs, AsyncLLMEngine, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.sampling_params import GuidedDecodingParams

import tracekit
from tracekit.store import Trace

WHOLE = {"tracekit_hidden": True, "tracekit_logits": True}


def features(model: str) -> tuple[list[Any], dict[str, Any]]:
    # 16 tokens a block.
    llm = LLM(model, enforce_eager=True, max_model_len=256, max_logprobs=20, num_gpu_blocks_override=40)
    engine = llm.llm_engine
    choice = GuidedDecodingParams(choice=["blue", "grey"])
    requests = [
        ("scored", "A prompt of a few tokens.", {"temperature": 0.0, "prompt_logprobs": 3, "extra_args": WHOLE}),
        ("guided", "Red, green or", {"guided_decoding": choice, "extra_args": WHOLE}),
        ("pair", "The weather today is", {"n": 2, "max_tokens": 10, "extra_args": {"tracekit_group_id": "g"}}),
        ("silent", "Not to be recorded:", {"extra_args": {"tracekit_record": False}}),
        ("doomed", "A story that never ends:", {"max_tokens": 200, "ignore_eos": True}),
        *(
            (
                f"tale-{i}",
                f"Tale {i}. Once upon a time",
                {"max_tokens": 120, "ignore_eos": True, "seed": i, "top_p": 0.9},
            )
            for i in range(8)
        ),
    ]
    for request_id, prompt, kind in requests:
        engine.add_request(request_id, prompt, SamplingParams(**{"max_tokens": 12, "logprobs": 5} | kind))
    finished, partial = [], []
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                finished.append(output)
            elif output.request_id == "doomed":
                partial = list(output.outputs[0].token_ids)
        if len(partial) == 9:
            engine.abort_request("doomed")
    return finished, {"doomed": partial, "num_preemptions": engine.scheduler[0].num_cumulative_preemption}


async def streamed(model: str) -> tuple[list[Any], list[int]]:
    """Streams two requests, and leaves a third one after five tokens."""
    engine = AsyncLLMEngine.from_engine_args(
        AsyncEngineArgs(model, enforce_eager=True, max_model_len=256, disable_log_requests=True)
    )
    params = SamplingParams(temperature=0.8, max_tokens=20, ignore_eos=True, logprobs=1)

    async def read(name: str) -> Any:
        async for output in engine.generate(f"Stream {name}:", params, f"stream-{name}"):
            last = output
        return last

    async def leave() -> list[int]:
        stream = engine.generate("Nobody waits:", params, "stream-left")
        async for output in stream:
            tokens = list(output.outputs[0].token_ids)
            if len(tokens) == 5:
                await engine.abort("stream-left")
                break
        return tokens

    *outputs, left = await asyncio.gather(read("a"), read("b"), leave())
    engine.shutdown_background_loop()
    return outputs, left


def differing_products(model: Path, trace: Path) -> tuple[int, int]:
    """Returns how many rows of hidden states there are, and how many do not yield the recorded logits exactly."""
    weights = load_file(model / "model.safetensors")
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    tables = {}
    for table in ("hidden", "logits"):
        rows = Trace(trace).read(table).to_pylist()
        tables[table] = {(row["request_id"], row["position"]): torch.tensor(row[table]) for row in rows}
    keys = list(tables["hidden"])
    assert keys == list(tables["logits"])
    products = torch.nn.functional.linear(torch.stack([tables["hidden"][key] for key in keys]).bfloat16(), head)
    logits = torch.stack([tables["logits"][key] for key in keys])
    return len(keys), int((products.float() != logits).any(1).sum())


def main() -> None:
    model, out, trace = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    torch.manual_seed(0)
    with tracekit.recording(trace, strict=True):
        finished, more = features(model)
        gc.collect()
        cleanup_dist_env_and_memory()
        outputs, left = asyncio.run(streamed(model))
    num_rows, num_differing = differing_products(Path(model), trace)
    write(out, finished + outputs, left=left, num_rows=num_rows, num_differing=num_differing, **more)


if __name__ == "__main__":
    main()
