"""Martingale policy evaluation: increments, test functions and solvers against loops, formulas and autograd."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.core.spec import Spec
from polopt.data.episodes import Episodes
from polopt.methods.theory.martingale_td import (
    CTD,
    LeastSquares,
    LinearValue,
    MartingaleLoss,
    Steps,
    TDError,
    TwoTimescales,
    balance,
    increments,
    martingale_loss,
    monomials,
    traces,
)
from polopt.tasks.diffusions import Brownian
from tests.guards.harness import built, plan

MUST = 5
DRIFT, DEVIATION = 0.3, 0.8
EXACT = [  # of the monomials 1, tau, x, tau^2, tau x, x^2: J minus its payoff, over tau
    DEVIATION**2,
    DRIFT**2 - DEVIATION**2 / 2,
    2 * DRIFT,
    -(DRIFT**2) / 3,
    -DRIFT,
    -1.0,
]
DT = 0.125


class Plain(Brownian):
    """8 decisions that do nothing, so that the value is known."""

    def __init__(self, *args, **rest):
        super().__init__(*args, horizon=8, **rest)


class Fine(Brownian):
    """64 decisions."""

    def __init__(self, *args, **rest):
        super().__init__(*args, horizon=64, **rest)


@pytest.fixture(autouse=True)
def _double(float64):
    torch.manual_seed(0)


def linear(degree=2, **options):
    """The value of a Brownian world of 8 decisions, with random weights."""
    value = LinearValue(Brownian(horizon=8, **options).spec, degree)
    value.weights = torch.randn_like(value.weights)
    return value


def episodes(count=5, **settings):
    """A batch [count, 8] of the smoke run's world."""
    with built("martingale-td", Plain, envs=count, batch_episodes=count, **settings) as method:
        return method.collect()


# Values


def test_monomials_by_hand():
    x = torch.tensor([2.0, 3.0])
    assert monomials(x, 2).tolist() == [1, 2, 3, 4, 6, 9]
    assert monomials(x, 0).tolist() == [1]
    assert monomials(torch.tensor([[5.0]]), 3).tolist() == [[1, 5, 25, 125]]
    assert len(LinearValue(Spec(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)), 3).weights) == 20


def test_the_features_hold_the_exact_value():
    value, world = linear(), Brownian()
    value.weights = torch.tensor(EXACT)
    obs = torch.stack((torch.rand(20), torch.randn(20)), -1)
    torch.testing.assert_close(value(obs), world.value(obs))


def test_must_3_the_terminal_condition_holds_for_all_weights():
    value = linear()
    ends = torch.stack((torch.zeros(20), torch.randn(20)), -1)
    torch.testing.assert_close(value(ends), ends[:, 1].square())
    assert value.phi(ends).abs().max() == 0


def test_phi_is_the_gradient():
    value = linear()
    obs = torch.stack((torch.rand(4), torch.randn(4)), -1)
    expected = torch.autograd.functional.jacobian(
        lambda weights: value.payoff(obs) + value.phi(obs) @ weights, value.weights
    )
    torch.testing.assert_close(value.phi(obs), expected)


# Increments and test functions


def test_must_1_increments_by_hand_and_never_over_dt():
    """Two decisions of degree 1, discount 1/2: J = x^2 + tau (1 + 2 tau + 3 x)."""
    value = linear(1)
    value.weights = torch.tensor([1.0, 2.0, 3.0])
    batch = TensorDict(
        {
            "obs": torch.tensor([[[1.0, 2.0], [0.5, 4.0]]]),
            "final_obs": torch.tensor([[[0.5, 4.0], [0.0, 1.0]]]),
            "reward": torch.tensor([[-1.0, -2.0 + 1.0]]),  # what the end pays is in the last reward
            "terminated": torch.tensor([[False, True]]),
            "mask": torch.ones(1, 2, dtype=torch.bool),
        },
        [1, 2],
    )
    first, second = 4 + 1 * (1 + 2 + 6), 16 + 0.5 * (1 + 1 + 12)
    expected = [second / 2 - 1 - first, -1 - second]
    for dt in (0.5, 0.01):  # the grid is not in them
        value.diffusion = replace(value.diffusion, dt=dt)
        _, known, change = increments(value, batch, 0.5)
        assert (known + change @ value.weights)[0].tolist() == pytest.approx(expected)


