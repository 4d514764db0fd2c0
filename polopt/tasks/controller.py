"""The memory controller of a processor as a design problem: ten parameters, and a model that says what they lead to."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core.spec import Spec
from polopt.tasks.options import choice, flag, number, whole
from polopt.tasks.simulated import Simulated, State

PARAMETERS: dict[str, tuple[str, ...]] = {
    "page_policy": ("open", "open-adaptive", "closed", "closed-adaptive"),
    "scheduler": ("fifo", "fr-fcfs-grp", "fr-fcfs"),
    "scheduler_buffer": ("bankwise", "read-write", "shared"),
    "request_buffer_size": tuple(str(2**k) for k in range(8)),
    "resp_queue": ("fifo", "reorder"),
    "refresh_policy": ("no-refresh", "all-bank"),
    "refresh_max_postponed": tuple(str(2**k) for k in range(4)),
    "refresh_max_pulledin": tuple(str(2**k) for k in range(4)),
    "arbiter": ("simple", "fifo", "reorder"),
    "max_active_transactions": tuple(str(2**k) for k in range(8)),
}
"""The values of each parameter: DRAMSys, as ArchGym explores it (arXiv 2306.08888)."""

SIZES = tuple(len(values) for values in PARAMETERS.values())
COUPLED = (
    ("scheduler", "request_buffer_size"),
    ("arbiter", "max_active_transactions"),
    ("page_policy", "refresh_policy"),
)
"""Parameters whose best values depend on each other."""

POWER, LATENCY = (1.0, 3.0), (0.1, 0.5)  # of the best and of the worst design: W and microseconds
CAP = 1000.0


@functools.lru_cache(maxsize=8)
def model(trace: int, interaction: float, parameters: int = len(SIZES)) -> tuple[Tensor, Tensor]:
    """Power and latency [4, 3, 3, 8, 2, 2, 4, 4, 3, 8] of every design, float64, on the workload number `trace`; with
    fewer `parameters` of designs that have only the first so many.

    Each is a sum of one term for each parameter, a table of standard normals that is brought to mean 0 and variance 1
    over its values, and of one for each pair in `COUPLED`, likewise without what its parameters contribute alone and
    with variance `interaction`^2; then scaled so that the best design has `POWER[0]` or `LATENCY[0]`, the worst the
    other.
    """
    known = dict(list(PARAMETERS.items())[:parameters])

    def along(table: Tensor, *names: str) -> Tensor:
        return table.reshape([len(values) if name in names else 1 for name, values in known.items()])

    def standard(table: Tensor) -> Tensor:
        for dim in range(table.dim()):
            table = table - table.mean(dim, keepdim=True)
        return table / table.square().mean().sqrt()

    found = []
    for number_, (low, high) in enumerate((POWER, LATENCY)):
        generator = torch.Generator().manual_seed(2 * trace + number_)
        terms = [along(standard(normal(generator, len(values))), name) for name, values in known.items()]
        for one, other in COUPLED:
            if not {one, other} <= known.keys():
                continue
            table = standard(normal(generator, len(PARAMETERS[one]), len(PARAMETERS[other])))
            terms.append(interaction * along(table, one, other))
        total = functools.reduce(torch.add, terms)
        found.append(low + (high - low) * (total - total.min()) / (total.max() - total.min()))
    return found[0], found[1]


def normal(generator: torch.Generator, *sizes: int) -> Tensor:
    return torch.randn(sizes, generator=generator, dtype=torch.float64)


def reward_of(power: Tensor, latency: Tensor, objective: str) -> Tensor:
    """Target over distance from it, for the objective "both" the product of the two, and then at most 1000."""
    terms = [
        best / (value - best).abs()
        for name, value, best in (("power", power, POWER[0]), ("latency", latency, LATENCY[0]))
        if objective in (name, "both")
    ]
    return math.prod(terms[1:], start=terms[0]).clamp(max=CAP)


class MemoryController(Simulated):
    """Each decision is a whole design, which is simulated once; the next observation is what came of it.

    Observation: Box [3], (energy in microjoules, power in W, latency in microseconds) of the last design, 0 at first;
    energy is power times latency. Action: MultiDiscrete [4, 3, 3, 8, 2, 2, 4, 4, 3, 8], values of the `PARAMETERS`;
    with `box` Box(-1, 1, [10]), of which each coordinate is cut into as many equal bins as its parameter has values.

    Reward: target / |value - target| of the objective, at most 1000: a pole at the best design, which is the target.
    It depends on the design alone, so this is a bandit with 442,368 arms. The fact `rank` is the share of all designs
    that are no better than this one; 1 is the best.

    In place of a cycle-accurate simulator there is a model with known tables (`model`), so that all is exact.

    Args:
        objective: "latency", "power" or "both".
        trace: number of the workload, from which the tables are drawn.
        interaction: standard deviation of the coupled terms; that of each single one is 1.
        parameters: designs have only the first so many, for smaller spaces.
        box: the continuous action space.
        horizon: designs of an episode, which is then truncated.
    """

    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {"memory-controller/box": {"box": True}}

    def __init__(
        self,
        *args: Any,
        objective: str = "latency",
        trace: int = 0,
        interaction: float = 0.3,
        parameters: int = len(SIZES),
        box: bool = False,
        horizon: int = 10,
        **rest: Any,
    ) -> None:
        super().__init__(*args, horizon=horizon, **rest)
        self.objective = choice("objective", objective, ("latency", "power", "both"))
        self.box = flag("box", box)
        count = whole("parameters", parameters, 1, len(SIZES))
        tables = model(whole("trace", trace, 0), number("interaction", interaction), count)
        self.power, self.latency = (table.flatten().to(self.device) for table in tables)
        self.reward = reward_of(self.power, self.latency, self.objective)
        sizes = list(SIZES[:count])
        self.sizes = torch.tensor(sizes, device=self.device)
        self.strides = torch.tensor([math.prod(sizes[place + 1 :]) for place in range(count)], device=self.device)
        action = spaces.Box(-1.0, 1.0, (count,), np.float32) if self.box else spaces.MultiDiscrete(sizes)
        obs = spaces.Box(0.0, np.inf, (3,), np.float32)
        self.spec = Spec(obs, action, self.name, {"horizon": self.horizon}, facts={"rank": ()})

    @functools.cached_property
    def sorted_rewards(self) -> Tensor:
        """The rewards of all designs, from the worst to the best."""
        return self.reward.sort().values

    def design(self, action: Tensor) -> Tensor:
        """Values int64 [..., D] of the parameters that an action means."""
        if not self.box:
            return action
        return ((action.clamp(-1, 1) + 1) / 2 * self.sizes).long().clamp(max=self.sizes - 1)

    def begin(self, draws: State) -> State:
        return {"outcome": torch.zeros(len(draws["index"]), 3, device=self.device)}

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        place = (self.design(action) * self.strides).sum(-1)
        power, latency, reward = self.power[place], self.latency[place], self.reward[place]
        outcome = torch.stack([power * latency, power, latency], -1).to(torch.get_default_dtype())
        rank = torch.searchsorted(self.sorted_rewards, reward, right=True) / len(self.reward)
        return {"outcome": outcome}, reward, torch.zeros_like(time, dtype=torch.bool), {"rank": rank}

    def observe(self, state: State, time: Tensor) -> Tensor:
        return state["outcome"].to(torch.get_default_dtype())
