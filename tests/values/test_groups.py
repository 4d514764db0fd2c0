import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.values import GroupBaseline, Overlong
from polopt.values.groups import (
    group_count,
    group_equal,
    group_log_avg_exp,
    group_max,
    group_mean,
    group_std,
    group_sum,
    soft_penalty,
)

torch.set_num_threads(1)
CONFIGS = [
    GroupBaseline(baseline=baseline, std=std, shift=shift)
    for baseline in ("mean", "leave-one-out", "log-avg-exp", "batch", "none")
    for std in ("none", "group", "batch", "batch-centered")
    for shift in (0.0, -0.1)
] + [
    GroupBaseline(std="group", ddof=0),
    GroupBaseline(std="batch", ddof=0, single="zero"),
    GroupBaseline(baseline="leave-one-out", single="zero", shift=-0.1),
    GroupBaseline(baseline="none", std="group", ddof=0, single="zero"),
]


def rows(seed, n=24, groups=6):
    rng = np.random.default_rng(seed)
    reward = torch.tensor(rng.normal(size=n))
    group = torch.tensor(rng.integers(0, groups, n))
    group[0], group[1:][group[1:] == 0] = 0, 1  # row 0 is alone
    valid = torch.tensor(rng.uniform(size=n) < 0.8)
    return reward, group, valid


def by_hand(config, reward, group, valid):
    if config.std == "batch-centered":
        centered = by_hand(replace(config, std="none", ddof=1, std_eps=1e-6, single="reward"), reward, group, valid)
    reward, group, valid = reward.numpy(), group.numpy(), valid.numpy()
    result = np.zeros_like(reward)
    for i in np.flatnonzero(valid):
        own = reward[valid & (group == group[i])]
        every = reward[valid]
        base = every if config.baseline == "batch" else own
        alone = len(base) < 2
        if alone or config.baseline == "none":
            baseline = 0.0
        elif config.baseline == "leave-one-out":
            baseline = (base.sum() - reward[i]) / (len(base) - 1)
        elif config.baseline == "log-avg-exp":
            baseline = config.temperature * math.log(np.mean(np.exp(base / config.temperature)))
        else:
            baseline = base.mean()
        shift = 0.0 if alone and config.baseline != "none" else config.shift
        result[i] = reward[i] - (baseline + shift)
        spread = centered[valid] if config.std == "batch-centered" else {"group": own, "batch": every}.get(config.std)
        if spread is not None and len(spread) > 1:
            result[i] /= spread.std(ddof=config.ddof) + config.std_eps
        if alone and config.single == "zero":
            result[i] = 0.0
    return result


@pytest.mark.parametrize("config", CONFIGS)
def test_advantages_against_numpy(config):
    for seed in range(3):
        reward, group, valid = rows(seed)
        advantage = config.advantage(reward, group, valid)
        np.testing.assert_allclose(advantage.numpy(), by_hand(config, reward, group, valid), rtol=1e-9, atol=1e-12)
        everything = torch.ones_like(valid)
        torch.testing.assert_close(config.advantage(reward, group), config.advantage(reward, group, everything))


def test_advantages_by_hand():
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5], dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 0, 1])
    mean = GroupBaseline()
    assert mean.advantage(reward, group).tolist() == [0.5, -0.5, -0.5, 0.5, 0.5]  # alone: baseline 0
    std = math.sqrt(4 * 0.25 / 3)
    grpo = GroupBaseline.named["grpo"].advantage(reward, group)
    np.testing.assert_allclose(
        grpo.numpy(), [0.5 / (std + 1e-6)] * 1 + [-0.5 / (std + 1e-6)] * 2 + [0.5 / (std + 1e-6), 0.5]
    )
    rloo = GroupBaseline.named["rloo"].advantage(reward, group)
    np.testing.assert_allclose(rloo.numpy(), [2 / 3, -2 / 3, -2 / 3, 2 / 3, 0.5])
    asymre = GroupBaseline.named["asymre"].advantage(reward, group)
    np.testing.assert_allclose(asymre.numpy(), [0.6, -0.4, -0.4, 0.6, 0.5])  # alone: no baseline that is shifted
    zero = GroupBaseline(shift=-0.1, single="zero").advantage(reward, group)
    np.testing.assert_allclose(zero.numpy(), [0.6, -0.4, -0.4, 0.6, 0.0])
    rec = GroupBaseline.named["rec"].advantage(reward, group)
    np.testing.assert_allclose(rec.numpy(), np.array([1, -1, -1, 1, 0.5]) / ([1 + 2e-6] * 4 + [1]))  # deviation 0.5
    opmd = GroupBaseline.named["opmd"].advantage(reward, group)
    base = math.log((2 * math.e + 2) / 4)
    np.testing.assert_allclose(opmd.numpy(), [1 - base, -base, -base, 1 - base, 0.5])
    batch = GroupBaseline.named["batch-mean"].advantage(reward, group)
    np.testing.assert_allclose(batch.numpy(), [0.5, -0.5, -0.5, 0.5, 0.0])


