import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.networks.build import GRU, Clock, FeedForward, Recurrent
from polopt.networks.layers import ResidualMLP
from polopt.networks.normalizer import Normalizer

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)


def own_trunk(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


def test_importing_configs_needs_no_torch():
    code = "import sys, polopt.networks, polopt.policies; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@given(lead=st.lists(st.integers(1, 3), max_size=3).map(tuple), ensemble=st.sampled_from([None, 1, 3]))
def test_shapes_for_any_leading_dimensions(lead, ensemble):
    net = Network(sizes=(4,)).build(VECTOR, 2, ensemble=ensemble, inputs_extra=1)
    outputs = net(torch.randn(*lead, 3), torch.randn(*lead, 1))
    assert outputs.shape == (*(() if ensemble is None else (ensemble,)), *lead, 2)


def test_extra_inputs_with_more_leading_dimensions_than_the_observation():
    net = Network(sizes=(4,)).build(VECTOR, 1, ensemble=2, inputs_extra=2)
    obs, action = torch.randn(5, 3), torch.randn(7, 5, 2)
    outputs = net(obs, action)
    assert outputs.shape == (2, 7, 5, 1)
    for i in range(7):
        torch.testing.assert_close(outputs[:, i], net(obs, action[i]))


def test_own_trunk_and_a_stack_of_them():
    net = Network(make=own_trunk).build(VECTOR, 2, inputs_extra=1)
    obs, extra = torch.randn(4, 3), torch.randn(4, 1)
    torch.testing.assert_close(net(obs, extra), torch.cat([obs, extra], -1) @ net.trunk.weight.T)
    many = Network(make=own_trunk).build(VECTOR, 2, ensemble=3)
    outputs = many(obs)
    assert outputs.shape == (3, 4, 2)
    for member, output in zip(many.trunk.stack, outputs):
        torch.testing.assert_close(output, member(obs))
    assert Network.from_value(own_trunk) == Network(make=own_trunk)
    assert Network.from_value(3) is None


def too_narrow(inputs, outputs):
    return nn.Linear(inputs, outputs + 1)


def no_module(inputs, outputs):
    return lambda x: x


def wrong_inputs(inputs, outputs):
    return nn.Linear(inputs + 1, outputs)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (too_narrow, r"too_narrow\(3, 2\) gives outputs of shape \(1, 3\) where \(1, 2\) is needed"),
        (no_module, r"no_module\(3, 2\) gives a function, not a torch module"),
        (wrong_inputs, r"wrong_inputs\(3, 2\) does not take 3 features: .*shapes"),
    ],
)
def test_own_trunks_that_do_not_fit_are_refused(make, words):
    with pytest.raises(UsageError, match=words):
        Network(make=make).build(VECTOR, 2)


def test_own_trunks_are_tried_without_leaving_a_trace():
    def make(inputs, outputs):
        return nn.Sequential(nn.Dropout(0.5), nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs))

    torch.manual_seed(5)
    expected = make(3, 2).state_dict()
    after = torch.rand(())
    torch.manual_seed(5)
    trunk = Network(make=make).build(VECTOR, 2).trunk
    assert torch.rand(()) == after
    assert trunk.training
    assert trunk[0].training
    assert all(torch.equal(value, expected[key]) for key, value in trunk.state_dict().items())


def test_head_gain_of_the_config_and_of_the_call():
    network = Network(init="orthogonal", head_gain=0.01)
    assert torch.linalg.svdvals(network.build(VECTOR, 2).trunk.head.weight).tolist() == pytest.approx([0.01] * 2)
    critic = network.build(VECTOR, 1, head_gain=1.0)
    assert torch.linalg.svdvals(critic.trunk.head.weight).tolist() == pytest.approx([1.0])


def test_normalizer_is_shared_not_copied():
    normalizer = Normalizer(VECTOR)
    policy, critic = (Network().build(VECTOR, n, normalizer=normalizer) for n in (2, 1))
    assert policy.normalizer is critic.normalizer is normalizer
    obs = torch.randn(20, 3) * 5.0
    before = critic(obs)
    normalizer.update(obs)
    torch.testing.assert_close(critic(obs), critic.trunk(normalizer(obs)))
    assert not torch.equal(critic(obs), before)


def test_image_ensemble_shares_one_encoder():
    net = Network(sizes=(8,)).build(spaces.Box(0, 255, (36, 36, 3), np.uint8), 1, ensemble=2, inputs_extra=1)
    obs = torch.randint(256, (4, 36, 36, 3), dtype=torch.uint8)
    assert net(obs, torch.randn(4, 1)).shape == (2, 4, 1)
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 3


