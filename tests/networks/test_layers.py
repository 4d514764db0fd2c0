import math

import pytest
import torch
from torch import nn

from polopt.networks.layers import ACTIVATIONS, MLP, Chain, EnsembleLayerNorm, EnsembleLinear, ResidualMLP, initialize

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5)])
@pytest.mark.parametrize("gain", [0.01, math.sqrt(2.0)])
def test_orthogonal_layer_has_orthogonal_rows_or_columns_of_the_given_gain(shape, gain):
    layer = nn.Linear(shape[1], shape[0])
    initialize(layer, "orthogonal", gain)
    weight = layer.weight if shape[0] <= shape[1] else layer.weight.T
    torch.testing.assert_close(weight @ weight.T, gain**2 * torch.eye(min(shape)))
    assert (layer.bias == 0).all()


def test_gains_of_a_whole_mlp():
    net = MLP(8, 3, (8, 8), init="orthogonal", head_gain=0.01)
    for layer, gain in ((net.layers[0], math.sqrt(2)), (net.layers[2], math.sqrt(2)), (net.head, 0.01)):
        torch.testing.assert_close(torch.linalg.svdvals(layer.weight), torch.full(layer.weight.shape[:1], gain))


def test_gains_of_every_member_of_an_ensemble():
    net = MLP(8, 3, (8,), init="orthogonal", head_gain=0.1, members=4)
    torch.testing.assert_close(torch.linalg.svdvals(net.layers[0].weight), torch.full((4, 8), math.sqrt(2)))
    torch.testing.assert_close(torch.linalg.svdvals(net.head.weight), torch.full((4, 3), 0.1))
    assert not torch.equal(net.head.weight[0], net.head.weight[1])


def test_head_gain_scales_a_default_head():
    torch.manual_seed(1)
    plain = MLP(4, 2, (5,))
    torch.manual_seed(1)
    scaled = MLP(4, 2, (5,), head_gain=0.01)
    torch.testing.assert_close(scaled.head.weight, 0.01 * plain.head.weight)
    torch.testing.assert_close(scaled.head.bias, 0.01 * plain.head.bias)
    torch.testing.assert_close(scaled.layers[0].weight, plain.layers[0].weight)


def test_ensemble_members_are_drawn_as_single_layers():
    torch.manual_seed(2)
    layers = [nn.Linear(7, 3) for _ in range(5)]
    torch.manual_seed(2)
    ensemble = EnsembleLinear(5, 7, 3)
    for e, layer in enumerate(layers):
        assert torch.equal(ensemble.weight[e], layer.weight.T)
        assert torch.equal(ensemble.bias[e, 0], layer.bias)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("normalization", ["none", "layer"])
@pytest.mark.parametrize("lead", [(), (1,), (6,), (2, 3)])
def test_member_equals_single_mlp_with_the_same_weights(activation, normalization, lead):
    options = {"activation": activation, "normalization": normalization}
    ensemble = MLP(5, 2, (8, 6), members=3, **options)
    for parameter in ensemble.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    x = torch.randn(*lead, 5)
    outputs = ensemble(x)
    assert outputs.shape == (3, *lead, 2)
    for e in range(3):
        single = MLP(5, 2, (8, 6), **options)
        for one, many in zip(single.layers, ensemble.layers):
            if isinstance(many, EnsembleLinear):
                one.weight.data, one.bias.data = many.weight[e].T.clone(), many.bias[e, 0].clone()
            elif isinstance(many, EnsembleLayerNorm):
                one.weight.data, one.bias.data = many.weight[e, 0].clone(), many.bias[e, 0].clone()
        torch.testing.assert_close(outputs[e], single(x))


def test_members_do_not_share_gradients():
    ensemble = MLP(5, 1, (4,), members=2)
    ensemble(torch.randn(3, 5))[0].sum().backward()
    for parameter in ensemble.parameters():
        assert parameter.grad[0].abs().sum() > 0
        assert parameter.grad[1].abs().sum() == 0


def test_no_hidden_layers_is_one_linear_map():
    net = MLP(3, 2, ())
    x = torch.randn(4, 3)
    torch.testing.assert_close(net(x), x @ net.head.weight.T + net.head.bias)


