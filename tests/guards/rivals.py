"""The smallest method that holds methods, for the guards: two PPOs side by side, and an archive of what they learned.

    archive    the `kept` snapshots of either learner with the largest mean reward of a window
    exploit    every `every` updates the learner with the smaller mean reward goes on from the best snapshot
    judge      V(s) of both learners' windows, fitted to the reward less its mean over both

It is no entry of the catalogue: what is tested with it is the house, not the idea.
"""

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.method import Limit, Method, Smoke, learner_param
from polopt.config import param
from polopt.core.batch import Batch, weigh
from polopt.core.snapshot import Archive, give, take
from polopt.evaluation.returns import evaluate_returns
from polopt.methods.control.ppo import PPO
from polopt.networks import Network
from polopt.optim import frozen_copy
from polopt.tasks.base import Task
from polopt.values.critics import StateValue

SMALL = {"rival.window": 32, "rival.minibatches": 2, "rival.epochs": 2, "rival.network.sizes": (16,)}


class Rivals(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(2, "test", low=1)
        rival: PPO.Config = learner_param(PPO.Config(), "test", help="both learners")
        every: int = param(2, "test", low=0, help="updates between exchanges; 0: never")
        kept: int = param(3, "test", low=1, help="snapshots")
        judge_lr: float = param(1e-2, "test", above=0)
        judge_network: Network = param(Network((8,), "tanh"), "test")

    slug = "rivals"
    saved = ("count",)
    headline = ("archive",)
    metrics_of = (PPO,)
    metrics = {
        "judge_loss": "squared error of the judge, summed over both sides",
        "archive": "snapshots in the archive",
    }
    default_steps = 1_000
    smoke = Smoke("CartPole-v1", 384, SMALL)
    limits = (
        Limit(
            "ppo",
            learner="rivals.one",
            collects="method",
            at=SMALL | {"every": 0},
            apart={"every": 1, "kept": 1},
            because="without exchanges each of them is PPO on rows of its own",
        ),
    )

    def build(self, task: Task) -> None:
        config = self.learner_config(self.config.rival)
        self.rivals = {
            "one": PPO(config, task, ledger=self.ledger),
            "other": PPO(config, task.twin(task.num), ledger=self.ledger),
        }
        self.judge = StateValue(self.spec, self.config.judge_network)
        self.judge_optimizer = self.make_optimizer(self.judge, lr=self.config.judge_lr)
        self.archive = Archive()
        self.policy = frozen_copy(self.rivals["one"].policy)  # the best of the archive; at first, a beginner
        self.count = 0

    def collect(self) -> Batch:
        return TensorDict({name: rival.collect() for name, rival in self.rivals.items()}, batch_size=[])

    def judge_loss(self, batch: Batch, center: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        errors = [self.judge.value(side) - (side["reward"] - center) for side in batch.values()]
        loss = sum((side["weight"] * error.square()).sum() for side, error in zip(batch.values(), errors))
        return loss, {"judge_loss": loss}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = {
            f"{name}/{metric}": value
            for name, rival in self.rivals.items()
            for metric, value in rival.update(batch[name]).items()
        }
        sides = TensorDict(
            {name: side.reshape(-1).select("obs", "reward") for name, side in batch.items()}, batch_size=[]
        )
        center = torch.cat([side["reward"] for side in sides.values()]).mean()
        metrics |= self.judge_optimizer.minimize(self.judge_loss, weigh(sides), center=center)
        self.count += 1
        self.exchange(batch)
        return metrics | {"archive": torch.tensor(float(len(self.archive)))}

    def exchange(self, batch: Batch) -> None:
        """Archives both, and at times gives the worse one what the best snapshot knows."""
        scores = {name: self.length(side) for name, side in batch.items()}
        for name, score in scores.items():
            self.archive.add(take(self.rivals[name]), note={"score": score, "name": name})
        order = sorted(range(len(self.archive)), key=lambda index: self.archive[index].note["score"], reverse=True)
        self.archive.keep(order[: self.config.kept])
        if self.config.every and self.count % self.config.every == 0:
            give(self.rivals[min(scores, key=scores.__getitem__)], self.archive[0].snapshot)
        self.show(0)

    def length(self, batch: Batch) -> float:
        """Decisions per end of an episode in a window."""
        ends = batch["terminated"] | batch["truncated"]
        return ends.numel() / (1.0 + float(ends.sum()))

    def show(self, index: int) -> None:
        """Makes `policy` that of an archived snapshot."""
        tensors = self.archive[index].snapshot.blobs[""].tensors()
        own = {path.removeprefix("policy."): leaf for path, leaf in tensors.items() if path.startswith("policy.")}
        self.policy.load_state_dict(own)

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """The best return of the archive's policies, and how many there are."""
        results = []
        try:
            for index in reversed(range(len(self.archive))):
                self.show(index)
                results.append(evaluate_returns(self.policy, task, episodes, greedy=greedy))
        finally:
            if len(self.archive):
                self.show(0)  # the best stays, also after an evaluation that was broken off
        results = results or [evaluate_returns(self.policy, task, episodes, greedy=greedy)]
        return max(results, key=lambda scores: scores["return"]) | {"archive": float(len(self.archive))}
