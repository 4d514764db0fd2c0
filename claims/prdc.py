"""PRDC (arXiv 2306.06569): what is right in a state may have been done only in the states beside it.

The stage has one decision: an observation s in [-1, 1], an action in [-1, 1], and a reward that grows with the action
until 0.1 beyond a*(s) = 0.25 + 0.15 s, where it is 1.1, and falls to -1 at 0.4 beyond: a cliff that nobody who recorded
has seen, so critics go on to climb there. Of 20 bins of s every second one holds actions around a*(s), N(a*, 0.05), the
others only uniform ones from -1 to 0, none of them good: 2,000 decisions. In the latter the best that their own data
offer is to do about 0, and what should be done stands in the bins beside them.

`beta=2` has the distance of the released code, `beta=1000` looks for the nearest pair almost among its own state's
actions, `beta=0` at actions alone, all with alpha 0.3. `prdc` (beta 2) and `td3-bc`, which is drawn to the action of
each decision, run a whole grid of alpha, and `good` is the share of it with a regret below 0.05: where the critic is
wrong beyond the data, as it is here, it matters how far it must be followed to leave bad data. `regret` is 1.1 minus
the reward of the policy, over a grid of s, the mean of five evaluations over the second half of the run; `regret_empty`
in the bins without good actions; `over` is Q_1 of the policy's actions minus their reward; `fallen` the share of s
where the policy does what is beyond the cliff.

It is not claimed that TD3+BC cannot be tuned to this stage. In the pilots (seeds 1000 to 1002, with this budget) it has
a regret of 0.29 at alpha 0.3, 0.16 at 0.6, 0.02 to 0.04 at 1, 0 at 1.5, and 1.4 at 2.5, where it falls; PRDC has 0.01
at 0.05 and 0.1, 0 at 0.3 and 0.6, and falls at 1 (1.9). At 0.3 the regret is 0 with beta 2, 0.24 with 1000 and 0.76
with 0, alike in two or three seeds. So the expected share of the grid is about 4 of 7 for PRDC and 1 of 7 for TD3+BC,
of which half is asked for, as of the other differences. The data themselves have a mean regret of 0.48.
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

from polopt.claims import Below, Claim, Greater, mean_of
from polopt.claims.grids import MeanOf
from polopt.claims.recorded import learner_from

ALPHAS = tuple(0.05 * 2**power for power in range(7))
DATA, BINS, BEST = 2_000, 20, 1.1
SETTINGS: dict[str, Any] = {"network.sizes": (64, 64), "lr": 1e-3, "tau": 0.02}


def reward(state: Tensor, action: Tensor) -> Tensor:
    """Of actions [B] in states [B]."""
    over = action - target(state)
    return torch.where(over < 0.4, 1.0 + over.clamp_max(0.1), -1.0)


def target(state: Tensor) -> Tensor:
    return 0.25 + 0.15 * state


def empty(state: Tensor) -> Tensor:
    """Whether a state [B] is in a bin without good actions."""
    return ((state + 1.0) * BINS / 2).long().clamp_max(BINS - 1) % 2 == 0


class Cliff(gymnasium.Env):
    """One decision with the reward above."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.state, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        one = torch.as_tensor(np.asarray(action, np.float32))
        return self.state, float(reward(torch.from_numpy(self.state), one)), True, False, {}


def decisions(seed: int) -> TensorDict:
    """The recorded ones [DATA]: others for each seed."""
    generator = torch.Generator().manual_seed(seed)
    state = 2.0 * torch.rand(DATA, generator=generator) - 1.0
    good = target(state) + 0.05 * torch.randn(DATA, generator=generator)
    action = torch.where(empty(state), -torch.rand(DATA, generator=generator), good)
    ends = torch.ones(DATA, dtype=torch.bool)
    columns = {"obs": state[:, None], "action": action[:, None], "reward": reward(state, action)}
    columns |= {"next_obs": state[:, None].clone(), "terminated": ends, "truncated": ~ends, "first": ends.clone()}
    return TensorDict(columns, batch_size=[DATA])


@dataclass(frozen=True)
class OnTheCliff:
    """Trains on the recorded decisions, the same for all arms."""

    method: str
    alpha: float
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.core.spec import Spec

        settings = SETTINGS | {"alpha": self.alpha} | dict(self.settings)
        spec = Spec(Cliff.observation_space, Cliff.action_space, "cliff")
        learner = learner_from(decisions(seed), spec, self.method, Cliff, seed=seed, **settings)
        updates, found = budget["updates"], []
        for update in range(1, updates + 1):
            learner.update(learner.collect())
            if 2 * update > updates and update % max(updates // 10, 1) == 0:
                found.append(self.measured(learner))
        means = {name: statistics.mean(each[name] for each in found) for name in found[0]}
        return means | {"good": float(means["regret"] < 0.05)}

    def measured(self, learner: Any) -> dict[str, float]:
        state = torch.linspace(-0.999, 0.999, 2_000)
        with torch.no_grad():
            action, _ = learner.policy.rsample(state[:, None])
            q = learner.clipped.first(state[:, None], action)
        got = reward(state, action[:, 0])
        regret, without = BEST - got, empty(state)
        return {
            "regret": float(regret.mean()),
            "regret_empty": float(regret[without].mean()),
            "over": float((q - got).mean()),
            "fallen": float((got < 0).double().mean()),
        }

    @property
    def trains(self) -> tuple[str, ...]:
        return (self.method,)


def everywhere(method: str) -> MeanOf:
    return mean_of(lambda alpha: OnTheCliff(method, alpha), ALPHAS)


CLAIM = Claim(
    method="prdc",
    statement="where good actions are recorded only in neighboring states, a constraint to the whole dataset finds "
    "them without much of the critic, at more weights of it than a constraint to the actions of the same state, and a "
    "constraint to actions alone does not",
    budget={"updates": 1_000},
    seeds=6,
    minutes=6,
    arms={
        "prdc": everywhere("prdc"),
        "td3-bc": everywhere("td3-bc"),
        "beta=0": OnTheCliff("prdc", 0.3, (("beta", 0.0),)),
        "beta=2": OnTheCliff("prdc", 0.3, (("beta", 2.0),)),
        "beta=1000": OnTheCliff("prdc", 0.3, (("beta", 1000.0),)),
    },
    expect=(
        Below("regret", "beta=1000", 0.35, control=True),
        Greater("regret", "beta=1000", "beta=2", by=0.1),
        Greater("regret", "beta=0", "beta=2", by=0.35),
        Greater("good", "prdc", "td3-bc", by=0.2),
    ),
)
