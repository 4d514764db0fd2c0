"""IWOCS: robust policies by learning in one model after the other, each the worst for what was learned before.

Zouitine, Geist and Rachelson, "Solving robust MDPs as a sequence of static RL problems", 2024, arXiv 2410.06212.

Nature chooses a model T of a set once for an episode. Where the set is rectangular, that is as bad as choosing anew at
every step, and there is no duality gap: the robust value is the smallest OPTIMAL value of a model,

    max_pi min_T V^pi_T = min_T max_pi V^pi_T

so what is robust follows from ordinary problems, a growing list of models that are solved one by one:

    T_0       the nominal model
    solve     Q*_{T_i}: by policy iteration in `exact`, in a world by SAC from fresh weights, `model_steps` steps
    candidate pi_i(s) = argmax_a min_{j <= i} Q*_{T_j}(s, a)
    search    T_{i+1} = argmin_T of the return of pi_i: in `exact` over the list of models, of the sum of V over states;
              in a world by CMA-ES over its box of parameters, the same starts and luck for all
    stop      V^{pi_i}_{T_{i+1}} is within `tolerance` of V^{pi_i}_{T_i}, or there are `models` of them

SAC's values mean nothing where it has never been, and a minimum over them would be ruined. So every expert says which
states it covers (`polopt.models.coverage`), and at a state the one acts whose value V_j(s) = min_k Q_jk(s, mu_j(s)) is
least of those that do (`--rule value`); `q-min` takes the argmax above over draws of all of them. What is kept is the
candidate with the best worst return that a search has found: the first experts up to one of them.

Searches begin at resets and at states that training has visited, `search_visited` of them, because a model that is bad
only off the present path has to be found too; the worst return is that from resets. A box of parameters is not
rectangular, so there the equation above is a hope.

Differs from SAC in: many of them, one after the other, in models of its own choice. With `models` 1 it is SAC.

Departs from the paper in: how experts are combined, and what they cover, are reconstructed; steps of searches count.
"""

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.method import learner_param
from polopt.bases.staged import Stage, Staged
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.data.replay import Replay
from polopt.evaluation.figures import Figure
from polopt.evaluation.returns import evaluate_returns
from polopt.evaluation.robust import grid_returns, returns_in, robust_figures, robust_scores, world_of
from polopt.methods.control.sac import SAC
from polopt.methods.theory.iwocs_settings import IWOCSSettings
from polopt.models.coverage import Coverage
from polopt.networks import Network
from polopt.optim.cma_es import cma_es
from polopt.policies.pessimist import Expert, Pessimist
from polopt.tasks.base import Task
from polopt.tasks.described import Described
from polopt.tasks.parameters import Parameters
from polopt.tasks.simulated import Simulated, State
from polopt.tasks.tabular_sets import discounted_optimal, discounted_value, expectation, one_hot
from polopt.values.critics import QEnsemble


@dataclass(frozen=True)
class Solved:
    """What `exact` found: the `models` that were solved, in order; after each of them the candidate [S, A] and its
    value [M, S] in every model of the set."""

    models: list[int]
    policies: list[Tensor]
    values: list[Tensor]


def exact(
    transition: Tensor,
    reward: Tensor,
    discount: float,
    *,
    first: int = 0,
    start: int | None = None,
    most: int = 10,
    tolerance: float = 1e-9,
) -> Solved:
    """IWOCS on tables: models `transition` [M, S, A, S] with rewards [S, A], begun with the model `first`.

    A model is as bad as the sum of V over all states, or V(`start`) where that is given; see the search above. It stops
    also where the worst model is one that was solved before, which could change nothing.
    """
    found, q = Solved([first], [], []), list[Tensor]()
    while True:
        model = transition[found.models[-1]]
        q.append(reward + discount * expectation(model)(discounted_optimal(model, reward, discount)[1]))
        found.policies.append(one_hot(torch.stack(q).amin(0)))
        found.values.append(discounted_value(transition, reward, found.policies[-1], discount))
        judged = found.values[-1].sum(-1) if start is None else found.values[-1][:, start]
        worst = int(judged.argmin())
        small = bool(judged[found.models[-1]] - judged[worst] <= tolerance)
        if small or worst in found.models or len(found.models) == most:
            return found
        found.models.append(worst)