def test_must_1_test_functions_know_the_past_only():
    """What happens after a decision changes xi of later ones only; the TD error's knows the next state."""
    value, batch = linear(), episodes()
    other = batch.clone()
    other["obs"][:, 5:, 1] += 1.0
    other["final_obs"][:, 4:, 1] += 1.0
    for condition, same in ((CTD(), 5), (CTD(trace=0.3), 5), (MartingaleLoss(), 5), (TDError(), 4)):
        one, two = (
            condition.test_functions(phi, change, 0.9, DT)
            for phi, _, change in (increments(value, batch, 0.9), increments(value, other, 0.9))
        )
        assert torch.equal(one[:, :same], two[:, :same])
        assert not torch.isclose(one[:, same:], two[:, same:]).all(-1).any()


def test_must_5_a_test_function_of_the_next_state_is_biased():
    """At the exact value E sum xi dM is 0 for an adapted xi; J's gradient at the next state gives Ito's correction,
    E sum (d phi) dM -> E int phi_x J_x deviation^2 dt, however fine the grid: 0.64 times

        tau for phi = tau x:  E int tau J_x dt, with J_x = 2 x (1 - tau) + drift (2 tau - tau^2) and E x = drift t
    """
    value = linear()
    value.weights = torch.tensor(EXACT)
    with built("martingale-td", Plain, envs=4000, batch_episodes=4000, **{"network.sizes": (1,)}) as method:
        phi, known, change = increments(value, method.collect(), 1.0)
    imbalance = [
        vector - matrix @ value.weights for matrix, vector in (balance(xi, known, change) for xi in (phi, phi + change))
    ]
    time = np.linspace(0, 1, 10_001)
    tau = 1 - time
    slope = 2 * DRIFT * time * (1 - tau) + DRIFT * (2 * tau - tau**2)
    correction = DEVIATION**2 * np.trapezoid(tau * slope, time)
    assert imbalance[0][2].item() == pytest.approx(0.0, abs=0.03)  # a standard error of 0.01
    assert imbalance[1][2].item() == pytest.approx(correction, abs=0.03)
    assert correction > 0.06


def test_must_4_lambda_is_per_unit_of_time():
    """The trace of a phi of 1 is int_0^t lambda^(t - s) ds on every grid, up to dt; so is the discount's."""
    for count in (100, 1000):
        xi = CTD(trace=0.2).test_functions(
            torch.ones(1, count, 1), torch.zeros(1, count, 1), math.exp(-0.5 / count), 1 / count
        )
        rate = 0.5 - math.log(0.2)
        for time in (0.25, 1.0):
            expected = (1 - math.exp(-rate * time)) / rate
            assert xi[0, round(time * count) - 1, 0].item() == pytest.approx(expected, abs=2 / count)


def test_traces_by_hand():
    phi = torch.tensor([[[1.0], [2.0], [4.0]]])
    assert traces(phi, 0.5, 0.25)[0, :, 0].tolist() == [0.25, 0.125 + 0.5, 0.3125 + 1.0]
    assert torch.equal(CTD().test_functions(phi, phi, 0.9, 0.25), phi)  # CTD(0): without dt
    assert CTD(trace=0.0625).test_functions(phi, phi, 0.5, 0.25)[0, 1, 0] == pytest.approx(0.25 * (0.5 * 0.5 + 2))
    assert MartingaleLoss().test_functions(phi, phi, 0.5, 0.25)[0, 1, 0] == pytest.approx(0.25 * (0.5 + 2))


# Limits: what these are in discrete time, and autograd


def td_lambda(value, batch, trace, step, discount):
    """Semi-gradient TD(lambda) of whole episodes with accumulating traces, as a textbook has it; the mean over them."""
    total = np.zeros(len(value.weights))
    phi, ends = value.phi(batch["obs"]).numpy(), value.phi(batch["final_obs"]).numpy()
    now, then = value(batch["obs"]).numpy(), value(batch["final_obs"]).numpy()
    for row in range(len(batch)):
        eligibility = np.zeros(len(value.weights))
        for t in range(batch.shape[1]):
            over = batch["terminated"][row, t].item()
            error = batch["reward"][row, t].item() + discount * (0 if over else then[row, t]) - now[row, t]
            eligibility = discount * trace * eligibility + phi[row, t]
            total += step * error * eligibility
    assert np.abs(ends).max() > 0
    return torch.from_numpy(total / len(batch))


def stepped(value, batch, condition, solver, discount=1.0):
    phi, known, change = increments(value, batch, discount)
    value.updates += 1
    return solver.solve(value, condition.test_functions(phi, change, discount, DT), known, change, DT)


