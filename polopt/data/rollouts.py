"""Windows of experience: every row goes on where the last window ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core import signals
from polopt.core.batch import Batch
from polopt.core.errors import RunError
from polopt.core.ledger import Ledger
from polopt.core.modules import device_of
from polopt.data.base import DONE_BEFORE, Acts, Carry, Source, add_action_mask, check_facts, keep_rows, put, to_env
from polopt.data.teams import as_rows, playing
from polopt.tasks.base import Task


class Rollouts(Source):
    """Windows [N, T] of `steps` = T steps in each of the N rows of a task.

    Keys of a window: all that the actor records, the task's facts, and obs, reward, terminated, truncated, first (the
    decision is the first of its episode), final_obs (the true successor; to be read where an episode ends and in the
    last column) and action_mask, if the observation has one. `ledger.env_steps` grows by N a step.

    Of `AgentRows` the teams are stepped: N in the window counts agents, in the ledger and in `episodes` teams.

    The actor gets observations on its own device, and the window is there too. A task that is `resident` stays where it
    is: nothing is copied to the host, or asked of the device, at a step, and once in a window who has ended.

    When another source has played the task in between, its episodes are not those of the last window: all rows begin
    anew. For two sources side by side, give each rows of its own.

    Attributes:
        stagger: steps over which the first episodes are cut, evenly over the rows: they are truncated there, and count
            as no episodes. So rows that begin together do not stay together. Not for rows of a team.
    """

    stagger: int = 0

    def __init__(self, task: Task, steps: int, ledger: Ledger | None = None) -> None:
        task.check_played()
        self.task = task
        self.steps = steps
        self.ledger = ledger if ledger is not None else Ledger()
        self._carry: Carry | None = None
        self._returns = torch.zeros(task.environments, dtype=torch.float64)  # of the present episodes
        self._lengths = torch.zeros(task.environments, dtype=torch.int64)
        self._ended: list[Tensor] = []  # returns and lengths [2, n] of n episodes
        self._steps: list[tuple[Tensor, Tensor]] = []  # of this window: the same of all rows [2, N], and who ended [N]
        self._cuts = 0  # steps of `stagger` that are done

    def next(self, actor: Acts) -> Batch:
        columns: dict[str, list[Any]] = {}
        for step in self.each(actor):
            for name, value in step.items():
                columns.setdefault(name, []).append(value)
        return as_rows(self.task, self._window(columns, device_of(actor)))

    def each(self, actor: Acts) -> Iterator[dict[str, Any]]:
        """The steps of the next window, one after the other: its columns, each [N, ...], on the actor's device or the
        task's. Of `AgentRows` they are those of its teams."""
        device = device_of(actor)
        task, actor = playing(self.task, actor)
        self._steps = []  # of a window that was broken off
        if task.obs is None or (task.player is not self and not task.first.all()):
            task.reset()
        task.player = self
        if self._carry is not None:  # one that was loaded comes on the CPU
            self._carry = {name: put(value, device) for name, value in self._carry.items()}
        if task.resident:
            self._returns, self._lengths = self._returns.to(task.device), self._lengths.to(task.device)
        for number in range(self.steps):
            signals.check()
            yield self._step(task, actor, device, number)
        self._settle()

    @torch.no_grad()
    def _step(self, task: Task, actor: Acts, device: torch.device, number: int) -> dict[str, Any]:
        obs, first = put(task.obs, device), task.first
        if task.resident or first.numpy().any():  # also true where a resume had to start an episode anew
            keep = ~first
            self._carry = keep_rows(self._carry, put(keep, device))
            self._returns *= keep
            self._lengths *= keep
        record, self._carry = actor.act(obs, self._carry)
        given = {**record, "action": to_env(actor, obs, record["action"])}
        cut = self._due(first) if self._cuts < self.stagger else None
        next_obs, reward, terminated, truncated = task.flow(given, cut) if task.resident else task.step(given)
        if cut is not None:
            truncated = truncated | (cut & ~terminated)
        self.ledger.env_steps += task.num
        done = terminated | truncated
        ends = task.resident or bool(done.numpy().any())
        self._count(reward, done if cut is None else done & ~cut, ends)
        if number == 0:
            check_facts(task, record)
        step = {
            **task.facts,
            **record,
            "obs": obs,
            "reward": reward,
            "terminated": terminated,
            "truncated": truncated,
            "first": first,
            "final_obs": put(next_obs, device),
        }
        if ends and not task.resident:
            task.reset(done)
        return step

    def episodes(self) -> list[tuple[float, int]]:
        if not self._ended:
            return []
        returns, lengths = torch.cat(self._ended, 1)
        self._ended = []
        return list(zip(returns.tolist(), lengths.long().tolist()))

    def forget(self) -> None:
        """Drops the carry, but not what was done before: needed when another kind of actor goes on in the same
        episodes."""
        self._carry = {name: value for name, value in (self._carry or {}).items() if name == DONE_BEFORE} or None

    def _count(self, reward: Tensor, ended: Tensor, some: bool) -> None:
        """One step [N] of all episodes, of which it may be that `some` end with it."""
        self._returns += reward
        self._lengths += 1
        if some:
            self._steps.append((torch.stack([self._returns, self._lengths.double()]), ended))

    def _settle(self) -> None:
        """What ended in this window."""
        if self._steps:
            numbers, ended = (torch.cat(column, -1) for column in zip(*self._steps))
            self._ended.append(numbers[:, ended].cpu())
            self._steps = []
            self.ledger.episodes += self._ended[-1].shape[1]

    def _due(self, like: Tensor) -> Tensor:
        """Where `stagger` ends the first episode with this step, bool [N]."""
        due = torch.arange(len(like), device=like.device) * self.stagger // len(like) == self._cuts
        self._cuts += 1
        return due

    def _window(self, columns: dict[str, list[Any]], device: torch.device) -> Batch:
        """Every column is joined once: appending references costs a step least, and no later step writes into it."""
        window: dict[str, Any] = {}
        for name, column in columns.items():
            if len(column) != self.steps:
                raise RunError(f"the actor recorded '{name}' in {len(column)} of {self.steps} steps")
            joined = column[0].unsqueeze(1) if self.steps == 1 else torch.stack(column, dim=1)
            window[name] = put(joined, device)
        add_action_mask(window)
        where = None if device.type == "cpu" else device
        return TensorDict(window, batch_size=[self.task.environments, self.steps], device=where)

    def extra_state(self) -> dict[str, Any]:
        carry = {f"carry.{name}": value for name, value in (self._carry or {}).items()}
        ended = torch.cat([torch.zeros(2, 0, dtype=torch.float64), *self._ended], 1).T
        state = {"returns": self._returns.clone(), "lengths": self._lengths.clone(), "ended": ended.contiguous()}
        return {**state, **carry, "plays": self.task.player is self, "cuts": self._cuts}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._returns = state["returns"].clone()
        self._lengths = state["lengths"].clone()
        ended = torch.as_tensor(state["ended"], dtype=torch.float64)  # of earlier versions a list of pairs
        self._ended = [ended.reshape(len(state["ended"]), 2).T]
        self._cuts = state.get("cuts", 0)
        carry = {name[6:]: value for name, value in state.items() if name.startswith("carry.")}
        self._carry = carry or None
        if state["plays"]:
            self.task.player = self
