from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.core.batch import Batch, weigh
from polopt.core.spec import Spec
from polopt.data.preferences import Preferences
from polopt.models.reward import StepReward, TextReward, comparison_loss, draw_labels, surprise
from polopt.networks import Network
from polopt.optim import Optimizer

SPEC = Spec(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), "a toy")


class Given(nn.Module):
    """R that is written in the rows, times a parameter, for two members."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))

    def returns(self, rows: Batch) -> Tensor:
        return self.scale.unsqueeze(-1) * rows["total"]


def compared(chosen: list[float], rejected: list[float], **more: Any) -> Batch:
    sides = {"chosen": chosen, "rejected": rejected}
    data = {name: TensorDict({"total": torch.tensor(total)}, [len(total)]) for name, total in sides.items()}
    return weigh(TensorDict({**data, **more}, [len(chosen)]))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_loss_by_hand(float64):
    """Margins 1 and -0.5, twice that for the second member; the second pair is the other way round with 3 in 4."""
    batch = compared([3.0, 0.5], [2.0, 1.0], label=torch.tensor([1.0, 0.25]))
    fixed = Given().requires_grad_(False)
    loss, metrics = comparison_loss(fixed, batch)
    expected = [
        -math.log(sigmoid(k)) / 2 - (0.25 * math.log(sigmoid(-0.5 * k)) + 0.75 * math.log(sigmoid(0.5 * k))) / 2
        for k in (1, 2)
    ]
    assert float(loss) == pytest.approx(sum(expected))
    assert float(metrics["reward_loss"]) == pytest.approx(sum(expected) / 2)
    assert float(metrics["reward_accuracy"]) == 1
    sure = comparison_loss(fixed, compared([3.0, 0.5], [2.0, 1.0]))
    assert float(sure[1]["reward_accuracy"]) == 0.5
    assert float(sure[0]) == pytest.approx(-sum(math.log(sigmoid(k * m)) for k in (1, 2) for m in (1, -0.5)) / 2)
    with pytest.raises(ValueError, match="shapes must be equal: label"):
        comparison_loss(Given(), compared([3.0, 0.5], [2.0, 1.0], label=torch.ones(2, 1)))


def test_the_surprise_of_each_comparison(float64):
    each, margin = surprise(Given(), compared([3.0, 0.5], [2.0, 1.0], label=torch.tensor([1.0, 0.25])))
    assert margin.tolist() == [[1.0, -0.5], [2.0, -1.0]]
    expected = [-0.25 * math.log(sigmoid(-k / 2)) - 0.75 * math.log(sigmoid(k / 2)) for k in (1, 2)]
    assert each[:, 1].tolist() == pytest.approx(expected)
    sure, _ = surprise(Given(), compared([3.0], [2.0]))
    assert sure[:, 0].tolist() == pytest.approx([-math.log(sigmoid(k)) for k in (1, 2)])


def test_members_learn_by_themselves(float64):
    model, batch = Given(), compared([3.0, 0.5], [2.0, 1.0])
    (slope,) = torch.autograd.grad(comparison_loss(model, batch)[0], [model.scale])
    for scale, found in zip((1, 2), slope.tolist()):
        assert found == pytest.approx(-(1 * sigmoid(-scale) - 0.5 * sigmoid(0.5 * scale)) / 2)


def segments(rows: int, steps: int = 4, seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    data = {"obs": torch.randn(rows, steps, 2), "action": torch.randint(3, (rows, steps))}
    return TensorDict({**data, "mask": torch.arange(steps) < torch.randint(1, steps + 1, (rows, 1))}, [rows, steps])


def test_a_segment_is_the_sum_over_its_decisions(float64):
    model, rows = StepReward(SPEC, Network((8,)), members=3), segments(5)
    reward = model(rows)
    assert reward.shape == (3, 5, 4)
    expected = torch.stack([torch.stack([each[i][rows["mask"][i]].sum() for i in range(5)]) for each in reward])
    torch.testing.assert_close(model.returns(rows), expected)
    torch.testing.assert_close(model.returns(rows.exclude("mask")), reward.sum(-1))
    torch.testing.assert_close(model.reward(rows), torch.where(rows["mask"], reward.mean(0), 0.0))
    torch.testing.assert_close(model.reward(rows.exclude("mask")), reward.mean(0).detach())
    assert not model.reward(rows).requires_grad


def test_rewards_may_be_bounded(float64):
    free, bounded = StepReward(SPEC, Network((8,))), StepReward(SPEC, Network((8,)), bound=0.1)
    bounded.load_state_dict(free.state_dict())
    rows = segments(5)
    torch.testing.assert_close(bounded(rows), 0.1 * torch.tanh(free(rows) / 0.1))
    assert bounded(rows).abs().max() < 0.1 < free(rows).abs().max()


def test_comparisons_teach_the_reward_of_steps():
    """Segments compared by what a simulated human says of the sum of obs[0] + (action == 2)."""
    one, other = segments(400, seed=1), segments(400, seed=2)

    def truth(rows: Batch) -> Tensor:
        return ((3 * rows["obs"][..., 0] + 3 * (rows["action"] == 2)) * rows["mask"]).sum(-1)

    label = draw_labels(truth(one) - truth(other), torch.Generator().manual_seed(0))
    data = TensorDict({"chosen": one, "rejected": other, "label": label}, [400])
    model = StepReward(SPEC, Network((32,)), members=2)
    source, optimizer = Preferences(data, 100), Optimizer(model, lr=1e-2)
    for _ in range(100):
        metrics = optimizer.minimize(lambda batch: comparison_loss(model, batch), weigh(source.next(model)))
    assert float(metrics["reward_accuracy"]) > 0.8
    new = segments(300, seed=3)
    found, true = model.reward(new)[new["mask"]], (3 * new["obs"][..., 0] + 3 * (new["action"] == 2))[new["mask"]]
    assert float(torch.corrcoef(torch.stack([found, true]))[0, 1]) > 0.95


def test_simulated_answers_are_as_frequent_as_they_are_probable():
    label = draw_labels(torch.tensor([2.0, -1.0, 0.0]).repeat(20_000, 1), torch.Generator().manual_seed(0))
    assert sorted(label.unique().tolist()) == [0, 1]
    expected = [sigmoid(2), sigmoid(-1), 0.5]
    assert label.mean(0).tolist() == pytest.approx(expected, abs=4 * 0.5 / 20_000**0.5)
    again = draw_labels(torch.tensor([2.0, -1.0, 0.0]).repeat(20_000, 1), torch.Generator().manual_seed(0))
    assert torch.equal(label, again)


def rows_of(texts: list[tuple[list[int], list[int]]], left: int = 0, right: int = 0) -> Batch:
    """Prompts padded on the left and completions padded on the right, by `left` and `right` more than they need."""
    wide = max(len(prompt) for prompt, _ in texts) + left, max(len(done) for _, done in texts) + right
    prompt = torch.tensor([[9] * (wide[0] - len(p)) + p for p, _ in texts])
    completion = torch.tensor([c + [9] * (wide[1] - len(c)) for _, c in texts])
    there = torch.arange(wide[0]) >= wide[0] - torch.tensor([[len(p)] for p, _ in texts])
    attention = torch.arange(wide[1]) < torch.tensor([[len(c)] for _, c in texts])
    data = {"prompt": prompt, "prompt_mask": there, "completion": completion, "attention": attention}
    return TensorDict(data, [len(texts)])


def test_texts_are_read_to_their_last_token_and_no_further(float64):
    model = TextReward(10, width=16, depth=2, heads=2)
    texts = [([1, 2], [3, 4, 5]), ([1], [3]), ([2, 1], [3, 4, 5]), ([1, 2], [4, 3, 5]), ([1, 2], [3, 4])]
    reward = model(rows_of(texts))
    torch.testing.assert_close(model(rows_of(texts, 3, 2)), reward)  # padding is nothing
    torch.testing.assert_close(torch.cat([model(rows_of([text])) for text in texts]), reward)
    assert len({round(value, 9) for value in reward.tolist()}) == 5  # order, prompt and length are something
    torch.testing.assert_close(model.returns(rows_of(texts)), reward.unsqueeze(0))
    assert not model.reward(rows_of(texts)).requires_grad
    torch.testing.assert_close(model.reward(rows_of(texts)), reward.detach())


def test_comparisons_teach_the_reward_of_texts():
    """Whatever the prompt, the text with a 7 in it is better."""
    torch.manual_seed(0)
    good = [([1, 2], [3, 7, int(x)]) for x in torch.randint(2, 6, (32,))]
    bad = [([1, 2], [3, int(x)]) for x in torch.randint(2, 6, (32,))]
    batch = weigh(TensorDict({"chosen": rows_of(good), "rejected": rows_of(bad)}, [32]))
    model = TextReward(10, width=16, depth=1, heads=2)
    optimizer = Optimizer(model, lr=1e-2, micro_batch=20)
    for _ in range(30):
        metrics = optimizer.minimize(lambda pairs: comparison_loss(model, pairs), batch)
    assert float(metrics["reward_accuracy"]) == pytest.approx(1)
    assert float(metrics["reward_loss"]) < 0.1
