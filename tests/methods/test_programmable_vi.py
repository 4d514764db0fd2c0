"""Programmable variational inference: bounds by hand, exact averages over what can be drawn, and limits."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.distributions import Bernoulli, Normal

from polopt.core.errors import UsageError
from polopt.losses.estimator import policy_gradient, ratio
from polopt.losses.expectations import Expectation, Sampling
from polopt.methods.theory.programmable_vi import bound, density, simulate, wake
from polopt.tasks.programs import Cone, Mixture, Program, ProgramTask, normal
from polopt.training import api
from tests.guards.harness import advance, built, plan

MUST = 4
OBS = torch.tensor([[0.5]], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _double(float64):
    torch.manual_seed(0)


class Plain(nn.Module):
    """x ~ N(mean, 1), by a strategy."""

    def __init__(self, mean=0.3, strategy="reparameterized"):
        super().__init__()
        self.mean, self.strategy = nn.Parameter(torch.tensor(mean)), strategy

    def forward(self, at, obs):
        at("x", normal(self.mean, 1.0), self.strategy)


class Hidden(nn.Module):
    """u ~ Bernoulli(0.25), x ~ Bernoulli(0.2 or 0.7): q(x = 1) = 0.325."""

    def forward(self, at, obs):
        side = at("u", Bernoulli(torch.tensor(0.25)), "reinforce")
        at("x", Bernoulli(0.2 + 0.5 * side), "reinforce")


def gaussian(at, obs):
    """x ~ N(0, 1), z ~ N(x, 1): log evidence N(z; 0, 2)."""
    at("z", normal(at("x", normal(0.0, 1.0)), 1.0))


PROGRAM = Program(("x",), gaussian, lambda obs: {"z": obs[..., 0]}, {"plain": Plain})


def forced(monkeypatch, *values):
    """`Bernoulli.sample` gives these, one a call."""
    upcoming = iter(values)
    monkeypatch.setattr(Bernoulli, "sample", lambda self: torch.tensor(next(upcoming)).expand(self.batch_shape))


# Bounds


def test_must_2_the_bound_by_hand_with_the_derivative_of_its_densities():
    """log p(x, z) - log q(x) at x = mean + noise, whose gradient in the mean has both ways: through x and through q."""
    guide = Plain()
    run = Expectation(4)
    found = run.values(bound(run, guide, PROGRAM, OBS, 1, 1))
    torch.manual_seed(0)
    noise = torch.randn(4)
    x = 0.3 + noise
    expected = -(x**2) / 2 - (0.5 - x) ** 2 / 2 + noise**2 / 2 - math.log(2 * math.pi) / 2
    torch.testing.assert_close(found.detach(), expected)
    (slope,) = torch.autograd.grad(found.sum(), guide.mean)
    assert slope.item() == pytest.approx((-x + (0.5 - x)).sum().item())  # of -log q: through x noise, through q -noise
    guide.strategy = "reinforce"
    run = Expectation(4)
    torch.manual_seed(0)
    (slope,) = torch.autograd.grad(run.values(bound(run, guide, PROGRAM, OBS, 1, 1)).sum(), guide.mean)
    assert slope.item() == pytest.approx(((expected - 1) * noise).sum().item())  # bound times score, and d(-log q)


def test_several_particles_by_hand():
    guide = Plain()
    found = bound(Expectation(4), guide, PROGRAM, OBS, 3, 1)
    torch.manual_seed(0)
    x = 0.3 + torch.randn(3, 4)
    weight = Normal(0.0, 1.0).log_prob(x) + Normal(x, 1.0).log_prob(torch.tensor(0.5)) - Normal(0.3, 1.0).log_prob(x)
    torch.testing.assert_close(found, weight.exp().mean(0).log())


def test_the_exact_posterior_has_the_evidence_in_every_draw():
    for particles, inner in ((1, 1), (4, 1), (1, 3)):
        task, guide = Mixture(), Mixture().program.guides["sides"]()
        joint = [
            math.log(share) + Normal(mean, 2**0.5).log_prob(torch.tensor(0.5))
            for share, mean in ((0.7, -2.0), (0.3, 2.0))
        ]
        with torch.no_grad():
            guide.logit.copy_(joint[1] - joint[0])
            guide.mean.copy_(torch.tensor([(-2 + 0.5) / 2, (2 + 0.5) / 2]))
            guide.log_std.fill_(math.log(0.5) / 2)
            found = bound(Sampling(20), guide, task.program, OBS, particles, inner)
        torch.testing.assert_close(found, task.evidence(OBS).expand(20))


def test_more_particles_bound_more_tightly():
    """Of a guide that is off, the means over 4,000 draws, each below the evidence."""
    guide, evidence = Plain(1.5), Normal(0.0, 2**0.5).log_prob(torch.tensor(0.5)).item()
    with torch.no_grad():
        means = [bound(Sampling(4000), guide, PROGRAM, OBS, count, 1).mean().item() for count in (1, 4, 16)]
    assert means[0] + 0.2 < means[1] < means[2] - 0.02 < evidence


# Auxiliary choices


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_must_3_the_drawn_auxiliary_choice_counts_when_simulating(x, monkeypatch):
    """q^ by hand for every u_1, u_2, and E[1 / q^(x) | x] = 1 / q(x), with u_1 ~ q(u | x) and u_2 ~ q(u)."""
    program = Program(("x",), gaussian, lambda obs: {}, {})
    given = {0.0: 0.2 if x else 0.8, 1.0: 0.7 if x else 0.3}
    total, reciprocal = 0.75 * given[0.0] + 0.25 * given[1.0], 0.0
    for one, two in product((0.0, 1.0), repeat=2):
        forced(monkeypatch, one, x, two)
        values, log_q = simulate(Expectation(1), Hidden(), program, OBS, 2)
        assert values["x"].item() == x
        assert log_q.exp().item() == pytest.approx((given[one] + given[two]) / 2)
        posterior = (0.25 if one else 0.75) * given[one] / total
        reciprocal += posterior * (0.25 if two else 0.75) / log_q.exp().item()
    assert reciprocal == pytest.approx(1 / total)
    forced(monkeypatch, 1.0, x)
    assert simulate(Expectation(1), Hidden(), program, OBS, 1)[1].exp().item() == pytest.approx(given[1.0])


def test_must_3_every_fresh_auxiliary_choice_counts_once(monkeypatch):
    """Of three, u = 1 with the drawn x = 1, and fresh 0 and 1: (0.7 + 0.2 + 0.7) / 3."""
    program = Program(("x",), gaussian, lambda obs: {}, {})
    forced(monkeypatch, 1.0, 1.0, [[0.0], [1.0]])
    found = simulate(Expectation(1), Hidden(), program, OBS, 3)[1].exp().item()
    assert found == pytest.approx((0.7 + 0.2 + 0.7) / 3)


def test_strategies_are_those_of_fresh_auxiliary_choices_too():
    said = []

    class Noted(Expectation):
        def sample(self, distribution, strategy, baseline=None):
            said.append((strategy, baseline))
            return super().sample(distribution, strategy, baseline)

    program = Program(("x",), gaussian, lambda obs: {}, {})
    simulate(Noted(1), Hidden(), program, OBS, 2, strategies={"u": "measure-valued"}, baseline=0.5)
    assert said == [("measure-valued", None), ("reinforce", 0.5), ("measure-valued", None)]


@pytest.mark.parametrize("x", [0.0, 1.0])
def test_must_3_all_auxiliary_choices_are_fresh_when_scoring(x, monkeypatch):
    """E q^(x) = q(x), for two fresh u."""
    program = Program(("x",), gaussian, lambda obs: {}, {})
    given, mean = {0.0: 0.2 if x else 0.8, 1.0: 0.7 if x else 0.3}, 0.0
    for one, two in product((0.0, 1.0), repeat=2):
        forced(monkeypatch, [[one], [two]])
        found = density(Expectation(1), Hidden(), program, OBS, {"x": torch.tensor([x])}, 2).exp().item()
        assert found == pytest.approx((given[one] + given[two]) / 2)
        mean += (0.25 if one else 0.75) * (0.25 if two else 0.75) * found
    assert mean == pytest.approx(0.75 * given[0.0] + 0.25 * given[1.0])


def test_hierarchical_bounds_stay_below_the_evidence():
    """On the cone, ELBO of the ring with more and more auxiliary particles; three standard errors of 0.02."""
    task, obs = Cone(), torch.tensor([[5.0]])
    guide = task.program.guides["ring"]()
    with torch.no_grad():
        guide.log_std.fill_(-2.5)
        means = [
            bound(Sampling(4000), guide, task.program, obs, *many).mean().item() for many in ((1, 1), (1, 5), (5, 5))
        ]
    assert means[0] < means[1] < means[2] < -5.32


# Limits


def test_without_auxiliary_choices_their_particles_do_not_matter():
    found = []
    for inner in (1, 5):
        torch.manual_seed(0)
        found.append(bound(Expectation(4), Plain(), PROGRAM, OBS, 3, inner))
    assert torch.equal(*found)
    values = {"x": torch.tensor([0.1, 0.4])}
    one, five = (density(Expectation(2), Plain(), PROGRAM, OBS, values, count) for count in (1, 5))
    assert torch.equal(one, five)
    torch.testing.assert_close(one, Normal(0.3, 1.0).log_prob(values["x"]))


class Aside(nn.Module):
    """An auxiliary choice that says nothing of x ~ N(0.3, 1)."""

    def forward(self, at, obs):
        at("u", Bernoulli(torch.tensor(0.3)), "reinforce")
        at("x", normal(0.3, 1.0))


@pytest.mark.parametrize("inner", [1, 2, 3])
def test_auxiliary_choices_that_say_nothing_change_nothing(inner):
    run = Expectation(4)
    values, log_q = simulate(run, Aside(), PROGRAM, OBS, inner)
    expected = Normal(0.3, 1.0).log_prob(values["x"])
    torch.testing.assert_close(log_q, expected)
    torch.testing.assert_close(density(run, Aside(), PROGRAM, OBS, values, inner), expected)


def test_must_1_reinforce_everywhere_is_reinforce():
    """A bound of choices that are constants is a return: the gradient is that of the policy-gradient loss."""
    guide = Plain(strategy="reinforce")
    run = Expectation(6)
    with torch.no_grad():
        torch.manual_seed(0)
        returns = -((0.3 + torch.randn(6)) ** 2)
    torch.manual_seed(0)
    values, log_q = simulate(run, guide, PROGRAM, OBS)
    (found,) = torch.autograd.grad(-run.values(-(values["x"] ** 2)).mean(), guide.mean)
    loss = policy_gradient(log_q, ratio(log_q, "current"), returns, torch.full((6,), 1 / 6))
    torch.testing.assert_close(found, torch.autograd.grad(loss, guide.mean)[0])


def test_must_1_strategies_mix_along_the_program():
    """side by each of its strategies and x by noise: on average the gradient of both enumerated and integrated."""
    task, slopes = Mixture(), []
    for side, rows in (("enumerated", 20_000), ("measure-valued", 20_000), ("reinforce", 20_000)):
        torch.manual_seed(1)
        guide = task.program.guides["sides"]()
        run = Expectation(rows)
        value = run.values(bound(run, guide, task.program, OBS, 1, 1, strategies={"side": side})).mean()
        slopes.append(torch.cat([slope.reshape(-1) for slope in torch.autograd.grad(value, tuple(guide.parameters()))]))
    # ELBO at side ~ 1/2, x ~ N(0, 1): E log p(x | side) = -((m - 0)^2 + 1) / 2, so d/d logit = (log .3 - log .7) / 4
    assert slopes[0][0].item() == pytest.approx((math.log(0.3) - math.log(0.7)) / 4, abs=0.02)
    # d/d mean of a side = P(side) (m + z - 2 mean) = (m + 0.5) / 2
    assert slopes[0][1:3].tolist() == pytest.approx([-0.75, 1.25], abs=0.03)
    for other in slopes[1:]:
        torch.testing.assert_close(other, slopes[0], atol=0.1, rtol=0)


# Baselines


def test_must_4_the_baseline_is_the_mean_of_what_was_before():
    with built("programmable-vi", "mixture", baseline=True, baseline_rate=0.25) as method:
        seen = []
        original = method.objective

        def noted(run, obs):
            seen.append(method.mean.value.item())
            return original(run, obs)

        method.objective = noted
        found = [method.update(method.collect())["objective"].item() for _ in range(3)]
        assert seen == pytest.approx([0.0, found[0], 0.75 * found[0] + 0.25 * found[1]])


@pytest.mark.parametrize("baseline", [False, True])
def test_must_4_the_baseline_is_used_where_it_is_asked_for(baseline):
    """The gradients of both runs at the same draws, beside those with the mean 3 put in by hand."""
    with built("programmable-vi", "mixture", baseline=baseline) as method:
        method.mean.update(torch.tensor(3.0))
        slopes = []
        for objective in (
            method.objective,
            lambda run, obs: bound(
                run,
                method.policy.guide,
                method.program,
                obs,
                1,
                1,
                strategies={"x": "reinforce"},
                baseline=3.0 if baseline else None,
            ),
        ):
            torch.manual_seed(0)
            run = Expectation(8)
            value = run.values(objective(run, OBS.expand(8, 1))).mean()
            slopes.append(
                torch.cat([part.reshape(-1) for part in torch.autograd.grad(value, [*method.policy.parameters()])])
            )
        torch.testing.assert_close(*slopes)


def test_must_4_a_baseline_changes_the_noise_and_not_the_value():
    values, slopes = [], []
    for baseline in (None, -2.0):
        torch.manual_seed(0)
        guide = Plain(strategy="reinforce")
        run = Expectation(5)
        found = run.values(bound(run, guide, PROGRAM, OBS, 1, 1, baseline=baseline))
        values.append(found.detach())
        slopes.append(torch.autograd.grad(found.sum(), guide.mean)[0])
    torch.testing.assert_close(*values)
    torch.manual_seed(0)
    assert (slopes[0] - slopes[1]).item() == pytest.approx(-2 * torch.randn(5).sum().item())


# Wake


def test_wake_weighs_constants():
    """x and the weights are constants; the guide gets sum w d log q, a model's parameter sum w d log p."""
    guide, level = Plain(), torch.tensor(0.2, requires_grad=True)

    def model(at, obs):
        at("z", normal(at("x", normal(level, 1.0)), 1.0))

    program = Program(("x",), model, lambda obs: {"z": obs[..., 0]}, {})
    run = Expectation(2)
    found = run.values(wake(run, guide, program, OBS, 3, 1)).sum()
    torch.manual_seed(0)
    x = Normal(0.3, 1.0).expand((3, 2)).sample()
    log_weight = (
        Normal(0.2, 1.0).log_prob(x) + Normal(x, 1.0).log_prob(torch.tensor(0.5)) - Normal(0.3, 1.0).log_prob(x)
    )
    share = log_weight.exp() / log_weight.exp().sum(0)
    slopes = torch.autograd.grad(found, (guide.mean, level))
    assert slopes[0].item() == pytest.approx((share * (x - 0.3)).sum().item())
    assert slopes[1].item() == pytest.approx((share * (x - 0.2)).sum().item())


