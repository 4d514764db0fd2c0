"""RLIF: the reward is the beginning of a takeover, and nothing else."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import polopt
from polopt import registry
from polopt.core.errors import UsageError
from polopt.core.state import gather
from polopt.methods.offline.rlif import supervised
from polopt.policies.overseeing import ByChance, ByValue
from polopt.training import api
from tests.guards.harness import advance, built

MUST = 4
LINE = "tests.policies.lines:Line"
HOME = ByValue(expert="home", reference="home", margin=0.3, ahead=3, mistakes=0.0)
STRICT = replace(HOME, margin=0.0)


def window(takeover, terminated=None, truncated=None):
    """One row of decisions with `takeover` of each, and of the one after the last; their rewards are 7."""
    takeover = torch.tensor([takeover], dtype=torch.bool)
    count = takeover.shape[1] - 1
    over = torch.zeros(1, count, dtype=torch.bool)
    ends = [over.clone(), over.clone()]
    for flags, at in zip(ends, (terminated, truncated)):
        if at is not None:
            flags[0, at] = True
    followed = ~(ends[0] | ends[1])
    columns = {
        "takeover": takeover[:, :-1],
        "next_takeover": takeover[:, 1:] & followed,
        "reward": torch.full((1, count), 7.0),
        "terminated": ends[0],
        "truncated": ends[1],
        "followed": followed,
    }
    return TensorDict(columns, batch_size=[1, count])


def test_must_1_the_reward_stands_before_the_takeover_and_only_at_its_beginning():
    found = supervised(window([0, 0, 1, 1, 1, 1, 0, 0, 1, 0]), "failure", False)
    assert found["reward"].tolist() == [[0, -1, 0, 0, 0, 0, 0, -1, 0]]
    #                      within a takeover, only its last decision is stored
    assert found["mask"].tolist() == [[True, True, False, False, False, True, True, True, True]]
    assert supervised(window([0, 0, 1, 1, 1, 1, 0]), "failure", True)["mask"].all()


def test_must_2_no_reward_of_the_task_is_stored(float64):
    """Prior data has reward 0, and what is collected -1 for each takeover that began after the first decision."""
    with built("rlif", LINE, overseer=HOME) as method:
        replay = method.source.replay
        prior = len(replay)
        assert prior > 0
        assert not replay.whole()["reward"].any()
        begun, windows = [], []
        original = method.source.rollouts.source.next

        def noting(actor):
            windows.append(original(actor))
            return windows[-1]

        method.source.rollouts.source.next = noting
        advance(method, 40)
        for record, before in zip(windows[1:], windows):
            begins = record["takeover"] & ~(before["takeover"] & ~record["first"])
            begun.append(bool(begins) and not bool(record["first"]))
        stored = replay.whole()["reward"][prior:]
        assert set(stored.tolist()) <= {0.0, -1.0}
        assert sum(begun) > 3
        assert -int(stored.sum()) == sum(begun)
        assert set(windows[0]["reward"].flatten().tolist()) != {0.0}


def test_what_an_end_is():
    """A time limit is neither good nor bad; an end is a failure unless it is said to be a success or dropped."""
    cut = window([0, 0, 0], truncated=1)
    ended = window([0, 0, 0], terminated=1)
    for ends, reward, kept in (("failure", -1, True), ("success", 0, True), ("dropped", 0, False)):
        assert supervised(cut, ends, False)["reward"].tolist() == [[0, 0]]
        assert supervised(cut, ends, False)["mask"].all()
        found = supervised(ended, ends, False)
        assert found["reward"].tolist() == [[0, reward]]
        assert found["mask"].tolist() == [[True, kept]]
    within = supervised(window([1, 1, 1], truncated=1), "failure", False)  # cut within a takeover: its last decision
    assert within["mask"].tolist() == [[False, True]]
    assert within["reward"].tolist() == [[0, 0]]


def test_a_truncated_decision_keeps_its_successor(float64):
    with built("rlif", LINE, overseer=HOME) as method:
        prior = len(method.source.replay)
        advance(method, 60)
        stored = method.source.replay.whole()[prior:]
        assert stored["truncated"].sum() >= 3
        assert not stored["terminated"].any()
        cut = stored[stored["truncated"]]
        step = (cut["next_obs"] - cut["obs"]).flatten()
        torch.testing.assert_close(step, (2 * cut["action"].flatten()).clamp(-1, 1))


def test_ends_of_recorded_episodes_are_what_ends_are():
    """A failure that was recorded is no better than one that was met; recorded steps are not followed by takeovers."""
    many = {"random_episodes": 60}
    with built("rlif", **many) as method, built("rlif", ends="success", **many) as good:
        prior = method.source.replay.whole()
        assert 0 < prior["terminated"].sum() < len(prior)
        assert prior["reward"].equal(-prior["terminated"].float())
        assert not good.source.replay.whole()["reward"].any()
        assert len(good.source.replay) == len(prior)
    with built("rlif", ends="dropped", **many) as without:
        assert without.source.replay.whole()["obs"].equal(prior["obs"][~prior["terminated"]])


def test_a_share_of_prior_data_has_no_reward_of_the_task_either(float64):
    with built("rlif", LINE, overseer=HOME, prior_share=0.25) as method:
        recorded = {round(float(value), 9) for value in method.source.replay.whole()["obs"]}
        advance(method, 40)
        batch = method.collect()
        assert batch.batch_size == torch.Size([2 * 16])
        known = [round(float(value), 9) in recorded for value in batch["obs"]]
        for each in (known[:4], known[16:20]):
            assert all(each)
        assert not all(known)
        assert set(batch["reward"].tolist()) <= {0.0, -1.0}
        assert not batch["reward"].view(2, 16)[:, :4].any()


def test_the_overseer_watches_before_the_first_update_too():
    with built("rlif", LINE, overseer=ByChance(expert="home", rate=1.0), hold=None, inside=True, warmup=9) as method:
        prior = len(method.source.replay)
        method.collect()
        stored = method.source.replay.whole()[prior:]
        assert (method.ledger.env_steps, len(stored)) == (9 + 1, 9)  # the newest one waits for what follows
        home = -stored["obs"].clamp(-1, 1) / 2
        torch.testing.assert_close(stored["action"], home)


def test_must_3_critics_are_an_ensemble_with_many_updates_and_the_data_in_the_replay(float64):
    """The defaults of the official code, and updates that are those of RLPD."""
    config = api.plan("rlif", "Pendulum-v1", dataset="random").config
    assert (config.critics, config.target_critics, config.updates_per_step, config.backup_entropy) == (10, 2, 5, False)
    assert config.critic_network.normalization == "layer"
    assert config.network.sizes == (256, 256, 256)
    with built("rlif", LINE, overseer=HOME) as method:
        batch = method.collect()
        assert batch.batch_size == torch.Size([2 * 16])
        assert not batch["reward"].any()  # of prior data, so far
        assert method.update.__func__ is type(method).update
        base = copy.deepcopy(method)
        torch.manual_seed(0)
        method.update(batch.clone())
        torch.manual_seed(0)
        super(type(base), base).update(batch.clone())
        one, other = gather(method.policy), gather(base.policy)
        assert all(one[path].equal(other[path]) for path in one)


def test_must_4_a_takeover_lasts_for_four_decisions():
    assert api.plan("rlif", "Pendulum-v1", dataset="random").config.hold == 4
    with built("rlif", LINE, overseer=STRICT) as method:
        carry, taken = None, []
        method.task.reset()
        for _ in range(12):
            record, carry = method.watched.act(method.task.obs, carry)
            method.task.step({"action": method.watched.env_action(record["action"])})
            taken.append(int(record["takeover"]))
        runs = "".join(map(str, taken)).split("0")
        assert "1111" in runs
        assert set(runs) <= {"", "1111", "1", "11", "111"}
        assert all(len(run) == 4 for run in runs[:-1] if run)


def test_the_expert_acts_in_the_environments_units(float64):
    with built("rlif", LINE, overseer=STRICT, hold=None) as method:
        advance(method, 30)
        prior = 24
        stored = method.source.replay.whole()[prior:]
        home = -stored["obs"].clamp(-1, 1) / 2  # the world's bounds are 2
        assert (stored["action"] - home).abs().min() < 1e-9


def test_the_share_of_takeovers_is_logged(float64):
    with built("rlif", LINE, overseer=ByChance(expert="home", rate=1.0), hold=None, inside=True) as m:
        assert {row["takeover"] for row in advance(m, 8)} == {1.0}
    calls = []

    def ask(obs, action):
        calls.append(obs)

    with built("rlif", LINE, overseer=ask, hold=None) as method:
        assert {row["takeover"] for row in advance(method, 8)} == {0.0}
    assert len(calls) >= 8


def never(obs, action):
    """An overseer that lets every learner go on."""


class Sometimes:
    """An overseer that cannot be named."""

    def __call__(self, obs, action):
        return np.array([-float(np.clip(obs[0], -1, 1))]) if abs(float(obs[0])) > 2 else None


def test_an_overseer_of_ones_own_is_named_and_given_again(tmp_path):
    smoke = registry.load("rlif").smoke
    settings = {**smoke.config, "loggers": (), "eval_episodes": 1, "steps": 24, "checkpoint_every": 8, "hold": None}
    del settings["overseer"]
    run = polopt.train("rlif", LINE, out=tmp_path / "named", overseer="tests.methods.test_rlif:never", **settings)
    assert run.config["config"]["overseer"] == {"kind": "asked", "ask": {"callable": "tests.methods.test_rlif:never"}}
    with pytest.raises(UsageError, match=r"say it again with --overseer tests\.methods\.test_rlif:never"):
        polopt.resume(tmp_path / "named", task=LINE, extend=32)
    assert polopt.resume(tmp_path / "named", task=LINE, overseer=never, extend=32).final["env_steps"] == 32
    polopt.train("rlif", LINE, out=tmp_path / "object", overseer=Sometimes(), **settings)
    polopt.load(tmp_path / "object", task=LINE, overseer=Sometimes())
    polopt.load(tmp_path / "named").predict(np.zeros(1, np.float32))  # the policy alone needs nobody


def test_wrong_settings_are_one_sentence():
    with pytest.raises(UsageError, match="has no scripted behavior to take over"):
        api.plan("rlif", "Pendulum-v1", dataset="random").build()
    with pytest.raises(UsageError, match="no effect with rewards that are made of takeovers"):
        api.plan("rlif", "Pendulum-v1", reward_scale=2.0)
    with pytest.raises(UsageError, match=r"a share of 0\.001 of 256 transitions is all or nothing"):
        api.plan("rlif", "Pendulum-v1", prior_share=0.001)
    with pytest.raises(UsageError, match="has no behavior 'hom'"):
        api.plan("rlif", LINE, dataset="random", overseer=ByValue(expert="hom")).build()
    with pytest.raises(UsageError, match="needs prior data"):
        api.plan("rlif", LINE, overseer=HOME).build()
