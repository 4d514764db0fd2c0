"""Trust Region Policy Optimization (TRPO): natural gradient steps of a size that is told in KL divergence.

Schulman, Levine, Moritz, Jordan and Abbeel, "Trust Region Policy Optimization", 2015, arXiv 1502.05477. Natural policy
gradients: Kakade 2001. With a critic and GAE as in arXiv 1506.02438.

A window of experience is used for one step of the policy: along the gradient of the surrogate, as the Fisher matrix of
the policy measures steepness, and as far as the old policy is at a divergence of `max_kl`.

    maximize    L(theta) = E[ ratio advantage ] + entropy_coefficient entropy,   ratio = pi(a|s) / pi_old(a|s)
    subject to  E[ KL(pi_old || pi) ] <= max_kl               the mean over the states of the window
    direction   x = (F + damping I)^-1 g,  g = grad L         `solver_steps` conjugate gradients with products F v;
                                                              F: Hessian of the divergence at pi_old, Fisher's matrix
    step        theta + shrink^j sqrt(2 max_kl / x^T (F + damping I) x) x,   the smallest j < `tries` at which the
                constraint holds and L has risen by `accept` times what g promises; where there is none, no step
    value       `value_coefficient` times 1/2 E[ (V - returns)^2 ], `epochs` passes of `minibatches`, after the policy

F v is a derivative of the divergence's gradient along v, so that F is never written down. Advantages are those of PPO.

Differs from PPO, its base, in the step of the policy; policy and critic have optimizers apart.

Departs from the paper in: the critic and GAE (`--gae-lambda 1` has the paper's returns, with a baseline); damping;
tanh in place of soft rectifiers. The defaults are those of sb3-contrib, which bounds KL(pi || pi_old) of its steps.
"""

from dataclasses import dataclass

from torch import Tensor

from polopt.bases.method import Smoke, Study
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, average, decision_mean
from polopt.losses import Surrogate
from polopt.losses.surrogate import expected_advantage
from polopt.methods.control.ppo import PPO
from polopt.optim import NaturalOptimizer, frozen_copy
from polopt.policies.base import Density
from polopt.tasks.base import Task