class Shifted(nn.Module):
    """x ~ N(u, 1) with an auxiliary coin u."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.4))

    def forward(self, at, obs):
        at("x", normal(at("u", Bernoulli(logits=self.logit), "reinforce"), 1.0))


def test_wake_weighs_by_drawn_and_scores_by_fresh_auxiliary_choices():
    """Both of as many as were asked for, in the method too."""
    program = Program(("x",), gaussian, lambda obs: {"z": obs[..., 0]}, {"shifted": Shifted})

    class Shifting(ProgramTask):
        datum = (0.5,)

        def __init__(self, *args, **rest):
            self.program = program
            super().__init__(*args, **rest)

    settings = {"strategies": {}, "objective": "wake", "particles": 3, "auxiliary_particles": 4}
    with built("programmable-vi", Shifting, **settings) as method:
        guide = method.policy.guide
        torch.manual_seed(0)
        found = method.objective(Expectation(6), OBS.expand(6, 1))
    torch.manual_seed(0)
    with torch.no_grad():
        side = Bernoulli(logits=guide.logit).expand((3, 6)).sample()
        x = Normal(side, 1.0).sample()
        sides = torch.cat([side[None], Bernoulli(logits=guide.logit).expand((3, 3, 6)).sample()])
        joint = Normal(0.0, 1.0).log_prob(x) + Normal(x, 1.0).log_prob(torch.tensor(0.5))
        share = joint.exp() / Normal(sides, 1.0).log_prob(x).exp().mean(0)
        fresh = Bernoulli(logits=guide.logit).expand((4, 3, 6)).sample()
        log_q = Normal(fresh, 1.0).log_prob(x).exp().mean(0).log()
    torch.testing.assert_close(found.detach(), (share / share.sum(0) * (log_q + joint)).sum(0))


# The method


class Learned(nn.Module):
    """x ~ N(level, 1), z ~ N(x, 1), with a level that is learned."""

    def __init__(self):
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, at, obs):
        at("z", normal(at("x", normal(self.level, 1.0)), 1.0))


class Leveled(ProgramTask):
    datum = (3.0,)

    def __init__(self, *args, **rest):
        self.program = Program(("x",), Learned(), lambda obs: {"z": obs[..., 0]}, {"plain": Plain})
        super().__init__(*args, **rest)


@pytest.mark.parametrize("objective", [{}, {"objective": "wake", "particles": 10}])
def test_a_model_with_parameters_learns_them_too(objective):
    """The evidence is largest at a level of 3; the posterior's mean is then 3 as well."""
    settings = {"strategies": {}, "lr": 0.1, "optimizer": "adam", "envs": 32} | objective
    with built("programmable-vi", Leveled, **settings) as method:
        advance(method, 150)
        assert method.model.level.item() == pytest.approx(3.0, abs=0.4)
        assert method.policy.guide.mean.item() == pytest.approx(3.0, abs=0.4)


