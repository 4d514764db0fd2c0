"""Language policies as plain data. Importing this needs no torch; `build` does."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from polopt.config import Config, param
from polopt.core.errors import UsageError

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.policies.base import Actor
    from polopt.policies.causal_lm import CausalLMPolicy
    from polopt.policies.text import TextPolicy


@dataclass(frozen=True)
class LoRA(Config):
    """Low-rank adapters: only they are trained, and an exported model has them merged."""

    rank: int = param(16, "polopt", low=1)
    alpha: float = param(32.0, "polopt", above=0, help="the update is scaled by alpha / rank")
    targets: tuple[str, ...] = param(
        ("all-linear",), "polopt", help="names of the adapted layers; all-linear is every one but the output head"
    )


@dataclass(frozen=True)
class TextModel(Config):
    """What every language policy is configured by. Base of the members of `AnyLanguagePolicy`, and none itself."""

    model: str = param(
        "", "polopt", help="a model folder, a run folder with one as model/, a hub id, or the size of a new one"
    )
    lora: LoRA | None = param(None, "polopt", help="train low-rank adapters in place of all weights")
    temperature: float = param(1.0, "polopt", above=0, help="of sampling, and part of the density")
    max_tokens: int = param(256, "polopt", low=1, unit="tokens", help="sampled in one turn at most")
    dtype: str | None = param(
        None, "polopt", choices=("float64", "float32", "bfloat16", "float16", None), help="of the weights"
    )
    trust_remote_code: bool = param(False, "polopt", help="run Python code that comes with the model")
    allow_pickle: bool = param(False, "polopt", help="read weights from pickle files too")

    inert = dict.fromkeys(("trust_remote_code", "allow_pickle"), "a permission")

    def build(self, spec: "Spec") -> "TextPolicy":
        raise NotImplementedError  # abstract

    def behavior(self, policy: Any) -> "Actor":
        """What samples for `policy`: the policy itself, or an engine that follows its weights."""
        return policy


@dataclass(frozen=True)
class CausalLM(TextModel):
    """A causal language model of transformers, for text tasks."""

    top_k: int = param(0, "polopt", low=0, help="sample among so many tokens, 0 for all; part of the density")
    top_p: float = param(1.0, "polopt", above=0, high=1, help="sample among the likeliest tokens of this total mass")
    log_probs: str = param(
        "trainer",
        "polopt",
        choices=("trainer", "engine"),
        help="recorded as log_prob: those of a forward pass over the whole turn, or those of the sampler",
    )
    engine: str = param("transformers", "polopt", choices=("transformers", "vllm"), help="what samples")
    gradient_checkpointing: bool = param(False, "polopt", help="recompute layers in backward: slower, less memory")

    inert = {
        "gradient_checkpointing": "the same gradients with less memory",
        "log_probs": "the two agree but for rounding where transformers samples",
    }

    def build(self, spec: "Spec") -> "CausalLMPolicy":
        need_text(spec)
        from polopt.policies.causal_lm import CausalLMPolicy
        from polopt.policies.small_lm import new_model

        return CausalLMPolicy(spec, replace(self, model=new_model(self.model)))

    def behavior(self, policy: Any) -> "Actor":
        if self.engine == "transformers":
            return policy
        from polopt.policies.vllm import VLLMActor

        return VLLMActor(policy)


def need_text(spec: "Spec") -> None:
    """Raises UsageError, one sentence, unless observations and actions of `spec` are texts."""
    from gymnasium import spaces

    if not (isinstance(spec.obs, spaces.Text) and isinstance(spec.action, spaces.Text)):
        kinds = [type(space).__name__ for space in (spec.obs, spec.action)]
        raise UsageError(
            f"a language model needs a text task; {spec.name} has observations {kinds[0]} and actions {kinds[1]}"
        )


AnyLanguagePolicy = CausalLM
"""Every language policy: the type of the `policy` field of methods for language models, to be joined by `|`. What a
method cannot use is refused when it is built."""
