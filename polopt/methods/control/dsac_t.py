"""Distributional Soft Actor-Critic (DSAC-T), and its first version (DSACv1).

Duan et al., "Distributional Soft Actor-Critic with Three Refinements", 2023, arXiv 2310.05858; and "Distributional Soft
Actor-Critic: Off-Policy Reinforcement Learning for Addressing Value Estimation Errors", 2020, arXiv 2001.02811.

The critic is a Gaussian N(mean, std^2) over the soft return, fitted by maximum likelihood to sampled targets: the mean
moves by error / std^2, so it moves little where the return is uncertain, and that reduces over-estimation.
With replay batch (s, a, r, s'), next action a' ~ pi_targ(.|s') of the TARGET policy, temperature alpha, discount g:

    next    critic j = argmin_i mean_targ_i(s', a');  Q' = mean_targ_j,  Z' = mean_targ_j + std_targ_j clip(noise, +-3)
    y_q     r + g (1 - terminated) (Q' - alpha log pi_targ(a'|s'))    the expected target; the two are `backups`
    y_z     r + g (1 - terminated) (Z' - alpha log pi_targ(a'|s'))    the sampled target
    y_b,i   mean_i + clip(y_z - mean_i, +-bound_i)
    critic  sum_i E[ scale_i (mean_i - y_m)^2 / 2 + std_scale_i (sg[std_i]^2 - sg[mean_i - y_b,i]^2) std_i ]
    policy  E[ alpha log pi(a|s) - min_i mean_i(s, a) ],   a = rsample(s)
    v1      one critic, y_m = y_z, bound = 10, scale = 1 / (std^2 + epsilon), std_scale = 1 / (std^3 + epsilon)

All scales are constants in the gradient: v1's is that of -log N(y_z; mean, std), but clipped for the std. DSAC-T has

    1 expected value substitution   y_m = y_q; only the std is regressed on a sample
    2 twin value distributions      two critics; target and policy take the one with the smaller mean
    3 variance-based adjustment     with m_i <- (1 - tau) m_i + tau E[std_i] (`mean_std`), at first E[std_i]:
                                    bound_i = 3 m_i, and v1's scales times m_i^2 + epsilon

Differs from SAC in: the critic and its loss, a' from a target policy, networks and learning rates; policy, temperature
and all targets (critics and policy) move on every second update only (`delay`).
Also in the papers: each refinement removed (`--no-expected-value`, `--critics 1`, `--adjustment fixed-bound`, v1's);
likelihood without a bound (`--adjustment likelihood`).
Departs from the paper in: the policy's step sees the critics after theirs. The released code had these scales until
July 2025, and has others since (`--adjustment huber-variance-based`): scale_i = omega_i = clip(m_i^2 / (std_i^2 +
epsilon), 0.1, 10), std_scale_i = omega_i / (std_i + epsilon), Huber's function in place of the squares, and half a
square as the target of the variance: std settles near .7 of the error's, and far below it where errors pass 50, so that
the scale of the reward matters again.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import Config, param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.losses import regression
from polopt.methods.control.sac import SAC
from polopt.networks import Network
from polopt.networks.encoders import Obs
from polopt.optim import frozen_copy, polyak_update, whole
from polopt.policies import AnyPolicy, SquashedGaussian
from polopt.regularizers import Fixed, Learned
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble
from polopt.values.reward_normalizer import RunningMean
from polopt.values.targets import bounded_target, pessimistic_pair


def distribution_loss(
    mean: Tensor, std: Tensor, target: Tensor, bounded: Tensor, scale: Tensor, std_scale: Tensor, huber: float | None
) -> Tensor:
    """Loss [E, B] whose gradients are scale * error in the mean and std_scale * (std^2 - bounded error^2) in the std.

    All are [E, B] but `target` [B]; no gradient reaches other arguments than `mean` and `std`. With `huber`, Huber's
    function of that threshold takes the place of error^2 / 2 and, as in the released code, of bounded error^2.
    """
    error, bounded_error = mean - target.detach(), (mean - bounded).detach()
    if huber is None:
        cost, variance = regression.squared(error), bounded_error.square()
    else:
        cost, variance = regression.huber(error, huber), regression.huber(bounded_error, huber)
    return scale.detach() * cost + (std_scale * (std.square() - variance)).detach() * std


@dataclass(frozen=True)
class Likelihood(Config):
    """The gradient of -log N(y_z; mean, std) as it is (DSACv1 without a bound)."""

    def scales(self, std: Tensor) -> tuple[Tensor, Tensor, float]:
        """Factors of the gradients of mean and std, each [E, B] like `std`, and the bound on the TD error."""
        return std**-2, std**-3, math.inf


@dataclass(frozen=True)
class FixedBound(Config):
    """DSACv1's: the TD error is bounded where it moves the std, and the powers of std that divide by a constant."""

    td_bound: float = param(10.0, "official code: Hopper", above=0, help="on the TD error, for the std")
    epsilon: float = param(0.1, "official code", above=0, help="added to the powers of std that divide")

    def scales(self, std: Tensor) -> tuple[Tensor, Tensor, float]:
        return 1 / (std.square() + self.epsilon), 1 / (std**3 + self.epsilon), self.td_bound