@pytest.mark.parametrize("side", ["enumerated", "measure-valued", "reinforce"])
def test_it_reaches_the_evidence_where_the_guide_can(side):
    strategies = {"side": side, "x": "reparameterized"}
    with built(
        "programmable-vi",
        "mixture",
        envs=64,
        strategies=strategies,
        optimizer="adam",
        lr=0.1,
        baseline=side == "reinforce",
    ) as method:
        task = plan("programmable-vi", "mixture").make_task(1, 10)
        before = method.evaluate(task, 200)
        advance(method, 150)
        after = method.evaluate(task, 200)
        assert before["gap"] > 1
        assert after["gap"] == pytest.approx(0.0, abs=0.05)
        assert after["bound"] + after["gap"] == pytest.approx(task.evidence(OBS).item())
        assert after["return"] > before["return"]


class Told(nn.Module):
    """x ~ N(2 z, 0.1) or N(2 z + 1, 0.1), by an auxiliary coin."""

    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(2.0))

    def forward(self, at, obs):
        at("x", normal(self.slope * obs[..., 0] + at("u", Bernoulli(torch.tensor(0.5)), "reinforce"), 0.1))


class Numbered(ProgramTask):
    """Of start number i the data are i and 0."""

    datum = (0.0, 0.0)

    def __init__(self, *args, **rest):
        self.program = Program(
            ("x",), gaussian, lambda obs: {"z": obs[..., 0]}, {"told": Told}, evidence=lambda obs: 3 * obs[..., 0]
        )
        super().__init__(*args, **rest)

    def draw(self, generator, index):
        return {"data": torch.tensor([float(index), 0.0])}


