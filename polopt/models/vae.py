"""A conditional variational autoencoder of actions: what was done in a state, and might be done again.

    encoder    q(z | s, a) = N(mean, diag std^2), the logarithm of std within [-4, 15]
    decoder    a' = tanh(D(s, z)), z = mean + std * noise, noise ~ N(0, I)
    error      mean over the components of a of (a' - a)^2
    kl         mean over the components of z of KL(q(z | s, a) || N(0, 1)) = (mean^2 + std^2 - 1) / 2 - log std

Kingma and Welling 2013, arXiv 1312.6114; of actions given states: BCQ, Fujimoto et al. 2018, arXiv 1812.02900, whose
loss is error + kl / 2. With as many latents as BCQ has, twice the components of an action, this is the evidence bound
of a decoder N(a', I / 8), up to a factor.
"""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.networks.encoders import Obs
from polopt.networks.normalizer import Normalizer

LOG_STD = (-4.0, 15.0)  # these and the next: official code of BCQ
PRIOR_BOUND = 0.5


class ActionVAE(nn.Module):
    """Encoder and decoder of actions [..., A] within [-1, 1], as the policies of bounded actions act.

    Args:
        network: feed-forward, of encoder and decoder each.
        normalizer: of the observations of both.
        latents: components of z; None: twice those of an action.

    Raises UsageError for actions that are no Box and for recurrent networks.
    """

    def __init__(
        self, spec: Spec, network: Network, latents: int | None = None, normalizer: Normalizer | None = None
    ) -> None:
        super().__init__()
        if not isinstance(spec.action, spaces.Box):
            raise UsageError(f"an autoencoder of actions needs a Box of them; {spec.name} has {spec.action}")
        if network.recurrent != "none":
            raise UsageError("an autoencoder of actions is feed-forward: set the network's recurrent to none")
        self.latents = 2 * spec.action_dim if latents is None else latents
        self.encoder, self.decoder = (
            network.build(spec.obs, outputs, inputs_extra=extra, head_gain=1.0, normalizer=normalizer)
            for outputs, extra in ((2 * self.latents, spec.action_dim), (spec.action_dim, self.latents))
        )

    def draw_noise(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """N(0, I) [..., Z] for actions `like` [..., A], from a stream of the CPU or by default the global one."""
        if generator is None:
            return torch.randn(*like.shape[:-1], self.latents, dtype=like.dtype, device=like.device)
        return torch.randn(*like.shape[:-1], self.latents, dtype=like.dtype, generator=generator).to(like.device)

    def encode(self, obs: Obs, action: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the deviation of q(z | s, a), each [..., Z]."""
        mean, log_std = self.encoder(obs, action).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def decode(self, obs: Obs, latent: Tensor) -> Tensor:
        """The action [..., A] of a latent [..., Z]."""
        return torch.tanh(self.decoder(obs, latent))

    def reconstruct(self, obs: Obs, action: Tensor, noise: Tensor) -> Tensor:
        """a' [..., A] of `action`, differentiable in it too; `noise` [..., Z] is `draw_noise`, or 0 for the mean."""
        mean, log_std = self.encode(obs, action)
        return self.decode(obs, mean + log_std.exp() * noise)

    def sample(self, obs: Obs, noise: Tensor) -> Tensor:
        """The action [..., A] of a latent from the prior, which is clipped to +-0.5 as in BCQ."""
        return self.decode(obs, noise.clamp(-PRIOR_BOUND, PRIOR_BOUND))

    def terms(self, obs: Obs, action: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """error and kl of every row, each [...], to be weighed and added by a method: BCQ adds half of kl."""
        mean, log_std = self.encode(obs, action)
        error = (self.decode(obs, mean + log_std.exp() * noise) - action).square().mean(-1)
        return error, standard_kl(mean, log_std).mean(-1)


def standard_kl(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of each component, shaped like both."""
    return 0.5 * (mean.square() + (2 * log_std).exp() - 1) - log_std
