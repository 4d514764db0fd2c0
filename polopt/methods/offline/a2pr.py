"""A2PR: offline reinforcement learning that is drawn to better actions only, recorded or imagined.

Liu, Li, Lan, Gao, Pan, Xu, "Adaptive Advantage-Guided Policy Regularization for Offline Reinforcement Learning", 2024,
arXiv 2405.19909.

TD3+BC draws the policy to every recorded action, also to bad ones. Here an autoencoder learns those alone that are
better than average, and the policy is drawn to its action or to the recorded one, whichever is worth more, and to
neither where both are worth less than average.

With a batch (s, a, r, s') of the dataset, critics and targets as in TD3 (../control/td3.py), its target y and smoothed
action a', and A(s, a) = Q_1(s, a) - V(s), constants in all that follows:

    value       E[ (V(s) - min(y, r + discount (1 - terminated) min_i Q_i(s', a')))^2 ],   Q_i after their step
    autoencoder E[ vae_weight 1(A(s, a) > threshold) (vae(s, a) - a)^2 ] + E[ KL(q(z|s, a) || N(0, I)) ] / 2
    candidate   a_vae = vae(s, pi(s)):  a_bar = a_vae where A(s, a_vae) >= A(s, a), else a
    pull        m = 1 where A(s, a_vae) >= threshold or A(s, a) > threshold, else 0
    policy      -lambda E[ Q_1(s, pi(s)) ] + E[ pull m imitation_loss(s, a_bar) ], lambda as in TD3+BC, in every
                `delay`-th update

V in the advantages is the one before its step. Masked decisions stay in the means; the KL has no mask. What is imitated
is a constant, as in the paper; in the released code gradients also pass through the autoencoder back into the policy
(`--no-detach-target`), which takes away most of the pull as it learns to reconstruct.

Differs from TD3+BC, its base, in a_bar, m, V, the autoencoder and the sizes of the networks; with `--candidate data
--advantage-threshold none` it is TD3+BC.

Departs from the paper in: half the squared error in V, half of its gradient, which Adam does not see; any policy that
can imitate and whose samples pass gradients.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.config import param
from polopt.core.batch import Batch, weighted_mean
from polopt.losses.regression import regression
from polopt.methods.offline.a2pr_settings import A2PRSettings
from polopt.methods.offline.td3_bc import TD3BC
from polopt.models.vae import ActionVAE
from polopt.networks import Network
from polopt.tasks.base import Task
from polopt.values.critics import StateValue
from polopt.values.targets import reduce_members, td_target


def above(advantage: Tensor, threshold: float | None) -> Tensor:
    """Whether advantages [B] are above the threshold; everything is above none."""
    return torch.ones_like(advantage, dtype=torch.bool) if threshold is None else advantage > threshold


class A2PR(A2PRSettings, TD3BC):
    @dataclass(frozen=True)
    class Config(TD3BC.Config):
        pull: float = param(1.0, "official code", low=0, help="weight of imitation, the released code's mask")
        candidate: str = param(
            "vae", "equation 10", choices=("vae", "data"), help="what may be imitated beside the data's actions"
        )
        advantage_threshold: float | None = param(0.0, "official code", help="none: all decisions count")
        detach_target: bool = param(True, "equation 10", help="false: as released, through the autoencoder")
        vae_weight: float = param(1.0, "official code", low=0, help="of reconstruction beside half the KL")
        vae_lr: float = param(1e-3, "official code", above=0)
        vae_network: Network = param(Network((750, 750), "relu"), "official code")
        network: Network = param(Network((256, 256, 256), "relu"), "official code")
        critic_network: Network | None = param(
            Network((256, 256, 256, 256), "relu"), "official code", help="of critics and value; none: as the policy's"
        )

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.candidate == "data":
                self.refuse("detach_target", "vae_weight", "vae_lr", "vae_network", because="without the autoencoder")

    slug = "a2pr"

    def build(self, task: Task) -> None:
        super().build(task)
        config, normalizer = self.config, getattr(self.policy, "normalizer", None)
        self.value = StateValue(self.spec, config.critic_network or config.network, normalizer=normalizer)
        self.value_optimizer = self.make_optimizer(self.value, lr=config.lr)
        self.vae: ActionVAE | None = None
        if config.candidate == "vae":
            self.vae = ActionVAE(self.spec, config.vae_network, normalizer=normalizer)
            self.vae_optimizer = self.make_optimizer(self.vae, lr=config.vae_lr)
            # A stream of its own: everything else draws what TD3+BC would.
            self.latents = torch.Generator().manual_seed(int(torch.randint(2**31, ())))

    @torch.no_grad()
    def value_target(self, batch: Batch) -> Tensor:
        """What V is regressed on [B]: the smaller of two targets, of the target critics and of the critics."""
        next_q = reduce_members(self.clipped.critic(batch["next_obs"], batch["next_action"]), "min")
        present = td_target(batch["reward"], self.config.discount, batch["terminated"], next_q)
        return torch.minimum(batch["target"], present)

    def value_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        value = self.value(batch["obs"])
        loss = regression(value, batch["value_target"], batch["weight"])
        return loss, {"value_loss": loss, "value": weighted_mean(value, batch["weight"])}

    def vae_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Reconstruction of better actions, and half the KL of all."""
        assert self.vae is not None
        error, kl = self.vae.terms(batch["obs"], batch["action"], batch["latent"])
        weight, better = batch["weight"], above(batch["advantage"], self.config.advantage_threshold).to(error.dtype)
        reconstruction = weighted_mean(better * error, weight)
        loss = self.config.vae_weight * reconstruction + 0.5 * weighted_mean(kl, weight)
        return loss, {"reconstruction": reconstruction, "vae_kl": weighted_mean(kl, weight)}

    def fit(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the critics, one of V, one of the autoencoder."""
        metrics = super().fit(batch)
        batch["value_target"] = self.value_target(batch)
        with torch.no_grad():
            batch["value"] = self.value(batch["obs"])
            batch["advantage"] = self.clipped.first(batch["obs"], batch["action"]) - batch["value"]
        metrics |= self.value_optimizer.minimize(self.value_loss, batch)
        if self.vae is not None:
            batch["latent"] = self.vae.draw_noise(batch["action"], self.latents)
            metrics |= self.vae_optimizer.minimize(self.vae_loss, batch)
            batch["latent"] = self.vae.draw_noise(batch["action"], self.latents)  # of the policy's step
        return metrics

    def attractor(self, batch: Batch, action: Tensor) -> tuple[Batch, Tensor, dict[str, Tensor]]:
        """The decisions to imitate, a_bar, and how strongly, `pull` times m [B]."""
        config, weight, metrics = self.config, batch["weight"], dict[str, Tensor]()
        better, worth = above(batch["advantage"], config.advantage_threshold), batch["advantage"]
        if self.vae is not None:
            imagined = self.vae.reconstruct(batch["obs"], action, batch["latent"])
            imagined = imagined.detach() if config.detach_target else imagined
            with torch.no_grad():
                advantage = self.clipped.first(batch["obs"], imagined) - batch["value"]
            ahead = advantage >= worth
            if config.advantage_threshold is not None:
                better = better | (advantage >= config.advantage_threshold)
            batch = batch.clone(False)
            batch["action"] = torch.where(ahead.unsqueeze(-1), imagined, batch["action"])
            worth = torch.maximum(advantage, worth)
            metrics["vae_share"] = weighted_mean(ahead.to(weight.dtype), weight)
        pulled = better.to(weight.dtype)
        metrics |= {"pulled": weighted_mean(pulled, weight), "target_advantage": weighted_mean(worth, weight)}
        return batch, config.pull * pulled, metrics
