"""What the adapters of the V1 runner and of Model Runner V2 share: the process that samples, and its recorder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from tracekit.record.config import RecordConfig
from tracekit.record.engines.describe import dtype_name, generation_of, instance_of, run_columns
from tracekit.record.pipeline import Recorder
from tracekit.record.registry import active_config, deactivate, generation, recorder_of, running

logger = logging.getLogger("tracekit")

_RECORDER = "_tracekit_recorder"

Started = TypeVar("Started")


def recorder_of_runner(runner: Any, *, sharded: bool = False) -> Recorder | None:
    """Returns the recorder of a runner whose rank owns sampled rows, started at the first call.

    Args:
        runner: the runner.
        sharded: see `owns_rows`.

    Returns:
        None on other ranks, and while nothing is recorded.
    """
    # Asked several times a step.
    now = generation()
    known: tuple[int, Recorder | None] | None = getattr(runner, _RECORDER, None)
    if known is None or known[0] != now:
        known = now, _start(runner) if owns_rows(runner, sharded=sharded) else None
        setattr(runner, _RECORDER, known)
    return known[1]


def _start(runner: Any) -> Recorder | None:
    config = active_config()
    if config is None:
        return None
    return started(
        config, lambda: recorder_of(instance_of(runner.vllm_config), "worker", described_later(runner, describe_runner))
    )


def started(config: RecordConfig, start: Callable[[], Started | None]) -> Started | None:
    """Returns what `start` returns; where it fails, the recorder is off from then on, and the engine goes on."""
    try:
        return start()
    except Exception as error:
        if config.strict:
            raise
        logger.error("tracekit: recorder disabled, the engine goes on: %r", error)
        deactivate()
        return None


def is_first_rank(runner: Any) -> bool:
    """Tells whether this is the first of the ranks that work on the same batch in the same pipeline stage."""
    parallel = runner.vllm_config.parallel_config
    num_alike = int(parallel.tensor_parallel_size) * int(getattr(parallel, "prefill_context_parallel_size", 1))
    return int(parallel.rank) % num_alike == 0


def owns_rows(runner: Any, *, sharded: bool = False) -> bool:
    """Tells whether this rank writes sampled rows: in the last pipeline stage, where alone there are logits.

    Args:
        sharded: the ranks of a tensor-parallel group sample a part of the batch each, and not all of it.
    """
    parallel = runner.vllm_config.parallel_config
    num_stages = int(parallel.pipeline_parallel_size)
    is_last_stage = int(parallel.rank) // (int(parallel.world_size) // num_stages) == num_stages - 1
    return is_last_stage and (sharded or is_first_rank(runner))


def described_later(runner: Any, describe: Callable[[Any], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """Returns what describes a runner on the recorder's thread; what only the engine's thread knows is asked now."""
    is_on_cpu = getattr(getattr(runner, "device", None), "type", None) == "cpu"
    num_threads = torch.get_num_threads() if is_on_cpu else None
    return lambda: describe(runner) | {"num_threads": num_threads}


def describe_runner(runner: Any) -> dict[str, Any]:
    """Returns the `runs` columns of the process that samples."""
    parallel = runner.vllm_config.parallel_config
    columns = run_columns(runner.vllm_config, generation_of(runner.vllm_config)) | _head_dtypes(runner)
    rank, tp_size = int(parallel.rank), int(parallel.tensor_parallel_size)
    columns |= {"tp_rank": rank % tp_size, "pp_rank": rank // tp_size % int(parallel.pipeline_parallel_size)}
    try:
        columns["attention_backend"] = runner.attn_groups[0][0].backend.get_name()
    except (AttributeError, IndexError):
        columns["attention_backend"] = None
    return columns


def _head_dtypes(runner: Any) -> dict[str, str | None]:
    """Returns the dtypes of the last projection; null where this model keeps its head elsewhere."""
    model = runner.get_model()
    weight = getattr(getattr(getattr(model, "lm_head", None), "weight", None), "dtype", None)
    output = getattr(getattr(model, "logits_processor", None), "head_dtype", None) or weight
    # Where vLLM makes an fp32 head, a GPU multiplies the stored operands into an fp32 result; others cast them.
    operand = weight if runner.device.type == "cuda" and output == torch.float32 else output
    names = ("head_weight_dtype", "head_operand_dtype", "head_output_dtype")
    return {name: dtype_name(dtype) for name, dtype in zip(names, (weight, operand, output), strict=True)}


def around_shutdown(original: Any, runner: Any, *args: Any, **kwargs: Any) -> Any:
    recorder = running(instance_of(runner.vllm_config))
    if recorder is not None:
        # A worker process ends with its runner, and has little time to; a front end may still have endings to tell.
        if recorder.process == "worker":
            recorder.close()
        else:
            recorder.seal()
    return original(runner, *args, **kwargs)
