from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.batch import weigh
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.values import Conservative
from polopt.values.conservative import conservative_gap

PAIRS = ((0, 1), (0, 2), (1, 2))
RNG = np.random.default_rng(0)
Q, POLICY, RANDOM = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 4, 3)), RNG.normal(size=(2, 5, 3))
RETURNS = RNG.normal(size=3) + 0.5


def tensors(*arrays):
    return [torch.from_numpy(array) for array in arrays]


@pytest.mark.parametrize("calibrate_random", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_it_is_the_formula(temperature, calibrate_random):
    bounded = np.maximum(POLICY, RETURNS)
    random = np.maximum(RANDOM, RETURNS) if calibrate_random else RANDOM
    values = np.concatenate([Q[:, None], bounded, random], 1)
    expected = temperature * np.log(np.exp(values / temperature).mean(1)) - Q
    q, policy, random_q, returns = tensors(Q, POLICY, RANDOM, RETURNS)
    gap = conservative_gap(
        q, policy, random_q, returns=returns, calibrate_random=calibrate_random, temperature=temperature
    )
    assert gap.numpy() == pytest.approx(expected)


def test_equal_values_have_no_gap_and_better_actions_a_positive_one():
    q = torch.full((2, 3), 0.7)
    same = q.unsqueeze(1).expand(2, 4, 3)
    assert conservative_gap(q, same).abs().max() < 1e-6
    assert (conservative_gap(q, same + 1.0) > 0).all()
    assert (conservative_gap(q, same - 1.0) < 0).all()


def test_a_small_temperature_takes_the_largest_value():
    q, policy, random = tensors(Q, POLICY, RANDOM)
    gap = conservative_gap(q, policy, random, temperature=1e-4).numpy()
    assert gap == pytest.approx(np.concatenate([Q[:, None], POLICY, RANDOM], 1).max(1) - Q, abs=2e-3)


def test_values_below_the_returns_are_not_pushed_down():
    q, policy, random, returns = tensors(Q, POLICY, RANDOM, RETURNS)
    policy.requires_grad_()
    random.requires_grad_()
    conservative_gap(q, policy, random, returns=returns).sum().backward()
    below = policy < returns
    assert below.any()
    assert (~below).any()
    assert (policy.grad[below] == 0).all()
    assert (policy.grad[~below] > 0).all()
    assert (random.grad > 0).all()  # random actions are pushed down whatever the returns are


def test_shapes_must_fit():
    q, policy, returns = tensors(Q, POLICY, RETURNS)
    with pytest.raises(ValueError, match="shapes must be equal"):
        conservative_gap(q, policy.transpose(1, 2))
    with pytest.raises(ValueError, match="shapes must be equal"):
        conservative_gap(q, policy, returns=returns.unsqueeze(0))


SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)), "a toy")


def module(members=3, **options):
    torch.manual_seed(0)
    return Conservative(**{"histogram": None} | options).build(
        SPEC, Network((8,)), discount=0.9, tau=0.5, members=members
    )


def columns(values, size=6):
    torch.manual_seed(1)
    batch = TensorDict(
        {
            "obs": torch.rand(size, 3),
            "next_obs": torch.rand(size, 3),
            "action": torch.rand(size, 2),
            "reward": torch.rand(size),
            "returns": torch.rand(size),
            "terminated": torch.arange(size) == 0,
        },
        [size],
    )
    best, policy, random = torch.rand(size, 2), torch.rand(4, size, 2), torch.rand(5, size, 2)
    return values.columns(weigh(batch), best, policy, random, torch.Generator().manual_seed(0)), best


def test_the_target_is_the_smaller_of_two_members():
    values = module()
    batch, best = columns(values)
    q = values.target_critic(batch["next_obs"], best)
    pairs = [batch["reward"] + 0.9 * torch.where(batch["terminated"], 0.0, q[list(pair)].amin(0)) for pair in PAIRS]
    assert sum(torch.allclose(batch["target"], pair) for pair in pairs) == 1


def test_its_gradient_pushes_the_data_up_and_others_down():
    batch, _ = columns(module())
    lower = {}
    for coefficient in (0.0, 50.0):
        values = module(coefficient=coefficient, calibrate=False)
        optimizer = torch.optim.SGD(values.critic.parameters(), lr=0.01)
        gaps = []
        for _ in range(30):
            loss, _ = values.critic_loss(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            q = values.critic(batch["obs"], batch["action"]).mean(0)
            others = values.critic(batch["obs"], batch["random_action"].transpose(0, 1)).mean((0, 1))
            gaps.append(float((q - others).mean()))
        lower[coefficient] = gaps[-1]
    assert lower[50.0] > lower[0.0] + 0.1


def test_targets_follow_the_critics():
    values = module()
    before = [parameter.clone() for parameter in values.target_critic.parameters()]
    with torch.no_grad():
        for parameter in values.critic.parameters():
            parameter.add_(1.0)
    values.follow()
    for old, target in zip(before, values.target_critic.parameters()):
        assert torch.allclose(target, old + 0.5)
        assert not target.requires_grad
