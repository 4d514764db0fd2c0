"""Policies that are told what to do: a goal, a descriptor, a preference or a return to come, beside the observation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torch import Tensor

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of, dtype_of
from polopt.core.spec import Spec
from polopt.networks.encoders import Obs, first_leaf, is_dict, leading_shape
from polopt.policies.base import Actor, Enumerates, Record
from polopt.policies.wrappers import Wrapper

CONTEXT, BEGUN = "context", "begun"


def told(spec: Spec, size: int) -> Spec:
    """The spec of a policy or critic that also reads a context [size]: its observations are `join(obs, context)`.

    Raises UsageError for a task whose observation has an entry of that name.
    """
    parts = dict(spec.obs.spaces) if isinstance(spec.obs, spaces.Dict) else {"obs": spec.obs}
    if CONTEXT in parts:
        raise UsageError(
            f"the observation of {spec.name} has an entry '{CONTEXT}', which is what a policy is told here"
        )
    box = spaces.Box(-np.inf, np.inf, (size,), np.float32)
    return replace(spec, obs=spaces.Dict({**parts, CONTEXT: box}), env_obs=None)


def join(obs: Obs, context: Tensor) -> Obs:
    """Observations [...] beside contexts [..., size], as `told` describes them."""
    if isinstance(obs, TensorDictBase):
        return obs.clone(False).set(CONTEXT, context)
    if is_dict(obs):
        return {**obs, CONTEXT: context}
    return TensorDict({"obs": obs, CONTEXT: context}, batch_size=context.shape[:-1])


class Conditioned(Wrapper):
    """Acts as `actor`, which reads a context beside the observation (it was built for `told(spec, size)`).

    The context of a row is taken when its episode begins and kept in the carry until it ends; the record has it, so
    that batches do. `given` says which one those that begin from then on have; before the first call it is what the
    actor reads as 0.

    Args:
        actor: built for `told(spec, size)`.
        spec: the spec of the task itself, whose observations this one is given.
        center, extent: the actor reads (context - center) / extent, each [size], of what is given, and so has the
            record.
    """

    rows: Tensor
    center: Tensor
    extent: Tensor

    def __init__(self, actor: Actor, spec: Spec, center: Tensor | None = None, extent: Tensor | None = None) -> None:
        super().__init__(actor)
        self.spec = spec
        self.size = int(actor.spec.obs[CONTEXT].shape[0])  # type: ignore[index]
        center = torch.zeros(self.size) if center is None else center
        extent = torch.ones(self.size) if extent is None else extent
        for name, value in (("rows", torch.zeros(1, self.size)), ("center", center), ("extent", extent)):
            self.register_buffer(name, value.to(device_of(actor)), persistent=False)

    def given(self, context: Tensor | Sequence[float]) -> Conditioned:
        """What episodes that begin from here on are told: one context [size], or one for each row, [N, size]; returns
        itself. The episode that `predict` follows begins anew.

        Raises UsageError for a context of another size.
        """
        rows = torch.as_tensor(context, dtype=dtype_of(self), device=device_of(self))
        if rows.shape[-1:] != (self.size,) or rows.dim() > 2:
            raise UsageError(
                f"this policy is told {self.size} numbers, [{self.size}] or [N, {self.size}], not {list(rows.shape)}"
            )
        self.rows = (rows.reshape(-1, self.size) - self.center) / self.extent
        self.reset()
        return self

    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        count, carry = leading_shape(self.spec.obs, obs)[0], dict(carry or {})
        if len(self.rows) not in (1, count):
            raise UsageError(f"this policy was given contexts for {len(self.rows)} rows, and there are {count}")
        begun = carry.pop(BEGUN, torch.zeros(count, dtype=torch.bool, device=first_leaf(obs).device))
        context = self.rows.expand(count, -1)
        context = torch.where(begun.unsqueeze(-1), carry.pop(CONTEXT, context), context)
        record, after = self.actor.act(join(obs, context), carry or None, greedy=greedy)
        return {**record, CONTEXT: context}, {**after, CONTEXT: context, BEGUN: torch.ones_like(begun)}


class Preferring(Conditioned, Enumerates):
    """Acts by weights of objectives, its context, which are at least 0 and sum to 1; at first they are equal.

    It scores batches whose observations have the weights (`join`), as its actor does.
    """

    def __init__(self, actor: Enumerates, spec: Spec) -> None:
        super().__init__(actor, spec)
        self.actor: Enumerates
        self.family = actor.family
        self.prefer([1.0] * self.size)

    def prefer(self, weights: Sequence[float]) -> Preferring:
        """Acts from here on for these weights of the objectives, of which only the proportions count; returns itself.

        Raises UsageError for another number of weights, for negative ones, and where all are 0.
        """
        values = torch.as_tensor(weights, dtype=dtype_of(self))
        if values.shape != (self.size,) or not bool((values >= 0).all()) or not 0.0 < float(values.sum()) < math.inf:
            raise UsageError(
                f"there are {self.size} objectives, and a preference has a weight of at least 0 for each of them"
            )
        self.given(values / values.sum())
        return self

    def logits(self, batch: Batch) -> Tensor:
        return self.actor.logits(batch)

    def probabilities(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.actor.probabilities(batch)

    def log_prob(self, batch: Batch, noise: Batch | None = None) -> Tensor:
        return self.actor.log_prob(batch, noise)

    def entropy(self, batch: Batch) -> Tensor:
        return self.actor.entropy(batch)

    def kl(self, batch: Batch, other: Any) -> Tensor:
        return self.actor.kl(batch, other.actor)
