"""What a call of `TrainerTrace.log` costs a training loop.

    python tools/bench_trainer.py [--requests 64] [--tokens 10000] [--rounds 200]

Each round hands in the logprobs of so many requests with so many tokens in all, once in each layout that trainers have,
beside a copy of as many float32 (what any hand-over does). Shown are the median, the 95th percentile, and the ratio of
the medians. Then how long the thread took until all of it was journalled.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tracekit import TraceWriter, TrainerTrace, create_trace

GOAL_SECONDS = 1e-3
GOAL_TOKENS = 10_000


def make_rollout(path: Path, num_requests: int, num_tokens: int) -> list[int]:
    """Writes a rollout; returns how many tokens each request has."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(num_tokens - num_requests, np.full(num_requests, 1 / num_requests)) + 1
    create_trace(path, "record")
    with TraceWriter(path, run_id="run") as writer:
        for number, count in enumerate(counts.tolist()):
            name = f"r{number}"
            prompt = [rng.integers(0, 1000, 64).tolist()]
            writer.append("requests", {"request_id": [name], "prompt_token_ids": prompt, "temperature": 1.0})
            writer.append("outcomes", {"request_id": [name], "num_output_tokens": count})
            index = np.arange(count, dtype=np.int32)
            tokens = {"output_index": index, "position": index + 64, "token_id": index, "forced": False}
            writer.append("tokens", {"request_id": name, "is_prompt": False, **tokens})
    return [int(count) for count in counts]


def layouts(counts: list[int]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Returns logprobs as trainers hold them; as tensors where torch is installed."""
    rng = np.random.default_rng(1)
    rows = [(-rng.exponential(1, count)).astype(np.float32) for count in counts]
    padded = np.zeros((len(rows), max(counts)), np.float32)
    mask = np.arange(max(counts)) < np.array(counts)[:, None]
    padded[mask] = np.concatenate(rows)
    ends = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    found: dict[str, tuple[Any, dict[str, Any]]] = {
        "arrays": (rows, {}),
        "padded": (padded, {"mask": mask}),
        "packed": (np.concatenate(rows), {"cu_seqlens": ends}),
    }
    try:
        import torch
    except ImportError:
        return found
    bf16 = torch.tensor(padded, dtype=torch.bfloat16)
    return found | {
        "tensors": ([torch.tensor(row) for row in rows], {}),
        "padded bf16": (bf16, {"mask": torch.tensor(mask)}),
    }


def timed(call: Callable[[], Any]) -> float:
    """Returns the seconds of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=GOAL_TOKENS, help="of all requests of a call")
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="tracekit-bench-") as scratch:
        rollout = Path(scratch, "rollout")
        counts = make_rollout(rollout, args.requests, args.tokens)
        ids = [f"r{number}" for number in range(args.requests)]
        flat = np.zeros(args.tokens, np.float32)
        print(
            f"{args.requests} requests, {args.tokens} tokens a call; median and 95th percentile of {args.rounds} calls"
        )
        for name, (values, how) in layouts(counts).items():
            calls, copies = [], []
            # Room for all calls, so that none waits for the disk.
            trace = TrainerTrace(Path(scratch, name.replace(" ", "-")), rollout, num_queued=args.rounds)
            for step in range(args.rounds):
                copies.append(timed(flat.copy))
                calls.append(timed(lambda: trace.log(ids, values, trainer_step=step, weight_version=step, **how)))  # noqa: B023
                # As in a loop, whose step takes far longer than a call: the thread works meanwhile.
                time.sleep(0.01)
            written = timed(trace.close)
            median, late = statistics.median(calls), float(np.quantile(calls, 0.95))
            goal = GOAL_SECONDS * max(args.tokens / GOAL_TOKENS, 1)
            verdict = "met" if median <= goal else "MISSED"
            print(
                f"{name:12} {median * 1e3:7.3f} ms  {late * 1e3:7.3f} ms  "
                f"{median / statistics.median(copies):8.1f} copies  [{goal * 1e3:g} ms: {verdict}]  "
                f"until closed {written:.2f} s"
            )


if __name__ == "__main__":
    main()
