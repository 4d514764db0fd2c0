"""Where episodes end: shares of goals, counted by hand for policies that know where they go."""

import math

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.evaluation.goals import goal_scores, goal_shares
from polopt.policies.base import Actor
from polopt.tasks import make_task


class Goes(Actor):
    """Row by row in one of these directions."""

    def __init__(self, *ways):
        super().__init__()
        self.ways = torch.tensor(ways)

    def act(self, obs, carry=None, *, greedy=False):
        way = self.ways[torch.arange(len(obs)) % len(self.ways)]
        return {"action": way * (0.5 if greedy else 1.0)}, {}


def test_shares_and_returns_by_hand():
    task = make_task("point/goals", 8, evaluation=True)
    actor = Goes([1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0])
    shares, returns = goal_shares(actor, task, 8)
    assert shares.tolist() == [0.5, 0.25, 0.0, 0.0]  # the goals are to the right, above, to the left, below
    straight = -(4 + 3 + 2 + 1) - 4 * 0.1 + 10  # within reach after four steps
    assert returns == pytest.approx(0.75 * straight + 0.25 * 30 * -5)
    scores = goal_scores(actor, task, 8, least=0.3)
    third = [2 / 3, 1 / 3]
    assert scores["goal_entropy"] == pytest.approx(-sum(share * math.log(share) for share in third))
    assert (scores["goals"], scores["missed"], scores["return"]) == (1.0, 0.25, pytest.approx(returns))
    assert goal_scores(actor, task, 8)["goals"] == 2.0
    greedy = goal_scores(actor, task, 8, greedy=True)
    assert greedy["return"] != scores["return"]
    task.close()


def test_a_task_without_goals_is_refused():
    task = make_task("Pendulum-v1", 1, evaluation=True)
    with pytest.raises(UsageError, match=r"^Pendulum-v1 does not say which goal was reached"):
        goal_shares(Goes([1.0]), task)
    task.close()
