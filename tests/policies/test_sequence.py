"""Sequences of actions from one observation, against torch's cell and distributions; actors that look seldom."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.base import DONE_BEFORE, keep_rows
from polopt.networks import Network
from polopt.policies import Categorical, Deterministic, Gaussian
from polopt.policies.decoding import SequenceDecoder
from polopt.policies.sequence import Infrequent, Recalling, SequencePolicy
from polopt.policies.wrappers import Uniform

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
SPEC = Spec(VECTOR, spaces.Box(np.float32([-2, 0]), np.float32([2, 5])), "Toy-v0")
NETWORK = Network((8, 6), "relu")


def policy_of(length: int = 4, **options: float) -> SequencePolicy:
    """One whose every weight counts."""
    policy = SequenceDecoder(length=length, **options).build(SPEC, NETWORK)
    with torch.no_grad():
        for number, parameter in enumerate(policy.parameters()):
            parameter.normal_(0, 0.7, generator=torch.Generator().manual_seed(number))
    return policy


def by_hand(policy: SequencePolicy, obs: Tensor, previous: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions and log-densities, with torch's cell and distributions."""
    cell = nn.GRUCell(2, 6)
    ours = (policy.cell.weight_input, policy.cell.weight_hidden, policy.cell.bias_input, policy.cell.bias_hidden)
    for theirs, parameter in zip((cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh), ours, strict=True):
        theirs.data.copy_(parameter.data)
    first, _, second = policy.net.trunk.layers
    state, actions, scores = second(torch.relu(first(obs))), [], []
    for place in range(noise.shape[1]):
        state = cell(previous, state)
        mean, log_std = policy.head(state).split(2, -1)
        std = log_std.clamp(policy.log_std_low, policy.log_std_high).exp()
        previous = torch.tanh(mean + std * noise[:, place])
        squashed = TransformedDistribution(Normal(mean, std), [TanhTransform(cache_size=1)])
        actions.append(previous)
        scores.append(squashed.log_prob(previous).sum(-1))
    return torch.stack(actions, 1), torch.stack(scores, 1)


def test_a_sequence_is_decoded_from_the_action_before_and_its_own_samples(float64):
    policy, obs, previous = policy_of(), torch.randn(20, 3), torch.rand(20, 2) - 0.5
    torch.manual_seed(4)
    action, log_prob = policy.rsample(obs, previous)
    torch.manual_seed(4)
    expected, scores = by_hand(policy, obs, previous, torch.randn(20, 4, 2))
    torch.testing.assert_close(action, expected)
    torch.testing.assert_close(log_prob, scores, rtol=1e-6, atol=1e-6)


def test_the_greedy_sequence_feeds_back_means(float64):
    policy, obs = policy_of(), torch.randn(20, 3)
    expected, _ = by_hand(policy, obs, torch.zeros(20, 2), torch.zeros(20, 4, 2))
    torch.testing.assert_close(policy.plan(obs, None, 4, greedy=True), expected.detach())
    assert (policy.plan(obs, torch.full((20, 2), 0.5), 4, greedy=True) - expected).abs().amax((1, 2)).amin() > 1e-3


def test_a_longer_sequence_begins_like_a_shorter_one():
    policy, obs = policy_of(), torch.randn(5, 3)
    torch.testing.assert_close(
        policy.plan(obs, None, 9, greedy=True)[:, :4], policy.plan(obs, None, 4, greedy=True), rtol=0, atol=0
    )


def test_the_deviation_is_clamped(float64):
    policy, obs = policy_of(log_std_low=-3.0, log_std_high=-2.0), 5 * torch.randn(200, 3)
    with torch.no_grad():
        _, log_std = policy.decode(obs, torch.zeros(200, 2), 3, None)
    assert (float(log_std.min()), float(log_std.max())) == (-3.0, -2.0)


def test_gradients_of_a_later_action_reach_all_that_made_the_earlier_ones(float64):
    policy, obs = policy_of(2), torch.randn(6, 3)
    previous = torch.zeros(6, 2, requires_grad=True)
    action, _ = policy.rsample(obs, previous)
    for grad in torch.autograd.grad(action[:, 1].sum(), [previous, *policy.parameters()]):
        assert grad.abs().max() > 0


class Counted:
    """How often a policy makes sequences, and after which actions."""

    def __init__(self, policy: SequencePolicy) -> None:
        self.asked: list[Tensor | None] = []
        make = policy.plan

        def plan(obs, previous, length, *, greedy=False):
            self.asked.append(previous)
            return make(obs, previous, length, greedy=greedy)

        policy.plan = plan


def test_actions_are_taken_open_loop_and_the_next_sequence_follows_the_last():
    policy = policy_of(3)
    counted, carry, done, before = Counted(policy), None, [], []
    for _ in range(7):
        record, carry = policy.act(torch.randn(4, 3), carry)
        done.append(record["action"])
        before.append(record["previous_action"])
    assert len(counted.asked) == 3  # at decisions 0, 3 and 6
    assert counted.asked[0] is None
    assert counted.asked[1].equal(done[2])
    assert counted.asked[2].equal(done[5])
    assert before[0].abs().max() == 0
    for then, now in zip(done, before[1:], strict=False):
        assert now.equal(then)
    plans = policy.plan(torch.zeros(4, 3), None, 3)
    assert plans.shape == (4, 3, 2)


def test_a_new_episode_drops_what_is_left_and_has_no_action_before():
    policy = policy_of(3)
    obs = torch.randn(2, 3)
    _, carry = policy.act(obs, greedy=True)
    record, _ = policy.act(obs + 1, keep_rows(carry, torch.tensor([True, False])), greedy=True)
    new = policy.plan(obs + 1, torch.zeros(2, 2), 3, greedy=True)
    assert record["action"][0].equal(policy.plan(obs, None, 3, greedy=True)[0, 1])
    assert record["action"][1].equal(new[1, 0])
    assert record["previous_action"].equal(torch.stack([policy.plan(obs, None, 3, greedy=True)[0, 0], torch.zeros(2)]))


