"""PMOE: a mixture of Gaussians whose router learns how often each of them proposes the best action.

Ren et al., "Probabilistic Mixture-of-Experts for Efficient Deep Reinforcement Learning", 2021, arXiv 2104.09122.

    pi(a|s) = sum_i w_i(s) N_i(a|s),  i = 1 .. K,  w = softmax of the router

Which component acts is a discrete choice, through which no gradient goes. So every component proposes an action a_i at
each state, a critic ranks them, and the router is regressed on the one-hot of the winner (`router_error`):

    winner      j = argmax_i min_k Q_k(s, a_i),   a_i ~ N_i
    router      E[ mean_i (w_i(s) - 1[i = j])^2 ],   smallest at w_i(s) = P(component i proposes the best action)

`pmoe` is SAC with that policy. Behavior and the critic's target draw a component from w, and use ITS log-density:

    components  E[ temperature log N_j(a_j|s) - min_k Q_k(s, a_j) ]      `--back-propagate max`, or the sum over all i
    temperature on the winner's log-density

`pmoe-ppo` is PPO with it: ratios are of the mixture's density, and an extra critic, regressed on the returns by an
optimizer of its own, ranks fresh proposals:

    total       clipped surrogate + value_coefficient value loss + E[ mean_i (w_i - 1[i = j])^2 ]
    critic      E[ (Q(s, a) - returns)^2 ]

`--routing gumbel` is the baseline of the paper that goes through the choice, by a straight-through Gumbel-softmax.

Departs from the paper in: its constants were not to be had. Those of a co-author's code are the presets `mujoco`; the
defaults are those of SAC and PPO, the loss of the temperature included (that code has its logarithm there:
`--entropy.form log-alpha`). It standardizes the rewards of each batch and multiplies them by 10, which changes the
objective from batch to batch and is not done here; its policies and critics of SAC have four and three hidden layers,
and it begins without random actions. One clip and one step serve its ranking critic and the rest of PPO; here that
critic, with the hidden layers of the policy, has its own.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch, weighted_mean
from polopt.losses.pathwise import pathwise
from polopt.methods.control.ppo import PPO
from polopt.methods.control.sac import SAC
from polopt.networks.encoders import Obs
from polopt.policies.gaussian_mixture import MixturePolicy
from polopt.policies.mixture import GaussianMixture
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble
from polopt.values.targets import reduce_members

METRICS = {
    "router_loss": "squared error of the weights against the winners, a mean over components | at most (1 - 1 / K) / K "
    "when nothing is known",
    "router_entropy": "of the weights, in nats | 0: one component does everything; log K: all are equal",
}


def router_error(log_weights: Tensor, winner: Tensor) -> Tensor:
    """mean_i (w_i - 1[i = winner])^2 [...] of log-weights [..., K] and winners int64 [...]."""
    return (log_weights.exp() - functional.one_hot(winner, log_weights.shape[-1])).square().mean(-1)


def router_terms(log_weights: Tensor, winner: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of the router, and its metrics."""
    loss = weighted_mean(router_error(log_weights, winner), weight)
    entropy = -(log_weights.exp() * log_weights).sum(-1)
    return loss, {"router_loss": loss, "router_entropy": weighted_mean(entropy, weight)}


