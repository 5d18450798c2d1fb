"""What factors make of what a recording says, and of what is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tracekit.bisect.factors.base import factor_names, load_factor
from tracekit.bisect.settings import Space, Varied, varied_factors
from tracekit.errors import ConfigError

RECORDED = {
    "role": "record",
    "engine": "vllm",
    "dtype": "bfloat16",
    "head_output_dtype": "bfloat16",
    "prefix_caching": True,
    "chunked_prefill": False,
}
REPLAYED = {
    "role": "replay",
    "engine": "transformers",
    "backend": "hf",
    "mode": "prefill",
    "dtype": "float32",
    "head_output_dtype": "bfloat16",
    "attention_backend": "eager",
    "options": '{"batch_tokens": 512}',
}


def levels(backend: str, run: Mapping[str, Any], *vary: str) -> dict[str, tuple[str, ...]]:
    return {one.name: one.levels for one in varied_factors(vary, backend, [run])}


def test_the_baseline_is_what_a_recording_says() -> None:
    assert levels("hf", RECORDED) == {
        "dtype": ("bfloat16", "float32"),
        "head": ("native", "float32"),
        "attention": ("sdpa", "eager"),
        "mode": ("decode", "prefill"),
        "batch": ("large", "small"),
    }
    assert levels("hf", REPLAYED) == {
        "dtype": ("float32", "bfloat16"),
        "head": ("bfloat16", "float32"),
        "attention": ("eager", "sdpa"),
        "mode": ("prefill", "decode"),
        "batch": ("512", "large"),
    }
    assert levels("vllm", RECORDED) == {
        "dtype": ("bfloat16", "float32"),
        "head": ("native", "float32"),
        "mode": ("decode", "prefill"),
        "batch": ("recorded", "single"),
        "cache": ("on", "off"),
        "chunked_prefill": ("off", "on"),
        "kernels": ("default", "native"),
        "async_scheduling": ("off", "on"),
    }
    # Without steps the schedule is not known.
    assert levels("vllm", {**RECORDED, "num_steps": 0}, "batch") == {"batch": ("together", "single")}
    assert levels("llamacpp", RECORDED) == {
        "attention": ("fused", "unfused"),
        "mode": ("decode", "prefill"),
        "batch": ("large", "small"),
    }
    assert levels("head", RECORDED) == {"head": ("bfloat16", "float32")}


def test_levels_that_are_named() -> None:
    assert levels("hf", RECORDED, "head,dtype=bfloat16,float16,mode") == {
        "head": ("native", "float32"),
        "dtype": ("bfloat16", "float16"),
        "mode": ("decode", "prefill"),
    }
    # The recording's own comes first; it joins a single other one.
    assert levels("hf", RECORDED, "dtype=float16,bfloat16", "batch=300") == {
        "dtype": ("bfloat16", "float16"),
        "batch": ("large", "300"),
    }
    # Two others than its own: the first of them is the baseline.
    assert levels("hf", REPLAYED, "dtype=bfloat16,float16") == {"dtype": ("bfloat16", "float16")}
    assert levels("vllm", RECORDED, "batch=4") == {"batch": ("recorded", "4")}
    assert load_factor("batch").options("4", "vllm") == {"engine_arg": ("max_num_seqs=4",)}
    assert levels("vllm", RECORDED, "engine=/v0/bin/python", "attention=A,B") == {
        "engine": ("vllm", "/v0/bin/python"),
        "attention": ("A", "B"),
    }


BAD = [
    ("hf", "cache", "replay backend 'hf' cannot vary 'cache'; it can vary engine, dtype, head, attention, mode, batch"),
    ("hf", "cache", "'cache' needs --backend vllm"),
    ("http", "head", "replay backend 'http' cannot vary 'head'; it can vary nothing"),
    ("http", "", "there is no factor ''"),
    ("hf", "heads", r"there is no factor 'heads' \(did you mean 'head'\?\)"),
    ("hf", "dtype=bf16", r"factor 'dtype' has no level 'bf16' \(did you mean|factor 'dtype' has no level 'bf16'"),
    ("hf", "mode=prefil,decode", r"has no level 'prefil' \(did you mean 'prefill'\?\)"),
    ("hf", "batch=0", "factor 'batch' has no level '0'"),
    ("vllm", "batch=0", "factor 'batch' has no level '0' .known: recorded, single, together, or a number of requests"),
    ("hf", "head,head", "factor 'head' is named twice"),
    ("hf", "engine", "factor 'engine' has no levels to suggest here; name some, e.g. --vary engine=A,B"),
    ("vllm", "engine=v0", "factor 'engine' has no level 'v0': give the path of an interpreter"),
]


@pytest.mark.parametrize(("backend", "vary", "message"), BAD, ids=[bad[1] + bad[2][:9] for bad in BAD])
def test_what_cannot_be_varied(backend: str, vary: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        varied_factors([vary], backend, [RECORDED])


def test_nothing_to_vary() -> None:
    with pytest.raises(ConfigError, match="replay backend 'http' has nothing that bisect can vary"):
        varied_factors([], "http", [RECORDED])


def space(backend: str, run: Mapping[str, Any], *vary: str, **given: Any) -> Space:
    return Space(backend, [run], varied_factors(vary, backend, [run]), given)


def test_options_of_settings() -> None:
    hf = space("hf", RECORDED, "head,batch", device="cpu")
    own = {"dtype": "bfloat16", "attention": "sdpa", "mode": "decode", "device": "cpu"}
    assert hf.options(hf.setting({})) == ("hf", own)
    assert hf.options(hf.setting({"head": "float32"})) == ("hf", own | {"head_output_dtype": "float32"})
    assert hf.setting({"batch": "small", "head": "float32"}).label == "head=float32 + batch=small"
    assert hf.setting({"batch": "large"}).label == "baseline"
    # What is given is stronger than what the recording says.
    fixed = space("hf", RECORDED, "head", dtype="float16")
    assert fixed.options(fixed.setting({}))[1]["dtype"] == "float16"
    with pytest.raises(ConfigError, match="factor 'dtype' sets the option 'dtype', which is given too"):
        space("hf", RECORDED, "dtype", dtype="float16")


def test_options_of_engines() -> None:
    vllm = space("vllm", RECORDED, "cache,mode,head", engine_arg=("block_size=16",))
    assert vllm.options(vllm.setting({})) == (
        "vllm",
        {
            "engine_arg": ("dtype=bfloat16", "block_size=16", "enable_prefix_caching=true"),
            "mode": "decode",
            "schedule": "recorded",
        },
    )
    changed = vllm.options(vllm.setting({"cache": "off", "mode": "prefill", "head": "float32"}))[1]
    # Prompt logprobs have no recorded schedule.
    assert changed == {
        "engine_arg": (
            *("dtype=bfloat16", "block_size=16", "enable_prefix_caching=false"),
            'hf_overrides={"head_dtype": "float32"}',
        ),
        "mode": "prefill",
    }


def test_an_engine_is_another_interpreter_or_backend() -> None:
    vllm = space("vllm", RECORDED, "engine=vllm,/v0/bin/python,hf", "dtype", "cache")
    assert vllm.options(vllm.setting({}))[0] == "vllm"
    backend, options = vllm.options(vllm.setting({"engine": "/v0/bin/python"}))
    assert (backend, options["python"]) == ("vllm", "/v0/bin/python")
    with pytest.raises(ConfigError, match="factor 'cache' cannot be varied on backend 'hf'"):
        vllm.options(vllm.setting({"engine": "hf", "cache": "off"}))
    # At its own baseline it needs no factor that it lacks.
    assert vllm.options(vllm.setting({"engine": "hf"})) == (
        "hf",
        {"dtype": "bfloat16", "attention": "sdpa", "mode": "decode"},
    )
    other = space("vllm", RECORDED, "engine=vllm,hf", "dtype")
    assert other.options(other.setting({"engine": "hf", "dtype": "float32"})) == (
        "hf",
        {"attention": "sdpa", "mode": "decode", "dtype": "float32"},
    )


@pytest.mark.parametrize("name", factor_names())
def test_a_factor_keeps_to_its_contract(name: str) -> None:
    factor = load_factor(name)
    assert factor.title
    for backend in factor.backends:
        suggested = factor.levels([RECORDED], backend)
        assert len(set(suggested)) == len(suggested)
        for level in suggested:
            assert all(isinstance(option, str) for option in factor.options(level, backend))
        assert all(factor.options(level, backend) is not None for level in factor.levels([], backend))


def test_a_varied_factor_has_its_baseline_first() -> None:
    one = Varied("dtype", "", ("bfloat16", "float32", "float16"))
    assert (one.baseline, one.others) == ("bfloat16", ("float32", "float16"))
