"""Updates that are compiled as one function."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch._dynamo.utils import counters

from polopt.config import Linear
from polopt.core.compiling import CACHE
from polopt.core.errors import Notice
from polopt.core.files import cache_folder
from polopt.core.state import Stateful, gather, restore
from polopt.optim import Optimizer, frozen_copy, polyak_update, whole
from polopt.optim.whole import compiled_wholes
from polopt.training.checkpoints import random_state, restore_random_state
from tests.guards.harness import SEED, advance, built, reseed
from tests.optim.test_optimizer import Graphs, batch

SMALL = {"network.sizes": (8,)}


class Learner(Stateful):
    """Two modules, a copy, and a schedule: every other update moves the second module and the copy as well."""

    saved = ("updates",)
    wholes: Mapping[Any, Any] = {}
    options: ClassVar[dict[str, Any]] = {"schedule": Linear(), "max_grad_norm": 0.3}

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(SEED)
        self.one, self.two = nn.Linear(2, 1), nn.Linear(2, 1)
        self.copy = frozen_copy(self.one)
        self.first = Optimizer(self.one, lr=0.1, **self.options, **options)
        self.second = Optimizer(self.two, lr=0.2, kind="sgd", weight_decay=0.1)
        self.updates = 0

    def compile(self, **options: Any) -> None:
        self.wholes = compiled_wholes(self, [self.first, self.second], **options)

    def loss(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.one(batch["x"]).squeeze(-1) - batch["y"] - torch.randn_like(batch["y"])
        value = (batch["weight"] * error.square()).sum()
        return value, {"loss": value}

    @whole
    def step(self, batch: Any, both: bool) -> dict[str, Tensor]:
        metrics = self.first.minimize(self.loss, batch)
        if both:
            self.second.step((self.two(batch["x"]) - self.one(batch["x"]).detach()).square().sum())
            polyak_update(self.copy, self.one, 0.3)
        return metrics

    def update(self, batch: Any) -> dict[str, Tensor]:
        self.first.progress = self.updates / 10
        self.updates += 1
        return self.step(batch, self.updates % 2 == 0)


def moved(learner: Learner, updates: int = 6) -> list[Tensor]:
    """The losses of so many updates, and the weights after them."""
    losses = [learner.update(batch())["loss"] for _ in range(updates)]
    return [*losses, *(module.weight.detach().clone() for module in (learner.one, learner.two, learner.copy))]


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_it_is_the_update_and_has_a_version_for_each_branch(kind, float64):
    eager, own, graphs = Learner(kind=kind), Learner(kind=kind), Graphs()
    own.compile(backend=graphs, fullgraph=True)
    torch.manual_seed(1)
    expected = moved(eager)
    torch.manual_seed(1)
    torch.testing.assert_close(moved(own), expected, rtol=1e-10, atol=0.0)
    assert len(graphs.seen) == 2
    assert own.updates == 6


def test_stopped_and_resumed_it_is_the_compiled_run_that_was_not_bitwise():
    def compiled() -> Learner:
        learner = Learner()
        learner.compile(backend=Graphs())
        return learner

    straight, stopped, again = compiled(), compiled(), compiled()
    torch.manual_seed(1)
    moved(straight, 3)
    luck = torch.get_rng_state()
    expected = moved(straight, 3)
    torch.manual_seed(1)
    moved(stopped, 3)
    moved(again, 1)  # it has averages of its own, that go
    restore(again, {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(stopped).items()})
    torch.set_rng_state(luck)
    assert all(map(torch.equal, moved(again, 3), expected))


def test_batches_that_are_cut_are_not_compiled_whole(float64):
    learner, plain, graphs = Learner(micro_batch=4), Learner(), Graphs()
    learner.compile(backend=graphs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn_like", torch.zeros_like)
        torch.testing.assert_close(moved(learner), moved(plain))
    assert not graphs.seen


def test_dicts_and_sides_come_as_they_were_given():
    class Looks(Learner):
        @whole
        def step(self, batch: Any, both: bool) -> dict[str, Tensor]:
            assert isinstance(batch, TensorDict)
            assert batch.batch_size == torch.Size([])
            assert batch["side"].batch_size == torch.Size([3])
            assert batch["side", "obs"].batch_size == torch.Size([3])
            return {"sum": batch["side"]["obs"]["x"].sum() + batch["other"]["y"].sum()}

    learner, graphs = Looks(), Graphs()
    learner.compile(backend=graphs, fullgraph=True)
    side = TensorDict({"obs": TensorDict({"x": torch.ones(3, 2)}, [3])}, [3])
    pair = TensorDict({"side": side, "other": TensorDict({"y": torch.ones(2)}, [2])}, [])
    assert float(learner.update(pair)["sum"]) == 8.0
    assert len(graphs.seen) == 1


def test_what_cannot_be_one_graph_is_compiled_in_parts_and_said(float64):
    """A generator of its own cannot be drawn from in a graph."""

    class Draws(Learner):
        generator = torch.Generator()

        @whole
        def step(self, batch: Any, both: bool) -> dict[str, Tensor]:
            batch["y"] = batch["y"] + torch.randn(6, generator=self.generator)
            return super().step(batch, both)

    results, graphs = [], Graphs()
    for compiles in (False, True):
        learner = Draws()
        learner.generator.manual_seed(SEED)
        torch.manual_seed(1)
        if compiles:
            learner.compile(backend=graphs)
            with pytest.warns(Notice, match=r"Draws.step is compiled in parts: .*"):
                found = moved(learner, 1)
        else:
            found = moved(learner, 1)
        results.append(found + moved(learner))
    torch.testing.assert_close(results[1], results[0], rtol=1e-10, atol=0.0)
    assert len(graphs.seen) == 2  # of what it calls
    learner.compile(backend=graphs, fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        learner.update(batch())


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["sac", "ppo"])
def test_compiled_code_is_kept_on_disk_and_gives_the_numbers_of_the_update_also_resumed(name, monkeypatch):
    """The one test of torch's real compiler: ten updates, and the last five of them in another learner."""
    monkeypatch.delenv(CACHE, raising=False)
    results = []
    for compiled in (False, True):
        reseed()
        torch._dynamo.reset()
        with built(name, **SMALL) as method:
            if compiled:
                method.compile()
            found = advance(method, 10**9, 5)
            state = {path: copy.deepcopy(leaf) for path, leaf in (gather(method) | random_state()).items()}
            results.append(found + advance(method, 10**9, 5))
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-5)
    assert any((cache_folder() / "compiled").iterdir())
    torch._dynamo.reset()
    counters.clear()
    with built(name, **SMALL) as method:
        method.compile()
        restore(method, {path: leaf for path, leaf in state.items() if not path.startswith("random/")})
        restore_random_state(state)
        assert advance(method, 10**9, 5) == results[1][5:]
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    assert counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"] > 0
