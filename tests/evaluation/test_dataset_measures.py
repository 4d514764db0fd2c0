"""TQ and SACo, beside counts and means by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.core.errors import RunError, UsageError
from polopt.data.datasets import Dataset
from polopt.evaluation.dataset_measures import lsaco, mean_return, saco, tq, unique_pairs


def rows(obs, action, reward=None, ends=(), cut=()):
    """Decisions [B]: episodes that terminate at the rows `ends`, and are cut by the clock at the rows `cut`."""
    obs, action = torch.as_tensor(obs), torch.as_tensor(action)
    size = len(obs)
    flags = {name: torch.zeros(size, dtype=torch.bool) for name in ("terminated", "truncated")}
    flags["terminated"][list(ends)] = True
    flags["truncated"][list(cut)] = True
    reward = torch.ones(size) if reward is None else torch.as_tensor(reward)
    return TensorDict({"obs": obs, "action": action, "reward": reward, **flags}, [size])


def drawn(size, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    obs = scale * torch.randn(size, 3, generator=generator)
    return rows(obs, torch.randint(2, (size,), generator=generator), torch.rand(size, generator=generator), (size - 1,))


def counted(data, reference):
    """Another way: NumPy's digitize, coordinate by coordinate, and a set of tuples."""
    seen = set()
    obs, its = data["obs"].double().numpy(), reference["obs"].double().numpy()
    for row in range(len(data)):
        cell = [np.digitize(obs[row, c], np.linspace(its[:, c].min(), its[:, c].max(), 100)) for c in range(3)]
        seen.add((*map(int, cell), int(data["action"][row])))
    return len(seen)


def test_the_count_is_that_of_a_set_of_tuples():
    reference = drawn(4_000, scale=0.02)
    reference["obs"] = (reference["obs"] * 20).round() / 20  # so that pairs recur
    data = drawn(3_000, seed=1, scale=0.05)
    data["obs"] = (data["obs"] * 20).round() / 20
    assert unique_pairs(data, reference) == counted(data, reference) < 3_000
    assert saco(data, reference) == counted(data, reference) / counted(reference, reference)
    expected = math.log(counted(data, reference)) / math.log(counted(reference, reference))
    assert lsaco(data, reference) == pytest.approx(expected)


def test_limit_cases():
    reference = drawn(500)
    data = drawn(400, seed=1)
    assert saco(reference, reference) == lsaco(reference, reference) == 1.0
    low, high = mean_return(data), mean_return(data) + 3.0
    assert tq(data, random=data, online=high) == 0.0
    assert tq(data, random=low - 2.0, online=data) == 1.0
    assert tq(data, random=low - 1.0, online=low + 3.0) == pytest.approx(0.25)


def test_what_is_recorded_twice_or_in_another_order_covers_no_more():
    reference, data = drawn(500), drawn(400, seed=1)
    covered = unique_pairs(data, reference)
    assert unique_pairs(torch.cat([data, data]), reference) == covered
    assert unique_pairs(data[torch.randperm(400)], reference) == covered
    assert unique_pairs(torch.cat([data, reference]), reference) > covered


def test_an_action_is_a_dimension_of_its_own():
    """(state 0, action 1) and (state 1, action 0) are two pairs, also where state and action would add up."""
    whole = rows([0, 1, 0, 1], [1, 0, 1, 0])
    assert unique_pairs(whole, whole) == 2
    assert saco(whole, rows([0, 1, 0, 1], [0, 0, 1, 1])) == 0.5
    places = rows([[0.0], [1.0], [0.0], [1.0]], [[1.0], [0.0], [1.0], [0.0]])
    assert unique_pairs(places, places) == 2


def test_limits_are_those_of_the_reference():
    """99 bins between the reference's extremes; the largest value is in the outer one, with all that is larger."""
    line = torch.linspace(0, 1, 1_000)[:, None]
    reference = rows(line, torch.zeros(1_000, dtype=torch.long))
    assert unique_pairs(reference, reference) == 100  # 99 and the largest value
    beyond = rows([[-5.0], [-1.0], [1.0], [7.0]], [0, 0, 0, 0])
    assert unique_pairs(beyond, reference) == 2
    assert unique_pairs(rows(0.001 * line, torch.zeros(1_000, dtype=torch.long)), reference) == 1  # not its own limits


def test_continuous_actions_images_and_parts_of_observations():
    action = torch.linspace(-1, 1, 50)[:, None]
    obs = {"image": torch.zeros(50, 2, 2, dtype=torch.uint8), "place": torch.zeros(50, 1)}
    data = rows(torch.zeros(50, 1), action)
    data["obs"] = TensorDict(obs, [50])
    assert unique_pairs(data, data) == 50
    assert unique_pairs(data[:20], data) == 20
    data["action"] = torch.zeros(50, 1)
    assert unique_pairs(data, data) == 1
    data["obs", "image"][7, 0, 1] = 255
    assert unique_pairs(data, data) == 2
    with pytest.raises(UsageError, match="lSACo needs two"):
        lsaco(data, data[:1])


def test_returns_are_of_complete_episodes():
    reward = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    data = rows(torch.zeros(6, 1), torch.zeros(6), reward, ends=(1,), cut=(3,))
    assert mean_return(data) == (3.0 + 12.0) / 2  # what the end of the data cuts off is not there
    data["first"] = torch.tensor([True, False, True, False, True, True])
    data["terminated"][5] = True
    assert mean_return(data) == pytest.approx((3.0 + 12.0 + 32.0) / 3)  # nor what the next episode cuts off
    with pytest.raises(UsageError, match="needs an episode that ended"):
        mean_return(data[:1])


@pytest.mark.parametrize("online", [1.0, 0.5])
def test_no_scale_where_the_online_policy_is_no_better(online):
    with pytest.raises(RunError, match=f"online policy has a return of {online:g}, and random actions have 1: TQ"):
        tq(drawn(10), random=1.0, online=online)


def test_numbers_that_are_not_finite():
    with pytest.raises(RunError, match="TQ needs more"):
        tq(drawn(10), random=1.0, online=float("nan"))
    data, sound = drawn(10), drawn(10)
    data["obs"][3, 1] = float("nan")
    for pair in ((data, sound), (sound, data)):
        with pytest.raises(UsageError, match="not finite, which are in no cell"):
            saco(*pair)


def test_whole_numbers_are_compared_as_they_are():
    data = rows(torch.arange(600) % 512, torch.zeros(600, dtype=torch.long))
    assert unique_pairs(data, data) == 512


def test_episodes_that_a_recording_breaks_off_are_not_complete():
    data = rows(torch.zeros(6, 1), torch.zeros(6), torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]), (1,), (3, 5))
    data["first"] = torch.tensor([True, False, True, False, True, False])
    assert mean_return(data) == (3.0 + 12.0 + 48.0) / 3
    broken = torch.tensor([False, True, False])
    assert mean_return(Dataset("mine", None, data, None, {}, broken)) == (3.0 + 48.0) / 2
    assert mean_return(Dataset("mine", None, data, None, {})) == (3.0 + 12.0 + 48.0) / 3


def test_wrong_data():
    with pytest.raises(UsageError, match="the data are empty"):
        saco(drawn(10)[:0], drawn(10))
    with pytest.raises(UsageError, match="have no coverage of a reference"):
        saco(rows(torch.zeros(3, 2), torch.zeros(3)), drawn(10))