@dataclass(frozen=True)
class VarianceBased(Config):
    """DSAC-T's third refinement, as in the paper and in the code released with it (February 2024)."""

    bound_stds: float = param(3.0, "official code", above=0, help="bound on the TD error, in running means of std")
    tau: float = param(0.005, "official code", above=0, high=1, help="rate of the running mean of std")
    epsilon: float = param(0.1, "official code", above=0, help="added to the powers of std, above and below")

    def scales(self, std: Tensor, mean_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As in `FixedBound`, with the running mean [E, 1] of the std."""
        power = mean_std.square() + self.epsilon
        return power / (std.square() + self.epsilon), power / (std**3 + self.epsilon), self.bound_stds * mean_std


@dataclass(frozen=True)
class HuberVarianceBased(VarianceBased):
    """What the released code does since July 2025: a limited omega for both scales, and Huber's function."""

    epsilon: float = param(0.1, "official code", above=0, help="added to the powers of std that divide")
    limits: tuple[float, float] = param((0.1, 10.0), "official code", low=0, help="of the gradient's scale")
    huber: float = param(50.0, "official code", above=0, help="errors above it count by their size, not its square")

    def scales(self, std: Tensor, mean_std: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        omega = (mean_std.square() / (std.square() + self.epsilon)).clamp(*self.limits)
        return omega, omega / (std + self.epsilon), self.bound_stds * mean_std


class DSACv1(SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        lr: float = param(1e-4, "official code", above=0, help="of policy and critics")
        steps_per_update: int = param(20, "official code", low=1, unit="env_steps", help="collected between updates")
        critics: int = param(1, "arXiv 2001.02811", low=1, help="members of the critic ensemble")
        delay: int = param(2, "official code", low=1, unit="updates", help="of the critics per step of all else")
        adjustment: FixedBound | Likelihood = param(FixedBound(), "arXiv 2001.02811", help="of the critic's gradient")
        entropy: Learned | Fixed = param(Learned(initial=math.e, form="log-alpha", lr=3e-4), "official code")
        network: Network = param(Network(sizes=(256, 256, 256), activation="gelu"), "official code")
        policy: AnyPolicy = param(SquashedGaussian(log_std_high=0.5), "official code")

    slug = "dsac-v1"
    saved = ("updates",)
    headline = ("entropy", "entropy_temperature", "q", "std")
    metrics = {
        "q": "mean of the return's distribution, over batch and critics | as in `sac`",
        "std": "its standard deviation, over batch and critics: the uncertainty of the return, in its units",
        "critic_loss": "has a gradient that means something and a value that does not",
        "policy_loss": "temperature log pi - min Q, from every second update (`delay`) | as in `sac`",
        "entropy": "-log pi of fresh samples, in nats, from every second update (`delay`) | as in `sac`",
    }
    default_steps = 30_000_000  # 1.5 million updates
    presets = {"pendulum": SAC.presets["pendulum"] | {"steps_per_update": 1}}
    no_limit = "its critic is a distribution: no setting gives SAC's squared error on a mean"
    smoke = Smoke("Pendulum-v1", SAC.smoke.steps, SAC.smoke.config | {"steps_per_update": 1})

    def build(self, task: Task) -> None:
        super().build(task)
        self.target_policy = frozen_copy(self.policy)
        self.updates = 0

    def make_critic(self) -> QEnsemble:
        return QEnsemble(self.spec, self.config.network, members=self.config.critics, head="gaussian")

    def action_values(self, obs: Obs, action: Tensor) -> Tensor:
        mean, _ = self.critic(obs, action)
        return mean

    @torch.no_grad()
    def backups(self, batch: Batch) -> Tensor:
        """Expected and sampled soft target, [2, B]: y_q and y_z."""
        next_action, next_log_prob = self.target_policy.rsample(batch["next_obs"])
        mean, std = self.target_critic(batch["next_obs"], next_action)
        pair = pessimistic_pair(mean, std, torch.randn_like(next_log_prob))
        return torch.stack([self.soft_target(batch, each, next_log_prob) for each in pair])

    def target(self, batch: Batch) -> Tensor:
        """What mean and std are regressed on, [2, B]: one sampled return for both."""
        _, sampled = self.backups(batch)
        return torch.stack([sampled, sampled])

    def scales(self, std: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        """Factors of the gradients of mean and std, each [E, B] like `std`, and the bound on the TD error."""
        return self.config.adjustment.scales(std)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        mean, std = self.critic(batch["obs"], batch["action"])
        scale, std_scale, bound = self.scales(std.detach())
        bounded = bounded_target(mean, batch["std_target"], bound)
        huber = getattr(self.config.adjustment, "huber", None)
        terms = distribution_loss(mean, std, batch["mean_target"], bounded, scale, std_scale, huber)
        loss, q, spread = (weighted_mean(x, batch["weight"]) for x in (terms.sum(0), mean.mean(0), std.mean(0)))
        return loss, {"critic_loss": loss, "q": q, "std": spread}

    def evaluate_batch(self, batch: Batch) -> Batch:
        """Adds weights and targets: their noise is drawn before the batch may be split."""
        batch = weigh(batch)
        batch["mean_target"], batch["std_target"] = self.target(batch)
        return batch

    @whole
    def step(self, batch: Batch, improving: bool) -> dict[str, Tensor]:
        """One step of the critics and, where `improving`, one of all else."""
        batch = self.evaluate_batch(batch)
        metrics = self.critic_optimizer.minimize(self.critic_loss, batch)
        if improving:
            metrics |= self.improve(batch)
            polyak_update(self.target_critic, self.critic, self.config.tau)
            polyak_update(self.target_policy, self.policy, self.config.tau)
        return metrics | {"entropy_temperature": self.temperature.value}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.step(batch, self.updates % self.config.delay == 0)
        self.updates += 1
        return metrics


UNREFINED = {"expected_value": False, "critics": 1, "adjustment": "fixed-bound"}
REFINED = {"expected_value": True, "critics": 2, "adjustment": "variance-based"}


class DSACT(DSACv1):
    @dataclass(frozen=True)
    class Config(DSACv1.Config):
        expected_value: bool = param(True, "refinement 1", help="regress the mean on the expected target")
        critics: int = param(2, "refinement 2", low=1, help="members of the critic ensemble")
        adjustment: VarianceBased | HuberVarianceBased | FixedBound | Likelihood = param(  # type: ignore[assignment]
            VarianceBased(), "refinement 3", help="of the critic's gradient"
        )

    slug = "dsac-t"
    limits = tuple(
        Limit("dsac-v1", at=UNREFINED, apart={name: value}, because="without the three refinements it is DSACv1")
        for name, value in REFINED.items()
    )

    def build(self, task: Task) -> None:
        super().build(task)
        based, members = isinstance(self.config.adjustment, VarianceBased), self.config.critics
        self.mean_std = RunningMean(self.config.adjustment.tau, (members,)) if based else None

    def target(self, batch: Batch) -> Tensor:
        """[2, B]: the expected target for the mean, the sampled one for the std."""
        return self.backups(batch) if self.config.expected_value else super().target(batch)

    def scales(self, std: Tensor) -> tuple[Tensor, Tensor, float | Tensor]:
        if self.mean_std is None:
            return super().scales(std)
        return self.config.adjustment.scales(std, self.mean_std.value.unsqueeze(-1))

    def evaluate_batch(self, batch: Batch) -> Batch:
        batch = super().evaluate_batch(batch)
        if self.mean_std is not None:
            with torch.no_grad():
                _, std = self.critic(batch["obs"], batch["action"])
            self.mean_std.update((batch["weight"] * std).sum(-1))
        return batch
