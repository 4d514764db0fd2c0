"""CoPG: the loss and its gradient, where it is least, what it is at its limits, and which pairs have which rewards."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.losses.pairwise import pairwise
from polopt.methods.language.copg import copg, regularized
from polopt.training import api
from polopt.values import GroupBaseline
from polopt.values.groups import group_advantage
from tests.guards.harness import built as smoke_built
from tests.guards.harness import plan
from tests.methods.pairs import CLOSE, ROWS, answers, built, gradient, log_probs, without

MUST = 5

BETA = 0.3
SCORES = ((0.9, 0.4), (-0.3, 1.1), (0.25, 0.25))  # the second pair is the other way round
PAIRS = [
    row | {"chosen_reward": high, "rejected_reward": low}
    for row, (high, low) in zip(without(ROWS, "baseline"), SCORES, strict=True)
]


def bandit(seed=0, arms=5):
    """Rewards, log pi_ref, a skewed behavior mu (all [A]): most of mu is on bad arms."""
    torch.manual_seed(seed)
    reward, start = 2 * torch.rand(arms), torch.randn(arms).log_softmax(0)
    return reward, start, (-2 * reward).softmax(0)


def expected_loss(log_prob, reward, start, often):
    """The loss with every pair as often as `often` [A, A] says."""
    h = log_prob - start
    gap, margin = (each.unsqueeze(1) - each for each in (reward, h))
    return copg(gap.flatten(), margin.flatten(), BETA, often.flatten())


# Equations


def test_the_loss_by_hand(float64):
    """Two pairs: (1 - 0.4 * 0.5)^2 / 1.6 and (0 - 0.4 * -1)^2 / 1.6."""
    gap, margin, weight = torch.tensor([1.0, 0.0]), torch.tensor([0.5, -1.0]), torch.tensor([0.75, 0.25])
    assert copg(gap, margin, 0.4, weight).item() == pytest.approx(0.75 * 0.4 + 0.25 * 0.1)
    assert regularized(gap, margin, 0.4).tolist() == pytest.approx([0.8, 0.4])
    with pytest.raises(ValueError, match="shapes must be equal"):
        copg(gap, margin, 0.4, weight.unsqueeze(1))


def test_must_1_the_gradient_is_that_of_reinforce_with_the_other_for_a_baseline(float64):
    """And it flows through both rewards: the detached form with either side alone is another one."""
    reward, start, _ = bandit()
    logits = torch.randn(5).requires_grad_()
    one, other = torch.tensor([0, 1, 1, 4]), torch.tensor([2, 0, 3, 4])
    log_prob = logits.log_softmax(0)
    h = log_prob - start
    loss = copg(reward[one] - reward[other], h[one] - h[other], BETA, torch.full((4,), 0.25))
    (found,) = torch.autograd.grad(loss, logits, retain_graph=True)

    value = regularized(reward, h, BETA).detach()
    ahead = value[one] - value[other]
    left, right = (
        torch.autograd.grad((-0.5 * sign * ahead * log_prob[side]).mean(), logits, retain_graph=True)[0]
        for sign, side in ((1.0, one), (-1.0, other))
    )
    torch.testing.assert_close(found, left + right)
    assert min((found - left).abs().max(), (found - right).abs().max(), (found - 2 * left).abs().max()) > 0.01


def test_on_pairs_of_the_policy_it_is_the_gradient_of_the_objective(float64):
    reward, start, _ = bandit(1)
    logits = torch.randn(5).requires_grad_()
    log_prob = logits.log_softmax(0)
    probability = log_prob.exp()
    often = (probability.unsqueeze(1) * probability).detach()
    objective = (probability * (reward - BETA * (log_prob - start))).sum()
    (wanted,) = torch.autograd.grad(objective, logits, retain_graph=True)
    (found,) = torch.autograd.grad(expected_loss(log_prob, reward, start, often), logits)
    torch.testing.assert_close(found, -wanted, rtol=0, atol=1e-12)
    assert wanted.abs().max() > 0.01


@pytest.mark.parametrize("paired", [False, True])
def test_must_3_wherever_pairs_come_from_it_is_least_at_the_optimum(float64, paired):
    """pi* for graded rewards, from mu that is all but blind to good arms; or from neighbors alone, each with the next.

    With rewards cut down to their order it is least elsewhere.
    """
    reward, start, mu = bandit(2)
    often = mu.unsqueeze(1) * mu
    if paired:
        often = often * torch.diag(torch.ones(4), 1)
    wanted = (start + reward / BETA).log_softmax(0)

    solver = {"max_iter": 500, "tolerance_grad": 1e-14, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}

    def least(values):
        logits = torch.zeros(5, requires_grad=True)
        optimizer = torch.optim.LBFGS([logits], **solver)

        def closure():
            optimizer.zero_grad()
            loss = expected_loss(logits.log_softmax(0), values, start, often)
            loss.backward()
            return loss

        return optimizer.step(closure), logits.detach().log_softmax(0)

    _, found = least(reward)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    _, binary = least(reward.argsort().argsort() / 4.0)
    assert (binary - wanted).abs().max() > 0.1


def test_of_groups_it_is_half_the_variance(float64):
    """The unbiased variance of R_pi over K samples is half the mean over all pairs of different ones, times 2 beta."""
    gap = torch.randn(6)
    one, other = (index.flatten() for index in torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij"))
    one, other = one[one != other], other[one != other]
    h = torch.randn(6)
    loss = copg(gap[one] - gap[other], h[one] - h[other], BETA, torch.full((30,), 1 / 30))
    assert loss.item() == pytest.approx((gap - BETA * h).var().item() / (2 * BETA))


@pytest.mark.parametrize("tau", [0.3, 4.0])
def test_rewards_that_are_one_half_apart_are_ipo(float64, tau):
    """tau^2 times its loss, over 4 tau; at tau = 4 bitwise."""
    chosen, rejected, weight = torch.randn(7), torch.randn(7), torch.full((7,), 1 / 7)
    high, low = torch.full((7,), 0.25), torch.full((7,), -0.25)
    found = copg(high - low, chosen - rejected, tau, weight)
    ipo = pairwise(chosen, rejected, tau, weight, kind="ipo")
    assert found.item() == pytest.approx(tau / 4 * ipo.item(), abs=1e-6)
    assert tau != 4 or torch.equal(found, ipo)


def test_two_samples_are_rloo_on_regularized_rewards(float64):
    reward, start, _ = bandit(3)
    logits = torch.randn(5).requires_grad_()
    drawn, log_prob = torch.tensor([0, 3, 1, 1, 4, 2]), logits.log_softmax(0)
    h = log_prob[drawn] - start[drawn]
    value, group = regularized(reward[drawn], h, BETA).detach(), torch.arange(3).repeat_interleave(2)
    advantage = group_advantage(GroupBaseline(baseline="leave-one-out"), value, group)
    (rloo,) = torch.autograd.grad(-(advantage * log_prob[drawn]).mean(), logits, retain_graph=True)
    gap, margin = (each[::2] - each[1::2] for each in (reward[drawn], h))
    (found,) = torch.autograd.grad(copg(gap, margin, BETA, torch.full((3,), 1 / 3)), logits)
    torch.testing.assert_close(found, rloo)


# The method


def test_must_2_the_gradient_of_a_batch_sums_over_the_tokens_of_both_answers(tmp_path, float64):
    """Row by row, with the prompt of the pair before both, and with real rewards, the higher one first."""
    method, batch = built("copg", tmp_path, PAIRS, beta=BETA)
    assert torch.equal(batch["chosen", "prompt"], batch["rejected", "prompt"])
    texts = [method.policy.decode(batch[side, "completion"], batch[side, "mask"]) for side in ("chosen", "rejected")]
    assert texts == [["2", "12", "good day"], ["eleven", "three", "go"]]
    sides = {side: answers(method.policy, batch[side]) for side in ("chosen", "rejected")}
    ratios = {side: sides[side][0] - log_probs(method.reference_policy, batch[side]) for side in sides}
    gap, margin = np.array([0.5, 1.4, 0.0]), ratios["chosen"] - ratios["rejected"]
    ahead = gap - BETA * margin
    expected = (-ahead[:, None] / 2 * (sides["chosen"][1] - sides["rejected"][1])).mean(0)
    loss, metrics = method.policy_loss(batch)
    np.testing.assert_allclose(gradient(loss, method.policy), expected, rtol=1e-4, atol=CLOSE)
    assert np.abs(expected).max() > 1e-2
    assert loss.item() == pytest.approx((ahead**2).mean() / (4 * BETA), rel=1e-5)
    assert metrics["pair_loss"].item() == loss.item()
    assert metrics["gap"].item() == pytest.approx(gap.mean())
    assert metrics["pull"].item() == pytest.approx(gap.mean() / BETA)
    assert metrics["reward"].item() == pytest.approx((0.9 + 0.4 - 0.3 + 1.1 + 0.5) / 6)
    assert metrics["margin"].item() == pytest.approx(BETA * margin.mean(), abs=1e-5)
    assert metrics["preferred"].item() == pytest.approx((margin > 0).mean())


def test_must_4_the_reference_stays_and_ends_count(tmp_path, float64):
    method, batch = built("copg", tmp_path, PAIRS, beta=BETA, lr=1e-3)
    end = method.policy.tokenizer.eos_token_id
    for side in ("chosen", "rejected"):
        last = batch[side, "mask"].sum(1) - 1
        assert batch[side, "completion"][torch.arange(3), last].eq(end).all()
        expected = log_probs(method.reference_policy, batch[side])
        assert batch[side, "reference_log_prob"].sum(1).tolist() == pytest.approx(expected.tolist())
        assert not batch[side, "reference_log_prob"].requires_grad
        with torch.no_grad():
            ratio = method.policy.log_prob(batch[side]) - batch[side, "reference_log_prob"]
        assert ratio[torch.arange(3), last].abs().min() > 1e-3  # of the end alone
    before = [value.clone() for value in method.reference_policy.parameters()]
    moving = [value.clone() for value in method.policy.parameters()]
    for _ in range(2):
        method.update(method.collect())
    assert all(torch.equal(one, other) for one, other in zip(before, method.reference_policy.parameters()))
    assert not any(torch.equal(one, other) for one, other in zip(moving, method.policy.parameters()))


def test_must_5_pairs_of_equal_rewards_pull_log_ratios_together(tmp_path, float64):
    torch.manual_seed(0)
    rows = [row | {"chosen_reward": 0.5, "rejected_reward": 0.5} for row in PAIRS]
    method, batch = built("copg", tmp_path, rows, beta=BETA, lr=1e-3, batch_size=3)
    before = method.policy_loss(batch)[0].item()
    for _ in range(20):
        metrics = method.update(method.collect())
    assert before > 0.1
    assert metrics["pair_loss"] < before / 10
    assert metrics["gap"] == metrics["pull"] == 0


def test_graded_rewards_are_fitted_and_not_only_ordered(tmp_path, float64):
    """In the end log ratios are reward / beta apart, as of pi*."""
    torch.manual_seed(0)
    method, _ = built("copg", tmp_path, PAIRS, beta=BETA, lr=5e-3, batch_size=3)
    for _ in range(50):
        metrics = method.update(method.collect())
    batch = method.score_reference(method.source.data)
    ratios = [
        log_probs(method.policy, batch[side]) - batch[side, "reference_log_prob"].sum(1).numpy()
        for side in ("chosen", "rejected")
    ]
    assert BETA * (ratios[0] - ratios[1]) == pytest.approx([0.5, 1.4, 0.0], abs=0.05)
    assert metrics["margin"].item() == pytest.approx(metrics["gap"].item(), abs=0.05)


# Recorded pairs


def test_without_columns_the_task_says_what_answers_are_worth(float64):
    with smoke_built("copg", "addition", data="recorded", epochs=1, pairs=6) as method:
        data = method.source.data
        assert data["chosen", "reward"].tolist() == [1.0] * 6
        assert data["rejected", "reward"].tolist() == [0.0] * 6
        assert data["row_weight"].tolist() == [1.0] * 6
        assert method.ledger.completions == 0
    with smoke_built("copg", data="recorded", epochs=1, pairs=6) as method:  # vowels
        data = method.source.data
        for side in ("chosen", "rejected"):
            texts = method.policy.decode(data[side, "completion"], data[side, "mask"])
            assert data[side, "reward"].tolist() == [sum(letter in "aeiou" for letter in t) / 4 for t in texts]
        assert data["chosen", "reward"].gt(data["rejected", "reward"]).all()
        assert data["chosen", "reward"].unique().numel() > 1


def length(prompt, completion, **columns):
    if completion == "eleven":
        raise ValueError("I cannot count")
    return len(prompt) + len(completion) / 10


def test_rewards_that_fail_leave_their_pairs_out(tmp_path, float64):
    options = {"task_options": {"rewards": length}}
    method, batch = built("copg", tmp_path, without(PAIRS, "chosen_reward", "rejected_reward"), beta=BETA, **options)
    assert batch["row_weight"].tolist() == [0.0, 1.0, 1.0]
    assert batch["chosen", "reward"][1:].tolist() == pytest.approx([4.5, 5.8])  # three, good day
    assert batch["rejected", "reward"][1:].tolist() == pytest.approx([4.2, 5.2])
    loss, metrics = method.policy_loss(batch)
    torch.testing.assert_close(loss, method.policy_loss(method.score_reference(method.source.data[1:]))[0])
    assert metrics["gap"].item() == pytest.approx(0.45)


@pytest.mark.parametrize("wrong", [None, "good", float("nan")])
def test_a_reward_that_is_no_number_is_refused(tmp_path, wrong):
    rows = [PAIRS[0], PAIRS[1] | {"rejected_reward": wrong}]
    with pytest.raises(UsageError, match=r"^prompt 1 of .* has no number as its 'rejected_reward', but others do$"):
        built("copg", tmp_path, rows)


def test_pairs_without_rewards_are_refused(tmp_path):
    rows = without(PAIRS, "chosen_reward", "rejected_reward")
    with pytest.raises(UsageError, match=r"has no columns 'chosen_reward' and 'rejected_reward', and cannot score"):
        built("copg", tmp_path, rows)
    with pytest.raises(UsageError, match="cannot score answers in one turn"):
        api.plan("copg", "guess", model="tiny").build()


@pytest.mark.parametrize("settings", [{"epochs": 2}, {"policy.engine": "vllm"}])
def test_what_only_samples_have_is_refused_of_recorded_pairs(settings):
    with pytest.raises(UsageError, match="has no effect"):
        api.plan("copg", "addition", model="tiny", **settings)


# Sampled pairs


def test_pairs_are_two_answers_of_the_policy_to_one_prompt(float64):
    with smoke_built("copg") as method:
        assert method.behavior is method.policy
        batch = method.source.source.next(method.policy)
        assert len(batch) == 16
        batch["failed"][3] = True
        made = method.sampled_pairs(batch)
        assert torch.equal(made["chosen", "prompt"], made["rejected", "prompt"])
        reward = batch["reward"].reshape(8, 2)
        assert torch.equal(made["chosen", "reward"], reward.max(1).values)
        assert torch.equal(made["rejected", "reward"], reward.min(1).values)
        assert made["row_weight"].tolist() == [1, 0, *[1] * 6]
        for row, (one, other) in enumerate(zip(batch[::2], batch[1::2])):
            high, low = (other, one) if other["reward"] > one["reward"] else (one, other)
            assert torch.equal(made["chosen", "completion"][row], high["completion"])
            assert torch.equal(made["rejected", "mask"][row], low["mask"])
        assert reward[:, 1].gt(reward[:, 0]).any()
        assert reward[:, 1].lt(reward[:, 0]).any()


def test_rounds_are_drawn_anew_against_the_same_reference(float64):
    """Two passes over 8 prompts in batches of 4: four steps a round."""
    with smoke_built("copg") as method:
        start = [value.clone() for value in method.policy.parameters()]
        for number in range(8):
            assert method.source.finished == (number % 4 == 0)
            method.update(method.collect())
            assert method.ledger.completions == 16 * (1 + number // 4)
        assert all(torch.equal(one, other) for one, other in zip(start, method.reference_policy.parameters()))
        assert method.derived(method.config, 8) == {
            "completions per round": 16,
            "optimizer steps per round": 4,
            "rounds": 2,
        }
    recorded = plan("copg", "addition", data="recorded", epochs=1)
    assert recorded.build().derived(recorded.config, 8) == {}


# Evaluation


def test_the_objective_is_that_of_one_token_by_enumeration(float64):
    """Of answers with one token all is known: KL, expected reward and the objective, over the whole vocabulary."""
    options = {"task_options": {"score_truncated": True, "pool": 2, "heldout": False}, "policy": {"max_tokens": 1}}
    method = api.plan("copg", "vowels", model="tiny", data="sampled", beta=BETA, **options).build()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    kl = reward = 0.0
    for problem in method.task.problems(range(2)):
        rows = method.policy.tokenize([problem.prompt] * method.policy.vocabulary, ["a"] * method.policy.vocabulary)
        rows = rows.clone()
        for name in ("completion", "attention", "mask"):
            rows[name] = rows[name][:, :1]
        rows["completion"] = torch.arange(method.policy.vocabulary).unsqueeze(1)
        with torch.no_grad():
            pi, ref = (each.log_prob(rows).squeeze(1) for each in (method.policy, method.reference_policy))
        known = pi.isfinite()
        assert pi.exp().sum().item() == pytest.approx(1, abs=1e-5)
        kl += (pi.exp() * (pi - ref))[known].sum().item() / 2
        texts = method.policy.env_action(rows["completion"])
        reward += sum(pi[index].exp().item() for index, text in enumerate(texts) if text in list("aeiou")) / 2
    count = 4_000
    found = method.evaluate_objective(method.task, count)
    assert kl > 0.05
    assert found["kl"] == pytest.approx(kl, abs=5 * (2 * kl / count) ** 0.5)
    assert found["objective"] + BETA * found["kl"] == pytest.approx(reward, abs=5 * (reward / count) ** 0.5)


def test_evaluation_says_what_it_can(tmp_path):
    with smoke_built("copg", data="recorded", epochs=1) as method:
        scores = method.evaluate(method.task, 4)
        assert scores.keys() >= {"return", "preferred", "margin", "kl", "objective"}
        assert scores["kl"] == pytest.approx(0, abs=1e-5)
    with smoke_built("copg") as method:
        scores = method.evaluate(method.task, 4)
        assert scores.keys() >= {"return", "kl", "objective"}
        assert "preferred" not in scores
    method, _ = built("copg", tmp_path, PAIRS, policy={"max_tokens": 4})
    scores = method.evaluate(method.task, 3)  # columns only: new answers cannot be scored
    assert scores["return"] == scores["preferred"]
    assert "objective" not in scores


@pytest.mark.parametrize("preset", ["tldr", "on-policy", "small"])
def test_presets(preset):
    small = {"model": "tiny", "policy": {"max_tokens": 4}, "task_options": {"score_truncated": True}}
    method = api.plan("copg", "vowels", preset=preset, **small).build()
    config = method.config
    if preset == "on-policy":
        assert method.derived(config, 10) == {"completions per round": 128, "optimizer steps per round": 1} | {
            "rounds": 10
        }
    assert config.data == ("recorded" if preset == "tldr" else "sampled")
