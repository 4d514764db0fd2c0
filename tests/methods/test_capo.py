"""CAPO against torch's own Adam, exact changes of the policy, autograd and numbers by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.losses.estimator import token_weights
from polopt.methods.language.capo import CAPO, passes, reweighed, shifts, upper
from polopt.optim import shadow
from polopt.optim.shadow import ShadowAdam
from polopt.training import api
from polopt.training.api import plan
from tests.policies.language_models import tiny_folder

MUST = 5
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8}
WIDTH = 4


def method(**settings):
    """For words of two consonants, on a tiny model whose distributions are far from uniform; nothing is rejected."""
    defaults = {"model": str(tiny_folder()), "batch_prompts": 2, "samples_per_prompt": 4, "policy.max_tokens": WIDTH}
    options = {"score_truncated": True}
    free = {"policy_bound": None, "objective_bound": None, "lr": 1e-3}
    return plan("capo", "vowels", task_options=options, **{**defaults, **free, **settings}).build()


def batch_of(learner, seed=0):
    """What one optimizer step sees: rewards that differ within each group."""
    torch.manual_seed(seed)
    batch = learner.collect()
    batch["reward"] = torch.tensor([1.0, 0.0, 0.25, 0.0, 0.5, 0.5, 1.0, 0.0])[: len(batch)]
    (part,) = learner.optimizer_batches(learner.evaluate_groups(batch))
    return part


def tokens_of(learner, part):
    """states h / temperature [N, H], token [N] and advantage [N] of the decisions of a batch."""
    advantage = part["advantage"].unsqueeze(1).expand_as(part["mask"])
    joined = learner.policy.of_states(
        part, lambda states, logits, token, a: torch.cat((states, token.unsqueeze(1), a.unsqueeze(1)), 1), advantage
    )[part["mask"]].detach()
    return joined[:, :-2] / learner.config.policy.temperature, joined[:, -2].long(), joined[:, -1]


def log_probs(learner, matrix, states, token):
    """log pi [N, V] with the head `matrix`, over the tokens that may be sampled."""
    logits = (states @ matrix.T).masked_fill(learner.policy.unknown_ids(), float("-inf"))
    return learner.policy.cut(logits, token).log_softmax(-1)


def gradients(learner, part):
    """Of A log pi in the head, by autograd: [N, V, H]."""
    states, token, advantage = tokens_of(learner, part)
    head = learner.policy.passes.head.weight.detach().clone().requires_grad_()
    chosen = log_probs(learner, head, states, token).gather(1, token.unsqueeze(1)).squeeze(1)
    return torch.stack([torch.autograd.grad(a * x, head, retain_graph=True)[0] for a, x in zip(advantage, chosen)])


def measured(learner, part):
    """m_H, m_F and what passed, of each decision [N]: what `select` asks of the policy."""
    found, original = [], learner.policy.of_states
    learner.policy.of_states = lambda rows, *rest: (
        found.append(original(rows, *rest)[rows["mask"]])
        or original(rows, lambda states, *rest: states.new_zeros(len(states), 3))
    )
    try:
        learner.select(part)
    finally:
        del learner.policy.of_states
    return found[0].unbind(1)


# The trial step


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_must_1_a_trial_is_adams_own_step_on_one_token(kind, float64):
    torch.manual_seed(0)
    weight = torch.randn(5, 3, requires_grad=True)
    adam = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]([weight], lr=0.1, maximize=True, **ADAM)
    adam.param_groups[0]["weight_decay"] = 0.0
    moments = ShadowAdam(**ADAM)
    for _ in range(4):  # real steps, of which the shadow sees sum and count
        mean = torch.randn(5, 3)
        weight.grad = mean
        adam.step()
        moments.step(7.0 * mean, torch.full((5,), 7.0))
    states, slope = torch.randn(3), torch.randn(5)
    before = weight.detach().clone()
    weight.grad = slope.unsqueeze(1) * states
    adam.step()
    found = moments.moves(states.unsqueeze(0), slope.unsqueeze(0))
    torch.testing.assert_close(found, ((weight.detach() - before) @ states).unsqueeze(0) / 0.1)


def test_must_1_without_moments_the_trial_is_the_gradient(float64):
    torch.manual_seed(0)
    states, slope = torch.randn(4, 3), torch.randn(4, 5)
    gradient = slope.unsqueeze(2) * states.unsqueeze(1)
    found = ShadowAdam(**ADAM).moves(states, slope)
    torch.testing.assert_close(found, (gradient @ states.unsqueeze(2)).squeeze(2))


def test_must_1_sgd_has_no_moments():
    learner = method(trial="sgd")
    learner.update(learner.collect())
    assert learner.shadow.first is None
    assert learner.shadow.steps == 0


def test_rows_and_pieces_change_nothing(monkeypatch, float64):
    torch.manual_seed(0)
    moments = ShadowAdam(**ADAM)
    moments.step(torch.randn(6, 3), torch.ones(6))
    states, slope = torch.randn(5, 3), torch.randn(5, 6)
    ids = torch.stack([torch.randperm(6)[:2] for _ in range(5)])
    whole = moments.moves(states, slope)
    torch.testing.assert_close(moments.moves(states, slope.gather(1, ids), ids), whole.gather(1, ids))
    monkeypatch.setattr(shadow, "PIECE", 2 * 6 * 3)  # two tokens at a time
    torch.testing.assert_close(moments.moves(states, slope), whole)
    torch.testing.assert_close(moments.moves(states, slope.gather(1, ids), ids), whole.gather(1, ids))


def test_a_row_of_no_token_keeps_its_moments(float64):
    moments = ShadowAdam((0.5, 0.75), 1e-8)
    moments.step(torch.tensor([[4.0], [6.0]]), torch.tensor([2.0, 3.0]))  # means 2 and 2
    moments.step(torch.tensor([[0.0], [3.0]]), torch.tensor([0.0, 1.0]))
    assert moments.steps == 2
    assert moments.first.tolist() == [[1.0], [0.5 * 1 + 0.5 * 3]]
    assert moments.second.tolist() == [[1.0], [0.75 * 1 + 0.25 * 9]]
    moments.step(torch.zeros(2, 1), torch.zeros(2))  # none at all: only the count goes on
    assert moments.steps == 3
    assert moments.first.tolist() == [[1.0], [2.0]]


# The shifts


@pytest.mark.parametrize("seed", range(3))
def test_must_2_the_shifts_are_those_of_the_policy_to_second_order(seed, float64):
    torch.manual_seed(seed)
    head, states, advantage = torch.randn(6, 4), torch.randn(8, 4), torch.randn(8)
    token = torch.randint(6, (8,))
    moments = ShadowAdam(**ADAM)
    moments.step(torch.randn(6, 4), torch.ones(6))
    pi = (states @ head.T).softmax(-1)
    score = torch.nn.functional.one_hot(token, 6) - pi
    move = moments.moves(states, advantage.unsqueeze(1) * score)
    gap, kl_gap, odd = [], [], []
    for lr in (2e-3, 1e-3):
        new = (states @ head.T + lr * move).softmax(-1)  # the step on the matrix, seen by its own token
        objective, policy = shifts(move, pi, score, advantage, lr, "expected")
        ratio = (new / pi).gather(1, token.unsqueeze(1)).squeeze(1)
        kl = (pi * (pi.log() - new.log())).sum(-1)
        gap.append((objective - advantage * (ratio - 1)).abs())
        kl_gap.append((policy - kl).abs())
        odd.append((policy - kl).abs() / kl)
    assert (gap[0] > 6 * gap[1]).all()
    assert (gap[0] < 10 * gap[1]).all()
    assert kl_gap[0].sum() > 6 * kl_gap[1].sum()
    assert odd[1].max() < 1e-2


def test_must_2_the_move_is_that_of_a_step_on_the_matrix(float64):
    """J(W + lr U) - J(W) of each token of a batch of a model, U by Adam's formula on the gradient of autograd."""
    learner = method(lr=1e-4, **{"policy.temperature": 0.8})
    for seed in (0, 1):
        learner.select(batch_of(learner, seed))
    part = batch_of(learner, 2)
    states, token, advantage = tokens_of(learner, part)
    head, lr = learner.policy.passes.head.weight.detach(), learner.config.lr
    first, second, step = learner.shadow.first.clone(), learner.shadow.second.clone(), learner.shadow.steps + 1
    assert step == 3
    objective, policy, _ = measured(learner, part)
    for each, gradient in enumerate(gradients(learner, part)):
        p, q = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        direction = (p / (1 - 0.9**step)) / ((q / (1 - 0.999**step)).sqrt() + 1e-8)
        one = slice(each, each + 1)
        change = [(log_probs(learner, head + sign * lr * direction, states[one], token[one]))[0] for sign in (-1, 0, 1)]
        ratio = [(x[token[each]] - change[1][token[each]]).exp() - 1 for x in change]
        assert objective[each].item() == pytest.approx(float(advantage[each] * ratio[2]), rel=1e-3, abs=1e-12)
        slope = (change[2][token[each]] - change[0][token[each]]) / (2 * lr)  # of log pi along the step
        assert policy[each].item() == pytest.approx(float(0.5 * lr**2 * slope**2), rel=1e-3, abs=1e-12)


