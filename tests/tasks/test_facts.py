"""Facts: what a task says of a step besides the reward, from the environment to batches, replay and run folders."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import RunError, UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.data import Episodes, Replay, ReplaySource, Rollouts
from polopt.data.demonstrations import load_demonstrations, record, save_demonstrations
from polopt.data.trajectories import Trajectories
from polopt.tasks import make_task
from polopt.tasks.base import Task
from polopt.training.api import iterate
from polopt.training.plan import plan
from tests.data.actors import Random

from .envs import Costly

FACTS = ("cost", "energy")


def costly(num: int = 2, workers: int = 0, seed: int = 0, **options: Any) -> Task:
    return make_task(Costly, num, seed, workers, facts=FACTS, **options)


def right(batch: Batch) -> bool:
    """Whether the facts of recorded decisions are those of `Costly`, from start and time as the observation shows."""
    start, time = batch["obs"][..., 1], batch["obs"][..., 0] - batch["obs"][..., 1] + 1
    energy = torch.stack([time, -time], -1)
    return torch.equal(batch["cost"], 10 * start + time) and torch.equal(batch["energy"], energy)


@pytest.mark.parametrize("workers", [0, 2])
def test_rollouts_store_chosen_entries_of_the_info(workers: int) -> None:
    task = costly(workers=workers)
    assert task.spec.facts == {"cost": (), "energy": (2,)}
    assert task.facts == {}  # nothing has been stepped
    batch = Rollouts(task, steps=8).next(Random(task.spec))
    assert batch["cost"].shape == (2, 8)
    assert batch["energy"].shape == (2, 8, 2)
    assert batch["cost"].dtype == batch["energy"].dtype == torch.float32
    assert batch["first"].sum() >= 6  # over several episodes
    assert right(batch)
    assert "words" not in batch.keys()
    task.close()


def test_a_task_without_facts_stores_none() -> None:
    task = make_task(Costly)
    batch = Rollouts(task, steps=2).next(Random(task.spec))
    assert task.spec.facts == {}
    assert not {"cost", "energy", "words"} & set(batch.keys())


def test_facts_come_in_the_default_dtype(float64: None) -> None:
    task = costly()
    assert Rollouts(task, steps=2).next(Random(task.spec))["cost"].dtype == torch.float64


def test_episodes_pad_facts_with_zeros() -> None:
    task = costly(3, length=4)
    batch = Episodes(task, 5, max_steps=3).next(Random(task.spec))
    assert batch["energy"].shape == (5, 3, 2)
    assert right(batch)
    lengths = make_task(Uneven, 2, facts=FACTS)
    batch = Episodes(lengths, 6).next(Random(lengths.spec))
    assert set(batch["mask"].sum(1).tolist()) == {2, 4}
    assert (batch["cost"][~batch["mask"]] == 0).all()
    assert right(batch[batch["mask"]])


class Uneven(Costly):
    """Two steps after an even start, four after an odd one."""

    def reset(self, **kwargs: Any) -> Any:
        obs, info = super().reset(**kwargs)
        self.length = 4 if self.start % 2 else 2
        return obs, info


def test_evaluation_keeps_facts_only_when_asked() -> None:
    task = costly()
    batch = Episodes(task, 2, keep=("reward",)).next(Random(task.spec))
    assert "cost" not in batch.keys()
    batch = Episodes(task, 2, keep=("reward", "cost")).next(Random(task.spec))
    assert batch["cost"].shape == batch["reward"].shape


def test_replay_serves_saves_and_resumes_facts() -> None:
    def build() -> ReplaySource:
        return ReplaySource(Rollouts(costly(1, seed=4), 1), Replay(50, seed=1), batch_size=16, warmup=10)

    source = build()
    actor = Random(source.rollouts.task.spec)
    batch = source.next(actor)
    assert batch["energy"].shape == (16, 2)
    assert right(batch)
    saved, random = gather(source), torch.get_rng_state()
    expected = source.next(actor)
    other = build()
    restore(other, saved)
    torch.set_rng_state(random)
    batch = other.next(actor)
    assert all(torch.equal(batch[key], expected[key]) for key in ("cost", "energy", "reward"))


def test_n_step_samples_sum_vector_rewards_and_keep_the_first_of_other_facts() -> None:
    """Rewards (1, 10), (2, 20), ... with discount 1/2: sums over up to 3 of them, worked out by hand."""
    steps = torch.arange(1.0, 5.0)
    window = {
        "obs": steps.reshape(1, 4, 1),
        "final_obs": steps.reshape(1, 4, 1) + 1,
        "reward": steps.reshape(1, 4),
        "rewards": torch.stack([steps, 10 * steps], -1).reshape(1, 4, 2),
        "cost": steps.reshape(1, 4),
        "terminated": torch.tensor([[False, False, False, True]]),
        "truncated": torch.zeros(1, 4, dtype=torch.bool),
    }
    totals = torch.tensor([1 + 1 + 0.75, 2 + 1.5 + 1, 3 + 2, 4])
    replay = Replay(10, seed=0, n_step=3, discount=0.5)
    replay.add(TensorDict(window, batch_size=[1, 4]))
    batch = replay.sample(40)
    assert set(batch["index"].tolist()) == {0, 1, 2, 3}
    assert torch.equal(batch["reward"], totals[batch["index"]])
    assert torch.equal(batch["rewards"], torch.stack([totals, 10 * totals], -1)[batch["index"]])
    assert torch.equal(batch["cost"], steps[batch["index"]])
    replay = Replay(10, seed=0, n_step=3, discount=0.5, summed=("reward", "cost"))
    replay.add(TensorDict(window, batch_size=[1, 4]))
    batch = replay.sample(40)
    assert torch.equal(batch["cost"], totals[batch["index"]])
    assert torch.equal(batch["rewards"][:, 0], steps[batch["index"]])


def test_trajectories_and_demonstrations_keep_facts(tmp_path: Path) -> None:
    task = costly()
    actor = Random(task.spec)
    assert right(Trajectories(task, 0.9).next(actor))
    data = record(actor, task, 3)
    assert right(data)
    save_demonstrations(tmp_path / "data.safetensors", data, task.spec)
    assert right(load_demonstrations(tmp_path / "data.safetensors", task.spec))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("missing", r"an info without 'cost' \(row 0, step 3 of the episode\)"),
        ("shape", r"'energy' of shape \(3,\), not \(2,\) as at first \(row 0, step 3 of the episode\)"),
        ("nan", r"'energy' that is not finite \(row 0, step 3"),
        ("words", r"'energy' that is no array of numbers \(str\) \(row 0, step 3"),
    ],
)
def test_a_fact_that_goes_missing_is_one_sentence(fault: str, message: str, workers: int) -> None:
    task = costly(1, workers, length=9, fault=fault)
    with pytest.raises(RunError, match="Costly failed: its step returned " + message):
        Rollouts(task, steps=5).next(Random(task.spec))
    task.close()


def test_facts_that_no_task_can_have() -> None:
    with pytest.raises(UsageError, match="the info of Costly has no 'costs' at the first step; did you mean 'cost'"):
        make_task(Costly, facts=("costs",))
    with pytest.raises(UsageError, match="has no 'x' at the first step; choose from cost, energy, words"):
        make_task(Costly, facts=("x",))
    with pytest.raises(UsageError, match="a step of Costly returned 'words' that is no array of numbers"):
        make_task(Costly, facts=("words",))
    with pytest.raises(UsageError, match="cannot have a fact 'reward'"):
        Spec(spaces.Discrete(2), spaces.Discrete(2), facts={"reward": ()})
    with pytest.raises(UsageError, match="envpool/CartPole-v1 has no presets, pictures or info"):
        make_task("envpool/CartPole-v1", facts=("cost",))
    for name in ("chain", "addition"):
        with pytest.raises(UsageError, match=f"the task {name} makes and steps all its rows itself: leave out facts"):
            make_task(name, facts=("cost",))


def test_facts_from_the_command_line_are_a_runs_own_option(tmp_path: Path) -> None:
    planned = plan("ppo", Costly, argv=["--facts", "cost,energy", "--steps", "64"])
    assert planned.options.facts == FACTS
    assert planned.record()["run"]["facts"] == list(FACTS)
    settings: dict[str, Any] = {"window": 8, "envs": 2, "network.sizes": (4,), "loggers": ()}
    for row in iterate("ppo", Costly, out=tmp_path / "run", facts=("cost",), steps=16, eval_episodes=1, **settings):
        method = row["method"]
    assert "cost" in method.collect().keys()
    assert method.source.task.spec.facts == {"cost": ()}
    with pytest.raises(UsageError, match=r"--task\.facts is written --facts"):
        plan("ppo", Costly, task_options={"facts": ["cost"]})


class Loud(Task):
    """One row that declares a fact and gives what it is told to."""

    def __init__(self, given: Mapping[str, Tensor]) -> None:
        self.spec, self.num = Spec(spaces.Discrete(2), spaces.Discrete(2), "loud", facts={"cost": ()}), 1
        self.first, self.facts = torch.ones(1, dtype=torch.bool), given

    def reset(self, rows: Any = None, index: Any = None) -> Any:
        self.obs = torch.zeros(1, dtype=torch.int64)
        return self.obs

    def step(self, record: Any) -> Any:
        over = torch.ones(1, dtype=torch.bool)
        return self.obs, torch.zeros(1), over, ~over


@pytest.mark.parametrize("source", [Rollouts, Episodes])
def test_a_task_gives_the_facts_that_it_declares(source: Any) -> None:
    with pytest.raises(RunError, match=r"loud declares the facts \['cost'\] and gives \[\]"):
        source(Loud({}), 1).next(Random(Loud({}).spec))
    task = Loud({"cost": torch.zeros(1)})
    actor = Random(task.spec)
    act = actor.act
    actor.act = lambda *args, **kwargs: (act(*args, **kwargs)[0] | {"cost": torch.ones(1)}, None)  # type: ignore
    with pytest.raises(RunError, match="'cost' is a fact of loud, and the policy records something of that name"):
        source(task, 1).next(actor)
