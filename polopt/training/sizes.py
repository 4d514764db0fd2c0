"""What a language model asks of every device: memory, traffic and time, by arithmetic. Pure functions, without torch.

Weights, gradients and the two moments of Adam have one precision (polopt keeps no second copy of the weights). With
`--shard` each device holds its part of all four and gathers a layer for the layer's own pass, and all of the weights
while it samples. What a backward pass keeps was compared with what torch keeps for layers of Llama: within 15 %.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from polopt.core.errors import UsageError
from polopt.policies.shapes import Shape

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
STATES, INSIDE = 7, 4  # that a layer keeps of a token for the backward pass: of its width, and of its inner width
NORMS = 1.15  # what norms in single precision add
LOGITS, PIECE = 4, 1 << 25  # tensors in single precision as large as the logits of one piece, and its largest size
NEVER = "Computed, not measured: polopt was never run on several GPUs."


@dataclass(frozen=True)
class Work:
    """What is done with how much.

    Attributes:
        devices: how many there are.
        dtype: of weights, gradients and moments.
        rows, length: completions of an optimizer step over all devices, and tokens of one with its prompt.
        tokens: of one backward pass on one device.
        rank: of the adapters, where there are any.
        reference: whether a second model is held to compare with.
        recompute: gradient checkpointing.
        speed: operations per second that a device reaches.
        reads, bandwidth: bytes per second of a device's own memory, and between devices.
    """

    devices: int = 1
    dtype: str = "bfloat16"
    rows: int = 256
    length: int = 1024
    tokens: int = 8192
    rank: int = 16
    reference: bool = False
    recompute: bool = True
    speed: float = 400e12
    reads: float = 3e12
    bandwidth: float = 50e9

    @property
    def own(self) -> int:
        """Completions of a device."""
        return -(-self.rows // self.devices)

    @property
    def passes(self) -> int:
        """Backward passes of a device in an optimizer step."""
        return -(-self.own * self.length // self.tokens)

    @property
    def piece(self) -> int:
        """Tokens of a backward pass."""
        return min(self.tokens, self.own * self.length)


@dataclass(frozen=True)
class Need:
    """What one way of training asks of a device: bytes, bytes sent in an optimizer step, and its seconds.

    Attributes:
        held: weights, gradients, moments, and the reference, by name: always there.
        learning, sampling: by name, what stands beside these then.
        traffic: bytes that a device sends in an optimizer step, and as many that it receives.
        seconds: by name, for traffic, computing and sampling: least times, which do not add up where they overlap.
    """

    held: Mapping[str, float]
    learning: Mapping[str, float]
    sampling: Mapping[str, float]
    traffic: float
    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes at the fullest moment."""
        return sum(self.held.values()) + max(sum(self.learning.values()), sum(self.sampling.values()))


def need(shape: Shape, work: Work, *, shard: bool = False, lora: bool = False) -> Need:
    """What training a model asks of each device, whole or divided, all weights or adapters."""
    size, devices = BYTES[work.dtype], work.devices
    parts = devices if shard else 1
    trained = work.rank * shape.adapted if lora else shape.parameters
    weights = size * (shape.parameters + (trained if lora else 0))
    held = {"weights": weights / parts, "gradients": size * trained / parts, "moments": 2 * size * trained / parts}
    if work.reference:
        held["reference"] = size * shape.parameters / parts
    state = size * work.piece * shape.width
    layer = NORMS * size * work.piece * (STATES * shape.width + INSIDE * shape.inner + shape.cached)
    learning = {
        "states": state * shape.layers + layer if work.recompute else layer * shape.layers,
        "logits": 4.0 * LOGITS * min(work.piece * shape.vocabulary, PIECE),
    }
    sampling = {"cache": float(size * work.own * work.length * shape.cached * shape.layers)}
    if shard:
        learning["gathered"] = float(size * (shape.outside + 2 * shape.largest))
        sampling["gathered"] = float(weights)
    others = (devices - 1) / devices
    if shard:  # for forward, again for backward; the sums of gradients; once for sampling
        traffic = others * (work.passes * (2 * weights + size * trained) + weights)
    else:
        traffic = others * 2 * size * trained
    each = 4 if lora else 6  # operations a parameter and token: forward, back through the states, back to the weights
    operations = (each + 2 * work.recompute) * shape.parameters * work.rows * work.length
    steps = work.length * (weights + sampling["cache"] / 2)  # a token reads all weights and what is cached by then
    seconds = {
        "traffic": traffic / work.bandwidth,
        "computing": operations / (devices * work.speed),
        "sampling": steps / work.reads,
    }
    return Need(held, learning, sampling, traffic, seconds)