def test_must_2_averaged_over_actions_the_sampled_shift_is_the_expected_one(float64):
    torch.manual_seed(0)
    pi, move = torch.randn(6).softmax(-1), torch.randn(6)
    score = torch.eye(6) - pi
    sampled = [shifts(move, pi, row, torch.tensor(1.0), 0.1)[1] for row in score]
    expected = shifts(move, pi, score[0], torch.tensor(1.0), 0.1, "expected")[1]
    assert (pi * torch.stack(sampled)).sum().item() == pytest.approx(expected.item())
    objective = [shifts(move, pi, row, torch.tensor(1.0), 0.1)[0] for row in score]  # pi' / pi - 1 has mean 0
    assert (pi * torch.stack(objective)).sum().item() == pytest.approx(0.0, abs=1e-15)


def test_must_2_shifts_by_hand(float64):
    pi, move = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[2.0, 0.0, -2.0]])
    score = torch.tensor([[0.5, -0.25, -0.25]])
    # v.u = 1 + 0.5 = 1.5; mean of u 0.5, variance 0.5 * 4 + 0.25 * 4 - 0.25 = 2.75; v.u^2 - variance = -0.5
    for advantage in (1.0, -2.0):
        objective, policy = shifts(move, pi, score, torch.tensor([advantage]), 0.1)
        assert objective.item() == pytest.approx(advantage * (0.1 * 1.5 - 0.005 * 0.5))
        assert policy.item() == pytest.approx(0.005 * 2.25)
    assert shifts(move, pi, score, torch.tensor([1.0]), 0.1, "expected")[1].item() == pytest.approx(0.005 * 2.75)


