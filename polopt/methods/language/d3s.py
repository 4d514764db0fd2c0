"""D3S: of many completions those are learned from whose advantages differ most, at the tokens that were unsure.

Wang, Yang, Tian et al., "Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy
Optimization", 2025, arXiv 2509.22115 (ICLR 2026).

    A_i    = (r_i - mean) / (std + eps)          over all G completions of a prompt, and never standardized again
    S      = argmax_{S of the batch, |S| = N} Var(A_S)          N = prompts times n(p) G, across the groups
    T      = the share k(p) of the tokens of S with the largest |A_i| H_it, H_it the entropy of pi_old before token t
    loss     - (1 / |T|) sum_{(i, t) in T} min(rho_it A_i, clip(rho_it) A_i)           `--surrogate gspo`: rho_i
    n, k   = (1 - p) (first_samples, first_tokens) + p (last_samples, last_tokens)     p the progress of the run

S is the j largest and the N - j smallest advantages for some j, so all j are tried with prefix sums. It leaves out what
teaches nothing, completions of groups of equal rewards, as long as N others are there, and takes rare successes and
failures first, whose standardized advantages are the largest. The shares are small at first, for what says most, and
grow against overfitting to it. Where advantages or keys are equal, luck decides.

Differs from its base, GRPO, in S, T and the mean over T in place of that over sequences; forward passes for entropies
and backward passes are made of S only. `--selection group` takes as many of every group, the same ones as by the
variance of rewards (PODS); `--selection random` and `--token-choice random` are controls with the same counts; equal
first and last values leave out the schedule, shares of 1 the choice of tokens.

Departs from the paper in: its numbers of samples and shares could not be had, so those here are assumed, as are the
aggregation and whose entropies count. With GSPO's ratio, tokens outside of T do not move. Log-probabilities of pi_old
are recorded for all completions while sampling, or by the sampler with `--policy.log-probs engine`. n(p) G is
rounded, to 2 at least, and |T| up.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch, align_left
from polopt.losses.estimator import reweighed
from polopt.methods.language.rec import GRPO
from polopt.policies.causal_lm import entropy_of, scored_pieces
from polopt.regularizers import ReferenceKL

WHOLE = {"first_tokens": 1.0, "last_tokens": 1.0}  # all tokens of a completion, throughout


def most_varied(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The `count` elements of `x` [B] with the largest variance (bool [B]); of equal ones, any."""
    if count >= len(x):
        return torch.ones_like(x, dtype=torch.bool)
    luck = torch.randperm(len(x), generator=generator).to(x.device)
    order = luck[x[luck].argsort(stable=True)]
    value = (x[order] - x.mean()).double()
    first, second = (torch.cat((value.new_zeros(1), power.cumsum(0))) for power in (value, value.square()))
    large = torch.arange(count + 1, device=x.device)  # how many of the largest, for every way to choose
    total, squares = (sums[count - large] + sums[-1] - sums[len(x) - large] for sums in (first, second))
    variance = squares / count - (total / count).square()
    best = variance >= variance.max() - 1e-9 * value.square().max()
    draw = torch.rand(count + 1, generator=generator).to(x.device)
    largest = torch.where(best, draw, -1.0).argmax()
    place = torch.arange(len(x), device=x.device)
    chosen = torch.zeros_like(x, dtype=torch.bool)
    chosen[order] = (place < count - largest) | (place >= len(x) - largest)
    return chosen


