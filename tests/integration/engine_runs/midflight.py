"""Leaves while requests are running: midflight.py MODEL OUT HOW, where HOW is 'exit' or 'kill'.

Writes what the client had by then after every step, so that the last state is known whatever happens.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from vllm import LLM, SamplingParams


def main() -> None:
    model, out, how = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    llm = LLM(model, enforce_eager=True, max_model_len=1024)
    engine = llm.llm_engine
    for i in range(6):
        engine.add_request(f"r{i}", f"Tell story {i}:", SamplingParams(seed=i, max_tokens=900, ignore_eos=True))
    tokens: dict[str, list[int]] = {}
    for _ in range(40):
        for output in engine.step():
            tokens[output.request_id] = list(output.outputs[0].token_ids)
    out.write_text(json.dumps(tokens))
    if how == "kill":
        # The journal is flushed within a second; then everything dies at once.
        for _ in range(3):
            time.sleep(0.5)
        os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    main()
