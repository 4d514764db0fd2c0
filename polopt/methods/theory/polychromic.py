"""Polychromic PPO: sets of trajectories are paid for being good and different, so that fine-tuning keeps several ways.

Hamid, Orney, Xu, Finn and Sadigh, "Polychromic Objectives for Reinforcement Learning", 2025, arXiv 2509.25424. There is
no official code; what the abstract does not say is "assumed".

Fine-tuning a policy that knows many ways keeps the one that pays most. Set reinforcement learning asks how good a SET
of n trajectories from one state is, and all its members answer for it:

    objective   J_f = E_s E_{tau_1..tau_n ~ pi(.|s)}[ f(s, tau_1..n) ],   f = (mean return of the set) d
    d           distinct signatures of the set / n            what a trajectory is in kind: `signature`
    vines       from `rollout_states` states of every copy's window `vines` = N episodes each, by the acting policy
    sets        all subsets of n = `set_size` of the N, or `most_sets` random ones in which every vine takes part
    advantage   A_i = mean over the sets with i of (f - b),   b = mean of f over the sets of the state
                the same at every step of vine i, or at its first `reach`; where no set is worth anything, GAE

A failed vine in a good and varied set is reinforced, and variety that earns nothing is not: returns are shifted so that
the least of a batch is no less than 0. With all subsets A_i is (1 - n / N) (mean f with i - mean f without i), nothing
at N = n. All steps of vines and of the windows are one batch of PPO: the set's advantages divided by their deviation,
those of GAE standardized, each by themselves; the critic learns the returns of single episodes from all of them.

Differs from PPO, its base, in the vines, whose steps are counted, the advantage and `reference_coefficient` KL(pi ||
pi_ref) to the policy that training began with (--init RUN). `--rollout-states 0` without it is PPO.

Departs from the paper in: what is random in a task repeats itself in the vines of a state, where a task's luck is drawn
at its start; windows begin anew with every update, so that the first of the states is where episodes begin.
"""

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.method import Limit, Smoke, Study
from polopt.config import Config, Constant, Cosine, Linear, param
from polopt.core.batch import Batch, replaced, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.branches import Branches
from polopt.data.mixing import cat_rows
from polopt.data.rollouts import Rollouts
from polopt.methods.control.ppo import PPO
from polopt.networks.encoders import make_encoder
from polopt.optim import frozen_copy
from polopt.policies.base import Density, require
from polopt.tasks.base import Task
from polopt.values.returns import standardize

OF_VINES = ("vines", "set_size", "most_sets", "signature", "distinct", "diversity", "bonus", "reach")


@dataclass(frozen=True)
class Visited(Config):
    """The set of cells, of a regular grid over the observations, that were entered."""

    width: float = param(1.0, "assumed", above=0, help="of a cell, in every coordinate")
    coordinates: tuple[int, ...] = param((), "assumed", low=0, help="which count, from 0; none named: all")

    def check(self, spec: Spec) -> None:
        size = make_encoder(spec.obs, "flat").size
        if any(each >= size for each in self.coordinates):
            raise UsageError(f"{spec.name} shows {size} numbers, and there is no coordinate {max(self.coordinates)}")

    def marks(self, batch: Batch, spec: Spec) -> Tensor:
        seen = make_encoder(spec.obs, "flat").to(batch["reward"].device)(batch["final_obs"])
        seen = seen[..., self.coordinates] if self.coordinates else seen
        _, cell = (seen / self.width).floor().flatten(0, 1).unique(dim=0, return_inverse=True)
        cell = cell.view(batch.batch_size)
        marks = torch.zeros(len(batch), int(cell.max()) + 1, dtype=torch.int64, device=cell.device)
        return marks.scatter_reduce(1, cell, batch["mask"].long(), "amax")


@dataclass(frozen=True)
class Met(Config):
    """Which of some things were met: a fact of the task, a flag for each."""

    fact: str = param("touched", "assumed", help="name of the fact")

    def check(self, spec: Spec) -> None:
        if self.fact not in spec.facts:
            raise UsageError(f"{spec.name} does not give the fact '{self.fact}', by which vines are told apart")

    def marks(self, batch: Batch, spec: Spec) -> Tensor:
        there = batch[self.fact].bool().reshape(*batch.batch_size, -1)
        return (there & batch["mask"].unsqueeze(-1)).any(1).long()


@dataclass(frozen=True)
class Moves(Config):
    """The actions, one after the other: tokens where an action is one."""

    def check(self, spec: Spec) -> None:
        if not spec.discrete:
            raise UsageError(f"actions of {spec.name} are no choices, so that no two vines would be alike")

    def marks(self, batch: Batch, spec: Spec) -> Tensor:
        return torch.where(batch["mask"], batch["action"] + 1, 0)


