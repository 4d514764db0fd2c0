"""A researcher's idea beside its base, over paired seeds.    python examples/variant.py [STEPS [SEEDS]]

The idea is what differs and nothing else: PPO whose advantages are ranks. It needs no entry in the catalogue to be
tried; docs/adding-a-method.md makes an entry of it.
"""

import sys
from contextlib import closing

from polopt.config import apply
from polopt.core.batch import Batch
from polopt.evaluation.returns import evaluate_returns
from polopt.evaluation.statistics import paired_difference
from polopt.methods.control.ppo import PPO
from polopt.tasks import make_task
from polopt.training.seeding import EVAL_TASK, TRAIN_TASK, derive, seed_everything

STEPS = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
SEEDS = int(sys.argv[2]) if len(sys.argv) > 2 else 5
TASK = "CartPole-v1"


class RankedPPO(PPO):
    """An advantage is its place among those of the window, from -1 to 1: how large it is does not matter."""

    slug, entry = "ranked-ppo", False

    def evaluate_window(self, batch: Batch) -> Batch:
        batch = super().evaluate_window(batch)
        advantage = batch["advantage"]
        place = advantage.flatten().argsort().argsort().to(advantage.dtype)
        batch["advantage"] = 2.0 * place.reshape(advantage.shape) / max(advantage.numel() - 1, 1) - 1.0
        return batch


def train(method: type[PPO], seed: int) -> float:
    """The whole loop, by hand; returns the return of the trained policy, from the same starts for every method."""
    seed_everything(seed)
    with closing(make_task(TASK, num=4, seed=derive(seed, TRAIN_TASK))) as task:
        learner = method(apply(method.Config, {"envs": 4, "window": 64}), task)
        while learner.ledger.env_steps < STEPS:
            learner.progress = learner.ledger.env_steps / STEPS
            learner.update(learner.collect())
            learner.ledger.updates += 1
    with closing(make_task(TASK, num=10, seed=derive(seed, EVAL_TASK), evaluation=True)) as task:
        return evaluate_returns(learner.policy, task, 20)["return"]


base, ranked = ([train(method, seed) for seed in range(SEEDS)] for method in (PPO, RankedPPO))
print("ppo   ", base)
print("ranked", ranked)
print("ranked - ppo:", paired_difference(ranked, base))  # mean over seeds with its 95 % Student-t interval
