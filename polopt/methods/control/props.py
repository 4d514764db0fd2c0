"""PROPS: a second policy draws the actions that the data lack, so that what was gathered looks on-policy.

Corrado and Hanna, "On-Policy Policy Gradient Reinforcement Learning Without On-Policy Sampling", 2023, arXiv
2311.08290.
ROS: Zhong, Zhang, Hanna, Albrecht and Schaefer, "Robust On-Policy Sampling for Data-Efficient Policy Evaluation in
Reinforcement Learning", NeurIPS 2022, arXiv 2111.14552.

A policy gradient wants actions that are spread as the policy pi_theta says. In small batches they are not, however they
were drawn: that is sampling error. Here pi_phi acts, which avoids what the buffer has enough of, and every `every`
steps is made anew from pi_theta by steps that make all actions of the buffer less likely:

    start        phi <- theta                                    always, so that phi answers to the present buffer only
    ratio        g = pi_phi(a|s) / pi_theta(a|s)
    `proximal`   min  E_buffer[ max(g, clip(g, 1 - clip, 1 + clip)) ] + penalty E_buffer[ KL(pi_theta || pi_phi) ]
                 PPO's loss with advantage -1: an action that is `clip` less likely is left alone. Epochs end where
                 E[g - 1 - log g] exceeds `drift`
    `robust`     phi <- theta - lr grad E_buffer[ log pi_phi(a|s) ]                                        ROS, one step

The buffer holds the latest `batches` windows. PPO then learns from all of it as if pi_theta had drawn it: log pi_theta,
values and advantages are computed anew, and no importance weights are taken. So old windows can stay for a while, when
pi_phi makes up for what is out of proportion in them.

    `sampling_error`   E_buffer[ log pi_empirical(a|s) - log pi_theta(a|s) ], by counts, where observations are numbers

Differs from PPO, its base, in who acts, and in the buffer (`--adaptation none` is PPO on a buffer).

Departs from the paper in: advantages are no weights of the first term, an option there. Departs from the official code
in: minibatches are parts of the buffer, where that takes the buffer whole in each; advantages reach over all of it,
where one release computes those of a window only; when `drift` is exceeded no step more is made, where that makes one;
the KL is exact, where that estimates it or, lately, leaves it out; and after an update phi begins at the new theta, as
in the release of 2023. A step of pi_phi that nobody would act by, at the end of a window, is left out.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import Config, Constant, Cosine, Linear, param
from polopt.core.batch import Batch, decision_sum, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.data.minibatches import minibatches
from polopt.data.recent import Recent
from polopt.data.rollouts import Rollouts
from polopt.methods.control.ppo import PPO
from polopt.networks.normalizer import Normalizer
from polopt.optim import duplicate, frozen_copy, renew
from polopt.policies.base import Density
from polopt.regularizers.kl import kl_estimate
from polopt.tasks.base import Task


def avoidance(log_prob: Tensor, target_log_prob: Tensor, clip: float, weight: Tensor) -> Tensor:
    """sum of weight max(g, clip(g)) for g = exp(log_prob - target_log_prob), all [...]."""
    g = (log_prob - target_log_prob).exp()
    return (weight * torch.maximum(g, g.clamp(1 - clip, 1 + clip))).sum()


def drift(log_prob: Tensor, target_log_prob: Tensor, weight: Tensor) -> Tensor:
    """sum of weight (g - 1 - log g), an estimate of KL(pi_theta || pi_phi) from actions of pi_theta."""
    return weighted_mean(kl_estimate(target_log_prob, log_prob, "k3"), weight)


def sampling_error(state: Tensor, action: Tensor, log_prob: Tensor) -> Tensor:
    """Mean of log pi_empirical(a|s) - log pi(a|s) over decisions [B] in states that are numbers, by counts."""
    _, place, visits = state.unique(return_inverse=True, return_counts=True)
    _, pair, count = torch.stack([state, action.to(state.dtype)]).unique(dim=1, return_inverse=True, return_counts=True)
    return ((count[pair] / visits[place]).log() - log_prob).mean()


@dataclass(frozen=True)
class Proximal(Config):
    """PROPS."""

    lr: float = param(1e-3, "official code", above=0)
    epochs: int = param(4, "official code", low=1)
    minibatches: int = param(4, "official code", low=1, help="minibatches per epoch")
    clip: float = param(0.3, "official code", above=0, help="an action becomes less likely by this share at most")
    penalty: float = param(0.1, "official code", low=0, help="on KL(pi_theta || pi_phi)")
    drift: float | None = param(0.03, "official code", above=0, help="largest KL from which one step more is made")
    adam_eps: float = param(1e-5, "official code", above=0)


@dataclass(frozen=True)
class Robust(Config):
    """ROS."""

    lr: float = param(0.1, "assumed", above=0, help="of one plain gradient step; tables want 100 and more")


class PROPS(PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        envs: int = param(1, "official code", low=1)
        window: int = param(256, "official code", low=1, help="steps of every copy per update")
        batches: int = param(2, "official code", low=1, help="windows of which the buffer holds the steps")
        every: int = param(16, "official code", low=1, help="steps of every copy between two changes of pi_phi")
        adaptation: Proximal | Robust | None = param(Proximal(), "official code", help="none: pi_theta acts")
        lr: float = param(1e-3, "official code", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "official code")
        target_kl: float | None = param(
            0.02, "official code: 0.03", above=0, help="epochs end at an approx_kl 1.5 times this"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.window % self.every:
                raise UsageError(f"a window of {self.window} steps is no multiple of every {self.every}")
            if self.batches > 1:
                self.refuse("normalize_reward", because="where steps stay for several updates")
            if self.adaptation is None:
                self.refuse("every", because="where pi_theta acts")

    source: Recent
    slug = "props"
    requires = (Density,)
    headline = ("sampling_error", "behavior_kl", "entropy", "approx_kl")
    metrics = {
        "sampling_error": "by counts, only where observations are numbers of states | below that of --adaptation none",
        "behavior_kl": "KL(pi_theta || pi_phi) over the buffer, where pi_phi was changed last | small, not 0",
        "behavior_steps": "gradient steps of pi_phi for this update",
    }
    probes = PPO.probes | {"adaptation.drift": {"adaptation.drift": 1e-9}}
    default_steps = 300_000
    presets = {
        "classic": {},
        "robust": {"adaptation": Robust(), "every": 1},
        "buffer": {"adaptation": None},
        "neurips": {  # the release of 2023
            "batches": 1,
            "window": 2048,
            "every": 32,
            "minibatches": 32,
            "adaptation.penalty": 0.3,
            "adaptation.drift": 0.1,
        },
    }
    limits = (
        Limit(
            base="ppo",
            at={"adaptation": None, "batches": 1, "target_kl": None, "lr": 2.5e-4, "lr_schedule": "linear"},
            apart={"adaptation": Proximal(), "every": 8},
            because="without a second policy and old steps it is PPO, up to the rounding of log pi, which is computed "
            "anew for the whole window",
            tolerance=1e-10,
            collects="each",
        ),
    )
    smoke = Smoke(
        "CartPole-v1",
        192,
        {"envs": 2, "window": 32, "every": 16, "minibatches": 2, "epochs": 2, "network.sizes": (16,)},
    )

    def build(self, task: Task) -> None:
        super().build(task)
        config = self.config
        if self.recurrent:
            raise UsageError("props changes what acts within an episode, so it takes no policy or critic with a memory")
        adaptation = config.adaptation
        length = config.window if adaptation is None else config.every
        self.source = Recent(Rollouts(task, length, self.ledger), config.window * config.batches)
        if adaptation is not None:
            shared = {id(part): part for part in self.policy.modules() if isinstance(part, Normalizer)}
            self.behavior_policy = duplicate(self.policy, shared)
            self.target_policy = frozen_copy(self.policy)
            how: dict[str, Any] = {"kind": "sgd"} if isinstance(adaptation, Robust) else {"eps": adaptation.adam_eps}
            if isinstance(adaptation, Proximal):
                how["max_grad_norm"] = config.max_grad_norm
            self.behavior_optimizer = self.make_optimizer(self.behavior_policy, lr=adaptation.lr, **how)
        self._told: dict[str, Tensor] = {}

    @property
    def behavior(self) -> Any:
        return self.policy if self.config.adaptation is None else self.behavior_policy

    def collect(self) -> Batch:
        """The buffer [N, T] with a new window at its end."""
        config = self.config
        if config.adaptation is None:
            return self.source.next(self.behavior)
        renew(self.target_policy)
        renew(self.behavior_policy)
        steps: list[dict[str, Tensor]] = []
        for part in range(config.window // config.every):
            if part:
                steps += self.adapt()
            batch = self.source.next(self.behavior)
        weight = weigh(batch)["weight"]
        with torch.no_grad():
            kl = self.divergence(batch, weight)
        self._told = {"behavior_kl": kl, "behavior_steps": kl.new_tensor(float(len(steps)))}
        return batch

    def adapt(self) -> list[dict[str, Tensor]]:
        """Makes pi_phi anew from pi_theta and the steps that will stay; returns what its gradient steps said."""
        adaptation: Any = self.config.adaptation
        renew(self.behavior_policy)
        data = self.source.without_oldest()
        if data is None:
            return []
        data = weigh(data)
        with torch.no_grad():
            data["target_log_prob"] = decision_sum(self.target_policy.log_prob(data), data["weight"])
        if isinstance(adaptation, Robust):
            return [self.behavior_optimizer.minimize(self.likelihood_loss, data.reshape(-1))]
        size, steps = -(-data.batch_size.numel() // adaptation.minibatches), []
        for minibatch in minibatches(data, size, adaptation.epochs, self.generator):
            if adaptation.drift is not None and self.drift(minibatch) > adaptation.drift:
                break  # a look at a number
            steps.append(self.behavior_optimizer.minimize(self.behavior_loss, minibatch))
        return steps

    def behavior_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        adaptation: Any = self.config.adaptation
        loss = avoidance(self.behavior_log_prob(batch), batch["target_log_prob"], adaptation.clip, batch["weight"])
        if adaptation.penalty:
            loss = loss + adaptation.penalty * self.divergence(batch, batch["weight"])
        return loss, {}

    def likelihood_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return weighted_mean(self.behavior_log_prob(batch), batch["weight"]), {}

    def behavior_log_prob(self, batch: Batch) -> Tensor:
        return decision_sum(self.behavior_policy.log_prob(batch), batch["weight"])

    def divergence(self, batch: Batch, weight: Tensor) -> Tensor:
        """KL(pi_theta || pi_phi), averaged."""
        return weighted_mean(decision_sum(self.target_policy.kl(batch, self.behavior_policy), weight), weight)

    @torch.no_grad()
    def drift(self, batch: Batch) -> Tensor:
        return drift(self.behavior_log_prob(batch), batch["target_log_prob"], batch["weight"])

    @torch.no_grad()
    def evaluate_window(self, batch: Batch) -> Batch:
        """As PPO's, and `log_prob` [N, T] of pi_theta: whoever acted is forgotten."""
        batch = super().evaluate_window(batch)
        batch["log_prob"] = self.policy.log_prob(batch)
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        error = {}
        if isinstance(batch["obs"], Tensor) and batch["obs"].shape == batch["action"].shape == batch.shape:
            with torch.no_grad():
                log_prob = self.policy.log_prob(batch)
            columns = (batch["obs"], batch["action"], log_prob)
            error = {"sampling_error": sampling_error(*(column.flatten() for column in columns))}
        metrics = super().update(batch) | self._told | error
        if self.config.adaptation is not None:
            renew(self.target_policy)
            renew(self.behavior_policy)
        return metrics
