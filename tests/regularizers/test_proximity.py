import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.regularizers.proximity import exact_proximity, reparameterized_proximity, sampled_proximity

torch.set_num_threads(1)
LOGITS = torch.tensor([0.3, -0.8, 1.2, 0.1], dtype=torch.float64)
OLD = torch.tensor([-0.5, 0.4, 0.9, 0.2], dtype=torch.float64).log_softmax(0)


def value_and_gradient(f):
    logits = LOGITS.clone().requires_grad_()
    value = f(logits.log_softmax(0))
    return value.item(), torch.autograd.grad(value, logits)[0]


def test_tsallis_at_one_is_kl_new_old():
    """Enumerated over the actions of the OLD policy: the weight is their probability."""
    value, gradient = value_and_gradient(lambda new: sampled_proximity(new, OLD, OLD.exp(), q=1.0))
    expected = value_and_gradient(lambda new: (new.exp() * (new - OLD)).sum())
    assert value == pytest.approx(expected[0], abs=1e-12)
    torch.testing.assert_close(gradient, expected[1])
    wrong_way = value_and_gradient(lambda new: (OLD.exp() * (OLD - new)).sum())[1]
    assert not torch.allclose(gradient, wrong_way)


@pytest.mark.parametrize("q", [0.5, 1.5, 2.0])
def test_tsallis_against_numpy(q):
    value, gradient = value_and_gradient(lambda new: sampled_proximity(new, OLD, OLD.exp(), q=q))

    def divergence(logits):
        new, old = np.exp(logits) / np.exp(logits).sum(), OLD.exp().numpy()
        return np.sum(new * ((new ** (q - 1) - 1) / (q - 1) - (old ** (q - 1) - 1) / (q - 1)))

    assert value == pytest.approx(divergence(LOGITS.numpy()), abs=1e-12)
    shift = 1e-6 * np.eye(4)
    numeric = [(divergence(LOGITS.numpy() + h) - divergence(LOGITS.numpy() - h)) / 2e-6 for h in shift]
    np.testing.assert_allclose(gradient.numpy(), numeric, atol=1e-8)


def test_tsallis_is_continuous_in_q():
    near = sampled_proximity(LOGITS.log_softmax(0), OLD, OLD.exp(), q=1 + 1e-7)
    assert near.item() == pytest.approx(sampled_proximity(LOGITS.log_softmax(0), OLD, OLD.exp()).item(), abs=1e-6)


def test_reparameterized_gradient_is_that_of_kl():
    """N(m, s) against N(0, 1): quadrature over eps, gradients through the action in both densities."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    eps, weight = torch.tensor(nodes), torch.tensor(weights / weights.sum())
    mean, log_std = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.7, -0.3))
    action = mean + log_std.exp() * eps
    new = torch.distributions.Normal(mean, log_std.exp())
    old = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    loss = reparameterized_proximity(new.log_prob(action), old.log_prob(action), weight)
    kl = torch.distributions.kl_divergence(new, old)
    torch.testing.assert_close(loss, kl)
    got, expected = (torch.autograd.grad(x, (mean, log_std), retain_graph=True) for x in (loss, kl))
    torch.testing.assert_close(got, expected)


def test_exact_proximity_asks_new_first():
    class Stub:
        def __init__(self, name):
            self.name = name

        def kl(self, batch, other):
            assert (self.name, other.name) == ("new", "old")
            return batch["x"]

    batch = TensorDict({"x": torch.tensor([1.0, 3.0]), "weight": torch.tensor([0.25, 0.75])}, [2])
    assert exact_proximity(Stub("new"), Stub("old"), batch).item() == 2.5


@pytest.mark.parametrize("q", [1.0, 1.5])
def test_the_steps_of_a_chain_count_as_their_mean(q):
    new, old = torch.randn(2, 2, 5, 4, dtype=torch.float64).unbind(0)
    weight = torch.rand(2, 5, dtype=torch.float64)
    whole = sampled_proximity(new, old, weight, q)
    steps = [sampled_proximity(new[..., k], old[..., k], weight, q) for k in range(4)]
    torch.testing.assert_close(whole, sum(steps) / 4)
    whole = reparameterized_proximity(new, old, weight)
    torch.testing.assert_close(whole, (weight * (new - old).mean(-1)).sum())


def test_shapes_must_be_equal():
    for f in (reparameterized_proximity, sampled_proximity):
        with pytest.raises(ValueError, match="equal"):
            f(torch.zeros(4), torch.zeros(4, 1), torch.zeros(4))
