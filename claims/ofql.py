"""OFQL: one network call is enough for an expressive policy, where one step of a diffusion policy is not.

Three experiments, of which each arm makes one. In the point maze the data come from two equally long ways around a
block, with detours, at any pace, and three of ten episodes get lost; OFQL, Diffusion Q-Learning with 5 steps and with
one DDIM step learn from them with the same settings and the same number of updates, and act by single samples, so that
only the policy differs. On the ring eight Gaussians, in one of two rotations that the observation names, are imitated
by the mean velocity, by the velocity in one step of Euler's method, and by denoising with 5 steps and with one. The
clock takes updates of OFQL and of DQL in turns, with networks of the paper's width, and compares medians.

Rewards are -1 on every step before the goal and eta is 0.01 for all arms: in pilots (seed 1000) OFQL with eta 0.1, and
with 0.01 but rewards of 0 and 1, ended at success 0. Learning rates are high because the budget is small: at 1e-3,
3,000 updates were not enough even to clone (success 11 for diffusion, 30 for the mean velocity). DQL has the cosine
schedule, with which it did better (84, against 28 with its own). The time of an update was 0.68 to 0.73 of DQL's, more
than the 0.6 that is expected; that expectation stays.

What was found: the means are as the paper has them (success 82 % for OFQL, 66 % for DQL with 5 steps, 0 % with one),
but DQL's three seeds, 42, 74 and 83 %, are too far apart for three: the control that it works at all is not certain,
so the verdict is "not reproduced". On the ring one step covers 7.2 of 8 modes by the mean velocity (one seed 6.5), none
by the velocity or one step of denoising, 5.5 by five steps. An update takes 0.72 of DQL's time, not 0.6; acting 0.47.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polopt.claims import Above, Below, Claim, Greater

DATA = 10_000  # transitions of the maze's data
LEARNING = {"lr": 1e-2, "critic_lr": 1e-3, "max_grad_norm": None, "network.sizes": (64, 64, 64)}
TARGETS = {"policy_start": 100, "policy_every": 1}  # the released code waits 1,000 of its 2,000,000 updates
SETTINGS: dict[str, Any] = LEARNING | TARGETS | {"candidates": 1, "eta": 0.01, "rewards": "minus-one"}
COSINE = (("policy.schedule", "cosine"),)
ONE_STEP = (*COSINE, ("policy.steps", 1), ("policy.sampler", "ddim"))
SAMPLES = 2_000
CENTERS = 0.7 * torch.tensor([[math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)] for k in range(8)])
SPREAD = 0.04


@dataclass(frozen=True)
class InTheMaze:
    """Trains offline on recorded episodes: other ones for each seed, the same for all arms. `success` is the share of
    100 episodes that reach the goal, in percent, of the last policy; `behavior` that of the recorded episodes."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        import polopt
        from polopt.core.spec import Spec
        from polopt.data.demonstrations import save_demonstrations
        from polopt.tasks.maze import PointMaze, behavior_episodes, transitions

        maze = PointMaze()
        episodes = behavior_episodes("point-maze/routes", DATA, seed)
        behavior = sum(float(episode["terminated"][-1]) for episode in episodes) / len(episodes)
        with tempfile.TemporaryDirectory(prefix="polopt-claim-", ignore_cleanup_errors=True) as folder:
            data = Path(folder) / "routes.safetensors"
            spec = Spec(maze.observation_space, maze.action_space, "point-maze")
            save_demonstrations(data, transitions(episodes), spec)
            recorded = {"lr_schedule": "cosine"}  # the default when the lines were recorded
            settings = SETTINGS | recorded | dict(self.settings)
            settings |= {"dataset": str(data), "eval_every": budget["updates"]}
            run: Any = polopt.train(
                self.method,
                "point-maze",
                steps=budget["updates"],
                seed=seed,
                out=Path(folder) / "run",
                eval_episodes=100,
                loggers=(),
                threads=1,
                checkpoint_every=2**40,
                **settings,
            )
            success = float(run.evaluations[-1]["eval/return"])
        return {"success": 100 * success, "behavior": 100 * behavior}


