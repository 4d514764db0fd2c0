"""ARSQ: a soft Q-function over a grid of actions, read coordinate by coordinate and level by level, is its own policy.

Liu et al., "Learning from Suboptimal Data in Continuous Control via Auto-Regressive Soft Q-Network", 2025, arXiv
2502.00288, on the coarse-to-fine grid of CQN (arXiv 2407.07787).

An action is a row of tokens b_t, one for each of L levels and, within a level, each coordinate: in which of B equal
parts of its interval the coordinate is. Token t reads the state and the context c_t, the centers of the intervals that
all coordinates are in before it is chosen:

    A_t(b) = f_t(b; s, c_t) - alpha log sum_b' exp(f_t(b'; s, c_t) / alpha)          `soft_advantage`
    Q(s, a) = V(s) + sum_t A_t(b_t)
    y = r + gamma (1 - terminated) min_i target V_i(s')

Since exp(A_t / alpha) sums to 1 at every token, V = alpha log sum_a exp(Q(s, a) / alpha), so the target needs no search
over actions, and the soft-optimal policy is the product of the softmaxes of A_t / alpha. Two networks i each learn

    mean (Q_i - y)^2 + lambda mean over demonstrations of sum_t mean_{b != b_t} max(A_t(b) - A_t(b_t), C_m),  C_m < 0

Demonstrations are the best episodes of the data, and episodes of one's own that return at least as much as these do on
average; all other rows of a batch come from all that was recorded. The policy acts on min_i A_t^i, each with the
log-sum of the temperature that it acts with.

Departs from the paper in what becomes a demonstration: the released code admits an episode whose SUM of rewards exceeds
the demonstrations' mean reward of a STEP, which is nearly every one; here returns are compared. The rates of the
official configuration were not to be had (the released code has one for V and one for A; here one serves both), and
levels and bins are those that a summary of the paper names for D4RL (`rlbench`: for RLBench).
"""

import math
from dataclasses import dataclass

import torch
from gymnasium import spaces
from torch import Tensor

from polopt.bases.method import Smoke
from polopt.bases.offline import Offline, OfflineThenOnline, reward_scaling, sample_of
from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.data.base import Source
from polopt.data.datasets import episode_returns
from polopt.data.demonstrations import Samples
from polopt.data.mixing import Mixed
from polopt.data.replay import Replay
from polopt.data.successes import Admitting, Stored, best_episodes
from polopt.networks import Network
from polopt.optim.copies import frozen_copy, polyak_update
from polopt.policies.zooming import ZoomingPolicy, soft_advantage
from polopt.tasks.base import Task
from polopt.values.finite import taken

MEMBERS = 2


def margin(advantage: Tensor, part: Tensor, least: float) -> Tensor:
    """sum_t mean_{b != b_t} max(A_t(b) - A_t(b_t), least) [E, ...] of advantages [E, ..., tokens, bins], least < 0."""
    ahead = advantage - taken(advantage, part).unsqueeze(-1)  # 0 at b_t, where the clamp leaves it
    return ahead.clamp_min(least).sum(-1).sum(-1) / (advantage.shape[-1] - 1)


