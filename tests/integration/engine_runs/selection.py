"""One engine, recorded with one selection after the other: selection.py MODEL OUT FOLDER.

Each recording sees the same requests: six plain ones of several settings and trajectories, and one with two samples.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from outputs import write
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

import tracekit

REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0, "extra_args": {"tracekit_trajectory_id": "t0", "tracekit_turn_index": 0}},
    "nucleus": {"top_p": 0.9, "extra_args": {"tracekit": {"trajectory_id": "t1", "group_id": "g"}}},
    "plain": {"extra_args": {"tracekit_group_id": "g", "tracekit_tags": {"split": "eval"}, "mine": 1}},
    "asked": {"temperature": 0.0, "extra_args": {"tracekit_record": True, "tracekit_hidden": True}},
    "refused": {"top_p": 0.8, "extra_args": {"tracekit_record": False}},
    "odd": {"top_p": 0.7, "extra_args": {"tracekit_turn_index": "second", "tracekit_trajectory_id": "t0"}},
    "pair": {"top_p": 0.6, "n": 2},
}
COMMON = {"max_tokens": 4, "ignore_eos": True, "output_kind": RequestOutputKind.FINAL_ONLY}
SELECTIONS: dict[str, dict[str, Any]] = {
    "all": {},
    "where": {"where": "temperature > 0 and top_p < 1"},
    "share": {"share": 0.5},
    "first": {"first": 3, "where": "top_p < 0.95"},
    "none": {"share": 0.0},
}


def main() -> None:
    model, out, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    llm = LLM(model, enforce_eager=True, max_model_len=256)
    outputs = []
    for name, settings in SELECTIONS.items():
        with tracekit.recording(folder / name, strict=True, **settings):
            outputs += generate(llm)
    write(out, outputs)


def generate(llm: Any) -> list[Any]:
    engine = llm.llm_engine
    for request_id, params in REQUESTS.items():
        engine.add_request(request_id, f"The {request_id} one is", SamplingParams(seed=1, **COMMON, **params))
    finished: dict[str, Any] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            finished[output.request_id] = output
    return list(finished.values())


if __name__ == "__main__":
    main()
