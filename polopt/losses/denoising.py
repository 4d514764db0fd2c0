"""Regression of generative policies per decision: the noise of a diffusion, the velocity of a flow."""

from __future__ import annotations

from torch import Tensor

from polopt.core.batch import same_shape


def denoising(prediction: Tensor, noise: Tensor) -> Tensor:
    """Mean over coordinates of (prediction - noise)^2 [...], both [..., A] (DDPM, arXiv 2006.11239, equation 14).

    There is no 1/2, and no gradient goes into `noise`. Raises ValueError when shapes differ.
    """
    same_shape(prediction=prediction, noise=noise)
    return (prediction - noise.detach()).square().mean(-1)


def flow_matching(velocity: Tensor, target: Tensor) -> Tensor:
    """Mean over coordinates of (velocity - target)^2 [...], both [..., A] (arXiv 2210.02747, equation 9).

    `target` is the velocity of the path, end - start on straight lines, or the mean velocity of MeanFlow. As in
    `denoising`, no gradient goes into it. Raises ValueError when shapes differ.
    """
    same_shape(velocity=velocity, target=target)
    return (velocity - target.detach()).square().mean(-1)
