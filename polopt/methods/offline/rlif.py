"""Interactive imitation as reinforcement learning: what is learned from is the decision to take over.

Luo et al., "RLIF: Interactive Imitation Learning as Reinforcement Learning", 2024, arXiv 2311.12996.

An overseer watches and may act for `hold` decisions in the learner's place. Cloning these actions makes the learner as
good as the overseer at best. Here nobody asks whether they are good: what leads into a takeover is bad, everything else
is equal, and the learner ends where nobody wants to take over.

    reward of a decision   -1 if a takeover begins at the next one or it ends in failure, else 0; never the task's own
    stored                 decisions of the learner, and the last one of a takeover; those that lie within are not,
                           unless `inside`
    all else               as RLPD (rlpd.py): critics, targets, policy, temperature, updates for each step

The replay begins with recorded decisions, after which nobody takes over. Who oversees is `overseer`: a scripted expert
of the world, by value or by chance, or a person or program of your own, `--overseer module:function`, which is asked
with one observation and the action that the learner is about to take, and returns an action to take over or None. An
overseer that judges what the learner is about to do makes the decision before it bad; one that comes late
(`--overseer.late true`) that very decision, which has been done by then.

Differs from RLPD in: what is collected, with the overseer's part in it, and the rewards; the target without entropy;
data in the replay and not beside it (`prior_share` has both); no random actions at the start.

Departs from the paper in: values are compared by a difference and not by a factor, which means nothing below 0. The
last decision of an episode is stored, where the released code forgets it: cut by a time limit it has reward 0 and a
successor; ended, it has reward -1 (`ends` says what an end is, in recorded episodes as well), since otherwise failing
would be the best that can happen among rewards of 0 and -1. What a `prior_share` draws has such rewards too, where the
released code has the task's own. Networks begin and recorded actions are clamped as in RLPD.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.data.relabel import Delayed
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.data.rollouts import Rollouts
from polopt.methods.control.rlpd import RLPD
from polopt.networks import Network
from polopt.policies.overseeing import AnyOverseer, ByChance, ByValue
from polopt.policies.takeover import Intervened
from polopt.tasks.base import Task

STORED = ("obs", "action", "reward", "terminated", "truncated")
DEEP = (256, 256, 256)


def supervised(window: Batch, ends: str, inside: bool) -> Batch:
    """The decisions [N, T] of a watched learner with rewards from what followed: `takeover` and `next_takeover`, bool,
    say who acted and who acts next (`polopt.data.relabel.Delayed`). `mask` says which are stored."""
    within = window["takeover"] & window["next_takeover"]
    begins = window["next_takeover"] & ~window["takeover"]
    failed = window["terminated"] if ends == "failure" else torch.zeros_like(begins)
    kept = torch.ones_like(begins) if inside else ~within
    if ends == "dropped":
        kept = kept & ~window["terminated"]
    reward = -(begins | failed).to(window["reward"].dtype)
    return window.clone(False).update({"reward": reward, "mask": kept})


class RLIF(RLPD):
    @dataclass(frozen=True)
    class Config(RLPD.Config):
        overseer: AnyOverseer = param(ByValue(), "section 5", help="who watches; or module:function of your own")
        hold: int | None = param(
            4,
            "official code",
            low=1,
            help="decisions of a takeover, fewer if who is asked lets go; none: as long as the overseer wants to",
        )
        inside: bool = param(False, "official code", help="store the decisions within a takeover as well")
        ends: str = param(
            "failure",
            "assumed",
            choices=("failure", "success", "dropped"),
            help="what the end of an episode is, other than by a time limit; dropped: it is not stored",
        )
        prior_share: float = param(
            0.0, "official code", low=0, below=1, help="of a batch from the prior data, beside that in the replay"
        )
        warmup: int = param(
            0, "official code", low=0, unit="env_steps", help="under the eyes of the overseer, before the first update"
        )
        updates_per_step: int = param(5, "official code", low=1, help="critic steps for one of the policy")
        backup_entropy: bool = param(False, "official code", help="the target counts the entropy of the next action")
        network: Network = param(Network(DEEP, "relu"), "official code")
        critic_network: Network = param(Network(DEEP, "relu", normalization="layer"), "official code")

        of_prior: ClassVar[tuple[str, ...]] = ()  # the replay begins with the dataset, whatever the share beside it

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("reward_scale", "reward_shift", "n_step", because="with rewards that are made of takeovers")

    slug = "rlif"
    headline = ("takeover", "q", "entropy", "critic_loss")
    trains_on = "the task itself under the eyes of an overseer; box actions"
    metrics = {
        "takeover": "share of decisions in which the overseer acts | falls as the learner is left alone, to what its "
        "mistakes make of it",
        "q": "mean action value of the batch, over critics: minus the discounted number of takeovers to come | rises "
        "towards 0",
    }
    default_steps = 1_000_000
    presets = {
        "pen": {},
        "hopper-random": {"updates_per_step": 15, "hold": None, "overseer": ByChance(rate=0.5)},
        "walker": {"updates_per_step": 1},
    }
    studies = {}
    limits = (
        Limit(
            "rlpd",
            at={"warmup": 0},
            base_at={"prior_share": 0.0, "dataset": "", "random_episodes": 10, "backup_entropy": False},
            apart={"backup_entropy": True},
            because="on the same decisions the two are one: what differs is who acts, and the rewards",
            task="point/navigation",
        ),
    )
    smoke = Smoke(
        "point/navigation",
        60,
        {
            "dataset": "random",
            "random_episodes": 2,
            "batch_size": 16,
            "updates_per_step": 2,
            "critics": 3,
            "overseer": ByValue(ahead=3, margin=0.001),
            "network.sizes": (16,),
            "critic_network.sizes": (16,),
            "replay_size": 1_000,
        },
        task_options={"horizon": 12, "ends": True, "reach": 0.4},
    )

    watched: Intervened
    takeover = torch.zeros(())

    @property
    def behavior(self) -> Any:
        return self.watched

    def make_source(self, task: Task) -> ReplaySource:
        config = self.config
        return ReplaySource(
            Delayed(Rollouts(task, config.steps_per_update, self.ledger), ("takeover",)),
            Replay(config.replay_size, discount=config.discount),
            batch_size=config.updates_per_step * (config.batch_size - config.prior_rows),
            warmup=config.warmup,
            ratio=1 / config.steps_per_update,
            store=self.store,
        )

    def prepare(self) -> None:
        config = self.config
        overseer = config.overseer.build(self.policy, self.task, config.discount)
        self.watched = Intervened(self.policy, overseer, config.hold)
        data = self.prior_data()
        self.source.replay.add(data)
        if config.prior_share > 0:
            self.sample_beside(data)

    def prior_data(self) -> Batch:
        """The recorded decisions [B] that are stored, with the rewards of those after which nobody takes over."""
        data, config = super().prior_data(), self.config
        nobody = torch.zeros(len(data), dtype=torch.bool)
        data = supervised(data.set("takeover", nobody).set("next_takeover", nobody), config.ends, config.inside)
        return data[data["mask"]].select(*STORED, "next_obs")

    def store(self, window: Batch) -> Batch:
        """What the replay stores of a window; the share of takeovers in it is noted."""
        self.takeover = window["takeover"].float().mean()
        return supervised(window, self.config.ends, self.config.inside).select(*STORED, "mask", "final_obs")

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return super().update(batch) | {"takeover": self.takeover}