@dataclass(frozen=True)
class OnTheRing:
    """Imitates the ring of Gaussians with one of the generative policies. `modes` of 8 that get a third of their share
    of the samples or more, within 4 deviations, and `mmd`, the maximum mean discrepancy from fresh data (Gaussian
    kernel of width 0.2): averages over the two rotations. `radius` is the mean distance of samples from the center."""

    policy: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from gymnasium import spaces
        from tensordict import TensorDict

        from polopt import policies
        from polopt.core.spec import Spec
        from polopt.networks import Network

        torch.manual_seed(seed)
        spec = Spec(spaces.Box(-1.0, 1.0, (1,)), spaces.Box(-1.0, 1.0, (2,)), "ring")
        policy = getattr(policies, self.policy)(**dict(self.settings)).build(spec, Network((64, 64, 64), "mish"))
        optimizer = torch.optim.Adam(policy.parameters())
        for update in range(budget["updates"]):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * (1 - update / budget["updates"])
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


def turned(points: Tensor, turn: Tensor) -> Tensor:
    """Points [B, 2], rotated by an eighth of half a turn where `turn` [B, 1] is positive."""
    angle = (turn > 0) * (math.pi / 8)
    x, y = points.split(1, -1)
    return torch.cat([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], -1)


def ring(turn: Tensor) -> Tensor:
    """One action [B, 2] of the data for each observation [B, 1]."""
    points = CENTERS[torch.randint(8, (len(turn),))] + SPREAD * torch.randn(len(turn), 2)
    return turned(points, turn)


def discrepancy(one: Tensor, other: Tensor, width: float = 0.2) -> float:
    """Root of the biased estimate of the squared maximum mean discrepancy."""

    def similarity(a: Tensor, b: Tensor) -> float:
        return float((-0.5 * (torch.cdist(a, b) / width).square()).exp().mean())

    return math.sqrt(max(similarity(one, one) + similarity(other, other) - 2 * similarity(one, other), 0.0))


@dataclass(frozen=True)
class Clock:
    """Seconds of OFQL over those of DQL with 5 steps, medians of `rounds` in turns: of an update (`update_ratio`), and
    of acting with one sample at one observation (`act_ratio`)."""

    rounds: int = 40

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.training.api import plan

        settings = {"dataset": "random", "candidates": 1, "loggers": ()}
        methods = [plan(name, "point-maze", seed=seed, **settings).build() for name in ("ofql", "dql")]
        seconds: dict[str, list[list[float]]] = {"update": [[], []], "act": [[], []]}
        for _ in range(self.rounds + 3):
            for index, method in enumerate(methods):
                batch = method.collect()
                begin = time.perf_counter()
                method.update(batch)
                middle = time.perf_counter()
                method.policy.act(batch["obs"][:1])
                seconds["update"][index].append(middle - begin)
                seconds["act"][index].append(time.perf_counter() - middle)
        for method in methods:
            method.task.close()
        medians = {name: [statistics.median(each[3:]) for each in pair] for name, pair in seconds.items()}
        return {f"{name}_ratio": one / other for name, (one, other) in medians.items()}


CLAIM = Claim(
    method="ofql",
    statement="with one network call OFQL reaches the success of Diffusion Q-Learning with five, which one step of "
    "diffusion is far from, and saves time; one step covers the modes by the mean velocity only",
    budget={"updates": 3_000},
    seeds=3,
    minutes=12,
    arms={
        "ofql": InTheMaze("ofql"),
        "dql-5": InTheMaze("dql", COSINE),
        "dql-1": InTheMaze("dql", ONE_STEP),
        "ring-mean-velocity": OnTheRing("MeanFlow"),
        "ring-velocity": OnTheRing("Flow", (("steps", 1),)),
        "ring-ddpm-5": OnTheRing("Diffusion", (("schedule", "cosine"), ("min_std", 0.0))),
        "ring-ddpm-1": OnTheRing("Diffusion", (("schedule", "cosine"), ("min_std", 0.0), ("steps", 1))),
        "clock": Clock(),
    },
    expect=(
        Above("success", "dql-5", 50, control=True),
        Greater("success", "ofql", "dql-5", by=-5),
        Greater("success", "dql-5", "dql-1", by=30),
        Above("modes", "ring-mean-velocity", 6.5),
        Greater("mmd", "ring-velocity", "ring-mean-velocity", ratio=3),
        Below("radius", "ring-velocity", 0.2),
        Greater("mmd", "ring-ddpm-1", "ring-mean-velocity", ratio=3),
        Below("update_ratio", "clock", 0.6),
        Below("act_ratio", "clock", 0.6),
    ),
)
