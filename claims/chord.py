"""CHORD: experts in another style disturb what the policy can do less where each of their tokens counts by phi.

A small model (0.1 million weights, characters) is taught to sort four digits, "sort 4131:", at once, "1134", until a
sampled answer is right with probability 0.4. Then 256 prompts are all that there is, reinforced by GRPO, 12 prompts x 8
completions a batch, and beside them 24 demonstrations of 64 experts' solutions, right but in another style, which puts
the digits in their place one by one: "4;14;134;1134". 60 batches, one optimizer step each.

Arms: `grpo` without experts; `phi` (CHORD-phi, mu = 0.1) and `matched`, in which every expert token counts the mean of
phi over the batch, so that experts pull as much in all and only the shape is gone (plain mu = 0.1 would pull ten times
as much and lose for that reason alone); `mu` (CHORD-mu without phi, 0.9 to 0.05 in the first half); and phi and matched
again at mu = 0.8, `phi-strong` and `matched-strong`: at mu = 0.1 experts pull with 0.006 (mu times the mean of phi) of
the gradient of imitation, which hardly shows beside what reinforcement alone does to so small a model in 60 batches.

Of greedy answers to 256 other problems, every third batch: `dip` is the accuracy at the start less the lowest in the
first 30 batches, `accuracy` the mean of the last four, `style` their share in the experts' style. All arms have one
rate, 5e-4: no rate is chosen for one of them.

CHORD-mu is not expected to end ahead of GRPO, as it does in the paper: 60 batches are too few to learn the experts'
style, let alone to use it.

Pilots (seeds 1000 and 1001). Seed 1001, dip, accuracy, style: phi-strong 0.04, 0.71, 0; matched-strong 0.56, 0.16,
0.98; phi 0.03, 0.73, 0; matched 0.00, 0.73, 0; grpo 0.04, 0.77, 0; mu 0.62, 0.19, 0.97. Seed 1000, 30 batches at 5e-4
and mu = 0.9: dip of phi 0.26, of matched 0.62; at mu = 0.5 and 3e-4 0.09 and 0.11, at 0.1 0.07 and 0.12 (at 1e-3,
where GRPO itself dips by 0.24: 0.26 and 0.22). So at mu = 0.1 the paper's difference is not seen.

What was found: what phi is for, at the larger mu. At 0.8 the same pull in all turned the policy to the experts' style
without its shape (0.98 of the answers; accuracy from 0.74 down to 0.18), and with phi none of it: a dip of 0.11 against
0.64, in every seed. It has its price: at that mu CHORD-phi ended behind GRPO in every seed (0.675 against 0.725). At
the paper's 0.1 the shape does not show: the dip of matched is 0.12 against 0.09, never smaller but mostly of one seed,
and GRPO alone dips by 0.09. There CHORD-phi ended where GRPO did (0.721; the differences, from -0.045 to 0.041, are too
wide for the margin of 0.03): with phi the experts were let be, neither harm nor help. CHORD-mu had not yet learned the
experts' style after 60 batches (0.20).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims import Above, Claim, Greater, shared

TASK, POOL, EXPERTS, PROBLEMS, TOKENS = "sorting", 256, 64, 256, 16
OPTIONS: dict[str, Any] = {"levels": 4}
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 224}
CHECK, BEGIN, LONGEST = 3, 0.4, 1_000
COMMON: dict[str, Any] = {
    "batch_prompts": 12,
    "samples_per_prompt": 8,
    "experts": 24,
    "expert_pool": EXPERTS,
    "lr": 5e-4,
    "policy.max_tokens": TOKENS,
    "policy.log_probs": "engine",  # sampler and trainer are one program here, so a second pass would find the same
}


def make(method: str, seed: int, model: Path, style: str, **settings: Any) -> Any:
    import torch

    from polopt.training import api

    torch.set_num_threads(1)
    own = {"model": str(model), "seed": seed, "steps": 1, "loggers": ()} | settings
    return api.plan(
        method, TASK, task_options=OPTIONS | {"style": style, "pool": None if method == "sft" else POOL}, **own
    ).build()


def others() -> Any:
    """Problems that no training draws."""
    from polopt.tasks import make_task

    return make_task(TASK, seed=1, evaluation=True, style="plain", **OPTIONS)


def start(seed: int) -> Path:
    """The model with which all runs of a seed begin: it answers at once."""

    def teach(folder: Path) -> None:
        import torch

        from polopt.claims.starts import solution_probability
        from polopt.policies.small_lm import make_language_model

        torch.manual_seed(seed)
        new = make_language_model(folder / "new", SHAPE)
        method = make("sft", seed, new, "plain", batch_size=64, lr=2e-3, **{"policy.max_tokens": 6})
        task = others()
        for update in range(1, LONGEST + 1):
            method.update(method.collect())
            if update % 5 == 0 and solution_probability(method.policy, task, range(PROBLEMS)) >= BEGIN:
                break
        method.policy.export(folder / "model")

    return shared(f"chord start {seed}", teach) / "model"


def answers(method: Any) -> tuple[float, float]:
    """The shares of greedy answers to other problems that are right, and in the experts' style; moves no luck."""
    import torch

    from polopt.data import PromptGroups

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = PromptGroups(others(), PROBLEMS, 1, starts=range(PROBLEMS), greedy=True).next(method.policy)
    texts = method.policy.decode(batch["completion"], batch["mask"])
    return float(batch["correct"].double().mean()), sum(";" in text for text in texts) / len(texts)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Trained:
    """An arm with these settings of CHORD; `flat` gives every expert token of a batch the mean of phi."""

    settings: tuple[tuple[str, Any], ...] = ()
    flat: bool = False

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        method = make("chord", seed, start(seed), "steps", **COMMON | dict(self.settings))
        if self.flat:
            phi = method.importance
            method.importance = lambda log_prob, weight: (
                torch.ones_like(log_prob) * (weight * phi(log_prob, weight)).sum()
            )
        found, pull = [answers(method)], []
        for update in range(1, budget["updates"] + 1):
            pull.append(float(method.update(method.collect())["expert_emphasis"]))
            if update % CHECK == 0:
                found.append(answers(method))
        accuracy, style = (list(each) for each in zip(*found))
        half = 1 + budget["updates"] // 2 // CHECK
        result = {"start": accuracy[0], "dip": accuracy[0] - min(accuracy[1:half]), "accuracy": mean(accuracy[-4:])}
        return result | {"lost": accuracy[0] - mean(accuracy[1:half]), "style": mean(style[-4:]), "phi": mean(pull)}


def arm(flat: bool = False, **settings: Any) -> Trained:
    return Trained(tuple(settings.items()), flat)


CLAIM = Claim(
    method="chord",
    statement="where experts write in another style, the shape of phi keeps them from disturbing what the policy can "
    "do, and costs reinforcement nothing",
    budget={"updates": 60},
    seeds=5,
    minutes=6,
    arms={
        "grpo": arm(mu_valley=0.0),
        "phi": arm(),
        "matched": arm(flat=True),
        "phi-strong": arm(mu_valley=0.8),
        "matched-strong": arm(flat=True, mu_valley=0.8),
        "mu": arm(emphasis="none", mu_peak=0.9, mu_valley=0.05, mu_decay=30),
    },
    expect=(
        Above("dip", "mu", 0.2, control=True),
        Above("style", "mu", 0.3, control=True),
        Greater("dip", "matched", "phi"),
        Greater("dip", "matched-strong", "phi-strong", by=0.1),
        Greater("style", "matched-strong", "phi-strong", by=0.3),
        Greater("accuracy", "phi", "grpo", by=-0.03),
    ),
)
