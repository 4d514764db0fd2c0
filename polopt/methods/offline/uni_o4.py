"""Uni-O4: the objective of PPO from recorded data, through several gated steps, and then on the task itself.

Lei, He, Lu, Hu, Gao, Xu, "Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step On-Policy
Optimization", 2023, arXiv 2311.03351.

    stage "offline"   uni_o4_offline.py: values, a model and diverse clones of the data, then clipped steps on the
                      advantage of the frozen values, whose old policy moves only when the model and Q say that the new
                      one is better; costs no environment steps
    stage "online"    PPO (ppo.py) from the best policy, with the offline V for its critic, an optimizer for each

Differs from PPO in: the first stage, where the advantage is that of frozen values, so that nothing is collected. With
`--offline.gate always` its old policy moves at every gate: BPPO (arXiv 2302.11312) with values of IQL.

Departs from the paper in: what the first stage says of itself (uni_o4_offline.py); log standard deviations are clamped,
not squashed, and hidden layers begin with the gain sqrt 2; the policy that goes on is the best accepted one by the
estimate alone, where the released code asks the environment; statistics of observations (`--normalize-obs`) go on
moving online, where there they stay those of the data, and rewards keep their scale, where some of its scripts divide
them by 10. The budget counts updates of both stages.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polopt.bases.method import Method, learner_param
from polopt.bases.staged import Stage, Staged
from polopt.config import param
from polopt.core.batch import Batch
from polopt.losses import Surrogate
from polopt.methods.control.ppo import PPO
from polopt.methods.offline.uni_o4_offline import OfflinePPO
from polopt.methods.offline.uni_o4_settings import POLICY, UniO4Settings
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.policies import AnyPolicy
from polopt.tasks.base import Task
from polopt.values.critics import StateValue


class OnlinePPO(PPO):
    """PPO with an optimizer for each of policy and critic."""

    entry = False

    def make_optimizers(self) -> None:
        config = self.config
        common = {"schedule": config.lr_schedule, "eps": config.adam_eps, "max_grad_norm": config.max_grad_norm}
        self.optimizer = self.make_optimizer(self.policy, lr=config.lr, **common)
        self.critic_optimizer = self.make_optimizer(self.critic, lr=config.critic_lr, **common)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self.value_loss(batch)
        return self.config.value_coefficient * loss, metrics

    def step(self, minibatch: Batch) -> dict[str, Tensor]:
        critic = self.critic_optimizer.minimize(self.critic_loss, minibatch)
        return critic | self.optimizer.minimize(self.policy_loss, minibatch)


class UniO4(UniO4Settings, Staged):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        offline: OfflinePPO.Config = learner_param(
            OfflinePPO.Config(),
            "official code",
            without=("network", "policy", "offline_updates", "online_steps", "replay_size"),
            help="the first stage",
        )
        envs: int = param(1, "official code", low=1)
        window: int = param(2048, "official code", low=1)
        epochs: int = param(10, "official code", low=1)
        minibatches: int = param(16, "official code", low=1)
        surrogate: Surrogate = param(Surrogate(clip_low=0.05, clip_high=0.05), "official code", help="online")
        value_clip: float | None = param(0.05, "official code", above=0)
        value_coefficient: float = param(2.0, "official code", low=0, help="2: the square without its half")
        advantage_over: str = param("batch", "official code", choices=("minibatch", "batch", "none"))
        lr: float = param(2e-5, "official code", above=0, help="of the policy, online")
        critic_lr: float = param(2e-4, "official code", above=0, help="of V, online")
        network: Network = param(Network((256, 256, 256), "relu", init="orthogonal"), "official code")
        critic_network: Network | None = param(
            Network((512, 512, 512), "relu"), "official code", help="of V in both stages; none: the policy's"
        )
        policy: AnyPolicy = param(POLICY, "official code")

    slug = "uni-o4"
    unit = "updates"
    requires = (*OfflinePPO.requires, *PPO.requires)
    metrics_of = (PPO,)

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        online = max(steps - config.offline.fit_updates - config.offline.improve_updates, 0)
        return {"online environment steps": online * config.window * config.envs}

    def build(self, task: Task) -> None:
        config = self.config
        normalizer = Normalizer(self.spec.obs) if config.normalize_obs else None
        self.policy = self.make_policy(config.policy, network=config.network, normalizer=normalizer)
        network, own = config.critic_network or config.network, getattr(self.policy, "normalizer", None)
        self.critic = self.part("critic", StateValue, self.spec, network, normalizer=own)
        super().build(task)

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        return self.learner.evaluate(
            task, episodes, greedy=greedy
        )  # offline it says how far the policy is from the data

    def stage(self, index: int) -> Stage | None:
        config, shared = self.config, {"policy": self.policy, "critic": self.critic}
        length = config.offline.fit_updates + config.offline.improve_updates
        if index == 0 and length > 0:
            given = self.learner_config(config.offline, network=config.network, policy=config.policy)
            learner: Method = OfflinePPO(given, self.task, ledger=self.ledger, parts=shared)
            return Stage("offline", learner, until={"updates": length})
        if index <= 1:
            return Stage("online", OnlinePPO(config, self.task, ledger=self.ledger, parts=shared))
        return None
