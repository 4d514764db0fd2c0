"""The offline stage of Uni-O4: steps of PPO on frozen values of recorded data, through a gate.

Lei, He, Lu, Hu, Gao, Xu, "Uni-O4: Unifying Online and Offline Deep Reinforcement Learning with Multi-Step On-Policy
Optimization", 2023, arXiv 2311.03351. Held by uni_o4.py; no entry of its own.

`fit_updates` of fitting, then `improve_updates` of improvement:

    values     Q, V of implicit Q-learning on the data (in_sample.py), then frozen; Q the minimum of two
    model      an ensemble of learned dynamics, until held-out data say stop (models/fitting.py)
    clones     -E[log pi_i(a|s)] - diversity E[ min(KL(pi_i || sg pi_j) / A, kl_limit) ],
               j = argmax_{j != i} log pi_j(a|s);  A coordinates; one member after the other, in random order
    improve    a ~ old_i(.|s), advantage = Q(s, a) - V(s), standardized over the batch, ratio = pi_i / old_i
               E[ max(-ratio advantage, -clip(ratio, 1 - eps, 1 + eps) advantage) ]
               the rate falls to 0 along a line, eps along the same, but for the first `clip_decay_steps` only
    gate       every `gate_every` steps J_i = mean of Q over what the greedy pi_i visits in the model, `horizon` steps
               from `gate_starts` states of the data; old_i <- pi_i where J_i is the best of i so far (AM-Q)
    policy     the old_i with the best J_i

Departs from the paper in: the diversity term goes through the moments of the clone (`heuristic` is the released form,
whose gradient is that of cloning times 1 + diversity, so that it makes nothing diverse); all J_i are of the same states
and the same luck of the model; Q judges what the bounds make of an action; fitting of values, model and clones takes
turns. Values of SARSA and Monte Carlo returns, in two of the released scripts, are not here (expectile 0.5 is nearest),
nor is cloning of rewarded episodes alone, in those for antmaze.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.offline import Offline
from polopt.config import Linear, param
from polopt.core.batch import Batch, average, decision_mean, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.data.demonstrations import Samples
from polopt.evaluation.ope import model_q
from polopt.losses import Surrogate
from polopt.losses.regression import imitation
from polopt.losses.surrogate import surrogate_loss
from polopt.models.ensemble import Ensemble
from polopt.models.fitting import Fitting
from polopt.networks import Network
from polopt.optim import duplicate, frozen_copy, polyak_update
from polopt.policies import AnyPolicy, Gaussian
from polopt.policies.base import Density, Imitates, Reparameterized, require
from polopt.regularizers.gate import BestSoFar
from polopt.tasks.base import Task
from polopt.values.critics import StateValue
from polopt.values.in_sample import InSample
from polopt.values.returns import standardize
from polopt.values.targets import reduce_members


def nearest_kl(kl: Tensor, log_prob: Tensor, coordinates: int, limit: float) -> Tensor:
    """Of the divergences [n, B] from n others, the one from the other that gives the data's action the most `log_prob`
    [n, B], per coordinate and at most `limit`: [B]."""
    nearest = log_prob.argmax(0, keepdim=True)
    return (kl.gather(0, nearest).squeeze(0) / coordinates).clamp_max(limit)


class OfflinePPO(Offline):
    """Improves clones of the data by PPO on the advantage of frozen values, through a gate; `policy` is the best."""

    @dataclass(frozen=True)
    class Config(Offline.Config):
        batch_size: int = param(512, "official code", low=1)
        fit_updates: int = param(2_000_000, "official code", low=0, help="of values, model and clones")
        clone_updates: int = param(400_000, "official code", low=0, help="the first of these teach the clones too")
        improve_updates: int = param(10_000, "official code", low=0, help="of improvement")
        members: int = param(4, "official code", low=1, help="policies that are cloned and improved")
        diversity: float = param(0.1, "official code", low=0, help="coefficient of the clones' divergence")
        diversity_form: str = param(
            "kl", "assumed", choices=("kl", "sampled", "heuristic"), help="sampled: an estimate of kl from one action"
        )
        kl_limit: float = param(5.0, "assumed", above=0, unit="nats", help="no divergence beyond it is asked for")
        clone_lr: float = param(1e-4, "official code", above=0)
        discount: float = param(0.99, "official code", low=0, high=1)
        expectile: float = param(0.7, "official code", above=0, below=1)
        value_lr: float = param(1e-4, "official code", above=0, help="of Q and V")
        q_network: Network = param(Network((1024, 1024), "relu"), "official code")
        tau: float = param(0.005, "official code", above=0, high=1)
        target_every: int = param(2, "official code", low=1, help="updates between those of the target critics")
        model: Ensemble = param(Ensemble(), "official code")
        surrogate: Surrogate = param(Surrogate(clip_low=0.25, clip_high=0.25), "official code")
        clip_decay_steps: int = param(200, "official code", low=0, help="then the clip range stays as it is")
        lr: float = param(1e-4, "official code", above=0, help="of the improvement; falls to 0")
        entropy_coefficient: float = param(0.0, "official code", low=0)
        max_grad_norm: float | None = param(0.5, "official code", above=0)
        gate: str = param("estimate", "official code", choices=("estimate", "always"), help="always: no gate, BPPO")
        restore: bool = param(False, "official code", help="put a policy that is turned down back to the accepted one")
        gate_every: int = param(100, "official code", low=1, unit="steps")
        gate_starts: int = param(512, "official code", low=1, unit="states")
        horizon: int = param(1_000, "official code", low=1, help="of imagined episodes")
        network: Network = param(Network((256, 256, 256), "relu", init="orthogonal"), "official code")
        policy: AnyPolicy = param(Gaussian(), "official code")

        inert = {"surrogate.level": "a row is one decision", "clone_updates": "beyond fit_updates"}

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.members == 1 or self.diversity == 0:
                self.refuse("diversity_form", "kl_limit", because="without a divergence between clones")
            if self.diversity_form == "heuristic":
                self.refuse("kl_limit", because="in the heuristic form")
            if self.gate == "always":
                self.refuse("restore", because="where nothing is turned down")

    entry = False
    requires = (Density, Imitates)

    def build(self, task: Task) -> None:
        config = self.config
        self.count = 0  # updates so far
        self.coordinates = self.spec.action_dim  # of an action
        self.policy = self.make_policy(config.policy, network=config.network)
        if self.policy.recurrent:
            raise UsageError("uni-o4 draws single decisions, which a recurrent policy cannot learn from")
        own = getattr(self.policy, "normalizer", None)
        more = (config.policy.build(self.spec, config.network, own) for _ in range(config.members - 1))
        self.members = [duplicate(self.policy, {id(own): own} if own is not None else None), *more]
        self.old = [frozen_copy(member) for member in self.members]
        value = self.part("critic", StateValue, self.spec, config.q_network)
        how = {"expectile": config.expectile, "discount": config.discount, "tau": config.tau, "normalizer": own}
        self.values = InSample(self.spec, config.q_network, value=value, **how)
        self.model = config.model.build(self.spec)
        self.value_optimizer = self.make_optimizer(self.values.value, lr=config.value_lr)
        self.critic_optimizer = self.make_optimizer(self.values.critic, lr=config.value_lr)
        self.clone_optimizers = [self.make_optimizer(member, lr=config.clone_lr) for member in self.members]
        falling = {"lr": config.lr, "schedule": Linear(), "max_grad_norm": config.max_grad_norm}
        self.optimizers_of = [self.make_optimizer(member, **falling) for member in self.members]
        pairs = zip(self.members, self.optimizers_of)
        self.gates = [BestSoFar(pair, restore=config.restore) for pair in pairs]

    saved = ("count",)

    def check_policy(self) -> None:
        super().check_policy()
        if self.config.diversity_form == "sampled":
            require(self.policy, Reparameterized, by="uni-o4 with a sampled divergence")

    def prepare(self) -> None:
        super().prepare()
        assert isinstance(self.source, Samples)
        data = self.source.data
        self.fitting = Fitting(self.model, data, seed=int(self.generator.initial_seed()) % 2**31)
        self.model_optimizer = self.fitting.optimizer
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        self._starts = data["obs"][order[: self.config.gate_starts]]

    # Fitting

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.values.value_loss(batch)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.values.critic_loss(batch)

    def clone_loss(self, batch: Batch, member: int) -> tuple[Tensor, dict[str, Tensor]]:
        config, policy = self.config, self.members[member]
        loss = imitation(policy.imitation_loss(batch), batch["weight"])
        metrics = {"imitation_loss": loss}
        others = [other for index, other in enumerate(self.members) if index != member]
        if not others or not config.diversity:
            return loss, metrics
        gap = weighted_mean(self.divergence(batch, policy, others), batch["weight"])
        return loss - config.diversity * gap, metrics | {"diversity": gap}

    def divergence(self, batch: Batch, policy: Any, others: list[Any]) -> Tensor:
        """How far a clone is from the nearest of the others, [B]; the gradient is that of the clone."""
        config, form = self.config, self.config.diversity_form
        at = policy.decide(batch) if form == "sampled" else batch
        log_prob = torch.stack([other.log_prob(at) for other in others])
        if form == "heuristic":
            return policy.log_prob(batch) - log_prob.amax(0).detach()
        if form == "sampled":
            return ((at["log_prob"] - log_prob.amax(0)) / self.coordinates).clamp_max(config.kl_limit)
        kl = torch.stack([policy.kl(batch, other) for other in others])
        return nearest_kl(kl, log_prob, self.coordinates, config.kl_limit)

    def fit(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.value_optimizer.minimize(self.value_loss, batch)
        metrics |= self.critic_optimizer.minimize(self.critic_loss, batch)
        if self.count % self.config.target_every == 0:
            self.values.follow()
        metrics |= self.fitting.step()
        if self.count <= self.config.clone_updates:
            order = torch.randperm(len(self.members), generator=self.generator).tolist()
            steps = [self.clone_optimizers[i].minimize(self.clone_loss, batch, member=i) for i in order]
            metrics |= average(steps)
            polyak_update(self.policy, self.members[0], 1.0)
        return metrics

    # Improving

    def q(self, obs: Any, action: Tensor) -> Tensor:
        """The minimum of the critics at what the bounds make of an action."""
        q: Any = self.values.critic(obs, self.policy.own_action(self.policy.env_action(action)))
        return reduce_members(q, "min")

    @torch.no_grad()
    def decided(self, batch: Batch, member: int) -> tuple[Batch, Tensor]:
        """The decisions of a member's old policy at the data's states, with standardized advantages; their mean."""
        record, _ = self.old[member].act(batch["obs"])
        decisions = batch.select("obs", "weight").update(record)
        advantage = self.q(batch["obs"], record["action"]) - self.values.value(batch["obs"])
        decisions["advantage"] = standardize(advantage)
        return decisions, advantage.mean()

    def policy_loss(self, batch: Batch, member: int, clip_scale: float) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        log_prob, entropy = self.members[member].score(batch)
        known = (log_prob, batch["log_prob"], batch["advantage"], weight)
        loss, metrics = surrogate_loss(config.surrogate, *known, clip_scale=clip_scale)
        entropy = decision_mean(entropy, weight)
        return loss - config.entropy_coefficient * entropy, metrics | {"entropy": entropy}

    def clip_scale(self, step: int) -> float:
        """Factor on the clip range at this step of improvement, from 0 on."""
        return 1.0 - min(step, self.config.clip_decay_steps) / self.config.improve_updates

    def improve(self, batch: Batch, step: int) -> dict[str, Tensor]:
        config = self.config
        scale = torch.tensor(self.clip_scale(step), device=device_of(self.policy))
        found = []
        for member, optimizer in enumerate(self.optimizers_of):
            optimizer.progress = step / config.improve_updates
            decisions, advantage = self.decided(batch, member)
            metrics = optimizer.minimize(self.policy_loss, decisions, member=member, clip_scale=scale)
            found.append(metrics | {"advantage": advantage})
        return average(found)

    def estimate(self, member: int) -> float:
        """AM-Q of a member's greedy policy, from the same states and with the same luck each time."""
        start = self._starts.to(device_of(self.policy))
        return float(model_q(self.model, self.members[member], self.q, start, self.config.horizon))

    def judge(self) -> dict[str, Tensor]:
        """Lets each member through the gate, and shows the best of those that are."""
        worth, accepted = [], 0
        for index, (gate, old) in enumerate(zip(self.gates, self.old)):
            estimate = self.estimate(index)
            if self.config.gate == "always":
                gate.best = None
            if gate.judge(estimate):
                polyak_update(old, self.members[index], 1.0)
                accepted += 1
            worth.append(-torch.inf if gate.best is None else gate.best)
        best = max(range(len(worth)), key=worth.__getitem__)
        polyak_update(self.policy, self.old[best], 1.0)
        return {"estimate": torch.tensor(worth[best]), "accepted": torch.tensor(accepted / len(worth))}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        config, batch = self.config, weigh(batch)
        self.count += 1
        if self.count <= config.fit_updates:
            metrics = self.fit(batch)
            if self.count == config.fit_updates and config.improve_updates:
                self.fitting.run()
                metrics |= self.judge()  # what the clones are worth
            return metrics
        step = self.count - config.fit_updates
        metrics = self.improve(batch, step - 1)
        return metrics | self.judge() if step % config.gate_every == 0 else metrics
