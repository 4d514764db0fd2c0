"""The causal language model as a policy: one density for sampling and scoring, numbers against full softmaxes."""

from __future__ import annotations

import copy
import json
import math
import re
import shutil

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from tensordict import TensorDict
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from polopt.core.errors import CheckpointError, UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.data.base import keep_rows
from polopt.optim import frozen_copy
from polopt.policies import CausalLM, LoRA, language
from polopt.policies.base import Density, Imitates, require
from polopt.policies.language import kept_tokens
from polopt.policies.small_lm import character_tokenizer
from tests.policies.language_models import TEXT, tiny_folder, tiny_policy

PROMPTS = ["12+3=", "a longer prompt: ", "x"]
EOS = 1


def spell(text):
    return character_tokenizer()(text)["input_ids"]


def batch_of(prompt, prompt_mask, record):
    """The rows that a source makes of one turn."""
    return TensorDict(
        {
            "prompt": prompt,
            "prompt_mask": prompt_mask,
            "completion": record["action"],
            "attention": record["mask"],
            "mask": record["mask"],
        },
        batch_size=[len(prompt)],
    )


def rows_of(record):
    return batch_of(record["prompt"], record["prompt_mask"], record)


def ragged(policy):
    """Supervised rows of unequal lengths, with a hole in a completion and tokens that are not scored."""
    batch = policy.tokenize(PROMPTS, ["15", "yes, indeed", ""])
    batch["mask"][1, 3:5] = False
    batch["attention"][1, 6] = False
    batch["mask"][1, 6] = False
    return batch


def full_logits(policy, batch):
    """[B, T, V] by the model's own forward pass, one packed row at a time: the slow and obvious way."""
    result = torch.zeros(*batch["completion"].shape, policy.vocabulary)
    for b in range(len(batch)):
        real = torch.cat((batch["prompt_mask"][b], batch["attention"][b]))
        tokens = torch.cat((batch["prompt"][b], batch["completion"][b]))[real]
        logits = policy.model(tokens.unsqueeze(0)).logits[0]
        place = real.cumsum(0) - 1
        for t in range(batch["completion"].shape[1]):
            column = batch["prompt"].shape[1] + t
            if batch["mask"][b, t]:
                result[b, t] = logits[place[column] - 1]
    return result


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


def test_text_of_an_action():
    policy = tiny_policy()
    action = torch.tensor([[*spell("ab"), EOS, 0], [*spell("abcd")], [EOS, 0, 0, 0]])
    assert policy.env_action(action) == ["ab", "abcd", ""]


def test_engine_log_probs_can_be_the_recorded_ones():
    record, _ = tiny_policy(log_probs="engine").act(PROMPTS)
    assert torch.equal(record["log_prob"], record["engine_log_prob"])


def test_no_rows():
    record, carry = tiny_policy().act([])
    assert record["action"].shape[0] == carry["tokens"].shape[0] == 0


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


def test_a_prompt_longer_than_the_context():
    policy = tiny_policy()
    assert policy.act(["a" * 63])[0]["mask"].sum() == 1  # room for one token
    with pytest.raises(UsageError, match=r"a prompt has 64 tokens and the context of '.*' holds 64: shorten"):
        policy.act(["a", "a" * 64])
    with pytest.raises(UsageError, match=r"a prompt with its completion has 66 tokens .* holds 64"):
        policy.tokenize(["a" * 63], ["bc"])
    with pytest.raises(UsageError, match="2 prompts need as many completions, not 1"):
        policy.tokenize(["a", "b"], ["c"])


def test_predict_remembers_until_reset():
    policy = tiny_policy(max_tokens=4)
    first = policy.predict("abc")
    policy.predict("abc")
    assert policy._carry["attention"].sum() >= 8
    policy.reset()
    assert policy.predict("abc") == first  # greedy
    while policy._carry["attention"].sum() < 55:
        policy.predict("abc")
    with pytest.raises(UsageError, match=r"the conversation has filled the context of 64 tokens: call reset\(\) first"):
        policy.predict("abcdefghij")


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


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that any operation returned."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                self.largest = max(self.largest, value.untyped_storage().nbytes())
        return result