@pytest.mark.parametrize("level", [0.0, 0.1, 1.0, 1e-3, 1234.567])
def test_equal_rewards_give_nothing(level):
    """Exactly, whatever rounding leaves of a mean: divided by a deviation of 0 it would be a step of full size."""
    reward, group = torch.full((12,), level, dtype=torch.float32), torch.tensor([0] * 7 + [1] * 5)
    for name, config in GroupBaseline.named.items():
        expected = 0.1 if name == "asymre" else 0.0
        torch.testing.assert_close(
            config.advantage(reward, group), torch.full((12,), expected), atol=1e-4 if expected else 0.0, rtol=0
        )
    for std in ("group", "batch"):
        assert not GroupBaseline(baseline="none", std=std).advantage(reward, group).any()
    reward[7:] = 0.3  # each group has rewards of its own, all equal
    for std in ("none", "group", "batch", "batch-centered"):
        assert not GroupBaseline(std=std).advantage(reward, group).any()


def test_the_deviation_of_a_batch_by_hand():
    """Groups with one and three of four right: half of eight rewards are 1."""
    reward = torch.tensor([1.0, 0, 0, 0, 1, 1, 1, 0], dtype=torch.float64)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    centered = np.array([0.75, -0.25, -0.25, -0.25, 0.25, 0.25, 0.25, -0.75])
    raw = GroupBaseline.named["lite-ppo"].advantage(reward, group)
    np.testing.assert_allclose(raw, centered / (math.sqrt(8 * 0.25 / 7) + 1e-6))
    ported = GroupBaseline(std="batch-centered").advantage(reward, group)
    np.testing.assert_allclose(ported, centered / (math.sqrt(2 * 0.75 / 7) + 1e-6))
    plus = GroupBaseline.named["reinforce-plus-plus"].advantage(reward, group)
    np.testing.assert_allclose(plus, (reward - 0.5) / (math.sqrt(8 * 0.25 / 7) + 1e-6))


def test_the_soft_penalty_by_hand():
    length = torch.tensor([0.0, 16, 17, 18, 19, 20])
    assert soft_penalty(length, 20, 4).tolist() == [0.0, 0.0, -0.25, -0.5, -0.75, -1.0]
    reward = torch.tensor([1.0, 1, 1, 0, 0, 0])
    penalized = Overlong(buffer=0.2, penalty=0.5).penalized(reward, length.long(), 20)
    torch.testing.assert_close(penalized, torch.tensor([1.0, 1.0, 0.875, -0.25, -0.375, -0.5]))
    assert Overlong.named["filter"].penalized(reward, length.long(), 20) is reward
    with pytest.raises(UsageError, match=r"^the penalty of overlong completions has no effect without a buffer"):
        Overlong(penalty=0.5)


def test_rows_out_are_in_no_statistic_even_when_they_are_nan():
    reward = torch.tensor([1.0, 0.0, math.nan, math.inf])
    group = torch.zeros(4, dtype=torch.int64)
    valid = torch.tensor([True, True, False, False])
    for config in CONFIGS:
        advantage = config.advantage(reward, group, valid)
        assert advantage[2:].tolist() == [0.0, 0.0]
        torch.testing.assert_close(advantage[:2], config.advantage(reward[:2], group[:2]))
    none = torch.zeros(4, dtype=torch.bool)
    assert GroupBaseline(std="group").advantage(reward, group, none).tolist() == [0.0] * 4


