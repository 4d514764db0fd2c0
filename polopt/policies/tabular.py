"""Policies that are tables: a softmax with one logit for each state and action, and mixtures of probability tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.policies.base import Record, Scores
from polopt.policies.categorical import CategoricalPolicy

if TYPE_CHECKING:
    from polopt.tasks.tabular import TabularMDP


def tabular_spaces(spec: Spec) -> tuple[spaces.Discrete, spaces.Discrete] | None:
    """The spaces of step and state of a tabular task's observations; None for other tasks."""
    keys = spec.obs.spaces if isinstance(spec.obs, spaces.Dict) else {}
    state, step = keys.get("state"), keys.get("step")
    return (step, state) if isinstance(state, spaces.Discrete) and isinstance(step, spaces.Discrete) else None


class Table(nn.Module):
    """Rows of a table, zero at first: int64 states [...] -> [..., outputs] of [S, outputs], or observations with "step"
    and "state" of [H, S, outputs], a tabular task's."""

    recurrent = False

    def __init__(self, sizes: tuple[int, ...], outputs: int, start: int = 0) -> None:
        super().__init__()
        self.start = start
        self.values = nn.Parameter(torch.zeros(*sizes, outputs))

    def forward(self, obs: Obs) -> Tensor:
        if not isinstance(obs, Tensor):
            return self.values[obs["step"], obs["state"]]
        return self.values[obs - self.start if self.start else obs]


class TabularSoftmaxPolicy(CategoricalPolicy):
    """softmax(table[obs]): uniform at first; the table is `policy.table`. Otherwise a `CategoricalPolicy`.

    The table is [S, K] where observations are Discrete, and [H, S, K] in tabular tasks, whose observations are "state"
    and "step". Raises UsageError for other observations.
    """

    family = "categorical policy"

    def __init__(self, spec: Spec) -> None:
        found = tabular_spaces(spec)
        if found is not None and len(spec.obs.spaces) == 2:  # type: ignore[attr-defined]
            step, state = found
            table = Table((int(step.n) - 1, int(state.n)), spec.num_actions)  # nothing is decided at step H
        elif isinstance(spec.obs, spaces.Discrete):
            table = Table((int(spec.obs.n),), spec.num_actions, int(spec.obs.start))
        else:
            raise UsageError(
                f"a tabular softmax needs a Discrete observation space, or state and step; {spec.name} has {spec.obs}"
            )
        super().__init__(spec, table)

    @property
    def table(self) -> nn.Parameter:
        assert isinstance(self.net, Table)
        return self.net.values


def draw_index(probability: Tensor) -> Tensor:
    """A sample [...] from probabilities [..., K], by the inverse distribution function; never one of probability 0."""
    below = probability.cumsum(-1)
    uniform = torch.rand((*below.shape[:-1], 1), dtype=below.dtype, device=below.device)
    return (below <= uniform * below[..., -1:]).sum(-1).clamp_max(below.shape[-1] - 1)


def noisy_table(table: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """The table [H, S, A], but a random action in a share `noise` of the (h, s): deterministic where the table is."""
    actions = table.shape[-1]
    random = torch.randint(actions, table.shape[:-1], generator=generator)
    replaced = torch.rand(table.shape[:-1], generator=generator) < noise
    return torch.where(replaced.unsqueeze(-1), torch.eye(actions, dtype=table.dtype)[random], table)


def soft_table(table: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """The table [H, S, A] with probability 1 - noise, else a uniform action: it tries everything. Draws nothing."""
    return (1 - noise) * table + noise / table.shape[-1]


class TabularMixture(Scores):
    """Probability tables for tasks with a step, one of which is drawn at the start of each episode and then followed.

    Buffers, float64: `table` [M, H, S, A], uniform at first, and `weight` [M], the probability of each table, all on
    the first at first. With M = 1 it is a plain non-stationary policy. Methods write the tables with `set`; nothing is
    trained. Observations are {"state": int64 [...], "step": int64 [...]}.

    Records `component` (int64, which table), `action` and `log_prob`. Scores are those of the table that was drawn,
    given by `component`. Greedy acting follows the most probable table and its most probable actions.

    Raises UsageError for spaces that are not those of a tabular task.
    """

    family = "mixture of tables"
    table: Tensor
    weight: Tensor

    def __init__(self, spec: Spec, components: int = 1) -> None:
        super().__init__()
        found = tabular_spaces(spec)
        if found is None or not spec.discrete:
            raise UsageError(f"a mixture of tables needs a tabular task with 'state' and 'step'; {spec.name} is none")
        step, state = found
        self.spec = spec
        horizon = int(step.n) - 1  # the successor of the last decision is at step H
        shape = (components, horizon, int(state.n), spec.num_actions)
        self.register_buffer("table", torch.full(shape, 1.0 / spec.num_actions, dtype=torch.float64))
        self.register_buffer("weight", torch.eye(1, components, dtype=torch.float64)[0])

    def set(self, table: Tensor, weight: Tensor) -> None:
        """Takes over tables [M, H, S, A] and their probabilities [M]."""
        self.table.copy_(table)
        self.weight.copy_(weight)

    def value(self, mdp: TabularMDP) -> float:
        """Exact expected return of an episode, the draw of the table included."""
        pairs = zip(self.weight.tolist(), self.table)
        return sum(weight * float(mdp.value(table)[0, mdp.start]) for weight, table in pairs if weight > 0)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        rows = obs["state"].shape[0]
        if greedy:
            component = self.weight.argmax().expand(rows)
        else:
            component = draw_index(self.weight.expand(rows, -1))
        if carry:  # holds component + 1, since a row of zeros is a new episode
            component = torch.where(carry["component"] > 0, carry["component"] - 1, component)
        probability = self.table[component, obs["step"], obs["state"]]
        action = probability.argmax(-1) if greedy else draw_index(probability)
        log_prob = probability.gather(-1, action.unsqueeze(-1))[..., 0].log()
        record = {"component": component, "action": action, "log_prob": log_prob.to(torch.get_default_dtype())}
        return record, {"component": component + 1}

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        return self._probability(batch).gather(-1, batch["action"].unsqueeze(-1)).squeeze(-1).log()

    def entropy(self, batch: Batch) -> Tensor:
        return torch.special.entr(self._probability(batch)).sum(-1)

    def _probability(self, batch: Batch) -> Tensor:
        return self.table[batch["component"], batch["obs", "step"], batch["obs", "state"]].to(torch.get_default_dtype())