def test_networks_work_in_float64(float64):
    for network in (Network(normalization="layer"), Network(recurrent="gru"), Network(recurrent="clock")):
        net = network.build(VECTOR, 2, normalizer=Normalizer(VECTOR))
        assert all(parameter.dtype == torch.float64 for parameter in net.parameters())
        obs, first = torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.bool)
        out = net(obs, net.new_hidden(obs[:, 0]), first) if net.recurrent else net(obs)
        assert out.dtype == torch.float64
    image = Network(sizes=(4,)).build(spaces.Box(0, 255, (36, 36), np.uint8), 2)
    assert image(torch.zeros(36, 36, dtype=torch.uint8)).dtype == torch.float64


def test_gru_equals_the_one_of_pytorch():
    torch.manual_seed(0)
    ours, theirs = GRU(3, 5), nn.GRU(3, 5, batch_first=True)
    theirs.weight_ih_l0.data, theirs.weight_hh_l0.data = ours.weight_input.data, ours.weight_hidden.data
    theirs.bias_ih_l0.data, theirs.bias_hh_l0.data = ours.bias_input.data, ours.bias_hidden.data
    x, hidden = torch.randn(4, 6, 3), torch.randn(4, 5)
    states = ours(x, hidden, torch.zeros(4, 6, dtype=torch.bool))
    torch.testing.assert_close(states, theirs(x, hidden[None])[0])


def test_orthogonal_gru():
    core = GRU(5, 4, "orthogonal")
    for gate in core.weight_hidden.chunk(3):
        torch.testing.assert_close(gate @ gate.T, torch.eye(4))
    assert (core.bias_input == 0).all()


def test_clock_by_hand(float64):
    """An episode that goes on, and one that begins at the third column; two speeds, 1 and 1/1000."""
    core = Clock(1, 5)
    assert (core.size, core.outputs) == (1, 5)
    first = torch.tensor([[False] * 4, [False, False, True, False]])
    states = core(torch.zeros(2, 4, 1), torch.tensor([[3.0], [7.0]]), first)
    assert states[..., 0].tolist() == [[4, 5, 6, 7], [8, 9, 1, 2]]
    read = core.read(torch.tensor([[0.5]]), torch.tensor([[7.0]]))[0].tolist()
    assert read == pytest.approx([0.5, math.sin(7), math.sin(0.007), math.cos(7), math.cos(0.007)])
    assert Clock(3, 1).outputs == 5
    assert not [*core.parameters()]
    assert core.state_dict() == {}


@pytest.mark.parametrize(("recurrent", "size"), [("gru", 5), ("clock", 1)])
@given(lead=st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple), seed=st.integers(0, 99))
def test_window_equals_steps_with_resets(recurrent, size, lead, seed):
    torch.manual_seed(seed)
    net = Network(sizes=(8,), recurrent=recurrent, recurrent_size=5).build(VECTOR, 2, inputs_extra=1)
    obs, extra = torch.randn(*lead, 7, 3), torch.randn(*lead, 7, 1)
    first = torch.rand(*lead, 7) < 0.3
    hidden = start = torch.randn(*lead, size)
    outputs, states = net.unroll(obs, start, first, extra)
    assert outputs.shape == (*lead, 7, 2)
    for t in range(7):
        hidden = hidden * ~first[..., t, None]
        output, hidden = net.step(obs[..., t, :], hidden, extra[..., t, :])
        torch.testing.assert_close(outputs[..., t, :], output, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(states[..., t, :], hidden, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(net(obs, start, first, extra), outputs)
    assert net.new_hidden(obs[..., 0, :]).shape == (*lead, size)


def test_no_gradient_flows_across_the_start_of_an_episode():
    net = Network(recurrent="gru").build(VECTOR, 1)
    obs = torch.randn(1, 4, 3, requires_grad=True)
    first = torch.tensor([[False, False, True, False]])
    net(obs, torch.zeros(1, 64), first)[0, 3].backward()
    assert obs.grad[0, :2].abs().sum() == 0
    assert (obs.grad[0, 2:].abs().sum(-1) > 0).all()


def test_recurrent_ensemble():
    net = Network(recurrent="gru", recurrent_size=4, sizes=()).build(VECTOR, 2, ensemble=3)
    assert net(torch.randn(2, 5, 3), torch.zeros(2, 4), torch.zeros(2, 5, dtype=torch.bool)).shape == (3, 2, 5, 2)


def test_kinds_of_networks():
    assert isinstance(Network().build(VECTOR, 1), FeedForward)
    assert isinstance(Network(recurrent="gru").build(VECTOR, 1), Recurrent)


@pytest.mark.parametrize("wrong", [{"activation": "swosh"}, {"sizes": (0,)}, {"recurrent_size": 0}, {"init": "random"}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(UsageError):
        Network(**wrong)


def test_residual_blocks_are_a_choice_and_have_one_width():
    net = Network((8, 8), blocks="residual").build(VECTOR, 2)
    assert isinstance(net.trunk, ResidualMLP)
    assert len(net.trunk.layers) == 5
    for sizes in ((8, 4), ()):
        with pytest.raises(UsageError, match="residual blocks have one width"):
            Network(sizes, blocks="residual")