class PMOE(SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        back_propagate: str = param(
            "max", "co-author's code", choices=("max", "all"), help="through the winner's value, or all components'"
        )
        routing: str = param(
            "frequency", "co-author's code", choices=("frequency", "gumbel"), help="what trains the router"
        )
        routing_temperature: float = param(1.0, "assumed", above=0, help="of the Gumbel-softmax")
        policy: GaussianMixture = param(GaussianMixture(), "co-author's code")  # type: ignore[assignment]

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.routing == "gumbel":
                self.refuse("back_propagate", because="with routing gumbel, which goes through the choice")
            else:
                self.refuse("routing_temperature", because="without routing gumbel")
            if not self.policy.squash:
                self.refuse("policy.squash", because="in pmoe: the entropy of actions is bounded by tanh")

    slug = "pmoe"
    requires = ()
    headline = ("entropy", "router_entropy", "q", "critic_loss")
    metrics = METRICS | {
        "entropy": "-log-density of the winners under their own components, in nats, in the policy's units [-1, 1] | "
        "settles at `target_entropy`"
    }
    presets = SAC.presets | {
        "mujoco": {  # the co-author's code
            "warmup": 300,
            "batch_size": 300,
            "tau": 0.01,
            "entropy.form": "log-alpha",
            "network.sizes": (512, 512, 512),
            "policy.components": 2,
        }
    }
    probes = {"routing_temperature": {"routing": "gumbel"}}
    limits = (
        Limit(
            "sac",
            at={"policy.components": 1},
            apart={"policy.components": 3},
            collects="base",
            because="one component has weight 1 and always wins",
            tolerance=1e-12,
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        96,
        {"warmup": 64, "batch_size": 32, "network.sizes": (16, 16), "replay_size": 1_000, "policy.components": 3},
    )
    policy: MixturePolicy

    def next_action(self, obs: Obs) -> tuple[Tensor, Tensor]:
        return self.policy.propose(obs)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.config.routing == "gumbel":
            return self.gumbel_loss(batch)
        obs, weight = batch["obs"], batch["weight"]
        action, log_prob = self.policy.rsample_each(obs)  # [B, K, A], [B, K]
        q = reduce_members(self.action_values(obs, action.movedim(-2, 0)), self.config.policy_critic).movedim(0, -1)
        winner = q.detach().argmax(-1)
        best_q, best = (each.gather(-1, winner.unsqueeze(-1)).squeeze(-1) for each in (q, log_prob))
        ascended = (best_q, best) if self.config.back_propagate == "max" else (q.sum(-1), log_prob.sum(-1))
        loss = pathwise(*ascended, self.temperature.value, weight)
        routed, metrics = router_terms(self.policy.log_weights(obs, action), winner, weight)
        return loss + routed, metrics | {"policy_loss": loss, "entropy": weighted_mean(-best, weight)}

    def gumbel_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """SAC's, of an action that the router chose by a straight-through Gumbel-softmax."""
        obs, weight, config = batch["obs"], batch["weight"], self.config
        action, log_prob = self.policy.rsample_each(obs)
        choice, log_weights = self.policy.route(obs, action, config.routing_temperature)
        chosen, own = (choice.unsqueeze(-1) * action).sum(-2), (choice * log_prob).sum(-1)
        q = reduce_members(self.action_values(obs, chosen), config.policy_critic)
        loss = pathwise(q, own, self.temperature.value, weight)
        spread = weighted_mean(-(log_weights.exp() * log_weights).sum(-1), weight)
        return loss, {"policy_loss": loss, "entropy": weighted_mean(-own, weight), "router_entropy": spread}


class PMOEPPO(PPO):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        policy: GaussianMixture = param(  # type: ignore[assignment]
            GaussianMixture(components=5, squash=False, std="state-independent"), "co-author's code"
        )

    slug = "pmoe-ppo"
    headline = ("return", "entropy", "router_entropy", "explained_variance")
    trains_on = "box actions"
    metrics = METRICS | {"rank_loss": "squared error of the ranking critic | falls, then follows the returns"}
    presets = {
        "mujoco": {  # the co-author's code
            "envs": 1,
            "window": 2048,
            "epochs": 10,
            "minibatches": 32,
            "lr": 3e-4,
            "lr_schedule": "constant",
            "entropy_coefficient": 0.0,
            "normalize_obs": True,
            "normalize_reward": True,
        }
    }
    limits = (
        Limit(
            "ppo",
            task="Pendulum-v1",
            base_at={"policy": "gaussian"},
            at={"policy.components": 1},
            apart={"policy.components": 3},
            collects="base",
            because="one component has weight 1, and the ranking critic has an optimizer of its own",
            tolerance=1e-12,
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        192,
        {"envs": 2, "window": 32, "minibatches": 2, "epochs": 2, "network.sizes": (16,), "policy.components": 3},
    )
    policy: MixturePolicy

    def build(self, task: Task) -> None:
        config = self.config
        super().build(task)
        self.ranker = QEnsemble(self.spec, config.network, members=1, normalizer=self.policy.normalizer)
        self.ranker_optimizer = self.make_optimizer(
            self.ranker,
            lr=config.lr,
            schedule=config.lr_schedule,
            eps=config.adam_eps,
            max_grad_norm=config.max_grad_norm,
        )

    @torch.no_grad()
    def ranked(self, batch: Batch) -> Batch:
        """A shallow copy with `winner` [B], the component whose fresh proposal the critic likes best."""
        batch = batch.clone(False)
        action, _ = self.policy.rsample_each(batch["obs"])
        batch["winner"] = self.ranker(batch["obs"], action.movedim(-2, 0))[0].argmax(0)
        return batch

    def total_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().total_loss(batch)
        like, _ = self.policy.moments(batch["obs"])
        routed, router_metrics = router_terms(
            self.policy.log_weights(batch["obs"], like), batch["winner"], batch["weight"]
        )
        return loss + routed, metrics | router_metrics

    def rank_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = weighted_mean(
            (self.ranker(batch["obs"], batch["action"])[0] - batch["returns"]).square(), batch["weight"]
        )
        return loss, {"rank_loss": loss}

    def step(self, minibatch: Batch) -> dict[str, Tensor]:
        minibatch = self.ranked(minibatch)
        metrics = super().step(minibatch)
        ranked = self.ranker_optimizer.minimize(self.rank_loss, minibatch)
        return metrics | {"rank_loss": ranked["rank_loss"]}
