"""A team as rows: every agent of every copy is a row, so that any method trains a policy which all agents share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.tasks.base import Obs, Step, Task

OF_TEAMS = ("reward", "terminated", "truncated", "first", "mask", "index", "group")
"""Keys of a batch that sources write once for a whole team."""

OF_AGENTS = ("rewards", "alive", "terminations", "truncations")
"""Facts [N, V] of a team that become an agent's own reward, mask, terminated and truncated."""


def per_agent(batch: Batch, spec: Spec) -> Batch:
    """A batch [N, T] of teams of V agents, as sources give it, as one of agents: [N, V, T], time last again.

    Also for batches [B] without time, which become [B, V]. What the team shares is repeated for each agent. `reward` is
    the agent's own (the fact "rewards", if there is one), `terminated` and `truncated` say that the agent's episode
    ends, and `mask` that the agent was still alive when it decided (with the fact "alive"). These facts are left out.
    Raises ValueError for a key that has no axis of agents where it should.
    """
    agents = spec.agents
    shape = [batch.batch_size[0], agents, *batch.batch_size[1:]]

    def taken(name: str, value: Any, shared: bool) -> Any:
        if not isinstance(value, Tensor):
            parts = {key: taken(key, part, shared or key in spec.shared) for key, part in value.items()}
            return TensorDict(parts, batch_size=shape)
        if shared:
            return value.unsqueeze(1).expand(len(value), agents, *value.shape[1:])
        if value.shape[batch.batch_dims : batch.batch_dims + 1] != (agents,):
            raise ValueError(
                f"'{name}' of shape {tuple(value.shape)} has no axis of {agents} agents, and is not shared"
            )
        return value.movedim(batch.batch_dims, 1)

    rows = {name: taken(name, value, name in OF_TEAMS or name in spec.shared) for name, value in batch.items()}
    found = {name: rows.pop(name) for name in OF_AGENTS if name in rows}
    if "rewards" in found:
        rows["reward"] = found["rewards"]
    if "terminations" in found:
        team_terminated, team_truncated = rows["terminated"], rows["truncated"]
        rows["terminated"] = found["terminations"] | (team_terminated & ~found["truncations"])
        rows["truncated"] = found["truncations"] | (team_truncated & ~found["terminations"])
    if "alive" in found:
        rows["mask"] = found["alive"] & rows["mask"] if "mask" in rows else found["alive"]
    return TensorDict(rows, batch_size=shape, device=batch.device)


class AgentRows(Task):
    """The V agents of each of the N copies of the team task `joint` as N V rows, copy by copy and agent by agent.

    A row has the observation, reward and end of its agent (see `per_agent`). When an agent ends before its team, its
    row stands still: the fact "mask" of its steps is False, and they are not to be learned from. A reset begins those
    teams anew that it asks all rows of; a row that is asked for alone waits for the others. `first` is True in the
    first step of a team.

    Sources step `joint` itself, with the actor behind `polopt.data.teams.Together`: environment steps, episodes,
    returns and evaluations are those of teams.

    Raises UsageError for a task without a team, and when the agents have different spaces.
    """

    def __init__(self, joint: Task) -> None:
        spec = joint.spec
        if spec.agents == 1:
            raise UsageError(f"{spec.name} has one agent: there is no team to take apart")
        self.joint = joint
        self.agents = spec.agents
        facts = {name: shape if name in spec.shared else shape[1:] for name, shape in spec.facts.items()}
        self.spec = replace(spec.agent, facts={name: facts[name] for name in facts if name not in OF_AGENTS})
        self.num = joint.num * self.agents

    @property
    def environments(self) -> int:
        return self.joint.num

    @property
    def obs(self) -> Obs | None:  # type: ignore[override]
        return None if self.joint.obs is None else self.rows_of(self.joint.obs)

    @property
    def first(self) -> Tensor:  # type: ignore[override]
        return self.joint.first.repeat_interleave(self.agents)

    @property
    def player(self) -> object:
        return self.joint.player

    @player.setter
    def player(self, source: object) -> None:
        self.joint.player = source

    @property
    def exact_restore(self) -> bool:  # type: ignore[override]
        return self.joint.exact_restore

    @property
    def restore_note(self) -> str:  # type: ignore[override]
        return self.joint.restore_note

    def reset(self, rows: Tensor | None = None, index: Tensor | None = None) -> Obs:
        teams = None if rows is None else rows.reshape(-1, self.agents).all(1)
        if teams is None or teams.any():
            self.joint.reset(teams, None if index is None else index[:: self.agents])
        assert self.obs is not None
        return self.obs

    def step(self, record: Mapping[str, Tensor]) -> Step:
        obs, reward, terminated, truncated = self.joint.step({"action": self.teams_of(record["action"])})
        facts = {name: fact.to(reward.device) if name in OF_AGENTS else fact for name, fact in self.joint.facts.items()}
        step = {**facts, "reward": reward, "terminated": terminated, "truncated": truncated, "next_obs": obs}
        rows = self.rows(TensorDict(step, batch_size=[self.joint.num]))
        self.facts = {name: rows[name] for name in (*self.spec.facts, "mask") if name in rows.keys()}
        return rows["next_obs"], rows["reward"], rows["terminated"], rows["truncated"]

    def rows(self, batch: Batch) -> Batch:
        """A batch of teams [N, ...], as sources give it, as one of agents [N V, ...]."""
        batch = per_agent(batch, self.joint.spec)
        return batch.reshape(batch.batch_size[0] * self.agents, *batch.batch_size[2:])

    def rows_of(self, obs: Obs) -> Obs:
        """Observations of teams [N, V, ...] as those of agents [N V, ...]."""
        if isinstance(obs, Tensor):
            return obs.flatten(0, 1)
        return self.rows(TensorDict({"obs": obs}, batch_size=[len(obs)]))["obs"]

    def teams_of(self, value: Tensor) -> Tensor:
        """What agents have [N V, ...] as what teams have: [N, V, ...]."""
        return value.reshape(-1, self.agents, *value.shape[1:])

    def twin(self, rows: int) -> AgentRows:
        """`rows` further agents, in teams of their own. Raises UsageError unless they make whole teams."""
        if rows % self.agents:
            raise UsageError(f"{self.spec.name} has teams of {self.agents}, which {rows} rows do not make")
        return AgentRows(self.joint.twin(rows // self.agents))

    def snapshot(self) -> list[Any]:
        """Where each row's team is, once for each of its agents."""
        return [value for value in self.joint.snapshot() for _ in range(self.agents)]

    def restore(self, values: Sequence[Any], rows: Tensor | None = None) -> Obs:
        """Takes whole teams back. Raises UsageError when `rows` names a part of one."""
        chosen = None if rows is None else rows.reshape(-1, self.agents)
        if chosen is not None and (chosen.any(1) != chosen.all(1)).any():
            raise UsageError(f"the agents of {self.spec.name} are taken back together, as a team")
        self.joint.restore(values[:: self.agents], None if chosen is None else chosen[:, 0])
        assert self.obs is not None
        return self.obs

    def render(self) -> list[Any]:
        return self.joint.render()

    def close(self) -> None:
        self.joint.close()
