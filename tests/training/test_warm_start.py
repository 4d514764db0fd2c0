"""Warm starts: the wanted accuracy, the same weights again, nothing made twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from polopt.core.errors import RunError
from polopt.core.files import cache_folder
from polopt.policies import CausalLM
from polopt.tasks import make_task
from polopt.training import warm_start as module
from polopt.training.warm_start import warm_start

SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
OPTIONS = {
    "accuracy": 0.06,
    "size": SHAPE,
    "updates": 400,
    "check_prompts": 32,
    "task_options": {"digits": 1, "scratchpad": False, "heldout": False},
    "lr": 1e-2,
    "batch_size": 32,
    "policy.max_tokens": 4,
}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("POLOPT_CACHE", str(tmp_path / "cache"))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_the_model_has_the_accuracy_and_is_made_once(monkeypatch):
    folder = warm_start("addition", **OPTIONS)
    assert folder.parent == cache_folder() / "models"
    task = make_task("addition", evaluation=True, **OPTIONS["task_options"])
    policy = CausalLM(model=str(folder), max_tokens=4).build(task.spec)
    right = [
        task.verify(problem, policy.env_action(policy.act([problem.prompt], greedy=True)[0]["action"])[0])
        for problem in task.problems(range(32))
    ]
    assert sum(right) / 32 >= 0.06

    def never(*args, **kwargs):
        raise AssertionError("trained again")

    monkeypatch.setattr(module.api, "train", never)
    assert warm_start("addition", **OPTIONS) == folder
    with pytest.raises(AssertionError, match="trained again"):
        warm_start("addition", **OPTIONS | {"lr": 2e-2})


def test_equal_arguments_give_equal_weights(tmp_path):
    torch.manual_seed(1)
    one = warm_start("addition", **OPTIONS, folder=tmp_path / "one")
    torch.manual_seed(2)
    other = warm_start("addition", **OPTIONS, folder=tmp_path / "other")
    assert (one, other) == (tmp_path / "one", tmp_path / "other")
    assert weights(one) == weights(other)
    assert weights(warm_start("addition", **OPTIONS, seed=1, folder=tmp_path / "third")) != weights(one)


def test_without_an_accuracy_it_is_taught_for_so_many_steps():
    settings = OPTIONS | {"accuracy": None, "updates": 20}
    assert weights(warm_start("addition", **settings)) != weights(warm_start("addition", **settings | {"updates": 10}))


def test_models_by_name_and_by_folder_have_flat_names():
    settings = OPTIONS | {"accuracy": 0.0, "updates": 10}
    named = warm_start("addition", **settings | {"size": "tiny"})
    again = warm_start("addition", **settings | {"size": str(named)})
    assert named.parent == again.parent == cache_folder() / "models"
    assert named.name.startswith("addition-tiny-")
    assert {folder.name for folder in named.parent.iterdir()} >= {named.name, again.name}


def test_an_accuracy_that_is_not_reached_leaves_nothing():
    with pytest.raises(RunError, match=r"reached an accuracy of 0\.\d\d on addition after 10 updates, not 0\.99"):
        warm_start("addition", **OPTIONS | {"accuracy": 0.99, "updates": 10})
    folder = cache_folder() / "models"
    assert not folder.exists() or not list(folder.iterdir())


@pytest.mark.parametrize("faster", [True, False])
def test_another_process_may_be_faster(faster, monkeypatch, tmp_path):
    made = warm_start("addition", **OPTIONS | {"accuracy": 0.0, "updates": 10}, folder=tmp_path / "made")

    class Model:
        def export(self, place):
            if faster:
                made.rename(place)
            raise RunError("the model could not be written")

    monkeypatch.setattr(module.api, "load", lambda run: Model())
    place = tmp_path / "place"
    if faster:
        assert warm_start("addition", **OPTIONS | {"accuracy": 0.0, "updates": 10}, folder=place) == place
    else:
        with pytest.raises(RunError, match="could not be written"):
            warm_start("addition", **OPTIONS | {"accuracy": 0.0, "updates": 10}, folder=place)
