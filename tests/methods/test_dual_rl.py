"""f-DVL and ReCOIL: what their paper must not be without, with numbers worked out here."""

from __future__ import annotations

import math
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
from tests.guards.harness import reseed

MUST = 5
SMALL: dict[str, Any] = {
    "dataset": "random",
    "random_episodes": 2,
    "batch_size": 16,
    "network.sizes": (8,),
    "value_network.sizes": (8,),
    "loggers": (),
}


def dvl(task: Any = tasks.box, **changes: Any) -> Any:
    return api.plan("dual-rl", task, seed=1, **SMALL | changes).build()


def recoil(task: Any = tasks.box, **changes: Any) -> Any:
    return api.plan("recoil", task, seed=1, **SMALL | {"demonstrations": "random"} | changes).build()


def rows(size: int, **keys: Any) -> TensorDict:
    batch = {
        "obs": torch.zeros(size, 3),
        "action": torch.zeros(size, 2),
        "reward": torch.zeros(size),
        "next_obs": torch.ones(size, 3),
        "terminated": torch.zeros(size, dtype=torch.bool),
        "truncated": torch.zeros(size, dtype=torch.bool),
    }
    return TensorDict(batch | keys, batch_size=[size])


def fixed(method: Any, *, q: Any, target_q: Any, value: Any, next_value: Any = (10.0,)) -> Any:
    """The method with critics and value that give these numbers per decision: those of the state 0 and of the state 1,
    and of an expert, whose state is 2, the critics give 7 and 9."""
    part, tensor = method.in_sample, torch.tensor

    def critic(answer: Any) -> Any:
        return lambda obs, action: (
            tensor(answer) if float(obs[0, 0]) == 0 else tensor([[7.0], [9.0]]).expand(2, len(obs))
        )

    part.critic.forward, part.target_critic.forward = critic(q), critic(target_q)
    part.value.forward = lambda obs: tensor(value if float(obs[0, 0]) == 0.0 else next_value)[: len(obs)]
    return method


EXPERT = {"obs": torch.full((3, 3), 2.0)}
NUMBERS: dict[str, Any] = {
    "q": [[1.0, 50.0, 1.0], [3.0, 3.0, 3.0]],
    "target_q": [[2.0, -4.0, 5.0], [4.0, 0.0, 4.0]],
    "value": [1.0, 1.0, 1.0],
    "next_value": [10.0, 20.0, 30.0],
}
RESIDUAL = np.array([1.0, -5.0, 3.0])  # the minimum of the target critics, minus V


@pytest.mark.parametrize(
    ("divergence", "pull"),
    [
        ("chi2", np.maximum(RESIDUAL + RESIDUAL**2 / 4, 0)),
        ("chi2-exact", np.where(RESIDUAL > -2, RESIDUAL + RESIDUAL**2 / 4, -1)),
        ("tv", np.maximum(RESIDUAL, 0)),
    ],
)
def test_must_1_the_maximum_has_no_negative_ratio(divergence, pull):
    method = fixed(dvl(divergence=divergence, strength=0.8, random_actions=0), **NUMBERS)
    loss, metrics = method.value_loss(method.with_candidates(weigh(rows(3))))
    assert float(loss) == pytest.approx(np.mean(0.8 * pull - 0.2 * RESIDUAL))
    assert float(metrics["value"]) == 1.0


def test_must_2_the_expert_has_the_largest_value_and_the_rest_the_least_reward():
    method = fixed(recoil(), **NUMBERS)
    ends = {"terminated": torch.tensor([False, True, False]), "truncated": torch.tensor([False, False, True])}
    offline, expert = rows(3, **ends), rows(3, **EXPERT)
    batch = weigh(TensorDict({"offline": offline, "expert": expert}, []))
    loss, metrics = method.critic_loss(batch)
    target = np.array([-2 + 0.99 * 10, -2 - 0.99 * 200, -2 + 0.99 * 30])
    of_offline = sum(np.mean((np.array(q) - target) ** 2) for q in NUMBERS["q"])
    of_expert = (7 - 200) ** 2 + (9 - 200) ** 2
    assert float(loss) == pytest.approx((of_offline + of_expert) / 2, rel=1e-5)
    assert (float(metrics["expert_q"]), float(metrics["offline_q"])) == (8.0, pytest.approx(61 / 6))
    rewards = np.array([1.0 - 9.9, 3.0, 1.0 - 29.7])
    assert method.recovered_reward(offline).tolist() == pytest.approx(rewards.tolist(), rel=1e-5)
    assert float(metrics["offline_reward"]) == pytest.approx(rewards.mean(), rel=1e-5)


