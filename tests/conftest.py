"""Fixtures that several test modules share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import wide_products

from shallow_model import make_shallow_model
from tiny_model import make_tiny_llama

MODEL_VARIABLE = "TRACEKIT_TEST_MODEL"

# Engines of tests that run side by side would all be bound to the first core.
_worker = os.environ.get("PYTEST_XDIST_WORKER", "")
if _worker:
    cores = sorted(os.sched_getaffinity(0))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", str(cores[int(_worker.removeprefix("gw")) % len(cores)]))

# What tests compare is the same either way; five times as slow, they would not end.
if wide_products.are_products_slow():
    os.environ["TRACEKIT_WIDE_PRODUCTS"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(wide_products.__file__).parent), os.environ.get("PYTHONPATH")])
    )
    wide_products.install()


def pytest_report_header() -> str | None:
    wide = os.environ.get("TRACEKIT_WIDE_PRODUCTS") == "1"
    return "bf16 products: in float32, rounded once; this processor has none of its own" if wide else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files that start engines first: of two side by side, none is then left with a long one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """A folder with a small causal language model in Hugging Face format, tokenizer included."""
    value = os.environ.get(MODEL_VARIABLE)
    if not value:
        pytest.fail(f"set {MODEL_VARIABLE} to the folder of a small causal language model (`make test` does it)")
    path = Path(value)
    if not (path / "config.json").is_file():
        pytest.fail(f"{MODEL_VARIABLE}={value} is not a model folder: it has no config.json")
    return path


@pytest.fixture(scope="session")
def shallow_model(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first layers of that model, for what depends on the engine and not on the model's depth."""
    return make_shallow_model(model_path, tmp_path_factory.mktemp("shallow") / "model")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a Llama of 100 tokens and at most 32 positions, without a tokenizer."""
    return make_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads of so small models spend their time waiting for each other, the more so beside other tests."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
