"""The rules of a grid once more, for one row and in plain Python: coordinates, lists and sets in place of tensors."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from polopt.tasks.grid import Grid
from polopt.tasks.grid.layout import WAYS

STEPS = {"up": (-1, 0), "right": (0, 1), "down": (1, 0), "left": (0, -1), "stay": (0, 0)}
OPPOSITE = {"up": "down", "down": "up", "left": "right", "right": "left"}
Cell = tuple[int, int]


@dataclass
class Item:
    letter: str
    cell: Cell | None
    way: str = ""
    holder: int | None = None


@dataclass
class ScalarGrid:
    """One row of `grid`, from where its row `row` is now."""

    grid: Grid
    row: int = 0
    agents: list[Cell] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    walls: set[Cell] = field(default_factory=set)
    seen: set[Cell] = field(default_factory=set)
    clock: int = 0

    def __post_init__(self) -> None:
        grid, state = self.grid, {name: value[self.row].tolist() for name, value in self.grid.state.items()}
        self.agents = [grid.where(cell) for cell in state["agents"]]
        self.headings = ["up"] * grid.agents
        places = [None if cell < 0 else grid.where(cell) for cell in state["places"]]
        self.items = [
            Item(letter, cell, grid.things[letter].way) for letter, cell in zip(grid.letters, places, strict=True)
        ]
        self.walls = {grid.where(cell) for cell, wall in enumerate(state["walls"]) if wall}
        if grid.near is not None:
            self.seen = set().union(*(self.disc(cell) for cell in self.agents))
        self.first = (list(self.agents), [item.cell for item in self.items], [item.way for item in self.items])

    def disc(self, cell: Cell) -> set[Cell]:
        every = [(row, column) for row in range(self.grid.rows) for column in range(self.grid.columns)]
        radius = self.grid.cover
        return {other for other in every if (other[0] - cell[0]) ** 2 + (other[1] - cell[1]) ** 2 <= radius**2}

    def free(self, cell: Cell) -> bool:
        return 0 <= cell[0] < self.grid.rows and 0 <= cell[1] < self.grid.columns and cell not in self.walls

    def holds(self, agent: int, letter: str) -> bool:
        return any(item.letter == letter and item.holder == agent for item in self.items)

    def step(self, action: list[int], luck: dict[str, Any]) -> dict[str, Any]:
        """What happens, with the luck of this row of `Grid.luck`."""
        grid = self.grid
        for item in self.items:
            if item.way and item.cell is not None:
                if not self.free(moved(item.cell, item.way)):
                    item.way = OPPOSITE[item.way]
                if self.free(moved(item.cell, item.way)):
                    item.cell = moved(item.cell, item.way)
        for agent in range(grid.agents):
            chosen = action[agent]
            if "slip" in luck and luck["slip"][agent] >= 0:
                chosen = luck["slip"][agent]
            if grid.moves == "turn":
                turn = {0: -1, 1: 1, 2: 0}[chosen]
                self.headings[agent] = WAYS[(WAYS.index(self.headings[agent]) + turn) % 4]
                way = self.headings[agent] if chosen == 2 else "stay"
            else:
                way = [*WAYS, "stay"][chosen]
            target = moved(self.agents[agent], way)
            doors = [item for item in self.items if item.cell == target and grid.things[item.letter].needs]
            shut = any(not self.holds(agent, grid.things[door.letter].needs) for door in doors)
            if self.free(target) and not shut:
                self.agents[agent] = target
        rewards = [grid.step_reward] * grid.agents
        over, touched, held = False, [], {}
        for letter in grid.things:
            held[letter] = sum(item.holder is not None and item.letter == letter for item in self.items)
        for number, item in enumerate(self.items):
            thing = grid.things[item.letter]
            there = [agent for agent in range(grid.agents) if self.agents[agent] == item.cell]
            if len(there) < thing.together:
                there = []
            if thing.taken and thing.together == 1:
                there = there[:1]
            touched.append(there)
            if there:
                if not thing.most or held[item.letter] < thing.most:
                    for came in there:
                        for got in range(grid.agents):
                            rewards[got] += table(thing.reward, got, came, grid.agents)
                over = over or (luck["ends"][number] if "ends" in luck else thing.ends > 0)
                if thing.taken:
                    item.holder, item.cell = there[0], None
        for number, item in enumerate(self.items):
            if grid.things[item.letter].returns and item.holder is not None and luck["returns"][number]:
                cells = [(row, column) for row in range(grid.rows) for column in range(grid.columns)]
                full = [*self.agents, *(other.cell for other in self.items)]
                free = [cell for cell in cells if self.free(cell) and cell not in full]
                if free:
                    item.cell, item.holder = free[int(luck["where"][number] * len(free))], None
        result = {"touched": touched}
        if grid.near is not None:
            weight = {grid.where(cell): value for cell, value in enumerate(grid.weights.tolist())}
            near = set().union(*(self.disc(cell) for cell in self.agents))
            result["gain"] = sum(weight[cell] for cell in near - self.seen)
            result["modular"] = sum(weight[cell] for cell in near)
            paid = result["modular"] if grid.repeats else result["gain"]
            rewards = [reward + paid / grid.agents for reward in rewards]
            self.seen |= near
        self.clock += 1
        if grid.inner:
            result["inner_end"] = over or self.clock >= grid.inner
            over = False
            if result["inner_end"]:
                self._again()
        return result | {"rewards": rewards, "over": over}

    def _again(self) -> None:
        agents, cells, ways = self.first
        self.agents, self.clock, self.headings = list(agents), 0, ["up"] * self.grid.agents
        self.items = [Item(item.letter, cell, way) for item, cell, way in zip(self.items, cells, ways)]
        if self.grid.near is not None:
            self.seen = set().union(*(self.disc(cell) for cell in self.agents))


def moved(cell: Cell, way: str) -> Cell:
    return cell[0] + STEPS[way][0], cell[1] + STEPS[way][1]


def table(reward: Any, got: int, came: int, agents: int) -> float:
    if not isinstance(reward, (tuple, list)):
        return reward if got == came else 0.0
    if isinstance(reward[0], (tuple, list)):
        return reward[got][came]
    return reward[came] if got == came else 0.0
