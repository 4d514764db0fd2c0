"""Methods that know nothing of teams train a policy that all agents of one share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pettingzoo import ParallelEnv

import polopt
from polopt.bases.method import Method
from polopt.core.batch import weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data import Rollouts
from polopt.evaluation.returns import evaluate_returns
from polopt.losses.regression import value_loss
from polopt.methods.control.ppo import PPO
from polopt.networks import Network
from polopt.policies import Auto
from polopt.tasks import make_task
from polopt.tasks.agents import AgentRows, per_agent
from polopt.training.datasets import make_datasets
from polopt.training.plan import plan
from polopt.values.critics import StateValue
from polopt.values.returns import gae
from tests.tasks.duo import Duo, duo
from tests.training.runs import differing, final_state

TINY: dict[str, Any] = {"seed": 3, "loggers": (), "eval_episodes": 2, "network.sizes": (8,)}
WINDOWS = {"envs": 2, "window": 6, "minibatches": 2, "epochs": 1, "normalize_reward": True, "normalize_obs": True}


class Match(ParallelEnv):
    """Two agents see a symbol each, one of three, for 8 steps; naming one's own symbol earns 1."""

    metadata = {"name": "match"}
    possible_agents = ["left", "right"]
    spaces = spaces.Box(0.0, 1.0, (3,), np.float32), spaces.Discrete(3)

    def observation_space(self, agent: str) -> spaces.Space:
        return self.spaces[0]

    def action_space(self, agent: str) -> spaces.Space:
        return self.spaces[1]

    def _show(self) -> dict[str, np.ndarray]:
        self.symbols = self.random.integers(3, size=2)
        return dict(zip(self.possible_agents, np.eye(3, dtype=np.float32)[self.symbols]))

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        if seed is not None:
            self.random = np.random.default_rng(seed)
        self.time, self.agents = 0, list(self.possible_agents)
        return self._show(), {}

    def step(self, actions: dict[str, Any]) -> tuple[dict, dict, dict, dict, dict]:
        rewards = {name: float(actions[name] == own) for name, own in zip(self.possible_agents, self.symbols)}
        self.time += 1
        over = dict.fromkeys(self.possible_agents, self.time == 8)
        self.agents = [] if self.time == 8 else self.agents
        return self._show(), rewards, over, dict.fromkeys(over, False), {}


def test_ppo_learns_a_policy_for_both_agents(tmp_path):
    """16 is the most; random actions have 16 / 3."""
    settings = {"envs": 8, "window": 16, "lr": 1e-2, "entropy_coefficient": 0.0, "network.sizes": (16,)}
    run = polopt.train("ppo", Match, steps=1_536, out=tmp_path / "run", seed=1, eval_every=768, loggers=(), **settings)
    first, *_, last = [row["eval/return"] for row in run.evaluations]
    assert first < 12
    assert last > 14
    actor = polopt.load(run.folder, task=Match)
    assert [int(actor.predict(symbol)) for symbol in np.eye(3, dtype=np.float32)] == [0, 1, 2]


