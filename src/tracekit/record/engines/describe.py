"""Translates vLLM's objects into columns of `runs` and `requests`."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import re
from collections.abc import Callable
from typing import Any

from tracekit.fingerprint import chat_template_hash, model_fingerprint, prompt_hash, tokenizer_hash
from tracekit.record.labels import labels_of, without_labels

_SECRET = re.compile(r"token$|secret|password|api_key|credential", re.IGNORECASE)
_MAX_DEPTH = 6

_aliases: dict[str, str] = {}


def instance_of(vllm_config: Any) -> str:
    """Returns the engine's id, the same in all its processes (data-parallel ranks add a suffix)."""
    instance = _without_rank(str(vllm_config.instance_id))
    return _aliases.get(instance, instance)


@functools.lru_cache
def _without_rank(instance_id: str) -> str:
    return re.sub(r"_dp\d+$", "", instance_id)


def alias_instance(instance_id: str, engine_id: str) -> None:
    """Makes `instance_of` name another engine: API servers make a configuration, with an id, of their own."""
    _aliases[instance_id] = engine_id


def generation_of(vllm_config: Any) -> str:
    """Returns the `engine_generation` of the V1 engine: which of its model runners it uses."""
    return "v2" if getattr(vllm_config, "use_v2_model_runner", False) else "v1"


def run_columns(vllm_config: Any, generation: str | None) -> dict[str, Any]:
    """Returns what a VllmConfig tells for a row of `runs`; what it does not have is null."""
    import torch
    import vllm

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    cache, scheduler = vllm_config.cache_config, vllm_config.scheduler_config
    return {
        "engine": "vllm",
        "engine_version": vllm.__version__,
        "engine_generation": generation,
        "dp_size": parallel.data_parallel_size,
        "dp_rank": dp_rank_of(parallel),
        "tp_size": parallel.tensor_parallel_size,
        "pp_size": parallel.pipeline_parallel_size,
        "model": str(model.model),
        "model_fingerprint": model_fingerprint(model.model),
        "tokenizer": str(model.tokenizer),
        "tokenizer_hash": tokenizer_hash(model.tokenizer),
        "chat_template_hash": chat_template_hash(model.tokenizer),
        "vocab_size": model.get_vocab_size(),
        "max_model_len": model.max_model_len,
        "dtype": dtype_name(model.dtype),
        "logprobs_mode": _text(getattr(model, "logprobs_mode", None)),
        "prefix_caching": _flag(cache.enable_prefix_caching),
        "async_scheduling": _flag(getattr(scheduler, "async_scheduling", None)),
        "chunked_prefill": _flag(getattr(scheduler, "enable_chunked_prefill", None)),
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "max_num_seqs": scheduler.max_num_seqs,
        "quantization": _text(model.quantization),
        "kv_cache_dtype": _text(cache.cache_dtype),
        "seed": model.seed,
        "device": _device(vllm_config.device_config),
        "torch_version": torch.__version__,
        "engine_config": json.dumps(plain(vllm_config), default=str),
    }


def dp_rank_of(parallel_config: Any) -> int | None:
    """Returns the data-parallel rank; the index keeps it where vLLM treats the ranks as engines of their own."""
    rank = getattr(parallel_config, "data_parallel_index", getattr(parallel_config, "data_parallel_rank", None))
    return None if rank is None else int(rank)


def request_columns(request_id: str, prompt_token_ids: list[int] | None, params: Any, lora: Any) -> dict[str, Any]:
    """Returns what front end and worker alike know of a request, its labels included."""
    columns: dict[str, Any] = {"request_id": request_id, "lora": getattr(lora, "lora_name", None)}
    columns |= labels_of(getattr(params, "extra_args", None)).columns
    if prompt_token_ids is not None:
        ids = list(prompt_token_ids)
        columns |= {"prompt_token_ids": ids, "num_prompt_tokens": len(ids), "prompt_hash": prompt_hash(ids)}
    return columns | sampling_columns(params)


def sampling_columns(params: Any) -> dict[str, Any]:
    """Returns a SamplingParams as columns of `requests`; none for a pooling request."""
    if params is None:
        return {}
    import msgspec

    columns = {column: getattr(params, name, None) for column, name in _SAMPLING.items()}
    for column, convert in _CONVERTED.items():
        columns[column] = convert(params)
    extra_args = getattr(params, "extra_args", None)
    if extra_args:
        # Labels have columns of their own, and what the recorder decided is not the caller's.
        params = copy.copy(params)
        params.extra_args = without_labels(extra_args) or None
    columns["sampling_params"] = msgspec.json.encode(params, enc_hook=str).decode()
    return columns


def plain(value: Any, depth: int = 0) -> Any:
    """Returns a configuration object as JSON values, without secrets."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth >= _MAX_DEPTH:
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
    elif isinstance(value, dict):
        items = {str(key): entry for key, entry in value.items()}
    elif isinstance(value, list | tuple | set | frozenset):
        return [plain(entry, depth + 1) for entry in value]
    elif hasattr(value, "to_diff_dict"):
        items = value.to_diff_dict()
    elif type(value).__module__ == "vllm.config":
        items = vars(value)  # in older releases not all of them are dataclasses
    else:
        return str(value)
    return {key: plain(entry, depth + 1) for key, entry in items.items() if not _SECRET.search(key)}


def dtype_name(dtype: Any) -> str | None:
    """Returns a torch dtype's name without 'torch.'."""
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _device(config: Any) -> str:
    from vllm.platforms import current_platform

    kind = str(getattr(config, "device_type", ""))
    name = str(current_platform.get_device_name())
    return kind if name == kind else f"{kind} {name}"


def _text(value: Any) -> str | None:
    return None if value is None else str(getattr(value, "value", value))


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


def _stop_token_ids(params: Any) -> list[int]:
    ids = set(getattr(params, "stop_token_ids", None) or ())
    ids |= set(getattr(params, "all_stop_token_ids", None) or ())
    return sorted(ids)


def _json_or_none(value: Any) -> str | None:
    return json.dumps(plain(value), default=str) if value else None


_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repetition_penalty",
    "seed": "seed",
    "n": "n",
    "max_tokens": "max_tokens",
    "min_tokens": "min_tokens",
    "ignore_eos": "ignore_eos",
    "num_logprobs": "logprobs",
    "num_prompt_logprobs": "prompt_logprobs",
    "allowed_token_ids": "allowed_token_ids",
}

_CONVERTED: dict[str, Callable[[Any], Any]] = {
    "stop": lambda p: [p.stop] if isinstance(p.stop, str) else list(p.stop or ()),
    "stop_token_ids": _stop_token_ids,
    "logit_bias": lambda p: _json_or_none(getattr(p, "logit_bias", None)),
    "bad_words_token_ids": lambda p: _json_or_none(getattr(p, "bad_words_token_ids", None)),
    "structured_output": lambda p: _json_or_none(
        getattr(p, "structured_outputs", None) or getattr(p, "guided_decoding", None)
    ),
}
