"""What methods that learn from a dataset share: opening it, scaling its rewards, and going on online. Not a method."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Method
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.random import paired
from polopt.data.arrays import load_arrays, training_data
from polopt.data.base import put
from polopt.data.datasets import episode_returns, load_dataset
from polopt.data.demonstrations import KEYS, Samples, load_demonstrations, record
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.data.rollouts import Rollouts
from polopt.data.trajectories import Trajectories
from polopt.evaluation.measures import neighbor_distance
from polopt.policies.wrappers import Uniform
from polopt.tasks.arrays import is_arrays
from polopt.tasks.base import Task
from polopt.tasks.recorded import DATASET_ID
from polopt.tasks.unplayed import Unplayed

DISTANCES = {
    "action_gap": "at evaluations: mean distance per coordinate (of discrete actions the share) of the greedy action "
    "from the recorded one, at states of the data | far above that of cloning: the policy has left the data",
    "data_distance": "at evaluations: mean distance of (state, greedy action) from the nearest decision of the data, "
    "in deviations of the columns | while it is small, the critic has seen the like",
}
SAMPLE, ASKED = 5_000, 500  # recorded decisions that evaluations look at, and states at which the policy is asked
SCALES = ("none", "return-range", "minus-one", "minus-three", "antmaze", "sparse", "zero")


class Offline(Method):
    """Base of the methods that learn from recorded decisions.

    Batches are uniform minibatches [batch_size] with obs, action (as the policy acts), reward (scaled), next_obs,
    terminated, truncated. With `offline_updates`, each later update also takes `online_steps` in the environment, with
    the exploring policy, and stores them beside the dataset; these rewards are scaled likewise.

    Subclasses build `policy` and the rest in `build`; the dataset is opened in `prepare`, so a policy is loaded
    without it.
    """

    @dataclass(frozen=True)
    class Config(Method.Config):
        dataset: str = param(
            "",
            "polopt",
            help="a dataset such as pendulum/medium-v0, a file (.hdf5 or .npz of D4RL's shape, or of 'polopt eval RUN "
            "--record FILE'), or random; default: the dataset that --task names",
        )
        random_episodes: int = param(10, "polopt", low=1, help="how many episodes 'random' records")
        batch_size: int = param(256, "polopt", low=1)
        rewards: str = param(
            "none",
            "polopt",
            choices=SCALES,
            help="return-range: times 1000 / (largest - smallest return of the dataset); minus-one: minus 1; "
            "minus-three: 3 (reward - 1); antmaze: 4 (reward - 1/2); sparse: 10000 reward - 1; zero: 0",
        )
        offline_updates: int | None = param(
            None, "polopt", low=0, help="updates before it goes on online, collecting; none: it never does"
        )
        online_steps: int = param(1, "polopt", low=1, unit="env_steps", help="collected per update, online")
        replay_size: int = param(
            2_000_000, "polopt", low=1, unit="transitions", help="dataset and online experience together"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.dataset != "random":
                self.refuse("random_episodes", because="without the dataset 'random'")
            if self.offline_updates is None:
                self.refuse("online_steps", "replay_size", because="without offline_updates: it never goes online")

    unit = "updates"
    probes = {"replay_size": {"replay_size": 401}}
    default_steps = 1_000_000
    metrics = DISTANCES
    reward_scale: float = 1.0
    reward_shift: float = 0.0
    _sample: Batch | None = None  # of the data, for evaluations

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        if config.offline_updates is None:
            return {}
        return {"online environment steps": max(steps - config.offline_updates, 0) * config.online_steps}

    def prepare(self) -> None:
        config = self.config
        data = self.dataset()
        self.reward_scale, self.reward_shift = reward_scaling(data, config.rewards)
        data = data.clone(False).set("action", self.policy.own_action(data["action"]))
        self.policy.update_normalizer(data)
        self._sample = sample_of(data)
        self.examine(data)
        if config.offline_updates is None:
            self.source = Samples(data, config.batch_size, self.generator)
            return
        online = self.task.num * config.online_steps
        if len(data) + online > config.replay_size:
            raise UsageError(f"{self.slug} needs a replay-size above the {len(data):,} decisions of its dataset")
        replay = Replay(config.replay_size, seed=int(self.generator.initial_seed()))
        replay.add(data)
        rollouts = Rollouts(self.task, config.online_steps, self.ledger)
        ratio = 1.0 / (self.task.environments * config.online_steps)
        self.source = OfflineThenOnline(rollouts, replay, config.batch_size, config.offline_updates, ratio)

    def examine(self, data: Batch) -> None:
        """For what a method makes of the whole dataset [B], actions as the policy acts, once before it learns."""

    def dataset(self) -> Batch:
        """The recorded decisions [B], actions in the environment's units. Raises UsageError when there are none."""
        data = recorded_data(self.config.dataset, self.task, random_episodes=self.config.random_episodes)
        if data is None:
            raise UsageError(f"{self.slug} learns from a dataset: name one as --task, or with --dataset")
        if "next_obs" not in data.keys():
            raise UsageError(
                f"{self.slug} needs the observation after each decision: record {self.config.dataset} anew"
            )
        return data

    def collect(self) -> Batch:
        batch = super().collect().clone(False)
        batch["reward"] = self.reward_scale * batch["reward"] + self.reward_shift
        if self.policy.unit:  # what was sampled beyond the bounds had the effect of the bound
            batch["action"] = batch["action"].clamp(-1.0, 1.0)
        return batch

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """As `Method.evaluate`; while there are data also how far the policy is from them: `distance_from`."""
        scores = super().evaluate(task, episodes, greedy=greedy)
        return scores if self._sample is None else scores | distance_from(self._sample, self.policy)


