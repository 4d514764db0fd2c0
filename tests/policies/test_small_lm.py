"""Small language models made from a seed."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from polopt.core.errors import UsageError
from polopt.policies import pretrained, text
from polopt.policies.small_lm import CHARACTERS, SIZES, character_tokenizer, make_language_model
from tests.policies.language_models import TINY, tiny_folder

FILES = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def test_equal_seeds_give_equal_bytes(tmp_path):
    state = torch.get_rng_state()
    one, two = (make_language_model(tmp_path / name, TINY, seed=3) for name in "ab")
    other = make_language_model(tmp_path / "c", TINY, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    for file in FILES:
        assert (one / file).read_bytes() == (two / file).read_bytes(), file
    assert (one / FILES[0]).read_bytes() != (other / FILES[0]).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]  # nothing left beside


@pytest.mark.usefixtures("float64")
def test_bytes_do_not_depend_on_the_default_dtype(tmp_path):
    one = make_language_model(tmp_path / "a", TINY)
    torch.set_default_dtype(torch.float32)
    two = make_language_model(tmp_path / "b", TINY)
    assert (one / FILES[0]).read_bytes() == (two / FILES[0]).read_bytes()


@pytest.mark.parametrize(("size", "wanted"), [("0.5m", 0.5e6), ("1m", 1e6), ("3m", 3e6), ("10m", 10e6)])
def test_sizes_are_what_they_say(size, wanted, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_language_model(tmp_path / "m", size, context=64))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(wanted, rel=0.05)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert model.config.max_position_embeddings == 64
    assert size in SIZES


def test_random_weights_are_not_too_small(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(make_language_model(tmp_path / "m", "0.5m"))
    weight = model.get_input_embeddings().weight[1:]  # transformers begins the row of the pad token at zero
    assert float(weight.detach().std()) == pytest.approx(128**-0.5, rel=0.05)


def test_characters_are_tokens(tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(make_language_model(tmp_path / "m", TINY))
    assert len(tokenizer) == len(CHARACTERS) + 3 == 99
    assert tokenizer.decode(tokenizer(CHARACTERS)["input_ids"]) == CHARACTERS
    ids = tokenizer("  12 + 3\n= 15<eos>")["input_ids"]
    assert len(ids) == 14
    assert ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == "  12 + 3\n= 15"
    assert tokenizer("é")["input_ids"] == [tokenizer.unk_token_id]


def test_its_chat_template():
    messages = [{"role": "user", "content": "2+2"}, {"role": "assistant", "content": "4"}]
    tokenizer = character_tokenizer()
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "user: 2+2\nassistant: 4<eos>\n"
    opened = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert opened == "user: 2+2\nassistant: "


def test_replaces_models_only(tmp_path):
    folder = make_language_model(tmp_path / "m", TINY)
    make_language_model(folder, {**TINY, "hidden_size": 16})
    assert AutoModelForCausalLM.from_pretrained(folder).config.hidden_size == 16
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "text.tex").write_text("years of work")
    with pytest.raises(UsageError, match="is no model folder: choose another name"):
        make_language_model(tmp_path / "thesis", TINY)
    assert (tmp_path / "thesis" / "text.tex").exists()


def test_unknown_size(tmp_path):
    with pytest.raises(UsageError, match="did you mean '10m'"):
        make_language_model(tmp_path / "m", "10mm")


@pytest.mark.parametrize("kept", [False, True])
def test_what_tests_read_once_is_what_is_read(kept):
    """`tests.loaded`: a copy of it has weights of its own, and neither draws from the global random state."""
    folder, state = tiny_folder(seed=5), torch.get_rng_state()
    with pretrained.kept_model(folder if kept else None):
        changed, *_ = text.load_pretrained(str(folder), dtype=torch.float64)
        with torch.no_grad():
            for parameter in changed.parameters():
                parameter.zero_()
        found = [load(str(folder), dtype=torch.float64) for load in (text.load_pretrained, pretrained.load_pretrained)]
    assert torch.equal(torch.get_rng_state(), state)
    (copied, tokenizer, source), (read, again, place) = found
    assert source == place
    assert [name for name, _ in copied.named_parameters()] == [name for name, _ in read.named_parameters()]
    for one, two in zip(copied.parameters(), read.parameters()):
        assert one.dtype == two.dtype == torch.float64
        assert torch.equal(one, two) or kept  # weights that wait for those of a checkpoint
    assert copied.get_output_embeddings().weight is copied.get_input_embeddings().weight
    assert copied.config.to_dict() == read.config.to_dict()
    assert copied.generation_config.to_dict() == read.generation_config.to_dict()
    assert not copied.training
    assert tokenizer("12+3= ok")["input_ids"] == again("12+3= ok")["input_ids"]
    assert (tokenizer.get_vocab(), tokenizer.chat_template) == (again.get_vocab(), again.chat_template)
