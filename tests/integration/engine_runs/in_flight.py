"""A rollout whose weights change in its midst, and what is known of it: in_flight.py OLD NEW FOLDER makes it twice.

FOLDER/kept goes on with the KV entries that it has, those of the prefix cache included; FOLDER/cleared computes them
anew. Beside each stands a .json: how many steps the engine had made when the weights changed, and of each token under
which weights it was sampled.
"""

from __future__ import annotations

import json
import os
import random
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from vllm import LLM, SamplingParams

import tracekit

NUM_REQUESTS = 30
STEPS_BEFORE = 90
THINGS = ("river", "lamp", "engine", "garden", "letter", "captain", "winter", "market", "bridge", "violin", "comet")
# Longer than two blocks of 128 tokens: later requests find it in the prefix cache.
HANDBOOK = "Handbook of the night shift. " + " ".join(
    f"Section {i}: lamp {i} must be checked at {i % 12 + 1} o'clock, and noted in the log." for i in range(1, 13)
)


def main() -> None:
    old, new, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    folder.mkdir()
    # No prompt is cut: on a CPU, vLLM 0.32.0 cannot sample with a request's own seed where one is.
    limits = {"max_model_len": 1024, "max_num_seqs": 8, "max_num_batched_tokens": 8192}
    llm = LLM(old, dtype="bfloat16", enforce_eager=True, seed=0, **limits)
    for name in ("kept", "cleared"):
        llm.collective_rpc("reload_weights", kwargs={"weights_path": old})
        assert llm.reset_prefix_cache()
        with tracekit.recording(folder / name, strict=True):
            known = rollout(llm, new, clear=name == "cleared")
        (folder / f"{name}.json").write_text(json.dumps(known))


def rollout(llm: LLM, new: str, *, clear: bool) -> dict[str, Any]:
    """Runs all requests; after some steps the engine is given the new weights."""
    chance = random.Random(6)
    engine = llm.llm_engine
    for number in range(NUM_REQUESTS):
        sampling = SamplingParams(temperature=1.0, seed=number, max_tokens=chance.randrange(56, 65), ignore_eos=True)
        engine.add_request(f"request-{number}", prompt(number, chance), sampling)
    versions: dict[str, list[int]] = {}
    num_steps = 0
    while engine.has_unfinished_requests():
        if num_steps == STEPS_BEFORE:
            llm.collective_rpc("reload_weights", kwargs={"weights_path": new})
            if clear:
                assert llm.reset_prefix_cache(reset_running_requests=True)
        for output in engine.step():
            known = versions.setdefault(output.request_id, [])
            known += [int(num_steps >= STEPS_BEFORE)] * (len(output.outputs[0].token_ids) - len(known))
        num_steps += 1
    return {"step": STEPS_BEFORE, "versions": versions}


def prompt(number: int, chance: random.Random) -> str:
    """Returns a prompt of several hundred tokens; every third one begins with the handbook."""
    begins_alike = number % 3 == 1
    num = chance.randrange(0, 6) if begins_alike else chance.randrange(22, 32)
    story = "".join("The {} saw a {}, and said so. ".format(*chance.sample(THINGS, 2)) for _ in range(num))
    return f"{HANDBOOK} {story}Then the" if begins_alike else f"{story}Then the"


if __name__ == "__main__":
    main()
