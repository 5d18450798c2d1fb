"""The recorder fails in every way it can, in one engine: failures.py MODEL OUT FOLDER.

Each scenario is a recording of its own around the same seeded requests; what they returned is told by scenario.
The full disk is a limit on file sizes, which the kernel enforces with an error like that of a full disk.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

import tracekit
from tracekit.record import rows, sink
from tracekit.record.engines import describe, front_end, schedule
from tracekit.record.engines.v1 import prompts, runner, sampler

# Every function that a hook, or the writer's thread, rests on.
PLANTS = [
    (runner, "_after_forward"),
    (runner, "_keep_raw"),
    (runner, "sample_rows"),
    (runner, "_hand_over"),
    (runner, "_token_rows"),
    (runner, "LateCapture"),
    (sampler, "_backend_name"),
    (sampler, "Drawn"),
    (schedule, "request_columns"),
    (prompts, "begin"),
    (prompts, "captures"),
    (front_end, "_choose"),
    (front_end, "known_row"),
    (describe, "model_fingerprint"),
    (rows, "reduce_raw"),
    (sink.Sink, "flush"),
]


class PlantedError(Exception):
    pass


@contextlib.contextmanager
def planted(owner: Any, name: str) -> Iterator[None]:
    """Makes a function of tracekit raise."""
    original = getattr(owner, name)

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise PlantedError(f"planted in {name}")

    setattr(owner, name, fail)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def slow_writer() -> Iterator[None]:
    """The writer does one piece of work, and the next one takes it until all tokens are there."""
    original = rows.TokenReducer.reduce
    all_sampled, calls = threading.Event(), itertools.count()

    def reduce(self: Any, *captures: Any) -> Any:
        if next(calls):
            all_sampled.wait(timeout=120)
        return original(self, *captures)

    rows.TokenReducer.reduce = reduce
    try:
        yield
    finally:
        all_sampled.set()
        rows.TokenReducer.reduce = original


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def main() -> None:
    model, out, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    llm = LLM(model, enforce_eager=True, max_model_len=512, enable_prefix_caching=False)

    prompts_of = {i: f"Story {i}: there was" for i in range(6)}
    num_scored = len(llm.get_tokenizer().encode(prompts_of[3])) - 1

    def generate() -> list[list[int]]:
        params = [
            SamplingParams(
                temperature=0.9,
                top_p=0.9 if i % 2 else 1.0,
                seed=i,
                max_tokens=24,
                ignore_eos=True,
                prompt_logprobs=0 if i == 3 else None,
            )
            for i in range(6)
        ]
        outputs = llm.generate(list(prompts_of.values()), params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    tokens = {"plain": generate()}
    scenarios: dict[str, tuple[Any, dict[str, Any]]] = {
        f"{getattr(owner, '__name__', owner).rpartition('.')[2]}.{name}": (
            planted(owner, name),
            # So often that it happens before all tokens are there, however quick the machine.
            {"flush_seconds": 0.05} if name == "flush" else {},
        )
        for owner, name in PLANTS
    }
    scenarios["small queue"] = (contextlib.nullcontext(), {"max_queue_mib": 0})
    scenarios["slow writer"] = (slow_writer(), {"max_queue_mib": 6})
    scenarios["full disk"] = (full_disk(), {"flush_seconds": 0.05})
    for name, (trouble, settings) in scenarios.items():
        with tracekit.recording(folder / name, **settings), trouble:
            tokens[name] = generate()
            if name == "full disk":
                # The end of the recording, too, finds the disk full.
                from tracekit.record.registry import deactivate

                deactivate()
    out.write_text(json.dumps({"tokens": tokens, "num_scored": num_scored}))
    sys.exit(7)


if __name__ == "__main__":
    main()
