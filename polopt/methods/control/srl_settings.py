"""Presets, meanings of the numbers and smoke run of SRL.

Each preset but "small" has the settings of the released code for the task of that name. Of SRL only the networks and
losses are released: the steps are those of its SAC baseline there, and how many actions a sequence has is not said.
"""

from polopt.bases.method import Settings, Smoke, Study


class SRLSettings(Settings):
    headline = ("entropy", "entropy_temperature", "q", "model_loss")
    metrics = {
        "critic_loss": "half the squared error of single actions, summed over critics | may grow with the returns",
        "policy_loss": "temperature log pi - min Q, summed over the places of a sequence | falls as values rise; its "
        "level means nothing",
        "entropy": "-log pi of fresh sequences, a mean over their places, in nats, in the policy's units [-1, 1] | "
        "settles at `target_entropy`",
        "model_loss": "squared error of the model's next observation, a mean over coordinates | falls; along a "
        "sequence errors add up",
        "interval_return": "the return, averaged over how many decisions lie between two looks (`intervals`) | grows; "
        "near `return_every_1`: looking less often costs little",
    }
    default_steps = 1_000_000
    presets = {
        "pendulum": {"warmup": 1_000},
        "lunar-lander": {},
        "reacher": {},
        "hopper": {},
        "halfcheetah": {},
        "humanoid": {},
        "small": {"warmup": 1_000, "network.sizes": (64, 64), "model_network.sizes": (64, 64)},
    }
    studies = {
        "pendulum": Study("Pendulum-v1", 30_000),
        "lunar-lander": Study("LunarLanderContinuous-v3", 500_000),
        "reacher": Study("Reacher-v5", 500_000),
        "hopper": Study("Hopper-v5", 1_000_000),
        "halfcheetah": Study("HalfCheetah-v5", 5_000_000),
        "humanoid": Study("Humanoid-v5", 10_000_000),
    }
    no_limit = (
        "the policies that SAC takes see no action before; with sequences of one action it is SAC with the decoder for "
        "its policy, bitwise, which its own test shows"
    )
    probes = {"recall": {"model_network.sizes": (400, 300)}}
    smoke = Smoke(
        "Pendulum-v1",
        96,
        {
            "warmup": 64,
            "batch_size": 32,
            "network.sizes": (16, 16),
            "replay_size": 1_000,
            "policy.length": 3,
            "model_network.sizes": (16,),
        },
    )
