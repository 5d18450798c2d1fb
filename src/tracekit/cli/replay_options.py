"""The options of `tracekit replay` that belong to backends, in sections of its help; `None` leaves a default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

_DTYPES = click.Choice(["float32", "bfloat16", "float16"])


class SectionedCommand(click.Command):
    """A command whose help has its options in sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None and isinstance(param, click.Option):
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


class _SectionedOption(click.Option):
    def __init__(self, *args: Any, section: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section


def _option(section: str, *names: str, **attributes: Any) -> Callable[..., Any]:
    return click.option(*names, cls=_SectionedOption, section=section, **attributes)


_PRECISION, _MODEL, _WEIGHTS = "Precision (hf, head)", "How the model runs (hf)", "Weights (hf)"
_READING = "How sequences are read (hf, llamacpp; --mode also vllm)"
_LORA, _ENGINE, _GGUF = "LoRA (hf, vllm)", "Engine (vllm)", "GGUF (llamacpp)"
_SERVER, _CLUSTER = "Server (http)", "Cluster"
_OTHERS = "Backends of others"

_OPTIONS = (
    _option(_PRECISION, "--dtype", type=_DTYPES, help="Dtype of weights and activations [default: float32]."),
    _option(
        _PRECISION, "--head-dtype", type=_DTYPES, help="Dtype of the last projection's operands [default: as --dtype]."
    ),
    _option(
        _PRECISION,
        "--head-output-dtype",
        type=_DTYPES,
        help="Dtype of the last projection's result [default: as --head-dtype].",
    ),
    _option(_PRECISION, "--autocast", type=_DTYPES, help="Run the model under torch.autocast of this dtype."),
    _option(
        _PRECISION, "--log-softmax-dtype", type=_DTYPES, help="Dtype that logprobs are computed in [default: exact]."
    ),
    _option(
        _READING, "--mode", type=click.Choice(["prefill", "decode"]), help="Read output tokens at once, or one by one."
    ),
    _option(
        _READING,
        "--batch-tokens",
        type=click.IntRange(min=1),
        help="Most tokens of a forward pass; a longer sequence is read in chunks [default: 2048; llamacpp: 512].",
    ),
    _option(_MODEL, "--attention", help="Attention implementation, as transformers names it, e.g. eager or sdpa."),
    _option(_MODEL, "--device", help="Device as torch names it [default: a GPU where there is one, else cpu]."),
    _option(
        _MODEL,
        "--max-num-seqs",
        type=click.IntRange(min=1),
        help="In decode mode, sequences at a time [default: 32].",
    ),
    _option(
        _WEIGHTS,
        "--weights",
        multiple=True,
        metavar="LABEL=PATH",
        help="Score under this checkpoint; repeated, under each of them, to one trace each: name it in -o by {label}. "
        "With --weights-schedule: the checkpoint of a weight version, by its label or number.",
    ),
    _option(
        _WEIGHTS,
        "--weights-schedule",
        type=click.Choice(["recorded"]),
        help="Change weights where the recording did; in decode mode.",
    ),
    _option(
        _WEIGHTS, "--kv", type=click.Choice(["keep", "clear"]), help="The KV cache at such a change [default: keep]."
    ),
    _option(
        _LORA,
        "--lora",
        multiple=True,
        metavar="NAME=PATH",
        help="The adapter that requests call NAME; repeated for several. NAME=base scores them without one.",
    ),
    _option(_ENGINE, "--python", help="Interpreter with vLLM and tracekit [default: the one that runs this]."),
    _option(
        _ENGINE,
        "--engine-arg",
        multiple=True,
        metavar="NAME=VALUE",
        help="An argument of the engine, as vLLM names it; repeated for several. A value is read as JSON where it is.",
    ),
    _option(
        _ENGINE,
        "--env",
        multiple=True,
        metavar="NAME=VALUE",
        help="A variable of the engine's environment; repeated for several.",
    ),
    _option(
        _ENGINE,
        "--schedule",
        type=click.Choice(["recorded", "single"]),
        help="Requests arrive as they did in the recording, or run one by one [default: all at once].",
    ),
    _option(_SERVER, "--url", help="Where the server is, e.g. http://localhost:8000, with or without /v1."),
    _option(
        _SERVER,
        "--dialect",
        type=click.Choice(["vllm", "openai", "sglang"]),
        help="How it is asked: by vLLM's prompt_logprobs, by OpenAI's echo, or by SGLang's /generate (written to its "
        "documentation, not run here) [default: the first of vllm and openai that works].",
    ),
    _option(_SERVER, "--concurrency", type=click.IntRange(min=1), help="Most requests at a time [default: 8]."),
    _option(
        _SERVER,
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SECONDS",
        help="How long one answer may take [default: 120].",
    ),
    _option(
        _SERVER,
        "--retries",
        type=click.IntRange(min=0),
        help="How often a request is repeated that failed, or was answered 429 or 5xx [default: 4].",
    ),
    _option(
        _SERVER,
        "--api-key-env",
        metavar="NAME",
        help="The environment variable with the server's key; the key is written nowhere [default: OPENAI_API_KEY].",
    ),
    _option(
        _GGUF,
        "--kv-dtype",
        metavar="DTYPE",
        help="Dtype of the KV cache: float32, float16, bfloat16, or a quantised one such as q8_0 [default: float16].",
    ),
    _option(
        _GGUF,
        "--flash-attention/--no-flash-attention",
        default=None,
        help="Whether attention is fused [default: llama.cpp's own choice].",
    ),
    _option(
        _GGUF,
        "--gpu-layers",
        type=click.IntRange(min=0),
        help="Layers that a GPU computes [default: all, where llama.cpp was built for one].",
    ),
    _option(
        _GGUF, "--threads", type=click.IntRange(min=1), help="Threads on the CPU [default: as many as torch takes]."
    ),
    _option(
        _CLUSTER,
        "--engine",
        type=click.Choice(["local", "ray"]),
        default="local",
        show_default=True,
        help="Where the backend runs: in this process, or in workers of a Ray cluster; the result is the same.",
    ),
    _option(
        _CLUSTER,
        "--address",
        help="The Ray cluster: auto, HOST:PORT, ray://HOST:PORT, or local, one on this machine alone "
        "[default: what RAY_ADDRESS says, else local].",
    ),
    _option(
        _CLUSTER,
        "--num-workers",
        type=click.IntRange(min=1),
        help="Backends at work at a time [default: as many as its GPUs suffice for; without GPUs one a node].",
    ),
    _option(
        _CLUSTER,
        "--gpus-per-worker",
        type=click.FloatRange(min=0),
        help="GPUs of each, perhaps a part of one [default: 1 where the cluster has GPUs, else 0].",
    ),
    _option(
        _CLUSTER,
        "--cpus-per-worker",
        type=click.FloatRange(min=0),
        help="CPUs that Ray sets aside for each [default: 1].",
    ),
    _option(
        _OTHERS,
        "--option",
        "-O",
        "other_options",
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of a backend that another package brings; repeated for several.",
    ),
)


def backend_options(function: Callable[..., None]) -> Callable[..., None]:
    """Adds all of them to a command."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function