def test_largest_and_equal_elements():
    x = torch.tensor([3.0, -1.0, math.nan, 0.2, 0.2, 9.0, 5.0])
    group = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    valid = torch.tensor([True, True, False, True, True, False, False])
    assert group_max(x, group, valid).tolist() == pytest.approx([3, 3, 3, 0.2, 0.2, 0.2, 0])
    assert group_equal(x, group, valid).tolist() == [False] * 3 + [True] * 4


def test_statistics_of_any_shape():
    x = torch.tensor([[1.0, 2.0, 3.0], [5.0, 7.0, 100.0]])
    group = torch.tensor([[0, 0, 1], [1, 0, 2]])
    assert group_sum(x, group).tolist() == [[10, 10, 8], [8, 10, 100]]
    assert group_count(x, group).tolist() == [[3, 3, 2], [2, 3, 1]]
    torch.testing.assert_close(group_mean(x, group), torch.tensor([[10 / 3, 10 / 3, 4], [4, 10 / 3, 100]]))
    three, two = np.std([1, 2, 7], ddof=1), math.sqrt(2)
    torch.testing.assert_close(group_std(x, group), torch.tensor([[three, three, two], [two, three, 0.0]]).float())
    with pytest.raises(ValueError, match="equal"):
        group_mean(x, group[:1])
    with pytest.raises(ValueError, match="equal"):
        GroupBaseline().advantage(x, group, torch.ones(2, dtype=torch.bool))


def test_log_avg_exp_has_its_limits_and_does_not_overflow():
    x, group = torch.tensor([1e4, 0.0, -1e4, 3.0]), torch.tensor([0, 0, 0, 1])
    np.testing.assert_allclose(group_log_avg_exp(x, group, 1.0)[0].item(), 1e4 - math.log(3), rtol=1e-6)
    small = x.double() / 1e4
    assert group_log_avg_exp(small, group, 1e-3)[0].item() == pytest.approx(1, abs=2e-3)
    assert group_log_avg_exp(small, group, 1e4)[0].item() == pytest.approx(0, abs=1e-4)
    assert group_log_avg_exp(x, group, 1.0, torch.tensor([True, True, True, False]))[3].item() == 0.0


@given(st.integers(0, 1000), st.sampled_from(CONFIGS))
def test_order_and_names_of_groups_do_not_matter(seed, config):
    reward, group, valid = rows(seed)
    order = torch.tensor(np.random.default_rng(seed).permutation(len(reward)))
    renamed = torch.tensor(np.random.default_rng(seed + 1).permutation(6))[group]
    expected = config.advantage(reward, group, valid)
    shuffled = config.advantage(reward[order], renamed[order], valid[order])
    torch.testing.assert_close(shuffled, expected[order], rtol=1e-9, atol=1e-12)


def test_options_without_effect_are_refused():
    with pytest.raises(UsageError, match="temperature has no effect on the baseline 'mean'"):
        GroupBaseline(temperature=2.0)
    with pytest.raises(UsageError, match="std_eps has no effect on a baseline with std 'none'"):
        GroupBaseline(std_eps=1e-4)
    with pytest.raises(UsageError, match="ddof has no effect on a baseline with std 'none'"):
        GroupBaseline(ddof=0)
    with pytest.raises(UsageError, match="single has no effect on the baseline 'none': no row has a group"):
        GroupBaseline(baseline="none", single="zero")


def test_equal_rewards_have_no_advantage_and_keep_its_gradient():
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    for value in (0.0, 0.1, 0.7):
        reward = torch.full((6,), value, requires_grad=True)
        advantage = GroupBaseline(baseline="leave-one-out").advantage(reward, group)
        assert not advantage.any()
        (gradient,) = torch.autograd.grad(advantage[0], reward)
        assert gradient.tolist() == pytest.approx([1.0, -0.5, -0.5, 0.0, 0.0, 0.0])
