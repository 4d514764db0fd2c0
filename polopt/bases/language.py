"""What the methods for language models share: one model, one optimizer, and how completions are sampled and scored.

These are bases, not methods. `LanguageMethod` trains a language policy on a text task. `CompletionMethod` also samples
from it: prompts in groups of completions, scored by the task, used for one or more optimizer steps; it asks of the
policy only that it acts. `GroupMethod` adds what policies allow that have a density of every token.

Batches are [B], one row a completion, tokens trailing: see `polopt.data.prompt_groups`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from polopt.bases.method import Method
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.core.state import held
from polopt.data.prompt_groups import PromptGroups
from polopt.data.samplers import Sequential, Shuffled
from polopt.data.tokens import by_tokens
from polopt.evaluation.completions import evaluate_completions, show_completions
from polopt.losses.engine import engine_gap, truncated_importance
from polopt.losses.estimator import token_weights
from polopt.losses.surrogate import METRICS as SURROGATE
from polopt.optim import frozen_copy
from polopt.policies import AnyLanguagePolicy, CausalLM
from polopt.policies.base import Actor, Density
from polopt.regularizers import ReferenceKL
from polopt.regularizers.anchors import reference_penalty
from polopt.tasks.base import Task


def all_prompts(task: Any) -> Shuffled | Sequential:
    """A sampler of every prompt of a finite pool once per epoch, or of new ones for ever."""
    return Shuffled(task.size) if task.size is not None else Sequential()


def check_prompts(policy: Any, task: Any) -> None:
    """Tokenizes the prompts of a finite pool, which raises UsageError for one that the model has no room for."""
    for start in range(0, task.size or 0, 1024):
        problems = task.problems(range(start, min(start + 1024, task.size)))
        policy.tokenize([problem.prompt for problem in problems])


def pool_size(task: Any, prompts: int, by: str) -> int:
    """How many prompts there are to remember. UsageError without an end of them, or for fewer than the `prompts` of a
    batch."""
    if task.size is None:
        raise UsageError(f"{by} remembers every prompt: it needs finitely many, for example --task.pool 512")
    if prompts > task.size:
        raise UsageError(f"batch_prompts {prompts} is more than the {task.size} prompts of {task.spec.name}")
    return int(task.size)


def need_verifier(task: Any, by: str, instead: str = "") -> None:
    """UsageError for a task that does not say which completions are right."""
    if not task.verifiable:
        raise UsageError(f"{by} counts right completions, and {task.spec.name} does not verify any{instead}")


def right(batch: Batch, least: float | None) -> Tensor:
    """Which completions [B] are right, 1 or 0: as the verifier says, or with `least`, where the reward is as much."""
    rights = batch["correct"] if least is None else batch["reward"] >= least - 1e-6
    return rights.to(batch["reward"].dtype)


class LanguageMethod(Method):
    """Trains a language policy.

    Evaluations give `return` and `accuracy` where the task can score completions, and keep transcripts in `samples`. A
    method that learns from data says in `evaluate_data` how well it fits the data that is held out.
    """

    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(1, "polopt", low=1, high=1, help="a text task has as many rows as it is asked for")
        model: str = param(
            "", "polopt", help="a folder, a hub id, a run of polopt, or the size of a new one: tiny, 0.5m, 1m, 3m, 10m"
        )
        policy: AnyLanguagePolicy = param(CausalLM(), "polopt", help="how it is loaded, adapted and sampled")
        lr: float = param(1e-6, "official code", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "assumed")
        max_grad_norm: float | None = param(1.0, "official code", above=0)
        weight_decay: float = param(0.0, "assumed", low=0)
        micro_tokens: int | None = param(
            None,
            "polopt",
            low=1,
            unit="tokens",
            help="tokens per backward pass, in place of --micro-batch: rows of like lengths together, without padding",
        )

        learns_from_samples: ClassVar[bool] = False
        inert = {"micro_tokens": "the pieces of a batch add up to the whole"}

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.micro_tokens is not None:
                self.refuse("micro_batch", because="beside micro_tokens")
            if not self.learns_from_samples:
                self.refuse("policy.engine", "policy.log_probs", because="where nothing is sampled to train on")

    unit = "updates"
    eval_episodes = 64

    policy: Any
    reference_policy: Any = None  # the policy at the start, of methods that need it
    samples: list[dict[str, Any]]  # transcripts of the last evaluation

    def build(self, task: Task) -> None:
        config = self.config
        model = config.model or config.policy.model
        if not model:
            raise UsageError(f"{self.slug} needs --model: a folder, a hub id, a run of polopt, or a size such as 1m")
        if config.policy.model not in ("", model):
            raise UsageError(f"--model {model} and --policy.model {config.policy.model} are two models: give one")
        self.policy = self.make_policy(replace(config.policy, model=model))
        self.optimizer = self.make_optimizer(
            self.policy,
            lr=config.lr,
            schedule=config.lr_schedule,
            max_grad_norm=config.max_grad_norm,
            weight_decay=config.weight_decay,
            kind="adamw",
            split=config.micro_tokens and partial(by_tokens, budget=config.micro_tokens),
        )

    compile_seconds = 80.0

    def compile_own(self, **options: Any) -> None:
        """Compiles the passes through the models. The losses around them have sizes that depend on the data."""
        for _, module in held(self, nn.Module):
            module.compile(**options)

    def evaluate(self, task: Any, episodes: int = 64, *, greedy: bool = True, **how: Any) -> dict[str, float]:
        """Scores of `polopt.evaluation.completions` on the task's evaluation prompts, and what `evaluate_data` adds.

        `how` are options of `evaluate_completions`: `samples` of each prompt, `intervals`. A task that cannot score
        (`task.scores` False) leaves `evaluate_data` alone, with its own `return`.
        """
        fit: dict[str, float] = {}
        count = episodes if task.size is None else min(episodes, task.size)
        try:
            with paired():
                fit = self.evaluate_data(task, count)
        except UsageError:  # prompts for evaluation need not have the data that training needs
            if not task.scores:
                raise
        if fit and not task.scores:
            self.samples = show_completions(self.policy, task, count, greedy=greedy)
            return fit
        scores, self.samples = evaluate_completions(self.policy, task, episodes, greedy=greedy, **how)
        return fit | scores

    def evaluate_data(self, task: Any, count: int) -> dict[str, float]:
        """How well the policy fits the data of `count` held-out problems, with `return` for when that is all there is;
        empty in methods that do not learn from data."""
        return {}


class CompletionMethod(LanguageMethod):
    """Samples `samples_per_prompt` completions of `batch_prompts` prompts and learns from their rewards.

    A completion is one decision here, so its `weight` is [B]. Subclasses say how completions are scored.
    """

    @dataclass(frozen=True)
    class Config(LanguageMethod.Config):
        batch_prompts: int = param(96, "official code", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "official code", low=1, unit="completions")
        updates_per_batch: int = param(1, "official code", low=1, help="optimizer steps per batch, on parts of it")

        learns_from_samples = True

    unit = "completions"
    default_steps = 100_000
    trains_on = "text tasks with rewards"
    metrics = {
        "reward": "of the completions of the batch, sampled | rises",
        "accuracy": "of the completions of the batch, sampled | rises",
        "completion_length": "mean number of tokens",
        "truncated": "share cut at the limit | near 0, or raise `--policy.max-tokens`",
        "failed": "share of completions whose reward could not be computed | 0",
    }

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        batch = config.batch_prompts * config.samples_per_prompt
        updates = -(-steps // batch) * config.updates_per_batch
        return {"completions per batch": batch, "per optimizer step": -(-batch // config.updates_per_batch)} | {
            "optimizer steps": updates
        }

    def build(self, task: Task) -> None:
        super().build(task)
        config = self.config
        self.behavior_policy = config.policy.behavior(self.sampled_policy())
        self.source = PromptGroups(
            task, config.batch_prompts, config.samples_per_prompt, sampler=self.make_sampler(task), ledger=self.ledger
        )

    def prepare(self) -> None:
        """Refuses a pool with prompts that the model has no room for, before anything is trained."""
        check_prompts(self.policy, self.task)

    @property
    def behavior(self) -> Actor:
        return self.behavior_policy

    def sampled_policy(self) -> Any:
        """The policy whose weights the sampler has: the present one, unless the method lets it lag behind."""
        return self.policy

    def make_sampler(self, task: Any) -> Any:
        """Which prompts come next."""
        return all_prompts(task)

    def optimizer_batches(self, batch: Batch) -> Iterator[Batch]:
        """The batch in `updates_per_batch` parts, in random order, each with its `weight`."""
        parts = self.config.updates_per_batch
        order = torch.randperm(len(batch), generator=self.generator).to(batch["mask"].device)
        for rows in (order if parts > 1 else order.sort().values).chunk(parts):
            yield self.weigh(batch[rows])

    def weigh(self, batch: Batch) -> Batch:
        """A shallow copy with `weight` [B]: the mean over the completions of this optimizer step of which a token was
        sampled, each counting as much as its `row_weight` [B] says, if there is one."""
        batch = batch.clone(False)
        batch["weight"] = token_weights(batch["mask"].any(1), "token", rows=batch.get("row_weight", None))
        return batch

    def batch_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """What was sampled: reward, accuracy, lengths, what was cut or failed."""
        scored = (~batch["failed"]).to(torch.get_default_dtype())
        share = scored / scored.sum().clamp_min(1.0)
        return {
            "reward": (share * batch["reward"]).sum(),
            "accuracy": (share * batch["correct"]).sum(),
            "completion_length": (share * batch["mask"].sum(1)).sum(),
            "truncated": (share * batch["truncated"]).sum(),
            "failed": 1.0 - scored.mean(),
        }


class GroupMethod(CompletionMethod):
    """A `CompletionMethod` whose decisions are tokens: the policy has a density of each, so `weight` is [B, T]."""

    @dataclass(frozen=True)
    class Config(CompletionMethod.Config):
        aggregate: str = param(
            "token",
            "official code",
            choices=("token", "sequence", "constant", "sum"),
            help="what counts the same in the loss: tokens, sequences, or a constant length",
        )
        reference_kl: ReferenceKL | None = param(None, "official code", help="penalty against the model at the start")
        engine_correction: str = param(
            "none", "polopt", choices=("none", "token", "sequence"), help="importance weights, trainer over sampler"
        )
        engine_cap: float = param(2.0, "polopt", above=0, help="largest of these weights")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.engine_correction == "none":
                self.refuse("engine_cap", because="on the engine_correction 'none'")

        inert = {"engine_correction": "the weights are 1 but for rounding where transformers samples"}

    requires = (Density,)
    metrics = SURROGATE | {
        "informative": "share of completions with an advantage other than 0 | near 0: prompts are too easy or too hard",
        "engine_gap": "mean difference between the sampler's log-probabilities and the trainer's, in nats | rounding; "
        "above 0.1 something is wrong",
        "engine_gap_max": "the largest of these differences",
        "engine_ratio": "mean of the ratio trainer / sampler | 1",
        "reference_kl": "estimate of KL(policy || reference) per token",
    }
    probes = {
        "engine_cap": {"engine_correction": "token", "engine_cap": 0.5},
        "surrogate.dual_clip": {"surrogate.dual_clip": 1.0001, "updates_per_batch": 2},
    }

    def build(self, task: Task) -> None:
        super().build(task)
        self.reference_policy = frozen_copy(self.policy) if self.config.reference_kl else None

    def weigh(self, batch: Batch) -> Batch:
        """A shallow copy with `weight` [B, T], aggregated over this optimizer step and corrected for the engine."""
        batch = batch.clone(False)
        batch["weight"] = self.sampled_weights(batch, batch["mask"])
        return batch

    def sampled_weights(self, batch: Batch, mask: Tensor) -> Tensor:
        """The weights [B, T] of sampled tokens, those where `mask` [B, T]: aggregated over them, corrected for the
        engine."""
        config = self.config
        rows = batch.get("row_weight", None)
        return token_weights(mask, config.aggregate, config.policy.max_tokens, rows=rows) * self.engine_weights(batch)

    def engine_weights(self, batch: Batch) -> Tensor | float:
        """The importance weights [B, T] of `--engine-correction`; 1 without it."""
        config = self.config
        if config.engine_correction == "none":
            return 1.0
        return truncated_importance(
            batch["log_prob"], batch["engine_log_prob"], batch["mask"], config.engine_cap, config.engine_correction
        )

    @torch.no_grad()
    def score_reference(self, batch: Batch) -> Batch:
        """A shallow copy with `reference_log_prob` [B, T], if there is a reference."""
        batch = batch.clone(False)
        if self.reference_policy is not None:
            batch["reference_log_prob"] = self.reference_policy.log_prob(batch)
        return batch

    def reference_term(self, log_prob: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The penalty against the reference, 0 without one, and its metrics."""
        kl = self.config.reference_kl
        if kl is None:
            return log_prob.new_zeros(()), {}
        exact = self.policy.kl(batch, self.reference_policy) if kl.estimator == "exact" else None
        penalty, mean = reference_penalty(kl, log_prob, batch["reference_log_prob"], batch["weight"], exact)
        return penalty, {"reference_kl": mean}

    def batch_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """What was sampled, and the sampler's mismatch."""
        return super().batch_metrics(batch) | engine_gap(batch["log_prob"], batch["engine_log_prob"], batch["mask"])
