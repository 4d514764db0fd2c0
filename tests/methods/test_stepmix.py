"""StepMix and EpsMix: numbers worked by hand, and the promise that no episode falls below the threshold."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.rollouts import Rollouts
from polopt.methods.theory.stepmix import (
    candidates,
    episode_share,
    smallest_share,
    step_mixture,
    switch,
)
from polopt.models.tabular import TabularModel
from polopt.policies.tabular import TabularMixture, draw_index, noisy_table, soft_table
from polopt.tasks.tabular import TabularMDP, TabularTask, random_mdp
from polopt.training import api
from polopt.values.confidence import (
    BONUSES,
    Bonus,
    bernstein,
    hoeffding,
    lower_values,
    optimistic_plan,
    practical,
    scaled,
)
from tests.guards.harness import advance

MUST = 4
SMALL = {"states": 3, "actions": 3, "horizon": 3}


def table(*actions, count=2):
    """A deterministic policy [H, S, A] from the actions of each step."""
    return torch.eye(count, dtype=torch.float64)[torch.tensor(actions)]


def free(horizon, states=1, actions=1, value=0.0):
    """Bonuses [H, S, A] of a constant width."""
    shape = (horizon, states, actions)
    return Bonus(torch.zeros(shape, dtype=torch.float64), torch.full(shape, value, dtype=torch.float64), 0.0)


def sampled(mdp, episodes, seed=0):
    """Counts of a model after episodes of the uniform policy."""
    torch.manual_seed(seed)
    task = TabularTask(mdp, num=episodes, seed=seed)
    model = TabularModel(mdp.horizon, mdp.states, mdp.actions)
    model.add(Rollouts(task, mdp.horizon).next(TabularMixture(task.spec)))
    return model


def method(name, **settings):
    return api.plan(name, "random-mdp", task_options={"mdp_seed": 4, **SMALL}, seed=4, **settings).build()


# Bounds


def test_bonuses_by_hand():
    visits = torch.tensor([[[4.0]], [[1.0]]], dtype=torch.float64)  # H = 2
    log_term = 9.0
    deviation, constant, gap = practical(visits, 2, log_term)
    assert deviation.flatten().tolist() == [3 * 1.5, 3 * 3.0]
    assert constant.flatten().tolist() == pytest.approx([1.4 * 2 * 9 / 4 + 1.5, 1.4 * 2 * 9 + 3])
    assert gap == 0
    deviation, constant, gap = bernstein(visits, 2, log_term)
    assert deviation.flatten().tolist() == [4.5, 9.0]
    assert constant.flatten().tolist() == [14 * 4 * 9 / 4, 14 * 4 * 9]
    assert gap == 0.5
    deviation, constant, gap = hoeffding(visits, 2, log_term)
    assert (deviation.abs().sum(), gap) == (0, 0)
    assert constant.flatten().tolist() == [2 * 1.5, 2 * 3.0]


def test_must_4_the_scale_multiplies_every_term():
    visits = torch.tensor([[[4.0]], [[1.0]]], dtype=torch.float64)
    whole, part = bernstein(visits, 2, 9.0), scaled(bernstein(visits, 2, 9.0), 0.1, visits)
    for one, other in zip(whole, part):
        torch.testing.assert_close(torch.as_tensor(other), 0.1 * torch.as_tensor(one))


@pytest.mark.parametrize("name", BONUSES)
def test_must_4_unvisited_pairs_have_width_h_and_lower_bound_0(name):
    visits = torch.zeros(4, 3, 2, dtype=torch.float64)
    bonus = scaled(BONUSES[name](visits, 4, 7.0), 0.1, visits)
    bounds = optimistic_plan(torch.zeros(4, 3, 2).double(), torch.zeros(4, 3, 2, 3).double(), bonus)
    assert (bonus.constant == 4).all()
    assert (bounds.upper[:-1] == 4).all()  # min(H, 0 + 0 + H), not 2 H
    uniform = torch.full((1, 4, 3, 2), 0.5, dtype=torch.float64)
    assert (lower_values(bounds, uniform) == 0).all()


def test_must_4_equal_actions_give_one_action():
    bounds = optimistic_plan(torch.zeros(2, 3, 4).double(), torch.zeros(2, 3, 4, 3).double(), free(2, 3, 4, 2.0))
    assert (bounds.policy.sum(-1) == 1).all()
    assert (bounds.policy[..., 0] == 1).all()  # the first


def test_bounds_by_hand():
    """Two steps: from state 0 action 0 goes to 1 or 2, half each; in state 1 the reward is 1, in 2 it is 0."""
    reward = torch.tensor([[[0.5], [0.0], [0.0]], [[0.0], [1.0], [0.0]]], dtype=torch.float64)
    transition = torch.zeros(2, 3, 1, 3, dtype=torch.float64)
    transition[0, 0, 0] = torch.tensor([0.0, 0.5, 0.5])
    ones = torch.ones(2, 3, 1, dtype=torch.float64)
    bonus = Bonus(2 * ones / 10, ones / 10, 0.5)
    bounds = optimistic_plan(reward, transition, bonus)
    # last step: V~ = r + 0.1, V_ = max(0, r - 0.1) = 0, 0.9, 0 (nothing follows, so no variance and no gap)
    assert bounds.upper[1].tolist() == pytest.approx([0.1, 1.1, 0.1])
    # first step: P V~ = 0.6, Var = 0.25, gap = P (V~ - V_) = 0.6 - 0.45; b = 0.2 * 0.5 + 0.1 + 0.5 * 0.15 = 0.275
    assert bounds.upper[0, 0].item() == pytest.approx(0.5 + 0.6 + 0.275)
    value = lower_values(bounds, torch.ones(1, 2, 3, 1, dtype=torch.float64))
    assert value[0, 0].item() == pytest.approx(0.5 + 0.45 - 0.275)


def test_upper_values_stop_at_h():
    reward = torch.ones(2, 1, 1, dtype=torch.float64)
    bounds = optimistic_plan(reward, torch.ones(2, 1, 1, 1, dtype=torch.float64), free(2, value=1.5))
    assert bounds.upper[:, 0].tolist() == [2.0, 2.0, 0.0]
    assert lower_values(bounds, torch.ones(1, 2, 1, 1).double()).item() == 0


@pytest.mark.parametrize(("name", "scale"), [("practical", 0.1), ("bernstein", 1.0), ("hoeffding", 1.0)])
def test_must_4_bounds_cover_the_true_values(name, scale):
    """Lower bounds lie below the true values of policies, optimistic values above the optimal ones."""
    for seed in range(4):
        mdp = random_mdp(mdp_seed=seed)
        _, best = mdp.optimal()
        for episodes in (1, 30, 1000):
            model = sampled(mdp, episodes, seed)
            log_term = math.log(mdp.reward.numel() * 10_000 / 0.05)
            bonus = scaled(BONUSES[name](model.visits, mdp.horizon, log_term), scale, model.visits)
            bounds = optimistic_plan(*model.estimate(), bonus)
            policies = torch.rand(5, *mdp.reward.shape, dtype=torch.float64)
            policies = torch.cat((policies / policies.sum(-1, keepdim=True), bounds.policy[None]))
            lower = lower_values(bounds, policies)[:, mdp.start]
            true = torch.stack([mdp.value(policy)[0, mdp.start] for policy in policies])
            assert (lower <= true).all()
            assert bounds.upper[0, mdp.start] >= best[0, mdp.start]


def test_lower_values_without_width_are_the_values():
    mdp = random_mdp(mdp_seed=1)
    bounds = optimistic_plan(mdp.reward, mdp.transition, free(mdp.horizon, mdp.states, mdp.actions))
    policy = soft_table(mdp.optimal()[0], 0.3, torch.Generator())
    torch.testing.assert_close(lower_values(bounds, policy[None])[0], mdp.value(policy)[0])
    torch.testing.assert_close(bounds.upper, mdp.optimal()[1])


# The mixtures


@pytest.mark.parametrize("orientation", ["baseline-first", "optimistic-first"])
def test_must_2_neighbors_in_the_family_differ_in_one_step(orientation):
    baseline, optimistic = table([0, 0], [0, 0], [0, 0]), table([1, 1], [1, 1], [1, 1])
    family = candidates(baseline, optimistic, orientation)
    assert len(family) == 4
    assert torch.equal(family[0], optimistic)
    assert torch.equal(family[-1], baseline)
    changed = [(one != other).any(-1).any(-1).nonzero().flatten().tolist() for one, other in pairwise(family)]
    assert changed == ([[0], [1], [2]] if orientation == "baseline-first" else [[2], [1], [0]])


def test_must_2_stepmix_mixes_at_one_step_only():
    """Without width the bound is the value: a chain in which the baseline's action pays 1, 2, 4 at steps 0, 1, 2."""
    mdp = TabularMDP(torch.ones(3, 1, 2, 1), torch.tensor([[[1.0, 0]], [[2.0, 0]], [[4.0, 0]]]) / 4, 3)
    baseline, other = table([0], [0], [0]), table([1], [1], [1])
    bounds = optimistic_plan(mdp.reward, mdp.transition, free(3, 1, 2))

    def lower(policies):
        return lower_values(bounds, policies)[:, 0]

    # V of the family, in quarters: 0, 1, 3, 7; the threshold 2.5 lies between the second and the third: rho = 0.75
    policy, conservatism = step_mixture(lower, candidates(baseline, other, "baseline-first"), 2.5 / 4)
    assert policy[:, 0].tolist() == [[1, 0], [0.75, 0.25], [0, 1]]
    assert conservatism == pytest.approx((2 - 1 + 0.75) / 3)
    assert mdp.value(policy)[0, 0].item() == pytest.approx(2.5 / 4)
    # the mirror: 0, 4, 6, 7
    policy, conservatism = step_mixture(lower, candidates(baseline, other, "optimistic-first"), 2.5 / 4)
    assert policy[:, 0].tolist() == [[0, 1], [0, 1], [0.625, 0.375]]
    assert conservatism == pytest.approx(0.625 / 3)


