"""MARL for design space exploration: one PPO learner for each parameter of a design, all with the same reward.

Krishnan et al., "Multi-Agent Reinforcement Learning for Microprocessor Design Space Exploration", 2022, arXiv
2211.16385; the environment: ArchGym, arXiv 2306.08888.

A design is a value of each of D parameters, and a slow simulator says what it is worth. One agent that chooses all at
once has a joint space to search; here every parameter is an agent with its own small set of values, its own networks
and its own ratio. All see the same observation o and get the same reward r, and none knows of the others:

    pi(a|o)       = prod_i pi_i(a_i|o)
    reward        log(1 + r)                       its sign kept below 0; r has poles, which would drown the rest
    advantage_i   reward - V_i(o), standardized over the window      `discount` 0: a reward is of one design alone
    ratio_i       pi_i(a_i|o) / pi_old_i(a_i|o)                      of agent i alone
    loss_i        - E min(ratio_i advantage_i, clip(ratio_i) advantage_i) + c_v (V_i - reward)^2 / 2 - c_e H(pi_i(.|o))

The deliverable is the best design that was ever simulated, not the last policy: `best` is its reward, by which a run is
judged, and `method.best.design` the design.

Differs from its base, PPO, whose multi-discrete policy has one network and one ratio, the product of all: `ppo` on the
same task is that agent. Both have the same gradient at ratio 1; they differ in sharing, clipping and later epochs.

Departs from the paper in: the rewards' logarithm, discount 0 (with 0.99, as in `--preset paper`, the rewards of later
designs are noise in every advantage) and standardized advantages. The learners are inferred from Acme's, which the
release names; its other forms, SAC and one agent that sets a parameter per step, are left out.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from polopt.bases.method import Limit, Method, Smoke, learner_param
from polopt.config import Constant, param
from polopt.core.batch import Batch, average
from polopt.core.errors import UsageError
from polopt.core.state import Stateful
from polopt.data.rollouts import Rollouts
from polopt.evaluation.figures import Curves, Figure
from polopt.methods.control.ppo import PPO
from polopt.networks import Network
from polopt.policies.factored import Factored, factors
from polopt.tasks.base import Task


def log_reward(reward: Tensor) -> Tensor:
    """log(1 + r) [...], and - log(1 - r) of rewards below 0."""
    return reward.sign() * reward.abs().log1p()


class Best(Stateful):
    """The best of what was simulated: its reward, the design [D] as the agents count, and when it was found.

    `curve` holds (simulations, reward) of every improvement, by windows.
    """

    def __init__(self, parameters: int) -> None:
        self.reward = torch.full((), -torch.inf)
        self.design = torch.zeros(parameters, dtype=torch.int64)
        self.curve: list[tuple[int, float]] = []

    def see(self, design: Tensor, reward: Tensor, simulations: int) -> None:
        """Designs [B, D] with rewards [B], after so many simulations in all. Of equal ones the first stays."""
        place = reward.argmax()
        if reward[place] > self.reward:
            self.reward, self.design = reward[place].cpu().clone(), design[place].cpu().clone()
            self.curve.append((simulations, float(self.reward)))

    def extra_state(self) -> dict[str, Any]:
        return {"reward": self.reward, "design": self.design, "curve": [list(point) for point in self.curve]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.reward, self.design = state["reward"].clone(), state["design"].clone()
        self.curve = [(int(count), float(reward)) for count, reward in state["curve"]]


class Parameter(Task):
    """One parameter of a task's decisions, for the learner that chooses it: spaces, and nothing to step."""

    def __init__(self, task: Task, values: int) -> None:
        self.spec = replace(task.spec, action=spaces.Discrete(values))
        self.num = task.num


