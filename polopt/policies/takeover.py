"""Actors in which several have a say: a base that is corrected, an expert that takes over, one of many that is chosen.

As in `polopt.policies.wrappers` they promise nothing but to act: what is trained is one of the actors that they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.core.batch import align_left
from polopt.core.errors import UsageError
from polopt.core.scoring import SCORES
from polopt.core.spec import Spec
from polopt.core.state import Stateful
from polopt.networks.encoders import Obs, first_leaf, is_dict
from polopt.optim.copies import duplicate, renew
from polopt.policies.base import Actor, Record
from polopt.policies.boxes import rescale, to_unit
from polopt.policies.categorical import draw
from polopt.policies.overseers import Overseer
from polopt.policies.wrappers import Wrapper


class Corrected(Wrapper):
    """Shifts the actions of `actor` by `correction(obs, action)` [N, A], in the units of the stored action, greedy or
    not; what leaves [-1, 1] is clamped if the policy acts there. Where the shift is 0 the action is that of `actor`.

    The correction belongs to this policy: it is evaluated, saved and loaded with it. The record has only the action and
    `base_action`. Raises UsageError for discrete actions.
    """

    def __init__(self, actor: Actor, correction: nn.Module) -> None:
        super().__init__(actor)
        check_box(actor.spec, "corrected")
        self.correction = correction

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        record, after = self.actor.act(obs, carry, greedy=greedy)
        action = record["action"] + self.correction(obs, record["action"])
        return {"action": action.clamp(-1.0, 1.0) if self.unit else action, "base_action": record["action"]}, after


class Residual(Wrapper):
    """What `actor`, the base, would do plus a small correction that sees it: clamp(base_action + scale * correction),
    in units of [-1, 1] between `low` and `high` (Ankile et al. 2025, arXiv 2509.19301).

    The base may be of any class and have any memory, of which nothing is differentiated: its parameters are frozen.
    `correction` is an actor for `Residual.inner(spec)`, whose observation is that of the task with "base_action".
    Acting adds normal noise of standard deviation `std` to the scaled correction; greedy adds none, and takes the mode
    of both.

    Args:
        low, high: [A], what -1 and 1 are in the environment's units; by default the bounds of the space. A base that
            reaches its bounds needs room: `widened` makes some around the range of data.

    The record has `action`, `base_action` and nothing else. Raises UsageError for discrete actions and without bounds.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        base: Actor,
        correction: Actor,
        *,
        scale: float,
        std: float = 0.0,
        low: Tensor | None = None,
        high: Tensor | None = None,
    ) -> None:
        super().__init__(base)
        check_box(base.spec, "corrected")
        base.requires_grad_(False)
        self.correction = correction
        self.scale = scale
        self.std = std
        self.unit = True
        space: Any = base.spec.action
        for name, given, bound in (("low", low, space.low), ("high", high, space.high)):
            value = torch.as_tensor(bound.reshape(-1) if given is None else given, dtype=torch.get_default_dtype())
            if not value.isfinite().all():
                raise UsageError(f"actions are corrected between bounds, and {base.spec.name} has {space}")
            self.register_buffer(name, value.clone())

    @staticmethod
    def inner(spec: Spec) -> Spec:
        """The spaces of the correction: what it sees, and what it does, in [-1, 1]."""
        seen = dict(spec.obs.spaces) if isinstance(spec.obs, spaces.Dict) else {"obs": spec.obs}
        unit = spaces.Box(-1.0, 1.0, (spec.action_dim,), np.float32)
        return replace(spec, obs=spaces.Dict({**seen, "base_action": unit}), action=unit, env_obs=None)

    @staticmethod
    def seen(obs: Obs, base_action: Tensor) -> TensorDict:
        """The observation of the correction, [..., A] beside [...]."""
        parts = {key: obs[key] for key in obs.keys()} if is_dict(obs) else {"obs": obs}
        return TensorDict({**parts, "base_action": base_action}, batch_size=base_action.shape[:-1])

    def combine(self, base_action: Tensor, correction: Tensor) -> Tensor:
        """The action [..., A] of a base action and the correction's own [..., A], through which gradients flow."""
        return (base_action + self.scale * correction).clamp(-1.0, 1.0)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        record, after = self.actor.act(obs, carry, greedy=greedy)
        base = to_unit(self.actor.env_action(record["action"]).reshape(len(record["action"]), -1), self.low, self.high)
        change, _ = self.correction.act(self.seen(obs, base), greedy=greedy)
        action = base + self.scale * change["action"]
        if self.std and not greedy:
            action = action + self.std * torch.randn_like(action)
        return {"action": action.clamp(-1.0, 1.0), "base_action": base}, after

    def env_action(self, action: Tensor, **how: Any) -> Tensor:
        space: Any = self.spec.action
        inside = rescale(action, self.low, self.high).reshape(*action.shape[:-1], *space.shape)
        low, high = (torch.as_tensor(bound).to(inside) for bound in (space.low, space.high))
        return inside.clamp(low, high)

    def own_action(self, action: Tensor) -> Tensor:
        space: Any = self.spec.action
        return to_unit(action.reshape(*action.shape[: action.dim() - len(space.shape)], -1), self.low, self.high)


def widened(low: Tensor, high: Tensor, share: float, least: float = 0.1) -> tuple[Tensor, Tensor]:
    """The range [A] to [A] of data with room for corrections: its half, of at least `least`, times 1 + `share`."""
    middle, half = 0.5 * (low + high), (0.5 * (high - low)).clamp_min(least) * (1.0 + share)
    return middle - half, middle + half


