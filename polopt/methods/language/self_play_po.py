"""Self-Play Preference Optimization, minimaximalist: an episode's reward is its win rate against the policy's own.

Swamy, Dann, Kidambi, Wu and Agarwal, "A Minimaximalist Approach to Reinforcement Learning from Human Feedback", ICML
2024, arXiv 2401.04056, where it is called SPO.

Preferences P(xi, xi') in [-1, 1] between whole episodes may go in a circle, be noisy, or look at the whole of an
episode: then no reward of steps has them. What is wanted is the minimax winner, the mixture of policies that no other
beats in the mean. The game is antisymmetric, so one learner without regret that plays itself finds it:

    Q_t     the latest `queue` episodes of the policy, those of this update among them
    r_i   = mean over j in Q_t, j != i, of P(xi_i, xi_j)            0 where there is none
    reward of every step = r_i / length of the episode, then any learner's update

The win rate moves with the policy, so a good episode of yesterday is worth nothing today, and nothing is kept for
another update. Near the winner the last policy goes round it; the mean of all policies tends to it. `--average K` keeps
K of them, of all updates alike, and plays one that is drawn for each episode: that is what is evaluated and saved.

P is what `--judge module:function` says of two batches of episodes [N, T] and [M, T] with `obs`, `action`, `reward`,
`mask` and the task's facts: the probability [N, M] that each of the first is better than each of the others. Both
orders are asked, P = p(xi, xi') - p(xi', xi), so that P is antisymmetric whatever the judge. Without a judge a rater
sees returns: `sign`, `bradley-terry` or their `margin`. With `drawn` each pair is one answer. To be chosen where
preferences follow from no reward; where they do, learning the reward first uses comparisons again and again.

Differs from its base, REINFORCE, in the reward, and in the credit: all steps have the whole of it (`return`, without a
discount), which is the gradient of the win rate; what is left of it (`reward-to-go`) is not.

Departs from the paper in: its base is SAC, which needs win rates of old episodes anew as the queue moves; here none are
old. No official code is known: the size of the queue, and [-1, 1] in place of [0, 1], are assumed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch, flat, nested
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.core.state import Stateful
from polopt.data.episodes import Episodes
from polopt.data.tokens import widen
from polopt.evaluation.returns import scores_of
from polopt.methods.control.reinforce import CREDITS, Reinforce
from polopt.policies.base import Actor, require
from polopt.policies.wrappers import Mixture
from polopt.tasks.base import Task

Judge = Callable[[Batch, Batch], Tensor]


def of_returns(margin: Tensor, compare: str, scale: float) -> Tensor:
    """P of the differences of returns: their sign, tanh(margin / (2 scale)), which is 2 sigmoid - 1, or margin / scale,
    which has no bound."""
    return {"sign": margin.sign(), "bradley-terry": torch.tanh(margin / (2 * scale)), "margin": margin / scale}[compare]


def asked(judge: Judge, mine: Batch, theirs: Batch) -> Tensor:
    """P [N, M] of a judge that is asked in both orders. Raises UsageError where it says no probabilities."""
    answers = []
    for one, other in ((mine, theirs), (theirs, mine)):
        said = torch.as_tensor(judge(one, other))
        if said.shape != (len(one), len(other)) or not ((said >= 0) & (said <= 1)).all():
            raise UsageError(
                f"the judge is asked for probabilities ({len(one)}, {len(other)}), each that an episode of the first "
                f"batch is better than one of the second, and gave {tuple(said.shape)} from {said.min():g} to "
                f"{said.max():g}"
            )
        answers.append(said.to(torch.get_default_dtype()))
    return answers[0] - answers[1].T


def drawn(preference: Tensor, own: int, generator: torch.Generator) -> Tensor:
    """One answer, 1 or -1, to each pair, 1 with probability (1 + P) / 2 [N, M]. The last `own` rows and columns are the
    same episodes: there a pair is asked once."""
    chance = torch.rand(preference.shape, generator=generator, dtype=torch.float64).to(preference)
    answer = torch.where(chance < (1 + preference) / 2, 1.0, -1.0)
    among = answer[-own:, -own:].triu(1)
    answer[-own:, -own:] = among - among.T
    return answer


def win_rates(preference: Tensor, own: int) -> Tensor:
    """r [N]: the mean of P [N, M] over all other episodes; the last `own` rows and columns are the same episodes."""
    others = torch.ones_like(preference)
    others[-own:, -own:] -= torch.eye(own).to(others)
    return (preference * others).sum(1) / others.sum(1).clamp_min(1.0)


class Memory(Stateful):
    """Up to `size` episodes [M, T], padded to the longest: the latest (`push`), or some of all (`mix`)."""

    saved = ("count",)

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0  # episodes that it was given
        self._rows: Batch | None = None

    @property
    def rows(self) -> Batch:
        if self._rows is None:
            raise UsageError("there are no episodes to compare with before the first update")
        return self._rows

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    def push(self, episodes: Batch) -> None:
        """The latest episodes; the oldest are forgotten."""
        self._rows = self._with(episodes)[-self.size :]
        self.count += len(episodes)

    def mix(self, episodes: Batch, generator: torch.Generator) -> None:
        """A sample of all episodes so far, each as likely as any other (reservoir sampling)."""
        kept = len(self)
        every = self._with(episodes)
        places = list(range(kept))
        for new in range(kept, len(every)):
            self.count += 1
            if len(places) < self.size:
                places.append(new)
            elif (slot := int(torch.randint(self.count, (), generator=generator))) < self.size:
                places[slot] = new
        self._rows = every[torch.tensor(places, device=every.device)]

    def _with(self, episodes: Batch) -> Batch:
        if self._rows is None:
            return episodes
        length = max(self._rows.shape[1], episodes.shape[1])
        sides = [{path: widen(value, length) for path, value in flat(rows).items()} for rows in (self._rows, episodes)]
        columns = {path: torch.cat([side[path] for side in sides]) for path in sides[0]}
        return TensorDict(nested(columns), batch_size=[len(self._rows) + len(episodes), length])

    def extra_state(self) -> dict[str, Any]:
        return {} if self._rows is None else {path: value.clone() for path, value in flat(self._rows, "rows/").items()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._rows = None
        if state:
            rows = {path.removeprefix("rows/"): value.clone() for path, value in state.items()}
            self._rows = TensorDict(nested(rows), batch_size=rows["mask"].shape)


class SelfPlayPO(Reinforce):
    @dataclass(frozen=True)
    class Config(Reinforce.Config):
        queue: int = param(32, "assumed", low=1, help="the latest episodes, with which new ones are compared")
        judge: Judge | None = param(
            None, "arXiv 2401.04056", help="f(episodes, others): the probability [N, M] that each of N beats each of M"
        )
        compare: str = param("sign", "assumed", choices=("sign", "bradley-terry", "margin"), help="returns")
        scale: float = param(1.0, "assumed", above=0, help="of differences of returns, unless their sign counts")
        drawn: bool = param(False, "assumed", help="each pair gets one answer, drawn from the preference")
        average: int = param(0, "assumed", low=0, help="policies kept of all so far, of which one is drawn to play")
        population: int = param(64, "assumed", low=1, help="episodes kept of all so far, rivals in evaluations")
        credit: str = param("return", "polopt", choices=tuple(CREDITS), help="of a decision")
        discount: float = param(1.0, "polopt", low=0, high=1)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.judge is not None:
                self.refuse("compare", "scale", because="beside a judge")
            if self.compare == "sign":
                self.refuse("scale", because="where the sign of a difference counts")
            if self.compare == "margin" and self.drawn:
                raise UsageError("no answers can be drawn from compare margin, which gives no probabilities")

    slug = "self-play-po"
    score = "win_rate"
    learns = "actor"
    headline = ("win_rate", "entropy")
    trains_on = "tasks with episodes that end, by preferences between episodes"
    metrics = {
        "win_rate": "of the episodes of this update against the queue | above 1/2 while the policy improves",
        "comparisons": "pairs of episodes that were compared in this update",
        "eval/win_rate": "of fresh episodes against a sample of all training episodes so far, so against the mean of "
        "all policies | above 1/2 while it improves",
    }
    presets = {"circle": {"average": 32, "drawn": True}}
    limits = (
        Limit(
            base="reinforce",
            task="grid/coverage",
            at={"compare": "margin", "scale": 0.5, "queue": 4, "baseline": "none", "lr": 0.0625, "optimizer": "sgd"},
            base_at={"credit": "return", "discount": 1.0, "lr": 0.125, "optimizer": "sgd"},
            apart={"compare": "sign", "scale": 1.0},
            because="the mean of R_i - R_j over the others is R_i minus their mean: leave-one-out, twice as large at "
            "scale 1/2; equal up to rounding, since the others are summed first there",
            tolerance=1e-12,
        ),
    )
    smoke = Smoke(
        "CartPole-v1", 200, {"envs": 2, "episodes": 4, "network.sizes": (16,), "queue": 6, "average": 2, "drawn": True}
    )
    probes = {"scale": {"compare": "bradley-terry", "scale": 10.0, "drawn": False}}

    def build(self, task: Task) -> None:
        super().build(task)
        self.actor: Actor = self.policy
        self.policy = Mixture(self.actor, self.config.average) if self.config.average else self.actor
        self.queue, self.population = Memory(self.config.queue), Memory(self.config.population)

    def check_policy(self) -> None:
        require(self.actor, *self.requires, by=self.slug)

    @property
    def trained(self) -> Any:
        return self.actor

    @property
    def behavior(self) -> Actor:
        return self.actor

    def episodes_of(self, batch: Batch) -> Batch:
        """What judges see."""
        return batch.select("obs", "action", "reward", "mask", *self.spec.facts)

    def preferences(self, mine: Batch, theirs: Batch) -> Tensor:
        """P [N, M] between episodes."""
        config = self.config
        if config.judge is not None:
            return asked(config.judge, mine, theirs).to(mine["reward"].device)
        one, other = ((rows["reward"] * rows["mask"]).sum(1) for rows in (mine, theirs))
        return of_returns(one.unsqueeze(1) - other, config.compare, config.scale)

    def answers(self, batch: Batch) -> tuple[Tensor, int]:
        """P, or drawn answers, between the episodes of the batch and the queue with them in it [N, M], and how many
        of the last rows and columns are the same episodes."""
        episodes = self.episodes_of(batch)
        self.queue.push(episodes)
        self.population.mix(episodes, self.generator)
        own = min(len(episodes), len(self.queue))
        preference = self.preferences(episodes, self.queue.rows)
        return drawn(preference, own, self.generator) if self.config.drawn else preference, own

    def compared(self, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """The batch with `shared`, what each step has of its episode's win rate [R, T], and numbers of it."""
        preference, own = self.answers(batch)
        rate, mask = win_rates(preference, own), batch["mask"]
        batch = batch.clone(False)
        batch["shared"] = torch.where(mask, (rate / mask.sum(1)).unsqueeze(1), 0.0)
        pairs = preference.numel() - own - own * (own - 1) // 2
        return batch, {"win_rate": (1 + rate.mean()) / 2, "comparisons": torch.tensor(float(pairs))}

    def rewards(self, batch: Batch) -> Tensor:
        return batch["shared"]

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch, metrics = self.compared(batch)
        metrics |= super().update(batch)
        if isinstance(self.policy, Mixture):
            self.policy.keep(self.generator)
        return metrics

    @torch.no_grad()
    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        with paired():
            batch = Episodes(task, starts=range(episodes), greedy=greedy).next(self.policy)
        win_rate = 0.5
        if len(self.population):
            preference = self.preferences(self.episodes_of(batch), self.population.rows)
            win_rate = (1 + preference.clamp(-1, 1).mean().item()) / 2
        return scores_of(batch) | {"win_rate": win_rate}
