"""The pass over the next token that is written out, beside transformers' own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import parametrize
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from polopt.policies import LoRA, causal_passes
from polopt.policies.causal_passes import CausalPasses
from polopt.policies.straight_line import is_straight
from tests.policies.language_models import PROMPTS, tiny_policy

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "grouped": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": False}),
    "biased": (LlamaForCausalLM, LlamaConfig, {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "scaled": (LlamaForCausalLM, LlamaConfig, {"rope_parameters": LLAMA3, "head_dim": 16}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"num_key_value_heads": 2}),
    "mistral": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 2, "sliding_window": None}),
}
ATTENTION = torch.ones(4, 7, dtype=torch.long).tril(3).flip(1)  # rows of 4, 5, 6 and 7 tokens, padded on the left


def model_of(name, dtype=torch.float32, **changes):
    kind, config, fields = MODELS[name]
    torch.manual_seed(0)
    model = kind(config(**SHAPE | fields | changes, attn_implementation="sdpa")).eval().to(dtype)
    for part, weight in model.named_parameters():
        if part.endswith("bias"):
            torch.nn.init.normal_(weight)  # transformers begins with zeros
    return model


@torch.no_grad()
def written(passes, attention, straight):
    """The logits of a prompt and of five tokens after it; two rows leave, and one comes to stand twice."""
    torch.manual_seed(1)
    tokens = torch.randint(0, 50, attention.shape)
    seen, position = attention.bool(), (attention.cumsum(1) - 1).clamp_min(0)
    cache = passes.new_cache(attention.shape[1] + 5)
    assert cache.straight
    cache.straight = straight
    found = [passes.first_logits(tokens, seen, position, cache)]
    position = position[:, -1:]
    for step in range(5):
        if step == 2:
            keep = torch.tensor([0, 3, 0])
            cache.batch_select_indices(keep)
            seen, position = seen[keep], position[keep]
        tokens = torch.randint(0, 50, (len(seen), 1))
        seen, position = torch.cat((seen, seen.new_ones(len(seen), 1)), 1), position + 1
        found.append(passes.more_logits(tokens, seen, position, cache))
    return torch.cat(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("attention", [ATTENTION, torch.ones_like(ATTENTION)], ids=["padded", "full"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name, attention, dtype):
    passes = CausalPasses(model_of(name, dtype), torch.arange(4))
    plain, straight = written(passes, attention, False), written(passes, attention, True)
    assert plain.std() > 0.1
    tolerance = {torch.float32: 2e-5, torch.float64: 2e-6, torch.bfloat16: 5e-2}[dtype]  # norms are in single precision
    assert (plain - straight).abs().max() < tolerance * plain.abs().max()


def test_what_is_sampled_is_the_same(float64, monkeypatch):
    policy = tiny_policy(lora=LoRA(), max_tokens=20)  # projections with adapters are called as they are
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    records = []
    for known in (is_straight, lambda model: False):
        monkeypatch.setattr(causal_passes, "is_straight", known)
        assert policy.passes.new_cache(4).straight == (known is is_straight)
        torch.manual_seed(0)
        records.append(policy.act(PROMPTS * 8)[0])
    assert torch.equal(records[0]["action"], records[1]["action"])
    torch.testing.assert_close(records[0]["engine_log_prob"], records[1]["engine_log_prob"], rtol=0, atol=2e-6)


def test_a_window_of_attention_is_left_to_transformers():
    passes = CausalPasses(model_of("mistral", sliding_window=4), torch.arange(4))
    assert not passes.new_cache(8).straight


class Own(LlamaForCausalLM):
    """A model of somebody's own."""


def other(model):
    return Own(model.config)


def hooked(model):
    model.model.layers[1].self_attn.register_forward_hook(lambda *args: None)


def replaced(model):
    model.model.layers[1].forward = model.model.layers[1].forward


def compiled(model):
    CausalPasses(model, torch.arange(4)).compile(backend="eager")


def with_norms(model):
    model.model.layers[0].self_attn.q_norm = torch.nn.Identity()


def parametrized(model):
    """A part that is called as it is, whatever it has become."""
    parametrize.register_parametrization(model.model.layers[0].mlp.up_proj, "weight", torch.nn.Identity())


def unknown_attention(model):
    model.config._attn_implementation = "flex_attention"


def gemma(model):
    fields = {name: SHAPE[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")}
    return Gemma2ForCausalLM(Gemma2Config(**fields, num_attention_heads=2, num_key_value_heads=1, head_dim=16))


@pytest.mark.parametrize(
    ("change", "straight"),
    [
        *((change, False) for change in (other, hooked, replaced, compiled, with_norms, unknown_attention, gemma)),
        (parametrized, True),
    ],
)
def test_other_models_and_what_is_put_around_parts_are_left_to_transformers(change, straight):
    model = model_of("llama")
    assert is_straight(model)
    assert is_straight(copy.deepcopy(model))
    model = change(model) or model
    assert is_straight(model) == straight
