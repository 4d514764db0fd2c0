"""OFQL: one network call is enough for an expressive policy, where one step of a diffusion policy is not.

Three experiments, of which each arm makes one. `ofql`, `dql-5` and `dql-1` (Diffusion Q-Learning with 5 steps and with
one DDIM step) learn one decision from 4,000 recorded ones: actions of four Gaussians in a plane, a quarter of a turn
apart, of which two opposite ones are good; the observation says which of two rotations it is. Nothing else is in the
data, so that critics are extrapolated elsewhere. `score` is the mean reward in percent of the best there is, the mean
of five evaluations over the second half of the run; the data have about 41. All arms have the same settings but their
policy, DQL with its own schedule "vp", and the same grid, eta of 0.1, 0.5 and 1 times a rate of the policy of 1e-3,
3e-3 and 1e-2, of which one tuning seed chooses. They act by single samples.

On the ring eight Gaussians, in one of two rotations that the observation names, are imitated by the mean velocity, by
the velocity in one step of Euler's method, and by one step of denoising. `count` has the floating-point operations of
OFQL over those of DQL, with networks of the paper's width: the same on every machine. The networks' calls alone give
0.654 for an update, in which critics cost as much as before, and 0.207 for acting; two calls in place of one would give
0.767 and 0.415, and the limits lie between. The paper's clock has 0.54 (6.3 hours of 11.7) and 0.28.

Second registration. Of the first, a maze of 3,000 updates, nothing could be tested: DQL with five steps, which is the
control, ended at 42, 74 and 83 % with the three seeds. An update was asked to take less than 0.6 of DQL's time, by a
clock on a busy machine, which the operations do not allow. And DQL-1 had the cosine schedule: one step of it divides by
0.01, so that samples saturate at the bounds whatever is learned (0 to 1 % in these pilots too, at all rates and eta).
With DQL's own schedule one step is no such ruin on a stage this small: it imitates next to nothing (0.006 of the weight
that an error of an action has), so it climbs the critic alone, more slowly, and where the best action is one point and
the critic holds, that is enough. The paper's 11.6 of 87.9 needs critics that do not hold, and so it is not asked for
here, only that OFQL is ahead of it by 20.

Pilots (seed 1000, 1,000 updates, one run each): with the data above, OFQL 73 and 90 at eta 0.1 and 0.5 (rate 1e-2),
DQL-5 45 and 71, DQL-1 20 and 44 (rates 3e-3 and 1e-3; 86 in the end). With 40 % uniform actions among the data, 72 and
97, 62 and 65 (cosine), 71 and 67. In three dimensions, 18 and 32, 52, 10 and 10; there with 2,000 updates at 3e-3 OFQL
had 94 and DQL-1 52 (86 in the end); in six dimensions OFQL 0 to 31, DQL-5 64 and DQL-1 0 to 20: the mean velocity takes
longer to imitate, and until then the critic leads it away from the data. The first stage was chosen as the one where
both methods learn within 1,000 updates. The ring is that of the first registration, with denoising's own schedule.

What was found: partly, and against the method where it learns. OFQL ends at 61 % of the best (42 to 78), DQL with five
steps at 77 (60 to 88), DQL with one at 57 (40 to 76): at this size the mean velocity is not worth five steps of
denoising, and not surely more than one. The setting that one tuning seed chose for OFQL, eta 1 and rate 1e-2, in the
corner of the grid, had 85 there and was luck: its other eight had 46 to 57 on that seed, so more tuning would not have
changed the order (DQL-5: 25 to 77; DQL-1: 5 to 39). On the ring, which critics do not touch, one call covers 6.6 of 8
modes (5.5 to 8), not surely more than 6.5, where the velocity and one step of denoising cover none and have five times
the discrepancy. The operations are as counted: 0.654 of DQL's for an update and 0.207 for acting. What is certain is
thus the cost and the coverage beside other single steps; the returns of the paper, after a million updates, are not
seen after a thousand.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.claims import Above, Below, Claim, Greater, best_of
from polopt.claims.grids import BestOf

DATA, WIDE = 4_000, 0.1  # decisions of the data; deviation of its Gaussians
GRID = tuple((eta, rate) for eta in (0.1, 0.5, 1.0) for rate in (1e-3, 3e-3, 1e-2))
SETTINGS: dict[str, Any] = {
    "batch_size": 128,
    "network.sizes": (64, 64),
    "critic_lr": 5e-3,
    "tau": 0.02,
    "policy_tau": 0.02,
    "policy_start": 100,  # the released code of DQL waits 1,000 of its 2,000,000 updates
    "policy_every": 1,
    "max_grad_norm": None,
    "candidates": 1,
}
VP = (("policy.schedule", "vp"),)
SAMPLES = 2_000
CENTERS = 0.7 * torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])
SPREAD = 0.04


class Decision(gymnasium.Env):
    """One decision, whose observation is the rotation and whose reward is `good`."""

    observation_space = spaces.Box(-1.0, 1.0, (1,))
    action_space = spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.turn = np.float32([self.np_random.choice([-1.0, 1.0])])
        return self.turn, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        one = torch.as_tensor(np.asarray(action, np.float32))[None]
        return self.turn, float(good(one, torch.from_numpy(self.turn)[None])), True, False, {}


def good(action: Tensor, turn: Tensor) -> Tensor:
    """The reward [B] of actions [B, 2] where the observation is `turn` [B, 1]: 1 at the center of a good Gaussian."""
    distance = torch.cdist(turned(action, turn, -1.0), CENTERS[::4]).amin(-1)
    return (-0.5 * (distance / (2 * WIDE)).square()).exp().double()


@dataclass(frozen=True)
class OneDecision:
    """Trains on recorded decisions: other ones for each seed, the same for all arms."""

    method: str
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.core.spec import Spec
        from polopt.data.demonstrations import save_demonstrations
        from polopt.training.api import plan

        torch.manual_seed(seed)
        turn = torch.randint(2, (DATA, 1)) * 2.0 - 1.0
        action = ring(turn, every=2, spread=WIDE)
        ends = torch.ones(DATA, dtype=torch.bool)
        columns = {"obs": turn, "action": action, "reward": good(action, turn), "next_obs": turn.clone()}
        columns |= {"terminated": ends, "truncated": ~ends, "first": ends.clone()}
        with tempfile.TemporaryDirectory(prefix="polopt-claim-", ignore_cleanup_errors=True) as folder:
            file = Path(folder) / "decisions.safetensors"
            spec = Spec(Decision.observation_space, Decision.action_space, "decision")
            save_demonstrations(file, TensorDict(columns, batch_size=[DATA]), spec)
            learner = plan(self.method, Decision, seed=seed, dataset=str(file), **dict(self.settings)).build()
            learner.prepare_all()
        learner.task.close()
        updates, scores = budget["updates"], []
        turns = torch.tensor([[-1.0], [1.0]]).repeat(SAMPLES // 2, 1)
        for update in range(1, updates + 1):
            learner.update(learner.collect())
            if 2 * update > updates and update % max(updates // 10, 1) == 0:
                scores.append(float(good(learner.policy.act(turns)[0]["action"], turns).mean()))
        return {"score": 100 * statistics.mean(scores), "data": 100 * float(columns["reward"].mean())}

    @property
    def trains(self) -> tuple[str, ...]:
        return (self.method,)


def tuned(method: str, settings: tuple[tuple[str, Any], ...] = ()) -> BestOf:
    def make(values: tuple[float, float]) -> OneDecision:
        eta, rate = values
        return OneDecision(method, (*SETTINGS.items(), *settings, ("eta", eta), ("lr", rate)))

    return best_of(make, GRID, by="score", tuning_seeds=1)


@dataclass(frozen=True)
class OnTheRing:
    """Imitates the ring of Gaussians with one of the generative policies. `modes` of 8 that get a third of their share
    of the samples or more, within 4 deviations, and `mmd`, the maximum mean discrepancy from fresh data (Gaussian
    kernel of width 0.2): averages over the two rotations. `radius` is the mean distance of samples from the center."""

    policy: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt import policies
        from polopt.core.spec import Spec
        from polopt.networks import Network

        torch.manual_seed(seed)
        spec = Spec(spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (2,)), "ring")
        policy = getattr(policies, self.policy)(**dict(self.settings)).build(spec, Network((64, 64, 64), "mish"))
        optimizer = torch.optim.Adam(policy.parameters())
        updates = 3 * budget["updates"]
        for update in range(updates):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - update / updates)
            turn = torch.randint(2, (256, 1)) * 2.0 - 1.0
            batch = TensorDict({"obs": turn, "action": ring(turn)}, batch_size=[256])
            optimizer.zero_grad()
            policy.imitation_loss(batch).mean().backward()
            optimizer.step()
        scores = [self.score(policy, sign) for sign in (-1.0, 1.0)]
        return {name: statistics.mean(score[name] for score in scores) for name in scores[0]}

    def score(self, policy: Any, sign: float) -> dict[str, float]:
        turn = torch.full((SAMPLES, 1), sign)
        drawn = policy.act(turn)[0]["action"]
        near = (torch.cdist(drawn, turned(CENTERS, turn[:1])) < 4 * SPREAD).double().mean(0)
        return {
            "modes": float((near > 1 / 24).sum()),
            "mmd": discrepancy(drawn, ring(turn)),
            "radius": float(drawn.norm(dim=-1).mean()),
        }


def turned(points: Tensor, turn: Tensor, sign: float = 1.0) -> Tensor:
    """Points [B, 2], rotated by an eighth of half a turn where `turn` [B, 1] is positive; back with `sign` -1."""
    angle = (turn > 0) * (sign * math.pi / 8)
    x, y = points.split(1, -1)
    return torch.cat([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], -1)


def ring(turn: Tensor, every: int = 1, spread: float = SPREAD) -> Tensor:
    """One action [B, 2] of the data for each observation [B, 1], of `every` Gaussian, or every second one with 2."""
    chosen = every * torch.randint(8 // every, (len(turn),))
    return turned(CENTERS[chosen] + spread * torch.randn(len(turn), 2), turn)


def discrepancy(one: Tensor, other: Tensor, width: float = 0.2) -> float:
    """Root of the biased estimate of the squared maximum mean discrepancy."""

    def similarity(a: Tensor, b: Tensor) -> float:
        return float((-0.5 * (torch.cdist(a, b) / width).square()).exp().mean())

    return math.sqrt(max(similarity(one, one) + similarity(other, other) - 2 * similarity(one, other), 0.0))


def count(seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
    """Floating-point operations of OFQL over those of DQL with 5 steps, in an update and in acting on one observation
    with one sample."""
    from torch.utils.flop_counter import FlopCounterMode

    from polopt.training.api import plan

    counts: dict[str, list[int]] = {"update": [], "act": []}
    for name in ("ofql", "dql"):
        method = plan(name, "point-maze", dataset="random", candidates=1, loggers=()).build()
        method.prepare_all()
        batch = method.collect()
        with FlopCounterMode(display=False) as update:
            method.update(batch)
        with FlopCounterMode(display=False) as act:
            method.policy.act(batch["obs"][:1])
        counts["update"].append(update.get_total_flops())
        counts["act"].append(act.get_total_flops())
        method.task.close()
    return {f"{name}_ratio": one / other for name, (one, other) in counts.items()}


CLAIM = Claim(
    method="ofql",
    statement="with one network call OFQL is not behind Diffusion Q-Learning with five, is ahead of it with one, and "
    "saves operations; one step covers the modes by the mean velocity only",
    budget={"updates": 1_000},
    seeds=5,
    minutes=8,
    revision=2,
    first_seed=10,
    deterministic=("count",),
    diagnosis="in the maze 3,000 updates taught too little: the control, DQL with five steps, had 42, 74 and 83 "
    "percent by one evaluation each, which three seeds cannot tell from chance, so nothing was tested. "
    "eta and the rate were those that pilots had found for OFQL. DQL with one step had a schedule whose "
    "single step saturates whatever is learned. The time of an update was measured by a clock, with a "
    "limit (0.6) below what the operations allow.",
    arms={
        "ofql": tuned("ofql"),
        "dql-5": tuned("dql", VP),
        "dql-1": tuned("dql", (*VP, ("policy.steps", 1), ("policy.sampler", "ddim"))),
        "ring-mean-velocity": OnTheRing("MeanFlow"),
        "ring-velocity": OnTheRing("Flow", (("steps", 1),)),
        "ring-ddpm-1": OnTheRing("Diffusion", (("schedule", "vp"), ("min_std", 0.0), ("steps", 1))),
        "count": count,
    },
    expect=(
        Above("score", "dql-5", 50, control=True),
        Greater("score", "ofql", "dql-5", by=-5),
        Greater("score", "ofql", "dql-1", by=20),
        Above("modes", "ring-mean-velocity", 6.5),
        Greater("mmd", "ring-velocity", "ring-mean-velocity", ratio=3),
        Below("radius", "ring-velocity", 0.2),
        Greater("mmd", "ring-ddpm-1", "ring-mean-velocity", ratio=3),
        Below("update_ratio", "count", 0.7),
        Below("act_ratio", "count", 0.3),
    ),
)
