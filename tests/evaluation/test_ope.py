"""Off-policy estimates against enumerated episodes, integrals, closed forms, and rollouts by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.evaluation.ope import (
    KINDS,
    FittedQ,
    by_episode,
    environment_log_prob,
    importance_sampling,
    mean_interval,
    model_q,
    model_returns,
)
from polopt.evaluation.statistics import paired_difference
from polopt.models.ensemble import Ensemble
from polopt.networks import Network
from polopt.policies import Categorical, Deterministic, Gaussian, SquashedGaussian
from tests.models.test_dynamics import told

BOX = Spec(spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-3.0, 5.0, (1,)), "a box")
PAIR = Spec(spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2), "two buttons")


def test_columns_by_episode():
    first = torch.tensor([True, False, True, True, False, False])
    mask, reward = by_episode(first, torch.arange(6.0))
    assert mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert reward.tolist() == [[0, 1, 0], [2, 0, 0], [3, 4, 5]]


def all_episodes() -> tuple[Tensor, Tensor, Tensor]:
    """Two decisions of a fair coin: every episode once, for a policy that takes 1 with 0.8, then with 0.3."""
    first, second = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]).T
    reward = torch.stack([first * 1.0, 10.0 * first * second + second], 1)
    probability = torch.stack([torch.where(first == 1, 0.8, 0.2), torch.where(second == 1, 0.3, 0.7)], 1)
    return reward, (probability / 0.5).log(), torch.ones(4, 2, dtype=torch.bool)


def test_importance_sampling_on_all_episodes_is_exact(float64):
    """E r_1 = 0.8, E r_2 = 10 * 0.8 * 0.3 + 0.3; weights of all episodes together have mean 1 at every step."""
    reward, log_ratio, mask = all_episodes()
    found, sizes = importance_sampling(reward, log_ratio, mask, discount=0.9)
    exact = 0.8 + 0.9 * 2.7
    for kind in ("ordinary", "weighted", "per-decision", "weighted-per-decision"):
        assert found[kind].estimate == pytest.approx(exact), kind
        assert found[kind].low < exact < found[kind].high
    weights = [0.56, 0.24, 2.24, 0.96]
    assert sizes["ordinary"] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))
    ratios = log_ratio.exp().flatten().tolist()
    expected = sum(w * r for w, r in zip(ratios, reward.flatten().tolist())) / sum(ratios)
    assert found["ncis"].estimate == pytest.approx(expected)


def test_each_kind_by_hand_where_episodes_are_unequal(float64):
    """Ratios 2, 3 and then 0.5: rho 2, 6 and 0.5; the second episode is shorter and keeps its weight."""
    reward = torch.tensor([[1.0, 4.0], [8.0, 99.0]])
    log_ratio = torch.tensor([[2.0, 3.0], [0.5, 77.0]]).log()
    mask = torch.tensor([[True, True], [True, False]])
    found, sizes = importance_sampling(reward, log_ratio, mask, discount=0.5)
    assert found["ordinary"].estimate == pytest.approx((6 * (1 + 2) + 0.5 * 8) / 2)
    assert found["weighted"].estimate == pytest.approx((6 * 3 + 0.5 * 8) / 6.5)
    assert found["per-decision"].estimate == pytest.approx((2 * 1 + 6 * 2 + 0.5 * 8) / 2)
    assert found["weighted-per-decision"].estimate == pytest.approx((2 + 4) / 2.5 + 6 * 2 / 6.5)
    assert found["ncis"].estimate == pytest.approx((2 * 1 + 3 * 4 + 0.5 * 8) / 5.5)
    assert sizes["ncis"] == pytest.approx(5.5**2 / (4 + 9 + 0.25))
    capped, _ = importance_sampling(reward, log_ratio, mask, discount=0.5, cap=4.0, ncis_cap=2.5)
    assert capped["ordinary"].estimate == pytest.approx((4 * 3 + 0.5 * 8) / 2)
    assert capped["weighted-per-decision"].estimate == pytest.approx((2 + 4) / 2.5 + 4 * 2 / 4.5)
    assert capped["ncis"].estimate == pytest.approx((2 + 2.5 * 4 + 0.5 * 8) / 5)


def test_normalized_weights_do_not_overflow_and_none_is_no_number(float64):
    reward, mask = torch.tensor([[1.0], [3.0]]), torch.ones(2, 1, dtype=torch.bool)
    found, _ = importance_sampling(reward, torch.tensor([[2_000.0], [2_000.0 + math.log(3)]]), mask)
    assert found["weighted"].estimate == pytest.approx(2.5)
    never, _ = importance_sampling(reward, torch.full((2, 1), -math.inf), mask)
    assert math.isnan(never["weighted"].estimate)
    assert never["weighted"].low is None
    assert never["ordinary"].estimate == 0.0
    alone, _ = importance_sampling(reward[:1], torch.zeros(1, 1), mask[:1])
    assert all(alone[kind].low is None and alone[kind].estimate == 1.0 for kind in KINDS)
    with pytest.raises(ValueError, match="shapes must be equal"):
        importance_sampling(reward, torch.zeros(2), mask)


def test_the_interval_of_a_mean_is_students():
    found = mean_interval(torch.tensor([1.0, 2.0, 3.0, 6.0]))
    assert found.estimate == 3.0
    half = 3.182446 * math.sqrt(14 / 3) / 2
    assert (found.low, found.high) == (pytest.approx(3 - half, rel=1e-5), pytest.approx(3 + half, rel=1e-5))


@pytest.mark.parametrize("config", [Gaussian(), Gaussian(mean="tanh", log_std_init=-0.5), SquashedGaussian()])
def test_what_the_environment_gets_has_probability_one(config: Any, float64):
    """Between the bounds a density in the environment's units, at the bounds what a Gaussian clamps there."""
    torch.manual_seed(0)
    policy = config.build(BOX, Network((8,)))
    points = torch.linspace(-3 + 1e-4, 5 - 1e-4, 200_001)
    rows = TensorDict({"obs": torch.full((len(points), 1), 0.3), "action": points.unsqueeze(1)}, [len(points)])
    with torch.no_grad():
        inside = torch.trapezoid(environment_log_prob(policy, rows).exp(), points)
        ends = rows[:2].clone().set("action", torch.tensor([[-3.0], [5.0]]))
        clamped = 0.0 if isinstance(config, SquashedGaussian) else environment_log_prob(policy, ends).exp().sum()
    assert float(inside + clamped) == pytest.approx(1.0, abs=2e-3)
    if not isinstance(config, SquashedGaussian):
        acted = policy.env_action(policy.act(torch.full((40_000, 1), 0.3))[0]["action"])
        share = float((acted == 5.0).double().mean())
        assert share == pytest.approx(float(environment_log_prob(policy, ends)[1].exp()), abs=0.01)


