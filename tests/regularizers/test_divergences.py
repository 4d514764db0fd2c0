import numpy as np
import pytest
import torch

from polopt.regularizers import ReferenceKL
from polopt.regularizers.anchors import cloning, reference_penalty, squared_log_ratio
from polopt.regularizers.divergences import KINDS, divergence, divergence_loss, slope
from polopt.regularizers.kl import kl_estimate

torch.set_num_threads(1)
ALPHAS = (0.3, 0.5, 0.8)
CASES = [(kind, alpha) for kind in KINDS for alpha in (ALPHAS if kind == "alpha" else (0.5,))]


def f(kind, u, alpha):
    """The generators as f-DPO prints them, plus the linear term that makes f'(1) = 0."""
    if kind == "reverse-kl":
        return u * np.log(u) - u + 1
    if kind == "forward-kl":
        return -np.log(u) + u - 1
    if kind == "jensen-shannon":
        return u * np.log(u) - (u + 1) * np.log((u + 1) / 2)
    if kind == "total-variation":
        return np.abs(1 - u) / 2
    if kind == "reverse-chi-squared":
        return (u - 1) ** 2
    if kind == "forward-chi-squared":
        return u + 1 / u - 2
    return (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1))


@pytest.mark.parametrize(("kind", "alpha"), CASES)
def test_slope_is_the_derivative_of_the_generator(kind, alpha):
    u = np.linspace(0.05, 6, 60)
    numeric = (f(kind, u + 1e-6, alpha) - f(kind, u - 1e-6, alpha)) / 2e-6
    values = slope(torch.tensor(np.log(u)), kind, alpha).numpy()
    np.testing.assert_allclose(values, numeric, rtol=1e-6, atol=1e-8)
    rises = np.diff(values)
    assert (rises >= 0).all() if kind == "total-variation" else (rises > 0).all()
    assert slope(torch.zeros(1), kind, alpha).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("kind", "alpha"), CASES)
def test_divergence_and_its_gradient_over_all_actions(kind, alpha):
    """Summed over every action of two categoricals: the number is D_f, and the loss has its gradient."""
    logits = torch.tensor(np.random.default_rng(0).normal(size=6), requires_grad=True)
    reference = torch.tensor(np.random.default_rng(1).normal(size=6)).log_softmax(0)
    log_prob = logits.log_softmax(0)
    p, q = log_prob.exp(), reference.exp()
    samples = divergence(log_prob.detach(), reference, kind, alpha)
    assert (samples >= 0).all()
    u = (p / q).detach().numpy()
    assert (p.detach() * samples).sum().item() == pytest.approx((q.numpy() * f(kind, u, alpha)).sum())
    loss = divergence_loss(log_prob, reference, p.detach(), kind, alpha)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    exact = (p * divergence(log_prob, reference, kind, alpha)).sum()
    (expected,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(gradient, expected)


def test_known_divergences():
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.5, 0.3])
    log_p, log_q = torch.tensor(p).log(), torch.tensor(q).log()
    middle = (p + q) / 2
    expected = {
        "reverse-kl": (p * np.log(p / q)).sum(),
        "forward-kl": (q * np.log(q / p)).sum(),
        "jensen-shannon": (p * np.log(p / middle)).sum() + (q * np.log(q / middle)).sum(),
        "total-variation": np.abs(p - q).sum() / 2,
        "reverse-chi-squared": (p**2 / q).sum() - 1,
        "forward-chi-squared": (q**2 / p).sum() - 1,
        "alpha": 4 * (1 - np.sqrt(p * q).sum()),  # a = 1/2: four times one minus the affinity
    }
    for kind, value in expected.items():
        assert (torch.tensor(p) * divergence(log_p, log_q, kind)).sum().item() == pytest.approx(value)
    torch.testing.assert_close(divergence(log_p, log_q), kl_estimate(log_p, log_q, "k3"))
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(slope(x, "alpha", 1e-7), slope(x, "reverse-kl"), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(slope(x, "alpha", 1 - 1e-7), slope(x, "forward-kl"), rtol=1e-5, atol=1e-6)


def test_divergences_refuse():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match="one of reverse-kl"):
        slope(x, "kl")
    with pytest.raises(ValueError, match="inside"):
        slope(x, "alpha", 1.0)
    with pytest.raises(ValueError, match="equal"):
        divergence(x, x[:, None])
    with pytest.raises(ValueError, match="equal"):
        divergence_loss(x, x, x[:, None])


def test_anchors_by_hand():
    log_prob = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.5, -1.0, -0.5], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    assert cloning(log_prob, weight).item() == 0.5 + 0.5 + 0.125
    penalty = squared_log_ratio(log_prob, old, weight)
    assert penalty.item() == 0.5 * 0.25 + 0.25 * 1.0
    penalty.backward()
    assert log_prob.grad.tolist() == [0.5, -0.5, 0.0]
    assert old.grad is None
    with pytest.raises(ValueError, match="equal"):
        squared_log_ratio(log_prob, old[:, None], weight)


def test_anchors_average_the_steps_of_a_chain():
    log_prob = torch.tensor([[-1.0, -3.0], [-2.0, -2.0]], dtype=torch.float64)
    other = torch.tensor([[-1.5, -2.0], [-2.0, -1.0]], dtype=torch.float64)
    weight = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert cloning(log_prob, weight).item() == 2.0
    assert squared_log_ratio(log_prob, other, weight).item() == 0.75 * (0.25 + 1.0) / 2 + 0.25 * (0.0 + 1.0) / 2
    assert reference_penalty(ReferenceKL(2.0, "k1"), log_prob, other, weight)[1].item() == 0.75 * -0.25 + 0.25 * -0.5


def test_reference_penalty_by_hand():
    log_prob = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.5, -1.0], dtype=torch.float64, requires_grad=True)
    weight, d = torch.tensor([0.5, 0.5], dtype=torch.float64), np.array([0.5, -1.0])
    for kind, kl, pull in (
        ("k1", d, [1.0, 1.0]),
        ("k2", d**2 / 2, d),
        ("k3", np.exp(-d) - 1 + d, 1 - np.exp(-d)),
    ):
        loss, mean = reference_penalty(ReferenceKL(0.1, kind), log_prob, reference, weight)
        assert loss.item() == pytest.approx(0.1 * kl.mean())
        assert mean.item() == pytest.approx(kl.mean())
        assert not mean.requires_grad
        np.testing.assert_allclose(torch.autograd.grad(loss, log_prob)[0].numpy(), 0.05 * np.array(pull))
    exact = torch.tensor([0.3, 0.5], dtype=torch.float64)
    loss, _ = reference_penalty(ReferenceKL(2.0, "exact"), log_prob, reference, weight, exact)
    assert loss.item() == pytest.approx(0.8)
    with pytest.raises(ValueError, match="'exact' got exact = False"):
        reference_penalty(ReferenceKL(estimator="exact"), log_prob, reference, weight)
    with pytest.raises(ValueError, match="'k3' got exact = True"):
        reference_penalty(ReferenceKL(), log_prob, reference, weight, exact)
