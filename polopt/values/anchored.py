"""Action values held by a model of the reward: heavy-tailed responses as classes, and what is learned beside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polopt.core.batch import same_shape
from polopt.core.errors import UsageError
from polopt.networks.encoders import Obs


class LogBins(nn.Module):
    """R responses, never negative, as K classes each: 0, and K - 1 parts of equal ratio.

    Their ends, their centers, which are the mean of the values in each, and `prior`, the logarithm of how often each
    was (one more than it was), are those of the data given to `fit`, and are saved.
    """

    edges: Tensor
    center: Tensor
    prior: Tensor

    def __init__(self, responses: int, bins: int) -> None:
        super().__init__()
        self.bins = bins
        self.register_buffer("edges", torch.zeros(responses, bins - 1))
        self.register_buffer("center", torch.zeros(responses, bins))
        self.register_buffer("prior", torch.zeros(responses, bins))

    @torch.no_grad()
    def fit(self, value: Tensor) -> None:
        """Places the classes for values [N, R]; the outer parts also have the thousandth that is beyond them.

        Raises UsageError for negative values.
        """
        if bool((value < 0).any()):
            raise UsageError("responses that are learned as classes of time or number are at least 0, and some are not")
        for row, each in enumerate(value.to(self.edges.dtype).T):
            positive = each[each > 0].double().sort().values
            beyond = len(positive) // 1000
            low, high = (float(positive[end].log()) for end in (beyond, -1 - beyond)) if len(positive) else (0.0, 0.0)
            grid = torch.linspace(low, high, self.bins, dtype=torch.float64)
            edges = torch.cat([torch.zeros(1), grid[1:-1].exp()]).to(each)
            middle = torch.cat([torch.zeros(1), (0.5 * (grid[1:] + grid[:-1])).exp()])  # where there are no data
            place = torch.searchsorted(edges, each.contiguous())
            count, total = (torch.bincount(place, own, self.bins) for own in (None, each.double()))
            self.edges[row] = edges
            self.center[row] = torch.where(count > 0, total / count.clamp_min(1), middle.to(total))
            self.prior[row] = ((count + 1.0) / (len(each) + self.bins)).log()

    def classes(self, value: Tensor) -> Tensor:
        """The class [N, R] of each value [N, R], int64."""
        return torch.searchsorted(self.edges, value.T.to(self.edges.dtype).contiguous()).T

    def mean(self, logits: Tensor) -> Tensor:
        """The expected responses [..., R] of logits [..., R, K]."""
        return (logits.softmax(-1) * self.center).sum(-1)

    def cross_entropy(self, logits: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        """Sum over responses and decisions of weight * cross-entropy: logits [B, R, K], value [B, R], weight [B]."""
        same_shape(weight=weight, value_of_a_response=value[:, 0], logits_of_a_class=logits[:, 0, 0])
        chosen = logits.log_softmax(-1).gather(-1, self.classes(value).unsqueeze(-1)).squeeze(-1)
        return -(weight * chosen.sum(-1)).sum()


class AnchoredQ(nn.Module):
    """Q(s, a) = stop_gradient[reward(s, a)] + future(s, a) of A actions, from one network.

    reward(s, a) = sum_k weight_k E[response_k | s, a], where each response has a head that is trained as a classifier
    (`LogBins`): what bootstrapping gets wrong cannot get into it. Without responses Q is `future` alone.

    Args:
        net: [...] observations -> [..., `outputs(actions, responses, bins)`].
    """

    weights: Tensor

    def __init__(self, net: nn.Module, actions: int, responses: int, bins: int) -> None:
        super().__init__()
        self.net, self.actions = net, actions
        self.classes = LogBins(responses, bins)
        self.register_buffer("weights", torch.zeros(responses), persistent=False)  # of the data, and not learned

    @staticmethod
    def outputs(actions: int, responses: int, bins: int) -> int:
        return actions * (1 + responses * bins)

    @torch.no_grad()
    def fit(self, response: Tensor, weights: Tensor) -> None:
        """Places the classes for recorded responses [N, R], and says what each counts, [R]."""
        self.classes.fit(response)
        self.weights.copy_(weights)

    def parts(self, obs: Obs) -> tuple[Tensor, Tensor]:
        """`future` [..., A] and the logits [..., A, R, K] of the responses, which begin around their `prior`: the rare
        classes of large values would else count for much before they are learned to be rare."""
        outputs = self.net(obs).unflatten(-1, (self.actions, -1))
        logits = outputs[..., 1:].unflatten(-1, (len(self.weights), self.classes.bins))
        return outputs[..., 0], logits + self.classes.prior

    def reward(self, logits: Tensor) -> Tensor:
        """The expected reward [..., A] of logits [..., A, R, K], without gradient."""
        return self.classes.mean(logits.detach()) @ self.weights

    def forward(self, obs: Obs) -> Tensor:
        future, logits = self.parts(obs)
        return self.reward(logits) + future