def sample_of(data: Batch) -> Batch:
    """At most `SAMPLE` of recorded decisions [B], the same ones at every call: for `distance_from`."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data[order[:SAMPLE]].select("obs", "action")


@torch.no_grad()
def distance_from(data: Batch, policy: Any) -> dict[str, float]:
    """How far the greedy actions of a policy are from recorded decisions [B], at the states of at most `ASKED` of them.

    `action_gap` is the mean distance per coordinate from the action that was recorded there, in the policy's units; of
    discrete actions the share of states where it is another one. `data_distance`, where observations are vectors and
    actions a Box, is the mean distance of (s, a) from the nearest (s', a') of the data, all columns in units of their
    deviation: it stays small where some decision near by did the same. A policy with a memory has neither.
    """
    if policy.recurrent:
        return {}
    rows, device = data[:ASKED], device_of(policy)
    with paired():
        record, _ = policy.act(put(rows["obs"], device), greedy=True)
    action = policy.own_action(policy.env_action(record["action"])).cpu()
    if not action.is_floating_point():
        return {"action_gap": float((action != rows["action"]).double().mean())}
    scores = {"action_gap": float((action - rows["action"]).abs().double().mean())}
    if isinstance(data["obs"], Tensor) and data["obs"].is_floating_point():
        seen, asked = (
            torch.cat([part["obs"].flatten(1), act], 1) for part, act in ((data, data["action"]), (rows, action))
        )
        scale = seen.std(0).clamp_min(1e-6)
        scores["data_distance"] = float(neighbor_distance(asked / scale, seen / scale).mean())
    return scores


def recorded_data(name: str, task: Task, *, random_episodes: int, facts: tuple[str, ...] = ()) -> Batch | None:
    """Recorded decisions [B] for a task, with `KEYS`, its facts as far as they were recorded, and
    actions as its environment gets them.

    Args:
        name: a file of `save_demonstrations` or of arrays under D4RL's names (`polopt.data.arrays`), the id of a
            dataset, "random" (episodes of uniform random actions, the same each time), or "": the dataset that the task
            stands for (without an environment, what is not held out), and None when it stands for none.
        random_episodes: how many episodes "random" has.
        facts: further columns to read where they were recorded.

    Raises UsageError: nothing there, damaged, empty, or of other spaces than the task's.
    """
    if not name and isinstance(task, Unplayed):
        return training_data(task)
    name = name or task.spec.info.get("dataset", "")
    if not name:
        return None
    if name == "random":
        with paired():
            return record(Uniform(task.spec), task, random_episodes, greedy=False)
    if DATASET_ID.fullmatch(name) and not Path(name).exists():
        return load_dataset(name, facts=(*task.spec.facts, *facts)).check(task.spec).data
    if is_arrays(name):
        return load_arrays(name, task.spec, facts=(*task.spec.facts, *facts)).data
    data = load_demonstrations(name, task.spec)
    return data.select(*KEYS, *task.spec.facts, *facts, strict=False)


def reward_scaling(data: Batch, kind: str) -> tuple[float, float]:
    """(factor, summand) for the rewards of a dataset.

    "return-range" is 1000 / (largest - smallest return of an episode), "minus-one" subtracts 1, so that a reward of 1
    at the goal becomes a cost of 1 everywhere else (arXiv 2110.06169, appendix), "minus-three" makes it a cost of 3
    (arXiv 2402.00348), "antmaze" is 4 (reward - 1/2) (arXiv 2006.04779), "sparse" is 10000 reward - 1 (the code of
    arXiv 2306.06569), and "zero" leaves nothing, for imitation. Raises UsageError when all episodes have the same
    return.
    """
    if kind != "return-range":
        plain = {"none": (1.0, 0.0), "minus-one": (1.0, -1.0), "minus-three": (3.0, -3.0), "zero": (0.0, 0.0)}
        return (plain | {"antmaze": (4.0, -2.0), "sparse": (1e4, -1.0)})[kind]
    returns = episode_returns(data)
    spread = float(returns.max() - returns.min())
    if spread <= 0.0:
        raise UsageError(
            "rewards are scaled by the range of the returns, and all episodes of this dataset have the same"
        )
    return 1000.0 / spread, 0.0


class OfflineThenOnline(ReplaySource):
    """A replay that holds a dataset: the first `offline` samples collect nothing, later ones as in `ReplaySource`."""

    saved = ("offline_served",)  # type: ignore[assignment]

    def __init__(
        self, rollouts: Rollouts | Trajectories, replay: Replay, batch_size: int, offline: int, ratio: float
    ) -> None:
        super().__init__(rollouts, replay, batch_size, warmup=0, ratio=ratio)
        self.offline = offline
        self.offline_served = 0

    def next(self, actor: Any) -> Batch:
        if self.offline_served >= self.offline:
            return super().next(actor)
        self.offline_served += 1
        return put(self.replay.sample(self.batch_size), device_of(actor))
