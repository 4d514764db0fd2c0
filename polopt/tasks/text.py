"""Text tasks: rows of conversations in which one act is one turn, scored by a verifier or by the user's rewards."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from polopt.core import ranks
from polopt.core.errors import RunError, UsageError
from polopt.core.spec import Spec
from polopt.tasks.answers import Answered, answered
from polopt.tasks.base import Obs, Step, Task
from polopt.tasks.options import flag, number, whole
from polopt.tasks.problem import Around, Ladder, Message, Problem, Prompt, as_written, opening
from polopt.tasks.rewards import COMPONENTS, Part, Rewards, Unscored, component_facts, make_rewards

MAX_TEXT = 1 << 20


class TextTask(Task):
    """`num` conversations (N). Subclasses give `problem`, `verify` and, when an episode has several turns, `reply`.

    Observations are lists of length N: what is new for each row, a `str` for plain prompts or a list of messages for
    conversational ones; empty when an episode has ended. `record["action"]` is a list of N texts; `record["ended"]`
    (bool [N], default True) is False for texts that were cut at the token limit: such a turn ends the episode as
    truncated, with the reward `truncated_reward`, unless `score_truncated` asks to score it like any other. Rows where
    `record["active"]` (bool [N], default True) is False are not stepped; they may have ended.

    Args:
        pool: number of problems; index i is problem i modulo `pool`. None: a new problem for every index.
        rewards: reward functions that replace the verifier's reward: see `polopt.tasks.rewards.Rewards`. In an episode
            of several turns they replace the reward of the last one. "verifier" among them is the verifier.
        weights: one weight per reward function, 1 by default.
        timeout: seconds that one call of a reward function may take.
        isolated: reward functions are called in processes of their own, so many for each (True: one), which are
            replaced when they hang or crash.
        memory_limit: GB that each of these may have.
        heldout: evaluation gets problems that training never sees.
        system, chat, instruction: what is put around every prompt: see `polopt.tasks.problem.Around`.
        shown: (low, high), from 0 to 1: training also asks every problem with the beginning of its worked solution, a
            share drawn between these, under an id of its own. Evaluation shows nothing.
        words: how that is asked, a text with {prompt} and {given}; None: the answer has begun so.

    Attributes:
        obs, first: as in every task.
        level: int64 [N], difficulty of the present problems.
        index: int64 [N], ids of the present problems.
        transcripts: the conversation of each row so far, as messages.
        correct: bool [N], rows whose episode ended in the last step with the verifier's full reward.
        components, component_known, component_failed: [N, K], with `rewards` only: what each of the K functions gave
            the rows of the last step, unweighted; where it gave a number (0 elsewhere); and where it failed. Their
            names are `spec.info["components"]`.
        answer: int64 [N], what the texts with which episodes ended in the last step gave as their answers: equal for
            equal answers (`extract`), 0 where there is none.
        failed: bool [N], rows of the last step whose reward could not be computed; their reward is 0.
        failure: why the latest of them failed, in one sentence; empty when none has.
        scores: False for data without answers and rewards: stepping raises UsageError.
        verifiable: False when nothing but the user's rewards judges, so that `correct` says nothing.
        ladder: help that is shown with the problems, by their ids: see `polopt.tasks.ladders`.
    """

    elastic = True
    turns: int = 1
    conversational: bool = False
    scores: bool = True
    verifiable: bool = True
    ladder: Ladder | None = None

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "this task",
        *,
        pool: int | None = None,
        rewards: str | Callable[..., Any] | Sequence[str | Callable[..., Any]] | None = None,
        weights: float | Sequence[float] | None = None,
        timeout: float = 10.0,
        isolated: bool | int = False,
        memory_limit: float | None = None,
        truncated_reward: float = 0.0,
        score_truncated: bool = False,
        heldout: Any = True,
        system: str | None = None,
        chat: bool = False,
        instruction: str | None = None,
        shown: Sequence[float] | None = None,
        words: str | None = None,
    ) -> None:
        from polopt.tasks.ladders import drawn_cut  # which is about problems of this module

        self.seed = seed
        self.evaluation = evaluation
        self.pool = None if pool is None else whole("pool", pool, 1)
        self.timeout = number("timeout", timeout)
        if self.timeout <= 0:
            raise UsageError(f"timeout must be a number of seconds above 0, not {timeout!r}")
        self.rewards: Rewards | None = make_rewards(rewards, weights, self.timeout, isolated, memory_limit)
        self.truncated_reward = number("truncated_reward", truncated_reward)
        self.score_truncated = flag("score_truncated", score_truncated)
        self.heldout = heldout
        self.around = Around(system, instruction, flag("chat", chat))
        self.conversational = self.conversational or self.around.conversational
        self.ladder = None if evaluation else drawn_cut(shown, words)
        info: dict[str, Any] = {"turns": self.turns, "conversational": self.conversational}
        text = spaces.Text(MAX_TEXT)
        facts: dict[str, tuple[int, ...]] = dict.fromkeys(("correct", "failed", "level", "answer"), ())
        if self.rewards is not None:
            info["components"] = self.rewards.names
            facts |= dict.fromkeys(COMPONENTS, (len(self.rewards.names),))
        self.spec = Spec(obs=text, action=spaces.Text(MAX_TEXT), name=name, info=info, facts=facts)
        self._taken = 0  # problems that resets without an index have used
        self._seat(num)

    def _seat(self, num: int) -> None:
        """Rows that have begun no conversation yet."""
        self.num = num
        self.obs: list[Any] | None = None
        self.first = torch.ones(num, dtype=torch.bool)
        self.correct = torch.zeros(num, dtype=torch.bool)
        self.failed = torch.zeros(num, dtype=torch.bool)
        self.answer = torch.zeros(num, dtype=torch.int64)
        self._components: dict[str, Tensor] = {}
        self.failure = ""
        self.transcripts: list[list[Message]] = []
        self._problems: list[Problem] = []
        self._index: list[int] = []
        self._ended: list[bool] = []

    # What a subclass gives.

    def problem(self, index: int) -> Problem:
        """Problem number `index` (>= 0): the same one every time."""
        raise NotImplementedError  # abstract

    def verify(self, problem: Problem, text: str) -> float:
        """How right a text is, in [0, 1]; never raises for any text."""
        raise NotImplementedError  # abstract

    def extract(self, problem: Problem, text: str) -> str:
        """What a text says that the answer is, empty for none: texts with equal answers vote for the same."""
        return text.strip()

    def reply(self, problem: Problem, transcript: list[Message], text: str) -> tuple[str | None, float, bool]:
        """What a turn leads to: (feedback or None, reward, the episode is over).

        `transcript` holds the messages before this turn, the prompt first. Must be a function of its arguments, so
        that a conversation continues exactly after a resume.
        """
        return None, self.verify(problem, text), True

    def expert(self, problem: Problem, transcript: list[Message]) -> str:
        """A good next turn. Raises UsageError when the task has no worked solutions."""
        if problem.solution is None:
            raise UsageError(f"{self.spec.name} has no worked solutions to imitate")
        return problem.solution

    # What sources and methods use.

    @property
    def size(self) -> int | None:
        """Number of ids: of problems, each with every help; None when there is a problem for every index."""
        count = self.count
        return count if count is None or self.ladder is None else count * (self.ladder.levels + 1)

    @property
    def count(self) -> int | None:
        """Number of problems; None when there is one for every index."""
        return self.pool

    @property
    def level(self) -> Tensor:
        return torch.tensor([problem.level for problem in self._problems], dtype=torch.int64)

    @property
    def facts(self) -> Mapping[str, Tensor]:  # type: ignore[override]
        own = {"correct": self.correct, "failed": self.failed, "level": self.level, "answer": self.answer}
        return own | self._components

    @property
    def index(self) -> Tensor:
        return torch.tensor(self._index, dtype=torch.int64)

    def problems(self, indices: Sequence[int]) -> list[Problem]:
        """The problems with these ids; each different one is made once."""
        ids = [int(index) if self.size is None else int(index) % self.size for index in indices]
        made = {index: self._variant(index) for index in dict.fromkeys(ids)}
        return [made[index] for index in ids]

    def _variant(self, index: int) -> Problem:
        if self.ladder is None:
            return self.around(self.problem(index))
        number, level = divmod(index, self.ladder.levels + 1)
        problem = self.around(self.problem(number))
        if not level:
            return problem
        helped = self.ladder.climb(problem, level, f"{self.seed}/{number}")
        return replace(helped, plain=problem.prompt if problem.plain is None else problem.plain)

    def with_ladder(self, ladder: Ladder) -> TextTask:
        """The same problems, each with every help of the ladder: id = problem * (levels + 1) + level, and level 0 is
        the problem as it stands. Rows that have begun no conversation yet. UsageError for a task that has a ladder."""
        if self.ladder is not None:
            raise UsageError(f"{self.spec.name} shows beginnings of its solutions already: leave out --task.shown")
        task = copy.copy(self)
        task.ladder = ladder
        task._seat(self.num)
        return task

    def demonstrations(self, indices: Sequence[int]) -> list[tuple[Prompt, str]]:
        """(prompt, worked solution) of the problems with these ids. Raises UsageError when there are none."""
        return [(one.prompt, self.expert(one, as_written(one, opening(one)))) for one in self.problems(indices)]

    def preferences(self, indices: Sequence[int]) -> list[tuple[Prompt, str, str]]:
        """(prompt, chosen, rejected) of the problems with these ids. Raises UsageError when there are none."""
        raise UsageError(f"{self.spec.name} has no pairs of a chosen and a rejected answer")

    def reset(self, rows: Tensor | None = None, index: Tensor | None = None) -> list[Any]:
        whole_reset = rows is None or bool(rows.all())
        if not whole_reset and len(self._problems) != self.num:
            raise RunError(f"{self.spec.name} must be reset as a whole first and whenever its number of rows changes")
        assert rows is None or len(rows) == self.num, "one flag per row"
        assert index is None or len(index) == self.num, "one index per row"
        self._make_room()
        obs, first = list(self.obs or [""] * self.num), self.first.clone()
        chosen = list(range(self.num)) if rows is None else [row for row in range(self.num) if rows[row]]
        if index is None:
            ids = list(range(self._taken, self._taken + len(chosen)))
            self._taken += len(chosen)
        else:
            ids = [int(index[row]) for row in chosen]
        for row, number_, problem in zip(chosen, ids, self.problems(ids)):
            self._problems[row], self._index[row], self._ended[row] = problem, number_, False
            self.transcripts[row] = opening(problem)
            obs[row] = problem.prompt if isinstance(problem.prompt, str) else list(problem.prompt)
            first[row] = True
        self.obs, self.first = obs, first
        return list(obs)

    def _make_room(self) -> None:
        """Empty rows, as many as `num` says now."""
        if len(self._problems) != self.num:
            blank = [False] * self.num
            self._problems, self._index, self._ended = [Problem("")] * self.num, [0] * self.num, blank
            self.transcripts, self.obs = [[] for _ in blank], [""] * self.num
            self.first, self.correct, self.failed = (torch.zeros(self.num, dtype=torch.bool) for _ in range(3))
            self.answer = torch.zeros(self.num, dtype=torch.int64)

    def _twin(self, rows: int, seed: int) -> Task:
        twin = copy.copy(self)  # the same problems, of which it takes others where it is not told which
        twin._seat(rows)
        twin._taken = seed << 31
        return twin

    def snapshot(self) -> list[Any]:
        if self.obs is None:
            raise RunError(f"{self.spec.name} must be reset before it can be taken back to where it is")
        first = self.first.tolist()
        rows = zip(self._index, self.transcripts, self.obs, self._ended, first, strict=True)
        return [dict(zip(("index", "transcript", "obs", "ended", "first"), row)) for row in rows]

    def restore(self, values: Sequence[Any], rows: Tensor | None = None) -> Obs:
        where = self._where(values, rows)
        if len(where) < self.num and len(self._problems) != self.num:
            raise RunError(f"{self.spec.name} must be reset as a whole first and whenever its number of rows changes")
        self._make_room()
        obs, self.first = list(self.obs or []), self.first.clone()
        problems = self.problems([value["index"] for value in values])
        for row, value, problem in zip(where.tolist(), values, problems):
            self._problems[row], self._index[row], self._ended[row] = problem, value["index"], value["ended"]
            self.transcripts[row], obs[row], self.first[row] = list(value["transcript"]), value["obs"], value["first"]
        self.obs = obs
        return list(obs)

    def step(self, record: Mapping[str, Any]) -> Step:
        texts, ended, active = self._turn(record)
        reward = torch.zeros(self.num)
        terminated, truncated = (torch.zeros(self.num, dtype=torch.bool) for _ in range(2))
        correct, failed = (torch.zeros(self.num, dtype=torch.bool) for _ in range(2))
        answer = torch.zeros(self.num, dtype=torch.int64)
        obs: list[Any] = []
        judged: dict[int, float | Unscored] = {}  # rows whose episode ends here and is scored: by the verifier
        asked = [row for row in range(self.num) if active[row] and (ended[row] or self.score_truncated)]
        said = ranks.shared(asked, lambda rows: {row: self._answered(row, texts[row]) for row in rows})
        for row, text in enumerate(texts):
            problem, transcript = self._problems[row], self.transcripts[row]
            feedback: str | None = None
            if not active[row]:
                obs.append("" if isinstance(problem.prompt, str) else [])
                continue
            if row not in said:
                truncated[row], reward[row] = True, self.truncated_reward
            else:
                feedback, value, over, answer[row], failure = said[row]
                if failure is not None:
                    failed[row], self.failure = True, failure
                reward[row] = value
                if over:
                    correct[row] = value >= 1 - 1e-6
                    (terminated if ended[row] else truncated)[row] = True
                    judged[row] = Unscored(self.failure) if failed[row] else float(value)
            new = [] if feedback is None else [{"role": "user", "content": feedback}]
            self.transcripts[row] = [*transcript, {"role": "assistant", "content": text}, *new]
            obs.append((feedback or "") if isinstance(problem.prompt, str) else new)
        if self.rewards is not None:
            by = self.rewards
            scored = ranks.shared([*judged], lambda rows: self._judge(by, {row: judged[row] for row in rows}))
            for row, parts in scored.items():
                given = self.rewards.total(parts)
                failed[row] = isinstance(given, Unscored)
                reward[row] = 0.0 if isinstance(given, Unscored) else given
                if isinstance(given, Unscored):
                    self.failure = given.why
            self._components = component_facts(scored, self.num, len(self.rewards.names))
        correct &= ~failed & self.verifiable
        over_now = (terminated | truncated).tolist()
        self._ended = [now if on else was for now, on, was in zip(over_now, active, self._ended)]
        self.obs, self.first, self.correct, self.failed = obs, torch.zeros_like(terminated), correct, failed
        self.answer = answer
        return list(obs), reward, terminated, truncated

    def _answered(self, row: int, text: str) -> Answered:
        return answered(self, self._problems[row], self.transcripts[row], text)

    def columns(self, problem: Problem) -> dict[str, Any]:
        """What reward functions get of a problem besides prompt and completion."""
        return {"answer": problem.answer, "solution": problem.solution, "level": problem.level, **problem.columns}

    def _turn(self, record: Mapping[str, Any]) -> tuple[list[str], list[bool], list[bool]]:
        name = self.spec.name
        if self.obs is None or len(self._problems) != self.num:
            raise RunError(f"{name} must be reset before its first step")
        playing = record.get("active")
        active = [True] * self.num if playing is None else [bool(value) for value in playing]
        stuck = [row for row in range(self.num) if active[row] and self._ended[row]]
        if stuck:
            row = stuck[0]
            raise RunError(f"row {row} of {name} has ended: it must be reset before it is stepped")
        if not self.scores:
            advice = "give --task.rewards module:function"
            raise UsageError(f"{name} has neither answers nor reward functions, so nothing can be scored: {advice}")
        texts = list(record["action"])
        if len(texts) != self.num or not all(isinstance(text, str) for text in texts):
            raise RunError(f"{name} takes {self.num} texts as its action, one for each row")
        ended = record.get("ended")
        flags = [True] * self.num if ended is None else [bool(value) for value in ended]
        if len(flags) != self.num:
            raise RunError(f"{name} takes one 'ended' for each of its {self.num} rows, not {len(flags)}")
        return texts, flags, active

    def _judge(self, rewards: Rewards, judged: Mapping[int, float | Unscored]) -> dict[int, tuple[Part, ...]]:
        """What each reward function says of the rows that are judged, of which the verifier says this."""
        if not judged:
            return {}
        prompts, completions, columns = [], [], []
        for row in judged:
            problem = self._problems[row]
            first, *later = self.transcripts[row][len(opening(problem)) :]
            if isinstance(problem.prompt, str):
                completions.append(problem.given + [first, *later][-1]["content"])
            else:
                completions.append([{**first, "content": problem.given + first["content"]}, *later])
            prompts.append(problem.prompt)
            columns.append(self.columns(problem))
        return dict(zip(judged, rewards.parts(prompts, completions, columns, list(judged.values()))))

    def extra_state(self) -> dict[str, Any]:
        return {
            "num": self.num,
            "taken": self._taken,
            "index": list(self._index),
            "ended": list(self._ended),
            "obs": self.obs,
            "transcripts": self.transcripts,
            "first": self.first.tolist(),
            "correct": self.correct.tolist(),
            "answer": self.answer.tolist(),
            "failed": self.failed.tolist(),
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.num, self._taken = state["num"], state["taken"]
        self._index, self._ended = list(state["index"]), list(state["ended"])
        self._problems = self.problems(self._index)
        self.obs, self.transcripts = state["obs"], [list(messages) for messages in state["transcripts"]]
        for name in ("first", "correct", "failed"):
            setattr(self, name, torch.tensor(state[name], dtype=torch.bool))
        self.answer = torch.tensor(state["answer"], dtype=torch.int64)
