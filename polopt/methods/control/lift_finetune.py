"""The last stage of LIFT: SAC on what a model imagines of one target, which is played with the mode.

Huang et al., "Towards Bridging the Gap between Large-Scale Pretraining and Efficient Finetuning for Humanoid Control",
2026, arXiv 2601.21363. Held by lift.py, where its epochs are described; no entry of its own.

    batch       `batch_size` decisions of a buffer of what was imagined and played last, which holds as many as are
                imagined in the present epoch; int(real_share batch_size) of all that was played are added
    temperature moves after the other losses, which see it as it was

Departs from the paper in: what lift.py says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.data.base import put
from polopt.data.replay import Replay
from polopt.data.rollouts import Rollouts
from polopt.methods.control.lift_pretrain import ParallelSAC
from polopt.models.fitting import Fitting
from polopt.models.structured import Structured, windows
from polopt.optim import Optimizer
from polopt.policies.base import Actor
from polopt.policies.wrappers import Greedy
from polopt.regularizers import Fixed, Learned
from polopt.tasks.base import Task

KEYS = ("obs", "action", "reward", "next_obs", "terminated", "truncated")


def ramp(numbers: Sequence[int], epoch: int) -> int:
    """Of (first, last, epochs): a whole number on the line from `first` in epoch 0 to `last` in `epochs`, and `last`
    from there on."""
    first, last, epochs = numbers
    return math.floor(first + (last - first) * min(epoch / epochs, 1.0))


class FineTune(ParallelSAC):
    """SAC in a target that is played with the mode of the policy, and explored in a model of it; see lift.py.

    `parts`: "policy" and "critic" as they were pretrained, and "model" and "model_optimizer", None where nothing is
    imagined.
    """

    @dataclass(frozen=True)
    class Config(ParallelSAC.Config):
        discount: float = param(0.99, "official code", low=0, high=1)
        tau: float = param(
            0.001, "official code", above=0, high=1, help="share of the critics in the targets, per update"
        )
        lr: float = param(2e-4, "official code", above=0, help="of the policy")
        critic_lr: float = param(2e-4, "official code", above=0)
        batch_size: int = param(
            256, "official code", low=1, help="decisions of the model; those of the target are added"
        )
        entropy: Learned | Fixed = param(Learned(initial=8e-4, lr=3e-4), "official code")
        warmup: int = param(
            1_000, "official code", low=1, unit="env_steps", help="in the target before the first epoch"
        )
        replay_size: int = param(60_000, "official code", low=1, unit="transitions", help="of the target")
        imagined_size: int = param(400_000, "official code", low=1, unit="transitions", help="of the model, at most")
        epoch_steps: int = param(1_000, "official code", low=1, unit="env_steps", help="in the target, in every epoch")
        acts: str = param(
            "mode", "official code", choices=("mode", "sample"), help="what the policy does in the target"
        )
        imagines: str = param("sample", "official code", choices=("sample", "mode"), help="and what in the model")
        horizon: tuple[int, ...] = param(
            (1, 20, 10),
            "official code",
            low=0,
            help="of imagined decisions: first, last, epochs until then; (0, 0, 1): none",
        )
        rounds: tuple[int, ...] = param(
            (10, 1_000, 4), "official code", low=0, help="of imagining in an epoch: first, last, epochs until then"
        )
        starts: int = param(400, "official code", low=1, help="recorded states that a round begins from")
        round_updates: int = param(20, "official code", low=1, help="gradient steps of a round")
        real_share: float = param(0.06, "official code", low=0, high=1, help="of the target, added to each batch")
        model_horizon: int = param(4, "official code", low=1, help="decisions over which the model's error is taken")

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("horizon", "rounds"):
                line = getattr(self, name)
                if len(line) != 3 or line[2] < 1 or line[0] > line[1]:
                    raise UsageError(
                        f"{name} is first, last, no less than that, and the number of epochs until then, not {line}"
                    )
            if self.rounds[0] < 1:
                raise UsageError("an epoch has at least one round")
            if self.imagining and self.horizon[0] < 1:
                raise UsageError(f"a horizon is at least 1 in every epoch, or (0, 0, 1) for no model: {self.horizon}")
            if not self.imagining:
                self.refuse(
                    "imagines", "imagined_size", "starts", "real_share", "model_horizon", because="without a model"
                )

        @property
        def imagining(self) -> bool:
            return max(self.horizon[:2]) > 0

    entry = False
    early = False
    saved = ("epoch", "left")
    source: Rollouts  # type: ignore[assignment]
    model: Structured | None
    model_optimizer: Optimizer | None

    def build(self, task: Task) -> None:
        config = self.config
        self.epoch = 0  # epochs that have begun
        self.left = 0  # gradient steps that are left of the present one
        self.numbers: dict[str, Tensor] = {}
        super().build(task)
        self.model, self.model_optimizer = (self.part(name, lambda: None) for name in ("model", "model_optimizer"))
        self.replay = Replay(config.replay_size, discount=config.discount, name="target")
        self.imagined = self.make_imagined()

    def make_source(self, task: Task) -> Rollouts:  # type: ignore[override]
        return Rollouts(task, 1, self.ledger)

    def make_imagined(self) -> Replay:
        """As large as what is imagined in the present epoch."""
        config, epoch = self.config, max(self.epoch - 1, 0)
        size = ramp(config.rounds, epoch) * config.starts * ramp(config.horizon, epoch)
        size = max(min(size, config.imagined_size), config.batch_size)
        return Replay(size, discount=config.discount, name="imagined")

    def rebuilt(self) -> None:
        self.imagined = self.make_imagined()

    def take_over(self, other: ParallelSAC) -> None:
        """Goes on with the averages of Adam and the target critics of the one that pretrained."""
        self.target_critic.load_state_dict(other.target_critic.state_dict())
        self.policy_optimizer.load_extra_state(other.policy_optimizer.extra_state())
        self.critic_optimizer.load_extra_state(other.critic_optimizer.extra_state())

    @property
    def behavior(self) -> Actor:
        return Greedy(self.policy) if self.config.acts == "mode" else self.policy

    def play(self, steps: int) -> None:
        """So many decisions in the target, at least one in each row; critics see them as the model's."""
        self.source.steps = max(steps // self.task.num, 1)
        window = self.seen(self.source.next(self.behavior))
        self.replay.add(window)
        if self.config.imagining:
            self.imagined.add(self.replay.whole()[-window.numel() :].select(*KEYS))

    def fit(self) -> dict[str, Tensor]:
        """The model learns from all that is known of the target."""
        assert self.model is not None
        data = windows(as_task(self.replay.whole(), self.policy), self.config.model_horizon, self.replay.rows)
        return Fitting(self.model, data, seed=self.epoch, optimizer=self.model_optimizer).run()

    def begin_epoch(self) -> None:
        config = self.config
        if self.epoch == 0:
            self.play(config.warmup)
        self.numbers = self.fit() if config.imagining else {}
        self.epoch += 1
        if config.imagining:
            larger = self.make_imagined()
            if larger.capacity > self.imagined.capacity:
                larger.become(self.imagined)
                self.imagined = larger
        self.play(config.epoch_steps)
        self.left = ramp(config.rounds, self.epoch - 1) * config.round_updates

    def imagine(self) -> None:
        """A round: what the policy would do from recorded states, in the model."""
        config = self.config
        assert self.model is not None
        start = put(self.replay.sample(config.starts)["obs"], device_of(self.policy))
        horizon, greedy = ramp(config.horizon, self.epoch - 1), config.imagines == "mode"
        seen = self.model.imagine(self.policy, start, horizon, greedy=greedy, noisy=config.sees)
        self.imagined.add(seen)
        self.numbers |= {"imagined_reward": seen["reward"].mean(), "horizon": torch.tensor(float(horizon))}

    def collect(self) -> Batch:
        config = self.config
        if self.left == 0:
            self.begin_epoch()
        if config.imagining and self.left % config.round_updates == 0:
            self.imagine()
        self.left -= 1
        if not config.imagining:
            return cast(Batch, put(self.replay.sample(config.batch_size), device_of(self.policy)))
        parts = [self.imagined.sample(config.batch_size)]
        if real := int(config.real_share * config.batch_size):
            parts.append(self.replay.sample(real))
        batch = torch.cat([part.select(*KEYS, "discount") for part in parts])
        return cast(Batch, put(batch, device_of(self.policy)))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return super().update(batch) | self.numbers


def as_task(batch: Batch, policy: Actor) -> Batch:
    """Stored decisions with the actions that the task was given."""
    return batch.clone(False).set("action", policy.env_action(put(batch["action"], device_of(policy))).cpu())
