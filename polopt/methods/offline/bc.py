"""Behavioral cloning: supervised learning of a policy on demonstrated actions.

Pomerleau, "ALVINN: An Autonomous Land Vehicle in a Neural Network", 1989; as a baseline of offline reinforcement
learning for example in arXiv 2004.07219.

    loss   E_(s, a) ~ demonstrations [ imitation_loss(s, a) ]      -log pi(a|s); squared error if deterministic

Demonstrations are a file that `polopt eval RUN --record FILE` wrote, a dataset in Minari's format (also as `--task`),
or "random": episodes of uniform random actions.

A policy that was cloned is where another method can begin: `--preset dql|ofql|pa-rl` clones one that these take with
`--init`.

Departs from the paper in: any policy that can imitate, and minibatches with Adam.
"""

from dataclasses import dataclass

from torch import Tensor

from polopt.bases.method import Method, Smoke
from polopt.bases.offline import DISTANCES, distance_from, recorded_data, sample_of
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, decision_mean, weigh
from polopt.core.errors import UsageError
from polopt.data.demonstrations import Samples
from polopt.losses.regression import imitation
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.policies import AnyPolicy, Auto
from polopt.policies.base import Imitates, Scores, require, with_noise
from polopt.tasks.base import Task

# Policies that these methods take with --init, as they have them by default.
DQL = {"network.sizes": (256, 256, 256), "network.activation": "mish"}
PA_RL = {
    "lr": 3e-4,
    "lr_schedule": "cosine",
    "policy": "diffusion",
    "policy.schedule": "cosine",
    "policy.time_size": 128,
    "network.sizes": (256, 256, 256),
    "network.activation": "silu",
    "network.normalization": "layer",
    "network.blocks": "residual",
    "network.dropout": 0.1,
}


class BC(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        demonstrations: str = param(
            "",
            "polopt",
            help="a dataset, a file (.hdf5 or .npz of D4RL's shape, or of 'polopt eval RUN --record FILE'), or random; "
            "default: the dataset of --task",
        )
        random_episodes: int = param(10, "polopt", low=1, help="how many episodes 'random' records")
        batch_size: int = param(256, "arXiv 2004.07219", low=1)
        lr: float = param(1e-3, "assumed", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "assumed")
        entropy_coefficient: float = param(0.0, "assumed", low=0, help="bonus against overconfidence")
        normalize_obs: bool = param(False, "assumed", help="with the mean and deviation of the demonstrations")
        network: Network = param(Network((256, 256), "relu"), "arXiv 2004.07219")
        policy: AnyPolicy = param(Auto(), "polopt")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.demonstrations != "random":
                self.refuse("random_episodes", because="without the demonstrations 'random'")

    slug = "bc"
    unit = "updates"
    imitates = True
    requires = (Imitates,)
    headline = ("imitation_loss",)
    trains_on = "recorded data, any task"
    metrics = {
        "imitation_loss": "per decision, -log pi(a|s) of the demonstrated action (in nats), or the squared error of a "
        "deterministic policy; on the data that it learns from | whether the clone acts well is `eval/return`",
        "entropy": "of the policy, in nats, where it has a bonus",
        **DISTANCES,
    }
    _sample: Batch | None = None  # of the demonstrations, for evaluations
    default_steps = 10_000
    presets = {"dql": {"policy": "diffusion", "policy.min_std": 0.0} | DQL, "ofql": {"policy": "mean-flow"} | DQL}
    presets |= {"pa-rl": PA_RL}
    no_limit = "it is a base: there is nothing simpler in the catalogue that it could be"
    smoke = Smoke("CartPole-v1", 16, {"demonstrations": "random", "batch_size": 32, "network.sizes": (16,)})

    def build(self, task: Task) -> None:
        config = self.config
        normalizer = Normalizer(self.spec.obs) if config.normalize_obs else None
        self.policy = self.make_policy(config.policy, network=config.network, normalizer=normalizer)
        if self.policy.recurrent:
            raise UsageError(
                "bc draws single decisions, which a recurrent policy cannot learn from: network.recurrent none"
            )
        self.optimizer = self.make_optimizer(self.policy, lr=config.lr, schedule=config.lr_schedule)

    def check_policy(self) -> None:
        super().check_policy()
        if self.config.entropy_coefficient > 0:
            require(self.policy, Scores, by="bc with an entropy bonus")

    def prepare(self) -> None:
        data = self.demonstrations()
        data["action"] = self.policy.own_action(data["action"])
        self.policy.update_normalizer(data)
        self._sample = sample_of(data)
        self.source = Samples(data, self.config.batch_size, self.generator)

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        scores = super().evaluate(task, episodes, greedy=greedy)
        return scores if self._sample is None else scores | distance_from(self._sample, self.policy)

    def demonstrations(self) -> Batch:
        """The demonstrations [B], with actions in the environment's units; "random" ones are the same at a resume."""
        config = self.config
        data = recorded_data(config.demonstrations, self.task, random_episodes=config.random_episodes)
        if data is None:
            raise UsageError(
                "bc needs demonstrations: a file that 'polopt eval RUN --record FILE' writes, or a dataset as --task"
            )
        return data

    def imitation_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = imitation(self.policy.imitation_loss(batch, batch.get("noise", None)), batch["weight"])
        metrics = {"imitation_loss": loss}
        if self.config.entropy_coefficient > 0:
            entropy = decision_mean(self.policy.entropy(batch), batch["weight"])
            return loss - self.config.entropy_coefficient * entropy, metrics | {"entropy": entropy}
        return loss, metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return self.optimizer.minimize(self.imitation_loss, with_noise(self.policy, weigh(batch)))
