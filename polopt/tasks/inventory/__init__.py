"""Inventory networks whose dynamics are known and differentiable."""

from polopt.tasks.inventory.supply import Supply as Supply
from polopt.tasks.inventory.supply import supply_of as supply_of
from polopt.tasks.inventory.world import Inventory as Inventory