def test_policies_that_have_no_weights():
    rows = TensorDict({"obs": torch.zeros(1, 1), "action": torch.zeros(1, 1)}, [1])
    with pytest.raises(UsageError, match="importance sampling needs a policy that has a density for any action"):
        environment_log_prob(Deterministic().build(BOX, Network((4,))), rows)
    with pytest.raises(UsageError, match="which a recurrent policy cannot"):
        environment_log_prob(Gaussian().build(BOX, Network((4,), recurrent="gru")), rows)
    whole = Spec(BOX.obs, spaces.Box(-3, 5, (1,), dtype="int64"), "whole numbers")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="cannot score actions that are rounded"):
        environment_log_prob(Gaussian().build(whole, Network((4,))), rows)


def two_states(episodes: int) -> Batch:
    """Button 1 leads to state 1, button 0 to state 0; the reward is the state. Fair behavior, cut after 4 decisions."""
    draw = torch.Generator().manual_seed(0)
    action = torch.randint(2, (episodes, 4), generator=draw)
    state = torch.cat([torch.zeros(episodes, 1), action[:, :-1].float()], 1)
    first = torch.zeros(episodes, 4, dtype=torch.bool)
    first[:, 0] = True
    data = {
        "obs": state.unsqueeze(-1),
        "action": action,
        "next_obs": action.float().unsqueeze(-1),
        "reward": state,
        "terminated": torch.zeros_like(first),
        "first": first,
    }
    return TensorDict(data, [episodes, 4]).reshape(-1)