WAYS: dict[str, dict[str, bool]] = {
    "whole": {},
    "--shard": {"shard": True},
    "LoRA": {"lora": True},
    "LoRA --shard": {"lora": True, "shard": True},
}


def ways(shape: Shape, work: Work) -> dict[str, Need]:
    """What each way of training asks; of one device, without those that divide."""
    found = {name: need(shape, work, **how) for name, how in WAYS.items()}
    return found if work.devices > 1 else {name: one for name, one in found.items() if "--shard" not in name}


def advice(shape: Shape, work: Work, memory: float) -> str:
    """One sentence: whether the whole model fits `memory` bytes on every device, and if not, what does."""
    asked = ways(shape, work)
    if asked["whole"].total <= memory:
        return f"{shape.name} fits {_devices(work)} of {amount(memory)} whole."
    short = f"{shape.name} whole asks {amount(asked['whole'].total)} of each device and there are {amount(memory)}: "
    fitting = [f"{name} asks {amount(one.total)}" for name, one in asked.items() if one.total <= memory]
    if fitting:
        return short + " and ".join(", ".join(fitting).rsplit(", ", 1)) + "."
    if smaller := _smaller(shape, work, memory):
        return short + smaller + "."
    least = min(one.total for one in asked.values())
    size = BYTES[work.dtype] * shape.parameters
    gathered = f", for sampling gathers all weights, {amount(size)}" if work.devices > 1 and size > memory else ""
    return f"{short}nothing fits, and the least is {amount(least)}{gathered}."


def _smaller(shape: Shape, work: Work, memory: float) -> str:
    """Which fewer tokens a pass, rows a device, or precision would make something fit; empty if none would."""
    fewer, less = _halves(work.piece, work.length), _halves(work.rows, work.devices)
    sizes = [(tokens, work.rows) for tokens in fewer] + [(work.piece, rows) for rows in less]
    sizes += [(fewer[-1], rows) for rows in less]
    for dtype in dict.fromkeys((work.dtype, "bfloat16" if BYTES[work.dtype] > 2 else work.dtype)):
        for tokens, rows in sizes:
            smaller = replace(work, dtype=dtype, tokens=tokens, rows=rows)
            for name, one in ways(shape, smaller).items():
                if one.total <= memory:
                    said = [f"--dtype {dtype}"] * (dtype != work.dtype)
                    said += [f"--tokens {tokens}"] * (tokens < work.piece) + [f"--rows {rows}"] * (rows < work.rows)
                    return f"{name} with {' '.join(said)} asks {amount(one.total)}"
    return ""


def _halves(count: int, least: int) -> list[int]:
    """`count`, half of it, and so on, down to `least`."""
    found = [count]
    while found[-1] > least:
        found.append(max(least, found[-1] // 2))
    return found


def _devices(work: Work) -> str:
    return f"{work.devices} device{'s' * (work.devices > 1)}"


def table(shape: Shape, work: Work, memory: float) -> list[list[str]]:
    """The rows of what `polopt plan` prints, the head first."""
    asked = ways(shape, work)
    rows = [["", *asked]]

    def row(name: str, cells: Sequence[str]) -> None:
        rows.append([name, *cells])

    for name in asked["whole"].held:
        row(name, [amount(one.held[name]) for one in asked.values()])
    for name in ("states", "logits", "gathered"):
        row(f"learning: {name}", [amount(one.learning.get(name, 0)) for one in asked.values()])
    for name in ("cache", "gathered"):
        row(f"sampling: {name}", [amount(one.sampling.get(name, 0)) for one in asked.values()])
    row("at most", [amount(one.total) for one in asked.values()])
    row(f"fits {amount(memory)}", ["yes" if one.total <= memory else "no" for one in asked.values()])
    row("sent a step", [amount(one.traffic) for one in asked.values()])
    for name in asked["whole"].seconds:
        row(f"seconds: {name}", [f"{one.seconds[name]:.2g}" if one.seconds[name] else "-" for one in asked.values()])
    kept = [one for one in rows if not one[0].endswith("gathered") or any(cell != "-" for cell in one[1:])]
    return kept


def amount(count: float) -> str:
    """Bytes with a unit and three figures."""
    if not count:
        return "-"
    unit = next((unit for unit in ("TB", "GB", "MB") if count >= UNITS[unit]), "KB")
    return f"{count / UNITS[unit]:.3g} {unit}"


def read_amount(text: str) -> float:
    """Bytes of a text such as 80GB; a bare number is of GB. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT][bB])?\s*", text)
    if not found or not float(found[1]):
        raise UsageError(f"'{text}' is no amount of memory: write 80GB, for example")
    return float(found[1]) * UNITS[(found[2] or "GB").upper()]
