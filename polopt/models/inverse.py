"""Models that read back which action led from one observation to the next.

loss    E |I(s, s') - a|^2, a mean over coordinates; of discrete actions E [-log P(a | s, s')]
"""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.batch import Batch, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.models.inputs import factor_counts
from polopt.networks import Network
from polopt.networks.encoders import Obs


class Inverse(nn.Module):
    """Which action led from an observation to the next: of a Box its values [..., A], squared error; of discrete
    actions logits, cross-entropy, summed over the factors of a MultiDiscrete. Observations are of any kind.

    Raises UsageError for recurrent networks and other action spaces.
    """

    def __init__(self, spec: Spec, network: Network) -> None:
        super().__init__()
        if network.recurrent != "none":
            raise UsageError("an inverse model is feed-forward: set the network's recurrent to none")
        self.counts, self.factors = factor_counts(spec), isinstance(spec.action, spaces.MultiDiscrete)
        both = spaces.Dict({"before": spec.obs, "after": spec.obs})
        self.net = network.build(both, sum(self.counts) or spec.action_dim, head_gain=1.0)

    def forward(self, obs: Obs, next_obs: Obs) -> Tensor:
        """Actions [..., A] as the policy acts, or logits [..., K] of all factors side by side."""
        return self.net({"before": obs, "after": next_obs})

    def action(self, obs: Obs, next_obs: Obs) -> Tensor:
        """The most likely action: [..., A], int64 [...] of a Discrete space, [..., factors] of a MultiDiscrete one."""
        outputs = self(obs, next_obs)
        if not self.counts:
            return outputs
        best = torch.stack([part.argmax(-1) for part in outputs.split(self.counts, -1)], -1)
        return best if self.factors else best.squeeze(-1)

    def log_prob(self, batch: Batch) -> Tensor:
        """log P(action | obs, next_obs) [...] of discrete actions. Raises UsageError for others, which have none."""
        if not self.counts:
            raise UsageError("an inverse model of Box actions gives their values and no probabilities")
        parts = batch["action"].unbind(-1) if self.factors else (batch["action"],)
        logits = self(batch["obs"], batch["next_obs"]).split(self.counts, -1)
        chosen = [one.log_softmax(-1).gather(-1, part.unsqueeze(-1)) for one, part in zip(logits, parts, strict=True)]
        return torch.cat(chosen, -1).sum(-1)

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum with `weight` [...]: of a Box action the mean squared error over coordinates, or -log_prob."""
        if self.counts:
            errors = -self.log_prob(batch)
        else:
            errors = (self(batch["obs"], batch["next_obs"]) - batch["action"]).square().mean(-1)
        loss = weighted_mean(errors, batch["weight"])
        return loss, {"inverse_loss": loss}
