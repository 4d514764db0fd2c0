"""Coverage: its facts are the gains of a monotone submodular function of the path, which is computed exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.data.demonstrations import scripted_episodes
from polopt.tasks import make_task
from polopt.tasks.grid import Grid
from polopt.tasks.grid.coverage import covered, gains, sensed, smooth

cells = st.lists(st.integers(0, 19), min_size=1, max_size=6)


def value(visited: list[int], near: Tensor, weights: Tensor) -> float:
    """F by sets."""
    seen: set[int] = set()
    for cell in visited:
        seen |= set(near[cell].nonzero().flatten().tolist())
    return float(sum(weights[cell].item() for cell in seen))


@settings(max_examples=50, deadline=None)
@given(cells, cells, st.integers(0, 19), st.sampled_from([0, 1, 1.5, 2]), st.integers(0, 9))
def test_coverage_is_monotone_submodular_and_that_of_sets(
    small: list[int], more: list[int], cell: int, radius: float, seed: int
) -> None:
    near, weights = sensed(4, 5, radius), smooth(4, 5, seed)
    assert covered(torch.tensor(small), near, weights).item() == pytest.approx(value(small, near, weights), abs=1e-5)
    large = small + more
    gain = [value([*path, cell], near, weights) - value(path, near, weights) for path in (small, large)]
    assert gain[0] >= gain[1] - 1e-6 >= -2e-6  # what is known already adds less, and nothing is lost
    parts = gains(torch.tensor(large), near, weights)
    assert parts.sum().item() == pytest.approx(value(large, near, weights), abs=1e-5)
    assert parts[len(small)].item() == pytest.approx(
        value(large[: len(small) + 1], near, weights) - value(small, near, weights), abs=1e-5
    )


def test_discs_by_hand() -> None:
    near = sensed(3, 3, 1)
    assert near[4].tolist() == [False, True, False, True, True, True, False, True, False]
    assert near[0].sum() == 3
    assert sensed(3, 3, 1.5)[4].all()
    assert torch.equal(sensed(2, 3, 0), torch.eye(6, dtype=torch.bool))


def test_smooth_weights_differ_less_nearby() -> None:
    table = smooth(10, 10, 3).view(10, 10)
    assert (table.min().item(), table.max().item()) == (0.0, 1.0)
    assert (table[1:] - table[:-1]).abs().mean() < 0.4 * (table[5:] - table[:-5]).abs().mean()
    assert torch.equal(smooth(10, 10, 3), table.flatten())
    assert not torch.equal(smooth(10, 10, 4), table.flatten())


@pytest.mark.parametrize("repeats", [False, True])
def test_the_reward_is_the_gain_or_the_modular_value(repeats: bool) -> None:
    world: Any = make_task("grid/coverage", 32, 5, repeats=repeats)
    world.reset()
    path, gain, modular, total = [world.state["agents"]], [], [], torch.zeros(32)
    for _ in range(world.horizon):
        move = world.behave("random", world.state, world.time)
        _, reward, terminated, truncated = world.step({"action": move})
        path.append(world.state["agents"])
        gain.append(world.facts["gain"])
        modular.append(world.facts["modular"])
        total += reward
    assert terminated.all()
    assert not truncated.any()
    places = torch.cat(path, 1)  # [32, 26]
    weights, near = world.weights, world.near
    exact = gains(places, near, weights)
    torch.testing.assert_close(torch.stack(gain, 1), exact[:, 1:], atol=1e-5, rtol=0)
    single = near.to(weights.dtype) @ weights  # F({s})
    torch.testing.assert_close(torch.stack(modular, 1), single[places[:, 1:]], atol=1e-5, rtol=0)
    whole = covered(places, near, weights) - covered(places[:, :1], near, weights)  # the start is free
    torch.testing.assert_close(total, torch.stack(modular, 1).sum(1) if repeats else whole, atol=1e-4, rtol=0)


def test_the_map_is_that_of_its_seed_and_not_of_the_run() -> None:
    one, two, other = (make_task("grid/coverage", seed=seed, map_seed=map) for seed, map in ((1, 4), (2, 4), (1, 5)))
    assert torch.equal(one.weights, two.weights)  # type: ignore[attr-defined]
    assert not torch.equal(one.weights, other.weights)  # type: ignore[attr-defined]


def test_greedy_takes_the_best_next_cell_and_beats_chance() -> None:
    world: Any = make_task(Grid, map=".S./...", cover=0, weights=[[1, 0, 5], [0, 3, 0]], moves="stay", horizon=4)
    world.reset()
    assert world.behave("greedy", world.state, world.time).item() == 1
    world.step({"action": torch.tensor([1])})
    world.step({"action": torch.tensor([3])})
    assert world.behave("greedy", world.state, world.time).item() == 2
    totals = {}
    for behavior in ("greedy", "random"):
        task: Any = make_task("grid/coverage", 64, 1)
        totals[behavior] = scripted_episodes(task, behavior, 64 * 25)["reward"].sum().item() / 64
    assert totals["greedy"] > 1.5 * totals["random"]
    plain: Any = make_task(Grid)
    plain.reset()
    with pytest.raises(UsageError, match="Grid has nothing to cover, which the behavior 'greedy' goes for"):
        plain.behave("greedy", plain.state, plain.time)
