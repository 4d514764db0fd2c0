"""Fitting an ensemble to recorded data until held-out rows say that it has learned what it can.

Every member learns from a resample of its own of the rows that are not held out (Lakshminarayanan et al. 2017, arXiv
1612.01474, by resampling; Chua et al. 2018, arXiv 1805.12114). After each pass its error on the held-out rows is
taken: where it fell by the share `improvement` the member's weights are kept. When no member has improved for
`patience` passes, each goes back to the weights that were kept of it, and the best become the elites (Janner et al.
2019, arXiv 1906.08253, official code).
"""

from __future__ import annotations

import copy
from typing import Protocol

import torch
from torch import Tensor, nn

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.state import Stateful
from polopt.models.ensemble import Ensemble
from polopt.optim import Optimizer


class Fits(Protocol):
    """What `Fitting` asks of a model, a module all of whose parameters have its members in front."""

    config: Ensemble

    def fit_scales(self, batch: Batch) -> None:
        """Is told the rows [B] that are learned from, once."""

    def row_losses(self, rows: Batch, *, apart: bool = False) -> Tensor:
        """The loss [E, B] of rows [E, B], those of each member."""

    def restraint(self) -> Tensor:
        """What is added to the loss of each member, [E]."""

    def errors(self, batch: Batch) -> Tensor:
        """The error [E] on held-out rows [B]."""

    def choose(self, errors: Tensor) -> None:
        """Is told the smallest errors [E], at the end."""


class Fitting(Stateful):
    """Fits a model by `step`s of one minibatch, until `done`.

    Which rows are held out, and their order, follow from `seed`; a resumed fit goes on exactly.

    Args:
        model: see `Fits`; its `config` says how to fit it.
        data: recorded decisions [B], actions as the policy acts. At least two rows, or UsageError.
        config: how to fit it, in place of the model's own.
        optimizer: one that has fitted it before, which goes on.

    Attributes:
        done: the model has its best weights and its elites; further steps do nothing.
        passes: whole passes over the data so far.
        best: float64 [E], the smallest held-out error of each member.
    """

    learned = False
    saved = ("position", "passes", "waited", "done")

    def __init__(
        self,
        model: nn.Module,
        data: Batch,
        *,
        seed: int = 0,
        config: Ensemble | None = None,
        optimizer: Optimizer | None = None,
    ) -> None:
        if len(data) < 2:
            raise UsageError(
                f"a model needs recorded decisions to learn from and to hold out, and there is {len(data)}"
            )
        self.model, self.seed = model, seed
        self.fits: Fits = model  # type: ignore[assignment]
        config = self.config = config or self.fits.config
        order = torch.randperm(len(data), generator=self._generator(0))
        out = min(max(round(config.holdout * len(data)), 1), config.holdout_most, len(data) - 1)
        self.held_out, self.data = data[order[:out]], data[order[out:]]
        self.fits.fit_scales(self.data.to(device_of(model)))
        self.resample = torch.randint(len(self.data), (config.members, len(self.data)), generator=self._generator(1))
        self.optimizer = optimizer or Optimizer(model, lr=config.lr)
        self.kept = copy.deepcopy(model)
        self.best = torch.full((config.members,), torch.inf, dtype=torch.float64)
        self.position, self.passes, self.waited, self.done = 0, 0, 0, False
        self._shuffle()

    def step(self) -> dict[str, Tensor]:
        """One minibatch of every member; at the end of a pass the held-out rows are asked. Returns `model_loss`, the
        mean over members, and after a pass `model_error`, the mean over the elites to be."""
        if self.done:
            return {}
        size, place = self.config.batch_size, self.position
        rows = self.data[self._order[:, place : place + size]].to(device_of(self.model))
        losses = self.fits.row_losses(rows, apart=True).mean(1)
        self.optimizer.step((losses + self.fits.restraint()).sum())
        metrics = {"model_loss": losses.detach().mean()}
        self.position += size
        if self.position >= len(self.data):
            metrics["model_error"] = self._pass()
        return metrics

    def run(self) -> dict[str, Tensor]:
        """Steps until it is done; the metrics of the last pass."""
        metrics: dict[str, Tensor] = {}
        while not self.done:
            metrics |= self.step()
        return metrics

    @torch.no_grad()
    def _pass(self) -> Tensor:
        errors = self.fits.errors(self.held_out.to(device_of(self.model))).double().cpu()
        better = errors < (1.0 - self.config.improvement) * self.best
        self.best = torch.where(better, errors, self.best)
        for kept, now in zip(self.kept.parameters(), self.model.parameters(), strict=True):
            chosen = better.reshape(-1, *[1] * (now.dim() - 1)).to(now.device)
            kept.copy_(torch.where(chosen, now, kept.to(now.device)))
        self.waited = 0 if bool(better.any()) else self.waited + 1
        self.passes, self.position = self.passes + 1, 0
        if self.waited >= self.config.patience or self.passes == self.config.epochs:
            self._finish()
        else:
            self._shuffle()
        return errors.sort().values[: self.config.elites].mean()

    def _finish(self) -> None:
        for now, kept in zip(self.model.parameters(), self.kept.parameters(), strict=True):
            now.copy_(kept)
        self.fits.choose(self.best.to(device_of(self.model)))
        self.done = True

    def _shuffle(self) -> None:
        """The order of the next pass: a permutation of its resample for each member."""
        shape = self.resample.shape
        self._order = self.resample.gather(1, torch.rand(shape, generator=self._generator(2 + self.passes)).argsort(1))

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + stream)

    def extra_state(self) -> dict[str, Tensor]:
        return {"best": self.best}

    def load_extra_state(self, state: dict[str, Tensor]) -> None:
        if state:
            self.best = state["best"].cpu().clone()
        self._shuffle()
