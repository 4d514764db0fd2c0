"""A discriminator: how much more often experts do this than a learner, as a reward.

    d(s, a)           high on the expert; within +-bound where there is one
    logistic          E_expert[softplus(-d)] + E_learner[softplus(d)]     smallest at d = log rho_E / rho
    reverse-kl        E_expert[exp(-d)] + E_learner[d]                    at the same d, with 1 - KL(rho || rho_E)
    wasserstein       E_learner[d] - E_expert[d]                          only with the penalty
    penalty           E[(|grad d(x)| - 1)^2],  x = u x_expert + (1 - u) x_learner, u ~ U(0, 1)
    reward            d, computed when a batch is drawn and never stored: it changes with every step

rho is the distribution of states and actions. Sources: GAIL, Ho and Ermon 2016, arXiv 1606.03476, and DAC, Kostrikov
et al. 2018, arXiv 1809.02925 (logistic, d as the reward); AILBoost, arXiv 2404.08513 (reverse KL, tanh); penalty:
Gulrajani et al. 2017, arXiv 1704.00028.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch, align_left, flat, nested, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.numeric import bounded_exp
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.values.critics import QEnsemble

KINDS = ("logistic", "reverse-kl", "wasserstein")


class Discriminator(nn.Module):
    """d of every decision of a batch, by its `obs` and `action`: [...].

    Args:
        network: feed-forward. bound: d is within +-bound, by tanh; None leaves it free.

    Raises UsageError for other actions than those of a Box or a discrete space and for recurrent networks.
    """

    def __init__(self, spec: Spec, network: Network, bound: float | None = None) -> None:
        super().__init__()
        self.ensemble = QEnsemble(spec, network, members=1)
        self.bound = bound

    def forward(self, batch: Batch) -> Tensor:
        return self._score(batch["obs"], self.ensemble.inputs(batch["action"]))

    @torch.no_grad()
    def reward(self, batch: Batch) -> Tensor:
        """d [...], for a policy to learn from."""
        return self(batch)

    def penalty(self, expert: Batch, learner: Batch, share: Tensor) -> Tensor:
        """(|gradient of d| - 1)^2 [B] between rows of an expert and of a learner, B of each, `share` [B] of the first.

        The gradient is that in the observation and the action (as a vector that is 1 at the action, if discrete). It is
        differentiated again with the loss, which a compiled function cannot be: step by `Optimizer.step`.

        Raises UsageError for observations that are not numbers, between which there is nothing.
        """
        one, other = (
            flat({"obs": side["obs"], "action": self.ensemble.inputs(side["action"])}) for side in (expert, learner)
        )
        if not all(value.is_floating_point() for value in one.values()):
            raise UsageError("a gradient penalty mixes observations, which needs Boxes of real numbers")
        mixed = {
            path: torch.lerp(other[path], own, align_left(share, own).expand_as(own)).detach().requires_grad_()
            for path, own in one.items()
        }
        parts = nested(mixed)
        score = self._score(parts["obs"], parts["action"]).sum()
        slopes = torch.autograd.grad(score, list(mixed.values()), create_graph=True)
        norm = torch.cat([slope.flatten(1) for slope in slopes], 1).norm(dim=1)
        return (norm - 1).square()

    def _score(self, obs: Tensor, action: Tensor) -> Tensor:
        score = self.ensemble.network(obs, action).squeeze(0).squeeze(-1)
        return score if self.bound is None else self.bound * torch.tanh(score / self.bound)


def discrimination(
    model: Discriminator, expert: Batch, learner: Batch, kind: str = "logistic"
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a discriminator, each side a weighted sum with its own `weight` [B], and what describes it.

    Metrics: `discriminator_loss`, and the mean d of both sides, `expert_score` and `learner_score`. Raises ValueError
    for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"a discriminator is one of {', '.join(KINDS)}, not '{kind}'")
    high, low = model(expert), model(learner)
    metrics = {
        "expert_score": weighted_mean(high, expert["weight"]),
        "learner_score": weighted_mean(low, learner["weight"]),
    }
    if kind == "logistic":
        up, down = functional.softplus(-high), functional.softplus(low)
    else:
        up, down = (bounded_exp(-high) if kind == "reverse-kl" else -high), low
    loss = weighted_mean(up, expert["weight"]) + weighted_mean(down, learner["weight"])
    return loss, {"discriminator_loss": loss, **metrics}
