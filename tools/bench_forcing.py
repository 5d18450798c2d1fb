"""What it costs to force recorded tokens through vLLM, beside generating as many: pairs in one engine.

    python tools/bench_forcing.py --model DIR [--batch 16] [--tokens 64] [--rounds 7]

Each round runs the same requests twice through the engine that a replay would use, in turns: as they are, nothing
recorded, and with every token given to the engine, the recorder at work and the logits of 20 candidates asked for.
Figures are ratios of such pairs; the median is what to quote. The time until the recorder has written everything is
shown beside, and the ratio of processor time, which tells what other programs on the machine did to it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

os.environ["TRACEKIT_FORCE_TOKENS"] = "1"
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import numpy as np

import tracekit
from tracekit.replay.backends.vllm.worker import FORCED, Engine

RATIO_GOAL = 1.10
NUM_CANDIDATES = 20
NUM_PROMPT = 32


class Bench:
    """One engine.

    Args:
        model: a checkpoint's folder.
        batch: requests at a time.
        num_tokens: tokens that each generates.
    """

    def __init__(self, model: str, batch: int, num_tokens: int, scratch: Path) -> None:
        self._engine = Engine(model, {"enforce_eager": True, "max_num_seqs": batch}, {}, "decode")
        self._here, self._there = Pipe()
        self._scratch = scratch
        self._num_tokens = num_tokens
        self._count = 0
        random = np.random.default_rng(0)
        self._prompts = random.integers(100, 20_000, (batch, NUM_PROMPT)).tolist()
        self._candidates = random.integers(0, 20_000, (num_tokens, NUM_CANDIDATES)).tolist()
        self._given = random.integers(100, 20_000, (batch, num_tokens)).tolist()

    def plain(self) -> tuple[float, float]:
        """Returns the seconds of a generation, and those of the processor."""
        started, processor = time.perf_counter(), time.process_time()
        self._run([{} for _ in self._prompts])
        return time.perf_counter() - started, time.process_time() - processor

    def forced(self) -> tuple[float, float, float]:
        """Returns the seconds of a forced generation, those of the processor, and the seconds until all is written."""
        asked = [
            {"num_prompt_tokens": NUM_PROMPT, "token_ids": ids, "candidate_ids": self._candidates}
            for ids in self._given
        ]
        started = time.perf_counter()
        with tracekit.recording(self._scratch / str(self._count)):
            started, processor = time.perf_counter(), time.process_time()
            token_ids = self._run([{"extra_args": {FORCED: forced}} for forced in asked])
            generated, processor = time.perf_counter() - started, time.process_time() - processor
        if token_ids != self._given:
            raise SystemExit("the engine did not sample the tokens that it was given")
        return generated, processor, time.perf_counter() - started

    def _run(self, extra: list[dict[str, Any]]) -> list[list[int]]:
        self._count += 1
        sampling = {"temperature": 1.0, "max_tokens": self._num_tokens, "ignore_eos": True, "detokenize": False}
        requests = [
            {
                "id": f"{self._count}-{i}",
                "name": str(i),
                "prompt_token_ids": ids,
                "sampling": sampling | more,
                "steps": [],
                "lora": None,
            }
            for i, (ids, more) in enumerate(zip(self._prompts, extra, strict=True))
        ]
        ended = self._engine.run(self._there, requests, None)["ended"]
        return [ended[request["id"]]["token_ids"] for request in requests]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--batch", type=int, default=16, help="requests at a time")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()

    ratios, processor_ratios, whole = [], [], []
    with tempfile.TemporaryDirectory(prefix="tracekit-bench-") as scratch:
        bench = Bench(args.model, args.batch, args.tokens, Path(scratch))
        bench.plain()
        bench.forced()
        for number in range(args.rounds):
            if number % 2:
                plain, plain_processor = bench.plain()
                generated, processor, written = bench.forced()
            else:
                generated, processor, written = bench.forced()
                plain, plain_processor = bench.plain()
            ratios.append(generated / plain)
            processor_ratios.append(processor / plain_processor)
            whole.append(written / plain)
            print(f"round {number + 1}/{args.rounds}: {plain:.2f} s plain, {generated:.2f} s forced", flush=True)
    median = statistics.median(ratios)
    verdict = "met" if median <= RATIO_GOAL else "MISSED"
    print(
        f"forced against plain, batch {args.batch}: {median:.3f} ({min(ratios):.3f} to {max(ratios):.3f}) "
        f"[{RATIO_GOAL:g}: {verdict}]; processor time {statistics.median(processor_ratios):.3f}, until written "
        f"{statistics.median(whole):.3f}"
    )


if __name__ == "__main__":
    main()
