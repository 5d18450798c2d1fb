"""Which writes into parameters are noticed; the list in docs/weights.md says the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tracekit.record.parameters import ParameterWatch

Write = Callable[[nn.Parameter], None]


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.layers = nn.ModuleList(nn.Linear(16, 16, bias=False) for _ in range(20))
        self.head = nn.Linear(16, 50, bias=False)
        self.head.weight = self.embedding.weight
        self.to(torch.bfloat16).requires_grad_(False)


def _copy(parameter: nn.Parameter) -> None:
    parameter.copy_(parameter + 1)


def _inference_mode(parameter: nn.Parameter) -> None:
    with torch.inference_mode():
        parameter.mul_(2)


def _view(parameter: nn.Parameter) -> None:
    parameter.view(-1)[3] = 9


def _foreach(parameter: nn.Parameter) -> None:
    torch._foreach_mul_([parameter.detach()], 2)


def _data(parameter: nn.Parameter) -> None:
    parameter.data.copy_(parameter.data + 1)


def _data_replaced(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data + 1


def _numpy(parameter: nn.Parameter) -> None:
    parameter.data.view(torch.int16).numpy()[:] += 1


def _storage(parameter: nn.Parameter) -> None:
    parameter.untyped_storage().copy_((parameter + 1).untyped_storage())


COUNTED: list[Write] = [_copy, _inference_mode, _view, _foreach]
UNCOUNTED: list[Write] = [_data, _data_replaced, _numpy, _storage]


@pytest.mark.parametrize("write", COUNTED)
def test_writes_that_torch_counts_are_seen_at_every_step(write: Write) -> None:
    model = _Model()
    watch = ParameterWatch(model)
    assert not watch.stirred()
    write(model.embedding.weight)
    assert watch.stirred()
    assert watch.changed() == ["embedding.weight"]
    assert not watch.stirred()
    assert watch.changed() == []


@pytest.mark.parametrize("write", UNCOUNTED)
def test_others_are_seen_when_values_are_compared(write: Write) -> None:
    model = _Model()
    watch = ParameterWatch(model)
    write(model.layers[3].weight)
    assert not watch.stirred()
    assert watch.changed() == ["layers.3.weight"]
    assert watch.changed() == []


def test_a_write_to_all_parameters_is_seen_whichever_are_watched_closely() -> None:
    model = _Model()
    watch = ParameterWatch(model)
    for parameter in model.parameters():
        parameter.add_(1)
    assert watch.stirred()
    assert len(watch.changed()) == 21, "the tied head is the embedding"


def test_what_is_not_seen() -> None:
    model = _Model()
    model.embedding = nn.Embedding(5000, 16).requires_grad_(False)
    watch = ParameterWatch(model)
    # One element of 80,000, of which 256 are compared.
    model.embedding.weight.data[4, 3] = 7
    assert watch.changed() == []
    # Values that are what they were.
    model.layers[0].weight.data.copy_(model.layers[0].weight.data)
    assert watch.changed() == []


def test_replaced_parameters_are_looked_at_and_old_ones_let_go() -> None:
    model = _Model()
    watch = ParameterWatch(model)
    model.layers[5].weight = nn.Parameter(torch.zeros(16, 16, dtype=torch.bfloat16), requires_grad=False)
    assert watch.changed() == ["layers.5.weight"]
    model.layers[5].weight = nn.Parameter(torch.zeros(4, 4), requires_grad=False)
    assert watch.changed() == ["layers.5.weight"]


def test_parameters_that_cannot_be_read() -> None:
    model = _Model()
    model.layers[1].weight = nn.Parameter(torch.empty(16, 16, device="meta"), requires_grad=False)
    model.layers[2].weight = nn.Parameter(torch.empty(0), requires_grad=False)
    model.layers[3].weight = nn.Parameter(torch.zeros(1).expand(4, 4), requires_grad=False)
    with torch.inference_mode():
        model.layers[4].weight = nn.Parameter(torch.zeros(16, 16), requires_grad=False)
    # Stored transposed, as some quantised weights are: dense, and in another order.
    model.layers[5].weight = nn.Parameter(torch.arange(32.0).view(4, 8).t(), requires_grad=False)
    watch = ParameterWatch(model)
    assert not watch.stirred()
    model.layers[5].weight.data[7, 3] = -1
    with torch.inference_mode():
        model.layers[4].weight.add_(1)
    assert watch.changed() == ["layers.4.weight", "layers.5.weight"]


def test_parameters_left_out_and_values_left_out() -> None:
    model = _Model()
    watch = ParameterWatch(model, lambda name: not name.startswith("layers.3."))
    model.layers[3].weight.add_(1)
    assert watch.changed() == []
    watch = ParameterWatch(model, values=False)
    model.layers[3].weight.data.add_(1)
    model.layers[4].weight.add_(1)
    assert watch.changed() == ["layers.4.weight"]