@pytest.mark.parametrize(("discount", "gap"), [(0.99, 2.0), (0.9, 2.0), (0.5, 1.0)])
def test_must_2_the_bounds_are_values_for_ever(discount, gap):
    method = recoil(discount=discount, reward_gap=gap)
    assert method.highest == pytest.approx(sum(gap * discount**step for step in range(3_000)))
    never = -gap + discount * -method.highest  # what comes after an end is as bad as never being rewarded
    assert never == pytest.approx(-method.highest)


def test_must_3_value_and_policy_learn_from_the_offline_side_alone(float64):
    method = recoil(value_clip=None, advantage_temperature=0.7)
    batch = weigh(method.collect())
    assert set(batch.keys()) == {"offline", "expert"}
    sides = {name: batch[name].clone(False) for name in ("offline", "expert")}
    for side in sides.values():
        side["target_q"] = method.in_sample.q(side)
    batch = TensorDict(sides, [])
    q, value = (sides["offline"]["target_q"], method.in_sample.value(sides["offline"]["obs"]))
    z = q - value
    peak = torch.tensor(0.3)
    loss, _ = method.value_loss(batch, peak)
    torch.testing.assert_close(loss, ((z - peak).exp() - (z + 1) * (-peak).exp()).mean())
    loss, metrics = method.policy_loss(batch)
    expected = -((0.7 * z.detach()).exp().clamp(max=100) * method.policy.log_prob(sides["offline"])).mean()
    torch.testing.assert_close(loss, expected)
    assert float(metrics["advantage"]) == pytest.approx(float(z.detach().mean()))


def test_must_4_the_exponential_is_scaled_by_the_largest_of_all():
    """z = x / 2 up to 1.2: 0.5, -2.5, 1.2; with random actions theirs count too; the scale is no part of the slope."""
    settings = {"divergence": "rkl", "value_temperature": 2.0, "value_clip": 1.2}
    method = fixed(dvl(random_actions=0, **settings), **NUMBERS)
    batch = method.with_candidates(weigh(rows(3)))
    z = np.array([0.5, -2.5, 1.2])
    peak = method.peak(method.residual(batch))
    assert float(peak) == pytest.approx(1.2)
    expected = np.mean(np.exp(z - 1.2) - (z + 1) * np.exp(-1.2))
    for loss in (method.value_loss(batch, peak)[0], method.value_loss(batch)[0]):
        assert float(loss) == pytest.approx(expected, rel=1e-5)
    assert float(method.peak(torch.full((3,), -30.0))) == -1.0


def test_must_4_recoil_takes_the_peak_of_both_sides():
    method = fixed(recoil(value_temperature=2.0), **NUMBERS)
    batch = TensorDict({"offline": rows(3), "expert": rows(3, **EXPERT)}, [])
    assert float(method.both_peaks(batch)) == pytest.approx(1.5)  # of the offline side
    method.in_sample.value.forward = lambda obs: torch.full((len(obs),), 1.0)
    assert float(method.both_peaks(batch)) == pytest.approx(3.0)
    assert float(recoil().both_peaks(batch)) < 7.0
    for part in (method.in_sample.critic, method.in_sample.target_critic):
        part.forward = lambda obs, action: torch.full((2, len(obs)), 200.0)
    assert float(method.both_peaks(batch)) == 7.0


