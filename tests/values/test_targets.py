import numpy as np
import pytest
import torch

from polopt.values.targets import bounded_target, pessimistic_pair, reduce_members, soft_value, td_target

torch.set_num_threads(1)


def test_td_target_by_hand():
    reward, terminated = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([False, True, False])
    next_value = torch.tensor([10.0, float("nan"), 20.0])
    assert td_target(reward, 0.5, terminated, next_value).tolist() == [6.0, 2.0, 13.0]
    discount = torch.tensor([0.5, 0.5, 0.25])
    assert td_target(reward, discount, terminated, next_value).tolist() == [6.0, 2.0, 8.0]


def test_shapes_must_be_equal():
    column, row = torch.zeros(4, 1), torch.zeros(4)
    ended = torch.zeros(4, dtype=torch.bool)
    for bad in ((column, ended, row), (row, ended[:, None], row), (row, ended, column)):
        with pytest.raises(ValueError, match="equal"):
            td_target(bad[0], 0.9, bad[1], bad[2])
    with pytest.raises(ValueError, match="equal"):
        td_target(row, column, ended, row)
    with pytest.raises(ValueError, match="equal"):
        soft_value(row, column, 0.1)
    with pytest.raises(ValueError, match="equal"):
        pessimistic_pair(torch.zeros(2, 4), torch.zeros(2, 4), column)


def test_soft_value_by_hand():
    assert soft_value(torch.tensor([1.0]), torch.tensor([-2.0]), 0.5).tolist() == [2.0]
    assert soft_value(torch.tensor([1.0]), torch.tensor([-2.0]), torch.tensor(0.5)).tolist() == [2.0]


def test_reductions():
    q = torch.tensor(np.random.default_rng(0).normal(size=(5, 3, 2)))
    np.testing.assert_array_equal(reduce_members(q, "min").numpy(), q.numpy().min(0))
    np.testing.assert_allclose(reduce_members(q, "mean").numpy(), q.numpy().mean(0))
    with pytest.raises(ValueError, match="reduced"):
        reduce_members(q, "max")
    pairs = [np.minimum(q[i].numpy(), q[j].numpy()) for i in range(5) for j in range(i)]
    generator = torch.Generator().manual_seed(0)
    found = {
        next(k for k, pair in enumerate(pairs) if np.array_equal(pair, reduced))
        for reduced in (reduce_members(q, "random-2", generator).numpy() for _ in range(200))
    }
    assert found == set(range(10))


def test_the_sample_comes_from_the_member_with_the_smallest_mean():
    """Member 1 has the smaller mean in column 0, member 0 in column 1; the minimum over samples would differ."""
    mean = torch.tensor([[5.0, 1.0], [4.0, 2.0]])
    std = torch.tensor([[100.0, 0.5], [0.25, 100.0]])
    q, z = pessimistic_pair(mean, std, torch.tensor([-2.0, -1.0]))
    assert q.tolist() == [4.0, 1.0]
    assert z.tolist() == [3.5, 0.5]
    assert pessimistic_pair(mean, std, torch.tensor([-9.0, 9.0]))[1].tolist() == [4 - 0.75, 2.5]  # noise within 3


def test_bounded_target():
    value = torch.tensor([[0.0, 0.0], [3.0, 1.0]], requires_grad=True)
    target = torch.tensor([2.0, -5.0], requires_grad=True)
    assert bounded_target(value, target, 1.5).tolist() == [[1.5, -1.5], [2.0, -0.5]]
    assert not bounded_target(value, target, 1.5).requires_grad
    per_member = bounded_target(value, target, torch.tensor([[1.0], [10.0]]))
    assert per_member.tolist() == [[1.0, -1.0], [2.0, -5.0]]
    assert bounded_target(value[0], target, 1.0).tolist() == [1.0, -1.0]
    with pytest.raises(ValueError, match="equal"):
        bounded_target(torch.zeros(4, 1), torch.zeros(4), 1.0)
