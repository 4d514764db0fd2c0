"""Rows that stay on their device: the windows are those of rows that are looked at, and nothing is looked at."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from polopt.core.errors import RunError
from polopt.core.state import gather, restore
from polopt.data import Rollouts
from polopt.tasks import make_task
from polopt.tasks.grid import Grid
from polopt.tasks.point import Point
from polopt.training import api
from tests.data.actors import Random
from tests.data.test_rollouts import equal


class ResidentPoint(Point):
    """A point as on an accelerator."""

    resident = True


class ResidentGrid(Grid):
    """A grid as on an accelerator."""

    resident = True


PAIRS = [
    ("point/regulation", ResidentPoint, {}),
    ("point/lava", ResidentPoint, {}),
    ("grid/four-rooms", ResidentGrid, {"horizon": 9}),
    ("grid/5x5", ResidentGrid, {"horizon": 7}),
]


class Looks(TorchDispatchMode):
    """Counts what makes the host wait for an accelerator: numbers and shapes that depend on values, and copies."""

    WAIT = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype == torch.bool for each in args[1]
        )
        moves = name == "_to_copy" and "device" in (kwargs or {})
        self.count += masks or moves or any(name.startswith(each) for each in self.WAIT)
        return func(*args, **(kwargs or {}))


def looked(task: Any, steps: int) -> int:
    source = Rollouts(task, steps)
    actor = api.plan("ppo", "point/regulation" if task.spec.discrete is False else "grid/four-rooms").build().policy
    source.next(actor)
    with Looks() as looks:
        source.next(actor)
    return looks.count


@pytest.mark.parametrize(("name", "resident", "options"), PAIRS, ids=[pair[0] for pair in PAIRS])
@pytest.mark.parametrize("stagger", [0, 5])
def test_windows_are_those_of_rows_that_are_looked_at(name: str, resident: Any, options: Any, stagger: int) -> None:
    tasks = make_task(name, 7, seed=3, **options), resident.make(name, 7, 3, False, **options)
    sources = [Rollouts(task, 11) for task in tasks]
    for source in sources:
        source.stagger = stagger
    actor = Random(tasks[0].spec)
    seen: list[list[Any]] = [[], []]
    for found, source in zip(seen, sources):
        torch.manual_seed(4)
        for _ in range(5):
            found += [source.next(actor), source.episodes(), source.ledger.episodes, source.ledger.env_steps]
    assert sum(batch["first"].sum() for batch in seen[0][::4]) >= 14
    for one, other in zip(*seen, strict=True):
        assert equal(one, other) if hasattr(one, "keys") else one == other


def test_nothing_is_looked_at_while_steps_are_made() -> None:
    once = looked(ResidentPoint(8, **Point.named["point/regulation"]), 4)
    assert looked(ResidentPoint(8, **Point.named["point/regulation"]), 40) == once <= 2
    assert looked(make_task("point/regulation", 8), 40) > 40


def test_rows_go_on_as_they_were_after_a_look_and_a_restore() -> None:
    def play(kinds: list[Any]) -> list[Any]:
        torch.manual_seed(1)
        windows: list[Any] = []
        saved: Any = None
        for kind in kinds:
            source = Rollouts(kind.make("point/regulation", 5, 2, False), 6)
            if saved is not None:
                restore(source, saved)
            windows.append(source.next(Random(source.task.spec)))
            saved = gather(source)
        return windows

    one, other = play([Point] * 6), play([Point, ResidentPoint, ResidentPoint, Point, Point, ResidentPoint])
    assert all(equal(*pair) for pair in zip(one, other, strict=True))


def test_flow_refuses_rows_that_have_not_begun_or_have_ended() -> None:
    task = ResidentPoint.make("point/goals-once", 2, 0, False)
    still = {"action": torch.zeros(2, 2)}
    with pytest.raises(RunError, match="must be reset before its first step"):
        task.flow(still)
    task.reset()
    task.step(still)
    with pytest.raises(RunError, match=r"row 0 of .* has ended"):
        task.flow(still)
    task.reset()
    assert task.flow(still)[2].all()
    assert task.first.all()
    task.step(still)  # they have begun anew


def test_worlds_stay_on_an_accelerator_unless_starts_are_drawn_one_by_one() -> None:
    world = make_task("point/regulation", 2)
    assert not world.resident
    for task, stays in ((world, True), (make_task("brownian", 2), False), (make_task("CartPole-v1"), False)):
        task.device = torch.device("cuda")
        assert task.resident == stays


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_not_waited_for_while_steps_are_made(monkeypatch: Any) -> None:
    method = api.plan("scaled-ppo", "point/regulation", task_options={"device": "cuda"}, envs=4096).build()
    method.to("cuda")
    batch = method.collect()
    assert {value.device.type for value in batch.values()} == {"cuda"}
    settle = Rollouts._settle

    def settled(source: Rollouts) -> None:
        torch.cuda.set_sync_debug_mode("default")
        settle(source)

    monkeypatch.setattr(Rollouts, "_settle", settled)
    torch.cuda.set_sync_debug_mode("error")
    try:
        method.collect()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert method.update(batch)["outer_kl"] > 0