def wide_folder(tmp_path, vocabulary, **changes):
    """A model whose vocabulary is larger than that of its tokenizer."""
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=64, eos_token_id=EOS, bos_token_id=None, **shape, **changes
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    character_tokenizer(64).save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def test_logits_never_stand_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(language, "SMALL", 0)  # those of this model may
    vocabulary, rows = 4000, 16
    policy = tiny_policy(wide_folder(tmp_path, vocabulary))
    batch = policy.tokenize(["ab"] * rows, ["cdefghijklmnopqrstuvwxyz"] * rows)
    whole = 4 * batch["mask"].numel() * vocabulary
    for compute in (policy.log_prob, policy.entropy, lambda b: policy.kl(b, policy)):
        with Largest() as seen:
            compute(batch).sum().backward()
        assert seen.largest < whole / 4
    with Largest() as seen:
        policy.act(["ab"] * rows)
    assert seen.largest < whole / 4


def test_peak_memory_grows_by_less_than_the_logits(tmp_path):
    vocabulary, rows = 20_000, 16
    policy = tiny_policy(wide_folder(tmp_path, vocabulary))
    batch = policy.tokenize(["ab"] * rows, ["cdefghijklmnopqrstuvwxyz"] * rows)
    whole = 4 * batch["mask"].numel() * vocabulary
    policy.log_prob(batch).sum().backward()  # the gradients are there before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        policy.log_prob(batch).sum().backward()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    assert 0 < peak < whole


def samples(policy):
    """Completions of two prompts, three each and shuffled, of unequal lengths."""
    answers = ["15", "", "seven", "1", "15", "yes, indeed"]
    return policy.tokenize([PROMPTS[0], PROMPTS[1]] * 3, answers)


@pytest.mark.parametrize("name", ["log_prob", "entropy", "kl"])
def test_equal_prompts_are_read_once_and_nothing_else_changes(double, name, monkeypatch):
    batch, other = samples(double), tiny_policy(tiny_folder(seed=1))
    seen = []
    hook = double.model.base_model.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))

    def result():
        double.zero_grad()
        value = double.kl(batch, other) if name == "kl" else getattr(double, name)(batch)
        value.square().sum().backward()
        return [value.detach(), *(parameter.grad.clone() for parameter in double.parameters())]

    shared = result()
    assert [shape[0] for shape in seen] == [2, 6]
    assert seen[1][1] == batch["completion"].shape[1] - 1
    monkeypatch.setattr(language, "_repeated", lambda batch: None)
    for one, two in zip(shared, result()):
        assert (one - two).abs().max() <= 1e-6 * two.abs().max()  # transformers' norms are in single precision
    hook.remove()


def test_prompts_that_hardly_recur_or_have_holes_are_read_row_by_row(double):
    assert language._repeated(samples(double)) is not None
    assert language._repeated(double.tokenize([*PROMPTS], ["1"] * len(PROMPTS))) is None
    batch = samples(double)
    batch["attention"][5, 2] = False
    assert language._repeated(batch) is None


def test_samples_of_a_prompt_are_those_of_prompts_read_one_by_one(double, monkeypatch):
    obs = [PROMPTS[0], PROMPTS[1]] * 3
    torch.manual_seed(0)
    shared, _ = double.act(obs)
    monkeypatch.setattr(language, "_distinct", lambda tokens, real: None)
    torch.manual_seed(0)
    apart, _ = double.act(obs)
    assert torch.equal(shared["action"], apart["action"])
    torch.testing.assert_close(shared["log_prob"], apart["log_prob"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["log_prob", "entropy", "kl"])
def test_compiles_without_a_graph_break(double, name):
    batch = ragged(double)
    arguments = (double,) if name == "kl" else ()

    def loss(batch):
        return getattr(double, name)(batch, *arguments).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        double.zero_grad()
        value = function(batch)
        value.backward()
        results.append((value.detach(), [p.grad.clone() for p in double.parameters()]))
    (plain, gradients), (value, others) = results
    assert (plain - value).abs() < 1e-10
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(gradients, others))


