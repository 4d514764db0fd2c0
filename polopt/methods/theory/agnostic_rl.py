"""Agnostic policy learning: POPLER, trajectory trees and importance sampling find the best policy of a finite class.

Li, "Agnostic Reinforcement Learning: Foundations and Algorithms", 2025, arXiv 2506.01884; Jia, Li, Rakhlin, Sekhari and
Srebro, "When is Agnostic Reinforcement Learning Statistically Tractable?", NeurIPS 2023, arXiv 2310.06113.

Nothing is assumed of the world and no value is fitted: data that are collected once evaluate all policies pi of a class
Pi, and the policy with the largest estimate is taken. How many data that takes depends on Pi and how one may collect.

    estimate    V^(pi) = mean over trajectories of 1{the actions are pi's} / q * (sum of rewards)
                q is the probability of these actions, given the states, of who collected
    importance  uniform actions: q = A^-H                              weights grow with the horizon
    tree        all ways that policies of Pi go from a start, each decision simulated once: q = 1
    popler      q = #{policies of the core that act so} / K, in pieces that begin and end at petals

POPLER, online: Pi is a sunflower, where each pi has a few petals S_pi (at most D), and until the next petal does what
one of the K policies of a core could do. A trajectory of a core policy is a sample of a policy-specific Markov reward
process, for every pi that agrees with the core between the petals. s_T is the beginning of an episode:

    D_s         trajectories: an explorer until it is in s, from then on a core policy, drawn uniformly
    P(s -> s')  = mean over D_s of 1{pi's actions from s to s'} / q * 1{s' is the first petal of pi after s}
    r(s)        = mean over D_s of 1{pi's actions to the first petal or the end} / q * (sum of rewards until there)
    V^(s)       = r(s) + sum_s' P(s -> s') V^(s'), and 0 where there is no D_s;  V^(pi) = V^(s_T)
    reach(s')   = sum_s reach(s) P(s -> s') by pi, with reach(s_T) = 1
    discovery   a petal s without D_s and with reach(s) >= eps / (6 D) by some pi gets D_s, and that pi as its explorer

Differs from importance-sampled policy search, its base (`--estimator importance`), in what is divided by: K / # is at
most K, where A^H is exponential. For few policies with much in common in worlds of too many states for any table; with
a simulator that can be taken back, `--estimator tree`.

Pi are the policies that do something else than usual in at most `size` states (1: singletons), or `--tables
module:function`, a list of your own, whose sunflower is found. A policy has a sum of its own only for trajectories that
pass a petal of it; of all others it shares that of its centre, so that 40,000 policies cost one pass over the data.

Departs from the paper in: `episodes` and `eps` are chosen and not derived from (K, D, delta); of the petals to
discover, that which is reached most surely is the next; what is left of the budget goes to the data sets in turn.
PLHR, for resets and simulators together, is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from polopt.bases.method import Method, Smoke
from polopt.config import Config, param
from polopt.core.batch import Batch
from polopt.core.spec import Spec
from polopt.data.episodes import Episodes
from polopt.data.trees import Trees
from polopt.policies.listed import PolicyList, from_tables, probabilities, sequences, tons
from polopt.policies.tabular import TabularMixture
from polopt.tasks.base import Task

START = -1  # s_T, where states are numbers


def agrees(match: Tensor, begin: int, stop: Tensor) -> Tensor:
    """Whether match [..., T] is True from step `begin` on until `stop` [...], without it: bool [...]."""
    step = torch.arange(match.shape[-1])
    return (match | (step < begin) | (step >= stop.unsqueeze(-1))).all(-1)


def first_petal(states: Tensor, steps: Tensor, numbers: Tensor, after: int) -> tuple[Tensor, Tensor]:
    """Of trajectories through `numbers` [n, T]: the step [n] after `after` at which they first meet one of the petals
    `states` [n, D], in the order of their `steps` [n, D], and which one; T and D where they meet none."""
    length, size = numbers.shape[1], states.shape[1]
    met = (numbers.gather(1, steps.clamp_max(length - 1)) == states) & (steps > after)
    stop, slot = torch.where(met, steps, length), torch.where(met, torch.arange(size), size)
    return pad(stop, (0, 1), value=length).amin(1), pad(slot, (0, 1), value=size).amin(1)


@dataclass(frozen=True)
class Popler(Config):
    """POPLER."""

    eps: float = param(0.15, "assumed", above=0, help="petals are discovered that are reached with eps / (6 D)")

    petals: ClassVar[bool] = True

    def density(self, core: Tensor, length: Tensor, begin: int, stop: Tensor, actions: int) -> Tensor:
        """q [n] of the actions from `begin` until `stop` [n]; core [K, n, T]: each policy of it would have acted so.
        `length` [n] is that of the trajectories."""
        return agrees(core, begin, stop).double().mean(0)


@dataclass(frozen=True)
class Importance(Config):
    """Naive importance sampling."""

    petals: ClassVar[bool] = False

    def density(self, core: Tensor, length: Tensor, begin: int, stop: Tensor, actions: int) -> Tensor:
        return float(actions) ** -torch.minimum(stop, length).double()  # whole episodes: they begin at 0


@dataclass(frozen=True)
class Tree(Config):
    """Trajectory trees."""

    petals: ClassVar[bool] = False

    def density(self, core: Tensor, length: Tensor, begin: int, stop: Tensor, actions: int) -> Tensor:
        return torch.ones(len(stop), dtype=torch.float64)


Estimator = Popler | Importance | Tree


class Processes(nn.Module):
    """The reward processes of all policies of a list, as sums over trajectories.

    Buffers, float64, where the second dimension is what a piece begins with, s_T or a petal: `moves` [P, 1 + D, D] of
    the weights of pieces that end at each petal, `gains` [P, 1 + D] of weighted rewards, `counts` [P, 1 + D] of
    trajectories. An estimator without petals has D = 0.
    """

    moves: Tensor
    gains: Tensor
    counts: Tensor

    def __init__(self, policies: PolicyList, core: Tensor, estimator: Estimator, actions: int) -> None:
        super().__init__()
        self.policies, self.core, self.estimator, self.actions = policies, core, estimator, actions
        self.petals = policies.states if estimator.petals else policies.states[:, :0]
        count, size = self.petals.shape
        for name, shape in {"moves": (1 + size, size), "gains": (1 + size,), "counts": (1 + size,)}.items():
            self.register_buffer(name, torch.zeros(count, *shape, dtype=torch.float64))

    def numbers(self, batch: Batch) -> Tensor:
        """The states [R, T] that trajectories pass, -1 in padding."""
        step = torch.arange(batch.shape[1])
        return torch.where(batch["mask"], self.policies.number(step, batch["obs", "state"]), -1)

    def add(self, batch: Batch, petal: int = START) -> None:
        """Adds trajectories to the data set of a petal, in which they all were, or of s_T.

        Rows with the same `group` are of one tree, and count as one.
        """
        policies, numbers = self.policies, self.numbers(batch)
        after = -1 if petal == START else int(policies.step(torch.tensor(petal)))
        place = ((self.petals == petal) * torch.arange(1, 1 + self.petals.shape[1])).sum(1)  # 0: s_T
        concerned = (place > 0) | (petal == START)
        which, row = policies.passing(numbers)
        which, row = which[concerned[which]], row[concerned[which]]

        step, state, exists = torch.arange(batch.shape[1]), batch["obs", "state"], batch["mask"]
        own = (policies.act(which.unsqueeze(1), step, state[row]) == batch["action"][row]) | ~exists[row]
        stop, slot = first_petal(self.petals[which], policies.step(self.petals[which]), numbers[row], after)
        weight, gain = self.pieces(batch, own, row, max(after, 0), stop)

        every = torch.arange(len(batch))
        centres = (policies.centres[:, step, state] == batch["action"]) | ~exists  # [M, R, T]
        whole = torch.full_like(every, batch.shape[1])
        usual = torch.stack([self.pieces(batch, match, every, max(after, 0), whole)[1] for match in centres])
        self.gains[concerned, place[concerned]] += usual.sum(1)[policies.follows[concerned]]
        self.gains.index_put_((which, place[which]), gain - usual[policies.follows[which], row], accumulate=True)
        ends = slot < self.petals.shape[1]
        self.moves.index_put_((which[ends], place[which[ends]], slot[ends]), weight[ends], accumulate=True)
        self.counts[concerned, place[concerned]] += batch["group"][:, 0].unique().numel()

    def pieces(self, batch: Batch, match: Tensor, row: Tensor, begin: int, stop: Tensor) -> tuple[Tensor, Tensor]:
        """Weights 1{..} / q [n] of pieces until `stop` [n] of the rows `row` [n], in which the actions are those of a
        policy where match [n, T] is True, and weighted sums [n] of their rewards."""
        step, exists = torch.arange(batch.shape[1]), batch["mask"]
        core = (self.core[:, step, batch["obs", "state"]] == batch["action"]) | ~exists  # [K, R, T]
        density = self.estimator.density(core[:, row], exists.sum(1)[row], begin, stop, self.actions)
        weight = torch.where(agrees(match, begin, stop), 1 / density, 0.0)
        inside = (step >= begin) & (step < stop.unsqueeze(1))
        return weight, weight * (batch["reward"].double()[row] * inside).sum(1)

    def solve(self) -> tuple[Tensor, Tensor]:
        """V^(pi) [P], and how surely each policy reaches each of its petals [P, D]: exact for the estimated process."""
        moves, gains = self.moves / self.counts.clamp_min(1).unsqueeze(-1), self.gains / self.counts.clamp_min(1)
        value, reach = gains.clone(), torch.ones_like(gains)
        for begin in reversed(range(gains.shape[1])):  # moves lead to later petals only
            value[:, begin] += (moves[:, begin] * value[:, 1:]).sum(1)
        for petal in range(moves.shape[2]):
            reach[:, petal + 1] = (reach[:, : petal + 1] * moves[:, : petal + 1, petal]).sum(1)
        return value[:, 0], reach[:, 1:]


class AgnosticRL(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(100, "polopt", low=1, help="copies of the task that are stepped together")
        size: int = param(1, "paper: singletons", low=0, help="states in which a policy does not act as usual, at most")
        usual: int = param(0, "paper: singletons", low=0, help="the usual action")
        tables: Callable[[Spec], Tensor] | None = param(
            None, "paper: any class", help="policies of your own in place of these: integers [P, H, S] for a spec"
        )
        centres: int = param(1, "assumed", low=1, help="of your own policies, those by which the others are described")
        estimator: Popler | Importance | Tree = param(Popler(), "paper: POPLER")
        episodes: int = param(500, "assumed", low=1, help="for a data set, or trees, of every update")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("micro_batch", because="where no gradient is taken")
            if self.tables is not None:
                self.refuse("size", "usual", because="on policies of your own")
            else:
                self.refuse("centres", because="without policies of your own: --tables module:function")

    slug = "agnostic-rl"
    default_steps = 40_000
    eval_episodes = 1000
    saved = ("targets", "turn", "finished")
    headline = ("estimate", "discovered")
    trains_on = "tasks with 'state' and 'step': `layers` and tabular ones"
    metrics = {
        "estimate": "V^ of the policy that is taken, the largest of all | near its return once data are many",
        "discovered": "petals with a data set",
        "reached": "share of the episodes of the update that came to the petal; 1 where it is the beginning",
        "finished": "1 once every petal that is reached surely enough has a data set",
    }
    presets = {
        "importance-sampling": {"estimator": Importance()},
        "trajectory-tree": {"estimator": Tree()},
    }
    no_limit = "its base, importance-sampled policy search, is its own `--estimator importance`, which a test compares"
    probes = {"centres": {"tables": sequences, "centres": 3}, "estimator.eps": {"estimator.eps": 6.0}}
    smoke = Smoke("layers", 480, {"envs": 20, "episodes": 20}, task_options={"states": 3, "horizon": 4, "layer": 1})

    def build(self, task: Task) -> None:
        config, spec = self.config, self.spec
        if config.tables is None:
            self.policies = tons(spec, config.size, config.usual)
        else:
            self.policies = from_tables(spec, config.tables(spec), config.centres)
        core = self.policies.core()
        self.processes = Processes(self.policies, core, config.estimator, spec.num_actions)
        self.core = probabilities(core, spec.num_actions)
        self.policy = self.part("policy", TabularMixture, spec)
        self.explorer = TabularMixture(spec, len(core) if config.estimator.petals else 1)  # uniform at first
        if isinstance(config.estimator, Tree):
            self.source = Trees(task, self.policies, config.episodes, ledger=self.ledger)
        else:
            self.source = Episodes(task, config.episodes, ledger=self.ledger)
        self.targets = [[START, 0]]  # each with a data set: a petal, and the policy that explores it
        self.turn, self.finished = 0, not config.estimator.petals
        self.aim()

    @property
    def behavior(self) -> TabularMixture:
        return self.explorer

    def table(self, which: int) -> Tensor:
        """Probabilities [H, S, A] of a policy."""
        return probabilities(self.policies.table(which), self.spec.num_actions)

    def aim(self) -> None:
        """The next data set is that of the present target."""
        if self.config.estimator.petals:
            petal, which = self.targets[self.turn]
            until = 0 if petal == START else int(self.policies.step(torch.tensor(petal)))
            tables = self.core.clone()
            tables[:, :until] = self.table(which)[:until]
            self.explorer.set(tables, torch.full((len(tables),), 1 / len(tables)))

    def discover(self, reach: Tensor) -> None:
        """The next target, by the probability [P, D] with which policies reach their petals."""
        petals = self.processes.petals
        known = torch.isin(petals, torch.tensor([petal for petal, _ in self.targets]))
        reach = reach.masked_fill(known, 0.0)
        if reach.numel() and reach.max() >= self.config.estimator.eps / (6 * self.policies.petals):
            which, slot = divmod(int(reach.argmax()), petals.shape[1])
            self.targets = [*self.targets, [int(petals[which, slot]), which]]
            self.turn = len(self.targets) - 1
        else:
            self.finished = True
            self.turn = (self.turn + 1) % len(self.targets)
        self.aim()

    @torch.no_grad()
    def update(self, batch: Batch) -> dict[str, Tensor]:
        petal, _ = self.targets[self.turn]
        arrived = torch.ones(len(batch), dtype=torch.bool)
        if petal != START:
            arrived = (self.processes.numbers(batch) == petal).any(1)
        if arrived.any():
            self.processes.add(batch[arrived], petal)
        value, reach = self.processes.solve()
        best = int((value == value.max()).nonzero()[0])
        self.policy.set(self.table(best).unsqueeze(0), torch.ones(1))
        if self.config.estimator.petals:
            self.discover(reach)
        return {
            "estimate": value[best],
            "discovered": torch.tensor(len(self.targets) - 1.0),
            "reached": arrived.double().mean(),
            "finished": torch.tensor(float(self.finished)),
        }
