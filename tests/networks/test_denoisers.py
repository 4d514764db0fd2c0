"""Denoisers: shapes, times that differ by coordinate, conditions, and how `network` takes part."""

import pytest
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.networks.denoisers import Conv, DiT, Flat
from polopt.networks.normalizer import Normalizer
from polopt.networks.unet import GroupNorm

pytestmark = pytest.mark.usefixtures("float64")
SPACE = spaces.Box(-1.0, 1.0, (3,))
NETWORK = Network((16,), "mish")
CONFIGS = [Flat(), DiT(16, 2, 2, token_size=2), Conv((8, 16), 3, token_size=2)]
BY_TOKEN = CONFIGS[1:]


def made(config, **options):
    """A denoiser of 6 coordinates, all of whose parameters have been moved away from where they begin."""
    net = config.build(NETWORK, SPACE, 6, **options)
    for parameter in net.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return net


def name(config):
    return type(config).__name__


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_any_leading_dimensions_and_times(config):
    net = made(config, times=2)
    obs, x = torch.randn(4, 5, 3), torch.randn(4, 5, 6)
    features, (r, t) = net.features(obs), torch.rand(2, 4, 5, 1)
    out = net.predict(features, x, r, t)
    assert out.shape == (4, 5, 6)
    torch.testing.assert_close(net.predict(net.features(obs[1]), x[1], r[1], t[1]), out[1])
    torch.testing.assert_close(net.predict(features[0, 0], x[0, 0], r[0, 0], t[0, 0]), out[0, 0])
    many = torch.stack([x, 2 * x])  # several samples beside each observation, which is encoded once
    torch.testing.assert_close(net.predict(features, many, r, t)[0], out)
    everywhere = net.predict(features, x, torch.tensor([0.3]), torch.tensor([0.7]))
    torch.testing.assert_close(
        everywhere, net.predict(features, x, torch.full_like(r, 0.3), torch.full_like(r, 0.7)), rtol=1e-9, atol=1e-9
    )
    assert not torch.allclose(everywhere, net.predict(features, x, torch.tensor([0.4]), torch.tensor([0.7])))
    assert not torch.allclose(everywhere, net.predict(features, x, torch.tensor([0.3]), torch.tensor([0.8])))
    elsewhere = net.features(obs + 1)
    assert not torch.allclose(everywhere, net.predict(elsewhere, x, torch.tensor([0.3]), torch.tensor([0.7])))


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_gradients_reach_every_parameter(config):
    net = made(config)
    net.predict(net.features(torch.randn(8, 3)), torch.randn(8, 6), torch.rand(8, 1)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_a_flat_denoiser_is_the_network_of_everything_side_by_side():
    net = made(Flat(), times=2, time_size=4)
    obs, x, (r, t) = torch.randn(5, 3), torch.randn(5, 6), torch.rand(2, 5, 1)
    one, other = net.embeddings
    assert torch.equal(net.predict(net.features(obs), x, r, t), net.trunk(torch.cat([obs, x, one(r), other(t)], -1)))


@pytest.mark.parametrize("config", CONFIGS, ids=name)
def test_parts_may_have_times_of_their_own(config):
    net = made(config, parts=(4, 2))
    features, x = net.features(torch.randn(5, 3)), torch.randn(5, 6)
    chunk, latent = torch.tensor([0.2]), torch.tensor([0.9])
    mixed = torch.cat([chunk.expand(4), latent.expand(2)])
    alike = net.predict(features, x, chunk)
    torch.testing.assert_close(net.predict(features, x, chunk.expand(6)), alike)
    apart = net.predict(features, x, mixed)
    assert not torch.allclose(apart, alike)
    assert not torch.allclose(apart, net.predict(features, x, latent))
    rows = torch.stack([mixed, chunk.expand(6), mixed, mixed, chunk.expand(6)])  # ... and each row, too
    torch.testing.assert_close(net.predict(features, x, rows)[[0, 1]], torch.stack([apart[0], alike[1]]))


def test_one_part_has_one_time():
    net = made(Flat())
    with pytest.raises(ValueError, match="this denoiser has one time for all coordinates, not 6 times"):
        net.predict(net.features(torch.randn(2, 3)), torch.randn(2, 6), torch.rand(6))


@pytest.mark.parametrize("config", BY_TOKEN, ids=name)
def test_every_token_has_a_time_of_its_own(config):
    net = made(config)
    features, x = net.features(torch.randn(5, 3)), torch.randn(5, 6)
    for token in range(3):
        time = torch.full((6,), 0.2)
        time[2 * token : 2 * token + 2] = 0.9
        assert not torch.allclose(net.predict(features, x, time), net.predict(features, x, torch.tensor([0.2])))


def test_tokens_of_a_transformer_see_each_other_and_are_told_apart():
    net = made(CONFIGS[1])
    features, x, time = net.features(torch.randn(1, 3)), torch.randn(1, 6), torch.tensor([0.5])
    out = net.predict(features, x, time)
    changed = x.clone()
    changed[:, 5] += 1.0
    assert not torch.allclose(net.predict(features, changed, time)[:, :2], out[:, :2])
    swapped = net.predict(features, x[:, [2, 3, 0, 1, 4, 5]], time)
    assert not torch.allclose(swapped[:, [2, 3, 0, 1, 4, 5]], out)


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_a_convolution_takes_sequences_of_any_length_and_sees_neighbors(length):
    net = Conv((4, 8, 8), 3).build(NETWORK, SPACE, length)
    x = torch.randn(2, length)
    features, time = net.features(torch.randn(2, 3)), torch.tensor([0.5])
    out = net.predict(features, x, time)
    assert out.shape == (2, length)
    changed = x.clone()
    changed[:, 0] += 1.0
    assert (net.predict(features, changed, time) != out).all()
    assert torch.isfinite(net.predict(features, x, torch.linspace(0, 1, length))).all()


def test_group_norm_is_that_of_pytorch():
    ours, theirs, x = GroupNorm(2, 6), torch.nn.GroupNorm(2, 6), torch.randn(3, 6, 5)
    for norm in (ours, theirs):
        norm.weight.data = torch.linspace(0.5, 2.0, 6)
        norm.bias.data = torch.linspace(-1.0, 1.0, 6)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("config", BY_TOKEN, ids=name)
def test_the_network_encodes_the_observation_and_scales_the_last_layer(config):
    normalizer = Normalizer(SPACE)
    net = config.build(Network((7, 5), head_gain=0.0), SPACE, 6, normalizer=normalizer)
    assert net.normalizer is normalizer
    assert [tuple(layer.weight.shape) for layer in net.encoder.trunk.layers[:3:2]] == [(7, 3), (5, 7)]
    assert not net.predict(net.features(torch.randn(2, 3)), torch.randn(2, 6), torch.tensor([0.5])).any()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: DiT(heads=3), "3 heads cannot share a width of 64"),
        (lambda: Conv(kernel=4), "a Conv denoiser needs one number of channels at least, and an odd kernel"),
        (lambda: Conv(()), "a Conv denoiser needs one number of channels at least, and an odd kernel"),
        (lambda: DiT(token_size=4).build(NETWORK, SPACE, 6), "a DiT .* cut 6 coordinates into tokens of 4: set"),
        (lambda: Conv(token_size=2).build(NETWORK, SPACE, 6, parts=(3, 3)), "a Conv .* cut 3 coordinates into"),
    ],
)
def test_what_they_refuse(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        make()
