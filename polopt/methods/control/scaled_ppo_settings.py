"""Presets, limit cases, metrics and smoke run of scaled PPO."""

from polopt.bases.method import Limit, Settings, Smoke, Study
from polopt.config import Linear
from polopt.methods.control.ppo_settings import PPOSettings

AS_PPO = {  # where the two differ by default
    "minibatches": 4,
    "minibatch_size": 32,
    "advantage_over": "minibatch",
    "lr": 2.5e-4,
    "lr_schedule": Linear(),
}


class ScaledPPOSettings(Settings):
    headline = ("outer_kl", "data_to_divergence", "promised_gain", "approx_kl")
    metrics = {
        "outer_kl": "KL of the policy that collected to the one after the update, in nats per decision | on a plateau: "
        "whether returns rise when it is made smaller",
        "data_to_divergence": "decisions in the window per nat of `outer_kl` | grows with `envs`; larger: a later "
        "plateau",
        "promised_gain": "reward per decision that the update gained, as the surrogate has it | far above the rise of "
        "train/return: the window is too small for such a step",
        "approx_kl": "as PPO's, averaged over the gradient steps; with `ewma_decay` from the proximal policy",
    }
    default_steps = 1_000_000
    presets = {
        "regulation": {  # polopt
            "window": 16,
            "lr": 1e-3,
            "discount": 0.95,
            "entropy_coefficient": 0.0,
            "value_clip": None,
        },
        "isaacgym": {  # PPO's column, with the size of minibatches and the network that are told of the paper
            name: value for name, value in PPOSettings.presets["isaacgym"].items() if name != "minibatches"
        }
        | {"minibatch_size": 16_384, "network.sizes": (256, 256, 256)},
    }
    studies = {"regulation": Study("point/regulation", 250_000)}
    limits = (
        Limit(
            base="ppo",
            at=AS_PPO,
            apart={"minibatch_size": 16},
            because="with as many environments as PPO has there are as many minibatches",
        ),
        Limit(
            base="ppo",
            at=AS_PPO,
            apart={"ewma_decay": 0.5},
            because="without an average, the policy that collects is the one that the ratio is taken against",
        ),
    )
    probes = PPOSettings.probes | {"stagger": {"window": 8}}
    smoke = Smoke(
        "CartPole-v1",
        192,
        {"envs": 2, "window": 32, "minibatch_size": 32, "epochs": 2, "ewma_decay": 0.5, "network.sizes": (16,)},
    )
