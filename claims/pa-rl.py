"""PA-RL: one recipe improves a diffusion policy and a token policy alike, beyond what choosing among samples can do.

A point in the plane goes around a block by one of two ways. The data (20,000 transitions, another set for each seed,
the same for all arms) take both ways, slowly: 7 of 10 of their episodes arrive within 60 steps, and 16 or 17 steps are
possible. The policy is asked to arrive within 20, which none of them did. So cloning fails, and to choose among
samples of the clone, whose best are still slow, is not enough: the actions themselves must be improved.

All arms have the same networks (two layers of 64), data, batches and budget: 2,700 updates on the data, then 600 more
with one environment step each. `diffusion` and `autoregressive` are PA-RL, with the same settings; `best-of-16` is the
same run without climbing and without teaching the policy; `native` is Diffusion Q-learning, which extracts its policy
by the gradient through the chain of five denoising steps, for tokens not to be had at all; `cloned` is the diffusion
policy that imitates. Every arm has the same two learning rates of the policy, 1e-3 and 3e-3, and what counts, per seed,
is the better of the two by its final success; `spread` is how much they differ. `success` is in percent of 50 episodes
at the end, `steps` their mean length, `offline` the success before the first environment step, and `area` the mean over
the evaluations online.

Pilots (seeds 1000 and 1001, learning rates 3e-4 and 1e-3) set the time limit. With 60 steps (and 1,000 updates more)
and with 24, choosing among samples ended at 100 and 90 percent and PA-RL at 100, so that only the length of the way
told them apart; with 20 it ended at 4, and PA-RL at 100 with both policies. Diffusion Q-learning failed even with 60
steps while eta was 0.1 or more and rewards were 0 and 1; with 0.01, rewards of -1 and the rate 3e-3 it came to 42, so
it has these settings, and all arms have that rate in place of 3e-4.

Of the paper's setting: 16 candidates of which 4 climb 2 steps, 3 critics with discount 0.95 and faster targets, and
the conservative term on the candidates of the next state alone, which halves the cost of an update. One step of
climbing moves an action by 0.1 times the gradient.

What was found: all expectations hold, with both policy classes at 100 % in all seeds. Best-of-16 reaches 5 %, and the
native extraction 0 % at both rates: with this time limit the actions of the data are too slow, and a policy that stays
near them (eta 0.01, the best of 1, 0.1 and 0.01 with the longer limit) has no chance. So the margin over it says as
much about the limit as about the method.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater

DATA = 20_000
HORIZON = 20  # the data were recorded with 60
OFFLINE, ONLINE = 2_700, 600
RATES = (1e-3, 3e-3)
COMMON: dict[str, Any] = {"batch_size": 64, "network.sizes": (64, 64)}
VALUES: dict[str, Any] = {"critics": 3, "tau": 0.02, "discount": 0.95, "critic_lr": 1e-3, "candidates": 16}
PA: dict[str, Any] = VALUES | {
    "critic_network.sizes": (64, 64),
    "bc_updates": 1_500,
    "offline_updates": OFFLINE - 1_500,
    "keep": 4,
    "climb_steps": 2,
    "step_size": 0.1,
    "values.random_actions": 4,
    "values.actions": "next",
}
RECORDED: dict[str, Any] = {
    "policy_tau": None,
    "values.histogram": None,
    "network.activation": "relu",
    "network.blocks": "plain",
    "network.normalization": "none",
    "network.dropout": 0.0,
}
"""Defaults of PA-RL when its lines were recorded; its policy's embedding of a time, where it has one, had size 16."""
NATIVE: dict[str, Any] = VALUES | {
    "policy.schedule": "cosine",
    "rewards": "minus-one",
    "eta": 0.01,
    "policy_tau": 0.02,
    "policy_every": 1,
    "policy_start": 100,
    "max_grad_norm": 5.0,
    "lr_schedule": "constant",
    "offline_updates": OFFLINE,
}


@dataclass(frozen=True)
class InTheMaze:
    """Trains with both learning rates on the data of its seed, and measures the better run."""

    method: str
    rates: tuple[str, ...]  # the options that are the policy's learning rate
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        from polopt.data.demonstrations import save_demonstrations
        from polopt.tasks import make_task
        from polopt.tasks.maze import behavior_episodes, transitions

        with tempfile.TemporaryDirectory(prefix="polopt-claim-", ignore_cleanup_errors=True) as folder:
            episodes = behavior_episodes("point-maze/routes", DATA, seed)
            save_demonstrations(Path(folder) / "data", transitions(episodes), make_task("point-maze").spec)
            runs = [self.train(Path(folder), seed, budget["updates"], rate) for rate in RATES]
        best = max(runs, key=lambda run: (run["success"], run["area"]))
        behavior = 100 * sum(len(episode["action"]) <= HORIZON for episode in episodes) / len(episodes)
        spread = abs(runs[0]["success"] - runs[1]["success"])
        return best | {"spread": spread, "rate": RATES[runs.index(best)], "behavior": behavior}

    def train(self, folder: Path, seed: int, updates: int, rate: float) -> dict[str, float]:
        import polopt

        data = "demonstrations" if self.method == "bc" else "dataset"
        settings = dict(self.settings)
        if self.method == "pa-rl":
            settings |= RECORDED
            settings |= {} if settings.get("policy") == "autoregressive" else {"policy.time_size": 16}
        run: Any = polopt.train(
            self.method,
            "point-maze",
            steps=updates,
            seed=seed,
            out=folder / f"run-{rate}",
            task_options={"horizon": HORIZON},
            loggers=(),
            threads=1,
            checkpoint_every=2**40,
            eval_every=300,
            eval_episodes=50,
            log_every=300,
            **{data: str(folder / "data"), **dict.fromkeys(self.rates, rate), **settings},
        )
        success = {row["updates"]: 100.0 * row["eval/return"] for row in run.evaluations}
        online = [value for count, value in success.items() if count > OFFLINE] or [0.0]  # none with --quick
        return {
            "success": success[max(success)],
            "steps": float(run.evaluations[-1]["eval/length"]),
            "offline": max((value for count, value in success.items() if count == OFFLINE), default=0.0),
            "area": sum(online) / len(online),
        }


def pa_rl(**settings: Any) -> InTheMaze:
    return InTheMaze("pa-rl", ("bc_lr", "policy_lr"), tuple((COMMON | PA | settings).items()))


CLAIM = Claim(
    method="pa-rl",
    statement="with one setting PA-RL makes a diffusion policy and a token policy arrive within a time that no episode "
    "of the data achieved; choosing among samples of the clone, or the gradient through the chain, arrives less often",
    budget={"updates": OFFLINE + ONLINE},
    seeds=3,
    minutes=15,
    arms={
        "diffusion": pa_rl(),
        "autoregressive": pa_rl(policy="autoregressive", **{"policy.bins": 8}),
        "best-of-16": pa_rl(distill="never", climb_steps=0, keep=1),
        "native": InTheMaze("dql", ("lr",), tuple((COMMON | NATIVE).items())),
        "cloned": InTheMaze(
            "bc", ("lr",), tuple((COMMON | {"policy": "diffusion", "policy.schedule": "cosine"}).items())
        ),
    },
    expect=(
        Above("success", "diffusion", 85),
        Above("success", "autoregressive", 85),
        Greater("success", "diffusion", "best-of-16", by=10),
        Greater("success", "diffusion", "native"),
        Greater("area", "diffusion", "best-of-16"),
        Below("success", "cloned", 20, control=True),
    ),
)
