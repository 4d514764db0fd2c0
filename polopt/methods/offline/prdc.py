"""PRDC: offline reinforcement learning that stays near the dataset, and not near each state's own actions.

Ran, Li, Zhang, Zhang, Yu, "Policy Regularization with Dataset Constraint for Offline Reinforcement Learning", 2023,
arXiv 2306.06569.

TD3+BC draws the policy to the action that was taken in the same state, however bad. Here it is drawn to the action of
the nearest pair of the whole dataset, where the distance of states counts `beta` times: a small beta lets it take over
what was done in a state nearby, a large one leaves it the actions of its own state.

With a batch (s, ...) of the dataset D, critics and targets as in TD3 (../control/td3.py), lambda as in TD3+BC:

    nearest     (s*, a*) = argmin_{(s^, a^) in D} | [beta s, pi(s)] - [beta s^, a^] |, with the present pi
    policy      -lambda E[ Q_1(s, pi(s)) ] + E[ imitation_loss(s, a*) ], a* a constant, in every `delay`-th update

Distances are those of standardized observations, and of actions in [-1, 1]. The search is exact: every pair is looked
at (`polopt.data.nearest`).

Differs from TD3+BC, its base, in a*; with beta none it is TD3+BC.

Departs from the paper in: the search, where the released code has a tree; observations of several parts, and pictures,
are side by side as one vector; any policy that can imitate and whose samples pass gradients.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Limit, Study
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.modules import device_of
from polopt.data.base import put
from polopt.data.nearest import Nearest
from polopt.methods.offline.td3_bc import TD3BC
from polopt.networks.encoders import Obs, make_encoder
from polopt.tasks.base import Task


class PRDC(TD3BC):
    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        beta: float | None = param(
            2.0,
            "official code",
            low=0,
            help="weight of observations beside actions in distances; none: each decision's own action, as in td3-bc",
        )

    slug = "prdc"
    metrics = {
        "imitation_loss": "squared distance from the action of the nearest pair of the dataset, over coordinates, in "
        "every `delay`-th update | falls, then settles",
    }
    presets = {
        "halfcheetah": {"alpha": 40.0},
        "hopper": {"alpha": 2.5},
        "walker2d": {"alpha": 2.5},
        "antmaze": {"alpha": 7.5, "beta": 7.5, "rewards": "sparse"},
    }
    studies = TD3BC.studies | {"antmaze": Study("D4RL/antmaze/medium-play-v1", 1_000_000)}
    limits: ClassVar[tuple[Limit, ...]] = (
        Limit("td3-bc", at={"beta": None}, apart={"beta": 2.0}, because="each decision is drawn to its own action"),
    )

    def build(self, task: Task) -> None:
        super().build(task)
        self.flat = make_encoder(self.spec.obs, "flat")
        self.nearest: Nearest | None = None

    def examine(self, data: Batch) -> None:
        self.recorded = data

    def look_up(self) -> Nearest:
        """Made when it is first asked for: by then `--init` may have brought other statistics of observations."""
        data = put(self.recorded.select("obs", "action"), device_of(self.policy))
        self.actions = data["action"].clamp(-1.0, 1.0) if self.policy.unit else data["action"]
        return Nearest(self.pairs(data["obs"], self.actions))

    def pairs(self, obs: Obs, action: Tensor) -> Tensor:
        """The points [B, O + A] between which distances are measured: beta times the observation, and the action."""
        normalizer = getattr(self.policy, "normalizer", None)
        state = self.flat(obs if normalizer is None else normalizer(obs))
        return torch.cat([self.config.beta * state, action.flatten(1)], -1)

    @torch.no_grad()
    def borrowed(self, obs: Obs, action: Tensor) -> Tensor:
        """a* [B, A]: the action of the pair in the dataset that is nearest to doing `action` [B, A] at `obs`."""
        assert self.nearest is not None
        return self.actions[self.nearest(self.pairs(obs, action))]

    def attractor(self, batch: Batch, action: Tensor) -> tuple[Batch, Tensor | None, dict[str, Tensor]]:
        if self.config.beta is None:
            return super().attractor(batch, action)
        return batch.clone(False).set("action", self.borrowed(batch["obs"], action)), None, {}

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        if self.config.beta is not None:
            self.nearest = self.nearest or self.look_up()
        return super().improve(batch)
