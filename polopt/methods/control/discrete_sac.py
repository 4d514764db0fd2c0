"""Soft Actor-Critic for finitely many actions.

Christodoulou, "Soft Actor-Critic for Discrete Action Settings", 2019, arXiv 1910.07207.

Where the actions can be counted, critics value all of them at once, and what SAC estimates from one sampled action is
a sum over all: the soft value, the policy's loss, the entropy. Nothing has to be reparameterized.

With a replay batch (s, a, r, s'), target critics Q_targ, and pi over the legal actions:

    value       V(s') = sum_a' pi(a'|s') (min_i Q_targ_i(s', a') - temperature log pi(a'|s'))
    target      y = reward + discount (1 - terminated) V(s')
    critic      sum_i E[ (Q_i(s, a) - y)^2 / 2 ]
    policy      E[ sum_a pi(a|s) (temperature log pi(a|s) - min_i Q_i(s, a)) ], Q constant
    temperature E[ temperature (entropy - target) ],   target = entropy_share log(number of legal actions in s)
    targets     Q_targ <- tau Q + (1 - tau) Q_targ

Differs from SAC, its base (`sac.py`), in the sums, in a critic without an action among its inputs, and in the target
of the entropy: a share of the largest there is, in place of a number of nats (which `--entropy.target-entropy` gives).

Departs from the paper in: targets that follow slowly, as SAC's and the author's code's do; in CleanRL, which has run it
on Atari, they are renewed every 8,000 steps. Both have 1e-4 as Adam's epsilon; here it is 1e-8. The author's code cuts
gradients, and has log temperature in the last loss (`--entropy.form log-alpha`). CleanRL holds 0.89 of the largest
entropy (`--entropy-share`), and has the mean over actions for their sum in the losses of policy and temperature.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.method import Smoke
from polopt.config import param
from polopt.core.batch import Batch, weighted_mean
from polopt.core.errors import UsageError
from polopt.methods.control.sac import SAC
from polopt.networks import Network
from polopt.policies import AnyPolicy, Categorical
from polopt.policies.base import Enumerates, legal_in
from polopt.regularizers import Fixed
from polopt.regularizers.entropy import EntropyTemperature
from polopt.tasks.base import Task
from polopt.values.finite import FiniteQ, mean_value
from polopt.values.targets import reduce_members


class DiscreteSAC(SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        batch_size: int = param(64, "CleanRL", low=1)
        warmup: int = param(20_000, "CleanRL", low=1, unit="env_steps", help="uniform random actions at the start")
        steps_per_update: int = param(4, "CleanRL", low=1, unit="env_steps", help="collected between updates")
        entropy_share: float = param(
            0.98,
            "official code",
            above=0,
            high=1,
            help="target of the entropy, of the largest that legal actions allow",
        )
        policy_critic: str = param("min", "polopt", choices=("min", "mean"), help="reduction in the policy loss")
        network: Network = param(Network(sizes=(256, 256), activation="relu"), "polopt")
        policy: AnyPolicy = param(Categorical(), "section 4")

        meaning = {"entropy.target_entropy": "none: `entropy_share` of the largest there is"}

        def __post_init__(self) -> None:
            super().__post_init__()
            if isinstance(self.entropy, Fixed):
                self.refuse("entropy_share", because="with a fixed temperature")
            elif self.entropy.target_entropy is not None:
                self.refuse("entropy_share", because="beside entropy.target_entropy, which says it in nats")

    slug = "discrete-sac"
    requires: ClassVar[tuple[type, ...]] = (Enumerates,)
    trains_on = "discrete actions"
    metrics = {
        "entropy": "of the policy, in nats, exact | settles at `entropy_share` of the largest there is",
        "policy_loss": "sum of pi (temperature log pi - min Q) | falls as values rise; its level means nothing",
    }
    presets = {
        "atari": {"network.sizes": (512,)},  # CleanRL, but for what the first lines say
        "cartpole": {  # polopt
            "warmup": 500,
            "steps_per_update": 1,
            "lr": 1e-3,
            "entropy_share": 0.3,
            "network.sizes": (64, 64),
        },
    }
    no_limit = "SAC, its base, has other critics; with one legal action everywhere it is policy evaluation"
    smoke = Smoke("CartPole-v1", 96, {"warmup": 64, "batch_size": 32, "network.sizes": (16, 16), "replay_size": 1_000})

    def build(self, task: Task) -> None:
        super().build(task)
        if self.policy.recurrent:
            raise UsageError("discrete-sac draws single decisions, which a recurrent policy cannot learn from")

    def make_critic(self) -> FiniteQ:  # type: ignore[override]
        return FiniteQ(self.spec, self.config.network, members=self.config.critics)

    def make_temperature(self) -> EntropyTemperature:
        entropy = self.config.entropy
        if isinstance(entropy, Fixed) or entropy.target_entropy is not None:
            return entropy.build(self.spec)
        return EntropyTemperature(entropy.initial, 0.0, form=entropy.form)  # of the gap that `improve` gives it

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Soft one-step target [B]; time limits are bootstrapped through."""
        after = TensorDict({"obs": batch["next_obs"]}, batch_size=batch.batch_size)
        q = reduce_members(self.target_critic(batch["next_obs"]), "min")
        probability, log_prob = self.policy.probabilities(after)
        value = mean_value(q, probability, log_prob, self.temperature.value)
        return self.soft_target(batch, value, None)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch["weight"]
        probability, log_prob = self.policy.probabilities(batch)
        with torch.no_grad():
            q = reduce_members(self.critic(batch["obs"]), self.config.policy_critic)
        loss = -weighted_mean(mean_value(q, probability, log_prob, self.temperature.value), weight)
        entropy = -(probability * log_prob).sum(-1)
        return loss, {"policy_loss": loss, "entropy": weighted_mean(entropy, weight)}

    def largest_entropy(self, batch: Batch) -> Tensor:
        """log(number of legal actions), its mean over the batch, 0-d."""
        legal = legal_in(batch)
        weight = batch["weight"]
        count = weight.new_full(weight.shape, self.spec.num_actions) if legal is None else legal.sum(-1).to(weight)
        return weighted_mean(count.clamp_min(1.0).log(), weight)

    def improve(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the policy, then one of the temperature."""
        metrics = self.policy_optimizer.minimize(self.policy_loss, batch)
        if self.temperature.learned:
            entropy = metrics["entropy"]
            if self.config.entropy.target_entropy is None:
                entropy = entropy - self.config.entropy_share * self.largest_entropy(batch)
            self.temperature_optimizer.step(self.temperature.loss(entropy))
        return metrics