# What passes


def test_must_2_both_tests_must_be_passed():
    objective = torch.tensor([0.0, 0.5, -0.5, 1.0, -1.0, 0.5, 2.0, -0.0])
    policy = torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0, 2.0, 3.0, 1.9])

    def stay(within, below, test="symmetric"):
        return passes(objective, policy, (within, below), test).tolist()

    assert stay(1.0, 2.0) == [True, True, True, False, False, False, False, True]  # both strict
    assert stay(1.0, 2.0, "increase") == [True, True, False, False, False, False, False, True]
    assert stay(None, 2.0) == [True, True, True, True, True, False, False, True]
    assert stay(1.0, None) == [True, True, True, False, False, True, False, True]
    assert stay(None, None) == [True] * 8


def test_must_3_only_what_passed_moves_the_moments(float64):
    learner = method()
    learner.select(batch_of(learner, 0))
    part = batch_of(learner, 1)
    gradient = gradients(learner, part)
    before = learner.shadow.first.clone(), learner.shadow.second.clone()
    _, policy, _ = measured(method(), part)
    learner.config = replace(learner.config, policy_bound=float(policy.median()) or 1e-9)
    _, _, passed = measured(learner, part)
    assert 0 < passed.sum() < len(passed)
    mean = gradient[passed.bool()].mean(0)
    torch.testing.assert_close(learner.shadow.first, 0.9 * before[0] + 0.1 * mean)
    torch.testing.assert_close(learner.shadow.second, 0.999 * before[1] + 0.001 * mean**2)
    assert learner.shadow.steps == 2


def test_must_3_where_nothing_passes_the_moments_stay():
    learner = method()
    learner.select(batch_of(learner, 0))
    before = learner.shadow.first.clone(), learner.shadow.second.clone()
    learner.config = replace(learner.config, objective_test="increase", objective_bound=1e-30, policy_bound=1e-30)
    part, metrics = learner.select(batch_of(learner, 1))
    assert torch.equal(learner.shadow.first, before[0])
    assert torch.equal(learner.shadow.second, before[1])
    assert learner.shadow.steps == 2
    assert float(metrics["rejected"]) > 0.5
    assert torch.isfinite(part["weight"]).all()


def test_must_4_the_rate_is_the_present_one(float64):
    learner = method(lr_schedule="linear")
    learner.select(batch_of(learner, 0))
    kept = learner.shadow.extra_state()
    part, found = batch_of(learner, 1), {}
    for progress in (0.0, 0.5):
        learner.progress = progress
        learner.shadow.load_extra_state(kept)
        learner.shadow.steps = 1
        found[progress] = measured(learner, part)[1]
    assert found[0.0].max() > 0
    torch.testing.assert_close(found[0.0], 4 * found[0.5])


