"""What docs/worlds.md shows runs, and it names every world."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from polopt.data.demonstrations import scripted_episodes
from polopt.tasks import make_task
from polopt.tasks.as_gymnasium import WorldVectorEnv
from polopt.tasks.grid import named, sight
from polopt.tasks.lock import Lock
from polopt.tasks.point import Point

from .worlds import check_world

PAGE = (Path(__file__).parents[2] / "docs" / "worlds.md").read_text(encoding="utf-8")


def test_what_it_shows_runs(capsys: Any) -> None:
    names: dict[str, Any] = {}
    for block in PAGE.split("```python\n")[1:]:
        exec(block.partition("```")[0], names)

    found = [float(line) for line in capsys.readouterr().out.split()]
    assert found[1] > 0.5 > found[2]
    assert found[3] == found[0] + 1
    assert -4.0 < found[4] < -1.0
    assert names["yard"].spec.facts == {"reached": (2,), "inside": (1,), "cost": ()}
    for behavior, share in (("above", 1.0), ("below", 0.5)):
        data = scripted_episodes(names["yard"], behavior, 5_000)
        assert data["reached"].any(-1)[data["terminated"] | data["truncated"]].double().mean() >= share
    toll = names["Toll"]
    options = {"map": "5x5", "scatter": "G", "toll": 0.5}
    check_world(lambda num, seed, evaluation: make_task(toll, num, seed, evaluation=evaluation, **options), steps=8)
    world: Any = make_task(toll, 2, **options)
    world.levels = {"agents": torch.tensor([[1], [2]])}
    world.reset(index=torch.tensor([0, 1]))
    world.step({"action": torch.tensor([1, 1])})
    assert world.facts["cost"].tolist() == [0.0, 0.5]  # columns 2 and 3 of 5
    assert isinstance(names["envs"], WorldVectorEnv)


def test_it_names_every_world_and_part() -> None:
    for name in (*named.NAMED, *Lock.named, *Point.named, *sight.PARTS):
        assert f"`{name}`" in PAGE, name
