"""A2PR (arXiv 2405.19909): of data that are mostly bad, a policy is drawn to what is better.

The stage is Pendulum-v1: 100 recorded episodes of 200 decisions, of which 10 are those of a scripted controller (it
pumps energy, then holds the pendulum up) and 90 of uniform random actions. All arms have the same small networks, rate
and number of updates, and one grid of alpha, of which a tuning seed chooses. `a2pr` may imitate what its autoencoder
makes, `a2pr@data` only recorded actions, those that are better than average; `td3-bc` imitates all of them. `return` is
that of 20 episodes, the mean of five evaluations over the last fifth of the run.

`lead` says how much more what A2PR imitates is worth than the recorded actions of the same decisions, by a measure that
no critic has a part in: the return of doing it once, and then as the controller does for 100 steps, computed with the
equations of the pendulum, over 2,000 recorded decisions; `lead_pulled` over those alone that are imitated. `share` is
the part of the decisions for which the autoencoder's action was chosen, `pulled` the part that is imitated.

One pilot (seed 1000, 8,000 updates, alpha 2.5): A2PR has a return of -177, its lead is 3.3 (3.8 where it is pulled), 64
% of the actions to imitate are the autoencoder's and 86 % of the decisions pull; TD3+BC has -889, and with alpha 10,
after half of the updates, -1114. The controller has about -120, random actions -1239. Thresholds are at less than half
of that. The other alphas, and recorded actions alone, were not tried before the registration.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.claims import Above, Claim, Greater, best_of
from polopt.claims.grids import BestOf
from polopt.claims.recorded import learner_from

TASK, EPISODES, GOOD, STEPS = "Pendulum-v1", 100, 10, 200
ALPHAS = (1.0, 2.5, 10.0)
SETTINGS: dict[str, Any] = {
    "network.sizes": (64, 64),
    "critic_network": "network",
    "critic_network.sizes": (64, 64),
    "critic_network.activation": "relu",
    "lr": 1e-3,
}


def moved(angle: Tensor, speed: Tensor, torque: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The pendulum after a step, and its reward: Gymnasium's equations, of many at once."""
    away = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
    reward = -(away.square() + 0.1 * speed.square() + 0.001 * torque.square())
    speed = (speed + (15.0 * angle.sin() + 3.0 * torque) * 0.05).clamp(-8.0, 8.0)
    return angle + 0.05 * speed, speed, reward


def controller(angle: Tensor, speed: Tensor) -> Tensor:
    """Its torque: near the top it holds, elsewhere it moves the energy towards that of the top."""
    away = torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi
    energy = speed.square() / 6 + 5.0 * (angle.cos() - 1.0)
    hold = -(10.0 * away + 2.0 * speed)
    pump = -5.0 * energy * torch.where(speed == 0, 1.0, speed.sign())
    return torch.where(away.abs() < 0.6, hold, pump).clamp(-2.0, 2.0)


def seen(angle: Tensor, speed: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin(), speed], -1)


def worth(obs: Tensor, torque: Tensor, steps: int = 100) -> Tensor:
    """Return [B] of doing `torque` [B] where `obs` [B, 3] is seen, and then as the controller does."""
    angle, speed = torch.atan2(obs[:, 1], obs[:, 0]), obs[:, 2]
    total = torch.zeros_like(angle)
    for step in range(steps):
        angle, speed, reward = moved(angle, speed, torque if step == 0 else controller(angle, speed))
        total = total + reward
    return total


