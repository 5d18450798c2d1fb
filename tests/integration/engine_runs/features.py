"""Sampling features beyond parameters, each in an engine made for it: features.py MODEL OUT TRACE KIND [LOGPROBS_MODE].

Kinds:
    speculative   n-gram drafts
    squeezed      a KV cache too small for its requests, scheduled ahead of time: preemption under async scheduling
    whole         prompt logprobs, structured output, and whole rows: hidden states and logits
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch
from outputs import SHARED_PREFIX, write
from safetensors.torch import save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

import tracekit

RHYME = "One two three four five six seven eight nine ten. " * 6


def speculative(model: str, mode: str) -> tuple[list[Any], dict[str, Any]]:
    mend_expansion()
    mend_top_k()
    llm = LLM(
        model,
        enforce_eager=True,
        max_model_len=1024,
        max_logprobs=20,
        logprobs_mode=mode,
        disable_log_stats=False,
        speculative_config={"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3},
    )
    params = [
        {"temperature": 0.0},
        {"temperature": 0.0, "repetition_penalty": 1.05},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.9, "top_k": 20},
        {"temperature": 1.0},
        {"temperature": 0.7, "presence_penalty": 0.2, "frequency_penalty": 0.1},
    ]
    prompts = [f"Repeat after me, {i} times: {RHYME}" for i in range(len(params))]
    outputs = llm.generate(
        prompts, [SamplingParams(max_tokens=40, logprobs=20, **kind) for kind in params], use_tqdm=False
    )
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return outputs, {
        "num_accepted": counters["vllm:spec_decode_num_accepted_tokens"],
        "num_drafts": counters["vllm:spec_decode_num_drafts"],
    }


def mend_top_k() -> None:
    """Lets a step without any draft pass: vLLM 0.32 for CPUs takes the largest of no top-k at all there, and fails."""
    from vllm.v1.sample.ops import topk_topp_sampler

    original = topk_topp_sampler.apply_top_k_only
    topk_topp_sampler.apply_top_k_only = lambda logits, k: original(logits, k) if len(logits) else logits


def mend_expansion() -> None:
    """Spreads each request's temperature, top-k and top-p over its drafts.

    vLLM 0.32 for CPUs writes the result of this into a copy that it drops, and goes on with uninitialised memory.
    """
    from vllm.v1.sample import rejection_sampler

    def expand(values: Any, ends: Any, _num_tokens: int, replace_from: int = 0, replace_to: int = 0) -> Any:
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        values = torch.where(values == replace_from, replace_to, values) if replace_from != replace_to else values
        return values.repeat_interleave(counts)

    rejection_sampler.expand_batch_to_tokens = expand


def squeezed(model: str, mode: str) -> tuple[list[Any], dict[str, Any]]:
    schedule_ahead()
    llm = LLM(
        model,
        enforce_eager=True,
        max_model_len=1024,
        max_logprobs=20,
        logprobs_mode=mode,
        num_gpu_blocks_override=12,
        max_num_seqs=16,
        disable_log_stats=False,
        async_scheduling=True,
        enable_lora=True,
        max_lora_rank=8,
    )
    scheduler = llm.llm_engine.vllm_config.scheduler_config
    assert scheduler.async_scheduling, "the engine was meant to schedule ahead of time"
    params = [
        SamplingParams(temperature=0.9, top_p=0.95, frequency_penalty=0.1, max_tokens=140, ignore_eos=True, logprobs=5)
        for _ in range(16)
    ]
    outputs = llm.generate([f"Tale {i}. Once upon a time" for i in range(16)], params, use_tqdm=False)
    # Beside the trace, for a replay.
    folder = Path(sys.argv[3]).with_name("adapter")
    write_adapter(folder, Path(model))
    adapter = LoRARequest("pirate", 1, str(folder))
    outputs += llm.generate(["The capital of France is"], params[:1], lora_request=adapter, use_tqdm=False)
    counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
    return outputs, {"num_preemptions": counters["vllm:num_preemptions"]}


def schedule_ahead() -> None:
    """vLLM's CPU platform switches async scheduling off whatever is asked; its engine runs it all the same."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def check_and_switch_on(cls: Any, config: Any) -> None:
        check(cls, config)
        config.scheduler_config.async_scheduling = True

    CpuPlatform.check_and_update_config = classmethod(check_and_switch_on)


