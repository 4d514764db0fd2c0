"""What DCG-MAP-Elites learns by gradients: critics and an actor that are told a descriptor, and offspring that climb.

Faldor et al., "MAP-Elites with Descriptor-Conditioned Gradients and Archive Distillation into a Single Policy", GECCO
2023, arXiv 2303.03832. Held by dcg_me.py; no entry of its own.

    reward      S(d, d') (reward + reward_offset),  S = exp(-|d - d'| / length_scale)
    critics     sum_i E[ (1 - truncated) (Q_i(s, a | d') - y)^2 ]
    actor       -E[ Q_1(s, pi(s | d') | d') ]
    climb       theta + Adam on E_s[ Q_1(s, pi_theta(s) | d) ], d of the parent theta

Departs from the paper in: nothing that is known; see `dcg_me.py`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Method
from polopt.config import param
from polopt.core.batch import Batch, weigh
from polopt.core.modules import device_of
from polopt.core.spec import Spec
from polopt.data.replay import Replay
from polopt.losses.pathwise import pathwise
from polopt.networks import Network
from polopt.optim import frozen_copy, polyak_update
from polopt.policies import Deterministic
from polopt.policies.conditioned import Conditioned, join, told
from polopt.policies.population import Population
from polopt.values.clipped import ClippedQ, smoothed
from polopt.values.critics import QEnsemble


def similarity(descriptor: Tensor, other: Tensor, length_scale: float) -> Tensor:
    """exp(-|d - d'| / length_scale) [...] of descriptors [..., D]: 1 where they are equal."""
    return (-(descriptor - other).norm(dim=-1) / length_scale).exp()


class DescriptorTD3(Method):
    """TD3 on transitions that have the `descriptor` [B, D] of their episode and what was asked for, `told` [B, D]."""

    @dataclass(frozen=True)
    class Config(Method.Config):
        conditioned: bool = param(True, "section 4", help="without, critic and actor are told nothing and S is 1")
        length_scale: float = param(0.1, "official code", above=0, help="of descriptors scaled to [-1, 1]")
        reward_offset: float = param(
            0.0, "official code", help="added to each reward, which should not be below 0 then"
        )
        critic_steps: int = param(3_000, "official code", low=1, help="of an iteration")
        batch_size: int = param(100, "official code", low=1)
        replay_size: int = param(1_000_000, "official code", low=1, unit="transitions")
        discount: float = param(0.99, "official code", low=0, high=1)
        tau: float = param(0.005, "official code", above=0, high=1)
        lr: float = param(3e-4, "official code", above=0, help="of critics and actor")
        delay: int = param(2, "official code", low=1, help="steps of the critics for one of the actor")
        target_noise: float = param(0.2, "official code", low=0)
        target_noise_clip: float = param(0.5, "official code", above=0)
        gradient_share: float = param(0.5, "official code", low=0, high=1, help="of the offspring, by the critic")
        gradient_steps: int = param(150, "official code", low=1, help="of each of them")
        gradient_lr: float = param(5e-3, "official code", above=0, help="of each of them")
        network: Network = param(Network((128, 128), "relu"), "official code", help="of the policies and the actor")
        critic_network: Network = param(Network((256, 256), "relu"), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.conditioned:
                self.refuse("length_scale", because="where nothing is conditioned on a descriptor")
            if not self.gradient_share:
                self.refuse("gradient_steps", because="without gradient_share")
                self.refuse("gradient_lr", because="without gradient_share")

    entry = False
    saved = ("steps",)
    target_actor: Any

    def build_learner(self, size: int, middle: Tensor, half: Tensor) -> None:
        """Actor and critics that read descriptors of this size, the slow copies of both, and the replay."""
        config = self.config
        reading: Spec = told(self.spec, size)
        actor: Any = Deterministic().build(reading, network=config.network)
        self.actor = Conditioned(actor, self.spec, middle, half)
        self.target_actor = frozen_copy(actor)
        critic = QEnsemble(reading, config.critic_network, members=2)
        self.clipped = ClippedQ(critic, discount=config.discount, tau=config.tau)
        self.actor_optimizer = self.make_optimizer(actor, lr=config.lr)
        self.critic_optimizer = self.make_optimizer(critic, lr=config.lr)
        self.replay = Replay(config.replay_size)
        self.steps = 0

    def context(self, descriptor: Tensor) -> Tensor:
        """What critic and actor are told."""
        return descriptor if self.config.conditioned else torch.zeros_like(descriptor)

    def as_told(self, sample: Batch) -> Batch:
        """Transitions [B] as critic and actor see them: joined with what they are told, rewards scaled by S, and with
        targets; those that a time limit has cut have no weight for the critics."""
        config, context = self.config, self.context(sample["told"])
        batch = sample.select("action", "terminated")
        scale = similarity(sample["descriptor"], sample["told"], config.length_scale) if config.conditioned else 1.0
        batch["reward"] = scale * (sample["reward"] + config.reward_offset)
        batch["obs"], batch["next_obs"] = join(sample["obs"], context), join(sample["next_obs"], context)
        action, _ = self.target_actor.rsample(batch["next_obs"])
        batch["target"] = self.clipped.target(batch, smoothed(action, config.target_noise, config.target_noise_clip))
        batch["whole"] = ~sample["truncated"]
        return weigh(batch)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.clipped.critic_loss(batch.clone(False).set("weight", batch["weight"] * batch["whole"]))

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        own: Any = self.actor.actor
        action, _ = own.rsample(batch["obs"])
        loss = pathwise(self.clipped.first(batch["obs"], action), None, 0.0, batch["weight"])
        return loss, {"policy_loss": loss}

    def fit(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """One step of the critics, and before it, every so often, one of the actor."""
        batch, improved = self.as_told(self.replay.sample(self.config.batch_size).to(device_of(self.actor))), {}
        if self.steps % self.config.delay == 0:
            improved = self.actor_optimizer.minimize(self.actor_loss, batch)
            polyak_update(self.target_actor, self.actor.actor, self.config.tau)
        fitted = self.critic_optimizer.minimize(self.critic_loss, batch)
        self.clipped.follow()
        self.steps += 1
        return fitted, improved

    def climbed(self, population: Population, genotypes: Tensor, descriptors: Tensor) -> Tensor:
        """Parents [n, G] after steps up the critic that is told their descriptors [n, D], each with an Adam of its own;
        all see the same states."""
        if not len(genotypes):
            return genotypes
        child = genotypes.clone().requires_grad_()
        optimizer = torch.optim.Adam([child], lr=self.config.gradient_lr)  # each number by itself
        for _ in range(self.config.gradient_steps):
            obs = self.replay.sample(self.config.batch_size)["obs"].to(child.device)
            context = self.context(descriptors).unsqueeze(1).expand(-1, len(obs), -1)
            q = self.clipped.first(join(obs.expand(len(child), -1, -1), context), population.actions(child, obs))
            (child.grad,) = torch.autograd.grad(-q.mean(1).sum(), child)
            optimizer.step()
        return child.detach()
