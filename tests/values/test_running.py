"""Running means: over the latest samples, and of the partition function of each prompt."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.core.state import gather, restore
from polopt.values.running import Latest, Partition, cut_to_sum


def test_the_latest_steps_make_the_mean():
    latest = Latest(10)
    assert latest.mean == 0
    latest.add(torch.tensor(3.0), 4)
    assert latest.mean == 3
    latest.add(1.0, 8)  # twelve samples, and eight are too few without the first
    assert latest.mean == pytest.approx((4 * 3 + 8) / 12)
    latest.add(5.0, 2)  # ten of the last two
    assert latest.mean == pytest.approx((8 + 2 * 5) / 10)
    latest.add(-1.0, 64)
    assert latest.mean == -1
    other = Latest(10)
    restore(other, gather(latest))
    assert other.mean == -1


def test_no_window_no_mean():
    latest = Latest(0)
    latest.add(3.0, 4)
    assert latest.mean == 0


def taken(partition, weight, index, group, valid=None):
    weight = torch.tensor(weight, dtype=torch.float64)
    valid = torch.ones(len(weight), dtype=torch.bool) if valid is None else torch.tensor(valid)
    return partition.update(weight.log(), torch.tensor(index), torch.tensor(group), valid)


def test_z_is_the_mean_over_all_samples_of_a_prompt():
    partition = Partition()
    _, log_z = taken(partition, [1.0, 3.0, 0.0, 0.5], [7, 7, 7, 2], [0, 0, 0, 1])
    np.testing.assert_allclose(log_z.exp(), [4 / 3, 4 / 3, 4 / 3, 0.5])
    log_weight, log_z = taken(partition, [6.0, 2.0, 0.5], [7, 9, 2], [1, 0, 2])
    np.testing.assert_allclose(log_z.exp(), [10 / 4, 2.0, 0.5])
    np.testing.assert_allclose(log_weight.exp(), [6, 2, 0.5])


def test_a_prompt_may_come_in_two_groups():
    _, log_z = taken(Partition(), [1.0, 3.0, 5.0], [7, 7, 7], [0, 0, 1])
    np.testing.assert_allclose(log_z.exp(), [2, 2, 3])  # the second group has seen the first


def test_samples_that_failed_do_not_count():
    weight, log_z = taken(Partition(), [1.0, 9.0, 3.0, 2.0], [0, 0, 0, 1], [0, 0, 0, 1], [True, False, True, False])
    assert log_z.exp().tolist() == pytest.approx([2, 0, 2, 0])
    assert weight.exp().tolist() == pytest.approx([1, 0, 3, 0])


def test_zero_so_far_and_far_beyond_floats():
    partition = Partition()
    assert taken(partition, [0.0, 0.0], [0, 0], [0, 0])[1].tolist() == [-math.inf] * 2
    assert taken(partition, [1.0, 0.0], [0, 0], [0, 0])[1].exp().tolist() == pytest.approx([0.25] * 2)
    log = torch.tensor([-2000.0, 5000.0])
    _, log_z = Partition().update(log, torch.tensor([0, 1]), torch.tensor([0, 1]), torch.tensor([True, True]))
    assert log_z.tolist() == [-2000, 5000]


def test_the_largest_z():
    partition = Partition(1.0)
    weight, log_z = taken(partition, [0.5, 0.1, 3.0, 4.0], [0] * 4, [0] * 4)
    np.testing.assert_allclose(weight.exp(), [0.5, 0.1, 1.7, 1.7])  # (4 - 0.6) / 2
    np.testing.assert_allclose(log_z.exp(), 1)
    weight, log_z = taken(partition, [0.2, 9.0], [0] * 2, [0] * 2)
    np.testing.assert_allclose(weight.exp(), [0.2, 1.8])
    np.testing.assert_allclose(taken(partition, [0.0] * 6, [0] * 6, [0] * 6)[1].exp(), 0.5)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=8), st.floats(0.1, 60))
def test_what_is_cut_sums_to_what_it_may(values, most):
    values = torch.tensor(values, dtype=torch.float64)
    found = cut_to_sum(values, most)
    assert (found <= values).all()
    assert found.sum().item() == pytest.approx(min(most, values.sum().item()))
    lowered = found < values
    if lowered.any():
        assert (found[lowered] == found.max()).all()


def test_it_is_saved():
    one, other = Partition(), Partition()
    taken(one, [1.0, 3.0], [7, 2], [0, 1])
    taken(other, [5.0], [3], [0])
    restore(other, gather(one))
    for partition in (one, other):
        assert taken(partition, [1.0, 1.0, 1.0], [7, 2, 3], [0, 1, 2])[1].exp().tolist() == pytest.approx([1, 2, 1])
    fresh = Partition()
    restore(other, gather(fresh))
    assert taken(other, [4.0], [7], [0])[1].exp().tolist() == pytest.approx([4])


def test_shapes_are_compared():
    with pytest.raises(ValueError, match="shapes must be equal"):
        Partition().update(torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), torch.zeros(2))
