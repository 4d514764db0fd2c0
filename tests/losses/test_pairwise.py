import math

import numpy as np
import pytest
import torch

from polopt.losses.denoising import denoising, flow_matching
from polopt.losses.pairwise import KINDS, implicit_reward, pairwise
from polopt.losses.regression import expectile

torch.set_num_threads(1)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def closed_form(kind, margin, beta, smoothing):
    """Loss of one pair, and its slope in the margin."""
    up, down = sigmoid(beta * margin), sigmoid(-beta * margin)
    if kind == "sigmoid":
        return (
            -(1 - smoothing) * math.log(up) - smoothing * math.log(down),
            -beta * ((1 - smoothing) * down - smoothing * up),
        )
    if kind == "robust":
        scale = 1 / (1 - 2 * smoothing)
        return (
            scale * (-(1 - smoothing) * math.log(up) + smoothing * math.log(down)),
            -beta * scale * ((1 - smoothing) * down + smoothing * up),
        )
    if kind == "ipo":
        return (margin - 0.5 / beta) ** 2, 2 * (margin - 0.5 / beta)
    return max(0.0, 1 - beta * margin), -beta if beta * margin < 1 else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_closed_forms_and_gradients(kind, smoothing):
    if smoothing and kind in ("ipo", "hinge"):
        pytest.skip("no smoothing")
    rng = np.random.default_rng(0)
    beta = 0.3
    chosen = torch.tensor(rng.normal(0, 5, 20), requires_grad=True)
    rejected = torch.tensor(rng.normal(0, 5, 20), requires_grad=True)
    weight = torch.tensor(rng.uniform(0, 1, 20))
    loss = pairwise(chosen, rejected, beta, weight, kind=kind, label_smoothing=smoothing)
    forms = [closed_form(kind, m, beta, smoothing) for m in (chosen - rejected).tolist()]
    assert loss.item() == pytest.approx(sum(w * value for w, (value, _) in zip(weight.tolist(), forms)))
    expected = np.array([w * slope for w, (_, slope) in zip(weight.tolist(), forms)])
    gradients = torch.autograd.grad(loss, (chosen, rejected))
    np.testing.assert_allclose(gradients[0].numpy(), expected, rtol=1e-9)
    np.testing.assert_allclose(gradients[1].numpy(), -expected, rtol=1e-9)
    assert torch.autograd.gradcheck(
        lambda c, r: pairwise(c, r, beta, weight, kind=kind, label_smoothing=smoothing), (chosen, rejected)
    )


def test_dpo_by_hand():
    chosen, rejected = torch.tensor([2.0]), torch.tensor([-1.0])
    assert pairwise(chosen, rejected, 0.5, torch.ones(1)).item() == pytest.approx(math.log(1 + math.exp(-1.5)))
    assert implicit_reward(chosen, 0.5).item() == 1.0
    even = torch.zeros(4, dtype=torch.float64)
    assert pairwise(even, even, 0.1, torch.full_like(even, 0.25)).item() == pytest.approx(math.log(2))
    assert pairwise(even, even, 0.1, torch.full_like(even, 0.25), kind="ipo").item() == pytest.approx(25.0)


def test_pairs_far_apart_stay_finite():
    far = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = pairwise(far, torch.zeros(2), 1.0, torch.ones(2))
    assert loss.item() == pytest.approx(1e4)
    assert torch.autograd.grad(loss, far)[0].tolist() == [0.0, -1.0]


def test_micro_batches_add_up():
    chosen, rejected, weight = (torch.tensor(np.random.default_rng(i).normal(size=8)) for i in range(3))
    for kind in KINDS:
        whole = pairwise(chosen, rejected, 0.2, weight, kind=kind)
        pieces = [pairwise(chosen[i : i + 1], rejected[i : i + 1], 0.2, weight[i : i + 1], kind=kind) for i in range(8)]
        torch.testing.assert_close(sum(pieces), whole)


def test_pairwise_refuses():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="equal"):
        pairwise(x, x[:, None], 0.1, x)
    with pytest.raises(ValueError, match="one of sigmoid"):
        pairwise(x, x, 0.1, x, kind="sigmoids")
    with pytest.raises(ValueError, match="label_smoothing"):
        pairwise(x, x, 0.1, x, kind="ipo", label_smoothing=0.1)
    with pytest.raises(ValueError, match="label_smoothing"):
        pairwise(x, x, 0.1, x, label_smoothing=0.5)


def test_expectile_is_as_precise_as_its_error():
    error = torch.tensor([-1.0, 1.0], dtype=torch.float64)  # while the default is single precision
    assert expectile(error, 0.99).tolist() == [1 - 0.99, 0.99]


def test_expectile_by_hand():
    error = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    np.testing.assert_allclose(expectile(error, 0.7).numpy(), [1.2, 0.3, 0.0, 0.7, 6.3])
    np.testing.assert_allclose(expectile(error, 0.5).numpy(), 0.5 * error.numpy() ** 2)
    # The minimizer m of the mean balances tau * mean(x - m)+ against (1 - tau) * mean(m - x)+.
    x = torch.tensor([0.0, 1.0, 4.0], dtype=torch.float64)
    m = torch.tensor(3.25, dtype=torch.float64, requires_grad=True)  # 0.9 * 0.75 = 0.1 * (3.25 + 2.25) + 0.125
    best = min((expectile(x - c, 0.9).sum().item(), c) for c in np.linspace(0, 4, 4001))[1]
    (slope,) = torch.autograd.grad(expectile(x - m, 0.9).sum(), m)
    assert slope.item() == pytest.approx(-2 * (0.9 * 0.75 - 0.1 * 5.5))
    assert best == pytest.approx((0.9 * 4 + 0.1 * 1) / 1.1, abs=1e-3)


@pytest.mark.parametrize("loss", [denoising, flow_matching])
def test_generative_losses_by_hand(loss):
    prediction = torch.tensor([[1.0, 2.0], [0.0, -1.0], [5.0, 5.0]], requires_grad=True)
    target = torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 9.0]], requires_grad=True)
    value = loss(prediction, target)
    assert value.tolist() == [2.5, 2.0, 16.0]
    (value * torch.tensor([0.5, 0.25, 0.0])).sum().backward()
    assert prediction.grad.tolist() == [[0.5, 1.0], [0.0, -0.5], [0.0, 0.0]]
    assert target.grad is None
    with pytest.raises(ValueError, match="equal"):
        loss(prediction, target[:2])