def test_ends_of_the_family():
    baseline, other = table([0], [0]), table([1], [1])
    family = candidates(baseline, other, "baseline-first")
    bounds = torch.tensor([0.1, 0.2, 0.3])
    policy, conservatism = step_mixture(lambda _: bounds, family, 0.1)
    assert (torch.equal(policy, other), conservatism) == (True, 0.0)  # pi~ is safe: it plays alone
    policy, conservatism = step_mixture(lambda _: bounds, family, 0.4)
    assert (torch.equal(policy, baseline), conservatism) == (True, 1.0)  # not even the baseline's bound meets it
    policy, conservatism = switch(lambda policies: bounds[: len(policies)], family, 0.2)
    assert (torch.equal(policy, baseline), conservatism) == (True, 1.0)


def test_value_is_affine_in_the_share_and_its_bound_convex():
    mdp = random_mdp(mdp_seed=2)
    model = sampled(mdp, 60)
    optimal = mdp.optimal()[0]
    baseline = noisy_table(optimal, 0.4, torch.Generator().manual_seed(0))
    bonus = scaled(practical(model.visits, mdp.horizon, 10.0), 0.03, model.visits)
    bounds = optimistic_plan(*model.estimate(), bonus)
    family = candidates(baseline, bounds.policy, "baseline-first")
    shares = torch.linspace(0, 1, 11, dtype=torch.float64)
    for one, other in pairwise(family):
        mixtures = torch.lerp(one, other, shares[:, None, None, None])
        true = torch.stack([mdp.value(policy)[0, 0] for policy in mixtures])
        torch.testing.assert_close(true, torch.lerp(true[0], true[-1], shares))
        lower = lower_values(bounds, mixtures)[:, 0]
        assert (lower <= torch.lerp(lower[0], lower[-1], shares) + 1e-12).all()


