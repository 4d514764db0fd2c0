"""IQL: what its paper must not be without, with numbers worked out here, and that it learns what cloning cannot."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

import polopt
from polopt import registry
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.data.demonstrations import save_demonstrations
from polopt.methods.offline.iql import advantage_weight
from polopt.training import api
from tests.guards import spaces as tasks

MUST = 5
SMALL = {"dataset": "random", "random_episodes": 2, "batch_size": 16, "network.sizes": (8,), "loggers": ()}


def make(task: Any = tasks.box, **changes: Any) -> Any:
    return api.plan("iql", task, seed=1, **SMALL | changes).build()


def fixed(method: Any, *, q: Any, target_q: Any, value: Any, next_value: Any) -> Any:
    """The method with critics and value that give these numbers, per decision, whatever they are asked."""
    part = method.in_sample
    rows = torch.tensor
    answers = {"obs": rows(value), "next_obs": rows(next_value)}
    part.critic.forward = lambda obs, action: rows(q)
    part.target_critic.forward = lambda obs, action: rows(target_q)
    part.value.forward = lambda obs: answers["obs"] if float(obs[0, 0]) == 0.0 else answers["next_obs"]
    return method


def batch_of(size: int, **keys: Any) -> Any:
    batch = {
        "obs": torch.zeros(size, 3),
        "action": torch.zeros(size, 2),
        "reward": torch.zeros(size),
        "next_obs": torch.ones(size, 3),
        "terminated": torch.zeros(size, dtype=torch.bool),
        "truncated": torch.zeros(size, dtype=torch.bool),
    }
    return weigh(TensorDict(batch | keys, batch_size=[size]))


NUMBERS: dict[str, Any] = {
    "q": [[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]],
    "target_q": [[2.0, -1.0, 5.0], [4.0, 0.0, 4.0]],
    "value": [1.0, 1.0, 1.0],
    "next_value": [10.0, 20.0, 30.0],
}


def test_must_1_the_expectile_stands_on_q_minus_v():
    method = fixed(make(expectile=0.9), **NUMBERS)
    loss, metrics = method.value_loss(batch_of(3))
    u = np.array([2.0, -1.0, 4.0]) - 1.0  # the minimum of the target critics
    assert float(loss) == pytest.approx(np.mean(np.where(u < 0, 0.1, 0.9) * u**2))
    assert float(metrics["value"]) == 1.0


@pytest.mark.parametrize("expectile", [0.5, 0.99])
def test_must_1_q_is_regressed_on_the_mean_of_its_target(expectile):
    method = fixed(make(expectile=expectile, discount=0.5), **NUMBERS)
    ends = {"terminated": torch.tensor([False, True, False]), "truncated": torch.tensor([False, False, True])}
    loss, metrics = method.critic_loss(batch_of(3, reward=torch.tensor([1.0, 2.0, 3.0]), **ends))
    target = np.array([1 + 5.0, 2.0, 3 + 15.0])  # a time limit is bootstrapped through
    assert float(loss) == pytest.approx(sum(np.mean(0.5 * (np.array(q) - target) ** 2) for q in NUMBERS["q"]))
    assert float(metrics["q"]) == 2.0


def test_must_2_target_critics_serve_value_and_policy_and_the_present_value_serves_q(float64):
    method = make()
    part = method.in_sample
    batch = weigh(method.collect())
    with torch.no_grad():
        for parameter in part.critic.parameters():
            parameter.add_(0.3)  # now unlike its target
        target = part.target_critic(batch["obs"], batch["action"]).amin(0)
        assert torch.equal(part.q(batch), target)
        assert not torch.equal(part.critic(batch["obs"], batch["action"]).amin(0), target)
        torch.testing.assert_close(part.advantage(batch), target - part.value(batch["obs"]))
    names = {name.partition(".")[0] for name, _ in part.named_parameters()}
    assert names == {"critic", "target_critic", "value"}  # V has no copy
    assert not any(parameter.requires_grad for parameter in part.target_critic.parameters())

    # one update: V first, then the policy with that V, then Q with that V, then the targets
    before = {name: value.clone() for name, value in part.state_dict().items()}
    reference = make()
    reference.in_sample.load_state_dict(before)
    reference.policy.load_state_dict(method.policy.state_dict())
    method.update(batch)
    reference.value_optimizer.minimize(reference.value_loss, batch)
    reference.policy_optimizer.minimize(reference.policy_loss, batch)
    reference.critic_optimizer.minimize(reference.critic_loss, batch)
    for name, value in part.state_dict().items():
        if name.startswith("target_critic"):
            new = part.state_dict()[name.removeprefix("target_")]
            torch.testing.assert_close(value, before[name] + 0.005 * (new - before[name]))
        else:
            assert torch.equal(value, reference.in_sample.state_dict()[name]), name
    for name, value in method.policy.state_dict().items():
        assert torch.equal(value, reference.policy.state_dict()[name]), name


def test_must_3_the_weight_is_clipped_and_constant():
    advantage = torch.tensor([-1.0, 0.0, 1.0, 2.0], requires_grad=True)
    weight = advantage_weight(advantage, 3.0, 100.0)
    np.testing.assert_allclose(weight, [math.exp(-3), 1.0, math.exp(3), 100.0], rtol=1e-6)
    assert not weight.requires_grad


def test_must_3_the_policy_loss_is_weighted_cloning():
    method = fixed(make(advantage_temperature=2.0), **NUMBERS)
    batch = batch_of(3, action=torch.tensor([[0.5, 0.1], [-1.0, 1.0], [0.0, 0.2]]))
    log_prob = method.policy.log_prob(batch).detach().numpy()
    weight = np.minimum(np.exp(2.0 * (np.array([2.0, -1.0, 4.0]) - 1.0)), 100.0)
    loss, metrics = method.policy_loss(batch)
    assert float(loss.detach()) == pytest.approx(-np.mean(weight * log_prob), rel=1e-5)
    assert float(metrics["clip_fraction"]) == pytest.approx(1 / 3)
    assert float(metrics["advantage_weight"]) == pytest.approx(weight.mean(), rel=1e-6)
    loss.backward()
    assert all(parameter.grad is None for parameter in method.in_sample.parameters())


def recorded_file(tmp_path, rewards: list[list[float]]) -> str:
    """Episodes with these rewards on `box`, as a file."""
    method = make()
    size = sum(map(len, rewards))
    first = [step == 0 for episode in rewards for step in range(len(episode))]
    data = batch_of(size, reward=torch.tensor([r for episode in rewards for r in episode]), first=torch.tensor(first))
    path = tmp_path / "recorded.safetensors"
    save_demonstrations(path, data.exclude("weight"), method.spec)
    return str(path)


@pytest.mark.parametrize(
    ("kind", "scaled"), [("none", [1, 2, 5, 7]), ("return-range", [250, 500, 1250, 1750]), ("minus-one", [0, 1, 4, 6])]
)
def test_must_4_rewards_are_scaled(tmp_path, kind, scaled):
    file = recorded_file(tmp_path, [[1.0, 2.0], [5.0], [7.0]])  # returns 3, 5, 7: a range of 4
    method = make(dataset=file, random_episodes=10, rewards=kind)
    seen = torch.cat([method.collect()["reward"] for _ in range(10)])
    assert sorted(set(seen.tolist())) == scaled
    assert method.source.data["reward"].max() == 7.0  # what is stored stays


def test_must_4_a_range_of_nothing_and_the_presets():
    with pytest.raises(UsageError, match="all episodes of this dataset have the same"):
        make("Pendulum-v1", random_episodes=1, rewards="return-range")
    presets = registry.load("iql").presets
    assert presets["locomotion"]["rewards"] == "return-range"
    assert presets["antmaze"] == {"expectile": 0.9, "advantage_temperature": 10.0, "rewards": "minus-one"}
    assert presets["adroit"]["policy_dropout"] == 0.1


def test_must_5_the_policy_has_a_tanh_mean_and_a_finite_density_at_the_bounds(float64):
    policy = make().policy
    assert policy.log_std.shape == (2,)  # one for all states
    assert (policy.log_std_low, policy.log_std_high) == (-5.0, 2.0)
    obs = torch.randn(5, 3) * 100.0
    mean = policy.net(obs).tanh().detach()
    for log_std, std in ((0.0, 1.0), (-9.0, math.exp(-5.0))):
        with torch.no_grad():
            policy.log_std.fill_(log_std)
        action = torch.tensor([[-1.0, 1.0]]).expand(5, 2)
        log_prob = policy.log_prob(TensorDict({"obs": obs, "action": action}, [5])).detach()
        z = (action - mean) / std
        expected = (-0.5 * z**2 - math.log(std) - 0.5 * math.log(2 * math.pi)).sum(-1)
        assert torch.isfinite(log_prob).all()
        torch.testing.assert_close(log_prob, expected)
    record, _ = policy.act(obs, greedy=True)
    torch.testing.assert_close(record["action"], mean)
    bounds = policy.env_action(torch.tensor([[-1.0, 1.0], [-3.0, 3.0]]))  # the space is [-2, 1]
    assert bounds.tolist() == [[-2.0, 1.0], [-2.0, 1.0]]


def test_it_costs_no_environment_steps_and_then_goes_on_online():
    method = make("Pendulum-v1", offline_updates=3, online_steps=2, replay_size=1_000)
    sizes = []
    for _ in range(5):
        method.update(method.collect())
        sizes.append((method.ledger.env_steps, len(method.source.replay)))
    assert sizes == [(0, 400), (0, 400), (0, 400), (2, 402), (4, 404)]
    newest = method.source.replay._columns["action"][400:404]
    assert newest.shape == (4, 1)
    assert float(method.collect()["action"].abs().max()) <= 1.0
    assert make("Pendulum-v1").ledger.env_steps == 0
    with pytest.raises(UsageError, match="iql needs a replay-size above the 400 decisions of its dataset"):
        make("Pendulum-v1", offline_updates=3, replay_size=400)
    derived = registry.load("iql").derived(method.config, 10)
    assert derived == {"online environment steps": 14}


def test_the_learning_rate_of_the_policy_falls_as_a_cosine():
    method = make()
    method.progress = 0.5
    method.update(method.collect())
    rates = [optimizer.torch.param_groups[0]["lr"] for optimizer in method.optimizers()]
    assert rates == pytest.approx([1.5e-4, 3e-4, 3e-4])


def test_dropout_is_in_the_policy_alone_and_only_where_it_learns():
    method = make(policy_dropout=0.5)
    batch = weigh(method.collect())
    assert not torch.equal(method.policy.log_prob(batch), method.policy.log_prob(batch))
    one, other = (method.policy.act(batch["obs"], greedy=True)[0]["action"] for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(method.in_sample.value(batch["obs"]), method.in_sample.value(batch["obs"]))


def test_what_it_learns_from_must_be_named():
    with pytest.raises(UsageError, match="iql learns from a dataset: name one as --task, or with --dataset"):
        make(dataset="", random_episodes=10)
    with pytest.raises(UsageError, match="which a recurrent network cannot learn from"):
        make(**{"network.recurrent": "gru"})


class OneStep(gymnasium.Env):
    """One decision; the best action is 0.5 (times the sign of the observation), or the second of three."""

    def __init__(self, discrete: bool = False) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(3) if discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.discrete = discrete

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.side = float(self.np_random.choice([-1.0, 1.0]))
        return np.array([self.side], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        reward = float(action == 1) if self.discrete else -abs(float(action[0]) - 0.5 * self.side)
        return np.array([self.side], dtype=np.float32), reward, True, False, {}


@pytest.mark.parametrize(("policy", "good"), [("gaussian", -0.15), ("diffusion", -0.3), ("categorical", 0.95)])
def test_it_learns_the_best_of_random_actions(tmp_path, policy, good):
    """Cloning uniform actions gives a mean of 0, with a return of -0.5 (1/3 with three actions)."""
    given = {} if policy == "gaussian" else {"policy": policy}
    options = {"discrete": policy == "categorical"}
    run = polopt.train(
        "iql",
        OneStep,
        steps=600,
        out=tmp_path / "run",
        task_options=options,
        dataset="random",
        random_episodes=400,
        batch_size=64,
        lr=3e-3,
        expectile=0.9,
        advantage_temperature=10.0,
        eval_every=600,
        eval_episodes=20,
        threads=1,
        loggers=(),
        **{"network.sizes": (32,)},
        **given,
    )
    assert run.final["eval/return"] > good
