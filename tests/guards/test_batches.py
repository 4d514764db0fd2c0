"""How a batch is cut, and whether a loss or an update is compiled, changes nothing."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from polopt.bases.method import Method
from polopt.bases.staged import Staged
from polopt.core.batch import Batch
from polopt.data.replay import Replay
from polopt.optim.whole import marked_functions
from tests.guards.harness import (
    BUILT,
    OWN,
    advance,
    begin,
    built,
    compiled_code,
    enough,
    load,
    one_of_a_kind,
    parameters,
    reseed,
)
from tests.guards.options import smoke


def learns(name: str) -> bool:
    """Whether a method has losses: its own, or those of learners that it holds."""
    cls = load(name)
    config = cls.Config()
    holds = any(isinstance(getattr(config, item.name), Method.Config) for item in fields(config))
    return issubclass(cls, Staged) or holds or any(item.endswith("_loss") for item in dir(cls))


WITH_LOSSES = [name for name in BUILT if learns(name)]


def half(name: str) -> int:
    """Half of the smoke run; a staged one has reached its last stage."""
    return load(name).smoke.steps // 2


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_micro_batches_change_nothing(name, float64):
    whole = smoke(name)
    assert whole.plan.config.micro_batch is None
    with built(name, micro_batch=16) as method:
        assert {learner.config.micro_batch for _, learner in method.learners()} == {16}
        found = begin(name, method)
    assert found.keys() == whole.half.keys()
    exact = not hasattr(load(name).Config, "micro_tokens")  # layers of transformers compute norms in float32
    for path, value in whole.half.items():
        torch.testing.assert_close(
            value, found[path], rtol=0, atol=1e-9 if exact else 1e-5, msg=lambda text, path=path: path + text
        )


@pytest.mark.parametrize("name", [name for name in WITH_LOSSES if hasattr(load(name).Config, "micro_tokens")])
def test_pieces_of_like_lengths_change_nothing(name, float64):
    whole = smoke(name)
    assert whole.plan.config.micro_tokens is None
    with built(name, micro_tokens=24) as method:
        found = begin(name, method)
    assert found.keys() == whole.half.keys()
    for path, value in whole.half.items():  # a step moves by 1e-2; layers of transformers compute norms in float32
        torch.testing.assert_close(value, found[path], rtol=0, atol=1e-4, msg=lambda text, path=path: path + text)


@pytest.mark.parametrize("name", [name for name in BUILT if getattr(load(name), "unread", ())])
def test_what_no_update_reads_of_a_replay_is_not_there_and_changes_nothing_where_it_is(name, float64, monkeypatch):
    whole, sample, present = smoke(name), Replay.sample, set()

    def spoiled(replay: Replay, batch_size: int) -> Batch:
        batch = sample(replay, batch_size)
        present.update(batch.keys())
        for key in load(name).unread:
            like = batch["action" if key == "pre_action" else "reward"]
            batch[key] = torch.full(like.shape, torch.nan)
        return batch

    monkeypatch.setattr(Replay, "sample", spoiled)
    with built(name) as method:
        found = begin(name, method)
    assert present
    assert present.isdisjoint(load(name).unread)
    assert found.keys() == whole.half.keys()
    assert all(torch.equal(value, found[path]) for path, value in whole.half.items())


def marked(name: str) -> tuple[str, ...]:
    """The functions of a method that `--compile` makes one of, losses, steps and what follows."""
    cls = load(name)
    return tuple(function.__qualname__ for function in marked_functions(cls))


MARKED = [name for name in WITH_LOSSES if marked(name)]
"""Methods whose whole update, as one compiled function, is compared with the eager one below."""
UNMARKED = [name for name in WITH_LOSSES if name not in MARKED]


@pytest.mark.parametrize(
    "name",
    [
        *one_of_a_kind([name for name in UNMARKED if name not in OWN], lambda name: compiled_code(name)[:1]),
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in [*MARKED, *OWN] if name in WITH_LOSSES),
    ],
)
def test_updates_compile_without_graph_breaks(name, float64):
    """One update after half of the run; of a staged method that of the last stage, and one of every stage before. Of
    each base one here: what else decides, the losses, is traced for every kind at the end of this file."""
    results = []
    for compiled in (False, True):
        reseed()
        with built(name) as method:
            found = [] if issubclass(load(name), Staged) else advance(method, half(name), enough(name))[-1:]
            torch._dynamo.reset()
            if compiled:
                method.compile(fullgraph=True, backend="aot_eager")
            if not found:
                found = advance(method, half(name))
            found += advance(method, method.ledger[method.unit] + 1)[-1:]
            results.append((found, {path: value.detach().clone() for path, value in parameters(method).items()}))
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-9)


IN_PARTS = ("a2pr", "prdc")
"""Methods whose marked function does what no graph can: drawing from a generator of its own, making a table."""


@pytest.mark.parametrize(
    "name", one_of_a_kind([name for name in BUILT if marked(name) and name not in IN_PARTS], marked)
)
def test_whole_updates_compile_once_and_are_the_updates(name, float64):
    """Eight updates, of which the later ones need no other versions than the first four; then with another rate."""
    results, versions = [], []

    def backend(graph, inputs):
        versions.append(graph)
        return graph

    for compiled in (False, True):
        reseed()
        with built(name) as method:
            torch._dynamo.reset()
            if compiled:
                method.compile(fullgraph=True, backend=backend)
            found = advance(method, 10**9, 4)
            before = len(versions)
            assert bool(before) == compiled
            found += advance(method, 10**9, 4)
            for optimizer in method.optimizers():
                optimizer.lr *= 0.5
            found += advance(method, 10**9, 2)
            assert len(versions) == before
            results.append((found, {path: value.detach().clone() for path, value in parameters(method).items()}))
    torch.testing.assert_close(results[1], results[0], rtol=1e-7, atol=1e-9)


def spied(learner: Method, seen: dict) -> None:
    """Makes each loss note, in `seen`, the batch, what else it was given and the random state of its last call."""

    def spy(loss: str):
        original = getattr(learner, loss)

        def call(batch, **shared):
            seen[learner, loss] = (batch.clone(), shared, torch.get_rng_state())
            return original(batch, **shared)

        setattr(learner, loss, call)

    for loss in learner.losses():
        spy(loss)


@pytest.mark.parametrize("name", one_of_a_kind(WITH_LOSSES, compiled_code))
def test_losses_compile_without_graph_breaks(name, float64):
    """All that half of a run calls, as it is traced; what becomes of a trace is compared above."""
    with built(name) as method:
        seen: dict[tuple[Method, str], tuple] = {}  # what each loss of each learner was last called with
        met: list[Method] = []  # stages have learners of their own
        while method.ledger[method.unit] < half(name):
            for _, learner in method.learners():
                if learner not in met:
                    met.append(learner)
                    spied(learner, seen)
            advance(method, half(name), updates=1)
        for learner in met:
            assert not list(learner.losses()) or learner in {one for one, _ in seen}, f"no loss of {learner.slug}"
            for loss in learner.losses():
                delattr(learner, loss)
        assert seen, "no loss was called"
        for (learner, loss), (batch, shared, state) in seen.items():
            torch._dynamo.reset()
            compiled = torch.compile(getattr(learner, loss), fullgraph=True, backend="eager")
            torch.set_rng_state(state)
            value = getattr(learner, loss)(batch, **shared)[0]
            torch.set_rng_state(state)
            found = compiled(batch, **shared)[0]
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-9, msg=lambda text, n=loss: n + text)
