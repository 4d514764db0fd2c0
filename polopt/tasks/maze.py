"""Two mazes, and scripted behavior in them, for what is learned from recorded data. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from polopt.core.errors import UsageError, nearest
from polopt.tasks.named import NAMED, own_class

if TYPE_CHECKING:
    from polopt.core.batch import Batch

Episode = dict[str, np.ndarray]
"""obs [T + 1, ...], action [T, ...], reward [T], terminated [T] and truncated [T], in the environment's own units."""

LAYOUTS = {
    "u": (
        "###########",
        "#G........#",
        "#.........#",
        "#.........#",
        "#######...#",
        "#######...#",
        "#######...#",
        "#.........#",
        "#.........#",
        "#S........#",
        "###########",
    ),
    "cross": (
        "###########",
        "#####G#####",
        "#####.#####",
        "#####.#####",
        "#####.#####",
        "#S.......X#",
        "#####.#####",
        "#####.#####",
        "#####.#####",
        "#####Y#####",
        "###########",
    ),
}
"""Walls `#`, start `S`, goal `G`; in "cross" also X and Y, the ends of the two other arms."""

WALL, FREE, GOAL, PLACE = (60, 60, 60), (245, 245, 245), (70, 170, 90), (200, 60, 60)


class Maze(gymnasium.Env):
    """What both mazes share: the goal ends the episode with `goal_reward`, every other step costs or gives
    `step_reward` (0 and -1 make the task a shortest path), and an episode is cut after `horizon` steps."""

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 15}
    kinds: ClassVar[dict[str, str]]
    """The scripted behaviors of `behavior_episodes`, each with the name of the method that plays one episode."""

    def __init__(
        self, horizon: int, starts: str, goal_reward: float, step_reward: float, render_mode: str | None
    ) -> None:
        if starts not in ("fixed", "any"):
            raise UsageError(f"the starts of a maze are 'fixed' or 'any', not '{starts}'")
        if horizon < 1:
            raise UsageError(f"the horizon of a maze is at least 1 step, not {horizon}")
        self.horizon = horizon
        self.starts = starts
        self.goal_reward = goal_reward
        self.step_reward = step_reward
        self.render_mode = render_mode
        self.time = 0

    def _end(self, reached: bool) -> tuple[float, bool, bool, dict]:
        self.time += 1
        reward = self.goal_reward if reached else self.step_reward
        return float(reward), reached, not reached and self.time >= self.horizon, {}

    def behavior_episodes(self, kind: str, transitions: int, seed: int) -> list[Episode]:
        """Whole episodes of a scripted behavior, as many as have at least `transitions` steps together."""
        if kind not in self.kinds:
            known = ", ".join(self.kinds)
            raise UsageError(f"there is no behavior '{kind}'{nearest(kind, self.kinds) or f': there are {known}'}")
        play: Callable[[np.random.Generator, int], Episode] = getattr(self, self.kinds[kind])
        rng = np.random.default_rng(seed)
        episodes: list[Episode] = []
        total = 0
        while total < transitions:
            episodes.append(play(rng, len(episodes)))
            total += len(episodes[-1]["action"])
        return episodes

    def _play(
        self, rng: np.random.Generator, choose: Callable[[], Any], options: dict[str, Any] | None = None
    ) -> Episode:
        """One episode in which `choose` names the next action."""
        obs, _ = self.reset(seed=int(rng.integers(2**31)), options=options)
        seen, rows, over = [obs], [], False
        while not over:
            action = choose()
            obs, reward, terminated, truncated, _ = self.step(action)
            seen.append(obs)
            rows.append((action, reward, terminated, truncated))
            over = terminated or truncated
        actions, rewards, terminations, truncations = zip(*rows)
        return {
            "obs": np.stack(seen),
            "action": np.array(actions, dtype=self.action_space.dtype),
            "reward": np.array(rewards, dtype=np.float64),
            "terminated": np.array(terminations, dtype=bool),
            "truncated": np.array(truncations, dtype=bool),
        }