@pytest.mark.parametrize("inner", [1, 4])
def test_an_evaluation_is_of_the_data_of_each_start(inner):
    """log p(x, z) at x = 2 z (+ 1) is -(x^2 + (z - x)^2) / 2 - log 2 pi, beside which log q is small."""
    with built("programmable-vi", Numbered, strategies={}, auxiliary_particles=inner) as method:
        found = method.evaluate(plan("programmable-vi", Numbered, strategies={}).make_task(1, 40), 40)
        z = torch.arange(40.0)
        joint = torch.stack([-((2 * z + u) ** 2 + (z + u) ** 2) / 2 for u in (0, 1)]).mean() - math.log(2 * math.pi)
        assert found["bound"] == pytest.approx(joint.item(), rel=0.03)
        assert found["bound"] + found["gap"] == pytest.approx(3 * 19.5)


def test_an_evaluation_has_as_many_particles_as_training():
    """Of the ring on the cone, beside as many draws of its own bound; a standard error is 0.12."""
    task, obs = Cone(), torch.tensor([[5.0]])
    for preset, many in (("hvi", (1, 1)), ("iwhvi", (1, 5)), ("diwhvi", (5, 5))):
        with built("programmable-vi", "cone", preset=preset, strategies={}) as method, torch.no_grad():
            method.policy.guide.log_std.fill_(-2.5)
            found = method.evaluate(plan("programmable-vi", "cone").make_task(1, 1000), 1000)["bound"]
            expected = bound(Sampling(4000), method.policy.guide, task.program, obs, *many).mean()
        assert found == pytest.approx(expected.item(), abs=0.5)


