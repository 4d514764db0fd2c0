"""Mirror Descent Policy Optimization (arXiv 2005.09814): many steps on one proximal problem, and no clipping.

Three parts. `exact`: on random tabular MDPs, with exact advantages and state weights, m inner steps bring the policy
to the solution pi_k exp(t A) / Z of the proximal problem; with the divergence the other way round they do not.
CartPole: m = 10 inner steps against m = 1, which is the plain policy gradient, and against PPO. Pendulum: off-policy
MDPO against SAC.

What was found: more inner steps come closer to the solution in every seed, but at m = 50 the limit of 0.02 holds in
the mean (0.017) and not in the interval, and the divergence the other way round ends a factor of 1.9 further away, not
the 2 that pilots had suggested; this is a control, so the verdict follows from it alone. On CartPole m = 10 has a mean
area of 386 against 88, 96, 255 and 323 for m = 1: ahead with confidence at three of its four learning rates, not at
its best one. PPO has 436, 390, 339 and 211: at its best rate it is ahead of m = 10 in the mean, without confidence
either way. At the rate that pilots chose for m = 10 one of five seeds learned badly (220). Off-policy, three of five
seeds end where SAC ends and two have not got there in 12,000 steps (means -257 and -158).
"""

from functools import partial
from typing import Any

from polopt.claims import Below, Claim, Greater, Ordered, train_arm

STATES, ACTIONS, DISCOUNT, STEP = 5, 4, 0.9, 2.0
INNER = (1, 5, 20, 50)

# The same network, window, discount and learning rates for all three; nothing is annealed but the divergence. PPO keeps
# its 10 epochs of 64 decisions per minibatch for windows of 2048 (its paper, table 3): 320 steps where MDPO takes 10.
CARTPOLE: dict[str, Any] = {
    "envs": 8,
    "window": 256,
    "lr_schedule": "constant",
    "entropy_coefficient": 0.0,
    "value_clip": None,
    "normalize_obs": False,
    "normalize_reward": False,
    "eval_every": 2048,
    "eval_episodes": 5,
    "unit": "cartpole_steps",
}
GRID = (1e-3, 3e-3, 1e-2, 3e-2)
# Only m = 10 has its rate chosen by pilots (seeds 1000 to 1002); it has to hold against every rate of the other two.
# Pilot means of the area: m10 317 (one seed), 369 (two), 385, 361; m1 - (not run), 92 (one), 240, 323;
# ppo 395 (two), 428, 378, - (not run).
M10_LR = 1e-2


def exact(seed: int, budget: dict[str, int], *, inner_steps: int, new_first: bool = True) -> dict[str, float]:
    """Largest total variation over the states between the policy after `inner_steps` and pi_k exp(STEP A) / Z.

    The seed draws the MDP and pi_k. Every state and action is in the batch, weighted by its exact probability.
    """
    import numpy as np
    import torch
    from gymnasium import Env, spaces
    from tensordict import TensorDict

    from polopt.optim import polyak_update
    from polopt.regularizers import KLPenalty
    from polopt.training.api import plan

    rng = np.random.default_rng(seed)
    transition = rng.dirichlet(np.full(STATES, 0.5), size=(STATES, ACTIONS))
    reward = rng.random((STATES, ACTIONS))
    logits = rng.normal(size=(STATES, ACTIONS))
    old = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    moves = np.einsum("sa,sat->st", old, transition)
    value = np.linalg.solve(np.eye(STATES) - DISCOUNT * moves, (old * reward).sum(1))
    advantage = reward + DISCOUNT * transition @ value - value[:, None]
    visits = (1 - DISCOUNT) * np.linalg.solve(np.eye(STATES) - DISCOUNT * moves.T, np.full(STATES, 1 / STATES))
    solution = old * np.exp(STEP * advantage)
    solution /= solution.sum(1, keepdims=True)

    class Spaces(Env):
        """Says what the policy's table looks like; it is never stepped."""

        observation_space, action_space = spaces.Discrete(STATES), spaces.Discrete(ACTIONS)

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        penalty = {"proximity": 1 / STEP} if new_first else {"proximity": 0.0, "kl_penalty": KLPenalty(1 / STEP, None)}
        method = plan("mdpo", Spaces, policy="tabular-softmax", lr=0.05, max_grad_norm=None, **penalty).build()
        state, action = np.indices((STATES, ACTIONS)).reshape(2, -1)
        exact_batch = {"obs": state, "action": action, "advantage": advantage.ravel(), "log_prob": np.log(old).ravel()}
        exact_batch["weight"] = (visits[:, None] * old).ravel()
        batch = TensorDict({key: torch.from_numpy(item.copy()) for key, item in exact_batch.items()}, [state.size])
        with torch.no_grad():
            method.policy.table.copy_(torch.from_numpy(logits))
        polyak_update(method.old_policy, method.policy, 1.0)
        for _ in range(inner_steps):
            method.optimizer.minimize(method.total_loss, batch)
        policy = method.policy.table.detach().softmax(1).numpy()
    finally:
        torch.set_default_dtype(before)
    distance = float(0.5 * np.abs(policy - solution).sum(1).max())
    return {"distance": distance, "log_distance": float(np.log(distance))}


CLAIM = Claim(
    method="mdpo",
    statement="several gradient steps on each KL-proximal problem come close to its solution, learn faster than one "
    "step, and, without clipping, as fast as PPO; off-policy, such problems reach what SAC reaches",
    budget={"cartpole_steps": 30_720, "env_steps": 12_000},
    seeds=5,
    minutes=8,
    arms={f"exact@{steps}": partial(exact, inner_steps=steps) for steps in INNER}
    | {"exact-old-first@50": partial(exact, inner_steps=50, new_first=False)}
    | {"m10": train_arm("mdpo", "CartPole-v1", lr=M10_LR, **CARTPOLE)}
    | {f"m1@{lr:g}": train_arm("mdpo", "CartPole-v1", lr=lr, inner_steps=1, **CARTPOLE) for lr in GRID}
    | {f"ppo@{lr:g}": train_arm("ppo", "CartPole-v1", lr=lr, epochs=10, minibatches=32, **CARTPOLE) for lr in GRID}
    | {"mdpo-off": train_arm("mdpo-off", "Pendulum-v1", preset="pendulum", unit="env_steps")}
    | {"sac": train_arm("sac", "Pendulum-v1", preset="pendulum", unit="env_steps")},
    expect=(
        Ordered("distance", tuple(f"exact@{steps}" for steps in INNER), "down"),
        Below("distance", "exact@50", 0.02),
        Greater("log_distance", "exact-old-first@50", "exact@50", by=0.7, control=True),  # twice as far
        Greater("area", "m10", "m1@*", ratio=1.1),
        Greater("area", "m10", "ppo@*", ratio=0.9),
        Greater("return", "mdpo-off", "sac", ratio=1.15),  # returns are negative: not more than 15 % lower
    ),
)
