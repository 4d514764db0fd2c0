"""A2PR: what its paper must not be without, with numbers worked out here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt import registry
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.training import api
from tests.guards import spaces as tasks

MUST = 4
SMALL: dict[str, Any] = {
    "dataset": "random",
    "random_episodes": 2,
    "batch_size": 16,
    "network.sizes": (8,),
    "critic_network.sizes": (8,),
    "vae_network.sizes": (8,),
    "normalize_obs": False,
    "loggers": (),
}
IMAGINED = torch.tensor([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3], [0.4, 0.4]])
RECORDED = -IMAGINED


def make(task: Any = tasks.box, **changes: Any) -> Any:
    settings = SMALL | changes
    if settings.get("candidate") == "data":
        settings.pop("vae_network.sizes")
    return api.plan("a2pr", task, seed=1, **settings).build()


def batch_of(**keys: Any) -> Any:
    batch = {
        "obs": torch.zeros(4, 3),
        "action": RECORDED.clone(),
        "reward": torch.tensor([1.0, 2.0, 3.0, 4.0]),
        "next_obs": torch.ones(4, 3),
        "terminated": torch.tensor([False, True, False, False]),
        "truncated": torch.tensor([False, False, True, False]),
    }
    return weigh(TensorDict(batch | keys, batch_size=[4]))


def told(method: Any, recorded: list[float], imagined: list[float], value: list[float]) -> Any:
    """The method with critics that give the recorded and the imagined actions these values, and everything else 0."""

    def forward(obs: torch.Tensor, action: torch.Tensor, members: int | None = None) -> torch.Tensor:
        worth = torch.where((action < 0).all(-1), torch.tensor(recorded), torch.tensor(imagined))
        return torch.stack([worth, worth + 100.0])[:members]

    method.clipped.critic.forward = forward
    method.value.forward = lambda obs: torch.tensor(value)
    if method.vae is not None:
        method.vae.reconstruct = lambda obs, action, latent: IMAGINED
    return method


def judged(method: Any, batch: Any, recorded: list[float], value: list[float]) -> Any:
    batch["value"] = torch.tensor(value)
    batch["advantage"] = torch.tensor(recorded) - batch["value"]
    batch["latent"] = torch.zeros(4, 4)
    return batch


def test_must_1_the_autoencoder_learns_better_actions_alone(float64):
    method = make(vae_weight=1.5)
    batch = weigh(method.collect())
    batch["advantage"] = torch.linspace(-1.0, 1.0, 16)
    batch["advantage"][8] = 0.0  # no better than average: not above the threshold
    batch["latent"] = torch.randn(16, 4)
    mean, log_std = method.vae.encode(batch["obs"], batch["action"])
    made = method.vae.decode(batch["obs"], mean + log_std.exp() * batch["latent"])
    better = (batch["advantage"] > 0).double()[:, None]
    assert 0 < better.sum() < 9
    reconstruction = 1.5 * (better * (made - batch["action"]) ** 2).mean()  # the mean is over masked rows as well
    kl = -0.5 * (1 + 2 * log_std - mean**2 - (2 * log_std).exp()).mean()  # and has no mask
    loss, metrics = method.vae_loss(batch)
    torch.testing.assert_close(loss, reconstruction + 0.5 * kl)
    torch.testing.assert_close(metrics["reconstruction"], reconstruction / 1.5)
    everything = make(vae_weight=1.5, advantage_threshold=None)
    everything.vae.load_state_dict(method.vae.state_dict())
    torch.testing.assert_close(everything.vae_loss(batch)[0], 1.5 * ((made - batch["action"]) ** 2).mean() + 0.5 * kl)


@pytest.mark.parametrize(
    ("settings", "target", "strength"),
    [
        # the recorded action is worth more; the imagined one, though both are bad; as much, and just average; recorded
        ({"pull": 0.5}, [0, 1, 1, 0], [0.5, 0.0, 0.5, 0.5]),
        ({"candidate": "data"}, [0, 0, 0, 0], [1.0, 0.0, 0.0, 1.0]),
        ({"advantage_threshold": None}, [0, 1, 1, 0], [1.0, 1.0, 1.0, 1.0]),
        ({"advantage_threshold": 2.5}, [0, 1, 1, 0], [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_must_2_it_is_drawn_to_the_better_action_and_to_none_below_average(settings, target, strength):
    recorded, imagined, value = [4.0, -3.0, 1.0, 3.0], [2.0, -2.0, 1.0, -9.0], [1.0, 1.0, 1.0, 1.0]
    method = told(make(**settings), recorded, imagined, value)
    batch = judged(method, batch_of(), recorded, value)
    imitated, pull, metrics = method.attractor(batch, torch.zeros(4, 2))
    expected = torch.where(torch.tensor(target)[:, None] == 1, IMAGINED, RECORDED)
    assert torch.equal(imitated["action"], expected)
    assert pull.tolist() == strength
    assert torch.equal(batch["action"], RECORDED)
    if method.vae is not None:
        assert float(metrics["vae_share"]) == 0.5
        assert float(metrics["target_advantage"]) == pytest.approx(np.mean([3.0, -3.0, 0.0, 2.0]))


def test_must_2_masked_decisions_stay_in_the_mean():
    recorded, imagined, value = [4.0, -3.0, 1.0, 3.0], [2.0, -2.0, 1.0, -9.0], [1.0, 1.0, 1.0, 1.0]
    method = told(make(pull=0.4, alpha=0.0), recorded, imagined, value)
    batch = judged(method, batch_of(), recorded, value)
    action, _ = method.policy.rsample(batch["obs"])
    target = torch.stack([RECORDED[0], IMAGINED[1], IMAGINED[2], RECORDED[3]])
    error = (action - target).square().mean(-1)
    loss, metrics = method.policy_loss(batch)
    assert float(loss.detach()) == pytest.approx(0.4 * float(error[[0, 2, 3]].sum()) / 4)
    assert float(metrics["pulled"]) == 0.75


def test_must_3_the_value_has_the_smaller_of_two_targets():
    method = make(discount=0.5)
    batch = batch_of(target=torch.tensor([3.0, 2.0, 9.0, 4.5]), next_action=torch.zeros(4, 2))
    method.clipped.critic.forward = lambda obs, action: torch.tensor([[8.0, 9.0, 2.0, 7.0], [6.0, 8.0, 4.0, 2.0]])
    expected = torch.tensor([3.0, 2.0, 4.0, 4.5])  # of 1 + 6/2, 2 (an end), 3 + 2/2 (a time limit), 4 + 2/2
    assert torch.equal(method.value_target(batch), expected)
    method.value.forward = lambda obs: torch.zeros(4)
    loss, _ = method.value_loss(batch.set("value_target", expected))
    assert float(loss) == pytest.approx(float(0.5 * expected.square().mean()))


def test_must_3_the_order_of_the_steps():
    """Critics; V on the critics after their step; the autoencoder with V as it was before."""
    method, other = make(delay=1), make(delay=1)
    batch = method.collect()
    torch.manual_seed(0)
    method.update(batch)
    torch.manual_seed(0)
    known = other.evaluate_batch(batch)
    other.critic_optimizer.minimize(other.critic_loss, known)
    known["value_target"] = other.value_target(known)
    with torch.no_grad():
        known["value"] = other.value(known["obs"])
        known["advantage"] = other.clipped.critic(known["obs"], known["action"])[0] - known["value"]
    other.value_optimizer.minimize(other.value_loss, known)
    known["latent"] = torch.randn(16, 4, generator=other.latents)
    other.vae_optimizer.minimize(other.vae_loss, known)
    known["latent"] = torch.randn(16, 4, generator=other.latents)
    other.policy_optimizer.minimize(other.policy_loss, known)
    for name in ("value", "vae", "policy"):
        for one, two in zip(getattr(method, name).parameters(), getattr(other, name).parameters()):
            torch.testing.assert_close(one, two)


def test_must_4_values_are_divided_by_their_size_and_halfcheetah_has_its_alpha(float64):
    method = make(alpha=40.0, pull=0.0)
    batch = judged(method, batch_of(), [0.0] * 4, [0.0] * 4).double()
    batch["terminated"] = batch["terminated"].bool()
    action, _ = method.policy.rsample(batch["obs"])
    q = method.clipped.critic(batch["obs"], action)[0]
    loss, _ = method.policy_loss(batch)
    expected = -40.0 * q.mean() / q.detach().abs().mean()
    for one, two in zip(
        torch.autograd.grad(loss, list(method.policy.parameters())),
        torch.autograd.grad(expected, list(method.policy.parameters())),
    ):
        torch.testing.assert_close(one, two)
    presets = registry.load("a2pr").presets
    assert presets["halfcheetah"] == {"alpha": 40.0}
    assert presets["hopper"] == {"alpha": 2.5, "pull": 0.4, "discount": 0.995}


def test_what_is_imitated_is_a_constant_unless_asked_for_otherwise(float64):
    """As released, the pull is 2 (pi - vae(pi)) (1 - d vae / d pi): gradients pass through the autoencoder."""
    grads = {}
    for detached in (True, False):
        method = make(alpha=0.0, advantage_threshold=None, detach_target=detached)
        batch = weigh(method.collect())
        batch["advantage"], batch["value"] = torch.full((16,), -1e9), torch.zeros(16)  # all imagined
        batch["latent"] = torch.zeros(16, 4)
        parameters = list(method.policy.parameters())
        action, _ = method.policy.rsample(batch["obs"])
        imagined = method.vae.reconstruct(batch["obs"], action, batch["latent"])
        expected = (action - (imagined.detach() if detached else imagined)).square().mean()
        grads[detached] = torch.autograd.grad(method.policy_loss(batch)[0], parameters)
        for one, two in zip(grads[detached], torch.autograd.grad(expected, parameters)):
            torch.testing.assert_close(one, two)
    assert not torch.allclose(grads[True][0], grads[False][0])


def test_all_networks_see_standardized_observations(float64):
    method = make(normalize_obs=True)
    parts = (method.policy.net, method.value.network, method.vae.encoder, method.vae.decoder)
    assert len({id(part.normalizer) for part in parts}) == 1
    assert method.policy.normalizer is not None


def test_what_has_no_effect_is_refused():
    with pytest.raises(UsageError, match="has no effect without the autoencoder"):
        make(candidate="data", vae_weight=2.0)
    assert make(candidate="data").vae is None


def test_networks_are_those_of_the_released_code():
    config = registry.load("a2pr").Config()
    assert (config.network.sizes, config.critic_network.sizes) == ((256,) * 3, (256,) * 4)
    assert (config.vae_network.sizes, config.vae_lr, config.lr) == ((750, 750), 1e-3, 3e-4)


def test_the_autoencoder_has_a_rate_of_its_own():
    method = make(vae_lr=7e-3, lr=1e-3)
    assert (method.vae_optimizer.lr, method.value_optimizer.lr) == (7e-3, 1e-3)
