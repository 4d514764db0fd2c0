"""RLPD: symmetric batches, random members in the target, several critic steps for one of the policy."""

from __future__ import annotations

import copy

import pytest
import torch
from tensordict import TensorDict

from polopt import registry
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.data.demonstrations import save_demonstrations
from polopt.methods.control.rlpd import EDGE, drawn
from polopt.training import api
from tests.guards.harness import advance, built


def batch_of(method, rows, **columns):
    """Random transitions [rows]."""
    obs = torch.randn(rows, 3)
    data = {
        "obs": obs,
        "action": 2 * torch.rand(rows, 1) - 1,
        "reward": torch.randn(rows),
        "next_obs": obs + 0.1,
        "terminated": torch.zeros(rows, dtype=torch.bool),
        "truncated": torch.zeros(rows, dtype=torch.bool),
        "discount": torch.full((rows,), 0.9),
    }
    return TensorDict({**data, **columns}, batch_size=[rows])


def test_every_slice_has_its_share_of_prior_data(float64):
    """Prior transitions have the rewards of the data, and come first in each slice."""
    with built("rlpd", prior_share=0.25, batch_size=16, updates_per_step=3) as method:
        recorded = {round(float(value), 9) for value in method.prior.data["reward"]}
        batch = method.collect()
        assert batch.batch_size == torch.Size([48])
        known = torch.tensor([round(float(value), 9) in recorded for value in batch["reward"]])
        assert known.view(3, 16).tolist() == [[True] * 4 + [False] * 12] * 3
        assert set(batch.keys()) == {"obs", "action", "reward", "next_obs", "terminated", "truncated", "discount"}


def test_rewards_are_shifted_of_both(float64):
    with built("rlpd") as one, built("rlpd", reward_shift=-1.0) as other:
        torch.manual_seed(0)
        first = one.collect()
        torch.manual_seed(0)
        second = other.collect()
        torch.testing.assert_close(second["reward"], first["reward"] - 1.0)


def test_members_of_the_target_are_drawn_without_replacement():
    generator = torch.Generator().manual_seed(0)
    found = torch.stack([drawn(5, 2, generator) for _ in range(4_000)])
    assert (found[:, 0] != found[:, 1]).all()
    assert (torch.bincount(found.flatten(), minlength=5) / 8_000).tolist() == pytest.approx([0.2] * 5, abs=0.02)


@pytest.mark.parametrize("backup", [True, False])
def test_the_target_by_hand(backup, float64):
    with built("rlpd", backup_entropy=backup, critics=4, reward_scale=2.0) as method:
        batch = batch_of(method, 6, terminated=torch.tensor([False, True, False, False, False, False]))
        torch.manual_seed(1)
        found = method.target(batch, torch.tensor([2, 0]))
        torch.manual_seed(1)
        with torch.no_grad():
            action, log_prob = method.policy.rsample(batch["next_obs"])
            q = method.target_critic(batch["next_obs"], action)
        value = torch.minimum(q[2], q[0])
        if backup:
            value = value - method.temperature.value * log_prob
        expected = 2.0 * batch["reward"] + 0.9 * value * (1 - batch["terminated"].double())
        torch.testing.assert_close(found, expected)


def test_the_critic_loss_is_the_mean_of_whole_squares_over_members(float64):
    with built("rlpd", critics=4) as method:
        batch = weigh(batch_of(method, 6))
        torch.manual_seed(1)
        loss, metrics = method.critic_loss(batch, torch.tensor([1, 3]))
        torch.manual_seed(1)
        target = method.target(batch, torch.tensor([1, 3]))
        q = method.critic(batch["obs"], batch["action"]).detach()
        torch.testing.assert_close(loss, (q - target).square().mean())
        assert metrics["q"].item() == pytest.approx(float(q.mean()))


def test_the_policy_ascends_the_mean_of_all_members(float64):
    with built("rlpd", critics=4) as method:
        batch = weigh(batch_of(method, 6))
        torch.manual_seed(1)
        loss, _ = method.policy_loss(batch)
        torch.manual_seed(1)
        action, log_prob = method.policy.rsample(batch["obs"])
        q = method.critic(batch["obs"], action).mean(0)
        torch.testing.assert_close(loss, (method.temperature.value * log_prob - q).mean())


