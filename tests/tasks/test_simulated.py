"""The base of batched worlds, on two small ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from polopt.core.errors import CheckpointError, RunError, UsageError
from polopt.core.state import gather, restore
from polopt.data import Episodes, Rollouts
from polopt.data.demonstrations import scripted_episodes
from polopt.evaluation.returns import evaluate_returns
from polopt.tasks import make_task
from tests.data.actors import Random

from .worlds import Errands, Toll, check_world

WORLDS = [Toll, Errands]


@pytest.mark.parametrize("cls", WORLDS)
def test_a_world_keeps_every_promise(cls: Any) -> None:
    check_world(lambda num, seed, evaluation: cls(num, seed, evaluation))


@pytest.mark.parametrize("cls", WORLDS)
def test_a_world_keeps_every_promise_in_float64(cls: Any, float64: None) -> None:
    check_world(lambda num, seed, evaluation: cls(num, seed, evaluation))


def test_episodes_end_by_the_clock_or_for_good() -> None:
    """By hand: wind off, from a level with the goal 0.45 away, two steps of 0.1 leave 0.25 and three leave 0.15."""
    world = make_task(Toll, 2, wind=0.0, horizon=5)
    world.levels = {"place": torch.zeros(1, 2), "goal": torch.tensor([[0.45, 0.0]])}
    world.reset()
    stay, go = torch.zeros(2), torch.tensor([1.0, 0.0])
    for time, reward in enumerate((-0.35, -0.25, -0.15)):
        _, found, terminated, truncated = world.step({"action": torch.stack([go, stay])})
        torch.testing.assert_close(found, torch.tensor([reward, -0.45]))
        assert terminated.tolist() == [time == 2, False]
        assert not truncated.any()
        assert world.time.tolist() == [time + 1] * 2
    with pytest.raises(RunError, match="row 0 of Toll has ended: it must be reset before it is stepped"):
        world.step({"action": torch.zeros(2, 2)})
    world.reset(terminated)
    assert world.first.tolist() == [True, False]
    world.step({"action": torch.zeros(2, 2)})
    _, _, terminated, truncated = world.step({"action": torch.zeros(2, 2)})
    assert (terminated.tolist(), truncated.tolist()) == ([False, False], [False, True])
    errands = make_task(Errands, 1, horizon=2)  # the horizon belongs to the problem
    errands.reset()
    ends = [errands.step({"action": torch.zeros(1, dtype=torch.int64)})[2:] for _ in range(2)]
    assert [(one.item(), other.item()) for one, other in ends] == [(False, False), (True, False)]


def test_levels_are_chosen_by_the_number_of_the_start() -> None:
    world = make_task(Toll, 3, seed=2)
    drawn = world.reset(index=torch.tensor([0, 1, 5])).clone()
    goals = torch.tensor([[0.5, 0.5], [-0.5, 0.0]])
    world.levels = {"goal": goals}
    obs = world.reset(index=torch.tensor([0, 1, 5]))
    assert torch.equal(obs["goal"], goals[[0, 1, 1]])
    assert torch.equal(obs["place"], drawn["place"])  # all else is drawn as before
    assert torch.equal(world.state["index"], torch.tensor([0, 1, 5]))
    other = make_task(Toll, 3, seed=2)
    restore(other, gather(world))
    assert torch.equal(other.reset(index=torch.tensor([1, 0, 0]))["goal"], goals[[1, 0, 0]])
    assert torch.equal(world.twin(2).reset(index=torch.tensor([0, 1]))["goal"], goals)
    world.levels = {}
    assert torch.equal(world.reset(index=torch.tensor([0, 1, 5]))["goal"], drawn["goal"])


def test_paired_policies_meet_the_same_luck() -> None:
    """Common random numbers: two policies from the same starts differ by what they do alone."""
    worlds = [make_task(Toll, 64, seed=3, wind=0.3) for _ in range(2)]
    ends = []
    for world, action in zip(worlds, (0.2, 0.4)):
        world.levels = {"goal": torch.full((1, 2), 9.0)}  # out of reach, so that no episode ends
        world.reset(index=torch.arange(64))
        for _ in range(3):
            world.step({"action": torch.full((64, 2), action)})
        ends.append(world.state["place"])
    torch.testing.assert_close(ends[1] - ends[0], torch.full((64, 2), 3 * 0.1 * 0.2))


def test_sources_and_evaluation_run_on_worlds() -> None:
    world = make_task(Toll, 4, seed=1)
    actor = Random(world.spec)
    actor.act = lambda obs, carry=None, *, greedy=False: ({"action": torch.zeros(len(obs), 2)}, carry)  # type: ignore
    batch = Rollouts(world, 15).next(actor)
    assert batch["cost"].shape == (4, 15)
    assert torch.equal(batch["cost"], (batch["final_obs"]["place"][..., 1] > 0).float())
    fresh = make_task(Toll, 4, seed=1, evaluation=True)
    one, two = (evaluate_returns(actor, fresh, 6) for _ in range(2))  # type: ignore[arg-type]
    assert one == two
    batch = Episodes(make_task(Errands, 2), starts=[0, 1, 2]).next(Few())
    assert batch["rewards"].shape == (3, 5, 2)
    assert torch.equal(batch["rewards"].sum(-1), batch["reward"])


class Few:
    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
        return {"action": obs % 3}, carry

    def env_action(self, action: Any) -> Any:
        return action


def test_scripted_behavior_is_recorded_as_demonstrations_are() -> None:
    world = make_task(Toll, 8, seed=5)
    data = scripted_episodes(world, "straight", 200)
    assert 200 <= len(data) < 200 + world.horizon
    assert set(data.keys()) == {"obs", "action", "reward", "next_obs", "terminated", "truncated", "first", "cost"}
    ends = data["terminated"] | data["truncated"]
    assert ends[-1]
    assert torch.equal(data["first"][1:], ends[:-1])
    assert data["terminated"][ends].float().mean() > 0.5  # it gets there
    same = scripted_episodes(make_task(Toll, 8, seed=5), "straight", 200)
    assert all(torch.equal(data[key], same[key]) for key in ("action", "reward", "cost"))
    lost = scripted_episodes(make_task(Toll, 8, seed=5), "lost", 200)
    assert torch.equal(lost["action"][~lost["first"]], lost["action"].roll(1, 0)[~lost["first"]])  # one way an episode
    with pytest.raises(UsageError, match="Toll has no behavior 'strait'; did you mean 'straight'"):
        scripted_episodes(world, "strait", 10)
    with pytest.raises(UsageError, match="Errands has no behavior 'random': it has none"):
        scripted_episodes(make_task(Errands, 1), "random", 10)


def test_the_world_of_the_documentation() -> None:
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```python\n")[1:] if "class Walk(Simulated)" in part)
    names: dict[str, Any] = {}
    exec(block.partition("```")[0], names)
    walk = names["Walk"]
    check_world(lambda num, seed, evaluation: walk(num, seed, evaluation))
    world = make_task(walk, 2, wind=0.0)
    world.levels = {"place": torch.tensor([4.5])}
    world.reset()
    _, reward, terminated, _ = world.step({"action": torch.tensor([0, 1])})
    assert (reward.tolist(), terminated.tolist()) == ([3.5, 5.5], [False, True])


@pytest.mark.parametrize("name", ["point/regulation", "grid/four-rooms"])
def test_compiled_worlds_step_as_they_do(name: str) -> None:
    plain, fast, graphs = make_task(name, 6, seed=1), make_task(name, 6, seed=1), []
    fast.compile(backend=lambda graph, inputs: graphs.append(graph) or graph)
    for task in (plain, fast):
        task.reset()
    for _ in range(3):
        action = torch.randint(4, (6,)) if plain.spec.discrete else torch.randn(6, 4)
        ours, theirs = (task.step({"action": action}) for task in (fast, plain))
        for task, (*_, terminated, truncated) in ((fast, ours), (plain, theirs)):
            task.reset(terminated | truncated)
        for one, other in zip((*ours, fast.obs), (*theirs, plain.obs)):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
        assert gather(fast).keys() == gather(plain).keys()
    assert graphs
    assert "advance" not in vars(fast.twin(2))  # it compiles its own


def test_wrong_use_is_one_sentence() -> None:
    world = make_task(Toll, 2)
    for call in (lambda: world.step({"action": torch.zeros(2, 2)}), world.snapshot):
        with pytest.raises(RunError, match="Toll must be reset before"):
            call()
    with pytest.raises(RunError, match="Toll must be reset in all rows first"):
        world.reset(torch.tensor([True, False]))
    world.reset()
    with pytest.raises(ValueError, match="1 values of a snapshot do not fit 2 rows"):
        world.restore(world.snapshot()[:1])
    with pytest.raises(CheckpointError, match="it has 2 rows of Toll and this run has 3"):
        restore(make_task(Toll, 3), gather(world))
    with pytest.raises(UsageError, match="the task Toll has no option 'winds'; did you mean 'wind'"):
        make_task(Toll, winds=1)
    with pytest.raises(UsageError, match="horizon must be a whole number of at least 1, not 0"):
        make_task(Toll, horizon=0)
