"""Gymnasium environments as a task: vectorised by Gymnasium, checked at the border, restored exactly.

An environment has no state to save, but every episode here starts from a seed that the task gives. So a row's state is
the seed of its episode and the actions since: restoring resets with that seed and replays them. Whether this holds
bitwise for an environment is tested on throw-away copies (`exact_restore`). Very long episodes are not kept (`Plans`).
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array
from tensordict import TensorDict
from torch import Tensor

from polopt.core.errors import CheckpointError, Notice, RunError, UsageError
from polopt.core.observations import MASK_KEY, served
from polopt.core.spec import Spec
from polopt.core.workers import main_hidden
from polopt.tasks.base import EVALUATE, EVALUATE_INDEX, TRAIN, TRAIN_INDEX, Obs, Step, Task, start_seed
from polopt.tasks.facts import Shapes, probe
from polopt.tasks.petting import FLAGS
from polopt.tasks.plans import Plans
from polopt.tasks.restorable import Row, restores
from polopt.tasks.spaces import NonFinite, as_floats, reader, unpacked, without_choice, writer


class GymTask(Task):
    """`num` copies of the environment that `make` makes, in this process or (`workers` > 0) one process per row.

    Observation spaces: Box (floats come in the default dtype, uint8 stays), Discrete and MultiDiscrete (int64, from 0),
    MultiBinary (floats, or bool under the key "action_mask"), Dict of these, Tuple (as a Dict with keys "0", "1", ...).
    Action spaces: Box (actions [N, A], flattened), Discrete (int64 [N]), MultiDiscrete (int64 [N, D]), both from the
    `start` of the space on. Others raise UsageError. What makes a `petting.TeamEnv` gives a task of a team.

    `facts` are entries of the environment's `info` that every step must have: numbers, or arrays of one shape; they are
    served as floats. An environment with a `reward_space` of several numbers gives them as the fact `rewards`, and
    their sum as the reward.

    Raises RunError naming the task, the row and the step of the episode when the environment raises, or gives a
    non-finite reward, observation or fact, or one that does not fit its space or has another shape than at first.

    Workers are started by "forkserver" ("spawn" on Windows): a fork of a process with threads (torch's, a progress
    bar's) may hang. Functions and classes of the script itself are sent by value (cloudpickle).
    """

    def __init__(
        self,
        make: Callable[[], gymnasium.Env],
        num: int = 1,
        seed: int = 0,
        workers: int = 0,
        evaluation: bool = False,
        name: str = "this task",
        facts: Sequence[str] = (),
    ) -> None:
        self.num = num
        self.seed = seed
        self.evaluation = evaluation
        self._make = make
        self._name = name
        self._workers = workers
        self._asked: Shapes = probe(make, facts, name) if facts else {}
        self._vector: Any
        self._vector, info, said = self._make_vector(workers)
        self._broken = False
        self._finalizer = weakref.finalize(self, _close, self._vector)
        if workers:
            atexit.register(self._finalizer)  # before the end of multiprocessing, which would wait for them
        space, action = self._vector.single_observation_space, self._vector.single_action_space
        self._read = reader(space, name)
        self._write = writer(action)
        self.spec = Spec(served(space), action, name, info, env_obs=space, **said)
        self._facts: Shapes = dict(self.spec.facts)
        self._flags = [name for name in FLAGS if self.spec.agents > 1]
        self._masked = self.spec.agents == 1 and self.spec.discrete and MASK_KEY in getattr(space, "spaces", {})

        self.obs: Obs | None = None
        self.first = torch.ones(num, dtype=torch.bool)
        self._none_first = torch.zeros(num, dtype=torch.bool)
        self._ended = np.zeros(num, dtype=bool)
        self._any_ended = False
        self._steps = np.zeros(num, dtype=np.int64)  # of the present episodes
        self._episodes = np.zeros(num, dtype=np.int64)  # started so far, per row
        self._seeds = [0] * num  # of the present episodes
        self._plans = Plans(num, action)

    def _make_vector(self, workers: int) -> tuple[VectorEnv, dict[str, Any], dict[str, Any]]:
        """The rows, what is registered about the environment, and what else its spec says."""
        rows = [Row(self._make, row, self._asked, self._name) for row in range(self.num)]
        vector = _vectorize(rows, workers, self._name)
        return vector, rows[0].info, rows[0].said

    # Stepping

    def reset(self, rows: Tensor | None = None, index: Tensor | None = None) -> Obs:
        mask = np.ones(self.num, dtype=bool) if rows is None else rows.cpu().numpy().astype(bool)
        if self.obs is None and not mask.all():
            raise RunError(f"{self._name} must be reset in all rows first")
        seeds: list[int | None] = [None] * self.num
        for row in np.flatnonzero(mask).tolist():
            if index is None:
                key = [EVALUATE if self.evaluation else TRAIN, row, int(self._episodes[row])]
                self._episodes[row] += 1
            else:
                key = [EVALUATE_INDEX if self.evaluation else TRAIN_INDEX, int(index[row])]
            seeds[row] = self._seeds[row] = start_seed(self.seed, key)
        self._steps[mask] = 0
        self._ended[mask] = False
        self._any_ended = bool(self._ended.any())
        # A fresh options dict each time: Gymnasium pops the mask from it.
        raw, info = self._call(self._vector.reset, seed=seeds, options={"reset_mask": mask})
        new = self._checked(raw, info)
        if self._masked:
            self._check_choice(new, mask)
        chosen = torch.from_numpy(mask)
        self.obs = new if rows is None or self.obs is None else where_rows(chosen, new, self.obs)
        self.first = self.first | chosen
        return self.obs

    def step(self, record: Mapping[str, Tensor]) -> Step:
        if self.obs is None:
            raise RunError(f"{self._name} must be reset before its first step")
        if self._any_ended:
            row = int(self._ended.argmax())
            raise RunError(f"row {row} of {self._name} has ended: it must be reset before it is stepped")
        action = self._write(record["action"])
        self._plans.add(action, self._steps)
        self._steps += 1
        raw, reward, terminated, truncated, info = self._call(self._vector.step, action)
        obs = self._checked(raw, info)
        finite = np.isfinite(reward)
        if not finite.all():
            row = int((~finite).argmax())
            raise self._fault(f"its reward is {reward[row]}", row)
        if self._facts:
            facts = unpacked(info["facts"], self._facts)
            self.facts = {**facts, **{name: facts[name] > 0 for name in self._flags}}
        self._ended = terminated | truncated
        self._any_ended = bool(self._ended.any())
        if self._masked:
            self._check_choice(obs, ~self._ended)
        self.first = self._none_first
        self.obs = obs
        return obs, as_floats(reward), torch.from_numpy(terminated), torch.from_numpy(truncated)

    def render(self) -> list[Any]:
        return list(self._call(self._vector.render))

    def close(self) -> None:
        self._finalizer()

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (EOFError, ConnectionError, gymnasium.error.ClosedEnvironmentError) as error:
            _close(self._vector, force=True)
            raise RunError(f"a worker process of {self._name} has ended ({type(error).__name__})") from None

    def _checked(self, raw: Any, info: dict[str, Any]) -> Obs:
        if "fault" in info:
            row = int(np.argmax(info["_fault"]))
            raise RunError(f"{self._name} failed: {info['fault'][row]}")
        try:
            return self._read(raw)
        except NonFinite as error:
            raise self._fault(f"its observation{error.where} is not finite", error.row) from None

    def _check_choice(self, obs: Any, live: np.ndarray) -> None:
        """Raises RunError where a mask forbids every action in a row that goes on; at an end it may."""
        stuck = without_choice(obs[MASK_KEY], self.spec.action) & torch.from_numpy(live)
        if stuck.any():
            raise self._fault(f"its {MASK_KEY} forbids every action", int(stuck.int().argmax()))

    def _fault(self, what: str, row: int) -> RunError:
        return RunError(f"{self._name} failed: {what} (row {row}, step {self._steps[row]} of the episode)")

    # Saving and restoring

    @functools.cached_property
    def restore_note(self) -> str:  # type: ignore[override]
        return restores(self._make, self._name)

    @property
    def exact_restore(self) -> bool:  # type: ignore[override]
        return not self.restore_note

    def extra_state(self) -> dict[str, Any]:
        state: dict[str, Any] = {"episodes": self._episodes.tolist()}
        if self.obs is None or not self.exact_restore:
            return state
        plans = self._plans.of(self._steps)
        state |= {"seeds": list(self._seeds), "steps": self._steps.tolist(), "ended": self._ended.tolist()}
        state |= {"kept": list(map(len, plans)), "actions": torch.from_numpy(np.concatenate(plans))}
        return state | {f"obs{path}": leaf for path, leaf in leaves(self.obs)}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if len(state["episodes"]) != self.num:
            raise CheckpointError(f"it has {len(state['episodes'])} rows of {self._name} and this run has {self.num}")
        self._episodes = np.array(state["episodes"], dtype=np.int64)
        if not self._episodes.any() and "seeds" not in state:
            return  # saved before the first reset
        if "seeds" not in state or not self.exact_restore:
            self.reset()
            return
        self._seeds = list(state["seeds"])
        self._steps = np.array(state["steps"], dtype=np.int64)
        self._ended = np.array(state["ended"], dtype=bool)
        self._any_ended = bool(self._ended.any())
        counts = np.array(state["kept"], dtype=np.int64)
        plans = np.split(state["actions"].numpy(), np.cumsum(counts)[:-1])
        self._plans.load(plans)
        kept = counts == self._steps
        self.obs = self._replayed(plans, np.ones(self.num, dtype=bool))
        self.first = torch.from_numpy(self._steps == 0)
        rows = torch.from_numpy(kept)
        saved = {f"obs{path}": leaf for path, leaf in leaves(self.obs)}
        if not all(torch.equal(leaf[rows], state[name].to(leaf.dtype)[rows]) for name, leaf in saved.items()):
            self.restore_note = f"{self._name} did not replay to the saved observation, so its episodes start anew"
            self.reset()
        elif not kept.all():
            limit = f"were longer than the {self._plans.longest:,} steps that are kept, so they start anew"
            warnings.warn(f"{(~kept).sum()} of the {self.num} episodes of {self._name} {limit}", Notice, stacklevel=2)
            self.reset(~rows)

    def _twin(self, rows: int, seed: int) -> Task:
        facts = tuple(self._asked)
        return GymTask(self._make, rows, seed, self._workers, self.evaluation, self._name, facts)

    def snapshot(self) -> list[Any]:
        self._check_replay()
        if self.obs is None:
            raise RunError(f"{self._name} must be reset before it can be taken back to where it is")
        if not self._plans.whole(self._steps).all():
            reason = f"its episode is longer than the {self._plans.longest:,} steps that are kept"
            raise UsageError(f"{self._name} cannot take a row back to where it was: {reason}")
        return [
            {"seed": seed, "actions": plan, "ended": bool(ended), "obs": self.obs[row]}
            for row, (seed, plan, ended) in enumerate(zip(self._seeds, self._plans.of(self._steps), self._ended))
        ]

    def restore(self, values: Sequence[Any], rows: Tensor | None = None) -> Obs:
        self._check_replay()
        where = self._where(values, rows)
        if self.obs is None and len(where) < self.num:
            raise RunError(f"{self._name} must be reset in all rows first")
        mask = np.zeros(self.num, dtype=bool)
        mask[where.numpy()] = True
        plans = self._plans.of(self._steps)
        for row, value in zip(where.tolist(), values):
            self._seeds[row], plans[row], self._ended[row] = value["seed"], value["actions"], value["ended"]
            self._steps[row] = len(plans[row])
        self._any_ended = bool(self._ended.any())
        self._plans.load(plans)
        new = self._replayed(plans, mask)
        self.obs = new if self.obs is None else where_rows(torch.from_numpy(mask), new, self.obs)
        self.first = torch.where(torch.from_numpy(mask), torch.from_numpy(self._steps == 0), self.first)
        for row, value in zip(where.tolist(), values):
            if not all(torch.equal(one, other) for (_, one), (_, other) in zip(leaves(new[row]), leaves(value["obs"]))):
                raise RunError(f"{self._name} did not replay to where it was (row {row}, step {self._steps[row]})")
        return self.obs

    def _check_replay(self) -> None:
        if not self.exact_restore:
            reason = "it does not repeat itself exactly from a seed and the same actions"
            raise UsageError(f"{self._name} cannot take a row back to where it was: {reason}")

    def _replayed(self, plans: list[np.ndarray], mask: np.ndarray) -> Obs:
        """The observations after the rows where `mask` is True were begun anew and went through their plans."""
        raw, info = self._call(self._vector.reset, seed=list(self._seeds), options={"reset_mask": mask.copy()})
        start = self._checked(raw, info)
        plans = [plan if again else plan[:0] for plan, again in zip(plans, mask)]
        self._call(self._vector.set_attr, "plan", [list(plan) for plan in plans])
        results = self._call(self._vector.call, "replay")
        fault = next((fault for _, fault in results if fault), "")
        if fault:
            raise RunError(f"{self._name} failed while its episodes were replayed: {fault}")
        stepped = [row for row, plan in enumerate(plans) if len(plan)]
        if not stepped:
            return start
        space = self._vector.single_observation_space
        last = [results[row if row in stepped else stepped[0]][0] for row in range(self.num)]
        out: Any = create_empty_array(space, n=self.num)
        batch = concatenate(space, last, out)
        return where_rows(torch.tensor([len(plan) > 0 for plan in plans]), self._checked(batch, {}), start)


# Vectors


class Rows(SyncVectorEnv):
    """Rows in this process. A step is that of its base without what nobody asks for here: entries of an info that is
    empty, copies of arrays that are fresh, and who is to be reset."""

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        told = [env.step(action) for env, action in zip(self.envs, actions, strict=True)]
        self._env_obs, rewards, terminated, truncated, each = map(list, zip(*told))
        infos: dict[str, Any] = {}
        for row, info in enumerate(each):
            if info:
                infos = self._add_info(infos, info, row)
        self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return self._observations, np.array(rewards, float), np.array(terminated), np.array(truncated), infos


def _vectorize(rows: list[Row], workers: int, name: str) -> SyncVectorEnv | AsyncVectorEnv:
    if not workers:
        return Rows(rows, copy=False, autoreset_mode=AutoresetMode.DISABLED)
    import multiprocessing

    methods = multiprocessing.get_all_start_methods()
    method = "forkserver" if "forkserver" in methods else "spawn"
    if method == "forkserver":
        # Gymnasium is loaded once, in the server that the workers are forked from.
        multiprocessing.get_context(method).set_forkserver_preload(["polopt.tasks.making"])
    options: dict[str, Any] = {"max_concurrency": workers} if workers < len(rows) else {}
    try:
        with main_hidden():
            return AsyncVectorEnv(rows, copy=False, context=method, autoreset_mode=AutoresetMode.DISABLED, **options)
    except UsageError:
        raise
    except (EOFError, ConnectionError):
        raise UsageError(f"the worker processes of {name} ended while they started") from None
    except Exception as error:
        text = " ".join(str(error).split())
        raise UsageError(f"{name} cannot run in worker processes: {type(error).__name__}: {text}") from error


def _close(vector: VectorEnv, force: bool = False) -> None:
    """Ends processes and windows without a word, also at exit and after a fault."""
    if vector.closed:
        return
    with contextlib.suppress(Exception):
        if isinstance(vector, AsyncVectorEnv):
            force = force or vector._state.value != "default"
            vector._state = type(vector._state).DEFAULT  # else Gymnasium warns and waits for the pending call
            if force:
                for process in vector.processes:
                    process.kill()  # workers leave SIGTERM to the run
            vector.close(terminate=force)
        else:
            vector.close()
    vector.closed = True


# Observations


def where_rows(rows: Tensor, new: Any, old: Any) -> Any:
    """Rows of `new` where the mask is True, else of `old`."""
    if isinstance(new, Tensor):
        return torch.where(rows.reshape(-1, *[1] * (new.dim() - 1)), new, old)
    return TensorDict({key: where_rows(rows, value, old[key]) for key, value in new.items()}, batch_size=new.batch_size)


def leaves(obs: Any, path: str = "") -> list[tuple[str, Tensor]]:
    """The tensors of an observation with their paths: ".state.position"."""
    if isinstance(obs, Tensor):
        return [(path, obs)]
    return [leaf for key, value in obs.items() for leaf in leaves(value, f"{path}.{key}")]
