"""Twins and snapshots of every kind of task: a second set of rows, and rows that are taken back to where they were."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.errors import RunError, UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.data import Rollouts
from polopt.tasks import make_task
from polopt.tasks.agents import AgentRows
from polopt.tasks.base import Task
from polopt.tasks.gym import leaves
from tests.data.actors import Random

from .duo import Duo
from .envs import Costly, Drifting, Unseeded
from .worlds import Errands, Toll

Make = Callable[[int], Task]
KINDS: dict[str, Make] = {
    "in process": lambda num: make_task("CartPole-v1", num, 3),
    "in workers": lambda num: make_task("Pendulum-v1", num, 3, workers=2),
    "with a mask": lambda num: make_task("masked", num, 3, horizon=40),
    "with facts": lambda num: make_task(Costly, num, 3, facts=("cost",), length=40),
    "a world": lambda num: make_task(Toll, num, 3),
    "weighted": lambda num: make_task(Errands, num, 3, objective_weights=(1.0, 2.0), horizon=40),
    "a team as rows": lambda num: AgentRows(make_task(Duo, num // 2, 3)),
}
REPLAYED = [name for name in KINDS if name != "a team as rows"]


def action(task: Task, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mask = task.obs.get("action_mask", None) if isinstance(task.obs, TensorDict) else None
    if mask is not None:
        return torch.multinomial(mask.float(), 1, generator=generator).squeeze(1)
    if task.spec.discrete:
        return torch.randint(task.spec.num_actions, (task.num,), generator=generator)
    return 2 * torch.rand(task.num, task.spec.action_dim, generator=generator) - 1


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for (_, a), (_, b) in zip(leaves(one), leaves(other), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_twin_is_the_same_task_with_starts_of_its_own(kind: str) -> None:
    task = KINDS[kind](4)
    twin, second = task.twin(6), task.twin(6)
    assert (task.num, twin.num) == (4, 6)
    assert twin.spec == task.spec
    assert task.obs is None
    before = task.reset() if isinstance(task.obs, Tensor) else task.reset().clone()
    twin.reset()
    second.reset()
    twin.step({"action": action(twin, 0)})
    assert same(task.obs, before)  # the two do not touch each other
    alike = KINDS[kind](4).twin(6)
    alike.reset()
    alike.step({"action": action(alike, 0)})
    assert same(alike.obs, twin.obs)  # the first twin is the same in every run
    if kind != "weighted":  # four different starts are too few to tell
        task.reset()
        assert not same(second.reset(), twin.reset())
        assert not same(task.obs[:4], twin.obs[:4])
    for each in (task, twin, second, alike):
        each.close()


def test_sources_on_twins_do_not_disturb_each_other() -> None:
    """What a source collects is the same with and without another one beside it, on a twin."""
    alone, beside = make_task("CartPole-v1", 2, 3), make_task("CartPole-v1", 2, 3)
    first, second = Rollouts(alone, 20), Rollouts(beside, 20)
    other = Rollouts(beside.twin(3), 20)
    actor = Random(alone.spec)
    for seed in range(3):
        windows = []
        for source in (first, second):
            torch.manual_seed(seed)
            windows.append(source.next(actor))
            other.next(actor)
        assert torch.equal(windows[0]["obs"], windows[1]["obs"])


@pytest.mark.parametrize("kind", REPLAYED)
def test_rows_are_taken_back_to_where_they_were(kind: str) -> None:
    """Three steps in, the first row is put into the last row and into a twin; all go on alike, bitwise."""
    task = KINDS[kind](3)
    task.reset()
    for seed in range(3):
        task.step({"action": action(task, seed)})
    values, there = task.snapshot(), task.obs.clone()
    for seed in range(3, 5):
        task.step({"action": action(task, seed)})
    last = torch.tensor([False, False, True])
    kept = task.obs.clone()
    obs = task.restore([values[0]], last)
    assert same(obs[2:], there[:1])
    assert same(obs[:2], kept[:2])
    assert task.first.tolist() == [False] * 3
    twin = task.twin(2)
    with pytest.raises((RunError, ValueError)):
        twin.restore([values[0]])
    assert same(twin.restore([values[0], values[0]]), there[torch.tensor([0, 0])])
    task.restore(values)
    assert same(task.obs, there)
    for seed in (7, 8):
        move = action(task, seed)
        one, two = task.step({"action": move}), twin.step({"action": move[:1].repeat(2, *[1] * (move.dim() - 1))})
        assert same(one[0][:1], two[0][:1])
        assert same(one[0][:1], two[0][1:])
        assert torch.equal(one[1][:1].expand(2), two[1])
    # a checkpoint after it holds where the rows are
    saved = gather(task)
    again = KINDS[kind](3)
    restore(again, saved)
    assert same(again.obs, task.obs)
    move = action(task, 9)
    assert same(task.step({"action": move})[0], again.step({"action": move})[0])
    for each in (task, twin, again):
        each.close()


def test_a_start_and_an_end_are_taken_back_as_they_were() -> None:
    task = make_task(Costly, 2, 3, facts=("cost",), length=2)
    start = task.reset().clone()
    begun = task.snapshot()
    task.step({"action": torch.zeros(2, dtype=torch.int64)})
    task.step({"action": torch.zeros(2, dtype=torch.int64)})
    over = task.snapshot()
    assert same(task.restore([begun[1]], torch.tensor([True, False]))[:1], start[1:])
    assert task.first.tolist() == [True, False]
    with pytest.raises(RunError, match="row 1 of Costly has ended"):
        task.step({"action": torch.zeros(2, dtype=torch.int64)})
    task.restore([over[0]], torch.tensor([True, False]))
    with pytest.raises(RunError, match="row 0 of Costly has ended"):
        task.step({"action": torch.zeros(2, dtype=torch.int64)})


def test_teams_are_taken_back_whole() -> None:
    rows = AgentRows(make_task(Duo, 2, 3))
    rows.reset()
    values, there = rows.snapshot(), rows.obs.clone()
    rows.step({"action": torch.tensor([1, 0, 1, 1])})
    obs = rows.restore(values[:2], torch.tensor([False, False, True, True]))
    assert torch.equal(obs[2:], there[:2])
    with pytest.raises(UsageError, match="Duo has teams of 2, which 3 rows do not make"):
        rows.twin(3)


def test_a_tabular_row_goes_back_to_its_state_and_draws_anew() -> None:
    task = make_task("random-mdp", 3, 1)
    task.reset()
    task.step({"action": torch.tensor([0, 1, 2])})
    values, there = task.snapshot(), task.obs.clone()
    task.step({"action": torch.tensor([0, 1, 2])})
    assert same(task.restore(values), there)
    assert task.obs["step"].tolist() == [1, 1, 1]
    assert not task.first.any()
    twin = task.twin(400)
    twin.reset()
    assert same(twin.restore(values[:1] * 400)[:1], there[:1])
    twin.step({"action": torch.zeros(400, dtype=torch.int64)})
    mdp = task.spec.info["mdp"]
    found = torch.bincount(twin.obs["state"], minlength=mdp.states) / 400
    expected = mdp.transition[1, there["state"][0], 0]
    assert (found - expected).abs().max() < 0.1  # 400 draws: four deviations
    assert task.twin(3).obs is None


def test_conversations_are_taken_back() -> None:
    task = make_task("guess", 2, 1)
    twin = task.twin(2)
    task.reset()
    twin.reset()
    assert set(task.index.tolist()).isdisjoint(twin.index.tolist())
    assert [p.prompt for p in task.problems([5, 6])] == [p.prompt for p in twin.problems([5, 6])]  # the same problems
    task.step({"action": ["7", "x"]})
    values, there = task.snapshot(), list(task.obs)
    lines = [list(lines) for lines in task.transcripts]
    task.step({"action": ["8", "9"]})
    twin.restore([values[0], values[0]])
    assert twin.obs == [there[0]] * 2
    assert twin.transcripts == [lines[0]] * 2
    assert not twin.first.any()
    task.restore(values)
    assert (task.obs, task.transcripts) == (there, lines)
    one, two = task.step({"action": ["3", "3"]}), twin.step({"action": ["3", "4"]})
    assert (one[0][0], one[1][0], one[2][0]) == (two[0][0], two[1][0], two[2][0])
    twin.num = 3
    with pytest.raises(RunError, match="guess must be reset as a whole first"):
        twin.restore([values[0]], torch.tensor([True, False, False]))
    assert twin.restore([values[0]] * 3) == [there[0]] * 3


class Bare(Task):
    def __init__(self) -> None:
        self.spec, self.num = Spec(spaces.Discrete(2), spaces.Discrete(2), "bare"), 1


def test_what_cannot_says_so_in_one_sentence() -> None:
    bare = Bare()
    with pytest.raises(UsageError, match="bare has no second set of rows, which is needed here"):
        bare.twin(2)
    for call in (bare.snapshot, lambda: bare.restore([])):
        with pytest.raises(UsageError, match="bare cannot take a row back to where it was"):
            call()
    unseeded = make_task(Unseeded, 1)
    unseeded.reset()
    with pytest.raises(UsageError, match="Unseeded cannot take a row back to where it was: it does not repeat itself"):
        unseeded.snapshot()
    with pytest.raises(RunError, match="CartPole-v1 must be reset before it can be taken back"):
        make_task("CartPole-v1").snapshot()
    drifting = make_task(Drifting, 1, length=40)  # looks repeatable for a dozen steps
    drifting.reset()
    for _ in range(20):
        drifting.step({"action": torch.zeros(1, dtype=torch.int64)})
    values = drifting.snapshot()
    assert isinstance(values[0]["actions"], np.ndarray)
    with pytest.raises(RunError, match=r"Drifting did not replay to where it was \(row 0, step 20\)"):
        drifting.restore(values)
