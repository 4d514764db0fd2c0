"""CHORD against numpy: the two weights of imitation, what they are means over, and what demonstrations never touch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from polopt.core.errors import UsageError
from polopt.data.demonstrated import IMITATED, OWN, demonstrated
from polopt.methods.language.chord import mu_at
from polopt.training import api
from tests.guards.harness import advance
from tests.policies.language_models import tiny_folder

MUST = 4
PROMPTS, SAMPLES, EXPERTS, LENGTH = 3, 4, 5, 12


def make(name="chord", **settings):
    """Sums of one and two digits: three prompts of four completions, and five demonstrations."""
    own = {"model": str(tiny_folder()), "policy.max_tokens": LENGTH, "batch_prompts": PROMPTS, "max_grad_norm": None}
    own |= {"samples_per_prompt": SAMPLES, "lr": 1e-2} | ({"experts": EXPERTS} if name == "chord" else {})
    options = settings.pop("task_options", {"digits": [1, 2], "score_truncated": True})
    return api.plan(name, "addition", task_options=options, **own | settings).build()


def collected(method, right=(1, 0, 2)):
    """A batch in which so many completions of each prompt are right."""
    batch = method.collect()
    batch["correct"] = torch.tensor(np.concatenate([np.arange(SAMPLES) < count for count in right]))
    batch["reward"] = batch["correct"].double()
    batch["failed"] = torch.zeros_like(batch["failed"])
    return batch


def rows_of(method, **options):
    """The rows of the one step of an update."""
    (rows,) = method.optimizer_batches(method.evaluate_groups(collected(method, **options)))
    return rows


def slopes(method, rows, seed=0):
    """(log_prob, d loss / d log_prob) numpy [B, T], at log-probabilities away from the old ones, and the metrics."""
    rng = np.random.default_rng(seed)
    new = torch.tensor(rng.uniform(-3, -0.01, rows["mask"].shape)) * rows["mask"]
    new = torch.where((rows["origin"] == OWN).unsqueeze(1), rows["log_prob"] + 0.05 * new, new).requires_grad_()
    method.policy.log_prob = lambda batch: new
    loss, metrics = method.policy_loss(rows)
    (found,) = torch.autograd.grad(loss, new)
    del method.policy.log_prob
    return new.detach().numpy(), found.numpy(), {name: value.item() for name, value in metrics.items()}


@pytest.mark.parametrize("emphasis", ["none", "probability", "uncertainty"])
@pytest.mark.parametrize("mu", [0.1, 0.7])
def test_must_2_both_weights_of_a_token_against_numpy(mu, emphasis, float64):
    """Each loss is a mean over its own tokens: neither the other's rows nor their number is in it (MUST 3)."""
    method = make(mu_valley=mu, emphasis=emphasis)
    rows = rows_of(method)
    new, found, metrics = slopes(method, rows)
    mask, expert = rows["mask"].numpy(), rows["origin"].numpy() == IMITATED
    assert expert.tolist() == [False] * PROMPTS * SAMPLES + [True] * EXPERTS
    own_tokens, expert_tokens = mask[~expert].sum(), mask[expert].sum()
    assert own_tokens != expert_tokens
    expected = np.zeros_like(found)
    reward = np.concatenate([np.arange(SAMPLES) < count for count in (1, 0, 2)]).astype(float)
    phis = []
    for i, t in zip(*np.nonzero(mask)):
        if expert[i]:
            p = math.exp(new[i, t])
            phi = {"none": 1.0, "probability": p, "uncertainty": p * (1 - p)}[emphasis]
            phis.append(phi)
            expected[i, t] = -mu * phi / expert_tokens  # phi has no gradient of its own
        else:
            group = reward[SAMPLES * (i // SAMPLES) : SAMPLES * (i // SAMPLES) + SAMPLES]
            advantage = (reward[i] - group.mean()) / (group.std(ddof=1) + 1e-6)
            expected[i, t] = -(1 - mu) * advantage * math.exp(new[i, t] - rows["log_prob"][i, t].item()) / own_tokens
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
    assert metrics["expert_emphasis"] == pytest.approx(np.mean(phis))
    assert metrics["expert_log_prob"] == pytest.approx(new[expert][mask[expert]].mean())


def test_must_1_the_slope_on_the_tokens_own_logit_is_largest_at_one_third(float64):
    method = make(mu_valley=1.0)
    slope = {}
    for p in np.arange(1, 100) / 100:
        logits = torch.tensor([[math.log(p), math.log1p(-p)]], requires_grad=True)
        log_prob = logits.log_softmax(-1)[:, 0]
        loss = -(method.importance(log_prob, torch.ones(1)) * log_prob).sum()
        slope[p] = -torch.autograd.grad(loss, logits)[0][0, 0].item()
        assert slope[p] == pytest.approx(p * (1 - p) ** 2, abs=1e-12)
    assert max(slope, key=slope.get) == pytest.approx(0.33)
    assert max(slope.values()) == pytest.approx(4 / 27, abs=1e-4)


def test_must_3_mu_means_the_same_with_more_experts(float64):
    """The pull of each kind is that of a mean: twice the experts, or the same ones twice, pull no harder."""
    pulls = []
    for experts in (EXPERTS, 2 * EXPERTS):
        method = make(experts=experts, expert_pool=EXPERTS, seed=3, mu_valley=0.5, emphasis="none")
        rows = method.weigh(rows_of(method))
        assert rows["weight"].sum().item() == pytest.approx(1)
        assert rows["expert_weight"].sum().item() == pytest.approx(1)
        loss = -(rows["expert_weight"] * method.policy.log_prob(rows)).sum()
        pulls.append(torch.autograd.grad(loss, method.policy.passes.head.weight)[0].norm().item())
    assert pulls[0] == pytest.approx(pulls[1], rel=1e-6)


def test_must_4_experts_are_in_no_group_and_in_no_number_of_the_sampler(float64):
    method, grpo = make(seed=2), make("grpo", seed=2, aggregate="token", reference_kl=None)
    batch = collected(grpo)
    rows = method.mix(method.evaluate_groups(batch))
    advantage = grpo.evaluate_groups(batch)["advantage"]
    assert torch.equal(rows["advantage"][: len(batch)], advantage)
    assert (rows["advantage"][len(batch) :] == 0).all()
    method.policy.load_state_dict(grpo.policy.state_dict())
    mine, theirs = method.update(batch.clone()), grpo.update(batch.clone())
    same = ("reward", "accuracy", "completion_length", "informative", "surrogate", "approx_kl", "clip_fraction")
    for name in same:
        torch.testing.assert_close(mine[name], theirs[name], msg=name)


def test_experts_are_demonstrations_of_their_own_problems_each_once_an_epoch():
    method = make(expert_pool=EXPERTS + 1)
    seen = []
    for _ in range(EXPERTS + 1):
        rows = method.mix(method.evaluate_groups(collected(method)))
        expert = rows["origin"] == IMITATED
        ids = rows["index"][expert].tolist()
        seen += ids
        shown = demonstrated(method.task, method.policy, ids)
        texts = method.policy.decode(shown["completion"], shown["attention"])
        assert method.policy.decode(rows["completion"][expert], rows["attention"][expert]) == texts
    assert np.bincount(seen).tolist() == [EXPERTS] * (EXPERTS + 1)


def test_all_weight_on_imitation_is_supervised_fine_tuning(float64):
    """mu = 1 without phi: the gradient of `sft` on the experts' rows."""
    method = make(mu_valley=1.0, emphasis="none", seed=4)
    sft = api.plan(
        "sft", "addition", model=str(tiny_folder()), task_options={"digits": [1, 2]}, **{"policy.max_tokens": LENGTH}
    ).build()
    sft.policy.load_state_dict(method.policy.state_dict())
    rows = rows_of(method)
    loss, _ = method.policy_loss(rows)
    taught, _ = sft.imitation_loss(sft.weigh(rows[rows["origin"] == IMITATED]))
    assert loss.item() == pytest.approx(taught.item(), abs=1e-12)
    for one, other in zip(
        *(torch.autograd.grad(x, list(m.policy.parameters())) for x, m in ((loss, method), (taught, sft)))
    ):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-6)


def test_likelier_tokens_than_the_cutoff_are_let_be_and_phi_is_that_of_p(float64):
    method = make(mu_valley=1.0, cutoff=0.3)
    rows = rows_of(method)
    new, found, metrics = slopes(method, rows)
    mask = rows["mask"].numpy() & (rows["origin"].numpy() == IMITATED)[:, None]
    p = np.exp(new[mask])
    assert metrics["expert_emphasis"] == pytest.approx((p * (1 - p)).mean())
    assert 0 < (p > 0.3).sum() < len(p)
    np.testing.assert_allclose(found[mask], np.where(p > 0.3, 0.0, -p * (1 - p) / mask.sum()), atol=1e-15)


# mu


def test_the_schedule_rises_and_falls_by_half_a_cosine():
    mu = [mu_at(step, 200, 400, 0.5, 0.02) for step in (0, 50, 200, 300, 400, 500, 599, 600, 5_000)]
    quarter = 0.48 * (1 + math.sqrt(0.5)) / 2
    expected = [0, 0.125, 0.5, 0.02 + quarter, 0.26, 0.5 - quarter, 0.02, 0.02, 0.02]
    assert mu == pytest.approx(expected, abs=1e-5)
    assert [mu_at(step, 0, 200, 0.9, 0.05) for step in (0, 100, 200)] == pytest.approx([0.9, 0.475, 0.05])
    assert mu_at(0, 0, 0, 0.9, 0.1) == 0.1


def test_mu_goes_by_batches_and_at_zero_nothing_is_drawn(monkeypatch):
    method = make(mu_peak=0.8, mu_valley=0.0, mu_warmup=2, mu_decay=2, updates_per_batch=2)
    drawn, draw = [], method.experts.sampler.draw
    monkeypatch.setattr(method.experts.sampler, "draw", lambda count: drawn.append(count) or draw(count))
    shown = [float(method.update(collected(method))["mu"]) for _ in range(6)]
    assert shown == pytest.approx([0.4, 0.8, 0.4, 0.0, 0.0, 0.0])  # the first batch is number 1
    assert drawn == [EXPERTS] * 3


def test_micro_batches_add_up(float64):
    weights = []
    for micro_batch in (None, 2):
        method = make(micro_batch=micro_batch, seed=1, mu_valley=0.5)
        advance(method, 2)
        weights.append(torch.cat([p.detach().flatten() for p in method.policy.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "words"), [({"mu_peak": 0.5}, "mu_peak"), ({"emphasis": "none", "cutoff": 0.5}, "cutoff")]
)
def test_what_would_do_nothing_is_refused(settings, words):
    with pytest.raises(UsageError, match=rf"{words}.*no effect"):
        make(**settings)


def test_more_experts_than_problems_are_refused():
    options = {"digits": [1, 2], "score_truncated": True, "pool": 8}
    assert make(expert_pool=8, task_options=options).experts.sampler.size == 8
    with pytest.raises(UsageError, match=r"^expert_pool 9 is more than the 8 problems of addition"):
        make(expert_pool=9, task_options=options)


def test_the_official_runs():
    """With a tiny model in place of Qwen's."""
    common = {"model": "tiny", "loggers": (), "task_options": {"digits": 1}, "policy.max_tokens": 4}
    first = 0.05 + 0.85 * (1 + math.cos(math.pi / 200)) / 2
    for preset, mu, phi in (("paper", 0.1, "uncertainty"), ("mu", first, "none"), ("both", 0.5 / 200, "uncertainty")):
        planned = api.plan("chord", "addition", preset=preset, **common)
        config, method = planned.config, planned.build()
        assert (method.mu, config.emphasis) == (mu, phi)
        assert (config.batch_prompts * config.samples_per_prompt, config.experts) == (256, 64)
        assert (config.aggregate, config.reference_kl, config.updates_per_batch) == ("token", None, 1)
        assert (config.surrogate.clip_low, config.surrogate.clip_high) == (0.2, 0.2)
        method.batches = 10_000
        assert method.mu == {"paper": 0.1, "mu": 0.05, "both": 0.02}[preset]
