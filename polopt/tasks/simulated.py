"""Worlds written as functions on tensors: all rows step in one call, and all that is random is drawn at a start."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import align_left
from polopt.core.compiling import compiled
from polopt.core.errors import CheckpointError, RunError, UsageError, nearest
from polopt.tasks.base import EVALUATE, EVALUATE_INDEX, TRAIN, TRAIN_INDEX, Obs, Step, Task, start_seed
from polopt.tasks.luck import scrambled, scrambled_keys
from polopt.tasks.mechanics import Mechanics
from polopt.tasks.options import whole
from polopt.tasks.scripted import Scripted

State = dict[str, Tensor]
COMPILED = ("advance", "observe")


class Simulated(Task):
    """Rows of a world. A world sets `spec` in its constructor and defines `begin`, `advance` and `observe`, and `draw`
    unless all its luck comes from keys.

    They are functions of their arguments: they keep nothing, draw nothing but in `draw`, and write into no tensor. So
    everything else follows. Equal starts and equal actions give equal episodes, whatever the row, the other rows and
    the policy: policies that are compared from the same starts meet the same luck. A saved state, and a row that is
    taken back to where it was, go on bitwise. Twins and evaluations have draws of their own.

    An episode is truncated after `horizon` decisions; where the horizon belongs to the problem (`finite`), it
    terminates. The state is on `device`, with observations and facts. Of `step` reward and flags come on the CPU, for
    those who look at them; `flow` leaves them on the device, and begins rows anew without a look.

    Args:
        horizon: decisions of an episode, at most.
        device: where the world is.

    Attributes:
        levels: a table of settings, tensors [L, ...] by name: the start with number i has row i modulo L of each in
            place of what `draw` gives by that name. Empty: every start is drawn. May be set at any time, and is saved.
        differentiable: whether gradients of rewards and later states flow through `advance` to the actions, while no
            luck depends on these.
        behaviors: names of the scripted behaviors that `behave` knows.
        named: options that some names of the world stand for; others may be given beside them.
        state, time: where the rows are: tensors [N, ...] by name, and the decisions taken in each episode, int64 [N].
    """

    finite: bool = False
    differentiable: bool = False
    behaviors: tuple[str, ...] = ()
    named: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(
        self,
        num: int = 1,
        seed: int = 0,
        evaluation: bool = False,
        name: str = "this world",
        *,
        horizon: int = 100,
        device: str = "cpu",
    ) -> None:
        self.seed, self.evaluation, self.name = seed, evaluation, name
        self.horizon = whole("horizon", horizon, 1)
        self.device = torch.device(device)
        self.levels: State = {}
        self._generator = torch.Generator()
        self._seat(num)

    @classmethod
    def make(cls, name: str, num: int, seed: int, evaluation: bool, **options: Any) -> Task:
        return super().make(name, num, seed, evaluation, **{**cls.named.get(name, {}), **options})

    def _seat(self, num: int) -> None:
        """Rows that have begun no episode yet."""
        self.num = num
        self.state: State = {}
        self.time = torch.zeros(num, dtype=torch.int64, device=self.device)
        self.obs, self.facts = None, {}
        self.first = torch.ones(num, dtype=torch.bool)
        self._ended = torch.zeros(num, dtype=torch.bool)
        self._flowing = False
        self._starts = torch.zeros(num, dtype=torch.int64)  # episodes that each row began without being told which

    # What a world gives.

    def draw(self, generator: torch.Generator, index: int) -> State:
        """All that is random in one episode of one row, tensors on the CPU without a leading dimension; {} for nothing.

        Noise of every step is drawn here too, [horizon, ...], and `advance` takes the part of its time. `index` is the
        number of the start. A world of many rows does without: it keeps "key" in its state, from which `uniform` of
        `polopt.tasks.luck` draws for all rows at once.
        """
        return {}

    def begin(self, draws: State) -> State:
        """The first states [n, ...] of n episodes. `draws` is what `draw` gave, stacked, with `levels` in place, and
        "index" int64 [n], the number of each start, and "key" int64 [n], 64 random bits of each; what later steps
        need of them goes into the state."""
        raise NotImplementedError  # abstract

    def advance(self, state: State, time: Tensor, action: Tensor) -> tuple[State, Tensor, Tensor, State]:
        """One decision in every row: (state, reward [N], terminated bool [N], facts as `spec.facts` has them).

        `time` int64 [N] is the number of decisions before; actions are [N, A] of a Box, in the world's own units,
        int64 [N] or [N, D] else.
        """
        raise NotImplementedError  # abstract

    def observe(self, state: State, time: Tensor) -> Obs:
        """What is seen of the state: a tensor [N, ...], or a dict of them for a Dict space; floats in the default
        dtype."""
        raise NotImplementedError  # abstract

    def behave(self, behavior: str, state: State, time: Tensor) -> Tensor:
        """The actions of one of `behaviors`, as `advance` takes them. Its luck is drawn at the start like all other."""
        raise NotImplementedError  # abstract

    def mechanics(self, **known: float) -> Mechanics:
        """What is known of how its body moves, for methods that learn the rest; `known` are parameters of the model
        that differ from the world's own. A world that has it says in `spec.info["joints"]` how many joints there are.
        Raises UsageError, one sentence, for a world without."""
        raise UsageError(f"the mechanics of {self.spec.name} are not known, as those of the task pendulum are")

    # What every world has.

    @property
    def resident(self) -> bool:  # type: ignore[override]
        """On an accelerator, unless starts are drawn one by one, which the CPU does."""
        return self.device.type != "cpu" and type(self).draw is Simulated.draw

    def compile(self, **options: Any) -> None:
        for name in COMPILED:
            if name not in vars(self):
                setattr(self, name, compiled(getattr(self, name), **(options | {"fullgraph": False})))

    def _flags_on(self, device: torch.device | str) -> None:
        """Flags are where the last call was that needed them: `step` and `reset` look at them, `flow` does not."""
        self._flowing = False
        self.first, self._ended, self._starts = (x.to(device) for x in (self.first, self._ended, self._starts))

    def reset(self, rows: Tensor | None = None, index: Tensor | None = None) -> Obs:
        self._flags_on("cpu")
        chosen = torch.ones(self.num, dtype=torch.bool) if rows is None else rows.cpu()
        if self.obs is None and not chosen.all():
            raise RunError(f"{self.spec.name} must be reset in all rows first")
        where = chosen.nonzero().flatten()
        if not len(where):
            return self._observe()
        if index is None:
            stream, numbers = EVALUATE if self.evaluation else TRAIN, where + self.num * self._starts[where]
            self._starts[where] += 1
        else:
            stream, numbers = EVALUATE_INDEX if self.evaluation else TRAIN_INDEX, index.cpu()[where]
        state = self._begun(stream, numbers)
        self._put(where, state, torch.zeros_like(where), torch.zeros_like(where).bool())
        if len(where) == self.num or self.obs is None:
            return self._observe()
        there = where.to(self.device)
        self.obs = renewed(self.obs, there, self.observe(state, self.time[there]))
        return self.obs

    def _begun(self, stream: int, numbers: Tensor) -> State:
        """The first states of the starts `numbers` [n]."""
        root = root_of(self.seed, stream)
        draws: State = {}
        if type(self).draw is not Simulated.draw:
            each = [
                self.draw(self._generator.manual_seed(scrambled((root << 32) + number)), number)
                for number in numbers.tolist()
            ]
            draws = {name: torch.stack([draw[name] for draw in each]) for name in each[0]}
        draws |= {name: table[(numbers % len(table)).to(table.device)] for name, table in self.levels.items()}
        draws |= {"index": numbers, "key": scrambled_keys((root << 32) + numbers)}
        return self.begin({name: value.to(self.device) for name, value in draws.items()})

    def start_of(self, *index: int) -> State:
        """The first states [n, ...] of the n starts with these numbers, as `reset(index=...)` takes them."""
        return self._begun(EVALUATE_INDEX if self.evaluation else TRAIN_INDEX, torch.tensor(index))

    def _put(self, where: Tensor, state: State, time: Tensor, ended: Tensor) -> None:
        """Sets the rows `where` [n]: their states, times and ends [n, ...]. Tensors that were handed out stay."""
        self._flags_on("cpu")
        if len(where) == self.num:
            self.state = state
        elif len(where):
            there = where.to(self.device)
            self.state = {
                name: value if one_table(value, state[name]) else value.index_copy(0, there, state[name])
                for name, value in self.state.items()
            }
        self.time = self.time.index_copy(0, where.to(self.device), time.to(self.device))
        self._ended = self._ended.index_copy(0, where, ended)
        self.first = self.first.index_copy(0, where, time == 0)

    def _observe(self) -> Obs:
        obs = self.observe(self.state, self.time)
        self.obs = TensorDict(obs, batch_size=[self.num]) if isinstance(obs, dict) else obs
        return self.obs

    def _check_begun(self) -> None:
        if self.obs is None:
            raise RunError(f"{self.spec.name} must be reset before its first step")
        if self._ended.any():
            row = int(self._ended.int().argmax())
            raise RunError(f"row {row} of {self.spec.name} has ended: it must be reset before it is stepped")

    def step(self, record: Mapping[str, Tensor]) -> Step:
        self._flags_on("cpu")
        self._check_begun()
        action = record["action"].to(self.device)
        self.state, reward, over, self.facts = self.advance(self.state, self.time, action)
        late = (self.time >= self.horizon - 1).cpu()
        self.time = self.time + 1
        over = over.cpu()
        terminated = over | late if self.finite else over
        truncated = late & ~terminated
        self._ended = terminated | truncated
        self.first = torch.zeros_like(terminated)
        return self._observe(), reward.to("cpu", torch.get_default_dtype()), terminated, truncated

    def flow(self, record: Mapping[str, Tensor], cut: Tensor | None = None) -> Step:
        if not self._flowing:  # else no row has ended
            self._check_begun()
            self._flags_on(self.device)
            self._flowing = True
        self.state, reward, over, self.facts = self.advance(self.state, self.time, record["action"].to(self.device))
        late = self.time >= self.horizon - 1
        self.time = self.time + 1
        terminated = over | late if self.finite else over
        truncated = (late if cut is None else late | cut) & ~terminated
        seen = self._observe()
        self._begin_anew(terminated | truncated)
        return seen, reward.to(torch.get_default_dtype()), terminated, truncated

    def _begin_anew(self, rows: Tensor) -> None:
        """The next start in the rows [N] where the mask is True: drawn for all of them, and taken where it belongs."""
        stream, numbers = EVALUATE if self.evaluation else TRAIN, torch.arange(self.num, device=self.device)
        fresh = self._begun(stream, numbers + self.num * self._starts)
        self._starts = self._starts + rows
        self.state = {
            name: value if one_table(value, fresh[name]) else torch.where(align_left(rows, value), fresh[name], value)
            for name, value in self.state.items()
        }
        self.time = torch.where(rows, 0, self.time)
        self.first, self._ended = rows, torch.zeros_like(rows)
        self._observe()

    def _twin(self, rows: int, seed: int) -> Task:
        twin = copy.copy(self)
        for name in COMPILED:  # for the constants of this one
            vars(twin).pop(name, None)
        twin.seed, twin.levels, twin._generator = seed, dict(self.levels), torch.Generator()
        twin._seat(rows)
        return twin

    def snapshot(self) -> list[Any]:
        if self.obs is None:
            raise RunError(f"{self.spec.name} must be reset before it can be taken back to where it is")
        time, ended = self.time.tolist(), self._ended.tolist()
        return [
            {"state": {name: value[row] for name, value in self.state.items()}, "time": time[row], "ended": ended[row]}
            for row in range(self.num)
        ]

    def restore(self, values: Sequence[Any], rows: Tensor | None = None) -> Obs:
        where = self._where(values, rows)
        if len(where):
            names = values[0]["state"]
            state = {name: torch.stack([value["state"][name] for value in values]).to(self.device) for name in names}
            time, ended = (torch.tensor([value[key] for value in values]) for key in ("time", "ended"))
            self._put(where, state, time, ended)
        return self._observe()

    def put_back(self, rows: Tensor, state: State) -> Obs:
        """The rows where the mask `rows` [N] is True begin the episode again that began with these of `state` [N, ...].
        Returns the observation of all rows."""
        where = rows.nonzero().flatten()
        there = where.to(self.device)
        first = {name: value[there] for name, value in state.items()}
        self._put(where, first, torch.zeros_like(where), torch.zeros_like(where).bool())
        return self._observe()

    def scripted(self, behavior: str) -> Scripted:
        """An actor that behaves so in this world; it sees the state. Raises UsageError for a name that it lacks."""
        if behavior not in self.behaviors:
            hint = nearest(behavior, self.behaviors) or ": it has none"
            raise UsageError(f"{self.spec.name} has no behavior '{behavior}'{hint}")
        return Scripted(self, behavior)

    def extra_state(self) -> dict[str, Any]:
        self._flags_on("cpu")
        state = {"time": self.time.clone(), "starts": self._starts.clone(), "ended": self._ended.clone()}
        state |= {f"level.{name}": value.clone() for name, value in self.levels.items()}
        return state | {f"state.{name}": value.clone() for name, value in self.state.items()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if len(state["time"]) != self.num:
            raise CheckpointError(f"it has {len(state['time'])} rows of {self.spec.name} and this run has {self.num}")
        self.time = state["time"].to(self.device)
        self._starts, self._ended = state["starts"].cpu().clone(), state["ended"].cpu()
        self.first = self.time.cpu() == 0
        found = {name: value.to(self.device) for name, value in state.items() if "." in name}
        self.state = {name[6:]: value for name, value in found.items() if name.startswith("state.")}
        self.levels = {name[6:]: value for name, value in found.items() if name.startswith("level.")}
        if self.state:
            self._observe()


def one_table(value: Tensor, other: Tensor) -> bool:
    """Whether all rows of both are one row of the same tensor, expanded: then there is nothing to copy."""
    return value.stride()[:1] == other.stride()[:1] == (0,) and value.data_ptr() == other.data_ptr()


@functools.lru_cache
def root_of(seed: int, stream: int) -> int:
    """What all starts of a stream derive from."""
    return start_seed(seed, [stream])


def renewed(obs: Any, there: Tensor, seen: Any) -> Any:
    """Observations of all rows, where the rows `there` [n] are `seen`."""
    if isinstance(obs, Tensor):
        return obs.index_copy(0, there, seen)
    parts = {name: renewed(obs[name], there, seen[name]) for name in seen}
    return TensorDict(parts, batch_size=obs.batch_size)
