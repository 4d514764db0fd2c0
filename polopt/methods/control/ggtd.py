"""Generalized Gaussian TD errors (GGTD): a critic that learns how heavy the tails of its errors are.

Kim et al., "Generalized Gaussian Temporal Difference Error for Uncertainty-aware Reinforcement Learning", 2024, arXiv
2408.02295.

TD errors are modeled as generalized Gaussian of scale 1 with a shape beta that each of E members predicts beside its
value (2: like a Gaussian, 1: Laplace, below: heavier tails). Its likelihood is weighted towards members that predict
light tails, and what the members disagree about in their errors counts less. SAC's two critics j have E members i each,
networks of their own, with values v_ji, shapes beta_ji and errors d_ji = v_ji - y_i, each on its own target:

    target      y_i = reward + discount (1 - terminated) (min_j v_targ_ji(s', a') - temperature log pi(a'|s'))
    likelihood  n_ji = |d_ji|^beta_ji - log beta_ji + lgamma(1 / beta_ji)
    averse      L_j = E[ sum_i omega_ji n_ji ],   omega_ji = beta_ji / sum_k beta_jk, with its gradient
    variance    u_j = Var_i(d_ji) / (kurtosis_j / E + (E + 1) / (E - 1)),   unbiased excess kurtosis over members
    batch       w_j = (u_j + xi)^-1 / sum over the batch, constant; xi >= 0 the smallest with 1 / sum w^2 >= 16
    critic      sum_j (L_j + batch_coefficient E[ w_j sum_i |d_ji| ]) / 2
    policy      E[ temperature log pi(a|s) - min_j mean_i v_ji(s, a) ]

Differs from SAC in: the critics and their loss (batch inverse error variance, `batch_weights errors`).
Also in the paper and its code: a Gaussian likelihood with a learned variance (`--likelihood gaussian`: squared errors
in the batch term, and the sum over members), inverse variances of predictions (`--batch-weights values`, IV-RL, arXiv
2201.01666), no risk aversion (`--no-risk-averse`), a learned scale (`--scale-head`).
Departs from the paper in: beta stays in [0.2, 8], and sizes below 1e-3 count as that where beta < 2, whose power is too
steep at 0. xi is found by bisection, where the code minimizes |1 / sum w^2 - 16| by 100 steps of Nelder-Mead. The code
has |d| beta in place of the power (`--likelihood product`), which is no density. Since the scale is 1, beta also says
how large errors are: `--reward-scale` should bring them to the order of 1. The PPO of the paper is not here.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import InvalidValue, param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.methods.control.sac import SAC
from polopt.networks import Network
from polopt.networks.encoders import Obs
from polopt.optim import polyak_update
from polopt.values.critics import QEnsemble

SHAPES = (0.2, 8.0)
SMALLEST = 1e-3  # |error| inside powers below 2
LEAST_VARIANCE = 1e-6
BISECTIONS = 30


def generalized_nll(error: Tensor, shape: Tensor, scale: Tensor | None = None, form: str = "power") -> Tensor:
    """-log of the generalized Gaussian density of `error` but for log 2; all are [...], `scale` None is 1.

    With form "product" the power of the size is its product with the shape.
    """
    size = error.abs() if scale is None else error.abs() / scale
    if form == "power":
        fit = torch.where(shape < 2, size.clamp(min=SMALLEST), size).pow(shape)
    else:
        fit = size * shape
    norm = torch.lgamma(1 / shape) - shape.log()
    return fit + norm if scale is None else fit + norm + scale.log()


def gaussian_nll(error: Tensor, variance: Tensor) -> Tensor:
    """-log of the Gaussian density of `error` but for a constant; both [...]."""
    variance = variance.clamp(min=LEAST_VARIANCE)
    return 0.5 * (variance.log() + error.square() / variance)


def error_variance(error: Tensor) -> Tensor:
    """Variance [..., B] of the errors [..., E, B] of E >= 4 members, corrected for their kurtosis and number."""
    count = error.shape[-2]
    centered = error - error.mean(-2, keepdim=True)
    second, fourth = centered.square().mean(-2), centered.pow(4).mean(-2)
    ratio = torch.where(second > 0, fourth / second.square(), 0.0)
    kurtosis = ((count**2 - 1) * ratio - 3 * (count - 1) ** 2) / ((count - 2) * (count - 3))
    kurtosis = torch.where(second > 0, kurtosis, 0.0)
    return second / (kurtosis / count + (count + 1) / (count - 1))


def inverse_weights(variance: Tensor, effective: float, rows: Tensor | None = None) -> Tensor:
    """Weights [..., B], 1 / (variance + xi) with sum 1 over the batch: xi is the smallest at which 1 / sum(weight^2) is
    at least `effective`, or B - 1.

    `rows` [B] says how often each row is there; by default once.
    """
    variance = variance.double().clamp(min=LEAST_VARIANCE)
    rows = torch.ones_like(variance[..., :1]) if rows is None else rows.double()
    count = (rows * torch.ones_like(variance)).sum(-1, keepdim=True)
    enough = (count - 1).clamp(max=effective)

    def size(xi: Tensor) -> Tensor:
        inverse = 1 / (variance + xi)
        return (rows * inverse).sum(-1, keepdim=True).square() / (rows * inverse.square()).sum(-1, keepdim=True)

    # Beyond 2 B times the largest variance all weights are so equal that B - 1 is reached.
    low = (1e-6 * variance.amin(-1, keepdim=True)).log()
    high = (2 * count * variance.amax(-1, keepdim=True)).log()
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        reached = size(middle.exp()) >= enough
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    xi = torch.where(size(torch.zeros_like(high)) >= enough, 0.0, high.exp())
    inverse = 1 / (variance + xi)
    return (inverse / (rows * inverse).sum(-1, keepdim=True)).to(torch.get_default_dtype())


def error_terms(
    config: Any, error: Tensor, heads: list[Tensor], error_weight: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss [C, B] of errors [C, E, B], and what the heads [C, E, B] said of them; `error_weight` is [B, C]."""
    if config.likelihood == "gaussian":
        fit, cost, said = gaussian_nll(error, heads[0]).sum(1), error.square(), {"error_variance": heads[0]}
    else:
        shape = heads[0].clamp(*SHAPES) if heads else torch.full_like(error, config.shape)
        nll = generalized_nll(error, shape, heads[1] if len(heads) > 1 else None, config.likelihood)
        share = shape if config.risk_averse else torch.ones_like(shape)
        fit, cost, said = (share / share.sum(1, keepdim=True) * nll).sum(1), error.abs(), {"error_shape": shape}
    if error_weight is not None:
        fit = fit + config.batch_coefficient * error_weight.mT * cost.sum(1)
    return fit, said


