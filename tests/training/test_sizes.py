"""The arithmetic of `polopt plan`, by numbers that were worked out by hand, and against models that are built."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.data.tokenizing import need as library
from polopt.policies.shapes import Shape, blocks_of, counted, guessed, shape_of
from polopt.training.sizes import Work, advice, amount, need, read_amount, ways

SEVEN = Shape("7B", 7 * 10**9, 10**9, 30, 4000, 10_000, 2048, 2 * 10**6, 100_000, True)
WORK = Work(devices=64, rows=64, length=1000, tokens=1000, speed=1e12, reads=1e12, bandwidth=50e9)
GB = 1e9


def total(found: object) -> float:
    return sum(found.values())  # type: ignore[attr-defined]


def test_adam_in_single_precision_holds_sixteen_bytes_a_parameter():
    single = replace(WORK, dtype="float32")
    assert total(need(SEVEN, single).held) == 112 * GB
    assert total(need(SEVEN, single, shard=True).held) == 1.75 * GB
    assert total(need(SEVEN, WORK).held) == 56 * GB
    assert need(SEVEN, replace(WORK, reference=True)).held["reference"] == 14 * GB


def test_adapters_alone_have_gradients():
    held = need(SEVEN, WORK, lora=True).held
    assert (held["gradients"], held["moments"]) == (64e6, 128e6)  # 16 x 2e6 adapters in two bytes
    assert held["weights"] == 14 * GB + 64e6


def test_a_backward_pass_keeps_a_state_a_layer_and_one_layer_whole():
    """1000 tokens of 4000 numbers in two bytes: 8 MB; within a layer 7 x 4000 + 4 x 10,000 + 2048 numbers a token."""
    inside = 1.15 * 2 * 1000 * 70_048
    assert need(SEVEN, WORK).learning["states"] == pytest.approx(30 * 8e6 + inside)
    assert need(SEVEN, replace(WORK, recompute=False)).learning["states"] == pytest.approx(30 * inside)
    assert need(SEVEN, WORK).learning["logits"] == 16 * 2**25
    assert need(replace(SEVEN, vocabulary=100), WORK).learning["logits"] == 16 * 1000 * 100


def test_sampling_caches_and_a_divided_model_is_gathered():
    assert need(SEVEN, WORK).sampling == {"cache": 2 * 1 * 1000 * 2048 * 30}
    divided = need(SEVEN, WORK, shard=True)
    assert divided.sampling["gathered"] == 14 * GB
    assert divided.learning["gathered"] == 2 * (10**9 + 2 * 200e6)
    assert divided.total == total(divided.held) + total(divided.sampling)


def test_what_is_sent():
    """All-reduce: twice the gradients. A divided model: weights forward and backward, gradients once, and sampling."""
    two = replace(WORK, devices=2, rows=8)  # four passes each
    assert two.passes == 4
    assert need(SEVEN, two).traffic == 0.5 * 28 * GB
    assert need(SEVEN, two, shard=True).traffic == 0.5 * (4 * 42 * GB + 14 * GB)
    assert need(SEVEN, replace(two, devices=1)).traffic == 0
    assert need(SEVEN, WORK).seconds["traffic"] == pytest.approx(0.55, abs=0.002)


def test_seconds():
    """8 operations a parameter and token with recomputing, 6 without; each of 1000 tokens reads 14 GB."""
    assert need(SEVEN, WORK).seconds["computing"] == 8 * 7e9 * 64_000 / 64e12
    assert need(SEVEN, replace(WORK, recompute=False), lora=True).seconds["computing"] == 4 * 7e9 * 64_000 / 64e12
    assert need(SEVEN, replace(WORK, rows=64)).seconds["sampling"] == pytest.approx(14.06, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "changes", "memory", "said"),
    [
        (SEVEN, {}, 80, "7B fits 64 devices of 80 GB whole."),
        (SEVEN, {"devices": 1, "rows": 1}, 80, "7B fits 1 device of 80 GB whole."),
        (SEVEN, {"dtype": "float32"}, 80, "--shard asks 30 GB, LoRA asks 29.9 GB and LoRA --shard asks 28.8 GB."),
        (SEVEN, {"devices": 1, "rows": 64, "tokens": 64_000}, 22.5, "LoRA with --tokens 16000 asks 22.1 GB."),
        (SEVEN, {"rows": 4096}, 18, "--shard with --rows 1024 asks 16.8 GB."),
        (SEVEN, {"dtype": "float32", "reference": True}, 20, "--shard with --dtype bfloat16 asks 15.2 GB."),
        (replace(SEVEN, parameters=7 * 10**10), {}, 80, "the least is 14"),
        (replace(SEVEN, parameters=7 * 10**10), {}, 80, "for sampling gathers all weights, 140 GB"),
    ],
)
def test_where_it_does_not_fit_it_is_said_what_would(shape, changes, memory, said):
    assert said in advice(shape, replace(WORK, **changes), memory * GB)


def test_one_device_divides_nothing():
    assert list(ways(SEVEN, replace(WORK, devices=1))) == ["whole", "LoRA"]


def test_amounts_are_written_and_read():
    assert [amount(count) for count in (0, 2048, 1.75e9, 80e9, 112e9, 3e12)] == [
        *("-", "2.05 KB", "1.75 GB", "80 GB", "112 GB", "3 TB")
    ]
    assert [read_amount(text) for text in ("80GB", "24 gb", "512MB", "80")] == [80e9, 24e9, 512e6, 80e9]
    for wrong in ("much", "0GB", "-1GB", "8 GiB"):
        with pytest.raises(UsageError, match="no amount of memory"):
            read_amount(wrong)


def test_a_model_of_polopts_own_is_counted():
    """1m: 4 layers of 4 x 128^2 + 3 x 128 x 448 + 2 x 128, a norm of 128, and tied embeddings of 99 tokens."""
    shape = shape_of("1m")
    layer = 4 * 128**2 + 3 * 128 * 448 + 2 * 128
    assert (shape.parameters, shape.outside, shape.largest) == (4 * layer + 128 + 99 * 128, 128 + 99 * 128, layer)
    assert (shape.layers, shape.width, shape.inner, shape.cached, shape.vocabulary) == (4, 128, 448, 256, 99)
    assert shape.adapted == 4 * (4 * 256 + 3 * (128 + 448))
    assert shape.counted


def test_adapters_are_as_many_as_peft_makes():
    transformers, peft = library("transformers"), library("peft")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    config.num_key_value_heads = 2
    model = transformers.AutoModelForCausalLM.from_config(config)
    shape = counted("it", model)
    assert shape.cached == 2 * 2 * 8
    assert shape.parameters - shape.outside == sum(p.numel() for p in model.model.layers.parameters())
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules="all-linear", task_type="CAUSAL_LM"))
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == 3 * shape.adapted
    assert len(blocks_of(adapted)) == 2


def test_the_layers_of_a_model_are_found_where_layers_have_lists_of_their_own():
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))

    model = nn.Module()
    model.layers = nn.ModuleList(Layer() for _ in range(3))
    assert blocks_of(model) == list(model.layers)
    assert blocks_of(nn.Linear(1, 1)) == []


def test_a_guess_has_about_the_size_that_was_asked_for():
    for parameters in (500e6, 7e9, 70e9):
        shape = guessed("it", round(parameters))
        assert 12 * shape.layers * shape.width**2 == pytest.approx(parameters, rel=0.15)
        assert 0 < shape.outside <= parameters / 2
    with pytest.raises(UsageError, match="at least 1M"):
        guessed("0.1M", 100_000)


def test_what_layers_of_llama_keep_for_the_backward_pass():
    transformers = library("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=256, intermediate_size=704, num_hidden_layers=2, num_attention_heads=4
    )
    rows, length = 2, 64
    sizes = []
    for layers in (2, 3):
        config.num_hidden_layers = layers
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        kept: dict[int, torch.Tensor] = {}

        def keep(value: torch.Tensor, own: set[int] = own, kept: dict[int, torch.Tensor] = kept) -> torch.Tensor:
            where = value.untyped_storage().data_ptr()
            if where not in own:
                kept[where] = value
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model.base_model(torch.zeros(rows, length, dtype=torch.int64), use_cache=False)
        sizes.append(sum(value.untyped_storage().nbytes() for value in kept.values()))
    work = Work(rows=rows, length=length, recompute=False)
    asked = need(counted("it", model), work).learning["states"] / 3
    assert sizes[1] - sizes[0] == pytest.approx(asked, rel=0.15)


def test_the_command_prints_a_table_and_a_sentence(capsys):
    assert main(["plan", "7B", "--devices", "8", "--memory", "40GB", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "7B: 7,000,000,000 parameters, 33 layers of width 4,224, of the usual proportions"
    assert out[3].split() == ["whole", "--shard", "LoRA", "LoRA", "--shard"]
    assert out[4].split()[:3] == ["weights", "28", "GB"]
    assert "7B whole asks" in out[-2]
    assert out[-1].startswith("Computed, not measured")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("plan 7B --devices 0", "--devices 0: at least 1"),
        ("plan 7B --bandwidth 0", "--bandwidth 0: above 0"),
        ("plan 7B --memory much", "no amount of memory"),
        ("plan 0.5k/", "there is no model folder"),
    ],
)
def test_wrong_commands(command, said, capsys):
    assert main(command.split()) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_brings_code_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama", "auto_map": {"AutoConfig": "x.Y"}}')
    with pytest.raises(UsageError, match="brings its own Python code"):
        shape_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "of nobody"}')
    with pytest.raises(UsageError, match="cannot be read"):
        shape_of(str(tmp_path))
