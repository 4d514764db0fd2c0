"""AILBoost: learners of all rounds by their shares, against the expert."""

from __future__ import annotations

import copy

import pytest
import torch

from polopt.methods.offline.ailboost import AILBoost
from polopt.methods.offline.dac import DAC
from polopt.training import api
from tests.guards.harness import advance, built

MUST = 5


def rounds_of(method, count):
    """Trains until `count` rounds have begun; a round is 5 updates here."""
    while method.rounds < count:
        method.update(method.collect())


def test_must_1_a_new_learner_plays_by_itself_apart_from_exploration(float64):
    """Rows of their own, from new episodes, counted as experience; exploration is not among what is discriminated."""
    with built("ailboost") as method:
        assert method.fresh.task is not method.task
        rounds_of(method, 3)
        played = method.played.whole()
        assert len(played) == 20  # room for two learners of ten steps
        assert method.ledger.env_steps == 3 * 10 + method.source.collected
        explored = {tuple(row) for row in method.source.replay.whole()["obs"][20:].tolist()}
        shown = {
            tuple(row)
            for row in method.paired(method.collect()["replay"], method.played, 5)["learner"]["obs"]
            .flatten(0, 1)
            .tolist()
        }
        assert shown <= {tuple(row) for row in played["obs"].tolist()}
        assert not shown & explored


def test_a_new_learner_begins_with_a_new_episode():
    """Episodes are longer than what it plays, so the last one was in the middle of one."""
    with built("ailboost") as method:
        begins, original = [], method.fresh.next

        def noting(actor):
            window = original(actor)
            begins.append(window["first"].tolist())
            return window

        method.fresh.next = noting
        rounds_of(method, 3)
    assert begins == [[[True] + [False] * 9]] * 3


def test_a_learner_plays_as_the_policy_that_was_copied(float64, monkeypatch):
    monkeypatch.setattr(AILBoost, "unread", ())  # keeps how likely it found what it did
    with built("ailboost") as method:
        rounds_of(method, 2)
        torch.manual_seed(5)
        method.rounds, method.ensemble.count = 2, 2
        method.begin_round()
        played = method.played.whole()[-10:]
        newest = method.ensemble.members[0]
        log_prob = newest.log_prob(played)
        torch.testing.assert_close(log_prob, played["log_prob"])
        before = copy.deepcopy(newest.state_dict())
        advance(method, method.ledger.env_steps + 4)
        assert all(value.equal(before[name]) for name, value in newest.state_dict().items())  # a copy, not the live one


