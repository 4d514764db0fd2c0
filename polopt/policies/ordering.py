"""Policies for supply networks as plain data. Importing this needs no torch; `build` does."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from polopt.config import Config, param
from polopt.core.errors import UsageError
from polopt.networks import Network

if TYPE_CHECKING:
    from polopt.core.spec import Spec
    from polopt.networks.normalizer import Normalizer
    from polopt.policies.orders import GraphOrdersPolicy, OrdersPolicy
    from polopt.tasks.inventory.supply import Supply


@dataclass(frozen=True)
class Orders(Config):
    """Orders from one network that sees all places; what a place has is shared by a softmax among its links and what it
    keeps."""

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "OrdersPolicy":
        supply = _supply(spec, network, "orders")
        from polopt.policies.orders import OrdersPolicy

        return OrdersPolicy(spec, network.build(spec.obs, len(supply.lead), normalizer=normalizer), supply)


@dataclass(frozen=True)
class GraphOrders(Config):
    """Orders from a graph network of the shape of the supply network, whose places share their weights; a place that
    has less than its links ask for gives each the same part.

    `network` says what each of its perceptrons looks like: sizes and activation.
    """

    size: int = param(32, "official code", low=1, help="of the embedding of a place or a link")
    rounds: int | None = param(
        None, "official code", low=1, help="of messages; by default as many as links follow each other"
    )
    bias: float = param(5.0, "official code", help="initial, of the output before softplus")

    def build(self, spec: "Spec", network: Network, normalizer: "Normalizer | None" = None) -> "GraphOrdersPolicy":
        supply = _supply(spec, network, "graph orders")
        if normalizer is not None:
            raise UsageError("graph orders see quantities as they are: leave out the normalizer")
        network.refuse(
            *("normalization", "blocks", "init", "dropout", "head_gain", "encoder", "make"),
            because="in graph orders, which are plain perceptrons",
        )
        from polopt.policies.orders import GraphOrdersPolicy

        rounds = self.rounds or max(1, supply.depth)
        return GraphOrdersPolicy(
            spec,
            supply,
            sizes=network.sizes,
            activation=network.activation,
            size=self.size,
            rounds=rounds,
            bias=self.bias,
        )


def _supply(spec: "Spec", network: Network, policy: str) -> "Supply":
    from polopt.tasks.inventory.supply import supply_of

    if "supply" not in spec.info:
        raise UsageError(f"{policy} need a supply network, as inventory/store has one; {spec.name} has none")
    if network.recurrent != "none":
        raise UsageError(f"{policy} are feed-forward: set the network's recurrent to none")
    return supply_of(spec.info["supply"])
