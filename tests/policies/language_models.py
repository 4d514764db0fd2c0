"""Tiny language models for tests, made once for each test session."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from gymnasium import spaces

from polopt.core.spec import Spec
from polopt.policies import CausalLM
from polopt.policies.language import CausalLMPolicy
from polopt.policies.small_lm import make_language_model

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = Spec(spaces.Text(1 << 20), spaces.Text(1 << 20), name="a text task")


@functools.cache
def _place() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="polopt-tests-")


@functools.cache
def tiny_folder(context: int = 64, spread: float = 0.3, seed: int = 0) -> Path:
    """A model of two layers; a large `spread` of its weights makes its distributions far from uniform."""
    size = {**TINY, "initializer_range": spread}
    return make_language_model(Path(_place().name) / f"{context}-{spread}-{seed}", size, seed=seed, context=context)


def tiny_policy(folder: Path | None = None, **options: Any) -> CausalLMPolicy:
    return CausalLM(model=str(folder or tiny_folder()), **{"max_tokens": 12, **options}).build(TEXT)
