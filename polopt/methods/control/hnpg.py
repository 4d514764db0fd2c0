"""HNPG: a natural policy gradient that learns from a dataset as well, with the guarantees of both.

Zhou, Sekhari, Song and Sun, "Offline Data Enhanced On-Policy Policy Gradient with Provable Guarantees", ICLR 2024,
arXiv 2311.08384; its exact form is HAC. Equations and order are those of the released code (`trpo.py`, `models.py`).

An on-policy gradient finds nothing where nothing is paid; recorded decisions show where that is. Here the critic of the
PRESENT policy is fitted to two losses at once, and the policy improves at the states of both. Where the data and the
critic's class are good this is as good as offline learning; where they are not, what was played keeps it a policy
gradient. Policy and critic are separate for each step h of an episode of H, `horizon`; backward from h = H - 1:

    critic      `monte_carlo_weight` E_played[ (Q_h(s, a) - R_h)^2 ] + `offline_weight` E_data[ (Q_h(s, a) - y)^2 ]
                R_h the rest of the episode's return, y = r + discount Q_{h+1}(s', a') with a' ~ pi_{h+1}(.|s') and the
                Q_{h+1} that was just fitted, y = r at the end; `critic_steps` steps of a fresh Adam on the whole batch
    value       V_h(s) = mean of Q_h(s, a) over `value_samples` actions of pi_h
    advantage   played: GAE of these values, 0 after the end;  data: Q_h(s, a) - V_h(s), a ~ pi_h(.|s) drawn anew
    policy      one step of TRPO for each h: E[ ratio advantage ] and E[ KL(old || new) ] over both kinds of states

The batches of both kinds are of equal size, and no advantage is normalized, which would weigh one kind against the
other. `--offline-weight 0 --no-offline-states` is TRPO with a critic of each step, `--monte-carlo-weight 0` learns
values from data alone.

Differs from its base, TRPO, in the data, in the critic of actions, and in the networks of each step.

Departs from the paper in: the line search of its code asks nothing of the divergence, here `max_kl` holds; the L2
penalty of its code reaches one vector of the critic by a slip, here there is none.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.bases.method import Method, Smoke, Study
from polopt.bases.offline import recorded_data
from polopt.config import param
from polopt.core.batch import Batch, average, sides_of, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.data.base import put
from polopt.data.episodes import Episodes
from polopt.losses.surrogate import expected_advantage
from polopt.networks import Network
from polopt.optim import NaturalOptimizer, frozen_copy, polyak_update
from polopt.policies import AnyPolicy, Auto
from polopt.policies.base import Density, require
from polopt.policies.by_step import ByStep
from polopt.tasks.base import Task
from polopt.values.critics import QEnsemble
from polopt.values.returns import discounted_returns, gae


def time_in_episode(first: Tensor) -> Tensor:
    """int64 [B]: which decision of its episode each is, of recorded decisions in order, by `first` bool [B]."""
    place = torch.arange(len(first), device=first.device)
    return place - torch.where(first, place, 0).cummax(0).values


class HNPG(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        dataset: str = param(
            "", "polopt", help="recorded decisions: a file of 'polopt eval RUN --record FILE', a dataset, or random"
        )
        random_episodes: int = param(10, "polopt", low=1, help="how many episodes 'random' records")
        horizon: int | None = param(None, "polopt", low=1, help="H; none: the task's own")
        episodes: int = param(20, "official code: 1,000 steps of 50", low=1, help="played per update")
        discount: float = param(1.0, "official code", low=0, high=1)
        gae_lambda: float = param(0.97, "official code", low=0, high=1)
        monte_carlo_weight: float = param(1.0, "official code", low=0, help="of the played returns in the critic")
        offline_weight: float = param(1.0, "official code", low=0, help="of the data in the critic; 0: none")
        offline_states: bool = param(True, "official code", help="the policy improves at states of the data, too")
        critic_steps: int = param(30, "official code", low=1, help="of Adam, for each step's critic")
        critic_lr: float = param(3e-4, "official code", above=0)
        value_samples: int = param(10, "official code", low=1, help="actions that V is a mean over")
        max_kl: float = param(0.01, "official code", above=0, help="radius of the trust region, in nats per decision")
        damping: float = param(0.1, "official code", low=0, help="added to the diagonal of the Fisher matrix")
        solver_steps: int = param(10, "official code", low=1, help="of the conjugate gradients")
        network: Network = param(Network((16, 16), "tanh", head_gain=0.1), "official code", help="of each step")
        critic_network: Network = param(Network((64, 64), "tanh", head_gain=0.1), "official code", help="of each step")
        policy: AnyPolicy = param(Auto(), "polopt")

        def __post_init__(self) -> None:
            super().__post_init__()
            if not (self.offline_weight or self.offline_states):
                self.refuse("dataset", "random_episodes", because="where nothing is learned from data")
            if self.dataset != "random":
                self.refuse("random_episodes", because="without the dataset 'random'")
            if not (self.offline_weight or self.monte_carlo_weight):
                raise UsageError("a critic with monte_carlo_weight 0 and offline_weight 0 learns nothing")

    slug = "hnpg"
    headline = ("value", "divergence", "step_scale")
    trains_on = "episodes of a known length, with recorded ones beside them"
    metrics = {
        "played_loss": "squared error of Q against played returns, mean over steps of episode and optimizer",
        "data_loss": "squared error of Q against one-step targets of the data, likewise",
        "value": "V at the played states, mean | grows to what is still to come",
        "surrogate": "mean of ratio times advantage before a step",
        "divergence": "KL(old || new) of the steps that were taken, mean over h | at most `--max-kl`",
        "step_scale": "which part of the longest step was taken, mean over h; 0: none",
    }
    default_steps = 1_500_000
    presets = {"lock": {}}
    studies = {"lock": Study("lock/continuous", 1_500_000, {"horizon": 50})}
    no_limit = "the base that it has without data, TRPO of each step with a critic of actions, is no entry"
    smoke = Smoke(
        "lock/continuous",
        48,
        {"episodes": 4, "horizon": 3, "dataset": "random", "random_episodes": 5, "critic_steps": 3}
        | {"network.sizes": (8,), "critic_network.sizes": (8,), "critic_lr": 1e-2},
        {"horizon": 3},
    )

    def build(self, task: Task) -> None:
        config = self.config
        horizon = config.horizon or self.spec.info.get("horizon")
        if not horizon:
            raise UsageError(f"hnpg learns for every step of an episode, and {self.spec.name} has no horizon: name one")
        self.steps = range(horizon)
        self.policy = self.part("policy", self.make_steps)
        self.critics = nn.ModuleList(self.make_critic() for _ in self.steps)
        self.old_policy = frozen_copy(self.policy)
        self.source = Episodes(task, config.episodes, ledger=self.ledger, max_steps=horizon)
        self.critic_optimizers = [self.make_optimizer(critic, lr=config.critic_lr) for critic in self.critics]
        self.policy_optimizers = [self.natural(step) for step in self.steps]

    @property
    def actors(self) -> Any:
        """The policies of the steps."""
        return self.policy.actors

    def make_steps(self) -> ByStep:
        config = self.config
        return ByStep([config.policy.build(self.spec, network=config.network) for _ in self.steps])

    def make_critic(self) -> QEnsemble:
        critic, gain = QEnsemble(self.spec, self.config.critic_network, members=1), self.config.critic_network.head_gain
        with torch.no_grad():
            for parameter in list(critic.parameters())[-2:]:  # those of the last layer
                parameter.mul_(gain)
        return critic

    def natural(self, step: int) -> NaturalOptimizer:
        config = self.config
        return NaturalOptimizer(
            self.actors[step],
            divergence=partial(self.divergence, step=step),
            radius=config.max_kl,
            damping=config.damping,
            solver_steps=config.solver_steps,
            micro_batch=config.micro_batch,
        )

    def check_policy(self) -> None:
        super().check_policy()
        require(self.actors[0], Density, by=self.slug)
        if self.actors[0].recurrent:
            raise UsageError("hnpg has a policy for every step: set network.recurrent to none")

    def prepare(self) -> None:
        config = self.config
        if not (config.offline_weight or config.offline_states):
            return
        data = recorded_data(config.dataset, self.task, random_episodes=config.random_episodes)
        if data is None:
            raise UsageError("hnpg learns from recorded decisions, too: name some with --dataset")
        data = data.clone(False).set("action", self.actors[0].own_action(data["action"]))
        time = time_in_episode(data["first"])
        self._rows = [(time == step).nonzero().flatten() for step in self.steps]
        if not all(map(len, self._rows)):
            raise UsageError(f"the recorded episodes are shorter than the {len(self.steps)} steps of {self.spec.name}")
        self._data = data

    def of_data(self, step: int, count: int) -> Batch:
        """`count` recorded decisions of this step, drawn with replacement."""
        rows = self._rows[step]
        drawn = rows[torch.randint(len(rows), (count,), generator=self.generator)]
        return put(self._data[drawn].exclude("first"), device_of(self.policy))

    def critic_loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the sides "played" and "data", each with its weights."""
        weights = {"played": self.config.monte_carlo_weight, "data": self.config.offline_weight}
        loss, metrics = torch.zeros((), device=device_of(self.policy)), {}
        for name, side in sides_of(batch).items():
            error = self.critics[step](side["obs"], side["action"])[0] - side["target"]
            metrics[f"{name}_loss"] = weighted_mean(error.square(), side["weight"])
            loss = loss + weights[name] * metrics[f"{name}_loss"]
        return loss, metrics

    @torch.no_grad()
    def value(self, obs: Any, step: int) -> Tensor:
        """V_h [B]."""
        samples = [self.draw(obs, step) for _ in range(self.config.value_samples)]
        return torch.stack([self.critics[step](obs, sample["action"])[0] for sample in samples]).mean(0)

    def draw(self, obs: Any, step: int) -> dict[str, Tensor]:
        """What the policy of this step does now: its record."""
        record: dict[str, Tensor] = self.actors[step].act(obs)[0]
        return record

    @torch.no_grad()
    def data_target(self, data: Batch, step: int) -> Tensor:
        if step == len(self.steps) - 1:
            return data["reward"]
        after = data["next_obs"]
        q = self.critics[step + 1](after, self.draw(after, step + 1)["action"])[0]
        return data["reward"] + torch.where(data["terminated"], 0.0, self.config.discount * q)

    def fit(self, played: Batch, data: list[Batch]) -> dict[str, Tensor]:
        """Critics from the last step to the first; `played` [R, H] with `target`."""
        metrics = []
        for step in reversed(self.steps[: played.shape[1]]):
            sides = {}
            if self.config.monte_carlo_weight:
                sides["played"] = weigh(played[:, step][played["mask"][:, step]].exclude("weight"))
            if self.config.offline_weight:
                target = self.data_target(data[step], step)
                sides["data"] = weigh(data[step].clone(False).set("target", target))
            batch = TensorDict(sides, batch_size=[])
            optimizer = self.critic_optimizers[step]
            optimizer.forget()
            for _ in range(self.config.critic_steps):
                metrics.append(optimizer.minimize(self.critic_loss, batch, step=step))
        return average(metrics)

    def divergence(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        old: Any = self.old_policy.actors[step]
        return weighted_mean(old.kl(batch, self.actors[step]), batch["weight"]), {}

    def policy_loss(self, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        log_prob = self.actors[step].log_prob(batch)
        gain = expected_advantage(log_prob, batch["log_prob"], batch["advantage"], batch["weight"])
        return -gain, {"surrogate": gain}

    @torch.no_grad()
    def advantages(self, played: Batch) -> tuple[Tensor, Tensor]:
        """(GAE, V_h), both [R, H]; nothing follows an end."""
        config = self.config
        value = torch.stack([self.value(played[:, step]["obs"], step) for step in range(played.shape[1])], 1)
        ends = played["terminated"] | played["truncated"]
        ends[:, -1] = True
        none = torch.zeros_like(ends)
        after = value.roll(-1, 1)
        return gae(played["reward"], value, after, ends, none, config.discount, config.gae_lambda)[0], value

    @torch.no_grad()
    def imagined(self, data: Batch, step: int) -> Batch:
        """The states of the data, with what the policy would do there and its advantage."""
        record = self.draw(data["obs"], step)
        q = self.critics[step](data["obs"], record["action"])[0]
        return data.select("obs").update(record).set("advantage", q - self.value(data["obs"], step))

    def update(self, batch: Batch) -> dict[str, Tensor]:
        config, played, mask = self.config, batch.clone(False), batch["mask"]
        ends = played["terminated"] | played["truncated"]
        played["target"] = discounted_returns(
            played["reward"], ends, torch.zeros_like(ends), config.discount, mask=mask
        )
        counts = mask.sum(0).tolist()
        uses_data = config.offline_weight or config.offline_states
        data = [self.of_data(step, count) for step, count in enumerate(counts)] if uses_data else []
        metrics = self.fit(played, data)
        played["advantage"], value = self.advantages(played)
        polyak_update(self.old_policy, self.policy, 1.0)
        steps = []
        for step in range(len(counts)):
            part = played[:, step][mask[:, step]]
            if config.offline_states:
                imagined = self.imagined(data[step], step)
                part = torch.cat([part.select(*imagined.keys()), imagined])
            steps.append(self.policy_optimizers[step].minimize(self.policy_loss, weigh(part), step=step))
        return metrics | average(steps) | {"value": weighted_mean(value, weigh(batch)["weight"])}