def test_it_acts_by_its_guide():
    with built("programmable-vi", "mixture") as method:
        record, carry = method.policy.act(torch.full((50, 1), 0.5))
        assert record["action"].shape == (50, 2)
        assert set(record["action"][:, 0].tolist()) == {0.0, 1.0}
        assert len(record["action"][:, 1].unique()) == 50
        assert not carry
        batch = method.collect()
        assert batch["obs"].tolist() == [[0.5]] * 8


def test_an_update_is_one_step_on_the_surrogate():
    with built("programmable-vi", "mixture", lr=0.5, optimizer="sgd") as method:
        state = torch.get_rng_state()
        run = Expectation(8)
        value = run.values(method.objective(run, OBS.expand(8, 1))).mean()
        parameters = list(method.policy.parameters())
        expected = [p + 0.5 * slope for p, slope in zip(parameters, torch.autograd.grad(value, parameters))]
        torch.set_rng_state(state)
        found = method.update(TensorDict({"obs": OBS.expand(8, 1)}, [8]))
        assert found["objective"].item() == pytest.approx(value.item())
        for one, other in zip(method.policy.parameters(), expected):
            torch.testing.assert_close(one, other)


def test_the_learning_rate_follows_its_schedule():
    with built("programmable-vi", lr=0.5, lr_schedule="linear") as method:
        method.progress = 0.75
        assert method.optimizer.rate == pytest.approx(0.125)


