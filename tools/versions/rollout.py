"""What is recorded, in the interpreter of any of the releases: rollout.py MODEL NUM_REQUESTS NUM_TOKENS [NAME=VALUE …].

Arguments of the engine follow as JSON values; one that a release lacks is left out.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from prompts import requests
from vllm import LLM, SamplingParams
from vllm.engine.arg_utils import EngineArgs


def main() -> None:
    model, num_requests, num_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    known = {field.name for field in dataclasses.fields(EngineArgs)}
    given = (text.partition("=") for text in sys.argv[4:])
    arguments = {name: json.loads(value) for name, _, value in given if name in known}
    llm = LLM(model, **arguments)
    made = requests(num_requests, num_tokens)
    params = [SamplingParams(logprobs=0, **one.sampling) for one in made]
    llm.generate([one.prompt for one in made], params, use_tqdm=False)


if __name__ == "__main__":
    main()
