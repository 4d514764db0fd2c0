"""The gate before the best policy, and the anchor that waits for a miss."""

from __future__ import annotations

import math

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from polopt.core.batch import weigh
from polopt.core.state import Stateful, gather, restore
from polopt.optim import Optimizer
from polopt.regularizers.gate import BestSoFar, DelayedAnchor


class Learner(Stateful):
    def __init__(self, **options: object) -> None:
        torch.manual_seed(0)
        self.net = nn.Linear(2, 1)
        self.optimizer = Optimizer(self.net, lr=0.1)
        self.gate = BestSoFar([self.net, self.optimizer], **options)

    def train(self) -> None:
        batch = weigh(TensorDict({"x": torch.tensor([[1.0, 2.0]])}, [1]))
        self.optimizer.minimize(lambda rows: ((rows["weight"] * self.net(rows["x"]).sum(-1).square()).sum(), {}), batch)

    def weights(self) -> list[float]:
        return torch.cat([parameter.detach().flatten() for parameter in self.net.parameters()]).tolist()


def test_any_rise_is_accepted_and_nothing_else():
    gate = Learner().gate
    answers = [gate.judge(value) for value in (-5.0, -5.0, -4.9, -6.0, math.nan, math.inf, -4.0)]
    assert answers == [True, False, True, False, False, False, True]
    assert gate.best == -4.0
    assert gate.accepted == 3
    assert gate.missed == 0
    assert gate.ever_missed
    gate.judge(-7.0)
    gate.judge(-7.0)
    assert gate.missed == 2
    assert gate.accepted == 3


def test_a_rise_by_a_share_of_its_size():
    gate = Learner(rise=0.05).gate
    gate.judge(-100.0)
    assert not gate.judge(-95.5)
    assert gate.judge(-94.5)
    assert not gate.judge(-94.0, again=-97.0)  # the best one, on the same draws: 3 is less than 5 percent of 97
    assert gate.judge(-94.0, again=-99.0)
    assert gate.best == -94.0


def test_an_estimate_that_is_no_number_is_never_the_first():
    gate = Learner().gate
    assert not gate.judge(math.nan)
    assert gate.best is None
    assert gate.judge(-3.0)


@pytest.mark.parametrize("put_back", [True, False])
def test_what_is_turned_down_is_put_back_with_its_optimizer(put_back: bool):
    """One that was put back goes on as one that never tried: Adam's averages are those of the best too."""
    learner, twin = Learner(restore=put_back), Learner()
    for one in (learner, twin):
        one.train()
        assert one.gate.judge(1.0)
    learner.train()
    tried = learner.weights()
    assert not learner.gate.judge(0.5)
    assert learner.weights() == (twin.weights() if put_back else tried)
    learner.train()
    twin.train()
    assert (learner.weights() == twin.weights()) == put_back
    learner.gate.recall()
    assert learner.weights() != twin.weights()


def test_it_is_saved():
    learner = Learner(restore=True)
    learner.train()
    learner.gate.judge(1.0)
    best = learner.weights()
    learner.train()
    state = {path: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf for path, leaf in gather(learner).items()}
    other = Learner(restore=True)
    restore(other, state)
    assert other.gate.best == 1.0
    assert other.gate.accepted == 1
    assert not other.gate.judge(1.0)
    assert other.weights() == best


def test_the_anchor_waits_then_restrains():
    anchor, kl = DelayedAnchor(coefficient=0.5, limit=0.01), torch.tensor(0.02)
    assert float(anchor.penalty(kl)) == 0.0
    assert bool(anchor.allows(kl))
    assert float(anchor.value) == 0.5
    anchor.begin()
    assert float(anchor.penalty(kl)) == pytest.approx(0.01)
    assert not anchor.allows(kl)
    assert float(anchor.value) == 1.0
    assert not anchor.allows(kl)
    assert float(anchor.value) == 2.0
    assert anchor.allows(torch.tensor(0.01))
    assert float(anchor.value) == 2.0
    assert float(anchor.penalty(kl)) == pytest.approx(0.04)
    anchor.renew()
    assert float(anchor.value) == 0.5
    slope = torch.tensor(0.004, requires_grad=True)
    anchor.penalty(slope).backward()
    assert float(slope.grad) == 0.5  # type: ignore[arg-type]
    other = DelayedAnchor()
    other.load_state_dict(anchor.state_dict())
    assert bool(other.active)