class TRPO(PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        envs: int = param(1, "sb3-contrib", low=1)
        window: int = param(2048, "sb3-contrib", low=1, help="steps of every copy per update")
        max_kl: float = param(0.01, "table 2", above=0, help="radius of the trust region, in nats per decision")
        damping: float = param(0.1, "sb3-contrib", low=0, help="added to the diagonal of the Fisher matrix")
        solver_steps: int = param(15, "sb3-contrib; appendix C.1: 10", low=1, help="of the conjugate gradients")
        curvature_every: int = param(
            1, "sb3-contrib; appendix C.1: 10", low=1, help="the Fisher matrix is that of every so many-th decision"
        )
        shrink: float = param(0.8, "sb3-contrib", above=0, below=1, help="factor on a step that went too far")
        tries: int = param(10, "sb3-contrib", low=1, help="steps that are tried, each shorter than the one before")
        accept: float = param(0.0, "appendix C", low=0, below=1, help="least share of the promised rise")
        epochs: int = param(10, "sb3-contrib", low=1, help="passes of the critic over the window")
        minibatches: int = param(16, "sb3-contrib: 128 of 2048", low=1, help="minibatches of the critic per pass")
        surrogate: Surrogate = param(Surrogate(keep="all"), "section 5", help="no ratio is clipped")
        value_clip: float | None = param(None, "sb3-contrib", above=0, help="none: plain squared error")
        value_coefficient: float = param(2.0, "sb3-contrib", low=0, help="on the critic's own loss (2: no half)")
        entropy_coefficient: float = param(0.0, "sb3-contrib", low=0)
        advantage_over: str = param("batch", "sb3-contrib", choices=("batch", "none"), help="standardize over")
        lr: float = param(1e-3, "sb3-contrib", above=0, help="of the critic")
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "sb3-contrib", help="of the critic")
        max_grad_norm: float | None = param(None, "sb3-contrib", above=0, help="of the critic")

        def __post_init__(self) -> None:
            super().__post_init__()
            because = "in trpo, whose policy takes one step, inside of a trust region"
            self.refuse("surrogate", "adaptive_lr", "kl_penalty", "target_kl", because=because)

    slug = "trpo"
    requires = (Density,)
    headline = ("divergence", "step_scale", "entropy", "explained_variance")
    metrics_without = ("approx_kl", "approx_kl_k1", "clip_fraction")
    metrics = {
        "surrogate": "mean of ratio times advantage before the step | 0 where advantages are standardized",
        "divergence": "KL(old || new) of the step that was taken | `--max-kl` or less, half of it and more",
        "step_scale": "which part of the longest step was taken, 0: none | 1, at times less; often 0: more `damping`, "
        "or a larger window",
        "value_loss": "the critic's own loss, times its coefficient",
        "grad_norm": "of the critic, before clipping",
    }
    default_steps = 1_000_000
    presets = {
        "swimmer": {
            "window": 50_000,
            "gae_lambda": 1.0,
            "solver_steps": 10,
            "curvature_every": 10,
            "network.sizes": (30,),
        },
        "hopper": {
            "window": 1_000_000,
            "gae_lambda": 1.0,
            "solver_steps": 10,
            "curvature_every": 10,
            "network.sizes": (50,),
        },
        "sb3-contrib": {},
        "mujoco": {  # RL Baselines3 Zoo
            "envs": 2,
            "window": 1024,
            "solver_steps": 25,
            "epochs": 20,
            "normalize_obs": True,
            "normalize_reward": True,
        },
        "cartpole": {  # RL Baselines3 Zoo
            "envs": 2,
            "window": 512,
            "minibatches": 2,
            "epochs": 20,
            "damping": 1e-3,
            "gae_lambda": 0.98,
        },
        "baselines": {  # OpenAI
            "window": 1024,
            "minibatches": 16,
            "solver_steps": 10,
            "curvature_every": 5,
            "shrink": 0.5,
            "gae_lambda": 0.98,
            "epochs": 5,
            "normalize_obs": True,
            "network.sizes": (32, 32),
        },
    }
    studies = {
        "swimmer": Study("Swimmer-v5", 10_000_000),
        "hopper": Study("Hopper-v5", 200_000_000),
        "mujoco": Study("Hopper-v5", 1_000_000),
        "cartpole": Study("CartPole-v1", 100_000),
        "baselines": Study("Hopper-v5", 1_000_000),
    }
    probes = PPO.probes | {
        "accept": {"accept": 0.9, "max_kl": 0.1},
        "shrink": {"max_kl": 0.03, "damping": 1e-3},
        "tries": {"max_kl": 0.03, "damping": 1e-3},
    }
    no_limit = "no setting makes its step one of Adam; with the Fisher matrix written down it is tested instead"
    smoke = Smoke("CartPole-v1", 192, {"envs": 2, "window": 32, "minibatches": 2, "epochs": 2, "network.sizes": (16,)})

    def build(self, task: Task) -> None:
        super().build(task)
        self.old_policy = frozen_copy(self.policy)

    def make_optimizers(self) -> None:
        config = self.config
        self.optimizer = NaturalOptimizer(
            self.policy,
            divergence=self.divergence,
            radius=config.max_kl,
            damping=config.damping,
            solver_steps=config.solver_steps,
            curvature_every=config.curvature_every,
            shrink=config.shrink,
            tries=config.tries,
            accept=config.accept,
            micro_batch=config.micro_batch,
        )
        self.value_optimizer = self.make_optimizer(
            self.critic,
            lr=config.lr,
            schedule=config.lr_schedule,
            eps=config.adam_eps,
            max_grad_norm=config.max_grad_norm,
        )

    def divergence(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """KL(old || new) over the batch."""
        return self.kl_from_old(batch), {}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_prob, entropy = self.policy.score(batch)
        gain = expected_advantage(log_prob, batch["log_prob"], batch["advantage"], batch["weight"])
        entropy = decision_mean(entropy, batch["weight"])
        return -gain - self.config.entropy_coefficient * entropy, {"surrogate": gain, "entropy": entropy}

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().value_loss(batch)
        return self.config.value_coefficient * loss, metrics

    def total_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """That of the policy's step: the critic has its own."""
        return self.policy_loss(batch)

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.optimizer.minimize(self.policy_loss, batch if self.policy.recurrent else batch.reshape(-1))
        parts = self.minibatches(batch)
        return metrics | average([self.value_optimizer.minimize(self.value_loss, part) for part in parts])
