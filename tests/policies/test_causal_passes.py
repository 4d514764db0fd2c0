"""The passes through a causal model: shared prompts, compilation, recomputation, models of other makes."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from polopt.core.errors import UsageError
from polopt.optim import frozen_copy
from polopt.policies import LoRA, causal_passes, causal_scoring
from polopt.policies.causal_passes import shared_prompts
from polopt.policies.small_lm import character_tokenizer
from tests.policies.language_models import EOS, PROMPTS, full_logits, ragged, tiny_folder, tiny_policy


@pytest.fixture
def double(float64):
    """A policy in float64."""
    return tiny_policy()


@pytest.fixture
def compact(float64):
    """A policy in float64 of one layer: in a graph of all another one would be compiled in the same way."""
    return tiny_policy(tiny_folder(layers=1))


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
    monkeypatch.setattr(causal_scoring, "shared_prompts", lambda batch: None)
    for one, two in zip(shared, result()):
        assert (one - two).abs().max() <= 1e-6 * two.abs().max()  # transformers' norms are in single precision
    hook.remove()


def test_prompts_that_hardly_recur_or_have_holes_are_read_row_by_row(double):
    assert shared_prompts(samples(double)) is not None
    assert shared_prompts(double.tokenize([*PROMPTS], ["1"] * len(PROMPTS))) is None
    batch = samples(double)
    batch["attention"][5, 2] = False
    assert shared_prompts(batch) is None


@pytest.mark.parametrize("older", [False, True])
def test_the_cache_goes_by_the_name_that_the_model_knows(double, older, monkeypatch):
    """transformers 5.24 calls `cache` what was `past_key_values`, and warns of the older name."""
    batch, known = samples(double), double.passes.keys
    expected = double.log_prob(batch)
    for part in (double.model, double.model.base_model) if older else ():
        monkeypatch.setattr(part, "forward", named_as_before(part.forward, known))
    double.passes = causal_passes.CausalPasses(double.model, batch["prompt"][0])
    assert double.passes.keys == ("past_key_values" if older else known)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        assert torch.equal(double.log_prob(batch), expected)
        double.act([PROMPTS[0], PROMPTS[1]])


def named_as_before(forward, known):
    """`forward` with the older name of the cache."""

    def older(*args, past_key_values=None, position_ids=None, **options):
        named = {} if past_key_values is None else {known: past_key_values}
        return forward(*args, position_ids=position_ids, **options | named)

    return older


def test_samples_of_a_prompt_are_those_of_prompts_read_one_by_one(double, monkeypatch):
    obs = [PROMPTS[0], PROMPTS[1]] * 3
    torch.manual_seed(0)
    shared, _ = double.act(obs)
    monkeypatch.setattr(causal_passes, "distinct_rows", lambda tokens, real: None)
    torch.manual_seed(0)
    apart, _ = double.act(obs)
    assert torch.equal(shared["action"], apart["action"])
    torch.testing.assert_close(shared["log_prob"], apart["log_prob"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["log_prob", "entropy", "kl"])
def test_compiles_without_a_graph_break(compact, name):
    batch = ragged(compact)
    arguments = (compact,) if name == "kl" else ()

    def loss(batch):
        return getattr(compact, name)(batch, *arguments).sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for function in (loss, compiled):
        compact.zero_grad()
        value = function(batch)
        value.backward()
        results.append((value.detach(), [p.grad.clone() for p in compact.parameters()]))
    (plain, gradients), (value, others) = results
    assert (plain - value).abs() < 1e-10
    assert all((a - b).abs().max() < 1e-10 for a, b in zip(gradients, others))


def taught(policy):
    """What a policy writes, and the values and gradients of a batch with shared prompts and of one without."""
    torch.manual_seed(0)
    record, _ = policy.act([PROMPTS[0], PROMPTS[1]] * 3)
    found = [record["action"], record["log_prob"]]
    for batch in (samples(policy), ragged(policy)):
        policy.zero_grad()
        value = policy.log_prob(batch)
        value.square().sum().backward()
        found += [value.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)]
    return found


def counted(policy, **options):
    """The graphs that compiling the policy will have made, in a list that grows."""
    graphs = []
    torch._dynamo.reset()
    policy.compile(backend=lambda graph, inputs: graphs.append(graph) or graph, **options)
    return graphs


def test_compiled_passes_change_nothing(double):
    plain = taught(double)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    double.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(taught(double), plain, rtol=1e-6, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 2
    twin = copy.deepcopy(double)
    with torch.no_grad():
        for layer in twin.model.model.layers:
            layer.mlp.down_proj.weight.mul_(-1.0)
    assert not torch.equal(taught(twin)[0], plain[0]), "a copy of a compiled policy has its own weights"
    torch.testing.assert_close(taught(double), plain, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("options", [{"lora": LoRA()}, {"gradient_checkpointing": True}])
def test_adapters_and_layers_that_are_recomputed_compile(options, float64):
    policy = tiny_policy(**options)
    plain = taught(policy)
    graphs = counted(policy)
    torch.testing.assert_close(taught(policy), plain, rtol=1e-6, atol=1e-6)
    assert graphs


def test_layers_are_compiled_once_for_all_of_them(float64):
    """A prompt and its completions, with gradients and without, and the next token: five graphs, however many layers
    there are and tokens are written."""
    made = []
    for layers in (1, 3):
        policy = tiny_policy(tiny_folder(layers=layers))
        graphs = counted(policy, fullgraph=True)
        for _ in range(2):
            policy.act([PROMPTS[0], PROMPTS[1]] * 3)
            policy.log_prob(samples(policy)).sum().backward()
        made.append(len(graphs))
    assert made == [5, 5]


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
    assert policy.passes.headed == headed
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


@pytest.mark.parametrize("make", [gemma, gpt2])
def test_other_models_compile(make, tmp_path):
    """Also one whose head is more than a matrix; longer texts need no other graphs."""
    policy = tiny_policy(make(tmp_path), max_tokens=8)
    plain = taught(policy)
    graphs = counted(policy)
    torch.testing.assert_close(taught(policy), plain, rtol=1e-4, atol=1e-4)
    before = len(graphs)
    assert before
    policy.act([PROMPTS[0], PROMPTS[1]] * 3)
    assert len(graphs) == before


def test_attention_in_single_precision(tmp_path, float64):
    if Gemma2ForCausalLM.from_pretrained(gemma(tmp_path)).config._attn_implementation != "eager":
        pytest.skip("this transformers computes the attention of Gemma 2 in the precision of the model")
    with pytest.raises(UsageError, match="computes its attention in single precision: use dtype float32"):
        tiny_policy(tmp_path / "gemma")
    assert tiny_policy(tmp_path / "gemma", dtype="float32").act(PROMPTS)[0]["log_prob"].isfinite().all()
