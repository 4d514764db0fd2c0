"""ARSQ: coordinates that see each other's choices find the best action where each by itself prefers a worse one.

One decision with two coordinates and no observation that matters, learned from 2,000 recorded ones at four places,
(+-0.8, +-0.8): reward 2 at (+, +), a tenth of the data; 1.3 at (-, -), half of them; 0 at the two others, a fifth each.
Seen alone, each coordinate is worth 0.67 at + and 0.93 at -, and no sum of a value and an advantage of each coordinate
has its maximum at (+, +): least squares over the four places puts it at (-, -). With one level of five parts every
place is the center of a cell.

`arsq` is the method; in `unconditioned` a coordinate does not see what the one before it chose (`--conditioning
levels`), so that Q is such a sum; `independent` regresses the reward on each coordinate by itself, as CQN does. All
have the same networks (two members of 64 x 64), batches, data and number of updates, and no term on demonstrations. The
temperature of ARSQ is 0.1 or 0.5 and the rate one of three for all, chosen by tuning seeds. `score` is the reward at
the place that greedy acting takes, 0 away from all places: the mean of ten evaluations over the second half of the run.

A right implementation has 2, and the two others 1.3. One whose scoring lets a token see its own part, which acting
cannot, has no reason to take any of the places.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.claims import Above, Claim, Greater, best_of
from polopt.claims.grids import BestOf
from polopt.claims.recorded import learner_from

DATA, SPREAD, BINS = 2_000, 0.05, 5
PLACES = 0.8 * torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0]])
REWARDS = torch.tensor([2.0, 1.3, 0.0, 0.0])
SHARES = torch.tensor([0.1, 0.5, 0.2, 0.2])
RATES = (1e-3, 3e-3, 1e-2)
SETTINGS: dict[str, Any] = {
    "levels": 1,
    "bins": BINS,
    "batch_size": 128,
    "demonstration_share": 0.0,
    "network.sizes": (64, 64),
}


class Decision(gymnasium.Env):
    """One decision, of which only the spaces matter here."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), worth(torch.as_tensor(np.asarray(action, np.float32))), True, False, {}


def worth(action: Tensor) -> float:
    """The reward of an action [2]: that of the place in whose cell it is."""
    near = (PLACES - action).abs().amax(-1) < 1.0 / BINS
    return float(REWARDS[near].sum())


def recorded() -> tuple[Tensor, Tensor]:
    """Actions [DATA, 2] and rewards [DATA], drawn from the shares of the places."""
    place = torch.multinomial(SHARES, DATA, replacement=True)
    return PLACES[place] + SPREAD * torch.randn(DATA, 2).clamp(-3.0, 3.0), REWARDS[place]


def averaged(act: Any, learn: Any, updates: int) -> float:
    """The mean worth of greedy actions, evaluated ten times over the second half of so many updates."""
    scores = []
    for update in range(1, updates + 1):
        learn()
        if 2 * update > updates and update % max(updates // 20, 1) == 0:
            scores.append(worth(act()))
    return statistics.mean(scores)


@dataclass(frozen=True)
class Zooming:
    """ARSQ on the recorded decisions of a seed."""

    settings: tuple[tuple[str, Any], ...]

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.core.spec import Spec

        torch.manual_seed(seed)
        action, reward = recorded()
        ends = torch.ones(DATA, dtype=torch.bool)
        columns = {"obs": torch.zeros(DATA, 1), "action": action, "reward": reward, "next_obs": torch.zeros(DATA, 1)}
        columns |= {"terminated": ends, "truncated": ~ends, "first": ends.clone()}
        spec = Spec(Decision.observation_space, Decision.action_space, "decision")
        data = TensorDict(columns, batch_size=[DATA])
        learner = learner_from(data, spec, "arsq", Decision, seed=seed, **dict(self.settings))
        score = averaged(
            lambda: learner.policy.act(torch.zeros(1, 1), greedy=True)[0]["action"][0],
            lambda: learner.update(learner.collect()),
            budget["updates"],
        )
        return {"score": score}

    @property
    def trains(self) -> tuple[str, ...]:
        return ("arsq",)


@dataclass(frozen=True)
class Independent:
    """The reward regressed on the part that each coordinate is in, coordinate by coordinate."""

    lr: float

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.networks import Network

        torch.manual_seed(seed)
        action, reward = recorded()
        part = (0.5 * (action + 1.0) * BINS).floor().clamp(0, BINS - 1).long()
        network = Network((64, 64), "tanh", init="orthogonal", head_gain=0.01)
        net = network.build(Decision.observation_space, 2 * BINS, ensemble=2)
        optimizer = torch.optim.Adam(net.parameters(), self.lr)

        def values(rows: int) -> Tensor:  # [members, rows, 2, BINS]
            return net(torch.zeros(rows, 1)).unflatten(-1, (2, BINS))

        def learn() -> None:
            row = torch.randint(DATA, (128,))
            q = values(128).gather(-1, part[row].expand(2, -1, -1).unsqueeze(-1)).squeeze(-1)
            optimizer.zero_grad()
            (q - reward[row].unsqueeze(-1)).square().mean((1, 2)).sum().backward()
            optimizer.step()

        @torch.no_grad()
        def act() -> Tensor:
            return (2.0 * values(1).amin(0)[0].argmax(-1) + 1.0) / BINS - 1.0

        return {"score": averaged(act, learn, budget["updates"])}


def zooming(conditioning: str) -> BestOf:
    def make(values: tuple[float, float]) -> Zooming:
        temperature, lr = values
        own = {"conditioning": conditioning, "entropy_temperature": temperature, "sampling_temperature": temperature}
        return Zooming((*SETTINGS.items(), *own.items(), ("lr", lr)))

    return best_of(make, [(one, lr) for one in (0.1, 0.5) for lr in RATES], by="score", tuning_seeds=2)


CLAIM = Claim(
    method="arsq",
    statement="of four kinds of recorded actions the best is found where each coordinate alone prefers another",
    budget={"updates": 1_500},
    seeds=10,
    minutes=9,
    arms={
        "arsq": zooming("all"),
        "unconditioned": zooming("levels"),
        "independent": best_of(Independent, RATES, by="score", tuning_seeds=2),
    },
    expect=(
        Above("score", "arsq", 1.9),
        Greater("score", "arsq", "unconditioned", by=0.5),
        Greater("score", "arsq", "independent", by=0.5),
        Above("score", "unconditioned", 1.0, control=True),
        Above("score", "independent", 1.0, control=True),
    ),
)
