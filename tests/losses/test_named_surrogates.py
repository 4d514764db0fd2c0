"""Every named surrogate against the unified estimator keep * advantage / pi_ref * grad pi, written out in numpy."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from polopt.config import from_dict, to_dict
from polopt.config.params import spell
from polopt.core.errors import UsageError
from polopt.losses import Surrogate
from polopt.losses.estimator import ring, token_weights, two_side
from polopt.losses.surrogate import surrogate_loss
from polopt.values import GroupBaseline

torch.set_num_threads(1)
LENGTHS = np.array([6, 1, 3, 0, 2, 6, 5, 4])
# Some rows near the old policy (GSPO's range is 3e-4 wide), some far, far enough for the outer ring and the dual clip.
SPREAD = np.array([0.3, 0.6, 1e-4, 1.0, 2e-4, 1.2, 0.1, 1e-3])


def ragged(seed=0, actions=5):
    """logits [8, 6, 5] (leaf), actions taken, log_prob, old_log_prob, advantage [8], mask (float64; 0 where masked)."""
    rng = np.random.default_rng(seed)
    mask = torch.tensor(np.arange(6) < LENGTHS[:, None])
    logits = torch.tensor(rng.normal(0, 1.2, (8, 6, actions)), requires_grad=True)
    taken = torch.tensor(rng.integers(0, actions, (8, 6)))
    log_prob = torch.where(mask, logits.log_softmax(-1).gather(-1, taken[..., None])[..., 0], 0.0)
    old = torch.where(mask, log_prob.detach() + torch.tensor(rng.normal(0, 1, (8, 6)) * SPREAD[:, None]), 0.0)
    return logits, taken, log_prob, old, torch.tensor(rng.normal(0, 1, 8)), mask


def keep_and_reference(name, pi, old, advantage, sequence):
    """The two slots of the table for one token; `sequence` is (pi(y) / pi_old(y))^(1 / |y|)."""
    rho = pi / old

    def one_side(r, low, high):
        return float(r <= 1 + high if advantage > 0 else r >= 1 - low)

    if name in ("sft", "reinforce"):
        return 1.0, pi
    if name in ("ppo", "grpo", "dr-grpo", "rec-one-side-is"):
        return one_side(rho, 0.2, 0.2), old
    if name in ("dapo", "clip-higher"):
        return one_side(rho, 0.2, 0.28), old
    if name == "dual-clip":
        return one_side(rho, 0.2, 0.2) * (advantage > 0 or rho <= 3), old
    if name == "cispo":
        return min(rho, 1.2) / rho, old
    if name == "gspo":
        return one_side(sequence, 3e-4, 4e-4), pi / sequence
    if name == "rec-seq-one-side-is":
        return one_side(sequence, 0.2, 0.2), pi / sequence
    if name == "srft":
        return 1.0, 1.0
    if name == "luffy":
        return 0.1 / (pi + 0.1) ** 2, 1.0
    if name == "rec-one-side":
        return one_side(rho, 0.2, 0.2), pi
    if name == "rec-one-side-wide":
        return one_side(rho, 0.6, 2.0), pi
    inside = 0.8 <= rho <= 1.2
    if name == "rec-two-side-is":
        return float(inside), old
    if name == "rec-two-side":
        return float(inside), pi
    if name == "rec-ring":
        back = (advantage >= 0 and rho <= 0.4) or (advantage <= 0 and rho >= 3)
        return float(inside or back), pi
    raise KeyError(name)


def weight_by_hand(kind, row, length=6):
    rows = int((LENGTHS > 0).sum())
    return {
        "token": 1 / LENGTHS.sum(),
        "sequence": 1 / (max(LENGTHS[row], 1) * rows),
        "constant": 1 / (length * rows),
        "sum": 1 / rows,
    }[kind]


def gradients_by_hand(name, logits, taken, log_prob, old, advantage, kind):
    """d loss / d log_prob [8, 6] and d loss / d logits [8, 6, 5], token by token."""
    by_log_prob, by_logits = np.zeros(log_prob.shape), np.zeros(logits.shape)
    for i in range(len(LENGTHS)):
        n = LENGTHS[i]
        sequence = math.exp((log_prob[i, :n] - old[i, :n]).sum() / max(n, 1))
        for t in range(n):
            probability = np.exp(logits[i, t]) / np.exp(logits[i, t]).sum()
            pi = probability[taken[i, t]]
            kept, reference = keep_and_reference(name, pi, math.exp(old[i, t]), advantage[i], sequence)
            scale = -weight_by_hand(kind, i) * kept * advantage[i] / reference
            by_log_prob[i, t] = scale * pi
            by_logits[i, t] = scale * pi * ((np.arange(logits.shape[-1]) == taken[i, t]) - probability)
    return by_log_prob, by_logits


@pytest.mark.parametrize("name", list(Surrogate.named))
@pytest.mark.parametrize("kind", ["token", "sequence", "constant", "sum"])
def test_gradient_is_that_of_the_table(name, kind):
    kept = []
    for seed in range(3):
        logits, taken, log_prob, old, advantage, mask = ragged(seed)
        if name == "sft":
            advantage = torch.ones_like(advantage)
        weight = torch.tensor(
            [[weight_by_hand(kind, i) if mask[i, t] else 0.0 for t in range(6)] for i in range(8)], dtype=torch.float64
        )
        torch.testing.assert_close(token_weights(mask, kind).double(), weight, rtol=1e-6, atol=0)
        loss, metrics = surrogate_loss(Surrogate.named[name], log_prob, old, advantage, weight, mask=mask)
        by_log_prob, by_logits = torch.autograd.grad(loss, (log_prob, logits))
        arrays = [x.detach().numpy() for x in (logits, taken, log_prob, old, advantage)]
        expected = gradients_by_hand(name, *arrays, kind)
        np.testing.assert_allclose(by_log_prob.numpy(), expected[0], rtol=1e-11, atol=1e-15)
        np.testing.assert_allclose(by_logits.numpy(), expected[1], rtol=1e-10, atol=1e-15)
        # The surrogate's value is the sum of weight * keep * advantage * ratio, minus the slope of the loss.
        assert metrics["surrogate"].item() == pytest.approx(-expected[0].sum(), abs=1e-12)
        kept.append((expected[0] != 0)[mask.numpy()])
    dropped = np.concatenate(kept).mean() < 1
    assert dropped == (Surrogate.named[name].keep in ("clip", "two-side", "ring"))  # the data reach both sides


@pytest.mark.parametrize("name", list(Surrogate.named))
def test_micro_batches_change_nothing(name):
    """1 x 8 == 8 x 1, also where a ratio is a mean over its row."""
    _, _, log_prob, old, advantage, mask = ragged()
    weight = token_weights(mask, "sequence").double()
    log_prob = log_prob.detach().requires_grad_()

    def run(piece):
        return surrogate_loss(
            Surrogate.named[name], log_prob[piece], old[piece], advantage[piece], weight[piece], mask=mask[piece]
        )

    whole, metrics = run(slice(None))
    pieces = [run(slice(i, i + 1)) for i in range(8)]
    (expected,) = torch.autograd.grad(whole, log_prob)
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), log_prob)
    torch.testing.assert_close(gradient, expected, rtol=1e-14, atol=0)
    for key in metrics:
        torch.testing.assert_close(sum(piece[key] for _, piece in pieces), metrics[key], rtol=1e-12, atol=1e-12)


def test_a_sequence_ratio_is_the_geometric_mean_of_the_tokens():
    new = torch.tensor([[0.2, 0.4, 9.0], [0.1, 0.1, 0.7]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    weight = mask.double()
    loss, metrics = surrogate_loss(
        Surrogate(level="sequence", keep="all"), new, torch.zeros_like(new), torch.ones(2).double(), weight, mask=mask
    )
    (gradient,) = torch.autograd.grad(loss, new)
    row = [math.exp(0.3), math.exp(0.3)]
    np.testing.assert_allclose(gradient.numpy(), [[-row[0], -row[0], 0], [-row[1]] * 3])
    assert metrics["surrogate"].item() == pytest.approx(5 * math.exp(0.3))
    by_weight, _ = surrogate_loss(
        Surrogate(level="sequence", keep="all"), new, new.detach() * 0, torch.ones(2).double(), weight
    )
    assert torch.equal(torch.autograd.grad(by_weight, new)[0], gradient)  # no mask: where the weight is not 0


def test_ring_and_two_side_bounds_are_inclusive():
    ratios = torch.tensor([0.25, 0.5, 0.625, 0.75, 1.0, 1.25, 2.0, 3.0, 4.0], dtype=torch.float64)
    one = torch.ones_like(ratios)
    assert two_side(ratios, 0.25, 0.25).tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert ring(ratios, one, 0.25, 0.25, 0.5, 2.0).tolist() == [1, 1, 0, 1, 1, 1, 0, 0, 0]
    assert ring(ratios, -one, 0.25, 0.25, 0.5, 2.0).tolist() == [0, 0, 0, 1, 1, 1, 0, 1, 1]


def test_capped_ratios_keep_their_gradient():
    new = torch.tensor([0.5, 1.0, 1.5, 4.0], dtype=torch.float64).log().requires_grad_()
    one = torch.ones(4, dtype=torch.float64)
    loss, metrics = surrogate_loss(Surrogate.named["cispo"], new, torch.zeros_like(new), one, one)
    np.testing.assert_allclose(torch.autograd.grad(loss, new)[0].numpy(), [-0.5, -1.0, -1.2, -1.2], rtol=1e-14)
    assert metrics["clip_fraction"].item() == 2
    narrow, metrics = surrogate_loss(Surrogate.named["cispo"], new, new.detach() * 0, one, one, clip_scale=0.5)
    np.testing.assert_allclose(torch.autograd.grad(narrow, new)[0].numpy(), [-0.5, -1.0, -1.1, -1.1], rtol=1e-14)
    assert metrics["clip_fraction"].item() == 2


@pytest.mark.parametrize("name", ["sft", "reinforce", "srft", "luffy"])
def test_demonstrations_need_no_old_policy(name):
    _, _, log_prob, old, advantage, mask = ragged()
    weight = token_weights(mask, "token").double()
    surrogate = Surrogate.named[name]
    with_old, _ = surrogate_loss(surrogate, log_prob, old, advantage, weight)
    without, metrics = surrogate_loss(surrogate, log_prob, None, advantage, weight)
    gradients = [torch.autograd.grad(loss, log_prob, retain_graph=True)[0] for loss in (with_old, without)]
    assert torch.equal(*gradients)
    assert metrics["approx_kl"].item() == 0
    with pytest.raises(ValueError, match="needs old_log_prob"):
        surrogate_loss(Surrogate.named["rec-one-side"], log_prob, None, advantage, weight)


def test_pairwise_consistency_is_reinforce_for_any_samples():
    """arXiv 2509.24203: at pi_t the gradient of the pairwise surrogate is that of group-relative REINFORCE, scaled."""
    rng = np.random.default_rng(0)
    for tau, pair_weight in ((0.3, False), (1.0, False), (2.5, True)):
        logits = torch.tensor(rng.normal(size=7), requires_grad=True)
        samples = torch.tensor([3, 3, 0, 6, 1, 3])  # nobody's samples
        reward = torch.tensor(rng.normal(size=6))
        w = torch.tensor(rng.uniform(0.2, 2, 6)) if pair_weight else torch.ones(6, dtype=torch.float64)
        log_pi = logits.log_softmax(0)[samples]
        a = reward - tau * (log_pi - log_pi.detach())
        k = len(samples)
        pairs = (w[:, None] * w) * (a[:, None] - a).square()
        surrogate = pairs.triu().sum() / k**2 / (1 + tau) ** 2
        (expected,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
        advantage = reward - (w * reward).sum() / w.sum()
        loss, _ = surrogate_loss(Surrogate.named["reinforce"], log_pi, log_pi.detach(), advantage, w * w.sum() / k**2)
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(2 * tau / (1 + tau) ** 2 * gradient, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", list(Surrogate.named))
def test_a_named_value_survives_spelling_and_json(name):
    surrogate = Surrogate.named[name]
    assert Surrogate.named[spell(surrogate)] == surrogate
    assert from_dict(Surrogate, to_dict(surrogate)) == surrogate


def test_published_numbers():
    named = Surrogate.named
    assert (named["gspo"].clip_low, named["gspo"].clip_high, named["gspo"].level) == (3e-4, 4e-4, "sequence")
    assert (named["rec-one-side-wide"].clip_low, named["rec-one-side-wide"].clip_high) == (0.6, 2.0)
    assert (named["rec-ring"].ring_low, named["rec-ring"].ring_high) == (0.6, 2.0)
    assert named["luffy"].shape_gamma == 0.1
    assert named["cispo"].clip_range == (0.0, 1.2)
    ppo = {(name, "ppo") for name in ("grpo", "dr-grpo", "rec-one-side-is")}
    equal = ppo | {("sft", "reinforce"), ("dapo", "clip-higher")}
    assert {(name, spell(value)) for name, value in named.items() if spell(value) != name} == equal


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"keep": "cap", "clip_low": 0.3}, "clip_low has no effect in a surrogate with keep 'cap'"),
        ({"ring_low": 0.7}, "ring_low has no effect in a surrogate with keep 'clip'"),
        ({"keep": "two-side", "dual_clip": 3.0}, "dual_clip has no effect in a surrogate with keep 'two-side'"),
        ({"keep": "all", "shape_gamma": 0.2}, "shape_gamma has no effect in a surrogate with keep 'all'"),
        ({"keep": "ring", "clip_high": 3.0}, "the ring of a surrogate must lie outside of its clip range"),
        ({"level": "turn"}, "level must be one of token, sequence, not turn"),
    ],
)
def test_fields_without_effect_are_refused(fields, sentence):
    with pytest.raises(UsageError) as error:
        Surrogate(**fields)
    assert str(error.value) == sentence


def test_the_table_of_the_documentation():
    text = (Path(__file__).parents[2] / "docs" / "surrogates.md").read_text()
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    assert [row[0].strip("`") for row in rows] == list(Surrogate.named)
    for name, _, ratio, keep, bounds, level, advantage, weights in rows:
        surrogate = Surrogate.named[name.strip("`")]
        assert ratio == {"old": "rho", "current": "1", "one": "p"}[surrogate.denominator]
        assert level == surrogate.level
        assert keep.startswith(
            {
                "all": "all",
                "clip": "one-side",
                "two-side": "1 - low <= rho <= 1 + high",
                "ring": "two-side, or back from beyond (0.6, 2.0)",
                "cap": "min(rho, 1 + high)",
                "shape": "0.1 /",
            }[surrogate.keep]
        )
        low, high = surrogate.clip_range
        if high < math.inf:
            numbers = [math.inf if word == "none" else float(word) for word in bounds.split(",")]
            assert numbers == pytest.approx([1 - low if low > 0 else math.inf, high - 1])
        else:
            assert bounds == ""
        assert advantage.split(",")[0] in {*GroupBaseline.named, "any", "GAE", "1"}
        assert weights in ("any", "token", "sequence", "constant")
