import numpy as np
import pytest
import torch

from polopt.losses.pathwise import pathwise
from polopt.losses.regression import huber, imitation, regression, value_loss

torch.set_num_threads(1)
RNG = np.random.default_rng(0)


def leaf(*shape):
    return torch.tensor(RNG.normal(size=shape), requires_grad=True)


def test_regression_and_its_gradient():
    prediction, target, weight = leaf(6), leaf(6), torch.rand(6, dtype=torch.float64)
    loss = regression(prediction, target, weight)
    error = (prediction - target).detach()
    assert loss.item() == pytest.approx((weight * error**2).sum().item() / 2)
    loss.backward()
    torch.testing.assert_close(prediction.grad, weight * error)
    assert target.grad is None


def test_regression_of_an_ensemble_is_the_sum_over_members():
    prediction, target, weight = leaf(3, 4, 2), leaf(4, 2), torch.rand(4, 2, dtype=torch.float64)
    for delta in (None, 0.5):
        members = sum(regression(member, target, weight, delta) for member in prediction)
        torch.testing.assert_close(regression(prediction, target, weight, delta), members)


def test_huber_by_hand():
    error = torch.tensor([0.0, 1.0, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    value = huber(error, 2.0)
    assert value.tolist() == [0.0, 0.5, 2.0, 4.0]  # 2 * (3 - 1)
    value.sum().backward()
    assert error.grad.tolist() == [0.0, 1.0, -2.0, 2.0]
    big = regression(error.detach(), torch.zeros_like(error), torch.ones_like(error), delta=2.0)
    assert big.item() == 6.5


@pytest.mark.parametrize(
    "shapes", [((4, 1), (4,), (4,)), ((4,), (4, 1), (4,)), ((4,), (4,), (4, 1)), ((2, 3), (4,), (4,))]
)
def test_regression_never_broadcasts(shapes):
    with pytest.raises(ValueError, match="equal"):
        regression(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="equal"):
        value_loss(*(torch.zeros(shape) for shape in shapes))
    with pytest.raises(ValueError, match="equal"):
        pathwise(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 1.0, torch.zeros(shapes[2]))
    with pytest.raises(ValueError, match="equal"):
        imitation(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.zeros(shapes[2]))


def test_clipped_value_loss_against_numpy():
    value, old, returns, weight = leaf(200), leaf(200), leaf(200), torch.rand(200, dtype=torch.float64)
    v, o, r, w = (x.detach().numpy() for x in (value, old, returns, weight))
    clipped = o + np.clip(v - o, -0.3, 0.3)
    expected = 0.5 * np.sum(w * np.maximum((v - r) ** 2, (clipped - r) ** 2))
    loss = value_loss(value, returns, weight, old_value=old, clip=0.3)
    assert loss.item() == pytest.approx(expected)
    assert value_loss(value, returns, weight, old_value=old, clip=torch.tensor(0.3)).item() == pytest.approx(expected)
    loss.backward()
    # The gradient is that of the squared error, except where the clipped branch is the larger and constant one.
    stopped = ((clipped - r) ** 2 > (v - r) ** 2) & (np.abs(v - o) > 0.3)
    np.testing.assert_allclose(value.grad.numpy(), np.where(stopped, 0, w * (v - r)), atol=1e-12)
    assert 0 < stopped.sum() < 200
    assert old.grad is None
    assert returns.grad is None


def test_value_loss_without_clip_by_hand():
    value, returns = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])
    assert value_loss(value, returns, torch.tensor([0.5, 0.5])).item() == 0.5 * (0.5 * 1 + 0.5 * 4)
    with pytest.raises(ValueError, match="old_value"):
        value_loss(value, returns, torch.ones(2), clip=0.2)


def test_pathwise_by_hand():
    q, log_prob, weight = leaf(5), leaf(5), torch.rand(5, dtype=torch.float64)
    temperature = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    loss = pathwise(q, log_prob, temperature, weight)
    assert loss.item() == pytest.approx((weight * (0.3 * log_prob - q)).sum().item())
    loss.backward()
    torch.testing.assert_close(q.grad, -weight)
    torch.testing.assert_close(log_prob.grad, 0.3 * weight)
    assert temperature.grad is None
    assert pathwise(q, None, 0.3, weight).item() == pytest.approx(-(weight * q).sum().item())


def test_imitation_by_hand():
    error, importance, weight = leaf(5), leaf(5), torch.rand(5, dtype=torch.float64)
    loss = imitation(error, weight, importance.exp())
    assert loss.item() == pytest.approx((weight * importance.exp() * error).sum().item())
    loss.backward()
    torch.testing.assert_close(error.grad, weight * importance.detach().exp())
    assert importance.grad is None
    assert imitation(error, weight).item() == pytest.approx((weight * error).sum().item())


def test_micro_batches_add_up():
    """1 x 8 == 8 x 1 for every loss that is a weighted sum."""
    a, b, old, weight = (torch.tensor(RNG.normal(size=8)) for _ in range(4))
    weight = weight.abs() * (torch.arange(8) != 3)

    for loss in (
        lambda i: regression(a[i], b[i], weight[i], 0.5),
        lambda i: value_loss(a[i], b[i], weight[i], old_value=old[i], clip=0.1),
        lambda i: pathwise(a[i], b[i], 0.2, weight[i]),
        lambda i: imitation(a[i], weight[i], b[i]),
    ):
        torch.testing.assert_close(sum(loss(slice(i, i + 1)) for i in range(8)), loss(slice(None)))


def test_losses_compile_in_one_graph():
    torch._dynamo.reset()
    old, returns, weight = (torch.tensor(RNG.normal(size=8)) for _ in range(3))

    def loss(x):
        return (
            value_loss(x, returns, weight, old_value=old, clip=0.2)
            + regression(x, returns, weight, 0.5)
            + pathwise(x, x.square(), torch.tensor(0.2), weight)
            + imitation(x, weight, returns)
        )

    x = leaf(8)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, loss(x))
    torch.testing.assert_close(torch.autograd.grad(compiled, x), torch.autograd.grad(loss(x), x))
