"""Actors made of other actors: what acts need not be what is trained."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.scoring import SCORES
from polopt.core.spec import Spec
from polopt.core.state import Stateful
from polopt.networks.encoders import Obs, first_leaf, is_dict, leading_shape
from polopt.optim.copies import duplicate, renew
from polopt.policies.base import Actor, Record, legal_actions
from polopt.policies.boxes import register_bounds
from polopt.policies.categorical import draw, log_prob_of, mask_logits
from polopt.policies.gaussian import HALF_LOG_TWO_PI, safe_atanh


class Wrapper(Actor):
    """Acts as `actor` does; subclasses change one thing. It promises nothing but to act."""

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.actor = actor
        self.spec = actor.spec
        self.recurrent = actor.recurrent
        self.unit = actor.unit
        self.masks = actor.masks
        self.family = f"wrapped {actor.family}"

    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        return self.actor.act(obs, carry, greedy=greedy)

    def env_action(self, action: Tensor, **how: Any) -> Tensor:
        return self.actor.env_action(action, **how)

    def own_action(self, action: Tensor) -> Tensor:
        return self.actor.own_action(action)

    def update_normalizer(self, batch: Batch) -> None:
        self.actor.update_normalizer(batch)


class Greedy(Wrapper):
    """Always takes the mode."""

    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        return self.actor.act(obs, carry, greedy=True)


class Noisy(Wrapper):
    """Adds Gaussian noise of standard deviation `std`, in the units of the stored action, and clamps to [-1, 1] if the
    policy acts there. Greedy actions stay clean. The record loses `log_prob` and `pre_action`, which were those of the
    action without noise. Raises UsageError for discrete actions."""

    def __init__(self, actor: Actor, std: float) -> None:
        super().__init__(actor)
        if not isinstance(actor.spec.action, spaces.Box):
            raise UsageError(f"noise is added to continuous actions; {actor.spec.name} has {actor.spec.action}")
        self.std = std

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        record, carry = self.actor.act(obs, carry, greedy=greedy)
        record = {key: value for key, value in record.items() if key not in SCORES}
        if not greedy:
            action = record["action"] + self.std * torch.randn_like(record["action"])
            record["action"] = action.clamp(-1.0, 1.0) if self.unit else action
        return record, carry


class Lagged(Wrapper, Stateful):
    """Acts with a copy of `actor` that is refreshed every `every` calls, as asynchronous samplers do.

    `on="act"` counts calls of `act`: calls 0 to every - 1 use the same copy. `on="update"` counts calls of `update`,
    which the method makes at the end of its own. The copy has its own normalizer statistics; it is saved.
    """

    saved = ("calls",)

    def __init__(self, actor: Actor, every: int, on: str = "act") -> None:
        super().__init__(actor)
        if every < 1:
            raise UsageError(f"a lagged policy is refreshed every 1 or more calls, not {every}")
        if on not in ("act", "update"):
            raise UsageError(f"a lagged policy counts calls of 'act' or 'update', not '{on}'")
        self.every = every
        self.on = on
        self.calls = 0
        self.stale = duplicate(actor).requires_grad_(False)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        if self.on == "act":
            if self.calls % self.every == 0:
                self.refresh()
            self.calls += 1
        return self.stale.act(obs, carry, greedy=greedy)

    def update(self) -> None:
        """Counts one update, and refreshes the copy if it is time (with `on="update"`)."""
        if self.on == "update":
            self.calls += 1
            if self.calls % self.every == 0:
                self.refresh()

    def refresh(self) -> None:
        """Copies parameters and buffers now."""
        renew(self.stale)


class Mixture(Wrapper, Stateful):
    """Plays one of `size` earlier policies, drawn for each episode: the mean of all that `actor` has been.

    `keep`, called after every update of `actor`, makes the copies a sample of all policies so far, each as likely as
    any other. Before the first call it acts as `actor`. The copies sample also where the mode is asked for: what is
    mixed is what they do.
    """

    saved = ("count",)

    def __init__(self, actor: Actor, size: int) -> None:
        super().__init__(actor)
        self.copies = nn.ModuleList(duplicate(actor).requires_grad_(False) for _ in range(size))
        self.count = 0  # policies that there were

    def keep(self, generator: torch.Generator) -> None:
        """Takes in the policy as it is now."""
        size = len(self.copies)
        slot = self.count if self.count < size else int(torch.randint(self.count + 1, (), generator=generator))
        self.count += 1
        if slot < size:
            renew(self.copies[slot])

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        there: list[Any] = [*self.copies][: self.count] or [self.actor]
        rows = first_leaf(obs).shape[0]
        place = torch.zeros(rows, dtype=torch.int64, device=first_leaf(obs).device)
        carry = {**carry} if carry else {}
        place = carry.pop("copy", place)
        place = torch.where(place > 0, place, torch.randint_like(place, 1, len(there) + 1))  # 0: a new episode
        played = [each.act(obs, carry or None, greedy=False) for each in there]
        record, after = (
            {name: _chosen(place, [each[part][name] for each in played]) for name in played[0][part]} for part in (0, 1)
        )
        return record, {**after, "copy": place}


def _chosen(place: Tensor, values: list[Tensor]) -> Tensor:
    """The rows [N, ...] of the values [N, ...] with the number `place` [N], from 1."""
    return torch.stack(values)[place - 1, torch.arange(len(place), device=place.device)]


class BestOf(Wrapper):
    """Draws `samples` actions of `actor` and takes the one that `critic` values most, or one of them with probability
    softmax(Q / temperature) (`how="softmax"`).

    `critic(obs, action) -> [E, ...]` values actions as the actor stores them; `reduce` ("min" or "mean") is over its
    members. Greedy acting is no different: the actor samples in any case, so the result is random with either.
    The critic belongs to this policy: it is evaluated, saved and loaded with it. The record is that of the action
    taken, without `log_prob`, which is not the density of a chosen action. Raises UsageError for a recurrent actor.
    """

    def __init__(
        self,
        actor: Actor,
        critic: nn.Module,
        samples: int,
        how: str = "argmax",
        temperature: float = 1.0,
        reduce: str = "min",
    ) -> None:
        super().__init__(actor)
        if actor.recurrent:
            raise UsageError("the best of several actions is taken of single observations: use a feed-forward network")
        if samples < 1 or how not in ("argmax", "softmax") or temperature <= 0 or reduce not in ("min", "mean"):
            raise UsageError(
                "best-of needs samples >= 1, how 'argmax' or 'softmax', temperature > 0 and reduce 'min' or 'mean', "
                f"not {samples}, '{how}', {temperature:g} and '{reduce}'"
            )
        self.critic = critic
        self.samples = samples
        self.how = how
        self.temperature = temperature
        self.reduce = reduce

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        record = candidates(self.actor, obs, self.samples)
        q = self.critic(obs, record["action"])
        q = q.amin(0) if self.reduce == "min" else q.mean(0)  # [samples, N]
        if self.how == "argmax":
            index = q.argmax(0)
        else:
            index = draw((q / self.temperature).movedim(0, -1))
        row = torch.arange(len(index), device=index.device)
        return {key: value[index, row] for key, value in record.items() if key != "log_prob"}, {}


def candidates(actor: Actor, obs: Obs, samples: int) -> Record:
    """What `actor` records of `samples` actions at each observation [N, ...]: [samples, N, ...], without gradients.

    The actor samples, nothing is greedy; any actor without memory can.
    """
    rows = leading_shape(actor.spec.obs, obs)[0]
    with torch.no_grad():
        record, _ = actor.act(tile(obs, samples))
    return {key: value.reshape(samples, rows, *value.shape[1:]) for key, value in record.items()}


def tile(obs: Obs, times: int) -> Obs:
    """Observations [N, ...] as [times * N, ...], the whole block again and again; dicts keep their structure."""
    if is_dict(obs):
        return {key: tile(obs[key], times) for key in obs.keys()}
    return obs.repeat(times, *[1] * (obs.dim() - 1))


class Uniform(Actor):
    """Random legal actions, in the units of the policy `like` that it stands in for: the warm-up of a replay buffer.

    Policies that act in [-1, 1] get uniform actions there; others uniform ones within the bounds of the space (standard
    normal where a coordinate has none, shifted exponential where it has one). The record has the same keys as that of
    `like`, which also runs, so that storage sees one layout: `action`, `log_prob` and `pre_action` are those of the
    random action, everything else (a hidden state) is what `like` records. Without `like`: `action` and `log_prob`.
    """

    family = "uniform policy"

    def __init__(self, spec: Spec, like: Actor | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.like = like
        self.unit = like is not None and like.unit
        self.masks = spec.discrete
        self.recurrent = like is not None and like.recurrent
        self.low: Tensor
        self.high: Tensor
        if isinstance(spec.action, spaces.Box):
            box = spaces.Box(-1.0, 1.0, (spec.action_dim,)) if self.unit else spec.action
            register_bounds(self, box, None if like is None else device_of(like))
        elif isinstance(spec.action, (spaces.Discrete, spaces.MultiDiscrete)):
            space = spec.action
            self.counts: list[int] = (
                [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.reshape(-1).tolist()
            )
        else:
            raise UsageError(
                f"random actions need a Box, Discrete or MultiDiscrete space; {spec.name} has {spec.action}"
            )

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        record, after = ({}, {}) if self.like is None else self.like.act(obs, carry)
        action, log_prob = self._draw(obs)
        if self.like is None or "log_prob" in record:
            record["log_prob"] = log_prob
        if "pre_action" in record:
            record["pre_action"] = safe_atanh(action)
        record["action"] = action
        return record, after

    def env_action(self, action: Tensor) -> Tensor:
        if self.like is not None:
            return self.like.env_action(action)
        space = self.spec.action
        if isinstance(space, spaces.Discrete):
            return action + int(space.start)
        shape = (*action.shape[:-1], *(space.shape or ()))
        if isinstance(space, spaces.MultiDiscrete):
            start = torch.as_tensor(space.start.reshape(-1), device=action.device)
            return (action + start).reshape(shape)
        return action.clamp(self.low, self.high).reshape(shape)

    def update_normalizer(self, batch: Batch) -> None:
        if self.like is not None:
            self.like.update_normalizer(batch)

    def _draw(self, obs: Obs) -> tuple[Tensor, Tensor]:
        lead = leading_shape(self.spec.obs, obs)
        space = self.spec.action
        if isinstance(space, spaces.Box):
            return self._draw_box(lead)
        logits = uniform_logits(lead, self.counts, legal_actions(obs), first_leaf(obs).device)
        actions = [draw(factor) for factor in logits]
        log_prob = torch.stack([log_prob_of(*pair) for pair in zip(logits, actions)]).sum(0)
        return (actions[0] if isinstance(space, spaces.Discrete) else torch.stack(actions, -1)), log_prob

    def _draw_box(self, lead: torch.Size) -> tuple[Tensor, Tensor]:
        low, high = self.low.expand(*lead, -1), self.high.expand(*lead, -1)
        below, above = low.isfinite(), high.isfinite()
        inside = torch.rand_like(low)
        tail = torch.empty_like(low).exponential_()
        normal = torch.randn_like(low)
        width = torch.where(below & above, high - low, 1.0)
        bounded = torch.where(below, low, 0.0) + width * inside
        half = torch.where(below, low + tail, high - tail)
        action = torch.where(below & above, bounded, torch.where(below | above, half, normal))
        density = torch.where(below | above, -tail, -0.5 * normal.square() - HALF_LOG_TWO_PI)
        return action, torch.where(below & above, -width.log(), density).sum(-1)


class Valued(Wrapper):
    """A policy beside a recurrent critic: carries the critic's hidden state and records `critic_hidden`, the state
    before the step, so that values of a window can be computed again from its first column.

    A critic without memory changes nothing. Needs `critic.recurrent`, `critic.new_hidden(obs) -> [N, H]` and
    `critic.step(obs, hidden) -> (value, hidden)`.
    """

    def __init__(self, policy: Actor, critic: Any) -> None:
        super().__init__(policy)
        self.critic = critic
        self.recurrent = policy.recurrent or bool(critic.recurrent)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        record, after = self.actor.act(obs, carry if self.actor.recurrent else None, greedy=greedy)
        if not self.critic.recurrent:
            return record, after
        hidden = carry["critic_hidden"] if carry else self.critic.new_hidden(obs)
        _, next_hidden = self.critic.step(obs, hidden)
        return {**record, "critic_hidden": hidden}, {**after, "critic_hidden": next_hidden}


def uniform_logits(lead: torch.Size, counts: list[int], legal: Tensor | None, device: torch.device) -> list[Tensor]:
    """Equal logits [*lead, n] for each factor of n values, -inf at illegal ones."""
    flat = torch.zeros(*lead, sum(counts), device=device).split(counts, -1)
    if legal is None:
        return list(flat)
    return [mask_logits(factor, mask) for factor, mask in zip(flat, legal.split(counts, -1))]
