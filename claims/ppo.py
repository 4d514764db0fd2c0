"""Proximal Policy Optimization: many epochs on one window need the clip, and its details matter.

On CartPole, in windows of 2,048 decisions with 8 minibatches an epoch, all arms have the same three learning rates, and
every number is the mean over them, so that nothing is chosen; the paper's own rate, 3e-4, is the lowest. Nothing is
annealed and values are not clipped. `clip`: 20 epochs a window, more than the paper's 10, as its reason for the clip is
that many steps on one window are otherwise "destructively large". `no-clip`: the same surrogate without anything.
`penalty`: instead the adaptive KL penalty of the paper's section 4. `one-epoch`: what the many epochs are for. `raw`:
two details of practice taken away, the small last layer of the first policy and the standardized advantages.
`largest_kl` is the largest divergence from the old policy, averaged over the steps on one window; `area` the mean
return of the evaluations after each window, `fall` how far the mean of the last three is below the best.

Another detail: CartPole with a clock of 100 steps, whose end is a truncation (`clock`) or is given to the learner as a
termination (`clock-kills`). The critic is then compared with what really follows when the policy plays without a clock,
up to 100 in units of reward. Were all episodes cut by the clock, exact calculation gives the mean over the 100 steps of
1 - 0.99^(100 - t): a critic that believes the clock has a level of 0.37, and a right one 1. `exact`: on random tabular
MDPs, with exact advantages, the first gradient of an update is the gradient of the return.

The paper's comparison is one of seven MuJoCo tasks (scores of 0.82 with clipping, 0.74 with the adaptive penalty, -0.39
without either); this one is a task that PPO solves in 20,000 steps, so what it can show is the mechanism, and not the
size. Pilots (seeds 1000 and 1001, `penalty` only the first): areas of 354 and 333 with the clip, 253 and 172 without,
399 with the penalty, 152 and 152 with one epoch, 269 and 268 raw; largest KL 0.01 with the clip, 2.3 and 3.3 without;
falls of 23 and 21 with it, 171 and 179 without; levels of 0.93 and 0.78 against 0.51 and 0.53. That the critic's error
costs return as well did not show (the policies of `clock-kills` lasted longer), and is not asked for.

What was found: the mechanism, and less of its cost than the pilots had. Without a clip the policy of a window ends 2.4
nats from the one that played it (0.011 with it), and what was learned is lost in every seed: the last returns are 154
below the best, 22 with the clip. The area is 257 against 358 with the clip and 353 with the penalty, behind both in
every seed, but the factor of 1.2, which had seemed safe after pilots of 1.4 and 1.9, narrowly misses confidence in both
cases. Twenty epochs are twice as fast as one (358 against 170). The two details do not show here: 333 without them,
ahead in two of five seeds; only the last returns lie further below the best (71). A critic that takes the clock for an
end believes in half of what follows (0.52); that of the right one is still short of it after 20,000 steps (0.78), and
the policies of both last equally long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium

from polopt.claims import Above, Below, Claim, Greater, mean_of, train_arm

RATES = (3e-4, 1e-3, 3e-3)
# Nothing is annealed and no value is clipped, so that what becomes of the ratio is all that holds a policy back.
CARTPOLE: dict[str, Any] = {
    "envs": 8,
    "window": 256,
    "epochs": 20,
    "minibatches": 8,
    "lr_schedule": "constant",
    "entropy_coefficient": 0.0,
    "value_clip": None,
}
LIMIT, DISCOUNT = 100, 0.99
STATES, ACTIONS = 5, 4
ENDLESS = 700  # steps, of which the last one weighs 0.002 for the first 100


def fall(run: Any) -> float:
    """How far the return is, in the last three evaluations, below the best one."""
    returns = [row["eval/return"] for row in run.evaluations]
    return max(returns) - sum(returns[-3:]) / 3


def on_cartpole(**settings: Any) -> Any:
    """The means over all learning rates, of the evaluations after every window."""
    metrics = {"largest_kl": "approx_kl:max", "fall": fall}
    common = CARTPOLE | {"eval_every": 2048, "eval_episodes": 5, "metrics": metrics}
    return mean_of(lambda lr: train_arm("ppo", "CartPole-v1", lr=lr, **common | settings), RATES)


def exact(seed: int, budget: Mapping[str, int]) -> dict[str, float]:
    """`error`: how far the first gradient of an update is from the one of the expected return, relative to it. The seed
    draws a tabular MDP and a policy; every state and action is in the batch, weighted by its exact probability."""
    import numpy as np
    import torch
    from gymnasium import spaces
    from tensordict import TensorDict

    from polopt.training.api import plan

    class Spaces(gymnasium.Env):
        """Says what the policy's table looks like; it is never stepped."""

        observation_space, action_space = spaces.Discrete(STATES), spaces.Discrete(ACTIONS)

    rng = np.random.default_rng(seed)
    transition = torch.from_numpy(rng.dirichlet(np.full(STATES, 0.5), size=(STATES, ACTIONS)))
    reward, logits = torch.from_numpy(rng.random((STATES, ACTIONS))), rng.normal(size=(STATES, ACTIONS))
    logits = torch.from_numpy(logits).requires_grad_()
    policy, unit = logits.softmax(1), torch.eye(STATES, dtype=torch.float64)
    moves = torch.einsum("sa,sat->st", policy, transition)
    value = torch.linalg.solve(unit - DISCOUNT * moves, (policy * reward).sum(1))
    (true,) = torch.autograd.grad((1 - DISCOUNT) * value.mean(), logits)
    visits = (1 - DISCOUNT) * torch.linalg.solve(unit - DISCOUNT * moves.T, torch.full_like(value, 1 / STATES))
    advantage = reward + DISCOUNT * transition @ value - value[:, None]
    state, action = (torch.from_numpy(index.ravel()) for index in np.indices((STATES, ACTIONS)))
    facts = {"advantage": advantage, "log_prob": policy.log(), "weight": visits[:, None] * policy}
    batch = TensorDict({"obs": state, "action": action}, [state.numel()])
    batch.update({name: fact.detach().ravel() for name, fact in facts.items()})
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        learner: Any = plan("ppo", Spaces, policy="tabular-softmax", entropy_coefficient=0.0).build()
        with torch.no_grad():
            learner.policy.table.copy_(logits)
        (found,) = torch.autograd.grad(learner.policy_loss(batch)[0], [learner.policy.table])
    finally:
        torch.set_default_dtype(before)
    learner.task.close()
    return {"error": float((found + true).abs().max() / true.abs().max())}


