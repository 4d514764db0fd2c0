from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch, weigh
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.models.discriminator import Discriminator, discrimination
from polopt.networks import Network
from polopt.optim import Optimizer

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), "a toy")


class Given(Discriminator):
    """d is written in the rows."""

    def __init__(self) -> None:
        super().__init__(SPEC, Network((4,)))

    def forward(self, batch: Batch) -> Tensor:
        return batch["obs"][:, 0]


def rows(*scores: float, **more: Tensor) -> Batch:
    obs = torch.tensor(scores).unsqueeze(-1).expand(-1, 3)
    return weigh(TensorDict({"obs": obs, "action": torch.zeros(len(scores), 2), **more}, [len(scores)]))


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("logistic", (softplus(-2) + softplus(1)) / 2 + (softplus(0) + softplus(3) + softplus(-3)) / 3),
        ("reverse-kl", (math.exp(-2) + math.exp(1)) / 2 + 0.0),
        ("wasserstein", -(2 - 1) / 2 + 0.0),
    ],
)
def test_the_losses_by_hand(kind, expected, float64):
    """Two rows of the expert, three of the learner: each side is a mean."""
    loss, metrics = discrimination(Given(), rows(2.0, -1.0), rows(0.0, 3.0, -3.0), kind)
    assert float(loss) == float(metrics["discriminator_loss"]) == pytest.approx(expected)
    assert float(metrics["expert_score"]) == pytest.approx(0.5)
    assert float(metrics["learner_score"]) == pytest.approx(0)
    weighted = rows(4.0, -1.0, row_weight=torch.tensor([0.0, 1.0]))
    assert float(discrimination(Given(), weighted, weighted, "wasserstein")[1]["expert_score"]) == pytest.approx(-1)
    with pytest.raises(ValueError, match="not 'kl'"):
        discrimination(Given(), weighted, weighted, "kl")


@pytest.mark.parametrize("kind", ["logistic", "reverse-kl"])
def test_the_minimizer_is_the_logarithm_of_the_ratio(kind, float64):
    """Of two distributions over 3 states and 2 actions, as weights; the value is that of the divergence."""
    spec = Spec(spaces.Discrete(3), spaces.Discrete(2), "a table")
    expert = torch.tensor([0.3, 0.1, 0.2, 0.1, 0.2, 0.1])
    learner = torch.tensor([0.1, 0.2, 0.1, 0.1, 0.1, 0.4])
    every = {"obs": torch.arange(3).repeat_interleave(2), "action": torch.arange(2).repeat(3)}
    sides = [TensorDict({**every, "weight": weight}, [6]) for weight in (expert, learner)]
    model = Discriminator(spec, Network((16,)))
    optimizer = Optimizer(model, lr=0.02)
    for _ in range(300):
        loss, _ = discrimination(model, *sides, kind)
        optimizer.step(loss)
    ratio = (expert / learner).log()
    torch.testing.assert_close(model.reward(sides[0]), ratio, atol=2e-3, rtol=0)
    middle = (expert + learner) / 2
    shannon = (expert * (expert / middle).log() + learner * (learner / middle).log()).sum()
    value = 2 * math.log(2) - shannon if kind == "logistic" else 1 + (learner * ratio).sum()
    assert float(loss.detach()) == pytest.approx(float(value), abs=1e-4)


def test_the_penalty_beside_finite_differences(float64):
    model = Discriminator(SPEC, Network((8,)), bound=1.0)
    sides = [TensorDict({"obs": torch.randn(4, 3), "action": torch.randn(4, 2)}, [4]) for _ in range(2)]
    share = torch.tensor([0.0, 0.25, 0.5, 1.0])
    found = model.penalty(*sides, share)

    expert, learner = (torch.cat([side["obs"], side["action"]], 1) for side in sides)
    mixed = share[:, None] * expert + (1 - share[:, None]) * learner
    for row, x in enumerate(mixed):
        slopes = []
        for at in range(5):
            step = torch.zeros(5)
            step[at] = 1e-5
            pair = torch.stack([x + step, x - step])
            high, low = model(TensorDict({"obs": pair[:, :3], "action": pair[:, 3:]}, [2])).tolist()
            slopes.append((high - low) / 2e-5)
        assert float(found[row]) == pytest.approx((np.linalg.norm(slopes) - 1) ** 2, rel=1e-5)

    weight = model.ensemble.network.trunk.head.weight
    (slope,) = torch.autograd.grad(found.mean(), weight)
    ends = []
    for step in (1e-5, -2e-5):
        with torch.no_grad():
            weight[0, 0, 0] += step
        ends.append(float(model.penalty(*sides, share).detach().mean()))
    high, low = ends
    assert float(slope[0, 0, 0]) == pytest.approx((high - low) / 2e-5, rel=1e-4)


def test_the_penalty_of_discrete_actions_and_of_what_has_no_between():
    spec = Spec(SPEC.obs, spaces.Discrete(3), "a toy")
    model, share = Discriminator(spec, Network((8,))), torch.rand(4)
    side = TensorDict({"obs": torch.randn(4, 3), "action": torch.tensor([0, 1, 2, 0])}, [4])
    assert model.penalty(side, side.flip(0), share).shape == (4,)
    dictionary = Spec(spaces.Dict({"a": SPEC.obs, "b": SPEC.obs}), SPEC.action, "a toy")
    sides = [
        TensorDict({"obs": {"a": torch.randn(4, 3), "b": torch.randn(4, 3)}, "action": torch.randn(4, 2)}, [4])
        for _ in range(2)
    ]
    both = Discriminator(dictionary, Network((8,)))
    whole = Discriminator(Spec(spaces.Box(-1.0, 1.0, (6,)), SPEC.action, "a toy"), Network((8,)))
    whole.load_state_dict(both.state_dict())
    joined = [
        TensorDict({"obs": torch.cat([side["obs", "a"], side["obs", "b"]], 1), "action": side["action"]}, [4])
        for side in sides
    ]
    torch.testing.assert_close(both.penalty(*sides, share), whole.penalty(*joined, share))
    table = Discriminator(Spec(spaces.Discrete(3), spaces.Discrete(3), "a table"), Network((8,)))
    side = TensorDict({"obs": torch.tensor([0, 1]), "action": torch.tensor([0, 1])}, [2])
    with pytest.raises(UsageError, match="Boxes of real numbers"):
        table.penalty(side, side, share[:2])


def test_the_bound_and_the_reward():
    model, free = Discriminator(SPEC, Network((8,)), bound=0.5), Discriminator(SPEC, Network((8,)))
    free.load_state_dict(model.state_dict())
    batch = TensorDict({"obs": 40 * torch.randn(6, 2, 3), "action": torch.zeros(6, 2, 2)}, [6, 2])
    reward = model.reward(batch)
    assert reward.shape == (6, 2)
    assert not reward.requires_grad
    assert float(reward.abs().max()) <= 0.5
    torch.testing.assert_close(reward, 0.5 * torch.tanh(free.reward(batch) / 0.5))
