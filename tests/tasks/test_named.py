from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks import make_task
from polopt.tasks.base import Task
from polopt.tasks.gym import GymTask
from polopt.tasks.named import BEGINS, ENDS, NAMED, own_class, place
from polopt.tasks.tabular import TabularTask
from polopt.tasks.text import TextTask
from polopt.training.plan import check_picture


class Coins(Task):
    """A task of one's own that makes all its rows itself: it remembers what it was made with."""

    def __init__(self, num: int, seed: int, evaluation: bool, name: str, *, sides: int = 2) -> None:
        self.num, self.made = num, (seed, evaluation, sides)
        self.spec = Spec(gymnasium.spaces.Discrete(sides), gymnasium.spaces.Discrete(sides), name)
        self.first = torch.ones(num, dtype=torch.bool)


@pytest.mark.parametrize("name", NAMED)
def test_every_name_makes_its_rows(name: str) -> None:
    found, task = own_class(name), make_task(name, num=2, seed=3)
    assert isinstance(task, found if issubclass(found, Task) else GymTask)
    assert (task.num, task.spec.name) == (2, name)
    task.close()


def test_each_kind_is_served_by_its_class() -> None:
    assert type(make_task("chain")) is not TabularTask
    assert isinstance(make_task("chain"), TabularTask)
    assert isinstance(make_task("addition"), TextTask)
    assert {*BEGINS.values(), *ENDS.values()} == {
        place(name)
        for name in (
            "grid/doors",
            "point/goals",
            "reasoning-gym/x",
            "datasets/a/b",
            "envpool/Pong-v5",
            "a/b.jsonl",
            "a/b.npz",
        )
    }
    assert place("CartPole-v1") is None
    assert own_class("os:getcwd") is None  # what is not polopt's own is not imported


@pytest.mark.parametrize("task", [Coins, f"{__name__}:Coins"])
def test_a_class_of_ones_own_makes_all_rows(task: Any) -> None:
    made: Any = make_task(task, num=5, seed=3, evaluation=True, sides=6)
    assert (type(made).__name__, made.num, made.made) == ("Coins", 5, (3, True, 6))
    assert made.spec.name == (task if isinstance(task, str) else "Coins")
    with pytest.raises(UsageError, match="has no option 'side'; did you mean 'sides'"):
        make_task(task, side=6)
    with pytest.raises(UsageError, match="steps all its rows itself: leave out workers"):
        make_task(task, workers=1)


def test_what_has_a_picture() -> None:
    for name in ("u-maze", "CartPole-v1", "envpool/Pong-v5"):
        check_picture(name)
    for name in ("chain", "guess", "a.jsonl"):
        with pytest.raises(UsageError, match=f"{name} has no picture"):
            check_picture(name)


def test_the_table_imports_no_torch() -> None:
    code = "import sys; from polopt.tasks.making import named_function; from polopt.tasks import named; "
    code += "assert named_function('recall') and named.place('chain') and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