@pytest.mark.parametrize("discount", [1.0, 0.8])
@pytest.mark.parametrize(
    ("condition", "trace", "scale"), [(CTD(), 0.0, 1.0), (CTD(trace=0.25), 0.25**DT, DT), (MartingaleLoss(), 1.0, DT)]
)
def test_must_2_steps_are_those_of_td_lambda(condition, trace, scale, discount):
    """No gradient of the next value; lambda^dt in place of lambda, and steps of lr dt."""
    value, batch = linear(), episodes()
    expected = value.weights + td_lambda(value, batch, trace, 0.5 * scale, discount)
    torch.testing.assert_close(stepped(value, batch, condition, Steps(lr=0.5), discount), expected)


def test_must_2_the_martingale_loss_regresses_on_the_whole_future():
    """Its step is the gradient of the squared distance from returns, and its solution the regression on them."""
    value, batch = linear(), episodes()
    future = batch["reward"].flip(1).cumsum(1).flip(1) - value.payoff(batch["obs"])
    phi, known, change = increments(value, batch, 1.0)
    weights = value.weights.clone().requires_grad_()
    distance = (future - phi @ weights).square().sum(1).mean() * DT / 2
    assert martingale_loss(known + change @ value.weights, 1.0, DT).item() == pytest.approx(distance.item())
    (gradient,) = torch.autograd.grad(distance, weights)
    torch.testing.assert_close(stepped(value, batch, MartingaleLoss(), Steps(lr=0.5)), value.weights - 0.5 * gradient)
    regressed = np.linalg.lstsq(phi.flatten(0, 1).numpy(), future.flatten().numpy(), rcond=None)[0]
    found = stepped(value, batch, MartingaleLoss(), LeastSquares())
    torch.testing.assert_close(found, torch.from_numpy(regressed))


def test_the_td_error_is_least_where_its_condition_holds():
    value, batch = linear(), episodes()
    _, known, change = increments(value, batch, 0.9)
    weights = value.weights.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((known + change @ weights).square().sum(1).mean() / 2, weights)
    torch.testing.assert_close(stepped(value, batch, TDError(), Steps(lr=0.5), 0.9), value.weights - 0.5 * gradient)
    best = np.linalg.lstsq(change.flatten(0, 1).numpy(), -known.flatten().numpy(), rcond=None)[0]
    torch.testing.assert_close(stepped(value, batch, TDError(), LeastSquares(), 0.9), torch.from_numpy(best))


def test_clstd_is_lstd_and_adds_up_over_batches():
    value, one, two = linear(), episodes(seed=1), episodes(seed=2)
    stepped(value, one, CTD(), LeastSquares(), 0.9)
    found = stepped(value, two, CTD(), LeastSquares(), 0.9)
    matrix, vector = np.zeros((6, 6)), np.zeros(6)
    for batch in (one, two):
        phi, ends = value.phi(batch["obs"]).numpy(), value.phi(batch["final_obs"]).numpy()
        paid = value.payoff(batch["final_obs"]).numpy()
        for row in range(len(batch)):
            for t in range(8):
                go = 0.0 if batch["terminated"][row, t] else 0.9
                matrix += np.outer(phi[row, t], phi[row, t] - go * ends[row, t])
                reward = batch["reward"][row, t].item() + go * paid[row, t] - value.payoff(batch["obs"])[row, t].item()
                vector += phi[row, t] * reward
    torch.testing.assert_close(found, torch.from_numpy(np.linalg.solve(matrix, vector)))


def test_as_the_grid_is_refined_the_td_error_is_the_quadratic_variation():
    """E sum (dM)^2 -> E int deviation^2 J_x^2 dt: J = x^2 + tau x / 2 and x ~ N(drift t, 1 + deviation^2 t)."""
    value = linear(1)
    value.weights = torch.tensor([0.0, 0.0, 0.5])
    time = np.linspace(0, 1, 10_001)
    mean, variance = DRIFT * time, 1 + DEVIATION**2 * time
    slope = 4 * variance + (2 * mean + 0.5 * (1 - time)) ** 2
    with built("martingale-td", Fine, envs=2000, batch_episodes=2000, **{"network.sizes": (1,)}) as method:
        _, known, change = increments(value, method.collect(), 1.0)
    found = (known + change @ value.weights).square().sum(1).mean().item()
    assert found == pytest.approx(DEVIATION**2 * np.trapezoid(slope, time), rel=0.06)


# Solvers


