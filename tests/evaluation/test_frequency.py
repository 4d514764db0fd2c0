"""Returns by decision interval, and their mean."""

from __future__ import annotations

import pytest
import torch
from scipy.integrate import trapezoid

from polopt.core.errors import UsageError
from polopt.evaluation.frequency import frequency_averaged_score, interval_mean, returns_by_interval
from polopt.policies.base import Actor
from tests.policies.lines import Line


class Home(Actor):
    """To 0 in as few steps of at most 1 as it takes."""

    def __init__(self, spec):
        super().__init__()
        self.spec = spec
        self.asked = 0

    def act(self, obs, carry=None, *, greedy=False):
        self.asked += 1
        return {"action": -obs.clamp(-1.0, 1.0)}, {}


def test_the_mean_is_by_trapezoids_over_the_range():
    values = {1: 4.0, 2: 2.0, 4: 1.0, 12: 0.5}
    expected = trapezoid([4.0, 2.0, 1.0, 0.5], [1, 2, 4, 12]) / 11
    assert interval_mean(values) == pytest.approx(expected)
    assert interval_mean(dict(reversed(values.items()))) == pytest.approx(expected)
    assert interval_mean({3: 7.0}) == 7.0
    assert interval_mean({1: 2.0, 5: 2.0, 6: 2.0}) == pytest.approx(2.0)


def test_scores_are_rescaled_and_clipped():
    found = frequency_averaged_score({1: -100.0, 2: -150.0, 4: -2000.0}, -1400.0, -150.0)
    assert found == pytest.approx((1.0 + 2 * 0.5) / 3)  # 1 at both ends of the first piece, then down to 0
    assert frequency_averaged_score({1: -775.0, 16: -775.0}, -1400.0, -150.0) == pytest.approx(0.5)


def test_an_actor_is_asked_in_every_so_manyth_decision_and_its_action_held():
    task = Line.make("line", 3, seed=0, evaluation=True)
    actor = Home(task.spec)
    returns, asked = {}, {}
    for interval in (1, 2, 5):
        actor.asked = 0
        returns |= returns_by_interval(actor, task, (interval,), 3)
        asked[interval] = actor.asked
    assert asked == {1: 12, 2: 6, 5: 3}  # of 12 decisions
    task.reset(index=torch.arange(3))
    expected = {}
    for interval in returns:
        place, total = task.reset(index=torch.arange(3)).squeeze(-1).double(), torch.zeros(3).double()
        for step in range(12):
            if step % interval == 0:
                move = -place.clamp(-1.0, 1.0)
            place = place + move
            total -= place.abs()
        expected[interval] = float(total.mean())
    assert returns == pytest.approx(expected, rel=1e-5)
    assert returns[1] > returns[2] > returns[5]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: interval_mean({}), "one interval or more"),
        (lambda: frequency_averaged_score({1: 0.0}, 1.0, 1.0), "not 1 and 1"),
    ],
)
def test_what_cannot_be_is_said(make, said):
    with pytest.raises(UsageError, match=said):
        make()
