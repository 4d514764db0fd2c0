"""f-DPG: its estimator against exact gradients of f-divergences, and the running Z, baseline and proposal around it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.core.state import gather, restore
from polopt.methods.language.f_dpg import FDPG, NEVER, dpg_loss, log_preference, log_ratio
from polopt.regularizers.divergences import divergence
from polopt.training.api import plan
from tests.policies.language_models import tiny_folder

MUST = 5
KINDS = ("jensen-shannon", "forward-kl", "reverse-kl", "total-variation", "reverse-chi-squared", "forward-chi-squared")
# The derivatives as table 1 of the paper has them, by t, and as the release has those of both chi-squared.
PAPER = {
    "forward-kl": lambda t: -1 / t,
    "reverse-kl": lambda t: np.log(t) + 1,
    "total-variation": lambda t: np.where(t > 1, 0.5, -0.5),
    "jensen-shannon": lambda t: np.log(2 * t / (t + 1)),
    "forward-chi-squared": lambda t: 1 - t**-2.0,
    "reverse-chi-squared": lambda t: 2 * (t - 1),
}
OUTCOMES = 12


def f_dpg(**settings):
    """f-DPG on words of two consonants, a tiny model, and a batch of two prompts of four completions."""
    defaults = {"model": str(tiny_folder()), "batch_prompts": 2, "samples_per_prompt": 4, "policy.max_tokens": 4}
    options = settings.pop("task_options", {"score_truncated": True, "pool": 6})
    method = plan("f-dpg", "vowels", task_options=options, **{**defaults, "lr": 1e-2, **settings}).build()
    method.progress = 0.5  # after the warm-up
    return method


def distributions(seed=0):
    """Logits [X] with a gradient, log p [X] and log q [X] over a few outcomes."""
    rng = np.random.default_rng(seed)
    logits, target, proposal = (torch.from_numpy(rng.normal(size=OUTCOMES)) for _ in range(3))
    return logits.requires_grad_(), target.log_softmax(0), proposal.log_softmax(0)


def moved(method, seed=1, scale=0.05):
    """The method with a policy that has gone elsewhere."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in method.policy.parameters():
            weight += scale * torch.randn_like(weight)
    return method


# The estimator


@pytest.mark.parametrize("kind", KINDS)
def test_the_derivative_is_that_of_the_paper_up_to_a_constant(kind):
    t = np.linspace(0.05, 5, 40)
    t = t[t != 1]
    log_p = torch.zeros(len(t), dtype=torch.float64)
    log_prob = torch.from_numpy(np.log(t))
    _, reward = dpg_loss(log_prob, log_prob, log_p, torch.full_like(log_p, 1 / len(t)), kind)
    apart = reward.numpy() + PAPER[kind](t)
    np.testing.assert_allclose(apart, apart[0], atol=1e-12)
    assert apart[0] == pytest.approx({"reverse-kl": 1, "forward-kl": -1}.get(kind, 0), abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_the_expected_gradient_is_that_of_the_divergence(kind, baseline):
    """Over all outcomes, weighted with the probabilities of a proposal: exactly, whatever the baseline."""
    logits, log_p, log_q = distributions()
    log_prob = logits.log_softmax(0)
    loss, _ = dpg_loss(log_prob, log_q, log_p, log_q.exp(), kind, baseline)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    exact = (log_prob.exp() * divergence(log_prob, log_p, kind)).sum()  # sum_x p f(pi / p)
    (expected,) = torch.autograd.grad(exact, logits)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS[:4])
def test_many_samples_come_near_the_exact_gradient(kind):
    logits, log_p, log_q = distributions(1)
    drawn = torch.multinomial(log_q.exp(), 100_000, replacement=True, generator=torch.Generator().manual_seed(0))
    log_prob = logits.log_softmax(0)
    weight = torch.full((len(drawn),), 1 / len(drawn), dtype=torch.float64)
    loss, _ = dpg_loss(log_prob[drawn], log_q[drawn], log_p[drawn], weight, kind)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (exact,) = torch.autograd.grad((log_prob.exp() * divergence(log_prob, log_p, kind)).sum(), logits)
    assert torch.cosine_similarity(found, exact, 0) > 0.99
    assert found.norm() / exact.norm() == pytest.approx(1, abs=0.05)


