"""What A2PR says of itself besides its mathematics."""

from typing import ClassVar

from polopt.bases.settings import Limit, Settings, Smoke, Study
from polopt.methods.offline.td3_bc import TD3BC

SAME = {"candidate": "data", "advantage_threshold": None, "critic_network": None}


class A2PRSettings(Settings):
    headline: ClassVar[tuple[str, ...]] = ("imitation_loss", "policy_q", "vae_share", "pulled")
    metrics = {
        "imitation_loss": "squared distance from the better one of the two actions, 0 where neither pulls, in every "
        "`delay`-th update | falls, then settles",
        "vae_share": "of the decisions, those for which the autoencoder's action is worth more than the recorded one, "
        "in every `delay`-th update | between 0 and 1",
        "pulled": "share of the decisions that are imitated, in every `delay`-th update | between 0 and 1",
        "target_advantage": "mean Q_1 - V of what might be imitated, in every `delay`-th update | above 0",
        "value": "mean of V | grows to the scale of the return, below `q`",
        "value_loss": "half the squared error of V",
        "reconstruction": "squared error of the autoencoder on better actions, 0 on others | falls",
        "vae_kl": "of its latents from the prior, in nats, over latents | settles",
    }
    presets = {
        "halfcheetah": {"alpha": 40.0},
        "hopper": {"alpha": 2.5, "pull": 0.4, "discount": 0.995},
        "walker2d": {"alpha": 2.5, "vae_weight": 1.5},
    }
    studies = {name: Study(f"mujoco/{name}/medium-v0", 1_000_000) for name in presets}
    limits: ClassVar[tuple[Limit, ...]] = (
        Limit(
            "td3-bc",
            at=SAME,
            apart={"candidate": "vae"},
            because="every decision is drawn to its own action, and nothing reads V",
        ),
        Limit("td3-bc", at=SAME, apart={"advantage_threshold": 0.0}, because="likewise: no decision is left out"),
    )
    smoke = Smoke(
        "Pendulum-v1",
        TD3BC.smoke.steps,
        TD3BC.smoke.config | {"vae_network.sizes": (24,), "critic_network.sizes": (16,)},
    )
    probes = {
        **{name: {"advantage_threshold": None} for name in ("pull", "detach_target", "vae_weight")},  # without masks
        "candidate": {"candidate": "data", "vae_network.sizes": (750, 750)},
    }
