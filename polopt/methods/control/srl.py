"""Sequence reinforcement learning (SRL): one look at the world, several actions.

Patel and Siegelmann, "Overcoming Slow Decision Frequencies in Continuous Control: Model-Based Sequence Reinforcement
Learning for Model-Free Control", 2024, arXiv 2410.08979; official code dee0512/Sequence-Reinforcement-Learning.

A policy that holds its action until it may look again cannot balance anything. Here it decodes J actions from ONE
observation, and takes them open loop. An ordinary critic of single actions says what each of them is worth in the state
in which it would be taken, and a model says which state that is ("temporal recall"). After training the model is not
needed.

    decoder     x_0 = W2 relu(W1 s),  x_(k+1) = GRU(a_(k-1), x_k),  a_k = tanh(u_k),  u_k ~ N(mean, std)(x_(k+1)),
                a_(-1) = the action done before s, in a new episode 0                (polopt/policies/sequence.py)
    target      y = reward + discount (1 - terminated) (min_i Q_targ_i(s', a'_0) - temperature log pi(a'_0|s', a)),
                a'_0 the first action decoded at s' after a
    critic      sum_i E[ (Q_i(s, a) - y)^2 / 2 ]
    model       E[ |f(s, a) - s'|^2 / D ],   f_targ <- tau f + (1 - tau) f_targ       (polopt/models/next_state.py)
    policy      E[ sum_k temperature log pi_k - min_i Q_i(s_k, a_k) ],   k = 0 .. J-1
                s_0 = s,  s_(k+1) = f_targ(s_k, a_k), through which no gradient goes: later places reach earlier ones
                through the decoder alone
    temperature log temperature (entropy - target_entropy),   entropy = -mean_k log pi_k, constant

The critic has a batch of its own; model and policy share a second one. Every decision is stored, with the action before
it. What is left of a sequence is dropped where an episode ends, at a time limit too. `--intervals 1,2,4,8` adds
evaluations in which the policy is asked every so many decisions, whatever its J: beyond J the decoder goes on.

Differs from SAC in: the policy, the places that are summed, and the model; the action before is part of a decision.
`--recall none` is the ablation in which all actions are scored at the state of the first.

Departs from the paper in: how experience is collected, and the score over intervals, follow from the abstract and from
what is released of the baselines, but updates begin after the warm-up, and not in it. Actions are read, and densities
are, in the units of the policy, [-1, 1], where the released code takes those of the environment; weights begin as
PyTorch's do, and not by Xavier's rule. The latent variant, a plain recurrent cell, the time-aware critic and gradients
through the model are not here.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.spec import Spec
from polopt.data.replay_source import ReplaySource
from polopt.evaluation.frequency import interval_mean, returns_by_interval
from polopt.losses.pathwise import pathwise
from polopt.methods.control.sac import SAC
from polopt.methods.control.srl_settings import SRLSettings
from polopt.models.next_state import NextState
from polopt.networks import Network
from polopt.optim import frozen_copy, polyak_update
from polopt.policies.base import Actor
from polopt.policies.decoding import SequenceDecoder
from polopt.policies.sequence import Recalling, SequencePolicy
from polopt.policies.wrappers import Uniform
from polopt.regularizers import Fixed, Learned
from polopt.tasks.base import Task
from polopt.values.targets import reduce_members


class SRL(SRLSettings, SAC):
    @dataclass(frozen=True)
    class Config(SAC.Config):
        recall: str = param(
            "model",
            "official code",
            choices=("model", "none"),
            help="where actions are scored: in the states of the model, or all in the first one",
        )
        policy_every: int = param(1, "official code", low=1, help="updates of the critics for one of the policy")
        intervals: tuple[int, ...] = param(
            (), "section 5", low=1, help="evaluate also with a policy that is asked every so many decisions"
        )
        n_step: int = param(1, "official code", low=1, high=1, help="the action before the next one must be the next's")
        entropy: Learned | Fixed = param(Learned(form="log-alpha"), "official code")
        model_network: Network = param(Network((400, 300), "relu"), "official code")
        policy: SequenceDecoder = param(SequenceDecoder(), "official code")  # type: ignore[assignment]

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.policy.length == 1:
                self.refuse("recall", "model_network", because="with sequences of one action")
            if self.recall == "none":
                self.refuse("model_network", because="without recall")
            self.refuse("model_network.head_gain", because="on a model, whose last layer has scale 1")

    slug = "srl"
    requires = ()
    policy: SequencePolicy
    model: NextState | None = None
    target_model: NextState | None = None

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        return super().derived(config, steps) | {"transitions per update": 2 * config.batch_size}

    def build(self, task: Task) -> None:
        super().build(task)
        config = self.config
        if config.recall == "model" and config.policy.length > 1:
            self.model = self.part("model", NextState, self.spec, config.model_network)
            self.target_model = frozen_copy(self.model)
            self.model_optimizer = self.make_optimizer(self.model, lr=config.lr)

    def make_source(self, task: Task) -> ReplaySource:
        source = super().make_source(task)
        source.batch_size = 2 * self.config.batch_size
        source.warmup_actor = partial(uniform, task.spec)
        return source

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Also `return_every_J` for each of `intervals`, and `interval_return`, their mean over that range."""
        scores = super().evaluate(task, episodes, greedy=greedy)
        returns = returns_by_interval(self.policy, task, self.config.intervals, episodes, greedy=greedy)
        if returns:
            scores["interval_return"] = interval_mean(returns)
        return scores | {f"return_every_{interval}": value for interval, value in returns.items()}

    @torch.no_grad()
    def target(self, batch: Batch) -> Tensor:
        """Soft one-step target [B], of the first action of a sequence that begins at the next observation."""
        action, log_prob = self.policy.rsample(batch["next_obs"], batch["action"], 1)
        next_q = reduce_members(self.target_values(batch["next_obs"], action[:, 0]), "min")
        return self.soft_target(batch, next_q, log_prob[:, 0])

    def model_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.model is not None
        errors = self.model.errors(batch["obs"], batch["action"], batch["next_obs"])
        loss = weighted_mean(errors, batch["weight"])
        return loss, {"model_loss": loss}

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        obs, weight = batch["obs"], batch["weight"]
        actions, log_prob = self.policy.rsample(obs, batch["previous_action"])  # [B, J, A], [B, J]
        states = obs if self.target_model is None else self.target_model.imagine(obs, actions)
        q = reduce_members(self.action_values(states, actions.movedim(1, 0)), self.config.policy_critic)  # [J, B]
        loss = pathwise(q.sum(0), log_prob.sum(1), self.temperature.value, weight)
        return loss, {"policy_loss": loss, "entropy": weighted_mean(-log_prob.mean(1), weight)}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        config, half = self.config, len(batch) // 2
        batch, second = weigh(batch[:half]), weigh(batch[half:])
        metrics = self.critic_optimizer.minimize(self.critic_loss, batch)
        if self.model is not None:
            metrics |= self.model_optimizer.minimize(self.model_loss, second)
        if self.ledger.updates % config.policy_every == 0:
            metrics |= self.improve(second)
        polyak_update(self.target_critic, self.critic, config.tau)
        if self.model is not None and self.target_model is not None:
            polyak_update(self.target_model, self.model, config.tau)
        return metrics | {"entropy_temperature": self.temperature.value}


def uniform(spec: Spec, policy: Actor) -> Recalling:
    """Random actions in place of those of `policy`, which remember the one before."""
    return Recalling(Uniform(spec, policy))
