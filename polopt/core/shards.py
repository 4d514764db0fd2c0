"""Models whose parameters are divided among the processes that share a run, by FSDP2 of torch (`fully_shard`).

Each process holds its part of every parameter, of its gradient and of its moments. A layer is gathered for its own pass
forward and again for its pass backward, where the processes add their gradients up and keep their parts; what is not in
a layer (embeddings, head) is gathered for as long as its model is used, until `settle`. So all processes make the same
passes in the same order: whoever has fewer rows makes idle ones. Copies of a model are made before it is divided.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

PASS = "_pass"  # the name under which a divided model has its pass without the head
_open: dict[int, Any] = {}  # models of which something is gathered, by id


def divide(model: Any, layers: Iterable[Any], device: torch.device) -> dict[Tensor, Tensor]:
    """Divides the parameters of a model of transformers, which then are on `device`; which replaces which.

    A gradient is the sum over the processes.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    before = dict(model.named_parameters())
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    setattr(model, PASS, types.MethodType(_pass, model))
    register_fsdp_forward_method(model, PASS)
    for part in _parts(model):
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)  # gloo has no mean, which is the default in single precision
    return {before[name]: after for name, after in model.named_parameters()}


def _pass(model: Any, *args: Any, **kwargs: Any) -> Any:
    return model.base_model(*args, **kwargs)


def run(model: Any, *args: Any, **kwargs: Any) -> Any:
    """The pass of a model without its head; what a divided one has gathered outside of its layers stays until
    `settle`, because its head is used next and again in the pass backward."""
    if not is_divided(model):
        return model.base_model(*args, **kwargs)
    _open[id(model)] = model
    return getattr(model, PASS)(*args, **kwargs)


def is_divided(model: Any) -> bool:
    return PASS in vars(model)


def settle() -> None:
    """Parts with all that is gathered: every process has its own parts again. Before parameters are read or written."""
    for model in _open.values():
        for part in _parts(model):
            part.reshard()
    _open.clear()


@contextlib.contextmanager
def whole(model: Any) -> Iterator[None]:
    """Inside, every process holds all parameters of a model, gathered once, and makes as many passes as it likes."""
    parts = list(_parts(model))
    keep = [part for part in parts if part is not model]
    for part in keep:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        for part in parts:
            part.unshard()
        yield
    finally:
        for part in parts:
            part.reshard()
        for part in keep:
            part.set_reshard_after_forward(True, recurse=False)
        _open.pop(id(model), None)


def _parts(model: Any) -> Iterator[Any]:
    """The model, if it is divided, and the layers in it that are gathered by themselves."""
    if is_divided(model):
        from torch.distributed.fsdp import FSDPModule

        yield from (part for part in model.modules() if isinstance(part, FSDPModule))


# Tensors


def divided(tensor: Any) -> bool:
    """Whether this process holds a part of it only."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of it, in the same memory."""
    return cast(Tensor, cast(Any, tensor).to_local().detach()) if divided(tensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """`value`, which every process has, divided as `like` is, if it is."""
    if not divided(like):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.detach(), cast(Any, like).device_mesh, cast(Any, like).placements, src_data_rank=None
    )


def on_first(state: Mapping[str, Any], first: bool) -> dict[str, Any]:
    """A gathered state whose divided tensors are put together, one after the other, in the memory of the `first`
    process; the others, which take part, end without these."""
    whole: dict[str, Any] = {}
    for path in sorted(state):  # what was loaded has another order in every process
        leaf = state[path]
        if not divided(leaf):
            whole[path] = leaf
            continue
        value = leaf.full_tensor()
        if first:
            whole[path] = value.cpu()
        del value
    return whole
