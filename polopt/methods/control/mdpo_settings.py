"""Presets, limit cases and smoke runs of MDPO, on-policy and off-policy."""

from polopt.bases.method import Limit, Settings, Smoke
from polopt.methods.control.ppo_settings import PPOSettings
from polopt.methods.control.sac import SAC

RAW = {"normalize_obs": False, "normalize_reward": False}
ONE_STEP = RAW | {"epochs": 1, "minibatches": 1, "max_grad_norm": None, "entropy_coefficient": 0.0}
UNIT_TEMPERATURE = {"entropy": "fixed", "entropy.value": 1.0}  # lambda = 1, the default of c


class MDPOSettings(Settings):
    headline = ("entropy", "divergence", "step_size", "explained_variance")
    metrics = {
        "divergence": "KL(new || old), averaged over inner steps and batch; with `tsallis_q` above 1 the sampled "
        "Tsallis divergence",
        "step_size": "t of mirror descent, in units of 1 / `--proximity` | from 1 down to 1 / number of iterations",
        "clip_fraction": "nothing is clipped | 0",
    }
    default_steps = 1_000_000
    presets = {"classic": RAW | {"window": 512, "minibatches": 4, "lr": 1e-3}}
    limits = (
        Limit(
            base="ppo",
            at=ONE_STEP | {"inner_steps": 1, "value_coefficient": 0.5, "lr": 2.5e-4, "lr_schedule": "linear"},
            apart={"inner_steps": 2},
            because="the first step meets neither a divergence nor a clip: both are the plain policy gradient, up to "
            "rounding (PPO shuffles the batch, and a softmax's divergence from itself has a gradient of rounding size)",
            base_at=ONE_STEP,
            tolerance=1e-10,
        ),
    )
    smoke = Smoke("CartPole-v1", PPOSettings.smoke.steps, PPOSettings.smoke.config | {"inner_steps": 3})


class OffPolicyMDPOSettings(Settings):
    headline = ("entropy", "divergence", "q", "critic_loss")
    metrics = {
        "divergence": "mean of log pi - log pi_k at fresh samples, an estimate of KL(new || old)",
        "value_loss": "of the state-value network, where there is one",
    }
    presets = {"pendulum": SAC.presets["pendulum"] | {"refresh": 200}}
    limits = (
        Limit(
            base="sac",
            at=UNIT_TEMPERATURE | {"value_network": False, "moment_penalty": 0.0, "policy_critic": "min"},
            apart={"proximity": 0.5},
            because="at c = lambda the old policy has no weight, and what is left is SAC at that temperature",
            base_at=UNIT_TEMPERATURE,
        ),
    )
    smoke = Smoke("Pendulum-v1", SAC.smoke.steps, SAC.smoke.config | {"refresh": 16})
