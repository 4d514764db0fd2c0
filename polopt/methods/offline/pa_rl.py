"""PA-RL: one actor-critic method for policies of any class, which are only ever trained by imitation.

Mark, Gao, Sampaio, Srirama, Sharma, Finn, Kumar, "Policy Agnostic RL: Offline RL and Online RL Fine-Tuning of Any
Class and Backbone", 2024, arXiv 2412.06685.

The policy is never differentiated. In a state, `candidates` actions are drawn from it, the critic keeps the best of
them, and a few steps of gradient ascent on the critic improve each (`polopt.policies.optimized`). The result is what
acts, what the critic's target bootstraps from, and what the policy is taught with its own supervised loss.

With critics Q_i, target critics Q_targ, a*(s) the best optimized candidate in s, and the return V_MC of the data:

    optimize    A(s) = climb(top `keep` of `candidates` a ~ pi(.|s) by mean_i Q_i(s, a))
                climb: a <- clip(a + step_size grad_a mean_i Q_i(s, a)), `climb_steps` times, best iterate returned
    act         softmax over A(s) of Q / sampling_temperature; greedily a*(s)
    target      y = reward + discount (1 - terminated) min of two random members of Q_targ(s', a*(s'))
    critic      sum_i E[ (Q_i(s, a) - y)^2 + coefficient R_i(s, a) ] / 2
                R_i = logsumexp_a' max(Q_i(s, a'), V_MC(s)) - log K - Q_i(s, a)      Cal-QL, arXiv 2303.05479
    policy      imitation_loss(s, a~),  a~ from A(s), with the data's action in place of its worst member

Candidates come from a slow average of the policy (`policy_tau`), which is what acts; with `--policy-tau none` from
the policy itself, as those of token policies do in the released code. Values are histograms, learned by cross-entropy,
whose ends follow from the rewards of the data: -100 and 0 for costs of 1 until the goal (`--values.histogram none`:
numbers). `--values implicit` takes the critic of implicit Q-learning (iql.py), whose target asks no policy.

Three phases: `bc_updates` of cloning (0 where `--init` brings the policy of a run of `bc --preset pa-rl`);
`offline_updates` of the critic alone, against the frozen clone; then online, where whole episodes are collected
greedily and every update, on a batch half from the dataset and half from them, trains both. `--distill always` teaches
the policy offline too; `never` leaves the clone as it is, so that the critic only ranks and climbs.

Differs from its base, Cal-QL, in the policy: a squashed Gaussian there, with a pathwise gradient.

Departs from the paper in: policy and critic take turns at every update, not episode by episode; the conservative term
sees all optimized candidates and all critics, where the released code counts the best one ten times, for two of them;
one set of candidates in a state serves this term and the labels; learning rates have no warm-up and no decay. A step
of the chain has the noise of its posterior and clips its estimate, where the code's has the larger sqrt(beta) and clips
the sample; a time has fixed frequencies, not learned ones. Bins are blurred by 0.75 of their width, as in the paper of
HL-Gauss, in the code by 1.06. Tokens come from the same network as the noise, where the paper has a transformer. After
a time limit V_MC counts the last reward, where negative, for ever. The softmax is of raw values, as in the paper: mind
their scale.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polopt.bases.method import Smoke
from polopt.bases.offline import Offline, reward_scaling, sample_of
from polopt.config import param
from polopt.core.batch import Batch, weigh
from polopt.data.demonstrations import Samples
from polopt.data.mixing import Mixed
from polopt.data.replay import Replay
from polopt.data.replay_source import ReplaySource
from polopt.data.trajectories import KEYS, Then, Trajectories, returns_at_least
from polopt.losses.regression import imitation
from polopt.networks import Network
from polopt.optim import frozen_copy, polyak_update, renew
from polopt.policies import AnyPolicy, Diffusion
from polopt.policies.base import Imitates, require, with_noise
from polopt.policies.optimized import Optimized
from polopt.tasks.base import Task
from polopt.values import Conservative, Implicit
from polopt.values.conservative import ConservativeQ
from polopt.values.histogram import value_range

CLONE, OFFLINE, ONLINE = "clone", "offline", "online"
RESIDUAL = Network((256, 256, 256), "silu", normalization="layer", blocks="residual", dropout=0.1)


class PARL(Offline):
    @dataclass(frozen=True)
    class Config(Offline.Config):
        bc_updates: int = param(100_000, "assumed", low=0, help="of cloning at the start, without the critic")
        offline_updates: int | None = param(
            500_000, "official code", low=0, help="of the critic, before it goes on online; none: it never does"
        )
        distill: str = param(
            "online", "official code", choices=("online", "always", "never"), help="when the policy is taught"
        )
        labels: str = param("sample", "official code", choices=("sample", "best"), help="which optimized candidate")
        data_candidate: bool = param(True, "official code", help="the data's action replaces the worst one for labels")
        candidates: int = param(32, "appendix", low=1, help="actions drawn from the policy in each state")
        keep: int = param(10, "appendix", low=1, help="of them that climb")
        climb_steps: int = param(10, "appendix", low=0, help="0: only ranks")
        step_size: float = param(3e-4, "appendix", above=0, help="of a climbing step, in units of the policy's action")
        sampling_temperature: float = param(1.0, "official code", above=0, unit="value", help="of the softmax")
        explore: str = param("best", "official code", choices=("best", "sample"), help="how episodes are collected")
        discount: float = param(0.99, "appendix", low=0, high=1)
        tau: float | None = param(
            None, "official code", above=0, high=1, help="of the critics in the targets; none: 0.005, implicit 0.002"
        )
        policy_tau: float | None = param(
            0.002, "official code", above=0, high=1, help="of the policy in the average that acts; none: it acts itself"
        )
        critics: int = param(10, "official code", low=2, help="members of the critic ensemble")
        values: Conservative | Implicit = param(Conservative(), "section 5")
        bc_lr: float = param(3e-4, "official code", above=0, help="of the policy while it clones")
        policy_lr: float = param(5e-5, "official code", above=0, help="of the policy while it is taught")
        critic_lr: float = param(3e-4, "official code", above=0)
        network: Network = param(RESIDUAL, "official code", help="of the policy")
        critic_network: Network = param(Network((256, 256), "relu", normalization="layer"), "official code")
        policy: AnyPolicy = param(Diffusion(steps=5, schedule="cosine", time_size=128), "official code")

    slug = "pa-rl"
    learns = "base"
    requires = (Imitates,)
    headline = ("policy_loss", "critic_loss", "q", "conservative_gap")
    trains_on = "recorded data, then the task itself; box actions"
    metrics = {
        "stage": "`clone`, `offline` or `online`",
        "q": "mean Q at the data's actions, over critics | grows to the scale of the return",
        "critic_loss": "cross-entropy, summed over critics; with `values.histogram none` half of the squared error",
        "value_loss": "with `--values implicit`, expectile loss of V",
        "policy_loss": "the imitation loss on optimized actions",
        "conservative_gap": "how far candidate actions are valued above the data's, with the returns of the data as "
        "floor | falls towards 0 and below",
    }
    default_steps = 1_100_000
    presets = {
        "antmaze": {"rewards": "minus-one", "critic_network.sizes": (256, 256, 256, 256)},
    }
    no_limit = "its base, Cal-QL, is not in the catalogue"
    smoke = Smoke(
        "point-maze",
        20,
        {
            "dataset": "random",
            "random_episodes": 4,
            "batch_size": 32,
            "bc_updates": 2,
            "offline_updates": 2,
            "candidates": 6,
            "keep": 3,
            "climb_steps": 2,
            "step_size": 0.05,
            "critics": 3,
            "values.coefficient": 1.0,
            "values.random_actions": 3,
            "values.histogram.bins": 8,
            "values.histogram.low": 0.0,
            "values.histogram.high": 1.0,
            "replay_size": 1_000,
            "network.sizes": (16,),
            "network.dropout": 0.0,
            "critic_network.sizes": (16,),
        },
        task_options={"horizon": 12},
    )
    probes = {
        "values": {"rewards": "minus-one"},  # the ends of histograms follow from rewards, and the smoke's are 0
        "sampling_temperature": {"sampling_temperature": 0.1},
    }
    saved = ("updates",)
    updates = 0
    policy: Optimized

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        online = 0 if config.offline_updates is None else steps - config.bc_updates - config.offline_updates
        return {"online environment steps": max(online, 0) * config.online_steps}

    def build(self, task: Task) -> None:
        config = self.config
        self.base: Any = self.make_policy(config.policy, network=config.network)
        self.target_base: Any = self.base if config.policy_tau is None else frozen_copy(self.base)
        tau = config.values.usual_tau if config.tau is None else config.tau
        self.values: Any = config.values.build(
            self.spec, config.critic_network, discount=config.discount, tau=tau, members=config.critics
        )
        self.policy = Optimized(
            self.target_base,
            self.values.critic,
            samples=config.candidates,
            keep=config.keep,
            steps=config.climb_steps,
            step_size=config.step_size,
            sampling_temperature=config.sampling_temperature,
        )
        self.policy_optimizer = self.make_optimizer(self.base, lr=config.bc_lr)
        self.critic_optimizer = self.make_optimizer(self.values.critic, lr=config.critic_lr)
        self.conservative = isinstance(self.values, ConservativeQ)
        if not self.conservative:
            self.value_optimizer = self.make_optimizer(self.values.value, lr=config.critic_lr)

    def check_policy(self) -> None:
        require(self.base, *self.requires, by=self.slug)

    def prepare(self) -> None:
        config = self.config
        data = self.dataset().clone(False)
        self.reward_scale, self.reward_shift = scaling = reward_scaling(data, config.rewards)
        data["action"] = self.policy.own_action(data["action"])
        self._sample = sample_of(data)
        data["returns"] = returns_at_least(data, config.discount, *scaling)
        if config.values.histogram is not None:
            reward = self.reward_scale * data["reward"] + self.reward_shift
            self.values.critic.cover(*value_range(reward, data["terminated"], config.discount))
            renew(self.values.target_critic)
        data = data.select(*KEYS).set("index", torch.arange(len(data)))
        played = Trajectories(self.task, config.discount, self.ledger, greedy=config.explore == "best", scaling=scaling)
        half = config.batch_size // 2
        online = ReplaySource(played, Replay(config.replay_size), half, warmup=0, ratio=1 / config.online_steps)
        mixed = Mixed(Samples(data, config.batch_size - half, self.generator), online)
        before = None if config.offline_updates is None else config.bc_updates + config.offline_updates
        self.source = Then(Samples(data, config.batch_size, self.generator), mixed, before)

    @property
    def stage_name(self) -> str:  # type: ignore[override]
        """Of the next update."""
        clones, offline = self.config.bc_updates, self.config.offline_updates
        if self.updates < clones:
            return CLONE
        return OFFLINE if offline is None or self.updates < clones + offline else ONLINE

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = imitation(self.base.imitation_loss(batch, batch.get("noise", None)), batch["weight"])
        return loss, {"policy_loss": loss}

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of implicit Q-learning only."""
        return self.values.value_loss(batch)

    def critic_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return self.values.critic_loss(batch)

    @torch.no_grad()
    def optimize(self, batch: Batch, taught: bool) -> Batch:
        """Adds the `label` [B, A] of the policy, if it is `taught`, and what a conservative critic's loss reads: all
        from candidates of the present average, which the present critic improves."""
        config, batch = self.config, batch.clone(False)
        pushed = self.conservative and config.values.coefficient > 0 and config.values.actions != "next"
        here = batch["action"].new_empty(0, *batch["action"].shape)
        if taught or pushed:
            also = batch["action"] if taught and config.data_candidate else None
            here, value = self.policy.optimize(batch["obs"], also)
            if taught:
                batch["label"] = self.policy.choose(here, value, greedy=config.labels == "best")
        if not self.conservative:
            return batch
        after, value = self.policy.optimize(batch["next_obs"])
        best = self.policy.choose(after, value, greedy=True)
        pool = {"state": here, "next": after, "both": torch.cat([here, after])}[config.values.actions]
        random = self.policy.random(config.values.random_actions, len(batch))
        return self.values.columns(batch, best, pool, random, self.generator)

    def teach(self, batch: Batch, action: Tensor, lr: float) -> dict[str, Tensor]:
        """One supervised step of the policy on `action` [B, A]."""
        self.policy_optimizer.lr = lr
        batch = with_noise(self.base, batch.clone(False).set("action", action))
        metrics = self.policy_optimizer.minimize(self.policy_loss, batch)
        if self.config.policy_tau is not None:
            polyak_update(self.target_base, self.base, self.config.policy_tau)
        return metrics

    def update(self, batch: Batch) -> dict[str, Tensor]:
        config, batch, phase = self.config, weigh(batch), self.stage_name
        self.updates += 1
        if phase == CLONE:
            return self.teach(batch, batch["action"], config.bc_lr)
        taught = config.distill == "always" or (config.distill == "online" and phase == ONLINE)
        batch = self.optimize(batch, taught)
        metrics = self.teach(batch, batch["label"], config.policy_lr) if taught else {}
        if not self.conservative:
            metrics |= self.value_optimizer.minimize(self.value_loss, batch)
        metrics |= self.critic_optimizer.minimize(self.critic_loss, batch)
        self.values.follow()
        return metrics
