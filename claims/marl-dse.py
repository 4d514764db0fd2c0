"""MARL for design space exploration: one learner a parameter is above one agent with a box, and what does it.

The memory controller of `--task memory-controller`: ten parameters, 442,368 designs, each seed another workload, whose
tables say exactly what every design is worth. Each arm may simulate 1,024 designs, in windows of 32. Cells: latency or
power as the objective, and coupled terms of standard deviation 0.3 (`weak`) or 2 (`strong`) beside single ones of 1.

`marl` is the method: ten learners with a network, a critic and a ratio each. `joint` is `ppo` on the same actions: ten
heads on one network, with one ratio, the product of all. `box` is `ppo` on Box(-1, 1, [10]) with a Gaussian policy,
each coordinate cut into equal bins (the released mapper rounds first and so reaches three values at most, which would
cripple it). All have networks of 3 x 32, discount 0, log(1 + r) for a reward, advantages standardized over the window,
four epochs, the same clip, and no entropy bonus, which in 1,000 simulations would only slow all of them alike. Every
metric is the mean over the learning rates 1e-3, 3e-3 and 1e-2, so that no rate is chosen. `random` draws uniformly.

`late` is the mean rank of the last 256 designs, `found` that of the best design of all; the rank of a design is the
share of all designs that are no better, so 1 is the optimum. (Rewards themselves have a pole at the optimum.)

Second registration; in the first (seeds 0 to 5, kept on the page) the differences of `late` in both cells of latency
were not surely above 0: 0.024 and 0.078, of six seeds each. See the diagnosis. `log_gap` is log(1 - late). `joint` had
0.992 to 1.000 of `late` there, as `marl` (0.994 to 0.999): what is gained, the heads of their own gain.

Pilots of the second (seeds 1000 and 1001): `log_gap` of the box 2.5 to 7.5 above that of the learners in every cell.
Of the first (seeds 1000 and 1001): `late` of `marl` 0.999, 0.995, 1.000 and 0.996 (latency weak and strong, power
weak and strong), of `joint` 1.000, 0.998, 1.000 and 0.998, of `box` 0.975, 0.944, 0.956 and 0.912, with 0.010 to 0.124
between `marl` and `box` in a pair of runs; of `random` 0.46 to 0.53. `found` is above 0.998 of all, so it shows
nothing.

Expectations: the paper's is that the learners are above the box. What it calls multi-agent is two things, a head of its
own for each parameter and a learner of its own; `joint` has only the first. It is reported and not judged: nothing says
that separate ratios should gain where the designs' worth is nearly a sum, and in the pilots they do not. A perfect
searcher comes to 1.0 of `late` in all cells; one whose advantages had the wrong sign, or whose agents were given each
other's actions, stays near 0.5.

What was found in the first: `late` of `marl` is 0.996, 0.995, 0.999 and 0.995, of `box` 0.972, 0.916, 0.946 and 0.924,
and `marl` is ahead in 23 of 24 pairs of runs. Two of the four comparisons do not hold all the same. What separates the
two is of no fixed size: a box is mostly 0.01 to 0.1 behind and sometimes settles on a poor design (0.70 and 0.79 at
worst), so that the interval of a mean over six seeds reaches below 0, with strong coupling of latency although all six
seeds agree. In the seed that does not, with weak coupling, the learners settled too early at the rate 1e-2 (0.95); at
3e-3 they are at 1.000 in every cell. Separate learners are not what helps: one network with ten heads and a joint
ratio has 1.000, 0.996, 0.992 and 0.995. A head for each parameter does. The best design found is near the optimum for
all, for 1,024 random designs too (0.999).

What was found in the second: all expectations hold. In ten fresh seeds `late` of `marl` is 0.999, 0.993, 1.000 and
0.997, of `box` 0.976, 0.934, 0.970 and 0.957; what is left to the optimum is less for the learners in 38 of 40 pairs
of runs, by factors of 17 to 270 at the geometric mean, which the rates at which a run ends at the optimum make so
large. As in the first, a head for each parameter would do: the joint ratio was not behind there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, mean_of

LATE, WINDOW = 256, 8
RATES = (1e-3, 3e-3, 1e-2)
STRENGTH = {"weak": 0.3, "strong": 2.0}


def settings(lr: float) -> dict[str, Any]:
    """What all learners have."""
    from polopt.config import Constant
    from polopt.networks import Network

    return {
        "window": WINDOW,
        "epochs": 4,
        "minibatches": 1,
        "discount": 0.0,
        "value_clip": None,
        "entropy_coefficient": 0.0,
        "advantage_over": "batch",
        "lr": lr,
        "lr_schedule": Constant(),
        "network": Network((32, 32, 32), "tanh", init="orthogonal", head_gain=0.01),
    }


@dataclass(frozen=True)
class Search:
    """One searcher on one workload."""

    kind: str
    objective: str
    coupling: str
    lr: float = 0.0

    trains = ("marl-dse", "ppo")

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        ranks = torch.cat(list(self.windows(seed, budget["env_steps"])))
        late = float(ranks[-LATE:].mean())
        return {"late": late, "log_gap": log(1 - late + 1e-6), "found": float(ranks.max())}

    def windows(self, seed: int, simulations: int) -> Any:
        """The ranks [32] of one window of designs after the other."""
        from polopt.core.random import paired
        from polopt.methods.multiagent.marl_dse import log_reward
        from polopt.training import api

        name = "memory-controller/box" if self.kind == "box" else "memory-controller"
        options = {"objective": self.objective, "interaction": STRENGTH[self.coupling], "trace": seed}
        own = settings(self.lr)
        if self.kind == "marl":
            own = {f"agent.{key}": value for key, value in own.items()}
        method = "marl-dse" if self.kind == "marl" else "ppo"
        common: dict[str, Any] = {"task_options": options, "seed": seed, "envs": 4, "loggers": ()}
        learner = api.plan(method, name, steps=simulations, **common, **own).build()
        with paired(seed):
            while learner.ledger.env_steps < simulations:
                learner.progress = learner.ledger.env_steps / simulations
                batch = learner.collect()
                yield batch["rank"].T.flatten()
                if self.kind != "marl":
                    batch["reward"] = log_reward(batch["reward"])
                learner.update(batch)
        learner.task.close()


@dataclass(frozen=True)
class Random:
    """Uniform designs."""

    objective: str
    coupling: str

    trains = ("marl-dse",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.tasks import make_task

        options = {"objective": self.objective, "interaction": STRENGTH[self.coupling], "trace": seed}
        count = budget["env_steps"]
        world: Any = make_task("memory-controller", count, seed, **options)
        world.reset()
        generator = torch.Generator().manual_seed(seed)
        world.step({"action": (torch.rand(count, len(world.sizes), generator=generator) * world.sizes).long()})
        ranks = world.facts["rank"]
        return {"late": float(ranks[-LATE:].mean()), "found": float(ranks.max())}


CELLS = [(objective, coupling) for objective in ("latency", "power") for coupling in STRENGTH]

CLAIM = Claim(
    method="marl-dse",
    statement="with as many simulations one PPO learner for each of ten design parameters comes to better designs than "
    "one agent that chooses all in a box",
    budget={"env_steps": 1_024},
    seeds=10,
    minutes=7,
    revision=2,
    first_seed=6,
    diagnosis="ranks end at 1, near which differences are skewed: in both cells of latency one seed on which the box "
    "did badly (0.70 of strong) widened the interval until it held 0, though the learners were ahead on most. What is "
    "left to the optimum is compared by its ratio now, by the mean of its logarithm over the rates, with ten seeds. "
    "Nothing else has changed, but that `joint`, which was reported only, is not run again.",
    arms={
        **{
            f"{kind}-{objective}-{coupling}": mean_of(
                lambda lr, kind=kind, cell=(objective, coupling): Search(kind, *cell, lr), RATES
            )
            for objective, coupling in CELLS
            for kind in ("marl", "box")
        },
        **{f"random-{objective}-{coupling}": Random(objective, coupling) for objective, coupling in CELLS},
    },
    expect=(
        Below("late", "random-*", 0.6, control=True),
        *(Above("late", f"marl-{objective}-{coupling}", 0.8) for objective, coupling in CELLS),
        *(
            Greater("log_gap", f"box-{objective}-{coupling}", f"marl-{objective}-{coupling}", by=1)
            for objective, coupling in CELLS
        ),
    ),
)
