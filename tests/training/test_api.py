"""The Python calls: train, iterate, load, predict, evaluate, compare, and users' own tasks and networks."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

import polopt
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.training import api, seeding
from polopt.training.folder import Run
from tests.training.runs import TINY, command, final_state, settings, train


def trunk(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 5), nn.Tanh(), nn.Linear(5, outputs))


def pole(**kwargs: Any) -> gymnasium.Env:
    return gymnasium.make("CartPole-v1", **kwargs)


def weights(folder: Any, **again: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in polopt.load(folder, **again).parameters()])


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("name", list(TINY))
def test_the_same_seed_gives_the_same_run_and_another_seed_another(name, tmp_path):
    one, again, other = (train(name, tmp_path / str(index), seed=seed) for index, seed in enumerate((5, 5, 6)))
    assert torch.equal(weights(one.folder), weights(again.folder))
    assert without_time(one.rows) == without_time(again.rows)
    assert not torch.equal(weights(one.folder), weights(other.folder))


def test_a_run_does_not_depend_on_what_ran_before(tmp_path):
    one = train("ppo", tmp_path / "one")
    torch.rand(7)
    np.random.rand(3)  # noqa: NPY002
    assert torch.equal(weights(train("ppo", tmp_path / "two").folder), weights(one.folder))


def test_training_evaluation_and_test_episodes_start_differently():
    planned = api.plan("ppo", "CartPole-v1", seed=4)
    assert len({seeding.derive(4, stream) for stream in range(4)}) == 4
    assert seeding.derive(4, 0) != seeding.derive(5, 0)
    streams = (seeding.TRAIN_TASK, seeding.EVAL_TASK, seeding.TEST_TASK)
    starts = torch.stack([planned.make_task(stream, 6).reset(index=torch.arange(6)) for stream in streams])
    flat = starts.reshape(-1, 4)
    assert len(flat.unique(dim=0)) == len(flat)


def test_iterate_gives_rows_with_the_live_method(tmp_path):
    rows = []
    for row in polopt.iterate(
        "ppo", "CartPole-v1", out=tmp_path / "run", **settings("ppo", log_every=32, checkpoint_every=96)
    ):
        assert row["method"].ledger.env_steps == row["env_steps"]
        assert row["run"].folder == tmp_path / "run"
        assert row["steps"] == 96
        rows.append(row)
    assert [row["env_steps"] for row in rows] == [0, 32, 64, 96]
    for row, saved in zip(rows, Run(tmp_path / "run").rows, strict=True):
        assert saved == {name: row[name] for name in saved}


def test_iterate_may_be_left_early(tmp_path):
    for row in polopt.iterate("ppo", "CartPole-v1", out=tmp_path / "run", **settings("ppo", dtype="float64")):
        if row["env_steps"] >= 32:
            break
    del row
    import gc

    gc.collect()
    assert torch.get_default_dtype() == torch.float32
    assert polopt.resume(tmp_path / "run").rows[-1]["env_steps"] == 96


def test_load_predicts_in_the_units_of_the_environment(tmp_path):
    actor = polopt.load(train("sac", tmp_path / "sac").folder)
    env = gymnasium.make("Pendulum-v1")
    obs, _ = env.reset(seed=0)
    action = actor.predict(obs)
    assert env.action_space.contains(action)
    assert np.array_equal(action, actor.predict(obs))  # greedy: the same again
    assert not np.array_equal(actor.predict(obs, greedy=False), actor.predict(obs, greedy=False))
    actor = polopt.load(train("bc", tmp_path / "bc").folder)
    assert pole().action_space.contains(actor.predict(np.zeros(4, np.float32)))


def test_the_loaded_actor_is_the_trained_one(tmp_path):
    last = None
    for row in polopt.iterate("ppo", "CartPole-v1", out=tmp_path / "run", **settings("ppo")):
        last = row["method"].policy
    assert torch.equal(weights(tmp_path / "run"), torch.cat([p.detach().flatten() for p in last.parameters()]))


def test_evaluate(tmp_path):
    folder = train("ppo", tmp_path / "run").folder
    before = sorted(folder.rglob("*"))
    scores = polopt.evaluate(folder, episodes=3)
    assert scores == polopt.evaluate(folder, episodes=3)
    assert scores.keys() == {"return", "return_std", "length"}
    assert scores["return"] == scores["length"]  # cart-pole pays 1 a step
    assert scores != polopt.evaluate(folder, episodes=3, stochastic=True)
    assert polopt.evaluate(folder, episodes=1)["return_std"] == 0
    assert sorted(folder.rglob("*")) == before
    assert polopt.evaluate(folder, episodes=2, checkpoint="best")["return"] > 0


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("CartPole-v1", "CartPole-v1"),
        ("tests.training.test_api:pole", "tests.training.test_api:pole"),
        (pole, api.task_name(pole)),
        (gymnasium.make("CartPole-v1"), "CartPole-v1"),
        (lambda: pole(), "<"),
    ],
    ids=["id", "module:function", "callable", "environment", "lambda"],
)
def test_every_way_to_name_a_task(task, name, tmp_path):
    run = polopt.train("ppo", task, out=tmp_path / "run", **settings("ppo", steps=16))
    assert run.config["task"].startswith(name)
    wanted = polopt.train("ppo", "CartPole-v1", out=tmp_path / "other", **settings("ppo", steps=16))
    if name == "CartPole-v1":
        assert torch.equal(weights(run.folder), weights(wanted.folder))
        return
    with pytest.raises(UsageError, match="was trained on code of yours"):
        polopt.evaluate(run.folder)
    assert torch.equal(weights(run.folder), weights(wanted.folder))
    assert torch.equal(weights(run.folder, task=task), weights(wanted.folder))
    polopt.resume(run.folder, task=task, extend=32)


def test_keyword_arguments_of_the_task(tmp_path):
    run = polopt.train(
        "ppo", "CartPole-v1", task_options={"max_episode_steps": 3}, out=tmp_path / "run", **settings("ppo", steps=16)
    )
    assert run.final["eval/length"] == 3
    assert polopt.evaluate(run.folder, episodes=2)["length"] == 3
    with pytest.raises(UsageError, match="cannot be made"):
        polopt.train("ppo", "CartPole-v1", task_options={"gravty": 3}, out=tmp_path / "other", **settings("ppo"))


@pytest.mark.parametrize(
    "network",
    [
        trunk,
        lambda inputs, outputs: trunk(inputs, outputs),
        {"sizes": (7,), "activation": "relu", "normalization": "layer"},
        "dotted",
    ],
    ids=["function", "lambda", "dict", "dotted"],
)
def test_every_way_to_choose_a_network(network, tmp_path):
    options = settings("ppo", steps=32)
    del options["network.sizes"]
    if network == "dotted":
        options |= {"network.sizes": (7,), "network.activation": "relu", "network.normalization": "layer"}
    else:
        options |= {"network": network}
    run = polopt.train("ppo", "CartPole-v1", out=tmp_path / "run", **options)
    if not callable(network):
        assert {7, 4} <= {size for p in polopt.load(run.folder).parameters() for size in p.shape}
        assert run.config["config"]["network"]["sizes"] == [7]
        return
    with pytest.raises(UsageError, match=r"it must be passed again|say it again with --network"):
        polopt.load(run.folder)
    actor = polopt.load(run.folder, network=network)
    assert any(isinstance(part, nn.Tanh) for part in actor.modules())
    polopt.resume(run.folder, network=network, extend=48)


def test_a_policy_without_matrices_starts_another_run_when_all_of_it_fits(tmp_path):
    """A guide of a program is a mean and a deviation; another guide has one of the two."""
    common = {"steps": 1, "envs": 2, "eval_episodes": 2, "loggers": ()}
    first = polopt.train("programmable-vi", "cone", out=tmp_path / "first", **common)
    second = polopt.train("programmable-vi", "cone", out=tmp_path / "second", lr=1e-12, init=first.folder, **common)
    torch.testing.assert_close(weights(second.folder), weights(first.folder))
    for task, guide in (("cone", "ring"), ("mixture", "sides")):
        with pytest.raises(UsageError, match="nothing there has the names and shapes of this run"):
            polopt.train("programmable-vi", task, guide=guide, out=tmp_path / guide, init=first.folder, **common)


def test_the_command_line_says_how_much_it_took_of_another_run(tmp_path, capsys):
    first = train("ppo", tmp_path / "first")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert main([*command("ppo", tmp_path / "second", steps=16), "--init", str(first.folder)]) == 0
    policy = [path for path in final_state(first.folder) if path.startswith("method.policy.")]
    told = f"--init {first.folder}: took {len(policy)} of the {len(policy)} tensors of the policy"
    assert told in capsys.readouterr().err


def test_starting_from_another_run(tmp_path):
    first = train("ppo", tmp_path / "first")
    second = train("ppo", tmp_path / "second", seed=9, steps=16, lr=1e-12, init=first.folder)
    torch.testing.assert_close(weights(second.folder), weights(first.folder), rtol=0, atol=1e-6)
    assert second.config["init"] == str(first.folder)
    # The first layer, and mean, variance and count of the normalizer; of the critic the first layer too.
    told = "took 5 of the 9 tensors of the policy, and 2 others; the rest of the policy begins anew"
    with pytest.warns(UserWarning, match=told):
        train("ppo", tmp_path / "deeper", steps=16, init=first.folder, **{"network.sizes": (8, 8)})
    for task in ("Acrobot-v1", "Pendulum-v1"):  # a bias of the policy, and the last layer of the critic
        with pytest.raises(UsageError, match="nothing there has the names and shapes of this run"):
            polopt.train("ppo", task, out=tmp_path / task, init=first.folder, **settings("ppo"))
        assert not (tmp_path / task).exists()
    with pytest.raises(UsageError, match="nothing there has the names and shapes of this run"):
        polopt.train(
            "sac", "Pendulum-v1", out=tmp_path / "third", init=first.folder, **settings("sac") | {"network.sizes": (9,)}
        )
    with pytest.raises(UsageError, match="is not a run folder"):
        train("ppo", tmp_path / "fourth", init=tmp_path / "nowhere")


GENERATIVE = {
    "network.sizes": (8, 8),
    "policy.time_size": 4,
    "loggers": (),
    "eval_episodes": 1,
    "eval_length": 10,
    "batch_size": 8,
}
CLONED = GENERATIVE | {"demonstrations": "random", "random_episodes": 2}
TAUGHT = GENERATIVE | {"dataset": "random", "random_episodes": 2}


@pytest.mark.filterwarnings("ignore:.* had not ended after 10 decisions")
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dql", {"lr": 1e-12, "policy_every": 1, "policy_start": 0, "policy_tau": 1e-9}),
        ("ofql", {"lr": 1e-12, "policy_every": 1, "policy_start": 0, "policy_tau": 1e-9}),
        ("pa-rl", {"bc_updates": 0, "offline_updates": None, "values.histogram.high": 1.0, "critics": 2}),
    ],
)
def test_a_cloned_policy_is_where_other_methods_begin(tmp_path, method, settings):
    """Weights load under the name that a method has for its policy, and its slow copies begin there, too."""
    names = {"pa-rl": ("base", "target_base"), "dql": ("actor", "target_actor"), "ofql": ("actor", "target_actor")}
    clone = polopt.train("bc", "Pendulum-v1", preset=method, steps=3, out=tmp_path / "bc", **CLONED).folder
    run = polopt.train(method, "Pendulum-v1", steps=2, init=clone, out=tmp_path / "run", **TAUGHT | settings)
    begun, _ = api.load_method(run.folder)
    wanted = weights(clone)
    for name in names[method]:
        ours = torch.cat([parameter.detach().flatten() for parameter in getattr(begun, name).parameters()])
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-6)
    if method == "dql":
        back = polopt.train("bc", "Pendulum-v1", preset="dql", steps=1, lr=1e-12, init=run.folder, **CLONED)
        torch.testing.assert_close(weights(back.folder), wanted, rtol=0, atol=1e-6)


def test_a_policy_that_normalized_is_no_start_for_one_that_does_not(tmp_path):
    options = {"preset": "dql", "steps": 1, "normalize_obs": True, "out": tmp_path / "bc"}
    clone = polopt.train("bc", "Pendulum-v1", **options, **CLONED).folder
    with pytest.raises(UsageError, match="its policy normalizes observations, and that of this run does not"):
        polopt.train("dql", "Pendulum-v1", steps=1, init=clone, out=tmp_path / "run", **TAUGHT)


def test_the_record_of_a_run(tmp_path):
    record = train("ppo", tmp_path / "run", preset="pendulum").config
    assert record["method"] == "ppo"
    assert record["preset"] == "pendulum"
    assert record["config"]["discount"] == 0.9  # from the preset
    assert record["config"]["envs"] == 2  # given: it comes after the preset
    assert (record["steps"], record["unit"], record["seed"]) == (96, "env_steps", 3)
    assert {"torch", "numpy", "gymnasium"} <= record["versions"].keys()
    assert {"git", "command", "created", "machine"} <= record.keys()


def test_compare_pairs_seeds_and_runs_nothing_twice(tmp_path):
    options = settings("ppo", steps=32)
    del options["seed"]
    result = polopt.compare(["ppo", "mdpo"], "CartPole-v1", seeds=2, out=tmp_path / "out", **options)
    names = {run.folder.name: run for run in result.runs}
    assert set(names) == {"ppo-s0", "ppo-s1", "mdpo-s0", "mdpo-s1"}
    assert [names[f"ppo-s{seed}"].config["seed"] for seed in (0, 1)] == [0, 1]
    assert result.page.exists()
    assert "ppo" in result.table
    created = {name: run.config["created"] for name, run in names.items()}
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    again = polopt.compare(["ppo", "mdpo"], "CartPole-v1", seeds=2, out=tmp_path / "out", **options)
    assert {run.folder.name: Run(run.folder).config["created"] for run in again.runs} == created
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")} == stamps
    with pytest.raises(UsageError, match="holds a run with another steps"):
        polopt.compare(["ppo", "mdpo"], "CartPole-v1", seeds=2, out=tmp_path / "out", **options | {"steps": 48})


def test_compare_finds_wrong_names_before_anything_runs(tmp_path):
    with pytest.raises(UsageError, match="did you mean 'ppo'"):
        polopt.compare(["bc", "pppo"], "CartPole-v1", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrong_names_get_the_nearest_right_ones(tmp_path):
    for call, said in (
        (lambda: polopt.train("pppo", "CartPole-v1"), "did you mean 'ppo'"),
        (lambda: polopt.train("ppo", "CartPol-v1", out=tmp_path / "a"), "did you mean 'CartPole-v1'"),
        (lambda: polopt.train("ppo", "CartPole-v1", discont=0.9), "did you mean 'discount'"),
        (lambda: polopt.train("ppo", "CartPole-v1", network={"size": (3,)}), "did you mean"),
        (lambda: polopt.train("ppo", "CartPole-v1", preset="mujco"), "did you mean 'mujoco'"),
        (lambda: polopt.train("rldp", "CartPole-v1"), "rldp is planned, not built yet"),
        (lambda: polopt.train("ppo", 3), "a task is a name, a function or an environment, not int"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=said):
            call()


def test_csv_and_json_are_plain(tmp_path):
    run = train("sac", tmp_path / "run")
    header = (run.folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert header[:7] == ["env_steps", "episodes", "completions", "tokens", "updates", "seconds", "stage"]
    assert {"eval/return", "critic_loss", "entropy", "q"} <= set(header)
    json.loads((run.folder / "config.json").read_text())


def test_derived_numbers_are_said_before_the_run() -> None:
    planned = api.plan("ppo", "CartPole-v1", steps=1_000, envs=4, window=128, minibatches=3)
    assert "512 decisions per update; 171 per minibatch; 2 updates" in planned.summary(Path("here"))
    planned = api.plan("sac", "Pendulum-v1", steps=1_000, warmup=400, updates_per_step=2, batch_size=32)
    assert "32 transitions per update; 1,200 updates" in planned.summary(Path("here"))