def test_compiled_passes_change_nothing(double):
    shared, apart = samples(double), ragged(double)

    def results(policy):
        torch.manual_seed(0)
        record, _ = policy.act([PROMPTS[0], PROMPTS[1]] * 3)
        found = [record["action"], record["log_prob"]]
        for batch in (shared, apart):
            policy.zero_grad()
            value = policy.log_prob(batch)
            value.square().sum().backward()
            found += [value.detach(), *(parameter.grad.clone() for parameter in policy.parameters())]
        return found

    plain = results(double)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    double.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(results(double), plain, rtol=1e-6, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 2
    twin = copy.deepcopy(double)
    with torch.no_grad():
        twin.model.get_output_embeddings().weight.mul_(-1.0)
    other = results(twin)
    assert not torch.equal(other[0], plain[0]), "a copy of a compiled policy has its own weights"
    torch.testing.assert_close(results(double), plain, rtol=1e-6, atol=1e-6)


# Models of other makes


def gemma(tmp_path, **changes):
    """Caps its logits, has a sliding window in every other layer, and no plain head."""
    config = Gemma2Config(
        vocab_size=99,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        intermediate_size=16,
        max_position_embeddings=64,
        sliding_window=6,
        final_logit_softcapping=2.0,
        initializer_range=0.5,
        pad_token_id=0,
        eos_token_id=EOS,
        bos_token_id=None,
        **changes,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path / "gemma")
    character_tokenizer(64).save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


def gpt2(tmp_path):
    """Learned positions, dropout, and a bias-free tied head."""
    shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    config = GPT2Config(vocab_size=99, **shape, initializer_range=0.5, eos_token_id=EOS, bos_token_id=None)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    character_tokenizer(64).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.mark.parametrize(
    ("make", "headed", "dtype", "tolerance"),
    [(gemma, False, torch.float32, 2e-5), (gpt2, True, torch.float64, 1e-10)],
)
def test_other_models(make, headed, dtype, tolerance, tmp_path):
    torch.set_default_dtype(dtype)
    policy = tiny_policy(make(tmp_path), max_tokens=20)
    assert policy.headed == headed
    assert policy.context == 64
    policy.train()
    record, _ = policy.act(PROMPTS * 4)
    assert (record["log_prob"] - record["engine_log_prob"]).abs().max() < tolerance
    batch = ragged(policy)
    own = full_logits(policy, batch).log_softmax(-1)
    wanted = own.gather(2, batch["completion"].unsqueeze(2)).squeeze(2)
    mask = batch["mask"]
    got = policy.log_prob(batch)
    assert (got - wanted)[mask].abs().max() < tolerance
    assert (policy.entropy(batch) + (own.exp() * own).sum(-1))[mask].abs().max() < tolerance
    assert policy.kl(batch, frozen_copy(policy)).abs().max() < tolerance
    gradients = torch.autograd.grad(got.sum(), list(policy.parameters()))
    plain = torch.autograd.grad((wanted * mask).sum(), list(policy.parameters()))
    assert all((a - b).abs().max() < 10 * tolerance * (1 + b.abs().max()) for a, b in zip(gradients, plain))


def test_attention_in_single_precision(tmp_path, float64):
    with pytest.raises(UsageError, match="computes its attention in single precision: use dtype float32"):
        tiny_policy(gemma(tmp_path))
    assert tiny_policy(tmp_path / "gemma", dtype="float32").act(PROMPTS)[0]["log_prob"].isfinite().all()


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


def test_a_tokenizer_larger_than_the_vocabulary(tmp_path):
    with pytest.raises(UsageError, match="has ids up to 98 and the model a vocabulary of 50: they do not belong"):
        tiny_policy(wide_folder(tmp_path, 50))


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


def test_half_precision_weights_score_in_single():
    policy = tiny_policy(dtype="bfloat16")
    record, _ = policy.act(PROMPTS)
    assert policy.model.dtype == torch.bfloat16
    assert record["log_prob"].dtype == record["engine_log_prob"].dtype == torch.float32
    assert (record["log_prob"] - record["engine_log_prob"]).abs().max() < 0.3  # the mismatch that is to be logged


# Copies, saved state, export


def test_frozen_copy(double):
    twin = frozen_copy(double)
    batch = ragged(double)
    assert torch.equal(twin.log_prob(batch), double.log_prob(batch))
    assert not any(p.requires_grad for p in twin.parameters())
    assert twin.tokenizer is double.tokenizer
    head, table = twin.model.get_output_embeddings().weight, twin.model.get_input_embeddings().weight
    assert head is table
    assert head is not double.model.get_output_embeddings().weight
    with torch.no_grad():
        next(double.parameters()).add_(1.0)
    assert not torch.equal(twin.log_prob(batch), double.log_prob(batch))


def test_saved_state_has_tied_weights_once():
    policy, other = tiny_policy(), tiny_policy(tiny_folder(seed=1))
    state = gather(policy)
    count = sum(p.numel() for p in policy.parameters())
    assert sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor)) == count
    restore(other, state)
    batch = ragged(policy)
    assert torch.equal(other.log_prob(batch), policy.log_prob(batch))
    with pytest.raises(CheckpointError):
        restore(other, {**state, "more": torch.zeros(1)})