def test_reverse_kl_is_reinforce_with_a_kl_penalty():
    """Sample by sample, with Z held fixed and the mean of the rewards as baseline on both sides."""
    logits, _, _ = distributions(2)
    rng = np.random.default_rng(2)
    log_a, reward, beta = torch.from_numpy(rng.normal(size=OUTCOMES)).log_softmax(0), torch.rand(OUTCOMES).double(), 0.3
    target = log_a + log_preference(reward, "reward", beta, 0.0)
    x = torch.randint(OUTCOMES, (64,))
    log_prob, weight = logits.log_softmax(0)[x], torch.full((64,), 1 / 64, dtype=torch.float64)
    log_p = target[x] - target.logsumexp(0)
    _, pseudo = dpg_loss(log_prob, log_prob.detach(), log_p, weight, "reverse-kl")
    loss, _ = dpg_loss(log_prob, log_prob.detach(), log_p, weight, "reverse-kl", float(pseudo.mean()))
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    penalized = (reward[x] - beta * (log_prob - log_a[x])).detach()
    (expected,) = torch.autograd.grad(-((penalized - penalized.mean()) * log_prob).mean(), logits)
    torch.testing.assert_close(beta * found, expected, rtol=1e-10, atol=1e-14)


def test_forward_kl_from_the_policy_is_dpg():
    logits, log_p, _ = distributions(3)
    x = torch.randint(OUTCOMES, (64,))
    log_prob, weight = logits.log_softmax(0)[x], torch.full((64,), 1 / 64, dtype=torch.float64)
    loss, _ = dpg_loss(log_prob, log_prob.detach(), log_p[x], weight, "forward-kl", baseline=-1.0)
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (dpg,) = torch.autograd.grad(-((log_p[x] - log_prob.detach()).exp() * log_prob).mean(), logits)
    torch.testing.assert_close(found, dpg, rtol=1e-10, atol=1e-14)


def test_the_two_targets():
    reward = torch.tensor([1.0, 0.5, 0.0, -2.0])
    np.testing.assert_allclose(log_preference(reward, "reward", 0.5, 0.1), [2, 1, 0, -4])
    np.testing.assert_allclose(log_preference(reward, "constraint", 0.5, 0.01).exp(), [1, 0.5, 0.01, 0.01], rtol=1e-6)
    assert log_preference(reward, "constraint", 0.5, 0.0).tolist()[2:] == [-math.inf, -math.inf]


# What must not be skipped


def z_by_hand(seen, batch, method, beta):
    """log Z of each row from the sums of P / q of `seen`, {prompt: [P/q of its samples]}, this batch added."""
    log_a = method.reference_policy.log_prob(batch).sum(1).detach()
    weight = (log_a + batch["reward"] / beta - batch["log_prob"].sum(1)).exp()
    for prompt, value in zip(batch["index"].tolist(), weight.tolist()):
        seen.setdefault(prompt, []).append(value)
    return torch.tensor([math.log(np.mean(seen[prompt])) for prompt in batch["index"].tolist()])


def test_must_1_z_runs_for_each_prompt_and_takes_in_the_batch_before_it_is_used(float64):
    method, seen = moved(f_dpg(beta=0.5), scale=0.2), {}
    for _ in range(6):
        batch = method.collect()
        expected = z_by_hand(seen, batch, method, 0.5)
        given = method.evaluate_target(batch)
        torch.testing.assert_close(given["log_z"], expected.to(given["log_z"]), rtol=1e-9, atol=1e-9)
        log_a = method.reference_policy.log_prob(batch).sum(1)
        torch.testing.assert_close(given["log_p"], log_a + batch["reward"] / 0.5 - given["log_z"])
        torch.testing.assert_close(given["row_weight"], torch.full((8,), 0.25))
    assert max(map(len, seen.values())) >= 8  # prompts came again
    assert len({round(float(value), 6) for value in given["log_z"]}) == 2  # and each has its own


