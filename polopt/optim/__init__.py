"""How parameters move: optimizers, and copies that follow or stay."""

from polopt.optim.copies import copies, duplicate, frozen_copy, polyak_update, renew, source_of
from polopt.optim.natural import NaturalOptimizer
from polopt.optim.optimizer import Loss, Optimizer
from polopt.optim.rmsprop import RMSprop
from polopt.optim.whole import whole

__all__ = [
    "Loss",
    "NaturalOptimizer",
    "Optimizer",
    "RMSprop",
    "copies",
    "duplicate",
    "frozen_copy",
    "polyak_update",
    "renew",
    "source_of",
    "whole",
]
