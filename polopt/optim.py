"""Optimizers that step only their own parameters, and frozen copies of modules."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from polopt.config import Constant, Cosine, Linear
from polopt.core.batch import Batch
from polopt.core.modules import parameters_of
from polopt.core.state import Stateful
from polopt.networks.normalizer import Normalizer

Loss = Callable[[Batch], tuple[Tensor, dict[str, Tensor]]]
M = TypeVar("M", bound=nn.Module)


class Optimizer(Stateful):
    """Adam over the parameters of some modules, with clipping, accumulation and a learning-rate schedule.

    Gradients are taken with respect to these parameters only (`loss.backward(inputs=own)`), so a policy loss never
    moves a critic and nothing is frozen by hand. `progress` is set by the training loop.

    Args:
        modules: modules or parameters to optimize; each parameter once.
        lr: learning rate; `lr` may be changed between steps (an adaptive rule) and is saved.
        schedule: factor on `lr` as a function of training progress.
        max_grad_norm: clip the global norm of the gradient; None does not clip.
        micro_batch: rows per backward pass in `minimize`; None takes the whole batch at once.
        kind: "adam", "adamw" or "sgd".
    """

    saved = ("lr",)

    def __init__(
        self,
        *modules: nn.Module | nn.Parameter,
        lr: float,
        schedule: Constant | Linear | Cosine | None = None,
        max_grad_norm: float | None = None,
        micro_batch: int | None = None,
        kind: str = "adam",
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
    ) -> None:
        self.lr = lr
        self.schedule = schedule or Constant()
        self.max_grad_norm = max_grad_norm
        self.micro_batch = micro_batch
        self.progress = 0.0
        self.parameters = list(dict.fromkeys(p for module in modules for p in _parameters(module) if p.requires_grad))
        if kind == "sgd":
            self.torch: torch.optim.Optimizer = torch.optim.SGD(self.parameters, lr=lr, weight_decay=weight_decay)
        else:
            cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
            self.torch = cls(self.parameters, lr=lr, eps=eps, betas=betas, weight_decay=weight_decay, fused=True)

    def minimize(self, loss: Loss, batch: Batch) -> dict[str, Tensor]:
        """One step on `loss(batch)`, which returns a weighted sum and metrics that are weighted sums too.

        The batch is split along its first dimension into pieces of `micro_batch` rows whose gradients add up to the
        gradient of the whole, because `batch["weight"]` was written before. Returns the metrics, summed over pieces,
        plus `grad_norm` when clipping.
        """
        self._zero_grad()
        pieces: Sequence[Batch] = (batch,) if self.micro_batch is None else batch.split(self.micro_batch, dim=0)
        metrics: dict[str, Tensor] = {}
        for piece in pieces:
            value, parts = loss(piece)
            value.backward(inputs=self.parameters)
            for name, part in parts.items():
                metrics[name] = metrics[name] + part.detach() if name in metrics else part.detach()
        return metrics | self._apply()

    def accumulate(self, loss: Tensor) -> None:
        """Adds the gradient of `loss`; the next `step()` without a loss applies what has been gathered."""
        loss.backward(inputs=self.parameters)

    def step(self, loss: Tensor | None = None, *, grads: Iterable[Tensor] | None = None) -> dict[str, Tensor]:
        """One step on a loss, on given gradients (one per parameter, in order), or on the accumulated ones."""
        if loss is not None:
            self._zero_grad()
            loss.backward(inputs=self.parameters)
        elif grads is not None:
            for parameter, grad in zip(self.parameters, grads, strict=True):
                parameter.grad = grad
        metrics = self._apply()
        self._zero_grad()
        return metrics

    def _zero_grad(self) -> None:
        """What `torch.optim.Optimizer.zero_grad` does, in a tenth of its time for small networks."""
        for parameter in self.parameters:
            parameter.grad = None

    def _apply(self) -> dict[str, Tensor]:
        metrics = {}
        if self.max_grad_norm is not None:
            metrics["grad_norm"] = clip_grad_norm(self.parameters, self.max_grad_norm)
        for group in self.torch.param_groups:
            group["lr"] = self.lr * self.schedule(self.progress)
        self.torch.step()
        return metrics

    def extra_state(self) -> dict[str, Any]:
        return {
            f"{index}.{name}": value
            for index, state in self.torch.state_dict()["state"].items()
            for name, value in state.items()
        }

    def load_extra_state(self, state: dict[str, Any]) -> None:
        moments: dict[int, dict[str, Any]] = {}
        for path, value in state.items():
            index, name = path.split(".", 1)
            moments.setdefault(int(index), {})[name] = value
        self.torch.load_state_dict(self.torch.state_dict() | {"state": moments})


def clip_grad_norm(parameters: Sequence[Tensor], bound: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` for parameters on one device, in half of its time for small networks: scales the
    gradients in place to a global norm of at most `bound`, and returns the norm from before."""
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not grads:  # nothing of the loss depends on them
        return torch.zeros((), device=parameters[0].device)
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    torch._foreach_mul_(grads, (bound / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _parameters(item: nn.Module | nn.Parameter) -> Iterable[nn.Parameter]:
    return [item] if isinstance(item, nn.Parameter) else item.parameters()


def frozen_copy(module: M) -> M:
    """A copy in evaluation mode without gradients, for targets, old and reference policies.

    Observation normalizers are shared, not copied: all copies must see observations on the same scale.
    """
    shared = {id(part): part for part in module.modules() if isinstance(part, Normalizer)}
    learning = [(part, part.training) for part in shared.values()]
    twin = copy.deepcopy(module, shared)  # deepcopy takes its memo as "already copied"
    twin.requires_grad_(False).eval()
    for part, training in learning:
        part.train(training)  # a shared one goes on learning
    return twin


def polyak_update(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- tau * source + (1 - tau) * target for every parameter; `tau=1` copies.  One fused operation."""
    targets, sources = (list(dict.fromkeys(parameters_of(module))) for module in (target, source))
    with torch.no_grad():
        torch._foreach_lerp_(targets, sources, tau)
