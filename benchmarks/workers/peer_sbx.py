"""SBX's worker: Stable-Baselines3's loop with updates in JAX, `model.learn(steps, reset_num_timesteps=False)`.

Every number comes from the job and equals polopt's; environments are made without Gymnasium's checker, as polopt's are,
and the update is compiled before the first slice. JAX takes as many threads as it may use cores, so the driver pins the
process to that many.
"""

import flax.linen
import gymnasium
from protocol import Job, Run, serve
from sb3_shared import learning, sac_settings
from sbx import SAC

ACTIVATIONS = {"relu": flax.linen.relu, "tanh": flax.linen.tanh}


def sac(job: Job) -> Run:
    env = gymnasium.make(job["task"], disable_env_checker=True)
    return learning(SAC("MlpPolicy", env, **sac_settings(job, ACTIVATIONS)), job["warmup"] + 500)


if __name__ == "__main__":
    serve({"sac": sac}, ("sbx-rl", "jax", "flax", "numpy", "gymnasium", "mujoco"))
