"""Combination locks, and layers with one special state: what only exploration, or data, finds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import one_hot

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.base import Obs
from polopt.tasks.luck import normal, uniform
from polopt.tasks.options import choice, flag, number, share, whole
from polopt.tasks.simulated import Simulated, State
from polopt.tasks.tabular import TabularMDP

SWITCH, ROOM, CHOICE, DECOY, SEEN, STRAY, STRAYED, NEXT, MET, BONUS = range(10)
"""What luck is for, at one time of one start."""


class Lock(Simulated):
    """H decisions; in each of K good rooms one action of A opens the way to the next step, all others lead for good
    into the room K. The last right action pays `reward`; something smaller, the decoy, is easier to have.

    With continuous actions, Box [A], the action is drawn from softmax(box / sharpness).

    Args:
        actions, rooms: A and K. lock_seed: the right actions are drawn from it, not from the seed of a run.
        switch: probability that a right action leads to another room (each is equally likely).
        start: probability of each room at the start; without it, room 0.
        decoy, decoy_chance: a reward, and its probability. decoy_at: "first", for a wrong action at the first decision;
            "last", for not opening the lock at the last one.
        obs: "table", the state (the room) and the step; "vector", both one-hot [K + 1 + H + 1] with noise on each;
            "hadamard", that vector, filled up with zeros to D = 2^ceil(log2(H + K + 2)) and multiplied by the Hadamard
            matrix of that size. noise: its standard deviation.
        stray: the scripted behaviors act at random with this probability.

    Levels: "code" int64 [H, K], the right actions; "room" int64, where an episode starts.

    Behaviors: "right", the right actions; "half", the right ones in the first half, then random ones; "random".

    The lock of hybrid policy gradients is "lock/continuous" (Zhou et al. 2023, arXiv 2311.08384: `lock_continuous.py`
    of the released code; its horizon is 50; its Box says [0, 1] and is not enforced, here it is unbounded).

    Attributes:
        code: int64 [H, K], the right actions where no level says others.
    """

    finite = True
    behaviors = ("right", "half", "random")
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "lock/continuous": {
            "actions": 10,
            "start": (0.5, 0.5),
            "decoy_at": "last",
            "decoy_chance": 0.5,
            "obs": "hadamard",
            "noise": 0.1,
            "continuous": True,
        }
    }

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "lock",
        *,
        actions: int = 4,
        rooms: int = 2,
        lock_seed: int = 0,
        switch: float = 0.5,
        start: Sequence[float] | None = None,
        reward: float = 1.0,
        decoy: float = 0.1,
        decoy_at: str = "first",
        decoy_chance: float = 1.0,
        obs: str = "table",
        noise: float = 0.0,
        continuous: bool = False,
        sharpness: float = 0.1,
        stray: float = 0.0,
        horizon: int = 10,
        device: str = "cpu",
    ) -> None:
        super().__init__(num, seed, evaluation, name, horizon=horizon, device=device)
        self.actions, self.rooms = whole("actions", actions, 2), whole("rooms", rooms, 1)
        self.switch, self.stray = share("switch", switch), share("stray", stray)
        self.reward, self.decoy = number("reward", reward), number("decoy", decoy)
        self.decoy_at = choice("decoy_at", decoy_at, ("first", "last"))
        self.decoy_chance = share("decoy_chance", decoy_chance)
        self.shown, self.noise = choice("obs", obs, ("table", "vector", "hadamard")), number("noise", noise)
        self.continuous, self.sharpness = flag("continuous", continuous), number("sharpness", sharpness)
        if self.sharpness <= 0 or self.noise < 0:
            raise UsageError("the sharpness of a lock is above 0, and its noise at least 0")
        self.start = distribution("start", [1.0, *[0.0] * (rooms - 1)] if start is None else start, rooms)
        generator = torch.Generator().manual_seed(whole("lock_seed", lock_seed, 0))
        self.code = torch.randint(actions, (horizon, rooms), generator=generator).to(self.device)
        vector = self.rooms + 1 + horizon + 1
        self.size = 2 ** math.ceil(math.log2(vector)) if obs == "hadamard" else vector
        seen: spaces.Space = spaces.Box(-np.inf, np.inf, (self.size,), np.float32)
        if obs == "table":
            seen = spaces.Dict({"state": spaces.Discrete(rooms + 1), "step": spaces.Discrete(horizon + 1)})
        box = spaces.Box(-np.inf, np.inf, (actions,), np.float32)
        info: dict[str, Any] = {"horizon": horizon}
        if obs == "table" and not continuous and self.start.max() == 1:
            info["mdp"] = self.mdp()
        self.spec = Spec(seen, box if continuous else spaces.Discrete(actions), name, info)

    def begin(self, draws: State) -> State:
        luck = uniform(draws["key"], 0, 1, ROOM)
        rows, below = len(luck), self.start.cumsum(0).to(luck)
        state = {"room": (luck >= below[:-1]).sum(1), "code": self.code.expand(rows, -1, -1)}
        for name, value in state.items():
            if name in self.levels and draws[name].shape != value.shape:
                raise UsageError(
                    f"'{name}' of the levels of {self.name} is {list(value.shape[1:])} each, "
                    f"not {list(draws[name].shape[1:])}"
                )
        return {name: draws.get(name, value) for name, value in state.items()} | {"key": draws["key"]}

    def right(self, state: State, time: Tensor) -> Tensor:
        """The right action int64 [N] of each room; of none, once the wrong one was taken, that of room 0."""
        row = torch.arange(len(time), device=time.device)
        room = torch.where(state["room"] < self.rooms, state["room"], 0)
        return state["code"][row, time.clamp(max=self.horizon - 1), room]

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        key, room = state["key"], state["room"]
        if self.continuous:
            below = torch.softmax(action / self.sharpness, -1).cumsum(-1)
            action = (uniform(key, time, 1, CHOICE) >= below[:, :-1]).sum(-1)
        opens = (room < self.rooms) & (action == self.right(state, time))
        switch, other = (uniform(key, time, 2, SWITCH)).unbind(-1)
        if self.rooms > 1:
            another = (room + 1 + (other * (self.rooms - 1)).long()) % self.rooms
            room = torch.where(switch < self.switch, another, room)
        room = torch.where(opens, room, self.rooms)
        last = time == self.horizon - 1
        consoled = (time == 0 if self.decoy_at == "first" else last) & ~opens
        if self.decoy_chance < 1:
            consoled = consoled & (uniform(key, time, 1, DECOY).squeeze(-1) < self.decoy_chance)
        reward = self.reward * (opens & last) + self.decoy * consoled
        return {**state, "room": room}, reward, torch.zeros_like(last), {}

    def observe(self, state: State, time: Tensor) -> Obs:
        if self.shown == "table":
            seen: Any = {"state": state["room"], "step": time}
            return seen
        hot = [one_hot(state["room"], self.rooms + 1), one_hot(time, self.horizon + 1)]
        vector = torch.cat(hot, -1).to(torch.get_default_dtype())
        if self.noise:
            vector = vector + self.noise * normal(state["key"], time, vector.shape[1], SEEN)
        if self.shown == "vector":
            return vector
        return hadamard(torch.nn.functional.pad(vector, (0, self.size - vector.shape[1])))

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        key, hot = state["key"], one_hot(self.right(state, time), self.actions).to(torch.get_default_dtype())
        strays = uniform(key, time, 1, STRAY) < self.stray
        if behavior != "right":
            strays = strays | (time.unsqueeze(1) >= (self.horizon // 2 if behavior == "half" else 0))
        box = torch.where(strays, uniform(key, time, self.actions, STRAYED), hot)
        return box if self.continuous else box.argmax(-1)

    def mdp(self) -> TabularMDP:
        """The exact model, for the code of the lock itself: K + 1 states, the likeliest room as its start. The state of
        the obs "table" is its state; of continuous actions, it is the model of those that are drawn."""
        states, actions, horizon = self.rooms + 1, self.actions, self.horizon
        transition = torch.zeros(horizon, states, actions, states, dtype=torch.float64)
        reward = torch.zeros(horizon, states, actions, dtype=torch.float64)
        transition[..., self.rooms] = 1.0
        others = self.switch / max(self.rooms - 1, 1) if self.rooms > 1 else 0.0
        reward[0 if self.decoy_at == "first" else -1] = self.decoy * self.decoy_chance
        for step in range(horizon):
            for room, right in enumerate(self.code[step].tolist()):
                transition[step, room, right] = 0.0
                transition[step, room, right, : self.rooms] = others
                transition[step, room, right, room] = 1.0 - others * (self.rooms - 1)
                reward[step, room, right] = self.reward if step == horizon - 1 else 0.0
        return TabularMDP(transition, reward, horizon, start=int(self.start.argmax()))


class Layers(Simulated):
    """H layers of S states each, through which one comes whatever one does; action 1 in one special state of one layer
    pays `reward`. Each state of a layer is equally likely, but the special one is met with probability `meet`; at the
    end a reward of 1 comes with probability `bonus`.

    Observations and episodes are those of a tabular task ("state", "step"). All policies that take the same actions in
    the states of an episode have the same episode from the same start: a start is one random deterministic model.

    Args:
        states, actions: S, and the number of actions. layer: of the special state, from 0. map_seed: it is drawn from
            this, not from the seed of a run.

    Attributes:
        special: number of the special state; the level "special" int64 names others.
    """

    finite = True
    behaviors = ("random",)

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "layers",
        *,
        states: int = 500,
        actions: int = 2,
        layer: int = 3,
        meet: float = 0.2,
        reward: float = 1.0,
        bonus: float = 0.3,
        map_seed: int = 0,
        horizon: int = 8,
        device: str = "cpu",
    ) -> None:
        super().__init__(num, seed, evaluation, name, horizon=horizon, device=device)
        self.states, self.actions = whole("states", states, 2), whole("actions", actions, 2)
        self.layer = whole("layer", layer, 0, horizon - 1)
        self.meet, self.bonus, self.reward = share("meet", meet), share("bonus", bonus), number("reward", reward)
        generator = torch.Generator().manual_seed(whole("map_seed", map_seed, 0))
        self.special = int(torch.randint(states, (), generator=generator))
        obs = spaces.Dict({"state": spaces.Discrete(states), "step": spaces.Discrete(horizon + 1)})
        self.spec = Spec(obs, spaces.Discrete(actions), name, {"horizon": horizon})

    def begin(self, draws: State) -> State:
        special = torch.full_like(draws["key"], self.special)
        state = {"special": draws.get("special", special), "key": draws["key"]}
        return {**state, "state": self._layer(state, torch.zeros_like(special))}

    def _layer(self, state: State, time: Tensor) -> Tensor:
        """The states int64 [N] of the layers `time` [N], whatever was done before."""
        met, other = uniform(state["key"], time, 2, NEXT).unbind(-1)
        special = state["special"]
        any_state = (other * self.states).long()
        not_special = (special + 1 + (other * (self.states - 1)).long()) % self.states
        return torch.where(time == self.layer, torch.where(met < self.meet, special, not_special), any_state)

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        found = (time == self.layer) & (state["state"] == state["special"]) & (action == 1)
        lucky = (time == self.horizon - 1) & (uniform(state["key"], time, 1, BONUS).squeeze(-1) < self.bonus)
        after = self._layer(state, time + 1)
        return {**state, "state": after}, self.reward * found + 1.0 * lucky, torch.zeros_like(found), {}

    def observe(self, state: State, time: Tensor) -> Obs:
        seen: Any = {"state": state["state"], "step": time}
        return seen

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        return (uniform(state["key"], time, 1, STRAYED).squeeze(-1) * self.actions).long()

    def value(self, policy: Tensor) -> Tensor:
        """Exact expected return [...] of policies by the probability [..., H, S] of action 1."""
        return self.bonus + self.reward * self.meet * policy[..., self.layer, self.special]


def distribution(name: str, value: Any, count: int) -> Tensor:
    """`value` as `count` probabilities, float64. Raises UsageError, one sentence, unless they sum to 1."""
    found = [share(name, part) for part in value] if isinstance(value, Sequence) else []
    if len(found) != count or abs(sum(found) - 1.0) > 1e-6:
        raise UsageError(f"{name} is {count} probabilities that sum to 1, not {value!r}")
    return torch.tensor(found, dtype=torch.float64)


def hadamard(vector: Tensor) -> Tensor:
    """The vectors [..., D] times the Hadamard matrix of Sylvester, D a power of 2, not normalized.

    Sums of pairs, row by row: to the bit the same whatever other rows there are.
    """
    size, half = vector.shape[-1], 1
    while half < size:
        pairs = vector.reshape(*vector.shape[:-1], size // (2 * half), 2, half)
        one, other = pairs.unbind(-2)
        vector = torch.stack([one + other, one - other], -2).reshape(vector.shape)
        half *= 2
    return vector