def test_smallest_share_is_the_closed_form_where_the_bound_is_affine():
    unsafe, safe = table([1], [1]), table([0], [0])

    def lower(policies):
        return 0.2 + 0.5 * policies[:, 0, 0, 0]  # 0.2 at rho = 0, 0.7 at rho = 1

    assert smallest_share(lower, unsafe, safe, 0.6) == pytest.approx((0.6 - 0.2) / (0.7 - 0.2), abs=1e-12)


def test_smallest_share_is_found_where_the_bound_is_clipped():
    unsafe, safe = table([1], [1]), table([0], [0])

    def lower(policies):
        return (policies[:, 0, 0, 0] - 0.6).clamp_min(0)  # 0 up to rho = 0.6, then rho - 0.6

    share = smallest_share(lower, unsafe, safe, 0.1)
    assert 0.7 <= share <= 0.7 + 3e-5  # the chord alone would say 0.25
    assert lower(torch.lerp(unsafe, safe, share)[None]) >= 0.1


def test_the_coin_of_epsmix():
    assert episode_share(below=0.5, baseline=2.0, threshold=1.7) == pytest.approx(0.8)  # 0.8 * 2 + 0.2 * 0.5 = 1.7
    assert episode_share(below=1.7, baseline=2.0, threshold=1.7) == 0
    assert episode_share(below=0.5, baseline=1.0, threshold=1.7) == 1