def test_must_4_single_precision_and_no_graph_also_of_a_model_in_half():
    learner = method(**{"policy.dtype": "bfloat16"})
    part, metrics = learner.select(batch_of(learner))
    assert learner.shadow.first.dtype == torch.float32
    assert not part["weight"].requires_grad
    assert not learner.shadow.first.requires_grad
    learner.step_on(batch_of(learner, 1))
    assert learner.shadow.steps == 2
    assert float(metrics["policy_shift_95"]) > 0


def test_must_5_what_is_left_out_is_out_of_the_loss_and_of_the_length(float64):
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    passed = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]]).double()
    third = 1 / 3
    expected = {
        "sequence": [[third / 2, 0, third / 2, 0], [0] * 4, [third, 0, 0, 0]],  # the second row counts
        "constant": [[third / 5, 0, third / 5, 0], [0] * 4, [third / 5, 0, 0, 0]],
        "sum": [[third, 0, third, 0], [0] * 4, [third, 0, 0, 0]],
        "token": [[third, 0, third, 0], [0] * 4, [third, 0, 0, 0]],
    }
    for kind, weights in expected.items():
        found = reweighed(token_weights(mask, kind, 5), mask, passed, kind)
        torch.testing.assert_close(found, torch.tensor(weights, dtype=torch.float64))
        assert torch.equal(reweighed(token_weights(mask, kind), mask, mask, kind), token_weights(mask, kind))
    # Rows that count 2, 1 and 0 times
    rows = torch.tensor([2.0, 1.0, 0.0])
    for kind, first in {"sequence": third, "token": 0.5, "sum": 2 * third}.items():
        found = reweighed(token_weights(mask, kind, rows=rows), mask, passed, kind, rows)
        torch.testing.assert_close(found[0], torch.tensor([first, 0, first, 0], dtype=torch.float64))
        assert not found[1:].any()


@pytest.mark.parametrize("preset", [None, "dr-capo"])
def test_must_5_the_gradient_is_that_of_the_tokens_that_passed(preset, float64):
    learner = method(preset=preset)
    learner.select(batch_of(learner, 0))
    part = batch_of(learner, 1)
    advantage = part["advantage"].clone()
    _, policy, _ = measured(method(preset=preset), part)
    learner.config = replace(learner.config, policy_bound=float(policy.median()))
    seen, original = [], learner.optimizer.minimize
    learner.optimizer.minimize = lambda loss, rows: seen.append(rows) or original(loss, rows)
    metrics = learner.step_on(part)
    (rows,) = seen
    passed = rows["weight"] > 0
    assert torch.equal(rows["advantage"], advantage)  # nobody's baseline has changed
    assert 0 < passed.sum() < part["mask"].sum()
    assert float(metrics["rejected"]) == pytest.approx(1 - float(passed.sum() / part["mask"].sum()))
    count = passed.sum(1, keepdim=True).clamp_min(1) if preset is None else WIDTH
    torch.testing.assert_close(rows["weight"], passed / count / len(part))


def test_must_5_the_mean_over_tokens_is_of_rows_that_count(float64):
    """Rows that the overlong filter leaves out are in no mean, before the bounds and after."""
    settings = {"aggregate": "token", "overlong.cut": "mask"}
    learner = method(**settings)
    torch.manual_seed(0)
    batch = learner.collect()
    batch["reward"], batch["truncated"] = torch.arange(8.0) % 3, torch.arange(8) % 4 == 0
    (part,) = learner.optimizer_batches(learner.evaluate_groups(batch))
    shift = learner.select(part)[0]["policy_shift"]
    other = method(**settings, policy_bound=float(shift[part["mask"]].median()))
    chosen, _ = other.select(part)
    passed = part["mask"] & (shift < other.config.policy_bound)
    assert (passed & part["truncated"].unsqueeze(1)).any()
    rows = (~part["truncated"]).double()
    torch.testing.assert_close(chosen["weight"], token_weights(passed, "token", rows=rows))


