"""Presets of Uni-O4, what its numbers mean, its limit cases and its smoke run."""

from polopt.bases.method import Limit, Settings, Smoke
from polopt.bases.offline import DISTANCES
from polopt.losses import Surrogate
from polopt.losses.surrogate import METRICS as SURROGATE
from polopt.models.ensemble import Ensemble
from polopt.networks import Network
from polopt.policies import Gaussian

POLICY = Gaussian(mean="tanh", std="state-dependent", log_std_init=-2.5, log_std_low=-5.0, log_std_high=0.0)
MODEL = Ensemble(members=2, elites=1, network=Network((8,), "silu"), batch_size=64, epochs=1)  # a small one
ALONE = {"offline.fit_updates": 0, "offline.improve_updates": 0}


class UniO4Settings(Settings):
    headline = ("estimate", "accepted", "approx_kl", "entropy", "explained_variance")
    trains_on = "recorded data, then the task itself if wanted"
    metrics = SURROGATE | {
        **DISTANCES,
        "stage": "`offline` or `online`; the numbers are those of the stage",
        "value": "mean of V over the batch | grows to the scale of the (scaled) return",
        "q": "mean of Q at the data's actions, over critics | near `value`",
        "value_loss": "offline the expectile loss of V; online half the squared error of the critic, clipped",
        "critic_loss": "half the squared error of Q, summed over critics | falls, then settles",
        "imitation_loss": "-log pi of the data's actions, mean over the clones | falls",
        "diversity": "of each clone the divergence from its nearest other, in nats per coordinate | may well stay 0: "
        "equal clones are a stable point for coefficients below 1",
        "model_loss": "of the model on what it learns from, mean over members",
        "model_error": "error of the best members on held-out decisions, in units of their variance | well below 1",
        "advantage": "mean of Q - V at the old policies' actions, before it is standardized",
        "estimate": "AM-Q of the best accepted policy: mean of Q over what it visits in the model | rises, never falls",
        "accepted": "share of the members that a gate let through | none for long: the policy is as good as Q can tell",
        "entropy": "of the policies, in nats",
    }
    default_steps = 2_010_000 + 1_465  # 3 million environment steps online
    presets = {
        # halfcheetah, hopper, walker2d of D4RL; Minari has mujoco/hopper/medium-v0 and the like
        "locomotion": {"normalize_obs": True},
        "antmaze": {
            "offline.expectile": 0.9,
            "offline.q_network.sizes": (256, 256, 256),
            "critic_network.sizes": (256, 256, 256),
            "offline.rewards": "antmaze",
            "offline.lr": 3e-5,
            "offline.horizon": 200,
        },
        "adroit": {"offline.lr": 1e-5, "offline.horizon": 50, "lr": 4e-6, "minibatches": 8},
        "kitchen": {  # partial and mixed
            "normalize_obs": True,
            "offline.fit_updates": 1_000_000,
            "offline.clone_updates": 200_000,
            "offline.improve_updates": 1_000,
            "offline.lr": 1e-5,
            "offline.horizon": 4,
        },
        "pendulum": {  # polopt
            "envs": 8,
            "window": 128,
            "minibatches": 8,
            "lr": 3e-4,
            "critic_lr": 1e-3,
            "discount": 0.95,
            "entropy_coefficient": 0.0,
            "network.sizes": (64, 64),
            "critic_network.sizes": (64, 64),
            "surrogate.clip_low": 0.2,
            "surrogate.clip_high": 0.2,
            "offline.fit_updates": 5_000,
            "offline.clone_updates": 5_000,
            "offline.improve_updates": 2_000,
            "offline.batch_size": 256,
            "offline.discount": 0.95,
            "policy.log_std_init": -0.7,  # from 0.08 so fast a rate would saturate the means
            "offline.clone_lr": 1e-3,
            "offline.value_lr": 1e-3,
            "offline.q_network.sizes": (64, 64),
            "offline.lr": 3e-4,
            "offline.horizon": 50,
            "offline.gate_starts": 128,
            "offline.model.members": 5,
            "offline.model.elites": 3,
            "offline.model.network.sizes": (64, 64),
        },
    }
    limits = (
        Limit(
            "ppo",
            learner="learner",
            at=ALONE
            | {
                "critic_lr": 2.5e-4,
                "lr": 2.5e-4,
                "max_grad_norm": None,
                "value_coefficient": 0.5,
                "value_clip": 0.2,
                "surrogate": Surrogate.named["ppo"],
                "advantage_over": "minibatch",
                "policy": "auto",
                "network": Network((64, 64), "tanh", init="orthogonal", head_gain=0.01),
                "network.sizes": (16,),
                "critic_network": None,
            },
            base_at={"max_grad_norm": None},
            apart={"critic_lr": 1e-3, "lr": 1e-3},
            because="without the first stage it is PPO; two optimizers step as one where nothing is clipped",
        ),
        Limit(
            "bc",
            learner="learner",
            task="Pendulum-v1",
            at={
                "offline.dataset": "random",
                "offline.diversity": 0.0,
                "offline.clone_lr": 1e-3,
                "offline.members": 2,
                "offline.fit_updates": 10,
                "offline.q_network.sizes": (8,),
                "offline.model": MODEL,
                "policy": "auto",
                "network": Network((16,), "relu"),
            },
            apart={"offline.diversity": 0.5},
            because="clones without a divergence are clones",
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        14,
        {
            "envs": 2,
            "window": 8,
            "minibatches": 2,
            "epochs": 1,
            "network.sizes": (8,),
            "critic_network.sizes": (8,),
            "offline.dataset": "random",
            "offline.random_episodes": 2,
            "offline.batch_size": 16,
            "offline.fit_updates": 6,
            "offline.improve_updates": 6,
            "offline.members": 2,
            "offline.q_network.sizes": (8,),
            "offline.gate_every": 2,
            "offline.gate_starts": 6,
            "offline.horizon": 3,
            "offline.model": MODEL,
        },
    )
