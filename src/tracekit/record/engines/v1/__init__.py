"""The V1 engine's model runner (seen with vLLM 0.18 and 0.32), in the process that samples.

Sites, with the capture points of `capture.py`:
    GPUModelRunner.execute_model                        1, 2
    GPUModelRunner.sample_tokens                        3
    Sampler.sample, apply_top_k_top_p, flashinfer_sample,
    apply_sampling_constraints                          4
    GPUModelRunner._sample                              5, 6
    GPUModelRunner._get_prompt_logprobs_dict            prompt positions
    GPUModelRunner.shutdown                             the end
"""

from tracekit.record.engines.v1 import runner, sampler

HOOKS = runner.HOOKS | sampler.HOOKS
ENTRIES = {"vllm.v1.worker.gpu_model_runner": "GPUModelRunner"}

__all__ = ["ENTRIES", "HOOKS"]
