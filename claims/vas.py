"""VAS: half of a batch drawn by measured variance says more, as long as it is measured again.

Sums of one and two digits, answered at once, by a model of 0.1 million weights that supervised fine-tuning has brought
to seven of ten greedy answers; a pool of 128 prompts, of whose groups of eight at first about half are all right or all
wrong and so teach nothing. Only the one text of the solution is right, so the pass rate of a prompt is the probability
of that text, and what is said of pass rates is computed, not sampled. Every seed is another start with another pool.

`gradients` are the exact gradients of the pass rates of all prompts at the start: `correlation` is that of the ranks of
their norms and of the variances P (1 - P) of the rewards. The other arms train for 100 updates on 16 prompts x 8
completions: `uniform` is GRPO, `vas` draws half of each batch by the variances of eight answers to each prompt, taken
again every four batches as in the release, `all` draws whole batches so, and `frozen` as `vas` by the scores of the
start. `silent` is the share of groups without information in the second half of the updates, `norm` the mean norm of
the gradients, `area` the mean pass rate of the pool over the run: all arms train on as many completions. What scores
cost stands beside it: `completions` in all, and `paid`, the pass rate when all, with scores, were as many as `uniform`
has at its end.

A policy that has learned more has more prompts that it always solves, so `silent` compares different pools by the end.
`relative` does not: it is computed on the pool as it is, the probability that a group of a batch of this arm is silent
over that of a prompt drawn uniformly, the mean over the second half of the run. With half of a batch uniform it cannot
be below 0.5.

Pilots (seeds 1000 and 1001, whose starts are silent for 0.55 and 0.69 of the prompts drawn uniformly and 0.23 and 0.29
of those drawn by exact variance; correlation 0.93 and 0.94). At 3e-4, which is best of three rates for GRPO's accuracy,
nine of ten prompts were solved after 100 updates and there was little left to find: `vas` had silent 0.49 and 0.75
(relative 0.89 on the second seed) and `uniform` 0.60 and 0.83, area 0.783 and 0.813 against 0.771 and 0.804, norm 1.33
and 0.98 against 1.26 and 0.79. The paper's accuracy moves by three points. So all arms have 1e-4: second seed, silent
0.58 (relative 0.75, of `frozen` 0.92) and 0.76, norm 1.07 and 0.80, area 0.773 and 0.763. With fewer scorings at 3e-4,
every 8 batches and every 25, silent was 0.46 and 0.55 on the first seed, and with those of the start 0.59, as if drawn
uniformly. At equal completions in all `vas` was behind everywhere (paid 0.76 against 0.80 at 1e-4): a scoring costs as
much as eight batches, which no expectation is about.

What was found: a prompt's variance says how large its gradient is (rank correlation 0.94), and drawing half of a batch
by it leaves a third fewer silent groups (0.40 against 0.59; all of it: 0.25), larger gradients, and a little more
learned from as many completions of training (area 0.727 against 0.716, in every seed). Scores of the start serve as
well for these 100 updates (relative 0.75 against 0.67, not surely more by half of the pilot's difference), for pass
rates move slowly at this rate. Scores every four batches cost two thirds of all completions: at equal cost 0.70 are
solved with them and 0.79 without, with those of the start 0.78.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater

TASK, POOL, PROMPTS, SAMPLES, CHECK = "addition", 128, 16, 8, 10
OPTIONS: dict[str, Any] = {"levels": (1, 2), "scratchpad": False, "heldout": False}
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 224}
TOKENS = 5
COMMON: dict[str, Any] = {
    "batch_prompts": PROMPTS,
    "samples_per_prompt": SAMPLES,
    "aggregate": "token",
    "reference_kl": None,
    "lr": 1e-4,
    "policy.max_tokens": TOKENS,
    "policy.log_probs": "engine",  # sampler and trainer are one program here, so a second pass would find the same
}


def written(completion: str, solution: str) -> float:
    """The reward: 1 for the solution and nothing else."""
    return float(completion == solution)


def start(seed: int) -> Path:
    """The model with which all runs of a seed begin."""
    from polopt.training.warm_start import warm_start

    settings: dict[str, Any] = {"batch_size": 64, "lr": 2e-3, "policy.max_tokens": TOKENS}
    return warm_start(TASK, accuracy=0.7, size=SHAPE, updates=3_000, seed=seed, task_options=OPTIONS, **settings)


def make(method: str, seed: int, **settings: Any) -> Any:
    """The method at the start of a seed, on its pool."""
    import torch

    from polopt.training import api

    torch.set_num_threads(1)
    own = COMMON | {"model": str(start(seed)), "seed": seed} | settings
    options = OPTIONS | {"pool": POOL, "rewards": written}
    return api.plan(method, TASK, task_options=options, steps=1, loggers=(), **own).build()


def pass_rates(policy: Any, task: Any) -> Any:
    """The exact probability of the solution of every prompt of the pool, [POOL], with its gradient."""
    from polopt.data.demonstrated import demonstrated

    rows = demonstrated(task, policy, list(range(POOL)))
    return (policy.log_prob(rows) * rows["mask"]).sum(1).exp()


def nothing(rates: Any, weights: Any) -> float:
    """The probability that all completions of a prompt drawn by these weights are right, or all wrong."""
    return float(((rates**SAMPLES + (1 - rates) ** SAMPLES) * weights / weights.sum()).sum())


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Training:
    """An arm that trains for so many updates, whatever its scores cost."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        method, updates = make(self.method, seed, **dict(self.settings)), 0

        def rates() -> Any:
            with torch.no_grad():
                return pass_rates(method.policy, method.task)

        silent, norms, relative, paid = [], [], [], 0.0
        measured = [float(rates().mean())]
        while updates < budget["updates"]:
            batch = method.collect()
            found = method.update(batch)
            if not paid and method.ledger.completions >= budget["updates"] * PROMPTS * SAMPLES:
                paid = float(rates().mean())
            if "scoring" in batch.keys():
                continue
            updates += 1
            norms.append(float(found["grad_norm"]))
            solved = batch["correct"].reshape(-1, SAMPLES).sum(1)
            silent.append(float(((solved == 0) | (solved == SAMPLES)).double().mean()))
            if updates % CHECK == 0:
                found = rates()
                measured.append(float(found.mean()))
                if self.method == "vas":
                    share, drawn = method.config.weighted_share, method.weights.weight
                    relative.append(float(1 - share + share * nothing(found, drawn) / nothing(found, drawn * 0 + 1)))
        result = {"silent": mean(silent[updates // 2 :]), "norm": mean(norms), "area": mean(measured)}
        result |= {"gain": measured[-1] - measured[0], "paid": paid, "completions": float(method.ledger.completions)}
        return result | ({"relative": mean(relative[len(relative) // 2 :])} if relative else {})


@dataclass(frozen=True)
class Gradients:
    """Of every prompt of the pool at the start: the variance of its reward, and the size of its exact gradient."""

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.methods.language.vas import outcome_variance

        method = make("grpo", seed)
        rates = pass_rates(method.policy, method.task)
        parameters, norms = list(method.policy.parameters()), []
        for rate in rates:
            parts = torch.autograd.grad(rate, parameters, retain_graph=True)
            norms.append(torch.stack([part.norm() for part in parts]).norm())
        rates = rates.detach()
        variance = outcome_variance(rates)
        ranks = torch.stack([variance.argsort().argsort(), torch.stack(norms).argsort().argsort()]).double()
        found = {"silent": nothing(rates, torch.ones_like(rates)), "silent_weighted": nothing(rates, variance)}
        return found | {"correlation": float(torch.corrcoef(ranks)[0, 1])}


def vas(**settings: Any) -> Training:
    return Training("vas", tuple({"rescore_every": 4, "weight_decay": 0.0, **settings}.items()))


CLAIM = Claim(
    method="vas",
    statement="where rewards vary gradients are large; half of a batch drawn by the variance of rewards, measured "
    "again as the policy moves, has fewer groups that say nothing and larger gradients than uniform draws, and learns "
    "more of as many trained completions; scores that are kept go stale",
    budget={"updates": 100},
    seeds=6,
    minutes=6,
    arms={
        "gradients": Gradients(),
        "uniform": Training("grpo"),
        "vas": vas(),
        "all": vas(weighted_share=1.0),
        "frozen": vas(rescore_every=None),
    },
    expect=(
        Above("silent", "uniform", 0.4, control=True),
        Above("gain", "uniform", 0.03, control=True),
        Above("correlation", "gradients", 0.6),
        Below("relative", "vas", 0.8),
        Below("relative", "all", 0.65),
        Greater("relative", "frozen", "vas", by=0.08),
        Greater("silent", "uniform", "vas", ratio=1.15),
        Greater("norm", "vas", "uniform"),
        Greater("area", "vas", "uniform"),
    ),
)
