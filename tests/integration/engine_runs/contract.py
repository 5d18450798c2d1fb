"""Every kind of sampling parameter on any engine, with the engine's own logprobs beside.

    contract.py MODEL OUT SIZE [MODE...]

Runs the same seeded requests once for each logprobs mode, in one engine. SIZE is 'all' or 'few', for an engine that is
slow. On an engine without modes (V0) the head's output is written too, to OUT.npz: row i of `rows` is of sequence
`sequences[i]`, numbered as they are made, and predicts its token at `positions[i]`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

# One process: requests enter together, so that every run makes the same batches.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import numpy as np
import torch
from outputs import SHARED_PREFIX, write
from vllm import LLM, SamplingParams

GREEDY = {"temperature": 0.0}
PARAMS: list[dict[str, Any]] = [
    GREEDY,
    {"temperature": 0.8, "top_p": 0.95, "top_k": 30, "min_p": 0.01, "repetition_penalty": 1.1, "logit_bias": {28: 1.5}},
    {"temperature": 1.0},
    {"temperature": 0.9, "top_p": 0.9},
    {"temperature": 0.7},
    {"temperature": 1.1, "top_k": 7},
    {"temperature": 1.0, "min_p": 0.05},
    {"temperature": 0.8, "repetition_penalty": 1.3},
    {"temperature": 1.0, "logit_bias": {260: 3.0, 253: -5.0}},
    {"temperature": 1.0, "presence_penalty": 0.6, "frequency_penalty": 0.4},
    {"temperature": 0.0, "repetition_penalty": 1.2},
    {"temperature": 1.0, "bad_words": [" the", " of", "1"]},
    {"temperature": 1.0, "allowed_token_ids": list(range(200, 2200, 2))},
    {"temperature": 1.0, "min_tokens": 9, "stop_token_ids": [28, 30, 198, 260]},
    {"temperature": 0.0, "stop": [".", "\n"]},
    {"temperature": 0.9, "top_p": 0.8, "n": 2},
]
NUM_FEW = 4
QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Count from one to ten.",
    "def fibonacci(n):",
]


def main() -> None:
    model, out, size, *modes = sys.argv[1:]
    few = size == "few"
    mode = {"logprobs_mode": modes[0]} if modes else {}
    llm = LLM(model, enforce_eager=True, max_model_len=1024, max_logprobs=20, **mode)
    head = None if modes else HeadRows()
    outputs = []
    for mode in modes or [None]:
        if mode is not None:
            set_mode(llm, mode)
            llm.reset_prefix_cache()
        outputs += [(mode, output) for output in generate(llm, few)]
    if head is not None:
        head.save(Path(out + ".npz"))
    write(Path(out), [output for _, output in outputs], modes=[mode for mode, _ in outputs])


def generate(llm: LLM, few: bool) -> list[Any]:
    kinds = PARAMS[:NUM_FEW] if few else PARAMS
    num_tokens = 8 if few else 16
    params = [SamplingParams(seed=100 + i, max_tokens=num_tokens, logprobs=20, **kind) for i, kind in enumerate(kinds)]
    prompts = [f"Question {i}: {QUESTIONS[i % len(QUESTIONS)]}\nAnswer:" for i in range(len(kinds))]
    outputs = llm.generate(prompts, params, use_tqdm=False)
    # The second of two prompts with a long common beginning finds it in the prefix cache.
    for question in QUESTIONS[:3]:
        single = SamplingParams(temperature=1.0, top_p=0.8, seed=7, max_tokens=2 if few else 8, logprobs=20)
        outputs += llm.generate([f"{SHARED_PREFIX}\n{question}"], single, use_tqdm=False)
    return outputs


def set_mode(llm: LLM, mode: str) -> None:
    """Changes what a running engine calls logprobs: a start for each mode would take minutes."""
    runner = llm.llm_engine.model_executor.driver_worker.worker.model_runner
    runner.model_config.logprobs_mode = mode
    runner.sampler.logprobs_mode = mode
    if hasattr(runner.sampler, "topk_topp_sampler"):
        runner.sampler.topk_topp_sampler.logprobs_mode = mode


class HeadRows:
    """The head's output in V0, before anything works on it, taken without the recorder's help."""

    def __init__(self) -> None:
        from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
        from vllm.worker.cpu_model_runner import CPUModelRunner

        self.rows: list[Any] = []
        self.keys: list[tuple[int, int]] = []
        apply, execute_model = UnquantizedEmbeddingMethod.apply, CPUModelRunner.execute_model
        products: list[torch.Tensor] = []

        def keeping_apply(*args: Any, **kwargs: Any) -> Any:
            products.append(apply(*args, **kwargs))
            return products[-1].clone()

        def keeping_execute_model(runner: Any, model_input: Any, *args: Any, **kwargs: Any) -> Any:
            sampled = [
                (row, seq_id, group.seq_data[seq_id].get_len())
                for group in model_input.sampling_metadata.seq_groups
                for row, seq_id in zip(group.sample_indices, group.seq_ids, strict=True)
            ]
            products.clear()
            result = execute_model(runner, model_input, *args, **kwargs)
            (logits,) = products
            for row, seq_id, position in sampled:
                self.rows.append(logits[row].view(torch.int16).numpy())
                self.keys.append((seq_id, position))
            return result

        UnquantizedEmbeddingMethod.apply = keeping_apply
        CPUModelRunner.execute_model = keeping_execute_model

    def save(self, path: Path) -> None:
        sequences, positions = zip(*self.keys, strict=True)
        np.savez(path, rows=np.stack(self.rows), sequences=np.array(sequences), positions=np.array(positions))


if __name__ == "__main__":
    main()
