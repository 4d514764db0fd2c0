"""Presets, limit case, smoke run and meanings of the numbers of GoRL.

`dm-control` is the official code's for its six tasks of the DeepMind Control Suite (60, 60, 30 and 30 million steps of
MuJoCo Playground), `hopper-stand` with the decoder that it has for that one. `small` is polopt's, of the claim.
"""

from typing import Any

from polopt.bases.method import Limit, Settings, Smoke, Study
from polopt.methods.control.ppo import PPO

DM_CONTROL: dict[str, Any] = {
    "envs": 2048,
    "window": 480,
    "stage_steps": (60_000_000, 60_000_000, 30_000_000),
    "decoder_windows": 4,  # of 4,096 episodes of 1,000 steps, and 50,000 updates
    "decoder_epochs": 104,
    "policy.decoder_network.sizes": (128,) * 4,
}


class GoRLSettings(Settings):
    headline = ("entropy", "approx_kl", "latent_size", "decoder_loss", "explained_variance")
    trains_on = "box actions"
    metrics_of = (PPO,)
    metrics = {
        "stage": "`encoder` or `decoder`; the numbers are those of the stage",
        "entropy": "of the latent, in nats | falls in a stage, and begins anew with the next",
        "latent_size": "mean^2 + std^2 of the latent, a mean over coordinates; 1 is the prior's | far above: latents "
        "leave what the decoder has been trained on",
        "decoder_loss": "squared error of the velocity, a mean over coordinates; it does not go to 0, because noise is "
        "not told by what it made | falls, then stays",
    }
    default_steps = 400_000
    presets = {
        "dm-control": DM_CONTROL,
        "hopper-stand": DM_CONTROL | {"policy.decoder_network.sizes": (64,) * 4, "decoder_clip": None},
        "small": {
            "envs": 64,
            "stage_steps": (60_000, 60_000),
            "epochs": 5,
            "minibatches": 4,
            "discount": 0.99,
            "decoder_windows": 4,
            "decoder_epochs": 40,
            "decoder_batch": 512,
            "decoder_draws": 4,
            "decoder_lr": 1e-3,
            "normalize_obs": False,
            "network.sizes": (64, 64),
            "critic_network.sizes": (64, 64),
            "policy.decoder_network.sizes": (64, 64),
        },
    }
    studies = {"small": Study("point/goals", 180_000, {"scale": 0.1})}
    limits = (
        Limit(
            "ppo",
            learner="learner",
            task="Pendulum-v1",
            base_at={"policy": "squashed-gaussian", "entropy_coefficient": 0.0},
            at={
                "stage_steps": (),
                "policy.decoder": None,
                "policy.log_std_init": 0.0,
                "policy.log_std_low": -20.0,
                "policy.log_std_high": 2.0,
                "latent_penalty": 0.0,
                "entropy_coefficient": 0.0,
                "discount": 0.99,
                "surrogate": "ppo",
                "value_clip": 0.2,
                "lr": 2.5e-4,
                "lr_schedule": "linear",
                "adam_eps": 1e-5,
                "normalize_obs": False,
                "network.activation": "tanh",
                "critic_network": None,
            },
            apart={"latent_penalty": 0.1},
            collects="each",
            because="without a decoder the latent is the action before the tanh, whose density leaves the ratio as "
            "it is, up to rounding",
            tolerance=1e-10,
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        320,
        {
            "envs": 2,
            "window": 32,
            "stage_steps": (128,),
            "epochs": 2,
            "minibatches": 2,
            "decoder_windows": 1,
            "decoder_epochs": 2,
            "decoder_batch": 32,
            "decoder_draws": 2,
            "network.sizes": (16,),
            "critic_network.sizes": (16,),
            "policy.decoder.steps": 2,
            "policy.decoder_network.sizes": (16,),
        },
    )
