"""How a batch is cut, and whether a loss or an update is compiled, changes nothing."""

from __future__ import annotations

import pytest
import torch

from polopt import registry
from polopt.bases.staged import Staged
from tests.guards.harness import BUILT, advance, built, parameters, reseed

LEARNERS = [name for name in BUILT if not issubclass(registry.load(name), Staged)]
WITH_LOSSES = [name for name in LEARNERS if any(item.endswith("_loss") for item in dir(registry.load(name)))]


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_micro_batches_change_nothing(name, float64):
    results = []
    for micro_batch in (None, 16):
        reseed()
        with built(name, micro_batch=micro_batch) as method:
            advance(method, registry.load(name).smoke.steps // 2)
            results.append({path: value.detach().clone() for path, value in parameters(method).items()})
    for path, value in results[0].items():
        torch.testing.assert_close(value, results[1][path], rtol=0, atol=1e-9, msg=lambda text, path=path: path + text)


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_updates_compile_without_graph_breaks(name, float64):
    results = []
    for compiled in (False, True):
        reseed()
        with built(name) as method:
            advance(method, registry.load(name).smoke.steps // 2)
            if compiled:
                torch._dynamo.reset()
                method.compile(fullgraph=True, backend="aot_eager")
            metrics = advance(method, method.ledger[method.unit] + 1)[-1]
            results.append((metrics, {path: value.detach().clone() for path, value in parameters(method).items()}))
    # Adam corrects its start in float32 there, which counts where a gradient is next to nothing
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-6)


def spy(original, loss, seen):
    """The loss, noting the batch, what else it was given, and the random state of its last call."""

    def call(batch, **shared):
        seen[loss] = (batch.clone(), shared, torch.get_rng_state())
        return original(batch, **shared)

    return call


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_losses_compile_without_graph_breaks(name, float64):
    smoke = registry.load(name).smoke
    with built(name) as method:
        seen: dict[str, tuple] = {}  # what each loss was last called with
        for loss in method.losses():
            setattr(method, loss, spy(getattr(method, loss), loss, seen))
        advance(method, smoke.steps // 2)
        assert seen, "no loss was called"
        for loss in method.losses():
            delattr(method, loss)
        for loss, (batch, shared, state) in seen.items():
            torch._dynamo.reset()
            compiled = torch.compile(getattr(method, loss), fullgraph=True, backend="aot_eager")
            torch.set_rng_state(state)
            value = getattr(method, loss)(batch, **shared)[0]
            torch.set_rng_state(state)
            again = compiled(batch, **shared)[0]
            torch.testing.assert_close(again, value, rtol=1e-9, atol=1e-9, msg=lambda t, n=loss: n + t)
