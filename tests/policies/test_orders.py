"""Orders: shares by hand, message passing in loops, and never more than there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.policies.ordering import GraphOrders, Orders
from polopt.policies.orders import softmax_shares
from polopt.tasks import make_task
from polopt.tasks.inventory.supply import OUTSIDE

SMALL = Network((6,), "elu")


def made(config: Any, name: str = "inventory/warehouse", network: Network = SMALL, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    world: Any = make_task(name, 5, 0, **options)
    return config.build(world.spec, network), world


def test_shares_by_hand() -> None:
    logits = torch.tensor([[9.0, 0.0, 1.0]])
    shares = softmax_shares(logits, (OUTSIDE, 0, 0))
    e = torch.e
    torch.testing.assert_close(shares, torch.tensor([[1.0, 1 / (1 + 2 * e), e / (1 + 2 * e)]]))
    torch.testing.assert_close(softmax_shares(logits, (OUTSIDE, 0, 1))[0, 1:], torch.tensor([0.0, 1.0]).sigmoid())


@pytest.mark.parametrize("config", [Orders(), GraphOrders(size=4)], ids=["one network", "graph"])
@pytest.mark.parametrize("name", ["inventory/store", "inventory/serial", "inventory/warehouse"])
@given(st.integers(0, 9))
def test_no_place_sends_what_it_lacks(config: Any, name: str, seed: int) -> None:
    policy, world = made(config, name)
    luck = torch.Generator().manual_seed(seed)
    supply, slots = world.supply, world.length
    stock = 20.0 * torch.rand(5, supply.places, slots, generator=luck) - (2.0 if supply.backlog else 0.0)
    order = policy.act(stock.flatten(1))[0]["action"]
    assert (order >= 0).all()
    for place in supply.suppliers:
        links = [link for link, start in enumerate(supply.source) if start == place]
        assert (order[:, links].sum(-1) <= stock[:, place, 0].clamp_min(0) + 1e-4).all()


def test_orders_from_outside() -> None:
    policy, world = made(Orders())
    obs = world.reset()
    outputs = policy.net(obs)
    torch.testing.assert_close(policy.orders(obs)[:, 0], outputs[:, 0].sigmoid() * world.spec.action.high[0])
    policy, world = made(Orders(), "inventory/store")
    obs = world.reset()
    torch.testing.assert_close(policy.orders(obs), (1 + (policy.net(obs) + 1).exp()).log())


def test_messages_in_loops() -> None:
    """One warehouse, two stores: nodes, edges and sums one by one."""
    policy, world = made(GraphOrders(size=4, rounds=2), stores=2)
    obs, graph, supply = world.reset(), policy.net, world.supply
    obs[:, 0] = torch.tensor([1.0, 4.0, 9.0, 12.0, 40.0])  # what the warehouse has: less than is asked for, and more
    zero = torch.zeros(4)
    source, target = [None, 0, 0, 1, 2, 0], [0, 1, 2, None, None, 0]
    lead = [*supply.lead, 0, 0, 0]
    for row, stock in enumerate(policy.stock(obs)):
        known = zip(supply.holding, supply.underage, supply.mean, supply.deviation, strict=True)
        nodes = [graph.node(torch.cat([each, torch.tensor(facts)])) for each, facts in zip(stock, known, strict=True)]

        def at(end: int | None, nodes: list[Tensor]) -> Tensor:
            return zero if end is None else nodes[end]

        edges = [
            graph.edge(torch.cat([at(start, nodes), at(end, nodes), torch.tensor([float(time)])]))
            for start, end, time in zip(source, target, lead, strict=True)
        ]
        for _ in range(2):
            after = []
            for place, node in enumerate(nodes):
                messages = []
                for ends in (target, source):
                    found = [edge for edge, end in zip(edges, ends, strict=True) if end == place]
                    messages.append(sum(found, zero) / max(len(found), 1) ** 0.5)
                after.append(node + graph.node_step(torch.cat([node, *messages])))
            nodes = after
            edges = [
                edge + graph.edge_step(torch.cat([edge, at(start, nodes), at(end, nodes)]))
                for edge, start, end in zip(edges, source, target, strict=True)
            ]
        asked = [torch.nn.functional.softplus(policy.head(edge))[0] for edge in edges]
        part = min(1.0, stock[0, 0].item() / (asked[1] + asked[2] + asked[5]).item())
        expected = torch.stack([asked[0], part * asked[1], part * asked[2]])
        torch.testing.assert_close(policy.orders(obs)[row], expected)
    assert graph.node[0].layers[0].weight.shape[1] == world.length + 4


def test_stores_that_are_alike_are_treated_alike() -> None:
    """Weights are shared: what one store has moved to another, its orders move too."""
    policy, world = made(GraphOrders(size=4), stores=3)
    policy.features[1:] = policy.features[1]
    policy.net.edges[:4] = 2.0
    stock = 5 * torch.rand(7, 4, world.length)
    stock[:, 0, 0] = 8.0
    turned = stock[:, [0, 3, 1, 2]]
    order = policy.orders(stock.flatten(1))
    torch.testing.assert_close(policy.orders(turned.flatten(1)), order[:, [0, 3, 1, 2]])


def test_first_orders_are_of_the_size_that_the_bias_says() -> None:
    policy, world = made(GraphOrders(), "inventory/serial", Network((32, 32), "elu"))
    assert policy.orders(world.reset())[:, 0].mean().item() == pytest.approx(5.0, abs=1.0)
    assert policy.net.rounds == 3


def test_refusals() -> None:
    spec = make_task("Pendulum-v1", 1, 0).spec
    for config in (Orders(), GraphOrders()):
        with pytest.raises(UsageError, match="need a supply network, as inventory/store has one; Pendulum-v1 has none"):
            config.build(spec, SMALL)
    spec = make_task("inventory/store", 1, 0).spec
    with pytest.raises(UsageError, match="feed-forward"):
        Orders().build(spec, Network((6,), recurrent="gru"))
    with pytest.raises(UsageError, match="has no effect in graph orders"):
        GraphOrders().build(spec, Network((6,), normalization="layer"))
