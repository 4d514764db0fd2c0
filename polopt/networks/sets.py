"""A network of candidates as plain data, for actions that each have a row of the observation. Importing this needs no
torch; `build` does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from polopt.config import Config, param
from polopt.core.errors import UsageError

if TYPE_CHECKING:
    import gymnasium

    from polopt.networks.candidates import CandidateNetwork
    from polopt.networks.normalizer import Normalizer


@dataclass(frozen=True)
class Sets(Config):
    """One encoder for all candidates, and one head that reads a candidate beside the mean and maximum of all."""

    sizes: tuple[int, ...] = param((64, 64), "polopt", low=1, help="widths of the encoder of a candidate")
    head: tuple[int, ...] = param((64,), "polopt", low=1, help="widths of the head's hidden layers")
    activation: str = param("relu", "polopt", choices=("relu", "tanh", "elu", "gelu", "silu", "mish"))
    head_gain: float = param(1.0, "polopt", low=0, help="initial scale of a policy's last layer; critics use 1")

    recurrent: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sizes or not self.head:
            raise UsageError("the encoder of a candidate has one width at least, and so has the head")

    def build(
        self,
        space: gymnasium.Space,
        outputs: int,
        *,
        ensemble: int | None = None,
        head_gain: float | None = None,
        normalizer: Normalizer | None = None,
    ) -> CandidateNetwork:
        """A network from observations of `space` to [..., outputs], or [E, ..., outputs] with `ensemble=E`.

        The observation, or one entry of a Dict, is a Box [outputs, features], the rows of the candidates; what else
        there is in the Dict is common to all. Raises UsageError for a space without such rows, or with two of them.
        """
        from polopt.networks.candidates import CandidateNetwork

        return CandidateNetwork(
            space,
            outputs,
            self.sizes,
            self.head,
            activation=self.activation,
            head_gain=self.head_gain if head_gain is None else head_gain,
            members=ensemble,
            normalizer=normalizer,
        )
