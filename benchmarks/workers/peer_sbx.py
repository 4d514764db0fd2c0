"""SBX's worker: Stable-Baselines3's loop with updates in JAX, `model.learn(steps, reset_num_timesteps=False)`.

Every number comes from the job and equals polopt's; environments are made without Gymnasium's checker, as polopt's are,
and the update is compiled before the first slice. JAX takes as many threads as it may use cores, so the driver pins the
process to that many.
"""

import flax.linen
import gymnasium
from protocol import Job, Run, serve
from sbx import SAC

ACTIVATIONS = {"relu": flax.linen.relu, "tanh": flax.linen.tanh}


def sac(job: Job) -> Run:
    model = SAC(
        "MlpPolicy",
        gymnasium.make(job["task"], disable_env_checker=True),
        learning_rate=job["lr"],
        buffer_size=job["replay_size"],
        learning_starts=job["warmup"],
        batch_size=job["batch_size"],
        tau=job["tau"],
        gamma=job["discount"],
        train_freq=1,
        gradient_steps=1,
        policy_kwargs={"net_arch": job["sizes"], "activation_fn": ACTIVATIONS[job["activation"]]},
        seed=job["seed"],
        device="cpu",
    )

    def run(units: int) -> None:
        model.learn(units, reset_num_timesteps=False)

    run(job["warmup"] + 500)
    return run


if __name__ == "__main__":
    serve({"sac": sac}, ("sbx-rl", "jax", "flax", "numpy", "gymnasium", "mujoco"))
