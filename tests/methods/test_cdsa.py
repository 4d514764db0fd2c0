"""CDSA: what is added to an action, worked out by hand; what is learned, and of which rows; and whose policy it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polopt
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.methods.offline.cdsa import Denser, cap
from polopt.models.inputs import Scale
from polopt.models.score import Score
from polopt.networks import Network
from tests.guards.harness import built

MUST = 4
SMALL: dict[str, Any] = {
    "dataset": "random",
    "random_episodes": 2,
    "batch_size": 16,
    "network.sizes": (8,),
    "score_network.sizes": (8,),
    "model_network.sizes": (8,),
    "loggers": (),
    "eval_every": 4,
    "eval_episodes": 1,
}


def test_the_cap():
    shift = torch.tensor([[3.0, 4.0], [0.03, 0.04], [0.0, 0.0]])
    torch.testing.assert_close(cap(shift, 0.2), torch.tensor([[0.12, 0.16], [0.03, 0.04], [0.0, 0.0]]))


class Gaussian(Score):
    """The score of N(0, 1) per coordinate, noise of deviation sigma added: -x / (1 + sigma^2)."""

    def noise(self, x: Tensor, sigma: Tensor) -> Tensor:
        return sigma * x / (1 + sigma.square())


def denser(**weights: float) -> Denser:
    """Observations (p, q) of deviation 2, actions of deviation 0.5; a decision moves p by the action, and the inverse
    model is right and 0.3 too high; the base acts (q,)."""
    settings = {"noise": 0.5, "cap": 10.0, "action_weight": 0.0, "state_weight": 0.0} | weights
    scale = Scale(3)
    rows = torch.tensor([[2.0, 2.0, 0.5], [-2.0, -2.0, -0.5]])
    scale.fit(rows)

    class Model(nn.Module):
        def forward(self, obs: Tensor, action: Tensor) -> Any:
            moved = torch.cat([action, torch.zeros_like(action), torch.ones_like(action)], -1)
            return SimpleNamespace(mean=moved.unsqueeze(0))

    class Inverse(nn.Module):
        def forward(self, obs: Tensor, after: Tensor) -> Tensor:
            return (after - obs)[..., :1] + 0.3

    class Base(nn.Module):
        def act(self, obs: Tensor, carry: Any = None, *, greedy: bool = False) -> Any:
            assert greedy
            return {"action": obs[..., 1:]}, {}

    parts: Any = (Base(), Gaussian(3, Network((4,))), Model(), Inverse(), scale)
    return Denser(*parts, SimpleNamespace(**settings))


OBS, ACTION = torch.tensor([[1.0, 0.4]]), torch.tensor([[0.2]])
SHRINKS = -(0.5**2) / (1 + 0.5**2)  # sigma^2 S(x) = SHRINKS x, in units of the deviation and so in every unit


def test_an_action_moves_along_the_score():
    torch.testing.assert_close(denser(action_weight=0.5)(OBS, ACTION), torch.tensor([[0.5 * SHRINKS * 0.2]]))
    torch.testing.assert_close(denser(action_weight=0.5, cap=0.01)(OBS, ACTION), torch.tensor([[-0.01]]))


def test_must_3_an_action_is_steered_to_where_the_data_are_denser_next():
    """What follows is at 1.2, is pulled by SHRINKS times that, and the bias of the inverse model cancels."""
    torch.testing.assert_close(denser(state_weight=0.25)(OBS, ACTION), torch.tensor([[0.25 * SHRINKS * 1.2]]))
    both = denser(state_weight=0.25, action_weight=0.5)(OBS, ACTION)
    torch.testing.assert_close(both, torch.tensor([[0.25 * SHRINKS * 1.2 + 0.5 * SHRINKS * 0.2]]))
    capped = denser(state_weight=0.25, action_weight=0.5, cap=0.01)(OBS, ACTION)  # each by itself
    torch.testing.assert_close(capped, torch.tensor([[-0.02]]))


def test_the_state_step_asks_for_the_action_that_follows():
    """With a score that sees the action: S_s = -p - a, a = pi(s^) = q."""

    class Seen(Gaussian):
        def noise(self, x: Tensor, sigma: Tensor) -> Tensor:
            return sigma * (x + x[..., 2:]) / (1 + sigma.square())

    one = denser(state_weight=1.0)
    one.score = Seen(3, Network((4,)))
    pulled = SHRINKS * (1.2 / 2.0 + 0.4 / 0.5) * 2.0  # in deviations of p, and back
    torch.testing.assert_close(one(OBS, ACTION), torch.tensor([[pulled]]))


def test_must_1_the_score_loss_is_that_of_denoising(float64):
    with built("cdsa", clone_updates=0, **{"score_network.sizes": (8,)}) as method:
        batch = weigh(method.collect())
        batch["sigma"] = torch.linspace(0.1, 1.0, len(batch)).unsqueeze(-1)
        batch["score_noise"] = torch.randn(len(batch), 4)
        x = method.scale(torch.cat([batch["obs"], batch["action"]], -1))
        torch.testing.assert_close(x.mean(0).abs().max().item() < 1.0, True)
        score = method.gradient(x + batch["sigma"] * batch["score_noise"], batch["sigma"])
        expected = (batch["sigma"].square() * (score + batch["score_noise"] / batch["sigma"]).square()).mean()
        torch.testing.assert_close(method.score_loss(batch)[0], expected)


def test_every_level_of_noise_is_drawn_as_often(float64):
    seen: list[Any] = []
    with built("cdsa", clone_updates=0, batch_size=2_000, levels=4, lowest_noise=0.125, noise=0.25) as method:
        method.score_optimizer.minimize = lambda loss, batch: seen.append(batch) or {}
        method.update(method.collect())
    levels, counts = seen[0]["sigma"].unique(return_counts=True)
    torch.testing.assert_close(levels, torch.tensor([0.125, 0.25, 0.5, 1.0]))
    assert counts.min() > 400
    torch.testing.assert_close(seen[0]["score_noise"].std(0), torch.ones(4), atol=0.1, rtol=0)
    assert seen[0]["score_noise"].mean(0).abs().max() < 0.1


def test_the_rows_of_all_data_are_standardized(float64):
    with built("cdsa") as method:
        data = method.source.data
        x = method.scale(torch.cat([data["obs"], data["action"]], -1))
        torch.testing.assert_close(x.mean(0), torch.zeros(4))
        torch.testing.assert_close(x.std(0, correction=0), torch.ones(4))


def test_both_models_learn_alike_the_one_standardized_changes_the_other_actions(float64):
    with built("cdsa", clone_updates=0) as method:
        data, batch = method.source.data, weigh(method.collect())
        deviation = torch.cat([data["next_obs"] - data["obs"], data["reward"].unsqueeze(-1)], -1).std(0, correction=0)
        change = torch.cat([batch["next_obs"] - batch["obs"], batch["reward"].unsqueeze(-1)], -1)
        foreseen = method.model(batch["obs"], batch["action"]).mean[0]
        forward = ((foreseen - change) / deviation).square().mean()
        inverse = (method.inverse(batch["obs"], batch["next_obs"]) - batch["action"]).square().mean()
        loss, metrics = method.model_loss(batch)
        torch.testing.assert_close(loss, forward + inverse)
        assert float(metrics["model_loss"]) == pytest.approx(float(forward))
        assert float(metrics["inverse_loss"]) == pytest.approx(float(inverse))


def test_actions_are_learned_as_the_policy_acts_and_observations_scaled_where_it_does(tmp_path):
    """Torques up to 2, and some beyond, which have the effect of the bound."""
    torque, obs = np.array([[2.5], [-1.0], [0.5], [-4.0]]), np.random.default_rng(0).normal(3.0, 2.0, size=(5, 3))
    path = tmp_path / "mine.npz"
    np.savez(path, observations=obs[:4], next_observations=obs[1:], actions=torque, rewards=np.zeros(4),
             terminals=np.array([False] * 3 + [True]))  # fmt: skip
    with built("cdsa", dataset=str(path), random_episodes=10, normalize_obs=True) as method:
        assert method.source.data["action"].flatten().tolist() == [1.0, -0.5, 0.25, -1.0]
        seen = method.base.normalizer(method.source.data["obs"])
        torch.testing.assert_close(seen.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(seen.std(0, correction=0), torch.ones(3), atol=1e-2, rtol=0)


def test_the_clone_has_a_rate_of_its_own():
    with built("cdsa", clone_lr=0.5, lr=0.25) as method:
        optimizers = (method.base_optimizer, method.score_optimizer, method.model_optimizer)
        assert [each.torch.param_groups[0]["lr"] for each in optimizers] == [0.5, 0.25, 0.25]


def test_what_follows_a_termination_is_not_learned(float64):
    with built("cdsa", clone_updates=0) as method:
        batch = weigh(method.collect())
        batch["terminated"] = torch.arange(len(batch)) % 2 == 0
        loss, _ = method.model_loss(batch)
        changed = batch.clone(False)
        changed["next_obs"] = torch.where(batch["terminated"].unsqueeze(-1), 100.0, batch["next_obs"])
        torch.testing.assert_close(method.model_loss(changed)[0], loss)
        moved = changed.set("next_obs", batch["next_obs"] + 1.0)
        assert method.model_loss(moved)[0] > loss + 0.01


def test_without_weights_it_is_the_policy_that_it_was_given():
    for weights, equal in (((0.0, 0.0), True), ((0.5, 0.0), False), ((0.0, 0.5), False)):
        settings = dict(zip(("action_weight", "state_weight"), weights))
        with built("cdsa", **settings) as method:
            for _ in range(3):
                method.update(method.collect())
            obs = method.collect()["obs"]
            base = method.base.act(obs, greedy=True)[0]["action"]
            acted = method.policy.act(obs, greedy=True)[0]["action"]
            assert torch.equal(acted, base) == equal
            assert (acted - base).norm(dim=-1).max() <= 0.2 + 1e-6
            assert acted.abs().max() <= 1.0


def test_must_2_the_policy_stays_as_it_is_once_the_models_learn():
    with built("cdsa", clone_updates=2) as method:
        before = [value.clone() for value in method.base.parameters()]
        for stage in ("clone", "clone", "models", "models"):
            assert method.stage_name == stage
            metrics = method.update(method.collect())
            assert ("imitation_loss" in metrics) == (stage == "clone")
            now = [value.clone() for value in method.base.parameters()]
            assert all(map(torch.equal, before, now)) == (stage == "models")
            before = now


def test_must_4_actions_stay_in_their_bounds_and_the_noise_is_some():
    class Far(nn.Module):
        def forward(self, obs: Tensor, action: Tensor) -> Tensor:
            return torch.full_like(action, 3.0)

    with built("cdsa") as method:
        obs = method.collect()["obs"]
        method.policy.correction = Far()
        assert torch.equal(method.policy.act(obs)[0]["action"], torch.ones(len(obs), 1))
        with pytest.raises(UsageError, match="noise"):
            method.Config(noise=0.0)


def test_a_policy_is_brought(tmp_path):
    options = {name: SMALL[name] for name in ("random_episodes", "network.sizes", "loggers", "eval_every")}
    options |= {"demonstrations": "random", "policy": "deterministic", "eval_episodes": 1}
    base = polopt.train("bc", "Pendulum-v1", steps=4, out=tmp_path / "base", **options)
    with pytest.raises(UsageError, match="cdsa corrects a trained policy: bring one with --init RUN, or clone one"):
        polopt.train("cdsa", "Pendulum-v1", steps=4, out=tmp_path / "none", **SMALL)
    assert not (tmp_path / "none").exists()
    run = polopt.train("cdsa", "Pendulum-v1", steps=4, out=tmp_path / "run", init=base.folder, **SMALL)
    polopt.resume(run.folder, extend=6)
    theirs, ours = polopt.load(base.folder), polopt.load(run.folder)
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    assert (ours.actor.predict(obs) == theirs.predict(obs)).all()  # type: ignore[attr-defined]
    assert not (ours.predict(obs) == theirs.predict(obs)).all()
    assert polopt.evaluate(run.folder, episodes=1)["length"] == 200
    assert run.evaluations[-1]["eval/data_distance"] > 0
    for other, said in (
        ({"policy": "auto"}, "--policy, deterministic"),
        ({"network.activation": "tanh"}, "--network.activation, relu"),
        ({"network.sizes": (8, 8)}, "--network.sizes, 8"),
        ({"normalize_obs": True}, "--policy, --network and --normalize-obs"),
    ):
        with pytest.raises(
            UsageError, match=f"--init .*base: cdsa leaves that policy as it is.* needs the same {said}$"
        ):
            polopt.train("cdsa", "Pendulum-v1", steps=4, out=tmp_path / "other", init=base.folder, **SMALL | other)
        assert not (tmp_path / "other").exists()
    same = SMALL | {"network.init": "orthogonal"}  # of new weights, of which there are none
    polopt.train("cdsa", "Pendulum-v1", steps=4, out=tmp_path / "same", init=base.folder, **same)
    cloned = SMALL | {"clone_updates": 2}
    with pytest.raises(UsageError, match="leaves the policy of --init as it is"):
        polopt.train("cdsa", "Pendulum-v1", steps=4, out=tmp_path / "both", init=base.folder, **cloned)


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("CartPole-v1", {}, "actions are corrected where they are continuous|Box"),
        ("Pendulum-v1", {"network.recurrent": "gru"}, "recurrent"),
        ("Pendulum-v1", {"score_network.recurrent": "gru"}, "a score network is feed-forward"),
        ("Pendulum-v1", {"model_network.recurrent": "gru"}, "no recurrent"),
        (
            "Pendulum-v1",
            {"noise": 2.0},
            "the score is known from lowest_noise to highest_noise, 0.01 to 1, and is asked",
        ),
        ("Pendulum-v1", {"clone_lr": 1e-2}, "clone_lr"),
        ("masked", {"policy": "auto"}, "learns the density of vectors|continuous"),
    ],
)
def test_what_it_refuses(task, settings, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        polopt.train("cdsa", task, steps=2, out=tmp_path / "run", **SMALL | settings)
