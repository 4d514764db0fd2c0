"""Conservative Q-learning (CQL) for finitely many actions.

Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", 2020, arXiv 2006.04779.

A Q-function that is fitted to a dataset is wrong about actions that the data do not have, and its maximum finds them.
CQL adds a term that lowers the values of all actions, those with the largest values most, and raises the recorded ones.

With a batch (s, a, r, s') of the dataset, targets y as in DQN (../control/dqn.py), by double Q-learning:

    critic      E[ h(Q(s, a) - y) ] + conservatism E[ log sum_b exp Q(s, b) - Q(s, a) ]

Differs from DQN, its base, in the second term and in the dataset. With `--conservatism 0` it is DQN on recorded data.

Departs from the paper in: its discrete form stands on a distributional critic (QR-DQN) there, and here on DQN's.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polopt.bases.method import Smoke
from polopt.bases.offline import Offline
from polopt.config import param
from polopt.core.batch import Batch, weighted_mean
from polopt.losses.regression import regression
from polopt.methods.control.dqn import DeepQ
from polopt.tasks.base import Task
from polopt.values.finite import gap_to_softmax, taken


class CQL(DeepQ, Offline):
    @dataclass(frozen=True)
    class Config(DeepQ.Config, Offline.Config):
        batch_size: int = param(32, "d3rlpy", low=1)
        lr: float = param(6.25e-5, "d3rlpy", above=0)
        double: bool = param(True, "d3rlpy", help="the network chooses the action that its copy values")
        target_every: int = param(8_000, "d3rlpy", low=1, unit="updates", help="between copies")
        max_grad_norm: float | None = param(None, "d3rlpy", above=0)
        conservatism: float = param(1.0, "d3rlpy", low=0, help="weight of the gap; 0: DQN")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.offline_updates is None:
                self.refuse("epsilon", because="without offline_updates: it never acts to learn")

    slug = "cql"
    headline: ClassVar[tuple[str, ...]] = ("q", "q_gap", "critic_loss")
    trains_on = "recorded data, discrete actions, then the task itself if wanted"
    metrics = {
        "q_gap": "log-sum-exp of all values minus that of the data's action | falls towards 0 where the data prefer an "
        "action; large: values beyond the data",
    }
    default_steps = 100_000
    probes = {"double": {"double": False, "lr": 0.1}}
    no_limit = "with conservatism 0 it is DQN's update on recorded data, which DQN does not read"
    smoke = Smoke(
        "MountainCar-v0",
        24,
        {
            "dataset": "random",
            "random_episodes": 2,
            "batch_size": 32,
            "network.sizes": (16,),
            "target_every": 4,
            "offline_updates": 12,
            "replay_size": 1_000,
        },
    )

    def build(self, task: Task) -> None:
        self.build_learner()

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight, values = batch["weight"], self.policy.values(batch["obs"])
        q = taken(values, batch["action"])
        gap = weighted_mean(gap_to_softmax(values, batch["action"]), weight)
        critic_loss = regression(q, batch["target"], weight, self.config.delta)
        loss = critic_loss + self.config.conservatism * gap
        return loss, {"critic_loss": critic_loss, "q": weighted_mean(q, weight), "q_gap": gap}
