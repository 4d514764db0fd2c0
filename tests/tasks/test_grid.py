"""The engine of grids: its rules beside plain Python, by hand, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.grid import GOAL, THINGS, Grid, Thing, paths
from polopt.tasks.grid.named import NAMED

from .scalar_grid import ScalarGrid
from .worlds import actions, check_world

BUSY = {
    "G": GOAL,
    "K": Thing(taken=True),
    "D": Thing(needs="K", reward=0.25),
    "C": Thing(reward=1.0, taken=True, returns=0.5, most=2),
    "L": Thing(reward=-0.5, ends=0.3),
    "T": Thing(reward=2.0, taken=True, way="right"),
    "U": Thing(reward=0.125, way="down"),
}


@pytest.mark.parametrize("name", NAMED)
def test_every_named_grid_keeps_the_promises_of_worlds(name: str) -> None:
    check_world(lambda num, seed, evaluation: make_task(name, num, seed, evaluation=evaluation), steps=8)


@pytest.mark.parametrize("name", ["grid/darkroom", "grid/gems"])
def test_in_float64_too(name: str, float64: None) -> None:
    check_world(lambda num, seed, evaluation: make_task(name, num, seed, evaluation=evaluation), steps=8)


@st.composite
def grids(draw: Any) -> dict[str, Any]:
    rows, columns = draw(st.integers(2, 4)), draw(st.integers(2, 5))
    letters = "".join(BUSY)
    cells = draw(st.lists(st.sampled_from("....##" + letters), min_size=rows * columns, max_size=rows * columns))
    cells[draw(st.integers(0, len(cells) - 1))] = "S"
    agents = draw(st.integers(1, 2))
    things = dict(BUSY)
    if agents == 2:
        things["G"] = Thing(reward=(1.0, 2.0), ends=1.0, together=draw(st.integers(1, 2)))
        things["T"] = Thing(reward=((1.0, 0.5), (0.0, 3.0)), taken=True, way="right", together=draw(st.integers(1, 2)))
    return {
        "map": ["".join(cells[row * columns : (row + 1) * columns]) for row in range(rows)],
        "things": things,
        "agents": agents,
        "moves": draw(st.sampled_from(["compass", "stay", "turn"])),
        "slip": draw(st.sampled_from([0.0, 0.4])),
        "step_reward": draw(st.sampled_from([0.0, -0.125])),
        "cover": draw(st.sampled_from([None, 0, 1, 2])),
        "weights": "smooth",
        "repeats": draw(st.booleans()),
        "inner": draw(st.sampled_from([0, 3])),
    }


@settings(max_examples=40, deadline=None)
@given(grids(), st.integers(0, 1000))
def test_the_rules_are_those_of_plain_python(options: dict[str, Any], seed: int) -> None:
    world: Any = make_task(Grid, 2, seed, horizon=9, **options)
    world.reset()
    rows = [ScalarGrid(world, row) for row in range(2)]
    for action in actions(world, 9, seed):
        luck = {name: value.tolist() for name, value in world.luck(world.state, world.time).items()}
        _, reward, terminated, truncated = world.step({"action": action})
        for number, row in enumerate(rows):
            chosen = action[number].reshape(-1).tolist()
            found = row.step(chosen, {name: value[number] for name, value in luck.items()})
            assert [world.where(cell) for cell in world.state["agents"][number].tolist()] == row.agents
            cells = [None if cell < 0 else world.where(cell) for cell in world.state["places"][number].tolist()]
            assert cells == [item.cell for item in row.items]
            holders = [None if who < 0 else who for who in world.state["taker"][number].tolist()]
            assert holders == [item.holder for item in row.items]
            assert terminated[number].item() == found["over"]
            assert reward[number].item() == pytest.approx(sum(found["rewards"]), abs=1e-5)
            if world.agents > 1:
                assert world.facts["rewards"][number].tolist() == pytest.approx(found["rewards"], abs=1e-5)
            if "touched" in world.facts:
                who = world.facts["touched"][number].view(world.agents, -1)
                assert [who[:, item].nonzero().flatten().tolist() for item in range(who.shape[1])] == found["touched"]
            for name in ("gain", "modular", "inner_end"):
                if name in world.facts:
                    assert world.facts[name][number].item() == pytest.approx(found[name], abs=1e-5)
        over = terminated | truncated
        if over.any():
            world.reset(over)
            rows = [ScalarGrid(world, row) if over[row] else rows[row] for row in range(2)]


def walked(world: Grid, *moves: int) -> list[tuple[float, bool]]:
    """Rewards and ends of one row along these moves."""
    world.reset()
    steps = [world.step({"action": torch.tensor([move])}) for move in moves]
    return [(round(reward.item(), 6), terminated.item()) for _, reward, terminated, _ in steps]


def test_a_key_opens_its_door() -> None:
    world: Any = make_task(Grid, map="SKDG")
    assert walked(world, 1, 1, 1) == [(0, False), (0, False), (1, True)]
    world = make_task(Grid, map="KSDG")
    assert walked(world, 1, 3, 1, 1) == [(0, False)] * 4  # the door is shut until the key is held
    assert world.where(world.state["agents"].item()) == (0, 2)


def test_walls_edges_and_turns() -> None:
    world: Any = make_task(Grid, map="S#/..", moves="turn")
    walked(world, 2, 1, 2, 1, 2, 0, 2)  # up: edge; right: wall; down: moves; right: moves
    assert world.where(world.state["agents"].item()) == (1, 1)
    assert world.state["heading"].item() == 1


def test_rewards_of_staying_and_of_no_more_than_so_many() -> None:
    world: Any = make_task(Grid, map="SG", things={"G": Thing(reward=1.0)}, moves="stay")
    assert [reward for reward, _ in walked(world, 1, 4, 4, 3)] == [1, 1, 1, 0]
    world = make_task(Grid, map="SCCC", things={"C": Thing(reward=1.0, taken=True, most=2)})
    assert [reward for reward, _ in walked(world, 1, 1, 1, 3)] == [1, 1, 0, 0]


def test_agents_share_and_wait_for_each_other() -> None:
    pair = {"T": Thing(reward=0.5, taken=True, together=2), "C": Thing(reward=((1.0, 0.25), (0.0, 2.0)), taken=True)}
    world: Any = make_task(Grid, map="SCTS", things=pair, agents=2, moves="stay")
    world.reset()
    found = []
    for move in ([1, 3], [1, 4]):  # the coin and the target of two, one waits; then both are there
        world.step({"action": torch.tensor([move])})
        found.append(world.facts["rewards"].tolist()[0])
    assert found == [[1.0, 0.0], [0.5, 0.5]]
    world = make_task(Grid, map="SCS", things=pair, agents=2)
    world.reset()
    _, reward, _, _ = world.step({"action": torch.tensor([[1, 3]])})  # both come at once: the first takes it
    assert world.facts["rewards"].tolist() == [[1.0, 0.0]]
    assert world.facts["touched"].tolist() == [[[True], [False]]]
    assert reward.item() == 1.0


def test_slips_happen_as_often_as_they_should() -> None:
    world: Any = make_task(Grid, 20_000, map="9x9", start=40, slip=0.4, horizon=1)
    world.reset()
    world.step({"action": torch.zeros(20_000, dtype=torch.int64)})
    up = (world.state["agents"].squeeze(1) == 31).double().mean().item()
    assert up == pytest.approx(0.6 + 0.4 / 4, abs=0.015)  # four standard errors


def test_random_layouts_are_uniform_over_free_cells_and_leave_no_thing_out() -> None:
    options = {"map": "3x3", "scatter": "GC", "blocks": (0, 2)}
    world: Any = make_task(Grid, 9000, **options)
    world.reset()
    state = world.state
    counts = torch.bincount(state["agents"].flatten(), minlength=9) / 1000
    assert ((counts > 0.87) & (counts < 1.13)).all()  # four standard errors
    blocks = torch.bincount(state["walls"].sum(1), minlength=3) / 3000
    assert len(blocks) == 3
    assert ((blocks > 0.93) & (blocks < 1.07)).all()
    cells = torch.cat([state["agents"], state["places"]], 1)
    assert all((cells[:, i] != cells[:, j]).all() for i in range(3) for j in range(i))
    assert not state["walls"].gather(1, cells).any()


def test_cells_that_are_free_in_all_rows_are_drawn_without_replacement() -> None:
    world: Any = make_task(Grid, 12_000, map="S.#/.C./K..", scatter="GG")
    world.reset()
    pairs = world.state["places"][:, 2:]
    assert (world.state["places"][:, :2] == torch.tensor([4, 6])).all()
    free = [1, 3, 5, 7, 8]
    counts = torch.zeros(9, 9).index_put((pairs[:, 0], pairs[:, 1]), torch.ones(12_000), accumulate=True)
    assert counts.sum() == counts[free][:, free].sum()
    both = counts[free][:, free]
    assert (both.diagonal() == 0).all()
    assert ((both + 600 * torch.eye(5) - 600).abs() < 5 * 600**0.5).all()  # 20 pairs, each as likely


def test_solvable_mazes_are_solvable() -> None:
    options = {"map": "4x4", "scatter": "G", "blocks": 8}
    open_ones: Any = make_task(Grid, 400, **options)
    open_ones.reset()
    closed = paths.unreachable(open_ones, *(open_ones.state[name] for name in ("walls", "agents", "places")))
    assert 0.2 < closed.double().mean() < 0.9
    world: Any = make_task(Grid, 400, solvable=True, **options)
    world.reset()
    assert not paths.unreachable(world, *(world.state[name] for name in ("walls", "agents", "places"))).any()
    kept = ~closed.squeeze(1)
    assert torch.equal(world.state["walls"][kept], open_ones.state["walls"][kept])  # only the others are drawn again


def test_levels_say_everything_that_is_drawn() -> None:
    world: Any = make_task("grid/random", 3, horizon=9)
    walls = torch.zeros(2, 36, dtype=torch.bool)
    walls[1, 7] = True
    world.levels = {
        "walls": walls,
        "agents": torch.tensor([[0], [35]]),
        "places": torch.tensor([[1, 2, -1], [34, -1, 5]]),
        "pay": torch.tensor([[0.5, 2.0, 1.0], [3.0, 1.0, 1.0]]),
        "ends": torch.zeros(2, 3),
        "returns": torch.zeros(2, 3),
        "limit": torch.tensor([2, 3]),
    }
    world.reset(index=torch.tensor([0, 1, 2]))
    assert world.state["agents"].flatten().tolist() == [0, 35, 0]
    assert torch.equal(world.state["walls"], walls[[0, 1, 0]])
    rewards, ends = [], []
    for move in ([1, 3, 1], [1, 3, 1]):
        _, reward, terminated, _ = world.step({"action": torch.tensor(move)})
        rewards.append(reward.tolist())
        ends.append(terminated.tolist())
    assert rewards == [[0.5, 3.0, 0.5], [2.0, 0.0, 2.0]]
    assert ends == [[False] * 3, [True, False, True]]  # after its own number of decisions
    assert (world.state["places"][1] == torch.tensor([-1, -1, 5])).all()  # returns are off


def test_parts_of_an_observation() -> None:
    obs = "place,time,held,map,window,goal,colors,noise,last"
    world: Any = make_task(Grid, map="SK./#.G", moves="stay", obs=obs, sight=1, noise=2, colors=3, horizon=10)
    seen = world.reset()[0]
    assert seen.shape == (2 + 1 + 5 + 7 * 6 + 6 * 9 + 2 + 3 + 2 + 6,)
    assert seen[:3].tolist() == [-1.0, -1.0, 0.0]
    assert seen[3:8].tolist() == [0.0] * 5
    planes = seen[8:50].view(7, 2, 3)  # the agent, walls, G, K, D, L, C
    assert planes[0].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert planes[1].tolist() == [[0, 0, 0], [1, 0, 0]]
    assert planes[2].tolist() == [[0, 0, 0], [0, 0, 1]]
    assert planes[3].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert planes[4:].sum() == 0
    view = seen[50:104].view(6, 3, 3)  # walls with the edge, G, K, ...
    assert view[0].tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert view[2].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert view[1].sum() == 0
    assert seen[104:106].tolist() == [1.0, 1.0]
    assert seen[106:109].sum() == 1
    assert seen[-6:].tolist() == [0.0] * 6
    after = world.step({"action": torch.tensor([1])})[0][0]
    assert after[:3].tolist() == pytest.approx([-1.0, 0.0, 0.1])
    assert after[3:8].tolist() == [0, 1, 0, 0, 0]  # the key is held
    assert after[-6:].tolist() == [0, 1, 0, 0, 0, 0]
    assert not torch.equal(after[109:111], seen[109:111])  # noise is new


def test_colors_blur_as_often_as_they_should() -> None:
    world: Any = make_task(Grid, 8000, map="2x2", start=0, obs="colors", colors=4, blur=0.3)
    shares = world.reset().mean(0)
    right = world.color[0]
    assert shares[right].item() == pytest.approx(0.7, abs=0.021)
    others = torch.cat([shares[:right], shares[right + 1 :]])
    assert others.tolist() == pytest.approx([0.1] * 3, abs=0.014)


def test_entities_of_a_team() -> None:
    things = {"T": Thing(way="left"), "C": Thing(taken=True)}
    world: Any = make_task(Grid, map="S.T/C.S", things=things, agents=2, obs="entities,agent")
    seen = world.reset()[0]
    assert world.spec.info["entities"] == (3, 10)
    rows = seen[0, :30].view(3, 10)  # the other agent, T, C: down, right, there, agent, T, C, up, right, down, left
    assert rows.tolist() == [
        [1, 1, 1, 1, 0, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 1, 0, 0, 0, 0, 1],
        [1, 0, 1, 0, 0, 1, 0, 0, 0, 0],
    ]
    assert seen[:, 30:].tolist() == [[1, 0], [0, 1]]
    world.step({"action": torch.tensor([[2, 3]])})  # the first takes the coin
    gone = world.obs[0, 1, 20:30]
    assert gone.tolist() == [0.0] * 10


def test_tables_see_state_and_step() -> None:
    world: Any = make_task("grid/5x5", 2, obs="table", horizon=3)
    assert (world.spec.obs["state"].n, world.spec.obs["step"].n) == (25, 4)
    world.reset()
    obs = world.step({"action": torch.tensor([1, 2])})[0]
    assert (obs["state"].tolist(), obs["step"].tolist()) == ([1, 5], [1, 1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"map": "S.x"},
            r"the map has 'x' in row 0, column 2: a cell is a wall #, floor ., a start S or one of the th",
        ),
        ({"map": "S./..."}, "the lines of a map have one length, not 2, 3"),
        ({"map": 3}, "a map is lines of letters, or '5x5' for an empty one, not 3"),
        (
            {"map": ".#./S#G/.#.", "solvable": True},
            r"G at \(1, 2\) cannot be reached from the start \(1, 0\) of Grid, wh",
        ),
        ({"map": "S#", "start": 1}, r"the start \(0, 1\) is a wall"),
        ({"map": "S.", "start": 2}, "start must be a whole number between 0 and 1, not 2"),
        ({"map": "S.", "agents": 3, "start": (0, 1)}, "there are 2 starts for 3 agents: one for all, or one for each"),
        (
            {"map": "2x2", "scatter": "GGG", "blocks": 1},
            "Grid has 4 free cells, which is too few for 3 things, 1 agents",
        ),
        ({"scatter": "x"}, "no thing is called 'x', which scatter names; choose from C, D, G, K, L"),
        ({"slip": 1.5}, "slip is a probability, from 0 to 1, not 1.5"),
        ({"things": {"G": {"ends": -0.1}}}, "'ends' of the thing G is a probability, from 0 to 1, not -0.1"),
        ({"things": {"G": {"rewards": 1}}}, "the thing G has no 'rewards'; did you mean 'reward'"),
        ({"things": {"#": Thing()}}, "the letter of a thing is one character, none of # . S / ,, not '#'"),
        ({"things": {"D": Thing(needs="K")}}, "the thing D needs 'K', which is no thing that can be taken"),
        ({"things": {"C": Thing(returns=0.5)}}, "the thing C cannot return: it is never taken"),
        ({"things": {"T": Thing(way="north")}}, "the thing T moves up, right, down, left, not 'north'"),
        (
            {"things": {"T": Thing(reward=(1, 2, 3))}, "agents": 2},
            "the reward of the thing T is for 3 agents, and there a",
        ),
        (
            {"things": {"T": Thing(reward=((1, 2), 3))}, "agents": 2},
            "the reward of the thing T is a number, 2 numbers or ",
        ),
        (
            {"things": {"T": Thing(together=2)}},
            "'together' of the thing T must be a whole number between 1 and 1, not 2",
        ),
        ({"obs": "plce"}, "a grid shows no 'plce'; did you mean 'place'"),
        ({"obs": "heading"}, "only agents that turn have a heading: the moves must be 'turn' where obs has it"),
        ({"obs": "table", "agents": 2}, "the obs 'table' is for one agent"),
        ({"sight": (1, 2), "agents": 2}, r"sight must be a whole number of at least 0, not \(1, 2\)"),
        ({"moves": "fly"}, "moves is one of compass, stay, turn, not 'fly'"),
        ({"cover": -1}, "cover is a distance of at least 0, not -1"),
        ({"weights": "odd"}, "weights are 'even', 'smooth' or a table of one for each cell, not 'odd'"),
        ({"weights": [1.0]}, "weights are 25 numbers of at least 0, one for each cell of Grid"),
    ],
)
def test_what_cannot_be_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_task(Grid, **options)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ({"wall": torch.zeros(1, 16)}, "a level of grid/reach has no 'wall': it has agents, aim, ends, limit, pay"),
        ({"walls": torch.zeros(1, 4)}, r"'walls' of the levels of grid/reach is \[16\] each, not \[4\]"),
        ({"ends": torch.tensor([[1.5]])}, "'ends' of the levels of grid/reach are probabilities, from 0 to 1"),
        ({"places": torch.tensor([[16]])}, "'places' of the levels of grid/reach are cells, from -1 to 15"),
        ({"walls": torch.ones(1, 16)}, "a level of grid/reach has too few free cells"),
        (
            {"agents": torch.tensor([[0]]), "places": torch.tensor([[3]]), "walls": torch.arange(16)[None] % 4 == 1},
            r"G at \(0, 3\) cannot be reached from the start \(0, 0\) of grid/reach, which must be solvable",
        ),
    ],
)
def test_levels_that_cannot_be_are_one_sentence(levels: dict[str, Any], message: str) -> None:
    world: Any = make_task("grid/reach", 2, solvable=True)
    world.levels = levels
    with pytest.raises(UsageError, match=message):
        world.reset()


def test_unknown_names_have_a_hint() -> None:
    with pytest.raises(UsageError, match="there is no task 'grid/door'; did you mean 'grid/doors'"):
        make_task("grid/door")
    assert set(THINGS) == set("GKDLC")
