"""What the parts of a grid know of it: its map, its things, and what holds and blocks what in a state."""

from __future__ import annotations

import torch
from torch import Tensor

from polopt.tasks.grid.layout import Layout, Thing
from polopt.tasks.simulated import Simulated, State


class Board(Simulated):
    """A map with agents and things; `Grid` fills it in and says what happens.

    Attributes:
        near: bool [P, P] where cells are covered, else None. start: the agents' cells [V] or None.
        key, way, kind, cells, worth, reward: of the things, [M, ...]; the options have the names of `Grid`.
    """

    agents: int
    things: dict[str, Thing]
    layout: Layout
    rows: int
    columns: int
    size: int
    letters: str
    kinds: int
    blocks: tuple[int, int]
    solvable: bool
    moves: str
    actions: int
    blur: float
    stray: float
    inner: int
    sight: int
    colors: int
    noise: int
    parts: tuple[str, ...]
    doors: bool
    next: Tensor
    spots: Tensor
    around: Tensor
    walls: Tensor
    cells: Tensor
    kind: Tensor
    key: Tensor
    way: Tensor
    taken: Tensor
    reward: Tensor
    worth: Tensor
    ends: Tensor
    returns: Tensor
    pay: Tensor
    limit: Tensor
    aim: Tensor
    of_kind: Tensor
    color: Tensor
    weights: Tensor
    free: Tensor
    near: Tensor | None
    start: Tensor | None

    def where(self, cell: int) -> tuple[int, int]:
        """The row and the column of a cell."""
        return divmod(cell, self.columns)

    def drifted(self, state: State) -> State:
        """Things that move have moved one cell, and turned round where a wall was in the way."""
        if "way" not in state:
            return state
        way, places = state["way"], state["places"].clamp(min=0)

        def ahead(way: Tensor) -> tuple[Tensor, Tensor]:
            cells = self.next[places, way.clamp(min=0)]
            return cells, state["walls"].gather(1, cells) | (cells == places)

        cells, blocked = ahead(way)
        way = torch.where(blocked & (way >= 0), (way + 2) % 4, way)
        cells, blocked = ahead(way)
        moves = (way >= 0) & ~blocked & (state["places"] >= 0)
        return {**state, "way": way, "places": torch.where(moves, cells, state["places"])}

    def blocked(self, state: State, target: Tensor) -> Tensor:
        """bool [N, V]: the agents cannot enter these cells: walls, and doors whose key they do not hold."""
        blocked = state["walls"].gather(1, target)
        if self.doors:
            shut = (self.key >= 0) & ~self.holds(state)[..., self.key.clamp(min=0)]  # [N, V, M]
            blocked = blocked | (shut & (state["places"].unsqueeze(1) == target.unsqueeze(2))).any(-1)
        return blocked

    def holds(self, state: State) -> Tensor:
        """bool [N, V, K]: which kinds of things each agent holds."""
        who = torch.arange(self.agents, device=self.device).unsqueeze(1)
        mine = state["taker"].unsqueeze(1) == who  # [N, V, M]
        return (mine.unsqueeze(-1) & self.of_kind).any(2)
