"""Values of finitely many actions, all of them at once, and what is made of them."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.encoders import Obs
from polopt.networks.normalizer import Normalizer


class FiniteQ(nn.Module):
    """Q(obs, .) of `members` critics with trunks of their own: `forward(obs)` [E, ..., K] for the K actions of a
    Discrete space, `forward(obs, action)` [E, ...] of one action each, as `QEnsemble` has it.

    With `dueling` it is V(obs) + A(obs, .) - mean A(obs, .), where V and A are outputs of one trunk (Wang et al. 2016,
    arXiv 1511.06581, equation 9, whose two streams have a hidden layer of their own). Illegal actions have values too:
    `polopt.policies.categorical.mask_logits` takes them out. Raises UsageError for other action spaces and for
    recurrent networks.
    """

    def __init__(
        self,
        spec: Spec,
        network: Network,
        members: int = 1,
        *,
        dueling: bool = False,
        normalizer: Normalizer | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(spec.action, spaces.Discrete):
            raise UsageError(f"values of all actions need a Discrete space; {spec.name} has {spec.action}")
        if network.recurrent != "none":
            raise UsageError("a Q function is feed-forward: set the network's recurrent to none")
        self.members = members
        self.dueling = dueling
        outputs = spec.num_actions + dueling
        self.network = network.build(spec.obs, outputs, ensemble=members, head_gain=1.0, normalizer=normalizer)

    @property
    def normalizer(self) -> Normalizer | None:
        return self.network.normalizer

    def forward(self, obs: Obs, action: Tensor | None = None) -> Tensor:
        q = self.network(obs)
        if self.dueling:
            advantage, value = q[..., :-1], q[..., -1:]
            q = value + advantage - advantage.mean(-1, keepdim=True)
        return q if action is None else taken(q, action)


def taken(q: Tensor, action: Tensor) -> Tensor:
    """The entries [..., of q] of values [..., K], or [E, ..., K], at `action` int64 [...]."""
    return q.gather(-1, action.expand(q.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def mean_value(q: Tensor, probability: Tensor, log_prob: Tensor, temperature: float | Tensor = 0.0) -> Tensor:
    """sum_a pi(a) (q(a) - temperature log pi(a)) [...], all of them [..., K]: the (soft) value of a policy, exact.

    Illegal actions have probability 0 and any finite value.
    """
    return (probability * (q - temperature * log_prob)).sum(-1)


def gap_to_softmax(q: Tensor, action: Tensor) -> Tensor:
    """log sum_a exp q(a) - q(action) [...] of values [..., K], -inf at illegal actions: what conservative Q-learning
    holds down (Kumar et al. 2020, arXiv 2006.04779, equation 4). Never negative."""
    return torch.logsumexp(q, -1) - taken(q, action)
