"""A feed-forward policy as one file that runs without polopt: ONNX, TorchScript, or torch.export's PT2.

The file holds what `predict` does: it reads a batch of observations as the environment gives them, acts greedily, and
writes actions as the environment takes them.
"""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.errors import RunError, UsageError
from polopt.core.modules import default_dtype, dtype_of
from polopt.core.observations import MASK_KEY
from polopt.core.random import paired
from polopt.policies.base import Actor
from polopt.policies.conditioned import BEGUN, CONTEXT, Conditioned
from polopt.policies.text import TextPolicy
from polopt.tasks.spaces import rounded

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2"}
CHECKED = (1, 3)  # batch sizes at which the file must do what `predict` does


class Greedy(nn.Module):
    """What `predict` computes, of one tensor for each array of the observations [N, ...], in the environment's types.

    Returns the actions [N, ...] that the environment takes.
    """

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self.actor = actor
        self.kind = getattr(torch, str(actor.spec.action.dtype))

    def forward(self, *arrays: Tensor) -> Tensor:
        obs = _read(self.actor.spec.raw_obs, iter(arrays))
        action = self.actor.env_action(self.actor.act(obs, greedy=True)[0]["action"])
        return rounded(action, self.actor.spec.action).to(self.kind)


def names(space: spaces.Space, prefix: str = "") -> list[str]:
    """The arrays of an observation, in order: "obs", or of Dict and Tuple spaces the keys, nested ones with dots."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [prefix or "obs"]
    return [name for key, part in _parts(space) for name in names(part, f"{prefix}.{key}" if prefix else str(key))]


def arrays(space: spaces.Space, obs: Any) -> list[np.ndarray]:
    """The arrays of a batch of observations, in the order of `names` and in the types of the space."""
    if not isinstance(space, (spaces.Dict, spaces.Tuple)):
        return [np.asarray(obs, dtype=space.dtype)]
    return [array for key, part in _parts(space) for array in arrays(part, obs[key])]


def exported(actor: Actor, kind: str) -> bytes:
    """The content of the file. Its inputs are called as `names` says, and its output "action"; N is free.

    Raises UsageError for policies that are no function of one observation, a format that there is not, and packages
    that are missing; RunError where the file would not do what `predict` does.
    """
    if kind not in FORMATS:
        raise UsageError(f"there is no format '{kind}'; choose {', '.join(FORMATS)}")
    if isinstance(actor, TextPolicy):
        raise UsageError("a language model needs no export: the folder model/ of its run is one of transformers")
    if actor.recurrent:
        raise UsageError("a recurrent policy is no function of one observation: only feed-forward ones are exported")
    space = actor.spec.raw_obs
    # Two rows at least: a batch of one would be taken for a fixed size.
    samples = [_sampled(space, count) for count in (2, *CHECKED)]
    with default_dtype(dtype_of(actor)), paired(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing: what it would get wrong is found below
        module = Greedy(actor).eval()
        wanted = [module(*map(torch.from_numpy, one)) for one in samples]
        obs = _read(space, iter(map(torch.from_numpy, samples[0])))
        told = {CONTEXT, BEGUN} if isinstance(actor, Conditioned) else set()  # the file holds what it is told by now
        if actor.act(obs, greedy=True)[1].keys() - told:
            raise UsageError(
                f"a {actor.family} acts by what it did before too: only functions of one observation are exported"
            )
        torch.rand(1)
        if not all(torch.equal(module(*map(torch.from_numpy, one)), want) for one, want in zip(samples, wanted)):
            raise UsageError(f"a {actor.family} draws random numbers when it acts greedily, so it is not exported")
        try:
            content, run = _WRITERS[kind](module, tuple(map(torch.from_numpy, samples[0])), names(space))
            found = [run(one) for one in samples[1:]]
        except UsageError:
            raise
        except Exception as error:  # the exporters raise dozens of types, with pages of text
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RunError(f"this {actor.family} cannot be exported as {kind}: {said}") from error
    for one, want in zip(found, wanted[1:]):
        close = one.shape == want.shape and np.allclose(one, want.numpy(), rtol=1e-3, atol=1e-4)
        if not close:
            raise RunError(f"this {actor.family} cannot be exported as {kind}: it would not act as predict does")
    return content


def _need(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(f'the format onnx needs {package}: pip install "polopt[onnx]"') from None


def _onnx(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str]) -> tuple[bytes, Any]:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        _need(package)
    said = logging.getLogger("torch.onnx")
    level = said.level
    said.setLevel(logging.ERROR)  # it warns of packages that are not installed and not needed
    try:
        program = torch.onnx.export(
            module,
            example,
            input_names=inputs,
            output_names=["action"],
            dynamic_shapes=_free(example),
            dynamo=True,
            verbose=False,
        )
    finally:
        said.setLevel(level)
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = _need("onnxruntime").InferenceSession(content, providers=["CPUExecutionProvider"])
    fed = {item.name for item in session.get_inputs()}
    return content, lambda one: session.run(None, {k: v for k, v in zip(inputs, one, strict=True) if k in fed})[0]


def _torchscript(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str]) -> tuple[bytes, Any]:
    traced = torch.jit.freeze(torch.jit.trace(module, example, check_trace=False))  # no parameters: nor gradients
    file = io.BytesIO()
    torch.jit.save(traced, file)
    again = torch.jit.load(io.BytesIO(file.getvalue()))
    return file.getvalue(), lambda one: again(*map(torch.from_numpy, one)).numpy()


def _pt2(module: nn.Module, example: tuple[Tensor, ...], inputs: list[str]) -> tuple[bytes, Any]:
    program = torch.export.export(module, example, dynamic_shapes=_free(example))
    file = io.BytesIO()
    torch.export.save(program, file)
    again = torch.export.load(io.BytesIO(file.getvalue())).module()
    return file.getvalue(), lambda one: again(*map(torch.from_numpy, one)).numpy()


_WRITERS = {"onnx": _onnx, "torchscript": _torchscript, "pt2": _pt2}


def _free(example: Sequence[Tensor]) -> tuple[Any, ...]:
    """The first dimension of every input is one and the same free number."""
    batch = torch.export.Dim("batch")
    return (tuple({0: batch} for _ in example),)


def _parts(space: spaces.Dict | spaces.Tuple) -> list[tuple[Any, spaces.Space]]:
    return list(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))


def _read(space: spaces.Space, given: Iterator[Tensor], mask: bool = False) -> Any:
    """The observation that policies take, as `polopt.tasks.spaces.reader` makes it of arrays."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        return {str(key): _read(part, given, key == MASK_KEY) for key, part in _parts(space)}
    tensor = next(given)
    if mask:
        return tensor.bool()
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return tensor.long() - torch.as_tensor(space.start, dtype=torch.int64)
    if isinstance(space, spaces.Box) and space.dtype == np.uint8:
        return tensor
    return tensor.to(torch.get_default_dtype())


def _sampled(space: spaces.Space, count: int) -> list[np.ndarray]:
    """`count` observations of the space, of which every action mask allows something."""
    if isinstance(space, (spaces.Dict, spaces.Tuple)):
        found: list[np.ndarray] = []
        for key, part in _parts(space):
            rows = _sampled(part, count)
            found += [np.ones_like(rows[0])] if key == MASK_KEY else rows
        return found
    generator = np.random.default_rng(count)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        size = space.n if isinstance(space, spaces.Discrete) else space.nvec
        drawn = space.start + generator.integers(size, size=(count, *(space.shape or ())))
    elif isinstance(space, spaces.MultiBinary):
        drawn = generator.integers(2, size=(count, *space.shape))
    else:
        assert isinstance(space, spaces.Box)
        low, high = (np.where(np.abs(bound) < 1e6, bound, np.nan) for bound in (space.low, space.high))
        low = np.where(np.isnan(low), np.where(np.isnan(high), -3.0, high - 6.0), low)
        drawn = generator.uniform(low, np.where(np.isnan(high), low + 6.0, high), size=(count, *space.shape))
    return [np.ascontiguousarray(drawn.astype(space.dtype))]
