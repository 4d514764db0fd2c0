from __future__ import annotations

import torch

from polopt.networks import Network
from polopt.policies import Gaussian
from polopt.policies.by_step import ByStep
from polopt.tasks import make_task


def test_every_step_has_its_actor_in_every_row():
    spec = make_task("lock/continuous", 1, horizon=3).spec
    policy = ByStep([Gaussian().build(spec, network=Network((4,), head_gain=1.0)) for _ in range(3)])
    obs = torch.randn(4, *spec.obs.shape)
    record, carry = policy.act(obs, greedy=True)
    assert record["time"].tolist() == [0, 0, 0, 0]
    assert carry["time"].tolist() == [1, 1, 1, 1]
    record, carry = policy.act(obs, {"time": torch.tensor([0, 2, 1, 7])}, greedy=True)
    assert record["time"].tolist() == [0, 2, 1, 2]  # the last one goes on
    for row, step in enumerate([0, 2, 1, 2]):
        own = policy.actors[step].act(obs, greedy=True)[0]
        assert torch.equal(record["action"][row], own["action"][row])
        assert torch.equal(record["log_prob"][row], own["log_prob"][row])
    assert carry["time"].tolist() == [1, 3, 2, 8]
