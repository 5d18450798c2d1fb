"""Writes a Llama of transformers as a GGUF file in fp32, so that only arithmetic tells llama.cpp and torch apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# By their names in transformers, in each layer; norms and projections that are stored as they are.
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(path: Path, model: Any, *, architecture: str = "llama", causal: bool | None = None) -> Path:
    """Writes a LlamaForCausalLM without a tokenizer: its vocabulary is a number.

    Args:
        path: the file.
        model: the model.
        architecture: what the file says it is.
        causal: what the file says of its attention, if anything.
    """
    import gguf

    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if causal is not None:
        writer.add_causal_attention(causal)

    def add(name: str, source: str, num_heads: int = 0) -> None:
        values = weights[source].float().numpy()
        writer.add_tensor(f"{name}.weight", _pairs_together(values, num_heads) if num_heads else values)

    add("token_embd", "model.embed_tokens.weight")
    add("output_norm", "model.norm.weight")
    add("output", "lm_head.weight")
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for source, name in _LAYER.items():
            add(f"blk.{layer}.{name}", f"model.layers.{layer}.{source}.weight", heads.get(name, 0))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _pairs_together(weight: npt.NDArray[np.float32], num_heads: int) -> npt.NDArray[np.float32]:
    """Puts side by side what rotary embeddings turn together: halves of a head in transformers, neighbours here."""
    halves = weight.reshape(num_heads, 2, -1, weight.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)
