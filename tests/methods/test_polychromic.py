"""Polychromic PPO: scores of sets and their advantages, worked out set by set."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from polopt.config import apply
from polopt.core.errors import UsageError
from polopt.methods.theory.polychromic import Met, Moves, Polychromic, Visited, distinct, scaled, set_advantage, subsets
from polopt.training import api

MUST = 5
SMALL = {"envs": 2, "window": 8, "network.sizes": (8,), "vines": 6, "set_size": 3, "loggers": ()}


def make(task="grid/doors", **changes):
    return api.plan("polychromic", task, seed=1, **SMALL | {"signature": Met()} | changes).build()


def vines_of(rewards, things, states=1):
    """Vines [V, 2] with these returns that met these things at their last step."""
    count = len(rewards)
    touched = torch.zeros(count, 2, 4, dtype=torch.bool)
    for row, thing in enumerate(things):
        if thing is not None:
            touched[row, 1, thing] = True
    reward = torch.zeros(count, 2)
    reward[:, 1] = torch.tensor(rewards)
    ends = torch.tensor([[False, True]]).expand(count, 2)
    keys = {"reward": reward, "touched": touched, "mask": torch.ones(count, 2, dtype=torch.bool), "terminated": ends}
    return TensorDict(keys, batch_size=[count, 2])


REWARDS, THINGS = [1.0, 1.0, 0.0, 0.9, 1.0, 0.8], [0, 0, None, 1, 0, 2]


def by_hand(n, score):
    """A_i of one state with the six vines, over all subsets."""
    sets = [*combinations(range(6), n)]
    f = np.array([score(members) for members in sets])
    return [np.mean([f[m] for m, members in enumerate(sets) if i in members]) - f.mean() for i in range(6)]


def product(members):
    return np.mean([REWARDS[i] for i in members]) * len({THINGS[i] for i in members}) / len(members)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_must_2_the_advantage_of_a_vine_is_that_of_its_sets(float64, n):
    found, alive, metrics = make(set_size=n).of_sets(vines_of(REWARDS, THINGS))
    np.testing.assert_allclose(found, by_hand(n, product), atol=1e-12)
    assert alive.all()
    sets = [*combinations(range(6), n)]
    assert float(metrics["set_score"]) == pytest.approx(np.mean([product(members) for members in sets]))
    # (1 - n / N) times (mean with i - mean without i)
    for i in range(6):
        halves = [[product(m) for m in sets if (i in m) == inside] for inside in (True, False)]
        assert float(found[i]) == pytest.approx((1 - n / 6) * (np.mean(halves[0]) - np.mean(halves[1])))


def test_must_1_a_failed_vine_of_another_kind_is_worth_more_than_one_more_of_the_same(float64):
    found, _, _ = make(set_size=2).of_sets(vines_of([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [0, 0, 0, 0, 0, None]))
    assert float(found[5]) == pytest.approx((1 - 2 / 6) * (0.5 * 1 - 1.0 * 0.5))  # half the reward, twice as varied
    found, _, _ = make(set_size=2, bonus=10.0).of_sets(vines_of([1.0, 1.0, 1.0, 1.0, 1.0, 0.0], [0, 0, 0, 0, 0, None]))
    assert float(found[5]) > 0  # the sum pays for variety itself


@pytest.mark.parametrize(
    ("options", "score"),
    [
        ({"diversity": "others"}, lambda m: np.mean([REWARDS[i] for i in m]) * (len({THINGS[i] for i in m}) - 1) / 2),
        ({"distinct": "paid"}, lambda m: np.mean([REWARDS[i] for i in m]) * len({THINGS[i] for i in m} - {None}) / 3),
        ({"bonus": 0.3}, lambda m: np.mean([REWARDS[i] for i in m]) + 0.3 * len({THINGS[i] for i in m}) / 3),
        ({"diversity": "none", "signature": Visited()}, lambda m: np.mean([REWARDS[i] for i in m])),
    ],
)
def test_other_scores(float64, options, score):
    found, _, _ = make(**options).of_sets(vines_of(REWARDS, THINGS))
    np.testing.assert_allclose(found, by_hand(3, score), atol=1e-12)


def test_sets_of_one_without_diversity_have_the_mean_of_their_state_as_baseline(float64):
    method = make(set_size=1, diversity="none", signature=Visited(), advantage_over="none")
    returns = torch.tensor(REWARDS * 2) * torch.tensor([1.0] * 6 + [3.0] * 6)
    found, _, _ = method.of_sets(vines_of(returns.tolist(), THINGS * 2))
    np.testing.assert_allclose(found.view(2, 6), returns.view(2, 6) - returns.view(2, 6).mean(1, keepdim=True))


def test_negative_returns_are_shifted_so_that_variety_is_worth_having(float64):
    shifted, _, _ = make().of_sets(vines_of([value - 5 for value in REWARDS], THINGS))
    np.testing.assert_allclose(shifted, by_hand(3, product), atol=1e-12)


def test_must_4_signatures_say_what_kind_a_vine_is(float64):
    method = make()
    vines = vines_of([1.0] * 3, [0, 0, 1])
    vines["mask"][2, 1] = False  # what stands behind the end is not seen
    assert Met().marks(vines, method.spec).tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    vines["action"] = torch.tensor([[0, 1], [0, 2], [0, 3]])
    assert Moves().marks(vines, method.spec).tolist() == [[1, 2], [1, 3], [1, 0]]
    vines["final_obs"] = torch.tensor([[3, 5], [5, 3], [5, 9]])
    marks = Visited().marks(vines, method.spec)
    assert torch.equal(marks[0], marks[1])  # the same cells, in whatever order
    assert not torch.equal(marks[0], marks[2])
    assert marks.sum(1).tolist() == [2, 2, 1]
    box = make("CartPole-v1", signature=Visited(width=0.5, coordinates=(2,)))
    vines["final_obs"] = torch.tensor([[[9, 0, 0.1, 4], [8, 0, 0.6, 4]], [[0, 0, 0.9, 1], [0, 0, 0.4, 1]]] * 2)[:3]
    marks = Visited(width=0.5, coordinates=(2,)).marks(vines, box.spec)
    assert torch.equal(marks[0], marks[1])


def test_random_sets_hold_everyone_and_nobody_twice():
    generator = torch.Generator().manual_seed(0)
    assert subsets(5, 2, 10, generator).tolist() == [list(pair) for pair in combinations(range(5), 2)]
    for most, least in ((40, 40), (2, 4)):
        sets = subsets(11, 3, most, generator)
        assert sets.shape == (least, 3)
        assert {*sets.flatten().tolist()} == {*range(11)}
        assert all(len({*members}) == 3 for members in sets.tolist())
    score = torch.rand(2, 40, generator=generator)
    sets = subsets(11, 3, 40, generator)
    found = set_advantage(score, sets, 11)
    own = [m for m, members in enumerate(sets.tolist()) if 7 in members]
    torch.testing.assert_close(found[:, 7], score[:, own].mean(1) - score.mean(1))


def test_of_equal_signatures_one_counts():
    marks = torch.tensor([[[0], [1], [0], [2]]])
    sets = torch.tensor([[0, 1, 2], [1, 2, 3], [0, 2, 2]])
    assert distinct(marks, torch.ones(1, 4, dtype=torch.bool), sets).tolist() == [[2, 3, 1]]
    assert distinct(marks, torch.tensor([[True, False, True, False]]), sets).tolist() == [[1, 1, 1]]
    # one that does not count hides no later one of its kind
    assert distinct(marks, torch.tensor([[False, True, True, False]]), sets).tolist() == [[2, 2, 1]]


def test_must_5_steps_of_sets_and_of_gae_are_scaled_each_by_themselves(float64):
    method = make(gae_lambda=1.0)
    batch = method.collect()
    advantage, alive, _ = method.of_sets(batch["vines"])
    seen = []
    method.improve = lambda whole: seen.append(whole) or {}
    method.update(batch)
    whole, mask = seen[0], batch["vines"]["mask"]
    count = batch["window"].numel()
    assert len(whole) == count + int(mask.sum())
    of_set = whole["of_set"]
    assert not of_set[:count].any()
    torch.testing.assert_close(of_set[count:], alive.unsqueeze(1).expand(mask.shape)[mask])
    gae = whole["advantage"][~of_set]
    assert float(gae.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(gae.std()) == pytest.approx(1.0, abs=1e-6)
    if of_set.any():
        expected = advantage.unsqueeze(1).expand(mask.shape)[mask][of_set[count:]]
        torch.testing.assert_close(whole["advantage"][of_set], expected / (expected.std() + 1e-8))
    # the critic learns what single vines earned
    vines = batch["vines"]
    reward, steps = vines["reward"], torch.arange(vines.shape[1])
    total = (reward * 0.99**steps).sum(1)
    first = whole["returns"][count:][(torch.cumsum(mask.sum(1), 0) - mask.sum(1))]
    ended = vines["terminated"].any(1)
    assert ended.any()
    torch.testing.assert_close(first[ended], total[ended])
    assert float(whole["weight"].sum()) == pytest.approx(1.0)


def test_states_whose_sets_are_worth_nothing_and_late_steps_fall_back_to_gae(float64):
    method = make(vines=6, reach=1, advantage_over="none")
    vines = vines_of(REWARDS + [0.0] * 6, THINGS + [None] * 6)
    advantage, alive, _ = method.of_sets(vines)
    assert alive.tolist() == [True] * 6 + [False] * 6
    obs = torch.zeros(12, 2, dtype=torch.int64) + 40
    vines.update({"obs": obs, "final_obs": obs, "action": obs * 0, "log_prob": torch.zeros(12, 2)})
    vines["truncated"] = torch.zeros(12, 2, dtype=torch.bool)
    gae = method.estimated(vines)["advantage"]
    window = vines[:2].exclude("mask")
    vines["set_advantage"], vines["alive"] = (x.unsqueeze(1).expand(12, 2) for x in (advantage, alive))
    whole = method.evaluate_window(TensorDict({"window": window, "vines": vines}, batch_size=[]))
    found = whole["advantage"][4:].view(12, 2)
    torch.testing.assert_close(found[:6, 0], advantage[:6])
    torch.testing.assert_close(found[:6, 1], gae[:6, 1])
    torch.testing.assert_close(found[6:], gae[6:])


def test_scaled_keeps_the_sign():
    value, exists = torch.tensor([1.0, 2.0, 3.0, 100.0]), torch.tensor([True, True, True, False])
    torch.testing.assert_close(scaled(value, exists)[:3], torch.tensor([1.0, 2.0, 3.0]))


def test_must_3_vines_go_from_the_beginning_of_every_part_of_a_window_and_their_steps_count():
    method = make(rollout_states=4)
    batch = method.collect()
    window, vines = batch["window"], batch["vines"]
    assert window.shape == (2, 8)
    begins = vines["obs"][:, 0].view(4, 2, 6)
    assert torch.equal(begins, window["obs"][:, ::2].T.unsqueeze(2).expand(4, 2, 6))
    assert bool(window["first"][:, 0].all())
    assert method.ledger.env_steps == 16 + int(vines["mask"].sum())
    torch.testing.assert_close(method.policy.log_prob(vines)[vines["mask"]], vines["log_prob"][vines["mask"]])


def test_the_reference_is_where_training_began(float64):
    method = make(reference_coefficient=0.5)
    start = [p.clone() for p in method.policy.parameters()]
    for _ in range(2):
        metrics = method.update(method.collect())
    assert all(map(torch.equal, start, method.reference_policy.parameters()))
    assert float(metrics["reference_kl"]) > 0
    batch = method.evaluate_window(method.collect()["window"])
    plain = make(reference_coefficient=0.0)
    plain.policy.load_state_dict(method.policy.state_dict())
    kl = float((batch["weight"] * method.policy.kl(batch, method.reference_policy)).sum().detach())
    gap = method.policy_loss(batch)[0] - plain.policy_loss(batch)[0]
    assert float(gap.detach()) == pytest.approx(0.5 * kl)


def test_what_cannot_be_is_told():
    for settings, sentence in (
        ({"vines": 4, "set_size": 4}, "sets of 4 of 4 vines are one set"),
        ({"window": 9}, "a window of 9 steps has no 2 equal parts"),
        ({"rollout_states": 0, "reach": 3}, "reach has no effect without rollout_states"),
        ({"set_size": 1, "diversity": "others"}, "a set of one has no others"),
        ({"diversity": "none", "bonus": 1.0}, "bonus has no effect where diversity is none"),
        ({"normalize_reward": True}, "normalize_reward has no effect where vines"),
    ):
        with pytest.raises(UsageError, match=sentence):
            apply(Polychromic.Config, settings)
    with pytest.raises(UsageError, match="does not give the fact 'touched'"):
        make("CartPole-v1")
    with pytest.raises(UsageError, match="no coordinate 7"):
        make("CartPole-v1", signature=Visited(coordinates=(7,)))
    with pytest.raises(UsageError, match="no two vines would be alike"):
        make("Pendulum-v1", signature=Moves())
    with pytest.raises(UsageError, match="without a memory"):
        make(**{"network.recurrent": "gru"})