def decisions(seed: int) -> TensorDict:
    """The recorded ones [EPISODES * STEPS], episode after episode."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.pi * (2 * torch.rand(EPISODES, generator=generator) - 1)
    speed = 2 * torch.rand(EPISODES, generator=generator) - 1
    good, rows = torch.arange(EPISODES) < GOOD, []
    for step in range(STEPS):
        noise = torch.randn(EPISODES, generator=generator)
        uniform = 4 * torch.rand(EPISODES, generator=generator) - 2
        torque = torch.where(good, (controller(angle, speed) + 0.2 * noise).clamp(-2, 2), uniform)
        obs = seen(angle, speed)
        angle, speed, reward = moved(angle, speed, torque)
        end, begin = torch.full((EPISODES,), step == STEPS - 1), torch.full((EPISODES,), step == 0)
        rows.append(
            {
                "obs": obs,
                "action": torque[:, None],
                "reward": reward,
                "next_obs": seen(angle, speed),
                "terminated": torch.zeros(EPISODES, dtype=torch.bool),
                "truncated": end,
                "first": begin,
            }
        )
    columns = {name: torch.stack([row[name] for row in rows], 1).flatten(0, 1) for name in rows[0]}
    return TensorDict(columns, batch_size=[EPISODES * STEPS])


@dataclass(frozen=True)
class OnTheMix:
    """Trains on the recorded decisions: other ones for each seed, the same for all arms."""

    method: str
    alpha: float
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.tasks import make_task

        data = decisions(seed)
        settings = SETTINGS | {"alpha": self.alpha} | dict(self.settings)
        learner = learner_from(data, make_task(TASK).spec, self.method, TASK, seed=seed, **settings)
        updates, returns = budget["updates"], []
        for update in range(1, updates + 1):
            learner.update(learner.collect())
            if update > 0.8 * updates - 1 and update % max(updates // 25, 1) == 0:
                returns.append(played(learner.policy))
        found = {"return": statistics.mean(returns[-5:])}
        return found | (judged(learner, data) if self.method == "a2pr" else {})

    @property
    def trains(self) -> tuple[str, ...]:
        return (self.method,)


def played(policy: Any, episodes: int = 20) -> float:
    """The mean return of the policy from the same starts each time."""
    generator = torch.Generator().manual_seed(1)
    angle = torch.pi * (2 * torch.rand(episodes, generator=generator) - 1)
    speed = 2 * torch.rand(episodes, generator=generator) - 1
    total = torch.zeros(episodes)
    for _ in range(STEPS):
        record, _ = policy.act(seen(angle, speed), greedy=True)
        angle, speed, reward = moved(angle, speed, policy.env_action(record["action"])[:, 0])
        total += reward
    return float(total.mean())


def judged(learner: Any, data: TensorDict) -> dict[str, float]:
    """How much more what the learner imitates is worth than what was recorded."""
    from polopt.core.batch import weigh

    place = torch.randint(len(data), (2_000,), generator=torch.Generator().manual_seed(0))
    batch = weigh(data[place].set("action", learner.policy.own_action(data["action"][place])))
    with torch.no_grad():
        batch["value"] = learner.value(batch["obs"])
        batch["advantage"] = learner.clipped.first(batch["obs"], batch["action"]) - batch["value"]
        if learner.vae is not None:
            batch["latent"] = learner.vae.draw_noise(batch["action"])
        imitated, pull, metrics = learner.attractor(batch, learner.policy.rsample(batch["obs"])[0])
        lead = worth(batch["obs"], 2.0 * imitated["action"][:, 0]) - worth(batch["obs"], 2.0 * batch["action"][:, 0])
    share = float(metrics["vae_share"]) if "vae_share" in metrics else 0.0
    pulled = pull > 0
    return {
        "lead": float(lead.mean()),
        "lead_pulled": float(lead[pulled].mean()) if pulled.any() else 0.0,
        "share": share,
        "pulled": float(pulled.double().mean()),
    }


def tuned(method: str, **settings: Any) -> BestOf:
    return best_of(lambda alpha: OnTheMix(method, alpha, tuple(settings.items())), ALPHAS, by="return", tuning_seeds=1)


VAE = {"vae_network.sizes": (128, 128)}

CLAIM = Claim(
    method="a2pr",
    statement="on data of which nine tenths are random, imitation of better actions alone, recorded or made by an "
    "autoencoder, ends above imitation of all, and what is imitated is worth more than what was recorded",
    budget={"updates": 8_000},
    seeds=5,
    minutes=12,
    arms={
        "a2pr": tuned("a2pr", **VAE),
        "a2pr@data": tuned("a2pr", candidate="data"),
        "td3-bc": tuned("td3-bc"),
    },
    expect=(
        Above("return", "td3-bc", -1150, control=True),
        Greater("return", "a2pr", "td3-bc", by=300),
        Above("lead", "a2pr", 1.5),
    ),
)