def test_stays_in_evaluation_mode():
    policy = tiny_policy()
    policy.train()
    assert not any(module.training for module in policy.modules())


def test_gradient_checkpointing_changes_nothing(double):
    careful = tiny_policy(gradient_checkpointing=True)
    batch = ragged(double)
    results, calls = [], []
    for policy in (double, careful):
        calls.append(0)

        def count(*args):
            calls[-1] += 1

        policy.model.model.layers[0].self_attn.register_forward_pre_hook(count)
        value = policy.log_prob(batch)
        value.sum().backward()
        results.append((value.detach(), [p.grad for p in policy.parameters()]))
    assert calls == [1, 2]
    assert torch.equal(results[0][0], results[1][0])
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(results[0][1], results[1][1]))
    assert not any(module.training for module in careful.modules())
    careful.act(PROMPTS)


def test_export_is_what_transformers_loads(tmp_path):
    policy = tiny_policy()
    with torch.no_grad():
        next(policy.parameters()).add_(0.1)
    folder = policy.export(tmp_path / "deep" / "m")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([spell("12+3=")])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, policy.model(ids).logits)
    assert tokenizer("12+3=")["input_ids"] == ids[0].tolist()
    assert "model.safetensors" in {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*.bin"))
    policy.export(folder)  # again, in its place
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    again = tiny_policy(folder)
    batch = ragged(policy)
    assert torch.equal(again.log_prob(batch), policy.log_prob(batch))


def test_an_export_that_fails_keeps_the_old_one(tmp_path, monkeypatch):
    policy = tiny_policy()
    folder = policy.export(tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policy.tokenizer, "save_pretrained", full)
    with pytest.raises(Exception, match=r"could not be written to .*: No space left on device"):
        policy.export(folder)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_lora_trains_adapters_and_exports_merged(tmp_path, float64):
    plain, policy = tiny_policy(), tiny_policy(lora=LoRA(rank=2, alpha=8.0))
    batch = ragged(policy)
    assert (policy.log_prob(batch) - plain.log_prob(batch)).abs().max() < 1e-12  # begins as the model
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    assert len(names) == 2 * 2 * 7  # two matrices for each of the seven projections of two layers
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        policy.imitation_loss(batch).sum().backward()
        optimizer.step()
    trained = policy.log_prob(batch)
    assert (trained - plain.log_prob(batch)).abs().max() > 1e-3
    record, _ = policy.act(PROMPTS)
    assert (record["log_prob"] - record["engine_log_prob"]).abs().max() < 1e-10
    folder = policy.export(tmp_path / "m")
    assert set(load_file(folder / "model.safetensors")) == set(load_file(tiny_folder() / "model.safetensors"))
    assert (tiny_policy(folder).log_prob(batch) - trained).abs().max() < 1e-10
    assert torch.equal(policy.log_prob(batch), trained)  # exporting merged a copy
    assert torch.equal(frozen_copy(policy).log_prob(batch), trained)


def test_lora_targets():
    policy = tiny_policy(lora=LoRA(targets=("q_proj",)))
    names = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert len(names) == 4
    assert all("q_proj" in name for name in names)
    with pytest.raises(UsageError, match="has no layers named qq_proj to adapt"):
        tiny_policy(lora=LoRA(targets=("qq_proj",)))


# What can be wrong with a model's name or folder


def refused(model, match, **options):
    with pytest.raises(UsageError, match=match) as error:
        CausalLM(model=str(model), **options).build(TEXT)
    message = str(error.value)
    assert "\n" not in message
    assert not message.endswith(".")


def test_spaces_that_are_no_text():
    cart = Spec(spaces.Box(-1, 1, (4,)), spaces.Discrete(2), name="CartPole-v1")
    with pytest.raises(UsageError, match="a language model needs a text task; CartPole-v1 has observations Box and"):
        CausalLM(model="m").build(cart)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    refused("", "a language method needs a model")
    refused(tmp_path / "nothing", re.escape(f"there is no model folder {tmp_path / 'nothing'}"))
    refused("./nothing", re.escape("there is no model folder ./nothing"))
    refused("nobody/nothing-1", "no model folder 'nobody/nothing-1', and the Hugging Face hub has no such model or")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file: name the model's folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "has no config.json")


def test_folders_that_are_refused(tmp_path):
    folder = shutil.copytree(tiny_folder(), tmp_path / "m")
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    refused(folder, "has no weights: model.safetensors is missing")
    (folder / "model.safetensors").write_bytes(weights[:5000])
    refused(folder, f"model '{folder}' cannot be loaded: ")
    (folder / "model.safetensors").write_bytes(weights)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config[:40])
    refused(folder, "has a damaged config.json")
    (folder / "config.json").write_text(json.dumps({**json.loads(config), "auto_map": {"AutoConfig": "x.Y"}}))
    refused(folder, "brings its own Python code, which runs only with trust_remote_code")
    (folder / "config.json").write_text(json.dumps({**json.loads(config), "num_hidden_layers": 3}))
    refused(folder, r"lack 'model\.layers\.2\.input_layernorm\.weight' and 8 more")
    (folder / "config.json").write_text(config)
    (folder / "tokenizer.json").unlink()
    refused(folder, f"model '{folder}' cannot be loaded: ")


def test_pickled_weights_are_refused_unless_asked(tmp_path):
    folder = shutil.copytree(tiny_folder(), tmp_path / "m")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(folder, "has its weights in pickle files only, which are read only with allow_pickle")
    policy = CausalLM(model=str(folder), allow_pickle=True).build(TEXT)
    batch = ragged(policy)
    assert torch.equal(policy.log_prob(batch), tiny_policy().log_prob(batch))


def test_a_run_folder_names_its_model(tmp_path):
    shutil.copytree(tiny_folder(), tmp_path / "run" / "model")
    assert tiny_policy(tmp_path / "run").context == 64


def test_other_families_have_no_divergence(double):
    class Other:
        family = "Gaussian"

    with pytest.raises(UsageError, match="the divergence between a language model and a Gaussian has no closed form"):
        double.kl(ragged(double), Other())


def test_divergences_need_one_vocabulary(double, tmp_path):
    with pytest.raises(UsageError, match="equal vocabularies, and these have 99 and 120"):
        double.kl(ragged(double), tiny_policy(wide_folder(tmp_path, 120)))


def test_copies_share_the_tokenizer(double):
    assert copy.deepcopy(double).tokens is double.tokens
