import itertools

import numpy as np
import pytest
import torch
from gymnasium.wrappers.utils import RunningMeanStd

from polopt.core.state import gather, restore
from polopt.values.reward_normalizer import RewardNormalizer, RunningMean

torch.set_num_threads(1)


def window(rows=3, length=50, seed=0, scale=7.0):
    rng = np.random.default_rng(seed)
    reward = torch.tensor(rng.normal(2.0, scale, (rows, length)))
    ends = torch.tensor(rng.random((2, rows, length)) < 0.05)
    return reward, ends[0], ends[1]


def gymnasium_loop(reward, done, discount):
    """Gymnasium's statistics, fed column by column; the return starts again after an end."""
    statistics, running = RunningMeanStd(shape=()), np.zeros(reward.shape[0])
    result = np.zeros_like(reward)
    for t in range(reward.shape[1]):
        running = running * discount + reward[:, t]
        statistics.update(running)
        result[:, t] = np.clip(reward[:, t] / np.sqrt(statistics.var + 1e-8), -10, 10)
        running[done[:, t]] = 0
    return result, np.sqrt(statistics.var)


@pytest.mark.parametrize("rows", [1, 3])
def test_equals_gymnasium_step_by_step(rows):
    reward, terminated, truncated = window(rows)
    normalizer = RewardNormalizer(rows, 0.97)
    expected, std = gymnasium_loop(reward.numpy(), (terminated | truncated).numpy(), 0.97)
    np.testing.assert_allclose(normalizer(reward, terminated, truncated).numpy(), expected, rtol=1e-9)
    assert normalizer.std.item() == pytest.approx(std, rel=1e-9)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_any_cut_into_windows_gives_the_same(scale):
    arrays = window(4, 60, scale=scale)
    whole, pieces = RewardNormalizer(4), RewardNormalizer(4)
    expected = whole(*arrays)
    cuts = [0, 1, 2, 7, 30, 31, 60]
    result = torch.cat([pieces(*(x[:, a:b] for x in arrays)) for a, b in itertools.pairwise(cuts)], 1)
    torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-12)


def test_masked_columns_do_not_exist():
    reward, terminated, truncated = window(2, 10)
    keep = torch.ones(2, 15, dtype=torch.bool)
    keep[:, [0, 4, 5, 11, 14]] = False

    def spread(x, junk):
        wide = torch.full((2, 15), junk, dtype=x.dtype)
        wide[keep] = x.reshape(-1)
        return wide

    packed, holes = RewardNormalizer(2), RewardNormalizer(2)
    expected = packed(reward, terminated, truncated)
    result = holes(spread(reward, 1e6), spread(terminated, True), spread(truncated, True), keep)
    torch.testing.assert_close(result[keep].reshape(2, 10), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(holes.carried, packed.carried)


def test_scale_of_the_reward_drops_out_and_the_clip_holds():
    reward, terminated, truncated = window(4, 400)
    small, large = RewardNormalizer(4), RewardNormalizer(4)
    a, b = (n(reward * k, terminated, truncated) for n, k in ((small, 1.0), (large, 1e3)))
    torch.testing.assert_close(a[:, 200:], b[:, 200:], rtol=1e-3, atol=1e-3)
    assert RewardNormalizer(1)(torch.full((1, 1), -1e6), *torch.zeros(2, 1, 1, dtype=torch.bool)).item() == -10
    assert a.dtype == torch.float64
    assert small(reward.float(), terminated, truncated).dtype == torch.float32


def test_stopped_equals_unstopped():
    first, second = window(seed=1), window(seed=2)
    normalizer = RewardNormalizer(3)
    normalizer(*first)
    state = {key: value.clone() for key, value in gather(normalizer).items()}
    expected = normalizer(*second)
    other = RewardNormalizer(3)
    restore(other, state)
    assert torch.equal(other(*second), expected)


def test_the_input_stays_raw_and_shapes_are_checked():
    reward, terminated, truncated = window()
    before = reward.clone()
    RewardNormalizer(3)(reward, terminated, truncated)
    assert torch.equal(reward, before)
    with pytest.raises(ValueError, match="rows_of_normalizer"):
        RewardNormalizer(2)(reward, terminated, truncated)


def test_running_mean_starts_at_the_first_value():
    mean = RunningMean(0.25, (2,))
    assert mean.update(torch.tensor([4.0, 8.0])).tolist() == [4.0, 8.0]
    state = {key: value.clone() for key, value in gather(mean).items()}
    assert mean.update(torch.tensor([8.0, 0.0])).tolist() == [5.0, 6.0]
    assert mean.value.tolist() == [5.0, 6.0]
    other = RunningMean(0.25, (2,))
    restore(other, state)
    assert other.update(torch.tensor([8.0, 0.0])).tolist() == [5.0, 6.0]
    with pytest.raises(ValueError, match="equal"):
        mean.update(torch.ones(2, 1))


def test_objectives_in_front_have_statistics_of_their_own():
    """[m, N, T] beside flags [N, T] is what m normalizers give, over two windows, with holes."""
    arrays = [window(3, 20, seed, scale) for seed, scale in ((0, 1.0), (1, 50.0))]
    reward = torch.stack([part[0] for part in arrays])
    terminated, truncated = arrays[0][1:]
    mask = torch.rand(3, 20, generator=torch.manual_seed(0)) > 0.2
    together, apart = RewardNormalizer(3, 0.9, objectives=2), [RewardNormalizer(3, 0.9) for _ in range(2)]
    for cut in (slice(0, 8), slice(8, 20)):
        flags = terminated[:, cut], truncated[:, cut], mask[:, cut]
        result = together(reward[..., cut], *flags)
        for k in range(2):
            torch.testing.assert_close(result[k], apart[k](reward[k][:, cut], *flags), rtol=1e-12, atol=0)
    assert together.std.shape == (2,)
    assert torch.equal(together.std, torch.stack([each.std for each in apart]))
    with pytest.raises(ValueError, match="rows_of_reward"):
        together(reward[0], terminated, truncated)
    with pytest.raises(ValueError, match="terminated"):
        together(reward.movedim(0, -1), terminated, truncated)