def test_cgtd_is_a_gradient_and_stands_still_at_clstds_solution():
    value, batch = linear(), episodes(20)
    phi, known, change = increments(value, batch, 1.0)
    matrix, vector = balance(phi, known, change)
    covariance = torch.einsum("rti,rtj->ij", phi, phi) * DT / len(phi)
    weights = value.weights.clone().requires_grad_()
    imbalance = vector - matrix @ weights
    (gradient,) = torch.autograd.grad(imbalance @ torch.linalg.solve(covariance, imbalance) / 2, weights)
    value.tracked = torch.linalg.solve(covariance, imbalance.detach())  # what it tends to
    found = stepped(value, batch, CTD(), TwoTimescales(lr=0.3, tracking_lr=0.7))
    torch.testing.assert_close(found, value.weights - 0.3 * gradient)
    torch.testing.assert_close(value.tracked, torch.linalg.solve(covariance, imbalance.detach()))
    value.tracked = torch.zeros(6)
    stepped(value, batch, CTD(), TwoTimescales(tracking_lr=0.7))
    torch.testing.assert_close(value.tracked, 0.7 * imbalance.detach())
    value.weights, value.tracked = torch.linalg.solve(matrix, vector), torch.zeros(6)
    torch.testing.assert_close(stepped(value, batch, CTD(), TwoTimescales()), value.weights)


@pytest.mark.parametrize("solver", [Steps(lr=0.5, power=0.5), TwoTimescales(lr=0.5, power=0.5)])
def test_rates_fall_with_the_power_of_updates(solver):
    batch, found = episodes(), []
    for updates in (0, 3):
        torch.manual_seed(0)
        value = linear()
        value.updates += updates
        found.append(stepped(value, batch, CTD(), solver) - value.weights)
    torch.testing.assert_close(found[0], 2 * found[1])


def test_online_steps_follow_each_other():
    value, batch = linear(), episodes()
    phi, known, change = increments(value, batch, 1.0)
    weights = value.weights
    for t in range(8):
        error = known[:, t] + change[:, t] @ weights
        weights = weights + 0.5 * (phi[:, t] * error.unsqueeze(-1)).mean(0)
    torch.testing.assert_close(stepped(value, batch, CTD(), Steps(lr=0.5, online=True)), weights)


def test_least_squares_before_there_is_enough_data_takes_the_smallest_weights():
    value, batch = linear(), episodes(1)[:, -1:]  # one increment, for six weights
    found = stepped(value, batch, TDError(), LeastSquares())
    _, known, change = increments(value, batch, 1.0)
    torch.testing.assert_close(found, -known[0, 0] * change[0, 0] / change[0, 0].square().sum())


# The method


def test_a_task_that_is_no_diffusion():
    """Padding does not count, and what is cut goes on with the value of its end: two episodes by hand."""
    value = LinearValue(Spec(spaces.Box(-1, 1, (1,)), spaces.Discrete(2)), 1)
    value.weights = torch.tensor([1.0, 2.0])
    batch = TensorDict(
        {
            "obs": torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]]),
            "final_obs": torch.tensor([[[2.0], [4.0]], [[5.0], [0.0]]]),
            "reward": torch.tensor([[1.0, 1.0], [1.0, 0.0]]),
            "terminated": torch.tensor([[False, False], [True, False]]),
            "truncated": torch.tensor([[False, True], [False, False]]),
            "mask": torch.tensor([[True, True], [True, False]]),
        },
        [2, 2],
    )
    _, known, change = increments(value, batch, 0.5)
    assert (known + change @ value.weights).tolist() == [[1 + 2.5 - 3, 1 + 4.5 - 5], [1 - 7, 0]]
    with built("martingale-td", "MountainCarContinuous-v0", discount_rate=math.log(2)) as method:
        assert (method.dt, method.discount) == (1.0, 0.5)
    # returns: 1 + (1 + 9 / 2) / 2 and 1 + 9 / 2, and 1; minus J = 3, 5 and 7
    loss = martingale_loss(known + change @ value.weights, 0.5, 2.0)
    assert loss.item() == pytest.approx(2 * (0.75**2 + 0.5**2 + 6**2) / 4)


def test_it_reports_what_it_says():
    with built("martingale-td", discount_rate=0.5) as method:
        value, discount = method.value, math.exp(-0.5 / 8)
        assert method.discount == pytest.approx(discount)
        value.weights = torch.randn(6)
        batch = method.collect()
        assert method.ledger.episodes == 4
        phi, known, change = increments(value, batch, discount)
        errors = torch.stack([known[:, t] + change[:, t] @ value.weights for t in range(8)], 1)
        found = method.update(batch)
        assert found["martingale_loss"].item() == pytest.approx(martingale_loss(errors, discount, DT).item())
        assert found["quadratic_variation"].item() == pytest.approx(errors.square().sum(1).mean().item())
        imbalance = (phi * errors.unsqueeze(-1)).sum(1).mean(0)
        assert found["imbalance"].item() == pytest.approx(imbalance.norm().item())
        assert value.updates == 1


