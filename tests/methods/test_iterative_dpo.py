"""Iterative DPO: how pairs are made of completions, the two references, and what a round begins with."""

from __future__ import annotations

import pytest
import torch

from polopt.losses.pairwise import win_rates
from polopt.methods.language.iterative_dpo import best_and_worst, preferences
from polopt.training.api import plan
from tests.guards.harness import built


def test_preferences_by_hand(float64):
    reward = torch.tensor([[1.0, 3.0, 1.0]])
    assert preferences(reward, None)[0].tolist() == [[0.5, 0, 0.5], [1, 0.5, 1], [0.5, 0, 0.5]]
    soft = preferences(reward, 2.0)[0]
    assert soft[1, 0].item() == pytest.approx(1 / (1 + torch.tensor(-1.0).exp().item()))
    torch.testing.assert_close(soft + soft.T, torch.ones(3, 3))


def test_best_and_worst_by_hand(float64):
    """Of equal answers the first and the last; of one that is not valid nobody knows."""
    reward = torch.tensor([[1.0, 3.0, 1.0], [2.0, 2.0, 2.0], [9.0, 3.0, 1.0], [5.0, 4.0, 4.0]])
    valid = torch.tensor([[True, True, True], [True, True, True], [False, True, True], [False, True, False]])
    win, best, worst = best_and_worst(preferences(reward, None), valid)
    assert best.tolist() == [1, 0, 1, 1]
    assert worst.tolist() == [2, 2, 2, 1]
    assert win[0].tolist() == pytest.approx([1 / 3, 2.5 / 3, 1 / 3])
    assert win[2, 1:].tolist() == pytest.approx([0.75, 0.25])
    assert win[3, 1].item() == 0.5


def completions(method, reward, failed=()):
    """A batch that the method sampled, with other rewards [N, K]."""
    batch = method.source.source.next(method.behavior)[: 3 * len(reward)]
    batch["reward"] = torch.tensor(reward).flatten()
    batch["failed"] = torch.zeros(len(batch), dtype=torch.bool)
    batch["failed"][list(failed)] = True
    return batch


REWARD = [[1.0, 3.0, 2.0], [2.0, 2.0, 2.0], [9.0, 3.0, 1.0], [5.0, 4.0, 3.0], [0.0, 0.0, 0.0]]


@pytest.mark.parametrize("loss", ["sigmoid", "sppo"])
def test_pairs_are_the_best_and_the_worst(float64, loss):
    with built("iterative-dpo", loss=loss) as method:
        batch = completions(method, REWARD, failed=(6, 9, 11, 12, 13, 14))
        pairs = method.make_pairs(batch)
        rows = {"chosen": [1, 3, 7, 10, 12], "rejected": [0, 5, 8, 10, 14]}  # of the 3 of each prompt
        for side, chosen in rows.items():
            assert torch.equal(pairs[side, "completion"], batch["completion"][chosen])
            assert torch.equal(pairs[side, "prompt"], batch["prompt"][chosen])
        equal = float(loss == "sppo")  # they have win rates to learn
        assert pairs["row_weight"].tolist() == [1, equal, 1, 0, 0]
        assert pairs["chosen", "win"].tolist() == pytest.approx([2.5 / 3, 0.5, 0.75, 0.5, 0])
        assert pairs["rejected", "win"].tolist() == pytest.approx([0.5 / 3, 0.5, 0.25, 0.5, 0])
        assert pairs["reward"].tolist() == pytest.approx([2, 2, 2, 4, 0])  # of those that were scored
        assert torch.equal(pairs["index"], batch["index"][::3])


def test_labels_are_drawn_as_often_as_they_are_probable(float64):
    with built("iterative-dpo", label_temperature=2.0) as method:
        batch = completions(method, REWARD[:2])
        many = batch[torch.arange(6).repeat(2000)]
        pairs = method.make_pairs(many)
        assert pairs["row_weight"].eq(1).all()
        up = (pairs["chosen", "completion"] == batch["completion"][1]).all(1)[::2]  # the answer of reward 3 beside 1
        probability = 1 / (1 + torch.tensor(-1.0).exp().item())
        assert up.double().mean().item() == pytest.approx(probability, abs=4 * 0.5 / 2000**0.5)
        won = torch.where(up, pairs["chosen", "win"][::2], pairs["rejected", "win"][::2])
        assert won.eq(won[0]).all()  # an answer keeps its win rate on either side
        first = (pairs["chosen", "completion"] == batch["completion"][3]).all(1)[1::2]
        assert first.double().mean().item() == pytest.approx(0.5, abs=4 * 0.5 / 2000**0.5)


