"""Probabilistic programs as tasks: an action guesses what is hidden, its reward is the log density of it and the data.

A program is a function of what it can see and of `at`, to which it says each of its random choices:

    def model(at, obs):
        x = at("x", Normal(torch.zeros(()), 10.0))
        at("z", Normal(x**2, 1.0))

Reward plus the entropy of a policy is what variational inference calls the evidence lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal, Uniform

from polopt.core.errors import RunError
from polopt.core.spec import Spec
from polopt.tasks.simulated import Simulated, State


class Draws(Protocol):
    """What draws choices: see `polopt.losses.expectations`."""

    def sample(self, distribution: Distribution, strategy: str, baseline: Tensor | float | None) -> Tensor: ...


class Choices:
    """The `at` of a program: choices that are given are scored, all others are drawn by `run` and scored.

    Args:
        run: what draws; None where everything is given.
        given: values by name.
        strategies: how choices are differentiated, by name, in place of what the program says.
        baseline: of choices with the strategy reinforce for which the program gives none.

    Attributes:
        values: of all choices, by name, and `log_prob` the logarithms of their densities.
    """

    def __init__(
        self,
        run: Draws | None = None,
        given: Mapping[str, Tensor] | None = None,
        strategies: Mapping[str, str] | None = None,
        baseline: Tensor | float | None = None,
    ) -> None:
        self.run = run
        self.given = given or {}
        self.strategies = strategies or {}
        self.baseline = baseline
        self.values: dict[str, Tensor] = {}
        self.log_prob: dict[str, Tensor] = {}

    def __call__(
        self,
        name: str,
        distribution: Distribution,
        strategy: str = "reparameterized",
        baseline: Tensor | float | None = None,
    ) -> Tensor:
        """The value of the choice. Raises RunError for a name that the program has said before, or that is missing."""
        if name in self.values:
            raise RunError(f"the program makes the choice '{name}' twice")
        if name in self.given:
            value = self.given[name]
        elif self.run is None:
            raise RunError(f"the program makes a choice '{name}' of which nothing is given")
        else:
            strategy = self.strategies.get(name, strategy)
            usual = self.baseline if baseline is None and strategy == "reinforce" else baseline
            value = self.run.sample(distribution, strategy, usual)
        self.values[name], self.log_prob[name] = value, distribution.log_prob(value)
        return value

    def density(self, *names: str) -> Tensor:
        """The logarithm of the joint density of these choices, or of all."""
        return torch.stack(torch.broadcast_tensors(*(self.log_prob[name] for name in names or self.log_prob))).sum(0)


@dataclass(frozen=True)
class Program:
    """What a task says of its program: `spec.info["program"]`.

    Attributes:
        latents: the hidden choices, a coordinate of the action each.
        model: makes all hidden choices and those of `data`; a module if it has parameters.
        data: values by name, out of observations [..., D].
        guides: programs that make the hidden choices, perhaps with auxiliary ones, by name; the first is the usual one.
            Each is made anew by a call.
        coins: latents that are 0 or 1.
        evidence: the logarithm of the density of the data [...], out of observations, where it is known.
    """

    latents: tuple[str, ...]
    model: Callable[[Any, Tensor], object]
    data: Callable[[Tensor], dict[str, Tensor]]
    guides: Mapping[str, Callable[[], nn.Module]]
    coins: frozenset[str] = field(default_factory=frozenset)
    evidence: Callable[[Tensor], Tensor] | None = None

    def score(self, values: Mapping[str, Tensor], obs: Tensor) -> Tensor:
        """The logarithm of the joint density of the latents in `values` and of the data in `obs`."""
        at = Choices(given={**{name: values[name] for name in self.latents}, **self.data(obs)})
        self.model(at, obs)
        return at.density()


class ProgramTask(Simulated):
    """One decision: all hidden choices. A program of your own sets `program` and the `datum` that is observed [D]."""

    finite = True
    program: Program
    datum: tuple[float, ...]

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest, horizon=1)
        shape = (len(self.datum),)
        obs, action = spaces.Box(-np.inf, np.inf, shape), spaces.Box(-np.inf, np.inf, (len(self.program.latents),))
        self.spec = Spec(obs, action, self.name, {"horizon": 1, "program": self.program})

    def draw(self, generator: torch.Generator, index: int) -> State:
        return {"data": torch.tensor(self.datum, dtype=torch.get_default_dtype())}

    def begin(self, draws: State) -> State:
        return {"data": draws["data"]}

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        values = dict(zip(self.program.latents, action.unbind(-1)))
        values = {
            name: (value > 0.5).to(value) if name in self.program.coins else value for name, value in values.items()
        }
        return state, self.program.score(values, state["data"]).detach(), torch.ones_like(time, dtype=torch.bool), {}

    def observe(self, state: State, time: Tensor) -> Tensor:
        return state["data"]


def normal(mean: Tensor | float, std: Tensor | float) -> Normal:
    return Normal(*torch.broadcast_tensors(torch.as_tensor(mean), torch.as_tensor(std)))


class MeanField(nn.Module):
    """Independent normal choices."""

    def __init__(self, names: tuple[str, ...], mean: tuple[float, ...], log_std: float) -> None:
        super().__init__()
        self.names = names
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.get_default_dtype()))
        self.log_std = nn.Parameter(torch.full_like(self.mean, log_std))

    def forward(self, at: Choices, obs: Tensor) -> None:
        for index, name in enumerate(self.names):
            at(name, normal(self.mean[index], self.log_std[index].exp()))


class Ring(nn.Module):
    """A normal around a point of the circle that the data speaks of; the auxiliary choice u says which point."""

    def __init__(self) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, at: Choices, obs: Tensor) -> None:
        angle = 2 * math.pi * at("u", Uniform(torch.zeros(()), torch.ones(()), validate_args=False))
        radius = obs[..., 0].sqrt()
        at("x", normal(radius * angle.cos(), self.log_std[0].exp()))
        at("y", normal(radius * angle.sin(), self.log_std[1].exp()))


class Cone(ProgramTask):
    """A point (x, y), of which the noisy square of its distance from 0 was seen (arXiv 2406.15742, figure 2).

    x, y ~ N(0, 10^2), z ~ N(x^2 + y^2, (0.1 + (x^2 + y^2) / 100)^2), and z = 5: the posterior is a ring.
    """

    datum = (5.0,)

    def __init__(self, *args: Any, **rest: Any) -> None:
        guides = {
            "mean-field": lambda: MeanField(("x", "y"), (0.0, 0.0), 1.0),
            "mean-field-right": lambda: MeanField(("x", "y"), (3.0, 0.0), 1.0),
            "ring": Ring,
        }
        evidence = lambda obs: torch.full_like(obs[..., 0], -5.32323)  # noqa: E731  by quadrature
        self.program = Program(("x", "y"), self.model, lambda obs: {"z": obs[..., 0]}, guides, evidence=evidence)
        super().__init__(*args, **rest)

    @staticmethod
    def model(at: Choices, obs: Tensor) -> None:
        x, y = (at(name, normal(0.0, 10.0)) for name in ("x", "y"))
        square = x**2 + y**2
        at("z", normal(square, 0.1 + square / 100))


class Sides(nn.Module):
    """A coin, and a normal for each of its sides."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))
        self.mean = nn.Parameter(torch.zeros(2))
        self.log_std = nn.Parameter(torch.zeros(2))

    def forward(self, at: Choices, obs: Tensor) -> None:
        side = at("side", Bernoulli(logits=self.logit), "enumerated")
        mean, log_std = (part[0] + side * (part[1] - part[0]) for part in (self.mean, self.log_std))
        at("x", normal(mean, log_std.exp()))


class Mixture(ProgramTask):
    """Which of two normals a noisy number came from, and the number.

    side ~ Bernoulli(0.3), x ~ N(-2, 1) or N(2, 1), z ~ N(x, 1), and z = 0.5: the guide holds the posterior exactly.
    """

    datum = (0.5,)

    def __init__(self, *args: Any, **rest: Any) -> None:
        self.program = Program(
            ("side", "x"),
            self.model,
            lambda obs: {"z": obs[..., 0]},
            {"sides": Sides},
            coins=frozenset({"side"}),
            evidence=self.evidence,
        )
        super().__init__(*args, **rest)

    @staticmethod
    def model(at: Choices, obs: Tensor) -> None:
        side = at("side", Bernoulli(torch.tensor(0.3)))
        x = at("x", normal(4 * side - 2, 1.0))
        at("z", normal(x, 1.0))

    @staticmethod
    def evidence(obs: Tensor) -> Tensor:
        sides = [
            math.log(share) + normal(mean, 2**0.5).log_prob(obs[..., 0]) for share, mean in ((0.7, -2.0), (0.3, 2.0))
        ]
        return torch.logaddexp(*sides)