class IWOCS(IWOCSSettings, Staged):
    @dataclass(frozen=True)
    class Config(Staged.Config):
        sac: SAC.Config = learner_param(SAC.Config(), "section 6: SAC", help="the learner of every model")
        models: int = param(5, "assumed", low=1, help="that are learned in at most; 1: SAC in the nominal one")
        model_steps: int = param(1_000_000, "assumed", low=1, unit="env_steps", help="of SAC in each of them")
        nominal: tuple[float, ...] = param(
            (), "paper", low=-1, high=1, help="the first model, a place in the box [-1, 1]^P; (): its middle"
        )
        rule: str = param("value", "assumed", choices=("value", "q-min"), help="how experts are combined")
        samples: int = param(8, "assumed", low=1, help="actions of every expert that q-min compares")
        coverage: float = param(0.95, "assumed", above=0, high=1, help="share of its own states that an expert covers")
        coverage_updates: int = param(2_000, "assumed", low=1, help="of the network that says which")
        coverage_network: Network = param(Network((64, 64), "relu"), "assumed")
        population: int = param(12, "assumed", low=4, help="models of a generation of CMA-ES")
        generations: int = param(5, "assumed", low=1, help="of a search")
        search_std: float = param(0.5, "assumed", above=0, help="first deviation of a search; the box has half-width 1")
        search_episodes: int = param(10, "assumed", low=1, help="in each model of a search, the same in all of them")
        search_visited: float = param(
            0.5, "polopt", low=0, high=1, help="share of them that begins at visited states; the rest at resets"
        )
        tolerance: float = param(0.0, "assumed", low=0, help="it stops when no model is worse by more than this")
        grid: int = param(10, "section 6", low=1, help="models along each parameter, of evaluations")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rule == "value":
                self.refuse("samples", because="with the rule 'value'")
            if self.models == 1:
                searched = ("population", "generations", "search_std", "search_episodes", "search_visited", "tolerance")
                experts = ("rule", "samples", "coverage", "coverage_updates", "coverage_network", "model_steps")
                self.refuse(*searched, *experts, because="with one model, which is SAC")
            self.refuse(
                "coverage_network.head_gain", because="on what learns an embedding, whose last layer has scale 1"
            )
            if self.search_visited == 1 and self.models > 1:
                raise UsageError("search_visited must leave episodes that begin at resets, by which models are judged")
            if self.model_steps <= self.sac.warmup and self.models > 1:
                raise UsageError(
                    f"SAC learns nothing in a model in which {self.sac.warmup:,} of {self.model_steps:,} steps are "
                    "random: model_steps must be above sac.warmup"
                )

    slug = "iwocs"
    score = "worst"
    learns = "learner.policy"
    metrics_of = (SAC,)
    saved = ("psi", "worst", "done")
    policy: Pessimist
    task: Simulated

    def build(self, task: Task) -> None:
        self.box = Parameters.of(task.spec)
        if not isinstance(task, Described):
            world_of(task)
        count, nominal = len(self.box.names), self.config.nominal
        if len(nominal) not in (0, count):
            raise UsageError(f"nominal has {len(nominal)} numbers for the {count} parameters of {task.spec.name}")
        self.psi = [list(nominal) or [0.0] * count]  # the models that were learned in, and the present one
        self.worst: list[float] = []  # what searches found of each candidate
        self.done = False
        self.visited = Replay(self.config.sac.replay_size, name="visited")
        super().build(task)

    def stage(self, index: int) -> Stage | None:
        if index == self.config.models or (self.done and index > self.stage_index):
            return None
        sac = SAC(self.learner_config(self.config.sac), self.task, ledger=self.ledger)
        last = self.config.models == 1
        return Stage(f"model {index}", sac, until={} if last else {"env_steps": self.config.model_steps})

    def _enter(self, stage: Stage | None) -> None:
        super()._enter(stage)
        model = torch.tensor([self.psi[self.stage_index]])
        self.task.levels = {name: value.to(self.task.device) for name, value in self.box.values(model).items()}
        if self.task.obs is not None:
            self.task.reset()  # no episode goes on that began in another model
        if self.stage_index == 0:
            config = self.config
            self.policy = Pessimist(self.learner.policy, self.expert, config.rule, config.samples)
        self.policy.actor = self.learner.policy

    def expert(self) -> Expert:
        """One who has learned nothing."""
        sac = self.config.sac
        critic = QEnsemble(self.spec, sac.network, members=sac.critics)
        return Expert(sac.policy.build(self.spec, network=sac.network), critic, self.make_coverage())

    def make_coverage(self) -> Coverage:
        return Coverage(self.spec, self.config.coverage_network)

    def collect(self) -> Batch:
        batch = super().collect()
        if self.config.models > 1 and self.config.search_visited:
            state = TensorDict(dict(self.task.state), [self.task.num])
            self.visited.add(TensorDict({"state": state}, [self.task.num]))
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = super().update(batch)
        numbers = {"models": float(self.policy.count)} | ({"worst_found": max(self.worst)} if self.worst else {})
        return metrics | {name: torch.tensor(value) for name, value in numbers.items()}

    def finish(self, index: int) -> None:
        """The learner becomes an expert; the worst model for all of them is searched, and is the next one."""
        if self.done:
            return
        config = self.config
        learner: Any = self.learner
        coverage = self.make_coverage().to(self.device or "cpu")
        seen = learner.source.replay.whole()["obs"]
        coverage.fit(seen, updates=config.coverage_updates, quantile=config.coverage, generator=self.generator)
        self.policy.keep(learner.policy, learner.critic, coverage)
        psi, worst, gain = self.search()
        self.psi.append(psi)
        self.worst.append(worst)
        self.policy.used = 1 + max(range(len(self.worst)), key=self.worst.__getitem__)
        self.done = gain <= config.tolerance or len(self.worst) == config.models

    def search(self) -> tuple[list[float], float, float]:
        """The worst model that is found for all experts together; the worst mean return from resets, in it and in those
        that were learned in; and by how much it is worse, from all starts, than the last one that was learned in."""
        config, known = self.config, torch.tensor(self.psi)
        tried: list[Tensor] = []
        starts, resets = self.starts()

        def mean(psi: Tensor) -> Tensor:
            with paired():
                returns, taken = returns_in(self.task, self.box, self.policy, psi.to(self.task.device), starts)
            self.ledger.env_steps += taken
            self.ledger.episodes += returns.numel()
            tried.append(returns[:, :resets].mean(1))
            return returns.mean(1)

        before = float(mean(known)[-1])
        points, values = cma_es(
            mean,
            torch.zeros(known.shape[1]),
            std=config.search_std,
            population=config.population,
            generations=config.generations,
            generator=self.generator,
        )
        found = int(values.argmin())
        return points[found].tolist(), float(torch.cat(tried).min()), before - float(values[found])

    def starts(self) -> tuple[State, int]:
        """First states [E, ...] of the episodes of a search, of which so many, in front, are resets, the same ones in
        every search; the others are drawn for this one."""
        visited = round(self.config.search_episodes * self.config.search_visited)
        resets = max(self.config.search_episodes - visited, 1)
        first = self.task.start_of(*range(resets))
        if not visited:
            return first, resets
        more = self.visited.sample(visited)["state"]
        return {name: torch.cat([value, more[name].to(value)]) for name, value in first.items()}, resets

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Returns in the task as it is, and over a grid of models: `worst` of their means, and `grid_mean`."""
        scores = evaluate_returns(self.policy, task, episodes, greedy=greedy)
        self._returns = grid_returns(self.policy, task, self.config.grid, episodes, greedy=greedy)
        return scores | robust_scores(self._returns)

    def figures(self) -> dict[str, Figure]:
        """Returns over the box of models, at the last evaluation."""
        return robust_figures({self.slug: self._returns}, self.box) if hasattr(self, "_returns") else {}
