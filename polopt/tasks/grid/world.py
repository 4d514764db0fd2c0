"""Grids: agents walk over cells and meet things. One engine, whose maps, things, views and rewards are options."""

from __future__ import annotations

import functools
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.errors import UsageError, nearest
from polopt.core.spec import Spec
from polopt.tasks.base import Obs, Task
from polopt.tasks.grid import paths, starts
from polopt.tasks.grid import sight as views
from polopt.tasks.grid.board import Board
from polopt.tasks.grid.coverage import sensed, smooth
from polopt.tasks.grid.layout import THINGS, WAYS, Use, read_map, read_things, rewards_of
from polopt.tasks.grid.named import NAMED
from polopt.tasks.luck import uniform
from polopt.tasks.options import choice, flag, levels_of, number, share, whole
from polopt.tasks.simulated import State

ACTIONS = {"compass": 4, "stay": 5, "turn": 3}
NEVER = torch.iinfo(torch.int64).max


class Grid(Board):
    """V agents on a map of R x C = P cells with M things. "grid/NAME" is one of `polopt.tasks.grid.named.NAMED`.

    Actions of an agent: "compass": 0 up, 1 right, 2 down, 3 left; "stay": also 4, to stay; "turn": 0 turn left, 1 turn
    right, 2 forward. Into a wall, a closed door or over the edge one stays. Agents may share a cell.

    In a step the things that move do so, then the agents move, then what happens where they are happens (`Thing`). The
    reward is that of the things, plus `step_reward`, plus what was newly covered; with several agents theirs are the
    fact "rewards", and the reward is the sum.

    Args:
        map: lines of letters (`read_map`): walls #, floor ., starts S, things; "RxC" for an empty map.
        things: what each letter does, `Thing`s or their fields (`THINGS`: goals, keys, doors, lava, coins).
        scatter: letters of further things, each on a random free cell at every start.
        blocks: so many further walls on random free cells at every start; or (low, high).
        solvable: all things with rewards can be reached by all agents, doors counted as open; maps and levels where
            that is not so are refused, random ones drawn again (the last of 16 draws is left without blocks).
        start: a cell in place of S, or one for each agent. Without either, agents start on random free cells.
        moves: "compass", "stay" or "turn". slip: probability that a random action is done instead of the chosen one.
        step_reward: of each agent at each step.
        cover: a step also pays the weights of the cells that nobody was within this distance of before (the start
            covers, but does not pay): the gains of a monotone submodular function of the path. None: no coverage.
        weights: of the cells: "even" (1), "smooth" (random, in [0, 1]), or a table [R][C].
        repeats: all cells within the distance pay at every step, new or not: the modular reward.
        inner: every so many steps, and where a thing ends the episode, all but level and luck goes back to the start
            within the same episode (a trial of several attempts).
        obs: what an agent sees, parts of `polopt.tasks.grid.sight` with commas, one vector [F] in that order; "cell"
            alone is its number, "table" the state and step of tabular methods.
        sight: how far the part "window" reaches. colors, blur: number of floor colors, and the probability of seeing
            another one. noise: numbers in the part "noise". map_seed: colors and smooth weights are drawn from it.
        stray: the scripted behaviors act at random with this probability.
        finite: the horizon ends the episode rather than cutting it.

    Levels, tensors [L, ...]: "walls" bool [P], "agents" int64 [V] and "places" int64 [M] (cells; -1: not there), "pay"
    [M] (a factor of the things' rewards), "ends" and "returns" [M] (of things whose own probability is strictly
    between 0 and 1), "limit" (the decision that ends the episode), "way" [M] (of things that move), "weights" [P] and
    "aim" (`behaviors`).

    Facts: "touched" bool [M], what agents were at; "gain" and "modular" (coverage), "inner_end" bool (`inner`). With
    several agents "rewards" [V], and "touched" [V, M].

    Behaviors: "random"; "shortest", to the nearest thing that pays; "any", to one of them that the luck of the start
    names; both go to the level's "aim" where one is given, take keys for doors, and shun what harms; "greedy", to the
    next cell with the largest new coverage.

    Attributes:
        walls, cells, letters, start: bool [P]; the cells [M] of the things, -1 where they are random; their kinds; the
            agents' cells [V] or None.
    """

    behaviors = ("random", "shortest", "any", "greedy")
    named = NAMED

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "grid",
        *,
        map: Any = "5x5",
        things: Any = THINGS,
        scatter: str = "",
        blocks: Any = 0,
        solvable: bool = False,
        agents: int = 1,
        start: Any = None,
        moves: str = "compass",
        slip: float = 0.0,
        step_reward: float = 0.0,
        cover: float | None = None,
        weights: Any = "even",
        repeats: bool = False,
        inner: int = 0,
        obs: str = "place",
        sight: int = 2,
        colors: int = 4,
        blur: float = 0.0,
        noise: int = 0,
        map_seed: int = 0,
        stray: float = 0.0,
        finite: bool = False,
        horizon: int = 100,
        device: str = "cpu",
    ) -> None:
        super().__init__(num, seed, evaluation, name, horizon=horizon, device=device)
        self.agents = whole("agents", agents, 1)
        self.things = read_things(things, agents)
        self.layout = layout = read_map(map, self.things)
        self.rows, self.columns, self.size = layout.rows, layout.columns, layout.rows * layout.columns
        for letter in scatter:
            if letter not in self.things:
                raise UsageError(f"no thing is called '{letter}', which scatter names{nearest(letter, self.things)}")
        self.letters = layout.letters + scatter
        self.kinds = len(self.things)
        self.blocks = levels_of("blocks", blocks, (0, self.size))
        self.solvable, self.repeats = flag("solvable", solvable), flag("repeats", repeats)
        self.finite = flag("finite", finite)
        self.moves = choice("moves", moves, [*ACTIONS])
        self.actions = ACTIONS[moves]
        self.slip, self.blur, self.stray = share("slip", slip), share("blur", blur), share("stray", stray)
        self.step_reward = number("step_reward", step_reward)
        self.inner = whole("inner", inner, 0)
        self.sight, self.colors = whole("sight", sight, 0), whole("colors", colors, 1)
        self.noise = whole("noise", noise, 0)
        self.map_seed = whole("map_seed", map_seed, 0)
        self.parts = views.read_parts(obs, moves == "turn")
        self._tables()
        self.start = starts.fixed(self, start)
        self.free = starts.free(self, self.walls, self.cells, self.start).nonzero().flatten()
        self._cover(cover, weights)
        self.spec = self._spec()

    def _tables(self) -> None:
        """What holds in all rows, as tensors on the device."""
        each = [self.things[letter] for letter in self.letters]
        kinds = [*self.things]
        real = functools.partial(torch.tensor, dtype=torch.get_default_dtype(), device=self.device)
        integer = functools.partial(torch.tensor, dtype=torch.int64, device=self.device)
        self.next = paths.steps(self.rows, self.columns).to(self.device)
        self.spots = views.spots(self.rows, self.columns).to(self.device)
        self.around = views.around(self.rows, self.columns, self.sight).to(self.device)
        self.walls = torch.tensor(self.layout.walls, device=self.device)
        self.cells = integer([*self.layout.cells, *[-1] * (len(self.letters) - len(self.layout.cells))])
        self.kind = integer([kinds.index(letter) for letter in self.letters])
        self.key = integer([kinds.index(thing.needs) if thing.needs else -1 for thing in each])
        self.way = integer([WAYS.index(thing.way) if thing.way else -1 for thing in each])
        self.together = integer([thing.together for thing in each])
        self.most = integer([thing.most or NEVER for thing in each])
        self.taken = torch.tensor([thing.taken for thing in each], dtype=torch.bool, device=self.device)
        rewards = [rewards_of(letter, self.things[letter], self.agents) for letter in self.letters]
        self.reward = real(rewards).view(-1, self.agents, self.agents)  # [M, who gets it, who came]
        self.ends = real([thing.ends for thing in each])
        self.returns = real([thing.returns for thing in each])
        self.returning = [number for number, thing in enumerate(each) if thing.returns]
        self.worth = self.reward.sum(1).amax(-1)  # [M], at best, and for all agents together
        self.pay, self.limit, self.aim = torch.ones_like(self.ends), integer(NEVER), integer(-1)
        self.chancy = any(0 < thing.ends < 1 for thing in each)
        self.of_kind = torch.eye(self.kinds, dtype=torch.bool, device=self.device)[self.kind]  # [M, K]
        self.doors, self.takes = any(thing.needs for thing in each), any(thing.taken for thing in each)
        self.drifts = any(thing.way for thing in each)
        self.limited = any(thing.most for thing in each)
        generator = torch.Generator().manual_seed(self.map_seed)
        self.color = torch.randint(self.colors, (self.size,), generator=generator).to(self.device)

    def _cover(self, cover: float | None, weights: Any) -> None:
        """`near` bool [P, P] (None without coverage) and `weights` [P]."""
        real, self.near = torch.get_default_dtype(), None
        if isinstance(weights, str):
            if weights not in ("even", "smooth"):
                raise UsageError(f"weights are 'even', 'smooth' or a table of one for each cell, not '{weights}'")
            even = torch.ones(self.size, dtype=real)
            table = even if weights == "even" else smooth(self.rows, self.columns, self.map_seed)
        else:
            table = torch.as_tensor(weights, dtype=real).flatten()
            if len(table) != self.size or not (table >= 0).all():
                raise UsageError(f"weights are {self.size} numbers of at least 0, one for each cell of {self.name}")
        self.weights = table.to(self.device)
        self.cover = cover
        if cover is not None:
            if number("cover", cover) < 0:
                raise UsageError(f"cover is a distance of at least 0, not {cover!r}")
            self.near = sensed(self.rows, self.columns, cover).to(self.device)

    def _spec(self) -> Spec:
        team = () if self.agents == 1 else (self.agents,)
        facts: dict[str, tuple[int, ...]] = {"rewards": team} if team else {}
        if self.letters:
            facts["touched"] = (*team, len(self.letters))
        if self.near is not None:
            facts |= {"gain": (), "modular": ()}
        if self.inner:
            facts["inner_end"] = ()
        shared = tuple(name for name in ("gain", "modular", "inner_end") if team and name in facts)
        info: dict[str, Any] = {"horizon": self.horizon}
        if "entities" in self.parts:
            info["entities"] = (self.agents - 1 + len(self.letters), 8 + self.kinds)
        action = spaces.MultiDiscrete([self.actions] * self.agents) if team else spaces.Discrete(self.actions)
        return Spec(views.space(self), action, self.name, info, facts, agents=self.agents, shared=shared)

    # The world

    @classmethod
    def make(cls, name: str, num: int, seed: int, evaluation: bool, **options: Any) -> Task:
        if name.startswith("grid/") and name not in cls.named:
            raise UsageError(f"there is no task '{name}'{nearest(name, cls.named)}")
        return super().make(name, num, seed, evaluation, **options)

    def begin(self, draws: State) -> State:
        state = starts.levels(self, draws)
        state |= starts.laid(self, {**draws, **state})
        attempt = self._attempt(state.pop("agents"), state.pop("places"), state.pop("way"))
        if self.inner:
            state |= {f"first {name}": value for name, value in attempt.items()}
        return {**state, **attempt, "key": draws["key"]}

    def _attempt(self, agents: Tensor, places: Tensor, way: Tensor) -> State:
        """What changes during an episode, as it is at first; `places` int64 [n, M] and so on. The start covers."""
        none = torch.zeros_like(agents)
        first = {"agents": agents, "heading": none, "places": places, "taker": torch.full_like(places, -1), "way": way}
        first |= {"did": none, "got": none.to(self.reward.dtype), "clock": none[:, 0]}
        if self.near is not None:
            first["seen"] = self.near[agents].any(1)
        return {name: first[name] for name in self.changing}

    @property
    def changing(self) -> tuple[str, ...]:
        """Names of what changes during an episode, in the state."""
        has = {"heading": self.moves == "turn", "way": self.drifts, "seen": self.near is not None}
        has |= {"did": "last" in self.parts, "got": "last" in self.parts, "clock": self.inner > 0}
        return ("agents", "places", "taker", *(name for name, there in has.items() if there))

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        return self.outcome(state, time, action, self.luck(state, time))

    def luck(self, state: State, time: Tensor) -> State:
        """What is random in a step: "slip" int64 [N, V], the action that is done, -1 for the chosen one; "ends" and
        "returns" bool [N, M], where that happens if it can; "where" [N, M] in [0, 1)."""
        key, things = state["key"], len(self.letters)
        luck: State = {}
        if self.slip:
            other = (uniform(key, time, self.agents, Use.SLIPPED) * self.actions).long()
            luck["slip"] = torch.where(uniform(key, time, self.agents, Use.SLIP) < self.slip, other, -1)
        if self.chancy:
            luck["ends"] = uniform(key, time, things, Use.ENDS) < state["ends"]
        if self.returning:
            luck["returns"] = uniform(key, time, things, Use.RETURNS) < state["returns"]
            luck["where"] = uniform(key, time, things, Use.WHERE)
        return luck

    def outcome(self, state: State, time: Tensor, action: Tensor, luck: State) -> tuple[State, Tensor, Tensor, State]:
        """`advance` with this luck: a function of its arguments alone."""
        action = action.view(-1, self.agents)
        if "slip" in luck:
            action = torch.where(luck["slip"] >= 0, luck["slip"], action)
        state = self._walked(self.drifted(state), action)
        touched = self._touched(state)
        rewards = self._rewards(state, touched)
        there = touched.any(1)
        over = (there & (luck["ends"] if "ends" in luck else state["ends"] > 0)).any(1)
        over = over | (time + 1 >= state["limit"])
        state = self._taken(state, touched, luck)
        facts: State = {"touched": touched if self.agents > 1 else touched.squeeze(1)} if self.letters else {}
        if self.near is not None:
            near = self.near[state["agents"]].any(1)
            gain, modular = ((part * state["weights"]).sum(-1) for part in (near & ~state["seen"], near))
            rewards = rewards + (modular if self.repeats else gain).unsqueeze(1) / self.agents
            state["seen"] = state["seen"] | near
            facts |= {"gain": gain, "modular": modular}
        if "last" in self.parts:
            state |= {"did": action + 1, "got": rewards}
        if self.inner:
            state["clock"] = state["clock"] + 1
            anew = over | (state["clock"] >= self.inner)
            for name in [name for name in state if f"first {name}" in state]:
                now, first = state[name], state[f"first {name}"]
                state[name] = torch.where(anew.view(-1, *[1] * (now.dim() - 1)), first, now)
            facts["inner_end"], over = anew, time + 1 >= state["limit"]
        if self.agents > 1:
            facts["rewards"] = rewards
        return state, rewards.sum(1), over, facts

    def _walked(self, state: State, action: Tensor) -> State:
        """The agents have turned or moved, where nothing is in the way."""
        state = dict(state)
        way = action
        if self.moves == "turn":
            state["heading"] = (state["heading"] + (action == 1).long() - (action == 0).long()) % 4
            way = torch.where(action == 2, state["heading"], 4)
        target = self.next[state["agents"], way]
        state["agents"] = torch.where(self.blocked(state, target), state["agents"], target)
        return state

    def _touched(self, state: State) -> Tensor:
        """bool [N, V, M]: where things happen to which agents."""
        on = state["agents"].unsqueeze(2) == state["places"].unsqueeze(1)
        if self.agents == 1:
            return on
        alone = on & (~self.taken | (on.long().cumsum(1) == 1))  # the first one takes it
        return torch.where(self.together > 1, on & (on.sum(1, keepdim=True) >= self.together), alone)

    def _rewards(self, state: State, touched: Tensor) -> Tensor:
        """[N, V] of the things that are touched, and of the step."""
        paid = touched * state["pay"].unsqueeze(1)  # [N, who came, M]
        if self.limited:
            many = (state["taker"] >= 0).to(paid.dtype) @ self.of_kind.to(paid.dtype)  # [N, K] of each kind are taken
            paid = paid * (many[:, self.kind] < self.most).unsqueeze(1)
        if self.agents == 1:
            return (paid * self.reward.view(1, 1, -1)).sum(2) + self.step_reward
        return torch.einsum("nvm,mgv->ng", paid, self.reward) + self.step_reward

    def _taken(self, state: State, touched: Tensor, luck: State) -> State:
        """Things that were taken are gone and held, and may lie elsewhere."""
        if not self.takes:
            return state
        gone = touched.any(1) & self.taken
        taker = torch.where(gone, touched.long().argmax(1), state["taker"])
        places = torch.where(gone, -1, state["places"])
        for thing in self.returning:
            back = luck["returns"][:, thing] & (places[:, thing] < 0) & (taker[:, thing] >= 0)
            here = torch.cat([state["agents"], places], 1)
            free = (~state["walls"] & ~paths.one_hot(here, self.size)).long().cumsum(1)
            rank = (luck["where"][:, thing] * free[:, -1]).long().unsqueeze(1)
            cell = (free <= rank).sum(1).clamp(max=self.size - 1)  # the free cell with this rank
            back = back & (free[:, -1] > 0)
            this = torch.arange(len(self.letters), device=self.device) == thing
            places = torch.where(back.unsqueeze(1) & this, cell.unsqueeze(1), places)
            taker = torch.where(back.unsqueeze(1) & this, -1, taker)
        return {**state, "places": places, "taker": taker}

    def observe(self, state: State, time: Tensor) -> Obs:
        seen: Any = views.see(self, state, time)
        return seen

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        return paths.behave(self, behavior, state, time)
