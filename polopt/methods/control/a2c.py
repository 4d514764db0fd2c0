"""Advantage actor-critic (A2C), synchronous: one step of policy and critic on a short window of many copies.

Mnih et al., "Asynchronous Methods for Deep Reinforcement Learning", 2016, arXiv 1602.01783, algorithm S3; the copies
step together, as in OpenAI's baselines (2017) and Stable-Baselines3.

A window of experience is collected, used for one step, and thrown away.

    returns_t   = sum_k discount^k reward_{t+k} + discount^n V(s_{t+n})     to the end of the window or of the episode
    advantage_t = returns_t - V(s_t)                                        `gae_lambda` 1; below 1 as in PPO
    loss        E[ -advantage log pi(a|s) ] + value_coefficient 1/2 E[ (V(s) - returns)^2 ] - entropy_coefficient E[ H ]
    step        RMSprop, with the gradient's norm clipped

Differs from PPO, its base, in: one step per window, on which the ratio is 1, so that nothing is clipped.

Departs from the paper in: synchronous copies in place of asynchronous workers; separate networks for policy and critic.
The defaults are those of Stable-Baselines3, in which the learning rate does not fall; `--preset atari` has
TensorFlow's form of RMSprop, in which the first steps are short.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from polopt.bases.method import Limit, Smoke, Study
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, decision_mean
from polopt.losses import Surrogate
from polopt.losses.estimator import policy_gradient, ratio
from polopt.methods.control.ppo import PPO
from polopt.optim import Optimizer, RMSprop

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "rmsprop": RMSprop,
    "rmsprop-tf": partial(RMSprop, inside=True),
    "adam": Optimizer,
}


class A2C(PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        envs: int = param(8, "RL Baselines3 Zoo", low=1)
        window: int = param(5, "section 5.1: t_max", low=1, help="steps of every copy per update")
        epochs: int = param(1, "algorithm S3", low=1)
        minibatches: int = param(1, "algorithm S3", low=1)
        gae_lambda: float = param(1.0, "algorithm S3", low=0, high=1, help="1: returns reach to the end of the window")
        surrogate: Surrogate = param(Surrogate.named["reinforce"], "algorithm S3", help="the ratio is 1")
        value_clip: float | None = param(None, "algorithm S3", above=0, help="none: plain squared error")
        value_coefficient: float = param(1.0, "Stable-Baselines3: 0.5", low=0, help="on half the squared error")
        entropy_coefficient: float = param(0.0, "Stable-Baselines3", low=0)
        advantage_over: str = param("none", "algorithm S3", choices=("none", "batch"), help="standardize over")
        optimizer: str = param(
            "rmsprop", "Stable-Baselines3", choices=tuple(OPTIMIZERS), help="rmsprop-tf: in the form of TensorFlow"
        )
        adam_eps: float = param(1e-5, "Stable-Baselines3", above=0, help="of RMSprop as well")
        lr: float = param(7e-4, "Stable-Baselines3", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "Stable-Baselines3")

        def __post_init__(self) -> None:
            super().__post_init__()
            unused = ("epochs", "minibatches", "surrogate", "value_clip", "adaptive_lr", "kl_penalty", "target_kl")
            self.refuse(*unused, because="in a2c, which takes one step on a window, at a ratio of 1")

    slug = "a2c"
    headline = ("entropy", "value_loss", "explained_variance", "grad_norm")
    metrics_without = ("surrogate", "approx_kl", "approx_kl_k1", "clip_fraction")
    metrics = {
        "policy_loss": "minus advantage times log pi | its level means nothing",
        "value_loss": "half the squared error of the critic",
        **{name: PPO.metrics[name] for name in ("entropy", "explained_variance", "grad_norm")},
    }
    presets = {  # of RL Baselines3 Zoo; `bipedal` without gSDE, at the deviation with which that begins there
        "cartpole": {},
        "classic": {"envs": 16, "normalize_obs": True, "normalize_reward": True},
        "lunarlander": {"discount": 0.995, "lr": 8.3e-4, "lr_schedule": "linear", "entropy_coefficient": 1e-5},
        "bipedal": {
            "envs": 16,
            "window": 8,
            "gae_lambda": 0.9,
            "value_coefficient": 0.8,
            "lr": 9.6e-4,
            "lr_schedule": "linear",
            "normalize_obs": True,
            "normalize_reward": True,
            "network.init": "default",
            "network.head_gain": 1.0,
            "policy": "gaussian",
            "policy.log_std_init": -1.3,  # exp(-2) times the norm of 64 features, which is 2
        },
        "atari": {
            "envs": 16,
            "entropy_coefficient": 0.01,
            "value_coefficient": 0.5,
            "optimizer": "rmsprop-tf",
            "network.sizes": (512,),
            "network.activation": "relu",
        },
    }
    studies = {
        "cartpole": Study("CartPole-v1", 500_000),
        "classic": Study("Acrobot-v1", 500_000),
        "lunarlander": Study("LunarLander-v3", 200_000),
        "bipedal": Study("BipedalWalker-v3", 5_000_000),
    }
    probes = {"clip_schedule": {}}  # refused, where PPO has a setting that shows it
    limits = (
        Limit(
            base="ppo",
            at={"epochs": 1, "minibatches": 1, "optimizer": "adam", "lr": 2.5e-4, "lr_schedule": "linear"}
            | {"gae_lambda": 0.95},
            base_at={
                "epochs": 1,
                "minibatches": 1,
                "surrogate": "reinforce",
                "advantage_over": "none",
                "value_clip": None,
                "value_coefficient": 1.0,
                "entropy_coefficient": 0.0,
            },
            apart={"gae_lambda": 1.0},
            because="one step on the whole window has ratio 1; equal up to rounding, since PPO shuffles the rows",
            tolerance=1e-10,
        ),
    )
    smoke = Smoke("CartPole-v1", 160, {"envs": 2, "window": 8, "network.sizes": (16,)})

    def make_optimizers(self) -> None:
        config = self.config
        self.optimizer = OPTIMIZERS[config.optimizer](
            self.policy,
            self.critic,
            lr=config.lr,
            schedule=config.lr_schedule,
            eps=config.adam_eps,
            max_grad_norm=config.max_grad_norm,
            micro_batch=config.micro_batch,
        )

    def policy_terms(self, batch: Batch, log_prob: Tensor, entropy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss = policy_gradient(log_prob, ratio(log_prob, "current"), batch["advantage"], batch["weight"])
        entropy = decision_mean(entropy, batch["weight"])
        metrics = {"policy_loss": loss, "entropy": entropy}
        return loss - self.config.entropy_coefficient * entropy, metrics

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        return self.optimizer.minimize(self.total_loss, batch if self.recurrent else batch.reshape(-1))