def test_padding_of_a_diffusion_does_not_count():
    value, batch = linear(), episodes()
    shorter = batch.clone()
    shorter["mask"][:, 6:] = False
    shorter["reward"][:, 6:] = 0.0
    for part in increments(value, shorter, 0.9):
        assert part[:, 6:].abs().max() == 0
    for part, whole in zip(increments(value, shorter, 0.9), increments(value, batch, 0.9)):
        assert torch.equal(part[:, :6], whole[:, :6])


def test_everything_is_in_double_precision():
    torch.set_default_dtype(torch.float32)
    with built("martingale-td", Plain) as method:
        method.update(method.collect())
        assert {buffer.dtype for buffer in method.value.buffers()} == {torch.float64}


def test_it_is_judged_by_fresh_episodes_of_the_policy_as_it_acts():
    with built("martingale-td") as method:
        task = plan("martingale-td").make_task(1, 3)
        one = method.evaluate(task, 20)
        assert one == method.evaluate(task, 20, greedy=True)
        assert set(one) == {"martingale_loss", "return", "length"}  # nobody knows the value of this policy
        method.value.weights = torch.randn(6)
        assert method.evaluate(task, 20)["return"] == one["return"]
        two = method.evaluate(task, 20)["martingale_loss"]
        assert two != one["martingale_loss"]
        assert two != method.evaluate(task, 10)["martingale_loss"]
        with paired():
            batch = Episodes(task, starts=range(20)).next(method.policy)
        future = batch["reward"].flip(1).cumsum(1).flip(1)
        loss = (future - method.value(batch["obs"])).square().sum(1).mean() * DT / 2
        assert two == pytest.approx(loss.item())
        with torch.no_grad():
            for parameter in method.policy.parameters():
                parameter.fill_(0.5)  # acts otherwise
        assert method.evaluate(task, 20)["return"] != one["return"]


def test_the_error_of_the_value_where_it_is_known():
    with built("martingale-td", Plain) as method:
        task = plan("martingale-td", Plain).make_task(1, 3)
        method.value.weights = torch.tensor(EXACT)
        assert method.evaluate(task, 5)["value_error"] == pytest.approx(0.0, abs=1e-12)
        method.value.weights[0] += 0.5  # off by tau / 2 on a grid 1, 7/8, .. 1/8
        expected = 0.5 * math.sqrt(sum((left / 8) ** 2 for left in range(1, 9)) / 8)
        assert method.evaluate(task, 5)["value_error"] == pytest.approx(expected)
    with built("martingale-td", Plain, discount_rate=0.1) as method:
        assert "value_error" not in method.evaluate(plan("martingale-td", Plain).make_task(1, 3), 2)


def test_on_a_task_that_is_no_diffusion_nobody_knows_the_value():
    with built("martingale-td", "CartPole-v1") as method:
        method.update(method.collect())
        scores = method.evaluate(plan("martingale-td", "CartPole-v1").make_task(1, 3), 3)
        assert set(scores) == {"martingale_loss", "return", "length"}
        assert scores["return"] == scores["length"]


def test_it_trains_no_policy():
    with built("martingale-td") as method:
        assert not any(parameter.requires_grad for parameter in method.policy.parameters())


@pytest.mark.parametrize("preset", ["clstd", "martingale-loss"])
def test_least_squares_come_near_and_the_td_error_does_not(preset):
    settings = {"envs": 1000, "batch_episodes": 1000, "network.sizes": (1,)}
    errors = []
    for name in (preset, "td-error"):
        with built("martingale-td", Fine, preset=name, **settings) as method:
            method.update(method.collect())
            errors.append(method.evaluate(plan("martingale-td", Fine).make_task(1, 200), 200)["value_error"])
    assert 3 * errors[0] < errors[1]


def test_a_finite_state_is_a_table_and_pictures_have_too_many_terms():
    space = spaces.Dict({"state": spaces.Discrete(3), "step": spaces.Discrete(2)})
    value = LinearValue(Spec(space, spaces.Discrete(2)), 1)
    assert value.phi({"state": torch.tensor([2]), "step": torch.tensor([0])}).tolist() == [[1, 0, 0, 1, 1, 0]]
    with pytest.raises(UsageError, match=r"^polynomials of degree 2 in the 64 numbers that this task shows have 2,145"):
        LinearValue(Spec(spaces.Box(0, 255, (8, 8), np.uint8), spaces.Discrete(2)), 2)
