"""Stable-Baselines3's worker: `model.learn(steps, reset_num_timesteps=False)`, the documented way to go on.

Every number comes from the job and equals polopt's; environments are made without Gymnasium's checker, as polopt's are.
Left as they are: the Monitor wrapper and its own record of losses (nothing is printed or written).
"""

import os

import gymnasium
import torch
from protocol import Job, Run, serve
from sb3_curves import CASES as CURVES
from sb3_shared import exploring, learning, sac_settings
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

ACTIVATIONS = {"relu": torch.nn.ReLU, "tanh": torch.nn.Tanh}


def sac(job: Job) -> Run:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    env = gymnasium.make(job["task"], disable_env_checker=True)
    model = SAC("MlpPolicy", env, **sac_settings(job, ACTIVATIONS))
    return learning(model, job["warmup"] + 500)


def td3(job: Job) -> Run:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    env = gymnasium.make(job["task"], disable_env_checker=True)
    model = TD3(
        "MlpPolicy",
        env,
        **sac_settings(job, ACTIVATIONS),
        policy_delay=job["delay"],
        target_policy_noise=job["target_noise"],
        target_noise_clip=job["target_noise_clip"],
        action_noise=exploring(env, job["exploration_noise"]),
    )
    return learning(model, job["warmup"] + 500)


def ppo(job: Job) -> Run:
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    envs = make_vec_env(
        job["task"],
        n_envs=job["envs"],
        seed=job["seed"],
        vec_env_cls={"DummyVecEnv": DummyVecEnv, "SubprocVecEnv": SubprocVecEnv}[job["vector"]],
        env_kwargs={"disable_env_checker": True},
    )
    model = PPO(
        "MlpPolicy",
        envs,
        learning_rate=job["lr"],
        n_steps=job["window"],
        batch_size=job["batch_size"],
        n_epochs=job["epochs"],
        gamma=job["discount"],
        gae_lambda=job["gae_lambda"],
        clip_range=job["clip"],
        clip_range_vf=None,
        ent_coef=job["entropy_coefficient"],
        vf_coef=job["value_coefficient"],
        max_grad_norm=job["max_grad_norm"],
        policy_kwargs={"net_arch": job["sizes"], "activation_fn": ACTIVATIONS[job["activation"]]},
        seed=job["seed"],
        device="cpu",
    )
    return learning(model, job["envs"] * job["window"])


if __name__ == "__main__":
    serve(
        {"sac": sac, "td3": td3, "ppo": ppo} | CURVES,
        ("stable-baselines3", "sb3-contrib", "torch", "numpy", "gymnasium", "mujoco"),
    )
