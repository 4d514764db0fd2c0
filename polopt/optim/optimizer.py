"""Optimizers that step only their own parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward

from polopt.config import Constant, Cosine, Linear
from polopt.core import ranks, shards, signals
from polopt.core.batch import Batch, closed, opened, pieces
from polopt.core.compiling import compiled, gradients_traced
from polopt.core.state import Stateful
from polopt.optim.adam import KERNELS, fused_adam_, traced_adam_
from polopt.optim.clipping import norm_and_factor
from polopt.optim.divided import add_up, divided_gradients, sharded_gradients

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
LATE = 1e6  # from so many steps on the bias correction of Adam is 1


class Optimizer(Stateful):
    """Adam over the parameters of some modules, with clipping, accumulation and a learning-rate schedule.

    Gradients are taken with respect to these parameters only (`backward(loss, own)`), so a policy loss never
    moves a critic and nothing is frozen by hand. `progress` is set by the training loop.

    Args:
        modules: modules or parameters to optimize; each parameter once.
        lr: learning rate; `lr` may be changed between steps (an adaptive rule) and is saved.
        schedule: factor on `lr` as a function of training progress.
        max_grad_norm: clip the global norm of the gradient; None does not clip.
        micro_batch: rows per backward pass in `minimize`; None takes the whole batch at once.
        split: cuts a batch into pieces in place of `micro_batch`.
        kind: "adam", "adamw" or "sgd".
        bias_correction: without, the averages of Adam count as they are from the first step on.
    """

    saved = ("lr",)

    def __init__(
        self,
        *modules: nn.Module | nn.Parameter,
        lr: float,
        schedule: Constant | Linear | Cosine | None = None,
        max_grad_norm: float | None = None,
        micro_batch: int | None = None,
        split: Callable[[Batch], Sequence[Batch]] | None = None,
        kind: str = "adam",
        eps: float = 1e-8,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        bias_correction: bool = True,
    ) -> None:
        self.lr = lr
        self.schedule = schedule or Constant()
        self.kind = kind
        self.eps, self.betas, self.weight_decay = eps, betas, weight_decay
        self.begin = 0.0 if bias_correction else LATE
        self.max_grad_norm = max_grad_norm
        self.micro_batch = micro_batch
        self.split = split
        self.progress = 0.0
        self.sharded = False
        self._compiled: Callable[..., dict[str, Tensor]] | None = None
        self._rate: Any = None  # that of the last compiled step, as a number and as a tensor
        self._moments: list[list[Tensor]] = []  # averages, squares and counts of Adam, once all parameters have them
        self._count: Tensor | None = None  # the memory of these counts
        self.parameters = list(dict.fromkeys(p for module in modules for p in _parameters(module) if p.requires_grad))
        if kind == "sgd":
            self.torch: torch.optim.Optimizer = torch.optim.SGD(self.parameters, lr=lr, weight_decay=weight_decay)
        else:
            cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
            self.torch = cls(self.parameters, lr=lr, eps=eps, betas=betas, weight_decay=weight_decay, fused=True)
        self._alike = kind in KERNELS and len({(each.device, each.dtype) for each in self.parameters}) == 1

    def minimize(self, loss: Loss, batch: Batch, **shared: Any) -> dict[str, Tensor]:
        """One step on `loss(batch, **shared)`, which returns a weighted sum and metrics that are weighted sums too.

        The batch is split along its first dimension into pieces of `micro_batch` rows, or as `split` says, whose
        gradients add up to the gradient of the whole, because `batch["weight"]` was written before. The sides of a
        paired batch are split each by itself (`polopt.core.batch.pieces`). What all pieces share, such as a statistic
        of the whole batch, is given by name. Returns the metrics, summed over pieces, plus `grad_norm` when clipping.
        Of several processes each takes rows of its own (`polopt.core.ranks`).
        """
        if torch.compiler.is_compiling():  # of a larger function, such as a whole update
            return self._traced(*loss(batch, **shared))
        if self.sharded:
            metrics = sharded_gradients(self.parameters, batch, loss, self._pieces, shared)
            return metrics | self._apply()
        if ranks.parts() > 1:
            metrics = divided_gradients(
                self.parameters, batch, loss, lambda part: self._gradients(loss, self._pieces(part), shared)
            )
            return metrics | self._apply()
        parts = self._pieces(batch)
        if self._compiled is not None and len(parts) == 1:
            self.ready()
            return self._compiled(loss, *opened(batch), shared)
        return self._step_on(loss, parts, shared)

    def replace(self, new: Mapping[Tensor, Tensor]) -> None:
        """Goes on with other parameters in the place of these, before the first step: with divided ones."""
        self.parameters = [cast(nn.Parameter, new.get(parameter, parameter)) for parameter in self.parameters]
        self.torch.param_groups[0]["params"] = self.parameters
        self.sharded = any(map(shards.divided, self.parameters))
        self._alike = self._alike and not self.sharded

    def _pieces(self, batch: Batch) -> Sequence[Batch]:
        return self.split(batch) if self.split else pieces(batch, self.micro_batch)

    def _step_on(self, loss: Loss, parts: Sequence[Batch], shared: dict[str, Any]) -> dict[str, Tensor]:
        metrics = self._gradients(loss, parts, shared)
        return metrics | self._apply()

    def _gradients(self, loss: Loss, parts: Sequence[Batch], shared: dict[str, Any]) -> dict[str, Tensor]:
        """Leaves the gradient of the sum over these pieces in the parameters; returns the metrics."""
        self._zero_grad()
        metrics: dict[str, Tensor] = {}
        for part in parts:
            signals.check()
            value, sums = loss(part, **shared)
            backward(value, self.parameters)
            add_up(metrics, sums)
        return metrics

    def accumulate(self, loss: Tensor) -> None:
        """Adds the gradient of `loss`; the next `step()` without a loss applies what has been gathered. Not for
        parameters that are divided among processes."""
        backward(loss, self.parameters)

    def step(self, loss: Tensor | None = None, *, grads: Iterable[Tensor] | None = None) -> dict[str, Tensor]:
        """One step on a loss, on given gradients (one per parameter, in order), or on the accumulated ones."""
        if loss is not None and torch.compiler.is_compiling():
            return self._traced(loss, {})
        if loss is not None:
            self._zero_grad()
            backward(loss, self.parameters)
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

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.lr * self.schedule(self.progress)

    def forget(self) -> None:
        """Begins anew, as if it had taken no step: averages and counts are gone, the rate and its schedule stay."""
        self.torch.state.clear()
        self._moments, self._count = [], None

    def compile(self, **options: Any) -> None:
        """From here on `minimize` is one compiled function, from the loss to the step, for a batch of one piece.

        With small networks the operations of a step take longer to start than to run. `options` go to `torch.compile`.
        Without effect with a torch that is too old to trace gradients.
        """
        if gradients_traced():
            self._compiled = compiled(self._whole_step, **options)

    @property
    def divides(self) -> bool:
        """Whether batches may be cut into pieces, of which a compiled function would know the number."""
        return self.micro_batch is not None or self.split is not None or self.sharded

    def ready(self) -> None:
        """To be called before a function that was compiled with a step of this optimizer: sets the rate, which is a
        tensor there because a number would be a constant, and makes the averages of Adam."""
        if self._rate is None or self._rate[0] != self.rate:
            self._rate = self.rate, torch.tensor(self.rate, device=self.parameters[0].device)
        if self.kind != "sgd" and not self._moments:
            self._adam_state()

    def _whole_step(self, loss: Loss, columns: Any, kind: Any, shared: dict[str, Any]) -> dict[str, Tensor]:
        """What `minimize` does to one piece, which comes `opened`."""
        piece = closed(columns, kind)
        if not torch.compiler.is_compiling():  # torch gives up where it would need too many versions
            return self._step_on(loss, (piece,), shared)
        return self._traced(*loss(piece, **shared))

    def _traced(self, value: Tensor, metrics: dict[str, Tensor]) -> dict[str, Tensor]:
        """One step on a loss as the compiler reads it: of Adam the functional form, as optimizers break a graph."""
        reached = torch.autograd.grad(value, self.parameters, allow_unused=True)
        chosen = [index for index, grad in enumerate(reached) if grad is not None]
        grads = [reached[index] for index in chosen]
        metrics = {name: part.detach() for name, part in metrics.items()}
        if self.max_grad_norm is not None:
            metrics["grad_norm"], factor = norm_and_factor(grads, self.max_grad_norm, self.parameters[0].device)
            grads = [grad * factor for grad in grads]  # not in place: one tensor may serve two parameters
        with torch.no_grad():
            self._move([self.parameters[index] for index in chosen], grads, chosen)
        return metrics

    def _move(self, parameters: list[nn.Parameter], grads: list[Tensor], chosen: list[int]) -> None:
        if self.kind == "sgd":
            for parameter, grad in zip(parameters, grads):
                parameter.sub_(self._rate[1] * (grad + self.weight_decay * parameter))
            return
        assert self._count is not None, "what is compiled is on one device"
        if len(chosen) == len(self.parameters):
            count = self._count.add_(1)
        else:
            self._count[chosen] += 1
            count = self._count[chosen]
        averages, squares = ([part[index] for index in chosen] for part in self._moments[:2])
        settings = (self._rate[1], self.betas, self.eps, self.weight_decay)
        traced_adam_(self.kind, parameters, grads, averages, squares, count, *settings)

    def _adam_state(self) -> list[list[Tensor]]:
        """The state of torch's optimizer, for every parameter, in lists as the functional form wants it; the counts are
        views of one tensor, if all are on one device."""
        for parameter in self.parameters:
            state = self.torch.state[parameter]
            if not state:
                state["step"] = torch.full((), self.begin, dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        if len({parameter.device for parameter in self.parameters}) == 1:
            self._count = torch.stack([self.torch.state[parameter]["step"] for parameter in self.parameters])
            for parameter, step in zip(self.parameters, self._count):
                self.torch.state[parameter]["step"] = step
        names = ("exp_avg", "exp_avg_sq", "step")
        self._moments = [[self.torch.state[parameter][name] for parameter in self.parameters] for name in names]
        return self._moments

    def _apply(self) -> dict[str, Tensor]:
        metrics: dict[str, Tensor] = {}
        factor: Tensor | None = None
        reached = [parameter.grad for parameter in self.parameters]
        grads = [grad for grad in reached if grad is not None]
        if self.max_grad_norm is not None:
            metrics["grad_norm"], factor = norm_and_factor(grads, self.max_grad_norm, self.parameters[0].device)
        group = self.torch.param_groups[0]
        group["lr"] = self.rate
        if self._alike and len(grads) == len(reached):
            moments = self._moments or self._adam_state()
            fused_adam_(self.kind, self.parameters, grads, moments, group, self._count, factor)
            return metrics
        if grads and factor is not None:
            torch._foreach_mul_([*map(shards.local, grads)], factor)
        if self.begin and not self.torch.state:
            self._adam_state()
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
            if isinstance(value, Tensor):
                parameter = self.parameters[int(index)]
                value = shards.part_of(value, parameter) if value.shape == parameter.shape else value
                value = value.clone()
            moments.setdefault(int(index), {})[name] = value
        self._moments, self._count = [], None
        self.torch.load_state_dict(self.torch.state_dict() | {"state": moments})


def backward(loss: Tensor, inputs: Sequence[Tensor]) -> None:
    """`loss.backward(inputs=inputs)`, which for a loss [] asks what is true of every loss before it calls this, as long
    as small networks take for a layer."""
    if loss.dim():
        loss.backward(inputs=inputs)
    else:
        _engine_run_backward((loss,), (loss.new_ones(()),), False, False, tuple(inputs), True, True)


def _parameters(item: nn.Module | nn.Parameter) -> Iterable[nn.Parameter]:
    return [item] if isinstance(item, nn.Parameter) else item.parameters()
