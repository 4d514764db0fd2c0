"""Lite PPO (arXiv 2508.08221): the mean of the group over the deviation of the batch, and a mean over tokens.

A small model (0.1 million weights, characters) is taught to sort digits, two or six of them in equal shares, until it
sorts about 95 of 100 pairs and 45 of 100 sixes; a completion has one token a digit and its end, so hard ones are
long. The reward is 1 for the sorted digits and nothing else, so both the accuracy of a policy and the gradient of
that accuracy are computed, not sampled. Then 40 updates of 16 prompts x 8 completions. Every seed is another start.

Arms: GRPO without its penalty (deviation of the group, mean over sequences), each of the two tricks alone
(`batch-deviation`, `token-mean`), both (`lite-ppo`), and both with the mean of the batch in place of the group's
(`batch-mean`, REINFORCE++). All train at the same three rates, and the numbers are means over them, which choose
nothing: `accuracy` on 256 new problems, the mean of the last two of nine measurements, `short` and `long` that of
each kind, `gain` what is above the start.

`cosine` is the mean cosine between the gradient of one batch and the exact gradient of the accuracy, over 60 batches
of the model at the start, the same ones for all arms. `extreme` is, over the batches of the training, the logarithm
of the share of the squared advantage in groups with one or seven of eight right under the deviation of the batch over
that under the deviation of the group (a broken deviation gives 0); `longer` how much more of the loss the longer half
of the completions has by tokens than by sequences. `violations` counts batches in which either goes the other way:
none can.

The first part has to hold: with Lite PPO's deviation and mean a batch has, up to its scale, the gradient of the
expected reward without a bias, and GRPO's has not. Whether a policy learns more by that is the paper's claim, which
is stated as the paper states it, though the pilots do not show it.

Pilots (seed 1000; GRPO, batch-deviation, token-mean, lite-ppo, batch-mean). `cosine`: 0.451, 0.456, 0.486, 0.481,
0.466; with digits of three and eight (0.80 and 0.32 right) 0.549, 0.552, 0.557, 0.563, 0.534; with two and eight,
three of four prompts easy (0.98 and 0.19 right), 0.379, 0.385, 0.415, 0.415, 0.307. `accuracy` from 0.716, mean over
1e-4, 2e-4 and 4e-4: 0.779, 0.780, 0.780, 0.776, 0.772; the lowest rate was best, so the grid now begins below it.
GRPO and Lite PPO elsewhere: 0.712 and 0.713 after 60 updates (three and eight, 1.5e-4; 0.665 and 0.668 at 4e-4),
0.848 and 0.838 (two and eight, 2e-4). `extreme` -0.39 to -0.44, `longer` 0.16.

What was found: the direction, and nothing of what should follow from it. In every one of five seeds a batch of Lite
PPO points nearer to the gradient of the accuracy than GRPO's (cosine 0.357 against 0.334 in the mean, by 0.010 to
0.036, surely above 0 and not surely above the 0.015 that were expected of a pilot seed with 0.031); nearly all of it
is the mean over tokens (0.359 alone), the deviation of the batch alone adds 0.004, less than the seeds differ. What
is learned is the same to a fraction of a percent, at every rate: accuracy 0.776 with each, from 0.717, Lite PPO a
little ahead with six digits (0.581 and 0.579) and behind with two. The mean of the batch in place of the group's
costs 0.003, in three seeds of five, so not surely. Batches of 128 completions are mostly noise here (a cosine of a
third), and 40 updates of Adam, which takes no notice of a scale, see little of a bias in their weights. Nothing is
said of larger batches, of longer training, or of rates at which something breaks, where the paper's runs of GRPO fall
behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, mean_of
from polopt.claims.starts import SMALL

LEVELS, TOKENS, TAUGHT, PROBLEMS = (2, 6), 8, 100, 256
PARTS = [{"task": "sorting", "levels": n, "share": share, "scratchpad": False} for n, share in zip(LEVELS, (1, 1))]
OPTIONS: dict[str, Any] = {"parts": PARTS, "heldout": False}
RATES = (6e-5, 1.2e-4, 2.4e-4)
PROMPTS, SAMPLES, UPDATES, CHECK, DIRECTIONS = 16, 8, 40, 5, 60
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("grpo", {}),
    "batch-deviation": ("lite-ppo", {"aggregate": "sequence"}),
    "token-mean": ("lite-ppo", {"baseline": "grpo"}),
    "lite-ppo": ("lite-ppo", {}),
    "batch-mean": ("lite-ppo", {"baseline": "reinforce-plus-plus"}),
}
COMMON: dict[str, Any] = {
    "batch_prompts": PROMPTS,
    "samples_per_prompt": SAMPLES,
    "reference_kl": None,
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
    return warm_start("mixed", accuracy=None, size=SMALL, updates=TAUGHT, seed=seed, task_options=OPTIONS, **settings)


def exact(policy: Any, task: Any) -> list[float]:
    """The mean probability of the solutions of `PROBLEMS` new problems: of all, of the short and of the long ones."""
    import torch

    from polopt.data.demonstrated import demonstrated

    ids = list(range(1_000_000, 1_000_000 + PROBLEMS))
    long = torch.tensor([problem.level == LEVELS[1] for problem in task.problems(ids)])
    with torch.no_grad():
        rows = demonstrated(task, policy, ids)
        right = (policy.log_prob(rows) * rows["mask"]).double().sum(1).exp()
    return [float(right.mean()), float(right[~long].mean()), float(right[long].mean())]


def counted(batch: Any) -> list[float]:
    """Of one batch: the share of the squared advantage in groups with one or all but one right under the deviation of
    the group and of the batch, the share of the loss in the longer half of the rows by sequences and by tokens."""
    from polopt.losses.estimator import token_weights
    from polopt.values import GroupBaseline
    from polopt.values.groups import group_sum

    right = group_sum(batch["reward"], batch["group"])
    extreme = (right == 1) | (right == SAMPLES - 1)
    found = []
    for name in ("grpo", "lite-ppo"):
        square = GroupBaseline.named[name].advantage(batch["reward"], batch["group"]).square().double()
        found.append(float(square[extreme].sum() / square.sum().clamp_min(1e-12)))
    longer = batch["mask"].sum(1).argsort()[len(batch) // 2 :]
    return found + [float(token_weights(batch["mask"], kind).double()[longer].sum()) for kind in ("sequence", "token")]


def mean(values: Any) -> float:
    values = list(values)
    return sum(values) / len(values)


def learner_of(name: str, seed: int, **settings: Any) -> Any:
    """The method of an arm, at the start of this seed."""
    from polopt.training import api

    method, own = ARMS[name]
    common = COMMON | {"model": str(start(seed)), "seed": seed, "loggers": ()}
    return api.plan(method, "mixed", task_options=OPTIONS | {"rewards": written}, **common, **own, **settings).build()


def directions(seed: int) -> dict[str, float]:
    """Of every arm: the mean cosine between the gradient of one batch and the exact gradient of the accuracy, on the
    same batches of the model at the start."""
    import torch

    from polopt.data.demonstrated import demonstrated

    def flat(loss: Any, learner: Any) -> Any:
        return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(learner.policy.parameters()))])

    learners = {name: learner_of(name, seed, steps=PROMPTS * SAMPLES) for name in ARMS}
    first = learners["lite-ppo"]
    rows = demonstrated(first.task, first.policy, list(range(1_000_000, 1_000_000 + 4 * PROBLEMS)))
    true = flat((first.policy.log_prob(rows) * rows["mask"]).sum(1).exp().mean(), first)
    cosines: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(DIRECTIONS):
        batch = first.collect()
        for name, learner in learners.items():
            (part,) = learner.optimizer_batches(learner.evaluate_groups(batch))
            found = -flat(learner.policy_loss(part)[0], learner)
            cosines[name].append(float(torch.nn.functional.cosine_similarity(found, true, dim=0)))
    return {name: mean(values) for name, values in cosines.items()}


def known_directions(seed: int) -> dict[str, float]:
    """`directions`, which all arms of a seed share."""
    import json

    from polopt.claims import shared

    folder = shared(
        f"directions of lite-ppo {seed}",
        lambda place: (place / "cosines.json").write_text(json.dumps(directions(seed))),
    )
    return dict(json.loads((folder / "cosines.json").read_text()))


@dataclass(frozen=True)
class Trained:
    """An arm that trains at one rate and measures new problems exactly on the way."""

    name: str
    lr: float

    @property
    def trains(self) -> tuple[str, ...]:
        return (ARMS[self.name][0],)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import math

        import torch

        torch.set_num_threads(1)
        learner = learner_of(self.name, seed, steps=budget["completions"], lr=self.lr)
        right, shares = [exact(learner.policy, learner.task)], []
        while learner.ledger.completions < budget["completions"]:
            batch = learner.collect()
            shares.append(counted(batch))
            learner.update(batch)
            learner.ledger.updates += 1
            if learner.ledger.updates % CHECK == 0:
                right.append(exact(learner.policy, learner.task))
        accuracy, short, long = (mean(column) for column in zip(*right[-(len(right) // 4 or 1) :]))
        group, batchwise, sequence, token = zip(*shares)
        mixed = [(a, b) for a, b in zip(group, batchwise) if 0 < a < 1]
        return {
            "accuracy": accuracy,
            "short": short,
            "long": long,
            "area": mean(row[0] for row in right),
            "start": right[0][0],
            "gain": accuracy - right[0][0],
            "cosine": known_directions(seed)[self.name],
            "extreme": math.log(mean(b for _, b in mixed) / mean(a for a, _ in mixed)),
            "longer": mean(token) - mean(sequence),
            "violations": float(sum(b >= a for a, b in mixed) + sum(b < a - 1e-9 for a, b in zip(sequence, token))),
        }


CLAIM = Claim(
    method="lite-ppo",
    statement="on a pool of easy and hard prompts, rewards less the mean of their group over the deviation of the "
    "batch, with a mean over tokens, point nearer to the gradient of the accuracy than GRPO's and learn more; with the "
    "mean of the batch they learn less",
    budget={"completions": UPDATES * PROMPTS * SAMPLES},
    seeds=5,
    minutes=7,
    arms={name: mean_of(partial(Trained, name), RATES) for name in ARMS},
    expect=(
        Above("gain", "grpo", 0.03, control=True),
        Below("violations", "*", 0.5, control=True),
        Below("extreme", "*", -0.2, control=True),
        Greater("cosine", "lite-ppo", "grpo", by=0.015),
        Greater("cosine", "token-mean", "grpo", by=0.015),
        Greater("cosine", "batch-deviation", "grpo"),
        Greater("accuracy", "lite-ppo", "grpo"),
        Greater("accuracy", "lite-ppo", "batch-mean"),
    ),
)
