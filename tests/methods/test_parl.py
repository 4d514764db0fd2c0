"""PARL: derivatives of the lower problem and the hypergradient against dynamic programming and finite differences."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.func import grad, hessian, jacrev
from torch.nn import functional

from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.core.functional import flatten, gradient, hessian_product
from polopt.core.random import paired
from polopt.data.episodes import Episodes
from polopt.losses.estimator import policy_gradient, ratio
from polopt.methods.control.reinforce import gpomdp, over_baseline
from polopt.methods.offline.parl import PARL, box, implicit, lower_value, score_value
from polopt.models.reward import comparison_loss
from polopt.optim import Optimizer
from polopt.tasks.tabular import random_mdp
from polopt.tasks.tabular_sets import finite_value, paths
from polopt.training import api
from tests.guards.harness import built, plan

MUST = 4
DISCOUNT, ENTROPY = 0.9, 0.3
SMALL = {"states": 2, "actions": 2, "horizon": 2, "mdp_seed": 3, "reward_rate": 1.0}


@pytest.fixture(autouse=True)
def _double(float64):
    torch.manual_seed(0)


@dataclass
class World:
    """A small MDP with all its paths, a softmax table theta [P] as the policy and features [H, S, A, 3] of rewards."""

    horizon: int = 2
    damping: float = 1e-6

    def __post_init__(self) -> None:
        self.mdp = random_mdp(2, 2, self.horizon, mdp_seed=3, reward_rate=1.0)
        self.paths = paths(self.mdp)
        self.returns = self.paths.returns(self.mdp.reward)
        self.label = (4 * (self.returns.unsqueeze(1) - self.returns)).sigmoid()
        self.features = torch.randn(*self.mdp.reward.shape, 3, generator=torch.Generator().manual_seed(1))
        self.nu = torch.tensor([0.5, -0.4, 0.3])
        self.size = self.mdp.reward.numel()

    def tables(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Policy and its entropy, each [H, S, A]."""
        log_policy = theta.view(self.mdp.reward.shape).log_softmax(-1)
        policy = log_policy.exp()
        return policy, -(policy * log_policy).sum(-1, keepdim=True).expand_as(policy)

    def value(self, theta: Tensor, nu: Tensor) -> Tensor:
        """V by dynamic programming."""
        policy, entropy = self.tables(theta)
        reward = self.features @ nu + ENTROPY * entropy
        return finite_value(self.mdp.transition, reward, policy, DISCOUNT)[0, self.mdp.start]

    def estimate(self, theta: Tensor, nu: Tensor, rows: Any = slice(None), share: Any = None, **how: Any) -> Tensor:
        """`lower_value` of some of the paths, all with their probabilities."""
        policy, entropy = self.tables(theta)
        log_prob, reward = self.paths.log_prob(policy)[rows], self.paths._at(self.features @ nu)[rows]
        share = self.paths.probability(policy).detach() if share is None else share
        mask = torch.ones_like(reward, dtype=torch.bool)
        how = {"discount": DISCOUNT, "entropy_coefficient": ENTROPY, "baseline": "none"} | how
        return lower_value(log_prob, self.paths._at(entropy)[rows], reward, mask, share, **how)

    def optimum(self, nu: Tensor, start: Tensor | None = None) -> Tensor:
        """theta*(nu) [P] by Newton steps on V by dynamic programming."""

        def damped(theta: Tensor) -> Tensor:
            return self.value(theta, nu) - self.damping / 2 * theta @ theta

        theta = torch.zeros(self.size) if start is None else start
        for _ in range(50):
            slope = grad(damped)(theta)
            if slope.norm() < 1e-12:
                return theta
            lengths, axes = torch.linalg.eigh(hessian(damped)(theta))
            step = axes @ ((axes.T @ slope) / lengths.abs())
            theta = theta + step * (2 / step.norm()).clamp(max=1)
        raise AssertionError("no optimum was found")

    def surprise(self, nu: Tensor) -> Tensor:
        """U [K, K] of all pairs of paths."""
        total = self.paths.returns(self.features @ nu)
        return functional.binary_cross_entropy_with_logits(total.unsqueeze(1) - total, self.label, reduction="none")

    def upper(self, objective: str, theta: Tensor, nu: Tensor) -> Tensor:
        """E U."""
        chance = self.paths.probability(self.tables(theta)[0])
        return chance @ self.surprise(nu) @ chance if objective == "preferences" else -chance @ self.returns

    def terms(self, objective: str, theta: Tensor, nu: Tensor, **how: Any) -> tuple[Tensor, Tensor]:
        """Direct and implicit gradient [3] by the method's functions, with all paths as the batch."""
        theta, nu = theta.clone().requires_grad_(), nu.clone().requires_grad_()
        policy = self.tables(theta)[0]
        chance, score = self.paths.probability(policy).detach(), self.paths.log_prob(policy).sum(-1)
        if objective == "preferences":
            found, share = self.surprise(nu).flatten(), (chance.unsqueeze(1) * chance).flatten()
            score = (score.unsqueeze(1) + score).flatten()
        else:
            found, share = -self.returns, chance
        direct = gradient((share * found).sum(), [nu])
        value = score_value(found, score, share, "none")
        how = {"damping": self.damping, "steps": 100} | how
        hyper, solved = implicit(self.estimate(theta, nu), value, [theta], [nu], **how)
        assert solved.positive
        return direct, hyper


