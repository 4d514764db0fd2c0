import math

import numpy as np
import pytest
import torch

from polopt.regularizers.kl import kl_estimate

torch.set_num_threads(1)
LOGITS = torch.tensor([0.3, -0.8, 1.2, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([-0.5, 0.4, 0.9, 0.2], dtype=torch.float64).log_softmax(0)


def expectation_and_gradient(kind):
    """Exact enumeration: E over actions of the policy, whose probabilities are constants as for sampled actions."""
    logits = LOGITS.clone().requires_grad_()
    log_prob = logits.log_softmax(0)
    value = (log_prob.detach().exp() * kl_estimate(log_prob, REFERENCE, kind)).sum()
    return value.item(), torch.autograd.grad(value, logits)[0]


def exact(direction):
    logits = LOGITS.clone().requires_grad_()
    p, q = logits.log_softmax(0), REFERENCE
    kl = (p.exp() * (p - q)).sum() if direction == "forward" else (q.exp() * (q - p)).sum()
    return kl.item(), torch.autograd.grad(kl, logits)[0]


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_k1_and_k3_are_unbiased(kind):
    assert expectation_and_gradient(kind)[0] == pytest.approx(exact("forward")[0], abs=1e-12)


def test_k2_is_half_the_squared_log_ratio():
    p, q = LOGITS.log_softmax(0).numpy(), REFERENCE.numpy()
    assert expectation_and_gradient("k2")[0] == pytest.approx((np.exp(p) * (p - q) ** 2 / 2).sum(), abs=1e-12)


def test_gradients_in_expectation():
    torch.testing.assert_close(expectation_and_gradient("k1")[1], torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(expectation_and_gradient("k2")[1], exact("forward")[1])
    torch.testing.assert_close(expectation_and_gradient("k3")[1], exact("reverse")[1])
    assert not torch.allclose(exact("forward")[1], exact("reverse")[1])


def test_k3_is_never_negative_and_zero_at_equality():
    x = torch.randn(1000, dtype=torch.float64)
    assert (kl_estimate(x, torch.zeros_like(x), "k3") >= 0).all()
    for kind in ("k1", "k2", "k3"):
        assert (kl_estimate(x, x, kind) == 0).all()


def test_refusals():
    with pytest.raises(ValueError, match="equal"):
        kl_estimate(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="'k1', 'k2' and 'k3'"):
        kl_estimate(torch.zeros(4), torch.zeros(4), "k4")


def test_an_action_that_the_policy_has_lost_keeps_k3_and_its_gradient_finite():
    log_prob = torch.tensor([-100.0, -1.0], requires_grad=True)
    value = kl_estimate(log_prob, torch.tensor([0.0, 0.0]), "k3")
    (slope,) = torch.autograd.grad(value.sum(), log_prob)
    assert torch.isfinite(value).all()
    assert slope[0] == pytest.approx(1 - math.exp(20), rel=1e-5)  # still up, towards the reference
    assert slope[1] == pytest.approx(1 - math.e, rel=1e-5)