def subsets(count: int, size: int, most: int, generator: torch.Generator) -> Tensor:
    """All subsets of `size` of `count`, int64 [M, size]; if they are more than `most`, so many random ones in which
    everyone takes part."""
    if comb(count, size) <= most:
        return torch.tensor([*combinations(range(count), size)])
    order = torch.rand(max(most, -(-count // size)), count, generator=generator).argsort(1)
    everyone = torch.randperm(count, generator=generator).split(size)
    for row, part in enumerate(everyone):  # the last of them is filled up with others
        others = order[row][~torch.isin(order[row], part)]
        order[row] = torch.cat([part, others])
    return order[:, :size]


def distinct(marks: Tensor, counts: Tensor, sets: Tensor) -> Tensor:
    """How many different signatures [K, N, S] the members of each set [M, n] have that count (bool [K, N]): [K, M]."""
    same = (marks.unsqueeze(2) == marks.unsqueeze(1)).all(-1) & counts.unsqueeze(1)  # [K, N, N]: j counts, and is as i
    before = same[:, sets.unsqueeze(2), sets.unsqueeze(1)].tril(-1).any(-1)
    return (counts[:, sets] & ~before).sum(-1)


def set_advantage(score: Tensor, sets: Tensor, count: int) -> Tensor:
    """Mean over the sets with i of score - mean of all, for scores [K, M] of sets [M, n] of `count` = N: [K, N]."""
    member = torch.zeros(len(sets), count, dtype=score.dtype, device=score.device).scatter(1, sets, 1.0)
    return (score - score.mean(1, keepdim=True)) @ member / member.sum(0)


def scaled(value: Tensor, exists: Tensor, epsilon: float = 1e-8) -> Tensor:
    """`value` [B] over its deviation where it exists: the baseline of its state is what it is measured from."""
    count = exists.sum()
    mean = torch.where(exists, value, 0.0).sum() / count.clamp_min(1)
    squares = torch.where(exists, value - mean, 0.0).square().sum()
    return value / ((squares / (count - 1).clamp_min(1)).sqrt() + epsilon)


class Polychromic(PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        rollout_states: int = param(2, "assumed", low=0, help="of every copy's window, from which vines go")
        vines: int = param(8, "assumed", low=2, help="N, episodes from each of these states")
        set_size: int = param(4, "assumed", low=1, help="n, members of a set, less than N")
        most_sets: int = param(100, "polopt", low=1, help="all subsets if they are not more, else so many random ones")
        signature: Visited | Met | Moves = param(Visited(), "assumed", help="what makes vines different in kind")
        distinct: str = param(
            "all", "assumed", choices=("all", "paid"), help="paid: only signatures of vines that earned something"
        )
        diversity: str = param(
            "share", "assumed", choices=("share", "others", "none"), help="d: distinct/n, (distinct-1)/(n-1), or 1"
        )
        bonus: float | None = param(
            None, "assumed", low=0, help="none: f is the product; else mean return + bonus d, which is paid for variety"
        )
        reach: int | None = param(None, "assumed", low=1, help="steps of a vine with its set's advantage; none: all")
        reference_coefficient: float = param(0.01, "assumed", low=0, help="on KL(pi || pi_ref)")
        advantage_over: str = param("batch", "assumed", choices=("batch", "none"), help="standardize over")
        lr: float = param(1e-4, "assumed", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "assumed")

        def __post_init__(self) -> None:
            super().__post_init__()
            if not self.rollout_states:
                self.refuse(*OF_VINES, because="without rollout_states")
                return
            if self.vines <= self.set_size:
                raise UsageError(
                    f"sets of {self.set_size} of {self.vines} vines are one set, and none is better: vines must be more"
                )
            if self.window % self.rollout_states:
                raise UsageError(f"a window of {self.window} steps has no {self.rollout_states} equal parts")
            if self.set_size == 1 and self.diversity == "others":
                raise UsageError("a set of one has no others: diversity cannot be 'others' where set_size is 1")
            if self.diversity == "none":
                self.refuse("signature", "distinct", "bonus", because="where diversity is none")
            self.refuse("normalize_reward", because="where vines have rows of their own")

    source: Rollouts
    slug = "polychromic"
    headline = ("set_score", "diversity", "vine_return", "entropy")
    trains_on = "any task whose rows can be taken back to where they were"
    metrics = {
        "set_score": "f, mean over states and sets | rises",
        "diversity": "d of the sets | stays where it is, or rises; falls to 1/n: all vines go one way",
        "vine_return": "undiscounted, from the rollout state on | rises",
        "reference_kl": "KL(pi || pi_ref), mean over the batch | grows slowly",
    }
    default_steps = 500_000
    presets = {
        "doors": {
            "envs": 4,
            "window": 28,
            "signature": Met(),
            "entropy_coefficient": 0.0,
            "reference_coefficient": 0.0,
            "lr": 1e-3,
        },
    }
    studies = {"doors": Study("grid/doors", 60_000)}
    limits = (
        Limit(
            base="ppo",
            at={"rollout_states": 0, "reference_coefficient": 0.0, "lr": 2.5e-4, "lr_schedule": "linear"},
            base_at={"advantage_over": "batch"},
            apart={"reference_coefficient": 1.0},
            because="without vines it collects and learns as PPO does",
            collects="each",
        ),
    )
    probes = PPO.probes | {"reach": {"bonus": 1.0}}
    smoke = Smoke(
        "grid/doors",
        300,
        {"envs": 2, "window": 8, "minibatches": 2, "epochs": 2, "network.sizes": (16,), "vines": 4, "set_size": 2}
        | {"signature": Met(), "most_sets": 5},
        {"horizon": 12},
    )

    def build(self, task: Task) -> None:
        config = self.config
        super().build(task)
        if config.rollout_states:
            if task.environments != task.num:
                raise UsageError(f"vines go from states of single agents, and a row of {self.spec.name} is one of many")
            if self.recurrent:
                raise UsageError("vines begin without a memory of what came before: set network.recurrent to none")
            config.signature.check(self.spec)
            self.source.steps = config.window // config.rollout_states
            self.branches = Branches(task.twin(config.envs * config.vines), config.vines, ledger=self.ledger)
        if config.reference_coefficient:
            self.reference_policy = frozen_copy(self.policy)

    def check_policy(self) -> None:
        super().check_policy()
        if self.config.reference_coefficient:
            require(self.policy, Density, by=f"{self.slug} with a reference_coefficient")

    def collect(self) -> Batch:
        """A window [N, T]; with vines a paired batch of it and of the vines from the begin of each of its parts."""
        if not self.config.rollout_states:
            return super().collect()
        self.task.reset()
        places, parts = list[Any](), list[Batch]()
        for _ in range(self.config.rollout_states):
            places += self.task.snapshot()
            parts.append(self.source.next(self.behavior))
        vines = self.branches.branch(places, self.behavior)
        window: Any = torch.cat(parts, 1)  # type: ignore[arg-type]
        return TensorDict({"window": window, "vines": vines}, batch_size=[])

    def of_sets(self, vines: Batch) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Of vines [K N, T], state by state: A_i [K N], whether any set of its state is worth anything, and metrics."""
        config = self.config
        returns = vines["reward"].sum(1).view(-1, config.vines)
        sets = subsets(config.vines, config.set_size, config.most_sets, self.generator).to(returns.device)
        shifted = returns - returns.amin().clamp_max(0)
        worth, d = shifted[:, sets].mean(-1), torch.ones((), device=returns.device)
        if config.diversity != "none":
            counts = torch.ones_like(returns, dtype=torch.bool) if config.distinct == "all" else returns > 0
            marks = config.signature.marks(vines, self.spec).view(*returns.shape, -1)
            found = distinct(marks, counts, sets).to(returns.dtype)
            less = 1 if config.diversity == "others" else 0
            d = (found - less).clamp_min(0) / (config.set_size - less)
        f = worth * d if config.bonus is None else worth + config.bonus * d
        alive = (f != 0).any(1, keepdim=True).expand_as(returns)
        metrics = {"set_score": f.mean(), "diversity": d.mean(), "vine_return": returns.mean()}
        return set_advantage(f, sets, config.vines).flatten(), alive.flatten(), metrics

    @torch.no_grad()
    def evaluate_window(self, batch: Batch) -> Batch:
        """Of a paired batch one of all decisions [B], in which `of_set` says whose advantage is that of sets."""
        if "vines" not in batch.keys():
            return super().evaluate_window(batch)
        window, vines = self.estimated(batch["window"]), self.estimated(batch["vines"])
        step = torch.arange(vines.shape[1], device=vines.device)
        near = step < (self.config.reach or len(step))
        vines["of_set"] = vines["alive"] & near
        vines["advantage"] = torch.where(vines["of_set"], vines["set_advantage"], vines["advantage"])
        window["of_set"] = torch.zeros_like(window["terminated"])
        keys = [name for name in window.keys() if name in vines.keys() and name != "weight"]
        whole = cat_rows([window.select(*keys).reshape(-1), vines.select(*keys)[vines["mask"]]])
        if self.config.advantage_over == "batch":
            of_set, advantage = whole["of_set"], whole["advantage"]
            whole["advantage"] = torch.where(of_set, scaled(advantage, of_set), standardize(advantage, ~of_set))
        return whole.set("weight", torch.full_like(whole["reward"], 1 / len(whole)))

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().policy_loss(batch)
        if not self.config.reference_coefficient:
            return loss, metrics
        kl = weighted_mean(self.policy.kl(batch, self.reference_policy), batch["weight"])
        return loss + self.config.reference_coefficient * kl, metrics | {"reference_kl": kl}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        if "vines" not in batch.keys():
            return super().update(batch)
        advantage, alive, metrics = self.of_sets(batch["vines"])
        vines = batch["vines"].clone(False)
        vines["set_advantage"] = advantage.unsqueeze(1).expand(vines.batch_size)
        vines["alive"] = alive.unsqueeze(1).expand(vines.batch_size)
        return super().update(replaced(batch, {"window": batch["window"], "vines": vines})) | metrics