class GGTD(SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        warmup: int = param(100, "official code", low=1, unit="env_steps", help="uniform random actions at the start")
        members: int = param(5, "official code", low=1, help="of each critic, networks of their own")
        likelihood: str = param("power", "equation 3", choices=("power", "product", "gaussian"), help="of TD errors")
        shape: float | None = param(None, "polopt", above=0, help="of all errors; none: learned")
        scale_head: bool = param(False, "ablation", help="learn the scale of errors too, which is 1 without")
        risk_averse: bool = param(True, "section 3.1", help="weigh members by their shape, not alike")
        batch_weights: str = param(
            "errors", "section 3.2", choices=("errors", "values"), help="what the inverse variance over members is of"
        )
        batch_coefficient: float = param(0.1, "official code", low=0, help="of the term with these weights")
        effective_batch: int = param(16, "official code", low=1, help="rows that these weights leave, at least")
        network: Network = param(Network(sizes=(256, 256), activation="tanh"), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            least = 4 if self.batch_weights == "errors" else 2
            if self.batch_coefficient and self.members < least:
                why = f"must be 0 with fewer than {least} members, whose spread says too little"
                raise InvalidValue("batch_coefficient", why)
            if not self.batch_coefficient:
                self.refuse("batch_weights", "effective_batch", because="with batch_coefficient 0")
            if self.likelihood == "gaussian":
                self.refuse("shape", "scale_head", "risk_averse", because="with a Gaussian likelihood")
            elif self.shape is not None:
                self.refuse("scale_head", "risk_averse", because="where all errors have one shape")
            if self.members == 1:
                self.refuse("risk_averse", because="with one member")

    slug = "ggtd"
    headline = ("entropy", "entropy_temperature", "q", "error_shape")
    metrics = {
        "critic_loss": "negative log-likelihood of the TD errors and the batch term | may be negative",
        "error_shape": "mean beta over batch, critics and members | 2 and above: light tails or errors far below 1; "
        "at 0.2 or 8 it is at its bounds: change `reward_scale`",
        "error_variance": "mean variance of the errors that members predict, with a Gaussian likelihood",
    }
    limits = (
        Limit(
            "sac",
            at={"members": 1, "batch_coefficient": 0.0, "shape": 2.0, "network.activation": "relu"},
            apart={"shape": None},
            because="of one member with shape 2 the likelihood is the squared error; equal up to rounding, since it is "
            "a power of the size",
            tolerance=1e-9,
        ),
    )
    smoke = Smoke("Pendulum-v1", SAC.smoke.steps, SAC.smoke.config)

    def make_critic(self) -> QEnsemble:
        config = self.config
        head = "generalized" if config.scale_head else "scalar" if config.shape is not None else "gaussian"
        return QEnsemble(self.spec, config.network, members=config.critics * config.members, head=head)

    def predict(self, critic: Any, obs: Obs, action: Tensor) -> tuple[Tensor, ...]:
        """Values, and what else the heads say, each [C, E, B]."""
        found = critic(obs, action)
        split = self.config.critics, self.config.members
        return tuple(each.unflatten(0, split) for each in (found if isinstance(found, tuple) else (found,)))

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Soft one-step targets [E, B], of each member its own; time limits are bootstrapped through."""
        next_action, next_log_prob = self.next_action(batch["next_obs"])
        values = self.predict(self.target_critic, batch["next_obs"], next_action)[0].amin(0)
        return torch.stack([self.soft_target(batch, each, next_log_prob) for each in values])

    def action_values(self, obs: Obs, action: Tensor) -> Tensor:
        return self.predict(self.critic, obs, action)[0].mean(1)

    @torch.no_grad()
    def evaluate_batch(self, batch: Batch) -> Batch:
        """Adds `weight`, `target` [B, E] and, of the whole batch, `error_weight` [B, C]."""
        batch = weigh(batch)
        batch["target"] = self.target(batch).mT
        if self.config.batch_coefficient:
            values = self.predict(self.critic, batch["obs"], batch["action"])[0]
            batch["error_weight"] = self.error_weights(values, batch).mT
        return batch

    def error_weights(self, values: Tensor, batch: Batch) -> Tensor:
        """Of values [C, E, B], weights [C, B]."""
        if self.config.batch_weights == "errors":
            variance = error_variance(values - batch["target"].mT)
        else:
            variance = batch["discount"].square() * values.var(1)
        return inverse_weights(variance, self.config.effective_batch, batch.get("row_weight", None))

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        values, *heads = self.predict(self.critic, batch["obs"], batch["action"])
        terms, metrics = error_terms(config, values - batch["target"].mT, heads, batch.get("error_weight", None))
        loss = 0.5 * weighted_mean(terms.sum(0), weight)
        means = {name: weighted_mean(value.mean((0, 1)), weight) for name, value in metrics.items()}
        return loss, {"critic_loss": loss, "q": weighted_mean(values.mean((0, 1)), weight)} | means

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.evaluate_batch(batch)
        metrics = self.critic_optimizer.minimize(self.critic_loss, batch) | self.improve(batch)
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return metrics | {"entropy_temperature": self.temperature.value}
