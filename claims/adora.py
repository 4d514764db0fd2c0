"""ADORA (arXiv 2602.10019): groups count in full where long answers pay, so answers grow longer.

A small model (0.1 million weights, characters) is taught to sort two or five digits, half of the time at once ("sort
52:" is answered "25"), half of the time step by step ("2;25"), until it is right about nine times of ten with two
digits and every second time with five; there the long way is right a little more often (0.52 against 0.46), with two
digits, too (0.93 against 0.87). Then 40 updates of 16 new prompts x 8 completions, rewarded when what stands last is
right, with a mean over tokens, no penalty against the start, and one rate for all arms. Every seed is another start.

Arms: `grpo`, all groups in full; `adora`, its rule for language models, the others a tenth; `random`, the same
weights of the same batch, put in a random order among the groups that are right in part; `inverted`, there in full
where ADORA has a tenth and the other way round. So `random` has as many groups in full as the rule gives, and
`inverted` says whether it is the rule that moves the length.

`length` is the mean number of tokens, `long` the share of answers with steps, `long_hard` that with five digits,
`accuracy` the share of right answers, all of what was sampled in the last fifth of the updates; `grown` and `rise`
are length and accuracy less those of the first five. `full` is the share of full groups among those that are right in
part. `push` is the mean over the training of advantage times length (less the mean length of its group): which way
the updates pull. `outside` is the greedy accuracy with three and four digits, which were never taught.

The paper says that answers keep growing where those of GRPO stagnate, at some cost of the training reward. What it
cannot tell here is whether longer is better: the model is too small to be right at other lengths.

Pilots (seeds 1000 and 1001, 40 updates at 3e-4): `length` from 8.6 and 9.5 to 12.4 and 11.6 (adora), 10.6 and 9.6
(random), 7.2 and 6.2 (inverted), 10.4 and 8.9 (grpo); `accuracy` 0.73 and 0.80, 0.76 and 0.79, 0.74 and 0.76, 0.76
and 0.79; `push` 0.28 and 0.07, 0.10 and -0.05, -0.23 and -0.39, 0.13 and -0.19; `full` 0.47 and 0.49 (adora).
Thresholds are about half of the differences.

What was found: every expectation holds. The rule moves the length: answers grow by 2.9 tokens, to 11.7, where with the
same weights in random order they end at 9.1 and with GRPO at 9.0, and turned round they shrink to 5.7; 85, 61, 57 and
18 of 100 are written with steps. It costs a little of the training reward, as in the paper: 0.785 right, 0.798 with
random weights, 0.815 with GRPO. At lengths that were never taught no arm is right (0.05 to 0.08).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater
from polopt.claims.starts import SMALL

LEVELS, OUTSIDE, TOKENS, TAUGHT, PROBLEMS = (2, 5), (3, 4), 28, 300, 256
STYLE = "plain,steps"
PARTS = [{"task": "sorting", "levels": level, "style": STYLE} for level in LEVELS]
OPTIONS: dict[str, Any] = {"parts": PARTS, "heldout": False}
PROMPTS, SAMPLES, UPDATES, RATE, ATTENUATION = 16, 8, 40, 3e-4, 0.1
COMMON: dict[str, Any] = {
    "batch_prompts": PROMPTS,
    "samples_per_prompt": SAMPLES,
    "updates_per_batch": 1,
    "reference_kl": None,
    "lr": RATE,
    "policy.max_tokens": TOKENS,
    "policy.log_probs": "engine",  # sampler and trainer are one program here, so a second pass would find the same
}


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


@dataclass
class Others:
    """The weights of ADORA's rule among the groups that are right in part, in a random order or turned round."""

    how: str
    seed: int
    calls: int = 0

    def __call__(self, reward: Any, length: Any, cut: Any) -> Any:
        import torch

        from polopt.methods.language.adora import long_pays

        weight = torch.where(long_pays(reward, length, cut), 1.0, ATTENUATION)
        some = ((reward > 0.5).any(-1) & (reward <= 0.5).any(-1)).nonzero().flatten()
        if self.how == "inverted":
            weight[some] = 1.0 + ATTENUATION - weight[some]
        else:
            self.calls += 1
            order = torch.randperm(len(some), generator=torch.Generator().manual_seed(10**6 * self.seed + self.calls))
            weight[some] = weight[some][order]
        return weight


