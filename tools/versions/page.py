"""The page on releases in docs/, from the figures of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]

_HEAD = """# Across versions

Written by `make versions` (`tools/versions/run.py`). One rollout of SmolLM2-135M in bf16, on CPUs: short questions,
long documents with shared prefixes, conversations, code, and other scripts, sampled as RL teams do (temperature 0.6 to
1.2, top-p, top-k, min-p, penalties, some greedy). It is recorded on the older release (A), and the recorded tokens are
forced through the newer one with the same command line (B). Processed logprobs are compared: d = B − A, k2 = d²/2, in
nat a token.
"""

_WIDE = """This processor multiplies no bf16: linear layers were taken in float32 and rounded once, in all releases
(`--wide-products`, `tools/stand_ins/wide_products.py`).
"""

_RUNGS = """## Where it arises

Each rung is two traces that differ by one thing; shares of k2 add up to one. *Head* and *sampler* are `--backend head`
on the recorded hidden states: in bf16 its logits are the engine's own, and behind them stands tracekit's arithmetic in
place of the engine's sampler. *Body* is the engine with the whole model in float32, of `tracekit bisect --through`.
What is left of a release where both run in float32 is neither rounding nor sampler.
"""

_WAY = """The way of `tracekit bisect --through`, on which both releases are brought to the same settings and out again.
"""

_KERNELS = """## How the releases' own kernels round to bf16

Random rows through the releases' own kernels for CPUs, called directly; the exact result is torch's in float64. Shares
of results that are the exact one rounded to the nearest bf16, and that are the exact one with its lower bits cut off. A
kernel that cuts off makes every value too small, by 0.3% on average, in each of the model's layers. `kernels=native` on
the way above is the same release with torch's operations in their place. Whether a release's model goes through these
kernels at all is another matter: where it does, its bf16 is far from its float32, on the way above.
"""

_SAMPLER = """## Samplers

A release's processed logprobs against tracekit's arithmetic on the same raw logits (`--backend head`), by how requests
were sampled.
"""

_V0 = """### V0 rounds sampling parameters and penalised logits to the dtype of the logits

