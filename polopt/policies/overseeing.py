"""Overseers as plain data. Importing this needs no torch; `build` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polopt.config import Config, param
from polopt.core.errors import UsageError

if TYPE_CHECKING:
    from polopt.policies.base import Actor
    from polopt.policies.overseers import Overseer
    from polopt.tasks.base import Task


@dataclass(frozen=True)
class ByValue(Config):
    """A scripted expert of the world takes over where the learner's action is worth clearly less than a reference's."""

    expert: str = param("expert", "polopt", help="the behavior of the world that takes over")
    reference: str = param("expert", "polopt", help="the behavior by whose values the learner's actions are judged")
    margin: float = param(0.1, "assumed", low=0, unit="value", help="by how much an action may be worse")
    ahead: int = param(10, "assumed", low=1, help="decisions that the values look into the world")
    mistakes: float = param(0.05, "official code", low=0, high=1, help="probability that a decision is the wrong one")
    late: bool = param(False, "polopt", help="judged is what the learner did last, not what it is about to do")

    def build(self, actor: Actor, task: Task, discount: float) -> Overseer:
        from polopt.policies import overseers

        return overseers.ByValue(
            actor,
            task,
            self.expert,
            self.reference,
            margin=self.margin,
            ahead=self.ahead,
            discount=discount,
            mistakes=self.mistakes,
            late=self.late,
        )


@dataclass(frozen=True)
class ByChance(Config):
    """A scripted expert of the world takes over with a fixed probability, whatever the learner does."""

    expert: str = param("expert", "polopt", help="the behavior of the world that takes over")
    rate: float = param(0.3, "official code", low=0, high=1, help="probability at every decision")

    def build(self, actor: Actor, task: Task, discount: float) -> Overseer:
        from polopt.policies import overseers

        return overseers.ByChance(actor, task, self.expert, self.rate)


@dataclass(frozen=True)
class Asked(Config):
    """A person or a program of one's own, asked before every decision: `ask(obs, action)` returns an action or None."""

    ask: Callable[[Any, Any], Any] | None = param(None, "polopt", help="module:function")

    @classmethod
    def from_value(cls, value: Any) -> Asked | None:
        """A callable where an overseer is asked for is one of the user's own."""
        return cls(ask=value) if callable(value) else None

    def build(self, actor: Actor, task: Task, discount: float) -> Overseer:
        from polopt.policies import overseers

        if self.ask is None:
            raise UsageError("an overseer who is asked needs to be named: --overseer module:function")
        return overseers.Asked(actor, self.ask)


AnyOverseer = ByValue | ByChance | Asked