@pytest.mark.parametrize("members", [None, 2])
def test_dropout_is_there_only_where_gradients_are(members):
    net = MLP(3, 2, (64,), members=members, dropout=0.5)
    x = torch.randn(4, 3)
    assert not torch.equal(net(x), net(x))
    with torch.no_grad():
        whole = net(x)
        assert torch.equal(whole, net(x))
    mean = torch.stack([net(x) for _ in range(2_000)]).mean(0)
    torch.testing.assert_close(mean, whole, atol=0.1, rtol=0)
    net.eval()
    torch.testing.assert_close(net(x), whole)


def test_residual_blocks_by_hand():
    """An input layer, then x + W2 silu(W1 norm(x)) twice, four times as wide inside, then silu and the head."""
    net = ResidualMLP(5, 2, (6, 6), activation="silu", normalization="layer")
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    first, *blocks, _, head = net.layers
    x = torch.randn(3, 5)
    hidden = x @ first.weight.T + first.bias
    for block in blocks:
        norm, inner, _, outer = block.layers
        assert inner.weight.shape == (24, 6)
        spread = ((hidden - hidden.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True)
        scaled = (hidden - hidden.mean(-1, keepdim=True)) / (spread + 1e-5).sqrt() * norm.weight + norm.bias
        y = scaled @ inner.weight.T + inner.bias
        hidden = hidden + (y * torch.sigmoid(y)) @ outer.weight.T + outer.bias
    torch.testing.assert_close(net(x), (hidden * torch.sigmoid(hidden)) @ head.weight.T + head.bias)


def test_residual_blocks_of_an_ensemble_and_their_dropout():
    ensemble = ResidualMLP(5, 2, (6, 6), normalization="layer", members=3)
    x = torch.randn(4, 5)
    single = ResidualMLP(5, 2, (6, 6), normalization="layer")
    for one, many in zip(single.parameters(), ensemble.parameters()):
        one.data = many[1].T.clone() if one.dim() == 2 else many[1, 0].clone()
    torch.testing.assert_close(ensemble(x)[1], single(x))
    dropped = ResidualMLP(5, 2, (64,), dropout=0.5)
    assert not torch.equal(dropped(x), dropped(x))
    with torch.no_grad():
        assert torch.equal(dropped(x), dropped(x))


@pytest.mark.parametrize("kind", [MLP, ResidualMLP])
@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("activation", ["relu", "tanh", "mish"])
@pytest.mark.parametrize("normalization", ["none", "layer"])
def test_a_chain_computes_what_its_modules_do_bit_for_bit(kind, members, activation, normalization):
    torch.manual_seed(5)
    net = kind(5, 2, (8, 8), activation=activation, normalization=normalization, members=members).float()
    x = torch.randn(16, 5, dtype=torch.float32)
    weights = [*net.parameters()]
    found = [net(x), *torch.autograd.grad(net(x).square().sum(), weights)]
    chains = [part for part in net.modules() if isinstance(part, Chain)]
    assert len(chains) == (1 if kind is MLP else 3)
    for part in chains:
        part.__class__ = nn.Sequential
    plain = [net(x), *torch.autograd.grad(net(x).square().sum(), weights)]
    assert all(map(torch.equal, found, plain))


@pytest.mark.parametrize("members", [None, 2])
def test_hooks_of_layers_in_a_chain_are_called(members):
    net, x, seen = MLP(3, 2, (4,), activation="relu", members=members), torch.randn(6, 3, requires_grad=True), []
    before = net(x)
    linear, act, _ = net.layers
    handles = [
        linear.register_forward_pre_hook(lambda module, inputs: seen.append("pre")),
        linear.register_full_backward_hook(lambda module, grads, more: seen.append("backward")),
        act.register_forward_hook(lambda module, inputs, output: 2.0 * output),
    ]
    after = net(x)
    after.sum().backward()
    assert seen == ["pre", "backward"]
    assert not torch.allclose(after, before)
    for handle in handles:
        handle.remove()
    assert torch.equal(net(x), before)


@pytest.mark.parametrize("members", [None, 2])
def test_a_chain_reads_weights_that_are_put_in_place_of_its_own(members):
    net, x = MLP(3, 2, (4,), members=members), torch.randn(6, 3)
    other = {name: 2.0 * value for name, value in net.named_parameters()}
    swapped = torch.func.functional_call(net, other, (x,))
    assert not torch.equal(swapped, net(x))
    net.load_state_dict(other)
    assert torch.equal(net(x), swapped)


@pytest.mark.parametrize("members", [None, 2])
def test_a_chain_is_one_graph_for_a_compiler(members):
    net, x = MLP(3, 2, (4,), members=members), torch.randn(6, 3)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), net(x))
