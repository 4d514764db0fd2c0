"""PolicyFlow: PPO for a flow policy, whose ratio needs neither its density nor gradients through its steps.

Yang, Liu and Chen, "PolicyFlow: Policy Optimization with Continuous Normalizing Flow in Reinforcement Learning", 2026,
arXiv 2602.01156; official code policyflow_torch, which was read in copies.

Noise z = `latent` flows along a learned `drift` v to a `center`, and the action is Gaussian around it with a learned
std. Given z the policy so is a Gaussian, and of the ratio only how far the center has shifted is not known. That is
taken to be how far v has changed, at one random point x of the straight line from z to the center:

    action   a = center + delta,   center = z - int_1^0 v(x, s) ds,   z ~ N(0, I),   delta ~ N(0, std_old^2)
    point    x = (1 - s) center + s z,   s from the solver's grid, drawn anew in every minibatch of every epoch
    shift    v(x, s) - v_old(x, s)                       v_old frozen for the whole update; s is 1 at noise, 0 at action
    ratio    N(delta; shift, std) / N(delta; 0, std_old)
    policy   E[ max(-ratio advantage, -clip(ratio, 1 - eps, 1 + eps) advantage) ]
    brownian E[ mean_j (s v(x, s) - beta (x - (1 - s) v_old(x, s)))_j^2 ],   `brownian_error`, beta its temperature
    loss     policy + value_coefficient value - entropy_coefficient H(N(., std)) + brownian_coefficient brownian
    rate     after each epoch, with KL the mean over its minibatches of KL(N(0, std_old) || N(shift, std)):
             lr / 1.5 where KL > 2 target, 1.5 lr where KL < target / 2

x - (1 - s) v_old is where the old flow would have x come from: the Brownian term draws the drift outward along it, as
noise spreads, and so against the collapse of modes. The shift is exact for one Euler step, otherwise of first order: it
takes the straight line for the path and leaves out how a change on the way moves what comes after.

Differs from PPO in: policy, ratio, Brownian term, the rate once an epoch, and AdamW. At `--policy.denoiser blind`,
`--policy.start zero` and one step of the flow it is PPO with a Gaussian.

Departs from the paper in: a time limit is bootstrapped through with V(s') (the code adds V of the state before); value
errors are the larger of clipped and unclipped, as in the rsl_rl port (`--value-error clipped` is the code's); features
and embedded time stand side by side (the code adds them); the KL is without the code's 1e-5 in the logarithm. The
stochastic and trigonometric interpolants, and sampling from averaged weights, are not here.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.bases.method import Method
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, average, weighted_mean
from polopt.losses.regression import value_loss
from polopt.losses.surrogate import surrogate_loss
from polopt.methods.control.policyflow_settings import PolicyFlowSettings
from polopt.methods.control.ppo import PPO
from polopt.networks import Network
from polopt.optim import frozen_copy
from polopt.policies.fields import Linear as StraightLine
from polopt.policies.gaussian import gaussian_kl, gaussian_log_prob
from polopt.policies.perturbed import PerturbedFlow
from polopt.policies.perturbed_flow import PerturbedFlowPolicy
from polopt.regularizers import AdaptiveKL
from polopt.tasks.base import Task

LINE = StraightLine()


def brownian_error(drift: Tensor, old_drift: Tensor, x: Tensor, time: Tensor, temperature: float = 1.0) -> Tensor:
    """mean_j (s v - temperature (x - (1 - s) v_old))_j^2 [...] of drifts and x [..., A] at time s [..., 1]."""
    source = x - (1.0 - time) * old_drift
    return (time * drift - temperature * source).square().mean(-1)


class PolicyFlow(PolicyFlowSettings, PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        envs: int = param(64, "polopt", low=1)
        window: int = param(32, "official code", low=1, help="steps of every copy per update")
        epochs: int = param(5, "official code", low=1)
        brownian_coefficient: float = param(0.0025, "official code: IsaacLab", low=0, help="against collapse of modes")
        brownian_temperature: float = param(1.0, "official code", low=0, help="beta, how far the drift is drawn")
        value_error: str = param(
            "max",
            "rsl_rl port",
            choices=("max", "clipped"),
            help="the larger of both, or the clipped one, without gradient outside of the range",
        )
        value_coefficient: float = param(2.0, "official code", low=0, help="on half the squared error")
        entropy_coefficient: float = param(0.001, "official code", low=0)
        advantage_over: str = param(
            "batch", "official code", choices=("minibatch", "batch", "none"), help="standardize over"
        )
        lr: float = param(2e-4, "official code", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "official code")
        adaptive_lr: AdaptiveKL | None = param(
            AdaptiveKL(low=1e-6), "official code", help="learning rate from the KL of the shift, after each epoch"
        )
        weight_decay: float = param(1e-5, "official code", low=0, help="of AdamW")
        adam_eps: float = param(1e-8, "official code", above=0)
        max_grad_norm: float | None = param(1.0, "official code", above=0)
        network: Network = param(Network((256, 128, 64), "mish", head_gain=0.01), "official code: MultiGoal")
        policy: PerturbedFlow = param(PerturbedFlow(), "section 4")  # type: ignore[assignment]

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("kl_penalty", "target_kl", because="in policyflow: the learning rate answers to the KL")
            if self.brownian_coefficient == 0:
                self.refuse("brownian_temperature", because="without a brownian_coefficient")
            if self.value_clip is None:
                self.refuse("value_error", because="where values are not clipped")

    slug = "policyflow"
    policy: PerturbedFlowPolicy
    old_policy: PerturbedFlowPolicy

    def build(self, task: Task) -> None:
        super().build(task)
        self.old_policy = frozen_copy(self.policy)

    def check_policy(self) -> None:
        """The KL is that of the shift, for which PPO's demand of a density is not needed."""
        Method.check_policy(self)

    def make_optimizers(self) -> None:
        config = self.config
        common = {"lr": config.lr, "schedule": config.lr_schedule, "eps": config.adam_eps}
        decay = {"kind": "adamw", "weight_decay": config.weight_decay}
        self.optimizer = self.make_optimizer(
            self.policy, self.critic, max_grad_norm=config.max_grad_norm, **common, **decay
        )

    @torch.no_grad()
    def pointed(self, batch: Batch) -> Batch:
        """A shallow copy with a fresh `time` [..., 1], the point `x` [..., A] of the line there, and `old_drift`."""
        batch = batch.clone(False)
        batch["time"] = self.policy.draw_times(batch)
        batch["x"] = LINE.noised(batch["center"], batch["latent"], batch["time"])
        batch["old_drift"] = self.drift(self.old_policy, batch)
        return batch

    def drift(self, policy: PerturbedFlowPolicy, batch: Batch) -> Tensor:
        """Of a policy at `x` and `time` of the batch, [..., A]."""
        return policy.drift(policy.net.features(batch["obs"]), batch["x"], batch["time"])

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        drift, log_std = self.drift(self.policy, batch), self.policy.clamped_log_std
        shift, delta = drift - batch["old_drift"], batch["action"] - batch["center"]
        log_prob = gaussian_log_prob(delta, shift, log_std).sum(-1)
        scale = config.clip_schedule(self.progress)
        loss, metrics = surrogate_loss(
            config.surrogate, log_prob, batch["log_prob"], batch["advantage"], weight, clip_scale=scale
        )
        entropy = weighted_mean(self.policy.entropy(batch), weight)
        error = brownian_error(drift, batch["old_drift"], batch["x"], batch["time"], config.brownian_temperature)
        brownian = weighted_mean(error, weight)
        loss = loss - config.entropy_coefficient * entropy + config.brownian_coefficient * brownian
        with torch.no_grad():
            kl = gaussian_kl(torch.zeros_like(shift), self.old_policy.clamped_log_std, shift, log_std).sum(-1)
        metrics |= {"shift_kl": weighted_mean(kl, weight), "shift": weighted_mean(shift.detach().norm(dim=-1), weight)}
        return loss, metrics | {"entropy": entropy, "brownian_loss": brownian}

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.value_error == "max":
            return super().value_loss(batch)
        clip = self.config.value_clip * self.config.clip_schedule(self.progress)
        value = batch["value"] + (self.critic.value(batch) - batch["value"]).clamp(-clip, clip)
        loss = value_loss(value, batch["returns"], batch["weight"])
        return loss, {"value_loss": loss}

    def step(self, minibatch: Batch) -> dict[str, Tensor]:
        return super().step(self.pointed(minibatch))

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        steps: list[dict[str, Tensor]] = []
        for _ in range(self.config.epochs):
            epoch = [self.step(minibatch) for minibatch in self.one_pass(batch)]
            if self.adaptive_lr is not None:
                self.optimizer.lr = self.adaptive_lr.update(average(epoch)["shift_kl"])
            steps += epoch
        return average(steps)