# The lower problem


def test_box_has_value_one_and_the_derivatives_of_exp():
    x = torch.tensor(0.7, requires_grad=True)
    first = torch.autograd.grad(box(3 * x), x, create_graph=True)[0]
    assert (box(3 * x).item(), first.item(), torch.autograd.grad(first, x)[0].item()) == pytest.approx((1, 3, 9))


def test_derivatives_are_those_of_the_value():
    """Gradient, Hessian and cross derivatives, all paths with their probabilities, against dynamic programming."""
    world = World()
    theta = torch.randn(world.size, requires_grad=True)
    nu = world.nu.clone().requires_grad_()
    lower = world.estimate(theta, nu)
    bend, slope = hessian_product(lower, [theta]), gradient(lower, [theta], differentiable=True)
    torch.testing.assert_close(slope.detach(), grad(world.value)(theta, nu).detach())
    found = torch.stack([bend(axis) for axis in torch.eye(world.size)])
    torch.testing.assert_close(found, hessian(world.value)(theta, nu).detach())
    cross = torch.stack([gradient(slope @ axis, [nu]) for axis in torch.eye(world.size)])
    torch.testing.assert_close(cross, jacrev(grad(world.value), argnums=1)(theta, nu).detach())
    assert min(part.abs().max() for part in (slope, found, cross)) > 0.01


def test_the_others_as_baseline_leave_all_derivatives_unbiased():
    """All pairs of paths as batches of two episodes."""
    world = World()
    theta, nu = torch.randn(world.size, requires_grad=True), world.nu.clone().requires_grad_()
    chance = world.paths.probability(world.tables(theta)[0]).detach()
    total = torch.zeros(())
    for i, j in itertools.product(range(len(chance)), repeat=2):
        rows, share = [i, j], torch.full((2,), 0.5)
        total = total + chance[i] * chance[j] * world.estimate(theta, nu, rows, share, baseline="leave-one-out")
    slope, bend = gradient(total, [theta], differentiable=True), hessian_product(total, [theta])
    torch.testing.assert_close(slope.detach(), grad(world.value)(theta, nu).detach())
    expected = hessian(world.value)(theta, nu).detach()
    torch.testing.assert_close(torch.stack([bend(axis) for axis in torch.eye(world.size)]), expected)
    cross = torch.stack([gradient(slope @ axis, [nu]) for axis in torch.eye(world.size)])
    torch.testing.assert_close(cross, jacrev(grad(world.value), argnums=1)(theta, nu).detach())


def test_what_stands_behind_the_end_does_not_count():
    """Two episodes of 3 and 1 decisions, and the same with other padding; the second alone is not padded."""
    log_prob, entropy, reward = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    how = {"discount": 0.5, "entropy_coefficient": 0.2, "baseline": "none"}

    def slopes(rows: Any, steps: int, share: list[float]) -> list[Tensor]:
        parts = [part[rows, :steps] for part in (log_prob, entropy, reward, mask)]
        value = lower_value(*parts, torch.tensor(share), **how)
        first = gradient(value, [log_prob], differentiable=True)
        return [first, gradient(first.square().sum(), [log_prob, entropy, reward])]

    both, long, short = slopes([0, 1], 3, [0.5, 0.5]), slopes([0], 3, [1.0]), slopes([1], 1, [1.0])
    torch.testing.assert_close(both[0], (long[0] + short[0]) / 2)
    torch.testing.assert_close(both[1], (long[1] + short[1]) / 4)  # of a square
    assert both[0].reshape(2, 3)[1, 1:].eq(0).all()


