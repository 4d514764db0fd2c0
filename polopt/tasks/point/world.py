"""Points that move where walls let them, for goals and through zones. One engine, whose worlds are options."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.errors import UsageError, nearest
from polopt.core.spec import Spec
from polopt.tasks.base import Obs, Task
from polopt.tasks.luck import even, normal, uniform
from polopt.tasks.options import choice, flag, number, share, whole
from polopt.tasks.point import scripts as scripted
from polopt.tasks.point import walls as solid
from polopt.tasks.point.layout import SCRIPTS, Use, bounds_of, each_of, positive, read_scripts, walls_of
from polopt.tasks.point.named import NAMED
from polopt.tasks.point.starts import Goals, Starts
from polopt.tasks.point.zones import Zones
from polopt.tasks.simulated import Simulated, State

PARTS = ("place", "velocity", "goal", "time")


class Point(Simulated):
    """A point in D dimensions with M goals and Z zones. "point/NAME" is one of `polopt.tasks.point.named.NAMED`.

    Actions are in [-1, 1]^D, others are clipped. With moves "steps" an action is a step of `speed` along each axis;
    with "forces" it changes the velocity: v <- damping v + speed a, x <- x + v. Noise is added to the step, walls stop
    it, and low and high clip where it leads; a velocity that was stopped is 0.

    The reward is, of the distance d to the nearest goal, at the place p (`judged`),

        scale (step_reward + shaping(d) + [d <= reach] bonus - effort |a|^2 + zones that strike at p + noise)

    Args:
        dims: D. low, high: corners of the box that the point stays in, numbers or places; None for no bounds.
        moves: "steps" or "forces". speed: of an action of 1, in one step. damping: of the velocity.
        noise: of each step along each axis: half the width of a uniform one, or the standard deviation of a normal
            one (`noise_kind` "uniform" or "normal").
        walls: pairs of corners, or a map of # and . whose cells are 1 wide and whose last line is at the bottom.
        slide: a wall stops only the part of a step that runs into it. Without, all of it.
        start: a place; or two, corners of a box in which starts are uniform, outside of walls and zones; or "normal",
            standard normal; None: uniform within the bounds, or the origin where there are none.
        goals: places, "uniform" within the bounds, or "normal": drawn at each start; () for none.
        one: each start has one of the goals, which it draws; the others do not count.
        reach: within this distance of a goal one is there. bonus: for being there, a number or one for each goal.
            ends: being there ends the episode.
        shaping: "distance" (-weight d), "square" (-weight d^2), "bell" (weight exp(-d^2)), or "none".
        objectives: each goal is an objective, paid for its own distance in place of the nearest one.
        step_reward, effort, scale: as above. reward_noise: the standard deviation of normal noise.
        judged: reward, cost and end are of the place "after" the step or "before" it.
        zones: `Zone`s or their fields.
        scripts: `Script`s or their fields by the name of the behavior.
        obs: what is seen, parts with commas: "place", "velocity", "goal" (where it is drawn), "time" (0 at the start, 1
            at the horizon). None: place, velocity if there is one, and goal if it is drawn.
        finite: the horizon ends the episode rather than cutting it.

    Levels, tensors [L, D]: "start", and "goal" where goals are drawn.

    Facts: "reached" bool [M] (M is 1 where the goal is drawn), "inside" bool [Z], "cost" (where a zone has one),
    "rewards" [M] (`objectives`).

    Behaviors: `scripts`. "expert" goes to the nearest goal, "noisy" with normal noise on its actions, "any" to a goal
    that the luck of the start names, "walk" five steps in each of many random ways, "random" anywhere. They know
    nothing of walls: worlds with walls give them a route.

    Attributes:
        bounds: the corners [D] or None. walls: corners [W, D]. zones, starts, goals: see their classes.
    """

    named = NAMED

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "point",
        *,
        dims: int = 2,
        low: Any = -1.0,
        high: Any = 1.0,
        moves: str = "steps",
        speed: float = 0.1,
        damping: float | None = None,
        noise: float = 0.0,
        noise_kind: str = "normal",
        walls: Any = (),
        slide: bool = False,
        start: Any = None,
        goals: Any = 0.0,
        one: bool = False,
        reach: float = 0.1,
        bonus: Any = 0.0,
        ends: bool = True,
        shaping: str = "distance",
        weight: float = 1.0,
        objectives: bool = False,
        step_reward: float = 0.0,
        effort: float = 0.0,
        reward_noise: float = 0.0,
        scale: float = 1.0,
        judged: str = "after",
        zones: Any = (),
        scripts: Any = SCRIPTS,
        obs: str | None = None,
        finite: bool = False,
        horizon: int = 50,
        device: str = "cpu",
    ) -> None:
        super().__init__(num, seed, evaluation, name, horizon=horizon, device=device)
        self.dims, self.finite = whole("dims", dims, 1), flag("finite", finite)
        self.forces = choice("moves", moves, ["steps", "forces"]) == "forces"
        if damping is not None and not self.forces:
            raise UsageError("damping is of a velocity, which only a point that moves by forces has")
        self.speed, self.damping = positive("speed", speed), share("damping", 0.9 if damping is None else damping)
        if not self.speed:
            raise UsageError("speed must be above 0")
        self.noise = positive("noise", noise)
        self.noise_kind = choice("noise_kind", noise_kind, ["uniform", "normal"])
        self.slide, self.one, self.ends = flag("slide", slide), flag("one", one), flag("ends", ends)
        self.judged = choice("judged", judged, ["after", "before"])
        self.shaping = choice("shaping", shaping, ["distance", "square", "bell", "none"])
        self.objectives = flag("objectives", objectives)
        self.weight, self.step_reward = positive("weight", weight), number("step_reward", step_reward)
        self.effort, self.scale = number("effort", effort), number("scale", scale)
        self.reach, self.reward_noise = positive("reach", reach), positive("reward_noise", reward_noise)
        real = functools.partial(torch.tensor, dtype=torch.get_default_dtype(), device=self.device)
        box = bounds_of(low, high, self.dims)
        self.bounds = None if box is None else (real(box[0]), real(box[1]))
        corners = real(walls_of(walls, self.dims)).view(-1, 2, self.dims)
        self.walls = corners[:, 0], corners[:, 1]
        self.zones = Zones(zones, self.dims, self.device)
        self.starts = Starts(start, self.dims, self.bounds, self.walls, self.zones)
        self.goals = Goals(goals, self.one, self.dims, self.bounds, real(0.0))
        if self.objectives and (self.goals.drawn or not self.goals.count or self.shaping == "none"):
            raise UsageError("objectives are goals, fixed ones, that pay for their distance")
        if bonus and not self.goals.count:
            raise UsageError("there are no goals, which could pay a bonus")
        self.bonus = real(each_of("bonus", bonus, self.goals.count))
        self.scripts = read_scripts(scripts, self.dims, self.goals.count)
        self.behaviors = tuple(self.scripts)
        self.spec = self._spec(obs)

    def _spec(self, obs: str | None) -> Spec:
        there = {"place": True, "velocity": self.forces, "goal": self.goals.drawn, "time": True}
        told = [part for part in PARTS[:3] if there[part]] if obs is None else [part.strip() for part in obs.split(",")]
        for part in told:
            if part not in PARTS:
                raise UsageError(f"a point sees {', '.join(PARTS)}, not '{part}'{nearest(part, PARTS)}")
            if not there[part]:
                why = "no velocity: it moves by steps" if part == "velocity" else "no goal that is drawn at the start"
                raise UsageError(f"{self.name} has {why}, which it could see")
        if len(set(told)) < len(told):
            raise UsageError(f"a point sees each part once, not {obs!r}")
        self.parts = tuple(told)
        low: list[float] = []
        high: list[float] = []
        for part in self.parts:
            edge = self.bounds if part == "place" or (part == "goal" and self.goals.where == "uniform") else None
            size = 1 if part == "time" else self.dims
            low += edge[0].tolist() if edge else [0.0 if part == "time" else -np.inf] * size
            high += edge[1].tolist() if edge else [1.0 if part == "time" else np.inf] * size
        facts: dict[str, tuple[int, ...]] = {}
        if self.goals.count:
            facts["reached"] = (self.goals.count,)
        if len(self.zones):
            facts["inside"] = (len(self.zones),)
        if self.zones.costs:
            facts["cost"] = ()
        names: tuple[str, ...] = ()
        if self.objectives:
            names = tuple(f"goal {count}" for count in range(self.goals.count))
            facts["rewards"] = (len(names),)
        seen = spaces.Box(np.array(low, np.float32), np.array(high, np.float32))
        action = spaces.Box(-1.0, 1.0, (self.dims,), np.float32)
        info = {"horizon": self.horizon}
        return Spec(seen, action, self.name, info, facts, objectives=names, scalar=len(names) < 2)

    # The world

    @classmethod
    def make(cls, name: str, num: int, seed: int, evaluation: bool, **options: Any) -> Task:
        if name.startswith("point/") and name not in cls.named:
            raise UsageError(f"there is no task '{name}'{nearest(name, cls.named)}")
        return super().make(name, num, seed, evaluation, **options)

    def begin(self, draws: State) -> State:
        for name, table in self.levels.items():
            if name != "start" and not (name == "goal" and self.goals.drawn):
                raise UsageError(f"{self.name} has no level '{name}': it is the start, or a goal that is drawn")
            if table.shape[1:] != (self.dims,):
                raise UsageError(f"the level '{name}' of {self.name} is [L, {self.dims}], not {list(table.shape)}")
        key, real = draws["key"], self.bonus.dtype
        state = {"key": key, "place": draws["start"].to(real) if "start" in draws else self.starts.draw(key)}
        if self.forces:
            state["velocity"] = torch.zeros_like(state["place"])
        if self.goals.drawn:
            state["goal"] = draws["goal"].to(real) if "goal" in draws else self.goals.draw(key)
        return state

    def goals_of(self, state: State) -> Tensor:
        """The goals that count, [N or 1, M, D]."""
        return state["goal"].unsqueeze(1) if self.goals.drawn else self.goals.places.unsqueeze(0)

    def luck(self, state: State, time: Tensor) -> State:
        """What is random in a step: "noise" [N, D] of the step, "chance" [N, Z] in [0, 1), below which a zone strikes,
        "reward" [N]."""
        key = state["key"]
        luck: State = {}
        if self.noise:
            draw = normal if self.noise_kind == "normal" else even
            luck["noise"] = self.noise * draw(key, time, self.dims, Use.NOISE)
        if self.zones.chancy:
            luck["chance"] = uniform(key, time, len(self.zones), Use.CHANCE)
        if self.reward_noise:
            luck["reward"] = self.reward_noise * normal(key, time, 1, Use.REWARD).squeeze(1)
        return luck

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        return self.outcome(state, time, action, self.luck(state, time))

    def outcome(self, state: State, time: Tensor, action: Tensor, luck: State) -> tuple[State, Tensor, Tensor, State]:
        """`advance` with this luck: a function of its arguments alone. What is missing in it has its mean: no noise,
        and of zones the reward and cost to be expected."""
        action = action.to(self.bonus.dtype).clamp(-1.0, 1.0)
        after = self._moved(state, action, luck)
        place = (after if self.judged == "after" else state)["place"]
        reward = torch.full_like(place[:, 0], self.step_reward)
        over = torch.zeros(len(place), dtype=torch.bool, device=place.device)
        facts: State = {}
        if self.effort:
            reward = reward - self.effort * (action * action).sum(-1)
        if len(self.zones):
            facts["inside"], probable = self.zones.within(place)
            strikes = (luck["chance"] < probable).to(reward.dtype) if "chance" in luck else probable
            reward = reward + (strikes * self.zones.reward).sum(-1)
            over = over | ((strikes > 0) & self.zones.ends).any(-1)
            if self.zones.costs:
                facts["cost"] = (strikes * self.zones.cost).sum(-1)
        if "reward" in luck:
            reward = reward + luck["reward"]
        if self.goals.count:
            away = place.unsqueeze(1) - self.goals_of(state)
            square = (away * away).sum(-1)  # [N, M]
            facts["reached"] = reached = square <= self.reach**2
            if self.ends:
                over = over | reached.any(-1)
            each, bonus = self._shaped(square), reached * self.bonus
            if self.objectives:
                facts["rewards"] = self.scale * (reward.unsqueeze(1) + each + bonus)
                return after, facts["rewards"].sum(-1), over, facts
            reward = reward + each.amax(-1) + bonus.sum(-1)
        return after, self.scale * reward, over, facts

    def _shaped(self, square: Tensor) -> Tensor:
        """What the squared distances [N, M] are worth."""
        if self.shaping == "distance":
            return -self.weight * square.sqrt()
        if self.shaping == "square":
            return -self.weight * square
        return self.weight * torch.exp(-square) if self.shaping == "bell" else torch.zeros_like(square)

    def _moved(self, state: State, action: Tensor, luck: State) -> State:
        place, move = state["place"], self.speed * action
        if self.forces:
            velocity = self.damping * state["velocity"] + move
            move = velocity
        if "noise" in luck:
            move = move + luck["noise"]
        there = solid.moved(place, move, *self.walls, self.slide)
        if self.bounds is not None:
            there = torch.minimum(torch.maximum(there, self.bounds[0]), self.bounds[1])
        if not self.forces:
            return {**state, "place": there}
        stopped = (there - (place + move)).abs() > 1e-6
        return {**state, "place": there, "velocity": torch.where(stopped, 0.0, velocity)}

    def observe(self, state: State, time: Tensor) -> Obs:
        if self.parts == ("place",):
            return state["place"]
        seen = [state[part] if part != "time" else self._clock(time) for part in self.parts]
        return torch.cat(seen, -1)

    def _clock(self, time: Tensor) -> Tensor:
        return (time.to(torch.get_default_dtype()) / self.horizon).unsqueeze(-1)

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        return scripted.behave(self, *self.scripts[behavior], state, time)
