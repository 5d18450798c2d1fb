"""What the recorder costs: paired rounds in one engine, with vLLM's own logprobs beside.

    python tools/bench.py --model DIR [--batches 1,8,32,64] [--rounds 9] [--seconds 2] [--out bench.json]

For each batch size, a round generates the same amount in every way, each time once plainly just before it or just
after it, in turns: with the recorder keeping the top 20, hidden states, or whole logits, and with vLLM's own
`logprobs=20`. Figures are ratios of such pairs, since machines drift; the medians are what to quote. The engine runs
as it does by default, its worker in a process of its own; there the recorder is attached for the recorded rounds only.
What is still to be written at the end of a round is written before the next one begins, and its time is shown beside.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

# Lets a function be sent to the worker, which attaches the recorder there.
os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

TOP_K = 20
WARM_UP_TOKENS = 4
# What is recorded in each way of generating; None attaches nothing.
KINDS: dict[str, dict[str, Any] | None] = {
    "top-20": {},
    "hidden": {"hidden": True},
    "logits": {"logits": True},
    "logprobs": None,
}
RATIO_GOALS = {"top-20": 1.02, "hidden": 1.03, "logits": 1.10}
HOOK_GOAL = 0.01
BYTES_GOALS = {"bytes_per_logit": 1.35}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--batches", default="1,8,32,64", help="batch sizes")
    parser.add_argument("--kinds", default=",".join(KINDS), help="ways of generating")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long one way of one round generates")
    parser.add_argument("--graphs", action="store_true", help="with CUDA graphs, on a GPU")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    kinds = args.kinds.split(",")

    scratch = Path(tempfile.mkdtemp(prefix="tracekit-bench-"))
    try:
        bench = Bench(args, scratch)
        batches = {size: bench.measure(int(size), kinds) for size in args.batches.split(",")}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    report(batches)
    if args.out:
        args.out.write_text(json.dumps({"batches": batches}, indent=2) + "\n")


class Bench:
    """One engine, and the recordings that are attached to it for a round."""

    def __init__(self, args: argparse.Namespace, scratch: Path) -> None:
        from vllm import LLM

        from tracekit.record.engines.attach import attach

        # The plugin hooks into the worker because of this; what is recorded, and where, is told before each round.
        os.environ.update(TRACEKIT_RECORD=str(new_trace(scratch / "unused")), TRACEKIT_RECORD_SESSION="bench")
        self._args = args
        self._scratch = scratch
        self._count = 0
        attach()
        self._llm = LLM(
            args.model,
            enforce_eager=not args.graphs,
            max_model_len=1024,
            enable_prefix_caching=False,
            max_num_seqs=max(map(int, args.batches.split(","))),
        )
        self._record(None)

    def measure(self, batch_size: int, kinds: list[str]) -> dict[str, Any]:
        """Runs the rounds of one batch size; returns seconds and recorder figures by kind."""
        num_tokens = 16
        self._generate(batch_size, num_tokens)
        seconds = self._generate(batch_size, num_tokens)
        num_tokens = min(900, max(16, int(num_tokens * self._args.seconds / seconds)))
        rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for kind in kinds:
            self._round(batch_size, 16, kind)  # compiles and warms
        for index in range(self._args.rounds):
            for kind in kinds:
                is_first = index % 2 == 0
                before = self._generate(batch_size, num_tokens) if is_first else 0.0
                figures = self._round(batch_size, num_tokens, kind)
                plain = before if is_first else self._generate(batch_size, num_tokens)
                rounds[kind].append(figures | {"plain": plain})
            print(f"batch {batch_size}: round {index + 1}/{self._args.rounds}", end="\r", flush=True)
        return {"num_tokens": num_tokens * batch_size, "rounds": rounds}

    def _round(self, batch_size: int, num_tokens: int, kind: str) -> dict[str, float]:
        settings = KINDS[kind]
        if settings is None:
            return {"seconds": self._generate(batch_size, num_tokens, logprobs=TOP_K)}
        self._count += 1
        trace = new_trace(self._scratch / f"{self._count}.trace")
        self._record(
            {"trace": str(trace), "session": f"bench{self._count}", "top_k": TOP_K, "strict": True, **settings}
        )
        self._generate(batch_size, WARM_UP_TOKENS)  # starting a recording is no part of what it costs to go on
        seconds = self._generate(batch_size, num_tokens)
        started = time.perf_counter()
        self._record(None)
        figures = {"seconds": seconds, "drain": time.perf_counter() - started}
        figures |= of_trace(trace, batch_size * (WARM_UP_TOKENS + num_tokens))
        shutil.rmtree(trace)
        return figures

    def _record(self, settings: dict[str, Any] | None) -> None:
        """Attaches the recorder in front end and worker, or ends the recording that is on."""
        record_in_worker(None, settings)
        self._llm.collective_rpc(record_in_worker, args=(settings,))

    def _generate(self, batch_size: int, num_tokens: int, logprobs: int | None = None) -> float:
        from vllm import SamplingParams

        params = SamplingParams(temperature=1.0, max_tokens=num_tokens, ignore_eos=True, logprobs=logprobs)
        prompts = [f"Chapter {i}. It was a morning in" for i in range(batch_size)]
        started = time.perf_counter()
        outputs = self._llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - started
        assert sum(len(output.outputs[0].token_ids) for output in outputs) == batch_size * num_tokens
        return seconds


def new_trace(path: Path) -> Path:
    from tracekit.store import create_trace

    create_trace(path, "record")
    return path


def record_in_worker(_worker: Any, settings: dict[str, Any] | None) -> None:
    from tracekit.record import RecordConfig
    from tracekit.record.registry import activate, deactivate

    deactivate(timeout=60.0)
    if settings is not None:
        activate(RecordConfig(**settings))


def of_trace(path: Path, num_tokens: int) -> dict[str, float]:
    """Time inside hooks and bytes on disk, as the trace itself tells them."""
    from tracekit.store import Trace

    trace = Trace(path)
    assert trace.num_rows("tokens") == num_tokens, f"{trace.num_rows('tokens')} of {num_tokens} rows are there"
    closed = [json.loads(e["attributes"]) for e in trace.read("events").to_pylist() if e["kind"] == "writer_closed"]
    hook_ns, step_ns, num_steps = (sum(event[key] for event in closed) for key in ("hook_ns", "step_ns", "num_steps"))
    figures = {"hook_share": hook_ns / step_ns, "step_ms": step_ns / num_steps / 1e6}
    figures["bytes_per_token"] = trace.num_bytes("tokens") / num_tokens
    for table in ("hidden", "logits"):
        if num_rows := trace.num_rows(table):
            width = len(trace.read(table, [table]).column(0)[0])
            figures[f"bytes_per_{table.removesuffix('s')}"] = trace.num_bytes(table) / (num_rows * width)
    return figures


def report(batches: dict[str, dict[str, Any]]) -> None:
    print("Time against the plain generation beside it: median (quartiles). Goals in brackets.                  ")
    for size, batch in batches.items():
        rounds = batch["rounds"]
        plain = [figures["plain"] for of_kind in rounds.values() for figures in of_kind]
        rate = batch["num_tokens"] / statistics.median(plain)
        print(f"\nbatch {size}: pairs of {batch['num_tokens']} tokens, plain {rate:.0f} tokens/s")
        for kind in rounds:
            ratios = sorted(figures["seconds"] / figures["plain"] for figures in rounds[kind])
            low, median, high = quartiles(ratios)
            batch.setdefault("ratios", {})[kind] = {"median": median, "quartiles": [low, high], "all": ratios}
            line = f"  {kind:<9} {median:.3f} ({low:.3f} to {high:.3f}){verdict(median, RATIO_GOALS.get(kind))}"
            if KINDS[kind] is not None:
                line += of_recorder(rounds[kind])
            print(line)


def of_recorder(rounds: list[dict[str, float]]) -> str:
    medians = {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
    text = (
        f"  hooks {medians['hook_share']:.2%} of {medians['step_ms']:.0f} ms{verdict(medians['hook_share'], HOOK_GOAL)}"
    )
    text += f"  rest written in {medians['drain']:.1f} s"
    for name in ("bytes_per_token", "bytes_per_hidden", "bytes_per_logit"):
        if name in medians:
            text += f"  {medians[name]:.2f} {name.replace('_', ' ')}{verdict(medians[name], BYTES_GOALS.get(name))}"
    return text


def quartiles(values: list[float]) -> tuple[float, float, float]:
    return values[len(values) // 4], statistics.median(values), values[-1 - len(values) // 4]


def verdict(value: float, goal: float | None) -> str:
    return "" if goal is None else f" [{goal:g}: {'met' if value <= goal else 'MISSED'}]"


if __name__ == "__main__":
    main()
