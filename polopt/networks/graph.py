"""Message passing on a graph that is the same for all rows: one network for all nodes, one for all edges."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from polopt.networks.layers import ACTIVATIONS, MLP

NOWHERE = -1  # the end of an edge that is no node: its features are 0


class GraphNetwork(nn.Module):
    """Features of V nodes [..., V, features] and of K edges [K, edge_features] -> embeddings of edges [..., K, size].

        n = f(node),  e = g(n[source], n[target], edge)
        n = n + h(n, sum of e that arrive / sqrt(their number), the same of those that leave)    rounds times
        e = e + k(e, n[source], n[target])

    with a multilayer perceptron for each of f, g, h and k, whose outputs are activated too (Alvo et al. 2023, arXiv
    2306.11246, and the released code). An end of an edge may be `NOWHERE`.
    """

    source: Tensor
    target: Tensor
    arriving: Tensor
    leaving: Tensor
    edges: Tensor

    def __init__(
        self,
        features: int,
        edges: Tensor,
        source: Sequence[int],
        target: Sequence[int],
        nodes: int,
        *,
        size: int = 32,
        sizes: Sequence[int] = (32, 32),
        activation: str = "elu",
        rounds: int = 1,
    ) -> None:
        super().__init__()
        self.rounds = rounds
        ends = {"source": torch.tensor(source), "target": torch.tensor(target)}
        for name, end in ends.items():
            self.register_buffer(name, end % (nodes + 1), persistent=False)  # `NOWHERE` is the last row, of zeros
            there = (torch.arange(nodes).unsqueeze(-1) == end).to(edges.dtype)  # [V, K]
            share = there / there.sum(-1, keepdim=True).clamp_min(1.0).sqrt()
            self.register_buffer("arriving" if name == "target" else "leaving", share, persistent=False)
        self.register_buffer("edges", edges, persistent=False)

        def network(inputs: int) -> nn.Sequential:
            return nn.Sequential(MLP(inputs, size, sizes, activation=activation), ACTIVATIONS[activation]())

        self.node, self.edge = network(features), network(2 * size + edges.shape[-1])
        self.node_step, self.edge_step = network(3 * size), network(3 * size)

    def ends_of(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        rows = pad(nodes, (0, 0, 0, 1))
        return rows.index_select(-2, self.source), rows.index_select(-2, self.target)

    def forward(self, nodes: Tensor) -> Tensor:
        nodes = self.node(nodes)
        edges = self.edges.expand(*nodes.shape[:-2], -1, -1)
        edges = self.edge(torch.cat([*self.ends_of(nodes), edges], -1))
        for _ in range(self.rounds):
            messages = [self.arriving @ edges, self.leaving @ edges]
            nodes = nodes + self.node_step(torch.cat([nodes, *messages], -1))
            edges = edges + self.edge_step(torch.cat([edges, *self.ends_of(nodes)], -1))
        return edges