class Intervened(Wrapper):
    """The actor under the eyes of `overseer`, who may act in its place.

    With `hold` = n a takeover lasts n decisions; then the actor makes at least one by itself before the overseer is
    asked again (Luo et al. 2024, arXiv 2311.12996). With None the overseer is asked at every decision, and takes over
    for as long as it wants to.

    The record has what was done as `action`, what the actor would have done as `own_action`, and `takeover`, bool [N];
    nothing that scores the actor's own action. The carry remembers how long a takeover still lasts, and what the
    overseer keeps in mind. An overseer that `lets_go` may end its takeover before. Greedy acting does not change who is
    asked. Raises UsageError for a hold below 1.
    """

    def __init__(self, actor: Actor, overseer: Overseer, hold: int | None = None) -> None:
        super().__init__(actor)
        if hold is not None and hold < 1:
            raise UsageError(f"a takeover lasts 1 decision or more, not {hold}")
        self.overseer = overseer
        self.hold = hold

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        kept = carry or {}
        mine = {name: value for name, value in kept.items() if name != "held" and not name.startswith("overseer.")}
        record, after = self.actor.act(obs, mine or None, greedy=greedy)
        own = record["action"]
        before = {name[9:]: value for name, value in kept.items() if name.startswith("overseer.")}
        wants, instead, mind = self.overseer.watch(obs, own, before or None)
        after = {**after, **{f"overseer.{name}": value for name, value in mind.items()}}
        takes = wants
        if self.hold is not None:
            left = kept["held"] if "held" in kept else torch.zeros(len(own), dtype=torch.int64, device=own.device)
            goes_on = (left > 1) & wants if self.overseer.lets_go else left > 1
            takes = torch.where(left > 0, goes_on, wants)  # the last of `left` is the actor's own decision
            after["held"] = torch.where(left > 0, (left - 1) * goes_on, self.hold * wants)
        record = {name: value for name, value in record.items() if name not in SCORES}
        action = torch.where(align_left(takes, own), instead, own)
        return {**record, "action": action, "own_action": own, "takeover": takes}, after


class PerEpisode(Wrapper, Stateful):
    """Plays one of its members, drawn for each episode with the given chances: a mixture of occupancies.

    `keep` takes in `actor` as it is now; of more than `size` the oldest makes room. Before the first one it acts as
    `actor`. `weights(count) -> [count]` gives the chances of `count` members, oldest first, up to a factor; all are
    alike without.
    """

    saved = ("count",)

    def __init__(self, actor: Actor, size: int, weights: Callable[[int], Tensor] = torch.ones) -> None:
        super().__init__(actor)
        if size < 1:
            raise UsageError(f"a mixture of policies has room for 1 or more, not {size}")
        self.size = size
        self.weights = weights
        self.count = 0  # members that there were
        self.members = nn.ModuleList()

    def keep(self) -> None:
        """Takes in the actor as it is now."""
        self.count += 1
        self.rebuilt()
        renew(self.members[(self.count - 1) % self.size])

    def rebuilt(self) -> None:
        while len(self.members) < min(self.count, self.size):
            self.members.append(duplicate(self.actor).requires_grad_(False))

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        if not self.count:
            return self.actor.act(obs, carry, greedy=greedy)
        rest = dict(carry or {})
        like = first_leaf(obs)
        member = rest.pop("member", torch.zeros(len(like), dtype=torch.int64, device=like.device))
        here = len(self.members)
        chance = self.weights(self.count)[-here:].to(like.device)  # oldest first; the newest is the last
        drawn = draw(chance.log().expand(len(like), -1))
        oldest = self.count % self.size if here == self.size else 0
        member = torch.where(member > 0, member, 1 + (oldest + drawn) % here)  # 0: a new episode
        record, after = played(self.members, member - 1, obs, rest or None, greedy)
        return record, {**after, "member": member}


class Selector(Wrapper):
    """Does at every decision what the actor does that `choose(obs) -> [N]` names by its number, such as the one with
    the least value there. `chosen` [N] is recorded. Raises UsageError for recurrent actors, whose memory would be that
    of others."""

    def __init__(self, actors: Sequence[Actor], choose: Callable[[Obs], Tensor]) -> None:
        super().__init__(actors[-1])
        if any(actor.recurrent for actor in actors):
            raise UsageError("actors take turns at single observations: use feed-forward networks")
        self.actors = nn.ModuleList(actors)
        self.choose = choose

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        chosen = self.choose(obs)
        record, after = played(self.actors, chosen, obs, None, greedy)
        return {**record, "chosen": chosen}, after


def played(
    actors: Sequence[Any] | nn.ModuleList, place: Tensor, obs: Obs, carry: Record | None, greedy: bool
) -> tuple[Record, Record]:
    """What each row does with the actor of the number `place` [N]; only those that are named act."""
    joined: tuple[Record, Record] = {}, {}
    for number in place.unique().tolist():
        rows = place == number
        given = None if carry is None else {name: value[rows] for name, value in carry.items()}
        for whole, part in zip(joined, actors[number].act(_rows(obs, rows), given, greedy=greedy)):
            for name, value in part.items():
                if name not in whole:
                    whole[name] = value.new_zeros(len(place), *value.shape[1:])
                whole[name][rows] = value
    return joined


def _rows(obs: Obs, rows: Tensor) -> Obs:
    if isinstance(obs, dict):
        return {key: _rows(value, rows) for key, value in obs.items()}
    return obs[rows]


def check_box(spec: Spec, what: str) -> None:
    """Raises UsageError for actions that are not continuous."""
    if not isinstance(spec.action, spaces.Box):
        raise UsageError(f"actions are {what} where they are continuous; {spec.name} has {spec.action}")
