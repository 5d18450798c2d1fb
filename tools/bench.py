"""What the recorder costs: paired rounds in one engine, with vLLM's own logprobs beside.

    python tools/bench.py --model DIR [--rounds 15] [--requests 24] [--tokens 64] [--out bench.json]

Each round generates the same amount three times, in changing order: plain, recorded, and with `logprobs=20`.
Figures are ratios within a round, since machines drift; the medians are what to quote. The engine runs as it does
by default, its worker in a process of its own; the recorder's hooks there are switched off for the plain rounds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Lets a function be sent to the worker, which switches the recorder there on and off.
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

TOP_K = 20
GOALS = {"hook_share": 0.01, "time_ratio": 1.03, "bytes_per_token": 80.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()

    scratch = Path(tempfile.mkdtemp(prefix="tracekit-bench-"))
    try:
        seconds = measure(args, scratch / "bench.trace")
        figures = {"seconds": seconds, **of_trace(scratch / "bench.trace", args)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(figures, args)
    if args.out:
        args.out.write_text(json.dumps(figures, indent=2) + "\n")


def measure(args: argparse.Namespace, trace: Path) -> dict[str, list[float]]:
    """Runs the rounds in one engine; returns seconds by kind and round."""
    from vllm import LLM

    import tracekit

    with tracekit.recording(trace, top_k=TOP_K, strict=True):
        llm = LLM(args.model, enforce_eager=True, max_model_len=1024, enable_prefix_caching=False)
        switch(llm, on=False)

        def recorded() -> float:
            switch(llm, on=True)
            try:
                return generate(llm, args)
            finally:
                switch(llm, on=False)

        kinds: dict[str, Callable[[], float]] = {
            "plain": lambda: generate(llm, args),
            "recorded": recorded,
            "logprobs": lambda: generate(llm, args, logprobs=TOP_K),
        }
        for run in kinds.values():
            run()  # warms caches, and compiles what vLLM compiles for logprobs
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        orders = itertools.cycle(itertools.permutations(kinds))
        for round_index in range(args.rounds):
            for kind in next(orders):
                seconds[kind].append(kinds[kind]())
            print(f"round {round_index + 1}/{args.rounds}", end="\r", flush=True)
    return seconds


def switch(llm: Any, *, on: bool) -> None:
    """Switches the recorder's hooks on or off, in the front end and in the worker."""
    from tracekit.record.registry import suspend

    suspend(not on)
    llm.collective_rpc(_suspend_in_worker, args=(not on,))


def _suspend_in_worker(_worker: Any, suspended: bool) -> None:
    from tracekit.record.registry import suspend

    suspend(suspended)


def generate(llm: Any, args: argparse.Namespace, logprobs: int | None = None) -> float:
    from vllm import SamplingParams

    params = SamplingParams(temperature=1.0, max_tokens=args.tokens, ignore_eos=True, logprobs=logprobs)
    prompts = [f"Chapter {i}. It was a morning in" for i in range(args.requests)]
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    assert sum(len(output.outputs[0].token_ids) for output in outputs) == args.requests * args.tokens
    return seconds


def of_trace(path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Time inside hooks and bytes on disk, as the trace itself tells them."""
    from tracekit.store import Trace

    trace = Trace(path)
    # The round that warmed up was recorded too.
    assert trace.num_rows("tokens") == (args.rounds + 1) * args.requests * args.tokens, "rows are missing"
    closed = [json.loads(e["attributes"]) for e in trace.read("events").to_pylist() if e["kind"] == "writer_closed"]
    hook_ns, step_ns, num_steps = (sum(event[key] for event in closed) for key in ("hook_ns", "step_ns", "num_steps"))
    return {
        "hook_share": hook_ns / step_ns,
        "hook_ms_per_step": hook_ns / num_steps / 1e6,
        "step_ms": step_ns / num_steps / 1e6,
        "bytes_per_token": trace.num_bytes("tokens") / trace.num_rows("tokens"),
    }


def report(figures: dict[str, Any], args: argparse.Namespace) -> None:
    seconds = figures["seconds"]
    num_tokens = args.requests * args.tokens
    print(f"{args.rounds} rounds of {args.requests} requests x {args.tokens} tokens, top-{TOP_K}      ")
    for kind, times in seconds.items():
        print(f"  {kind:<9} {num_tokens / statistics.median(times):7.1f} tokens/s (median)")
    for kind in ("recorded", "logprobs"):
        ratios = sorted(a / b for a, b in zip(seconds[kind], seconds["plain"], strict=True))
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        median = statistics.median(ratios)
        figures[f"time_ratio_{kind}"] = {"median": median, "quartiles": [low, high], "all": ratios}
        goal = verdict(median, GOALS["time_ratio"]) if kind == "recorded" else ""
        print(f"  time of {kind} / plain: {median:.3f} (quartiles {low:.3f} to {high:.3f}){goal}")
    hook, step = figures["hook_ms_per_step"], figures["step_ms"]
    print(
        f"  inside hooks: {hook:.3f} of {step:.1f} ms a step = {figures['hook_share']:.2%}"
        + verdict(figures["hook_share"], GOALS["hook_share"])
    )
    print(
        f"  tokens table on disk: {figures['bytes_per_token']:.1f} bytes a token"
        + verdict(figures["bytes_per_token"], GOALS["bytes_per_token"])
    )


def verdict(value: float, goal: float) -> str:
    return f"  [goal {goal:g}: {'met' if value <= goal else 'MISSED'}]"


if __name__ == "__main__":
    main()
