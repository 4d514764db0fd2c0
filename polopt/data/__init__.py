"""Where batches come from: windows, whole episodes and replay, and how they are cut into minibatches."""

from polopt.data.base import Acts, Source
from polopt.data.episodes import Episodes
from polopt.data.minibatches import minibatches
from polopt.data.replay import Priority, Replay, ReplaySource
from polopt.data.rollouts import Rollouts
from polopt.data.successors import successors

__all__ = ["Acts", "Episodes", "Priority", "Replay", "ReplaySource", "Rollouts", "Source", "minibatches", "successors"]
