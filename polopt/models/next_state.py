"""The plainest model of the world: a network that gives the next observation, and states imagined with it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.models.inputs import Vector
from polopt.networks import Network
from polopt.networks.encoders import Obs


class NextState(nn.Module):
    """f(s, a), the next observation itself as a vector [..., D], for a Box of real numbers or a Dict of such.

    Nothing is standardized, and neither rewards nor ends are predicted; `polopt.models.dynamics` has a model that does.
    Actions are as the policy acts, [..., A]. Raises UsageError for other observations and for recurrent networks.
    """

    def __init__(self, spec: Spec, network: Network) -> None:
        super().__init__()
        self.vector = Vector(spec)
        if network.recurrent != "none":
            raise UsageError("a model of the next state sees one decision: set its network's recurrent to none")
        self.net = network.build(spec.obs, self.vector.size, inputs_extra=spec.action_dim, head_gain=1.0)

    def forward(self, obs: Obs, action: Tensor) -> Tensor:
        return self.net(obs, action)

    def errors(self, obs: Obs, action: Tensor, next_obs: Obs) -> Tensor:
        """Squared error [...], the mean over coordinates, of recorded decisions."""
        return (self(obs, action) - self.vector(next_obs)).square().mean(-1)

    @torch.no_grad()
    def imagine(self, obs: Obs, actions: Tensor) -> Obs:
        """The states [J, B, ...] in which the actions [B, J, A] would be taken, beginning at `obs` [B, ...].

        The first is `obs` itself, and each other what the model makes of the one before and of its action.
        """
        states = [self.vector(obs)]
        for action in actions.unbind(1)[:-1]:
            states.append(self(self.vector.back(states[-1]), action))
        return self.vector.back(torch.stack(states))
