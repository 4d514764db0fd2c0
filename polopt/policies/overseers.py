"""Who watches a learner and may act in its place: a person or program of one's own, or a scripted expert.

Luo et al., "RLIF: Interactive Imitation Learning as Reinforcement Learning", 2024, arXiv 2311.12996, section 5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.core.observations import row_of
from polopt.networks.encoders import Obs
from polopt.policies.base import Actor, Record
from polopt.tasks.base import Task
from polopt.tasks.scripted import Scripted
from polopt.tasks.simulated import Simulated
from polopt.tasks.spaces import as_given, writer


class Overseer(nn.Module, ABC):
    """Says at every decision whether it wants to take over, and what it would do."""

    lets_go: ClassVar[bool] = False  # whether a takeover ends where it wants none, since it says nothing to do then

    @abstractmethod
    def watch(self, obs: Obs, action: Tensor, mind: Record | None) -> tuple[Tensor, Tensor, Record]:
        """Of what the learner is about to do at `obs` [N, ...]: (wants, instead, mind).

        `action` [N, ...] and `instead` are as the learner stores actions, `wants` is bool [N]; `instead` holds in every
        row, since a takeover may go on where the overseer would not have begun one. `mind` is what it keeps in mind of
        each row [N, ...], given back at the next decision; None, or a row of zeros, is a new episode.
        """


class Asked(Overseer):
    """Asks `ask(obs, action)`, a person or a program, row by row.

    It is given one observation and the action that the learner is about to take, both as the environment has them
    (NumPy), and returns an action for the environment to take over, or None to let the learner go on, within a takeover
    too. Raises UsageError for an answer that is no action of the space.
    """

    lets_go = True

    def __init__(self, actor: Actor, ask: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.ask = ask
        self._actor = (actor,)  # in a tuple, so that it is no submodule
        self._write = writer(actor.spec.action)

    def watch(self, obs: Obs, action: Tensor, mind: Record | None) -> tuple[Tensor, Tensor, Record]:
        (actor,) = self._actor
        spec = actor.spec
        seen, planned = as_given(spec.raw_obs, obs), self._write(actor.env_action(action))
        answers = [self.ask(row_of(spec.raw_obs, seen, row), planned[row]) for row in range(len(action))]
        wants = torch.tensor([answer is not None for answer in answers], device=action.device)
        done = planned.copy()  # who was asked may have kept its row
        for row, answer in enumerate(answers):
            if answer is not None:
                done[row] = self._checked(answer)
        return wants, actor.own_action(torch.as_tensor(done).to(action)), {}

    def _checked(self, answer: Any) -> np.ndarray:
        space: Any = self._actor[0].spec.action
        try:
            given = np.asarray(answer, dtype=space.dtype)
        except (TypeError, ValueError):
            given = None
        if given is None or not space.contains(given if space.shape else given.item()):
            raise UsageError(f"the overseer must return None or an action of {space}, not {answer!r}")
        return given


class Behaving(Overseer):
    """An overseer who acts as a scripted behavior of the world that the learner is in."""

    def __init__(self, actor: Actor, world: Task, expert: str) -> None:
        super().__init__()
        if not isinstance(world, Simulated):
            raise UsageError(
                f"{world.spec.name} has no scripted behavior to take over: ask an overseer of your own, module:function"
            )
        self._actor, self._expert = (actor,), world.scripted(expert)

    @property
    def world(self) -> Simulated:
        return self._expert.world

    def acts(self, script: Scripted, like: Tensor) -> Tensor:
        """What a behavior does where the rows are, in the world's units [N, A]."""
        return script.act(None)[0]["action"].to(like.device)

    def instead(self, like: Tensor) -> Tensor:
        """What the expert does, as the learner stores actions."""
        return self._actor[0].own_action(self.acts(self._expert, like)).to(like.dtype)


class ByChance(Behaving):
    """Takes over with probability `rate` at every decision, whatever the learner does."""

    def __init__(self, actor: Actor, world: Task, expert: str, rate: float) -> None:
        super().__init__(actor, world, expert)
        self.rate = rate

    def watch(self, obs: Obs, action: Tensor, mind: Record | None) -> tuple[Tensor, Tensor, Record]:
        return torch.rand(len(action), device=action.device) < self.rate, self.instead(action), {}


class ByValue(Behaving):
    """Takes over where the learner's action is worth less than a reference's by more than `margin`:

        Q(s, a_reference) - Q(s, a) > margin

    Q is that of the behavior `reference`, by looking `ahead` decisions into the world: the discounted rewards of the
    action and of the reference's ahead - 1 next decisions, with the same luck for both actions. With probability
    `mistakes` the decision is the wrong one. The expert who takes over may be another, and worse.

    With `late` it sees what the learner has done and not what it is about to do: judged is the decision before this one
    (within a takeover without an end, what the learner would have done).
    """

    def __init__(
        self,
        actor: Actor,
        world: Task,
        expert: str,
        reference: str,
        *,
        margin: float,
        ahead: int,
        discount: float,
        mistakes: float,
        late: bool = False,
    ) -> None:
        super().__init__(actor, world, expert)
        self._reference = self.world.scripted(reference)
        self.margin, self.ahead, self.discount, self.mistakes = margin, ahead, discount, mistakes
        self.late = late

    def watch(self, obs: Obs, action: Tensor, mind: Record | None) -> tuple[Tensor, Tensor, Record]:
        better = self.acts(self._reference, action)
        own = self._actor[0].env_action(action).to(better)
        high, low = self.values(torch.cat([better, own])).to(action.device).chunk(2)
        wrong = torch.rand(len(action), device=action.device) < self.mistakes
        lost = high - low
        judged = lost if not self.late else torch.zeros_like(lost) if mind is None else mind["lost"]
        return (judged > self.margin) ^ wrong, self.instead(action), {"lost": lost} if self.late else {}

    def values(self, actions: Tensor) -> Tensor:
        """Q [K N] of K actions in each row [K N, A], where the rows are now."""
        world = self.world
        times = len(actions) // world.num
        state = {name: torch.cat([value] * times) for name, value in world.state.items()}
        time, going = torch.cat([world.time] * times), torch.ones(len(actions), device=actions.device)
        value = torch.zeros_like(going)
        for step in range(self.ahead):
            act = actions if step == 0 else world.behave(self._reference.behavior, state, time)
            state, reward, over, _ = world.advance(state, time, act)
            value = value + going * reward
            going, time = self.discount * going * ~over, time + 1
        return value
