"""Conservative Q-learning (CQL) for finitely many actions.

Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning", 2020, arXiv 2006.04779.

A Q-function that is fitted to a dataset is wrong about actions that the data do not have, and its maximum finds them.
CQL adds a term that lowers the values of all actions, those with the largest values most, and raises the recorded ones.

With a batch (s, a, r, s') of the dataset, targets y as in DQN (../control/dqn.py), by double Q-learning:

    critic      E[ h(Q(s, a) - y) ] + conservatism E[ log sum_b exp Q(s, b) - Q(s, a) ]

Differs from DQN, its base, in the second term and in the dataset. With `--conservatism 0` it is DQN on recorded data.

Departs from the paper in: its discrete form stands on a distributional critic (QR-DQN) there, and here on DQN's, with
d3rlpy's settings. The authors' error is summed over 200 quantiles, so that beside it a conservatism of 1 (theirs with 1
and 10 % of the data: 4 and 1) weighs 40 to 100 times less than here. Their targets are maxima of the copy
(`--double false`), renewed after 2,000 updates; their rate is 5e-5, with 3.125e-4 as Adam's epsilon.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch, weighted_mean
from polopt.losses.regression import regression
from polopt.methods.offline.finite_q import OfflineQ
from polopt.values.finite import gap_to_softmax, taken


class CQL(OfflineQ):
    @dataclass(frozen=True)
    class Config(OfflineQ.Config):
        conservatism: float = param(1.0, "d3rlpy", low=0, help="weight of the gap; 0: DQN")

    slug = "cql"
    headline: ClassVar[tuple[str, ...]] = ("q", "q_gap", "critic_loss")
    metrics = {
        "q_gap": "log-sum-exp of all values minus that of the data's action | falls towards 0 where the data prefer an "
        "action; large: values beyond the data",
    }
    no_limit = "with conservatism 0 it is DQN's update on recorded data, which DQN does not read"

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight, values = batch["weight"], self.policy.values(batch["obs"])
        q = taken(values, batch["action"])
        gap = weighted_mean(gap_to_softmax(values, batch["action"]), weight)
        critic_loss = regression(q, batch["target"], weight, self.config.delta)
        loss = critic_loss + self.config.conservatism * gap
        return loss, {"critic_loss": critic_loss, "q": weighted_mean(q, weight), "q_gap": gap}
