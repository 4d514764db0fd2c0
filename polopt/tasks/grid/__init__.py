"""Grids: maps, things, agents and views as options of one batched world."""

from polopt.tasks.grid.layout import GOAL, THINGS, Thing
from polopt.tasks.grid.world import Grid

__all__ = ["GOAL", "THINGS", "Grid", "Thing"]