@pytest.mark.parametrize("kind", ["jensen-shannon", "forward-kl", "total-variation"])
def test_must_1_the_reward_depends_on_z(kind):
    log_prob, log_p = torch.tensor([-1.0, -2.0]), torch.tensor([-1.3, -1.1])
    weight = torch.full((2,), 0.5)
    one, other = (dpg_loss(log_prob, log_prob, log_p - shift, weight, kind)[1] for shift in (0.0, 1.5))
    assert not torch.allclose(one - one.mean(), other - other.mean())


def test_must_2_the_importance_ratio_is_that_of_the_policy_as_it_is_now(float64):
    method = f_dpg(updates_per_batch=1, baseline_window=0)
    batch = method.evaluate_target(method.collect())
    moved(method, scale=0.05)
    (part,) = method.optimizer_batches(batch)
    loss, metrics = method.policy_loss(part)
    found = torch.autograd.grad(loss, list(method.policy.parameters()))
    log_prob = method.policy.log_prob(part).sum(1)
    importance = (log_prob - part["log_prob"].sum(1)).detach().exp()
    assert (importance - 1).abs().max() > 0.05
    t = (log_prob - part["log_p"]).detach().exp()
    by_hand = (importance * (2 * t / (t + 1)).log() * log_prob).mean()  # -R is f'
    for one, other in zip(found, torch.autograd.grad(by_hand, list(method.policy.parameters()))):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert float(metrics["importance"]) == pytest.approx(float(importance.mean()))
    m = (t + 1) / 2
    js = (importance * ((t / m).log() - m.log() / t)).mean()
    assert float(metrics["jensen_shannon"]) == pytest.approx(float(js))


@pytest.mark.parametrize("kind", KINDS)
def test_must_3_whole_sequences_far_from_the_target_stay_finite(kind):
    """float32, and log ratios of hundreds of nats in both directions."""
    log_prob = torch.tensor([-400.0, -1.0, -30.0], requires_grad=True)
    log_q, log_p = torch.tensor([-400.0, -1.0, -30.0]), torch.tensor([-10.0, -500.0, -30.0])
    loss, reward = dpg_loss(log_prob, log_q, log_p, torch.full((3,), 1 / 3), kind)
    (gradient,) = torch.autograd.grad(loss, log_prob)
    assert gradient.isfinite().all()
    assert reward[0] > 0 > reward[1]
    assert reward[2] == 0
    if kind == "jensen-shannon":
        assert reward[0].item() == pytest.approx(390 - math.log(2))
        assert reward[1].item() == pytest.approx(-math.log(2))


def test_must_3_the_log_probability_is_that_of_the_whole_completion(float64):
    method = f_dpg()
    batch = method.evaluate_target(method.collect())
    assert batch["mask"].sum(1).max() > 1
    tokens = method.policy.log_prob(batch).detach()
    torch.testing.assert_close(batch["log_q"], (tokens * batch["mask"]).sum(1))
    torch.testing.assert_close(batch["log_a"], batch["log_q"])  # at the start


@pytest.mark.parametrize("kind", ["jensen-shannon", "forward-kl", "total-variation", "forward-chi-squared"])
def test_must_4_p_may_be_zero(kind):
    method = f_dpg(target="constraint", floor=0.0, divergence=kind, batch_prompts=3)
    batch = method.collect()
    batch["reward"] = torch.tensor([1.0, 0.0, 0.0, 1.0, *[0.0] * 4, 0.0, 1.0, 0.0, 0.0])
    given = method.evaluate_target(batch)
    assert (given["log_p"] == -math.inf).tolist() == (batch["reward"] == 0).tolist()
    assert given["row_weight"].tolist() == [0.25] * 4 + [0.0] * 4 + [0.25] * 4  # Z of the second prompt is still 0
    _, reward = dpg_loss(given["log_q"], given["log_q"], given["log_p"], torch.ones(12) / 12, kind)
    least = {"jensen-shannon": -math.log(2), "forward-kl": -1, "total-variation": -0.5, "forward-chi-squared": -1}
    np.testing.assert_allclose(reward[given["log_p"] == -math.inf], least[kind], rtol=1e-6)
    metrics = method.update(batch)
    assert all(math.isfinite(value) for value in metrics.values())
    assert float(metrics["log_z"]) == pytest.approx((math.log(0.5) + math.log(0.25)) / 2, abs=1e-5)


