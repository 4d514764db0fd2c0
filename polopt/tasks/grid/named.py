"""The grids that have names: each is options of one engine. Imports no torch."""

from __future__ import annotations

from typing import Any

from polopt.tasks.grid.layout import GOAL, THINGS, Thing

DOORS = (
    "#########",
    "#....A###",
    "#...#####",
    "#......B#",
    "#S..#####",
    "#......C#",
    "#...#####",
    "#....D###",
    "#########",
)
"""A room with four doors; behind each a corridor leads to another goal. All ways from S are 7 steps long."""

GAPS = (
    "S..#..",
    "...#..",
    "......",
    "...#L.",
    "##.#..",
    "...#.G",
)

FOUR_ROOMS = (
    "#############",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "##.####.....#",
    "#.....###.###",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#############",
)
"""Sutton, Precup and Singh 1999, figure 2."""

ITEMS = (
    "fcbafae.c.eabca",
    "afaeacbbbddfdcc",
    "abffSffefeabacf",
    "eca.bebaaa.dbee",
    "dbfedadedfbddf.",
    ".cea.c.ddaec.b.",
    "deeaeeeddbcdcf.",
)
"""Six kinds of items in numbers like those of Prajapat et al. 2024 (arXiv 2307.13372), who drew other places."""

MOST = {"a": 3, "b": 2, "c": 3, "d": 4, "e": 6, "f": 3}

SMALL = {"things": THINGS, "obs": "map,held", "moves": "stay", "horizon": 20}
"""Four kinds of tasks with one kind of observation and the same actions: goal, key and door, cliff, coins."""

NAMED: dict[str, dict[str, Any]] = {
    "grid/5x5": {"map": ("S....", ".....", ".....", ".....", "....G"), "obs": "cell", "horizon": 50},
    "grid/6x6": {"map": GAPS, "obs": "cell", "horizon": 50},
    "grid/four-rooms": {"map": FOUR_ROOMS, "scatter": "G", "obs": "place,goal", "horizon": 100},
    "grid/doors": {
        "map": DOORS,
        "things": {letter: Thing(reward=1.0 - 0.05 * rank, ends=1.0) for rank, letter in enumerate("ABCD")},
        "obs": "cell",
        "horizon": 30,
    },
    "grid/coverage": {
        "map": "10x10",
        "start": 55,
        "cover": 1,
        "weights": "smooth",
        "slip": 0.1,
        "obs": "cell,time",
        "moves": "stay",
        "horizon": 25,
        "finite": True,
    },
    "grid/items": {
        "map": ITEMS,
        "things": {letter: Thing(reward=1.0, taken=True, most=most) for letter, most in MOST.items()},
        "obs": "cell,time",
        "moves": "stay",
        "horizon": 39,
        "finite": True,
    },
    "grid/darkroom": {
        "map": (".....", ".....", "..S..", ".....", "....."),
        "things": {"G": Thing(reward=1.0)},
        "scatter": "G",
        "obs": "place,clock,last",
        "moves": "stay",
        "inner": 15,
        "horizon": 90,
        "finite": True,
    },
    "grid/maze": {
        "map": "5x5",
        "scatter": "G",
        "blocks": (0, 10),
        "solvable": True,
        "obs": "window,heading,goal",
        "moves": "turn",
        "horizon": 50,
    },
    "grid/random": {
        "map": "6x6",
        "things": {"A": Thing(reward=1.0, taken=True, returns=0.1), "B": Thing(reward=-1.0, ends=0.5)},
        "scatter": "AAB",
        "blocks": (0, 6),
        "obs": "map",
        "horizon": 30,
        "finite": True,
    },
    "grid/hidden": {
        "map": ("S....", ".....", ".....", ".....", "....G"),
        "things": {"G": GOAL},
        "obs": "colors,noise",
        "colors": 4,
        "blur": 0.1,
        "noise": 3,
        "horizon": 12,
    },
    "grid/reach": {**SMALL, "map": "4x4", "scatter": "G"},
    "grid/key": {**SMALL, "map": ("S.K.", "....", "##D#", "...G")},
    "grid/cliff": {**SMALL, "map": ("....", "....", "....", "SLLG")},
    "grid/coins": {**SMALL, "map": "4x4", "scatter": "CCC"},
    "grid/gems": {
        "map": "5x5",
        "agents": 2,
        "things": {
            "r": Thing(((1.0, 0.2), (0.0, 0.2)), taken=True, returns=1.0),
            "g": Thing(((0.2, 0.0), (0.2, 1.0)), taken=True, returns=1.0),
            "b": Thing(0.5, taken=True, returns=1.0),
        },
        "scatter": "rgb",
        "obs": "map",
        "moves": "stay",
        "horizon": 30,
    },
    "grid/capture": {
        "map": "7x7",
        "agents": 2,
        "things": {"T": Thing(reward=0.5, taken=True, together=2, way="left")},
        "scatter": "TT",
        "obs": "entities",
        "moves": "stay",
        "horizon": 20,
    },
}
