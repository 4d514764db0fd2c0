"""Discriminator-actor-critic: off-policy learning of a reward that tells an expert's decisions from one's own.

Kostrikov et al., "Discriminator-Actor-Critic: Addressing Sample Inefficiency and Reward Bias in Adversarial Imitation
Learning", 2018, arXiv 1809.02925.

    discriminator   E_expert[softplus(-d(s, a))] + E_replay[softplus(d(s, a))] + penalty E[(|grad d(x)| - 1)^2]
                    x between a decision of the expert and one of the replay, at a share that is uniform in [0, 1]
    reward          d(s, a), computed whenever a transition is drawn: none is stored, and none is the task's
    all else        as SAC (sac.py)

Each update is `discriminator_updates` steps of the discriminator, then one of SAC. `divergence` chooses other losses
(models/discriminator.py), `bound` keeps d within +-bound.

Differs from its base, GAIL (arXiv 1606.03476), in drawing from a replay of all policies so far, without weights for it,
and in the reward, which is the logit and so has no sign of its own.

Departs from the paper in: SAC in place of TD3, with its entropy; the discriminator takes turns with the policy at every
update, not episode by episode, on 256 rows of each side and not 100; absorbing states are not modelled, so d says
nothing of ends, and episodes should have one length.
"""

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.method import Smoke
from polopt.bases.offline import recorded_data
from polopt.config import param
from polopt.core.batch import Batch, average, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.data.base import put
from polopt.data.relabel import relabeled
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.methods.control.sac import SAC
from polopt.models.discriminator import KINDS, Discriminator, discrimination
from polopt.networks import Network
from polopt.tasks.base import Task

SIDE = ("obs", "action")


def first_episodes(data: Batch, count: int) -> Batch:
    """The first `count` episodes of recorded decisions [B]. Raises UsageError where there are fewer."""
    number = data["first"].cumsum(0)
    if count > (there := int(number[-1])):
        raise UsageError(f"there are {there} recorded episodes, and {count} are to be learned from")
    return data[number <= count]


class DAC(SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        demonstrations: str = param(
            "",
            "polopt",
            help="the expert: a dataset, a file of 'polopt eval RUN --record FILE', or random; default: the dataset "
            "that --task names",
        )
        random_episodes: int = param(10, "polopt", low=1, help="how many episodes 'random' records")
        episodes: int | None = param(None, "polopt", low=1, help="of the expert, the first ones; none: all")
        divergence: str = param("logistic", "section 4", choices=KINDS, help="the loss of the discriminator")
        penalty: float = param(10.0, "official code", low=0, help="of gradients whose length is not 1")
        bound: float | None = param(None, "official code", above=0, help="rewards are within +-bound, by tanh")
        discriminator_rows: int = param(256, "polopt", low=1, help="of each side in a step")
        discriminator_updates: int = param(1, "official code", low=1, help="steps of the discriminator in an update")
        discriminator_lr: float = param(1e-3, "official code", above=0)
        discriminator_network: Network = param(Network((256, 256), "tanh", init="orthogonal"), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("discriminator_network.head_gain", because="on a discriminator, whose last layer has scale 1")
            if self.demonstrations != "random":
                self.refuse("random_episodes", because="without the demonstrations 'random'")

    slug = "dac"
    headline = ("discriminator_loss", "expert_score", "learner_score", "entropy")
    trains_on = "recorded decisions of an expert and the task itself, without its rewards; box actions"
    metrics = {
        "discriminator_loss": "without the penalty | logistic: near 2 log 2 = 1.39 where the two cannot be told apart",
        "expert_score": "mean reward of the expert's decisions | comes near `learner_score`",
        "learner_score": "mean reward of the learner's own",
        "gradient_penalty": "mean squared distance of the gradient's length from 1 | small beside the loss",
        "reward": "mean reward of the batch that the policy learns from",
    }
    default_steps = 250_000
    presets = {"pendulum": SAC.presets["pendulum"] | {"discriminator_network.sizes": (64, 64)}}
    no_limit = "its base, GAIL, is not in the catalogue"
    smoke = Smoke(
        "Pendulum-v1",
        56,
        {
            "demonstrations": "random",
            "random_episodes": 2,
            "warmup": 32,
            "batch_size": 16,
            "discriminator_rows": 16,
            "network.sizes": (16, 16),
            "discriminator_network.sizes": (8,),
            "replay_size": 1_000,
        },
    )
    expert: Batch  # recorded decisions [B]

    def build(self, task: Task) -> None:
        config = self.config
        super().build(task)
        self.discriminator = self.part(
            "discriminator", Discriminator, self.spec, config.discriminator_network, config.bound
        )
        self.discriminator_optimizer = self.make_optimizer(self.discriminator, lr=config.discriminator_lr)

    def make_source(self, task: Task) -> ReplaySource:
        source = super().make_source(task)
        source.replay.steps = SIDE
        return source

    def prepare(self) -> None:
        config = self.config
        data = recorded_data(config.demonstrations, self.task, random_episodes=config.random_episodes)
        if data is None:
            raise UsageError(f"{self.slug} imitates an expert: name a dataset as --task or with --demonstrations")
        data = data if config.episodes is None else first_episodes(data, config.episodes)
        self.expert = data.clone(False).set("action", self.policy.own_action(data["action"])).select(*SIDE)

    def collect(self) -> Batch:
        """Paired: `replay` [B] for the policy, `expert` and `learner` [K, M] for K steps of the discriminator."""
        return self.paired(super().collect(), self.source.replay, self.config.discriminator_updates)

    def paired(self, batch: Batch, learner: Replay, steps: int) -> Batch:
        """With `batch` what `steps` steps of the discriminator tell apart: the expert and what `learner` holds."""
        shape, device = (steps, self.config.discriminator_rows), device_of(self.policy)
        expert = self.expert[torch.randint(len(self.expert), shape, generator=self.generator)]
        drawn = learner.sample(shape[0] * shape[1]).select(*SIDE).reshape(shape)
        return TensorDict({"replay": batch, "expert": put(expert, device), "learner": put(drawn, device)}, [])

    def witness(self, expert: Batch, learner: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """What the discriminator minimizes. It is differentiated twice, so it is no `*_loss`, which may be compiled."""
        config = self.config
        share = torch.rand(len(expert), generator=self.generator).to(expert["action"].device)
        expert, learner = weigh(expert), weigh(learner)
        loss, metrics = discrimination(self.discriminator, expert, learner, config.divergence)
        penalty = weighted_mean(self.discriminator.penalty(expert, learner, share), expert["weight"])
        return loss + config.penalty * penalty, metrics | {"gradient_penalty": penalty}

    def discriminate(self, batch: Batch) -> dict[str, Tensor]:
        """A step of the discriminator on each pair of its sides."""
        steps = []
        for expert, learner in zip(batch["expert"], batch["learner"]):
            loss, metrics = self.witness(expert, learner)
            self.discriminator_optimizer.step(loss)
            steps.append({name: value.detach() for name, value in metrics.items()})
        return average(steps) if steps else {}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.discriminate(batch)
        replay = relabeled(batch["replay"], self.discriminator.reward)
        return metrics | super().update(replay) | {"reward": replay["reward"].mean()}