def test_must_4_prompts_without_any_p_teach_nothing():
    method = f_dpg(target="constraint", floor=0.0, lr=1.0)
    before = [weight.clone() for weight in method.policy.parameters()]
    batch = method.collect()
    batch["reward"] = torch.zeros(8)
    assert all(math.isfinite(value) for value in method.update(batch).values())
    assert all(torch.equal(one, other) for one, other in zip(before, method.policy.parameters()))


def test_must_4_a_floor_is_part_of_p_and_z(float64):
    method = f_dpg(target="constraint", floor=0.25)
    batch = method.collect()
    batch["reward"] = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0])
    given = method.evaluate_target(batch)
    z = torch.tensor([(1 + 3 * 0.25) / 4] * 4 + [(2 + 2 * 0.25) / 4] * 4)
    torch.testing.assert_close(given["log_z"].exp(), z)
    torch.testing.assert_close((given["log_p"] - given["log_a"]).exp(), batch["reward"].clamp_min(0.25) / z)
    for kind in ("reverse-kl", "reverse-chi-squared"):
        with pytest.raises(UsageError, match="infinite where P = 0: give a floor above 0"):
            FDPG.Config(target="constraint", floor=0.0, divergence=kind)


@pytest.mark.parametrize("parts", [1, 2])
def test_must_5_the_baseline_is_of_earlier_steps(parts, float64):
    method, used, rewards = f_dpg(updates_per_batch=parts, baseline_window=12), [], []
    original = method.policy_loss

    def spy(part, baseline):
        used.append(baseline)
        return original(part, baseline)

    method.policy_loss = spy
    for _ in range(4):
        rewards.append(float(method.update(method.collect())["pseudo_reward"]))
    expected = [0.0, rewards[0], (rewards[0] + rewards[1]) / 2, (rewards[1] + rewards[2]) / 2]  # eight samples a step
    np.testing.assert_allclose(used, np.repeat(expected, parts))


def test_must_5_without_a_window_there_is_no_baseline():
    method = f_dpg(baseline_window=0)
    method.update(method.collect())
    assert method.baseline.mean == 0


# Around it


def test_failed_rows_are_in_no_mean(float64):
    method = f_dpg()
    batch = method.collect()
    batch["failed"] = torch.tensor([False, True, False, True, *[False] * 4])
    batch["mask"] = batch["mask"] & ~batch["failed"].unsqueeze(1)
    batch["log_prob"] = batch["log_prob"] * batch["mask"]
    given = method.evaluate_target(batch)
    assert given["row_weight"].tolist() == [0.5, 0, 0.5, 0, *[0.25] * 4]
    weight = method.weigh(given)["weight"]
    torch.testing.assert_close(weight, torch.tensor([0.25, 0, 0.25, 0, *[0.125] * 4]))  # prompts count alike
    kept = ~batch["failed"]
    same = f_dpg().evaluate_target(batch[kept])
    torch.testing.assert_close(given["log_z"][kept], same["log_z"])


def test_max_z_cuts_the_largest(float64):
    method = moved(f_dpg(target="constraint", max_z=0.02))
    batch = method.collect()
    batch["reward"] = torch.ones(8)
    given = method.evaluate_target(batch)
    np.testing.assert_allclose(given["log_z"].exp(), 0.02)
    found = (given["log_p"] + given["log_z"] - given["log_q"]).exp().reshape(2, 4)
    before = (given["log_a"] - given["log_q"]).exp().reshape(2, 4)
    np.testing.assert_allclose(found.mean(1), 0.02)
    assert ((found - before).abs() < 1e-12).any()
    assert (found < before).any()


def test_the_adaptive_proposal_follows_when_the_policy_is_nearer(float64):
    method = f_dpg(proposal="adaptive", proposal_every=2, proposal_window=1)
    start = gather(method.proposal)
    start = {name: value.clone() for name, value in start.items()}

    def same(state):
        now = gather(method.proposal)
        return all(torch.equal(now[name], state[name]) for name in now)

    assert method.behavior is method.proposal
    method.update(method.collect())
    assert not torch.equal(*(next(iter(each.parameters())) for each in (method.policy, method.proposal)))
    nearer = {"target_policy": torch.tensor(0.1), "target_proposal": torch.tensor(0.2)}
    farther = {"target_policy": torch.tensor(0.3), "target_proposal": torch.tensor(0.2)}
    method.improve_proposal(farther, 8)
    assert same(start)
    method.improve_proposal(nearer, 8)
    assert same(start)  # it is not time
    method.improve_proposal(nearer, 8)
    assert same(gather(method.policy))


