"""Strength, direction and noise of actions, and idling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.spec import Spec
from polopt.policies.swaddled import Idling, SwaddledPolicy

pytestmark = pytest.mark.usefixtures("float64")

SPEC = Spec(spaces.Box(-1.0, 1.0, (6,)), spaces.Box(np.float32([-2, 0]), np.float32([1, 4])), "plate", {})
OUTPUTS = torch.tensor([[2.0, -1.0, 0.5, -3.0, -0.2, 4.0]], dtype=torch.float64)


def policy(noise_std: float = 0.5, noise_clip: float = 1.0) -> SwaddledPolicy:
    """Whose network gives what it observes."""
    return SwaddledPolicy(SPEC, nn.Identity(), noise_std=noise_std, noise_clip=noise_clip)


def pushed() -> Tensor:
    """Strength times direction of the outputs, by hand."""
    return torch.tensor([[math.tanh(0.25) * math.tanh(1.0), math.tanh(1.5) * math.tanh(-0.5)]])


def test_heads_are_halved_and_squashed_and_two_of_them_lose_their_sign():
    direction, strength, beta = policy().heads(OUTPUTS)
    assert direction.flatten().tolist() == pytest.approx([math.tanh(1.0), math.tanh(-0.5)])
    assert strength.flatten().tolist() == pytest.approx([math.tanh(0.25), math.tanh(1.5)])
    assert beta.flatten().tolist() == pytest.approx([math.tanh(0.1), math.tanh(2.0)])


def test_noise_is_added_before_the_tanh_and_clipped_and_greedy_actions_have_none():
    acting = policy()
    greedy, carry = acting.act(OUTPUTS, greedy=True)
    torch.testing.assert_close(greedy["action"], pushed().tanh())
    assert carry == {}
    record, _ = acting.act(OUTPUTS.expand(20_000, 6))
    noise = record["action"].atanh() - pushed()
    assert float(noise.abs().max()) == pytest.approx(0.5)  # 0.5 times the clip
    free = noise.abs() < 0.499
    assert float((~free).double().mean()) == pytest.approx(0.3173, abs=0.01)  # of normal numbers beyond 1
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
    assert float((noise.abs() < 0.25).double().mean()) == pytest.approx(0.3829, abs=0.01)  # within a half


def test_actions_are_rescaled_to_the_bounds_and_back():
    action = torch.tensor([[-1.0, 0.5], [0.0, 0.0]])
    there = policy().env_action(action)
    assert there.tolist() == [[-2.0, 3.0], [-0.5, 2.0]]
    torch.testing.assert_close(policy().own_action(there), action)


def test_idling_begins_behind_so_many_decisions_of_each_episode():
    acting = policy(noise_std=1e-9)
    idling = Idling(acting, after=2)
    strong = OUTPUTS.expand(2, 6)
    carry: Any = {"decisions": torch.tensor([0, 1])}
    idle = []
    for _ in range(3):
        record, carry = idling.act(strong, carry)
        idle.append((record["action"].abs().amax(-1) < 1e-6).tolist())
    assert idle == [[False, False], [False, True], [True, True]]
    assert carry["decisions"].tolist() == [3, 4]
    record, carry = idling.act(strong)
    torch.testing.assert_close(record["action"], pushed().tanh().expand(2, 2), rtol=0, atol=1e-7)
    assert carry["decisions"].tolist() == [1, 1]
    record, _ = idling.act(strong, {"decisions": torch.tensor([5, 5])}, greedy=True)
    torch.testing.assert_close(record["action"], pushed().tanh().expand(2, 2))


def test_idle_actions_are_the_noise_alone():
    idling = Idling(policy(), after=1)
    record, _ = idling.act(OUTPUTS.expand(20_000, 6), {"decisions": torch.ones(20_000, dtype=torch.int64)})
    noise = record["action"].atanh()
    assert float(noise.abs().max()) == pytest.approx(0.5)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.01)
