"""How a model of the world is built and fitted, as plain data. Importing this needs no torch; `build` does."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polopt.config import Config, param
from polopt.core.errors import UsageError
from polopt.networks import Network

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.models.dynamics import Dynamics


@dataclass(frozen=True)
class Ensemble(Config):
    """An ensemble of models of what a decision leads to; each learns from a resample of the data, until the error on
    held-out rows stops falling."""

    members: int = param(7, "arXiv 1906.08253", low=1)
    elites: int = param(5, "arXiv 1906.08253", low=1, help="the members with the smallest held-out errors, which act")
    head: str = param("gaussian", "arXiv 1805.12114", choices=("gaussian", "mean"), help="mean: squared error")
    network: Network = param(Network((200, 200, 200, 200), "silu"), "arXiv 1906.08253")
    lr: float = param(1e-3, "official code", above=0)
    weight_decay: tuple[float, ...] = param(
        (5e-5,),
        "official code: from 2.5e-5 to 1e-4",
        low=0,
        help="times half the squared weights: one number for all layers, or one of each",
    )
    batch_size: int = param(256, "official code", low=1)
    holdout: float = param(0.2, "official code", above=0, below=1, help="share of the rows that are held out")
    holdout_most: int = param(1_000, "official code", low=1, unit="rows")
    patience: int = param(5, "official code", low=1, unit="epochs", help="without an improvement, then it ends")
    improvement: float = param(
        0.01, "official code", low=0, below=1, help="smallest relative fall of an error that counts"
    )
    epochs: int | None = param(None, "official code", low=1, help="most of them; none: patience alone decides")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.elites > self.members:
            raise UsageError(f"elites are some of the members, and {self.elites} are more than {self.members}")
        layers = len(self.network.sizes) + 1
        if len(self.weight_decay) not in (1, layers):
            raise UsageError(f"weight_decay is one number or one of each of the {layers} layers: {self.weight_decay}")
        if self.network.recurrent != "none" or self.network.make is not None or self.network.blocks != "plain":
            raise UsageError(
                "a model of the world is an ensemble of plain layers: no recurrent, own or residual network"
            )

    def build(self, spec: "Spec", **options: Any) -> "Dynamics":
        """The model for the spaces of `spec`; see `Dynamics` for the options."""
        from polopt.models.dynamics import Dynamics

        return Dynamics(spec, self, **options)
