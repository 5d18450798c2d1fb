"""Makes tiny models with random weights: what an engine does with them is the same, and takes next to no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

VOCAB_SIZE = 320
END_ID = 256

_SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Wide enough for distributions with a few likely tokens each.
    "initializer_range": 0.12,
    "bos_token_id": END_ID,
    "eos_token_id": END_ID,
    "pad_token_id": END_ID,
}


def make_tiny_model(folder: Path, *, num_experts: int = 0, seed: int = 0) -> Path:
    """Writes a bf16 Llama, or a Mixtral where it is to have experts, and a tokenizer of one token a byte."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    if num_experts:
        config = MixtralConfig(**_SHAPE, num_local_experts=num_experts, num_experts_per_tok=2)
        model = MixtralForCausalLM(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(**_SHAPE, tie_word_embeddings=False))
    model.to(torch.bfloat16).save_pretrained(folder)
    _byte_tokenizer().save_pretrained(folder)
    return folder


def make_tiny_llama(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Writes a float32 Llama of 100 tokens and at most 32 positions, and no tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 32}
    config = LlamaConfig(**sizes | {"num_hidden_layers": 2, "num_attention_heads": 4} | settings)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _byte_tokenizer():  # type: ignore[no-untyped-def]
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", bos_token="<end>", pad_token="<end>")