@pytest.mark.parametrize(("eta", "expected"), [(0.2, [0.64, 0.16, 0.2]), (1.0, [0, 0, 1])])
def test_must_2_learners_are_shown_by_their_shares(eta, expected):
    with built("ailboost", eta=eta, learners=5, discriminator_rows=2_000) as method:
        for _ in range(3):
            method.begin_round()
        shown = method.paired(method.source.replay.sample(1), method.played, 5)["learner"]["obs"].flatten(0, 1)
        played = method.played.whole()["obs"]
        where = {tuple(row): number // 10 for number, row in enumerate(played.tolist())}
        counts = torch.bincount(torch.tensor([where[tuple(row)] for row in shown.tolist()]), minlength=3)
        assert (counts / len(shown)).tolist() == pytest.approx(expected, abs=0.02)
        assert sum(expected) == pytest.approx(1)


def test_must_3_the_policy_gets_d_itself_and_goes_on_where_it_was(float64):
    """Rewards within +-1 by tanh, discriminator steps at the beginning of rounds only, nothing reset."""
    with built("ailboost") as method:
        first = method.collect()
        assert first["expert"].batch_size == torch.Size([2, 16])
        method.update(first)
        later = method.collect()
        assert later["expert"].batch_size == torch.Size([0, 16])
        before = copy.deepcopy(method.discriminator.state_dict())
        metrics = method.update(later)
        assert "discriminator_loss" not in metrics
        assert all(value.equal(before[name]) for name, value in method.discriminator.state_dict().items())
        raw = method.discriminator.ensemble.network(later["replay"]["obs"], later["replay"]["action"]).flatten()
        assert metrics["reward"].item() == pytest.approx(raw.tanh().mean().item())
        weights = [parameter.clone() for parameter in (*method.policy.parameters(), *method.critic.parameters())]
        method.begin_round()
        now = [*method.policy.parameters(), *method.critic.parameters()]
        assert all(one.equal(two) for one, two in zip(weights, now))


def test_the_reward_of_a_transition_changes_between_rounds(float64):
    with built("ailboost") as method:
        rounds_of(method, 1)
        batch = method.collect()["replay"]
        before = method.discriminator.reward(batch)
        rounds_of(method, 2)
        assert not method.discriminator.reward(batch).equal(before)


def test_must_4_the_ensemble_is_evaluated_one_learner_for_each_episode(float64):
    with built("ailboost") as method:
        rounds_of(method, 2)
        scores = method.evaluate(method.task.twin(2), 4)
        assert {"return", "mixture_return", "learners"} <= scores.keys()
        assert scores["learners"] == 2
        assert scores["mixture_return"] != scores["return"]
        obs = method.task.obs
        torch.manual_seed(0)
        _, carry = method.ensemble.act(obs.expand(4_000, -1))
        share = (carry["member"] == 2).double().mean()
        assert float(share) == pytest.approx(0.05, abs=0.015)
        rounds_of(method, 3)
        assert method.evaluate(method.task.twin(2), 2)["learners"] == 2  # there is room for no more


def test_must_5_the_penalty_is_of_what_lies_between_expert_and_learners(float64):
    with built("ailboost") as method:
        batch = method.collect()
        expert, learner = batch["expert"][0], batch["learner"][0]
        share = torch.rand(16, generator=copy.deepcopy(method).generator)
        loss, metrics = method.witness(expert, learner)
        high, low = method.discriminator(expert), method.discriminator(learner)
        penalty = method.discriminator.penalty(expert, learner, share).mean()
        torch.testing.assert_close(loss, (-high).exp().mean() + low.mean() + 10.0 * penalty)
        torch.testing.assert_close(metrics["gradient_penalty"], penalty)


def test_the_replay_is_what_learners_played_and_exploration_since(float64):
    with built("ailboost", learners=4) as method:
        rounds_of(method, 2)
        old = {tuple(row) for row in method.source.replay.whole()["obs"][20:].tolist()}
        rounds_of(method, 3)
        held = method.source.replay.whole()
        assert held["obs"][:30].equal(method.played.whole()["obs"])
        assert len(held) == 30 + method.source.collected - 20
        assert not old & {tuple(row) for row in held["obs"][30:].tolist()}
        before = method.played.whole()["action"].clone()
        advance(method, method.ledger.env_steps + 4)
        assert method.played.whole()["action"].equal(before)


def test_rounds_come_after_so_much_exploration(float64):
    with built("ailboost", round_steps=6, steps_per_update=3) as method:
        begun = []
        for _ in range(6):
            method.collect()
            begun.append((method.rounds, method.source.collected))
        assert begun == [(1, 3), (1, 6), (2, 9), (2, 12), (3, 15), (3, 18)]


def test_defaults_are_those_of_the_official_code():
    config = api.plan("ailboost", "Pendulum-v1", demonstrations="random").config
    found = {
        name: getattr(config, name) for name in ("eta", "round_steps", "fresh", "discriminator_updates", "penalty")
    }
    assert found == {"eta": 0.05, "round_steps": 1_000, "fresh": 1_000, "discriminator_updates": 100, "penalty": 10.0}
    assert (config.lr, config.batch_size, config.steps_per_update, config.discriminator_rows) == (1e-4, 1024, 2, 512)
    assert (config.network.sizes, config.discriminator_network.sizes) == ((1024, 1024), (64, 64))
    assert (config.divergence, config.bound, config.tau) == ("reverse-kl", 1.0, 0.005)
    assert issubclass(type(config), DAC.Config)
