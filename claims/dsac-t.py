"""DSAC-T against its first version and SAC when rewards are multiplied by k, on Pendulum with noisy rewards.

The training reward is k (reward + N(0, 1)), so that the std of the return matters; returns are measured without noise
and without k. DSACv1 has one bound on the TD error (10) at every k; DSAC-T takes its bound and the scale of its
gradients from the running mean of the std, and so should depend less on k. The bias of a critic is its mean Q over
states and actions of its own policy, minus Monte-Carlo soft returns, divided by k. The paper's squares, not the
released code's Huber function; the same networks, learning rates and budget for all. Temperatures start at 1 and may
fall equally fast: DSAC's moves at every second update, so twice as far. That matters at small k, where a temperature
that is right for the reward is much smaller than the first one.

The scales were narrowed from k = 0.01, 1 and 100 after pilots of one seed (1000), whose settings still differed from
each other: at k = 100 DSAC-T returned -1054 and DSACv1 -612, at k = 0.01 -132 and -733. The extremes ask much of a
network of 64 units in 15,000 steps (values of -100,000, temperatures of 0.002), but it was not tested whether that is
why: at the extremes these pilots speak once for and once against the claim, and the recorded arms do not cover them.

What was found: all methods learn at all three scales, and the spread over scales is noise: about 100 of return for all
three. The fixed bound of DSACv1 does no visible harm here, so there is nothing for the refinement to repair. The
gradient of the critic varies more with a sampled target in every seed (3.7 times in the mean), and the bias of DSAC-T
at k = 1 is below that of a single critic in every seed (5 against 10), but three seeds do not separate either.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium
import torch
from torch import Tensor

from polopt.claims import Above, Claim, Greater, Narrower
from polopt.data.rollouts import Rollouts
from polopt.evaluation.returns import evaluate_returns
from polopt.tasks import make_task

SCALES = (0.1, 1, 10)
SHARED = {
    "warmup": 1_000,
    "batch_size": 128,
    "steps_per_update": 1,
    "network.sizes": (64, 64),
    "network.activation": "gelu",
    "lr": 1e-3,  # SAC's is also the temperature's
    "entropy.initial": 1.0,
}
DSAC = {"temperature_lr": 2e-3}
NOW = {"temperature_lr": "entropy.lr"}  # the recorded lines are keyed by the name of that time
HORIZON = 600  # steps of the Monte-Carlo returns: what comes after the last compared pair's 400 weighs under 2 %
COMPARED = 200  # steps of each episode whose Q is compared
GRADIENTS = 200


class NoisyReward(gymnasium.Wrapper):
    """Adds standard normal noise, drawn from the environment's own seeded generator."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, float(reward) + float(self.np_random.normal()), terminated, truncated, info


def noisy_pendulum() -> gymnasium.Env:
    return NoisyReward(gymnasium.make("Pendulum-v1", disable_env_checker=True))


@dataclass(frozen=True)
class ScaledArm:
    """Trains on noisy rewards times `scale`; measures returns as it goes, and the critic at the end."""

    method: str
    scale: float
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.training.api import iterate

        steps = budget["env_steps"]
        rows_only = {"loggers": (), "threads": 1, "checkpoint_every": 2**40, "eval_every": steps, "eval_episodes": 1}
        clean = make_task("Pendulum-v1", num=10, seed=seed, evaluation=True)
        curve: list[list[float]] = []
        at_end: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="polopt-claim-", ignore_cleanup_errors=True) as folder:
            settings = {"out": f"{folder}/run", "log_every": steps // 10, "reward_scale": self.scale} | rows_only
            settings |= {NOW.get(name, name): value for name, value in self.settings}
            for row in iterate(self.method, noisy_pendulum, steps=steps, seed=seed, **settings):
                curve.append([row["env_steps"], evaluate_returns(row["method"].policy, clean, 10)["return"]])
                if row["env_steps"] >= steps:
                    at_end = measure_critic(row["method"], seed)
        clean.close()
        last = [value for _, value in curve[-3:]]
        return {"return": sum(last) / len(last), "curve": curve} | at_end


def measure_critic(method: Any, seed: int) -> dict[str, float]:
    bias = critic_bias(method, seed)
    found: dict[str, float] = {"bias": bias, "bias_size": abs(bias), "temperature": method.temperature.value.item()}
    if hasattr(method, "evaluate_batch"):
        found["gradient_variance"] = gradient_variance(method)
        with torch.no_grad():
            _, metrics = method.critic_loss(method.evaluate_batch(method.source.replay.sample(1_000)))
        found["std"] = float(metrics["std"])
    return found


@torch.no_grad()
def critic_bias(method: Any, seed: int) -> float:
    """Mean Q minus the mean Monte-Carlo soft return of the same state-action pairs, over the scale of the reward.

    Q(s, a) = E[sum of discount^t (k reward_t - alpha log pi(a_t|s_t))], without the entropy of the first action: 20
    episodes without time limit (Pendulum never terminates), of the stochastic policy, on the noiseless task.
    """
    endless = functools.partial(gymnasium.make, "Pendulum-v1", disable_env_checker=True, max_episode_steps=HORIZON + 1)
    task = make_task(endless, num=20, seed=seed, evaluation=True)
    window = Rollouts(task, HORIZON).next(method.policy)
    task.close()
    config = method.config
    reward = config.reward_scale * window["reward"]
    bonus = -method.temperature.value * window["log_prob"]
    later = torch.zeros(20)  # what is added to the reward: the discounted soft return from the next step on
    returns: list[Tensor] = []
    for time in reversed(range(HORIZON)):
        returns.append(reward[:, time] + later)
        later = config.discount * (returns[-1] + bonus[:, time])
    soft = torch.stack(returns[::-1], 1)[:, :COMPARED]
    q = method.action_values(window["obs"][:, :COMPARED], window["action"][:, :COMPARED]).mean(0)
    return float((q - soft).mean()) / config.reward_scale


def gradient_variance(method: Any) -> float:
    """Variance over batches of the norm of the critic's gradient, with the weights held."""
    norms = []
    for _ in range(GRADIENTS):
        batch = method.evaluate_batch(method.source.replay.sample(method.config.batch_size))
        gradients = torch.autograd.grad(method.critic_loss(batch)[0], list(method.critic.parameters()))
        norms.append(torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt())
    return float(torch.stack(norms).var())


def arm(method: str, scale: float, **settings: Any) -> ScaledArm:
    common = SHARED if method == "sac" else SHARED | DSAC
    return ScaledArm(method, scale, tuple((common | settings).items()))


CLAIM = Claim(
    method="dsac-t",
    statement="three refinements make the distributional critic depend less on the scale of the reward, and its mean "
    "no more biased than that of a single critic",
    budget={"env_steps": 15_000},
    seeds=3,
    minutes=20,
    arms={
        **{f"{method}@{scale:g}": arm(method, scale) for method in ("dsac-t", "dsac-v1", "sac") for scale in SCALES},
        "single@1": arm("sac", 1, critics=1),
        "sampled@1": arm("dsac-t", 1, expected_value=False),
    },
    expect=(
        Above("return", "dsac-t@1", -400, control=True),
        Narrower("return", "dsac-t@*", "dsac-v1@*", ratio=0.5),
        Greater("bias_size", "single@1", "dsac-t@1"),
        Greater("bias_size", "sac@1", "dsac-t@1", by=-10),
        Greater("gradient_variance", "sampled@1", "dsac-t@1", ratio=1.5),
    ),
)
