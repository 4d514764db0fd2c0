"""Mirror Descent Policy Optimization (arXiv 2005.09814): many steps on one proximal problem, and no clipping.

Three parts. `exact`: on random tabular MDPs, with exact advantages and state weights, m inner steps bring the policy to
the solution pi_k exp(t A) / Z of the proximal problem; with the divergence the other way round they end elsewhere.
CartPole: m = 10 inner steps against m = 1, which is the plain policy gradient, and against PPO, each with the same four
learning rates; all numbers are means over these, so that nothing is chosen. Pendulum: off-policy MDPO against SAC, with
the same fixed temperature and learning rate.

Second registration. The first one (seeds 0 to 4, kept on the page) failed by its control: it compared the two orders of
the divergence after 50 steps of Adam, which have not converged (exact calculation with 12 pilot MDPs: 0.007 to 0.033
from the solution, 0.002 or less after 100), by the ratio for one MDP a seed, and asked for 0.02 where the iteration is
on its way. On CartPole m = 10 had one learning rate, chosen by pilots, and had to win against each rate of the others:
more than the paper says, which compares at equal rates, and not the same effort for all. Off-policy, MDPO's temperature
was fixed at 0.2 and SAC's learned, so that they did not solve the same problem, and at a rate of 3e-4 the 12,000 steps
ended before two of five seeds had arrived. Now both have 0.2 and 1e-3.

What the mean over rates can hide: each has its best rate elsewhere (in the first registration's runs PPO at 1e-3 and
below, m = 10 near 1e-2, m = 1 at 3e-2, ten times PPO's), and at each one's own best rate m = 10 was ahead of m = 1 by a
fifth and behind PPO by a tenth, both without confidence. The grid is that of the first registration.

Pilots: after 100 steps 0.002 at most from the solution, and 0.086 to 0.101 in the mean with the other order (seeds 1000
to 1002); areas of 350, 366 and 198 for m = 10, PPO and m = 1 in 30,720 steps (1000), of 299 and 329 for the first two
in 24,576 (1001); off-policy -113 beside SAC's -112 (1000; both arrive, after 5,000 and after 7,000 steps). So m = 10
has 0.91 and 0.96 of PPO's area, and 0.9, as first registered, cannot be told from that by five seeds; less than a fifth
behind can, and a broken MDPO, with m = 1 in effect, has half.

What was found: a hundred inner steps end on the solution of the proximal problem (0.002 away at most, on 50 MDPs), with
the other order 0.08 away in the mean. Ten steps learn faster than one at equal rates, 305 against 170, in every seed
and by a factor of 1.4 to 2.2. As fast as PPO within a fifth is not shown: 305 against 343, ahead in one seed of five
(0.73 to 1.12 of PPO's area), so five seeds were too few for what the pilots' two had suggested. The rates pull apart as
before: at 1e-3 to 1e-2 PPO is ahead by a tenth to a third (m = 10 has 291, 326 and 304, PPO 365, 361 and 398), at 3e-2
MDPO is, with 299 against 245, and ten full-batch steps are all it takes, where PPO takes 160. Off-policy, MDPO arrives
a little later than SAC and at the same best return (-152 beside -153), and then stays there, where SAC fell once more
in three of five seeds, at a rate that is high for both: its last returns are ahead by 75 to 192 in these, and equal in
the other two. So that expectation holds by SAC's falls as much as by MDPO.
"""

from functools import partial
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, Ordered, mean_of, train_arm

STATES, ACTIONS, DISCOUNT, STEP = 5, 4, 0.9, 2.0
INNER, MDPS = (1, 5, 20, 100), 10