def moved(method, seed):
    """The policy, moved away from where it was."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in method.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return method.policy


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_reference_is_between_the_start_and_the_round(float64, share):
    with built("iterative-dpo", start_weight=share) as method:
        at_start = method.scores(method.policy, method.collect())
        moved(method, 0)
        method.begin_round()
        batch = method.collect()
        start, now = (at_start[0].new_zeros(()), method.scores(method.policy, batch))
        start = method.scores(method.reference_policy, batch) if share else (start, start)
        moved(method, 1)
        found = method.score_reference(batch)
        for side, one, other in zip(("chosen", "rejected"), start, now):
            torch.testing.assert_close(found[side, "reference_log_prob"], share * one + (1 - share) * other)
        assert (method.reference_policy is None) == (share == 0)
        assert (method.round_policy is None) == (share == 1)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_round_begins_with_the_policy_as_reference(float64, fresh):
    with built("iterative-dpo", fresh_optimizer=fresh) as method:
        start = {key: value.clone() for key, value in method.policy.state_dict().items()}
        per_round = 4  # two minibatches of four, twice
        for update in range(per_round + 1):
            before = {key: value.clone() for key, value in method.policy.state_dict().items()}
            batch = method.collect()
            began = update in (0, per_round)
            same = all(torch.equal(v, before[k]) for k, v in method.round_policy.state_dict().items())
            assert same == began
            assert bool(method.optimizer.torch.state) == (update > 0 and not (began and fresh))
            metrics = method.update(batch)
            assert metrics["round"] == (1 if update < per_round else 2)
        assert all(torch.equal(v, start[k]) for k, v in method.reference_policy.state_dict().items())


def test_sppo_regresses_each_side_on_its_own_win_rate(float64):
    """By hand: ((0.4 - 0.3 / 0.5)^2 + (-0.1 + 0.2 / 0.5)^2) / 2."""
    rows = [torch.tensor([value]) for value in (0.4, -0.1, 0.8, 0.3)]
    assert win_rates(*rows, 0.5, torch.ones(1)).item() == pytest.approx((0.04 + 0.09) / 2)
    with built("iterative-dpo", loss="sppo", beta=0.5) as method:
        batch = method.score_reference(method.collect())
        moved(method, 2)
        loss, _ = method.policy_loss(batch)
        expected = 0.0
        for side, log_prob in zip(("chosen", "rejected"), method.scores(method.policy, batch)):
            ratio = (log_prob - batch[side, "reference_log_prob"]).sum(1)
            expected += (batch["weight"] * (ratio - (batch[side, "win"] - 0.5) / 0.5).square()).sum() / 2
        torch.testing.assert_close(loss, expected)
        assert loss > 0.01


def test_pairs_that_teach_nothing_have_no_weight(float64):
    with built("iterative-dpo") as method:
        batch = method.score_reference(method.make_pairs(completions(method, REWARD[:4])))
        assert batch["weight"].tolist() == pytest.approx([1 / 3, 0, 1 / 3, 1 / 3])
        metrics = method.update(method.make_pairs(completions(method, [[1.0, 1.0, 1.0]] * 4)))
        assert metrics["informative"] == 0
        assert metrics["pair_loss"] == 0


def test_rounds_teach_to_write_vowels():
    settings = {"batch_size": 16, "pairs": 32, "epochs": 2, "samples_per_prompt": 4, "lr": 3e-3, "steps": 40}
    options = {"score_truncated": True}
    method = plan("iterative-dpo", "vowels", model="tiny", task_options=options, policy={"max_tokens": 4}, **settings)
    built = method.build()
    rewards = [float(built.update(built.collect())["reward"]) for _ in range(40)]
    assert sum(rewards[-4:]) / 4 > sum(rewards[:4]) / 4 + 0.2