@pytest.mark.parametrize("preset", ["elbo", "iwelbo", "hvi", "iwhvi", "diwhvi"])
def test_presets_are_those_of_the_cone(preset):
    with built("programmable-vi", "cone", preset=preset, strategies={}) as method:
        start = {"elbo": [0, 0, 1, 1], "iwelbo": [3, 0, 1, 1]}.get(preset, [0, 0])
        assert torch.cat([parameter.detach() for parameter in method.policy.guide.parameters()]).tolist() == start
        assert math.isfinite(method.update(method.collect())["objective"].item())
    config = api.plan("programmable-vi", "cone", preset=preset).config
    counts = {"iwelbo": (5, 1), "iwhvi": (1, 5), "diwhvi": (5, 5)}.get(preset, (1, 1))
    assert (config.particles, config.auxiliary_particles) == counts
    assert config.envs == (1 if preset == "iwelbo" else 64)  # the released IWELBO takes one run per update


class Forgetful(ProgramTask):
    datum = (0.5,)

    def __init__(self, *args, **rest):
        self.program = Program(("x", "w"), gaussian, lambda obs: {"z": obs[..., 0]}, {"plain": Plain})
        super().__init__(*args, **rest)


@pytest.mark.parametrize(
    ("task", "settings", "sentence"),
    [
        (
            "brownian",
            {},
            "programmable-vi needs a task that is a probabilistic program, such as cone, and brownian is none",
        ),
        ("cone", {"strategies": {}, "guide": "rings"}, "cone has no guide 'rings'; did you mean 'ring'"),
        ("mixture", {"strategies": {"sides": "enumerated"}}, "the guide makes no choice 'sides'; did you mean 'side'"),
        ("mixture", {"strategies": {"x": "enumerated"}}, "a choice from a Normal has no finite number of values"),
        (
            None,
            {"strategies": {"x": "enumerate"}},
            "strategies: there is no strategy 'enumerate' for the choice 'x'; did",
        ),
        (
            "mixture",
            {"particles": 2},
            "a choice that is enumerated or measure-valued cannot stand among several particles",
        ),
        ("mixture", {"objective": "wake", "strategies": {}}, "the objective wake weighs particles against each other"),
        ("mixture", {"objective": "wake", "particles": 2}, "strategies has no effect on the objective wake"),
        ("mixture", {"baseline_rate": 0.5}, "baseline_rate has no effect without a baseline"),
        ("mixture", {"micro_batch": 2}, "micro_batch has no effect where a program draws for all rows at once"),
        (Forgetful, {"strategies": {}}, "the guide does not make the hidden choice 'w' of the model"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(task, settings, sentence):
    with pytest.raises(UsageError, match=f"^{sentence}"), built("programmable-vi", task, **settings):
        pass
