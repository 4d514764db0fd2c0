"""Statistics over groups, each counted once, and entropies of labels within them."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polopt.values.groups import group_mean
from polopt.values.strata import group_entropy, group_share, standardize_groups

GROUP = torch.tensor([0, 0, 0, 1, 2, 2, 3])
VALID = torch.tensor([True, True, True, True, False, True, False])


def test_shares_count_groups():
    assert group_share(GROUP, VALID).tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 0, 1, 0])
    assert group_share(GROUP, VALID).sum() == 3


def test_each_group_counts_once_whatever_its_size(float64):
    reward = torch.tensor([1.0, 0.0, 0.5, 1.0, 9.0, 0.0, 7.0])
    value = group_mean(reward, GROUP, VALID)
    found = standardize_groups(value, GROUP, VALID)
    values = np.array([0.5, 1.0, 0.0])
    expected = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
    np.testing.assert_allclose(found, [*[expected[0]] * 3, expected[1], 0, expected[2], 0], atol=1e-12)
    zero = standardize_groups(value, GROUP, VALID, eps=0.1, ddof=0)
    expected = (values - values.mean()) / (values.std() + 0.1)
    np.testing.assert_allclose(zero[[0, 3, 5]], expected, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 6, 7, 8])
def test_groups_with_one_value_are_at_its_mean_exactly(size):
    group, every = torch.arange(5).repeat_interleave(size), torch.ones(5 * size, dtype=torch.bool)
    for value in (0.1, 0.3, 0.7):
        assert not standardize_groups(torch.full((5 * size,), value), group, every).any()
        assert not standardize_groups(torch.full((size,), value), group[:size], every[:size]).any()


def test_one_group_or_none_is_at_its_own_mean():
    one = torch.zeros(4, dtype=torch.int64)
    assert standardize_groups(torch.full((4,), 0.7), one, one == 0).tolist() == pytest.approx([0] * 4, abs=1e-5)
    assert standardize_groups(torch.ones(4), one, one == 1).tolist() == [0] * 4


def test_entropies_by_hand():
    label = torch.tensor([5, 5, 9, 5, 5, 7, 1])
    third = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert group_entropy(label, GROUP, VALID).tolist() == pytest.approx([third] * 3 + [0] * 4, abs=1e-6)
    everything = torch.ones(7, dtype=torch.bool)
    assert group_entropy(label, GROUP, everything).tolist() == pytest.approx([third] * 3 + [0, 1, 1, 0], abs=1e-6)
    nats = group_entropy(label, GROUP, everything, base=math.e)
    assert nats[4].item() == pytest.approx(math.log(2), abs=1e-6)


LABELS = st.integers(-(2**60), 2**60) | st.integers(0, 2)


@given(st.lists(st.tuples(st.integers(0, 2), LABELS), min_size=1, max_size=12))
def test_entropies_against_counting(rows):
    group, label = (torch.tensor(column) for column in zip(*rows))
    group = group.unique(return_inverse=True)[1]  # dense ids
    valid = torch.ones(len(rows), dtype=torch.bool)
    for (number, _), found in zip(rows, group_entropy(label, group, valid).tolist()):
        counts = np.array(list(Counter(text for other, text in rows if other == number).values()))
        shares = counts / counts.sum()
        assert found == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-5)


def test_shapes_are_compared():
    with pytest.raises(ValueError, match="shapes must be equal"):
        standardize_groups(torch.zeros(2, 1), torch.zeros(2), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="shapes must be equal"):
        group_entropy(torch.zeros(3), torch.zeros(2), torch.ones(2, dtype=torch.bool))
