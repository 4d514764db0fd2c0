"""PARL: the gradient of RLHF in turns is not that of its own objective; the hypergradient is, and goes further down.

Each seed is a random MDP of its own with 2 states, 3 actions and 3 steps, so few paths that every expectation can be
computed. Rewards are linear in step, state and action one-hot, which cannot represent the true ones; the human answers
with probability sigmoid(10 (R - R')); entropy coefficient 0.15, damping 0.02, penalty 0.01; all rewards begin at 0.

Exact arms. `gradient`: at two random rewards the method's hypergradient, with all paths as the batch, against central
differences of G(nu), for which theta*(nu) is solved anew by Newton's method on dynamic programming; `error` is the
largest relative error of both objectives, `naive_error` the mean of the direct gradient's under the preferences, each
counted as 1 at most. `exact-naive` and `exact-a-parl` go down with the direct gradient and with the hypergradient for
20 steps, theta* solved each time: means over the rates 0.5, 1 and 2. `exact-continued` goes 20 steps further from where
exact-naive ended at rate 0.5; `rises` counts whether G is then not below what it was there, and what it is after 20
further steps of exact-naive. `exact-design`, only reported, has the utility as the objective.

Sampled arms: the method itself, 24 steps of the reward with 10 steps of the policy (lr 0.5) before each, 256 episodes a
batch, 128 pairs compared; means over the rates 0.25, 0.5 and 1 of the reward. `a-parl` takes a batch more for second
derivatives (`env_steps`). `design` and `naive-design` have the utility as the objective; the latter has no gradient, so
the rate does nothing. Only reported, at the rate 0.5: `offline` compares the first pairs, of the uniform policy, for
ever; `one-step` has one policy step, `few` 8 episodes a batch. `G` and `utility` (the true return) are exact, of the
present policy and reward, means over the second half of the run.

Pilots (seeds 1000 and up): `error` below 2e-7 and `naive_error` 0.09 to 1 on eight seeds; G of exact-naive minus that
of exact-a-parl 0.002 and 0.04 on two, and at rate 1 alone 0.003 to 0.11 on eight, with a mean of 0.033 and a deviation
of 0.036; `rises` 0 on ten; G of naive minus that of a-parl 0.004 and 0.07; utility of design above naive-design by 0.27
and 0.22; G of one-step 0.98 and 0.73, of few 0.84 and 0.76, where a reward of 0 has 0.69. Shape, rationality, entropy
and damping were chosen in pilots: with more damping, or a human of rationality 5, the two gradients differ less.

A right implementation has an error of the finite differences, about 1e-6, and G falls from wherever RLHF in turns ends,
since that is no minimum of it, further than with the direct gradient; with the implicit term left out, or its sign
wrong, the error is above 0.01 and G no lower. From the start G has local minima, so a single MDP may go the other way.
That a low G means a good policy is not claimed: pairs of a good policy are alike. The paper's 63 % fewer samples on
large tasks is not tested at this size.

What was found: all expectations hold. The hypergradient equals finite differences to 1e-5, while the gradient of RLHF
in turns is 0.56 of its length off on average. With exact gradients G ends at 0.589, and at 0.625 in turns; going on
from where turns end, the hypergradient goes further down on every seed. From samples it is 0.613 and 0.642, with a
tenth more steps of the task. A reward that is designed for a utility brings 1.86, where RLHF in turns stays at 1.52. As
expected, and not for the method: with preferences the utility hardly differs (1.73 and 1.71), since G is low where
pairs are easy to tell apart; one step of the policy a turn (0.71) or eight episodes (0.76) are worse than no implicit
term at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, mean_of

SHAPE = {"states": 2, "actions": 3, "horizon": 3, "concentration": 0.5, "reward_rate": 1.0}
ENTROPY, DAMPING, PENALTY, RATIONALITY = 0.15, 0.02, 0.01, 10.0
EXACT_STEPS = 20


class World:
    """The MDP of a seed, all its paths, and theta*(nu), G and its gradients by exact expectations."""

    def __init__(self, seed: int) -> None:
        import torch
        from torch.func import grad, hessian

        from polopt.tasks.tabular import random_mdp
        from polopt.tasks.tabular_sets import paths

        shape: dict[str, Any] = SHAPE
        self.mdp = random_mdp(**shape, mdp_seed=seed)
        self.paths = paths(self.mdp)
        self.wanted = self.paths.returns(self.mdp.reward)
        self.label = (RATIONALITY * (self.wanted.unsqueeze(1) - self.wanted)).sigmoid()
        hot = [torch.eye(size, dtype=torch.float64) for size in self.mdp.reward.shape]
        sides = [hot[0][:, None, None], hot[1][None, :, None], hot[2][None, None]]
        self.features = torch.cat([side.expand(*self.mdp.reward.shape, -1) for side in sides], -1)
        self.slope, self.bend = grad(self.lower), hessian(self.lower)

    def policy(self, theta: Any) -> tuple[Any, Any]:
        """Probabilities and entropies, each [H, S, A]."""
        log_policy = theta.view(self.mdp.reward.shape).log_softmax(-1)
        policy = log_policy.exp()
        return policy, -(policy * log_policy).sum(-1, keepdim=True).expand_as(policy)

    def lower(self, theta: Any, nu: Any) -> Any:
        """What theta*(nu) maximizes, by dynamic programming."""
        from polopt.tasks.tabular_sets import finite_value

        policy, entropy = self.policy(theta)
        value = finite_value(self.mdp.transition, self.features @ nu + ENTROPY * entropy, policy)
        return value[0, self.mdp.start] - DAMPING / 2 * theta @ theta

    def best(self, nu: Any, theta: Any = None) -> Any:
        """theta*(nu) by Newton's method, from `theta` on."""
        import torch

        theta = nu.new_zeros(self.mdp.reward.numel()) if theta is None else theta
        for _ in range(100):
            slope = self.slope(theta, nu)
            if slope.norm() < 1e-11:
                break
            curvature, axes = torch.linalg.eigh(self.bend(theta, nu))
            step = axes @ (axes.T @ slope / curvature.abs())
            step = step * (3 / step.norm()).clamp(max=1)
            now = self.lower(theta, nu)
            tries = (theta + 0.5**power * step for power in range(30))
            theta = next((each for each in tries if self.lower(each, nu) >= now - 1e-14), theta)
        return theta

    def surprise(self, total: Any) -> Any:
        """U [K, K] of all pairs of paths, by learned returns [K]."""
        from torch.nn import functional

        margin = total.unsqueeze(1) - total
        return functional.binary_cross_entropy_with_logits(margin, self.label, reduction="none")

    def objective(self, kind: str, theta: Any, nu: Any) -> float:
        """G, penalty included."""
        chance, total = self.paths.probability(self.policy(theta)[0]), self.paths.returns(self.features @ nu)
        found = chance @ self.surprise(total) @ chance if kind == "preferences" else -chance @ self.wanted
        return float(found + PENALTY / 2 * nu @ nu)

    def gradients(self, kind: str, theta: Any, nu: Any) -> tuple[Any, Any]:
        """The direct gradient, penalty included, and the implicit term, by the functions of the method."""
        import torch

        from polopt.core.functional import gradient
        from polopt.methods.offline.parl import implicit, lower_value, score_value

        theta, nu = theta.clone().requires_grad_(), nu.clone().requires_grad_()
        policy, entropy = self.policy(theta)
        log_prob, chance = self.paths.log_prob(policy), self.paths.probability(policy).detach()
        reward, bonus = (self.paths.episodes(table)["reward"] for table in (self.features @ nu, entropy))
        exists = torch.ones_like(reward, dtype=torch.bool)
        how = {"discount": 1.0, "entropy_coefficient": ENTROPY, "baseline": "none"}
        lower = lower_value(log_prob, bonus, reward, exists, chance, **how)
        found, share, score = -self.wanted, chance, log_prob.sum(-1)
        if kind == "preferences":
            found, share = self.surprise(reward.sum(-1)).flatten(), (chance.unsqueeze(1) * chance).flatten()
            score = (score.unsqueeze(1) + score).flatten()
        direct = gradient((share * found).sum() + PENALTY / 2 * nu @ nu, [nu])
        upper = score_value(found, score, share, "none")
        return direct, implicit(lower, upper, [theta], [nu], damping=DAMPING, steps=200)[0]


