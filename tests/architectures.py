"""Small models of many architectures, with random weights everywhere."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers

VOCAB = 120
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA_LIKE = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}

# Heads of all kinds: plain, tied, with a bias, scaled and capped.
CONFIGS: dict[str, Any] = {
    "llama": transformers.LlamaConfig(**LLAMA_LIKE),
    "llama_tied": transformers.LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(**LLAMA_LIKE, head_dim=8, final_logit_softcapping=0.5),
    "cohere": transformers.CohereConfig(**LLAMA_LIKE, logit_scale=0.25),
    "granite": transformers.GraniteConfig(**LLAMA_LIKE, logits_scaling=8.0),
    "qwen3": transformers.Qwen3Config(**LLAMA_LIKE, head_dim=8),
    "phi_with_head_bias": transformers.PhiConfig(**LLAMA_LIKE),
    "gpt2": transformers.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": transformers.OPTConfig(
        **SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64, do_layer_norm_before=True
    ),
    "gpt_neox": transformers.GPTNeoXConfig(**SIZES, intermediate_size=48, max_position_embeddings=64),
    "mixtral": transformers.MixtralConfig(**LLAMA_LIKE, num_local_experts=4, num_experts_per_tok=2),
    "mamba": transformers.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=8),
}


def random_model(config: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Returns a causal language model; biases, which start at zero, are random too: leaving them out would show."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(copy.deepcopy(config), **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model.to(dtype)
