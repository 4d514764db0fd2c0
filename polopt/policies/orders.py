"""Orders in a supply network, feasible by construction: what a place does not have is never sent.

Alvo et al. 2023, arXiv 2306.11246, sections 3 and 4, and the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from polopt.core.spec import Spec
from polopt.networks.encoders import Obs
from polopt.networks.graph import NOWHERE, GraphNetwork
from polopt.networks.layers import MLP
from polopt.policies.base import Record, Reparameterized
from polopt.policies.boxes import BoxActor
from polopt.tasks.inventory.supply import OUTSIDE, Supply
from polopt.tasks.inventory.world import deliver


def softmax_shares(logits: Tensor, source: Sequence[int]) -> Tensor:
    """The share of what its place has, of each link [..., K]: softmax over the links of a place and what it keeps,
    whose logit is 1, or 0 beside a single link; 1 for links from outside."""
    shares = torch.ones_like(logits)
    for place in sorted({each for each in source if each != OUTSIDE}):
        links = [link for link, each in enumerate(source) if each == place]
        kept = logits.new_full((*logits.shape[:-1], 1), float(len(links) > 1))
        parts = torch.cat([logits[..., links], kept], -1).softmax(-1)[..., :-1]
        shares = shares.index_copy(-1, torch.tensor(links, device=logits.device), parts)
    return shares


class OrderingPolicy(BoxActor, Reparameterized):
    """Quantities [..., K], in units of the environment; deterministic, without a density. `orders(obs)` makes them."""

    family = "policy of orders"

    def __init__(self, spec: Spec, net: nn.Module, supply: Supply) -> None:
        super().__init__(spec, net)
        self.supply = supply

    def stock(self, obs: Tensor) -> Tensor:
        """What each place has now and is to get, and its past demands: [..., V, L + past]."""
        return obs.unflatten(-1, (self.supply.places, -1))

    def orders(self, obs: Obs) -> Tensor:
        raise NotImplementedError  # abstract

    @torch.no_grad()
    def act(self, obs: Obs, carry: Record | None = None, *, greedy: bool = False) -> tuple[Record, Record]:
        return {"action": self.orders(obs)}, {}

    def rsample(self, obs: Obs, n: int | None = None) -> tuple[Tensor, None]:
        action = self.orders(obs)
        return (action if n is None else action.expand(n, *action.shape)), None


class OrdersPolicy(OrderingPolicy):
    """One network: inner links get a share of what their place has (`softmax_shares`), a link from outside the sigmoid
    of its output times the bound of the action; of a network of one place softplus(output + 1)."""

    def orders(self, obs: Obs) -> Tensor:
        outputs, source = self.net(obs), self.supply.source
        if self.supply.places == 1:
            return softplus(outputs + 1.0)
        assert isinstance(obs, Tensor)
        here = self.stock(obs)[..., 0].clamp_min(0.0)
        outside = torch.tensor([place == OUTSIDE for place in source], device=outputs.device)
        shares = softmax_shares(outputs, source) * here[..., [max(place, 0) for place in source]]
        return torch.where(outside, outputs.sigmoid() * self.high, shares)


class GraphOrdersPolicy(OrderingPolicy):
    """A graph network whose edges are the links, one from each store to its customers, and one from each supplying
    place to itself, of what it keeps. Every edge asks for softplus(output); a place that has less than its edges ask
    for gives each the same part.

    A place is seen with costs, mean and deviation of its demand, a link with its lead time.
    """

    features: Tensor

    def __init__(
        self,
        spec: Spec,
        supply: Supply,
        *,
        sizes: Sequence[int] = (32, 32),
        activation: str = "elu",
        size: int = 32,
        rounds: int = 1,
        bias: float = 5.0,
    ) -> None:
        stores, keepers = supply.stores, supply.suppliers
        source, target = [*supply.source, *stores, *keepers], [*supply.target, *(NOWHERE for _ in stores), *keepers]
        dtype = torch.get_default_dtype()
        lead = torch.tensor([*supply.lead, *(0 for _ in (*stores, *keepers))], dtype=dtype).unsqueeze(-1)
        known = torch.tensor([supply.holding, supply.underage, supply.mean, supply.deviation], dtype=dtype).T
        assert spec.obs.shape is not None
        seen = spec.obs.shape[0] // supply.places + known.shape[-1]
        shape = {"size": size, "sizes": sizes, "activation": activation}
        graph = GraphNetwork(seen, lead, source, target, supply.places, rounds=rounds, **shape)  # type: ignore[arg-type]
        super().__init__(spec, graph, supply)
        self.head = MLP(size, 1, sizes, activation=activation)
        last: Any = self.head.head
        nn.init.constant_(last.bias, bias)
        self.keepers = list(keepers)
        self.register_buffer("features", known.contiguous(), persistent=False)

    def orders(self, obs: Obs) -> Tensor:
        assert isinstance(obs, Tensor)
        stock, links = self.stock(obs), len(self.supply.lead)
        nodes = torch.cat([stock, self.features.expand(*stock.shape[:-1], -1)], -1)
        asked = softplus(self.head(self.net(nodes))).squeeze(-1)
        kept = torch.zeros_like(stock[..., 0])
        if self.keepers:
            kept = kept.index_copy(-1, torch.tensor(self.keepers, device=kept.device), asked[..., -len(self.keepers) :])
        return deliver(asked[..., :links], stock[..., 0], self.supply, kept)
