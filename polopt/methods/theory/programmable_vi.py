"""Programmable variational inference: bounds as programs, and a gradient strategy for each random choice.

Becker, Lew, Wang, Ghavami, Huot, Rinard and Mansinghka, "Probabilistic Programming with Programmable Variational
Inference", PLDI 2024, arXiv 2406.15742; official code femtomc/programmable-vi-pldi-2024.

A task is a generative program p of hidden choices x and data y; a guide q, also a program, draws x, perhaps with
auxiliary choices u. An objective is a program that simulates and scores them, so its gradient needs no derivation: it
is that of an expected value (`polopt.losses.expectations`), by the strategy that each choice has been given.

    log q^(x)   x, u_1 ~ q, then u_2 .. u_N given nothing;  log 1/N sum_i q(x | u_i)        `auxiliary_particles` N
                with the u_1 that x was drawn with: E[1 / q^(x) | x] = 1 / q(x), so the bounds stay bounds
    bound       E log 1/K sum_k p(x_k, y) / q^(x_k)                                         `particles` K
                ELBO: K = 1, no u.  IWELBO: K > 1.  HVI: N = 1.  IWHVI: N > 1.  DIWHVI: N, K > 1
    wake        E sum_k w_k (log q^(x_k) + log p(x_k, y)), w_k and x_k constants, w ~ p / q^ with sum 1: the first for
                the guide, the second for parameters of the model. Here q^ takes fresh u_1 .. u_N: E q^(x) = q(x)

Differs from stochastic variational inference, its base, in what is chosen for each choice: `--strategies
side=measure-valued` replaces what the guide says of its choice `side`; model, guide and objective stay as they are. For
posteriors, and wherever a program mixes choices that can be differentiated with choices that cannot.

Departs from the paper in: reverse mode in place of forward mode, and auxiliary particles come from the guide itself,
without a proposal of their own. The released code weighs them by q(x, u) without dividing by the density of u, which is
right for its only u, uniform in (0, 1); here any u will do.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.bases.method import Method, Smoke
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError, nearest
from polopt.core.modules import device_of
from polopt.core.random import paired
from polopt.core.spec import Spec
from polopt.data.base import Acts, Source, put
from polopt.data.episodes import Episodes
from polopt.losses.expectations import STRATEGIES, Expectation, Sampling, log_mean_exp
from polopt.policies.base import Actor, Record
from polopt.tasks.base import Task
from polopt.tasks.programs import Choices, Program
from polopt.values.reward_normalizer import RunningMean

Guide = Callable[[Choices, Tensor], object]


def has_auxiliary(at: Choices, program: Program) -> bool:
    """Whether the guide made other choices than the hidden ones. Raises UsageError when it left one of these out."""
    for name in program.latents:
        if name not in at.values:
            raise UsageError(f"the guide does not make the hidden choice '{name}' of the model")
    return len(at.values) > len(program.latents)


def simulate(
    run: Expectation, guide: Guide, program: Program, obs: Tensor, particles: int = 1, **how: Any
) -> tuple[dict[str, Tensor], Tensor]:
    """Hidden choices x by name and log q^(x), where the u that x was drawn with is one of the `particles`."""
    at = Choices(run, **how)
    guide(at, obs)
    more = has_auxiliary(at, program)
    log_q = at.density(*program.latents)
    values = {name: at.values[name] for name in program.latents}
    if particles > 1 and more:
        with run.plate(particles - 1):
            others = Choices(run, values, **how)
            guide(others, obs)
            found = others.density(*program.latents).broadcast_to((*run.plates, *run.shape))
        rest = log_mean_exp(found, particles - 1) + math.log(particles - 1)
        log_q = torch.logaddexp(log_q, rest) - math.log(particles)
    return values, log_q


def density(
    run: Expectation, guide: Guide, program: Program, obs: Tensor, values: Mapping[str, Tensor], particles: int = 1
) -> Tensor:
    """log q^(x) of given hidden choices, by `particles` fresh u."""
    with run.plate(particles):
        at = Choices(run, values)
        guide(at, obs)
        found = at.density(*program.latents)
        if has_auxiliary(at, program):  # which may say nothing of the hidden choices
            found = log_mean_exp(found.broadcast_to((*run.plates, *run.shape)), particles)
    return found


def bound(
    run: Expectation, guide: Guide, program: Program, obs: Tensor, particles: int, inner: int, **how: Any
) -> Tensor:
    """log 1/K sum_k p(x_k, y) / q^(x_k), [*branches, rows]; `inner` is N."""
    with run.plate(particles):
        values, log_q = simulate(run, guide, program, obs, inner, **how)
    return log_mean_exp(program.score(values, obs) - log_q, particles)


def wake(run: Expectation, guide: Guide, program: Program, obs: Tensor, particles: int, inner: int) -> Tensor:
    """sum_k w_k (log q^(x_k) + log p(x_k, y)) [rows], with constant w_k and x_k."""
    draws = Sampling(run.shape[-1], obs.device)
    with torch.no_grad(), draws.plate(particles):
        values, log_q = simulate(draws, guide, program, obs, inner)
        share = (program.score(values, obs) - log_q).softmax(0)
    with run.plate(particles):
        both = density(run, guide, program, obs, values, inner) + program.score(values, obs)
    return (share * both).sum(0)


class Guided(Actor):
    """Acts by drawing the hidden choices from the guide."""

    family = "guide"

    def __init__(self, spec: Spec, guide: nn.Module, program: Program) -> None:
        super().__init__()
        self.spec, self.guide, self.program = spec, guide, program

    @torch.no_grad()
    def act(self, obs: Tensor, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        values, _ = simulate(Sampling(len(obs), obs.device), self.guide, self.program, obs)
        return {"action": torch.stack([value.to(obs.dtype) for value in values.values()], -1)}, {}


class Observations(Source):
    """What the rows of a task show at the next starts: obs [N, ...]."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def next(self, actor: Acts) -> Batch:
        obs: Any = put(self.task.reset(), device_of(actor))
        return TensorDict({"obs": obs}, [len(obs)])