def whole(model: str, mode: str) -> tuple[list[Any], dict[str, Any]]:
    llm = LLM(
        model,
        enforce_eager=True,
        max_model_len=1024,
        max_logprobs=20,
        logprobs_mode=mode,
        max_num_batched_tokens=128,
        logits_processors=[Boost],
    )
    schema = {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}}, "required": ["n"]}
    requests = [
        (f"{SHARED_PREFIX} Question: why?", {"temperature": 0.0, "prompt_logprobs": 5}),
        ("A short prompt.", {"temperature": 1.0, "prompt_logprobs": 0}),
        ("Give me JSON:", {"temperature": 0.8, "structured_outputs": StructuredOutputsParams(json=schema)}),
        ("Red, green or", {"temperature": 1.0, "structured_outputs": StructuredOutputsParams(choice=["blue", "grey"])}),
        ("Never say it:", {"temperature": 1.0, "bad_words": [" the", " a"]}),
        ("Only these:", {"temperature": 1.0, "allowed_token_ids": [28, 30, 260, 253, 216]}),
        ("Long enough:", {"temperature": 1.0, "min_tokens": 10, "stop_token_ids": [28, 30, 198]}),
    ]
    requests += [
        ("Left out:", {"temperature": 1.0, "extra_args": {"tracekit_record": False}}),
        ("In part:", {"temperature": 1.0, "extra_args": {"tracekit": {"logits": False, "group_id": "g1"}}}),
        ("Boosted:", {"temperature": 0.8, "top_p": 0.9, "extra_args": {"boost": 216}}),
    ]
    # By itself, since a batch that is greedy as a whole is drawn from the masked rows as they are.
    greedy = ("Light or", {"temperature": 0.0, "structured_outputs": StructuredOutputsParams(choice=["dark", "dim"])})
    # By itself too: beside it, others are returned the logprobs of no candidates.
    given_ids = ("Two of all:", {"temperature": 1.0, "logprobs": None, "logprob_token_ids": [28, 30]})
    outputs = []
    for batch in (requests, [greedy], [given_ids]):
        params = [SamplingParams(max_tokens=14, **({"logprobs": 20} | kind)) for _, kind in batch]
        outputs += llm.generate([prompt for prompt, _ in batch], params, use_tqdm=False)
    return outputs, {}


class Boost(AdapterLogitsProcessor):
    """A user's own logits processor: raises the token that a request names by 4."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> Any:
        token_id = (params.extra_args or {}).get("boost")
        if token_id is None:
            return None

        def boost(_output_ids: list[int], logits: torch.Tensor) -> torch.Tensor:
            logits[token_id] += 4
            return logits

        return boost


def write_adapter(folder: Path, model: Path) -> None:
    """Writes a LoRA adapter that changes the query projections."""
    config = json.loads((model / "config.json").read_text())
    width, rank, generator = config["hidden_size"], 8, torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, width, generator=generator) / width**0.5
        tensors[f"{name}.lora_B.weight"] = torch.randn(width, rank, generator=generator) * 0.6
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def main() -> None:
    model, out, trace, kind = sys.argv[1], Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    mode = sys.argv[5] if len(sys.argv) > 5 else "raw_logprobs"
    torch.manual_seed(0)
    settings = {"hidden": True, "logits": True} if kind == "whole" else {}
    with tracekit.recording(trace, strict=True, **settings):
        outputs, more = {"speculative": speculative, "squeezed": squeezed, "whole": whole}[kind](model, mode)
    write(out, outputs, **more)


if __name__ == "__main__":
    main()
