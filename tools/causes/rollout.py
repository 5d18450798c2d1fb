"""The rollout of the benchmark of causes: one set of requests, run several times in one engine.

    python tools/causes/rollout.py MODEL FOLDER [--requests 240] [--repeats 3]

Makes the traces FOLDER/reference and FOLDER/repeat-0 and on. They differ in nothing but the order in which requests
arrive and the steps at which they do, so in how batches are put together and in what the prefix cache has. The
reference keeps whole rows of logits and hidden states.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, SamplingParams

import tracekit

MAX_MODEL_LEN = 1024
# No prompt is cut: on a CPU, vLLM 0.32.0 cannot sample with a request's own seed where one is.
MAX_BATCHED_TOKENS = 8192
MAX_NUM_SEQS = 16
# How probable it is that a group of requests arrives at a step: batches of a few, of ten, and full ones.
RATES = (0.05, 0.12, 0.5)
STEPS_AT_A_RATE = 30

THINGS = ("river", "lamp", "engine", "garden", "letter", "captain", "winter", "market", "bridge", "violin", "comet")
OPENINGS = (
    "The {} and the {} met by the {}, and",
    "A short story about a {}, a {} and a {}:\n",
    "Question: what has a {} to do with a {}? Answer: the {}",
    "def {}_{}({}):\n    ",
    "Dear {}, the {} of last {} was",
    "Sobre el {}, la {} y el {}:\n",
)
# Longer than two KV-cache blocks of 128 tokens, so that later requests find it in the prefix cache.
HANDBOOK = "Handbook of the night shift. " + " ".join(
    f"Section {i}: lamp {i} must be checked at {i % 12 + 1} o'clock, cleaned with a dry cloth, and noted in the log."
    for i in range(1, 13)
)
# What each request in turn is sampled with, beside its seed.
SAMPLING: tuple[dict[str, Any], ...] = (
    {"temperature": 0.7},
    {"temperature": 1.0},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.8},
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 1.0, "repetition_penalty": 1.2},
    {"temperature": 0.7, "presence_penalty": 0.5, "frequency_penalty": 0.3},
    {"temperature": 1.0, "logit_bias": {28: 3.0, 30: -4.0, 198: 2.0}},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    llm = LLM(
        args.model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        enable_prefix_caching=True,
        seed=0,
    )
    requests = requests_of(args.requests)
    for number in range(args.repeats + 1):
        llm.reset_prefix_cache()
        path = args.folder / ("reference" if number == 0 else f"repeat-{number - 1}")
        with tracekit.recording(path, logits=number == 0, hidden=number == 0):
            run(llm, requests, random.Random(number))


def requests_of(num: int) -> dict[str, tuple[str, SamplingParams]]:
    """Returns by id the prompts, short and long, and how each is sampled."""
    chance = random.Random(6)
    requests = {}
    for number in range(num):
        prompt = chance.choice(OPENINGS).format(*chance.sample(THINGS, 3))
        # Of any length, with and without a part that the prefix cache may have: no two facts go together.
        if number % 3 == 1:
            prompt = story(chance, chance.randrange(2, 70)) + prompt
        elif number % 3 == 2:
            prompt = f"{HANDBOOK}\n\n{story(chance, chance.randrange(0, 25))}Question {number}: {prompt}"
        sampling = SAMPLING[(number // 3) % len(SAMPLING)]
        params = SamplingParams(
            **sampling, seed=chance.randrange(1 << 31), max_tokens=chance.randrange(24, 41), ignore_eos=True
        )
        requests[f"request-{number}"] = (prompt, params)
    return requests


def story(chance: random.Random, num_sentences: int) -> str:
    """Returns a text that no other request begins with."""
    return "".join("The {} saw a {}. ".format(*chance.sample(THINGS, 2)) for _ in range(num_sentences))


def run(llm: LLM, requests: dict[str, tuple[str, SamplingParams]], chance: random.Random) -> None:
    """Runs requests to their ends; they arrive in an order and in groups of their own, now few and now many."""
    engine = llm.llm_engine
    waiting = chance.sample(list(requests), len(requests))
    rate = 0.0
    for step in itertools.count():
        if not waiting and not engine.has_unfinished_requests():
            break
        if step % STEPS_AT_A_RATE == 0:
            rate = chance.choice(RATES)
        if waiting and (not engine.has_unfinished_requests() or chance.random() < rate):
            for _ in range(min(len(waiting), chance.randrange(1, 5))):
                name = waiting.pop()
                engine.add_request(name, *requests[name])
        engine.step()


if __name__ == "__main__":
    main()
