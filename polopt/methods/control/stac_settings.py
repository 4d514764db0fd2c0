"""Presets, limit case and smoke run of STAC.

Each preset but "pendulum" has the settings of the official runs on the task of that name: 1M steps on Hopper-v4,
Swimmer-v4, BipedalWalker-v3 and LunarLander-v3 (continuous, wind 20, turbulence 2), 3M on the others.
"""

from polopt.bases.method import Limit, Settings, Smoke, Study
from polopt.methods.control.sac import SAC

OF_SAC = {"pessimism": 0.0, "std": 1.0, "temperature_step": "adam", "entropy.initial": 1.0}


POLICY, BOTH = {"policy_dropout": 0.01}, {"policy_dropout": 0.01, "critic_dropout": 0.01}
BETA, ENTROPY = "pessimism", "entropy.target_entropy"


class STACSettings(Settings):
    headline = ("entropy", "entropy_temperature", "q", "std")
    metrics = {
        "q": "mean of the critic's Gaussian over the batch | as in `sac`; with pessimism below the return",
        "std": "its standard deviation: how uncertain the target of one step is | falls to what the world and the "
        "policy leave uncertain",
        "critic_loss": "-log N(target; mean, std), summed over critics, without log(2 pi) / 2 | falls, below 0 too",
        "policy_loss": "temperature log pi - (mean - beta std) | as in `sac`",
    }
    default_steps = 1_000_000
    presets = {
        "ant": BOTH | {BETA: 0.25, ENTROPY: -8.0},
        "halfcheetah": {BETA: 0.0, ENTROPY: -6.0},
        "hopper": BOTH | {BETA: 0.5, ENTROPY: -3.0},
        "humanoid": POLICY | {BETA: 0.25, ENTROPY: -17.0},
        "swimmer": POLICY | {BETA: 0.0, ENTROPY: -1.0},
        "walker2d": POLICY | {BETA: 0.125, ENTROPY: -6.0},
        "bipedal-walker": {"critic_dropout": 0.01, BETA: 0.375, ENTROPY: -4.0},
        "bipedal-walker-hardcore": POLICY | {BETA: 0.125, ENTROPY: -4.0},
        "lunar-lander": BOTH | {BETA: 0.0, ENTROPY: -2.0},
        "risky": {BETA: 0.25, ENTROPY: -2.0, "entropy.initial": 0.01},
        "pendulum": SAC.presets["pendulum"],
    }
    studies = {"risky": Study("point/risky", 100_000)}
    limits = (
        Limit(
            base="sac",
            base_at={"critics": 1, "network.normalization": "layer"},
            at=OF_SAC,
            apart={"pessimism": 0.25},
            because="with a standard deviation of 1 the likelihood is half the square, and without pessimism its mean "
            "is what SAC has of a single critic",
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        96,
        {"warmup": 64, "batch_size": 32, "network.sizes": (16, 16), "replay_size": 1_000},
    )
