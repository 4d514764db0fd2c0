"""Gradients of IQL against d3rlpy's own update, on the same weights and the same batch, in float64: `make test-peers`.

What differs between the two libraries is in docs/conventions.md.
"""

import pytest
import torch

from polopt.training import api
from tests.guards import spaces
from tests.peers.d3rlpy_answers import TOLERANCE, ask, of
from tests.peers.gradients import load, record, relative_error

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("float64")
LOW, HIGH = -5.0, 2.0  # bounds of log_std, on both sides

# Settings of d3rlpy's config, and what they are called here.
NAMES = {
    "expectile": "expectile",
    "weight_temp": "advantage_temperature",
    "max_weight": "weight_clip",
    "gamma": "discount",
    "n_critics": "critics",
}
DEFAULTS = {"expectile": 0.7, "weight_temp": 3.0, "max_weight": 100.0, "gamma": 0.99, "n_critics": 2}
OTHERS = {"expectile": 0.875, "weight_temp": 1.0, "max_weight": 2.0, "gamma": 0.9, "n_critics": 3}


@pytest.fixture(scope="module", params=[DEFAULTS, OTHERS], ids=["defaults", "others"])
def case(request, tmp_path_factory):
    """(d3rlpy's settings, the batch [B], the tensors that it answered)."""
    return request.param, *ask("iql", request.param, tmp_path_factory.mktemp("d3rlpy"))


def log_std(parameter):
    """d3rlpy's parameter of the standard deviation passes through a sigmoid between the bounds; ours is clamped."""
    return LOW + (HIGH - LOW) * parameter.sigmoid()


def iql(settings, tensors, **changed):
    """Our method with d3rlpy's weights and, but for what is `changed`, its settings."""
    config = {NAMES[name]: value for name, value in settings.items()} | changed
    method = api.plan(
        "iql", spaces.box, seed=1, loggers=(), dataset="random", **{"network.sizes": (16, 16)}, **config
    ).build(prepare=False)
    first, *rest = of(tensors, "weight", "policy")
    load(method.policy.parameters(), [log_std(first), *rest])
    load(method.in_sample.value.parameters(), of(tensors, "weight", "value"))
    load(method.in_sample.critic.parameters(), of(tensors, "weight", "critic"))
    load(method.in_sample.target_critic.parameters(), of(tensors, "weight", "target_critic"))
    return method


def gradients(settings, batch, tensors, **changed):
    """{network: (our gradients, d3rlpy's)} of one whole update."""
    method = iql(settings, tensors, **changed)
    networks = {"policy": method.policy, "value": method.in_sample.value, "critic": method.in_sample.critic}
    seen = [
        record(optimizer) for optimizer in (method.policy_optimizer, method.value_optimizer, method.critic_optimizer)
    ]
    metrics = method.update(batch)
    ours = {parameter: gradient for recorded in seen for parameter, gradient in recorded.items()}
    pairs = {
        name: ([ours[parameter] for parameter in network.parameters()], of(tensors, "gradient", name))
        for name, network in networks.items()
    }
    inside = of(tensors, "weight", "policy")[0].sigmoid()
    pairs["policy"][0][0] *= (HIGH - LOW) * inside * (1 - inside)  # d log_std / d parameter of d3rlpy
    return pairs, metrics


def test_value_loss(case):
    pairs, _ = gradients(*case)
    assert relative_error(*pairs["value"]) < TOLERANCE
    changed, _ = gradients(*case, expectile=0.5)
    assert relative_error(*changed["value"]) > 1e-3


def test_critic_loss_is_half_of_theirs(case):
    pairs, _ = gradients(*case)
    ours, theirs = pairs["critic"]
    assert relative_error([2.0 * gradient for gradient in ours], theirs) < TOLERANCE
    assert relative_error(ours, theirs) > 1e-3
    changed, _ = gradients(*case, discount=0.5)
    assert relative_error([2.0 * gradient for gradient in changed["critic"][0]], theirs) > 1e-3


@pytest.mark.parametrize("changed", [{"advantage_temperature": 2.0}, {"weight_clip": 1.5}])
def test_policy_loss(case, changed):
    pairs, metrics = gradients(*case)
    assert relative_error(*pairs["policy"]) < TOLERANCE
    assert 0 < metrics["clip_fraction"] < 1
    pairs, _ = gradients(*case, **changed)
    assert relative_error(*pairs["policy"]) > 1e-3
