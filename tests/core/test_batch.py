"""Weights, shapes and alignment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict

from polopt.core.batch import (
    align_left,
    average,
    decision_mean,
    decision_sum,
    pieces,
    rows_of,
    same_shape,
    spread,
    weigh,
    weighted_mean,
)


def test_weights_sum_to_one_over_what_exists():
    batch = TensorDict({"x": torch.zeros(2, 3)}, batch_size=[2, 3])
    assert torch.equal(weigh(batch)["weight"], torch.full((2, 3), 1 / 6))
    assert "weight" not in batch  # the batch itself is untouched
    batch["mask"] = torch.tensor([[True, True, False], [True, False, False]])
    weight = weigh(batch)["weight"]
    assert weight.dtype == torch.get_default_dtype()
    torch.testing.assert_close(weight, batch["mask"] / 3)
    batch["mask"] = torch.zeros(2, 3, dtype=torch.bool)
    assert float(weigh(batch)["weight"].sum()) == 0


@given(st.integers(1, 20), st.integers(1, 7))
def test_a_weighted_sum_does_not_depend_on_how_a_batch_is_cut(size, piece):
    generator = torch.Generator().manual_seed(size)
    batch = TensorDict({"x": torch.rand(size, dtype=torch.float64, generator=generator)}, batch_size=[size])
    batch = weigh(batch)
    parts = [float(weighted_mean(part["x"], part["weight"].double())) for part in batch.split(piece)]
    assert sum(parts) == pytest.approx(float(batch["x"].mean()), rel=1e-6)


def sides(*sizes: int) -> TensorDict:
    """A paired batch: side `a`, `b`, ... of these sizes, x = 0, 1, 2, ... in each, and a number for both."""
    rows = {name: TensorDict({"x": torch.arange(float(size))}, [size]) for name, size in zip("abc", sizes)}
    return TensorDict({**rows, "scale": torch.tensor(3.0)}, [])


def test_every_side_of_a_pair_has_weights_of_its_own():
    pair = sides(4, 2)
    pair["b", "mask"] = torch.tensor([True, False])
    weighed = weigh(pair)
    assert torch.equal(weighed["a", "weight"], torch.full((4,), 0.25))
    assert torch.equal(weighed["b", "weight"], torch.tensor([1.0, 0.0]))
    assert "weight" not in pair["a"]
    assert float(weighed["scale"]) == 3.0


def test_every_side_of_a_pair_is_cut_by_itself():
    pair = sides(7, 2)
    assert rows_of(pair) == 7
    cut = pieces(pair, 3)
    assert [piece["a", "x"].tolist() for piece in cut] == [[0, 1], [2, 3], [4, 5, 6]]
    assert [piece["b", "x"].tolist() for piece in cut] == [[], [0], [1]]
    assert [float(piece["scale"]) for piece in cut] == [3.0] * 3
    assert pieces(pair, 7)[0] is pieces(pair, None)[0] is pair
    nested = TensorDict({"pair": pair, "c": TensorDict({"x": torch.zeros(9)}, [9])}, [])
    assert rows_of(nested) == 9
    assert [len(piece["pair", "a"]) for piece in pieces(nested, 5)] == [3, 4]


@given(st.integers(1, 20), st.integers(0, 20), st.integers(1, 9))
def test_the_pieces_of_a_pair_are_the_pair(first, second, rows):
    cut = pieces(sides(first, second), rows)
    for name, size in (("a", first), ("b", second)):
        assert torch.equal(torch.cat([piece[name, "x"] for piece in cut]), torch.arange(float(size)))
        assert max(len(piece[name]) for piece in cut) <= rows


def test_shapes_are_never_broadcast():
    with pytest.raises(ValueError, match=r"shapes must be equal: value \(3,\), weight \(3, 1\)"):
        weighted_mean(torch.ones(3), torch.ones(3, 1))
    same_shape(a=torch.ones(2, 2), b=torch.zeros(2, 2))


@pytest.mark.parametrize("shape", [(), (5,), (5, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weighted_mean_is_the_sum_of_its_products_and_so_is_its_gradient(shape, dtype):
    torch.manual_seed(0)
    value, weight = torch.randn(shape, dtype=dtype, requires_grad=True), torch.rand(shape)
    mean = weighted_mean(value, weight)
    (grad,) = torch.autograd.grad(mean, value)
    torch.testing.assert_close(mean, (weight * value).sum())
    torch.testing.assert_close(grad, weight.to(dtype))


def test_alignment_is_on_the_left():
    value = torch.arange(10.0).reshape(5, 2)
    like = torch.zeros(5, 2, 2)
    assert align_left(value, like).shape == (5, 2, 1)
    assert torch.equal((align_left(value, like) + like)[3], torch.tensor([[6.0, 6.0], [7.0, 7.0]]))
    assert align_left(torch.ones(()), like).shape == (1, 1, 1)
    square = torch.arange(4.0).reshape(2, 2)  # [2, 2] beside [2, 2, 2]: broadcasting alone would be silently wrong
    assert not torch.equal(align_left(square, torch.ones(2, 2, 2)) * torch.ones(2, 2, 2), square * torch.ones(2, 2, 2))
    for wrong in (torch.ones(2), torch.ones(5, 2, 3), torch.ones(5, 2, 2, 1)):
        with pytest.raises(ValueError, match="is not a prefix of"):
            align_left(wrong, like)


def test_decisions_share_the_weight_of_their_row():
    weight = torch.tensor([[0.25, 0.75]])
    steps = torch.tensor([[[1.0, 2.0, 6.0], [2.0, 2.0, 5.0]]])  # means 3 and 3
    assert spread(weight, steps).shape == (1, 2, 1)
    torch.testing.assert_close(spread(weight, steps).flatten(), torch.tensor([1 / 12, 1 / 4]))
    assert float(decision_mean(steps, weight)) == pytest.approx(3.0)
    assert float(decision_mean(steps > 4, weight)) == pytest.approx(1 / 3)  # a share
    assert spread(weight, weight) is weight
    each = weight.unsqueeze(-1).expand(1, 2, 3)  # every step has a weight of its own: a sum
    assert float(decision_mean(steps, each)) == pytest.approx(9.0)
    with pytest.raises(ValueError, match="is not a prefix of"):
        decision_mean(torch.ones(3, 2), torch.ones(2))


def test_decisions_are_summed_over_what_they_have_beyond_a_row():
    value = torch.arange(24.0).view(2, 3, 2, 2)
    assert decision_sum(value, torch.zeros(2, 3)).equal(value.sum((2, 3)))
    assert decision_sum(value[:, :, 0, 0], torch.zeros(2, 3)).equal(value[:, :, 0, 0])


def test_rows_count_as_much_as_their_weight_says():
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    batch = TensorDict({"mask": mask, "row_weight": torch.tensor([1.0, 0.5, 0.0])}, batch_size=[3])
    torch.testing.assert_close(weigh(batch)["weight"], torch.tensor([[0.4, 0.4], [0.2, 0.0], [0.0, 0.0]]))
    assert "weight" not in batch.keys()
    rows = TensorDict({"row_weight": torch.tensor([3.0, 0.0, 0.2])}, batch_size=[3])  # a sum below 1 is one, too
    torch.testing.assert_close(weigh(rows)["weight"], torch.tensor([3.0, 0.0, 0.2]) / 3.2)
    small = TensorDict({"row_weight": torch.tensor([0.1, 0.1])}, batch_size=[2])
    torch.testing.assert_close(weigh(small)["weight"], torch.tensor([0.5, 0.5]))
    none = TensorDict({"row_weight": torch.zeros(2)}, batch_size=[2])
    assert torch.equal(weigh(none)["weight"], torch.zeros(2))
    with pytest.raises(ValueError, match="is not a prefix of"):
        weigh(TensorDict({"mask": mask, "row_weight": torch.ones(3, 1)}, batch_size=[3]))


def test_average_of_metrics():
    steps = [{"a": torch.tensor(1.0), "b": torch.tensor(0.0)}, {"a": torch.tensor(3.0), "b": torch.tensor(1.0)}]
    assert {name: float(value) for name, value in average(steps).items()} == {"a": 2.0, "b": 0.5}
