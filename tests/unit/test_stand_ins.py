"""What stands in for hardware in the tests computes what that hardware would."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
import wide_products


@pytest.fixture
def functional() -> ModuleType:
    """Stands for torch.nn.functional, which must not be patched here."""
    module = ModuleType("functional")
    module.linear, module.pad = torch._C._nn.linear, torch.nn.functional.pad
    wide_products.multiply_wide(module)
    return module


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7])
@pytest.mark.parametrize("num_outputs", [3, 1024, 2500])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_the_exact_one_rounded(
    functional: ModuleType, num_rows: int, num_outputs: int, with_bias: bool
) -> None:
    generator = torch.Generator().manual_seed(num_rows + num_outputs)
    x, weight, bias = (
        torch.randn(shape, generator=generator).bfloat16()
        for shape in [(num_rows, 576), (num_outputs, 576), (num_outputs,)]
    )
    exact = x.double().numpy() @ weight.double().numpy().T + (bias.double().numpy() if with_bias else 0)
    found = functional.linear(x, weight, bias if with_bias else None)
    assert found.dtype == torch.bfloat16
    assert found.shape == (num_rows, num_outputs)
    # Half a step of bf16 below the next power of two, and what a float32 sum may be off.
    np.testing.assert_allclose(found.double().numpy(), exact, rtol=2.0**-8, atol=1e-4)


def test_a_row_does_not_depend_on_how_many_others_there_are(functional: ModuleType) -> None:
    x, weight = torch.randn(5, 16, 576).bfloat16(), torch.randn(2000, 576).bfloat16()
    whole = functional.linear(x, weight)
    assert whole.shape == (5, 16, 2000)
    for num_rows in (2, 3, 5, 7, 9, 16):
        assert torch.equal(functional.linear(x[1, :num_rows], weight), whole[1, :num_rows])


def test_a_change_of_the_weight_counts_at_once(functional: ModuleType) -> None:
    weight = torch.nn.Parameter(torch.ones(4, 8, dtype=torch.bfloat16), requires_grad=False)
    x = torch.ones(3, 8, dtype=torch.bfloat16)
    assert functional.linear(x, weight).unique().tolist() == [8]
    weight.data.copy_(torch.full((4, 8), 2))
    assert functional.linear(x, weight).unique().tolist() == [16]


def test_other_products_are_left_alone(functional: ModuleType) -> None:
    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    assert torch.equal(functional.linear(x, weight), torch._C._nn.linear(x, weight))
    trained = torch.nn.Parameter(weight.bfloat16())
    functional.linear(x.bfloat16(), trained).sum().backward()
    assert trained.grad is not None