# The same network, window and minibatches (of MDPO's critic, and of PPO) for all three; nothing is annealed but the
# divergence. Where MDPO takes 10 steps on a window, PPO takes 10 epochs of 16.
CARTPOLE: dict[str, Any] = {
    "envs": 8,
    "window": 256,
    "minibatches": 16,
    "lr_schedule": "constant",
    "entropy_coefficient": 0.0,
    "value_clip": None,
    "normalize_obs": False,
    "normalize_reward": False,
    "eval_every": 4096,
    "eval_episodes": 5,
    "unit": "cartpole_steps",
}
GRID = (1e-3, 3e-3, 1e-2, 3e-2)
PENDULUM: dict[str, Any] = {
    "preset": "pendulum",
    "lr": 1e-3,
    "entropy": "fixed",
    "entropy.value": 0.2,
    "eval_every": 1000,
    "eval_episodes": 10,
    "unit": "env_steps",
}


def exact(seed: int, budget: dict[str, int], *, inner_steps: int, new_first: bool = True) -> dict[str, float]:
    """`distance`: the largest total variation over the states between the policy after `inner_steps` and
    pi_k exp(STEP A) / Z, in the mean over MDPS random MDPs and pi_k; `largest`: the largest of these."""
    import numpy as np

    rng = np.random.default_rng(seed)
    found = [proximal(rng, inner_steps, new_first) for _ in range(MDPS)]
    return {"distance": sum(found) / MDPS, "largest": max(found)}


def proximal(rng: Any, inner_steps: int, new_first: bool) -> float:
    """`exact` of the next MDP. Every state and action is in the batch, weighted by its exact probability."""
    import numpy as np
    import torch
    from gymnasium import Env, spaces
    from tensordict import TensorDict

    from polopt.optim import polyak_update
    from polopt.regularizers import KLPenalty
    from polopt.training.api import plan

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
    return float(0.5 * np.abs(policy - solution).sum(1).max())


def on_cartpole(method: str, **settings: Any) -> Any:
    """The means over all learning rates."""
    return mean_of(lambda lr: train_arm(method, "CartPole-v1", lr=lr, **CARTPOLE | settings), GRID)


CLAIM = Claim(
    method="mdpo",
    statement="several gradient steps on each KL-proximal problem come to its solution, which the divergence the other "
    "way round does not, learn faster than one step, and, without clipping, as fast as PPO; off-policy, such problems "
    "reach what SAC reaches with the same temperature",
    budget={"cartpole_steps": 24_576, "env_steps": 9_000},
    seeds=5,
    minutes=6,
    quick={"cartpole_steps": 4_096, "env_steps": 1_200},
    revision=2,
    first_seed=5,
    diagnosis="the control compared two orders of the divergence after 50 steps, when the iteration has not converged; "
    "on CartPole one chosen rate of m = 10 had to win against each rate of the others; off-policy, SAC learned its "
    "temperature and MDPO did not, and 12,000 steps at 3e-4 ended too early. Now there are 100 steps on ten MDPs a "
    "seed, means over one grid of rates for all, and one fixed temperature.",
    arms={f"exact@{steps}": partial(exact, inner_steps=steps) for steps in INNER}
    | {"exact-old-first@100": partial(exact, inner_steps=100, new_first=False)}
    | {"m10": on_cartpole("mdpo"), "m1": on_cartpole("mdpo", inner_steps=1), "ppo": on_cartpole("ppo", epochs=10)}
    | {"mdpo-off": train_arm("mdpo-off", "Pendulum-v1", **PENDULUM)}
    | {"sac": train_arm("sac", "Pendulum-v1", **PENDULUM)},
    expect=(
        Ordered("distance", tuple(f"exact@{steps}" for steps in INNER), "down"),
        Below("largest", "exact@100", 0.01),
        Above("distance", "exact-old-first@100", 0.02, control=True),
        Above("best", "ppo", 300, control=True),
        Above("best", "sac", -300, control=True),
        Greater("area", "m10", "m1", ratio=1.3),
        Greater("area", "m10", "ppo", ratio=0.8),
        Greater("return", "mdpo-off", "sac", ratio=1.15),  # returns are negative: not more than 15 % lower
    ),
)