def test_must_2_epsmix_draws_one_coin_for_a_whole_episode_and_its_value_counts():
    mdp = TabularMDP(torch.ones(1, 2, 1), torch.tensor([[[1.0, 0.0]]] * 2), 2)
    task = TabularTask(mdp, num=4000)
    policy = TabularMixture(task.spec, components=2)
    policy.set(torch.stack((table([1], [1]), table([0], [0]))), torch.tensor([0.25, 0.75]))
    assert policy.value(mdp) == pytest.approx(0.75 * 2)
    batch = Rollouts(task, 4).next(policy)  # two episodes in each row
    episodes = batch["reward"].reshape(4000, 2, 2).sum(-1)
    assert set(episodes.unique().tolist()) == {0.0, 2.0}  # one coin for a whole episode, never a 1
    assert episodes.mean().item() == pytest.approx(1.5, abs=0.06)
    assert 0.3 < (episodes[:, 0] != episodes[:, 1]).double().mean() < 0.45  # a new coin in each: 2 * 0.25 * 0.75


# The actor


def test_draws_follow_the_probabilities():
    probability = torch.tensor([0.0, 0.2, 0.0, 0.8, 0.0], dtype=torch.float64).expand(20_000, 5)
    share = draw_index(probability).bincount(minlength=5) / 20_000
    torch.testing.assert_close(share, torch.tensor([0.0, 0.2, 0.0, 0.8, 0.0]), atol=0.01, rtol=0)


def test_the_actor_scores_what_it_recorded():
    mdp = random_mdp(mdp_seed=5, **SMALL)
    task = TabularTask(mdp, num=7)
    policy = TabularMixture(task.spec, components=2)
    policy.set(torch.rand(2, 3, 3, 3).softmax(-1), torch.tensor([0.4, 0.6]))
    batch = Rollouts(task, 6).next(policy)
    torch.testing.assert_close(policy.log_prob(batch), batch["log_prob"])
    assert (batch["component"][:, :3] == batch["component"][:, :1]).all()
    assert set(batch["component"].unique().tolist()) == {0, 1}
    row = policy.table[batch["component"][0, 0], 0, 0]
    assert policy.entropy(batch)[0, 0].item() == pytest.approx(-(row * row.log()).sum().item(), rel=1e-6)
    assert policy.predict({"state": 1, "step": 2}) == policy.table[1, 2, 1].argmax()


def test_tasks_without_a_table_are_refused():
    with pytest.raises(UsageError, match="needs a tabular task"):
        api.plan("stepmix", "CartPole-v1").build()
    with pytest.raises(UsageError, match="needs a tabular task"):
        TabularMixture(Spec(obs=spaces.Discrete(3), action=spaces.Discrete(2), name="grid"))


# The learner


@pytest.mark.parametrize("name", ["stepmix", "epsmix"])
def test_must_3_episodes_of_mixtures_update_the_model(name):
    learner = method(name, alpha=0.6)  # a low threshold: mixtures begin early
    conservatism = [metrics["conservatism"] for metrics in advance(learner, 150)]
    assert any(0 < value < 1 for value in conservatism)
    assert learner.model.visits.sum(-1).sum(-1).tolist() == [150.0] * 3
    torch.testing.assert_close(learner.model.successors.sum(-1), learner.model.visits)
    reward, transition = learner.model.estimate()
    seen = learner.model.visits > 0
    torch.testing.assert_close(reward[seen], learner.mdp.reward[seen], atol=1e-6, rtol=0)
    torch.testing.assert_close(transition.sum(-1), seen.double())
    off_baseline = learner.model.visits * (learner.baseline == 0)
    assert off_baseline.sum() > 0  # what the baseline never does was tried, and counted


