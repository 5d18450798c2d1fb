"""Weights that change in an engine of several processes: weights_remote.py MODEL OUT.

One request at a time, so that the number of steps is the number of tokens.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from vllm import LLM, SamplingParams

import tracekit

NUM_TOKENS = 6


def main() -> None:
    model, out = sys.argv[1], Path(sys.argv[2])
    llm = LLM(model, enforce_eager=True, max_model_len=512, worker_extension_cls="weights_extension.Extension")
    version, requests, events = 0, [], []

    def generate(label: str, is_engines: bool = True) -> None:
        params = SamplingParams(temperature=1.0, seed=3, max_tokens=NUM_TOKENS, ignore_eos=True)
        output = llm.generate([f"Chapter {len(requests)}: it began"], params, use_tqdm=False)[0]
        requests.append(
            {
                "request_id": output.request_id,
                "version": version,
                "label": label,
                "engine_spans": _spans(output) if is_engines else None,
            }
        )

    def happened(kind: str, **attributes: Any) -> None:
        events.append({"kind": kind, "step": len(requests) * NUM_TOKENS, **attributes})

    generate("default")
    llm.collective_rpc("reload_weights")
    llm.update_weight_version("policy-1")
    version += 1
    generate("policy-1")
    # Without a new label.
    llm.collective_rpc("scale_in_place", args=(1.01,))
    version += 1
    generate("policy-1")
    llm.sleep(level=0, mode="keep")
    happened("paused", mode="keep", clear_cache=False, sleep_level=0)
    llm.collective_rpc("reload_weights")
    llm.reset_prefix_cache()
    happened("cache_reset", reset_running_requests=False, success=True)
    llm.update_weight_version("policy-2")
    llm.wake_up(tags=["scheduling"])
    happened("resumed")
    version += 1
    generate("policy-2")
    assert tracekit.set_weight_version("mine", llm) == 1
    generate("mine", is_engines=False)
    llm.collective_rpc("look_at_weights")
    generate("mine", is_engines=False)
    llm.sleep(level=0, mode="keep")
    events.append({"kind": "paused", "step": None, "mode": "keep", "clear_cache": False, "sleep_level": 0})
    out.write_text(json.dumps({"requests": requests, "events": events}))


def _spans(output: Any) -> list[Any]:
    return [list(dataclasses.astuple(span)) for span in output.outputs[0].weight_versions or []]


if __name__ == "__main__":
    main()
