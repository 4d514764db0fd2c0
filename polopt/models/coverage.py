"""Where a learner has been: whether an observation is like those of its replay."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core import signals
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.encoders import Obs, first_leaf
from polopt.networks.normalizer import Normalizer


class Coverage(nn.Module):
    """A network that has learned a fixed random embedding of what was seen errs elsewhere (Burda et al. 2018, arXiv
    1810.12894). `forward(obs)` [...] says where its error is at most `threshold`. Raises
    UsageError for recurrent networks."""

    threshold: Tensor

    def __init__(self, spec: Spec, network: Network, outputs: int = 16) -> None:
        super().__init__()
        if network.recurrent != "none":
            raise UsageError("coverage is of single observations: set the network's recurrent to none")
        self.normalizer = Normalizer(spec.obs)
        self.embedding, self.predictor = (
            network.build(spec.obs, outputs, head_gain=1.0, normalizer=self.normalizer) for _ in range(2)
        )
        self.embedding.requires_grad_(False)
        self.register_buffer("threshold", torch.zeros(()))

    def error(self, obs: Obs) -> Tensor:
        """Squared error [...] of the embedding, a mean over its coordinates."""
        return (self.predictor(obs) - self.embedding(obs)).square().mean(-1)

    def forward(self, obs: Obs) -> Tensor:
        return self.error(obs) <= self.threshold

    def fit(
        self,
        seen: Obs,
        *,
        updates: int,
        batch_size: int = 256,
        lr: float = 1e-3,
        quantile: float = 0.95,
        holdout: float = 0.1,
        generator: torch.Generator,
    ) -> None:
        """Learns from observations [B]; the threshold is the quantile of the errors on a share that was held out, at
        most 10,000 of them."""
        count = len(first_leaf(seen))
        order = torch.randperm(count, generator=generator)
        held = min(max(round(holdout * count), 1), 10_000)
        out, rows = order[:held], order[held:] if count > held else order
        device = device_of(self)
        self.normalizer.update(seen[rows].to(device))
        optimizer = torch.optim.Adam(self.predictor.parameters(), lr=lr)
        for _ in range(updates):
            signals.check()
            drawn = rows[torch.randint(len(rows), (batch_size,), generator=generator)]
            optimizer.zero_grad()
            self.error(seen[drawn].to(device)).mean().backward()
            optimizer.step()
        with torch.no_grad():
            self.threshold.copy_(torch.quantile(self.error(seen[out].to(device)), quantile))
