"""GoRL: PPO acts in the latent space of a flow, and the flow is fitted to what it did.

Zhang et al., "GoRL: An Algorithm-Agnostic Framework for Online Reinforcement Learning with Generative Policies", 2025,
arXiv 2512.02581; official code bennidict23/GoRL.

The policy is a Gaussian encoder of latents, the size of the action, and a deterministic decoder of them, a flow. PPO
moves the encoder alone, whose density is exact; the decoder learns by regression alone. The two take turns:

    policy   action = tanh(g(s, eps)),   eps ~ N(mean(s), std(s)),   g: x_1 = eps, then Euler's method along v to x_0
    stage 0  g is the identity, because the last layer of v is 0
    encoder  PPO on `latent`, with ratio = N(eps; new) / N(eps; old) and g frozen, for `stage_steps` of the stage
             loss = PPO's + latent_penalty E[ mean_j mean(s)_j^2 + mean_j std(s)_j^2 ]
    decoder  `decoder_windows` windows of what both do, then a NEW g, `decoder_epochs` passes, on actions a before the
             tanh:
             E[ mean_j (v(s, x_t, t) - (e - a))_j^2 ],   x_t = t e + (1 - t) a,   e ~ N(0, I),   t ~ U(0, 1)
             with `decoder_draws` pairs (e, t) an action. e is never the eps that made a: so the noise of the prior
             comes to do what the encoder had to ask for (`--decoder-source encoder` is the ablation)
    restart  the next encoder begins anew (`--no-reset-encoder`: goes on), near the prior, and so does its critic

The latent penalty and the clamp of std keep latents where the decoder has been trained.

Differs from PPO in: policy, stages, latent penalty. One stage (`--stage-steps` empty, `--policy.decoder none`) without
the penalty is PPO with a squashed Gaussian whose entropy is that before the tanh.

Departs from the paper in: std is exp and not softplus of the network, with the same start; advantages are computed once
a window, and at a time limit bootstrapped, where the code computes them in every minibatch and leaves such steps out;
all stages clip and penalize alike (the code has 0.15 and 5e-4 in stage 0); the decoder is the last of its passes, where
the code takes the best of a held-out tenth; the code multiplies rewards by 10;
its times are embedded without layers of their own. The diffusion decoder, and pairs chosen
by the return of their episode, are not here.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polopt.bases.method import Method
from polopt.bases.staged import Stage, Staged
from polopt.config import Constant, Cosine, Linear, param
from polopt.core.batch import Batch, weigh, weighted_mean
from polopt.core.errors import UsageError
from polopt.data.rollouts import Rollouts
from polopt.data.rounds import Rounds, updates_per_round
from polopt.losses import Surrogate
from polopt.methods.control.gorl_settings import GoRLSettings
from polopt.methods.control.ppo import PPO
from polopt.networks import Network
from polopt.networks.normalizer import Normalizer
from polopt.optim.copies import renew
from polopt.policies.base import Actor
from polopt.policies.decoded import Decoded
from polopt.policies.decoded_policy import DecodedPolicy
from polopt.policies.flow import FlowPolicy
from polopt.tasks.base import Task


class LatentPPO(PPO):
    """PPO of an encoder: its latents are held near 0, its decoder rests."""

    entry = False
    policy: DecodedPolicy

    def make_optimizers(self) -> None:
        config = self.config
        common = {"lr": config.lr, "schedule": config.lr_schedule, "eps": config.adam_eps}
        self.optimizer = self.make_optimizer(self.policy.net, self.critic, max_grad_norm=config.max_grad_norm, **common)

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = super().policy_loss(batch)
        mean, log_std = self.policy.moments(batch["obs"])
        size = weighted_mean((mean.square() + (2.0 * log_std).exp()).mean(-1), batch["weight"])
        return loss + self.config.latent_penalty * size, metrics | {"latent_size": size}


class DecoderFit(Method):
    """Flow matching of a decoder to the actions of an actor; the first batch collects them.

    `parts`: "policy", the decoder, and "actor", who acts.
    """

    entry = False
    policy: FlowPolicy

    def build(self, task: Task) -> None:
        config = self.config
        self.policy = self.part("policy", config.policy.build_decoder, self.spec)
        self.actor: DecodedPolicy = self.part("actor", config.policy.build, self.spec, config.network)
        window = Rollouts(task, config.decoder_windows * config.window, self.ledger)
        self.source = Rounds(
            window, config.decoder_batch, config.decoder_epochs, prepare=self.pairs, generator=self.generator
        )
        self.optimizer = self.make_optimizer(self.policy, lr=config.decoder_lr)

    @property
    def behavior(self) -> Actor:
        return self.actor

    @property
    def updates(self) -> int:
        """How many there are in one round."""
        rows = self.task.num * self.config.decoder_windows * self.config.window
        return updates_per_round(rows, self.config.decoder_batch, self.config.decoder_epochs)

    def pairs(self, window: Batch) -> Batch:
        """Rows [B] with `obs`, `latent`, and as `action` what was done before the tanh, clipped."""
        rows = window.select("obs", "latent", "mask", strict=False).reshape(-1)
        clip = self.config.decoder_clip
        action = window["pre_action"].reshape(len(rows), -1)
        rows["action"] = action if clip is None else action.clamp(-clip, clip)
        self.policy.update_normalizer(rows)
        return rows

    def drawn(self, batch: Batch) -> Batch:
        """A shallow copy with `noise` [B, draws]: the noise of each draw and its time."""
        batch = weigh(batch)
        noise = self.policy.draw_noise(self.repeated(batch))
        if self.config.decoder_source == "encoder":
            noise["noise"] = batch["latent"].unsqueeze(1).expand_as(noise["noise"])
        return batch.set("noise", noise)

    def repeated(self, batch: Batch) -> Batch:
        """Observations and actions of a batch [B], for each of the draws: [B, draws]."""
        return batch.select("obs", "action").unsqueeze(1).expand(len(batch), self.config.decoder_draws)

    def decoder_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        errors = self.policy.imitation_loss(self.repeated(batch), batch["noise"])
        loss = weighted_mean(errors.mean(1), batch["weight"])
        return loss, {"decoder_loss": loss}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        return self.optimizer.minimize(self.decoder_loss, self.drawn(batch))


class GoRL(GoRLSettings, Staged):
    @dataclass(frozen=True)
    class Config(PPO.Config):
        envs: int = param(16, "polopt", low=1)
        window: int = param(30, "assumed", low=1, help="steps of every copy per update")
        stage_steps: tuple[int, ...] = param(
            (100_000, 100_000, 100_000),
            "polopt",
            low=1,
            unit="env_steps",
            help="of each encoder but the last, which has what is left; none: there is one",
        )
        latent_penalty: float = param(1e-3, "official code", low=0, help="on mean and variance of latents")
        reset_encoder: bool = param(True, "official code", help="each stage begins with a new one")
        decoder_windows: int = param(
            20, "official code", low=1, help="windows of every copy that a decoder learns from"
        )
        decoder_epochs: int = param(50, "official code", low=1, help="passes over them")
        decoder_batch: int = param(8192, "official code", low=1)
        decoder_draws: int = param(8, "official code", low=1, help="pairs of noise and time for each action")
        decoder_lr: float = param(3e-4, "official code", above=0)
        decoder_clip: float | None = param(3.0, "official code", above=0, help="of actions before the tanh")
        decoder_source: str = param(
            "prior", "section 4", choices=("prior", "encoder"), help="noise of its flow; encoder: that of the pair"
        )
        epochs: int = param(16, "official code", low=1)
        minibatches: int = param(32, "official code", low=1, help="minibatches per epoch")
        discount: float = param(0.995, "official code", low=0, high=1)
        surrogate: Surrogate = param(Surrogate(clip_low=0.3, clip_high=0.3), "official code")
        value_clip: float | None = param(None, "official code", above=0, help="none: plain squared error")
        lr: float = param(1e-3, "official code", above=0)
        lr_schedule: Constant | Linear | Cosine = param(Constant(), "official code")
        adam_eps: float = param(1e-8, "official code", above=0)
        normalize_obs: bool = param(True, "official code", help="running mean and std, clipped at 10")
        network: Network = param(Network((32,) * 4, "silu"), "official code")
        critic_network: Network | None = param(Network((256,) * 5, "silu"), "official code")
        policy: Decoded = param(Decoded(), "section 4")  # type: ignore[assignment]

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.stage_steps and self.policy.decoder is None:
                raise UsageError("stages are for a decoder, and policy.decoder is none: leave stage_steps empty")
            if not self.stage_steps:
                if self.policy.decoder is not None:
                    raise UsageError("with one stage no decoder is trained: set policy.decoder none")
                names = ("windows", "epochs", "batch", "draws", "lr", "clip", "source")
                self.refuse("reset_encoder", *(f"decoder_{name}" for name in names), because="with one stage")

    slug = "gorl"
    policy: DecodedPolicy
    decoder: FlowPolicy | None = None  # that is trained; the policy has a copy

    def build(self, task: Task) -> None:
        config = self.config
        self.policy = self.part("policy", self.make_encoder)
        if config.policy.decoder is not None:
            self.decoder = config.policy.build_decoder(self.spec)
            self.policy.set_decoder(self.decoder)
        super().build(task)

    def make_encoder(self) -> DecodedPolicy:
        config = self.config
        normalizer = Normalizer(self.spec.obs) if config.normalize_obs else None
        return config.policy.build(self.spec, config.network, normalizer=normalizer)

    def stage(self, index: int) -> Stage | None:
        """Encoders at even, decoders at odd places."""
        config, number = self.config, index // 2
        if number > len(config.stage_steps) or (number == len(config.stage_steps) and index % 2):
            return None
        if index % 2:
            parts: dict[str, Any] = {"policy": self.decoder, "actor": self.policy}
            fit = DecoderFit(config, self.task, ledger=self.ledger, parts=parts)
            return Stage("decoder", fit, until={"updates": fit.updates})
        ppo = LatentPPO(config, self.task, ledger=self.ledger, parts={"policy": self.policy})
        last = number == len(config.stage_steps)
        return Stage("encoder", ppo, until={} if last else {"env_steps": config.stage_steps[number]})

    def finish(self, index: int) -> None:
        if self.decoder is None or self.policy.decoder is None:
            return
        if index % 2 == 0:
            self.decoder.load_state_dict(self.config.policy.build_decoder(self.spec).state_dict())
            return
        renew(self.policy.decoder)
        if self.config.reset_encoder:
            self.policy.net.load_state_dict(self.make_encoder().net.state_dict())