def test_credits_by_hand():
    """Discount 1/2, entropy 1/10: a decision earns rewards from its step on, and entropies of later steps only."""
    log_prob = torch.zeros(1, 2, requires_grad=True)
    entropy = torch.tensor([[3.0, 7.0]], requires_grad=True)
    reward = torch.tensor([[1.0, 4.0]])
    value = lower_value(
        log_prob, entropy, reward, torch.ones(1, 2).bool(), torch.ones(1), discount=0.5, entropy_coefficient=0.1
    )
    assert gradient(value, [log_prob]).tolist() == pytest.approx([1 + 2 + 0.35, 2])
    assert gradient(value, [entropy]).tolist() == pytest.approx([0.1, 0.05])


# The upper problem


def test_must_1_what_is_compared_comes_from_the_present_policy():
    with built("parl") as method:
        config = method.config
        for number in (1, 2):
            batch = method.collect()
            assert method.ledger.episodes == number * (config.policy_steps + 2) * config.episodes
            compared, others = batch["compared"], batch["others"]
            sides = [compared["chosen"], compared["rejected"], others]
            for side in sides:
                scored = torch.where(side["mask"], method.policy.log_prob(side), 0.0)
                torch.testing.assert_close(scored.detach(), torch.where(side["mask"], side["log_prob"], 0.0))
            starts = torch.cat([side["index"][:, 0] for side in sides])
            assert len(starts.unique()) == len(starts)  # episodes of V'' are others than those of q
            method.update(batch)


@pytest.mark.parametrize("objective", ["preferences", "utility"])
@pytest.mark.parametrize("damping", [1e-6, 0.02])
def test_must_2_the_hypergradient_is_that_of_finite_differences(objective, damping):
    """Of G(nu) = E U over theta*(nu), which is solved anew; dropping the second term, or its sign, is far off."""
    world = World(horizon=3, damping=damping)
    best, expected = world.optimum(world.nu), torch.zeros(3)
    direct, hyper = world.terms(objective, best, world.nu)
    for index, axis in enumerate(1e-4 * torch.eye(3)):
        ends = [world.upper(objective, world.optimum(nu, best), nu) for nu in (world.nu + axis, world.nu - axis)]
        expected[index] = (ends[0] - ends[1]) / 2e-4
    torch.testing.assert_close(direct + hyper, expected, rtol=1e-4, atol=1e-7)
    assert (direct - expected).norm() > 0.3 * expected.norm()
    assert (direct - hyper - expected).norm() > 0.6 * expected.norm()


def test_must_3_the_lower_problem_has_its_steps_and_its_damping():
    """K steps up V - damping / 2 |theta|^2. Halfway the implicit term is another one, as with other damping; at the
    start V'' is not even negative."""
    with built("parl", optimizer="sgd", lr=0.1, damping=0.5, policy_steps=3) as method:
        taken = []
        original = method.optimizer.step
        method.optimizer.step = lambda loss: taken.append(original(loss))
        method.collect()
        assert len(taken) == 3
        method.optimizer.step = original
        batch, theta = method.source.next(method.policy), method.optimizer.parameters
        before, slope = flatten(theta).detach(), gradient(method.lower(batch), theta)
        method.policy_step(batch)
        torch.testing.assert_close(flatten(theta).detach(), before + 0.1 * (slope - 0.5 * before))

    world = World(horizon=3, damping=0.02)
    best = world.optimum(world.nu)
    _, hyper = world.terms("preferences", best, world.nu)
    assert (world.terms("preferences", 0.5 * best, world.nu)[1] - hyper).norm() > 0.05 * hyper.norm()
    assert (world.terms("preferences", best, world.nu, damping=0.1)[1] - hyper).norm() > 0.05 * hyper.norm()
    start, nu = torch.zeros_like(best).requires_grad_(), world.nu.clone().requires_grad_()
    _, solved = implicit(
        world.estimate(start, nu), world.upper("preferences", start, nu), [start], [nu], damping=0.02, steps=100
    )
    assert not solved.positive