def test_ppo_trains_on_an_environment_of_pettingzoo(tmp_path):
    options = {"N": 2, "max_cycles": 5, "continuous_actions": True}
    run = polopt.train(
        "ppo", "pz/mpe/simple_spread_v3", steps=48, out=tmp_path / "run", task_options=options, **TINY, **WINDOWS
    )
    assert run.final["env_steps"] == 48
    assert run.final["episodes"] == 2 * (24 // 5)
    assert np.isfinite(run.final["eval/return"])
    assert run.final["eval/length"] == 5
    assert polopt.load(run.folder).predict(np.zeros(12, np.float32)).shape == (5,)
    assert set(polopt.evaluate(run.folder, episodes=2)) == {"return", "return_std", "length"}


@pytest.mark.parametrize(
    ("name", "options", "settings"),
    [
        ("ppo", {}, {**WINDOWS, "steps": 48}),
        ("ppo", {}, {**WINDOWS, "steps": 48, "workers": 2}),
        ("ppo", {}, {**WINDOWS, "steps": 48, "network.recurrent": "gru"}),
        ("sac", {"box": True}, {"steps": 48, "warmup": 24, "batch_size": 16, "replay_size": 40}),
    ],
)
def test_a_stopped_run_of_a_team_goes_on_bitwise(name, options, settings, tmp_path):
    given = {**TINY, **settings, "task_options": options, "eval_every": 24, "checkpoint_every": 8}
    whole = polopt.train(name, duo, out=tmp_path / "whole", **given)
    rows = polopt.iterate(name, duo, out=tmp_path / "stopped", **given)
    for row in rows:
        if row["env_steps"] >= 30:
            break
    rows.close()
    polopt.resume(tmp_path / "stopped", task=duo)
    assert differing(final_state(tmp_path / "stopped"), final_state(whole.folder)) == []
    assert whole.final["env_steps"] == 48
    assert whole.final["eval/length"] == 4


def test_what_is_logged_is_of_teams(tmp_path):
    """Without an action "a" earns 46 in an episode and "b" 41; actions add 6 at most."""
    network = {"network.make": lambda inputs, outputs: Zero(inputs, outputs)}
    config = {**TINY, **WINDOWS} | {"lr": 1e-9}
    config.pop("network.sizes")
    run = polopt.train("ppo", duo, steps=24, out=tmp_path / "run", **config, **network)
    assert run.final["episodes"] == 6
    assert 87 <= run.final["train/return"] <= 87 + 6
    assert run.final["train/length"] == 4
    assert 87 <= run.final["eval/return"] <= 87 + 6


class Zero(torch.nn.Linear):
    """A trunk that starts at zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        torch.nn.init.zeros_(self.weight)


def test_the_plan_makes_rows_unless_the_method_is_one_of_teams(monkeypatch):
    planned = plan("ppo", Duo, steps=10)
    task = planned.make_task(0, 2)
    assert isinstance(task, AgentRows)
    assert task.num == 4
    assert not isinstance(plan("ppo", "CartPole-v1").make_task(0, 2), AgentRows)
    monkeypatch.setattr(PPO, "teams", "joint")
    assert plan("ppo", Duo, steps=10).make_task(0, 2).spec.agents == 2


def test_a_method_of_single_agents_refuses_a_team_in_one_sentence():
    with pytest.raises(UsageError, match=r"ppo learns for single agents, and Duo has a team of 2: give it AgentRows"):
        PPO(PPO.Config(), make_task(Duo))
    method = PPO(PPO.Config(), AgentRows(make_task(Duo)))
    assert method.spec.agents == 1


class Central(Method):
    """Actor-critic whose critic sees the state of the whole team, which no agent does."""

    @dataclass(frozen=True)
    class Config(Method.Config):
        pass

    slug = "central"
    teams = "joint"

    def build(self, task):
        self.policy = Auto().build(self.spec.agent, network=Network((8,)))
        self.critic = StateValue(Spec(self.spec.state, self.spec.action), Network((8,)))
        self.source = Rollouts(task, 6, self.ledger)
        self.optimizer = self.make_optimizer(self.policy, self.critic, lr=1e-2)

    def total_loss(self, batch):
        policy = -weighted_mean(batch["advantage"] * self.policy.log_prob(batch), batch["weight"])
        value = value_loss(self.critic(batch["state"]), batch["returns"], batch["weight"])
        return policy + value, {"value_loss": value}

    def update(self, batch):
        state = batch.clone(False).set("obs", batch["state"]).set("final_obs", batch["next_state"])
        value, next_value = self.critic.values(state)
        assert value.shape == batch["reward"].shape  # the team's, [N, T]
        advantage, returns = gae(batch["reward"], value, next_value, batch["terminated"], batch["truncated"], 0.9, 0.9)
        batch = weigh(per_agent(batch, self.spec))
        shape = batch["mask"].shape
        batch["advantage"], batch["returns"] = (x.unsqueeze(1).expand(shape) for x in (advantage, returns))
        return self.optimizer.minimize(self.total_loss, batch)


def test_a_method_of_teams_gets_the_joint_layout():
    torch.manual_seed(0)
    task = make_task(Duo, num=3, seed=5, state=True)
    method = Central(Central.Config(), task)
    before = [parameter.clone() for parameter in (*method.policy.parameters(), *method.critic.parameters())]
    losses = [method.update(method.collect())["value_loss"].item() for _ in range(20)]
    after = [*method.policy.parameters(), *method.critic.parameters()]
    assert all(not torch.equal(one, other) for one, other in zip(before, after))
    assert losses[-1] < losses[0]
    assert method.ledger.env_steps == 20 * 18
    joint = method.evaluate(make_task(Duo, num=2, seed=6), 3)
    assert joint == evaluate_returns(method.policy, AgentRows(make_task(Duo, num=2, seed=6)), 3)
    assert joint["length"] == 4


def test_episodes_of_a_team_are_demonstrations_for_its_agents(tmp_path):
    run = polopt.train("ppo", duo, steps=12, out=tmp_path / "run", **TINY, **WINDOWS)
    file = polopt.demonstrate(run.folder, tmp_path / "file.safetensors", episodes=2, task=duo)
    again = polopt.train("bc", duo, steps=3, out=tmp_path / "bc", demonstrations=str(file), batch_size=8, **TINY)
    assert again.final["eval/length"] == 4


def test_a_run_of_a_team_is_filmed(tmp_path):
    run = polopt.train("ppo", duo, steps=12, out=tmp_path / "run", **TINY, **WINDOWS)
    video = polopt.record(run.folder, task=duo, seconds=1)
    assert str(video).endswith(".mp4"), video


def test_n_step_returns_of_a_team_are_refused_before_anything_runs():
    sentence = "n-step returns need rows without gaps, and agents of duo may end before their team"
    with pytest.raises(UsageError, match=sentence):
        plan("sac", duo, task_options={"box": True}, n_step=3).build()


def test_datasets_are_not_recorded_of_a_team():
    with pytest.raises(UsageError, match="datasets are recorded of single agents, and duo has a team of 2"):
        make_datasets(duo, ["random"])
