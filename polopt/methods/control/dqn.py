"""Deep Q-network (DQN), with what has proved useful since: double, dueling, n-step, prioritized.

Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015 (arXiv 1312.5602 before it).
Options: double Q-learning (van Hasselt et al. 2016, arXiv 1509.06461), dueling networks (Wang et al. 2016, arXiv
1511.06581), prioritized replay (Schaul et al. 2016, arXiv 1511.05952), sums of n rewards (arXiv 1710.02298).

A network values all actions at once; the policy takes the best one, and while it learns a random one with a probability
that falls. Two things keep it from chasing itself: transitions come from a replay, and targets from a copy of the
network that is renewed only now and then.

With a replay batch (s, a, r, s') and the copy Q_targ:

    target      y = r + discount (1 - terminated) max_a' Q_targ(s', a')
                --double: Q_targ(s', argmax_a' Q(s', a')) in place of the maximum
    critic      E[ importance h(Q(s, a) - y) ],   h(x) = x^2 / 2 up to |x| = delta, linear beyond
    copy        Q_targ <- tau Q + (1 - tau) Q_targ after every `target_every`-th update
    act         a random action with probability epsilon, else argmax_a Q(s, a); epsilon falls from `epsilon_start` to
                `epsilon` over the fraction `exploration` of the run, along a line
    priority    (|Q(s, a) - y| + 1e-6)^priority_exponent, of what is new the largest so far; importance (size P(i))^-c
                over its largest in the batch, c from `priority_correction` to 1 over the run
    --n-step    r is the discounted sum of up to n rewards, s' what follows them, discount^k for k of them; it ends with
                the episode, and bootstraps where that was truncated

Differs from Q-learning, its base, in the replay, the copy and the network. Actions that an `action_mask` forbids are
taken neither in targets nor when acting.

Departs from the paper in: Adam in place of RMSProp; epsilon falls with the progress of the run, as in
Stable-Baselines3, not with a count of its own; evaluations are greedy, DeepMind's are random with probability 0.05
(0.01 of double). Rewards are not clipped: that is the task's. The table counts the updates between two copies, 10,000;
DeepMind's code and its successor DQN Zoo count decisions, which are 2,500 updates, and so does this. Of the options:
double's outputs have a bias each, there they share one; both streams of a dueling network share all hidden layers, and
gradients into these are not scaled by 1/sqrt(2); what is rare weighs outside of h, in DQN Zoo inside of its slope, and
DQN Zoo draws one of 1,000 uniformly in place of the 1e-6.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from polopt.bases.method import Method, Smoke, Study
from polopt.bases.off_policy import OffPolicy
from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.data.priority import Priority
from polopt.data.replay import Replay
from polopt.losses.regression import regression
from polopt.networks import Network
from polopt.optim import frozen_copy, polyak_update
from polopt.policies.categorical import mask_logits
from polopt.policies.greedy import BestAction, EpsilonGreedy
from polopt.tasks.base import Task
from polopt.values.finite import FiniteQ, taken
from polopt.values.targets import td_target

ATARI = {"network.sizes": (512,), "max_grad_norm": None, "exploration": 0.02}  # of --steps 50000000, in decisions
DOUBLE = ATARI | {"double": True, "epsilon": 0.01, "target_every": 7_500}  # 30,000 decisions


class DeepQ(Method):
    """What learns from a batch, wherever that comes from: also recorded data (../offline/cql.py, ../offline/bcq.py)."""

    @dataclass(frozen=True)
    class Config(Method.Config):
        discount: float = param(0.99, "DQN Zoo", low=0, high=1)
        lr: float = param(1e-4, "Stable-Baselines3", above=0)
        double: bool = param(False, "arXiv 1509.06461", help="the network chooses the action that its copy values")
        dueling: bool = param(False, "arXiv 1511.06581", help="one output for the state, and one for each action")
        delta: float = param(1.0, "methods: errors are clipped", above=0, help="where the loss becomes linear")
        target_every: int = param(2_500, "DQN Zoo: 10,000 decisions", low=1, unit="updates", help="between copies")
        tau: float = param(1.0, "polopt", above=0, high=1, help="share of the network in its copy then; 1: all of it")
        epsilon: float = param(0.1, "DQN Zoo", low=0, high=1, help="of exploring, at last")
        max_grad_norm: float | None = param(10.0, "Stable-Baselines3", above=0)
        network: Network = param(Network((64, 64), "relu"), "Stable-Baselines3")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("network.head_gain", because="on a critic, whose last layer has scale 1")

    entry = False
    saved = ("updates",)
    headline: ClassVar[tuple[str, ...]] = ("q", "critic_loss")
    metrics = {
        "q": "mean value of the batch's actions | grows to the scale of the return; far above: overestimation, which "
        "--double lowers",
        "critic_loss": "Huber's function of the error | may grow with the returns",
    }

    def build_learner(self) -> None:
        """The policy, which is its critic, the copy of that, the explorer and the optimizer."""
        config = self.config
        self.policy = self.part("policy", self.make_best_action)
        self.target_critic = frozen_copy(self.policy.net)
        self.explorer = EpsilonGreedy(self.policy, config.epsilon)
        self.optimizer = self.make_optimizer(self.policy.net, lr=config.lr, max_grad_norm=config.max_grad_norm)
        self.updates = 0

    def make_best_action(self) -> BestAction:
        config = self.config
        return BestAction(self.spec, FiniteQ(self.spec, config.network, dueling=config.dueling))

    @property
    def behavior(self) -> Any:
        return self.explorer

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """One-step target [B]; time limits are bootstrapped through."""
        after = batch["next_obs"]
        q = mask_logits(self.target_critic(after).mean(0), self.policy.allowed(after))
        best = (self.policy.values(after) if self.config.double else q).argmax(-1)
        discount = batch.get("discount", self.config.discount)
        return td_target(batch["reward"], discount, batch["terminated"], taken(q, best))

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        q = taken(self.policy.net(batch["obs"]), batch["action"])
        loss = regression(q, batch["target"], batch["critic_weight"], self.config.delta)
        return loss, {"critic_loss": loss, "q": weighted_mean(q.mean(0), batch["weight"])}

    def evaluate_batch(self, batch: Batch) -> Batch:
        """Adds weights and targets."""
        batch = weigh(batch)
        importance = batch.get("importance", None)
        batch["critic_weight"] = batch["weight"] if importance is None else batch["weight"] * importance
        batch["target"] = self.target(batch)
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.optimizer.minimize(self.critic_loss, self.evaluate_batch(batch))
        self.updates += 1
        if self.updates % self.config.target_every == 0:
            polyak_update(self.target_critic, self.policy.net, self.config.tau)
        return metrics


class DQN(DeepQ, OffPolicy):
    @dataclass(frozen=True)
    class Config(DeepQ.Config):
        batch_size: int = param(32, "DQN Zoo", low=1)
        replay_size: int = param(1_000_000, "DQN Zoo", low=1, unit="transitions")
        warmup: int = param(50_000, "DQN Zoo", low=1, unit="env_steps", help="uniform random actions at the start")
        steps_per_update: int = param(4, "DQN Zoo", low=1, unit="env_steps", help="between collections")
        updates_per_step: int = param(1, "DQN Zoo", low=1, help="updates after each collection")
        n_step: int = param(1, "polopt", low=1, help="steps of reward before bootstrapping")
        epsilon_start: float = param(1.0, "DQN Zoo", low=0, high=1, help="at the start of the run")
        exploration: float = param(0.1, "Stable-Baselines3", low=0, high=1, help="fraction of the run until `epsilon`")
        priority_exponent: float = param(0.0, "arXiv 1511.05952", low=0, high=1, help="0: all alike; the paper has 0.6")
        priority_correction: float = param(0.4, "arXiv 1511.05952", low=0, high=1, help="at the start; 1 at the end")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.priority_exponent == 0:
                self.refuse("priority_correction", because="where priority_exponent is 0")
            if self.exploration == 0:
                self.refuse("epsilon_start", because="where exploration is 0")

    slug = "dqn"
    headline: ClassVar[tuple[str, ...]] = ("q", "critic_loss", "epsilon")
    trains_on = "discrete actions"
    metrics = {"epsilon": "the probability of a random action | falls, then stays"}
    default_steps = 10_000_000
    probes = {"double": {"double": True, "lr": 0.1}}
    presets = {  # the first three are for Atari, as DQN Zoo has them, but for what the first lines say and the rate
        "atari": ATARI,
        "double": DOUBLE,
        "prioritized": DOUBLE | {"priority_exponent": 0.6, "lr": 2.5e-5},  # a quarter of the rate, as there
        "cartpole": {  # RL Baselines3 Zoo; no update falls between its copies but in blocks of 128
            "lr": 2.3e-3,
            "batch_size": 64,
            "replay_size": 100_000,
            "warmup": 1_000,
            "steps_per_update": 256,
            "updates_per_step": 128,
            "target_every": 128,
            "exploration": 0.16,
            "epsilon": 0.04,
            "network.sizes": (256, 256),
        },
    }
    studies = {"cartpole": Study("CartPole-v1", 50_000)}
    no_limit = "its base, Q-learning with a table, is not in the catalogue"
    smoke = Smoke(
        "CartPole-v1",
        96,
        {
            "warmup": 32,
            "batch_size": 16,
            "network.sizes": (16,),
            "replay_size": 1_000,
            "target_every": 4,
            "priority_exponent": 0.6,
        },
    )

    def build(self, task: Task) -> None:
        config = self.config
        self.build_learner()
        self.priority = Priority(config.priority_exponent, config.priority_correction)
        self.source = self.make_source(task)

    def make_replay(self) -> Replay:
        config = self.config
        self.replay = Replay(
            config.replay_size,
            n_step=config.n_step,
            discount=config.discount,
            priority=self.priority if config.priority_exponent else None,
        )
        return self.replay

    @property
    def epsilon(self) -> float:
        """The probability of a random action now."""
        config = self.config
        done = min(self.progress / config.exploration, 1.0) if config.exploration else 1.0
        return config.epsilon_start + done * (config.epsilon - config.epsilon_start)

    def collect(self) -> Batch:
        self.explorer.epsilon = self.epsilon
        if self.replay.priority is not None:
            first = self.priority.correction
            self.replay.priority = replace(self.priority, correction=first + self.progress * (1.0 - first))
        return super().collect()

    def evaluate_batch(self, batch: Batch) -> Batch:
        batch = super().evaluate_batch(batch)
        if self.replay.priority is not None:
            with torch.no_grad():
                error = taken(self.policy.net(batch["obs"]).mean(0), batch["action"]) - batch["target"]
            self.replay.update_priorities(batch["index"], error)
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return super().update(batch) | {"epsilon": torch.tensor(self.explorer.epsilon)}