def test_the_distances_of_policy_and_proposal_are_estimated_from_the_proposal(float64):
    method = moved(f_dpg(proposal="adaptive", proposal_metric="total-variation"), scale=0.1)
    (part,) = method.optimizer_batches(method.evaluate_target(method.collect()))
    _, metrics = method.policy_loss(part)
    log_prob = method.policy.log_prob(part).sum(1).detach()
    pi, q, p = log_prob.exp(), part["log_q"].exp(), part["log_p"].exp()
    assert float(metrics["target_policy"]) == pytest.approx(float(((pi - p).abs() / q / 2).mean()))
    assert float(metrics["target_proposal"]) == pytest.approx(float(((q - p).abs() / q / 2).mean()))
    assert float(metrics["kl_start"]) == pytest.approx(
        float((pi / q * (part["log_a"].exp() / pi - 1 + log_prob - part["log_a"])).mean())
    )


def test_options_without_effect_are_refused():
    for settings, message in [
        ({"floor": 0.1}, "no effect on the target 'reward'"),
        ({"target": "constraint", "beta": 1.0}, "no effect on the target 'constraint'"),
        ({"proposal_every": 3}, "where the policy is its own proposal"),
    ]:
        with pytest.raises(UsageError, match=message):
            FDPG.Config(**settings)


def test_a_restored_run_goes_on_exactly():
    def advance(method, count):
        return [{k: float(v) for k, v in method.update(method.collect()).items()} for _ in range(count)]

    one, other = f_dpg(seed=5), f_dpg(seed=5)
    advance(one, 3)
    flat = {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(one).items()}
    restore(moved(other), flat)
    random = torch.get_rng_state()
    expected = advance(one, 3)
    torch.set_rng_state(random)
    assert advance(other, 3) == expected


@pytest.mark.parametrize("preset", ["paper", "small"])
def test_presets_build(preset):
    method = plan("f-dpg", "vowels", preset=preset, model="tiny", **{"policy.max_tokens": 4}).build()
    assert method.config.divergence == "jensen-shannon"
    if preset == "paper":
        config = method.config
        assert (config.batch_prompts, config.samples_per_prompt, config.lr) == (1, 1024, 1.41e-5)
        assert config.lr_schedule.warmup == pytest.approx(12 / 1024)
        assert config.max_grad_norm is None


def test_it_reaches_a_constraint():
    """One letter, which must be an a: the model writes one of its hundred signs, and p is known exactly."""
    options = {"letters": 3, "length": 1, "patterns": "a", "pool": 1, "score_truncated": True}
    settings = {"batch_prompts": 1, "samples_per_prompt": 256, "lr": 1e-2, "target": "constraint", "seed": 3}
    method = plan(
        "f-dpg", "strings", task_options=options, model="tiny", **settings, **{"policy.max_tokens": 1}
    ).build()
    method.progress = 0.5
    log_a, right = method.task.distribution(method.policy, 0), method.task.right(0)
    target = (log_a + log_preference(right, "constraint", 1.0, 1e-3)).log_softmax(0)

    def apart():
        log_prob = method.task.distribution(method.policy, 0)
        return float((log_prob.exp() * divergence(log_prob, target, "jensen-shannon")).sum()), log_prob

    first, _ = apart()
    for _ in range(30):
        method.update(method.collect())
    last, log_prob = apart()
    assert last < 0.2 * first
    assert (log_prob.exp() * right).sum() > 0.7 > 0.1 > (log_a.exp() * right).sum()
    seen = math.exp(method.partition._seen[0][0]) / method.partition._seen[0][1]
    assert seen == pytest.approx(float((log_a.exp() * right.clamp_min(1e-3)).sum()), rel=0.2)


def test_never_is_beyond_every_bounded_derivative():
    assert log_ratio(torch.tensor([-3.0, -3.0]), torch.tensor([-math.inf, -4.0])).tolist() == [NEVER, 1.0]
