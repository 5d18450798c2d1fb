"""A rollout under the settings that V1 has by itself, with prompts that share beginnings and prompts that are cut.

v1_defaults.py MODEL DTYPE FOLDER makes FOLDER/rollout. Async scheduling is on too where the plugin of
`scheduling_ahead.py` lets a CPU have it.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from in_flight import HANDBOOK, THINGS
from vllm import LLM, SamplingParams

import tracekit


def main() -> None:
    model, dtype, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    # A smaller budget than the default one, which prompts of this length would not fill.
    limits = {"max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 192}
    llm = LLM(model, dtype=dtype, enforce_eager=True, seed=0, async_scheduling=True, **limits)
    scheduler = llm.llm_engine.vllm_config.scheduler_config
    assert scheduler.async_scheduling
    assert scheduler.enable_chunked_prefill
    # Without seeds of their own: on a CPU, vLLM 0.32.0 cannot sample with one where a prompt is cut.
    params = SamplingParams(temperature=1.0, max_tokens=24, ignore_eos=True)
    with tracekit.recording(folder / "rollout", strict=True):
        llm.generate(prompts(), params, use_tqdm=False)


def prompts() -> list[str]:
    """Returns long prompts that begin alike, long ones that do not, and short ones."""
    chance = random.Random(2)
    found = []
    for number in range(12):
        story = "".join("The {} saw a {}. ".format(*chance.sample(THINGS, 2)) for _ in range((0, 36, 2)[number % 3]))
        found.append(f"{HANDBOOK if number % 3 == 0 else ''} {story}Then the {chance.choice(THINGS)}")
    return found


if __name__ == "__main__":
    main()
