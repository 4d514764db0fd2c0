"""PA-RL: one recipe improves a diffusion policy and a token policy alike, beyond what choosing among samples can do.

A point in the plane goes around a block by one of two ways, 8 steps long. The data (4,000 transitions, other ones for
each seed, the same for all arms) take both ways, slowly: 7 of 10 of their episodes arrive within 30 steps, the fastest
in 11. The policy is asked to arrive within 10. So cloning fails, and choosing among samples of the clone, whose best
are still slow, arrives late: the actions themselves must be improved.

All arms have the same data, batches of 64 and policy networks (two layers of 64); all begin with the clone of their
policy, made once per seed by 1,500 updates, and have 800 updates on the data, then 400 with one environment step each.
`diffusion` and `autoregressive` (8 bins) are PA-RL with the same settings, of which none was chosen on recorded seeds;
`*-best-of-16` are the same runs without climbing and without teaching the policy, `*-cloned` the clones themselves.
`success` and `arrives` are the share of 200 episodes that arrive within 10 and 30 steps, in percent, and `length` is
their mean length up to 30: means of two evaluations online, half-way and at the end.

Second registration. In the first (seeds 0 to 2, kept on the page) everything held, but its margins were made by the
limit: within it nobody near the data could arrive. Now lengths without it are judged too. And it compared with
Diffusion Q-learning, whose eta had been chosen elsewhere. Here that was tried openly, from the same clone, with eta of
0.01, 0.1, 1, 3 and 10, rates of 1e-3 and 3e-3, its own choice among 16 samples and the best of them, backups of 1 and
of 10 samples: within 30 steps it arrives in 0 to 16 %, where the clone does in 7, and to choose among the clone's
samples by PA-RL's critic in 100. So its critic has learned too little in 1,200 updates, and a comparison would say
nothing of how a policy is extracted from a critic. It is left out.

Pilots (seed 1000), with 11 steps in place of 10: PA-RL 100 % with both policies, lengths of 8.3 (diffusion) and 8.2;
choosing among 16 samples 58 and 100 %, lengths of 11.3 and 10.0; the clones 0 %. That tokens, whose bins are coarse,
have samples so fast is why their length is judged and not their success. With the rate of teaching at 1e-3, histograms
as critics and a weaker clone, tokens came to 58 and diffusion to 99 %.

Of the paper's setting: 16 candidates of which 4 climb 2 steps of 0.1 times the gradient, 3 critics without histograms,
with discount 0.9 and faster targets, a faster average of the policy, and the conservative term on the candidates of the
next state alone, which halves the cost of an update.

What was found: all of it. PA-RL arrives within 10 steps in 99 to 100 % with both policies, in 8.3 steps on average,
where 8 are possible. Choosing among 16 samples of the clone arrives just as surely within 30, but in 11.5 steps with
diffusion (14 % within 10) and in 10.1 with tokens, of which 76 % arrive within 10: there the gain is two steps, not
arriving at all. A sample of the diffusion clone alone wanders before the block, whose two ways it takes by turns, and
arrives within 30 steps in 20 %; the token clone, which acts by its likeliest bins, does in all but a few, in 15 steps.
The policies are tiny and the world is easy: that one setting serves both classes is what this shows, not by how much it
would help a large one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater
from polopt.claims.shared import shared

DATA = 4_000  # transitions
MAZE: dict[str, Any] = {"speed": 0.2}
RECORDED, HORIZON = 30, 10  # time limits of the data and of the policy
CLONE, ONLINE = 1_500, 400  # updates; what is between them is offline
NETWORK: dict[str, Any] = {
    "network.sizes": (64, 64),
    "network.activation": "mish",
    "network.blocks": "plain",
    "network.normalization": "none",
    "network.dropout": 0.0,
}
DIFFUSION: dict[str, Any] = {"policy": "diffusion", "policy.schedule": "cosine", "policy.time_size": 16}
TOKENS: dict[str, Any] = {"policy": "autoregressive", "policy.bins": 8}
RUN: dict[str, Any] = {
    "batch_size": 64,
    "loggers": (),
    "threads": 1,
    "checkpoint_every": 2**40,
    "eval_every": 2**40,
    "eval_episodes": 1,
}
PA: dict[str, Any] = {
    "rewards": "minus-one",
    "discount": 0.9,
    "tau": 0.02,
    "policy_tau": 0.02,
    "critic_lr": 1e-3,
    "candidates": 16,
    "bc_updates": 0,
    "policy_lr": 3e-3,
    "critics": 3,
    "critic_network.sizes": (64, 64),
    "values.histogram": None,
    "keep": 4,
    "climb_steps": 2,
    "step_size": 0.1,
    "values.random_actions": 4,
    "values.actions": "next",
}
RANKS = {"distill": "never", "climb_steps": 0, "keep": 1}  # chooses among samples of the clone


def data(seed: int) -> Path:
    """The file of the transitions of this seed."""

    def make(folder: Path) -> None:
        from polopt.data.demonstrations import save_demonstrations
        from polopt.tasks import make_task
        from polopt.tasks.maze import behavior_episodes, transitions

        episodes = behavior_episodes("point-maze/routes", DATA, seed, horizon=RECORDED, **MAZE)
        save_demonstrations(folder / "routes", transitions(episodes), make_task("point-maze", **MAZE).spec)

    return shared(f"routes {seed}", make) / "routes"


def clone(seed: int, policy: dict[str, Any]) -> Path:
    """The run that cloned the data of this seed."""

    def make(folder: Path) -> None:
        import polopt

        polopt.train(
            "bc",
            "point-maze",
            steps=CLONE,
            seed=seed,
            out=folder / "run",
            task_options=MAZE | {"horizon": RECORDED},
            demonstrations=str(data(seed)),
            lr=3e-3,
            **RUN,
            **NETWORK,
            **policy,
        )

    return shared(f"clone {seed} {policy}", make) / "run"


def scored(folder: Path) -> dict[str, float]:
    """Of a run's policy over 200 episodes: `success` and `arrives`, within HORIZON and RECORDED steps, in percent, and
    the mean `length` of episodes of RECORDED steps at most."""
    import torch

    import polopt
    from polopt.evaluation.returns import evaluate_returns
    from polopt.tasks import make_task

    policy, found = polopt.load(folder), {}
    for limit in (HORIZON, RECORDED):
        torch.manual_seed(limit)
        task = make_task("point-maze", 10, seed=limit, horizon=limit, **MAZE)
        found[limit] = evaluate_returns(policy, task, 200)
        task.close()
    return {
        "success": 100.0 * found[HORIZON]["return"],
        "arrives": 100.0 * found[RECORDED]["return"],
        "length": found[RECORDED]["length"],
    }


@dataclass(frozen=True)
class Improved:
    """Begins with the clone and improves it, on the data and then online."""

    policy: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    trains = ("pa-rl", "bc")

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        import polopt

        updates = budget["updates"]
        online = min(ONLINE, updates // 2)
        with tempfile.TemporaryDirectory(prefix="polopt-claim-", ignore_cleanup_errors=True) as folder:
            run = Path(folder) / "run"
            polopt.train(
                "pa-rl",
                "point-maze",
                steps=updates - online // 2,
                seed=seed,
                out=run,
                init=clone(seed, self.policy),
                task_options=MAZE | {"horizon": RECORDED},
                dataset=str(data(seed)),
                offline_updates=updates - online,
                **RUN,
                **NETWORK,
                **self.policy,
                **(PA | self.changes),
            )
            half = scored(run)
            polopt.resume(run, extend=updates)
            last = scored(run)
        return {name: (half[name] + last[name]) / 2 for name in last}


@dataclass(frozen=True)
class Cloned:
    """The clone itself."""

    policy: dict[str, Any]
    trains = ("bc",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        return scored(clone(seed, self.policy))


CLAIM = Claim(
    method="pa-rl",
    statement="with one setting PA-RL makes a diffusion policy and a token policy arrive within a time that no "
    "episode of the data achieved, and faster than choosing among samples of the clone does",
    budget={"updates": 800 + ONLINE},
    seeds=5,
    minutes=8,
    revision=2,
    first_seed=10,
    diagnosis="eta of the native extraction was chosen with a longer time limit and other rewards, and with the limit "
    "that counted no policy near the data had a chance, so that its margin, and that of choosing, said as much about "
    "the limit. Rates were chosen on the recorded runs themselves, with three seeds, and only for the diffusion policy "
    "was there an arm that chooses.",
    arms={
        "diffusion": Improved(DIFFUSION),
        "autoregressive": Improved(TOKENS),
        "diffusion-best-of-16": Improved(DIFFUSION, RANKS),
        "autoregressive-best-of-16": Improved(TOKENS, RANKS),
        "diffusion-cloned": Cloned(DIFFUSION),
        "autoregressive-cloned": Cloned(TOKENS),
    },
    expect=(
        Below("success", "*-cloned", 20, control=True),
        Above("arrives", "diffusion-best-of-16", 50, control=True),
        Above("success", "diffusion", 85),
        Above("success", "autoregressive", 85),
        Greater("success", "diffusion", "diffusion-best-of-16", by=10),
        Greater("length", "diffusion-best-of-16", "diffusion", by=1.5),
        Greater("length", "autoregressive-best-of-16", "autoregressive", by=0.9),
    ),
)