class ClockKills(gymnasium.Wrapper):
    """Says that the end of the clock is the end of the task."""

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        return obs, reward, terminated or truncated, False, info


@dataclass(frozen=True)
class ShortCartPole:
    """An arm that learns on CartPole with a clock of LIMIT steps, and whose last policy then plays without one.

    `level` is the mean of the critic over the first LIMIT steps of 32 episodes, in units of the discounted return that
    really follows, `length` the mean length of these episodes, at most ENDLESS."""

    kills: bool

    def make(self) -> gymnasium.Env:
        env = gymnasium.make("CartPole-v1", max_episode_steps=LIMIT)
        return ClockKills(env) if self.kills else env

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.core.random import paired
        from polopt.training.api import plan

        settings = CARTPOLE | {"lr": RATES[1], "discount": DISCOUNT, "epochs": 10}
        values, returns, lengths = [], [], []
        with paired(seed), torch.no_grad():
            learner: Any = plan("ppo", self.make, seed=seed, **settings).build()
            with torch.enable_grad():
                while learner.ledger.env_steps < budget["env_steps"]:
                    learner.update(learner.collect())
            learner.task.close()
            for episode in range(32):
                seen = torch.from_numpy(self.play(learner.policy, 10_000 * seed + episode))
                after = len(seen) - torch.arange(len(seen[:LIMIT]))
                values.append(learner.critic(seen[:LIMIT]))
                returns.append((1 - DISCOUNT**after) / (1 - DISCOUNT))
                lengths.append(float(len(seen)))
        level = torch.cat(values).mean() / torch.cat(returns).mean()
        return {"level": float(level), "length": sum(lengths) / len(lengths)}

    def play(self, policy: Any, seed: int) -> Any:
        """The observations [T, 4] of one episode without a clock."""
        import numpy as np
        import torch

        env = gymnasium.make("CartPole-v1").unwrapped
        obs, _ = env.reset(seed=seed)
        seen, terminated = [], False
        while not terminated and len(seen) < ENDLESS:
            seen.append(obs)
            record, _ = policy.act(torch.from_numpy(obs)[None])
            obs, _, terminated, _, _ = env.step(int(record["action"]))
        env.close()
        return np.array(seen)


CLAIM = Claim(
    method="ppo",
    statement="on CartPole many epochs on one window learn faster than one as long as the ratio is clipped or the KL "
    "divergence penalized; without either the policy leaps and what was learned is lost; a small first policy with "
    "standardized advantages learns faster, and ends that the clock makes must not count as ends",
    budget={"env_steps": 20_480},
    seeds=5,
    minutes=5,
    arms={
        "exact": exact,
        "clip": on_cartpole(),
        "no-clip": on_cartpole(**{"surrogate.keep": "all"}),
        "penalty": on_cartpole(**{"surrogate.keep": "all", "kl_penalty": "kl-penalty"}),
        "one-epoch": on_cartpole(epochs=1),
        "raw": on_cartpole(**{"advantage_over": "none", "network.head_gain": 1.0}),
        "clock": ShortCartPole(kills=False),
        "clock-kills": ShortCartPole(kills=True),
    },
    expect=(
        Below("error", "exact", 1e-9, control=True),
        Above("best", "clip", 300, control=True),
        Below("largest_kl", "clip", 0.05),
        Above("largest_kl", "no-clip", 0.2),
        Greater("area", "clip", "no-clip", ratio=1.2),
        Greater("area", "penalty", "no-clip", ratio=1.2),
        Greater("fall", "no-clip", "clip", by=60),
        Greater("area", "clip", "one-epoch", ratio=1.3),
        Greater("area", "clip", "raw", ratio=1.1),
        Greater("level", "clock", "clock-kills", by=0.15),
        Below("level", "clock-kills", 0.7),
    ),
)
