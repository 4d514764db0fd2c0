"""Reinforcement learning with prior data: soft actor-critic that samples recorded decisions beside its own.

Ball et al., "Efficient Online Reinforcement Learning with Offline Data", 2023, arXiv 2302.02948.

Nothing is pretrained and nothing holds the policy to the data. What makes recorded decisions useful is symmetric
sampling, layer normalization in the critics, which bounds what they say of actions nobody took, and many updates for
each step of the environment, which an ensemble of critics keeps from overestimating.

A batch is `updates_per_step` slices of `batch_size` transitions, a share `prior_share` of each from the data:

    target      y = reward + discount (1 - terminated) (min over M random members of Q_targ(s', a')
                                                        - [backup_entropy] temperature log pi(a'|s'))
    critic      mean_i E[ (Q_i(s, a) - y)^2 ]                 a step on every slice, each followed by one of Q_targ
    policy      E[ temperature log pi(a|s) - mean_i Q_i(s, a) ]                               one step on the last slice
    temperature E[ temperature (entropy - target_entropy) ],  target_entropy = -1/2 for each coordinate of the action

with E = `critics` and M = `target_critics`, drawn anew for every step.

Differs from SAC in: prior data, E layer-normalized critics of which M at random are the target, their mean in the
policy's loss, several critic steps for one of the policy, half the target entropy. With two critics that are both the
target, their minimum in the policy's loss, one update a step and no data it is SAC.

Departs from the paper in: networks begin as elsewhere here, not with Xavier's uniform weights, and recorded transitions
stand before the own ones in a slice, where the official code takes turns.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke, Study
from polopt.bases.offline import recorded_data
from polopt.config import param
from polopt.core.batch import Batch, average, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.data.demonstrations import Samples
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.losses.regression import regression
from polopt.methods.control.sac import SAC
from polopt.networks import Network
from polopt.optim import polyak_update
from polopt.regularizers import Learned
from polopt.regularizers.entropy import EntropyTemperature
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble
from polopt.values.targets import reduce_members

KEYS = ("obs", "action", "reward", "next_obs", "terminated", "truncated", "discount")
EDGE = 1.0 - 1e-5  # recorded actions of a policy that acts in [-1, 1] stay inside, as in the official code
DEEP = {"network.sizes": (256, 256, 256), "critic_network.sizes": (256, 256, 256), "backup_entropy": False}


def drawn(members: int, count: int, generator: torch.Generator) -> Tensor:
    """The numbers [count] of different members, all equally likely."""
    return torch.randperm(members, generator=generator)[:count]


class RLPD(SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        dataset: str = param(
            "",
            "polopt",
            help="prior data: a dataset such as pendulum/medium-v0, a file of 'polopt eval RUN --record FILE', or "
            "random; default: the dataset that --task names",
        )
        random_episodes: int = param(10, "polopt", low=1, help="how many episodes 'random' records")
        prior_share: float = param(
            0.5, "section 4.1", low=0, below=1, help="of a batch from the prior data; 0: no data"
        )
        reward_shift: float = param(0.0, "official code", help="added to all rewards")
        warmup: int = param(5_000, "official code", low=1, unit="env_steps", help="uniform random actions at the start")
        updates_per_step: int = param(20, "table 1", low=1, help="critic steps for one of the policy, in each update")
        critics: int = param(10, "table 1", low=1, help="members of the critic ensemble")
        target_critics: int = param(2, "table 2", low=1, help="random members whose minimum is the target")
        policy_critic: str = param(
            "mean", "official code", choices=("min", "mean"), help="reduction in the policy loss"
        )
        backup_entropy: bool = param(True, "table 2", help="the target counts the entropy of the next action")
        critic_network: Network = param(Network((256, 256), "relu", normalization="layer"), "table 1")

        meaning = {"entropy.target_entropy": "none: minus half the number of action coordinates"}
        of_prior: ClassVar[tuple[str, ...]] = ("dataset",)  # has no effect with a share of 0

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("critic_network.head_gain", because="on a critic, whose last layer has scale 1")
            if self.target_critics > self.critics:
                raise UsageError(f"of {self.critics} critics {self.target_critics} cannot be the target")
            if self.dataset != "random":
                self.refuse("random_episodes", because="without the dataset 'random'")
            if self.prior_share == 0:
                self.refuse(*self.of_prior, because="without prior data")
            elif not 0 < self.prior_rows < self.batch_size:
                raise UsageError(f"a share of {self.prior_share:g} of {self.batch_size} transitions is all or nothing")

        @property
        def prior_rows(self) -> int:
            """Transitions of the prior data in each slice."""
            return int(self.batch_size * self.prior_share)

    slug = "rlpd"
    trains_on = "the task itself with recorded data beside; box actions"
    metrics = {
        "critic_loss": "the squared error, mean over critics | may grow with the returns",
        "policy_loss": "temperature log pi - mean Q | falls as values rise; its level means nothing",
        "entropy": "-log pi of fresh samples, in nats, in the policy's units [-1, 1] | settles at minus half the "
        "number of action coordinates",
    }
    default_steps = 250_000
    presets = {
        "locomotion": {},
        "antmaze": DEEP | {"target_critics": 1, "reward_shift": -1.0},
        "adroit": DEEP,
    }
    studies = {  # Minari's sets, which were recorded anew; those of the paper's sparse Adroit tasks are not among them
        "locomotion": Study("mujoco/halfcheetah/expert-v0", steps=250_000),
        "antmaze": Study("D4RL/antmaze/umaze-v1", steps=300_000),
    }
    no_limit = ""
    limits = (
        Limit(
            "sac",
            at={
                "prior_share": 0.0,
                "critics": 2,
                "target_critics": 2,
                "policy_critic": "min",
                "updates_per_step": 1,
                "critic_network.sizes": (16, 16),
                "critic_network.normalization": "none",
                "entropy.target_entropy": -1.0,
            },
            apart={"target_critics": 1},
            because="two random critics out of two are both, and the mean of two squares is the sum of half squares",
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        56,
        {
            "dataset": "random",
            "random_episodes": 1,
            "warmup": 32,
            "batch_size": 16,
            "updates_per_step": 2,
            "critics": 3,
            "network.sizes": (16, 16),
            "critic_network.sizes": (16, 16),
            "replay_size": 1_000,
        },
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        updates = max(steps - config.warmup, 0) // config.steps_per_update
        each = config.batch_size * config.updates_per_step
        return {"transitions per update": each, "updates": updates, "critic steps": updates * config.updates_per_step}

    def make_temperature(self) -> EntropyTemperature:
        entropy = self.config.entropy
        if isinstance(entropy, Learned) and entropy.target_entropy is None:
            entropy = replace(entropy, target_entropy=-0.5 * self.spec.action_dim)
        return entropy.build(self.spec)

    def make_source(self, task: Task) -> ReplaySource:
        config = self.config
        source = super().make_source(task)
        source.batch_size = config.updates_per_step * (config.batch_size - config.prior_rows)
        source.ratio = 1 / config.steps_per_update
        return source

    def make_critic(self) -> QEnsemble:
        return QEnsemble(self.spec, self.config.critic_network, members=self.config.critics)

    def prior_data(self) -> Batch:
        """The recorded decisions [B], with actions as the policy stores them. Raises UsageError when there are none."""
        data = recorded_data(self.config.dataset, self.task, random_episodes=self.config.random_episodes)
        if data is None or "next_obs" not in data.keys():
            raise UsageError(f"{self.slug} needs prior data: name a dataset as --task or with --dataset")
        action = self.policy.own_action(data["action"])
        return data.clone(False).set("action", action.clamp(-EDGE, EDGE) if self.policy.unit else action)

    def prepare(self) -> None:
        if self.config.prior_share > 0:
            self.sample_beside(self.prior_data())

    def sample_beside(self, data: Batch) -> None:
        """Every slice has its share of these decisions [B] from now on."""
        config = self.config
        steps = Replay(len(data), n_step=config.n_step, discount=config.discount, seed=0)
        steps.add(data)
        self.prior = Samples(steps.whole(), config.updates_per_step * config.prior_rows, self.generator)

    def collect(self) -> Batch:
        batch = super().collect()
        if self.config.prior_share > 0:
            prior = self.prior.next(self.policy)
            slices: Any = [each.select(*KEYS).reshape(self.config.updates_per_step, -1) for each in (prior, batch)]
            batch = cast(Batch, torch.cat(slices, 1)).reshape(-1)
        return batch.clone(False).set("reward", batch["reward"] + self.config.reward_shift)

    def critic_loss(self, batch: Batch, some: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        q = self.critic(batch["obs"], batch["action"])
        loss = regression(q, self.target(batch, some), batch["weight"]) * (2.0 / len(q))
        return loss, {"critic_loss": loss, "q": weighted_mean(q.mean(0), batch["weight"])}

    @torch.no_grad()
    def target(self, batch: Batch, some: Tensor | None = None) -> Tensor:
        """What the critics are regressed on [B], by the members `some` [M]; time limits are bootstrapped through."""
        next_action, next_log_prob = self.next_action(batch["next_obs"])
        q = self.target_values(batch["next_obs"], next_action)
        next_q = reduce_members(q if some is None else q.index_select(0, some), "min")
        return self.soft_target(batch, next_q, next_log_prob if self.config.backup_entropy else None)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        config, steps = self.config, []
        for part in batch.split(config.batch_size):
            weighed = weigh(part)
            some = drawn(config.critics, config.target_critics, self.generator).to(weighed["reward"].device)
            steps.append(self.critic_optimizer.minimize(self.critic_loss, weighed, some=some))
            polyak_update(self.target_critic, self.critic, config.tau)
        return average(steps) | self.improve(weighed) | {"entropy_temperature": self.temperature.value}
