"""PPO: what practice says must not be skipped, with numbers worked out here, its options, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import polopt
from polopt import registry
from polopt.core.state import gather, restore
from polopt.training import api
from tests.guards import spaces

MUST = 5
SMALL = {"envs": 2, "window": 8, "minibatches": 2, "epochs": 2, "network.sizes": (8,), "loggers": ()}
ONE_STEP = {"epochs": 1, "minibatches": 1, "entropy_coefficient": 0.0, "max_grad_norm": None}


def make(task: Any = "CartPole-v1", task_options: Any = None, **changes: Any) -> Any:
    return api.plan("ppo", task, seed=1, task_options=task_options, **SMALL | changes).build()


def gradient(loss: torch.Tensor, module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))])


def test_must_1_bootstraps_from_the_final_observation_and_cuts_at_every_end():
    method = make(discount=0.9, gae_lambda=0.5, advantage_over="none")
    flags = {"terminated": [[0, 1, 0, 0, 0]], "truncated": [[0, 0, 0, 1, 0]]}
    obs = torch.arange(5.0).reshape(1, 5, 1)
    batch = TensorDict(
        {
            "obs": obs,
            "final_obs": torch.full((1, 5, 1), 100.0),
            "reward": torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]),
            **{name: torch.tensor(value, dtype=torch.bool) for name, value in flags.items()},
        },
        batch_size=[1, 5],
    )
    method.critic.network.forward = lambda obs, extra=None: 2.0 * obs  # V(s) = 2 s, V(final) = 200
    result = method.evaluate_window(batch)
    value = [0.0, 2.0, 4.0, 6.0, 8.0]
    delta4 = 5 + 0.9 * 200 - 8  # the last column bootstraps
    delta3 = 4 + 0.9 * 200 - 6  # truncated: the final observation, and nothing of the next episode
    delta2 = 3 + 0.9 * 6 - 4
    delta1 = 2 - 2.0  # terminated: no bootstrap
    delta0 = 1 + 0.9 * 2 - 0
    advantage = [delta0 + 0.45 * delta1, delta1, delta2 + 0.45 * delta3, delta3, delta4]
    np.testing.assert_allclose(result["advantage"][0], advantage, rtol=1e-5)
    np.testing.assert_allclose(result["returns"][0], np.add(advantage, value), rtol=1e-5)


def test_must_1_windows_hold_the_observation_before_the_reset():
    method = make("Pendulum-v1", task_options={"max_episode_steps": 3})
    batch = method.collect()
    assert batch["truncated"][0].nonzero().flatten().tolist() == [2, 5]
    assert not batch["terminated"].any()
    assert batch["first"][0].nonzero().flatten().tolist() == [0, 3, 6]
    assert torch.equal(batch["final_obs"][:, 0], batch["obs"][:, 1])
    assert not torch.equal(batch["final_obs"][:, 2], batch["obs"][:, 3])


def test_must_2_old_log_probs_are_of_the_stored_unclipped_action_summed_over_dims(float64):
    method = make(spaces.box, **{"policy": "gaussian", "policy.log_std_init": 1.0})
    batch = method.collect()
    action = batch["action"].numpy()
    assert action.shape == (2, 8, 2)
    assert (action > 1.0).any()
    assert (action < -2.0).any()  # outside of the bounds: stored as sampled
    sent = method.policy.env_action(batch["action"]).numpy()
    assert sent.max() <= 1.0
    assert sent.min() >= -2.0
    mean = method.policy.net(batch["obs"]).detach().numpy()
    std = math.e
    density = -0.5 * ((action - mean) / std) ** 2 - math.log(std) - 0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(batch["log_prob"].numpy(), density.sum(-1), rtol=1e-10)
    rewards = -np.abs(np.clip(action, [-2, -2], [1, 1])).sum(-1)
    np.testing.assert_allclose(batch["reward"].numpy(), rewards, rtol=1e-5)


def test_must_2_old_log_probs_stay_those_of_the_rollout_and_targets_carry_no_gradient():
    method = make(epochs=3)
    batch = method.collect()
    seen: list[torch.Tensor] = []
    original = method.optimizer.minimize

    def spy(loss: Any, minibatch: Any) -> Any:
        seen.append(minibatch["log_prob"])
        assert not minibatch["advantage"].requires_grad
        assert not minibatch["returns"].requires_grad
        return original(loss, minibatch)

    method.optimizer.minimize = spy
    before = batch["log_prob"].clone()
    method.update(batch)
    assert len(seen) == 6
    assert torch.equal(batch["log_prob"], before)
    for epoch in range(3):  # each epoch is a permutation of the same numbers
        numbers = torch.cat(seen[2 * epoch : 2 * epoch + 2])
        assert torch.equal(numbers.sort().values, before.flatten().sort().values)


def test_one_step_on_the_whole_window_has_ratio_1_and_the_gradient_of_a2c(float64):
    method = make("Pendulum-v1", **ONE_STEP)
    batch = method.evaluate_window(method.collect())
    (minibatch,) = method.minibatches(batch)
    log_prob = method.policy.log_prob(minibatch)
    np.testing.assert_allclose((log_prob - minibatch["log_prob"]).detach().exp(), 1.0, atol=1e-12)
    loss, metrics = method.policy_loss(minibatch)
    assert float(metrics["clip_fraction"]) == 0.0
    assert float(metrics["approx_kl"]) == pytest.approx(0.0, abs=1e-12)
    advantage = minibatch["advantage"].numpy()
    assert advantage.mean() == pytest.approx(0.0, abs=1e-9)
    assert advantage.std(ddof=1) == pytest.approx(1.0, abs=1e-6)
    a2c = -(torch.from_numpy(advantage) * method.policy.log_prob(minibatch)).mean()
    ours, theirs = gradient(loss, method.policy), gradient(a2c, method.policy)
    assert theirs.abs().max() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_the_gradient_is_that_of_the_clipped_objective(float64):
    method = make("Pendulum-v1", entropy_coefficient=0.0)
    batch = method.evaluate_window(method.collect())
    (minibatch, *_) = method.minibatches(batch)
    minibatch["log_prob"] = minibatch["log_prob"] + torch.linspace(-0.6, 0.6, len(minibatch))  # ratios on both sides
    ratio = (method.policy.log_prob(minibatch) - minibatch["log_prob"]).exp()
    advantage = minibatch["advantage"]
    textbook = torch.max(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2)).mean()
    loss, metrics = method.policy_loss(minibatch)
    torch.testing.assert_close(gradient(loss, method.policy), gradient(textbook, method.policy), rtol=1e-9, atol=1e-12)
    outside = ((ratio < 0.8) | (ratio > 1.2)).double().mean()
    assert 0 < float(metrics["clip_fraction"]) < 1
    assert float(metrics["clip_fraction"]) == pytest.approx(float(outside))
    k3 = (ratio - 1 - ratio.log()).mean()
    assert float(metrics["approx_kl"]) == pytest.approx(float(k3.detach()))


def test_a_step_descends_its_three_terms_with_their_signs(float64):
    """policy + value_coefficient value - entropy_coefficient entropy, each written out."""
    method = make(value_clip=None, advantage_over="none", value_coefficient=0.7, entropy_coefficient=0.3)
    batch = method.evaluate_window(method.collect())
    (minibatch, *_) = method.minibatches(batch)
    metrics = method.total_loss(minibatch)[1]
    both = [minibatch.clone().update({"action": torch.full_like(minibatch["action"], a)}) for a in (0, 1)]
    log_probs = torch.stack([method.policy.log_prob(rows) for rows in both])
    entropy = -(log_probs.exp() * log_probs).sum(0).mean()
    ratio = (method.policy.log_prob(minibatch) - minibatch["log_prob"]).exp()  # 1 everywhere: nothing is clipped
    policy = -(minibatch["advantage"] * ratio).mean() - 0.3 * entropy
    value = 0.7 * 0.5 * (method.critic.value(minibatch) - minibatch["returns"]).square().mean()
    assert float(metrics["entropy"].detach()) == pytest.approx(float(entropy.detach()))
    bonus = torch.autograd.grad(entropy, list(method.policy.parameters()), retain_graph=True)
    assert max(float(part.abs().max()) for part in bonus) > 1e-5
    for module, term in ((method.policy, policy), (method.critic, value)):
        total = method.total_loss(minibatch)[0]
        torch.testing.assert_close(gradient(total, module), gradient(term, module), rtol=1e-9, atol=1e-10)


def test_the_statistics_of_returns_begin_anew_after_a_truncation():
    method = make("Pendulum-v1", {"max_episode_steps": 5}, normalize_reward=True)
    window = method.collect()
    assert window["truncated"].any()
    assert not window["terminated"].any()
    method.update(window)
    running, returns = np.zeros(2), []
    for column, end in zip(window["reward"].double().numpy().T, window["truncated"].numpy().T):
        running = column + 0.99 * running
        returns.append(running)
        running = np.where(end, 0.0, running)
    assert float(method.reward_normalizer.std) == pytest.approx(np.std(returns), rel=1e-3)


def standardized(advantage: torch.Tensor) -> bool:
    return abs(float(advantage.mean())) < 1e-4 and abs(float(advantage.std()) - 1) < 1e-3


@pytest.mark.parametrize("over", ["minibatch", "batch", "none"])
def test_must_3_advantages_are_standardized_as_asked(over):
    method = make(advantage_over=over)
    batch = method.evaluate_window(method.collect())
    assert standardized(batch["advantage"]) == (over == "batch")
    for part in method.minibatches(batch):
        assert standardized(part["advantage"]) == (over == "minibatch")


def test_must_3_orthogonal_init_with_a_small_policy_head():
    method = make(**{"network.sizes": (16, 16)})
    for module, head in ((method.policy, 0.01), (method.critic, 1.0)):
        matrices = [p.detach().reshape(-1, p.shape[-1]) for p in module.parameters() if p.shape[-1] != p.numel()]
        if head == 1.0:
            matrices.append(next(p for p in module.parameters() if p.numel() == 16 and p.any()).detach().reshape(1, 16))
        assert len(matrices) == 3
        for matrix, gain in zip(matrices, (math.sqrt(2), math.sqrt(2), head)):
            singular = torch.linalg.svdvals(matrix)
            torch.testing.assert_close(singular, torch.full_like(singular, gain), rtol=1e-4, atol=1e-6)
        weights = sum(matrix.numel() for matrix in matrices)
        assert sum(int((p != 0).sum()) for p in module.parameters()) == weights  # biases are 0


def test_must_3_adam_epsilon_clipping_and_annealing():
    method = make(max_grad_norm=0.5)
    assert method.optimizer.torch.defaults["eps"] == 1e-5
    metrics = method.update(method.collect())
    assert "grad_norm" in metrics
    for progress in (0.0, 0.25, 0.9):
        method.progress = progress
        method.update(method.collect())
        assert method.optimizer.torch.param_groups[0]["lr"] == pytest.approx(2.5e-4 * (1 - progress))


def test_must_4_statistics_of_observations_and_returns():
    method = make("Pendulum-v1", normalize_obs=True, normalize_reward=True)
    normalizer = method.policy.normalizer
    assert normalizer is method.critic.network.normalizer
    window = method.collect()
    seen = window["obs"].flatten(0, 1).double()
    method.update(window)
    torch.testing.assert_close(normalizer.mean, seen.mean(0))
    torch.testing.assert_close(normalizer.variance, seen.var(0, correction=0), rtol=1e-6, atol=1e-9)
    # Rewards are divided by the deviation of the running discounted return, in the update only.
    reward = window["reward"].double().numpy()
    running, returns = np.zeros(2), []
    for column in reward.T:
        running = column + 0.99 * running
        returns.append(running)
    scale = np.std(returns)
    assert float(method.reward_normalizer.std) == pytest.approx(scale, rel=1e-3)
    # Frozen in evaluation.
    before = {path: leaf.clone() for path, leaf in gather(normalizer).items()}
    task = method.task.__class__(method.task._make, 1, 5)
    method.evaluate(task, 2)
    method.policy.predict(np.zeros(3, np.float32))
    assert all(torch.equal(leaf, before[path]) for path, leaf in gather(normalizer).items())


def test_must_4_statistics_are_saved_with_the_model(tmp_path):
    settings = SMALL | {"steps": 32, "normalize_obs": True, "normalize_reward": True, "eval_episodes": 1}
    run = polopt.train("ppo", "Pendulum-v1", out=tmp_path / "run", **settings)
    actor = polopt.load(run.folder)
    assert float(actor.normalizer.count) == 32
    state = run.checkpoints.load(run.checkpoints.steps()[-1])
    assert torch.equal(actor.normalizer.mean, state["method.policy.net.normalizer.mean"])
    assert any("reward_normalizer" in path for path in state)


@pytest.mark.parametrize("extra", [{"adaptive_lr": "adaptive-kl"}, {"kl_penalty": "kl-penalty"}])
def test_must_4_an_old_policy_does_not_stop_the_statistics(extra):
    method = make("Pendulum-v1", normalize_obs=True, **extra)
    method.update(method.collect())
    assert float(method.policy.normalizer.count) == 16
    assert method.old_policy.normalizer is method.policy.normalizer


def test_must_5_diagnostics_are_logged():
    method = make()
    window = method.collect()
    metrics = method.update(window)
    logged = {"approx_kl", "approx_kl_k1", "clip_fraction", "explained_variance", "entropy", "value_loss"}
    assert logged <= metrics.keys()
    assert all(value.shape == () for value in metrics.values())
    batch = method.evaluate_window(window)
    value, returns = batch["value"].double().numpy(), batch["returns"].double().numpy()
    again = method.update(window)
    expected = 1 - (returns - value).var() / returns.var()
    assert float(again["explained_variance"]) == pytest.approx(expected, abs=1e-5)
    assert float(metrics["entropy"]) == pytest.approx(math.log(2), abs=0.01)  # two actions, a head near 0


def test_must_5_flattening_keeps_decisions_together():
    method = make(envs=2, window=8)
    batch = method.evaluate_window(method.collect())
    rows = {tuple(obs.tolist()): (float(a), float(r)) for obs, a, r in zip(
        batch["obs"].reshape(-1, 4), batch["action"].reshape(-1), batch["returns"].reshape(-1)
    )}  # fmt: skip
    for minibatch in method.minibatches(batch):
        assert minibatch.batch_dims == 1
        for obs, action, returns in zip(minibatch["obs"], minibatch["action"], minibatch["returns"]):
            assert rows[tuple(obs.tolist())] == (float(action), float(returns))
        assert method.critic.value(minibatch).shape == minibatch["returns"].shape == (8,)


def test_clipped_value_loss_by_hand():
    method = make(value_clip=0.2)
    batch = TensorDict(
        {
            "value": torch.tensor([1.0, 1.0]),
            "returns": torch.tensor([2.0, 1.1]),
            "weight": torch.tensor([0.5, 0.5]),
        },
        batch_size=[2],
    )
    method.critic.value = lambda batch: torch.tensor([1.5, 1.1])
    # 1.5 is clipped to 1.2: max(0.25, 0.64); 1.1 stays: 0
    assert float(method.value_loss(batch)[0]) == pytest.approx(0.5 * 0.5 * 0.64)
    method.config = make(value_clip=None).config
    assert float(method.value_loss(batch)[0]) == pytest.approx(0.5 * 0.5 * 0.25)


def test_the_clip_range_is_annealed():
    method = make("Pendulum-v1", clip_schedule="linear", entropy_coefficient=0.0)
    batch = method.evaluate_window(method.collect())
    (minibatch, *_) = method.minibatches(batch)
    minibatch["advantage"] = torch.ones(len(minibatch))
    minibatch["log_prob"] = method.policy.log_prob(minibatch).detach() - math.log(1.15)
    kept = []
    for progress in (0.0, 0.5):
        method.progress = progress
        kept.append(bool(gradient(method.policy_loss(minibatch)[0], method.policy).any()))
    assert kept == [True, False]  # 1.15 is within 1 + 0.2, not within 1 + 0.1


def test_the_learning_rate_follows_the_kl_before_each_step():
    method = make(adaptive_lr="adaptive-kl", lr=1e-3, lr_schedule="constant")
    kls, rates = iter([0.0, 0.05, 0.001, 0.015]), []
    method.kl_from_old = lambda batch: torch.tensor(next(kls))
    original = method.optimizer.minimize

    def spy(*args: Any, **shared: Any) -> Any:
        rates.append(method.optimizer.rate)
        return original(*args, **shared)

    method.optimizer.minimize = spy
    method.update(method.collect())
    assert rates == pytest.approx([1e-3, 1e-3 / 1.5, 1e-3, 1e-3])


def test_the_kl_to_the_old_policy_is_exact_and_old_comes_first():
    method = make("Pendulum-v1", kl_penalty="kl-penalty", **{"kl_penalty.initial": 2.0})
    batch = method.evaluate_window(method.collect())
    (minibatch, *_) = method.minibatches(batch)
    method.policy.log_std.data.fill_(0.5)
    mean = method.policy.net(minibatch["obs"]).detach().double()
    old_mean = method.old_policy.net(minibatch["obs"]).detach().double()
    expected = (0.5 + (1 + (mean - old_mean) ** 2) / (2 * math.e) - 0.5).sum(-1).mean()
    assert float(method.kl_from_old(minibatch)) == pytest.approx(float(expected), rel=1e-5)
    without = make("Pendulum-v1")
    restore(without.policy, gather(method.policy))
    difference = method.policy_loss(minibatch)[0] - without.policy_loss(minibatch)[0]
    assert float(difference) == pytest.approx(2.0 * float(expected), rel=1e-4)


@pytest.mark.parametrize(("kl", "factor"), [(0.05, 2.0), (0.001, 0.5), (0.01, 1.0)])
def test_the_penalty_is_doubled_or_halved(kl, factor):
    method = make(kl_penalty="kl-penalty", **{"kl_penalty.initial": 3.0})
    method.kl_from_old = lambda batch: torch.tensor(kl)
    method.update(method.collect())
    assert float(method.kl_penalty.value) == pytest.approx(3.0 * factor)


@pytest.mark.parametrize(("kl", "steps"), [(0.014, 8), (0.016, 1)])
def test_epochs_end_at_one_and_a_half_times_the_target(kl, steps):
    """Spinning Up's rule, and Stable-Baselines3's."""
    method = make(target_kl=0.01, epochs=4)
    calls = []
    method.optimizer.minimize = lambda *args: calls.append(1) or {"approx_kl": torch.tensor(kl)}
    method.update(method.collect())
    assert len(calls) == steps


def test_the_value_term_of_the_legged_preset_is_the_mean_squared_error(float64):
    """rsl_rl: value_loss_coef 1.0 on the mean of (V - returns)^2 where nothing is clipped, without the 1/2."""
    small = SMALL | {"preset": "legged", "value_clip": None, "entropy_coefficient": 0.0, "network.sizes": (8,)}
    method = api.plan("ppo", "Pendulum-v1", seed=1, **small).build()
    batch = method.evaluate_window(method.collect())
    (minibatch, *_) = method.minibatches(batch)
    whole = gradient(method.total_loss(minibatch)[0], method.critic)
    errors = method.critic.value(minibatch) - minibatch["returns"]
    torch.testing.assert_close(whole, gradient(errors.square().mean(), method.critic))


def test_epochs_end_when_the_kl_exceeds_its_target():
    steps = {}
    for target in (None, 1e-9):
        method = make(target_kl=target, epochs=4, lr=1e-2)
        original, calls = method.optimizer.minimize, []
        method.optimizer.minimize = lambda *args, original=original, calls=calls: calls.append(1) or original(*args)
        method.update(method.collect())
        steps[target] = len(calls)
    assert steps == {None: 8, 1e-9: 2}  # the first step has KL 0


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        (
            "classic",
            {"lr": 2.5e-4, "envs": 4, "window": 128, "minibatches": 4, "epochs": 4, "entropy_coefficient": 0.01},
        ),
        ("atari", {"envs": 8, "window": 128, "minibatches": 4, "epochs": 4, "value_clip": 0.1}),
        (
            "mujoco",
            {"lr": 3e-4, "envs": 1, "window": 2048, "minibatches": 32, "epochs": 10, "entropy_coefficient": 0.0},
        ),
        ("procgen", {"lr": 5e-4, "envs": 64, "window": 256, "minibatches": 8, "epochs": 3, "discount": 0.999}),
        ("isaacgym", {"lr": 2.6e-3, "envs": 4096, "window": 16, "minibatches": 2, "epochs": 4, "value_clip": None}),
        ("legged", {"lr": 1e-3, "envs": 4096, "window": 24, "minibatches": 4, "epochs": 5, "advantage_over": "batch"}),
        ("pendulum", {"lr": 1e-3, "envs": 8, "window": 128, "minibatches": 32, "epochs": 10, "discount": 0.9}),
    ],
)
def test_presets(preset, expected):
    config = api.plan("ppo", "CartPole-v1", preset=preset).config
    assert {name: getattr(config, name) for name in expected} == expected
    assert set(registry.load("ppo").presets) == {
        "classic", "atari", "mujoco", "procgen", "isaacgym", "legged", "pendulum"
    }  # fmt: skip


def test_image_observations_train():
    method = make("CartPole-v1", task_options={"preset": "image"}, window=4, envs=1, minibatches=1, epochs=1)
    window = method.collect()
    assert window["obs"].dtype == torch.uint8
    assert all(math.isfinite(float(value)) for value in method.update(window).values())


def test_a_recurrent_policy_solves_a_task_that_needs_memory(tmp_path):
    settings = {
        "task_options": {"delay": 1},
        "envs": 16,
        "window": 12,
        "minibatches": 2,
        "epochs": 4,
        "lr": 1e-2,
        "network": {"sizes": (16,), "recurrent": "gru", "recurrent_size": 16},
        "threads": 1,
        "loggers": (),
        "eval_episodes": 40,
        "eval_every": 1_920,
        "until": "return>=1",
        "seed": 0,
    }
    run = polopt.train("ppo", "recall", out=tmp_path / "run", steps=11_520, **settings)
    assert run.final["eval/return"] >= 0.95  # 0.5 without memory
    actor = polopt.load(run.folder)
    for cue in (0, 1):  # through predict, one observation at a time
        actor.reset()
        shown = np.zeros(3, np.float32)
        shown[cue] = 1.0
        actor.predict(shown)
        actor.predict(np.zeros(3, np.float32))
        assert int(actor.predict(np.array([0, 0, 1], np.float32))) == cue


def test_the_critic_may_have_a_network_of_its_own():
    def shapes(method: Any) -> list[list[int]]:
        return [list(parameter.shape) for parameter in method.critic.parameters() if parameter.dim() > 1]

    assert shapes(make()) == [[8, 4], [1, 8]]
    method = make(critic_network={"kind": "network", "sizes": (16, 16)})
    assert shapes(method) == [[16, 4], [16, 16], [1, 16]]
    assert [p.shape[0] for p in method.policy.parameters() if p.dim() > 1] == [8, 2]
    method.update(method.collect())


@pytest.mark.parametrize("remembers", ["network", "critic_network"])
def test_a_policy_or_a_critic_alone_may_remember(remembers):
    """Values of a window, computed again from its first column, are those of the steps that were taken."""
    memory = {"network": "none", "critic_network": "none", remembers: "gru"}
    recurrent = {f"{name}.recurrent": kind for name, kind in memory.items()}
    method = make(critic_network="network", **{"critic_network.sizes": (8,)}, **recurrent)
    assert (method.policy.recurrent, method.critic.recurrent) == (remembers == "network", remembers != "network")
    batch = method.evaluate_window(method.collect())
    value, hidden = [], method.critic.new_hidden(batch["obs"][:, 0]) if method.critic.recurrent else None
    for column in batch.unbind(1):
        if hidden is None:
            value.append(method.critic.value(column))
            continue
        hidden = hidden * ~column["first"].unsqueeze(-1)
        now, hidden = method.critic.step(column["obs"], hidden)
        value.append(now)
    torch.testing.assert_close(batch["value"], torch.stack(value, 1))
    sizes = {len(minibatch) for minibatch in method.minibatches(batch)}
    assert sizes == {1}  # one row of two, whole in time
    method.update(batch)


def test_it_learns_cartpole(tmp_path):
    settings = {"threads": 1, "loggers": (), "eval_every": 4_096, "until": "return>=200", "lr": 1e-3}
    run = polopt.train("ppo", "CartPole-v1", steps=24_576, out=tmp_path / "run", **settings)
    assert run.evaluations[0]["eval/return"] < 150
    assert run.final["eval/return"] >= 200


def test_every_denoising_step_of_a_diffusion_policy_counts_as_a_decision_of_its_own():
    """The objective of arXiv 2409.00588: the mean over environment steps and denoising steps, one advantage for all."""
    method = make("Pendulum-v1", policy="diffusion", **{"policy.steps": 10}, **ONE_STEP, envs=2)
    batch = method.evaluate_window(method.collect())
    assert batch["log_prob"].shape == (2, 8, 10)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    loss, metrics = method.policy_loss(batch)
    ratio = (method.policy.log_prob(batch) - batch["log_prob"]).exp()
    advantage = batch["advantage"].unsqueeze(-1)
    expected = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
    torch.testing.assert_close(gradient(loss, method.policy), gradient(expected, method.policy), rtol=1e-4, atol=1e-6)
    outside = ((ratio < 0.8) | (ratio > 1.2)).double().mean()
    assert 0 < float(metrics["clip_fraction"]) <= 1
    assert float(metrics["clip_fraction"]) == pytest.approx(float(outside), abs=1e-6)
    stds = method.policy.stds.clamp_min(0.1).numpy()
    entropy = np.log(stds) + 0.5 * math.log(2 * math.pi * math.e)
    assert float(metrics["entropy"]) == pytest.approx(entropy.mean(), rel=1e-5)


def test_minibatches_hold_the_columns_that_a_step_reads():
    method = make()
    batch = method.evaluate_window(method.collect())
    (minibatch, *_) = method.minibatches(batch)
    assert set(method.of_windows) <= set(batch.keys())
    assert set(minibatch.keys()) == set(batch.keys()) - set(method.of_windows)