def test_must_3_the_system_is_solved_with_damping_although_it_is_singular():
    """A logit more for all actions of a state changes nothing: V'' has these directions, (damping I - V'') has none."""
    world = World()
    theta, nu = world.optimum(world.nu).requires_grad_(), world.nu.clone().requires_grad_()
    lower, upper = world.estimate(theta, nu), world.upper("preferences", theta, nu)
    bend = torch.stack([hessian_product(lower, [theta])(axis) for axis in torch.eye(world.size)])
    assert torch.linalg.eigvalsh(bend)[-4:].abs().max() < 1e-9  # H S = 4 of them
    _, solved = implicit(lower, upper, [theta], [nu], damping=0.02, steps=100)
    matrix = 0.02 * torch.eye(world.size) - bend
    torch.testing.assert_close(solved.x, torch.linalg.solve(matrix, gradient(upper, [theta])))
    _, short = implicit(lower, upper, [theta], [nu], damping=0.02, steps=1)
    assert (short.x - solved.x).norm() > 1e-3 * solved.x.norm()


def test_must_4_the_score_is_paid_what_is_above_the_others():
    """By hand: 1, 3 and 5 are -3, 0 and 3 above the mean of the two others; a constant in U changes nothing."""
    score, share = torch.zeros(3, requires_grad=True), torch.full((3,), 1 / 3)
    for constant in (0.0, 100.0):
        value = score_value(torch.tensor([1.0, 3.0, 5.0]) + constant, score, share)
        assert gradient(value, [score]).tolist() == pytest.approx([-1, 0, 1])
    assert gradient(score_value(torch.tensor([1.0, 3.0, 5.0]), score, share, "none"), [score])[2] == pytest.approx(
        5 / 3
    )
    upper = torch.ones(3, requires_grad=True)
    value = score_value(upper, score + torch.tensor([1.0, 2.0, 4.0]), share)
    assert gradient(value, [upper]).eq(0).all()  # U is data there


def test_must_4_the_baseline_has_no_bias():
    """All batches of two episodes of a world, each with its probability, give d (-E R) / d theta."""
    world, total = World(), torch.zeros(())
    theta = torch.randn(world.size, requires_grad=True)
    policy = world.tables(theta)[0]
    chance, score = world.paths.probability(policy), world.paths.log_prob(policy).sum(-1)
    for i, j in itertools.product(range(len(chance)), repeat=2):
        value = score_value(-world.returns[[i, j]], score[[i, j]], torch.full((2,), 0.5))
        total = total + (chance[i] * chance[j]).detach() * value
    torch.testing.assert_close(gradient(total, [theta]), gradient(-chance @ world.returns, [theta]))


# The method


def tabular(**settings: Any) -> PARL:
    """On an MDP of 2 states, 2 actions and 2 steps."""
    common = {"preset": "tabular", "episodes": 8, "envs": 8, "task_options": SMALL, "seed": 1, "loggers": ()}
    return plan_of("random-mdp", **{**common, **settings})


def plan_of(task: str, **settings: Any) -> PARL:
    return api.plan("parl", task, **settings).build()


def test_the_step_of_the_reward_is_the_sum_of_its_parts():
    """As the functions above have them, of the batch that is given: pairs, and others for the second derivatives."""
    for objective, weight in (("preferences", 1.0), ("preferences", 0.5), ("utility", 2.0)):
        method = tabular(
            objective=objective, hyper_weight=weight, reward_penalty=0.3, max_grad_norm=None, discount=0.8, damping=0.1
        )
        batch, config = method.collect(), method.config
        pairs, others = batch["compared"], batch["others"]
        sides = [pairs["chosen"], pairs["rejected"]]
        theta, nu = method.optimizer.parameters, method.reward_optimizer.parameters
        before = flatten(nu).detach()
        score = [method.policy.log_prob(side).sum(-1) for side in sides]
        if objective == "preferences":
            margin = method.reward(sides[0])[0].sum(-1) - method.reward(sides[1])[0].sum(-1)
            found = -(pairs["label"] * margin.sigmoid().log() + (1 - pairs["label"]) * (-margin).sigmoid().log())
            score = score[0] + score[1]
        else:
            found, score = -torch.cat([side["reward"].sum(-1) for side in sides]), torch.cat(score)
        above = (found - (found.sum() - found) / (len(found) - 1)).detach()
        q = gradient((above * score).mean(), theta)
        log_prob, entropy = method.policy.score(others)
        lower = lower_value(
            *(log_prob, entropy, method.reward(others)[0], others["mask"], torch.full((8,), 1 / 8)),
            discount=0.8,
            entropy_coefficient=config.entropy_coefficient,
        )
        bend = torch.stack([hessian_product(lower, theta)(axis) for axis in torch.eye(8)])
        x = torch.linalg.solve(0.1 * torch.eye(8) - bend, q)
        hyper = gradient(gradient(lower, theta, differentiable=True) @ x, nu)
        direct = gradient(found.mean(), nu)
        metrics = method.update(batch)
        expected = before - 0.1 * (direct + weight * hyper + 0.3 * before)
        torch.testing.assert_close(flatten(nu).detach(), expected)
        left = gradient(lower, theta) - 0.1 * flatten(theta).detach()
        numbers = [found.mean(), direct.norm(), hyper.norm(), left.norm(), torch.ones(())]
        names = ("upper_objective", "direct_norm", "hyper_norm", "lower_slope", "solved")
        torch.testing.assert_close([metrics[name] for name in names], [each.detach() for each in numbers])
        entropies = torch.cat([method.policy.entropy(side) for side in sides])
        torch.testing.assert_close(metrics["entropy"], entropies.mean().detach())