class ProgrammableVI(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(
            64, "official code: cone", low=1, help="runs of the program per update, each on data of its own"
        )
        guide: str | None = param(None, "section 2", help="name of one of the task's guides; None: its usual one")
        objective: str = param("bound", "section 2", choices=("bound", "wake"))
        particles: int = param(1, "section 2", low=1, help="K of IWELBO, DIWHVI and wake")
        auxiliary_particles: int = param(1, "section 2", low=1, help="N of HVI, IWHVI and DIWHVI")
        strategies: dict[str, str] = param({}, "section 2", help="CHOICE=STRATEGY: " + ", ".join(STRATEGIES))
        baseline: bool = param(False, "appendix", help="of choices with reinforce: the running mean of the objective")
        baseline_rate: float = param(0.1, "assumed", above=0, high=1, help="of that mean")
        lr: float = param(1e-3, "official code: cone", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "official code: cone")
        optimizer: str = param("sgd", "official code: cone", choices=("sgd", "adam"), help="adam in the code of AIR")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("micro_batch", because="where a program draws for all rows at once")
            if not self.baseline:
                self.refuse("baseline_rate", because="without a baseline")
            if self.objective == "wake":
                self.refuse("baseline", "strategies", because="on the objective wake, whose draws are constants")
                if self.particles < 2:
                    raise UsageError("the objective wake weighs particles against each other: it needs 2 or more")
            for name, strategy in self.strategies.items():
                if strategy not in STRATEGIES:
                    hint = nearest(strategy, STRATEGIES)
                    raise UsageError(f"strategies: there is no strategy '{strategy}' for the choice '{name}'{hint}")

    slug = "programmable-vi"
    unit = "updates"
    score = "bound"
    default_steps = 5000
    eval_episodes = 1000
    headline = ("objective",)
    trains_on = "probabilistic programs: `cone`, `mixture`, and your own"
    metrics = {
        "objective": "averaged over the rows, in nats; a bound lies below the log evidence | rises, but for wake's",
        "eval/bound": "of fresh draws, the same every time, of the bound with these numbers of particles",
        "eval/gap": "log evidence minus bound, where the task knows it | towards 0, which only a guide that holds the "
        "posterior reaches",
    }
    presets = {
        "elbo": {},
        "iwelbo": {"guide": "mean-field-right", "particles": 5, "envs": 1},
        "hvi": {"guide": "ring"},
        "iwhvi": {"guide": "ring", "auxiliary_particles": 5},
        "diwhvi": {"guide": "ring", "particles": 5, "auxiliary_particles": 5},
    }
    no_limit = "its base, stochastic variational inference, is no entry; its test compares with REINFORCE and pathwise"
    probes = {
        "objective": {"strategies": {}, "particles": 3},
        "auxiliary_particles": {"guide": "ring"},
        "baseline_rate": {"baseline": True},
        "optimizer": {"lr": 1e-6},
    }
    smoke = Smoke("cone", 6, {"envs": 8, "strategies": {"x": "reinforce"}, "optimizer": "adam", "lr": 0.01})

    def build(self, task: Task) -> None:
        config = self.config
        program = self.spec.info.get("program")
        if not isinstance(program, Program):
            raise UsageError(
                f"{self.slug} needs a task that is a probabilistic program, such as cone, and {self.spec.name} is none"
            )
        name = next(iter(program.guides)) if config.guide is None else config.guide
        if name not in program.guides:
            raise UsageError(f"{self.spec.name} has no guide '{name}'{nearest(name, program.guides)}")
        self.program = program
        self.policy = self.part("policy", lambda: Guided(self.spec, program.guides[name](), program))
        self.model = program.model if isinstance(program.model, nn.Module) else nn.Module()
        self.source = Observations(task)
        self.mean = RunningMean(config.baseline_rate)
        self.optimizer = self.make_optimizer(
            self.policy, self.model, lr=config.lr, schedule=config.lr_schedule, kind=config.optimizer
        )
        self.try_program(task.twin(1).reset())

    def try_program(self, obs: Any) -> None:
        """Raises UsageError, one sentence, for strategies that the guide has no use for."""
        with paired():
            at = Choices(Sampling(1))
            self.policy.guide(at, obs)
            for name in self.config.strategies:
                if name not in at.values:
                    raise UsageError(f"the guide makes no choice '{name}'{nearest(name, at.values)}")
            self.objective(Expectation(1), obs)

    def objective(self, run: Expectation, obs: Tensor) -> Tensor:
        """The objective [*branches, rows] of the runs."""
        config, parts = self.config, (run, self.policy.guide, self.program, obs)
        if config.objective == "wake":
            return wake(*parts, config.particles, config.auxiliary_particles)
        how = {"strategies": config.strategies, "baseline": self.mean.value if config.baseline else None}
        return bound(*parts, config.particles, config.auxiliary_particles, **how)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        obs = batch["obs"]
        run = Expectation(len(obs), obs.device)
        estimate = run.values(self.objective(run, obs)).mean()
        self.optimizer.step(-estimate)
        self.mean.update(estimate)
        return {"objective": estimate.detach()}

    @torch.no_grad()
    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Of fresh draws at the same starts at every call; a guide has no mode, so `greedy` does not matter."""
        config = self.config
        with paired():
            batch = Episodes(task, starts=range(episodes)).next(self.policy)
            obs = batch["obs"].flatten(0, 1)  # one decision an episode
            parts = (Sampling(len(obs), obs.device), self.policy.guide, self.program, obs)
            found = bound(*parts, config.particles, config.auxiliary_particles).mean()
        scores = {"bound": found, "return": batch["reward"].sum(1).mean(), "length": torch.ones(())}
        if self.program.evidence is not None:
            scores["gap"] = self.program.evidence(obs).mean() - found
        return {name: float(score) for name, score in scores.items()}
