"""How large a language model is: counted from its configuration, without its weights, or guessed from a size such as
7B. Imports no torch until it must count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.core.errors import UsageError

VOCABULARY = 128_000  # of a model of which only the size is known
HEADS = 8 * 128  # numbers in the keys of a token, and in its values, of such a model
DEPTH = 128  # width over layers of such a model, whose layers have 12 width^2 parameters
UNITS = {"m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Shape:
    """What memory and time depend on.

    Attributes:
        name: as it was asked for.
        parameters: all of them.
        outside: those outside of the layers: embeddings, the last norm, the output head.
        layers: how many.
        width: of a state.
        inner: width inside of a layer's feed-forward part.
        cached: numbers in keys and values of a token in one layer.
        adapted: inputs plus outputs of all linear maps but the head: LoRA of rank r has r times as many parameters.
        vocabulary: number of logits.
        counted: whether this is the model's own configuration, or a guess.
    """

    name: str
    parameters: int
    outside: int
    layers: int
    width: int
    inner: int
    cached: int
    adapted: int
    vocabulary: int
    counted: bool

    @property
    def largest(self) -> int:
        """Parameters of one layer, about."""
        return -(-(self.parameters - self.outside) // max(1, self.layers))


def shape_of(name: str) -> Shape:
    """The shape of a model folder, a run folder, a hub id, a size of polopt's own (1m), or any size such as 7B or 350M.

    Raises UsageError for what is neither, and as `pretrained.empty_model` does.
    """
    from polopt.policies.small_lm import SIZES

    size = re.fullmatch(r"(\d+(?:\.\d+)?)([mMbB])", name)
    if size and name not in SIZES:
        return guessed(name, round(float(size[1]) * UNITS[size[2].lower()]))
    from polopt.policies.pretrained import empty_model
    from polopt.policies.small_lm import new_model

    return counted(name, empty_model(new_model(name)))


def guessed(name: str, parameters: int) -> Shape:
    """A dense model of the usual proportions. Raises UsageError for less than a million parameters."""
    if parameters < UNITS["m"]:
        raise UsageError(f"{name}: a size is at least 1M")
    layers = max(1, round((parameters / (12 * DEPTH**2)) ** (1 / 3)))
    width = DEPTH * layers
    inner, heads = 8 * width // 3, min(HEADS, width)
    adapted = layers * (
        6 * width + 2 * heads + 3 * (width + inner)
    )  # of queries, keys, values, output, and three inside
    return Shape(
        name=name,
        parameters=parameters,
        outside=min(VOCABULARY * width, parameters // 2),
        layers=layers,
        width=width,
        inner=inner,
        cached=2 * heads,
        adapted=adapted,
        vocabulary=VOCABULARY,
        counted=False,
    )


def counted(name: str, model: Any) -> Shape:
    """The shape of a model of transformers, with weights or without."""
    from torch import nn

    config = model.config.get_text_config()
    blocks = blocks_of(model)
    inside = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    total = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings()
    maps = [part for part in model.modules() if isinstance(part, nn.Linear) and part is not head]
    fields: Mapping[str, Any] = config.to_dict()
    width = int(fields.get("hidden_size") or model.get_input_embeddings().weight.shape[1])
    heads = int(fields.get("num_attention_heads") or 1)
    keys = int(fields.get("num_key_value_heads") or heads) * int(fields.get("head_dim") or width // heads)
    return Shape(
        name=name,
        parameters=total,
        outside=total - inside,
        layers=len(blocks),
        width=width,
        inner=int(fields.get("intermediate_size") or 4 * width),
        cached=2 * keys,
        adapted=sum(sum(part.weight.shape) for part in maps),
        vocabulary=int(head.weight.shape[0]),
        counted=True,
    )


def blocks_of(model: Any) -> list[Any]:
    """The layers of a model of transformers, in order: its longest list of modules of one class."""
    from torch import nn

    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(set(map(type, part))) == 1]
    outer = [part for part in lists if not any(part is not one and _within(part, one) for one in lists)]
    return max(map(list, outer), key=len, default=[])


def _within(part: Any, other: Any) -> bool:
    return any(part is each for each in other.modules())
