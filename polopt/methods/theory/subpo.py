"""SubPO: policy gradients for rewards with diminishing returns, by what each step adds to the set of visited states.

Prajapat, Mutny, Zeilinger and Krause, "Submodular Reinforcement Learning", ICLR 2024, arXiv 2307.13372.

An episode tau = (s_0, ..., s_H) is worth F of the set of states that it visits: the cells that it covers, the items
that it collects, what its measurements tell. F is monotone and submodular, so what a state adds falls with what was
visited before; a state that was covered adds nothing. No reward of single states says that, and the value of a state is
not defined, because it depends on the way to it. Scores need neither:

    gain_j    = F(s_0, ..., s_{j+1}) - F(s_0, ..., s_j)                       of decision j, along the path as it was
    credit_i  = sum_{j >= i} gain_j = F(tau) - F(s_0, ..., s_i)               only what is gained from decision i on
    gradient  = E sum_i grad log pi(a_i|s_i, i) (credit_i - baseline_i)       baseline: of the other episodes, at step i

The policy is Markovian and knows the time (SubPO-M, `network.recurrent` clock), or the path so far (SubPO-NM, `--preset
history`, a GRU). Where moves are sure and the start is fixed the first can play any path already. Guarantees of the
paper: a local optimum is at least 1 - c of the best, with the curvature c of F; no constant holds for every F.

F is `--function of-task` (the fact `gain` of a grid with coverage, else the reward, which must be such a gain: `taken`
things of a grid, with `most`, are the paper's items), `cells` of the observations that are entered, or the
`information` that noisy measurements at the observed places give. `--modular true` pays each visit what it is worth
alone, which is the paper's baseline, MODPO: it stays at the best place.

Differs from its base, REINFORCE, in the reward, the time in the policy, no discount, and the entropy bonus, which is
divided by the number of the update. Maps like the paper's are `--task grid/coverage --task.map 30x30 --task.start 34
--task.horizon 39 --task.slip 0 --preset gp` and `--task grid/items --preset items`; `--preset released` is its code of
grids, whose weight of log pi is what was gained up to and with the step, not after it. That is no gradient of E F.

Departs from the paper in: the baseline, which is that of the other episodes (the code of grids has none); natural and
actor-critic steps are other methods, such as `ppo` on a task whose reward is the gain, biased where V knows only s.
"""

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import Config, param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.core.spec import Spec
from polopt.data.episodes import Episodes
from polopt.evaluation.returns import scores_of
from polopt.methods.control.reinforce import CREDITS, Reinforce
from polopt.networks import Network
from polopt.networks.encoders import make_encoder
from polopt.tasks.base import Task


def first_visits(cells: Tensor) -> Tensor:
    """bool [R, L]: which of the cells [R, L, n] of a path, numbers of any size, were not there before in its row."""
    rows, length, _ = cells.shape
    row = torch.arange(rows, device=cells.device).repeat_interleave(length).to(cells.dtype)
    _, found = torch.cat([row.unsqueeze(1), cells.flatten(0, 1)], 1).unique(dim=0, return_inverse=True)
    place = torch.arange(rows * length, device=cells.device)
    first = torch.full_like(place, rows * length).scatter_reduce(0, found, place, "amin")
    return (first[found] == place).view(rows, length)


def matern(places: Tensor, lengthscale: float) -> Tensor:
    """The covariance [..., L, L] of a Gaussian process, Matern 5/2 with variance 1, at places [..., L, n]."""
    distance = sqrt(5.0) / lengthscale * torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")
    return (1 + distance + distance.square() / 3) * torch.exp(-distance)


def information_gains(covariance: Tensor, noise: float) -> Tensor:
    """What each measurement [..., L] tells after those before, in nats: F = log det(I + K / noise) / 2 of a path, K
    [..., L, L], is the sum of the logarithms of the diagonal of a Cholesky factor."""
    noisy = torch.eye(covariance.shape[-1]).to(covariance) + covariance / noise
    return torch.linalg.cholesky(noisy).diagonal(dim1=-2, dim2=-1).log()


def prefix(reward: Tensor, discount: float, mask: Tensor) -> Tensor:
    """sum_{h <= t} reward_h [R, T], the weight of the released code; 0 where the mask is False."""
    return torch.where(mask, reward.cumsum(-1), 0.0)


@dataclass(frozen=True)
class OfTask(Config):
    """What the task says: its fact `gain`, or its reward where it has none."""

    def check(self, spec: Spec, modular: bool) -> None:
        if modular and "modular" not in spec.facts:
            raise UsageError(f"{spec.name} does not say what a state is worth alone: it has no fact 'modular'")

    def gains(self, batch: Batch, path: Tensor, modular: bool) -> Tensor:
        """[R, T] of the decisions of a batch [R, T], whose states are the vectors `path` [R, T + 1, n]."""
        gains: Tensor = batch["modular"] if modular else batch.get("gain", batch["reward"])
        return gains


@dataclass(frozen=True)
class OfPlaces(Config):
    """A function of some of the coordinates of observations."""

    coordinates: tuple[int, ...] = param((), "assumed", low=0, help="which count, from 0; none named: all")

    def check(self, spec: Spec, modular: bool) -> None:
        size = make_encoder(spec.obs, "flat").size
        if any(each >= size for each in self.coordinates):
            raise UsageError(f"{spec.name} shows {size} numbers, and there is no coordinate {max(self.coordinates)}")

    def places(self, path: Tensor) -> Tensor:
        return path[..., self.coordinates] if self.coordinates else path


