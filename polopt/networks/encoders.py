"""From an observation of any supported Gymnasium space to one vector of features."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.core.observations import MASK_KEY
from polopt.networks.layers import initialize

Obs = Any  # a Tensor, or a (nested) dict or TensorDict of them

"""Key of a dict observation that says which actions are legal: read by policies, never by networks."""

NATURE = ((32, 8, 4), (64, 4, 2), (64, 3, 1))
"""Channels, kernel, stride of Mnih et al. 2015 (Nature 518, "Methods: Model architecture")."""

SMALL = ((32, 3, 1), (64, 3, 2))
"""For images with a side under 36 pixels, where the layers of the Nature network do not fit."""

SMALLEST_SIDE = 5


def is_dict(obs: Obs) -> bool:
    return isinstance(obs, (Mapping, TensorDictBase))


def first_leaf(obs: Obs) -> Tensor:
    """Any one tensor of an observation, for its device."""
    return first_leaf(next(iter(obs.values()))) if is_dict(obs) else obs


def leading_shape(space: gymnasium.Space, obs: Obs) -> torch.Size:
    """The batch dimensions of `obs`: its shape without the shape of the space."""
    if isinstance(space, spaces.Dict):
        key = next(iter(space.spaces))
        return leading_shape(space.spaces[key], obs[key])
    return obs.shape[: obs.dim() - len(space.shape or ())]


def observed(space: spaces.Dict) -> Iterator[tuple[str, gymnasium.Space]]:
    """The entries of a dict space that a network reads, in order: all but the mask of legal actions."""
    yield from ((key, item) for key, item in space.spaces.items() if key != MASK_KEY)


def is_image(space: gymnasium.Space, encoder: str = "auto") -> bool:
    """True if observations of `space` go through a convolutional network.

    "auto": uint8 boxes of 2 to 4 dimensions; "nature-cnn": boxes of any type with 2 to 4 dimensions; "flat": none.
    Images with a side under 5 pixels are read as vectors.
    """
    if encoder == "flat" or not isinstance(space, spaces.Box) or not 2 <= len(space.shape) <= 4:
        return False
    _, height, width = _image_shape(space.shape)
    return (space.dtype == np.uint8 or encoder == "nature-cnn") and min(height, width) >= SMALLEST_SIDE


def make_encoder(space: gymnasium.Space, encoder: str = "auto", init: str = "default") -> Encoder:
    """The encoder for `space`. Raises UsageError for a space that no network can read, naming it, and for pictures
    whose colors stand between their sides."""
    if encoder == "auto" and _is_swapped(space):
        raise UsageError(
            f"the observation space {space} has the shape of pictures whose axes are swapped: give [H, W, C] or "
            "[C, H, W], or say --network.encoder flat"
        )
    if isinstance(space, spaces.Dict):
        return DictEncoder(space, encoder, init)
    if isinstance(space, spaces.Box) and is_image(space, encoder):
        return ImageEncoder(space, init)
    if encoder == "nature-cnn":
        raise UsageError(f"a convolutional encoder needs image observations, not {space}")
    if isinstance(space, (spaces.Box, spaces.MultiBinary)):
        return VectorEncoder(space)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return OneHotEncoder(space)
    raise UsageError(f"no network reads the observation space {space}; use Box, Discrete or Dict spaces")


class Encoder(nn.Module):
    """[..., *space.shape] -> features [..., size], in the default dtype, for any leading dimensions."""

    size: int


class VectorEncoder(Encoder):
    """Flattens a Box or MultiBinary; uint8 values of pictures (0 to 255) are divided by 255."""

    def __init__(self, space: gymnasium.Space) -> None:
        super().__init__()
        self.dims = len(space.shape or ())
        self.size = math.prod(space.shape or ())
        self.divisor = _divisor(space)

    def forward(self, obs: Tensor) -> Tensor:
        real = _real(obs, self.divisor)
        return real if self.dims == 1 else real.reshape(*obs.shape[: obs.dim() - self.dims], self.size)


class OneHotEncoder(Encoder):
    """One-hot vector of a Discrete observation; those of a MultiDiscrete side by side."""

    def __init__(self, space: spaces.Discrete | spaces.MultiDiscrete) -> None:
        super().__init__()
        self.dims = len(space.shape or ())
        counts = np.reshape(space.n if isinstance(space, spaces.Discrete) else space.nvec, -1)
        self.size = int(counts.sum())
        offsets = np.cumsum(counts) - counts - np.reshape(space.start, -1)
        self.offsets: Tensor
        self.register_buffer("offsets", torch.as_tensor(offsets, dtype=torch.int64), persistent=False)

    def forward(self, obs: Tensor) -> Tensor:
        places = obs.long().reshape(*obs.shape[: obs.dim() - self.dims], -1) + self.offsets
        hot = torch.zeros(*places.shape[:-1], self.size, dtype=torch.get_default_dtype(), device=obs.device)
        return hot.scatter(-1, places, 1.0)


class ImageEncoder(Encoder):
    """The convolutional network of Mnih et al. 2015: three layers, then 512 rectified features.

    Reads [H, W], [H, W, C], [C, H, W] (also frame stacks [S, H, W]), [S, H, W, C] and [S, C, H, W]: the smaller one of
    the first and last dimension is taken for the channels, and stacked frames become channels. uint8 pixels
    from 0 to 255 are divided by 255. Images with a side under 36 pixels get two layers of 3 by 3 instead.
    """

    def __init__(self, space: spaces.Box, init: str = "default", features: int = 512) -> None:
        super().__init__()
        self.shape = tuple(space.shape)
        self.size = features
        self.divisor = _divisor(space)
        channels, height, width = _image_shape(self.shape)
        gain = math.sqrt(2.0) if init == "orthogonal" else 1.0
        layers: list[nn.Module] = []
        for filters, kernel, stride in NATURE if min(height, width) >= 36 else SMALL:
            layer = nn.Conv2d(channels, filters, kernel, stride)
            initialize(layer, init, gain)
            layers += [layer, nn.ReLU()]
            channels, height, width = filters, (height - kernel) // stride + 1, (width - kernel) // stride + 1
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * height * width, features)
        initialize(self.linear, init, gain)

    def forward(self, obs: Tensor) -> Tensor:
        lead = obs.shape[: obs.dim() - len(self.shape)]
        image = channels_first(obs.reshape(-1, *self.shape), self.shape)
        return self.linear(self.convolutions(_real(image, self.divisor)).flatten(1)).relu().reshape(*lead, self.size)


class DictEncoder(Encoder):
    """Encodes each entry of a Dict space by itself and puts the features side by side; `action_mask` is left out."""

    def __init__(self, space: spaces.Dict, encoder: str = "auto", init: str = "default") -> None:
        super().__init__()
        items = list(observed(space))
        if not items:
            raise UsageError(f"no network reads the observation space {space}: it holds nothing but a mask")
        # A dict of vectors and images is the normal case: "nature-cnn" speaks of its images only.
        plain = "flat" if encoder == "nature-cnn" else encoder
        kinds = [encoder if is_image(item, encoder) or isinstance(item, spaces.Dict) else plain for _, item in items]
        self.keys = [key for key, _ in items]
        self.encoders = nn.ModuleList(make_encoder(item, kind, init) for (_, item), kind in zip(items, kinds))
        self.size = sum(int(part.size) for part in self.encoders)  # type: ignore[arg-type, misc]

    def forward(self, obs: Obs) -> Tensor:
        return torch.cat([part(obs[key]) for key, part in zip(self.keys, self.encoders)], -1)


def channels_first(image: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[B, *shape] -> [B, C, H, W], where `shape` is one of those that `ImageEncoder` reads."""
    if len(shape) == 2:
        return image[:, None]
    if len(shape) == 4:
        image = image.movedim(-1, 2) if _channels_last(shape[1:]) else image
        return image.flatten(1, 2)
    return image.movedim(-1, 1) if _channels_last(shape) else image


def _is_swapped(space: gymnasium.Space) -> bool:
    """Whether this is of pictures with 1, 3 or 4 colors in the middle axis."""
    if not isinstance(space, spaces.Box) or _divisor(space) is None or len(space.shape) not in (3, 4):
        return False
    first, middle, last = space.shape[-3:]
    return middle in (1, 3, 4) and min(first, last) >= 4 * SMALLEST_SIDE


def _channels_last(shape: tuple[int, ...]) -> bool:
    return shape[-1] <= shape[0]


def _image_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Channels, height and width."""
    stack, frame = (shape[0], shape[1:]) if len(shape) == 4 else (1, shape)
    if len(frame) == 2:
        return stack, frame[0], frame[1]
    channels, height, width = (frame[2], frame[0], frame[1]) if _channels_last(frame) else frame
    return stack * channels, height, width


def _divisor(space: gymnasium.Space) -> float | None:
    """255 for what has the range of pictures; other bytes are numbers like any others."""
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return None
    return 255.0 if space.low.max() == 0 and space.high.min() == 255 else None


def _real(obs: Tensor, divisor: float | None) -> Tensor:
    real = obs if obs.is_floating_point() else obs.to(torch.get_default_dtype())
    return real if divisor is None else real / divisor
