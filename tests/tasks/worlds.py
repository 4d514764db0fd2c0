"""Small worlds of `Simulated`, and what every world must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.tasks.gym import leaves
from polopt.tasks.simulated import Simulated, State


class Toll(Simulated):
    """A point on a plane walks to a goal: moves in [-1, 1]^2 of a tenth, with wind; where y > 0 a toll is the cost.

    Reward: minus the distance to the goal, which ends the episode within 0.2. Start and goal are uniform in the square
    |x|, |y| <= 1, or the goal is that of a level. Behaviors: "straight", and "lost", whose way is drawn.
    """

    behaviors = ("straight", "lost")

    def __init__(self, *args: Any, wind: float = 0.02, horizon: int = 12, **rest: Any) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        self.wind = wind
        obs = spaces.Dict(
            {"place": spaces.Box(-np.inf, np.inf, (2,), np.float32), "goal": spaces.Box(-1.0, 1.0, (2,), np.float32)}
        )
        info = {"horizon": horizon}
        self.spec = Spec(obs, spaces.Box(-1.0, 1.0, (2,), np.float32), self.name, info, facts={"cost": ()})

    def draw(self, generator: torch.Generator, index: int) -> State:
        place, goal = 2 * torch.rand(2, 2, generator=generator) - 1
        wind = self.wind * torch.randn(self.horizon, 2, generator=generator)
        return {"place": place, "goal": goal, "wind": wind, "way": 2 * torch.rand(2, generator=generator) - 1}

    def begin(self, draws: State) -> State:
        return draws

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        rows = torch.arange(len(time), device=time.device)
        place = state["place"] + 0.1 * action.clamp(-1, 1) + state["wind"][rows, time]
        far = (place - state["goal"]).norm(dim=-1)
        return {**state, "place": place}, -far, far < 0.2, {"cost": (place[:, 1] > 0).to(far.dtype)}

    def observe(self, state: State, time: Tensor) -> Any:
        return {"place": state["place"], "goal": state["goal"]}

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        return state["way"] if behavior == "lost" else ((state["goal"] - state["place"]) / 0.1).clamp(-1, 1)


class Errands(Simulated):
    """Two objectives: each of 3 actions on each of 4 states does something for "pay" and for "rest"; 5 decisions, which
    belong to the problem. Nothing but the first state is random. The reward is their sum, which nobody chose."""

    finite = True
    PAY = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.5], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]])

    def __init__(self, *args: Any, horizon: int = 5, scalar: bool = False, **rest: Any) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        names = ("pay", "rest")
        info, facts = {"horizon": horizon}, {"rewards": (2,)}
        self.spec = Spec(spaces.Discrete(4), spaces.Discrete(3), self.name, info, facts, names, scalar)
        self.pay = self.PAY.to(self.device, torch.get_default_dtype())

    def draw(self, generator: torch.Generator, index: int) -> State:
        return {"place": torch.randint(4, (), generator=generator)}

    def begin(self, draws: State) -> State:
        return {"place": draws["place"]}

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        rewards = torch.stack([self.pay[state["place"], action], 1 - action.to(self.pay.dtype)], -1)
        place = (state["place"] + action) % 4
        return {"place": place}, rewards.sum(-1), torch.zeros_like(place, dtype=torch.bool), {"rewards": rewards}

    def observe(self, state: State, time: Tensor) -> Tensor:
        return state["place"]


def as_declared(obs: Any, space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: as_declared(obs[key], part) for key, part in space.spaces.items()}
    return obs.numpy().astype(space.dtype)


def same(one: Any, other: Any, rows: Any = slice(None)) -> bool:
    return all(torch.equal(a[rows], b[rows]) for (_, a), (_, b) in zip(leaves(one), leaves(other), strict=True))


def actions(world: Simulated, steps: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if isinstance(world.spec.action, spaces.MultiDiscrete):
        most = torch.as_tensor(world.spec.action.nvec)
        return list((torch.rand(steps, world.num, len(most), generator=generator) * most).long())
    if world.spec.discrete:
        return list(torch.randint(world.spec.num_actions, (steps, world.num), generator=generator))
    return list(2 * torch.rand(steps, world.num, world.spec.action_dim, generator=generator) - 1)


def played(world: Simulated, moves: list[Tensor]) -> list[Any]:
    """All that these moves lead to, rows reset as they end."""
    trace: list[Any] = []
    for move in moves:
        obs, reward, terminated, truncated = world.step({"action": move})
        trace += [*(leaf for _, leaf in leaves(obs)), reward, terminated, truncated, *world.facts.values()]
        done = terminated | truncated
        if done.any():
            trace += [leaf for _, leaf in leaves(world.reset(done))]
    return trace


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other))


def check_world(make: Callable[..., Simulated], steps: int = 30) -> None:
    """What `Simulated` promises of every world, for one that `make(num, seed, evaluation)` makes."""
    world = make(3, 7, False)
    spec = world.spec
    numbers = torch.tensor([5, 2, 5])
    obs = world.reset(index=numbers)
    for row in range(3):  # what is declared is what comes
        assert spec.obs.contains(as_declared(obs[row], spec.obs))
    floats = [leaf for _, leaf in leaves(obs) if leaf.is_floating_point()]
    assert all(leaf.dtype == torch.get_default_dtype() for leaf in floats)
    assert world.first.all()
    # equal starts are equal, whatever the row and however many there are
    assert same(obs[:1], obs[2:])
    other = make(2, 7, False)
    assert same(other.reset(index=torch.tensor([2, 5])), obs[torch.tensor([1, 2])])
    # the same luck follows, whatever was done and however the other rows fare
    move = actions(world, 1)[0]
    world.step({"action": move})
    other.step({"action": move[[1, 2]]})
    assert same(other.obs, world.obs[torch.tensor([1, 2])])
    assert {name: tuple(value.shape[1:]) for name, value in world.facts.items()} == dict(spec.facts)
    assert all(len(value) == 3 for value in world.facts.values())
    # streams: another seed, evaluation, a twin and resets without numbers start elsewhere
    starts = torch.arange(24)
    one = make(24, 7, False).reset(index=starts)
    others = [make(24, 8, False).reset(index=starts), make(24, 7, True).reset(index=starts), make(24, 7, False).reset()]
    others.append(make(1, 7, False).twin(24).reset(index=starts))
    assert same(make(1, 7, False).twin(24).reset(index=starts), others[-1])
    if not same(one, make(24, 7, False).reset(index=starts.flip(0))):  # a world whose starts differ at all
        assert not any(same(one, each) for each in others)
        source = make(1, 7, False)
        assert not same(source.twin(24).reset(), source.twin(24).reset())
    # saved and restored it goes on bitwise
    world, moves = make(3, 7, False), actions(world, 2 * steps)
    world.reset()
    played(world, moves[:steps])
    saved = gather(world)
    rest = played(world, moves[steps:])
    again = make(3, 7, False)
    restore(again, saved)
    assert equal(played(again, moves[steps:]), rest)
    # and a row taken back goes on as it did, in another row and in a twin, while the other rows go on
    for _ in range(50):  # until no row ends with its first step
        world.reset()
        _, _, terminated, truncated = world.step({"action": moves[0]})
        goes_on = not (terminated | truncated).any()
        if goes_on:
            break
    else:  # a world of one step is taken back to its start
        world.reset()
    values, before = world.snapshot(), world.obs.clone()
    played(world, moves[1:4])
    kept, back = world.obs.clone(), torch.tensor([False, True, False])
    obs = world.restore([values[0]], back)
    assert same(obs[1:2], before[:1])
    assert same(obs, kept, ~back)
    assert bool(world.first[1]) != goes_on
    twin = world.twin(2)
    twin.reset()
    twin.restore([values[0], values[0]])
    world.restore(values)
    assert same(world.obs, before)
    twin.step({"action": moves[4][[0, 0]]})
    world.step({"action": moves[4]})
    assert same(twin.obs[:1], world.obs[:1])
    assert same(twin.obs[:1], twin.obs[1:])
