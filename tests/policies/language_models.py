"""Tiny language models for tests, made once for each test session."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from tensordict import TensorDict
from transformers import LlamaConfig, LlamaForCausalLM

from polopt.core.spec import Spec
from polopt.policies import CausalLM
from polopt.policies.causal_lm import CausalLMPolicy
from polopt.policies.small_lm import character_tokenizer, make_language_model

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
PROMPTS = ["12+3=", "a longer prompt: ", "x"]
EOS = 1
TEXT = Spec(spaces.Text(1 << 20), spaces.Text(1 << 20), name="a text task")


@functools.cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="polopt-tests-")


@functools.cache
def tiny_folder(context: int = 64, spread: float = 0.3, seed: int = 0, layers: int = 2) -> Path:
    """A model of so many layers; a large `spread` of its weights makes its distributions far from uniform."""
    size = {**TINY, "initializer_range": spread, "num_hidden_layers": layers}
    folder = Path(_place().name) / f"{context}-{spread}-{seed}-{layers}"
    return make_language_model(folder, size, seed=seed, context=context)


def tiny_policy(folder: Path | None = None, **options: Any) -> CausalLMPolicy:
    return CausalLM(model=str(folder or tiny_folder()), **{"max_tokens": 12, **options}).build(TEXT)


def spell(text):
    return character_tokenizer()(text)["input_ids"]


def batch_of(prompt, prompt_mask, record):
    """The rows that a source makes of one turn."""
    return TensorDict(
        {
            "prompt": prompt,
            "prompt_mask": prompt_mask,
            "completion": record["action"],
            "attention": record["mask"],
            "mask": record["mask"],
        },
        batch_size=[len(prompt)],
    )


def rows_of(record):
    return batch_of(record["prompt"], record["prompt_mask"], record)


def ragged(policy):
    """Supervised rows of unequal lengths, with a hole in a completion and tokens that are not scored."""
    batch = policy.tokenize(PROMPTS, ["15", "yes, indeed", ""])
    batch["mask"][1, 3:5] = False
    batch["attention"][1, 6] = False
    batch["mask"][1, 6] = False
    return batch


def full_logits(policy, batch):
    """[B, T, V] by the model's own forward pass, one packed row at a time: the slow and obvious way."""
    result = torch.zeros(*batch["completion"].shape, policy.vocabulary)
    for b in range(len(batch)):
        real = torch.cat((batch["prompt_mask"][b], batch["attention"][b]))
        tokens = torch.cat((batch["prompt"][b], batch["completion"][b]))[real]
        logits = policy.model(tokens.unsqueeze(0)).logits[0]
        place = real.cumsum(0) - 1
        for t in range(batch["completion"].shape[1]):
            column = batch["prompt"].shape[1] + t
            if batch["mask"][b, t]:
                result[b, t] = logits[place[column] - 1]
    return result


def wide_folder(tmp_path, vocabulary, **changes):
    """A model whose vocabulary is larger than that of its tokenizer."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=64, eos_token_id=EOS, bos_token_id=None, **shape, **changes
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    character_tokenizer(64).save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"
