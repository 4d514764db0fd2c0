"""A model of the world in which only forces are learned: known mechanics do the rest.

    f, log var = network(s, a)              standardized inputs; f one force for each joint, held during the decision
    s' = s after a decision of the known mechanics (`polopt.tasks.mechanics`) under f
    e  = (s' - recorded s') / limits        along a rollout of H recorded actions, through which gradients flow; 0 and
                                            without log var behind the end of an episode, and no fewer in the means
    loss   mean over rows, steps and coordinates of e^2 exp(-log var) + log var, + sum over layers of decay |W|^2 / 2

Levy, Westenbroek and Fridovich-Keil 2024, arXiv 2409.07409 (SSRL); Huang et al. 2026, arXiv 2601.21363 (LIFT).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn
from torch.nn import functional

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.models.dynamics import trunk
from polopt.models.ensemble import Ensemble
from polopt.models.inputs import Scale, Vector
from polopt.networks.encoders import Obs
from polopt.networks.layers import EnsembleLinear
from polopt.tasks.mechanics import Mechanics

if TYPE_CHECKING:
    from polopt.policies.base import Actor

LOG_VAR = (-10.0, 0.5)


def windows(batch: Batch, horizon: int, rows: int = 1) -> Batch:
    """All runs of `horizon` decisions that follow each other in a replay, TensorDict [B'] with `obs`, `action` and
    `next_obs` [B', H, ...] and `mask` bool [B', H], False behind the end of an episode. Actions are those of the task.

    `batch` [B] is in the order of time, oldest first; the successor of decision i is i + `rows`.
    """
    first = torch.arange(max(len(batch) - (horizon - 1) * rows, 0)).unsqueeze(1)
    found = batch.select("obs", "action", "next_obs", "terminated", "truncated")[first + rows * torch.arange(horizon)]
    over = (found["terminated"] | found["truncated"]).long()
    mask = over.cumsum(1) - over == 0
    return TensorDict({**found.select("obs", "action", "next_obs"), "mask": mask}, batch_size=[len(first)])


class Structured(nn.Module):
    """Members with networks of their own; see `polopt.models.fitting.Fits` for how they learn from `windows`.

    Args:
        spec: observations are a Box of real numbers or a Dict of such, actions a Box. Errors are in units of the
            largest value of each coordinate, where that is finite.
        mechanics: None where nothing is learned or imagined, as in a policy that was loaded without its task.
        known: False learns the change of the state, in those units, in place of forces.

    Attributes: `elites` int64 [config.elites], the members that imagine.

    Raises UsageError for other spaces, and for a model that is not Gaussian.
    """

    elites: Tensor

    def __init__(self, spec: Spec, config: Ensemble, mechanics: Mechanics | None, *, known: bool = True) -> None:
        super().__init__()
        if not isinstance(spec.action, spaces.Box):
            raise UsageError(f"forces follow from actions of a Box; {spec.name} has {spec.action}")
        if config.head != "gaussian":
            raise UsageError("a model of forces tells how sure it is: its head is gaussian")
        self.config, self.members, self.mechanics, self.known = config, config.members, mechanics, known
        self.vector = Vector(spec)
        self.size = self.vector.size
        self.outputs = int(spec.info["joints"]) if known else self.size
        self.shape = spec.action.shape
        inputs = self.size + spec.action_dim
        self.net = trunk(config.network, inputs, self.outputs + self.size, config.members)
        self.linear = [layer for layer in self.net.layers if isinstance(layer, EnsembleLinear)]
        decay = config.weight_decay
        self.decay = decay * len(self.linear) if len(decay) == 1 else decay
        self.input_scale = Scale(inputs)
        self.register_buffer("unit", limits(self.vector), persistent=False)
        self.register_buffer("elites", torch.arange(config.elites))

    unit: Tensor

    def inputs(self, state: Tensor, action: Tensor) -> Tensor:
        """What the networks read [..., inputs], not yet standardized."""
        return torch.cat([state, action.reshape(*state.shape[:-1], -1)], -1)

    def predict(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Forces [E, B, n] (or changes [E, B, D]) and log variances [E, B, D] in `state` [E, B, D] under `action`
        [E, B, *space.shape]."""
        raw = self.net.layers(self.input_scale(self.inputs(state, action)))
        force, log_var = raw.split([self.outputs, self.size], -1)
        low, high = LOG_VAR
        log_var = high - functional.softplus(high - log_var)
        return force, low + functional.softplus(log_var - low)

    def move(self, state: Tensor, action: Tensor, force: Tensor) -> Tensor:
        """The state [..., D] after a decision under a force [..., n], or with such a change [..., D]."""
        if not self.known:
            return state + self.unit * force
        assert self.mechanics is not None
        return self.vector(self.mechanics.advance(self.vector.back(state), action, force))

    # Learning, as `Fits` asks for.

    def fit_scales(self, batch: Batch) -> None:
        """Standardizes by the first decision of each window."""
        self.input_scale.fit(self.inputs(self.vector(batch["obs"])[:, 0], batch["action"][:, 0]))

    def rollout_errors(self, rows: Batch, *, apart: bool = False) -> tuple[Tensor, Tensor]:
        """Errors and log variances, each [E, B, H, D], 0 where the mask is False."""
        (state, action, after), mask = self._rows(rows, apart)
        state, errors, log_vars = state[:, :, 0], [], []
        for step in range(mask.shape[-1]):
            force, log_var = self.predict(state, action[:, :, step])
            state = self.move(state, action[:, :, step], force)
            errors.append((state - after[:, :, step]) / self.unit)
            log_vars.append(log_var)
        keep = mask.unsqueeze(-1)
        error, log_var = (torch.stack(part, -2) for part in (errors, log_vars))
        return torch.where(keep, error, 0.0), torch.where(keep, log_var, 0.0)

    def row_losses(self, rows: Batch, *, apart: bool = False) -> Tensor:
        """The loss [E, B] of windows, without restraint."""
        error, log_var = self.rollout_errors(rows, apart=apart)
        return (error.square() * (-log_var).exp() + log_var).mean((-2, -1))

    def restraint(self) -> Tensor:
        """What draws weights together, [E]."""
        return sum(0.5 * decay * layer.weight.square().sum((1, 2)) for decay, layer in zip(self.decay, self.linear))  # type: ignore[return-value]

    @torch.no_grad()
    def errors(self, batch: Batch) -> Tensor:
        """The squared error [E], a mean over windows, steps and coordinates, by which members are judged."""
        return self.rollout_errors(batch)[0].square().mean((1, 2, 3))

    def choose(self, errors: Tensor) -> None:
        """Makes the members with the smallest errors [E] the elites."""
        self.elites.copy_(errors.argsort(stable=True)[: len(self.elites)])

    def _rows(self, rows: Batch, apart: bool) -> tuple[tuple[Tensor, ...], Tensor]:
        """Observations, actions and successors [E, B, H, ...], and the mask; all members see the rows unless they are
        those of each."""
        parts = self.vector(rows["obs"]), rows["action"], self.vector(rows["next_obs"]), rows["mask"]
        *columns, mask = parts if apart else (part.expand(self.members, *part.shape) for part in parts)
        return tuple(columns), mask

    # Imagining.

    @torch.no_grad()
    def imagine(
        self, policy: Actor, start: Obs, horizon: int, *, greedy: bool = False, noisy: tuple[str, ...] = ()
    ) -> Batch:
        """Imagined decisions [B, horizon] of a policy from `start` [B, *shape], each by an elite drawn at random.

        States follow the mean of the model. What the policy is shown has Gaussian noise of the model's deviation: the
        entries `noisy` of a Dict observation, or all of it with (). Where an episode terminates its row begins again
        where it began. Keys: obs, action, reward, next_obs, terminated, truncated.
        """
        assert self.mechanics is not None
        begun = state = self.vector(start)
        seen, steps = start, []
        blurred = self.unit * blur(self.vector, noisy).to(state)
        row = torch.arange(len(state), device=state.device)
        for _ in range(horizon):
            action = policy.env_action(policy.act(seen, None, greedy=greedy)[0]["action"])
            given = (part.expand(self.members, *part.shape) for part in (state, action))
            force, log_var = self.predict(*given)
            member = self.elites[torch.randint(len(self.elites), row.shape, device=row.device)]
            after = self.move(state, action, force[member, row])
            told = self.vector.back(after + blurred * (0.5 * log_var[member, row]).exp() * torch.randn_like(after))
            decision = self.vector.back(state), action, self.vector.back(after)
            over, reward = self.mechanics.ended(*decision), self.mechanics.reward(*decision)
            steps.append(
                {"obs": seen, "action": policy.own_action(action), "reward": reward, "next_obs": told}
                | {"terminated": over, "truncated": torch.zeros_like(over)}
            )
            again = over.unsqueeze(-1)
            state = torch.where(again, begun, after)
            seen = self.vector.back(torch.where(again, begun, self.vector(told)))
        each: Any = [TensorDict(step, batch_size=[len(state)]) for step in steps]
        return cast(Batch, torch.stack(each, 1))


def limits(vector: Vector) -> Tensor:
    """The largest size [D] that the space allows each coordinate, and 1 where there is no limit."""
    found: list[np.ndarray] = []
    for path, _ in vector.parts:
        space: Any = vector.space
        for key in path:
            space = space[key]
        most = np.maximum(np.abs(space.low), np.abs(space.high)).reshape(-1)
        found.append(np.where(np.isfinite(most) & (most > 0), most, 1.0))
    return torch.as_tensor(np.concatenate(found), dtype=torch.get_default_dtype())


def blur(vector: Vector, keys: tuple[str, ...]) -> Tensor:
    """1 for the coordinates [D] of these entries of a Dict, 0 for others; all 1 with ()."""
    parts = [
        torch.full((size,), float(not keys or path[0] in keys)) for (path, _), size in zip(vector.parts, vector.sizes)
    ]
    return torch.cat(parts)