@dataclass(frozen=True)
class Gradient:
    """An arm: the hypergradient at two random rewards against finite differences."""

    trains = ("parl",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        world, errors, naive = World(seed), [], []
        generator = torch.Generator().manual_seed(seed)
        for _ in range(2):
            nu = 0.5 * torch.randn(8, dtype=torch.float64, generator=generator)
            best = world.best(nu)
            for kind in ("preferences", "utility"):
                direct, hyper = world.gradients(kind, best, nu)
                truth = torch.zeros_like(nu)
                for index, axis in enumerate(1e-4 * torch.eye(8, dtype=torch.float64)):
                    ends = [world.objective(kind, world.best(each, best), each) for each in (nu + axis, nu - axis)]
                    truth[index] = (ends[0] - ends[1]) / 2e-4
                errors.append(float((direct + hyper - truth).norm() / truth.norm()))
                if kind == "preferences":
                    naive.append(min(1.0, float((direct - truth).norm() / truth.norm())))
        return {"error": max(errors), "naive_error": sum(naive) / len(naive)}


@dataclass(frozen=True)
class Descent:
    """An arm: steps along exact gradients; `continued` from where as many steps without the implicit term lead."""

    kind: str
    weight: float
    rate: float
    continued: bool = False
    trains = ("parl",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        world, nu = World(seed), torch.zeros(8, dtype=torch.float64)
        if not self.continued:
            return self.descend(world, nu, self.weight)[1]
        nu, start = self.descend(world, nu, 0.0)
        (_, found), (_, without) = (self.descend(world, nu, weight) for weight in (self.weight, 0.0))
        return found | {"rises": float(found["G"] >= min(start["G"], without["G"]))}

    def descend(self, world: World, nu: Any, weight: float) -> tuple[Any, dict[str, float]]:
        """nu after the steps, and what is there."""
        theta = None
        for _ in range(EXACT_STEPS):
            theta = world.best(nu, theta)
            direct, hyper = world.gradients(self.kind, theta, nu)
            nu = nu - self.rate * (direct + weight * hyper)
        theta = world.best(nu, theta)
        utility = float(world.paths.probability(world.policy(theta)[0]) @ world.wanted)
        return nu, {"G": world.objective(self.kind, theta, nu), "utility": utility}


@dataclass(frozen=True)
class Sampled:
    """An arm that trains the method."""

    rate: float
    settings: tuple[tuple[str, Any], ...] = ()
    offline: bool = False
    trains = ("parl",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.core.modules import default_dtype
        from polopt.training.api import plan

        settings: dict[str, Any] = {"preset": "tabular", "episodes": 256, "envs": 256, "entropy_coefficient": ENTROPY}
        settings |= {"damping": DAMPING, "reward_penalty": PENALTY, "reward_lr": self.rate, "dtype": "float64"}
        settings |= dict(self.settings)
        if settings.get("objective") != "utility":
            settings["rationality"] = RATIONALITY
        with default_dtype(torch.float64):
            method = plan("parl", "random-mdp", task_options=SHAPE | {"mdp_seed": seed}, seed=seed, **settings).build()
            found = self.train(method, World(seed), budget["updates"])
        means = [sum(column) / len(found) for column in zip(*found)]
        return {"G": means[0], "utility": means[1], "env_steps": float(method.ledger.env_steps)}

    def train(self, method: Any, world: World, updates: int) -> list[tuple[float, float]]:
        """G and utility at every third step of the second half."""
        import torch

        episodes, first, found = world.paths.episodes(world.mdp.reward), None, []
        with torch.no_grad():
            for parameter in method.reward.parameters():
                parameter.zero_()
        for step in range(updates):
            batch = method.collect()
            first = batch if first is None else first
            method.update(first if self.offline else batch)
            if 2 * step >= updates and step % 3 == 2:
                with torch.no_grad():
                    chance = world.paths.probability(method.policy.table.softmax(-1))
                    value = chance @ world.surprise(method.reward.returns(episodes)[0]) @ chance
                found.append((float(value), float(chance @ world.wanted)))
        return found


def descents(kind: str, weight: float) -> Any:
    return mean_of(lambda rate: Descent(kind, weight, rate), (0.5, 1.0, 2.0))


def sampled(**settings: Any) -> Any:
    return mean_of(lambda rate: Sampled(rate, tuple(settings.items())), (0.25, 0.5, 1.0))


CLAIM = Claim(
    method="parl",
    statement="the hypergradient is the gradient of the preference objective over the episodes of the policy that the "
    "reward brings about, which that of RLHF in turns is not; it ends lower there, also from samples, and it designs "
    "a reward for a utility, for which RLHF in turns has no gradient",
    budget={"updates": 24},
    seeds=10,
    minutes=6,
    arms={
        "gradient": Gradient(),
        "exact-naive": descents("preferences", 0.0),
        "exact-a-parl": descents("preferences", 1.0),
        "exact-continued": Descent("preferences", 1.0, 0.5, continued=True),
        "exact-design": Descent("utility", 1.0, 1.0),
        "naive": sampled(hyper_weight=0.0),
        "offline": Sampled(0.5, (("hyper_weight", 0.0),), offline=True),
        "a-parl": sampled(),
        "one-step": Sampled(0.5, (("policy_steps", 1),)),
        "few": Sampled(0.5, (("episodes", 8), ("envs", 8))),
        "naive-design": Sampled(0.5, (("objective", "utility"), ("hyper_weight", 0.0))),
        "design": sampled(objective="utility"),
    },
    expect=(
        Above("naive_error", "gradient", 0.2, control=True),
        Below("error", "gradient", 0.01),
        Below("rises", "exact-continued", 1e-6),
        Greater("G", "exact-naive", "exact-a-parl"),
        Greater("G", "naive", "a-parl"),
        Greater("utility", "design", "naive-design", by=0.1),
    ),
)
