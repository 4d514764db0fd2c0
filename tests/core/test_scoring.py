"""Whoever acts may leave out how likely the action was; the action is the same."""

from __future__ import annotations

import threading

import pytest
import torch

from polopt.core.scoring import SCORES, scored, scoring
from polopt.networks import Network
from polopt.policies import Categorical, Gaussian, SquashedGaussian
from polopt.tasks import make_task


@pytest.mark.parametrize(
    ("config", "name"),
    [(Gaussian(), "Pendulum-v1"), (SquashedGaussian(), "Pendulum-v1"), (Categorical(), "CartPole-v1")],
    ids=["gaussian", "squashed", "categorical"],
)
@pytest.mark.parametrize("greedy", [False, True])
def test_the_action_is_the_same_without_its_score(config, name, greedy):
    task = make_task(name, num=3)
    policy, obs = config.build(task.spec, Network()), task.reset()
    torch.manual_seed(0)
    record, _ = policy.act(obs, greedy=greedy)
    torch.manual_seed(0)
    with scoring(False):
        bare, _ = policy.act(obs, greedy=greedy)
    assert torch.equal(record["action"], bare["action"])
    assert bare.keys() == record.keys() - {*SCORES}
    assert "log_prob" in record


def test_it_ends_with_the_block_also_by_an_error():
    def fails() -> None:
        with scoring(False):
            with scoring(True):
                assert scored()
            assert not scored()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert scored()


def test_another_thread_is_not_told():
    """Of two that play at once each has its own wish, in whatever order they end."""
    found = []

    def play() -> None:
        found.append(scored())
        with scoring(True):
            begun.set()
            ended.wait(10)

    begun, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=play)
    with scoring(False):
        thread.start()
        begun.wait(10)
        found.append(scored())
    ended.set()
    thread.join()
    assert found == [True, False]
    assert scored()
