"""An actor that improves another one's actions with a critic, whatever class of policy that is.

Mark et al. 2024, arXiv 2412.06685, section 4.1: sample, rank, and climb. Neither needs a gradient of the policy.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.networks.encoders import Obs
from polopt.policies.base import Actor, Record
from polopt.policies.boxes import register_bounds
from polopt.policies.wrappers import Wrapper, candidates
from polopt.values.targets import reduce_members

Values = Callable[[Tensor], Tensor]
"""From actions [K, B, A] to their values [K, B]."""


class Optimized(Wrapper):
    """Acts with the best of `samples` actions of `actor`, of which `keep` climb the critic for `steps` steps.

    Everything is in the units in which `actor` acts, and so is the critic. Acting draws among the optimized candidates
    by a softmax of their values over `sampling_temperature`; greedy takes the best. The softmax is of raw values: it
    is nearly greedy when values differ by much more than the temperature, nearly uniform when by much less.

    Args:
        critic: `critic(obs, action) -> [E, ...]` for actions [n, B, A] beside observations [B, ...].
        samples: candidate actions drawn from `actor` in each state.
        keep: of them, those with the highest values.
        steps: gradient steps on each; 0 only ranks.
        step_size: of one gradient step, in units of the action.
        reduce: over the members of the critic, "mean" or "min", in ranking and climbing.

    The record has only `action`. Raises UsageError for discrete actions and for recurrent policies.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        actor: Actor,
        critic: nn.Module,
        samples: int = 32,
        keep: int = 10,
        steps: int = 10,
        step_size: float = 3e-4,
        sampling_temperature: float = 1.0,
        reduce: str = "mean",
    ) -> None:
        super().__init__(actor)
        if not isinstance(actor.spec.action, spaces.Box):
            raise UsageError(
                f"actions are optimized where they are continuous; {actor.spec.name} has {actor.spec.action}"
            )
        if actor.recurrent:
            raise UsageError("actions are optimized at single observations, which a recurrent policy cannot serve")
        if not 1 <= keep <= samples:
            raise UsageError(f"of {samples} candidate actions between 1 and {samples} can be kept, not {keep}")
        self.critic = critic
        self.samples = samples
        self.keep = keep
        self.steps = steps
        self.step_size = step_size
        self.sampling_temperature = sampling_temperature
        self.reduce = reduce
        bounds = spaces.Box(-1.0, 1.0, (actor.spec.action_dim,)) if actor.unit else actor.spec.action
        register_bounds(self, bounds)

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        return {"action": self.choose(*self.optimize(obs), greedy=greedy)}, {}

    @torch.no_grad()
    def optimize(self, obs: Obs, also: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The optimized candidates [keep, B, A] and their values [keep, B] at `obs` [B, ...].

        `also` [B, A], an action of the data, takes the place of the worst candidate that is kept, before the climb.
        """
        values = self.values_at(obs)
        action = self.sample(obs)
        ranked = values(action).topk(self.keep, dim=0).indices  # best first
        action = action.gather(0, ranked.unsqueeze(-1).expand(-1, -1, action.shape[-1]))
        if also is not None:
            action = torch.cat([action[:-1], also.unsqueeze(0)])
        return climb(values, self.clip(action), self.steps, self.step_size, self.clip)

    def sample(self, obs: Obs) -> Tensor:
        """`samples` actions of the present policy in each state, [samples, B, A]."""
        return candidates(self.actor, obs, self.samples)["action"]

    def random(self, *shape: int) -> Tensor:
        """Uniform actions [*shape, A] within the bounds, standard normal ones where a coordinate has none."""
        finite = self.low.isfinite() & self.high.isfinite()
        low, high = torch.where(finite, self.low, 0.0), torch.where(finite, self.high, 0.0)
        uniform = torch.lerp(low, high, torch.rand_like(low.expand(*shape, -1)))
        return torch.where(finite, uniform, self.clip(torch.randn_like(uniform)))

    def choose(self, action: Tensor, value: Tensor, *, greedy: bool) -> Tensor:
        """One action [B, A] of candidates [K, B, A] with values [K, B]."""
        if greedy:
            index = value.argmax(0)
        else:
            index = (value / self.sampling_temperature).softmax(0).T.multinomial(1).squeeze(1)
        return action.gather(0, index.reshape(1, -1, 1).expand(1, -1, action.shape[-1])).squeeze(0)

    def values_at(self, obs: Obs) -> Values:
        """The critic at `obs` [B, ...], its members reduced."""
        return lambda action: reduce_members(self.critic(obs, action), self.reduce)

    def clip(self, action: Tensor) -> Tensor:
        return action.clamp(self.low, self.high)


def climb(
    values: Values, action: Tensor, steps: int, step_size: float, clip: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Gradient ascent on `values` from each action [K, B, A] by itself; the best iterate and its value, detached.

    a <- clip(a + step_size grad_a values(a)), `steps` times; since the best iterate of each path is returned, and the
    start is one of them, no value is below that of its start. No gradient reaches the parameters.
    """
    best, best_value = action.detach(), torch.full_like(action[..., 0], -torch.inf)
    action = best
    for step in range(steps + 1):
        with torch.enable_grad():
            point = action.detach().requires_grad_(step < steps)
            value = values(point)
            gradient = torch.autograd.grad(value.sum(), point)[0] if step < steps else None
        value = value.detach()
        better = value > best_value
        best = torch.where(better.unsqueeze(-1), point.detach(), best)
        best_value = torch.where(better, value, best_value)
        if gradient is not None:
            action = clip(point.detach() + step_size * gradient)
    return best, best_value
