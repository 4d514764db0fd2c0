"""Making datasets: each kind is what it says, all follows from the seed, and what is there is not made again."""

from __future__ import annotations

import json

import pytest
import torch
from tensordict import TensorDict

from polopt import cli
from polopt.core.errors import Notice, RunError, UsageError
from polopt.data.datasets import load_dataset
from polopt.data.storing import write_dataset
from polopt.evaluation.dataset_measures import unique_pairs
from polopt.tasks import make_task, recorded
from polopt.training import api, dataset_facts, datasets
from polopt.training.dataset_facts import coverage, info, measure
from polopt.training.datasets import KINDS, in_order, make_datasets
from polopt.training.folder import Run
from tests.tasks.envs import Costly

pytest.importorskip("minari")
SETTINGS = {
    "steps": 4096,
    "eval_every": 512,
    "transitions": 600,
    "reference_episodes": 10,
    "envs": 4,
    "window": 64,
    "epochs": 8,
    "lr": 3e-3,
    "loggers": (),
    "eval_episodes": 4,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All kinds of one task, made once."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder / "datasets"))
        make_datasets("CartPole-v1", out=folder / "run", **SETTINGS)
    return folder


@pytest.fixture
def sets(made, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(made / "datasets"))
    return made


def test_every_kind_is_what_it_says(sets):
    found = {kind: load_dataset(f"cartpole/{kind}-v0") for kind in KINDS}
    low, high = found["random"].references
    for kind, data in found.items():
        assert data.references == (low, high), kind
        assert data.spec.name == "CartPole-v1"
        ends = data.data["terminated"] | data.data["truncated"]
        assert torch.equal(data.data["first"], ends.roll(1) | (torch.arange(len(ends)) == 0))
        after = ~ends[:-1]  # within an episode, the successor is the next observation
        assert torch.equal(data.data["next_obs"][:-1][after], data.data["obs"][1:][after])
    mean = {kind: data.returns.mean().item() for kind, data in found.items()}
    assert mean["random"] < mean["medium"] < mean["expert"]
    assert mean["random"] == pytest.approx(low, rel=0.5)
    for kind in ("random", "medium", "expert"):
        size = len(found[kind].data)
        assert 600 <= size < 600 + found[kind].lengths[-1]  # whole episodes, the last of which reaches the number
    # medium stopped at the first evaluation with the wanted return
    wanted = low + (high - low) / 3
    rows = [row for row in Run(sets / "run").evaluations if row["env_steps"] > 0]
    stop = next(row["env_steps"] for row in rows if row["eval/return"] >= wanted)
    assert len(found["medium-replay"].data) == stop


def test_the_replay_is_in_order_and_whole(sets):
    replay = load_dataset("cartpole/medium-replay-v0")
    data = replay.data
    inside = ~(data["terminated"] | data["truncated"])[:-1]
    assert torch.equal(data["next_obs"][:-1][inside], data["obs"][1:][inside])
    assert (data["truncated"] & ~data["terminated"]).sum() <= 4  # what was broken off in the four rows


def test_medium_expert_is_half_and_half(sets):
    both, medium, expert = (load_dataset(f"cartpole/{k}-v0") for k in ("medium-expert", "medium", "expert"))
    first = medium.lengths.cumsum(0)
    size = int(first[(first < 300).sum()])
    assert torch.equal(both.data["obs"][:size], medium.data["obs"][:size])
    assert torch.equal(both.data["obs"][size:], expert.data["obs"][: len(both.data) - size])


@pytest.fixture(scope="module")
def perspective(made):
    """The kinds that have a reference, of the same run, made once."""
    kinds = ("replay", "noisy", "mixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(made / "datasets"))
        assert make_datasets("CartPole-v1", kinds, out=made / "run", **SETTINGS) == [f"cartpole/{k}-v0" for k in kinds]
    return made


def test_the_kinds_with_a_reference(perspective, sets):
    replay, noisy, mixed = (load_dataset(f"cartpole/{kind}-v0").data for kind in ("replay", "noisy", "mixed"))
    begun, random = load_dataset("cartpole/medium-replay-v0").data, load_dataset("cartpole/random-v0")
    assert len(replay) == SETTINGS["steps"]
    rows = replay["obs"].view(4, -1, 4)[:, : len(begun) // 4]  # of four environments, one after the other
    assert torch.equal(rows.reshape(-1, 4), begun["obs"])
    policy = api.load(sets / "run")
    best = policy.act(noisy["obs"], greedy=True)[0]["action"]
    assert 0.05 < float((best != noisy["action"]).double().mean()) < 0.15  # half of the fifth that is uniform
    ends = random.lengths.cumsum(0)
    size = int(ends[(ends < 480).sum()])
    assert torch.equal(mixed["obs"][:size], random.data["obs"][:size])
    assert 480 <= size < 600 < len(mixed)


def test_measured_by_a_reference(perspective, sets):
    data, replay = load_dataset("cartpole/random-v0"), load_dataset("cartpole/replay-v0")
    with pytest.warns(
        Notice, match=r"random-v0 has \d+ decisions and cartpole/replay-v0 4,096: SACo compares datasets"
    ):
        found = measure("cartpole/random-v0", reference="cartpole/replay-v0", episodes=5, store=False)
    scale = found["expert_return"] - found["random_return"]
    assert found["tq"] == pytest.approx((data.returns.mean().item() - found["random_return"]) / scale)
    assert found["saco"] == unique_pairs(data, replay) / unique_pairs(replay, replay) < 1
    assert 0 < found["saco"] < found["lsaco"] < 1
    itself = measure("cartpole/replay-v0", reference="cartpole/replay-v0", episodes=5, store=False)
    assert (itself["saco"], itself["lsaco"]) == (1.0, 1.0)
    assert found["tq"] < itself["tq"] < 1
    assert 1 <= replay.broken.sum() <= 4  # the last episodes of four environments
    complete = replay.returns[~replay.broken].mean().item()
    assert itself["tq"] == pytest.approx((complete - itself["random_return"]) / scale)
    assert "saco" not in measure("cartpole/random-v0", episodes=5, store=False)


def test_noisy_sets_are_of_discrete_actions():
    with pytest.raises(UsageError, match="noisy sets are of discrete actions, and Pendulum-v1 has Box"):
        make_datasets("Pendulum-v1", ("noisy",), transitions=300)


def test_it_follows_from_the_seed(sets, tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    make_datasets("CartPole-v1", ("medium", "medium-replay"), name="again", out=sets / "run", **SETTINGS)
    again = {kind: load_dataset(f"again/{kind}-v0").data for kind in ("medium", "medium-replay")}
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(sets / "datasets"))
    for kind, data in again.items():
        before = load_dataset(f"cartpole/{kind}-v0").data
        assert all(torch.equal(data[key], before[key]) for key in data.keys())


def test_what_is_there_is_not_made_again(sets, monkeypatch):
    def fails(*arguments, **options):
        raise AssertionError("nothing is trained")

    monkeypatch.setattr(datasets, "train_or_resume", fails)
    assert make_datasets("CartPole-v1", out=sets / "run", **SETTINGS) == [f"cartpole/{kind}-v0" for kind in KINDS]
    with pytest.raises(UsageError, match="there is a dataset cartpole/random-v0 with another recipe"):
        make_datasets("CartPole-v1", out=sets / "run", **SETTINGS | {"transitions": 700})
    with pytest.raises(UsageError, match=r"there is no kind of dataset 'exprt'; did you mean 'expert'\?"):
        make_datasets("CartPole-v1", ("exprt",))


def test_random_needs_no_training(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    assert make_datasets("Pendulum-v1", ("random",), transitions=300) == ["pendulum/random-v0"]
    data = load_dataset("pendulum/random-v0")
    assert data.lengths.tolist() == [200, 200]
    assert data.references is None
    assert data.data["truncated"].sum() == 2  # the time limit is no termination
    assert not data.data["terminated"].any()
    assert float(data.data["action"].min()) < -1.5  # in the environment's units
    with pytest.raises(UsageError, match="has no references: 'polopt dataset measure pendulum/random-v0'"):
        data.normalized(0.0)


def test_off_policy_and_interrupted(tmp_path, monkeypatch):
    """SAC's warm-up is in the replay, actions are the environment's, and the training goes on where it was stopped."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setattr(datasets, "least_progress", lambda low, high: None)
    settings = {"steps": 80, "eval_every": 20, "warmup": 30, "batch_size": 8, "network.sizes": (8,), "loggers": ()}
    settings |= {"transitions": 50, "reference_episodes": 2, "eval_episodes": 1}
    options = {"task_options": {"max_episode_steps": 16}, "out": tmp_path / "run"}
    with monkeypatch.context() as patch:
        patch.setattr(datasets._Recorder, "collected", lambda self, wanted: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make_datasets("Pendulum-v1", **options, **settings)
    assert recorded.local_datasets() == ["pendulum/random-v0"]  # whole, and nothing of the next one
    assert make_datasets("Pendulum-v1", **options, **settings) == [f"pendulum/{kind}-v0" for kind in KINDS]
    replay = load_dataset("pendulum/medium-replay-v0").data
    assert len(replay) % 20 == 0
    assert float(replay["action"].abs().max()) > 1.2  # up to 2, not in the policy's units
    assert replay["truncated"].nonzero().flatten().tolist()[:2] == [15, 31]


def test_facts_are_recorded_with_the_rest(tmp_path, monkeypatch):
    """In the sets, in what a training run collects, and in the recipe, which other facts make another one."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    settings = SETTINGS | {"steps": 64, "window": 8, "transitions": 20}
    assert make_datasets(Costly, ("random",), argv=["--facts", "cost"], **settings) == ["costly/random-v0"]
    data = load_dataset("costly/random-v0", facts=("cost", "energy")).data
    assert torch.equal(data["cost"], 9 * data["obs"][:, 1] + data["obs"][:, 0] + 1)  # 10 start + t, obs = start + t - 1
    assert "energy" not in data.keys()
    with pytest.raises(UsageError, match=r"there is a dataset costly/random-v0 with another recipe"):
        make_datasets(Costly, ("random",), argv=["--facts", "cost,energy"], **settings)
    method = api.plan("ppo", Costly, facts=("energy",), window=4, envs=1, loggers=()).build()
    watch = datasets.Watch(method)
    method.collect()
    assert torch.equal(in_order(watch.windows())["energy"][:, 0], torch.tensor([1.0, 2.0, 3.0, 1.0]))


def test_an_expert_that_learned_nothing_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    monkeypatch.setattr(datasets, "least_progress", lambda low, high: "ended")
    with pytest.raises(RunError, match=r"the behavior policy in .* ended: raise --steps"):
        make_datasets("CartPole-v1", ("expert",), out=tmp_path / "run", **SETTINGS | {"steps": 256})
    assert recorded.local_datasets() == []
    assert datasets.least_progress(0, 0) == "ended"


def test_info_and_measure(sets, tmp_path, monkeypatch):
    facts = info("cartpole/medium-v0")
    data = load_dataset("cartpole/medium-v0")
    assert facts["episodes"] == len(data.returns)
    assert facts["return_q50"] == pytest.approx(data.returns.quantile(0.5).item())
    assert facts["normalized_return"] == pytest.approx(data.normalized(facts["return"]))
    assert facts["terminated"] == pytest.approx(float(data.data["terminated"].sum()) / len(data.returns))
    found = measure("cartpole/medium-v0", episodes=5, store=False)
    assert found["expert_return"] == data.references[1]
    assert 10 < found["random_return"] < 40
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    task = make_task("CartPole-v1")
    write_dataset("mine/some-v0", data.data, task.spec, task="CartPole-v1")
    assert measure("mine/some-v0", episodes=3)["normalized_return"] is None
    assert load_dataset("mine/some-v0").references is None
    found = measure("mine/some-v0", expert=sets / "run", episodes=3)
    assert found["expert_return"] == pytest.approx(
        datasets.evaluate_returns(api.load(sets / "run"), make_task("CartPole-v1", num=10, seed=0, evaluation=True), 3)[
            "return"
        ]
    )
    assert load_dataset("mine/some-v0").references == (found["random_return"], found["expert_return"])
    write_dataset("mine/other-v0", data.data, task.spec, task="CartPole-v1")
    few = data.data[: int(data.lengths[0])].clone()
    few["reward"] *= 0.0
    write_dataset("mine/none-v0", few, task.spec, task="CartPole-v1")
    with pytest.raises(RunError, match="no scale to score on"):
        measure("mine/some-v0", expert="mine/none-v0", episodes=3)
    write_dataset("mine/one-v0", few[:1], task.spec, task="CartPole-v1")
    monkeypatch.setattr(dataset_facts, "MOST_COLUMNS", 4)  # as of images, which have no coverage
    with pytest.warns(Notice), pytest.raises(UsageError, match="lSACo needs two"):
        measure("mine/other-v0", expert=sets / "run", reference="mine/one-v0", episodes=3)
    assert load_dataset("mine/other-v0").references is None  # nothing is kept of what failed
    assert measure("mine/other-v0", episodes=3)["coverage"] is None


def test_coverage_counts_boxes():
    class Data:
        data = TensorDict(
            {"obs": torch.tensor([[0.0], [0.05], [1.0], [0.55]]), "action": torch.tensor([0, 0, 1, 0])}, [4]
        )

    assert coverage(Data) == 0.75  # type: ignore[arg-type]


def test_in_order():
    first = torch.tensor([[True, False], [False, True]])
    window = TensorDict(
        {"x": torch.tensor([[0, 1], [10, 11]]), "first": first, "terminated": ~first, "truncated": first & False},
        [2, 2],
    )
    window["terminated"] = torch.tensor([[False, True], [False, False]])
    data = in_order([window, window.clone()])
    assert data["x"].tolist() == [0, 1, 0, 1, 10, 11, 10, 11]
    assert data["first"].tolist() == [True, False, True, False, True, True, False, True]
    assert not data["truncated"].any()  # broken off is no end: who reads it makes one


def test_the_verb(sets, tmp_path, monkeypatch, capsys):
    assert cli.main(["dataset", "info"]) == 0
    assert "cartpole/expert-v0" in capsys.readouterr().out
    assert cli.main(["dataset", "info", "cartpole/expert-v0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["task"] == "CartPole-v1"
    assert cli.main(["dataset", "measure", "cartpole/expert-v0", "--episodes", "2", "--dry-run"]) == 0
    assert "coverage" in capsys.readouterr().out
    assert cli.main(["dataset", "inf"]) == 2
    assert "polopt dataset has no 'inf'; did you mean 'info'?" in capsys.readouterr().err
    assert cli.main(["dataset", "info", "cartpole/exper-v0"]) == 2
    assert "did you mean 'cartpole/expert-v0'?" in capsys.readouterr().err
    assert cli.main(["dataset", "make", "CartPole-v1", "--transitons", "3"]) == 2
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    words = [
        "dataset",
        "make",
        "CartPole-v1",
        "--kinds",
        "random",
        "--transitions",
        "50",
        "--task.max_episode_steps",
        "9",
    ]
    assert cli.main(words) == 0
    assert capsys.readouterr().out == "cartpole/random-v0\n"
    assert load_dataset("cartpole/random-v0").lengths.max() <= 9
    assert cli.main(["dataset"]) == 2
    assert cli.main(["dataset", "--help"]) == 0
