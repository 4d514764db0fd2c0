"""The causal language model as a policy: one density for sampling and scoring, numbers against full softmaxes."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from transformers import AutoTokenizer

from polopt.core.errors import UsageError
from polopt.data.base import keep_rows
from polopt.optim import frozen_copy
from polopt.policies import CausalLM
from polopt.policies.base import Density, Imitates, require
from polopt.policies.causal_lm import kept_tokens
from tests.policies.language_models import (
    EOS,
    PROMPTS,
    full_logits,
    ragged,
    rows_of,
    spell,
    tiny_folder,
    tiny_policy,
    wide_folder,
)


@pytest.fixture
def double(float64):
    """A policy in float64."""
    return tiny_policy()


def test_it_is_a_density_and_can_imitate():
    require(tiny_policy(), Density, Imitates, by="a test")


# Acting


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.7}, {"top_k": 5, "temperature": 1.5}, {"top_p": 0.8}, {"top_k": 9, "top_p": 0.6}]
)
def test_recomputed_log_prob_is_the_recorded_one(dtype, tolerance, options):
    torch.set_default_dtype(dtype)
    policy = tiny_policy(**options)
    record, _ = policy.act(PROMPTS * 3)
    assert record["log_prob"].dtype == dtype
    assert (record["log_prob"] - record["engine_log_prob"]).abs().max() < tolerance
    assert (policy.log_prob(rows_of(record)) - record["log_prob"]).abs().max() < tolerance
    assert record["log_prob"][record["mask"]].isfinite().all()
    assert not record["log_prob"].requires_grad


def test_shapes_and_zeros_of_the_record():
    policy = tiny_policy()
    record, carry = policy.act([*PROMPTS, "ab"])
    count, width = record["action"].shape
    assert (count, width) == (4, 12)
    assert record["prompt"].shape == record["prompt_mask"].shape == (4, 17)
    for name in ("prompt", "action"):
        assert record[name].dtype == torch.int64
    for name in ("log_prob", "engine_log_prob"):
        assert record[name].shape == record["mask"].shape == (4, width)
        assert (record[name][~record["mask"]] == 0).all()
    assert (record["prompt"][~record["prompt_mask"]] == 0).all()
    assert record["prompt_mask"].sum(1).tolist() == [5, 17, 1, 2]
    assert record["prompt_mask"][:, -1].all()  # padded on the left
    length = record["mask"].sum(1)
    assert (record["mask"] == (torch.arange(width) < length.unsqueeze(1))).all()  # padded on the right
    assert (carry["attention"].sum(1) == record["prompt_mask"].sum(1) + length).all()


def test_ended_means_that_the_end_was_sampled():
    policy = tiny_policy(max_tokens=40)
    torch.manual_seed(1)
    record, _ = policy.act(["a"] * 60)
    last = record["action"].gather(1, record["mask"].sum(1, keepdim=True) - 1).squeeze(1)
    assert record["ended"].any()
    assert not record["ended"].all()
    assert ((last == EOS) == record["ended"]).all()
    assert (record["mask"].sum(1)[~record["ended"]] == 40).all()
    inside = (record["action"] == EOS) & record["mask"]
    assert (inside.sum(1) == record["ended"].long()).all()  # nothing is written after the end


def test_samples_follow_the_density():
    policy = tiny_policy(max_tokens=1, temperature=1.3, top_k=8)
    record, _ = policy.act(["ab"] * 6000)
    kept = torch.zeros(policy.vocabulary)
    tokens, counts = record["action"][:, 0].unique(return_counts=True)
    kept[tokens] = counts / 6000
    one = policy.tokenize(["ab"] * 8, list("abcdefgh"), eos=False)
    logits = full_logits(policy, one)[0, 0] / 1.3
    logits[logits < logits.topk(8).values[-1]] = -math.inf
    assert (kept > 0).sum() <= 8
    assert (kept - logits.softmax(-1)).abs().max() < 0.025


def test_greedy_is_the_mode(double):
    record, _ = double.act(PROMPTS, greedy=True)
    logits = full_logits(double, rows_of(record))
    assert torch.equal(logits.argmax(-1)[record["mask"]], record["action"][record["mask"]])
    state = torch.get_rng_state()
    assert torch.equal(double.act(PROMPTS, greedy=True)[0]["action"], record["action"])
    assert torch.equal(torch.get_rng_state(), state)


def test_rows_that_leave_change_nothing(double):
    double.config = CausalLM(**{**vars(double.config), "max_tokens": 45})
    records = []
    for share in (0.0, 0.75, 1.0):  # never, now and then, at once
        double.compaction = share
        torch.manual_seed(3)
        records.append(double.act(["a", "b", "c d"] * 20)[0])
        state = torch.get_rng_state()
    assert 5 < int(records[0]["ended"].sum()) < 60
    for record in records[1:]:
        assert torch.equal(record["action"], records[0]["action"])
        assert torch.equal(record["mask"], records[0]["mask"])
        assert (record["log_prob"] - records[0]["log_prob"]).abs().max() < 1e-12
        assert (record["engine_log_prob"] - records[0]["engine_log_prob"]).abs().max() < 1e-12
    torch.manual_seed(3)
    torch.rand(records[0]["action"].shape[1] * 60, dtype=torch.float64)
    assert torch.equal(torch.get_rng_state(), state)  # one number for each row and step


def test_engine_log_probs_can_be_the_recorded_ones():
    record, _ = tiny_policy(log_probs="engine").act(PROMPTS)
    assert torch.equal(record["log_prob"], record["engine_log_prob"])


def test_no_rows():
    record, carry = tiny_policy().act([])
    assert record["action"].shape[0] == carry["tokens"].shape[0] == 0


def test_ends_of_the_generation_config(tmp_path):
    folder = shutil.copytree(tiny_folder(), tmp_path / "m")
    settings = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [EOS, 40]}))
    policy = tiny_policy(folder, max_tokens=40)
    assert policy.tokens.ends == (EOS, 40)
    record, _ = policy.act(["a"] * 60)
    inside = torch.isin(record["action"], torch.tensor([EOS, 40])) & record["mask"]
    assert (inside.sum(1) == record["ended"].long()).all()
    assert ((record["action"] == 40) & record["mask"]).any()


def test_no_pad_token(tmp_path, float64):
    folder = shutil.copytree(tiny_folder(), tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    policy, plain = tiny_policy(folder, max_tokens=40), tiny_policy(max_tokens=40)
    assert (policy.tokens.pad, plain.tokens.pad) == (EOS, 0)
    records = []
    for each in (policy, plain):
        torch.manual_seed(2)
        records.append(each.act(PROMPTS * 10)[0])
    one, two = records
    assert torch.equal(one["mask"], two["mask"])
    assert torch.equal(one["log_prob"], two["log_prob"])
    assert policy.env_action(one["action"]) == plain.env_action(two["action"])


# Conversations


def test_turns_are_one_packed_row(double):
    first, carry = double.act(["one", "two plus"])
    second, after = double.act(["\nnext: ", "b"], carry)
    for row in range(2):
        said = [
            first["prompt"][row][first["prompt_mask"][row]],
            first["action"][row][first["mask"][row]],
            second["prompt"][row][second["prompt_mask"][row]],
            second["action"][row][second["mask"][row]],
        ]
        assert torch.equal(after["tokens"][row][after["attention"][row]], torch.cat(said))
        rest = torch.cat(said[1:])
        sampled = torch.zeros(len(rest), dtype=torch.bool)
        sampled[: len(said[1])] = True
        sampled[len(said[1]) + len(said[2]) :] = True
        whole = TensorDict(
            {
                "prompt": said[0][None],
                "prompt_mask": torch.ones(1, len(said[0]), dtype=torch.bool),
                "completion": rest[None],
                "attention": torch.ones(1, len(rest), dtype=torch.bool),
                "mask": sampled[None],
            },
            batch_size=[1],
        )
        recorded = torch.cat((first["log_prob"][row][first["mask"][row]], second["log_prob"][row][second["mask"][row]]))
        assert (double.log_prob(whole)[0][sampled] - recorded).abs().max() < 1e-10
    assert second["prompt_mask"].sum(1).tolist() == [7, 1]  # only what is new


def test_a_zero_row_of_the_carry_is_a_new_conversation(double):
    _, carry = double.act(["abc", "de"])
    mixed = keep_rows(carry, torch.tensor([False, True]))
    torch.manual_seed(5)
    record, _ = double.act(["fg", "hi"], mixed)
    torch.manual_seed(5)
    alone, _ = double.act(["fg", "hi"])
    assert torch.equal(record["action"][0], alone["action"][0])
    assert not torch.equal(record["action"][1], alone["action"][1])


def test_messages_of_a_later_turn(double):
    ask = [{"role": "user", "content": "2+2"}]
    first, carry = double.act([ask])
    second, _ = double.act([ask], carry)
    text = double.tokenizer.decode(second["prompt"][0][second["prompt_mask"][0]])
    assert text == ("" if first["ended"][0] else "<eos>") + "\nuser: 2+2\nassistant: "


def test_a_conversation_that_outgrows_the_context_is_cut():
    policy = tiny_policy(max_tokens=40)  # of a context of 64
    record, carry = policy.act(["a" * 30, "b"])
    assert record["mask"].sum(1)[0] <= 34
    record, carry = policy.act(["c" * 20, "d"], carry)
    if not record["mask"][0].any():
        assert not record["ended"][0]
        assert not record["prompt_mask"][0].any()  # what was not answered is not part of the row either
    for _ in range(3):
        record, carry = policy.act(["e" * 20, "f" * 20], carry)
    assert not record["mask"].any()
    assert not record["ended"].any()
    assert carry["attention"].sum(1).max() <= 64


# Scoring


def test_log_prob_entropy_and_kl_are_those_of_the_full_softmax(double):
    other = tiny_policy(tiny_folder(seed=1))
    batch = ragged(double)
    own, theirs = (full_logits(policy, batch).log_softmax(-1) for policy in (double, other))
    mask = batch["mask"]
    wanted = {
        "log_prob": own.gather(2, batch["completion"].unsqueeze(2)).squeeze(2),
        "entropy": -(own.exp() * own).sum(-1),
        "kl": (own.exp() * (own - theirs)).sum(-1),
    }
    got = {"log_prob": double.log_prob(batch), "entropy": double.entropy(batch), "kl": double.kl(batch, other)}
    for name, value in got.items():
        assert value.shape == mask.shape
        assert (value - wanted[name])[mask].abs().max() < 1e-10, name
        assert (value[~mask] == 0).all()
    assert torch.equal(double.imitation_loss(batch), -got["log_prob"])
    assert got["kl"][mask].min() > 0.1
    assert double.kl(batch, double).abs().max() < 1e-12


@pytest.mark.parametrize(("top_k", "top_p", "temperature"), [(0, 0.5, 1.0), (7, 1.0, 0.5), (12, 0.7, 2.0)])
def test_cut_density_against_numpy(float64, top_k, top_p, temperature):
    policy = tiny_policy(top_k=top_k, top_p=top_p, temperature=temperature)
    batch = ragged(policy)
    logits = full_logits(policy, batch).detach().numpy()
    log_prob, entropy = policy.log_prob(batch).detach().numpy(), policy.entropy(batch).detach().numpy()
    cut = 0
    for b, t in np.argwhere(batch["mask"].numpy()):
        scaled = logits[b, t] / temperature
        order = np.argsort(-scaled)[: top_k or None]
        mass = np.exp(scaled[order] - scaled[order].max())
        mass /= mass.sum()
        order = order[: 1 + int((np.cumsum(mass) < top_p).sum())] if top_p < 1 else order
        kept = np.exp(scaled[order])
        kept /= kept.sum()
        assert entropy[b, t] == pytest.approx(-(kept * np.log(kept)).sum(), abs=1e-10)
        token = int(batch["completion"][b, t])
        cut += token not in order
        members = list(dict.fromkeys([*order.tolist(), token]))  # the recorded token always belongs
        wanted = scaled[token] - np.log(np.exp(scaled[members]).sum())
        assert log_prob[b, t] == pytest.approx(wanted, abs=1e-10)
    assert cut > 0


def test_kept_tokens_by_hand():
    logits = torch.tensor([[0.5, 0.2, 0.15, 0.1, 0.05], [0.2, 0.2, 0.2, 0.2, 0.2]]).log()
    assert kept_tokens(logits, 2, 1.0).tolist() == [[True, True, False, False, False], [True] * 5]
    assert kept_tokens(logits, 0, 0.6).tolist()[0] == [True, True, False, False, False]
    assert kept_tokens(logits, 0, 0.5).tolist()[0] == [True, False, False, False, False]
    # Of the two likeliest, 5/7 of the mass is in the first.
    assert kept_tokens(logits, 2, 0.7).tolist()[0] == [True, False, False, False, False]
    assert kept_tokens(logits, 9, 1e-9).sum(1).tolist()[0] == 1


@pytest.mark.parametrize("name", ["log_prob", "entropy", "kl"])
def test_gradient_is_that_of_the_full_logits(double, name):
    other = tiny_policy(tiny_folder(seed=1))
    batch = ragged(double)
    weight = torch.randn(batch["mask"].shape) * batch["mask"]
    value = getattr(double, name)(*((batch, other) if name == "kl" else (batch,)))
    (weight * value).sum().backward()
    got = {path: p.grad.clone() for path, p in double.named_parameters()}
    double.zero_grad()
    own = full_logits(double, batch).log_softmax(-1)
    if name == "log_prob":
        plain = own.gather(2, batch["completion"].unsqueeze(2)).squeeze(2)
    elif name == "entropy":
        plain = -(own.exp() * own).sum(-1)
    else:
        plain = (own.exp() * (own - full_logits(other, batch).log_softmax(-1))).sum(-1)
    (weight * plain).sum().backward()
    for path, parameter in double.named_parameters():
        assert (got[path] - parameter.grad).abs().max() < 1e-10, path
        assert parameter.grad.abs().max() > 0


def test_padding_and_holes_change_nothing(double):
    batch = ragged(double)
    plain = double.log_prob(batch)
    zeros = torch.zeros(3, 4, dtype=torch.int64)
    padded = batch.clone()
    padded["prompt"] = torch.cat((zeros + 7, batch["prompt"]), 1)  # masks decide, never the id
    padded["prompt_mask"] = torch.cat((zeros.bool(), batch["prompt_mask"]), 1)
    hole = slice(0, 2), slice(2, None)
    for name, filler in (("completion", zeros[:, :3] + 5), ("attention", zeros[:, :3].bool())):
        padded[name] = torch.cat((batch[name][:, hole[0]], filler, batch[name][:, hole[1]]), 1)
    padded["mask"] = torch.cat((batch["mask"][:, hole[0]], zeros[:, :3].bool(), batch["mask"][:, hole[1]]), 1)
    moved = double.log_prob(padded)
    back = torch.cat((moved[:, :2], moved[:, 5:]), 1)
    assert (back - plain).abs().max() < 1e-10
    assert (moved[:, 2:5] == 0).all()
    assert (double.log_prob(batch[1:2]) - plain[1:2]).abs().max() < 1e-10


def test_an_empty_batch_keeps_its_graph():
    policy = tiny_policy()
    batch = policy.tokenize(PROMPTS, ["a", "b", "c"])
    batch["mask"] = torch.zeros_like(batch["mask"])
    loss = policy.log_prob(batch).sum()
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in policy.parameters())


def test_ids_that_the_tokenizer_does_not_know(tmp_path, float64):
    policy = tiny_policy(wide_folder(tmp_path, 300), max_tokens=30, temperature=3.0)
    record, _ = policy.act(["ab"] * 100)
    assert record["action"].max() < 99
    assert (record["log_prob"] - record["engine_log_prob"]).abs().max() < 1e-10
    batch = policy.tokenize(["ab"], ["c"])
    logits = full_logits(policy, batch)[0, 0, :99] / 3.0
    log_p = logits.log_softmax(-1)
    assert (policy.log_prob(batch)[0, 0] - log_p[spell("c")[0]]).abs() < 1e-10
    assert (policy.entropy(batch)[0, 0] + (log_p.exp() * log_p).sum()).abs() < 1e-10
    assert policy.kl(batch, frozen_copy(policy)).abs().max() < 1e-12
    assert "unknown" not in policy.state_dict()
    for value in (policy.entropy(batch), policy.kl(batch, frozen_copy(policy))):
        value.sum().backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters())


def test_half_precision_weights_score_in_single():
    policy = tiny_policy(dtype="bfloat16")
    record, _ = policy.act(PROMPTS)
    assert policy.model.dtype == torch.bfloat16
    assert record["log_prob"].dtype == record["engine_log_prob"].dtype == torch.float32
    assert (record["log_prob"] - record["engine_log_prob"]).abs().max() < 0.3  # the mismatch that is to be logged


def test_other_families_have_no_divergence(double):
    class Other:
        family = "Gaussian"

    with pytest.raises(UsageError, match="the divergence between a language model and a Gaussian has no closed form"):
        double.kl(ragged(double), Other())


def test_divergences_need_one_vocabulary(double, tmp_path):
    with pytest.raises(UsageError, match="equal vocabularies, and these have 99 and 120"):
        double.kl(ragged(double), tiny_policy(wide_folder(tmp_path, 120)))
