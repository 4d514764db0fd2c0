"""Behavioral cloning, then PPO from there: the smallest staged method.

Rajeswaran et al., "Learning Complex Dexterous Manipulation with Deep Reinforcement Learning and Demonstrations", 2017,
arXiv 1709.10087, section IV, start their policy gradient from a cloned policy in this way.

    stage "bc"    `bc_updates` steps of behavioral cloning (bc.py) on the demonstrations; costs no environment steps
    stage "ppo"   PPO (ppo.py) with the cloned policy; for the first `critic_warmup` updates only the critic learns,
                  because advantages of a fresh critic would undo what was cloned; until then observations are
                  normalized by the demonstrations

Both stages train one policy object. The budget counts environment steps, so it is PPO's; `envs` is that of both.

Departs from the paper in: PPO in place of natural policy gradient, and no demonstrations in the second stage.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polopt.bases.method import Limit, Smoke, learner_param
from polopt.bases.staged import Stage, Staged
from polopt.config import param
from polopt.core.batch import Batch, average
from polopt.methods.control.ppo import PPO
from polopt.methods.offline.bc import BC
from polopt.networks.normalizer import Normalizer
from polopt.tasks.base import Task
from polopt.values.returns import explained_variance


class WarmPPO(PPO):
    """PPO whose policy rests while a fresh critic catches up: neither its weights nor what it observes change."""

    entry = False
    saved = ("warmed",)
    warmed = 0

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self.value_loss(batch)
        return self.config.value_coefficient * loss, metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        if self.warmed >= self.config.critic_warmup:
            return super().update(batch)
        self.warmed += 1
        batch = self.evaluate_window(batch)
        metrics = average([self.optimizer.minimize(self.critic_loss, each) for each in self.minibatches(batch)])
        explained = explained_variance(batch["value"], batch["returns"], batch["weight"])
        return metrics | {"explained_variance": explained}


class BCPPO(Staged):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        bc: BC.Config = learner_param(
            BC.Config(), "section IV-A", without=("normalize_obs", "network", "policy"), help="the first stage"
        )
        bc_updates: int = param(1_000, "assumed", low=0)
        critic_warmup: int = param(5, "assumed", low=0, help="PPO updates before the policy moves")

    slug = "bc-ppo"
    requires = (*BC.requires, *PPO.requires)
    headline = ("imitation_loss", "entropy", "approx_kl", "explained_variance")
    trains_on = "recorded data, then any task"
    metrics_of = (BC, PPO)
    metrics = {
        "stage": "`bc` or `ppo`; the numbers are those of the stage",
    }
    default_steps = 100_000
    presets = PPO.presets
    probes = PPO.probes
    limits = (
        Limit(
            "ppo",
            learner="learner",
            at={"bc_updates": 0, "critic_warmup": 0},
            apart={"critic_warmup": 1},
            because="without cloned updates and without a warm-up the second stage is PPO",
        ),
    )
    smoke = Smoke(
        "CartPole-v1",
        256,
        PPO.smoke.config | {"bc_updates": 4, "critic_warmup": 1, "bc.demonstrations": "random", "bc.batch_size": 32},
    )

    def build(self, task: Task) -> None:
        config = self.config
        normalizer = Normalizer(self.spec.obs) if config.normalize_obs else None
        self.policy = self.make_policy(config.policy, network=config.network, normalizer=normalizer)
        super().build(task)

    def stage(self, index: int) -> Stage | None:
        shared: dict[str, Any] = {"ledger": self.ledger, "parts": {"policy": self.policy}}
        if index == 0 and self.config.bc_updates > 0:
            cloning = BC(self.learner_config(self.config.bc), self.task, **shared)
            return Stage("bc", cloning, until={"updates": self.config.bc_updates})
        if index <= 1:
            return Stage("ppo", WarmPPO(self.config, self.task, **shared))
        return None
