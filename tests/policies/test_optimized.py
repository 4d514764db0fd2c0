from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.networks import Network
from polopt.policies import Categorical, Deterministic, Gaussian, SquashedGaussian
from polopt.policies.base import Actor
from polopt.policies.optimized import Optimized, climb
from polopt.policies.wrappers import Uniform
from polopt.values.critics import QEnsemble

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-2.0, 2.0, (2,)), "a toy")
NETWORK = Network((16,))


class Bowl(nn.Module):
    """Q_e(s, a) = -|a - obs[:2] / 2|^2 + e: the best action is half of the observation."""

    def __init__(self, members=2):
        super().__init__()
        self.offset = nn.Parameter(torch.arange(float(members)))

    def forward(self, obs, action):
        value = -(action - obs[..., :2] / 2).square().sum(-1)
        return value + self.offset.reshape(-1, *[1] * value.dim())


class Scripted(Actor):
    """Gives the actions it was told, [n, B, A], whatever it sees."""

    def __init__(self, actions, spec=SPEC, unit=True):
        super().__init__()
        self.actions, self.spec, self.unit = actions, spec, unit

    def act(self, obs, carry=None, *, greedy=False):
        assert len(obs) == self.actions.shape[0] * self.actions.shape[1]
        return {"action": self.actions.flatten(0, 1).clone()}, {}


def test_climbing_takes_gradient_steps():
    start = torch.tensor([[[0.0, 0.5]]])
    action, value = climb(lambda a: -a.square().sum(-1), start, 3, 0.1, lambda a: a)
    assert action[0, 0].tolist() == pytest.approx([0.0, 0.5 * 0.8**3])
    assert float(value) == pytest.approx(-((0.5 * 0.8**3) ** 2))
    assert not action.requires_grad


def test_the_best_iterate_is_returned_when_steps_overshoot():
    start = torch.tensor([[[0.1], [-0.9], [0.5]]])
    tried = []

    def values(action):
        tried.append(action.detach())
        return -action.square().sum(-1)

    # a <- a - 2.2 a, so the distance grows by 1.2 with every step: the start is the best
    action, value = climb(values, start, 4, 1.1, lambda a: a.clamp(-1.0, 1.0))
    assert torch.equal(action, start)
    assert torch.equal(value, -start.squeeze(-1).square())
    assert len(tried) == 5
    assert max(float(point.abs().max()) for point in tried) == 1.0  # clipped


def test_no_gradient_reaches_the_critic_or_the_policy():
    torch.manual_seed(0)
    policy = SquashedGaussian().build(SPEC, NETWORK)
    critic = QEnsemble(SPEC, NETWORK, members=3)
    actor = Optimized(policy, critic, samples=6, keep=3, steps=2, step_size=0.1)
    action, value = actor.optimize(torch.rand(4, 3))
    assert not action.requires_grad
    assert not value.requires_grad
    assert all(parameter.grad is None for parameter in actor.parameters())


def test_ranking_keeps_the_best_by_the_mean_of_the_members():
    obs = torch.zeros(1, 3)
    actions = torch.tensor([[0.9, 0.0], [0.1, 0.0], [0.5, 0.0], [0.2, 0.0]]).unsqueeze(1)
    actor = Optimized(Scripted(actions), Bowl(), samples=4, keep=2, steps=0)
    kept, value = actor.optimize(obs)
    assert kept[:, 0, 0].tolist() == pytest.approx([0.1, 0.2])
    assert value[:, 0].tolist() == pytest.approx([-0.01 + 0.5, -0.04 + 0.5])
    assert Optimized(Scripted(actions), Bowl(), 4, 2, 0, reduce="min").optimize(obs)[1][0, 0] == pytest.approx(-0.01)


def test_an_action_of_the_data_replaces_the_worst_that_is_kept():
    obs = torch.zeros(1, 3)
    actions = torch.tensor([[0.9, 0.0], [0.1, 0.0], [0.5, 0.0], [0.2, 0.0]]).unsqueeze(1)
    actor = Optimized(Scripted(actions), Bowl(), samples=4, keep=3, steps=0)
    kept, _ = actor.optimize(obs, also=torch.tensor([[0.7, 0.7]]))
    assert kept[:, 0].flatten().tolist() == pytest.approx([0.1, 0.0, 0.2, 0.0, 0.7, 0.7])