class MARLDSE(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(4, "assumed", low=1)
        agent: PPO.Config = learner_param(
            PPO.Config(
                window=8,
                epochs=2,
                discount=0.0,
                value_clip=None,
                value_coefficient=1.0,
                entropy_coefficient=0.1,
                advantage_over="batch",
                lr=1e-3,
                lr_schedule=Constant(),
                adam_eps=1e-7,
                network=Network((32, 32, 32), "tanh", init="orthogonal", head_gain=0.01),
            ),
            "arXiv 2306.08888 and Acme",
            without=("policy",),
            help="the learner of each parameter",
        )
        log_reward: bool = param(True, "polopt", help="agents learn from log(1 + reward); best and return are raw")

        def __post_init__(self) -> None:
            super().__post_init__()
            for name, network in (("network", self.agent.network), ("critic_network", self.agent.critic_network)):
                if network is not None and network.recurrent != "none":
                    raise UsageError(f"the agents of marl-dse have no memory: set agent.{name}.recurrent to none")

    slug = "marl-dse"
    score = "best"
    probes = {
        "agent.gae_lambda": {"agent.discount": 0.9},
        "agent.surrogate.dual_clip": {"agent.surrogate.dual_clip": 1.0001},
        "agent.clip_schedule": {"agent.value_clip": 1e-3},
    }
    headline = ("best", "reward", "entropy", "clip_fraction")
    trains_on = "several choices at once (MultiDiscrete), judged as a whole"
    metrics_of = (PPO,)
    metrics = {
        "best": "largest reward of a design that was simulated; what a run is judged by | rises",
        "reward": "mean of the window's designs | rises",
        "entropy": "of an agent's policy, mean over the agents, as are all numbers of PPO | falls slowly",
        "eval/best": "largest reward of a design that was simulated in training; before the first, of the evaluation",
    }
    default_steps = 5_000
    presets = {
        "paper": {
            "envs": 256,
            "agent.minibatches": 8,
            "agent.discount": 0.99,
            "agent.advantage_over": "none",
            "agent.lr": 2e-5,
        }
    }
    limits = (
        Limit(
            base="ppo",
            learner="agents.0",
            collects="each",
            at={
                "envs": 2,
                "log_reward": False,
                "agent": replace(
                    PPO.Config(), window=32, minibatches=2, epochs=2, network=replace(PPO.Config().network, sizes=(16,))
                ),
            },
            apart={"log_reward": True},
            because="one parameter is one agent, and that is PPO",
        ),
    )
    smoke = Smoke(
        "memory-controller",
        96,
        {"envs": 2, "agent.minibatches": 2, "agent.network.sizes": (8,)},
        {"parameters": 2},
    )

    @classmethod
    def derived(cls, config: Any, steps: int) -> dict[str, int]:
        window = config.envs * config.agent.window
        return {"designs per update": window, "updates of each agent": -(-steps // window)}

    def build(self, task: Task) -> None:
        space = self.spec.action
        if not isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            raise UsageError(
                f"{self.slug} needs a MultiDiscrete action space, each factor a parameter; {self.spec.name} has {space}"
            )
        config = self.learner_config(self.config.agent)
        self.agents = [PPO(config, Parameter(task, values), ledger=self.ledger) for values in factors(space)]
        self.policy = Factored(self.spec, [agent.policy for agent in self.agents])
        self.best = Best(len(self.agents))
        self.source = Rollouts(task, config.window, self.ledger)

    def share(self, batch: Batch, place: int) -> Batch:
        """The window [N, T] as the agent with this number sees it: its own action and probability, all else shared."""
        own = batch.clone(False)
        for name in ("action", "log_prob"):
            own[name] = batch[name][..., place]
        if self.config.log_reward:
            own["reward"] = log_reward(batch["reward"])
        return own

    def update(self, batch: Batch) -> dict[str, Tensor]:
        reward = batch["reward"]
        self.best.see(batch["action"].flatten(0, 1), reward.flatten(), self.ledger.env_steps)
        metrics = average([agent.update(self.share(batch, place)) for place, agent in enumerate(self.agents)])
        return metrics | {"reward": reward.mean(), "best": self.best.reward}

    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        scores = super().evaluate(task, episodes, greedy=greedy)
        found = float(self.best.reward)
        return scores | {"best": found if self.best.curve else scores["return"] / scores["length"]}

    def figures(self) -> dict[str, Figure]:
        """The best reward by the number of simulations."""
        if not self.best.curve:
            return {}
        count, reward = zip(*[*self.best.curve, (self.ledger.env_steps, float(self.best.reward))])
        return {"best design so far": Curves(count, {"best": reward}, "simulations", "reward")}
