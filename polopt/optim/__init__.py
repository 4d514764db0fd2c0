"""How parameters move: optimizers, and copies that follow or stay."""

from polopt.optim.copies import frozen_copy, polyak_update
from polopt.optim.optimizer import Loss, Optimizer

__all__ = ["Loss", "Optimizer", "frozen_copy", "polyak_update"]
