"""Whole episodes from chosen starts, for evaluation and for methods that compare episodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.ledger import Ledger
from polopt.data.base import Acts, Carry, Source, add_action_mask, device_of, keep_rows, put
from polopt.tasks.base import Task


class Episodes(Source):
    """`episodes` starts times `samples` episodes of each: a batch [R, T], padded to the longest, in order of starts.

    Keys: those of `Rollouts`, and mask (the decision exists), index (int64 [R, T], id of the start: equal ids start
    equally), group (int64 [R, T], 0 .. episodes - 1: rows with the same start). Padding is zero.

    Args:
        starts: ids of the starts, the same in every call; None takes new ones each time.
        greedy: act without exploration.
        keep: names of the keys to store (None: all); evaluation needs ("reward",) only.
        max_steps: longer episodes are cut and count as truncated.

    All rows of the task play in parallel; a row without work is parked in an episode that is neither recorded nor
    counted. The next batch begins with fresh resets.
    """

    saved = ("taken",)

    def __init__(
        self,
        task: Task,
        episodes: int = 10,
        *,
        starts: Sequence[int] | None = None,
        samples: int = 1,
        greedy: bool = False,
        ledger: Ledger | None = None,
        keep: Sequence[str] | None = None,
        max_steps: int = 100_000,
    ) -> None:
        self.task = task
        self.count = episodes if starts is None else len(starts)
        self.starts = None if starts is None else list(starts)
        self.samples = samples
        self.greedy = greedy
        self.ledger = ledger if ledger is not None else Ledger()
        self.taken = 0  # starts used so far
        self._keep = None if keep is None else {*keep, "terminated", "truncated"}
        self._max_steps = max_steps
        self._ended: list[tuple[float, int]] = []

    def next(self, actor: Acts) -> Batch:
        task, total, device = self.task, self.count * self.samples, device_of(actor)
        starts = self.starts or list(range(self.taken, self.taken + self.count))
        self.taken += 0 if self.starts else self.count
        index = torch.tensor(starts).repeat_interleave(self.samples)  # [R]
        job = torch.arange(task.num)  # what each row plays
        job[job >= total] = -1  # parked
        upcoming = min(task.num, total)
        begin = torch.zeros(total, dtype=torch.int64)  # step of the loop at which each episode began
        length = torch.zeros(total, dtype=torch.int64)
        played = torch.zeros(total, dtype=torch.int64)  # the row that played it
        played[job[job >= 0]] = torch.arange(task.num)[job >= 0]
        steps: list[dict[str, Any]] = []
        with torch.no_grad():
            obs = put(task.reset(index=index[job.clamp_min(0)]), device)
            carry: Carry | None = None
            while (job >= 0).any():
                first = task.first
                record, carry = actor.act(obs, carry, greedy=self.greedy)
                action = actor.env_action(record["action"])
                next_obs, reward, terminated, truncated = task.step({**record, "action": action})
                next_obs = put(next_obs, device)
                busy = job >= 0
                length[job[busy]] += 1
                self.ledger.env_steps += int(busy.sum())
                cut = busy.clone()
                cut[busy] = length[job[busy]] >= self._max_steps
                truncated = truncated | (cut & ~terminated)
                step = {
                    **record,
                    "obs": obs,
                    "reward": reward,
                    "terminated": terminated,
                    "truncated": truncated,
                    "first": first,
                    "final_obs": next_obs,
                }
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
                    next_obs = put(task.reset(done, index=index[job.clamp_min(0)]), device)
                    carry = keep_rows(carry, put(~done, device))
                obs = next_obs
        return self._batch(steps, begin, length, played, index, device)

    def episodes(self) -> list[tuple[float, int]]:
        ended, self._ended = self._ended, []
        return ended

    def _batch(
        self,
        steps: list[dict[str, Any]],
        begin: Tensor,
        length: Tensor,
        played: Tensor,
        index: Tensor,
        device: torch.device,
    ) -> Batch:
        offset = torch.arange(int(length.max()))
        mask = offset < length.unsqueeze(1)  # [R, T]
        when = (begin.unsqueeze(1) + offset).clamp_max(len(steps) - 1)
        batch: dict[str, Any] = {}
        for name in steps[0]:
            column = torch.stack([step[name] for step in steps])  # [steps, N, ...]
            batch[name] = _gather(column, when.to(column.device), played.to(column.device), mask.to(column.device))
        shape = mask.shape
        batch["mask"] = mask
        batch["index"] = index.unsqueeze(1).expand(shape)
        batch["group"] = torch.arange(self.count).repeat_interleave(self.samples).unsqueeze(1).expand(shape)
        add_action_mask(batch)
        if "reward" in batch:
            returns = batch["reward"].double().sum(1)
            self._ended += [(float(value), int(count)) for value, count in zip(returns, length)]
        return TensorDict(batch, batch_size=shape, device=None if device.type == "cpu" else device)

    def extra_state(self) -> dict[str, Any]:
        return {"ended": [list(pair) for pair in self._ended]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._ended = [(float(value), int(count)) for value, count in state["ended"]]


def _gather(column: Any, when: Tensor, played: Tensor, mask: Tensor) -> Any:
    """The steps `when` [R, T] of the rows `played` [R] of a column [steps, N, ...], zero where the mask is False."""
    if not isinstance(column, Tensor):
        parts = {key: _gather(value, when, played, mask) for key, value in column.items()}
        return TensorDict(parts, batch_size=mask.shape)
    value = column[when, played.unsqueeze(1)]
    return value * mask.reshape(*mask.shape, *[1] * (value.dim() - 2))
