"""DQN on recorded data: what CQL and BCQ have in common for finitely many actions. No entry of its own.

Kumar et al. 2020, arXiv 2006.04779 (cql.py); Fujimoto et al. 2019, arXiv 1910.01708 (bcq.py).

Targets, losses and copies are those of ../control/dqn.py; batches are of a dataset, and the next action is chosen by
the network and valued by its copy. Each adds what keeps Q from values that no data speak for.

Departs from the paper in: nothing that is common to both; each file says where it does.
"""

from dataclasses import dataclass

from polopt.bases.method import Smoke
from polopt.bases.offline import Offline
from polopt.config import param
from polopt.methods.control.dqn import DeepQ
from polopt.tasks.base import Task


class OfflineQ(DeepQ, Offline):
    """Its defaults are those on which d3rlpy (`DiscreteCQL`) and the official code of BCQ (for Atari) agree."""

    @dataclass(frozen=True)
    class Config(DeepQ.Config, Offline.Config):
        batch_size: int = param(32, "d3rlpy, official code of BCQ", low=1)
        lr: float = param(6.25e-5, "d3rlpy, official code of BCQ", above=0, help="of all that is learned")
        double: bool = param(
            True, "d3rlpy, official code of BCQ", help="the network chooses the action that its copy values"
        )
        target_every: int = param(8_000, "d3rlpy, official code of BCQ", low=1, unit="updates", help="between copies")
        max_grad_norm: float | None = param(None, "d3rlpy, official code of BCQ", above=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.offline_updates is None:
                self.refuse("epsilon", because="without offline_updates: it never acts to learn")

    entry = False
    trains_on = "recorded data, discrete actions, then the task itself if wanted"
    default_steps = 100_000
    probes = {"double": {"double": False, "lr": 0.1}}
    smoke = Smoke(
        "MountainCar-v0",
        24,
        {
            "dataset": "random",
            "random_episodes": 2,
            "batch_size": 32,
            "network.sizes": (16,),
            "target_every": 4,
            "offline_updates": 12,
            "replay_size": 1_000,
        },
    )

    def build(self, task: Task) -> None:
        self.build_learner()
