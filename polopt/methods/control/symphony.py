"""Symphony (S3): one loss for actor and critics, actions of a learned strength in noise that is always the same.

Ishuov et al., "Symphony: A Heuristic Normalized Calibrated Advantage Actor and Critic Algorithm in application for
Humanoid Robots", 2025, arXiv 2512.10477; official code SuspensionRailway/symphony, its root (S3).

For robots that learn from nothing and should not break. The actor says of each coordinate a direction A in (-1, 1) and
a strength S in (0, 1), and of the penalty on S how it holds, B in (0, 1). The noise N does not change: a weak action
drowns in it, which explores, and a strong one stands out.

    act         a = tanh(S A + N),  N = noise_std clip(N(0, 1), -noise_clip, noise_clip);  without N in evaluations
    value       Q(s, a) = sum_k p_k q_(k) of the n outputs of three critics, sorted, q_(1) the smallest:
                p_k ~ tanh((pi (1 - (k - 1) / n))^e)                                          `soft_minimum`
    next        Q' = Q_targ(s', a'),  a' of the actor at s', with noise; gradients reach the actor through it
    baseline    m = c M + (1 - c) Q',  c = (sqrt 5 - 1) / 2, of each row;  then M <- mean m, from 0 on
    target      y = reward / reward_scale + discount (1 - terminated) Q'
    loss        -E[ |x| tanh(x / 2) ], x = (Q' - m) / |m|             advantage over time    `asymmetric_error`
                + E[ mean_k e_k tanh(e_k / 2) ], e_k = q_k(s, a) - y                         `symmetric_error`
                + E[ Om(S^(1 / B)) + B S log S + Om(B^2) ] at s', Om(x) = log((1 + x) / (1 - x))     `swaddling`
    targets     Q_targ <- tau Q + (1 - tau) Q_targ

m, y and the B of S^(1 / B) carry no gradient, so the first and the third term move the actor and the second the
critics. The penalty makes B small, is then least at S = 1 / e, nearly flat around it, and steep towards 1. One step
moves all: Adam without bias correction, its decays c and 0.995, with decoupled weight decay.

The untrained actor plays the warm-up, whose rewards have the mean size `reward_scale`; then what it saw is repeated
until the replay is full. From then on the oldest go, those that terminated excepted, and what is drawn fades with age:
the i-th of N, from the oldest, has the weight tanh((pi i / N)^e).

Networks are Linear, LayerNorm, Linear, ReSine, Linear (`polopt.networks.sine`). Also in the code: S2, whose outputs
pass gradients on with probability 1/2 (`--preset s2`), SE with less noise and ED, a smaller one.

Differs from TD3 in: all of the above; targets are those of the present actor, which moves with every step.

Departs from the paper in: |m| is at least 0.01 where it divides; actions are rescaled to the bounds of the task, where
the code leaves them in [-1, 1]; what has just been overwritten is not drawn once more.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polopt.bases.method import Method
from polopt.config import param
from polopt.core.batch import Batch, decision_mean, same_shape, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.fading import FilledSource, Recycling
from polopt.data.relabel import Fading
from polopt.data.rollouts import Rollouts
from polopt.methods.control.symphony_settings import SymphonySettings
from polopt.networks.encoders import Obs
from polopt.networks.sine import sine_network
from polopt.optim import frozen_copy, polyak_update
from polopt.policies.base import Actor
from polopt.policies.swaddled import Idling, SwaddledPolicy
from polopt.tasks.base import Task
from polopt.values.targets import td_target

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
CRITICS = 3
LEAST = 1e-2  # size of a baseline that divides
EDGE = 1e-3  # strengths and B are so far from 0 and 1 where they are penalized


def node_weights(count: int) -> Tensor:
    """Weights [count] of sorted values, the smallest first: they fall, and sum to 1."""
    weights = (math.pi * (1.0 - torch.arange(count) / count)).pow(math.e).tanh()
    return weights / weights.sum()


def soft_minimum(values: Tensor, weights: Tensor) -> Tensor:
    """The mean [...] of the sorted values [..., n] with these weights [n]."""
    return (values.sort(-1).values * weights).sum(-1)


def symmetric_error(error: Tensor) -> Tensor:
    """e tanh(e / 2): e^2 / 2 near 0, |e| far away."""
    return error * (0.5 * error).tanh()


def asymmetric_error(error: Tensor) -> Tensor:
    """|e| tanh(e / 2): the same with the sign of the error."""
    return error.abs() * (0.5 * error).tanh()


def swaddling(strength: Tensor, beta: Tensor) -> Tensor:
    """The penalty [...] on strengths, and on what holds them."""
    same_shape(strength=strength, beta=beta)
    strength, beta = (each.clamp(EDGE, 1.0 - EDGE) for each in (strength, beta))
    held = 2.0 * strength.pow(1.0 / beta.detach()).atanh()
    return held + beta * strength * strength.log() + 2.0 * beta.square().atanh()


class NodeCritic(nn.Module):
    """Action values of three networks with `width` // 4 outputs each, and their soft minimum."""

    weights: Tensor

    def __init__(self, spec: Spec, width: int, silent: float = 0.0) -> None:
        super().__init__()
        nodes = width // 4
        self.network = sine_network(
            spec.obs, nodes, width, inputs_extra=spec.action_dim, silent=silent, members=CRITICS
        )
        self.register_buffer("weights", node_weights(CRITICS * nodes), persistent=False)

    def forward(self, obs: Obs, action: Tensor) -> Tensor:
        """All values [..., n] of actions [..., A]."""
        return self.network(obs, action).movedim(0, -2).flatten(-2)

    def soft(self, obs: Obs, action: Tensor) -> Tensor:
        """Their soft minimum [...]."""
        return soft_minimum(self(obs, action), self.weights)


