"""What a replay costs beside the forward passes in it: pairs of a replay and of bare passes over the same batches.

    python tools/bench_replay.py --model DIR [--sequences 64] [--tokens 200] [--rounds 5] [--top-p 1.0] [--out FILE]

The trace is made up: pieces of this repository's own documentation, half of each is prompt, 20 candidates a token. The
replay is of backend hf, in prefill mode and fp32; its time is `ReplaySummary.seconds`, which leaves out the loading of
the model. The bare passes are those of transformers: each batch padded on the right, the body, and the head for the
rows that predict output tokens, in slices of as many rows as the replay takes at a time; nothing is made of the logits.
Either comes first in turns. The median of the ratios is what to quote; that of processor time tells what other programs
on the machine did to it. Where the replay's time went is shown beside.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tracekit.replay import Progress, replay, scoring
from tracekit.replay.backends.base import BatchLimits, Sequence
from tracekit.replay.backends.hf.backend import HfOptions
from tracekit.replay.backends.hf.ragged import RaggedReader
from tracekit.replay.backends.hf.split import SplitModel
from tracekit.replay.plan import Plan
from tracekit.replay.selection import Selection
from tracekit.store import Trace, TraceWriter, create_trace

ROOT = Path(__file__).resolve().parent.parent
NUM_CANDIDATES = 20
RATIO_GOAL = 1.15
# Where a replay's time goes: what is called, and where its name is looked up.
PARTS = {
    "body": (RaggedReader, "hidden"),
    "head": (SplitModel, "logits"),
    "raw columns": (scoring, "reduce_raw"),
    "processed logits": (scoring, "processed_logits"),
    "processed columns": (scoring, "reduce_processed"),
    "writing": (TraceWriter, "append"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument(
        "--tokens", type=int, default=200, help="of a sequence, prompt included; lengths vary by a tenth"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--top-p", type=float, default=1.0, help="of the recorded requests; their temperature is 1")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)

    with tempfile.TemporaryDirectory(prefix="tracekit-bench-") as scratch:
        trace = make_trace(Path(scratch) / "run.trace", args)
        bare = BarePasses(args.model, trace)
        rounds = []
        for number in range(-1, args.rounds):
            before = bare.timed() if number % 2 else {}
            figures = timed_replay(trace, Path(scratch) / f"{number}.trace", args.model)
            figures |= before or bare.timed()
            if number >= 0:  # the first one warms up
                rounds.append(figures)
            print(f"round {number + 1}/{args.rounds}", end="\r", flush=True)
    report(rounds)
    if args.out:
        args.out.write_text(json.dumps({"rounds": rounds}, indent=2) + "\n")


def make_trace(path: Path, args: argparse.Namespace) -> Path:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(args.model)
    pages = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    text_ids = tokenizer("\n".join(page.read_text(encoding="utf-8") for page in pages))["input_ids"]
    ids_of_all = np.resize(np.array(text_ids, np.int32), args.sequences * args.tokens * 2)
    random = np.random.default_rng(0)
    start = 0
    create_trace(path, "record")
    with TraceWriter(path, run_id="run", writer="bench") as writer:
        for number in range(args.sequences):
            length = int(args.tokens * random.uniform(0.9, 1.1))
            ids = ids_of_all[start : start + length]
            start += length
            num_prompt = length // 2
            index = np.arange(length - num_prompt)
            keys = {"run_id": "run", "request_id": f"r{number}"}
            prompt = {"prompt_token_ids": [ids[:num_prompt].tolist()], "temperature": 1.0, "top_p": args.top_p}
            writer.append("requests", keys | prompt)
            candidates = random.integers(0, tokenizer.vocab_size, (len(index), NUM_CANDIDATES)).astype(np.int32)
            tokens = {"output_index": index, "position": index + num_prompt, "token_id": ids[num_prompt:]}
            fixed = {"forced": False, "is_prompt": False}
            writer.append("tokens", keys | tokens | fixed | {"top_token_ids": candidates})
    return path


class BarePasses:
    """The forward passes that a replay of a trace needs, and nothing else."""

    def __init__(self, model: Path, trace: Path) -> None:
        import transformers

        self._model: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        plan = Plan(Trace(trace), Selection())
        self._batches = list(plan.load(plan.cut(BatchLimits(num_tokens=HfOptions().batch_tokens))))

    def timed(self) -> dict[str, float]:
        started, processor = time.perf_counter(), time.process_time()
        with torch.inference_mode():
            for batch in self._batches:
                self._read(batch)
        return {"bare": time.perf_counter() - started, "bare processor": time.process_time() - processor}

    def _read(self, batch: list[Sequence]) -> None:
        width = max(sequence.num_input_tokens for sequence in batch)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros(len(batch), width, dtype=torch.long)
        for row, sequence in enumerate(batch):
            length = sequence.num_input_tokens
            ids[row, :length] = torch.from_numpy(np.concatenate([sequence.prompt_ids, sequence.output_ids[:-1]]))
            mask[row, :length] = 1
        hidden = self._model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        rows = torch.cat(
            [
                hidden[row, len(sequence.prompt_ids) - 1 : sequence.num_input_tokens]
                for row, sequence in enumerate(batch)
            ]
        )
        head = self._model.get_output_embeddings()
        for some in rows.split(scoring.slice_rows(head.weight.shape[0])):
            head(some)


def timed_replay(trace: Path, out: Path, model: Path) -> dict[str, float]:
    processor: list[float] = []

    def show(_: Progress) -> None:
        if not processor:  # the model has been loaded, and tried
            seconds.clear()
        processor.append(time.process_time())

    with timed_parts() as seconds:
        summary = replay(trace, out, model=model, progress=show)
        processor.append(time.process_time())
    return {"replay": summary.seconds, "replay processor": processor[-1] - processor[0], **seconds}


@contextlib.contextmanager
def timed_parts() -> Iterator[dict[str, float]]:
    """Counts the time in each part, without that in parts within it."""
    seconds: dict[str, float] = defaultdict(float)
    originals = {name: getattr(owner, attribute) for name, (owner, attribute) in PARTS.items()}

    def timed(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            started, processor = time.perf_counter(), time.process_time()
            try:
                return originals[name](*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - started
                seconds[f"{name} processor"] += time.process_time() - processor

        return call

    for name, (owner, attribute) in PARTS.items():
        setattr(owner, attribute, timed(name))
    try:
        yield seconds
    finally:
        for name, (owner, attribute) in PARTS.items():
            setattr(owner, attribute, originals[name])


def report(rounds: list[dict[str, float]]) -> None:
    for kind, what in (("", "time"), (" processor", "processor time")):
        ratios = sorted(figures["replay" + kind] / figures["bare" + kind] for figures in rounds)
        median = statistics.median(ratios)
        goal = "" if kind else f" [{RATIO_GOAL:g}: {'met' if median <= RATIO_GOAL else 'MISSED'}]"
        print(f"replay against bare passes, {what}: {median:.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}){goal}")
    for figures in rounds:
        for kind in ("", " processor"):
            parts = sum(figures.get(name + kind, 0.0) for name in PARTS)
            figures["everything else" + kind] = figures["replay" + kind] - parts
    print("medians:               time   processor time   (in parts of the bare passes')")
    bare = statistics.median(figures["bare processor"] for figures in rounds)
    for name in ("bare", "replay", *PARTS, "everything else"):
        seconds, processor = (
            statistics.median(figures.get(name + kind, 0.0) for figures in rounds) for kind in ("", " processor")
        )
        print(f"  {name:<18} {seconds:7.2f} s {processor:7.2f} s {processor / bare:6.3f}")


if __name__ == "__main__":
    main()
