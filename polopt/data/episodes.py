"""Whole episodes from chosen starts, for evaluation and for methods that compare episodes.

Playing and collating are separate: `Episodes.play` runs the loop and returns `Played`, a `collate` makes it a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core import signals
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.ledger import Ledger
from polopt.core.modules import device_of
from polopt.core.scoring import SCORES, scoring
from polopt.data.base import Acts, Carry, Source, add_action_mask, check_facts, keep_rows, put, to_env
from polopt.data.teams import as_rows, playing
from polopt.data.tokens import LEFT, stack
from polopt.tasks.base import Task


class Draws(Protocol):
    """What a sampler of starts does; see `polopt.data.samplers`."""

    def draw(self, count: int) -> list[int]: ...


@dataclass(frozen=True)
class Played:
    """What the loop played: all its steps, and where the R episodes are in them.

    Attributes:
        steps: one dict a step of the loop, values [N, ...] for the N rows of the task: all that the actor recorded, the
            task's facts, obs and final_obs (unless they are texts), reward, terminated, truncated, first.
        begin: int64 [R], the step at which each episode began.
        length: int64 [R], its number of steps.
        row: int64 [R], the row of the task that played it.
        index: int64 [R], id of its start.
        group: int64 [R], 0 .. starts - 1: episodes with the same start.
        device: where the batch belongs.
    """

    steps: list[dict[str, Any]]
    begin: Tensor
    length: Tensor
    row: Tensor
    index: Tensor
    group: Tensor
    device: torch.device

    def when(self) -> tuple[Tensor, Tensor]:
        """Step of the loop [R, T] of the T-th decision of each episode, and which of them exist (bool [R, T])."""
        offset = torch.arange(int(self.length.max()))
        exists = offset < self.length.unsqueeze(1)
        return (self.begin.unsqueeze(1) + offset).clamp_max(len(self.steps) - 1), exists


def pad_steps(played: Played) -> Batch:
    """A batch [R, T] of whole episodes, padded with zeros to the longest, with mask, index and group [R, T]."""
    when, mask = played.when()
    batch: dict[str, Any] = {}
    for name in played.steps[0]:
        column = stack([step[name] for step in played.steps], left=name in LEFT)  # [steps, N, ...]
        where = column.device
        batch[name] = _gather(column, when.to(where), played.row.to(where), mask.to(where))
    shape, device = mask.shape, played.device
    batch["mask"] = mask
    batch["index"] = played.index.unsqueeze(1).expand(shape)
    batch["group"] = played.group.unsqueeze(1).expand(shape)
    add_action_mask(batch)
    return TensorDict(batch, batch_size=shape, device=None if device.type == "cpu" else device)


class Episodes(Source):
    """`episodes` starts times `samples` episodes of each: a batch [R, T], padded to the longest, in order of starts.

    Keys: those of `Rollouts`, and mask (the decision exists), index (int64 [R, T], id of the start: equal ids start
    equally), group (int64 [R, T], 0 .. episodes - 1: rows with the same start). Padding is zero.

    Args:
        starts: ids of the starts, the same in every call; None takes new ones each time.
        sampler: draws the ids of the starts anew in every call, in place of `starts`.
        collate: makes the batch; `pad_steps` unless given.
        greedy: act without exploration.
        keep: names of the keys to store (None: all); evaluation needs ("reward",) only.
        max_steps: longer episodes are cut and count as truncated; None takes the task's `longest`.
        rows: most rows of an elastic task that play at once; None plays all episodes at once.

    All rows of the task play in parallel; a row without work is parked in an episode that is neither recorded nor
    counted. The next batch begins with fresh resets.

    An elastic task (a text task) gets as many rows as there are episodes, and its parked rows cost no generation: the
    actor sees only the others, and the task is told by `record["active"]` (bool [N]). Observations that are lists of
    texts are not stored.
    """

    saved = ("taken",)

    def __init__(
        self,
        task: Task,
        episodes: int = 10,
        *,
        starts: Sequence[int] | None = None,
        samples: int = 1,
        sampler: Draws | None = None,
        collate: Callable[[Played], Batch] = pad_steps,
        greedy: bool = False,
        ledger: Ledger | None = None,
        keep: Sequence[str] | None = None,
        max_steps: int | None = None,
        rows: int | None = None,
    ) -> None:
        if starts is not None and sampler is not None:
            raise UsageError("episodes begin at given starts or at those of a sampler, not both")
        task.check_played()
        self.task = task
        self.count = episodes if starts is None else len(starts)
        self.starts = None if starts is None else list(starts)
        self.samples = samples
        self.sampler = sampler
        self.collate = collate
        self.greedy = greedy
        self.ledger = ledger if ledger is not None else Ledger()
        self.rows = rows
        self.taken = 0  # starts used so far
        self.cut = 0  # episodes of the last batch that were cut at `max_steps`
        self._keep = None if keep is None else {*keep, "terminated", "truncated"}
        self._max_steps = max_steps
        self._ended: list[tuple[float, int]] = []

    def next(self, actor: Acts) -> Batch:
        played = self.play(actor)
        batch = self.collate(played)
        if "reward" in batch.keys():
            self._ended += self.summaries(batch, played)
        return as_rows(self.task, batch)

    def summaries(self, batch: Batch, played: Played) -> list[tuple[float, int]]:
        """(return, length) of each episode of the batch."""
        returns = batch["reward"].double().sum(1)
        return [(float(value), int(count)) for value, count in zip(returns, played.length)]

    def next_starts(self) -> list[int]:
        """The ids of the starts of the next batch; a sampler, or the count of used ones, moves on."""
        if self.starts:
            return self.starts
        self.taken += self.count
        if self.sampler is not None:
            return self.sampler.draw(self.count)
        return list(range(self.taken - self.count, self.taken))

    def start(self, task: Task, index: Tensor, rows: Tensor | None = None) -> Any:
        """Begins the episodes `index` [N] in the rows of the mask `rows` [N] (None: all); observations of all rows."""
        return task.reset(rows, index=index)

    def play(self, actor: Acts) -> Played:
        """Plays the next episodes to their ends."""
        total, device = self.count * self.samples, device_of(actor)
        task, actor = playing(self.task, actor)
        index = torch.tensor(self.next_starts()).repeat_interleave(self.samples)  # [R]
        elastic = getattr(task, "elastic", False)
        if elastic:
            task.num = min(total, self.rows or total)
        job = torch.arange(task.num)  # what each row plays
        job[job >= total] = -1  # parked
        upcoming = min(task.num, total)
        begin = torch.zeros(total, dtype=torch.int64)  # step of the loop at which each episode began
        length = torch.zeros(total, dtype=torch.int64)
        played = torch.zeros(total, dtype=torch.int64)  # the row that played it
        played[job[job >= 0]] = torch.arange(task.num)[job >= 0]
        steps: list[dict[str, Any]] = []
        task.player = self
        self.cut, longest = 0, self._max_steps or task.longest
        with torch.no_grad(), scoring(self._keep is None or not self._keep.isdisjoint(SCORES)):
            obs = put(self.start(task, index[job.clamp_min(0)]), device)
            carry: Carry | None = None
            busy, live = job >= 0, job[job >= 0]  # the rows that play, and what they play
            while len(live):
                signals.check()
                first = task.first
                if elastic:
                    record, carry, action = _act_active(actor, obs, carry, busy, self.greedy)
                    record["active"] = busy
                else:
                    record, carry = actor.act(obs, carry, greedy=self.greedy)
                    action = to_env(actor, obs, record["action"])
                next_obs, reward, terminated, truncated = task.step({**record, "action": action})
                next_obs = put(next_obs, device)
                length[live] += 1
                self.ledger.env_steps += len(live)
                if len(steps) + 1 >= longest:  # no episode is longer than the loop
                    cut = busy.clone()
                    cut[busy] = length[live] >= longest
                    cut &= ~(terminated | truncated)
                    self.cut += int(cut.sum())
                    truncated = truncated | cut
                if not steps:
                    check_facts(task, record)
                step = {
                    **task.facts,
                    **record,
                    "obs": obs,
                    "reward": reward,
                    "terminated": terminated,
                    "truncated": truncated,
                    "first": first,
                    "final_obs": next_obs,
                }
                if elastic:
                    step = {k: v for k, v in step.items() if k != "active" and not isinstance(v, list)}
                steps.append(step if self._keep is None else {k: v for k, v in step.items() if k in self._keep})
                done = terminated | truncated
                if done.any():
                    for row in done.nonzero().flatten().tolist():
                        if job[row] < 0:
                            continue
                        self.ledger.episodes += 1
                        job[row] = upcoming if upcoming < total else -1
                        if upcoming < total:
                            begin[upcoming], played[upcoming] = len(steps), row
                            upcoming += 1
                    busy, live = job >= 0, job[job >= 0]
                    again = done & (job >= 0) if elastic else done
                    if again.any():
                        next_obs = put(self.start(task, index[job.clamp_min(0)], again), device)
                    carry = keep_rows(carry, put(~done, device))
                obs = next_obs
        group = torch.arange(self.count).repeat_interleave(self.samples)
        return Played(steps, begin, length, played, index, group, device)

    def episodes(self) -> list[tuple[float, int]]:
        ended, self._ended = self._ended, []
        return ended

    def extra_state(self) -> dict[str, Any]:
        return {"ended": [list(pair) for pair in self._ended]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._ended = [(float(value), int(count)) for value, count in state["ended"]]


def _act_active(
    actor: Acts, obs: Any, carry: Carry | None, busy: Tensor, greedy: bool
) -> tuple[dict[str, Tensor], Carry | None, Any]:
    """Acts in the rows where `busy` [N] is True; record and carry [N, ...] are zero in the others, texts are empty."""
    if busy.all():
        record, carry = actor.act(obs, carry, greedy=greedy)
        return dict(record), carry, to_env(actor, obs, record["action"])
    rows, count = busy.nonzero().flatten(), len(busy)

    def part(value: Any) -> Any:
        return [value[row] for row in rows.tolist()] if isinstance(value, list) else value[rows.to(value.device)]

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            texts = [""] * count
            for row, text in zip(rows.tolist(), value):
                texts[row] = text
            return texts
        return value.new_zeros(count, *value.shape[1:]).index_copy_(0, rows.to(value.device), value)

    seen = part(obs)
    some, after = actor.act(seen, carry and {k: part(v) for k, v in carry.items()}, greedy=greedy)
    action = whole(to_env(actor, seen, some["action"]))
    return {k: whole(v) for k, v in some.items()}, after and {k: whole(v) for k, v in after.items()}, action


def _gather(column: Any, when: Tensor, played: Tensor, mask: Tensor) -> Any:
    """The steps `when` [R, T] of the rows `played` [R] of a column [steps, N, ...], zero where the mask is False."""
    if not isinstance(column, Tensor):
        parts = {key: _gather(value, when, played, mask) for key, value in column.items()}
        return TensorDict(parts, batch_size=mask.shape)
    value = column[when, played.unsqueeze(1)]
    return value * mask.reshape(*mask.shape, *[1] * (value.dim() - 2))