class Baseline(nn.Module):
    """The moving average of values, from 0 on: what `forward` gives of the values [...] of a batch is that of each."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(()))

    def forward(self, value: Tensor) -> Tensor:
        return GOLDEN * self.average + (1.0 - GOLDEN) * value

    @torch.no_grad()
    def follow(self, mean: Tensor) -> None:
        """Takes in the mean of a batch, 0-d."""
        self.average.copy_(self(mean))


def rows_of_batch(config: Any) -> int:
    """As many as the critics have outputs, unless the config says otherwise."""
    return config.batch_size or CRITICS * (config.width // 4)


class Symphony(SymphonySettings, Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        discount: float = param(0.99, "official code", low=0, high=1)
        tau: float = param(0.005, "official code", above=0, high=1, help="share of the critics in their targets")
        lr: float = param(1e-4, "official code", above=0)
        weight_decay: float = param(0.01, "official code", low=0)
        width: int = param(512, "official code", low=4, help="of hidden layers; a fourth: outputs of a critic")
        batch_size: int | None = param(None, "official code", low=1, help="none: as many as there are critic outputs")
        warmup: int = param(10_240, "official code", low=1, unit="env_steps", help="of the untrained actor")
        replay_size: int = param(512_000, "official code", low=1, unit="transitions")
        fill: bool = param(True, "official code", help="the warm-up is repeated until the replay is full")
        updates_per_step: int = param(3, "official code", low=1, help="gradient steps per environment step")
        noise_std: float = param(1.0 / math.e, "official code", above=0, help="of what is added before the tanh")
        noise_clip: float = param(math.e, "official code", above=0, help="largest size of it, in deviations")
        swaddle_coefficient: float = param(1.0, "official code", low=0, help="weight of the penalty on strength")
        silent_dropout: float = param(0.0, "official code", low=0, below=1, help="share of outputs without gradient")
        idle_after: int | None = param(
            None, "polopt", low=1, unit="decisions", help="of an episode; then noise alone acts, so that it ends"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.replay_size < self.warmup:
                raise UsageError(
                    f"the warmup of {self.warmup:,} steps does not fit into replay-size {self.replay_size:,}"
                )

    slug = "symphony"
    source: FilledSource

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        updates = max(steps - config.warmup, 0) * config.updates_per_step
        return {"transitions per update": rows_of_batch(config), "updates": updates}

    def build(self, task: Task) -> None:
        config, spec = self.config, self.spec
        if not spec.bounded:
            raise UsageError(f"symphony needs Box actions with finite bounds; {spec.name} has {spec.action}")
        heads = sine_network(spec.obs, 3 * spec.action_dim, config.width, silent=config.silent_dropout)
        self.policy = SwaddledPolicy(spec, heads, noise_std=config.noise_std, noise_clip=config.noise_clip)
        self.idling = None if config.idle_after is None else Idling(self.policy, config.idle_after)
        self.critic = NodeCritic(spec, config.width, config.silent_dropout)
        self.target_critic = frozen_copy(self.critic)
        self.baseline = Baseline()
        self.optimizer = self.make_optimizer(
            self.policy,
            self.critic,
            lr=config.lr,
            kind="adamw",
            betas=(GOLDEN, 0.995),
            weight_decay=config.weight_decay,
            bias_correction=False,
        )
        self.source = FilledSource(
            Rollouts(task, 1, self.ledger),
            Recycling(config.replay_size, discount=config.discount, weights=Fading()),
            batch_size=rows_of_batch(config),
            warmup=config.warmup,
            ratio=config.updates_per_step,
            warmup_actor=lambda _: self.policy,
            fill=config.fill,
        )

    @property
    def behavior(self) -> Actor:
        return self.idling or self.policy

    def total_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight, after = batch["weight"], batch["next_obs"]
        direction, strength, beta = self.policy.heads(after)
        next_action = (strength * direction + batch["next_noise"]).tanh()
        ahead = self.target_critic.soft(after, next_action)
        next_value = ahead.detach()
        baseline = self.baseline(next_value)
        advantage = (ahead - baseline) / baseline.abs().clamp_min(LEAST)
        target = td_target(batch["reward"], batch["discount"], batch["terminated"], next_value)
        q = self.critic(batch["obs"], batch["action"])
        terms = {
            "policy_loss": -weighted_mean(asymmetric_error(advantage), weight),
            "critic_loss": decision_mean(symmetric_error(q - target.unsqueeze(-1)), weight),
            "swaddling": decision_mean(swaddling(strength, beta), weight),
        }
        loss = terms["policy_loss"] + terms["critic_loss"] + self.config.swaddle_coefficient * terms["swaddling"]
        return loss, terms | {
            "strength": decision_mean(strength.detach(), weight),
            "q": decision_mean(q.detach(), weight),
            "next_value": weighted_mean(next_value, weight),
        }

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = weigh(batch)
        batch["reward"] = batch["reward"] / self.source.reward_scale
        batch["next_noise"] = self.policy.noise(batch["action"])
        metrics = self.optimizer.minimize(self.total_loss, batch)
        self.baseline.follow(metrics["next_value"])
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return metrics
