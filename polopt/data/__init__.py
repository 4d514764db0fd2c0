"""Where batches come from: windows, whole episodes, completions, replay, fixed data and mixtures of these."""

from polopt.data.base import Acts, Source
from polopt.data.episodes import Episodes, Played
from polopt.data.epochs import Epochs
from polopt.data.minibatches import minibatches
from polopt.data.mixing import Mixed, Paired, cat_rows
from polopt.data.preferences import Preferences, pairs
from polopt.data.priority import Priority
from polopt.data.prompt_groups import PromptGroups
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.data.rollouts import Rollouts
from polopt.data.rounds import Rounds
from polopt.data.samplers import Sequential, Shuffled, Weighted
from polopt.data.successors import successors
from polopt.data.tokens import trim

__all__ = [
    "Acts",
    "Episodes",
    "Epochs",
    "Mixed",
    "Paired",
    "Played",
    "Preferences",
    "Priority",
    "PromptGroups",
    "Replay",
    "ReplaySource",
    "Rollouts",
    "Rounds",
    "Sequential",
    "Shuffled",
    "Source",
    "Weighted",
    "cat_rows",
    "minibatches",
    "pairs",
    "successors",
    "trim",
]
