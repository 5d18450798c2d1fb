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
        _wait_for_the_journal(sum(map(len, tokens.values())))
        # The engine is ahead of its client by then, and everything dies at once.
        os.killpg(os.getpgid(0), signal.SIGKILL)


def _wait_for_the_journal(num_tokens: int) -> None:
    """Waits until so many tokens are safe: within a second on a machine that has nothing else to do."""
    from tracekit.store import Trace

    deadline = time.monotonic() + 60
    while Trace(os.environ["TRACEKIT_RECORD"]).num_rows("tokens") < num_tokens + 6 and time.monotonic() < deadline:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
