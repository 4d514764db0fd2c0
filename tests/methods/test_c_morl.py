"""C-MORL: its barrier against the formula that it stands for, its order of runs, and the front that it leaves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tensordict import TensorDict

import polopt
from polopt import registry
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.core.snapshot import take
from polopt.core.state import gather, restore
from polopt.data.minibatches import minibatches
from polopt.evaluation.pareto import hypervolume
from polopt.evaluation.returns import evaluate_returns
from polopt.methods.theory.c_morl_learner import STEEPEST, Goal, reach
from polopt.training import api
from tests.guards.harness import advance, built, plan, reseed, steps_of

MUST = 5

SMALL = {"envs": 4, "ppo.window": 6}


def extending(method, objective=0):
    """The learner as it is in an extension for this objective."""
    learner, kept = method.learner, np.arange(2) != objective
    learner.goal.set((~kept).astype(float), (1.0 - method.config.ppo.beta) * kept)
    learner.guarded = True
    return learner


def shifted(learner, size=0.05):
    """Moves the policy a little, so that ratios are not 1."""
    with torch.no_grad():
        for parameter in learner.policy.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def test_with_one_objective_its_learner_is_ppo(float64):
    options = {"goals": ((0.7, 0.7),), "horizon": 3, "start": ((-1.0, -1.0), (1.0, 1.0)), "ends": False}
    common = {"task_options": options, "seed": 7, "steps": 1_000, "loggers": ()}
    own = plan("c-morl").config.ppo
    names = ("window", "minibatches", "epochs", "lr", "network", "discount", "entropy_coefficient", "advantage_over")
    shared = {name: getattr(own, name) for name in (*names, "lr_schedule", "normalize_obs")} | {
        "normalize_reward": False
    }
    base = api.plan("ppo", "point/front", **common, envs=2, **shared).build()
    method = api.plan("c-morl", "point/front", **common, envs=2, **{f"ppo.{k}": v for k, v in shared.items()}).build()
    learner = method.learner
    restore(learner, {k: v.clone() for k, v in gather(base).items() if torch.is_tensor(v)}, strict=False)
    for number in range(3):
        reseed()
        batch = base.collect()
        for each in (learner, base):
            reseed()
            each.generator.manual_seed(number)
            each.update(batch.clone())
    one, other = gather(base.policy), gather(learner.policy)
    assert all(torch.equal(one[path], other[path]) for path in one)


def test_must_1_each_objective_has_an_advantage_of_its_own_in_units_of_the_rewards(float64):
    with built("c-morl", **SMALL, **{"ppo.normalize_reward": True, "ppo.discount": 0.9}) as method:
        learner = method.learner
        learner.goal.set([0.3, 0.7], 0.0)
        batch = learner.collect()
        value, after = learner.critic.values(batch)
        out = learner.evaluate_window(batch)
        unit = learner.reward_normalizer.std
        other = type(learner.reward_normalizer)(4, 0.9, objectives=2)
        rewards = other(batch["rewards"].movedim(-1, 0), batch["terminated"], batch["truncated"])
        expected = torch.zeros(4, 6, 2)
        for row, objective in itertools.product(range(4), range(2)):
            running = 0.0
            for time in reversed(range(6)):
                end = batch["terminated"][row, time]
                delta = rewards[objective, row, time] - value[objective, row, time]
                delta += 0.9 * after[objective, row, time] * ~end
                running = delta + 0.9 * 0.95 * running * ~end
                expected[row, time, objective] = running * unit[objective]
        torch.testing.assert_close(out["advantages"], expected)
        torch.testing.assert_close(out["returns"], expected / unit + value.movedim(0, -1))
        mixed = expected @ torch.tensor([0.3, 0.7])
        torch.testing.assert_close(out["advantage"], (mixed - mixed.mean()) / (mixed.std() + 1e-8))
        torch.testing.assert_close(learner.returns, out["returns"].mean((0, 1)) * unit)


def test_the_value_loss_is_the_mean_over_objectives(float64):
    with built("c-morl", **SMALL) as method:
        batch = method.learner.evaluate_window(method.collect()).reshape(-1)
        with torch.no_grad():
            for parameter in method.learner.critic.parameters():
                parameter.add_(0.3)
        loss, _ = method.learner.value_loss(batch)
        value = method.learner.critic.value(batch)
        each = []
        for objective in range(2):
            old, target = batch["value"][:, objective], batch["returns"][:, objective]
            near = old + (value[objective] - old).clamp(-0.2, 0.2)
            each.append(0.5 * torch.maximum((value[objective] - target) ** 2, (near - target) ** 2).mean())
        torch.testing.assert_close(loss, sum(each) / 2)


@pytest.mark.parametrize("below", [False, True])
def test_must_4_the_barrier_has_the_gradient_of_its_logarithm(float64, below):
    """Of the log of what is left above the threshold; below 0.002 |G| of its tangent there."""
    with built("c-morl", **SMALL, **{"ppo.discount": 0.9, "ppo.barrier_t": 7.0, "ppo.beta": 0.8}) as method:
        learner = extending(method, objective=1)
        window = learner.evaluate_window(method.collect())
        batch = weigh(window.reshape(-1)[:9])
        shifted(learner)
        mean = learner.reward_normalizer.std[0] * window["returns"].mean((0, 1))[0]
        start = mean * (4.0 if below else 1.0)
        learner.goal.start.copy_(torch.stack([start, start]))
        parameters = list(learner.policy.parameters())

        ratio = (learner.policy.log_prob(batch) - batch["log_prob"]).exp()
        steps = 0.9 ** torch.arange(3)  # episodes of three decisions
        now = mean + steps.sum() * ((ratio - 1) * batch["advantages"][:, 0]).mean()
        slack = now - (start - 0.2 * start.abs())
        floor = STEEPEST * start.abs()
        assert bool(slack < floor) == below
        logarithm = (slack - floor) / floor + floor.log() if below else slack.log()
        expected = torch.autograd.grad(-logarithm / 7.0, parameters, allow_unused=True)

        shared = learner.barrier_state(batch)
        loss = learner.barrier(batch, learner.ratio(batch, learner.policy.log_prob(batch)), shared)
        for one, other in zip(torch.autograd.grad(loss, parameters, allow_unused=True), expected, strict=True):
            torch.testing.assert_close(one, other)
        assert shared["slack"].item() == pytest.approx((slack / (0.2 * start.abs())).item())
        assert shared["pressure"][1] == 0


def test_the_policy_loss_of_an_extension_is_that_of_ppo_and_the_barrier(float64):
    with built("c-morl", **SMALL) as method:
        learner = extending(method)
        batch = weigh(learner.evaluate_window(method.collect()).reshape(-1))
        shifted(learner)
        shared = learner.barrier_state(batch)
        whole, _ = learner.total_loss(batch, shared)
        plain, _ = learner.total_loss(batch)
        barrier = learner.barrier(batch, learner.ratio(batch, learner.policy.log_prob(batch)), shared)
        assert barrier.abs() > 1e-3
        torch.testing.assert_close(whole, plain + barrier)


def test_the_released_barrier(float64):
    with built("c-morl", **SMALL, **{"ppo.barrier": "released", "ppo.barrier_t": 5.0, "ppo.beta": 0.9}) as method:
        learner = extending(method)
        batch = weigh(learner.evaluate_window(method.collect()).reshape(-1))
        shifted(learner, 0.3)
        log_prob = learner.policy.log_prob(batch)
        loss = learner.barrier(batch, learner.ratio(batch, log_prob), learner.barrier_state(batch))
        total, mean = 0.0, batch["returns"].mean(0).tolist()
        for now, before in zip(log_prob.tolist(), batch["log_prob"].tolist()):
            clipped = min(max(np.exp(now - before), 0.8), 1.2)
            total += sum(np.log(max(clipped * g - 0.9 * g, 0.001)) for g in mean)
        assert loss.item() == pytest.approx(-total / (len(batch) * 2) / 5.0)


def test_pieces_of_a_minibatch_add_up_under_the_barrier(float64):
    after = []
    for micro_batch in (None, 5):
        with built("c-morl", **SMALL, micro_batch=micro_batch) as method:
            learner = extending(method)
            window = learner.evaluate_window(method.collect())
            for batch in minibatches(window, 12, 2, torch.Generator().manual_seed(0), False):
                learner.step(batch)
            after.append(torch.cat([parameter.flatten() for parameter in learner.policy.parameters()]))
    torch.testing.assert_close(*after)


def test_a_threshold_is_below_what_it_began_with_also_where_that_is_negative():
    goal = Goal(3)
    goal.set([1.0, 0.0, 0.0], [0.0, 0.1, 0.1])
    goal.see(torch.tensor([5.0, 2.0, -2.0]))
    goal.see(torch.tensor([6.0, 9.0, 9.0]))  # later windows are none of its business
    torch.testing.assert_close(goal.threshold, torch.tensor([5.0, 1.8, -2.2]))
    goal.set([1.0, 0.0, 0.0], [0.0, 0.5, 0.5])
    goal.see(torch.tensor([0.0, 4.0, 4.0]))
    torch.testing.assert_close(goal.threshold, torch.tensor([0.0, 2.0, 2.0]))


def test_reach_is_the_discounted_length_of_an_episode():
    batch = weigh(TensorDict({"terminated": torch.zeros(2, 6, dtype=torch.bool)}, batch_size=[2, 6]))
    batch["truncated"] = batch["terminated"].clone()
    assert reach(batch, 0.5).item() == pytest.approx(2.0)
    batch["truncated"][0, 2], batch["terminated"][1, 3], batch["terminated"][1, 5] = True, True, True
    assert reach(batch, 0.5).item() == pytest.approx(1 + 0.5 + 0.25 + 0.125)
    assert reach(batch, 1.0).item() == 4.0


def test_must_3_every_parent_is_extended_for_every_objective_and_all_on_the_way_are_offered(monkeypatch):
    settings = {"weight_parts": 2, "select": 2, "init_steps": 2 * 8 * 3 * 2, "extension_updates": 3}
    with built("c-morl", **settings, **{"ppo.beta": 0.75}) as method:
        seen, firsts, offers = [], [], []
        offer = method.offer
        monkeypatch.setattr(method, "offer", lambda: offers.append((method.round, method.updates)) or offer())
        for _ in range(6 + 12):
            if method.updates == 0:
                firsts.append({path: leaf.clone() for path, leaf in gather(method.learner.policy).items()})
            if method.round == 1:
                parents = len(method.parents)
            seen.append((method.round, method.run, *method.learner.goal.weights.tolist(), method.learner.guarded))
            if method.updates == 0 and method.round:
                parent = method.parents[method.run // 2].snapshot.blobs[""].tensors()
                assert all(torch.equal(parent[f"policy.{path}"], value) for path, value in firsts[-1].items())
                margin = [0.0 if weight else 0.25 for weight in method.learner.goal.weights.tolist()]
                assert method.learner.goal.margin.tolist() == margin
            batch = method.collect()
            if method.updates == 0:
                assert batch["first"][:, 0].all()  # no episode of the policy before
                assert bool(method.learner.optimizer.torch.state) == bool(method.round)
            method.update(batch)
    assert offers[:3] == [(0, 2)] * 3  # at the end of each
    assert offers[3:6] == [(1, 1), (1, 2), (1, 3)]
    initial = [(0, run, *weights, False) for run, weights in enumerate([(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])]
    assert seen[:6] == [each for each in initial for _ in range(2)]
    assert not all(torch.equal(firsts[0][path], firsts[1][path]) for path in firsts[0])  # fresh weights
    extended = [(1, run, 1.0 - run % 2, float(run % 2), True) for run in range(2 * parents) for _ in range(3)]
    assert seen[6 : 6 + len(extended)] == extended[: len(seen) - 6]


def test_must_5_an_extension_goes_on_with_the_optimizer_and_the_statistics_of_its_parent():
    with built("c-morl", init_steps=48, extension_updates=2) as method:
        while method.round < 1 or method.run < 1 or method.updates:
            advance(method, 10**9, updates=1)
        parent, now = method.parent.snapshot, take(method.learner)
        had, has = (each.blobs[""].tensors() for each in (parent, now))
        paths = [path for path in has if not path.startswith("goal.")]
        assert any("optimizer" in path for path in paths)
        assert any("normalizer" in path for path in paths)
        assert [path for path in paths if not torch.equal(had[path], has[path])] == []


def filled(method, points):
    for point in points:
        method.front.offer(method.learner, point, extended=False)


def test_must_2_those_with_most_room_are_extended_and_none_twice():
    with built("c-morl", select=2, capacity=9) as method:
        filled(method, [[0.0, 9.0], [1.0, 8.0], [2.0, 7.0], [6.0, 3.0], [9.0, 0.0]])
        rounds = []
        for _ in range(4):
            method.choose()
            rounds.append([entry.note["returns"] for entry in method.parents])
    assert rounds == [[[0, 9], [9, 0]], [[6, 3], [2, 7]], [[1, 8]], [[0, 9], [9, 0]]]


def test_random_selection_takes_any():
    with built("c-morl", select=1, capacity=9, selection="random") as method:
        filled(method, [[float(place), 9.0 - place] for place in range(5)])
        chosen = []
        for _ in range(5):
            method.choose()
            chosen.append(method.parents[0].note["returns"][0])
    assert sorted(chosen) == [0, 1, 2, 3, 4]
    assert chosen[:2] != [0, 4]


def test_a_policy_of_an_extension_that_lost_too_much_is_counted(monkeypatch):
    with built("c-morl", **{"ppo.beta": 0.9}) as method:
        filled(method, [[2.0, -1.0]])
        method.choose()
        method.round = 1
        extending(method, objective=0)
        for returns in ([9.0, -1.09], [1.0, -1.0], [9.0, -1.11]):
            monkeypatch.setattr(method, "returns", lambda returns=returns: np.array(returns))
            method.offer()
        assert (method.offered, method.violations) == (3, 1)


def test_returns_are_discounted_means_over_the_trials_and_their_steps_count(monkeypatch):
    with built("c-morl", archive_discount=0.5, episodes=2) as method:
        before = method.ledger.env_steps
        method.returns()
        assert method.ledger.env_steps == before + 2 * 3  # two episodes of three decisions
        rewards = torch.tensor([[[1.0, 0.0], [2.0, 4.0], [4.0, 0.0]], [[0.0, 8.0], [0.0, 0.0], [9.0, 9.0]]])
        mask = torch.tensor([[True, True, True], [True, False, False]])
        batch = TensorDict({"rewards": rewards, "mask": mask}, batch_size=[2, 3])
        monkeypatch.setattr(method.trials, "next", lambda actor: batch)
        assert method.returns().tolist() == [(1 + 1 + 1) / 2, (2 + 8) / 2]


def test_the_evaluation_plays_the_policies_of_the_front():
    with built("c-morl", evaluated=50) as method:
        for _ in steps_of(method, 320):
            pass
        task = plan("c-morl").make_task(1, 2)
        scores = method.evaluate(task, 2)
        points = []
        for index in range(len(method.front)):
            played = evaluate_returns(method.policy.show(index), task, 2)
            points.append([played["return_goal 0"], played["return_goal 1"]])
        assert scores["hypervolume"] == pytest.approx(hypervolume(points, [0.0, 0.0]))
        assert scores["policies"] == len(points) > 1
        (title, figure), *_ = method.figures().items()
        assert title == "Pareto front"
        assert list(zip(figure.x, figure.y)) == [tuple(entry.note["returns"]) for entry in method.front]
        task.close()


def test_a_loaded_policy_takes_a_preference(tmp_path):
    smoke = registry.load("c-morl").smoke
    settings = {"task_options": smoke.task_options, "loggers": (), **smoke.config}
    polopt.train("c-morl", smoke.task, steps=320, out=tmp_path / "run", seed=3, **settings)
    actor = polopt.load(tmp_path / "run")
    obs = np.array([0.2, -0.3], np.float32)
    returns = np.array(actor.returns)
    assert len(returns) > 1
    actions = []
    for weights in ([1.0, 0.0], [0.0, 1.0]):
        best = int((returns @ np.array(weights)).argmax())
        actions.append(actor.prefer(weights).predict(obs))
        assert np.array_equal(actions[-1], actor.show(best).predict(obs))
    assert not np.array_equal(*actions)
    with pytest.raises(UsageError, match=r"^there are 2 objectives, and a preference has a weight for each"):
        actor.prefer([1.0])


def test_nothing_is_preferred_before_there_is_a_policy():
    with built("c-morl") as method, pytest.raises(UsageError, match=r"^no policy has been kept yet"):
        method.policy.prefer([0.5, 0.5])


def test_a_reference_has_a_number_for_each_objective():
    planned = plan("c-morl", reference=(0.0, 0.0, 0.0))
    with pytest.raises(UsageError, match=r"^reference has 3 numbers for the 2 objectives of point/front$"):
        planned.build()