def test_scores_are_sums_over_the_decisions_that_exist():
    """On CartPole, where episodes of different lengths are padded."""
    for objective in ("preferences", "utility"):
        with built("parl", objective=objective) as method:
            pairs = method.collect()["compared"]
            rows = [pairs[side][row] for side in ("chosen", "rejected") for row in range(len(pairs))]
            assert min(int(row["mask"].sum()) for row in rows) < len(rows[0])
            cut = [row[: int(row["mask"].sum())] for row in rows]
            sums = torch.stack([method.policy.log_prob(row).sum() for row in cut])
            found, entropy = method.scores(pairs)
            expected = sums[: len(pairs)] + sums[len(pairs) :] if objective == "preferences" else sums
            torch.testing.assert_close(found, expected)
            torch.testing.assert_close(entropy, torch.cat([method.policy.entropy(row) for row in cut]).mean())


def test_the_step_of_the_reward_has_a_greatest_length():
    method = tabular(max_grad_norm=1e-3)
    batch, nu = method.collect(), method.reward_optimizer.parameters
    before = flatten(nu).detach()
    assert method.update(batch)["grad_norm"] > 0.01
    assert (flatten(nu) - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


def test_what_a_step_of_the_reward_takes_is_told_before():
    for settings, expected in (({}, (12 * 64, 32)), ({"hyper_weight": 0.0}, (11 * 64, 32))):
        told = PARL.derived(PARL.Config(**settings), 1)
        assert tuple(told.values()) == expected
        method = tabular(**settings, episodes=64, policy_steps=10)
        labels = method.collect()["compared", "label"]
        assert (method.ledger.episodes, len(labels)) == expected
    assert PARL.derived(PARL.Config(objective="utility"), 1)["labels per step of the reward"] == 0


def test_without_the_implicit_term_it_is_rlhf_in_turns():
    """The reward: the loss of comparisons on fresh pairs. The policy: REINFORCE on the learned reward."""
    settings = {"hyper_weight": 0.0, "reward_penalty": 0.0, "max_grad_norm": None, "entropy_coefficient": 0.0}
    method, twin = (tabular(**settings, policy_steps=2, damping=1e-12) for _ in range(2))
    optimizer = Optimizer(twin.reward, lr=0.1, kind="sgd")
    for seed in range(3):
        torch.manual_seed(seed)
        batch = method.collect()
        assert set(batch.keys()) == {"compared"}  # no episodes for second derivatives
        method.update(batch)
        torch.manual_seed(seed)
        for _ in range(2):
            episodes = twin.source.next(twin.policy)
            credit = gpomdp(twin.reward.reward(episodes), 1.0, episodes["mask"])
            advantage = over_baseline(credit, episodes["mask"], "leave-one-out")
            log_prob = twin.policy.log_prob(episodes)
            share = torch.full_like(log_prob, 1 / len(episodes))
            twin.optimizer.step(policy_gradient(log_prob, ratio(log_prob, "current"), advantage, share))
        pairs = twin.compare(twin.source.next(twin.policy))
        optimizer.minimize(lambda rows: comparison_loss(twin.reward, rows), weigh(pairs))
        for own, other in zip(method.reward.parameters(), twin.reward.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=0, atol=1e-10)
        torch.testing.assert_close(method.policy.table, twin.policy.table, rtol=0, atol=1e-10)


def test_the_first_step_of_the_reward_is_bitwise_that_of_comparisons():
    method = tabular(hyper_weight=0.0, reward_penalty=0.0, max_grad_norm=None)
    batch = method.collect()
    twin = tabular(hyper_weight=0.0)
    twin.reward.load_state_dict(method.reward.state_dict())
    method.update(batch)
    optimizer = Optimizer(twin.reward, lr=0.1, kind="sgd")
    optimizer.minimize(lambda rows: comparison_loss(twin.reward, rows), weigh(batch["compared"]))
    assert all(torch.equal(*pair) for pair in zip(method.reward.parameters(), twin.reward.parameters()))


def test_a_human_answers_by_the_returns_of_the_task():
    method = tabular(rationality=3.0)
    batch = method.source.next(method.policy)
    pairs = method.compare(batch, drawn=False)
    returns = batch["reward"].sum(-1)
    torch.testing.assert_close(pairs["label"], torch.sigmoid(3 * (returns[:4] - returns[4:])))
    assert torch.equal(torch.cat((pairs["chosen", "action"], pairs["rejected", "action"])), batch["action"])
    drawn = torch.stack([method.compare(batch)["label"] for _ in range(400)])
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(drawn.mean(0), pairs["label"], rtol=0, atol=4 * 0.5 / 20)


def test_it_is_judged_by_the_upper_objective_of_the_policy_as_it_acts():
    """The same at every call, greedy or not; an odd number of episodes counts one more."""
    task = plan("parl").make_task(1, 2)
    with built("parl") as method:
        scores = method.evaluate(task, 3, greedy=False)
        assert scores["upper_objective"] == method.evaluate(task, 4)["upper_objective"]
        with paired():
            batch = Episodes(task, starts=range(4)).next(method.policy)
        returns, learned = batch["reward"].sum(-1), method.reward.returns(batch)[0]
        wanted, margin = torch.sigmoid(returns[:2] - returns[2:]), learned[:2] - learned[2:]
        expected = -(wanted * margin.sigmoid().log() + (1 - wanted) * (-margin).sigmoid().log()).mean()
        assert scores["upper_objective"] == pytest.approx(expected.item())
    with built("parl", objective="utility") as method:
        scores = method.evaluate(task, 4, greedy=False)
        assert scores["upper_objective"] == pytest.approx(-scores["return"])
    task.close()


def test_a_reward_is_designed_that_teaches_what_is_wanted():
    """From a reward of nothing the return rises towards the best; with the opposite sign it would fall."""
    method = tabular(objective="utility", episodes=32, envs=32, damping=0.05, reward_lr=0.5)
    mdp = method.spec.info["mdp"]
    with torch.no_grad():
        for parameter in method.reward.parameters():
            parameter.zero_()
    best, first = mdp.optimal()[1][0, mdp.start], mdp.value(torch.full_like(mdp.reward, 0.5))[0, mdp.start]
    for _ in range(8):
        method.update(method.collect())
    assert mdp.value(method.policy.table.softmax(-1))[0, mdp.start] > first + 0.3 * (best - first)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"episodes": 5}, "episodes are compared in pairs, and 5 is odd"),
        ({"micro_batch": 2}, "micro_batch has no effect where second derivatives are those of a whole batch"),
        ({"objective": "utility", "rationality": 2.0}, "rationality has no effect on the objective utility"),
        ({"hyper_weight": 0.0, "cg_steps": 3}, "cg_steps has no effect at hyper_weight 0"),
        ({"reward_network.head_gain": 2.0}, "reward_network.head_gain has no effect on a reward"),
    ],
)
def test_what_can_not_be(settings, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"):
        plan("parl", **settings)


def test_presets_build_and_update():
    for preset in PARL.presets:
        task = {"task": "random-mdp", "task_options": SMALL} if preset == "tabular" else {"task": "CartPole-v1"}
        method = plan_of(**task, preset=preset, episodes=4, envs=4, policy_steps=1, seed=1, loggers=())
        found = method.update(method.collect())
        assert ("hyper_norm" in found) == (preset != "naive")
        assert (found["direct_norm"] == 0) == (preset == "reward-design")
        assert isinstance(method.collect(), TensorDict)
        method.task.close()
