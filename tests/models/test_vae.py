from __future__ import annotations

import pytest
import torch
from gymnasium import spaces
from torch.distributions import Normal, kl_divergence

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.models.vae import ActionVAE, standard_kl
from polopt.networks import Network
from polopt.optim import Optimizer

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-2.0, 2.0, (2,)), "a toy")


def test_the_divergence_is_that_of_two_gaussians(float64):
    mean, log_std = torch.randn(4, 3), torch.randn(4, 3)
    expected = kl_divergence(Normal(mean, log_std.exp()), Normal(torch.zeros(3), torch.ones(3)))
    torch.testing.assert_close(standard_kl(mean, log_std), expected)


def test_its_parts_by_hand(float64):
    """Of networks that are one linear layer: everything written out, without the batch dimensions' help."""
    model = ActionVAE(SPEC, Network(sizes=()))
    obs, action, noise = torch.randn(5, 3), torch.rand(5, 2), torch.randn(5, 4)
    assert model.latents == 4
    assert model.draw_noise(action).shape == (5, 4)
    weight, bias = model.encoder.trunk.head.weight, model.encoder.trunk.head.bias
    outputs = torch.cat([obs, action], 1) @ weight.T + bias
    mean, log_std = outputs[:, :4], outputs[:, 4:].clamp(-4, 15)
    latent = mean + log_std.exp() * noise
    weight, bias = model.decoder.trunk.head.weight, model.decoder.trunk.head.bias
    again = torch.tanh(torch.cat([obs, latent], 1) @ weight.T + bias)

    torch.testing.assert_close(model.reconstruct(obs, action, noise), again)
    error, kl = model.terms(obs, action, noise)
    torch.testing.assert_close(error, ((again - action) ** 2).sum(1) / 2)
    torch.testing.assert_close(kl, (0.5 * (mean**2 + log_std.exp() ** 2 - 1) - log_std).sum(1) / 4)
    drawn = torch.tanh(torch.cat([obs, noise.clamp(-0.5, 0.5)], 1) @ weight.T + bias)
    torch.testing.assert_close(model.sample(obs, noise), drawn)


def test_the_deviation_has_bounds():
    model = ActionVAE(SPEC, Network((8,)), latents=3)
    with torch.no_grad():
        model.encoder.trunk.head.bias[3:] = torch.tensor([-50.0, 50.0, 0.0])
    _, log_std = model.encode(torch.zeros(1, 3), torch.zeros(1, 2))
    assert log_std[0, :2].tolist() == [-4.0, 15.0]
    assert -4 < float(log_std[0, 2]) < 15


def test_gradients_go_through_the_action_that_is_reconstructed():
    model = ActionVAE(SPEC, Network((8,)))
    action = torch.zeros(2, 2, requires_grad=True)
    model.reconstruct(torch.zeros(2, 3), action, torch.zeros(2, 4)).sum().backward()
    assert action.grad is not None
    assert action.grad.abs().sum() > 0


def test_noise_has_a_stream_of_its_own():
    model, like = ActionVAE(SPEC, Network((8,))), torch.zeros(4, 2)
    before = torch.get_rng_state()
    drawn = [model.draw_noise(like, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*drawn)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(model.draw_noise(like), model.draw_noise(like))


def test_it_learns_what_was_done_where():
    """Two actions in every state, which swap sides with the sign of the observation: samples are of both."""
    obs = torch.rand(256, 3) * 2 - 1
    side = torch.where(torch.arange(256) % 2 == 0, 1.0, -1.0)
    action = torch.stack([0.8 * side, 0.5 * obs[:, 0].sign()], 1)
    model = ActionVAE(SPEC, Network((32,), "relu"))
    optimizer = Optimizer(model, lr=1e-2)
    for _ in range(200):
        error, kl = model.terms(obs, action, model.draw_noise(action))
        optimizer.step((error + 0.05 * kl).mean())
    error, _ = model.terms(obs, action, torch.zeros(256, 4))
    assert float(error.detach().mean()) < 0.04
    with torch.no_grad():
        drawn = model.decode(obs, model.draw_noise(action))
    assert 0.25 < float((drawn[:, 0] > 0).float().mean()) < 0.75
    assert float(drawn[:, 0].abs().median()) > 0.4
    assert float((drawn[:, 1].sign() == obs[:, 0].sign()).float().mean()) > 0.8


def test_what_it_does_not_serve():
    with pytest.raises(UsageError, match="a toy has Discrete"):
        ActionVAE(Spec(SPEC.obs, spaces.Discrete(3), "a toy"), Network())
    with pytest.raises(UsageError, match="feed-forward"):
        ActionVAE(SPEC, Network(recurrent="gru"))
