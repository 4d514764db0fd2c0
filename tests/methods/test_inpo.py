"""INPO: the two anchors, the target, where pairs and labels come from, and that its least is mirror descent's step."""

from __future__ import annotations

import pytest
import torch

import polopt
from polopt import registry
from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.losses.pairwise import win_rates
from polopt.methods.language.inpo import inpo, mirror_step
from polopt.methods.language.iterative_dpo import anchored, judged
from polopt.training import api
from tests.guards.harness import built, plan

MUST = 5

ETA, TAU = 0.5, 0.2
PER_ROUND = 4  # of the smoke run: two minibatches of four, twice


def weights(module):
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def moved(module, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def game(seed=0, count=5):
    """P [Y, Y], log pi_ref and log pi_t [Y]: no order, nothing symmetric."""
    torch.manual_seed(seed)
    upper = torch.rand(count, count).triu(1)
    wins = upper + (1 - upper.T).tril(-1) + 0.5 * torch.eye(count)
    return wins, *torch.randn(2, count).log_softmax(1)


# Equations


def observable(log_prob, start, now, wins):
    """INPO's loss with every pair of pi_t and every label as often as they come."""
    h = log_prob - anchored(TAU / ETA, start, now)
    often = (now.exp().unsqueeze(1) * now.exp() * 2 * wins).flatten()  # (chosen, rejected) in either order
    chosen, rejected = (each.expand(wins.shape).flatten() for each in (h.unsqueeze(1), h.unsqueeze(0)))
    return inpo(chosen, rejected, ETA, often)


def unobservable(log_prob, start, now, wins):
    """The squared distance to the win rates, over the same pairs."""
    h, win = log_prob - anchored(TAU / ETA, start, now), wins @ now.exp()
    distance = (h.unsqueeze(1) - h) - (win.unsqueeze(1) - win) / ETA
    return (now.exp().unsqueeze(1) * now.exp() * distance.square()).sum()


def test_must_5_drawn_labels_have_the_gradient_of_win_rates(float64):
    wins, start, now = game()
    logits = torch.randn(5).requires_grad_()
    grads = [
        torch.autograd.grad(loss(logits.log_softmax(0), start, now, wins), logits)[0]
        for loss in (observable, unobservable)
    ]
    assert grads[0].abs().max() > 0.01
    torch.testing.assert_close(*grads, rtol=1e-9, atol=1e-11)


def test_must_1_the_least_is_the_step_of_mirror_descent(float64):
    """And mirror descent's own objective is largest there: both by autograd."""
    wins, start, now = game(1)
    win = wins @ now.exp()
    logits = mirror_step(start, now, win, ETA, TAU).requires_grad_()
    (slope,) = torch.autograd.grad(observable(logits.log_softmax(0), start, now, wins), logits)
    torch.testing.assert_close(slope, torch.zeros(5), rtol=0, atol=1e-12)
    log_prob = logits.log_softmax(0)
    gain = (log_prob.exp() * (win - TAU * (log_prob - start) - (ETA - TAU) * (log_prob - now))).sum()
    (slope,) = torch.autograd.grad(gain, logits)
    torch.testing.assert_close(slope, torch.zeros(5), rtol=0, atol=1e-12)


def test_must_1_the_step_by_hand(float64):
    """Win rates 0.9 and 0.4 at eta 1/2 and tau 1/8: e^1.8 (1/2)^(1/4) (1/4)^(3/4) to e^0.8 (1/2)^(1/4) (3/4)^(3/4)."""
    start, now = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    found = mirror_step(start, now, torch.tensor([0.9, 0.4]), 0.5, 0.125).exp()
    odds = torch.tensor(1.0).exp().item() * (1 / 3) ** 0.75
    assert found.tolist() == pytest.approx([odds / (1 + odds), 1 / (1 + odds)])
    assert anchored(0.25, start, now).tolist() == pytest.approx((0.25 * start + 0.75 * now).tolist())
    assert torch.equal(anchored(1.0, start, None), start)
    assert torch.equal(anchored(0.0, None, now), now)


def test_must_2_the_loss_by_hand(float64):
    """(0.4 + 0.1 - 1)^2 and (2 - 0.5 - 1)^2; what both answers have in common does not matter, as it would to SPPO."""
    chosen, rejected, half = torch.tensor([0.4, 2.0]), torch.tensor([-0.1, 0.5]), torch.full((2,), 0.5)
    assert inpo(chosen, rejected, 0.5, half).item() == pytest.approx((0.25 + 0.25) / 2)
    assert inpo(chosen, rejected, 0.25, half).item() == pytest.approx((1.5**2 + 0.5**2) / 2)
    assert inpo(chosen + 3, rejected + 3, 0.5, half).item() == pytest.approx(0.25)
    wins = torch.ones(2), torch.zeros(2)
    assert win_rates(chosen + 3, rejected + 3, *wins, 0.5, half) > 2 * win_rates(chosen, rejected, *wins, 0.5, half)


# The method


def test_must_1_the_loss_of_a_batch(float64):
    """From log-probabilities of three policies, summed over tokens."""
    with built("inpo") as method:
        start = method.reference_policy
        moved(method.policy, 0)
        batch = method.collect()  # begins the round: pi_t
        scored = {"ref": method.scores(start, batch), "now": method.scores(method.policy, batch)}
        moved(method.policy, 1)
        loss, metrics = method.policy_loss(method.score_reference(batch))
        mine = method.scores(method.policy, batch)
        h = [(pi - 0.25 * ref - 0.75 * now).sum(1) for pi, ref, now in zip(mine, scored["ref"], scored["now"])]
        expected = (h[0] - h[1] - 1.0).square()  # eta 1/2, tau 1/8
        torch.testing.assert_close(loss, expected[batch["row_weight"] > 0].mean())
        torch.testing.assert_close(metrics["margin"], 0.5 * (h[0] - h[1])[batch["row_weight"] > 0].mean())
        assert batch["chosen", "mask"].sum(1).max() > 1


def test_must_3_both_answers_are_the_policys_and_labels_are_drawn(float64):
    """Two samples and one label: as often as its probability, whatever the place in the group."""
    with built("inpo", samples_per_prompt=2, label_temperature=2.0) as method:
        assert method.behavior is method.policy
        batch = method.source.source.next(method.policy)[:2]
        batch["reward"], batch["failed"] = torch.tensor([1.0, 3.0]), torch.zeros(2, dtype=torch.bool)
        batch["completion"][0, 0] = batch["completion"][1, 0] + 1
        pairs = method.make_pairs(batch[torch.arange(2).repeat(2000)])
        assert pairs["row_weight"].eq(1).all()
        up = (pairs["chosen", "completion"] == batch["completion"][1]).all(1)
        probability = torch.tensor(1.0).sigmoid().item()
        assert up.double().mean().item() == pytest.approx(probability, abs=4 * 0.5 / 2000**0.5)
        down = (pairs["rejected", "completion"] == batch["completion"][0]).all(1)
        assert torch.equal(up, down)


def circle(prompt, one, other):
    """Of a, b and c each beats the next one, and c beats a."""
    return 0.9 if one + other in ("ab", "bc", "ca") else 0.1


def test_must_3_a_judge_need_not_be_an_order(float64):
    found = judged(circle, ["p", "q"], ["a", "b", "c", "c", "c", "a"])
    torch.testing.assert_close(found[0], torch.tensor([[0.5, 0.9, 0.1], [0.1, 0.5, 0.9], [0.9, 0.1, 0.5]]))
    torch.testing.assert_close(found[1], torch.tensor([[0.5, 0.5, 0.9], [0.5, 0.5, 0.9], [0.1, 0.1, 0.5]]))
    with pytest.raises(UsageError, match=r"^the judge gave 1.5, which is not the probability"):
        judged(lambda prompt, one, other: 1.5, ["p"], ["a", "b"])


def first(prompt, one, other):
    """What comes first in the order of texts."""
    assert prompt.endswith(":")
    assert one != other
    return float(one < other)


def test_must_3_the_judge_sees_prompts_and_texts(float64):
    with built("inpo", judge=first, samples_per_prompt=2) as method:
        batch = method.source.source.next(method.policy)
        texts = method.policy.env_action(batch["completion"])
        for found, one, other in zip(method.judge(batch), texts[::2], texts[1::2]):
            assert found[0, 1] == (one < other) + 0.5 * (one == other)
            assert found[0, 1] + found[1, 0] == 1
        pairs = method.make_pairs(batch)
        sides = [method.policy.env_action(pairs[side, "completion"]) for side in ("chosen", "rejected")]
        assert all(chosen <= rejected for chosen, rejected in zip(*sides))
        assert any(chosen < rejected for chosen, rejected in zip(*sides))
        assert pairs["row_weight"].eq(1).all()
        method.update(method.collect())


def test_a_judge_is_given_again_where_the_run_is_read(tmp_path):
    smoke, name = registry.load("inpo").smoke, f"{__name__}:first"
    settings = {"steps": 2, "loggers": (), "eval_episodes": 1, "task_options": smoke.task_options}
    polopt.train("inpo", smoke.task, out=tmp_path / "run", judge=first, **settings, **smoke.config)
    with pytest.raises(UsageError, match=rf"^judge was {name}, .* say it again with --judge {name}$"):
        polopt.evaluate(tmp_path / "run", episodes=1)
    assert "return" in polopt.evaluate(tmp_path / "run", episodes=1, judge=first)
    assert isinstance(polopt.load(tmp_path / "run").predict("bc:"), str)  # which asks nobody
    polopt.resume(tmp_path / "run", judge=first)
    assert main(["eval", str(tmp_path / "run"), "--episodes", "1", "--judge", name]) == 0


def test_a_temperature_beside_a_judge_is_refused():
    with pytest.raises(UsageError, match=r"^label_temperature has no effect beside a judge"):
        plan("inpo", judge=first, label_temperature=2.0)


def test_must_4_the_round_is_renewed_and_the_reference_never(float64):
    with built("inpo") as method:
        start = weights(method.policy)
        for _ in range(2):
            begun = weights(method.policy)
            for _ in range(PER_ROUND):
                method.update(method.collect())
                assert same(weights(method.round_policy), begun)
                assert same(weights(method.reference_policy), start)
            assert not same(weights(method.policy), begun)


@pytest.mark.parametrize(("tau", "missing"), [(0.0, "reference_policy"), (0.5, "round_policy")])
def test_an_anchor_without_weight_is_not_kept(float64, tau, missing):
    with built("inpo", tau=tau) as method:
        kept = {name for name in ("reference_policy", "round_policy") if getattr(method, name) is not None}
        assert kept == {"reference_policy", "round_policy"} - {missing}
        method.update(method.collect())


def test_tau_above_eta_is_refused():
    with pytest.raises(UsageError, match=r"^tau must be at most eta, and 0.6 is above 0.5"):
        plan("inpo", tau=0.6)


def test_the_papers_stage():
    own = {"task_options": {"score_truncated": True}, "loggers": ()}
    planned = api.plan("inpo", "vowels", preset="paper", model="tiny", **{"policy.max_tokens": 4}, **own)
    config, method = planned.config, planned.build()
    assert (config.samples_per_prompt, config.pairs, config.batch_size, config.epochs) == (8, 20_000, 128, 1)
    assert (config.eta, config.tau, config.label_temperature) == (0.0075, 0.0025, None)
    assert method.start_weight == pytest.approx(1 / 3)
    assert method.derived(config, 471)["rounds"] == 3
