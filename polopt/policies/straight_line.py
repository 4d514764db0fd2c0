"""One token further through a model of Llama's shape, in a straight line.

A pass over one token a row has little to compute, and as much time goes to what transformers does around it: masks,
signatures, the general form of attention. Here the layers' own parts (projections with their adapters, norms, rotary
frequencies, feed-forward networks) are called in the order of `LlamaDecoderLayer`, with the attention of one query a
row between them. The logits are the same to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from polopt.core import shards

MODELS = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")  # of transformers: no other order of parts
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
LAYER = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}


def is_straight(model: Any) -> bool:
    """Whether `next_states` stands for a pass of `model`, of transformers: it is one of `MODELS` and whole on this
    process, and nothing has been put around those of its parts that are not called."""
    if type(model).__name__ not in MODELS or not type(model).__module__.startswith("transformers.models."):
        return False
    layers = list(model.model.layers)
    shaped = all(
        {name for name, _ in layer.named_children()} == LAYER
        and {name for name, _ in layer.self_attn.named_children()} == ATTENTION
        and hasattr(layer.self_attn, "head_dim")
        and hasattr(layer.self_attn, "scaling")
        for layer in layers
    )
    attention = getattr(model.config, "_attn_implementation", None)
    if not shaped or attention not in ("sdpa", "eager") or shards.is_divided(model):
        return False
    left_out = [model, model.model, *layers, *(layer.self_attn for layer in layers)]
    return not any("forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks for part in left_out)


def next_states(model: Any, tokens: Tensor, seen: Tensor, position: Tensor, cache: Any) -> Tensor:
    """The states [B, H] that the head reads after `tokens` [B] at `position` [B, 1], where the cache and they are
    `seen` [B, C]; the cache grows."""
    base = model.model
    x = base.embed_tokens(tokens)
    cos, sin = base.rotary_emb(x, position)  # [B, 1, D]
    half = cos.shape[-1] // 2
    sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)  # of the halves the other way round
    mask = None
    if not seen.all():
        mask = torch.zeros_like(seen, dtype=x.dtype).masked_fill(~seen.bool(), -torch.inf)[:, None, None]
    for layer, held in zip(base.layers, cache.layers):
        part = layer.self_attn
        h = layer.input_layernorm(x)
        q, k, v = (project(h).unflatten(-1, (-1, part.head_dim)) for project in (part.q_proj, part.k_proj, part.v_proj))
        q, k = (torch.addcmul(one * cos, one.roll(half, -1), sin) for one in (q, k))
        keys, values = held.update(k.unsqueeze(2), v.unsqueeze(2))
        q = q.unflatten(1, (keys.shape[1], -1))  # the queries that share a key are a matrix: [B, keys, shared, D]
        x = x + part.o_proj(attended(q, keys, values, mask, part.scaling).flatten(1))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return base.norm(x)


def attended(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention [B, K, S, D] of `query` [B, K, S, D] to `keys` and `values` [B, K, C, D]; `mask` [B, 1, 1, C] is added.

    The fused kernel of a CPU is made for many queries: for one, two products take two thirds of its time. In half
    precision they would round in between."""
    if query.device.type != "cpu" or query.dtype not in (torch.float32, torch.float64):
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    scores = torch.matmul(query * scale, keys.transpose(-1, -2))
    return torch.matmul((scores if mask is None else scores + mask).softmax(-1), values)