def start(seed: int) -> Path:
    """The model with which all runs of a seed begin."""
    from polopt.training.warm_start import warm_start

    settings: dict[str, Any] = {"batch_size": 64, "lr": 2e-3, "policy.max_tokens": TOKENS}
    return warm_start("mixed", accuracy=None, size=SMALL, updates=TAUGHT, seed=seed, task_options=OPTIONS, **settings)


def trained(name: str, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
    """An arm: 60 updates from the start of the seed, measured on what is sampled on the way."""
    import torch

    from polopt.evaluation.completions import evaluate_completions
    from polopt.tasks import make_task
    from polopt.training import api
    from polopt.values.groups import group_mean

    torch.set_num_threads(1)
    own: dict[str, Any] = {"attenuation": 1.0 if name == "grpo" else ATTENUATION}
    if name in ("random", "inverted"):
        own = {"criterion": Others(name, seed)}
    settings = COMMON | own | {"model": str(start(seed)), "seed": seed, "steps": budget["completions"], "loggers": ()}
    learner: Any = api.plan("adora", "mixed", task_options=OPTIONS, **settings).build()
    rows: list[dict[str, float]] = []
    while learner.ledger.completions < budget["completions"]:
        batch = learner.collect()
        length, right, group = batch["mask"].sum(1).float(), batch["correct"].float(), batch["group"]
        rate, long = group_mean(right, group), length > batch["level"] + 1.5
        some, hard = (rate > 0) & (rate < 1), batch["level"] == LEVELS[1]
        advantage = learner.evaluate_groups(batch)["advantage"]
        learner.update(batch)
        learner.ledger.updates += 1
        full = learner.group_weights(batch) == 1
        rows.append(
            {
                "length": float(length.mean()),
                "long": float(long.float().mean()),
                "long_hard": float(long[hard].float().mean()) if hard.any() else float("nan"),
                "accuracy": float(right.mean()),
                "full": float(full[some].float().mean()) if some.any() else float("nan"),
                "push": float((advantage * (length - group_mean(length, group))).mean()),
            }
        )
    found = {}
    for key in rows[0]:
        values = [row[key] for row in rows if row[key] == row[key]]
        found[key] = mean(values if key in ("full", "push") else values[-len(values) // 5 :])
    first = {key: mean(row[key] for row in rows[:5]) for key in ("length", "accuracy")}
    outside = make_task("sorting", levels=OUTSIDE, style=STYLE, heldout=False)
    scores, _ = evaluate_completions(learner.policy, outside, PROBLEMS)
    found |= {"grown": found["length"] - first["length"], "rise": found["accuracy"] - first["accuracy"]}
    return found | {"outside": scores["accuracy"]}


CLAIM = Claim(
    method="adora",
    statement="where long answers pay a little, groups in which they do count in full and others a tenth: answers end "
    "longer than with the same weights at random, and shorter with the weights turned round",
    budget={"completions": UPDATES * PROMPTS * SAMPLES},
    seeds=5,
    minutes=7,
    arms={name: partial(trained, name) for name in ("grpo", "adora", "random", "inverted")},
    expect=(
        Above("rise", "grpo", 0.02, control=True),
        Above("full", "adora", 0.2, control=True),
        Below("full", "adora", 0.8, control=True),
        Below("long", "random", 0.9, control=True),
        Greater("push", "adora", "random", by=0.05, control=True),
        Greater("length", "adora", "random", by=0.9),
        Greater("length", "random", "inverted", by=1.7),
        Greater("length", "adora", "grpo", by=1.0),
    ),
)