def test_the_sampled_set_is_the_support(float64):
    """With top-k the density, the gradient and the counts are those of the tokens that could be sampled."""
    learner = method(**{"policy.top_k": 5})
    part = batch_of(learner)
    states, token, _ = tokens_of(learner, part)
    gradient = gradients(learner, part)
    head = learner.policy.passes.head.weight.detach()
    support = log_probs(learner, head, states, token).exp() > 0
    assert support.sum(1).unique().tolist() == [5]
    objective, policy, _ = measured(learner, part)
    mean = gradient.sum(0) / support.sum(0).clamp_min(1).unsqueeze(1)
    torch.testing.assert_close(learner.shadow.first, 0.1 * mean)
    # in the first step U = g, so <g, U> is the square of the gradient
    lr, square = learner.config.lr, gradient.square().sum((1, 2))
    torch.testing.assert_close(objective, lr * square, rtol=0.1, atol=1e-12)
    # afterwards rows outside of the support move, and count for nothing
    part = batch_of(learner, 1)
    narrow = measured(learner, part)
    for _ in range(1):
        whole = method(**{"policy.top_k": 5})
        whole.select(batch_of(whole))
        inner = whole.shadow.moves

        def dense(states, slope, ids, inner=inner):
            full = slope.new_zeros(len(slope), len(head)).scatter(1, ids, slope)
            return inner(states, full).gather(1, ids)

        whole.shadow.moves = dense
        for one, other in zip(narrow, measured(whole, part)):
            torch.testing.assert_close(one, other)
    assert policy.max() > 0


def test_the_sampled_token_belongs_to_the_support(float64):
    """Also where the policy has moved since, and would not sample it any more."""
    learner = method(**{"policy.top_k": 5})
    part = batch_of(learner)
    states, token, _ = tokens_of(learner, part)
    head = learner.policy.passes.head.weight.detach()
    least = (states @ head.T).masked_fill(learner.policy.unknown_ids(), float("inf")).argmin(1)
    last = int(part["mask"][0].sum()) - 1  # no other token of the row follows
    part["completion"][0, last] = least[last]
    gradient = gradients(learner, part)
    assert gradient[last, least[last]].abs().max() > 0
    learner.select(part)
    torch.testing.assert_close(learner.shadow.first[least[last]], 0.1 * gradient[:, least[last]].sum(0))
    assert least[last] not in token.tolist()


@pytest.mark.parametrize("top_k", [0, 5])
def test_a_part_without_a_token_moves_nothing(top_k):
    learner = method(**{"policy.top_k": top_k})
    learner.select(batch_of(learner, 0))
    before = learner.shadow.first.clone()
    part = batch_of(learner, 1)
    part["mask"] = torch.zeros_like(part["mask"])
    part, metrics = learner.select(part)
    assert torch.equal(learner.shadow.first, before)
    assert not part["weight"].any()
    assert all(torch.isfinite(value) for value in metrics.values())


def test_quantiles_of_the_shifts():
    assert upper(torch.arange(1.0, 101.0)).item() == 95.0
    assert upper(torch.tensor([3.0])).item() == 3.0
    assert upper(torch.empty(0)).item() == 0.0


def test_the_moments_are_saved(float64):
    learner = method()
    learner.update(learner.collect())
    state = learner.shadow.extra_state()
    other = ShadowAdam(**ADAM)
    other.load_extra_state(state)
    assert torch.equal(other.first, state["first"])
    assert other.first is not state["first"]
    other.load_extra_state({})
    assert other.first is None
    assert other.extra_state() == {}


def test_a_model_without_a_plain_head_is_refused(monkeypatch):
    monkeypatch.setattr("polopt.policies.causal_passes.CausalPasses._has_plain_head", lambda *_: False)
    with pytest.raises(UsageError, match=r"^the logits of this model are not its output embeddings"):
        method()


def test_the_test_of_the_objective_needs_its_bound():
    with pytest.raises(UsageError, match="objective_test has no effect without an objective_bound"):
        CAPO.Config(model="tiny", objective_bound=None, objective_test="increase")


def test_the_papers_settings():
    own = {"task_options": {"score_truncated": True}, "loggers": ()}
    planned = api.plan("capo", "vowels", preset="paper", model="tiny", **{"policy.max_tokens": 4}, **own)
    config = planned.config
    assert (config.lr, config.lr_schedule.warmup, config.batch_prompts * config.samples_per_prompt) == (1.5e-5, 0.1, 96)
    assert (config.policy_bound, config.objective_bound, config.policy.top_k) == (1e-4, 0.01, 50)
    assert (config.baseline.std, config.baseline.std_eps, config.reference_kl) == ("group", 1e-4, None)
    assert planned.build().optimizer.torch.defaults["betas"] == (0.9, 0.999)
    others = {name: api.plan("capo", "vowels", preset=name, model="tiny", **own).config for name in CAPO.presets}
    assert (others["dr-capo"].aggregate, others["dr-capo"].baseline.std) == ("constant", "none")
    assert (others["dr-capo"].policy_bound, others["dr-capo"].objective_bound) == (1e-3, 5e-4)
    assert others["reincapo"].baseline.baseline == "none"
    assert (others["reincapo"].policy_bound, others["reincapo"].objective_bound) == (1e-5, 0.1)
