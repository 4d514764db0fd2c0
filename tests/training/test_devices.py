"""A run that was made on a device which is not here: it loads on the CPU, and is resumed where it is told to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import polopt
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.training.folder import Run
from tests.training.runs import train

ELSEWHERE = "cuda:77"


@pytest.fixture
def foreign(tmp_path: Path) -> Run:
    """A run, the last part of which is missing, whose config says that it was made on a device that no machine has."""
    run = train("ppo", tmp_path / "run", steps=64, checkpoint_every=16, eval_every=64)
    run.checkpoints.drop_after(48)
    config = json.loads((run.folder / "config.json").read_text())
    config["run"]["device"] = ELSEWHERE
    (run.folder / "config.json").write_text(json.dumps(config))
    return Run(run.folder)


def test_it_loads_and_is_evaluated_on_the_cpu_and_says_so(foreign):
    for use in (polopt.load, lambda folder: polopt.evaluate(folder, episodes=1)):
        with pytest.warns(UserWarning, match=r"was made on cuda:77, which is not here: loading it on the CPU"):
            use(foreign.folder)


def test_a_device_that_is_named_is_taken_without_a_word(foreign, recwarn):
    actor = polopt.load(foreign.folder, device="cpu")
    assert next(actor.parameters()).device.type == "cpu"
    assert main(["eval", str(foreign.folder), "--episodes", "1", "--device", "cpu"]) == 0
    assert not [warning for warning in recwarn if "cuda" in str(warning.message)]
    with pytest.raises(UsageError, match="--device cuda:88 cannot be used here"):
        polopt.load(foreign.folder, device="cuda:88")


def test_it_is_resumed_only_where_it_is_told_to(foreign, tmp_path):
    with pytest.raises(UsageError, match="made on cuda:77, which is not here: continue elsewhere with --device cpu"):
        polopt.resume(foreign.folder)
    with pytest.warns(UserWarning, match="was trained on cuda:77: on cpu its last bits differ"):
        run = polopt.resume(foreign.folder, device="cpu")
    assert run.config["run"]["device"] == "cpu"
    whole = train("ppo", tmp_path / "whole", steps=64, checkpoint_every=16, eval_every=64)
    one, other = (polopt.load(each.folder).state_dict() for each in (run, whole))
    assert all(torch.equal(one[name], other[name]) for name in one)  # here both were the CPU
