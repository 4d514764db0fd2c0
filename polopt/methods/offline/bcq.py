"""Batch-constrained deep Q-learning (BCQ) for finitely many actions.

Fujimoto, Conti, Ghavamzadeh, Pineau, "Benchmarking Batch Deep Reinforcement Learning Algorithms", 2019, arXiv
1910.01708 (the continuous form is of Fujimoto, Meger, Precup, arXiv 1812.02900).

Only actions that the data are likely to have are ever compared: a model of them, G(a|s), is learned beside Q, and an
action counts where it is at least `threshold` times as likely as the likeliest one.

With a batch (s, a, r, s') of the dataset, allowed(s) = { a : G(a|s) / max_b G(b|s) > threshold }:

    best        a' = argmax over allowed(s') of Q(s', a')
    target      y = r + discount (1 - terminated) Q_targ(s', a')
    critic      E[ h(Q(s, a) - y) ]
    model       E[ -log G(a|s) ] + logit_decay E[ mean_b logit(b|s)^2 ]
    act         argmax over allowed(s) of Q(s, a)

Differs from DQN (../control/dqn.py), its base, in the restriction and in the dataset. With threshold 0 all actions are
allowed; near 1 it clones.

Departs from the paper in: of pictures Q and G share no convolutions, which the official code has them share; two
optimizers in place of one for both, with the same steps; Adam's epsilon is 1e-8, where that for Atari is 1.5e-4;
evaluations are greedy, where those on Atari are random with probability 0.001. Forbidden actions have no likelihood.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.methods.offline.finite_q import OfflineQ
from polopt.networks.encoders import Obs
from polopt.policies.base import legal_actions
from polopt.policies.categorical import CategoricalPolicy, log_prob_of, mask_logits
from polopt.policies.greedy import BestAction
from polopt.tasks.base import Task
from polopt.values.finite import FiniteQ


def likely(logits: Tensor, threshold: float) -> Tensor:
    """Which actions [..., K] are more than `threshold` times as likely as the likeliest, which always is."""
    ratio = (logits - logits.amax(-1, keepdim=True)).exp()
    return (ratio > threshold) | (ratio == 1.0)


class BestAllowed(BestAction):
    """Takes the action of the largest value among those that a model of the data finds likely enough."""

    family = "constrained greedy policy"

    def __init__(self, critic: FiniteQ, model: CategoricalPolicy, threshold: float) -> None:
        super().__init__(model.spec, critic)
        self.model = model
        self.threshold = threshold

    @torch.no_grad()
    def allowed(self, obs: Obs) -> Tensor:
        """The legal actions [..., K] that the model finds likely."""
        return likely(mask_logits(self.model.net(obs), legal_actions(obs)), self.threshold)


class BCQ(OfflineQ):
    @dataclass(frozen=True)
    class Config(OfflineQ.Config):
        threshold: float = param(0.3, "official code", low=0, high=1, help="of likelihoods, to count; 0: all do")
        logit_decay: float = param(1e-2, "official code", low=0, help="of the model's logits")

    slug = "bcq"
    headline: ClassVar[tuple[str, ...]] = ("q", "critic_loss", "imitation_loss", "allowed")
    metrics = {
        "imitation_loss": "-log G of the data's actions | falls, then settles at their entropy",
        "allowed": "mean number of actions that count | towards 1 on data of one policy",
    }
    probes = {"threshold": {"threshold": 0.99}}
    presets = {
        "box2d": {  # official code, for all but Atari
            "lr": 3e-4,
            "batch_size": 64,
            "tau": 0.005,
            "target_every": 1,
            "network.sizes": (256, 256),
        },
    }
    no_limit = "with threshold 0 it is DQN's update on recorded data, which DQN does not read"

    def build(self, task: Task) -> None:
        super().build(task)
        self.model_optimizer = self.make_optimizer(self.policy.model, lr=self.config.lr)

    def make_best_action(self) -> BestAllowed:
        best, config = super().make_best_action(), self.config
        model = CategoricalPolicy(self.spec, config.network.build(self.spec.obs, self.spec.num_actions))
        return BestAllowed(best.net, model, config.threshold)

    def imitation_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        weight = batch["weight"]
        raw = self.policy.model.net(batch["obs"])
        logits = mask_logits(raw, legal_actions(batch["obs"]))
        imitation_loss = -weighted_mean(log_prob_of(logits, batch["action"]), weight)
        decay = weighted_mean(raw.square().mean(-1), weight)
        count = likely(logits.detach(), self.config.threshold).sum(-1).to(weight)
        metrics = {"imitation_loss": imitation_loss, "allowed": weighted_mean(count, weight)}
        return imitation_loss + self.config.logit_decay * decay, metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return super().update(batch) | self.model_optimizer.minimize(self.imitation_loss, weigh(batch))
