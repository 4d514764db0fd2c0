"""CDSA: a trained policy is corrected, as it acts, towards what the data are dense in.

Liu, Yang, Li, "CDSA: Conservative Denoising Score-based Algorithm for Offline Reinforcement Learning", 2024, arXiv
2406.07541.

Conservatism is taken out of the policy: whatever policy is there stays as it is. A network learns the gradient of the
log density of the data's observations and actions, by denoising them; every action then moves a little along it, and a
little to where the observation that follows would be denser, which an inverse model makes an action of. One such model
serves every policy that was trained on the same data.

With x = (s, a), each coordinate standardized by the data, n ~ N(0, I), and sigma drawn from a ladder of `levels` from
`highest_noise` down to `lowest_noise`, S = (S_s, S_a):

    score     E sigma^2 | S(x + sigma n, sigma) + n / sigma |^2         a mean over coordinates (`polopt.models.score`)
    forward   E | f(s, a) - (s' - s) |^2                                decisions that do not terminate
    inverse   E | I(s, s') - a |^2                                      likewise
    toward    d(s, a) = sigma^2 S(s, a; sigma)                          one step of Tweedie, at sigma = `noise`
    action    a_0 = pi(s),  d_a(s, a_0)
    state     s^ = s + f(s, a_0),  s~ = s^ + d_s(s^, pi(s^)),  I(s, s~) - I(s, s^)
    act       clip(a_0 + cap(`action_weight` action) + cap(`state_weight` state), -1, 1)

where cap shortens what is longer than `cap`. The policy pi comes with `--init RUN`, of a run with the same `--policy`,
`--network` and `--normalize-obs`; `--clone-updates N` clones the data in place of that.

Differs from its base, any offline policy, in what is added to its actions; with both weights 0 it is that policy.

Departs from the paper in: its text beyond the introduction could not be had, and there is no code. That a score network
over observations and actions, an inverse model, and two corrections are used at inference is the paper's; the step of
Tweedie in place of a weighted bare score, the forward model, the difference of two inverse actions, the caps and all
numbers are ours.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.bases.method import Method
from polopt.bases.offline import distance_from, recorded_data, sample_of
from polopt.config import param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.data.demonstrations import Samples
from polopt.losses.regression import imitation
from polopt.methods.offline.cdsa_settings import CDSASettings
from polopt.models.dynamics import Dynamics
from polopt.models.ensemble import Ensemble
from polopt.models.inputs import Scale
from polopt.models.inverse import Inverse
from polopt.models.score import Score, ladder
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.policies import AnyPolicy, Deterministic
from polopt.policies.base import Actor, Imitates, require, with_noise
from polopt.policies.takeover import Corrected
from polopt.tasks.base import Task


def cap(shift: Tensor, length: float) -> Tensor:
    """`shift` [..., A], shortened where it is longer than `length`."""
    return shift * (length / shift.norm(dim=-1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)


class Denser(nn.Module):
    """What is added to an action [B, A] of a policy: along the score of the data, and to where they are denser next."""

    def __init__(self, base: Actor, score: Score, model: Dynamics, inverse: Inverse, scale: Scale, config: Any) -> None:
        super().__init__()
        self.base, self.score, self.model, self.inverse, self.scale = base, score, model, inverse, scale
        self.sigma, self.cap = config.noise, config.cap
        self.action_weight, self.state_weight = config.action_weight, config.state_weight

    def toward(self, obs: Tensor, action: Tensor) -> Tensor:
        """sigma^2 S [B, S + A] in the units of observations and actions."""
        x = self.scale(torch.cat([obs, action], -1))
        sigma = x.new_full((len(x), 1), self.sigma)
        return sigma.square() * self.score(x, sigma) * self.scale.std.to(x.dtype)

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        size = obs.shape[-1]
        shift = cap(self.action_weight * self.toward(obs, action)[..., size:], self.cap)
        if self.state_weight == 0:
            return shift
        after = obs + self.model(obs, action).mean[0, ..., :size]
        follows = self.base.act(after, greedy=True)[0]["action"]
        wanted = after + self.toward(after, follows)[..., :size]
        steered = self.inverse(obs, wanted) - self.inverse(obs, after)
        return shift + cap(self.state_weight * steered, self.cap)


class CDSA(CDSASettings, Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        dataset: str = param(
            "", "polopt", help="a dataset, a file of recorded decisions, or random; default: the dataset of --task"
        )
        random_episodes: int = param(10, "polopt", low=1, help="how many episodes 'random' records")
        batch_size: int = param(256, "assumed", low=1)
        clone_updates: int = param(
            0, "polopt", low=0, help="of cloning the data at the start, where no --init brings a policy"
        )
        clone_lr: float = param(1e-3, "assumed", above=0)
        action_weight: float = param(0.5, "assumed", low=0, high=1, help="of the step towards denser actions; 0: none")
        state_weight: float = param(0.25, "assumed", low=0, high=1, help="of the step towards denser states; 0: none")
        cap: float = param(0.2, "assumed", above=0, unit="action", help="longest either step, as the policy acts")
        noise: float = param(
            0.2, "assumed", above=0, unit="deviation of the data", help="at which the score is taken when acting"
        )
        highest_noise: float = param(1.0, "assumed", above=0, unit="deviation of the data")
        lowest_noise: float = param(0.01, "assumed", above=0, unit="deviation of the data")
        levels: int = param(10, "assumed", low=2, help="of noise, from the highest to the lowest")
        lr: float = param(1e-4, "assumed", above=0, help="of the score and of both models")
        score_network: Network = param(Network((256, 256, 256), "silu"), "assumed")
        model_network: Network = param(Network((256, 256), "relu"), "assumed", help="of the forward and inverse model")
        normalize_obs: bool = param(False, "polopt", help="in the policy, as td3-bc does")
        network: Network = param(Network((256, 256), "relu"), "polopt", help="of the policy")
        policy: AnyPolicy = param(Deterministic(), "polopt")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.dataset != "random":
                self.refuse("random_episodes", because="without the dataset 'random'")
            if self.clone_updates == 0:
                self.refuse("clone_lr", because="without clone_updates")
            for name in ("score_network", "model_network"):
                self.refuse(f"{name}.head_gain", because="on a model, whose last layer has scale 1")
            if not self.lowest_noise <= self.noise <= self.highest_noise:
                raise UsageError(
                    f"the score is known from lowest_noise to highest_noise, {self.lowest_noise:g} to "
                    f"{self.highest_noise:g}, and is asked for at {self.noise:g}"
                )

    slug = "cdsa"
    unit = "updates"
    learns = "base"
    keeps = True
    saved = ("updates", "brought")
    updates = 0
    brought = False  # a policy by --init
    _sample: Batch | None = None  # of the data, for evaluations
    policy: Corrected

    def build(self, task: Task) -> None:
        config = self.config
        if not isinstance(self.spec.obs, spaces.Box) or len(self.spec.obs.shape) != 1:
            raise UsageError(f"cdsa learns the density of vectors, and {self.spec.name} has {self.spec.obs}")
        normalizer = Normalizer(self.spec.obs, clip=math.inf, epsilon=0.0, floor=1e-3) if config.normalize_obs else None
        self.base: Any = self.make_policy(config.policy, network=config.network, normalizer=normalizer)
        if self.base.recurrent:
            raise UsageError("cdsa corrects single decisions, which a recurrent policy does not make")
        size = self.spec.obs.shape[0] + self.spec.action_dim
        self.gradient = Score(size, config.score_network)
        plain = Ensemble(members=1, elites=1, head="mean", network=config.model_network, weight_decay=(0.0,))
        self.model = Dynamics(self.spec, plain, ends=never, terminal_successors=False)
        self.inverse = Inverse(self.spec, config.model_network)
        self.scale = Scale(size)
        self.sigmas = ladder(config.highest_noise, config.lowest_noise, config.levels)
        self.policy = Corrected(
            self.base, Denser(self.base, self.gradient, self.model, self.inverse, self.scale, config)
        )
        self.base_optimizer = self.make_optimizer(self.base, lr=config.clone_lr)
        self.score_optimizer = self.make_optimizer(self.gradient, lr=config.lr)
        self.model_optimizer = self.make_optimizer(self.model, self.inverse, lr=config.lr)

    def check_policy(self) -> None:
        require(self.base, *((Imitates,) if self.config.clone_updates else ()), by=self.slug)

    def prepare(self) -> None:
        config = self.config
        data = recorded_data(config.dataset, self.task, random_episodes=config.random_episodes)
        if data is None:
            raise UsageError("cdsa learns from a dataset: name one as --task, or with --dataset")
        if "next_obs" not in data.keys():
            raise UsageError(f"cdsa needs the observation after each decision: record {config.dataset} anew")
        data = data.clone(False).set("action", self.base.own_action(data["action"]))
        if self.base.unit:
            data["action"] = data["action"].clamp(-1.0, 1.0)
        self.base.update_normalizer(data)
        self.scale.fit(torch.cat([data["obs"], data["action"]], -1))
        self.model.fit_scales(data)
        self._sample = sample_of(data)
        self.source = Samples(data, config.batch_size, self.generator)

    def initialized(self) -> None:
        super().initialized()
        if self.config.clone_updates:
            raise UsageError("cdsa leaves the policy of --init as it is: leave out --clone-updates")
        self.brought = True

    @property
    def stage_name(self) -> str:  # type: ignore[override]
        return "clone" if self.updates < self.config.clone_updates else "models"

    def clone_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = imitation(self.base.imitation_loss(batch, batch.get("noise", None)), batch["weight"])
        return loss, {"imitation_loss": loss}

    def score_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.scale(torch.cat([batch["obs"], batch["action"]], -1))
        loss = weighted_mean(self.gradient.errors(x, batch["sigma"], batch["score_noise"]), batch["weight"])
        return loss, {"score_loss": loss}

    def model_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of both models: what follows a termination is not to be sought."""
        forward, metrics = self.model.loss(batch)
        kept = batch.clone(False).set("weight", batch["weight"] * ~batch["terminated"])
        inverse, found = self.inverse.loss(kept)
        return forward + inverse, metrics | found

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch, clones = weigh(batch), self.stage_name == "clone"
        self.updates += 1
        if clones:
            return self.base_optimizer.minimize(self.clone_loss, with_noise(self.base, batch))
        size = (len(batch), self.gradient.size)
        drawn = torch.randint(self.config.levels, size[:1], generator=self.generator)
        batch["sigma"] = self.sigmas[drawn].unsqueeze(-1).to(batch["action"])
        batch["score_noise"] = torch.randn(size, generator=self.generator).to(batch["action"])
        return self.score_optimizer.minimize(self.score_loss, batch) | self.model_optimizer.minimize(
            self.model_loss, batch
        )

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """As `Method.evaluate`, and `distance_from` the data. Raises UsageError where there is no policy to correct."""
        if not self.brought and not self.config.clone_updates:
            raise UsageError(
                "cdsa corrects a trained policy: bring one with --init RUN, or clone one, --clone-updates N"
            )
        scores = super().evaluate(task, episodes, greedy=greedy)
        return scores if self._sample is None else scores | distance_from(self._sample, self.policy)


def never(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Ends are not learned."""
    return torch.zeros(len(obs), dtype=torch.bool, device=obs.device)
