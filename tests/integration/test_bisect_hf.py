"""A bisection with a real model names what a second replay was made with."""

from __future__ import annotations

from pathlib import Path

import pytest

from factories import make_request, make_trace
from tracekit.bisect.plan import make_plan
from tracekit.bisect.result import Bisected, FactorFound
from tracekit.bisect.search import search
from tracekit.replay import replay

TEXTS = [
    ("The capital of France is", " Paris, and the capital of Italy is Rome."),
    ("def fibonacci(n):\n", "    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n"),
    ("Once upon a time there was a small dog who lived by the sea. " * 3, "Every morning he ran to the beach."),
    ("1 2 3 4 5 6 7", " 8 9 10 11 12 13 14 15 16"),
]


@pytest.fixture(scope="module")
def a(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A replay in bf16, as an engine without a cache would have recorded it."""
    import transformers

    folder = tmp_path_factory.mktemp("a")
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    requests = [
        make_request(f"r{index}", prompt=tokenizer(prompt)["input_ids"], token_ids=tokenizer(output)["input_ids"])
        for index, (prompt, output) in enumerate(TEXTS)
    ]
    replay(make_trace(folder / "recorded", requests=requests), folder / "a.trace", model=model_path, dtype="bfloat16")
    return folder / "a.trace"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("replays")


def bisected(a: Path, b: Path, model: Path, out: Path) -> tuple[Bisected, dict[str, FactorFound]]:
    plan = make_plan(a, b, vary=["dtype,head,attention,mode"], model=model, out=out)
    found = search(plan, tries_all=True)
    return found, {one.name: one for one in found.factors}


@pytest.mark.parametrize(
    ("culprit", "options"),
    [("dtype", {"dtype": "float32"}), ("head", {"dtype": "bfloat16", "head_output_dtype": "float32"})],
)
def test_it_names_what_was_changed(
    culprit: str, options: dict[str, str], a: Path, model_path: Path, out: Path, tmp_path: Path
) -> None:
    replay(a, tmp_path / "b.trace", model=model_path, attention="sdpa", **options)
    found, factors = bisected(a, tmp_path / "b.trace", model_path, out)
    assert (found.target, found.is_settled) == (f"{culprit}=float32", True)
    assert factors[culprit].verdict == "moves A to B"
    assert factors[culprit].share.k2 >= 0.9
    assert factors[culprit].share.k3 >= 0.9
    for name, one in factors.items():
        if name != culprit:
            assert one.share.k2 == 0
            assert one.verdict != "moves A to B"
    # Other ways to compute in bf16 lead nowhere nearer to what was changed.
    assert all((factors[name].removes or 0) < 0.5 for name in ("attention", "mode"))
    assert abs(found.baseline_share.k2) + abs(found.residual_share.k2) <= 0.02
