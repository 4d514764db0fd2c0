"""Arms of arms, what arms share, and arms that run all seeds at once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from polopt.claims import best_of, mean_of, pages, results, runner, shared, together, train_arm
from polopt.claims.grids import TUNING_SEED
from polopt.claims.keys import describe_arm
from polopt.claims.shared import VARIABLE, one_run
from polopt.core.errors import RunError, UsageError
from tests.claims.toy import path_of, write

SEEN: list[tuple[float, int, int]] = []


class Rate:
    """An arm whose score is best at rate 3, in tuning seeds as in others."""

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, seed, budget):
        SEEN.append((self.rate, seed, budget["samples"]))
        return {"area": -((self.rate - 3.0) ** 2) + seed / 1000, "loss": self.rate, "curve": [1, 2]}

    def describe(self):
        return {"rate": self.rate}


def test_the_best_of_a_grid_is_chosen_once_on_tuning_seeds():
    SEEN.clear()
    arm = best_of(Rate, (1, 2, 4, 8))
    with one_run():
        first, second = arm(0, {"samples": 7}), arm(1, {"samples": 7})
    assert SEEN[:8] == [(rate, TUNING_SEED + seed, 7) for rate in (1, 2, 4, 8) for seed in (0, 1)]
    assert SEEN[8:] == [(2, 0, 7), (2, 1, 7)]
    assert (first["area"], first["loss"], first["chosen"], first["inside"]) == (-1.0, 2, "2", 1.0)
    assert second["area"] == pytest.approx(-0.999)
    assert first["tuned"] == pytest.approx({str(rate): -((rate - 3) ** 2) + 1.5005 for rate in (1, 2, 4, 8)})
    with one_run():
        low = best_of(Rate, (1, 2, 4, 8), by="-loss", tuning_seeds=1)(0, {"samples": 7})
    assert (low["chosen"], low["inside"]) == ("1", 0.0)  # the best is at the edge: the grid says too little
    with one_run(), pytest.raises(UsageError, match=r"the arm at 1 cannot be judged by 'return'.*choose from area"):
        best_of(Rate, (1, 2, 4), by="return")(0, {"samples": 7})


def test_the_mean_over_a_grid():
    found = mean_of(Rate, (1e-4, 2.0, 4.0))(0, {"samples": 7})
    assert found["loss"] == pytest.approx(2.0, abs=1e-3)
    assert found["area"] == pytest.approx(-(9 + 1 + 1) / 3, abs=1e-3)
    assert (found["area@2"], found["loss@0.0001"], found["curve@4"]) == (-1.0, 1e-4, [1, 2])
    assert "curve" not in found


@pytest.mark.parametrize(
    ("values", "sentence"),
    [((1, 2), "a grid has three values or more"), ((1, 2, 1.0), "the values of a grid must differ: 1, 2, 1")],
)
def test_poor_grids_are_refused(values, sentence):
    for make in (best_of, mean_of):
        with pytest.raises(UsageError, match=sentence):
            make(Rate, values)


def test_grids_say_what_they_are_and_train():
    def arm(lr):
        return train_arm("ppo", "CartPole-v1", lr=lr)

    grid = best_of(arm, (1e-3, 3e-3, 1e-2), by="best")
    assert grid.trains == ("ppo",)
    assert mean_of(Rate, (1, 2, 3)).trains == ()
    described = describe_arm(grid)
    assert described["best_of"]["0.003"]["config"] == {"lr": 3e-3}
    same = (1e-3, 3e-3, 1e-2)
    others = [best_of(arm, (1e-3, 3e-3, 2e-2), by="best"), best_of(arm, same), mean_of(arm, same)]
    assert all(describe_arm(other) != described for other in others)


def test_shared_is_made_once_for_each_key():
    made = []

    def make(folder):
        made.append(folder)
        (folder / "model").write_text("weights")

    with one_run():
        one = shared("clone 0", make)
        assert (shared("clone 0", make), shared("clone 1", make)) == (one, made[1])
        assert (one / "model").read_text() == "weights"
        assert len(made) == 2
        assert one.parent == made[1].parent
    assert not one.exists()
    with one_run():
        assert shared("clone 0", make) != one
    assert len(made) == 3
    assert VARIABLE not in os.environ


def test_what_failed_is_made_again():
    tries = []

    def make(folder):
        assert list(folder.iterdir()) == []
        (folder / "half").touch()
        tries.append(1)
        if len(tries) == 1:
            raise RunError("the warm start diverged")

    with one_run():
        with pytest.raises(RunError, match="diverged"):
            shared("start", make)
        assert (shared("start", make) / "half").exists()


def test_an_arm_alone_shares_within_its_process():
    code = (
        "from polopt.claims import shared\n"
        "made = []\n"
        "one = shared('x', made.append); assert shared('x', made.append) == one; print(len(made), one)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    count, folder = done.stdout.split()
    assert count == "1"
    assert not os.path.exists(folder)  # gone with the process


TABLE = """
from functools import partial
from pathlib import Path

from polopt.claims import Claim, Greater, shared, together

LOG = Path(__file__).with_suffix(".log")


def said(text, folder=None):
    with open(LOG, "a") as file:
        file.write(text + "\\n")
    if folder is not None:
        (folder / "level").write_text("5")


def table(level, seeds, budget):
    said(f"{level} {seeds}")
    return {seed: {"score": level + seed} for seed in seeds}


def one(seed, budget):
    folder = shared("level", partial(said, "made"))
    return {"score": float((folder / "level").read_text()) + 2 * seed}


CLAIM = Claim(
    method="toy", statement="s", budget={"samples": 100}, seeds=3, minutes=1,
    arms={"all": together(partial(table, 10.0)), "one": one, "other": partial(one)},
    expect=(Greater("score", "all", "one"),),
)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_arms_of_all_seeds_are_one_job(root, jobs):
    write(root, TABLE)
    outcome = runner.run_claim("toy", root=root, jobs=jobs)
    assert (outcome.ran, outcome.verdict.name) == (9, "reproduced")
    log = (root / "claims" / "toy.log").read_text().splitlines()
    assert sorted(log) == ["10.0 (0, 1, 2)", "made"]  # one table; one shared folder for two arms and all processes
    lines = results.read_lines(path_of(root))[0]
    assert [line["metrics"]["score"] for line in lines if line["arm"] == "all"] == [10.0, 11.0, 12.0]
    assert runner.run_claim("toy", root=root, jobs=jobs).ran == 0


def test_a_table_without_a_seed_is_refused(root):
    with pytest.raises(UsageError, match=r"an arm of all seeds was asked for \[0, 1\] and gave \[0\]"):
        together(lambda seeds, budget: {0: {"score": 1.0}}).table((0, 1), {})
    assert together(lambda seeds, budget: {seeds[0]: {"score": 1.0}})(4, {}) == {"score": 1.0}
    write(root, TABLE.replace("    return {seed: {", "    raise ValueError('no luck')\n    return {seed: {"))
    outcome = runner.run_claim("toy", root=root, jobs=1)
    assert [(line["arm"], line["seed"], line["error"]) for line in outcome.failed] == [
        ("all", seed, "ValueError: no luck") for seed in range(3)
    ]
    assert "no verdict: 1 arm failed (all)" in pages.notes(outcome)[0]
