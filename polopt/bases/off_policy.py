"""What methods that learn from a replay of their own experience share: filling it. Not a method."""

from functools import partial
from typing import Any, ClassVar

from polopt.bases.method import Method
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.data.rollouts import Rollouts
from polopt.policies.wrappers import Uniform
from polopt.tasks.base import Task


class OffPolicy(Method):
    """Base of the methods that collect into a replay, after a warm-up of uniform random actions, and update from it.

    Reads of the config `batch_size`, `replay_size`, `n_step`, `discount`, `warmup`, `steps_per_update` and
    `updates_per_step`.
    """

    source: ReplaySource
    unread: ClassVar[tuple[str, ...]] = ()
    """Keys of the policy's record that no update reads; of `SCORES`, they are not computed either."""

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        updates = (steps - config.warmup) * config.updates_per_step // config.steps_per_update
        return {"transitions per update": config.batch_size, "updates": max(updates, 0)}

    def make_source(self, task: Task) -> ReplaySource:
        config = self.config
        return ReplaySource(
            Rollouts(task, config.steps_per_update, self.ledger),
            self.make_replay(),
            batch_size=config.batch_size,
            warmup=config.warmup,
            warmup_actor=partial(Uniform, task.spec),
            ratio=config.updates_per_step / config.steps_per_update,
        )

    def make_replay(self) -> Replay:
        config = self.config
        return Replay(config.replay_size, n_step=config.n_step, discount=config.discount, unread=self.unread)