def test_critics_step_on_every_slice_and_the_policy_once_on_the_last(float64):
    """As the same slices given one by one to a method whose policy rests, and then to its policy."""
    with built("rlpd", batch_size=8, updates_per_step=3) as method:
        other = copy.deepcopy(method)
        batch = batch_of(method, 24)
        torch.manual_seed(0)
        method.update(batch)
        torch.manual_seed(0)
        for number in range(3):
            part = weigh(batch[8 * number : 8 * number + 8])
            some = torch.randperm(3, generator=other.generator)[:2]
            loss, _ = other.critic_loss(part, some)
            other.critic_optimizer.step(loss)
            for slow, fast in zip(other.target_critic.parameters(), other.critic.parameters()):
                slow.data.mul_(0.995).add_(0.005 * fast.data)
        before = copy.deepcopy(other.policy.state_dict())
        other.improve(part)
        assert any(not value.equal(before[name]) for name, value in other.policy.state_dict().items())
        for name in ("critic", "target_critic", "policy", "temperature"):
            pairs = zip(getattr(method, name).parameters(), getattr(other, name).parameters())
            assert all(torch.allclose(one, two, atol=1e-12, rtol=0) for one, two in pairs), name


def test_critics_are_layer_normalized_and_the_entropy_target_is_half():
    with built("rlpd") as method:
        assert any("Norm" in type(module).__name__ for module in method.critic.modules())
        assert not any("Norm" in type(module).__name__ for module in method.policy.modules())
        assert float(method.temperature.target_entropy) == -0.5
    with built("rlpd", entropy={"target_entropy": -3.0}) as method:
        assert float(method.temperature.target_entropy) == -3.0


def test_prior_actions_stay_inside_and_are_as_the_policy_stores_them(tmp_path, float64):
    with built("sac") as base:
        columns = batch_of(base, 4).select("obs", "reward", "next_obs", "terminated", "truncated")
        first = torch.tensor([True, False, False, False])
        data = columns.set("action", torch.tensor([[-2.0], [1.0], [2.0], [0.0]])).set("first", first)
        save_demonstrations(tmp_path / "data", data, base.spec)
    with built("rlpd", dataset=str(tmp_path / "data"), random_episodes=10) as method:
        assert method.prior.data["action"].flatten().tolist() == pytest.approx([-EDGE, 0.5, EDGE, 0.0])


def test_prior_data_is_summed_over_steps_too(float64):
    with built("rlpd", n_step=3, discount=0.5) as method:
        data = method.prior.data
        assert data["discount"][0] == 0.125
        with built("rlpd", discount=0.5) as plain:
            reward = plain.prior.data["reward"]
        torch.testing.assert_close(data["reward"][:-2], reward[:-2] + 0.5 * reward[1:-1] + 0.25 * reward[2:])
        advance(method, 56, 2)


def test_it_begins_with_uniform_actions_and_updates_once_in_so_many_steps():
    with built("rlpd", warmup=400, steps_per_update=4, prior_share=0.0, dataset="", random_episodes=10) as method:
        method.collect()
        first = method.source.replay.whole()["action"][:400].flatten().sort().values
        assert (first - torch.linspace(-1, 1, 400)).abs().max() < 0.15
        method.update(method.collect())
        assert method.ledger.env_steps == 408


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UsageError, match="of 3 critics 4 cannot be the target"):
        api.plan("rlpd", "Pendulum-v1", critics=3, target_critics=4)
    with pytest.raises(UsageError, match="all or nothing"):
        api.plan("rlpd", "Pendulum-v1", prior_share=0.001)
    with pytest.raises(UsageError, match="without prior data"):
        api.plan("rlpd", "Pendulum-v1", prior_share=0.0, dataset="random")
    with pytest.raises(UsageError, match="rlpd needs prior data: name a dataset"):
        api.plan("rlpd", "Pendulum-v1").build()


def test_presets_are_those_of_the_official_code():
    cls = registry.load("rlpd")
    settings = {name: api.plan("rlpd", "Pendulum-v1", preset=name).config for name in cls.presets}
    sizes = {name: (config.network.sizes, config.critic_network.sizes) for name, config in settings.items()}
    assert sizes["antmaze"] == sizes["adroit"] == ((256, 256, 256),) * 2
    assert sizes["locomotion"] == ((256, 256),) * 2
    assert [settings[name].target_critics for name in ("locomotion", "antmaze", "adroit")] == [2, 1, 2]
    assert [settings[name].backup_entropy for name in ("locomotion", "antmaze", "adroit")] == [True, False, False]
    assert [settings[name].reward_shift for name in ("locomotion", "antmaze", "adroit")] == [0.0, -1.0, 0.0]
    assert all(config.updates_per_step == 20 and config.critics == 10 for config in settings.values())