@dataclass(frozen=True)
class Cells(OfPlaces):
    """How many cells of a regular grid over the observations were entered."""

    width: float = param(1.0, "assumed", above=0, help="of a cell, in every coordinate")

    def gains(self, batch: Batch, path: Tensor, modular: bool) -> Tensor:
        fresh = first_visits((self.places(path) / self.width).floor()).to(path.dtype)[:, 1:]
        return torch.ones_like(fresh) if modular else fresh


@dataclass(frozen=True)
class Information(OfPlaces):
    """What measurements at the places tell of a Gaussian process, in nats: Bayesian D-optimal design."""

    lengthscale: float = param(1.0, "official code", above=0, help="over which the process changes")
    noise: float = param(1e-3, "official code", above=0, help="variance of a measurement; that of the process is 1")

    def gains(self, batch: Batch, path: Tensor, modular: bool) -> Tensor:
        covariance = matern(self.places(path).double(), self.lengthscale)
        if modular:
            covariance = covariance * torch.eye(path.shape[1]).to(covariance)
        return information_gains(covariance, self.noise)[:, 1:].to(path.dtype)


class SubPO(Reinforce):
    @dataclass(frozen=True)
    class Config(Reinforce.Config):
        envs: int = param(500, "official code", low=1, help="copies of the task that are stepped together")
        episodes: int = param(500, "official code", low=1, help="episodes per update, of all copies of the task")
        function: OfTask | Cells | Information = param(
            OfTask(), "arXiv 2307.13372", help="F, what a set of states is worth"
        )
        modular: bool = param(False, "arXiv 2307.13372", help="every visit pays what the state is worth alone: MODPO")
        scale: float = param(1.0, "official code", above=0, help="gains are divided by it, as by MAX_RET there")
        discount: float = param(1.0, "official code", low=0, high=1)
        credit: str = param(
            "reward-to-go", "arXiv 2307.13372", choices=(*CREDITS, "prefix"), help="prefix: as released"
        )
        average_over: str = param("decisions", "official code", choices=("episodes", "decisions"))
        entropy_decay: bool = param(True, "official code", help="the coefficient is divided by the update's number")
        lr: float = param(5e-3, "official code, items", above=0)
        network: Network = param(Network((64, 32), "tanh", recurrent="clock"), "official code")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.credit == "prefix":
                self.refuse("discount", because="where what came before is credited")
            if self.entropy_coefficient == 0:
                self.refuse("entropy_decay", because="without an entropy bonus")

    slug = "subpo"
    score = "coverage"
    headline = ("coverage", "entropy")
    trains_on = "tasks with episodes that end, whose reward is for what is new"
    metrics = {
        "coverage": "F of an episode without that of its start, mean of the batch | rises",
        "eval/coverage": "the same of fresh episodes, the same every time, whatever the method learns from",
    }
    credits: ClassVar = {**CREDITS, "prefix": prefix}
    saved = ("updates_made",)
    default_steps = 1_500_000
    eval_episodes = 100
    presets = {
        "history": {"network.recurrent": "gru"},
        "modular": {"modular": True},
        "gp": {"lr": 1e-3, "scale": 82.0},
        "items": {"lr": 5e-3, "scale": 82.0},
        "rooms": {"lr": 0.02, "scale": 82.0, "episodes": 3000, "envs": 3000},
        "released": {"credit": "prefix", "baseline": "none", "lr": 1e-3, "scale": 82.0},
    }
    limits = (
        Limit(
            base="reinforce",
            task="grid/coverage",
            at={"network": Network((16,), "tanh"), "discount": 0.9, "average_over": "episodes", "lr": 3e-3},
            base_at={"discount": 0.9, "lr": 3e-3},
            apart={"modular": True},
            because="where the reward is the gain it is REINFORCE with reward-to-go and the same baseline",
        ),
    )
    smoke = Smoke(
        "grid/coverage",
        120,
        {"envs": 4, "episodes": 4, "network.sizes": (16,), "network.recurrent_size": 4, "entropy_coefficient": 0.1},
        {"horizon": 6},
    )

    def build(self, task: Task) -> None:
        super().build(task)
        self.config.function.check(self.spec, self.config.modular)
        self.vectors = make_encoder(self.spec.obs, "flat")
        self.updates_made = 0
        self.bonus = torch.tensor(self.config.entropy_coefficient)

    @property
    def entropy_coefficient(self) -> Tensor:
        return self.bonus

    def gains(self, batch: Batch, modular: bool = False) -> Tensor:
        """What each decision adds to F, or is worth alone, [R, T]; 0 where the mask is False."""
        states = torch.cat([self.vectors(batch["obs"])[:, :1], self.vectors(batch["final_obs"])], 1)
        return torch.where(batch["mask"], self.config.function.gains(batch, states, modular), 0.0)

    def rewards(self, batch: Batch) -> Tensor:
        return self.gains(batch, self.config.modular) / self.config.scale

    def update(self, batch: Batch) -> dict[str, Tensor]:
        self.updates_made += 1
        divisor = self.updates_made if self.config.entropy_decay else 1
        self.bonus = torch.tensor(self.config.entropy_coefficient / divisor, device=batch["reward"].device)
        return super().update(batch) | {"coverage": self.gains(batch).sum(1).mean()}

    @torch.no_grad()
    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        with paired():
            batch = Episodes(task, starts=range(episodes), greedy=greedy).next(self.policy)
        return scores_of(batch) | {"coverage": self.gains(batch).sum(1).mean().item()}
