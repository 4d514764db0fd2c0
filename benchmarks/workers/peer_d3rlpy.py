"""d3rlpy's side of the offline cases: `iql` and `td3-bc` (updates), and their curves, through its public names alone.

The rate takes `algo.update(buffer.sample_transition_batch(n))`, the body of its training loop `fitter`, which takes the
same time but cannot be cut into rounds; the curve takes `fitter`, as users do, with neither logger nor progress bar. On
a CPU d3rlpy has no compiled mode.

Made equal: the data, down to the last transition of an episode, all of `offline_data.IQL` and `TD3_BC` (the papers'
settings), the cosine of the learning rate of IQL's policy, the factor on its rewards, observations as they are for IQL
and standardized for TD3+BC, seeds and starts of the evaluation, and single precision. d3rlpy drops the last transition
of an episode that was cut off, because it keeps no observation after it; here such an episode has one more row, which
holds that observation and is never drawn itself.

Not to be made equal by options, and left as each library has it: d3rlpy turns its losses into Python numbers in each
update, ours sums them as tensors, and each has its own random numbers. Of TD3+BC nothing else, but that its policy
moves on the first of two updates, ours on the second. Of IQL: ours starts from orthogonal weights and a standard
deviation of 1 (the official code), d3rlpy from PyTorch's weights and, by a sigmoid between its bounds, one of 0.22;
ours has half the squared error in the critics, where Adam sees no difference; ours updates value, policy, critics in
this order (the official code's), d3rlpy value and critics in one step, then the policy.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import d3rlpy
import numpy as np
import torch
from protocol import Job, Run, serve

sys.path.append(str(Path(__file__).resolve().parents[1]))
import offline_data


def replay(data: offline_data.Data) -> d3rlpy.dataset.ReplayBuffer:
    """Arrays as `offline_data` has them -> d3rlpy's buffer."""
    episodes, begin = [], 0
    for end in offline_data.ends(data).tolist():
        obs, actions, rewards = (data[key][begin:end] for key in ("observations", "actions", "rewards"))
        terminated = bool(data["terminals"][end - 1])
        if not terminated:  # a row for the observation after the last transition
            obs = np.concatenate([obs, data["next_observations"][end - 1 : end]])
            actions = np.concatenate([actions, np.zeros_like(actions[:1])])
            rewards = np.concatenate([rewards, np.zeros_like(rewards[:1])])
        episodes.append(d3rlpy.dataset.Episode(obs, actions, rewards[:, None], terminated))
        begin = end
    return d3rlpy.dataset.create_infinite_replay_buffer(episodes=episodes)


def iql(job: Job, data: offline_data.Data, updates: int) -> d3rlpy.algos.IQL:
    """IQL with the settings that both sides share; `updates` is where the policy's learning rate ends."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    d3rlpy.seed(job["seed"])
    settings = offline_data.iql_settings(job)
    low, high = offline_data.return_range(data)
    scaler = d3rlpy.preprocessing.ReturnBasedRewardScaler(return_max=high, return_min=low, multiplier=1000.0)
    encoder = d3rlpy.models.VectorEncoderFactory(list(settings["sizes"]), activation="relu")
    cosine = d3rlpy.optimizers.CosineAnnealingLRFactory(T_max=updates)
    return d3rlpy.algos.IQLConfig(
        batch_size=settings["batch_size"],
        actor_learning_rate=settings["lr"],
        critic_learning_rate=settings["lr"],
        gamma=settings["discount"],
        tau=settings["tau"],
        expectile=settings["expectile"],
        weight_temp=settings["advantage_temperature"],
        max_weight=settings["weight_clip"],
        n_critics=settings["critics"],
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        value_encoder_factory=encoder,
        actor_optim_factory=d3rlpy.optimizers.AdamFactory(lr_scheduler_factory=cosine),
        reward_scaler={"return-range": scaler, "none": None}[settings["rewards"]],
    ).create(device="cpu")


def td3_bc(job: Job, data: offline_data.Data, updates: int) -> d3rlpy.algos.TD3PlusBC:
    """TD3+BC with the settings that both sides share; nothing depends on the number of updates."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    d3rlpy.seed(job["seed"])
    settings = offline_data.td3_bc_settings(job)
    encoder = d3rlpy.models.VectorEncoderFactory(list(settings["sizes"]), activation="relu")
    obs = data["observations"].astype(np.float64)
    scaler = d3rlpy.preprocessing.StandardObservationScaler(mean=obs.mean(0), std=obs.std(0), eps=1e-3)
    return d3rlpy.algos.TD3PlusBCConfig(
        batch_size=settings["batch_size"],
        actor_learning_rate=settings["lr"],
        critic_learning_rate=settings["lr"],
        gamma=settings["discount"],
        tau=settings["tau"],
        alpha=settings["alpha"],
        n_critics=settings["critics"],
        update_actor_interval=settings["delay"],
        target_smoothing_sigma=settings["target_noise"],
        target_smoothing_clip=settings["target_noise_clip"],
        actor_encoder_factory=encoder,
        critic_encoder_factory=encoder,
        observation_scaler=scaler if settings["normalize_obs"] else None,
    ).create(device="cpu")


LEARNERS = {"iql": iql, "td3-bc": td3_bc}


def rate(job: Job) -> Run:
    data = offline_data.random_data(job["transitions"], job["seed"])
    algo, buffer = LEARNERS[job["case"]](job, data, updates=1_000_000), replay(data)
    algo.build_with_dataset(buffer)
    return offline_data.timed(lambda: buffer.sample_transition_batch(algo.batch_size), algo.update)


def curve(job: Job) -> Iterator[dict]:
    data = offline_data.load(job)
    name = job["case"].removesuffix("-curve")
    algo, buffer = LEARNERS[name](job, data, updates=job["updates"]), replay(data)
    algo.build_with_dataset(buffer)
    epochs = algo.fitter(
        buffer,
        n_steps=job["updates"],
        n_steps_per_epoch=job["eval_every"],
        logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
        show_progress=False,
    )

    def predict(obs: np.ndarray) -> np.ndarray:
        return algo.predict(obs[None].astype(np.float32))[0]

    yield from offline_data.curve(epochs, predict, job)


if __name__ == "__main__":
    cases = dict.fromkeys(LEARNERS, rate) | dict.fromkeys((f"{name}-curve" for name in LEARNERS), curve)
    serve(cases, ("d3rlpy", "torch", "gymnasium", "mujoco"))
