"""SAC: the learned temperature makes the return insensitive to the scale of the reward, and two critics bias it less.

The dual temperature is what distinguishes this SAC from the first one: multiplying all rewards by 0.1 or 10 should
change neither the return that is reached nor the entropy that is held; a fixed temperature must be tuned to the scale.
Every arm trains with the same budget and settings; only the temperature, the scale and the number of critics differ.
Expectations were written before any recorded seed; the tolerance of the entropy is wider at scale 0.1, where the
temperature still falls at the end of this small budget.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from polopt.evaluation import Below, Claim, Greater, Within
from polopt.training.claims import train_arm

TASK = "Pendulum-v1"
SETTINGS: dict[str, Any] = {
    "warmup": 1_000,
    "network.sizes": (64, 64),
    "eval_every": 1_000,
    "eval_episodes": 10,
    "log_every": 200,
}
SCALES = (0.1, 1, 10)
TARGET_ENTROPY = -1.0


def entropy_error(run: Any) -> float:
    """|mean entropy of the last 2,000 steps - target entropy|, in nats."""
    last = run.rows[-1]["env_steps"]
    values = [row["entropy"] for row in run.rows if row["env_steps"] > last - 2_000 and "entropy" in row]
    return abs(sum(values) / len(values) - TARGET_ENTROPY)


def bias(seed: int, budget: dict[str, int], critics: int) -> dict[str, float]:
    """Mean over visited decisions of Q(s, a) - soft Monte Carlo return, in units of the return."""
    import polopt
    from polopt.data import Episodes
    from polopt.training.api import load_method

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        settings = SETTINGS | {"critics": critics, "loggers": (), "threads": 1}
        polopt.train("sac", TASK, steps=budget["env_steps"], seed=seed, out=place, **settings)
        method, plan = load_method(place)
    task = plan.make_task(2, 10)
    torch.manual_seed(seed)
    batch = Episodes(task, starts=range(20)).next(method.policy)
    discount = method.config.discount
    with torch.no_grad():
        log_prob = method.policy.log_prob(batch)
        q = method.critic(batch["obs"], batch["action"]).amin(0)
    soft = batch["reward"] - discount * _next(method.temperature.value * log_prob)
    returns = torch.zeros_like(soft)
    running = torch.zeros(len(soft))
    for step in reversed(range(soft.shape[1])):
        running = soft[:, step] + discount * running
        returns[:, step] = running
    early = slice(0, 50)  # at least 150 decisions follow: what the time limit cuts off is small, and the same for all
    return {"bias": float((q - returns)[:, early].mean()), "q": float(q[:, early].mean())}


def _next(value: torch.Tensor) -> torch.Tensor:
    """The value of the next decision, 0 after the last."""
    return torch.cat([value[:, 1:], torch.zeros(len(value), 1)], 1)


def twin(seed: int, budget: dict[str, int]) -> dict[str, float]:
    return bias(seed, budget, 2)


def single(seed: int, budget: dict[str, int]) -> dict[str, float]:
    return bias(seed, budget, 1)


def arm(scale: float, **entropy: Any) -> Any:
    return train_arm(
        "sac", TASK, metrics={"entropy_error": entropy_error}, reward_scale=float(scale), **SETTINGS, **entropy
    )


CLAIM = Claim(
    method="sac",
    statement="with a learned temperature the return on Pendulum does not depend on the reward scale, the entropy "
    "is held at its target, and the minimum of two critics overestimates less than one",
    budget={"env_steps": 12_000},
    seeds=5,
    minutes=20,
    arms={
        **{f"learned@{scale}": arm(scale) for scale in SCALES},
        **{f"fixed@{scale}": arm(scale, entropy="fixed") for scale in SCALES},
        "twin": twin,
        "single": single,
    },
    expect=(
        Within("return", "learned@*", spread=60),
        Greater("return", "learned@0.1", "fixed@0.1", by=200),
        Below("entropy_error", "learned@1", 0.3),
        Below("entropy_error", "learned@10", 0.3),
        Below("entropy_error", "learned@0.1", 0.5),
        Greater("bias", "single", "twin"),
        Greater("return", "learned@1", "fixed@0.1", by=200, control=True),
    ),
)
