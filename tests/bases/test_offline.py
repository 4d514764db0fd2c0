"""How far a policy is from the data: by hand, and in the numbers of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

import polopt
from polopt.bases.offline import distance_from, sample_of
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies import Categorical, Diffusion, Gaussian

SPEC = Spec(spaces.Box(-9.0, 9.0, (1,)), spaces.Box(-2.0, 2.0, (2,)), "a line")


def always(config: Any, spec: Spec, outputs: list[float]) -> Any:
    policy = config.build(spec, Network(()))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.net.trunk.head.bias.copy_(torch.tensor(outputs))
    return policy


def test_distances_by_hand(float64):
    """The policy does (1, 9), of which the bounds make (1, 2). The second state has a neighbor that did just that."""
    policy = always(Gaussian(), SPEC, [1.0, 9.0])
    data = TensorDict(
        {"obs": torch.tensor([[0.0], [4.0], [4.0]]), "action": torch.tensor([[1.0, 1.0], [0.0, 2.0], [1.0, 2.0]])}, [3]
    )
    found = distance_from(data, policy)
    assert found["action_gap"] == pytest.approx((0 + 1 + 1 + 0 + 0 + 0) / 6)
    height = float(data["action"][:, 1].std())  # the first is a distance of 1 away, in its second coordinate
    assert found["data_distance"] == pytest.approx((1 / height + 0 + 0) / 3)


def test_of_discrete_actions_it_is_the_share_of_others():
    spec = Spec(SPEC.obs, spaces.Discrete(3, start=5), "buttons")
    policy = always(Categorical(), spec, [0.0, 1.0, 0.0])
    data = TensorDict({"obs": torch.zeros(4, 1), "action": torch.tensor([1, 1, 0, 2])}, [4])
    assert distance_from(data, policy) == {"action_gap": 0.5}


def test_nothing_of_the_run_is_disturbed_and_memories_are_left_out():
    policy = Diffusion(steps=2).build(SPEC, Network((4,)))
    data = TensorDict({"obs": torch.zeros(4, 1), "action": torch.zeros(4, 2)}, [4])
    state = torch.get_rng_state()
    assert distance_from(data, policy) == distance_from(data, policy)
    assert torch.equal(torch.get_rng_state(), state)
    assert distance_from(data, Gaussian().build(SPEC, Network((4,), recurrent="gru"))) == {}


def test_the_sample_is_the_same_each_time_and_no_larger_than_it_may_be():
    data = TensorDict({"obs": torch.arange(6_000.0).unsqueeze(1), "action": torch.zeros(6_000, 1)}, [6_000])
    assert torch.equal(sample_of(data)["obs"], sample_of(data)["obs"])
    assert len(sample_of(data)["obs"].unique()) == 5_000


@pytest.mark.parametrize(("method", "data"), [("iql", "dataset"), ("bc", "demonstrations")])
def test_a_run_logs_it(tmp_path, method: str, data: str):
    settings = {data: "random", "random_episodes": 2, "batch_size": 8, "network.sizes": (8,)}
    run = polopt.train(
        method,
        "Pendulum-v1",
        steps=2,
        out=tmp_path / "run",
        eval_every=2,
        eval_episodes=1,
        loggers=("csv",),
        **settings,
    )
    assert 0 < run.final["eval/action_gap"] < 2
    assert 0 < run.final["eval/data_distance"] < 5
    assert "eval/action_gap" in (run.folder / "metrics.csv").read_text()
