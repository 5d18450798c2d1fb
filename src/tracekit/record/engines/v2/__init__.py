"""Model Runner V2 of the V1 engine (vLLM 0.32; its default on GPUs), in the process that samples.

Sites, with the capture points of `capture.py`:
    GPUModelRunner.execute_model, prepare_inputs        1
    compute_logits of the model                         2
    StructuredOutputsWorker.apply_grammar_bitmask       2, 3
    Sampler.sample, apply_sampling_params, gumbel_sample,
    flashinfer_sample, xpu_sample                       4
    Sampler.__call__, RejectionSampler.__call__         5
    GPUModelRunner.sample                               6
    PromptLogprobsWorker.compute_prompt_logprobs,
    compute_topk_scores                                 prompt positions
    warmup_kernels, run_mixed_prefill_decode_warmup     requests that nobody made
    GPUModelRunner.shutdown                             the end
"""

from tracekit.record.engines.v2 import prompts, runner, sampler

HOOKS = runner.HOOKS | sampler.HOOKS | prompts.HOOKS
ENTRIES = {"vllm.v1.worker.gpu.model_runner": "GPUModelRunner"}

__all__ = ["ENTRIES", "HOOKS"]
