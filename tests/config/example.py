"""A config with every kind of field, as methods and parts declare them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from polopt.config import Config, Constant, Cosine, Linear, param


@dataclass(frozen=True)
class Gaussian(Config):
    std: str = param("fixed", "table 1", choices=("fixed", "state-dependent"))
    low: float = param(-20.0, "table 1")


@dataclass(frozen=True)
class FlowPolicy(Config):
    steps: int = param(10, "section 5.2", low=1, high=100, unit="denoising steps")


@dataclass(frozen=True)
class Surrogate(Config):
    clip_high: float = param(0.2, "equation 7", above=0)
    level: Literal["token", "sequence"] = param("token", "equation 7")
    named: ClassVar[dict[str, "Surrogate"]] = {}


Surrogate.named = {"ppo": Surrogate(), "gspo": Surrogate(clip_high=4e-4, level="sequence")}


@dataclass(frozen=True)
class Net(Config):
    sizes: tuple[int, ...] = param((64, 64), "table 1", low=1)
    betas: tuple[float, float] = param((0.9, 0.999), "assumed", low=0, below=1)
    make: Callable[[int, int], Any] | None = param(None, "polopt")

    @classmethod
    def from_value(cls, value: Any) -> "Net | None":
        return cls(make=value) if callable(value) else None


@dataclass(frozen=True)
class Learner(Config):
    """A method's config."""

    lr: float = param(3e-4, "table 1", above=0, help="step size of Adam")
    decay: Constant | Linear | Cosine = param(Constant(), "polopt")
    shift: float = param(0.0, "assumed")
    clip: float | None = param(None, "assumed", above=0)
    target: float | Literal["auto"] = param("auto", "appendix D")
    delay: int = param(1, "table 1", low=1)
    double: bool = param(True, "table 1")
    note: str = param("", "polopt")
    extra: dict[str, Any] = param({}, "polopt")
    folder: Path | None = param(None, "polopt")
    surrogate: Surrogate = param(Surrogate(), "equation 7")
    network: Net = param(Net(), "table 1")
    policy: Gaussian | FlowPolicy | None = param(Gaussian(low=-5.0), "table 1")
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "mujoco": {"policy": FlowPolicy(steps=3), "lr": 1e-3},
        "atari": {"network": {"sizes": (512,)}, "surrogate": "gspo"},
    }


@dataclass(frozen=True)
class Distill(Config):
    student: Learner = param(Learner(), "polopt")
    teacher: Learner = param(Learner(lr=1.0), "polopt")


@dataclass(frozen=True)
class Run(Config):
    task: str = param("CartPole-v1", "polopt")
    steps: int | None = param(None, "polopt", low=1)
    seed: int = param(0, "polopt", low=0)


def trunk(inputs: int, outputs: int) -> None:
    """A network of the user."""
