"""Hindsight differentiable policy optimization: gradients through a simulator, on recorded scenarios.

Alvo, Russo and Kanoria, "Deep Reinforcement Learning for Inventory Networks: Toward Reliable Policy Optimization",
2023, arXiv 2306.11246; MatiasAlvo/Neural_inventory_control.

Where the dynamics f are known and what is random, xi, is not touched by actions, any policy can be tried in hindsight
on scenarios that were recorded, and what it would have cost has a gradient:

    J(theta) = 1/N sum_i 1/T sum_t c(s_t^i, a_t^i, xi_t^i)      a_t = pi_theta(s_t),  s_{t+1} = f(s_t, a_t, xi_t)

Its gradient flows through all T periods, `simulate`. Every period counts, the first ones too, though they depend on
where the scenario began; what is reported leaves them out. There is no critic, no exploration and no importance weight.
In networks the policy is feasible by construction (`--policy orders`), or has the shape of the network and shares its
weights among places (`--policy graph-orders`), which asks for far fewer scenarios.

It trains any policy through whose samples gradients flow, on any simulated world that says it is `differentiable`.

Departs from the paper in: early stopping is the budget; the best evaluation is kept with the run, as of every
method. Quantities are bounded, by four times the mean demand behind a link, for one store too. A store begins with as
many slots of stock as its lead time has periods, where the code has at least three or four.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.method import Method
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, weigh
from polopt.core.errors import UsageError
from polopt.core.ledger import Ledger
from polopt.core.modules import device_of
from polopt.core.random import paired
from polopt.data.base import Acts, Source, put
from polopt.data.samplers import Sequential, Shuffled
from polopt.methods.theory.hdpo_settings import HDPOSettings
from polopt.networks import Network
from polopt.policies import Deterministic, Gaussian, SquashedGaussian
from polopt.policies.base import Reparameterized
from polopt.policies.ordering import GraphOrders, Orders
from polopt.tasks.base import Task
from polopt.tasks.simulated import Simulated, State


def simulate(world: Simulated, choose: Callable[[Any], Tensor], state: State, periods: int) -> Tensor:
    """Rewards [B, T] of `choose(obs)`, actions in the world's units, from the states [B, ...] on; 0 once a row has
    terminated. Differentiable in what `choose` returns."""
    time = torch.zeros_like(state["key"])
    goes_on, rewards = torch.ones_like(time, dtype=torch.bool), []
    for _ in range(periods):
        state, reward, over, _ = world.advance(state, time, choose(world.observe(state, time)))
        rewards.append(torch.where(goes_on, reward, 0.0))
        time, goes_on = time + 1, goes_on & ~over
    return torch.stack(rewards, -1)


def world_of(task: Any, **periods: int) -> Simulated:
    """The task as a world that can be simulated for so many periods. Raises UsageError, one sentence."""
    name = task.spec.name
    if not getattr(task, "differentiable", False):
        raise UsageError(f"hdpo needs a world with known gradients, as inventory/store, and {name} has none")
    for option, count in periods.items():
        if count > task.horizon:
            raise UsageError(f"{option} {count} is more than the horizon of {name}: --task.horizon {count}")
    world: Simulated = task
    return world


class Scenarios(Source):
    """First states [B] of scenarios: all of `count` in a new random order each epoch, or always new ones without. One
    batch counts as B times `periods` steps."""

    def __init__(self, world: Simulated, count: int | None, batch_size: int, periods: int, ledger: Ledger) -> None:
        self.world, self.batch_size, self.periods, self.ledger = world, batch_size, periods, ledger
        self.sampler = Sequential() if count is None else Shuffled(count)

    def next(self, actor: Acts) -> Batch:
        state = self.world.start_of(*self.sampler.draw(self.batch_size))
        self.ledger.env_steps += self.batch_size * self.periods
        self.ledger.episodes += self.batch_size
        return put(TensorDict({"state": TensorDict(state, [self.batch_size])}, [self.batch_size]), device_of(actor))


class HDPO(HDPOSettings, Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        scenarios: int | None = param(32_768, "official code", low=1, help="recorded ones; none: new ones every time")
        batch_size: int = param(8192, "official code", low=1, help="scenarios of an update")
        periods: int = param(50, "official code", low=1, help="T, of a scenario in training")
        burn_in: int = param(30, "official code", low=0, help="periods that `late_cost` leaves out")
        eval_periods: int = param(100, "official code", low=1, help="of a scenario in evaluations")
        eval_burn_in: int = param(60, "official code", low=0, help="periods that `eval/cost` leaves out")
        lr: float = param(3e-3, "official code", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "official code")
        max_grad_norm: float | None = param(None, "official code", above=0, help="1 for graph orders")
        network: Network = param(Network((32, 32, 32), "elu"), "official code")
        policy: Orders | GraphOrders | Deterministic | Gaussian | SquashedGaussian = param(Orders(), "paper")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("envs", because="where scenarios are simulated side by side: batch_size")
            if self.scenarios is not None and self.batch_size > self.scenarios:
                raise UsageError(f"batch_size {self.batch_size} is more than there are scenarios, {self.scenarios}")
            for name in ("", "eval_"):
                periods, burn_in = (getattr(self, f"{name}{what}") for what in ("periods", "burn_in"))
                if burn_in >= periods:
                    raise UsageError(f"{name}burn_in must leave some of the {periods} {name}periods")

    slug = "hdpo"
    requires = (Reparameterized,)

    def build(self, task: Task) -> None:
        config = self.config
        self.world = world_of(task, periods=config.periods, eval_periods=config.eval_periods)
        self.policy: Any = self.make_policy(config.policy, network=config.network)
        if self.policy.recurrent:
            raise UsageError("hdpo simulates policies without memory: set the network's recurrent to none")
        self.source = Scenarios(self.world, config.scenarios, config.batch_size, config.periods, self.ledger)
        self.optimizer = self.make_optimizer(
            self.policy, lr=config.lr, schedule=config.lr_schedule, max_grad_norm=config.max_grad_norm
        )

    def cost_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """1/T sum_t c, the same for scenarios of every age."""

        def choose(obs: Tensor) -> Tensor:
            return self.policy.env_action(self.policy.rsample(obs)[0])

        state = dict(batch["state"].items())
        cost = -simulate(self.world, choose, state, self.config.periods)
        loss = (batch["weight"] * cost.mean(-1)).sum()
        late = (batch["weight"] * cost[:, self.config.burn_in :].mean(-1)).sum()
        return loss, {"cost": loss, "late_cost": late}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return self.optimizer.minimize(self.cost_loss, weigh(batch))

    @torch.no_grad()
    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Costs of a period after the burn-in, of orders as they are and rounded to whole units; `return` is that of
        all periods."""
        config, world = self.config, world_of(task, eval_periods=self.config.eval_periods)

        def choose(obs: Tensor) -> Tensor:
            here = put(obs, device_of(self.policy))
            return self.policy.env_action(self.policy.act(here, greedy=greedy)[0]["action"]).to(world.device)

        with paired():
            state = world.start_of(*range(episodes))
            rewards = simulate(world, choose, state, config.eval_periods).double()
            rounded = simulate(world, lambda obs: choose(obs).round(), state, config.eval_periods).double()
        returns = rewards.sum(-1)
        found = {
            "cost": -rewards[:, config.eval_burn_in :].mean(),
            "cost_rounded": -rounded[:, config.eval_burn_in :].mean(),
            "return": returns.mean(),
            "return_std": returns.std(correction=0),
        }
        return {name: value.item() for name, value in found.items()} | {"length": float(config.eval_periods)}
