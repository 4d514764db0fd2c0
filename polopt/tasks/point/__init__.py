"""Points that move in a box: goals, zones, walls, luck and scripts as options of one batched world."""

from polopt.tasks.point.layout import Script, Zone
from polopt.tasks.point.world import Point

__all__ = ["Point", "Script", "Zone"]