vLLM 0.8.5, V0 engine. `SamplingTensors` keeps temperature, top-p, min-p and all penalties in the dtype of the logits:
in bf16 a temperature of 0.7 is 0.69921875, 0.6 is 0.6015625, a top-p of 0.95 is 0.94921875, a repetition penalty of 1.1
is 1.1015625. Penalties are applied to the bf16 logits in place, and each of the three steps rounds its result to bf16,
a grid of 0.125 between 16 and 32; only then the sampler turns to float32. V1 keeps parameters in float32 and penalises
float32 logits. Tokens are drawn from the rounded distribution, and its logprobs are what V0 reports, so they are true
to what was sampled; a trainer that applies the parameters as they were given differs from them by this much. It goes
away with a head in float32 (`--dtype float32`), or with parameters that bf16 holds and no penalties.
"""

_DEFAULT = """What clients get by default: A's reported values against the newer release's raw ones, which V1 reports
where `logprobs_mode` is not set.
"""


def page(figures: Figures) -> str:
    """Returns the page, in Markdown."""
    pairs = figures["pairs"]
    wide = [_WIDE] if figures["wide_products"] else []
    lines = [_HEAD, *wide, *_engines(pairs), "", *_summary(pairs), "", *_bisected(pairs), ""]
    if any(pair["ladder"] for pair in pairs):
        lines += [_RUNGS, *_ladders(pairs), "", _WAY, *_ways(pairs), ""]
    lines += [_KERNELS, *_roundings(figures), ""]
    lines += ["## By kind of prompt", "", *_kinds(pairs), ""]
    lines += ["## What explain says", "", *_explained(pairs), "", *_by_default(pairs), ""]
    lines += [_SAMPLER, *_samplers(figures["samplers"])]
    for sampler in figures["samplers"]:
        if "smallest" in sampler:
            lines += ["", *_fault(sampler)]
    return "\n".join(lines) + "\n"


def _name(pair: Figures) -> str:
    return f"{pair['old']} → {pair['new']}"


def _engines(pairs: Sequence[Figures]) -> Iterator[str]:
    runs = {run["engine_version"]: run for pair in pairs for run in pair["runs"].values()}
    yield "| vLLM | torch | attention | prefix cache | chunked prefill | threads |"
    yield "|---|---|---|---|---|---|"
    for version, run in sorted(
        runs.items(), key=lambda item: [int(part) for part in item[0].split("+")[0].split(".")[:3]]
    ):
        told = (
            run[name]
            for name in ("torch_version", "attention_backend", "prefix_caching", "chunked_prefill", "num_threads")
        )
        yield f"| {version} | " + " | ".join(_told(value) for value in told) + " |"


def _told(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return "" if value is None else str(value)


def _summary(pairs: Sequence[Figures]) -> Iterator[str]:
    yield "| A → B | requests | tokens | k2 | of it A/A floor | accounted for by settings | rest |"
    yield "|---|---|---|---|---|---|---|"
    for pair in pairs:
        found = pair["bisected"]
        lost = found["baseline_share"]["k2"] + found["residual_share"]["k2"]
        size, floor = found["difference"]["k2"], found["noise"]["k2"]
        yield (
            f"| {_name(pair)} | {found['num_requests']} | {found['num_tokens']:,} | {size:.3g} | {floor / size:.2%} "
            f"| {1 - lost:.1%} | {lost:.1%} |"
        )
    yield ""
    yield "The floor is the older release's own forced repeat against its recording, in another process."


def _bisected(pairs: Sequence[Figures]) -> Iterator[str]:
    yield "| A → B | factor | share of k2 | verdict |"
    yield "|---|---|---|---|"
    for pair in pairs:
        for factor in pair["bisected"]["factors"]:
            share = f"{factor['share']['k2']:.1%}" if factor["verdict"] == "moves A to B" else ""
            yield f"| {_name(pair)} | {factor['name']} | {share} | {factor['verdict']} |"


def _ladders(pairs: Sequence[Figures]) -> Iterator[str]:
    yield "| A → B | rung | share of k2 | k2 of the rung | largest abs(d) |"
    yield "|---|---|---|---|---|"
    for pair in pairs:
        for rung in pair["ladder"]:
            yield (
                f"| {_name(pair)} | {rung['what']} | {rung['share']['k2']:.1%} | {rung['size']['k2']:.3g} "
                f"| {rung['largest']:.3g} |"
            )


def _ways(pairs: Sequence[Figures]) -> Iterator[str]:
    yield "| A → B | from | to | share of k2 | k2 between them |"
    yield "|---|---|---|---|---|"
    for pair in pairs:
        for stage in pair["bisected"]["way"]:
            ends = (_label(stage[end], pair) for end in ("start", "end"))
            yield f"| {_name(pair)} | {' | '.join(ends)} | {stage['share']['k2']:.1%} | {stage['size']['k2']:.3g} |"


def _label(setting: str, pair: Figures) -> str:
    """Returns a setting with the release in place of its interpreter."""
    parts = (f"vLLM {pair['new']}" if part.startswith("engine=") else part for part in setting.split(" + "))
    return " + ".join(part if part != "baseline" else f"vLLM {pair['old']}" for part in parts)


def _roundings(figures: Figures) -> Iterator[str]:
    yield f"Processor: {', '.join(figures['processor'])}."
    yield ""
    yield "| vLLM | kernel | nearest | cut off |"
    yield "|---|---|---|---|"
    for version, kernels in figures["roundings"].items():
        for name, found in kernels.items():
            yield f"| {version} | {name} | {found['nearest']:.1%} | {found['cut']:.1%} |"


def _kinds(pairs: Sequence[Figures]) -> Iterator[str]:
    kinds = list(dict.fromkeys(kind for pair in pairs for kind in pair["kinds"]))
    yield "| k2 | " + " | ".join(kinds) + " |"
    yield "|---" * (len(kinds) + 1) + "|"
    for pair in pairs:
        of = pair["kinds"]
        cells = (f"{of[kind]['square'] / of[kind]['num_tokens'] / 2:.3g}" if kind in of else "" for kind in kinds)
        yield f"| {_name(pair)} | " + " | ".join(cells) + " |"


def _explained(pairs: Sequence[Figures]) -> Iterator[str]:
    yield "| A → B | cause | share of k2 | estimated |"
    yield "|---|---|---|---|"
    for pair in pairs:
        yield from _findings(_name(pair), pair["explained"])


def _by_default(pairs: Sequence[Figures]) -> Iterator[str]:
    yield _DEFAULT
    yield "| A → B | cause | share of k2 | estimated |"
    yield "|---|---|---|---|"
    for pair in pairs:
        yield from _findings(_name(pair), pair["by_default"])


def _findings(name: str, explained: Figures) -> Iterator[str]:
    for finding in explained["findings"]:
        told = ", ".join(f"{key} {_number(value)}" for key, value in finding["parameters"].items())
        yield f"| {name} | {finding['cause']} | {finding['shares']['k2']:.1%} | {told} |"
    yield f"| {name} | not explained | {explained['residual']['k2']:.1%} | |"


def _number(value: Any) -> str:
    if isinstance(value, list):
        return " to ".join(_number(one) for one in value)
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _samplers(samplers: Sequence[Figures]) -> Iterator[str]:
    names = ("temperature", "top-p", "top-k", "min-p", "repetition", "presence", "frequency")
    yield f"| vLLM | logits equal | {' | '.join(names)} | tokens | k2 | largest abs(d) |"
    yield "|---" * (len(names) + 5) + "|"
    for sampler in samplers:
        for *settings, num, square, largest in sampler["by_sampling"]:
            told = " | ".join("" if value is None else f"{value:.4g}" for value in settings)
            sizes = f"{num:,} | {square / num / 2:.3g} | {largest:.3g}"
            yield f"| {sampler['version']} | {sampler['equal_logits']:.1%} | {told} | {sizes} |"


def _fault(sampler: Figures) -> Iterator[str]:
    if sampler["version"].startswith("0.8."):
        yield _V0
    yield f"What `tracekit explain` says of {sampler['version']} against the same logits and tracekit's sampler:"
    yield ""
    yield "| A → B | cause | share of k2 | estimated |"
    yield "|---|---|---|---|"
    yield from _findings(f"{sampler['version']} → exact", sampler["explained"])
    smallest = sampler["smallest"]
    yield ""
    size = f"{smallest['num_bytes'] / 1000:,.0f} kB"
    yield f"The smallest two traces that show half of the largest difference, by `tracekit bisect --minimise` ({size}):"
    yield ""
    for request in smallest["requests"]:
        prompt = request.pop("prompt")
        told = ", ".join(
            f"{name} {value:.4g}" for name, value in request.items() if isinstance(value, float | int) and value
        )
        yield f"Request `{request['request_id']}`, {told}. Prompt:"
        yield ""
        yield "```"
        yield prompt.rstrip("\n")
        yield "```"
    yield ""
    yield "| token | | id | raw logprob | processed, engine | processed, exact | d |"
    yield "|---|---|---|---|---|---|---|"
    for index, text, token_id, *values in smallest["tokens"]:
        yield f"| {index} | `{text!r}` | {token_id} | " + " | ".join(f"{value:.6f}" for value in values) + " |"
    yield ""
    yield "`make versions` leaves them in `bench-output/versions/" + sampler["version"] + "-sampler/`."
