"""HNPG on a combination lock: recorded decisions show where the reward is, what was played keeps it a policy gradient.

The lock of the paper with H = 6 decisions: two good rooms, in each of which one of ten actions leads on (to either
room); every other one leads for good to a third room. The last right action pays 1, everything else 0.1 in half of the
episodes. Observations are one-hot vectors with noise, times a Hadamard matrix; an action is a vector of R^10, of whose
softmax the lock draws. The data are 5,000 episodes of somebody who knows the code and acts at random once in six times.

All arms have 60 updates on 300 episodes each, 108,000 steps (and 30,000 recorded ones, but for `trpo`), and in each of
the six steps networks of two layers of 32, the released code's GAE and 30 steps of a fresh Adam. The critics' rate
(3e-3 for 3e-4), the radius (0.03 for 0.01) and the batches are larger than in that code, since there are 60 updates and
not 1,500; they are the same for all arms. `hnpg` is the method; `trpo` is it without the data
(`--offline-weight 0 --no-offline-states`); `td-only` is it without the played returns in the critic
(`--monte-carlo-weight 0`), which then learns values from the data alone, while the policy still improves on what was
played as well. For `corrupted`, which is `hnpg`, the last reward of 30 percent of the recorded episodes is 1 minus it.

`return` is that of episodes as they are played, the mean over the last fifth of the updates; `area` over all of them.
Playing at random gets 0.05, the right actions get 1, the data have 0.40.

Pilot, seed 1000: `hnpg` passes 0.9 after 40 updates and has 0.99 in the end, `corrupted` 0.99, `trpo` 0.05. `td-only`
has 0.05 as well, at critic rates of 1e-3 and 3e-3, on clean and on corrupted data: recorded actions are hardly ever
wrong, so its critic takes whatever the policy does for as good as the right action (V is 0.96 in the good rooms). What
the paper shows by corrupted data, that played returns are what a good critic needs, shows here without; what corruption
costs cannot be compared with an arm that has nothing to lose. Half of these differences is asked for, and 0.8 of HNPG.
Code whose data do not reach the policy, or whose played returns do not reach the critic, has 0.05.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater

TASK, HORIZON, RECORDED, EPISODES = "lock/continuous", 6, 5_000, 300
SETTINGS: dict[str, Any] = {
    "horizon": HORIZON,
    "envs": EPISODES,
    "episodes": EPISODES,
    "network.sizes": (32, 32),
    "critic_network.sizes": (32, 32),
    "critic_lr": 3e-3,
    "max_kl": 0.03,
    "loggers": (),
    "threads": 1,
}


def recorded(seed: int, corrupted: float) -> tuple[Any, Any]:
    """Episodes that follow the code but for one decision in six, and the spaces that they are of."""
    import torch

    from polopt.data.demonstrations import scripted_episodes
    from polopt.tasks import make_task

    world = make_task(TASK, 500, seed=seed, horizon=HORIZON, stray=1 / HORIZON)
    data = scripted_episodes(world, "right", RECORDED * HORIZON)
    chance = torch.rand(len(data), generator=torch.Generator().manual_seed(seed))
    wrong = (data["terminated"] | data["truncated"]) & (chance < corrupted)
    data["reward"] = torch.where(wrong, 1 - data["reward"], data["reward"])
    return data, world.spec


@dataclass(frozen=True)
class OnTheLock:
    """An arm: the method with these settings, on data of which a share of the last rewards is turned around."""

    settings: tuple[tuple[str, Any], ...] = ()
    corrupted: float | None = 0.0

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.core import files
        from polopt.data.demonstrations import save_demonstrations
        from polopt.training.api import plan

        settings, returns = SETTINGS | dict(self.settings), list[float]()
        with files.temporary_folder("polopt-claim-") as folder:
            if self.corrupted is not None:
                settings["dataset"] = str(folder / "episodes.safetensors")
                save_demonstrations(folder / "episodes.safetensors", *recorded(seed, self.corrupted))
            method = plan("hnpg", TASK, task_options={"horizon": HORIZON}, seed=seed, **settings).build()
        while method.ledger.env_steps < budget["env_steps"]:
            batch = method.collect()
            returns.append(float((batch["reward"] * batch["mask"]).sum() / len(batch)))
            method.update(batch)
        return {"return": statistics.mean(returns[-len(returns) // 5 :]), "area": statistics.mean(returns)}

    @property
    def trains(self) -> tuple[str, ...]:
        return ("hnpg",)


def arm(corrupted: float | None = 0.0, **settings: Any) -> OnTheLock:
    return OnTheLock(tuple(settings.items()), corrupted)


CLAIM = Claim(
    method="hnpg",
    statement="on a lock whose reward play alone does not find, and data alone do not show how to get, a natural "
    "policy gradient that learns from both opens it, also where three of ten recorded outcomes are wrong",
    budget={"env_steps": 108_000},
    quick={"env_steps": 3_600},
    seeds=3,
    minutes=8,
    arms={
        "hnpg": arm(),
        "trpo": arm(None, offline_weight=0.0, offline_states=False),
        "td-only": arm(monte_carlo_weight=0.0),
        "corrupted": arm(0.3),
    },
    expect=(
        Above("return", "hnpg", 0.8),
        Below("return", "trpo", 0.2),
        Greater("return", "hnpg", "td-only", by=0.45),
        Above("return", "corrupted", 0.8),
    ),
)