def button(probability: float) -> Any:
    policy = Categorical().build(PAIR, Network(()))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.net.trunk.head.bias.copy_(torch.tensor([1 - probability, probability]).clamp_min(1e-9).log())
    return policy


def test_fitted_q_of_two_states():
    """Always 1: V(1) = 1 / (1 - 0.5) = 2 and V(0) = 1. Fair coin: V(1) - V(0) = 1, V(0) = (2 V(0) + 1) / 4 = 1 / 2."""
    data = two_states(60)
    start = torch.zeros(20, 1)
    options = {"discount": 0.5, "batch_size": 64, "lr": 1e-2, "tau": 0.2, "network": Network((16,), "tanh")}
    greedy = FittedQ(button(1.0), data, members=2, **options).fit(200).value(start)
    assert greedy.estimate == pytest.approx(1.0, abs=0.05)
    assert greedy.low < greedy.estimate < greedy.high
    fair = FittedQ(button(0.5), data, members=1, greedy=False, **options).fit(200).value(start, samples=400)
    assert fair.estimate == pytest.approx(0.5, abs=0.05)
    assert fair.low is None


def test_fitted_q_ends_where_episodes_terminate():
    data = two_states(40)
    data["terminated"] = torch.ones(len(data), dtype=torch.bool)
    options = {"discount": 0.5, "batch_size": 64, "lr": 1e-2, "tau": 0.2, "network": Network((16,), "tanh")}
    assert FittedQ(button(1.0), data, members=1, **options).fit(150).value(torch.ones(5, 1)).estimate == pytest.approx(
        1.0, abs=0.05
    )


def test_members_learn_from_resampled_episodes():
    fitted = FittedQ(button(1.0), two_states(30), members=3, network=Network((4,)))
    assert fitted.counts.shape == (3, 30)
    assert (fitted.counts.sum(1) == 30).all()
    assert not torch.equal(fitted.counts[0], fitted.counts[1])
    assert fitted.episode.tolist()[:9] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    again = FittedQ(button(1.0), two_states(30), members=3, network=Network((4,)))
    assert again.fit(3).value(torch.zeros(2, 1)) == fitted.fit(3).value(torch.zeros(2, 1))
    with pytest.raises(UsageError, match="which a recurrent policy cannot judge"):
        FittedQ(Gaussian().build(BOX, Network((4,), recurrent="gru")), two_states(2))


def test_imagined_returns_by_hand(float64):
    """x rises by 1 a step for a reward of 2 and ends beyond 2: from 0.5 two rewards, from -9 all three."""
    config = Ensemble(members=2, elites=1, head="mean", network=Network((4,), "silu"), weight_decay=(0.0,))
    spec = Spec(spaces.Box(-9.0, 9.0, (1,)), BOX.action, "a line")
    model = config.build(spec, ends=lambda obs, action, after: after[:, 0] > 2)
    told(model, {"0": 1.0, "1": 2.0})
    policy, start = Gaussian().build(spec, Network((4,))), torch.tensor([[0.5], [-9.0]])
    returns = model_returns(model, policy, start, 3, discount=0.5)
    assert returns.tolist() == pytest.approx([2 + 1, 2 + 1 + 0.5])
    value = model_q(model, policy, lambda obs, action: obs[..., 0], start, 3)
    assert float(value) == pytest.approx((0.5 + 1.5 - 9 - 8 - 7) / 5)


def test_policies_are_compared_with_common_luck(float64):
    """Two policies that act alike have the same noisy returns; other seeds have other ones."""
    torch.manual_seed(0)
    spec = Spec(spaces.Box(-9.0, 9.0, (1,)), BOX.action, "a line")
    model = Ensemble(members=3, elites=3, network=Network((4,), "silu"), weight_decay=(0.0,)).build(spec)
    policy, start = Gaussian().build(spec, Network((4,))), torch.zeros(50, 1)
    one, two = (model_returns(model, policy, start, 5, greedy=False, seed=seed) for seed in (3, 3))
    assert torch.equal(one, two)
    assert one.std() > 0
    assert not torch.equal(one, model_returns(model, policy, start, 5, greedy=False, seed=4))
    assert paired_difference(one.numpy(), two.numpy()).low == 0.0