def largest(key: Tensor, among: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The `count` elements of `key` with the largest values (bool, shaped like it) of those `among` them (bool); of
    equal ones, any. All of them where there are no more."""
    index = among.flatten().nonzero().squeeze(1)
    if count >= len(index):
        return among
    luck = index[torch.randperm(len(index), generator=generator).to(index.device)]
    order = luck[key.flatten()[luck].argsort(descending=True, stable=True)]
    chosen = torch.zeros_like(among.flatten())
    chosen[order[:count]] = True
    return chosen.reshape(among.shape)


class D3S(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        samples_per_prompt: int = param(16, "assumed", low=2, unit="completions")
        aggregate: str = param(
            "token",
            "assumed",
            choices=("token", "sequence", "constant", "sum"),
            help="what counts the same in the loss, of what is learned from: tokens, sequences, or a constant length",
        )
        reference_kl: ReferenceKL | None = param(None, "assumed", help="penalty against the start")
        first_samples: float = param(
            0.25, "assumed", above=0, high=1, help="share of the completions that are learned from, at first"
        )
        last_samples: float = param(0.75, "assumed", above=0, high=1, help="the same at the end")
        first_tokens: float = param(0.1, "assumed", above=0, high=1, help="share of their tokens, at first")
        last_tokens: float = param(0.5, "assumed", above=0, high=1, help="the same at the end")
        selection: str = param(
            "batch", "section 3", choices=("batch", "group", "random"), help="variance over the batch or in each group"
        )
        token_choice: str = param("advantage-entropy", "section 3", choices=("advantage-entropy", "random"))

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.first_tokens == self.last_tokens == 1:
                self.refuse("token_choice", because="where all tokens are learned from")

    slug = "d3s"
    headline = ("reward", "accuracy", "useful", "trained_tokens", "advantage_variance")
    metrics = {
        "useful": "share of the completions learned from that have an advantage other than 0 | near 1; "
        "`informative` is that of all",
        "trained_tokens": "share of the sampled tokens that are learned from | what it saves",
        "advantage_variance": "of the completions learned from | above that of all, which is at most 1",
    }
    presets = {
        "paper": {"model": "Qwen/Qwen2.5-Math-7B", "lr": 1e-6},
        "gspo": {"surrogate": "gspo"},
        "d1s": {
            "selection": "group",
            "first_samples": 0.5,
            "last_samples": 0.5,
            "first_tokens": 1.0,
            "last_tokens": 1.0,
        },
        "d1s-cross": {"first_samples": 0.5, "last_samples": 0.5, "first_tokens": 1.0, "last_tokens": 1.0},
        "d2s": {"first_samples": 0.5, "last_samples": 0.5, "first_tokens": 0.3, "last_tokens": 0.3},
        "d3s-intra": {"selection": "group"},
        "small": {"batch_prompts": 8, "lr": 1e-3, "policy.max_tokens": 32},
    }
    limits = tuple(
        Limit(
            base="grpo",
            at=WHOLE | {"first_samples": 1.0, "last_samples": 1.0, "surrogate": surrogate},
            apart={"last_tokens": 0.5, "first_tokens": 0.5},
            base_at={"aggregate": "token", "reference_kl": None, "surrogate": surrogate},
            because="where everything sampled is learned from it is its base with a mean over tokens",
        )
        for surrogate in ("grpo", "gspo")
    )
    smoke = Smoke(
        "vowels",
        96,
        GRPO.smoke.config | {"first_samples": 0.5, "last_samples": 0.75, "first_tokens": 0.3, "last_tokens": 0.6},
        GRPO.smoke.task_options,
    )

    def relaxed(self, first: float, last: float) -> float:
        """On the straight line from `first` at the beginning of the run to `last` at its end."""
        return (1 - self.progress) * first + self.progress * last

    def choose_samples(self, batch: Batch) -> Tensor:
        """The completions that are learned from, bool [B]."""
        config, advantage = self.config, batch["advantage"]
        each = max(2, round(self.relaxed(config.first_samples, config.last_samples) * config.samples_per_prompt))
        count = each * (len(batch) // config.samples_per_prompt)
        if config.selection == "batch":
            return most_varied(advantage, count, self.generator)
        if config.selection == "random":
            every = torch.ones_like(batch["failed"])
            return largest(torch.zeros_like(advantage), every, count, self.generator)
        groups = advantage.split(config.samples_per_prompt)
        return torch.cat([most_varied(group, each, self.generator) for group in groups])

    @torch.no_grad()
    def choose_tokens(self, rows: Batch) -> Tensor:
        """The tokens of these completions that are learned from, bool [B, T]."""
        config, mask = self.config, rows["mask"]
        share = self.relaxed(config.first_tokens, config.last_tokens)
        if share >= 1:
            return mask
        key = torch.zeros(mask.shape, device=mask.device)
        if config.token_choice == "advantage-entropy":
            old: Any = self.policy if self.behavior_lag is None else self.behavior_lag.stale
            parts = scored_pieces(rows, config.micro_batch, config.micro_tokens)
            entropy = torch.cat([old.of_logits(part, lambda logits, token: entropy_of(logits)) for part in parts])
            key = align_left(rows["advantage"].abs(), mask) * entropy
        return largest(key, mask, max(1, math.ceil(share * int(mask.sum()) - 1e-9)), self.generator)

    @torch.no_grad()
    def evaluate_groups(self, batch: Batch) -> Batch:
        """Adds `selected` [B] and `learned` [B, T], of advantages from all completions."""
        batch = super().evaluate_groups(batch)
        selected, learned = self.choose_samples(batch), torch.zeros_like(batch["mask"])
        learned[selected] = self.choose_tokens(batch[selected])
        batch["selected"], batch["learned"] = selected, learned
        return batch

    def optimizer_batches(self, batch: Batch) -> Iterator[Batch]:
        return super().optimizer_batches(batch[batch["selected"]])

    def weigh(self, batch: Batch) -> Batch:
        """The base's weights [B, T], of the tokens that are learned from only."""
        batch = super().weigh(batch)
        rows = batch.get("row_weight", None)
        batch["weight"] = reweighed(batch["weight"], batch["mask"], batch["learned"], self.config.aggregate, rows)
        return batch

    def batch_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Those of GRPO, of all that was sampled, and what of it was learned from."""
        advantage = batch["advantage"][batch["selected"]]
        return super().batch_metrics(batch) | {
            "useful": (advantage != 0).to(advantage.dtype).mean(),
            "trained_tokens": batch["learned"].sum() / batch["mask"].sum().clamp_min(1),
            "advantage_variance": advantage.var(correction=0),
        }