class ARSQ(Offline):
    @dataclass(frozen=True)
    class Config(Offline.Config):
        levels: int = param(2, "assumed", low=1, help="how often each coordinate is zoomed into")
        bins: int = param(7, "assumed", low=2, help="parts of an interval")
        conditioning: str = param(
            "all",
            "official code",
            choices=("all", "levels"),
            help="levels: coordinates do not see each other within one",
        )
        entropy_temperature: float = param(0.1, "assumed", above=0, unit="value", help="the paper's alpha")
        sampling_temperature: float = param(0.1, "assumed", above=0, unit="value", help="alpha where the policy acts")
        demonstrations: float = param(0.1, "assumed", above=0, high=1, help="share of the episodes: the best ones")
        demonstration_share: float = param(0.5, "assumed", low=0, below=1, help="of the rows of a batch; 0: none")
        admit: bool = param(True, "official code", help="own episodes that are as good join the demonstrations")
        margin_coefficient: float = param(0.1, "assumed", low=0, help="the paper's lambda")
        margin: float = param(-0.1, "assumed", below=0, unit="value", help="the paper's C_m")
        discount: float = param(0.99, "assumed", low=0, high=1)
        tau: float = param(0.005, "assumed", above=0, high=1)
        lr: float = param(1e-3, "assumed", above=0)
        network: Network = param(
            Network((512, 512, 512), "tanh", init="orthogonal", head_gain=0.01), "official code", help="of V, and of A"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.demonstration_share == 0.0:
                self.refuse(
                    "demonstrations", "admit", "margin_coefficient", "margin", because="without a demonstration_share"
                )
            if self.offline_updates is None:
                self.refuse("admit", because="without offline_updates: it never goes online")
            if self.margin_coefficient == 0.0:
                self.refuse("margin", because="with margin_coefficient 0")

    slug = "arsq"
    headline = ("value", "q", "critic_loss", "entropy")
    trains_on = "recorded data, then the task itself; box actions"
    metrics = {
        "critic_loss": "squared error of Q at the data's actions, summed over both networks | falls, then settles",
        "margin_loss": "how far other parts come near the demonstrations', summed over tokens and networks | falls to "
        "tokens times `margin`",
        "value": "mean of V over the batch and both networks | grows to the scale of the (scaled) return",
        "q": "mean of Q at the data's actions | below `value`",
        "entropy": "of the acting policy along the data's actions, in nats | falls",
    }
    presets = {"rlbench": {"levels": 3, "bins": 5}}
    default_steps = 1_000_000
    no_limit = "with one coordinate and one level it is soft Q-learning on bins up to rounding, which is no entry"
    smoke = Smoke(
        "point-maze",
        16,
        {
            "dataset": "random",
            "random_episodes": 4,
            "batch_size": 32,
            "offline_updates": 6,
            "replay_size": 1_000,
            "bins": 3,
            "margin_coefficient": 1.0,
            "network.sizes": (16,),
        },
        task_options={"horizon": 12},
    )
    probes = {"replay_size": {"replay_size": 50}}

    def build(self, task: Task) -> None:
        config = self.config
        if not isinstance(self.spec.action, spaces.Box):
            raise UsageError(f"arsq zooms into Box actions; {self.spec.name} has {self.spec.action}")
        if config.network.recurrent != "none":
            raise UsageError("arsq draws single decisions, which a recurrent network cannot learn from")
        size = self.spec.action_dim
        scores = config.network.build(
            self.spec.obs, config.levels * size * config.bins, inputs_extra=size, ensemble=MEMBERS
        )
        self.policy = ZoomingPolicy(
            self.spec,
            scores,
            levels=config.levels,
            bins=config.bins,
            sampling_temperature=config.sampling_temperature,
            conditioning=config.conditioning,
        )
        self.value = config.network.build(self.spec.obs, 1, ensemble=MEMBERS)
        self.target_value = frozen_copy(self.value)
        self.optimizer = self.make_optimizer(self.policy, self.value, lr=config.lr)

    def prepare(self) -> None:
        config = self.config
        data = self.dataset().clone(False)
        self.reward_scale, self.reward_shift = reward_scaling(data, config.rewards)
        data["action"] = self.policy.own_action(data["action"])
        self._sample = sample_of(data)
        rows = round(config.demonstration_share * config.batch_size)
        best = best_episodes(data, config.demonstrations)
        rest, online = config.batch_size - rows, config.offline_updates is not None
        if not online:
            everything: Source = Samples(data, rest, self.generator)
            chosen: Source = Samples(best, rows, self.generator)
        else:
            if len(data) >= config.replay_size:
                raise UsageError(f"arsq needs a replay-size above the {len(data):,} decisions of its dataset")
            seed = int(self.generator.initial_seed())
            replay, successes = Replay(config.replay_size, seed=seed), Replay(config.replay_size, seed=seed + 1)
            replay.add(data)
            successes.add(best)
            bar = float(episode_returns(best).mean()) if config.admit else math.inf
            played = Admitting(self.task, config.discount, self.ledger, successes, bar)
            everything = OfflineThenOnline(played, replay, rest, config.offline_updates, 1.0 / config.online_steps)
            chosen = Stored(successes, rows)
        self.source = Mixed(everything, chosen) if rows else everything

    def collect(self) -> Batch:
        batch = super().collect()
        if "origin" not in batch.keys():
            batch["origin"] = torch.zeros(len(batch), dtype=torch.int64, device=batch.device)
        return batch

    def total_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        config, weight = self.config, batch["weight"]
        raw, part = self.policy.scores(batch)
        advantage = soft_advantage(raw, config.entropy_temperature)
        value = self.value(batch["obs"]).squeeze(-1)
        q = value + taken(advantage, part).sum(-1)
        critic_loss = ((q - batch["target"]).square().sum(0) * weight).sum()
        margin_loss = (margin(advantage, part, config.margin).sum(0) * batch["demonstration_weight"]).sum()
        log_probs = self.policy.conditionals(raw.detach())
        return critic_loss + config.margin_coefficient * margin_loss, {
            "critic_loss": critic_loss,
            "margin_loss": margin_loss,
            "value": weighted_mean(value.mean(0), weight),
            "q": weighted_mean(q.mean(0), weight),
            "entropy": weighted_mean(-(log_probs.exp() * log_probs).sum(-1).sum(-1), weight),
        }

    @torch.no_grad()
    def evaluated(self, batch: Batch) -> Batch:
        """A shallow copy with `target` [B], and `demonstration_weight` [B], which sums to 1 over demonstrations."""
        batch = weigh(batch)
        after = self.target_value(batch["next_obs"]).squeeze(-1).amin(0)
        batch["target"] = batch["reward"] + self.config.discount * (~batch["terminated"]) * after
        demonstrated = (batch["origin"] == 1).to(after.dtype)
        batch["demonstration_weight"] = demonstrated / demonstrated.sum().clamp_min(1.0)
        return batch

    def update(self, batch: Batch) -> dict[str, Tensor]:
        metrics = self.optimizer.minimize(self.total_loss, self.evaluated(batch))
        polyak_update(self.target_value, self.value, self.config.tau)
        return metrics