def test_values_never_fall_and_actions_stay_within_the_bounds():
    torch.manual_seed(0)
    for config, bound in ((SquashedGaussian(), 1.0), (Gaussian(log_std_init=1.0), 2.0)):
        critic = QEnsemble(SPEC, NETWORK, members=3)
        actor = Optimized(config.build(SPEC, NETWORK), critic, 12, 5, steps=6, step_size=5.0)
        obs = torch.rand(7, 3)
        ranked = Optimized(actor.actor, critic, 12, 5, steps=0)
        torch.manual_seed(1)
        _, before = ranked.optimize(obs)
        torch.manual_seed(1)
        action, after = actor.optimize(obs)
        assert (after >= before).all()
        assert (after > before).any()
        assert float(action.abs().max()) == pytest.approx(bound)
        assert after.detach().numpy() == pytest.approx(critic(obs, action).mean(0).detach().numpy(), abs=1e-5)


def test_it_finds_the_best_action_of_a_poor_policy():
    torch.manual_seed(0)
    obs = torch.rand(5, 3)
    actor = Optimized(Uniform(SPEC), Bowl(), samples=8, keep=2, steps=60, step_size=0.1)
    record, carry = actor.act(obs, greedy=True)
    assert set(record) == {"action"}
    assert carry == {}
    assert record["action"].numpy() == pytest.approx((obs[:, :2] / 2).numpy(), abs=1e-3)


def test_candidates_are_drawn_from_the_policy_as_it_is_now():
    policy = Deterministic().build(SPEC, NETWORK)
    actor = Optimized(policy, Bowl(), samples=2, keep=1, steps=0)
    obs = torch.rand(3, 3)
    before = actor.sample(obs)
    assert before.shape == (2, 3, 2)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5)
    after = actor.sample(obs)
    torch.testing.assert_close(after[0], policy.act(obs)[0]["action"])
    assert not torch.allclose(before, after)


def test_sampling_is_a_softmax_of_the_values():
    torch.manual_seed(0)
    actor = Optimized(Deterministic().build(SPEC, NETWORK), Bowl(), 2, 2, sampling_temperature=0.5)
    action = torch.tensor([0.0, 1.0]).reshape(2, 1, 1).expand(2, 20_000, 2)
    value = torch.tensor([0.0, 0.5]).reshape(2, 1).expand(2, 20_000)
    share = float(actor.choose(action, value, greedy=False)[:, 0].mean())
    assert share == pytest.approx(1 / (1 + np.exp(-1.0)), abs=0.02)
    assert float(actor.choose(action, value, greedy=True).min()) == 1.0


def test_rows_do_not_mix():
    obs = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    actions = torch.tensor([[[0.4, 0.0], [0.3, 0.0]], [[-0.3, 0.0], [-0.4, 0.0]]])  # [n, B, A]
    actor = Optimized(Scripted(actions), Bowl(), samples=2, keep=1, steps=0)
    assert actor.act(obs, greedy=True)[0]["action"][:, 0].tolist() == pytest.approx([0.4, -0.4])


def test_dict_observations():
    spec = Spec(spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "b": spaces.Box(-1, 1, (1,))}), SPEC.action, "a toy")
    policy, critic = SquashedGaussian().build(spec, NETWORK), QEnsemble(spec, NETWORK)
    obs = TensorDict({"a": torch.rand(4, 2), "b": torch.rand(4, 1)}, [4])
    action = Optimized(policy, critic, 6, 3, 2).act(obs)[0]["action"]
    assert action.shape == (4, 2)
    assert Optimized(policy, critic, 6, 3, 2).predict({"a": np.zeros(2), "b": np.zeros(1)}).shape == (2,)


def test_policy_and_critic_are_saved_together():
    torch.manual_seed(0)
    one, other = (Optimized(SquashedGaussian().build(SPEC, NETWORK), QEnsemble(SPEC, NETWORK), 4, 2) for _ in range(2))
    restore(other, gather(one))
    obs = torch.rand(3, 3)
    torch.manual_seed(1)
    expected = one.act(obs)[0]["action"]
    torch.manual_seed(1)
    assert torch.equal(other.act(obs)[0]["action"], expected)


def test_what_it_refuses():
    critic = QEnsemble(SPEC, NETWORK)
    discrete = Spec(SPEC.obs, spaces.Discrete(3), "a toy")
    with pytest.raises(UsageError, match="actions are optimized where they are continuous; a toy has Discrete"):
        Optimized(Categorical().build(discrete, NETWORK), critic)
    recurrent = Gaussian().build(SPEC, Network((8,), recurrent="gru"))
    with pytest.raises(UsageError, match="a recurrent policy cannot serve"):
        Optimized(recurrent, critic)
    with pytest.raises(UsageError, match="of 4 candidate actions between 1 and 4 can be kept, not 5"):
        Optimized(Gaussian().build(SPEC, NETWORK), critic, samples=4, keep=5)