def test_decisions_are_cloned_by_the_exponential_of_their_residual_up_to_the_largest_weight(float64):
    method = fixed(dvl(random_actions=0), **NUMBERS)
    batch = method.with_candidates(weigh(rows(3)))
    weight = np.minimum(np.exp(3.0 * RESIDUAL), 100.0)
    assert weight.tolist() == pytest.approx([math.exp(3.0), math.exp(-15.0), 100.0])
    loss, metrics = method.policy_loss(batch)
    torch.testing.assert_close(loss, -(torch.as_tensor(weight) * method.policy.log_prob(batch)).mean())
    assert float(metrics["clip_fraction"]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("discount", [0.5, 0.9])
def test_must_4_q_has_the_loss_of_huber(discount):
    method = fixed(dvl(discount=discount), **NUMBERS)
    ends = {"terminated": torch.tensor([False, True, False]), "truncated": torch.tensor([False, False, True])}
    loss, _metrics = method.critic_loss(weigh(rows(3, reward=torch.tensor([1.0, 2.0, 3.0]), **ends)))
    target = np.array([1 + discount * 10, 2.0, 3 + discount * 30])
    error = np.abs(np.array(NUMBERS["q"]) - target)
    assert (error > 20).any()
    assert (error < 20).any()
    huber = np.where(error <= 20, error**2 / 2, 20 * (error - 10))
    assert float(loss) == pytest.approx(huber.mean(1).sum(), rel=1e-6)


def test_must_5_at_strength_1_only_random_actions_hold_v_down(float64):
    """Of a state whose data have Q 5: V above it stays where it is, and V below it is pulled; a random action of Q 0
    beside it counts as much as one of the data."""
    for strength, value, slope in ((1.0, 6.0, 0.0), (1.0, 3.0, -2.0), (0.8, 6.0, 0.2)):
        method = dvl(strength=strength, random_actions=0)
        method.in_sample.value.forward = lambda obs, value=value: torch.full((3,), value, requires_grad=True)
        batch = weigh(rows(3)).set("candidate_q", torch.full((3, 1), 5.0)).set("target_q", torch.full((3,), 5.0))
        residual = method.residual(batch).detach().requires_grad_()
        method.residual = lambda batch, residual=residual: residual
        (grad,) = torch.autograd.grad(method.value_loss(batch)[0], residual)
        torch.testing.assert_close(-grad.sum(), torch.tensor(slope))
    assert registry.load("dual-rl").Config().strength == 1.0
    assert registry.load("dual-rl").Config().random_actions == 1


def test_must_5_random_actions_are_uniform_and_only_in_the_loss_of_v(float64):
    method = dvl(random_actions=3)
    batch = method.collect()
    seen: list[torch.Tensor] = []
    forward = method.in_sample.target_critic.forward

    def noted(obs: Any, action: Any) -> Any:
        seen.append(action)
        return forward(obs, action)

    method.in_sample.target_critic.forward = noted
    found = method.with_candidates(weigh(batch))
    assert torch.equal(seen[0], batch["action"])
    assert len(seen) == 4
    drawn = torch.cat(seen[1:])
    assert float(drawn.abs().max()) <= 1.0
    assert drawn.shape == (48, 2)
    assert float(drawn.min()) < -0.8
    assert float(drawn.max()) > 0.8
    assert abs(float(drawn.mean())) < 0.2
    for place, action in enumerate(seen[:4]):
        torch.testing.assert_close(found["candidate_q"][:, place], forward(batch["obs"], action).amin(0))
    torch.testing.assert_close(
        method.in_sample.advantage(found), found["candidate_q"][:, 0] - method.in_sample.value(batch["obs"])
    )
    loss, _ = method.value_loss(found)
    residual = found["candidate_q"] - method.in_sample.value(batch["obs"])[:, None]
    torch.testing.assert_close(loss, (residual + residual**2 / 4).clamp(min=0).mean())


@pytest.mark.parametrize("divergence", ["chi2", "rkl"])
def test_the_order_of_an_update(divergence, float64):
    """V (in as many steps as asked for, each with its own peak), then policy and Q with that V, then the targets."""
    method, reference = (dvl(value_updates=2, divergence=divergence) for _ in range(2))
    batch = method.collect()
    reseed()
    method.update(batch)
    reseed()
    rest = reference.with_candidates(weigh(batch))
    for _ in range(2):
        reference.value_optimizer.minimize(reference.value_loss, rest)
    reference.policy_optimizer.minimize(reference.policy_loss, rest)
    reference.critic_optimizer.minimize(reference.critic_loss, rest)
    before = {name: value.clone() for name, value in reference.in_sample.target_critic.state_dict().items()}
    for name, value in method.in_sample.state_dict().items():
        if name.startswith("target_critic."):
            old, new = (
                before[name.removeprefix("target_critic.")],
                method.in_sample.state_dict()[name.removeprefix("target_")],
            )
            torch.testing.assert_close(value, old + 0.005 * (new - old))
        else:
            assert torch.equal(value, reference.in_sample.state_dict()[name]), name
    for name, value in method.policy.state_dict().items():
        assert torch.equal(value, reference.policy.state_dict()[name]), name


def test_the_order_of_an_update_of_recoil(float64):
    method, reference = recoil(), recoil()
    batch = method.collect()
    reseed()
    method.update(batch)
    reseed()
    sides = {name: side.set("target_q", reference.in_sample.q(side)) for name, side in weigh(batch).items()}
    rest = TensorDict(sides, [])
    reference.value_optimizer.minimize(reference.value_loss, rest)
    reference.policy_optimizer.minimize(reference.policy_loss, rest)
    reference.critic_optimizer.minimize(reference.critic_loss, rest)
    reference.in_sample.follow()
    for part in ("in_sample", "policy"):
        for name, value in getattr(method, part).state_dict().items():
            torch.testing.assert_close(value, getattr(reference, part).state_dict()[name], msg=name)


def test_the_sides_of_recoil_are_drawn_apart_and_act_as_the_policy_does():
    method = recoil("Pendulum-v1")
    expert = method.source.sources["expert"].data  # torques up to 2
    assert 0.9 < float(expert["action"].abs().max()) <= 1.0
    batch = method.collect()
    assert not torch.equal(batch["offline"]["obs"], batch["expert"]["obs"])
    expert["action"] = torch.full_like(expert["action"], 3.0)
    assert (method.collect()["expert"]["action"] == 1.0).all()


def test_the_expert_is_that_of_the_demonstrations(tmp_path):
    path = tmp_path / "expert.npz"
    obs = np.full((6, 3), 7.0)
    np.savez(path, observations=obs, next_observations=obs, actions=np.ones((6, 1)), rewards=np.zeros(6),
             terminals=np.array([False] * 5 + [True]))  # fmt: skip
    batch = recoil("Pendulum-v1", demonstrations=str(path)).collect()
    assert (batch["expert"]["obs"] == 7.0).all()
    assert (batch["expert"]["action"] == 0.5).all()
    assert not (batch["offline"]["obs"] == 7.0).any()


def test_cloning_is_what_recoil_does_without_a_temperature(float64):
    method, bc = recoil(advantage_temperature=0.0), None
    bc = api.plan(
        "bc", tasks.box, seed=1, demonstrations="random", random_episodes=2, batch_size=16, lr=3e-4,
        lr_schedule="cosine", policy={"mean": "tanh", "log_std_low": -5.0, "log_std_high": 2.0} and "gaussian",
        loggers=(), **{"policy.mean": "tanh", "policy.log_std_low": -5.0, "policy.log_std_high": 2.0},
        **{"network.sizes": (8,), "network.init": "orthogonal", "network.head_gain": 2**0.5},
    ).build()  # fmt: skip
    bc.policy.load_state_dict(method.policy.state_dict())
    for _ in range(3):
        batch = method.collect()
        method.update(batch)
        bc.update(batch["offline"])
    for name, value in method.policy.state_dict().items():
        assert torch.equal(value, bc.policy.state_dict()[name]), name


def test_pieces_of_a_batch_are_as_the_whole(float64):
    for make, settings in ((dvl, {"divergence": "rkl"}), (recoil, {})):
        whole, parted = make(**settings), make(micro_batch=5, **settings)
        for _ in range(2):
            batch = whole.collect()
            metrics = []
            for method in (whole, parted):
                reseed()
                metrics.append(method.update(batch))
            for name, value in metrics[0].items():
                torch.testing.assert_close(value, metrics[1][name], msg=name)


def test_networks_and_rates():
    method = dvl(policy_dropout=0.5)
    assert any("LayerNorm" in type(part).__name__ for part in method.in_sample.value.modules())
    assert not any("LayerNorm" in type(part).__name__ for part in method.in_sample.critic.modules())
    assert not any("LayerNorm" in type(part).__name__ for part in recoil().in_sample.value.modules())
    method.progress = 0.5
    method.update(method.collect())
    rates = [optimizer.torch.param_groups[0]["lr"] for optimizer in method.optimizers()]
    assert rates == pytest.approx([1.5e-4, 3e-4, 3e-4])
    batch = weigh(method.collect())
    assert not torch.equal(method.policy.log_prob(batch), method.policy.log_prob(batch))


def test_it_goes_on_online():
    for make in (dvl, recoil):
        method = make("Pendulum-v1", offline_updates=2, online_steps=3, replay_size=1_000)
        for _ in range(4):
            metrics = method.update(method.collect())
        assert method.ledger.env_steps == 6
        assert all(math.isfinite(float(value)) for value in metrics.values())


@pytest.mark.parametrize("name", ["dual-rl", "recoil"])
def test_presets_build(name):
    for preset, settings in registry.load(name).presets.items():
        method = (dvl if name == "dual-rl" else recoil)(preset=preset, batch_size=8)
        method.update(method.collect())
        for key in ("divergence", "strength", "advantage_temperature", "policy_dropout", "random_actions"):
            if key in settings:
                assert getattr(method.config, key) == settings[key]
    assert registry.load("dual-rl").presets["antmaze"]["advantage_temperature"] == 10.0


def test_what_has_no_effect_is_refused():
    for settings, said in (
        ({"value_temperature": 2.0}, "value_temperature has no effect on the divergence chi2"),
        ({"divergence": "rkl", "strength": 0.8}, "strength has no effect on the divergence rkl"),
        ({"strength": 0.5}, "strength"),
    ):
        with pytest.raises(UsageError, match=said):
            dvl(**settings)
    with pytest.raises(UsageError, match="rewards has no effect where no rewards are seen"):
        recoil(rewards="minus-one")
    with pytest.raises(UsageError, match="recoil learns from an expert beside its dataset"):
        recoil(demonstrations="").prepare()
    with pytest.raises(UsageError, match="recoil draws single decisions"):
        recoil(**{"network.recurrent": "gru"})
