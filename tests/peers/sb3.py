"""What the tests beside Stable-Baselines3 share: its models in double precision, with small networks.

`train()` of a model runs as it is, on a buffer that was filled with the test's batch, up to each `optimizer.step()`,
which records the gradients it would have stepped on. Its own extension points make it double precision: buffers that
store float64, and a features extractor that casts back after the library's cast of observations to float32. Numbers
that pass through float32 (observations, actions) are chosen so that this loses nothing.
"""

import numpy as np
import torch
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import FlattenExtractor
from tensordict import TensorDict

from polopt.training import api
from tests.peers.gradients import linear, plain

SIZE, SIZES, TOLERANCE = 64, (16, 16), 1e-6  # decisions in a batch, widths of the networks, relative error


class DoubleFeatures(FlattenExtractor):
    def forward(self, observations):
        return super().forward(observations).double()


class DoubleRollouts(RolloutBuffer):
    def reset(self):
        super().reset()
        for name in ("rewards", "returns", "values", "log_probs", "advantages"):
            setattr(self, name, getattr(self, name).astype(np.float64))


class DoubleReplay(ReplayBuffer):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for name in ("rewards", "dones", "timeouts"):
            setattr(self, name, getattr(self, name).astype(np.float64))


class WholeReplay(DoubleReplay):
    """A sample is everything, in order."""

    def sample(self, batch_size, env=None):
        return self._get_samples(np.arange(batch_size), env)


def single(tensor):
    """Rounded to what float32 holds, as float64."""
    return tensor.float().double()


def theirs(cls, task, **settings):
    kwargs = {"net_arch": list(SIZES), "features_extractor_class": DoubleFeatures}
    model = cls("MlpPolicy", task(), policy_kwargs=kwargs, device="cpu", seed=0, **settings)
    model.set_logger(Logger(None, []))
    torch.manual_seed(0)
    return model


def ours(name, task, **settings):
    return api.plan(name, task, seed=1, loggers=(), **{"network.sizes": SIZES} | settings).build()


def policy_parameters(method):
    return list(method.policy.parameters())  # log_std first, where there is one, as on the other side


def their_policy(model, value):
    first = [value(model.policy.log_std).detach()] if hasattr(model.policy, "log_std") else []
    return first + plain(linear(model.policy.mlp_extractor.policy_net, model.policy.action_net), value)


def their_critic(model, value):
    return plain(linear(model.policy.mlp_extractor.value_net, model.policy.value_net), value)


def fill(buffer, batch):
    """Writes a batch [B] with `value`, `log_prob`, `advantage` and `returns` into a rollout buffer."""
    for row in batch:
        buffer.add(row["obs"], row["action"].numpy(), 0.0, False, row["value"], row["log_prob"])
    buffer.advantages[:, 0], buffer.returns[:, 0] = batch["advantage"], batch["returns"]


def transitions():
    """A batch [B], actions in [-1, 1] as both sides store them; some rows end, some only by a time limit."""
    draw = torch.rand(SIZE)
    return TensorDict(
        {
            "obs": single(torch.randn(SIZE, 3)),
            "next_obs": single(torch.randn(SIZE, 3)),
            "action": single(2 * torch.rand(SIZE, 2) - 1),
            "reward": torch.randn(SIZE),
            "discount": torch.full((SIZE,), 0.9),
            "terminated": draw < 0.2,
            "truncated": draw > 0.8,
        },
        batch_size=[SIZE],
    )
