"""Reading pieces of sequences side by side: every architecture's own hidden states, whatever the passes."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from architectures import CONFIGS, LLAMA_LIKE, random_model
from tracekit.errors import ModelError
from tracekit.replay.backends.base import Sequence
from tracekit.replay.backends.hf.pieces import PassLimits, predicting_rows
from tracekit.replay.backends.hf.ragged import RaggedReader
from tracekit.replay.backends.hf.readers import PlainReader, reader_of

SHARED = ("llama", "qwen3", "cohere", "granite", "phi_with_head_bias", "gpt_neox", "gpt2", "mixtral")
RAGGED: dict[str, Any] = {name: CONFIGS[name] for name in SHARED} | {
    "sliding window": transformers.MistralConfig(**LLAMA_LIKE, sliding_window=6),
    "every other layer slides": transformers.Gemma2Config(
        **LLAMA_LIKE, head_dim=8, sliding_window=6, attn_logit_softcapping=2.0
    ),
    "sinks": transformers.GptOssConfig(
        **LLAMA_LIKE, head_dim=8, sliding_window=6, num_local_experts=4, num_experts_per_tok=2
    ),
}
OTHERS: dict[str, Any] = {
    "no attention": CONFIGS["mamba"],
    "longest decides": transformers.LlamaConfig(
        **LLAMA_LIKE, rope_scaling={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    ),
}


pytestmark = pytest.mark.usefixtures("one_thread")

LENGTHS = [(3, 9), (20, 1), (1, 17), (11, 4), (7, 7), (2, 2)]


def make_body(config: Any, attention: str | None = None, dtype: torch.dtype = torch.float32) -> Any:
    options = {} if attention is None else {"attn_implementation": attention}
    return random_model(config, dtype, **options).base_model


def make_batch() -> list[Sequence]:
    random = np.random.default_rng(1)
    return [
        Sequence("run", f"r{i}", {}, *(random.integers(0, 120, n).astype(np.int32) for n in lengths), None)
        for i, lengths in enumerate(LENGTHS)
    ]


def alone(body: Any, batch: list[Sequence]) -> torch.Tensor:
    """One plain forward pass a sequence."""
    rows = []
    for sequence in batch:
        ids = torch.from_numpy(np.concatenate([sequence.prompt_ids, sequence.output_ids[:-1]])[None]).long()
        rows.append(body(input_ids=ids, use_cache=False)[0][0, len(sequence.prompt_ids) - 1 :])
    return torch.cat(rows)


LIMITS = [
    *(PassLimits(num_tokens, 1, decode=False) for num_tokens in (3, 40, 1000)),
    *(PassLimits(num_tokens, num_sequences, decode=True) for num_tokens, num_sequences in ((5, 2), (1000, 4))),
]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", RAGGED)
@torch.inference_mode()
def test_pieces_side_by_side_are_as_sequences_alone(name: str, attention: str) -> None:
    if (name, attention) == ("sinks", "sdpa"):
        attention = "eager"  # the one that this architecture has
    body, batch = make_body(RAGGED[name], attention), make_batch()
    expected = alone(body, batch)
    reader = reader_of(body, 1000)
    assert isinstance(reader, RaggedReader)
    for limits in LIMITS:
        found = predicting_rows(batch, reader, limits)
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=0, msg=lambda text: f"{limits}: {text}")  # noqa: B023
    reader.close()
    torch.testing.assert_close(alone(body, batch), expected, atol=0, rtol=0)


@pytest.mark.parametrize("name", OTHERS)
@torch.inference_mode()
def test_other_architectures_are_read_in_their_own_way(name: str) -> None:
    body, batch = make_body(OTHERS[name]), make_batch()
    expected = alone(body, batch)
    for limits in LIMITS:
        reader = reader_of(body, limits.num_tokens)
        assert isinstance(reader, PlainReader)
        found = predicting_rows(batch, reader, limits)
        torch.testing.assert_close(found, expected, atol=3e-5, rtol=0, msg=lambda text: f"{limits}: {text}")  # noqa: B023


@torch.inference_mode()
def test_bfloat16_is_trusted_within_its_noise() -> None:
    body = make_body(RAGGED["llama"], dtype=torch.bfloat16)
    assert isinstance(reader_of(body, 1000), RaggedReader)


@torch.inference_mode()
def test_code_that_looks_beyond_its_sequence_is_not_read_side_by_side() -> None:
    class Odd(transformers.LlamaModel):
        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            output = super().forward(input_ids=input_ids, **options)
            output.last_hidden_state = output.last_hidden_state + output.last_hidden_state[:, :1]
            return output

    body, batch = Odd(copy.deepcopy(RAGGED["llama"])).eval(), make_batch()
    reader = reader_of(body, 1000)
    assert isinstance(reader, PlainReader)
    expected = alone(body, batch)
    torch.testing.assert_close(
        predicting_rows(batch, reader, PassLimits(1000, 4, decode=False)), expected, atol=3e-5, rtol=0
    )
    with pytest.raises(ModelError, match="Odd with its KV cache does not give what it gives in one forward pass"):
        predicting_rows(batch, reader, PassLimits(1000, 4, decode=True))