def test_a_sequence_may_begin_after_what_another_actor_did():
    policy, obs = policy_of(3), torch.randn(4, 3)
    done = 2 * torch.rand(4, 2) - 1
    record, carry = policy.act(obs, {DONE_BEFORE: done}, greedy=True)
    plan = policy.plan(obs, done, 3, greedy=True)
    assert record["previous_action"].equal(done)
    assert record["action"].equal(plan[:, 0])
    assert policy.act(obs + 1, carry, greedy=True)[0]["action"].equal(plan[:, 1])
    assert not plan.equal(policy.plan(obs, None, 3, greedy=True))


def test_predict_follows_a_sequence_until_it_is_reset():
    policy = policy_of(2)
    obs = np.zeros(3, np.float32)
    plan = policy.env_action(policy.plan(torch.zeros(1, 3), None, 2, greedy=True))[0].numpy()
    np.testing.assert_allclose(policy.predict(obs), plan[0], rtol=1e-5)
    np.testing.assert_allclose(policy.predict(obs + 1), plan[1], rtol=1e-5)
    policy.reset()
    np.testing.assert_allclose(policy.predict(obs), plan[0], rtol=1e-5)
    assert SPEC.action.contains(policy.predict(obs))


def test_actions_of_the_environment_come_back():
    policy, action = policy_of(), 2 * torch.rand(9, 2) - 1
    torch.testing.assert_close(policy.own_action(policy.env_action(action)), action)
    assert policy.env_action(torch.tensor([[-1.0, 1.0]])).tolist() == [[-2.0, 5.0]]


# Asked now and then


def test_an_action_is_held_until_the_actor_is_asked_again():
    for config in (Deterministic(), Gaussian()):
        actor = config.build(SPEC, NETWORK)
        slow, carry, done = Infrequent(actor, 3), None, []
        seen = [torch.randn(5, 3) for _ in range(4)]
        for obs in seen:
            record, carry = slow.act(obs, carry, greedy=True)
            assert set(record) == {"action"}
            done.append(record["action"])
        first, again = (actor.act(seen[place], greedy=True)[0]["action"] for place in (0, 3))
        assert [action.equal(first) for action in done[:3]] == [True] * 3
        assert done[3].equal(again)


def test_actions_that_are_numbers_are_held_too():
    actor = Categorical().build(Spec(VECTOR, spaces.Discrete(50), "Toy-v0"), NETWORK)
    slow, carry = Infrequent(actor, 2), None
    done = []
    for _ in range(4):
        record, carry = slow.act(torch.randn(30, 3), carry)
        done.append(record["action"])
    assert done[0].dtype == torch.int64
    assert done[0].equal(done[1])
    assert done[2].equal(done[3])
    assert not done[1].equal(done[2])


@pytest.mark.parametrize("interval", [1, 2, 6])
def test_a_sequence_goes_on_between_whatever_its_length(interval):
    policy, carry, done = policy_of(4), None, []
    slow, seen = Infrequent(policy, interval), [torch.randn(5, 3) for _ in range(12)]
    for obs in seen:
        record, carry = slow.act(obs, carry, greedy=True)
        done.append(record["action"])
    expected, previous = [], None
    for start in range(0, 12, interval):
        plan = policy.plan(seen[start], previous, interval, greedy=True)
        expected += plan.unbind(1)
        previous = plan[:, -1]
    for one, other in zip(done, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_asked_at_every_decision_another_actor_is_as_it_was():
    actor, obs = Gaussian().build(SPEC, NETWORK), torch.randn(5, 3)
    slow, carry = Infrequent(actor, 1), None
    for _ in range(2):
        record, carry = slow.act(obs, carry, greedy=True)
        assert record["action"].equal(actor.act(obs, greedy=True)[0]["action"])


def test_random_actions_remember_what_was_done():
    random = Recalling(Uniform(SPEC, policy_of(3)))
    carry, done = None, torch.zeros(4, 2)
    for _ in range(5):
        record, carry = random.act(torch.randn(4, 3), carry)
        assert record["previous_action"].equal(done)
        assert set(record) == {"action", "previous_action"}
        done = record["action"]
    carry = keep_rows(carry, torch.tensor([True, True, False, True]))
    done[2] = 0
    assert random.act(torch.randn(4, 3), carry)[0]["previous_action"].equal(done)


# What cannot be


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SequenceDecoder(length=0), "length"),
        (lambda: SequenceDecoder(log_std_low=2.0), "must be below"),
        (lambda: SequenceDecoder().build(Spec(VECTOR, spaces.Discrete(2), "Cart"), NETWORK), "needs a Box action"),
        (
            lambda: SequenceDecoder().build(Spec(VECTOR, spaces.Box(-np.inf, np.inf, (1,)), "Endless"), NETWORK),
            "finite bounds; Endless has",
        ),
        (lambda: SequenceDecoder().build(SPEC, Network((8,), recurrent="gru")), "recurrent to none"),
        (lambda: SequenceDecoder().build(SPEC, Network(())), "no sizes"),
        (lambda: Infrequent(Gaussian().build(SPEC, NETWORK), 0), "not 0"),
        (lambda: Infrequent(Gaussian().build(SPEC, Network((8,), recurrent="gru")), 2), "needs no memory"),
    ],
)
def test_what_cannot_be_is_said(make, said):
    with pytest.raises(UsageError, match=said):
        make()
