"""Your own network, or the usual one with other settings.    python examples/own_network.py [STEPS]"""

import sys

import torch
from torch import nn

import polopt


class Residual(nn.Module):
    """Two residual blocks; every trunk maps [..., inputs] features to [..., outputs]."""

    def __init__(self, inputs: int, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.last = nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x)


steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000

# A callable (inputs, outputs) -> module. It is called once for the policy and once for the critic.
own = polopt.train("ppo", "CartPole-v1", steps=steps, network=Residual, out="runs/own-network")
print("with a network of your own:", own.final["eval/return"])

# Sizes, activation and normalization are settings; nested fields are dicts, or dotted names as on the command line.
usual = polopt.train(
    "ppo",
    "CartPole-v1",
    steps=steps,
    network={"sizes": (32, 32), "activation": "relu", "normalization": "layer"},
    out="runs/usual-network",
)
print("with layer normalization:", usual.final["eval/return"])

# Like an environment, a network of your own is given again when the run is loaded.
actor = polopt.load(own.folder, network=Residual)
print("parameters:", sum(parameter.numel() for parameter in actor.parameters()))
