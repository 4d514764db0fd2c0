"""What all language policies share: tokens in, texts out, copies, saved state, adapters, and what can be wrong."""

from __future__ import annotations

import copy
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from polopt.core.errors import CheckpointError, UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.optim import frozen_copy
from polopt.policies import CausalLM, LoRA
from tests.data.conversations import made
from tests.policies.language_models import EOS, PROMPTS, TEXT, ragged, spell, tiny_folder, tiny_policy, wide_folder


@pytest.fixture
def double(float64):
    """A policy in float64."""
    return tiny_policy()


# Texts and tokens


def test_text_of_an_action():
    policy = tiny_policy()
    action = torch.tensor([[*spell("ab"), EOS, 0], [*spell("abcd")], [EOS, 0, 0, 0]])
    assert policy.env_action(action) == ["ab", "abcd", ""]


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


def test_a_tokenizer_larger_than_the_vocabulary(tmp_path):
    with pytest.raises(UsageError, match="has ids up to 98 and the model a vocabulary of 50: they do not belong"):
        tiny_policy(wide_folder(tmp_path, 50))


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


def test_copies_share_the_tokenizer(double):
    assert copy.deepcopy(double).tokens is double.tokens


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


def chatty(tmp_path, template="chatml", kind="pieces-first"):
    """A model folder with a tokenizer whose chat template ends answers otherwise than its eos."""
    tokenizer = made(kind, template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "chatty")
    # As models of the hub say it; the library refuses to save such settings once they are changed.
    settings = {"do_sample": False, "temperature": 0.7, "eos_token_id": tokenizer.eos_token_id}
    (tmp_path / "chatty" / "generation_config.json").write_text(json.dumps(settings))
    tokenizer.save_pretrained(tmp_path / "chatty")
    return tmp_path / "chatty"


def test_the_end_that_a_template_writes_ends_generation(tmp_path):
    policy = tiny_policy(chatty(tmp_path), max_tokens=200)
    end = policy.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert policy.tokens.ends == (policy.tokenizer.eos_token_id, end)
    record, _ = policy.act([[{"role": "user", "content": "a"}]] * 100)
    inside = torch.isin(record["action"], torch.tensor(policy.tokens.ends)) & record["mask"]
    assert (inside.sum(1) == record["ended"].long()).all()
    assert ((record["action"] == end) & record["mask"]).any()
    folder = policy.export(tmp_path / "exported")
    settings = GenerationConfig.from_pretrained(folder)
    assert settings.eos_token_id == list(policy.tokens.ends)
    assert settings.temperature == 0.7
    assert tiny_policy(folder).tokens.ends == policy.tokens.ends
    assert AutoTokenizer.from_pretrained(folder).chat_template == policy.tokenizer.chat_template
    assert GenerationConfig.from_pretrained(tiny_policy().export(tmp_path / "plain")).eos_token_id == EOS


def test_answers_to_messages_are_given_without_what_the_template_writes(tmp_path, monkeypatch):
    policy = tiny_policy(chatty(tmp_path, "llama2"))
    ask = [{"role": "user", "content": "a"}]
    rows = policy.tokenize([ask], ["yes"])["completion"]
    assert policy.decode(rows, rows > 0, behind=True) == [" yes "]
    record = {"action": rows, "mask": torch.ones_like(rows, dtype=torch.bool)}
    monkeypatch.setattr(policy, "act", lambda *args, **options: (record, {}))
    assert policy.predict(ask) == "yes"
    assert policy.predict("a") == " yes "
    for conversational, answer in ((False, " yes "), (True, "yes")):
        policy.spec = replace(TEXT, info={"conversational": conversational})
        assert policy.env_action(rows) == [answer]


def test_an_export_that_fails_keeps_the_old_one(tmp_path, monkeypatch):
    policy = tiny_policy()
    folder = policy.export(tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(policy.tokenizer, "save_pretrained", full)
    with pytest.raises(Exception, match=r"could not write .*: the disk is full"):
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
