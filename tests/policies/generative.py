"""What the tests of generative policies share."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.spec import Spec
from polopt.networks import Network
from polopt.policies.base import with_noise

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(np.float32([-2, 0]), np.float32([2, 5])), "Toy-v0")
NETWORK = Network((16,), "mish")


def batch_of(*lead, actions=2):
    obs, action = torch.randn(*lead, 3), 2 * torch.rand(*lead, actions) - 1
    return TensorDict({"obs": obs, "action": action}, batch_size=lead)


def two_modes(size):
    """Actions at (0.6, 0.6) or (-0.6, -0.6), with a little noise, whatever the observation."""
    sign = torch.randint(2, (size, 1)) * 2.0 - 1.0
    action = (0.6 * sign + 0.05 * torch.randn(size, 2)).clamp(-1, 1)
    return TensorDict({"obs": torch.zeros(size, 3), "action": action}, batch_size=[size])


def imitate(policy, steps, size=256, lr=1e-2):
    optimizer = torch.optim.Adam(policy.parameters(), lr=lr)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        policy.imitation_loss(two_modes(size)).mean().backward()
        optimizer.step()


def shares(policy, size=1000):
    """Shares of samples near the first mode, near the second, and elsewhere."""
    action = policy.act(torch.zeros(size, 3))[0]["action"]
    near = [float(((action - center).abs().amax(-1) < 0.35).double().mean()) for center in (0.6, -0.6)]
    return near[0], near[1], 1 - sum(near)


def compiled_difference(policy, batch):
    """Largest difference between the compiled imitation loss and the loss, in one graph."""
    batch = with_noise(policy, batch)

    def loss(batch):
        return policy.imitation_loss(batch, batch.get("noise", None))

    torch._dynamo.reset()
    whole = torch.compile(loss, fullgraph=True, backend="aot_eager")
    return float((whole(batch) - loss(batch)).detach().abs().max())
