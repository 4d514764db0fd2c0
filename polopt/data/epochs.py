"""Minibatches of fixed data in epochs."""

from __future__ import annotations

import torch

from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.data.base import Acts, Source, put
from polopt.data.samplers import Shuffled
from polopt.data.tokens import trim


class Epochs(Source):
    """Minibatches [batch_size] of fixed data [B]: every row once per epoch, each epoch in a new order.

    Serves any rows: transitions, tokenized completions, preference pairs. All minibatches are of full size, so one may
    reach over the end of an epoch; a batch size above B is B. Rows of tokens are trimmed to the longest of the
    minibatch. Batches are on the device of the actor, which does not act. Raises UsageError for data without rows.
    """

    def __init__(self, data: Batch, batch_size: int, generator: torch.Generator | None = None) -> None:
        if not len(data):
            raise UsageError("there is nothing to learn from, because the data has no rows")
        self.data = data
        self.batch_size = min(batch_size, len(data))
        self.sampler = Shuffled(len(data), generator)

    def next(self, actor: Acts) -> Batch:
        rows = torch.tensor(self.sampler.draw(self.batch_size), device=self.data.device)
        return put(trim(self.data[rows]), device_of(actor))
