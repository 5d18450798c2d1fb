"""Records the same requests several times in one engine: trials of the gate, each of prompts and seeds of its own.

    python tools/gate_rollout.py MODEL FOLDER [--trials 50] [--requests 8] [--tokens 16] [--dtype float32]

Makes the traces FOLDER/TRIAL/ROUND of each trial. Rounds differ in nothing but how requests are put together into
batches. `reference`, `repeat` and `again` run all of a trial at once, each in another order: batches are of one size,
and so are the kernels' choices. `parted-0`, `parted-1` and `parted` run them in two batches, cut at random. With
--dtype, the head's own dtype, there is one round, `engine`, put together as `reference` is.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, SamplingParams

import tracekit

THINGS = ("river", "lamp", "engine", "garden", "letter", "captain", "winter", "market", "bridge", "violin", "comet")
OPENINGS = (
    "The {} and the {} met by the {}, and",
    "A short story about a {}, a {} and a {}:\n",
    "Question: what has a {} to do with a {}? Answer: the {}",
    "def {}_{}({}):\n    ",
    "Dear {}, the {} of last {} was",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--dtype", help="of the head, where it is not the model's")
    args = parser.parse_args()

    more = {"hf_overrides": {"head_dtype": args.dtype}} if args.dtype else {}
    llm = LLM(args.model, dtype="bfloat16", enforce_eager=True, max_model_len=256, max_num_seqs=32, seed=0, **more)
    for trial in range(args.trials):
        prompts, params = requests_of(trial, args.requests, args.tokens)
        for name, batches in rounds(trial, args.requests, planted=args.dtype is not None).items():
            path = args.folder / str(trial) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with tracekit.recording(path, hidden=name == "reference"):
                for batch in batches:
                    run(llm, {f"{trial}-{i}": (prompts[i], params[i]) for i in batch})


def requests_of(trial: int, num: int, num_tokens: int) -> tuple[list[str], list[SamplingParams]]:
    """Returns the prompts of a trial, no two alike, and how each is sampled."""
    chance = random.Random(trial)
    prompts: dict[str, None] = {}
    while len(prompts) < num:
        prompts[chance.choice(OPENINGS).format(*chance.sample(THINGS, 3))] = None
    seeds = [chance.randrange(1 << 31) for _ in prompts]
    params = [
        SamplingParams(
            temperature=1.0, top_p=0.95 if i % 4 == 3 else 1.0, seed=seed, max_tokens=num_tokens, ignore_eos=True
        )
        for i, seed in enumerate(seeds)
    ]
    return list(prompts), params


def rounds(trial: int, num: int, *, planted: bool) -> dict[str, list[list[int]]]:
    """Returns by name which requests are run together, batch after batch."""
    everything = list(range(num))
    if planted:
        return {"engine": [everything]}
    chance = random.Random(-1 - trial)
    whole = {name: [chance.sample(everything, num)] for name in ("repeat", "again")}
    parted = {}
    for name in ("parted-0", "parted-1", "parted"):
        order, cut = chance.sample(everything, num), chance.randrange(2, num - 1)
        parted[name] = [order[:cut], order[cut:]]
    return {"reference": [everything], **whole, **parted}


def run(llm: LLM, batch: dict[str, tuple[str, SamplingParams]]) -> None:
    """Runs requests together to their ends, under ids that every round gives them."""
    engine = llm.llm_engine
    for name, (prompt, params) in batch.items():
        engine.add_request(name, prompt, params)
    while engine.has_unfinished_requests():
        engine.step()


if __name__ == "__main__":
    main()
