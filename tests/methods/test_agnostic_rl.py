"""POPLER, trajectory trees and importance sampling: estimates against loops over their definitions, exact values, and
each rule of discovery by hand."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from tensordict import TensorDict
from torch.testing import assert_close

from polopt.core.errors import UsageError
from polopt.data.episodes import Episodes
from polopt.methods.theory.agnostic_rl import START, Importance, Popler, Processes, Tree, agrees, first_petal
from polopt.policies.listed import probabilities, sequences, tons
from polopt.policies.tabular import TabularMixture
from polopt.tasks import make_task
from polopt.tasks.lock import Layers
from polopt.tasks.tabular import TabularMDP, TabularTask, random_mdp
from polopt.training import api
from tests.guards.harness import built, plan

MUST = 5
SMALL = {"states": 3, "horizon": 4, "layer": 1}


@pytest.fixture(autouse=True)
def _double(float64):
    torch.manual_seed(0)


class Even(TabularTask):
    """Three steps and three states: every action leads to one of two states, each as likely. Rewards are random."""

    def __init__(self, num=1, seed=0, evaluation=False, name="even"):
        generator = torch.Generator().manual_seed(4)
        transition = torch.zeros(3, 3, 2, 3)
        for place in product(range(3), range(3), range(2)):
            transition[place][torch.randperm(3, generator=generator)[:2]] = 0.5
        super().__init__(
            TabularMDP(transition, torch.rand(3, 3, 2, generator=generator), 3), num, seed, evaluation, name
        )

    @classmethod
    def options(cls, name):
        return set()


def rows(*episodes):
    """A batch of whole episodes, given as lists of (state, action, reward), each its own start; padded."""
    length = max(map(len, episodes))
    mask = torch.tensor([[t < len(episode) for t in range(length)] for episode in episodes])
    filled = torch.tensor([[*map(list, episode), *[[0, 0, 0]] * (length - len(episode))] for episode in episodes])
    state, action, reward = filled.double().unbind(-1)
    step = torch.arange(length) * mask
    batch = {"obs": TensorDict({"state": state.long(), "step": step}, mask.shape), "action": action.long()}
    group = torch.arange(len(episodes)).unsqueeze(1).expand(mask.shape)
    return TensorDict({**batch, "reward": reward, "mask": mask, "group": group}, mask.shape)


def everything(mdp, core, begin=0, state=None):
    """Each episode from `state` at step `begin` on as often as it is likely: all policies of a core, all luck. What is
    before has the state and action 0."""
    found = []
    for table in core:
        ways = [([(0, 0, 0.0)] * begin, mdp.start if state is None else state)]
        for step in range(begin, mdp.horizon):
            longer = []
            for way, here in ways:
                action = int(table[step, here])
                decision = (here, action, float(mdp.reward[step, here, action]))
                after = mdp.transition[step, here, action].nonzero().flatten().tolist()
                longer += [([*way, decision], there) for there in after]
            ways = longer
        found += [way for way, _ in ways]
    return rows(*found)


def exact(mdp, policies):
    tables = [probabilities(policies.table(which), mdp.actions) for which in range(len(policies))]
    return torch.stack([mdp.value(table)[0, mdp.start] for table in tables])


def whole(size=2):
    """Even, its policies, and processes that hold all data sets without noise."""
    task = Even()
    policies = tons(task.spec, size)
    processes = Processes(policies, policies.core(), Popler(), 2)
    processes.add(everything(task.mdp, processes.core))
    for petal in range(9):
        step, state = divmod(petal, 3)
        processes.add(everything(task.mdp, processes.core, step, state), petal)
    return task.mdp, policies, processes


def sampled(size=2, episodes=30):
    """Random data sets of s_T and of some petals, and processes with them."""
    task = TabularTask(random_mdp(states=3, actions=2, horizon=4, reward_rate=1.0, concentration=1.0), episodes, 1)
    policies = tons(task.spec, size)
    core = policies.core()
    actor = TabularMixture(task.spec, len(core))
    actor.set(probabilities(core, 2), torch.full((len(core),), 1 / len(core)))
    processes = Processes(policies, core, Popler(), 2)
    data = {START: Episodes(task, episodes).next(actor)}
    for petal in (1, 4, 5, 8, 10):
        batch = Episodes(task, episodes).next(actor)
        data[petal] = batch[(processes.numbers(batch) == petal).any(1)]
    for petal, batch in data.items():
        processes.add(batch, petal)
    return policies, core, processes, data


# Estimates


def columns(batch):
    return [part.tolist() for part in (batch["obs", "state"], batch["action"], batch["reward"])]


def reference(policies, core, data, which, *, segment=True):
    """V^ of one policy by the definition of its reward process, in loops, and how surely it reaches each petal.

    `segment` False divides by the number of core policies that agree with the whole trajectory.
    """
    table, states = policies.table(which).tolist(), policies.centres.shape[-1]
    horizon = policies.centres.shape[1]
    petals = [number for number in policies.states[which].tolist() if number < horizon * states]
    core = core.tolist()
    data = {petal: [list(zip(*row)) for row in zip(*columns(batch))] for petal, batch in data.items()}

    def pieces(petal):
        begin = 0 if petal == START else petal // states
        for way in data[petal]:
            after = [step for step, (state, *_) in enumerate(way) if step * states + state in petals]
            after = [step for step in after if step > (petal // states if petal != START else -1)]
            stop = after[0] if after else horizon
            if all(table[step][way[step][0]] == way[step][1] for step in range(begin, stop)):
                steps = range(begin, stop if segment else horizon)
                count = sum(all(one[step][way[step][0]] == way[step][1] for step in steps) for one in core)
                end = stop * states + way[stop][0] if after else None
                yield end, len(core) / count if count else 0.0, sum(way[step][2] for step in range(begin, stop))

    def value(petal):
        if petal not in data:
            return 0.0
        parts = [weight * (gain + (0 if end is None else value(end))) for end, weight, gain in pieces(petal)]
        return sum(parts) / len(data[petal])

    def reach(goal, petal=START):
        if petal == goal:
            return 1.0
        if petal not in data:
            return 0.0
        return sum(w * reach(goal, end) for end, w, _ in pieces(petal) if end is not None) / len(data[petal])

    return value(START), [reach(petal) for petal in petals]


@pytest.mark.parametrize("size", [1, 2])
def test_must_1_shared_data_evaluate_all_policies_and_weights_divide_by_those_that_agree_in_the_segment(size):
    policies, core, processes, data = sampled(size)
    value, reach = processes.solve()
    others = 0
    some = range(0, len(policies), 1 if size == 1 else 6)
    for which in some:
        expected, reached = reference(policies, core, data, which)
        assert value[which].item() == pytest.approx(expected)
        assert reach[which, : len(reached)].tolist() == pytest.approx(reached)
        others += abs(reference(policies, core, data, which, segment=False)[0] - expected) > 0.01
    assert others > len(some) / 3  # the whole trajectory would be another divisor


def test_must_1_estimates_are_unbiased():
    """With every episode as often as it is likely, they are the exact values: of 46 policies with up to two petals."""
    mdp, policies, processes = whole()
    value, reach = processes.solve()
    assert_close(value, exact(mdp, policies))
    for which in range(len(policies)):
        occupancy = mdp.occupancy(probabilities(policies.table(which), 2)).flatten()
        real = policies.states[which] < 9
        assert_close(reach[which][real], occupancy[policies.states[which][real]])


def test_must_1_a_few_weights_by_hand():
    """H = 2, S = 2, singletons: K = 3. `core` is 00, 10, 01 (the action of each step)."""
    spec = make_task("layers", 1, states=2, horizon=2, layer=0).spec
    policies = tons(spec)  # 0: none; 1, 2: at step 0 in state 0, 1; 3, 4: at step 1
    processes = Processes(policies, policies.core(), Popler(), 2)
    processes.add(rows([(0, 0, 1.0), (1, 0, 2.0)], [(1, 0, 4.0), (0, 1, 8.0)], [(0, 1, 16.0), (0, 0, 32.0)]))
    value, reach = processes.solve()
    # 00: all three play the first 0, and one plays 00 whole: its weight is 3; no other row is 00
    assert value.tolist() == pytest.approx([3 * 3 / 3, 0, 3 * 3 / 3, 1.5 * 4 / 3 + 3 * 3 / 3, 1.5 * 1 / 3])
    # singletons at step 0 end at once at their petal (weight 1); at step 1 after a 0, with weight 3 / 2
    assert reach[1:, 0].tolist() == pytest.approx([2 / 3, 1 / 3, 1.5 / 3, 1.5 / 3])
    processes.add(rows([(0, 1, 16.0), (0, 0, 32.0)], [(0, 0, 1.0), (1, 0, 2.0)]), 0)
    value, _ = processes.solve()
    assert value[1].item() == pytest.approx(2 / 3 * (3 * 48 / 2))  # one of three begins with 1


def test_must_2_no_other_petal_in_between():
    """A way through two petals of a policy is a step to the first and one from it, and never one to the second."""
    spec = make_task("layers", 1, states=2, horizon=3, layer=0).spec
    policies = tons(spec, 2)
    which = policies.states.tolist().index([0, 3])  # state 0 at step 0, state 1 at step 1
    one = policies.states.tolist().index([3, 6])  # only the latter
    processes = Processes(policies, policies.core(), Popler(), 2)
    way = [(0, 0, 1.0), (1, 0, 2.0), (0, 0, 4.0)]
    processes.add(rows(way))
    assert processes.moves[which, 0].tolist() == [1, 0]
    assert processes.moves[one, 0].tolist() == pytest.approx([4 / 3, 0])  # 3 of 4 begin with 0
    assert processes.gains[one, 0].item() == pytest.approx(4 / 3)
    processes.add(rows([(0, 1, 1.0), (1, 0, 2.0), (0, 0, 4.0)]), 0)
    assert processes.moves[which, 1].tolist() == [0, 4]
    assert processes.gains[which, 1].item() == 4
    assert processes.counts[which].tolist() == [1, 1, 0]
    assert not processes.moves[one, 1:].any()


def test_must_2_petals_are_discovered_that_are_reached_surely_enough():
    """The surest first, each with the policy that reaches it; then all data sets in turn."""
    with built("agnostic-rl", **{"size": 2, "estimator.eps": 1.2}) as method:  # from 1.2 / (6 2) = 0.1 on
        petals = method.processes.petals
        reach = torch.zeros_like(petals, dtype=torch.float64)
        reach[5, 0], reach[7, 0], reach[len(reach) - 1, 1] = 0.2, 0.09, 0.5
        pair = petals[len(reach) - 1].tolist()
        method.discover(reach)
        assert method.targets == [[START, 0], [pair[1], len(reach) - 1]]
        assert (method.turn, method.finished) == (1, False)
        method.discover(reach)
        assert method.targets[2] == [int(petals[5, 0]), 5]
        assert (method.turn, method.finished) == (2, False)
        for turn in (0, 1, 2, 0):
            method.discover(reach)
            assert (len(method.targets), method.turn, method.finished) == (3, turn, True)
        reach[7, 0] = 0.1
        method.discover(reach)  # more data may still show one
        assert method.targets[3] == [int(petals[7, 0]), 7]


def test_must_2_data_sets_are_explored_for_and_hold_who_came():
    with built("agnostic-rl", "layers", episodes=400, envs=100) as method:
        method.targets, method.turn = [[START, 0], [2 * 500 + 3, 2 * 500 + 4]], 1
        method.aim()
        core = method.policies.core()
        own = method.policies.table(2 * 500 + 4)
        tables = method.explorer.table.argmax(-1)
        assert (tables[:, :2] == own[:2]).all()
        assert torch.equal(tables[:, 2:], core[:, 2:])
        batch = method.collect()
        assert batch["component"].float().mean().item() == pytest.approx((len(core) - 1) / 2, abs=0.6)
        batch["obs", "state"][:100, 2] = 3
        came = int((batch["obs", "state"][:, 2] == 3).sum())
        metrics = method.update(batch)
        assert metrics["reached"].item() == pytest.approx(came / 400)
        counts = method.processes.counts
        assert counts[2 * 500 + 4].tolist() == [0, came]
        assert counts.sum() == came


def test_must_3_the_comparator_is_the_best_of_the_class():
    """Where no policy of the class is nearly optimal, the one that is taken is nearly the best of them."""
    world = {"states": 4, "actions": 2, "horizon": 3, "mdp_seed": 3, "reward_rate": 1.0}
    settings = {"episodes": 1500, "envs": 500, "estimator.eps": 0.2}
    method = api.plan("agnostic-rl", "random-mdp", task_options=world, seed=1, loggers=(), **settings).build()
    mdp = method.spec.info["mdp"]
    values = exact(mdp, method.policies)
    assert float(mdp.optimal()[1][0, mdp.start]) > values.max() + 0.1
    while not method.finished:
        metrics = method.update(method.collect())
    taken = method.policy.value(mdp)
    assert values.max() - 0.03 <= taken <= values.max() + 1e-9
    assert float(values.max() - values.min()) > 0.2
    assert metrics["estimate"].item() == pytest.approx(taken, abs=0.1)


def test_must_4_resets_are_baselines_and_mistaken_where_popler_and_trees_are_not():
    """In the fork of tests/policies/test_resets.py, where the rules of PSDP and CPI are tested."""
    from polopt.policies.resets import cpi, psdp
    from tests.policies.test_resets import ALWAYS, RESET, Fork, start_value

    rare = RESET.clone()
    rare[1] = torch.tensor([0.0, 0.8, 0.2])
    for estimator in (Popler(), Tree(), Importance()):
        method = api.plan(
            "agnostic-rl", Fork, tables=always, estimator=estimator, episodes=40, envs=20, loggers=(), seed=1
        ).build()
        mdp = method.spec.info["mdp"]
        while True:
            method.update(method.collect())
            if method.finished:
                break
        assert method.policy.value(mdp) == pytest.approx(0.6)
    assert start_value(mdp, psdp(mdp, ALWAYS, RESET)) == 0
    assert start_value(mdp, cpi(mdp, ALWAYS, rare)[0]) == 0


def always(spec):
    from tests.policies.test_resets import ALWAYS

    return ALWAYS


def test_must_5_work_is_shared_by_policies_whose_petals_were_not_visited():
    """To the bit, and so the sums of 40,001 policies take as many pairs as there are decisions at most."""
    policies = tons(make_task("layers", 1, states=5000).spec)
    processes = Processes(policies, policies.core(), Popler(), 2)
    task = make_task("layers", 50, states=5000)
    batch = Episodes(task, 50).next(TabularMixture(task.spec))
    which, _ = policies.passing(processes.numbers(batch))
    assert len(which) == 50 * 8
    processes.add(batch)
    value, _ = processes.solve()
    seen = torch.zeros(len(policies), dtype=torch.bool)
    seen[which] = True
    assert (value[~seen] == value[0]).all()
    assert (~seen).sum() > 39_000


# Limits


class Whole(Popler):
    """POPLER without petals."""

    petals = False


def test_with_all_sequences_as_core_and_no_petals_popler_is_importance_sampling():
    task = Even(200)
    policies = tons(task.spec, 2)
    batch = Episodes(task, 200).next(TabularMixture(task.spec))  # uniform actions
    found = []
    for estimator, core in ((Whole(), sequences(task.spec)), (Importance(), policies.core())):
        processes = Processes(policies, core, estimator, 2)
        processes.add(batch)
        found.append(processes.solve()[0])
        assert processes.moves.numel() == 0
    assert_close(found[0], found[1])
    for which in (0, 5, 40):
        own = policies.act(torch.tensor(which), torch.arange(3), batch["obs", "state"])
        expected = 2**3 / 200 * (batch["reward"].sum(1) * (own == batch["action"]).all(1)).sum()
        assert found[1][which].item() == pytest.approx(expected.item())


def test_importance_sampling_is_unbiased():
    mdp, policies, _ = whole()
    processes = Processes(policies, policies.core(), Importance(), 2)
    processes.add(everything(mdp, sequences(Even().spec)))
    assert_close(processes.solve()[0], exact(mdp, policies))


def test_a_list_with_itself_as_core_has_no_petals_and_is_evaluated_at_once():
    with built("agnostic-rl", Even, tables=sequences, centres=8, episodes=50) as method:
        assert method.processes.petals.shape == (8, 0)
        method.update(method.collect())
        assert method.finished
        assert len(method.targets) == 1


def test_a_tree_is_the_mean_return_of_what_every_policy_does_from_the_same_starts():
    with built("agnostic-rl", estimator=Tree(), episodes=30, envs=7) as method:
        method.update(method.collect())
        value, _ = method.processes.solve()
        actor = TabularMixture(method.spec)
        for which in (0, 4, 9):
            actor.set(method.table(which).unsqueeze(0), torch.ones(1))
            batch = Episodes(Layers(30, method.task.seed, **SMALL), starts=range(30)).next(actor)
            assert value[which].item() == pytest.approx(batch["reward"].sum(1).mean().item())


# Pieces, and ends


def test_where_a_piece_ends():
    numbers = torch.tensor([[0, 4, 7], [1, 4, 6], [0, 3, -1]])
    states = torch.tensor([[0, 7, 9], [0, 4, 7], [4, 7, 9]])  # 9 fills up
    stop, slot = first_petal(states, states // 3, numbers, -1)
    assert stop.tolist() == [0, 1, 3]
    assert slot.tolist() == [0, 1, 3]
    stop, slot = first_petal(states, states // 3, numbers, 1)
    assert stop.tolist() == [2, 3, 3]
    assert slot.tolist() == [1, 3, 3]
    stop, slot = first_petal(states[:, :0], states[:, :0], numbers, -1)
    assert stop.tolist() == [3, 3, 3]
    assert slot.tolist() == [0, 0, 0]
    match = torch.tensor([[False, True, False], [True, True, True], [True, False, True]])
    assert agrees(match, 1, torch.tensor([2, 3, 1])).tolist() == [True, True, True]
    assert agrees(match, 0, torch.tensor([2, 3, 2])).tolist() == [False, True, False]


@pytest.mark.parametrize("estimator", [Popler(), Importance()])
def test_an_episode_that_ends_early_has_no_actions_behind_its_end(estimator):
    spec = make_task("layers", 1, states=2, horizon=3, layer=0).spec
    policies = tons(spec)
    processes = Processes(policies, policies.core(), estimator, 2)
    processes.add(rows([(1, 0, 5.0)], [(1, 1, 7.0), (0, 1, 1.0), (0, 1, 1.0)]))
    weight = 4 / 3 if estimator.petals else 2
    value, _ = processes.solve()
    assert value[0].item() == pytest.approx(weight * 5 / 2)
    assert value[3:].tolist() == pytest.approx([weight * 5 / 2] * 4)  # petals at later steps were not met


@pytest.mark.parametrize("estimator", [Popler(), Importance()])
def test_what_a_policy_would_do_behind_an_end_does_not_count(estimator):
    spec = make_task("layers", 1, states=2, horizon=3, layer=0).spec
    long = [(0, 1, 0.0), (1, 1, 0.0), (1, 1, 0.0)]
    policies = tons(spec, 2)
    which = policies.states.tolist().index([1, 2])  # state 1 at step 0, and state 0 at step 1, as padding has it
    processes = Processes(policies, policies.core(), estimator, 2)
    batch = rows([(1, 1, 7.0)], long)
    processes.add(batch)
    if estimator.petals:
        processes.add(batch[:1], 1)
    weight = 4 / 2 if estimator.petals else 2 / 2  # of the four in the core one begins with 1; every second episode
    assert processes.solve()[0][which].item() == pytest.approx(weight * 7)
    policies = tons(spec, 0, usual=1)
    processes = Processes(policies, policies.core(), estimator, 2)
    processes.add(rows([(1, 1, 7.0)], long))
    assert processes.solve()[0].item() == pytest.approx(7 / 2 * (1 if estimator.petals else 2))


def test_data_add_up():
    """Twice the data set in halves is the data set."""
    policies, core, processes, data = sampled(1)
    halves = Processes(policies, core, Popler(), 2)
    for petal, batch in data.items():
        for part in (batch[: len(batch) // 3], batch[len(batch) // 3 :]):
            halves.add(part, petal)
    for one, other in zip(halves.solve(), processes.solve()):
        assert_close(one, other)


# The method


def test_the_policy_is_the_first_of_the_best():
    with built("agnostic-rl") as method:
        batch = rows(*[[(0, 0, 0.0), (1, 0, 0.0), (2, 0, 0.0), (0, 0, 1.0)]] * 3)
        metrics = method.update(batch)
        assert torch.equal(method.policy.table.argmax(-1)[0], torch.zeros(4, 3).long())
        assert metrics["estimate"].item() == pytest.approx(5)  # one of five core policies does that
        assert metrics["reached"].item() == 1


def test_popler_finds_the_special_state_among_4000():
    planned = api.plan("agnostic-rl", "layers", seed=3, envs=500, loggers=())
    method = planned.build()
    while not method.finished:
        method.update(method.collect())
    assert method.ledger.episodes <= 3000
    special = 3 * 500 + method.task.special
    assert [special] in [target[:1] for target in method.targets]
    assert method.policy.table.argmax(-1).flatten().nonzero().flatten().tolist() == [special]
    assert method.task.value(method.policy.table[0, ..., 1]).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"tables": sequences, "size": 2}, "size has no effect on policies of your own"),
        ({"centres": 2}, "centres has no effect without policies of your own: --tables module:function"),
        ({"micro_batch": 2}, "micro_batch has no effect where no gradient is taken"),
        ({"estimator": "importance", "estimator.eps": 0.1}, "estimator.eps belongs to estimator=popler, but estimator"),
        ({"usual": 5}, "the usual action 5 is none of the 2 actions of layers"),
    ],
)
def test_what_has_no_effect_is_refused(settings, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        plan("agnostic-rl", **settings).build()


@pytest.mark.parametrize("preset", ["importance-sampling", "trajectory-tree"])
def test_presets(preset):
    method = api.plan(
        "agnostic-rl", "layers", preset=preset, task_options=SMALL, episodes=5, envs=5, loggers=()
    ).build()
    method.update(method.collect())
    assert method.finished
    assert method.ledger.episodes == 5


def two(spec):
    """Policies of one's own: always 0, always 1."""
    tables = torch.zeros(2, spec.info["mdp"].horizon, spec.info["mdp"].states, dtype=torch.int64)
    tables[1] = 1
    return tables


def test_policies_of_ones_own_are_given_again(tmp_path):
    settings = {"tables": two, "episodes": 10, "envs": 10, "steps": 100, "loggers": (), "out": tmp_path / "run"}
    run = api.train("agnostic-rl", "random-mdp", **settings)
    again = rf"tables was {two.__module__}:two, .*: say it again with --tables {two.__module__}:two"
    with pytest.raises(UsageError, match=again):
        api.evaluate(run.folder, episodes=10)
    assert api.evaluate(run.folder, episodes=1000, tables=two)["return"] == pytest.approx(
        run.final["eval/return"], abs=0.15
    )
    assert api.resume(run.folder, extend=200, tables=two).final["env_steps"] >= 200
