"""Adversarial imitation by boosting: policies of all rounds, weighted, against the expert.

Chang et al., "Adversarial Imitation Learning via Boosting", 2024, arXiv 2404.08513.

What a replay of all past exploration shows to a discriminator is the occupancy of no policy. Here past policies are the
weak learners of an ensemble, whose occupancy is known and can be chosen: every round adds one with the share `eta`,

    rho_{t+1} = (1 - eta) rho_t + eta rho^{pi_{t+1}}        learner 1: (1 - eta)^(t-1), learner i: eta (1 - eta)^(t-i)

and the reward is what moves it towards the expert fastest, the witness of the reverse divergence KL(rho_t || rho_E):

    discriminator   E_expert[exp(-d)] + E_{rho_t}[d] + penalty E[(|grad d(x)| - 1)^2],  d by tanh within +-1
    reward          d(s, a), computed whenever a transition is drawn

A round begins before the first exploration and after every `round_steps` steps of it. The policy is copied into the
ensemble and plays `fresh` steps in rows of their own, which join those of the learners before it. The discriminator
takes `discriminator_updates` steps on them, drawn by the shares of their learners. The replay of the policy becomes
what all learners played, to which exploration is added until the next round. Policy and critics go on as they are.

Evaluations give the `return` of the latest learner and `mixture_return`, that of the ensemble, of which one learner
plays each episode.

Differs from DAC (dac.py) in: what the discriminator is shown, and when; the divergence; what the replay holds.

Departs from the paper in: the ensemble holds copies, and the replay a copy of what the learners played, where the
released code shares live weights and arrays; learners are drawn by their own shares in evaluations, where it sorts
them; when the oldest learner makes room, the others keep their proportions; exploration enters the replay at once and
not by episodes; no random actions at the start, since the first round would forget them; the log standard deviation is
clamped to [-5, 2] and not squeezed into it; orthogonal weights have gain sqrt(2).
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.data.relabel import Blocks, shares
from polopt.data.replay import Replay
from polopt.data.rollouts import Rollouts
from polopt.evaluation.returns import evaluate_returns
from polopt.methods.control.sac import SAC
from polopt.methods.offline.dac import DAC
from polopt.models.discriminator import KINDS
from polopt.networks import Network
from polopt.policies import AnyPolicy, SquashedGaussian
from polopt.policies.takeover import PerEpisode
from polopt.tasks.base import Task


class AILBoost(DAC):
    @dataclass(frozen=True)
    class Config(DAC.Config):
        eta: float = param(0.05, "official code", above=0, high=1, help="share of the newest learner; 1: it is alone")
        round_steps: int = param(1_000, "official code", low=1, unit="env_steps", help="of exploration in a round")
        fresh: int = param(1_000, "official code", low=1, unit="env_steps", help="that a new learner plays by itself")
        learners: int = param(1_000, "polopt", low=1, help="of the ensemble, at most")
        divergence: str = param("reverse-kl", "equation 5", choices=KINDS, help="the loss of the discriminator")
        bound: float | None = param(1.0, "official code", above=0, help="rewards are within +-bound, by tanh")
        discriminator_rows: int = param(512, "official code", low=1, help="of each side in a step")
        discriminator_updates: int = param(100, "official code", low=1, help="steps of the discriminator in a round")
        discriminator_lr: float = param(1e-4, "official code", above=0)
        discriminator_network: Network = param(Network((64, 64), "relu", init="orthogonal"), "official code")
        warmup: int = param(0, "polopt", low=0, unit="env_steps", help="uniform random actions at the start")
        lr: float = param(1e-4, "official code", above=0, help="of policy and critics")
        batch_size: int = param(1_024, "official code", low=1)
        steps_per_update: int = param(2, "official code", low=1, unit="env_steps", help="collected between updates")
        network: Network = param(Network((1_024, 1_024), "relu", init="orthogonal"), "official code")
        policy: AnyPolicy = param(SquashedGaussian(log_std_low=-5.0), "official code")

    slug = "ailboost"
    headline = ("discriminator_loss", "expert_score", "learner_score", "mixture_return")
    metrics = {
        "discriminator_loss": "without the penalty, of the rounds since the last row | reverse-kl: its least value is "
        "1 - KL(ensemble || expert)",
        "mixture_return": "of the ensemble, one learner for each episode | follows `return`, later",
        "learners": "of the ensemble",
    }
    default_steps = 1_000_000
    presets = {
        "pendulum": SAC.presets["pendulum"]
        | {"warmup": 0, "lr": 1e-3, "batch_size": 256, "discriminator_rows": 256, "discriminator_lr": 1e-3}
    }
    no_limit = ""
    limits = (
        Limit(
            "dac",
            at={
                "divergence": "logistic",
                "bound": None,
                "discriminator_lr": 1e-3,
                "discriminator_network.activation": "tanh",
                "lr": 3e-4,
                "network.init": "default",
                "policy.log_std_low": -20.0,
            },
            apart={"divergence": "reverse-kl"},
            because="on what DAC collects, its replay without weights, and with its divergence the two are one",
        ),
    )
    smoke = Smoke(
        "Pendulum-v1",
        60,
        {
            "demonstrations": "random",
            "random_episodes": 2,
            "round_steps": 10,
            "fresh": 10,
            "learners": 2,
            "batch_size": 16,
            "discriminator_rows": 16,
            "discriminator_updates": 2,
            "network.sizes": (16, 16),
            "discriminator_network.sizes": (8,),
            "replay_size": 1_000,
        },
    )
    saved = ("rounds",)
    rounds = 0

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        rounds = max(steps - config.warmup, 0) // (config.round_steps + config.fresh)
        return {"rounds": rounds, "updates": rounds * config.round_steps // config.steps_per_update}

    def build(self, task: Task) -> None:
        config = self.config
        super().build(task)
        self.ensemble = PerEpisode(self.policy, config.learners, partial(shares, config.eta))
        rows = task.num // task.environments  # of a team one for each agent
        self.fresh = Rollouts(task.twin(rows), config.fresh, self.ledger)
        self.played = Replay(
            config.learners * config.fresh * rows,
            n_step=config.n_step,
            discount=config.discount,
            weights=Blocks(config.fresh * rows, config.eta),
            unread=self.unread,
            name="played",
        )

    def collect(self) -> Batch:
        due = self.source.collected >= self.rounds * self.config.round_steps
        if due:
            self.begin_round()
        batch = SAC.collect(self)
        return self.paired(batch, self.played, self.config.discriminator_updates * due)

    def begin_round(self) -> None:
        """A new learner joins the ensemble and plays; from now on the replay is what all learners played."""
        self.rounds += 1
        self.ensemble.keep()
        self.fresh.task.player = None  # a new episode
        self.played.add(self.fresh.next(self.policy))
        self.source.replay.become(self.played)

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        mixture = evaluate_returns(self.ensemble, task, episodes, greedy=greedy)["return"]
        scores = super().evaluate(task, episodes, greedy=greedy)
        return scores | {"mixture_return": mixture, "learners": len(self.ensemble.members)}
