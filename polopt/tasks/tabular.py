"""Finite-horizon tabular MDPs: exact values by dynamic programming, and the same model as a task.

Everything is float64. Steps h = 0..H-1; V[H] = 0. Backward induction: Puterman 1994, chapter 4.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.errors import RunError, UsageError
from polopt.core.spec import Spec
from polopt.tasks.base import Obs, Step, Task


class TabularMDP:
    """An episodic MDP with a known model and a fixed start state.

    Args:
        transition: [S, A, S], or [H, S, A, S] when it depends on the step; rows sum to 1.
        reward: expected reward [S, A] or [H, S, A].
        horizon: number of decisions H.
        start: the state in which every episode starts.

    Raises UsageError for shapes that do not fit and rows that are not distributions.
    """

    def __init__(self, transition: Any, reward: Any, horizon: int, start: int = 0) -> None:
        transition = torch.as_tensor(transition, dtype=torch.float64)
        reward = torch.as_tensor(reward, dtype=torch.float64)
        if transition.dim() == 3:
            transition = transition.expand(horizon, *transition.shape)
        if reward.dim() == 2:
            reward = reward.expand(horizon, *reward.shape)
        if transition.dim() != 4 or transition.shape[1] != transition.shape[3]:
            raise UsageError(f"transitions must be [S, A, S] or [H, S, A, S], not {list(transition.shape)}")
        if reward.shape != transition.shape[:3] or len(reward) != horizon:
            raise UsageError(f"rewards {list(reward.shape)} do not fit transitions {list(transition.shape)}")
        if (transition < 0).any() or not torch.allclose(transition.sum(-1), torch.ones_like(reward), atol=1e-9):
            raise UsageError("each row of the transitions must be a distribution over states")
        if not 0 <= start < transition.shape[1]:
            raise UsageError(f"the start state {start} is not one of {transition.shape[1]} states")
        self.transition = transition.contiguous()  # [H, S, A, S]
        self.reward = reward.contiguous()  # [H, S, A]
        self.horizon, self.states, self.actions = reward.shape
        self.start = start

    def q(self, next_value: Tensor, step: int) -> Tensor:
        """Action values [S, A] at `step`, given the values [S] of the step after."""
        return self.reward[step] + self.transition[step] @ next_value

    def value(self, policy: Tensor) -> Tensor:
        """V [H + 1, S] of a policy [H, S, A] (probabilities)."""
        policy = self._policy(policy)
        value = self.reward.new_zeros(self.horizon + 1, self.states)
        for step in reversed(range(self.horizon)):
            value[step] = (policy[step] * self.q(value[step + 1], step)).sum(-1)
        return value

    def optimal(self) -> tuple[Tensor, Tensor]:
        """An optimal deterministic policy [H, S, A] (one-hot; the first of equal actions) and its V [H + 1, S]."""
        value = self.reward.new_zeros(self.horizon + 1, self.states)
        policy = torch.zeros_like(self.reward)
        for step in reversed(range(self.horizon)):
            best = self.q(value[step + 1], step).max(-1)
            value[step] = best.values
            policy[step].scatter_(-1, best.indices.unsqueeze(-1), 1.0)
        return policy, value

    def occupancy(self, policy: Tensor) -> Tensor:
        """Probability [H, S] of being in each state at each step."""
        policy = self._policy(policy)
        occupancy = self.reward.new_zeros(self.horizon, self.states)
        occupancy[0, self.start] = 1.0
        for step in range(self.horizon - 1):
            joint = occupancy[step].unsqueeze(-1) * policy[step]  # [S, A]
            occupancy[step + 1] = torch.einsum("sa,sat->t", joint, self.transition[step])
        return occupancy

    def observations(self) -> TensorDict:
        """All observations [H, S] ("state", "step"): what a policy must be asked to get its table [H, S, A]."""
        step, state = torch.meshgrid(torch.arange(self.horizon), torch.arange(self.states), indexing="ij")
        return TensorDict({"state": state, "step": step}, batch_size=[self.horizon, self.states])

    def _policy(self, policy: Tensor) -> Tensor:
        policy = policy.detach().to("cpu", torch.float64)
        if policy.shape != self.reward.shape:
            raise ValueError(f"a policy here is {list(self.reward.shape)}, not {list(policy.shape)}")
        return policy


def known_mdp(spec: Spec, by: str) -> TabularMDP:
    """The model of a tabular task. Raises UsageError, one sentence that names the method, for other tasks."""
    mdp = spec.info.get("mdp")
    if not isinstance(mdp, TabularMDP):
        raise UsageError(f"{by} plans in a table: it needs a tabular task, which {spec.name} is not")
    return mdp


class TabularTask(Task):
    """Episodes of a TabularMDP: `spec.info["mdp"]` is the model.

    Observation: {"state": int64 [N], "step": int64 [N]}, the step because optimal policies depend on it; it is H in
    the successor of the last decision. Action: int64 [N]. Episodes terminate (they are not truncated) after H
    decisions: the horizon belongs to the problem. Restores exactly.
    """

    def __init__(
        self, mdp: TabularMDP, num: int = 1, seed: int = 0, evaluation: bool = False, name: str = "tabular MDP"
    ) -> None:
        self.mdp = mdp
        self.evaluation = evaluation
        obs = spaces.Dict({"state": spaces.Discrete(mdp.states), "step": spaces.Discrete(mdp.horizon + 1)})
        info = {"mdp": mdp, "horizon": mdp.horizon}
        self.spec = Spec(obs=obs, action=spaces.Discrete(mdp.actions), name=name, info=info)
        self._below = mdp.transition.cumsum(-1).numpy()  # [H, S, A, S]
        self._reward = mdp.reward.numpy()
        self._seat(num, seed)

    def _seat(self, num: int, seed: int) -> None:
        """Rows at the start, whose luck is drawn from `seed`."""
        self.num, self.seed = num, seed
        streams = np.random.SeedSequence(seed, spawn_key=(int(self.evaluation),))
        self._rng = np.random.Generator(np.random.PCG64(streams))
        self._state = np.full(num, self.mdp.start, dtype=np.int64)
        self._time = np.zeros(num, dtype=np.int64)
        self.obs: Obs | None = None
        self.first = torch.ones(num, dtype=torch.bool)

    def reset(self, rows: Tensor | None = None, index: Tensor | None = None) -> Obs:
        mask = slice(None) if rows is None else rows.cpu().numpy()
        self._state[mask] = self.mdp.start
        self._time[mask] = 0
        return self._observe()

    def step(self, record: Mapping[str, Tensor]) -> Step:
        action = record["action"].cpu().numpy()
        if self.obs is None:
            raise RunError(f"{self.spec.name} must be reset before its first step")
        if (self._time >= self.mdp.horizon).any():
            row = int((self._time >= self.mdp.horizon).argmax())
            raise RunError(f"row {row} of {self.spec.name} has ended: it must be reset before it is stepped")
        where = (self._time, self._state, action)
        reward = torch.from_numpy(self._reward[where]).to(torch.get_default_dtype())
        draw = self._rng.random(self.num)
        drawn = (draw[:, None] >= self._below[where]).sum(-1)
        self._state = np.minimum(drawn, self.mdp.states - 1)  # the cumulated sum may end just below 1
        self._time = self._time + 1
        terminated = torch.from_numpy(self._time == self.mdp.horizon)
        return self._observe(), reward, terminated, torch.zeros(self.num, dtype=torch.bool)

    def _twin(self, rows: int, seed: int) -> Task:
        twin = copy.copy(self)
        twin._seat(rows, seed)
        return twin

    def snapshot(self) -> list[Any]:
        return list(zip(self._state.tolist(), self._time.tolist(), strict=True))

    def restore(self, values: Sequence[Any], rows: Tensor | None = None) -> Obs:
        where = self._where(values, rows).numpy()
        self._state[where], self._time[where] = np.array(values, dtype=np.int64).reshape(-1, 2).T
        return self._observe()

    def extra_state(self) -> dict[str, Any]:
        return {
            "random": self._rng.bit_generator.state,
            "state": self._state.tolist(),
            "time": self._time.tolist(),
            "started": self.obs is not None,
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state["random"]
        self._state = np.array(state["state"], dtype=np.int64)
        self._time = np.array(state["time"], dtype=np.int64)
        if state["started"]:
            self._observe()

    def _observe(self) -> Obs:
        state, step = torch.from_numpy(self._state.copy()), torch.from_numpy(self._time.copy())
        self.obs = TensorDict({"state": state, "step": step}, batch_size=[self.num])
        self.first = step == 0
        return self.obs


def random_mdp(
    states: int = 5,
    actions: int = 4,
    horizon: int = 5,
    mdp_seed: int = 0,
    concentration: float = 0.3,
    reward_rate: float = 0.3,
    stationary: bool = False,
) -> TabularMDP:
    """Random transitions ~ Dirichlet(concentration); rewards uniform in [0, 1] in a share `reward_rate` of the pairs.

    The model depends on `mdp_seed` only, not on the seed of a run. With `stationary` it is the same at every step.
    """
    rng = np.random.default_rng(mdp_seed)
    steps = 1 if stationary else horizon
    transition = rng.dirichlet(np.full(states, concentration), size=(steps, states, actions))
    reward = rng.random((steps, states, actions)) * (rng.random((steps, states, actions)) < reward_rate)
    shape = (horizon, states, actions)
    return TabularMDP(
        np.broadcast_to(transition, (*shape, states)).copy(), np.broadcast_to(reward, shape).copy(), horizon
    )


def chain(states: int = 6, horizon: int = 10, slip: float = 0.1) -> TabularMDP:
    """A line of states: action 1 goes right (with probability `slip` left), action 0 goes left and is safe.

    Reward 1 for going right in the last state, 0.01 for going left in the first: exploration must pass the small one.
    """
    transition = np.zeros((states, 2, states))
    reward = np.zeros((states, 2))
    for state in range(states):
        left, right = max(state - 1, 0), min(state + 1, states - 1)
        transition[state, 0, left] = 1.0
        transition[state, 1, right] += 1.0 - slip
        transition[state, 1, left] += slip
    reward[0, 0] = 0.01
    reward[-1, 1] = 1.0
    return TabularMDP(transition, reward, horizon)


class NamedMDP(TabularTask):
    """Episodes of the MDP that the function `model` makes from the options of the task."""

    model: ClassVar[Callable[..., TabularMDP]]

    def __init__(
        self, num: int = 1, seed: int = 0, evaluation: bool = False, name: str = "tabular MDP", **options: Any
    ) -> None:
        for option, value in options.items():
            usual = inspect.signature(self.model).parameters[option].default
            numbers = isinstance(usual, float) and type(value) is int
            if isinstance(usual, (int, float)) and type(value) is not type(usual) and not numbers:
                raise UsageError(f"the {option} of {name} must be of the type of {usual!r}, not {value!r}")
        try:
            mdp = self.model(**options)
        except TypeError as error:
            raise UsageError(f"{name} cannot be made: {error}") from None
        super().__init__(mdp, num, seed, evaluation, name)

    @classmethod
    def options(cls, name: str) -> set[str]:
        return set(inspect.signature(cls.model).parameters)


class RandomMDP(NamedMDP):
    model = staticmethod(random_mdp)


class Chain(NamedMDP):
    model = staticmethod(chain)
