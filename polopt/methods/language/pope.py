"""POPE: hard problems are also asked with the beginning of a known solution, which the policy goes on from.

Qu, Setlur, Smith, Salakhutdinov and Kumar, "POPE: Learning to Reason on Hard Problems via Privileged On-Policy
Exploration", 2026, arXiv 2601.18779.

A hard problem x is one that none of k samples solves: its groups of GRPO teach nothing. With a solution z known, the
same problem is asked a second way: g(x, z_1..i) is x, the beginning z_1..i, and the instruction to go on from there.
It stands in the prompt, in the turn of the user, so nothing of it is ever a target. What is learned there, by samples
of the policy's own, carries over to x, which is all that is evaluated.

    i*(x)  = min{ i : one of k samples of g(x, z_1..i) by pi_0 is right }        over `cuts` beginnings, the longest
                                                                                 `max_fraction` of z; if none, that one
    J(pi)  = (1 - s) E_x E_{y ~ pi(.|x)} r + s E_x E_{y ~ pi(.|g(x, z_1..i*))} r               s = `guided_share`
    A_j    = (r_j - mean) / (std + eps)        within a group, which is a problem and a way of asking: never across both
    loss     that of GRPO on this mixture, without its penalty against the model at the start

Before the first step `search_samples` completions of every problem, as it stands, find those that are hard
(`--hard-only false` takes all), and as many of each beginning of a solution, from the shortest on, find i*. These are
charged to the budget. Every batch has the share s of guided prompts, each half in a shuffled order of its own;
sequences count the same, so neither half outweighs the other by its length.

Differs from its base, GRPO, in which prompts it is asked; the mixture with easy problems, which the paper warns of, is
`--hard-only false` on a pool that has some.

Departs from the paper in: nothing is dropped or chosen again later in training. Beginnings are cut from the task's
worked solutions and count as part of the answer that is judged; `leaked` says whether one was right by itself. Of the
paper's settings only the model, k = 128 for hard problems, the lengths and the grid's end of about a quarter were to
be had; the rest, and the words of the instruction, are assumed. Where success falls off with every step that is left,
a quarter is too little: raise `--max-fraction`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.language import check_prompts
from polopt.bases.method import Limit
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import RunError, UsageError
from polopt.core.state import Stateful
from polopt.data.curricula import Given, Mixture
from polopt.data.prompt_groups import PromptGroups
from polopt.data.samplers import Shuffled
from polopt.methods.language.pope_settings import POPESettings
from polopt.methods.language.rec import GRPO
from polopt.policies.language import need_text
from polopt.regularizers import ReferenceKL
from polopt.tasks.base import Task
from polopt.tasks.ladders import PIECES, Cuts, check_words

INSTRUCTION = (
    "{prompt}\n\nThis is how a solution begins. Study what it has found, do not write it out again, go on from where "
    "it stops, and end with the answer.\n\n{given}"
)


def grid(cuts: int, max_fraction: float) -> tuple[float, ...]:
    """The shares of a solution that the search tries: `cuts` of them, evenly spaced up to `max_fraction`."""
    return tuple(max_fraction * (number + 1) / cuts for number in range(cuts))


class PrefixSearch(Stateful):
    """Which problems are hard, and how much help each of them needs: level 0 is none.

    Args:
        size: number of problems.
        longer: the next level above one at which more is shown of the solution of a problem; None if there is none.
        test: find out which problems are hard; otherwise all are.
        minimal: find the lowest level that helps; otherwise the highest is taken.

    Attributes:
        queue: [problem, level] pairs to be tried next, in order.
        hard: the problems found so far that are.
        level: of every problem, 0 where it is not known yet.
    """

    learned = False
    saved = ("queue", "hard", "level")

    def __init__(self, size: int, longer: Callable[[int, int], int | None], *, test: bool, minimal: bool) -> None:
        self.longer, self.minimal = longer, minimal
        self.queue: list[list[int]] = []
        self.hard: list[int] = []
        self.level = [0] * size
        if test:
            self.queue = [[problem, 0] for problem in range(size)]
        else:
            for problem in range(size):
                self.note(problem, 0, False)

    def note(self, problem: int, level: int, solved: bool) -> None:
        """What the samples of a problem have shown that was asked with the help of this level."""
        if level == 0:
            if solved:
                return
            self.hard.append(problem)
        further = None if solved else self.longer(problem, level)
        self.level[problem] = level if further is None else further
        if self.minimal and further is not None:
            self.queue.append([problem, further])


class POPE(POPESettings, GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        samples_per_prompt: int = param(8, "assumed", low=1, unit="completions")
        reference_kl: ReferenceKL | None = param(None, "assumed", help="penalty against the start")
        guided_share: float = param(
            0.5, "section 4", low=0, high=1, help="of the prompts of a batch, asked with the beginning of a solution"
        )
        prefix: str = param(
            "minimal",
            "section 4",
            choices=("minimal", "longest"),
            help="of every problem: the shortest beginning with which it is ever solved, or max_fraction for all",
        )
        cuts: int = param(8, "assumed", low=1, help="beginnings of different length that the search tries")
        max_fraction: float = param(0.25, "section 4", above=0, below=1, help="of a solution, shown at most")
        piece: str = param("character", "assumed", choices=tuple(PIECES), help="what a cut does not go through")
        words: str = param(INSTRUCTION, "assumed", help="the guided prompt: {prompt} and {given} stand for these texts")
        hard_only: bool = param(True, "section 4", help="leave out problems that a sample solves without help")
        search_samples: int = param(
            8, "assumed", low=1, unit="completions", help="k, of every problem and of every cut before the first step"
        )
        success: float = param(1.0, "assumed", help="reward of a completion that solves its problem, in the search")

        def __post_init__(self) -> None:
            super().__post_init__()
            check_words(self.words, "given")
            guided = self.guided_share * self.batch_prompts
            if abs(guided - round(guided)) > 1e-6:
                raise UsageError(
                    f"guided_share {self.guided_share:g} of {self.batch_prompts} prompts is no whole number of prompts"
                )
            if self.guided_share:
                self.refuse("dynamic_sampling", because="where guided prompts have a share of every batch")
            else:
                help_ = ("prefix", "cuts", "max_fraction", "piece", "words")
                self.refuse(*help_, because="without guided prompts")
            if self.prefix == "longest":
                self.refuse("cuts", because="on the prefix 'longest'")
            if not self.hard_only and not self.searches:
                self.refuse("search_samples", "success", because="where nothing is searched for")

        @property
        def searches(self) -> bool:
            """Whether the beginnings of solutions are searched for."""
            return self.guided_share > 0 and self.prefix == "minimal"

    slug = "pope"
    limits = (
        Limit(
            base="grpo",
            at={"guided_share": 0.0, "hard_only": False},
            base_at={"reference_kl": None},
            apart={"guided_share": 0.5, "prefix": "longest"},
            because="without help, on all problems, it is GRPO without its penalty",
            collects="each",
        ),
    )

    def build(self, task: Task) -> None:
        need_text(self.spec)
        config, size = self.config, task.count  # type: ignore[attr-defined]
        if size is None:
            raise UsageError(
                f"{self.slug} looks once for the help that each problem needs: it needs finitely many, for example "
                "--task.pool 64"
            )
        cuts = config.cuts if config.prefix == "minimal" else 1
        shares = grid(cuts, config.max_fraction)
        self.shares = (0.0, *shares)  # of a solution, by level
        self.ladder = Cuts(shares, piece=config.piece, words=config.words)
        self.helped = task.with_ladder(self.ladder)  # type: ignore[attr-defined]
        self.search = PrefixSearch(size, self.longer, test=config.hard_only, minimal=config.searches)
        super().build(self.helped)
        self.tried = Given()
        self.search_source = PromptGroups(self.helped, 1, config.search_samples, sampler=self.tried, ledger=self.ledger)

    def prepare(self) -> None:
        check_prompts(self.policy, self.helped if self.config.guided_share else self.task)

    def asked(self, problem: int, level: int = 0) -> int:
        """The id of a problem that is asked with the help of a level."""
        return problem * (self.ladder.levels + 1) + level

    def longer(self, problem: int, level: int) -> int | None:
        """The next level above this one with more of the problem's solution, of which short ones have few."""
        if not self.config.guided_share:
            return None
        above = range(level, self.ladder.levels + 1)
        shown = [each.given for each in self.helped.problems([self.asked(problem, higher) for higher in above])]
        return next((higher for higher, given in zip(above, shown) if given != shown[0]), None)

    def make_sampler(self, task: Any) -> Mixture:
        """The hard problems, guided and as they stand, each in an order of its own."""
        search = self.search
        plain, guided = (Shuffled(len(search.level)) for _ in range(2))
        self.orders = (guided, plain)
        ways = (
            lambda place: self.asked(search.hard[place], search.level[search.hard[place]]),
            lambda place: self.asked(search.hard[place]),
        )
        return Mixture(guided, plain, self.config.guided_share, ways)

    def collect(self) -> Batch:
        """Completions of prompts of the mixture; at first, those of the search, by the policy at the start."""
        config, search = self.config, self.search
        if search.queue:
            most = max(1, config.batch_prompts * config.samples_per_prompt // config.search_samples)
            ids = [self.asked(*pair) for pair in search.queue[:most]]
            self.tried.ids, self.search_source.count = ids, len(ids)
            batch = self.search_source.next(self.behavior)
            batch["searched"] = torch.ones_like(batch["failed"])
            return batch
        if not search.hard:
            raise RunError(
                f"every problem of {self.spec.name} was solved without help: --hard-only false trains on them all"
            )
        for order in self.orders:
            order.size = len(search.hard)
        return super().collect()

    @torch.no_grad()
    def note_search(self, batch: Batch) -> dict[str, Tensor]:
        """The rewards of the search decide about its problems, and teach nothing else."""
        solved = (batch["reward"] >= self.config.success - 1e-6) & ~batch["failed"]
        tried = solved.reshape(-1, self.config.search_samples).any(1).tolist()
        done, self.search.queue = self.search.queue[: len(tried)], self.search.queue[len(tried) :]
        for (problem, level), success in zip(done, tried, strict=True):
            self.search.note(problem, level, success)
        return self.batch_metrics(batch) | {"waiting": self._share(len(self.search.queue))}

    def ways_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Accuracy with help and without, and what the help is."""
        share, levels, search = self.config.guided_share, self.ladder.levels + 1, self.search
        guided, found = batch["index"] % levels > 0, {}
        for name, rows, wanted in (("guided", guided, share > 0), ("unguided", ~guided, share < 1)):
            if wanted:
                rows = (rows & ~batch["failed"]).to(batch["reward"].dtype)
                found[f"{name}_accuracy"] = (rows * batch["correct"]).sum() / rows.sum().clamp_min(1.0)
        if share:
            asked = self.helped.problems([each for each in batch["index"].unique().tolist() if each % levels])
            leaked = [self.helped.verify(problem, problem.given) >= 1 for problem in asked]
            shown = [self.shares[search.level[problem]] for problem in search.hard]
            found["leaked"] = torch.tensor(sum(leaked) / max(len(leaked), 1))
            found["shown"] = torch.tensor(sum(shown) / len(shown))
        return found | {"hard": self._share(len(search.hard))}

    def _share(self, count: int) -> Tensor:
        return torch.tensor(count / len(self.search.level))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        if "searched" in batch.keys():
            return self.note_search(batch)
        return super().update(batch) | self.ways_metrics(batch)
