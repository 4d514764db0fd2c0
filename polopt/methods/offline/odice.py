"""O-DICE: a value learned from both states of a transition, whose two gradients do not undo each other.

Mao, Xu, Zhang, Zhan, "ODICE: Revealing the Mystery of Distribution Correction Estimation via Orthogonal-gradient
Update", 2024, arXiv 2402.00348.

DICE methods minimize one objective over V, in whose residuals V stands at both ends of a transition. The gradient
through V(s) keeps the policy near the actions of the data, as IQL does; the one through V(s') would keep it near their
states too, but mostly points the other way. O-DICE adds only the part of it that is orthogonal to the former.

With a batch (s, a, r, s'), V' the smallest of the target values, and theta all parameters of V as one vector:

    forward     e = r + discount (1 - terminated) V'(s') - V(s)
    backward    b = r + discount (1 - terminated) V(s') - V'(s)
    step        g = grad E[(1 - trade_off) V(s)] + g_f + g_b - (<g_f, g_b> / |g_f|^2) g_f          gradient "orthogonal"
                g_f = grad trade_off E[f*(e)],   g_b = grad trade_off backward_weight E[f*(b)]
    policy      -E[ w log pi(a|s) ],   w = min(max(e, 0), weight_clip), of V before its step
    targets     V' <- tau V + (1 - tau) V'

f* is the conjugate of a divergence of distributions of states and actions (`polopt.values.implicit_losses`). Each
member of V has its own residuals; means run over members too. Of the gradients, "semi" leaves the backward one out,
"sum" adds it as it is, and "true" is the gradient of the one objective, (1 - trade_off) V(s) + trade_off f*(r +
discount V(s') - V(s)), without targets.

Differs from IQL (iql.py) in: no Q, so luck in transitions is taken for skill; a weight that is 0 for most decisions.

`--preset imitation` learns from demonstrations alone, whose rewards it does not see.

Departs from the paper in: any policy that can imitate; observations are scaled with their variance (plus 1e-8, and
within +-10), where the released code adds 1e-3 to the deviation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.offline import Offline
from polopt.config import param
from polopt.core.batch import Batch, pieces, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.functional import gradient, unflatten
from polopt.losses.regression import imitation
from polopt.methods.offline.odice_settings import ODICESettings
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.optim import frozen_copy, polyak_update
from polopt.policies import AnyPolicy, Gaussian
from polopt.policies.base import Imitates, with_noise
from polopt.tasks.base import Task
from polopt.values.implicit_losses import DIVERGENCES, conjugate, density_ratio
from polopt.values.targets import td_target

GRADIENTS = ("orthogonal", "semi", "sum", "true")


def rejected(vector: Tensor, onto: Tensor) -> Tensor:
    """What is left of a `vector` [P] without its part along `onto` [P]: orthogonal to it."""
    return vector - (onto @ vector) / (onto @ onto).clamp_min(1e-10) * onto


def cosine(one: Tensor, other: Tensor) -> Tensor:
    """Of the angle between vectors [P]; 0 where one of them is 0."""
    return one @ other / (one.norm() * other.norm()).clamp_min(1e-20)


class ODICE(ODICESettings, Offline):
    @dataclass(frozen=True)
    class Config(Offline.Config):
        discount: float = param(0.99, "official code", low=0, high=1)
        trade_off: float = param(
            0.6, "official code", above=0, below=1, help="weight of the residuals; the rest lowers V in all states"
        )
        gradient: str = param("orthogonal", "official code", choices=GRADIENTS, help="how that through V(s') is added")
        backward_weight: float = param(1.0, "official code", low=0, help="of the gradient through V(s'), eta")
        divergence: str = param("chi2", "official code", choices=DIVERGENCES)
        weight: str = param(
            "released",
            "official code",
            choices=("released", "exact"),
            help="of a decision with residual e: max(e, 0), or max(e / 2 + 1, 0), which the divergence has",
        )
        weight_clip: float = param(100.0, "official code", above=0, help="largest weight of a decision")
        tau: float = param(0.005, "official code", above=0, high=1, help="share of V in the targets, per update")
        lr: float = param(2e-4, "official code", above=0, help="of policy and value")
        weight_decay: float = param(1e-4, "official code", low=0, help="of the policy, as a part of Adam's gradient")
        members: int = param(2, "official code", low=1, help="values side by side, each with a network of its own")
        normalize_obs: bool = param(False, "official code", help="with the mean and deviation of the dataset")
        network: Network = param(Network((1024, 1024), "relu"), "official code", help="of the policy")
        value_network: Network = param(Network((256, 256), "relu", normalization="layer"), "official code")
        policy: AnyPolicy = param(Gaussian(log_std_low=-5.0, log_std_high=2.0), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.gradient in ("semi", "true"):
                self.refuse("backward_weight", because=f"on the gradient '{self.gradient}'")
            if self.gradient == "true":
                self.refuse("tau", because="on the gradient 'true', which has no targets")
            if self.divergence == "reverse-kl":
                self.refuse("weight", because="on the reverse KL, of which both are exp(e - 1)")

    slug = "odice"
    requires = (Imitates,)

    def build(self, task: Task) -> None:
        config = self.config
        if any(network.recurrent != "none" for network in (config.network, config.value_network)):
            raise UsageError("odice draws single decisions, which a recurrent network cannot learn from")
        normalizer = Normalizer(self.spec.obs) if config.normalize_obs else None
        self.policy = self.make_policy(config.policy, network=config.network, normalizer=normalizer)
        self.value: Any = config.value_network.build(
            self.spec.obs, 1, ensemble=config.members, head_gain=1.0, normalizer=normalizer
        )
        self.target_value = frozen_copy(self.value)
        self.policy_optimizer = self.make_optimizer(self.policy, lr=config.lr, weight_decay=config.weight_decay)
        self.value_optimizer = self.make_optimizer(self.value, lr=config.lr)

    def values(self, obs: Any) -> Tensor:
        """V of every member, [E, B]."""
        return self.value(obs).squeeze(-1)

    @torch.no_grad()
    def with_targets(self, batch: Batch) -> Batch:
        """A shallow copy with V' of both states, `target_value` and `target_next_value` [B]."""
        batch = batch.clone(False)
        for key, obs in (("target_value", "obs"), ("target_next_value", "next_obs")):
            batch[key] = self.target_value(batch[obs]).squeeze(-1).amin(0)
        return batch

    def residual(self, batch: Batch, value: Tensor, next_value: Tensor) -> Tensor:
        """r + discount next_value - value [E, B]; either may be [B], the same for all members."""
        value, next_value = torch.broadcast_tensors(value, next_value)
        reward, terminated = (batch[key].expand_as(value) for key in ("reward", "terminated"))
        return td_target(reward, self.config.discount, terminated, next_value) - value

    def linear_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What lowers V in the states of the data."""
        value = weighted_mean(self.values(batch["obs"]).mean(0), batch["weight"])
        return (1 - self.config.trade_off) * value, {"value": value}

    def dual(self, batch: Batch, residual: Tensor) -> tuple[Tensor, Tensor]:
        """trade_off E[f*(residual)], and the mean residual."""
        loss = weighted_mean(conjugate(residual, self.config.divergence).mean(0), batch["weight"])
        return self.config.trade_off * loss, weighted_mean(residual.mean(0), batch["weight"])

    def forward_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        residual = self.residual(batch, self.values(batch["obs"]), batch["target_next_value"])
        loss, mean = self.dual(batch, residual)
        return loss, {"residual": mean}

    def backward_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        residual = self.residual(batch, batch["target_value"], self.values(batch["next_obs"]))
        return self.config.backward_weight * self.dual(batch, residual)[0], {}

    def true_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """V at both ends, and all of it moves."""
        residual = self.residual(batch, self.values(batch["obs"]), self.values(batch["next_obs"]))
        loss, mean = self.dual(batch, residual)
        return loss, {"residual": mean}

    def slope(self, loss: Callable[..., Any], batch: Batch, metrics: dict[str, Tensor]) -> Tensor:
        """The gradient [P] of a loss in all parameters of V; adds its metrics to `metrics`."""
        total: Any = 0
        for piece in pieces(batch, self.config.micro_batch):
            value, sums = loss(piece)
            total = total + gradient(value, self.value_optimizer.parameters)
            for name, each in sums.items():
                metrics[name] = metrics.get(name, 0) + each.detach()
        return total

    def value_gradient(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """g [P], and metrics."""
        kind, metrics = self.config.gradient, dict[str, Tensor]()
        total = self.slope(self.linear_loss, batch, metrics)
        if kind == "true":
            return total + self.slope(self.true_loss, batch, metrics), metrics
        forward = self.slope(self.forward_loss, batch, metrics)
        total = total + forward
        if kind != "semi":
            backward = self.slope(self.backward_loss, batch, metrics)
            metrics["cosine"] = cosine(forward, backward)
            total = total + (rejected(backward, forward) if kind == "orthogonal" else backward)
        return total, metrics

    @torch.no_grad()
    def importance(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """w [B], the mean over members, of V as it is; and metrics."""
        config = self.config
        true = config.gradient == "true"
        next_value = self.values(batch["next_obs"]) if true else batch["target_next_value"]
        residual = self.residual(batch, self.values(batch["obs"]), next_value)
        released = config.weight == "released" and config.divergence == "chi2"
        ratio = residual.clamp_min(0) if released else density_ratio(residual, config.divergence)
        shares = {"zero_fraction": ratio <= 0, "clip_fraction": ratio >= config.weight_clip}
        factor = ratio.clamp_max(config.weight_clip).mean(0)
        metrics = {name: weighted_mean(each.to(factor).mean(0), batch["weight"]) for name, each in shares.items()}
        return factor, metrics | {"importance": weighted_mean(factor, batch["weight"])}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.policy.imitation_loss(batch, batch.get("noise", None))
        loss = imitation(error, batch["weight"], batch["importance"])
        return loss, {"policy_loss": loss}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.with_targets(with_noise(self.policy, weigh(batch)))
        batch["importance"], metrics = self.importance(batch)
        slope, described = self.value_gradient(batch)
        metrics |= described
        metrics |= self.value_optimizer.step(grads=unflatten(slope, self.value_optimizer.parameters))
        polyak_update(self.target_value, self.value, self.config.tau)
        return metrics | self.policy_optimizer.minimize(self.policy_loss, batch)
