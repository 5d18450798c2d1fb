"""Leaves while requests are running: midflight.py MODEL OUT exit, or midflight.py MODEL OUT kill TRACE.

Writes what the client had by then. A kill comes as soon as the trace holds that much on disk: within a second on a
machine with a core to spare, later on a full one.
"""

from __future__ import annotations

import contextlib
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
        _wait_for_rows(Path(sys.argv[4]), sum(map(len, tokens.values())))
        os.killpg(os.getpgid(0), signal.SIGKILL)


def _wait_for_rows(trace: Path, num_tokens: int) -> None:
    from tracekit import Trace
    from tracekit.errors import TracekitError

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(TracekitError):  # nothing there yet
            if Trace(trace).num_rows("tokens") >= num_tokens:
                return
        time.sleep(0.1)


if __name__ == "__main__":
    main()
