"""A policy over binned coordinates, one after the other: any shape of distribution on a grid of actions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.networks.build import FeedForward, join
from polopt.networks.encoders import Obs
from polopt.policies.base import Imitates, Record, Scores
from polopt.policies.boxes import BoxActor
from polopt.policies.categorical import draw


class AutoregressivePolicy(BoxActor, Scores, Imitates):
    """pi(a) = prod_d pi(bin of a_d | bins of a_1 .. a_(d-1), obs), each a softmax over `bins` equal parts of [-1, 1].

    Samples are the centers of bins.

    One network serves all coordinates: beside the observation it reads the bins so far, one-hot and zero where there
    is none yet, and which coordinate is asked for. Scoring asks for all of them in one pass. Reads `obs` and `action`
    [..., A]; records `action` and `log_prob`.

    `log_prob` is the logarithm of a probability, that of the action's bin, and is given for any action. But it is flat
    within a bin, so it is no density that could be differentiated in the action; and an exact divergence would sum
    over bins^(A - 1) prefixes. So this policy promises `Scores`, not `Density`.
    """

    family = "autoregressive policy"
    unit = True
    net: FeedForward

    def __init__(self, spec: Spec, net: nn.Module, *, bins: int) -> None:
        super().__init__(spec, net)
        self.bins = bins

    def bin_of(self, action: Tensor) -> Tensor:
        """int64 [..., A] in 0 .. bins - 1; actions beyond +-1 are in the outer bins."""
        return (0.5 * (action + 1.0) * self.bins).floor().clamp(0, self.bins - 1).long()

    def center(self, index: Tensor) -> Tensor:
        """The middle of each bin, in the default dtype."""
        return (2.0 * index.to(torch.get_default_dtype()) + 1.0) / self.bins - 1.0

    def prefixes(self, index: Tensor) -> Tensor:
        """Extra inputs [A, ..., A * bins + A] that ask for every coordinate, given the bins [..., A] before it."""
        hot = functional.one_hot(index, self.bins).to(torch.get_default_dtype())
        lead = [1] * (index.dim() - 1)
        place = torch.eye(self.size, device=index.device, dtype=hot.dtype)
        before = place.new_ones(self.size, self.size).tril(-1).reshape(self.size, *lead, self.size, 1)
        which = place.reshape(self.size, *lead, self.size).expand(-1, *index.shape[:-1], -1)
        return torch.cat([(hot * before).flatten(-2), which], -1)

    def log_probs(self, features: Tensor, extra: Tensor) -> Tensor:
        """Log-probabilities [..., bins] of the coordinate that `extra` asks for."""
        return self.net.trunk(join(features, extra)).log_softmax(-1)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        """Greedy acting takes the most likely bin of each coordinate in turn."""
        features = self.net.features(obs)
        index = torch.zeros(*features.shape[:-1], self.size, dtype=torch.int64, device=features.device)
        scores = []
        for coordinate in range(self.size):
            log_probs = self.log_probs(features, self.prefixes(index)[coordinate])
            chosen = log_probs.argmax(-1) if greedy else draw(log_probs)
            index[..., coordinate] = chosen
            scores.append(log_probs.gather(-1, chosen.unsqueeze(-1)).squeeze(-1))
        return {"action": self.center(index), "log_prob": torch.stack(scores).sum(0)}, {}

    def conditionals(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities [A, ..., bins] of each coordinate given the action's bins before it, and the bins [..., A]
        of the action."""
        index = self.bin_of(batch["action"])
        return self.log_probs(self.net.features(batch["obs"]), self.prefixes(index)), index

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """Log-probability [...] of the bin that each action lies in."""
        log_probs, index = self.conditionals(batch)
        return log_probs.gather(-1, index.movedim(-1, 0).unsqueeze(-1)).squeeze(-1).sum(0)

    def entropy(self, batch: Batch) -> Tensor:
        """An estimate, unbiased for actions that this policy drew: the sum over coordinates of the entropy given the
        action's own bins before it. Exact with one coordinate."""
        log_probs, _ = self.conditionals(batch)
        return -(log_probs.exp() * log_probs).sum(-1).sum(0)

    def imitation_loss(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        """-log_prob [...] of the bins of `batch["action"]`."""
        return -self.log_prob(batch)
