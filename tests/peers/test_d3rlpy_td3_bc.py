"""Gradients of TD3+BC against d3rlpy's own update, on the same weights, batch and noise, in float64: `make test-peers`.

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

# Settings of d3rlpy's config, and what they are called here.
NAMES = {
    "alpha": "alpha",
    "target_smoothing_sigma": "target_noise",
    "target_smoothing_clip": "target_noise_clip",
    "gamma": "discount",
    "n_critics": "critics",
    "update_actor_interval": "delay",
}
DEFAULTS = {"alpha": 2.5, "target_smoothing_sigma": 0.2, "target_smoothing_clip": 0.5, "gamma": 0.99, "n_critics": 2}
OTHERS = {"alpha": 0.7, "target_smoothing_sigma": 0.5, "target_smoothing_clip": 0.3, "gamma": 0.9, "n_critics": 3}


@pytest.fixture(scope="module", params=[DEFAULTS, OTHERS], ids=["defaults", "others"])
def case(request, tmp_path_factory):
    """(d3rlpy's settings, the batch [B], the tensors that it answered)."""
    settings = request.param | {"update_actor_interval": 1}
    return settings, *ask("td3-bc", settings, tmp_path_factory.mktemp("d3rlpy"))


def gradients(settings, batch, tensors, **changed):
    """{network: (our gradients, d3rlpy's)} of one whole update with its weights and, but for what is `changed`, its
    settings."""
    config = {NAMES[name]: value for name, value in settings.items()} | {"normalize_obs": False} | changed
    method = api.plan(
        "td3-bc", spaces.box, seed=1, loggers=(), dataset="random", **{"network.sizes": (16, 16)}, **config
    ).build(prepare=False)
    networks = {"policy": method.policy, "critic": method.clipped.critic}
    slow = {"target_policy": method.target_policy, "target_critic": method.clipped.target_critic}
    for name, network in (networks | slow).items():
        load(network.parameters(), of(tensors, "weight", name))
    seen = [record(optimizer) for optimizer in (method.policy_optimizer, method.critic_optimizer)]
    torch.manual_seed(5)
    method.update(batch)
    ours = seen[0] | seen[1]
    return {
        name: ([ours[parameter] for parameter in network.parameters()], of(tensors, "gradient", name))
        for name, network in networks.items()
    }


@pytest.mark.parametrize(
    ("loss", "changed"),
    [
        ("critic", {"target_noise": 0.1}),
        ("critic", {"target_noise_clip": 0.05}),
        ("critic", {"discount": 0.5}),
        ("policy", {"alpha": 1.0}),
    ],
)
def test_losses(case, loss, changed):
    assert relative_error(*gradients(*case)[loss]) < TOLERANCE
    assert relative_error(*gradients(*case, **changed)[loss]) > 1e-3