@pytest.mark.parametrize("name", ["stepmix", "epsmix"])
def test_must_1_safety_is_judged_before_the_episode_by_the_bound_of_the_executed_policy(name):
    """The policy that collects is the one whose bound was computed from the data before, and it meets the threshold."""
    learner = method(name, alpha=0.5)
    mixed = 0
    for _ in range(200):
        played = learner.policy.table.clone(), learner.policy.weight.clone()
        visits = learner.model.visits
        bonus = scaled(practical(visits, 3, learner.log_term), 0.1, visits)
        bounds = optimistic_plan(*learner.model.estimate(), bonus)
        lower = lower_values(bounds, played[0])[:, 0]
        if name == "epsmix":
            lower[1] = learner.baseline_value
        baseline_alone = torch.equal(played[0][0], learner.baseline) or played[1][1] == 1
        assert baseline_alone or played[1] @ lower >= learner.threshold - 1e-9
        mixed += not baseline_alone
        batch = learner.collect()
        assert torch.equal(played[0], learner.policy.table)  # collecting does not change it
        learner.update(batch)
    assert mixed > 20


def test_no_episode_is_below_the_threshold_where_ucbvi_has_many():
    violations = {}
    arms = {"stepmix": {}, "epsmix": {}, "mirror": {"orientation": "optimistic-first"}, "ucbvi": {"mixing": "none"}}
    for arm, settings in arms.items():
        learner = method("epsmix" if arm == "epsmix" else "stepmix", alpha=0.4, **settings)
        history = advance(learner, 250)
        violations[arm] = sum(metrics["violation"] for metrics in history)
        assert arm == "ucbvi" or history[-1]["conservatism"] < 1  # it has left the baseline
        assert history[-1]["total_regret"] == pytest.approx(sum(metrics["regret"] for metrics in history))
    assert violations.pop("ucbvi") > 15
    assert violations == {"stepmix": 0, "epsmix": 0, "mirror": 0}


def test_the_switch_never_leaves_a_deterministic_baseline():
    learner = method("stepmix", mixing="switch", alpha=0.4)
    assert all(metrics["conservatism"] == 1 for metrics in advance(learner, 100))
    assert (learner.model.visits * (learner.baseline == 0)).sum() == 0


def test_alpha_1_is_ucbvi():
    tables = []
    for settings in ({"alpha": 1.0}, {"mixing": "none"}):
        learner = method("stepmix", **settings)
        advance(learner, 60)
        tables.append(learner.policy.table.clone())
    assert torch.equal(*tables)


def test_evaluation_is_exact():
    learner = method("epsmix", alpha=0.4)
    advance(learner, 5)
    share = learner.policy.weight[1].item()
    by_hand = share * learner.baseline_value + (1 - share) * learner.mdp.value(learner.policy.table[0])[0, 0].item()
    assert 0 < share < 1
    assert learner.evaluate(learner.task)["return"] == pytest.approx(by_hand)


def test_the_known_value_of_the_baseline_or_its_bound():
    """Before any data the bound of the baseline is 0: without its known value there is nothing to mix with."""
    assert method("epsmix", alpha=0.4).conservatism == pytest.approx(0.6)
    assert method("epsmix", alpha=0.4, baseline_bound="lower").conservatism == 1


def test_baselines():
    optimal = torch.eye(4, dtype=torch.float64)[torch.zeros(50, 50, dtype=torch.int64)]
    noisy = noisy_table(optimal, 0.4, torch.Generator().manual_seed(0))
    assert (noisy.max(-1).values == 1).all()
    assert (noisy[..., 0] == 1).double().mean().item() == pytest.approx(0.6 + 0.4 / 4, abs=0.03)
    assert soft_table(optimal, 0.4, torch.Generator())[0, 0].tolist() == pytest.approx([0.7, 0.1, 0.1, 0.1])
