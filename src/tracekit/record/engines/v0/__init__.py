"""The V0 engine (seen with vLLM 0.8.5), whose front end, scheduler and sampling worker share one process.

Sites, with the capture points of `capture.py`:
    ModelRunner.prepare_model_input, execute_model      1, 5, 6, and prompt positions
    _prune_hidden_states, _apply_logits_processors      2
    _apply_top_k_top_p, _apply_min_p, _sample           4
    LLMEngine._add_processed_request                    requests
    Scheduler._preempt                                  preemptions
    Scheduler.abort_seq_group,
    RequestOutputFactory.create                         outcomes

Those of `weights` stand apart: without them, weights and KV are not known, and all else is recorded.
"""

from tracekit.record.engines.v0 import front_end, runner, sampler

HOOKS = runner.HOOKS | sampler.HOOKS | front_end.HOOKS
ENTRIES = {"vllm.worker.model_runner_base": "ModelRunnerBase"}

__all__ = ["ENTRIES", "HOOKS"]
