"""Supervised Learning-enhanced Multi-Group Actor Critic (SL-MGAC): a reward model holds the critic of heavy tails.

Liu et al., "Supervised Learning-enhanced Multi-Group Actor Critic for Live Stream Allocation in Feed", 2024, arXiv
2412.10381 (KDD 2025).

A feed inserts a live stream or does not. Watch times are heavy-tailed and groups of users differ by orders of
magnitude, so bootstrapped critics drift, and what is greedy for live time makes users leave. Here the critic contains a
model of the immediate reward that is learned by classification and cannot drift; actor and critic have layers for each
group; the reward charges an insertion with what it displaces; and a small student of the actor serves.

Of a recorded or streamed decision (s, a, r_1..r_R, s'), with responses r_k that count w_k in the reward
r = sum_k w_k r_k / deviation, all rows of a group weighing as much as those of any other:

    features    z = [h, LN(own_g(h))], h = LN(shared(s)), g the group of s: of the actor, and again of the critic
    rewards     p_k(. | s, a) over classes of r_k: 0, and parts of equal ratio; c_k their mean values in the data
                rhat(s, a) = sum_k w_k sum_m p_k(m | s, a) c_k(m) / deviation
    critic      Q(s, a) = sg[rhat(s, a)] + F(s, a),   y = r + discount (1 - terminated) sum_a' pi(a'|s') Q_targ(s', a')
                E[ (Q(s, a) - y)^2 / 2 ] + supervised_coefficient sum_k E[ -log p_k(class of r_k | s, a) ]
    actor       -E[ sum_a pi(a|s) sg[Q(s, a) - V(s)] + entropy_coefficient H(pi(.|s)) ],   V = sum_a pi Q
                + supervision E[ -log pi(a_sup | s) ],   a_sup = argmax_a rhat(s, a)
    student     E[ KL(pi(.|s) || student(.|s)) ]
    targets     Q_targ <- tau Q + (1 - tau) Q_targ

Differs from an actor-critic for finitely many actions in rhat, in the groups, in `supervision` and in the student.
Normalized capped importance sampling of the paper's offline evaluation is `polopt eval RUN --ope FILE`.

Departs from the paper in: no code is public and the paper's formulas could not be read, so all of this is what its
abstract and others' summaries say, made precise. In place of attention over a history it reads the task's observation.
Whose weights w are is the task's to say (`--objective-weights`, or its own); a reward that charges what an insertion
displaces is that of `feed`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.offline import Offline
from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.losses.regression import imitation, regression
from polopt.methods.multiagent.sl_mgac_settings import SLMGACSettings
from polopt.networks import Network
from polopt.networks.routed import Routed
from polopt.optim import frozen_copy, polyak_update, renew
from polopt.policies.base import legal_in
from polopt.policies.categorical import CategoricalPolicy, kl_between, mask_logits
from polopt.tasks.base import Task
from polopt.values.anchored import AnchoredQ
from polopt.values.finite import mean_value, taken
from polopt.values.targets import td_target


class SLMGAC(SLMGACSettings, Offline):
    @dataclass(frozen=True)
    class Config(Offline.Config):
        discount: float = param(0.95, "assumed", low=0, high=1)
        anchor: bool = param(True, "abstract", help="rhat in Q; without, Q is one head as ever")
        bins: int = param(20, "assumed", low=3, help="classes of each response")
        supervised_coefficient: float = param(1.0, "assumed", low=0, help="of classification in the critic's loss")
        target_reward: str = param(
            "observed", "assumed", choices=("observed", "predicted"), help="predicted: rhat in targets, biased by bins"
        )
        delta: float | None = param(
            None, "assumed", above=0, help="where the critic's loss becomes linear; heavy tails are then underestimated"
        )
        entropy_coefficient: float = param(0.01, "assumed", low=0, help="in units of the reward's deviation")
        supervision: float = param(0.01, "assumed", low=0, help="of the actor, by what the reward model finds best")
        tau: float = param(0.005, "assumed", above=0, high=1, help="share of the critic in the targets")
        lr: float = param(1e-4, "assumed", above=0, help="of all that is learned")
        max_grad_norm: float | None = param(10.0, "assumed", above=0)
        batch_size: int = param(1024, "assumed", low=1)
        group: str = param("group", "polopt", help="the observation's entry that names the group; '': all are one")
        group_sizes: tuple[int, ...] = param((64,), "assumed", low=1, help="widths of the layers of a group")
        balance: bool = param(True, "assumed", help="all groups weigh the same in a batch, however small")
        network: Network = param(Network((256, 128), "relu", "layer"), "assumed", help="what groups share")
        serve: str = param("student", "abstract", choices=("student", "actor"), help="which acts, is judged and saved")
        student: Network = param(Network((64,), "relu"), "assumed")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("rewards", because="on a method of several objectives, which are not scaled")
            if not self.anchor:
                parts = ("bins", "supervised_coefficient", "target_reward", "supervision")
                self.refuse(*parts, because="without an anchor: there is no model of the reward")
            if not self.group:
                self.refuse("balance", because="where all rows are one group")

    slug = "sl-mgac"
    objectives = "several"
    learns = "actor"

    def build(self, task: Task) -> None:
        config, actions = self.config, self.spec.num_actions
        if "weights" not in self.spec.info:
            raise UsageError(
                f"sl-mgac must know what each objective of {self.spec.name} counts: say --objective-weights"
            )
        self.responses = len(self.spec.objectives) if config.anchor else 0
        self.actor = self.part("policy", self.make_actor)
        self.student: Any = CategoricalPolicy(self.spec, config.student.build(self.spec.obs, actions))
        if self.student.recurrent:
            raise UsageError("sl-mgac draws single decisions, which a recurrent student cannot learn from")
        outputs = AnchoredQ.outputs(actions, self.responses, config.bins)
        self.critic = AnchoredQ(self.routed(outputs, 1.0), actions, self.responses, config.bins)
        self.target_critic = frozen_copy(self.critic)
        options: Any = {"lr": config.lr, "max_grad_norm": config.max_grad_norm}
        self.critic_optimizer = self.make_optimizer(self.critic, **options)
        self.actor_optimizer = self.make_optimizer(self.actor, **options)
        self.student_optimizer = self.make_optimizer(self.student, **options)

    def routed(self, outputs: int, head_gain: float) -> Routed:
        config = self.config
        return Routed(
            config.network, self.spec.obs, outputs, sizes=config.group_sizes, group=config.group, head_gain=head_gain
        )

    def make_actor(self) -> CategoricalPolicy:
        return CategoricalPolicy(self.spec, self.routed(self.spec.num_actions, self.config.network.head_gain))

    @property
    def policy(self) -> Any:
        return self.student if self.config.serve == "student" else self.actor

    def examine(self, data: Batch) -> None:
        response = data["rewards"]
        weights = response.new_tensor(self.spec.info["weights"])
        deviation = (response @ weights).std()
        if not deviation > 0:
            raise UsageError(f"all recorded rewards of {self.spec.name} are the same: there is nothing to learn")
        self.weights = weights / deviation
        self.critic.fit(response[:, : self.responses], self.weights[: self.responses])
        renew(self.target_critic)

    def evaluate_batch(self, batch: Batch) -> Batch:
        """Adds weights and targets: `weight`, `reward` in units of its deviation, `target` [B]."""
        batch = batch.clone(False)
        if self.config.group and self.config.balance:
            _, place, rows = batch["obs"][self.config.group].unique(return_inverse=True, return_counts=True)
            batch["row_weight"] = 1.0 / rows[place]
        batch = weigh(batch)
        batch["reward"] = batch["rewards"] @ self.weights.to(batch["rewards"])
        batch["target"] = self.target(batch)
        return batch

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """y [B]; a session that the log cuts is bootstrapped through."""
        after = TensorDict({"obs": batch["next_obs"]}, batch_size=batch.batch_size)
        probability, log_prob = self.actor.probabilities(after)
        value = mean_value(self.target_critic(batch["next_obs"]), probability, log_prob)
        reward = batch["reward"]
        if self.config.target_reward == "predicted":
            reward = taken(self.critic.reward(self.critic.parts(batch["obs"])[1]), batch["action"])
        return td_target(reward, self.config.discount, batch["terminated"], value)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight, action = self.config, batch["weight"], batch["action"]
        future, logits = self.critic.parts(batch["obs"])
        q = taken(self.critic.reward(logits) + future, action)
        loss = regression(q, batch["target"], weight, config.delta)
        metrics = {"critic_loss": loss, "q": weighted_mean(q, weight)}
        if config.anchor:
            own = logits.gather(1, action[:, None, None, None].expand(-1, 1, *logits.shape[2:])).squeeze(1)
            supervised = self.critic.classes.cross_entropy(own, batch["rewards"], weight)
            loss = loss + config.supervised_coefficient * supervised
            metrics["supervised_loss"] = supervised
        return loss, metrics

    def actor_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        probability, log_prob = self.actor.probabilities(batch)
        with torch.no_grad():
            future, logits = self.critic.parts(batch["obs"])
            predicted = self.critic.reward(logits)
            q = predicted + future
            advantage = q - (probability * q).sum(-1, keepdim=True)
        gain = mean_value(advantage, probability, log_prob, config.entropy_coefficient)
        loss = -weighted_mean(gain, weight)
        entropy = -(probability * log_prob).sum(-1)
        metrics = {"actor_loss": loss, "entropy": weighted_mean(entropy, weight)}
        if config.anchor and config.supervision:
            best = mask_logits(predicted, legal_in(batch)).argmax(-1)
            loss = loss + config.supervision * imitation(-taken(log_prob, best), weight)
        return loss, metrics

    def student_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            teacher = self.actor.logits(batch)
        loss = weighted_mean(kl_between(teacher, self.student.logits(batch)), batch["weight"])
        return loss, {"student_kl": loss}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = self.evaluate_batch(batch)
        metrics = self.critic_optimizer.minimize(self.critic_loss, batch)
        metrics |= self.actor_optimizer.minimize(self.actor_loss, batch)
        metrics |= self.student_optimizer.minimize(self.student_loss, batch)
        polyak_update(self.target_critic, self.critic, self.config.tau)
        return metrics
