"""A crowded engine: chunked prefill, a queue, stop strings, n = 2, an abort: shapes.py MODEL OUT TRACE."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from outputs import SHARED_PREFIX, write
from vllm import LLM, SamplingParams
from vllm.sampling_params import RequestOutputKind

import tracekit

# No seeds: this engine's CPU generator cannot step back over the sample of a partial prefill.


def main() -> None:
    model, out, trace = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    with tracekit.recording(trace, strict=True):
        llm = LLM(model, enforce_eager=True, max_model_len=1024, max_num_batched_tokens=64, max_num_seqs=4)
        engine = llm.llm_engine
        requests = [
            ("long", f"{SHARED_PREFIX} First question: why?", SamplingParams(temperature=0.0, max_tokens=12)),
            ("stopped", "Count: one two three four", SamplingParams(temperature=0.0, max_tokens=40, stop=["\n", "."])),
            (
                "kept-stop",
                "1 2 3 4 5",
                SamplingParams(max_tokens=30, stop=["7"], include_stop_str_in_output=True),
            ),
            (
                "pair",
                "The weather today is",
                SamplingParams(n=2, max_tokens=10, output_kind=RequestOutputKind.FINAL_ONLY),
            ),
            ("doomed", "A story that never ends:", SamplingParams(max_tokens=400, ignore_eos=True)),
            ("one", "Yes or no?", SamplingParams(temperature=0.0, max_tokens=1)),
            *((f"plain-{i}", f"Number {i} is", SamplingParams(max_tokens=9)) for i in range(5)),
        ]
        for request_id, prompt, params in requests:
            engine.add_request(request_id, prompt, params)
        finished, num_steps, aborted = [], 0, False
        while engine.has_unfinished_requests():
            finished += [output for output in engine.step() if output.finished]
            num_steps += 1
            seen = {output.request_id for output in finished}
            if not aborted and {"stopped", "one"} <= seen:
                running = engine.output_processor.request_states
                partial = {
                    state.external_req_id: list(state.detokenizer.output_token_ids)
                    for state in running.values()
                    if state.external_req_id == "doomed"
                }
                if partial.get("doomed"):
                    engine.abort_request(["doomed"])
                    aborted = True
        write(out, finished, num_steps=num_steps, doomed_token_ids=partial["doomed"])


if __name__ == "__main__":
    main()