class UMaze(Maze):
    """A maze of 11 x 11 cells in the shape of a U, or another of `LAYOUTS`; from its corner the goal is 20 steps away.

    Actions: Discrete(4), up, right, down, left; into a wall one stays. `obs`: "coordinates" gives the row and the
    column, each in [-1, 1] (Box [2]), "cell" the index row * width + column (Discrete). `starts`: "fixed" at S, "any"
    uniformly over the free cells but the goal; `reset(options={"start": (row, column)})` chooses one.

    Behaviors: "random", uniform actions; "expert", shortest paths; "mixture", one shortest path and then random
    episodes (the toy data of IQL, arXiv 2110.06169, has 1 and 99); in the layout "cross" also "crossing", in turn the
    shortest paths from S to X and from Y to the goal, so that no episode leads from S to the goal.
    """

    MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
    kinds: ClassVar[dict[str, str]] = {
        "random": "_random",
        "expert": "_expert",
        "mixture": "_mixture",
        "crossing": "_crossing",
    }

    def __init__(
        self,
        layout: str = "u",
        obs: str = "coordinates",
        horizon: int = 100,
        starts: str = "fixed",
        goal_reward: float = 1.0,
        step_reward: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(horizon, starts, goal_reward, step_reward, render_mode)
        if layout not in LAYOUTS:
            raise UsageError(f"there is no layout '{layout}'{nearest(layout, LAYOUTS)}")
        if obs not in ("coordinates", "cell"):
            raise UsageError(f"the obs of a maze are 'coordinates' or 'cell', not '{obs}'")
        self.grid = np.array([list(line) for line in LAYOUTS[layout]])
        self.layout = layout
        self.obs = obs
        self.free = [(int(row), int(column)) for row, column in np.argwhere(self.grid != "#")]
        self.start, self.goal = self.find("S"), self.find("G")
        self.cell = self.start
        self.observation_space: spaces.Space = (
            spaces.Discrete(self.grid.size) if obs == "cell" else spaces.Box(-1.0, 1.0, (2,), np.float32)
        )
        self.action_space = spaces.Discrete(4)

    def find(self, mark: str) -> tuple[int, int]:
        """The cell with this mark. Raises UsageError if the layout has none."""
        cells = np.argwhere(self.grid == mark)
        if not len(cells):
            raise UsageError(f"the layout '{self.layout}' has no {mark}")
        return int(cells[0, 0]), int(cells[0, 1])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 0
        self.cell = self.start
        if options and "start" in options:
            self.cell = (int(options["start"][0]), int(options["start"][1]))
            if self.cell not in self.free:
                raise UsageError(f"the cell {self.cell} is a wall")
        elif self.starts == "any":
            others = [cell for cell in self.free if cell != self.goal]
            self.cell = others[int(self.np_random.integers(len(others)))]
        return self.observe(self.cell), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.cell = self.moved(self.cell, int(action))
        return self.observe(self.cell), *self._end(self.cell == self.goal)

    def moved(self, cell: tuple[int, int], action: int) -> tuple[int, int]:
        """Where `action` leads from `cell`."""
        after = (cell[0] + self.MOVES[action][0], cell[1] + self.MOVES[action][1])
        return cell if self.grid[after] == "#" else after

    def observe(self, cell: tuple[int, int]) -> Any:
        """The observation of a cell."""
        rows, columns = self.grid.shape
        if self.obs == "cell":
            return np.int64(cell[0] * columns + cell[1])
        scale = np.array([rows - 1, columns - 1])
        return (2.0 * np.array(cell) / scale - 1.0).astype(np.float32)

    def distances(self, goal: tuple[int, int] | None = None) -> np.ndarray:
        """Steps of the shortest path to the goal from each cell, [rows, columns]; -1 at walls."""
        result = np.full(self.grid.shape, -1)
        frontier = [self.goal if goal is None else goal]
        steps = 0
        while frontier:
            for cell in frontier:
                result[cell] = steps
            neighbors = {self.moved(cell, action) for cell in frontier for action in range(4)}  # moves are reversible
            frontier = [cell for cell in neighbors if result[cell] < 0]
            steps += 1
        return result

    def render(self) -> np.ndarray:
        """An image [88, 88, 3], 8 pixels a cell."""
        image = np.where(self.grid[..., None] == "#", WALL, FREE).astype(np.uint8)
        image[self.goal] = GOAL
        image[self.cell] = PLACE
        return image.repeat(8, 0).repeat(8, 1)

    def _random(self, rng: np.random.Generator, index: int) -> Episode:
        return self._play(rng, lambda: int(rng.integers(4)))

    def _expert(self, rng: np.random.Generator, index: int) -> Episode:
        return self._toward(rng, self.goal)

    def _mixture(self, rng: np.random.Generator, index: int) -> Episode:
        return self._random(rng, index) if index else self._expert(rng, index)

    def _crossing(self, rng: np.random.Generator, index: int) -> Episode:
        if index % 2:
            return self._toward(rng, self.goal, start=self.find("Y"))
        return self._toward(rng, self.find("X"), start=self.find("S"))

    def _toward(self, rng: np.random.Generator, goal: tuple[int, int], start: tuple[int, int] | None = None) -> Episode:
        """A shortest path, one of the equal ones at random; cut where it arrives, if that is not the goal."""
        distance = self.distances(goal)

        def choose() -> int:
            after = [distance[self.moved(self.cell, action)] for action in range(4)]
            return int(rng.choice(np.flatnonzero(np.array(after) == min(after))))

        episode = self._play(rng, choose, {"start": start} if start else None)
        if goal == self.goal:
            return episode
        if start is None:
            raise UsageError("a path to another place than the goal needs its start")
        count = int(distance[start])
        cut = {key: value[: count + (key == "obs")].copy() for key, value in episode.items()}
        cut["truncated"][-1] = True
        return cut


class PointMaze(Maze):
    """A point in [-1, 1]^2 that must get around a block; the way above and the way below are equally long.

    The block is the square |x|, |y| <= 0.4; the start is near (-0.8, 0), uniform within 0.05, and the goal is the disc
    of radius 0.15 around (0.8, 0). Action: Box(-1, 1) [dims], the displacement in units of `speed`; a move into the
    block slides along it. Observation: the position, Box(-1, 1) [dims]. With `dims` above 2 the further coordinates are
    free of walls, start within 0.5 of 0, and must be within 0.15 of 0 at the goal. `starts="any"` is uniform over what
    is free.

    Behaviors: "routes", per episode one of the two ways at random, at a random pace and with noise, of which 3 of 10
    get lost on the way (random moves to the end); "expert", the two ways without failures and little noise; "random",
    uniform actions.
    """

    BLOCK = 0.4
    RADIUS = 0.15
    GOAL = np.array([0.8, 0.0])
    kinds: ClassVar[dict[str, str]] = {"routes": "_routes", "expert": "_expert", "random": "_random"}

    def __init__(
        self,
        dims: int = 2,
        speed: float = 0.1,
        horizon: int = 60,
        starts: str = "fixed",
        goal_reward: float = 1.0,
        step_reward: float = 0.0,
        render_mode: str | None = None,
    ) -> None:
        super().__init__(horizon, starts, goal_reward, step_reward, render_mode)
        if dims < 2 or speed <= 0:
            raise UsageError(f"a point maze needs dims of at least 2 and a positive speed, not {dims} and {speed:g}")
        self.dims = dims
        self.speed = speed
        self.observation_space = spaces.Box(-1.0, 1.0, (dims,), np.float32)
        self.action_space = spaces.Box(-1.0, 1.0, (dims,), np.float32)
        self.position = np.zeros(dims)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.time = 0
        if options and "start" in options:
            self.position = np.array(options["start"], dtype=np.float64).reshape(self.dims)
        elif self.starts == "any":
            self.position = self.np_random.uniform(-1.0, 1.0, self.dims)
            while self.blocked(self.position) or self.reached(self.position):
                self.position = self.np_random.uniform(-1.0, 1.0, self.dims)
        else:
            near = np.array([-0.8, 0.0]) + self.np_random.uniform(-0.05, 0.05, 2)
            self.position = np.concatenate([near, self.np_random.uniform(-0.5, 0.5, self.dims - 2)])
        return self.position.astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        move = self.speed * np.clip(np.asarray(action, dtype=np.float64).reshape(self.dims), -1.0, 1.0)
        after = np.clip(self.position + move, -1.0, 1.0)
        if self.blocked(after):
            x, y = self.position[:2]
            places = ((after[0], y), (x, after[1]), (x, y))  # the last one is where it came from
            after[:2] = next(place for place in places if not self.blocked(np.array(place)))
        self.position = after
        return after.astype(np.float32), *self._end(self.reached(after))

    def blocked(self, position: np.ndarray) -> bool:
        return bool((np.abs(position[:2]) <= self.BLOCK).all())

    def reached(self, position: np.ndarray) -> bool:
        inside = np.linalg.norm(position[:2] - self.GOAL) <= self.RADIUS
        return bool(inside and (np.abs(position[2:]) <= self.RADIUS).all())

    def render(self) -> np.ndarray:
        """An image [96, 96, 3] of the first two coordinates, y upward."""
        line = np.linspace(-1.0, 1.0, 96)
        x, y = np.meshgrid(line, line[::-1])
        image = np.full((96, 96, 3), FREE, np.uint8)
        image[(np.abs(x) <= self.BLOCK) & (np.abs(y) <= self.BLOCK)] = WALL
        image[np.hypot(x - self.GOAL[0], y - self.GOAL[1]) <= self.RADIUS] = GOAL
        image[np.hypot(x - self.position[0], y - self.position[1]) <= 0.05] = PLACE
        return image

    def _random(self, rng: np.random.Generator, index: int) -> Episode:
        return self._play(rng, lambda: self._uniform(rng))

    def _routes(self, rng: np.random.Generator, index: int) -> Episode:
        lost = int(rng.integers(self.horizon // 3)) if rng.random() < 0.3 else self.horizon
        return self._route(rng, noise=0.3, pace=rng.uniform(0.5, 1.0), lost=lost)

    def _expert(self, rng: np.random.Generator, index: int) -> Episode:
        return self._route(rng, noise=0.05, pace=1.0, lost=self.horizon)

    def _route(self, rng: np.random.Generator, noise: float, pace: float, lost: int) -> Episode:
        """Above or below the block by waypoints, with Gaussian noise; random moves from step `lost` on."""
        side = 1.0 if rng.random() < 0.5 else -1.0
        waypoints = [np.array([-0.5, 0.6 * side]), np.array([0.5, 0.6 * side]), self.GOAL]

        def choose() -> np.ndarray:
            if self.time >= lost:
                return self._uniform(rng)
            x = self.position[0]
            while len(waypoints) > 1 and (x > waypoints[0][0] - 0.05 and abs(self.position[1]) > self.BLOCK + 0.05):
                waypoints.pop(0)
            target = np.concatenate([waypoints[0], np.zeros(self.dims - 2)])
            way = (target - self.position) / self.speed
            step = pace * way / max(float(np.linalg.norm(way[:2])), float(np.abs(way[2:]).max(initial=0.0)), 1.0)
            return np.clip(step + noise * rng.standard_normal(self.dims), -1.0, 1.0).astype(np.float32)

        return self._play(rng, choose)

    def _uniform(self, rng: np.random.Generator) -> np.ndarray:
        return rng.uniform(-1.0, 1.0, self.dims).astype(np.float32)


def behavior_episodes(kind: str, transitions: int, seed: int, **options: Any) -> list[Episode]:
    """Recorded episodes of a scripted behavior: kind is "MAZE/BEHAVIOR", for example "point-maze/routes".

    `options` are those of the environment. Equal arguments give equal episodes. Raises UsageError for a wrong name.
    """
    maze, _, behavior = kind.partition("/")
    made = own_class(maze)
    if made is None or not issubclass(made, Maze):
        raise UsageError(f"there is no maze '{maze}'{nearest(maze, NAMED)}")
    return made(**options).behavior_episodes(behavior, transitions, seed)


def transitions(episodes: list[Episode]) -> Batch:
    """The decisions of recorded episodes, joined [B]: obs, action, reward, next_obs, terminated, truncated, first.

    Floats are in the default dtype. Episodes stay whole and in order, so that returns can be summed along them.
    """
    import torch
    from tensordict import TensorDict

    def join(parts: list[np.ndarray]) -> torch.Tensor:
        value = torch.from_numpy(np.concatenate(parts))
        return value.to(torch.get_default_dtype()) if value.is_floating_point() else value

    columns = {key: join([episode[key] for episode in episodes]) for key in episodes[0] if key != "obs"}
    columns["obs"] = join([episode["obs"][:-1] for episode in episodes])
    columns["next_obs"] = join([episode["obs"][1:] for episode in episodes])
    columns["first"] = join([np.arange(len(episode["action"])) == 0 for episode in episodes])
    return TensorDict(columns, batch_size=[len(columns["reward"])])
