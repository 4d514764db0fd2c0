"""Replay: a ring of plain tensors, n-step returns and prioritised sampling on top."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch, align_left, flat, nested
from polopt.core.errors import CheckpointError, RunError, UsageError
from polopt.core.state import Blob, Stateful, content_key
from polopt.data.blocks import Block
from polopt.data.priority import Priority, SumTree
from polopt.data.relabel import Weights
from polopt.data.successors import successors

SHARD = 65_536
SHARD_BYTES = 2**28
NOT_STORED = ("final_obs", "index", "weight", "mask")


class Replay(Stateful):
    """The last `capacity` transitions; once full, the oldest is overwritten. Needs no environment.

    Args:
        capacity: number of transitions.
        seed: of its own generator, which draws the samples and is saved; None takes one from torch's.
        n_step: rewards summed in a sample; with more than 1, samples get the discounted sum of up to n rewards, the
            observation after them as next_obs, and `discount` = discount^k of the k <= n rewards summed. The sum ends
            at the end of the episode and at the newest transition of the row.
        summed: the keys that are summed so, of those that are stored; every other one is that of the first decision.
        discount: needed for n_step > 1; when given, samples carry `discount` (not zeroed at termination). A stored
            key "discount" (of chunks) takes its place.
        steps: with n_step > 1, samples also carry these keys of each transition summed: "steps" [B, n], beside which
            "factor" is what its reward counts with, for rewards that are computed at sampling (`polopt.data.relabel`):
            0 beyond a sum that ends early, where its last transition stands.
        priority: prioritised sampling; samples carry `importance` [B] and `index`, for `update_priorities`.
        weights: how often each is drawn, by its age; uniformly without.
        unread: keys that are not stored, as nothing reads them.
        directory: keep the tensors in (deleted) files there, mapped into memory: for more than memory holds.
        name: of its blocks in a checkpoint.

    The first batch added fixes keys, shapes and dtypes; of later batches only these keys are kept, and a missing one
    is an error.
    """

    learned = False
    saved = ("added", "rows")

    def __init__(
        self,
        capacity: int,
        *,
        seed: int | None = None,
        n_step: int = 1,
        discount: float | None = None,
        summed: tuple[str, ...] = ("reward", "rewards"),
        steps: tuple[str, ...] = (),
        priority: Priority | None = None,
        weights: Weights | None = None,
        unread: tuple[str, ...] = (),
        directory: str | Path | None = None,
        name: str = "replay",
        shard: int = SHARD,
    ) -> None:
        if capacity < 1 or n_step < 1:
            raise UsageError(f"a replay needs a capacity and n_step of at least 1, not {capacity} and {n_step}")
        if n_step > 1 and discount is None:
            raise UsageError("n-step returns need a discount")
        if priority is not None and weights is not None:
            raise UsageError("a replay draws by priority or by age, not by both")
        self.capacity = capacity
        self.n_step = n_step
        self.discount = discount
        self.summed = summed
        self.steps = steps
        self.priority = priority
        self.weights = weights
        self.unread = unread
        self.name = name
        self.generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())) if seed is None else seed)
        self.added = 0  # transitions ever added; the newest is added - 1, in slot (added - 1) % capacity
        self.rows = 0  # rows that were interleaved: the successor of transition i is i + rows
        self._directory = directory
        self._shard = shard
        self._left_out = {*NOT_STORED, *unread}
        self._blocks: list[Block] = []
        self._columns: dict[str, Tensor] = {}  # views of them by path, "obs" or "obs/position"
        self._deep = False  # some path is of two parts
        self._keys: dict[int, str] = {}  # names of the full shards, until they are written again
        self._tree = SumTree(capacity) if priority else None
        self._highest = 1.0  # priority of what is new

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, batch: Batch) -> None:
        """Appends transitions (obs, action, reward, next_obs, terminated, truncated and whatever else there is).

        `batch` is [B], in order of time, or [N, T]: N rows whose decisions follow each other (final_obs serves where
        next_obs is missing).
        """
        rows = batch.batch_size[0] if batch.batch_dims == 2 else 1
        columns = flat({key: value for key, value in batch.items() if key not in self._left_out})
        mask = batch.get("mask", None)
        if batch.batch_dims == 2:
            if batch.get("next_obs", None) is None:
                columns |= flat({"next_obs": successors(batch)})
            if rows > 1:  # time first: neighbours in time are `rows` apart
                columns = {path: value.transpose(0, 1) for path, value in columns.items()}
            columns = {path: value.flatten(0, 1) for path, value in columns.items()}
            mask = None if mask is None else mask.T.flatten()
        elif batch.batch_dims != 1:
            raise ValueError(f"a replay takes batches [B] or [N, T], not {list(batch.batch_size)}")
        self._store(columns, rows, mask)

    def append(self, step: Mapping[str, Any]) -> None:
        """Appends one transition of each of N rows, columns [N, ...] by key: what `add` does with a window [N, 1]."""
        columns = flat({key: value for key, value in step.items() if key not in self._left_out})
        if "next_obs" not in step:
            columns |= flat({"next_obs": step["final_obs"]})
        self._store(columns, len(step["reward"]), step.get("mask"))

    def _store(self, columns: dict[str, Tensor], rows: int, mask: Tensor | None) -> None:
        """Appends columns [B, ...] in order of time, of `rows` that are interleaved; those that `mask` [B] has."""
        if mask is not None:
            if self.n_step > 1:
                raise UsageError("n-step returns need whole rows, not padded episodes with a mask")
            columns = {path: value[mask] for path, value in columns.items()}
        if self.n_step > 1 and self.rows not in (0, rows):
            raise UsageError(f"n-step returns need the same number of rows each time: {self.rows} before, {rows} now")
        self.rows = rows
        count = len(next(iter(columns.values())))
        if count > self.capacity:
            columns = {path: value[-self.capacity :] for path, value in columns.items()}
            self.added, count = self.added + count - self.capacity, self.capacity
        if self.n_step == 1:
            columns.pop("first", None)  # only sums over several transitions need it
        if not self._columns:
            self._build(columns)
        missing = self._columns.keys() - columns.keys()
        if missing:
            raise RunError(f"the replay stores '{min(missing)}', which this batch does not have")
        start = self.added % self.capacity
        before_end = min(count, self.capacity - start)
        for block in self._blocks:
            value = block.joined(columns)
            block.rows.narrow(0, start, before_end).copy_(value if before_end == count else value[:before_end])
            if before_end < count:
                block.rows[: count - before_end] = value[before_end:]
        self.added += count
        if self._keys or self._tree is not None:
            slots = torch.arange(start, start + count) % self.capacity
            for shard in (slots // self._shard).unique().tolist() if self._keys else ():
                self._keys.pop(shard, None)
            if self._tree is not None:
                self._tree[slots] = torch.full((count,), self._highest, dtype=torch.float64)

    def sample(self, batch_size: int) -> Batch:
        """Draws `batch_size` transitions [B] with replacement; `index` is the number of each (0 = first ever added)."""
        if not self.added:
            raise RunError("the replay is empty")
        importance = None
        if self.weights is not None:
            oldest = self.added - len(self)
            slots = self.weights.draw(oldest, len(self), batch_size, self.generator) % self.capacity
        elif self._tree is None or self._tree.total == 0:  # where all have priority 0, each is as good as another
            slots = torch.randint(len(self), (batch_size,), generator=self.generator)
            importance = None if self._tree is None else torch.ones(batch_size)
        else:
            assert self.priority is not None
            slots, probability = self._tree.sample(batch_size, self.generator)
            importance = (len(self) * probability) ** -self.priority.correction
            importance = (importance / importance.max()).to(torch.get_default_dtype())
        batch = self._take(slots)
        if importance is not None:
            batch["importance"] = importance
        return TensorDict(batch, batch_size=[batch_size])

    def whole(self) -> Batch:
        """Every transition [B] as a sample has it, oldest first."""
        index = torch.arange(self.added - len(self), self.added)
        return TensorDict(self._take(index % self.capacity), batch_size=[len(self)])

    def become(self, other: Replay) -> None:
        """Holds a copy of what `other` holds and nothing else, without priorities; numbers count from its oldest."""
        index = torch.arange(other.added - len(other), other.added) % other.capacity
        kept = {path: column.index_select(0, index) for path, column in other._columns.items()}
        if len(index) > self.capacity:
            raise RunError(f"a replay of {self.capacity:,} transitions cannot hold the {len(index):,} of another")
        if not self._columns:
            self._build(kept)
        for path, column in self._columns.items():
            column[: len(index)] = kept[path]
        self.added, self.rows, self._keys = len(index), other.rows, {}

    def update_priorities(self, index: Tensor, priority: Tensor) -> None:
        """Sets the priorities (absolute TD errors) of the transitions `index`; those that are gone are ignored.

        Raises RunError for a priority that is not finite.
        """
        if self._tree is None or self.priority is None:
            raise UsageError("this replay samples uniformly: it has no priorities")
        index = index.cpu()  # of a batch that was put beside its learner
        alive = index >= self.added - self.capacity
        value = priority.detach().to("cpu", torch.float64)[alive].abs() + self.priority.floor
        value = value**self.priority.exponent
        if not torch.isfinite(value).all():
            raise RunError(f"a priority of the replay is {float(value[~torch.isfinite(value)][0])}")
        if len(value):
            self._highest = max(self._highest, float(value.max()))
            self._tree[index[alive] % self.capacity] = value

    def _take(self, slots: Tensor) -> dict[str, Any]:
        newest = self.added - 1
        full = self.added > self.capacity
        index = newest - (newest - slots) % self.capacity if full else slots  # the number of the one in each slot
        ends = slots
        overrides: dict[str, Any] = {}
        if self.n_step > 1:
            overrides, ends = self._n_step(index)
        elif self.discount is not None and "discount" not in self._columns:
            overrides["discount"] = torch.full(slots.shape, self.discount)
        taken: dict[str, Any] = {}
        for block in self._blocks:
            taken |= block.columns(block.rows.index_select(0, ends if block.last else slots))
        return {**(nested(taken) if self._deep else taken), **overrides, "index": index}

    def _n_step(self, index: Tensor) -> tuple[dict[str, Any], Tensor]:
        """The sums of discounted rewards [B, ...] and the product of the discounts [B], and the slot [B] of the last
        transition summed."""
        steps = index.unsqueeze(1) + self.rows * torch.arange(self.n_step)  # [B, n]
        slots = steps % self.capacity
        stop = self._columns["terminated"][slots] | self._columns["truncated"][slots]
        if "first" in self._columns:  # an episode may also have been broken off by a resume
            stop[:, :-1] |= self._columns["first"][slots][:, 1:]
        counts = steps < self.added
        counts[:, 1:] &= stop[:, :-1].cumsum(1) == 0  # nothing after an end
        last = counts.sum(1, keepdim=True) - 1
        if "discount" in self._columns:
            discount = self._columns["discount"][slots]
        else:
            discount = torch.full_like(self._columns["reward"][slots], 1.0 if self.discount is None else self.discount)
        discount = discount.cumprod(1)
        before = torch.cat([torch.ones_like(discount[:, :1]), discount[:, :-1]], 1)
        sums: dict[str, Any] = {"discount": discount.gather(1, last).squeeze(1)}
        if self.steps:
            reached = slots.gather(1, torch.minimum(torch.arange(self.n_step), last))  # then the last one of the sum
            chosen = [path for path in self._columns if path.partition("/")[0] in self.steps]
            whole = {path: self._columns[path][reached] for path in chosen}
            factor = torch.where(counts, before, 0.0)
            sums["steps"] = TensorDict(nested(whole) | {"factor": factor}, batch_size=list(slots.shape))
        for name in self.summed:
            if name in self._columns:
                value = self._columns[name][slots]  # [B, n, ...]
                weighted = torch.where(align_left(counts, value), value * align_left(before, value), 0.0)
                sums[name] = weighted.sum(1)
        return sums, slots.gather(1, last).squeeze(1)

    def _build(self, columns: dict[str, Tensor]) -> None:
        groups: dict[Any, dict[str, Tensor]] = {}
        for path, value in columns.items():
            last = self.n_step > 1 and path.partition("/")[0] in ("next_obs", "terminated", "truncated")
            alone = path if value.dim() > 2 else ""  # pictures stay contiguous
            groups.setdefault((value.dtype, last, alone), {})[path] = value
        self._blocks = [
            Block(self.capacity, group, last=last, directory=self._directory, name=self.name)
            for (_, last, _), group in groups.items()
        ]
        found = {path: column for block in self._blocks for path, column in block.columns(block.rows).items()}
        self._columns = {path: found[path] for path in columns}
        self._deep = nested(columns).keys() != columns.keys()
        each = sum(block.rows[0].numel() * block.rows.element_size() for block in self._blocks)
        self._shard = max(1, min(self._shard, SHARD_BYTES // max(each, 1)))  # images: smaller blocks

    # State: full shards are immutable blocks, written once; the shard being filled is saved as it is.

    def extra_state(self) -> dict[str, Any]:
        if not self.added:
            return {}
        size = self._shard
        filling = (self.added % self.capacity) // size
        state: dict[str, Any] = {"highest": self._highest}
        if self._tree is not None:
            state["priorities"] = self._tree.leaves[: len(self)].clone()
        for shard in range(-(-len(self) // size)):
            low, high = shard * size, min((shard + 1) * size, len(self))
            whole = high == min((shard + 1) * size, self.capacity)
            if whole and (shard != filling or self.added % self.capacity == low):
                state[f"shard.{shard}"] = self._blob(shard, low, high)
            else:
                for path, column in self._columns.items():
                    state[f"tail.{shard}.{path}"] = column[low:high].clone()
        return state

    def _blob(self, shard: int, low: int, high: int) -> Blob:
        def tensors() -> dict[str, Tensor]:
            return {path: column[low:high] for path, column in self._columns.items()}

        if shard not in self._keys:
            self._keys[shard] = content_key(f"{self.name}-{shard}", tensors())
        return Blob(self._keys[shard], tensors)

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._highest = state.get("highest", 1.0)
        self._keys = {}
        self._tree = SumTree(self.capacity) if self.priority else None
        if not state:
            return  # saved while it was empty
        pieces: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            kind, _, rest = name.partition(".")
            if kind == "shard":
                pieces[int(rest)] = dict(value.tensors())
            elif kind == "tail":
                number_text, _, path = rest.partition(".")
                pieces.setdefault(int(number_text), {})[path] = value
        for columns in pieces.values():
            for path in columns.keys() & self._left_out:  # earlier versions stored them
                del columns[path]
        if not self._columns:
            self._build(pieces[0])
        size = self._shard
        for number, columns in pieces.items():
            if columns.keys() != self._columns.keys():
                raise CheckpointError(f"block {number} of the replay has other keys than this run stores")
            for path, value in columns.items():
                self._columns[path][number * size : number * size + len(value)] = value
        if self._tree is not None:
            self._tree[torch.arange(len(self))] = state["priorities"]
