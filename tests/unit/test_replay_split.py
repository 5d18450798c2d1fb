"""A model's head apart from its body: every architecture's own logits, for chosen rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from architectures import CONFIGS, random_model
from tracekit.errors import ModelError
from tracekit.replay.backends.hf.split import SplitModel
from tracekit.replay.head import HeadDtypes

FLOAT32 = HeadDtypes(torch.float32, torch.float32)


def make_model(name: str, dtype: torch.dtype = torch.float32) -> Any:
    return random_model(CONFIGS[name], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONFIGS)
@torch.inference_mode()
def test_head_gives_the_models_own_logits(name: str, dtype: torch.dtype) -> None:
    model = make_model(name, dtype)
    ids = torch.randint(0, 120, (2, 9), generator=torch.Generator().manual_seed(1))
    expected = model(input_ids=ids, use_cache=False).logits

    split = SplitModel(model, None, name)
    hidden = split.body(input_ids=ids, use_cache=False)[0]

    assert split.vocab_size == 120
    chosen = [2, 5, 6]
    tolerance = 1e-5 if dtype == torch.float32 else 0.02 * float(expected.abs().max())
    torch.testing.assert_close(split.logits(hidden[1, chosen]), expected[1, chosen], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "shaped"),
    [
        ("gemma2", lambda logits: 0.5 * np.tanh(logits / 0.5)),
        ("cohere", lambda logits: 0.25 * logits),
        ("granite", lambda logits: logits / 8),
        ("llama", lambda logits: logits),
        ("phi_with_head_bias", lambda logits: logits),
    ],
)
@torch.inference_mode()
def test_scale_soft_cap_and_bias_are_applied(name: str, shaped: Any) -> None:
    model = make_model(name)
    weight = model.get_output_embeddings().weight.double().numpy()
    bias = getattr(model.get_output_embeddings(), "bias", None)
    split = SplitModel(model, FLOAT32, name)
    hidden = split.body(input_ids=torch.tensor([[5, 9, 33, 2]]), use_cache=False)[0][0]
    product = hidden.double().numpy() @ weight.T + (0 if bias is None else bias.double().numpy())
    np.testing.assert_allclose(split.logits(hidden).numpy(), shaped(product), atol=1e-5)
    if name == "phi_with_head_bias":
        assert bias is not None
        assert float(bias.abs().max()) > 0.01


@pytest.mark.parametrize("name", ["llama_tied", "gemma2", "phi_with_head_bias"])
@torch.inference_mode()
def test_float32_head_over_bfloat16_body(name: str) -> None:
    model = make_model(name, torch.bfloat16)
    head = model.get_output_embeddings()
    weight = head.weight.double().numpy()
    bias = getattr(head, "bias", None)
    split = SplitModel(model, FLOAT32, name)
    hidden = split.body(input_ids=torch.tensor([[5, 9, 33, 2]]), use_cache=False)[0][0]
    product = hidden.double().numpy() @ weight.T + (0 if bias is None else bias.double().numpy())
    expected = 0.5 * np.tanh(product / 0.5) if name == "gemma2" else product
    assert hidden.dtype == torch.bfloat16
    assert split.logits_dtype == torch.float32
    np.testing.assert_allclose(split.logits(hidden).numpy(), expected, atol=1e-5)
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("operands", "output", "rounds"),
    [
        # bf16 operands, fp32 result: only the hidden states and weights were rounded.
        ("bfloat16", "float32", lambda hidden, weight: _bf16(hidden) @ _bf16(weight).T),
        ("float32", "bfloat16", lambda hidden, weight: _bf16(hidden @ weight.T)),
        ("float32", "float32", lambda hidden, weight: hidden @ weight.T),
        ("float16", "float32", lambda hidden, weight: _f16(hidden) @ _f16(weight).T),
        ("float16", "bfloat16", lambda hidden, weight: _bf16(_f16(hidden) @ _f16(weight).T)),
    ],
)
@torch.inference_mode()
def test_both_kinds_of_head_dtypes(operands: str, output: str, rounds: Any) -> None:
    model = make_model("llama")
    weight = model.get_output_embeddings().weight.double().numpy()
    split = SplitModel(model, HeadDtypes.named(operands, output), "llama")
    hidden = split.body(input_ids=torch.tensor([[5, 9, 33, 2]]), use_cache=False)[0][0]
    expected = rounds(hidden.double().numpy(), weight)
    found = split.logits(hidden)
    assert str(found.dtype) == f"torch.{output}"
    step = 2**-8 * np.abs(expected) if output == "bfloat16" else 0
    np.testing.assert_array_less(np.abs(found.double().numpy() - expected), 1e-5 + step)
    plain = hidden.double().numpy() @ weight.T
    if (operands, output) != ("float32", "float32"):
        assert np.abs(found.double().numpy() - plain).max() > 1e-4


def _bf16(values: Any) -> Any:
    return torch.from_numpy(values).bfloat16().double().numpy()


def _f16(values: Any) -> Any:
    return torch.from_numpy(values).half().double().numpy()


@torch.inference_mode()
def test_a_model_whose_logits_depend_on_more_than_hidden_states_is_refused() -> None:
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            output = super().forward(input_ids=input_ids, **options)
            output.logits = output.logits + input_ids.unsqueeze(-1)
            return output

    model = Odd(CONFIGS["llama"]).eval()
    with pytest.raises(ModelError, match="odd-model: the logits of Odd cannot be made from its final hidden states"):
        SplitModel(model, FLOAT32, "odd-model")
