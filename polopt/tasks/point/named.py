"""The worlds of points that have names: each is options of one engine. Imports no torch."""

from __future__ import annotations

from typing import Any

from polopt.tasks.point.layout import SCRIPTS, Script, Zone

CROSS = ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))
"""Four directions."""

NAMED: dict[str, dict[str, Any]] = {
    # Ma et al. 2021 (arXiv 2107.06106), with the constants of the official code of STAC, and no start in the disc
    "point/risky": {
        "low": 0.0,
        "start": ((0.3, 0.3), (1.0, 1.0)),
        "noise": 0.002,
        "noise_kind": "uniform",
        "reach": 0.05,
        "step_reward": -0.1,
        "judged": "before",
        "zones": (Zone(center=(0.5, 0.5), radius=0.3, chance=0.1, fade=4.0, reward=-10.0),),
        "horizon": 200,
    },
    "point/goals": {
        "low": -7.0,
        "high": 7.0,
        "speed": 1.0,
        "start": 0.0,
        "goals": tuple((5.0 * x, 5.0 * y) for x, y in CROSS),
        "reach": 1.0,
        "bonus": 10.0,
        "effort": 0.1,
        "horizon": 30,
    },
    "point/goals-once": {
        "speed": 1.0,
        "start": 0.0,
        "goals": tuple((0.5 * x, 0.5 * y) for x, y in CROSS),
        "weight": 3.0,
        "finite": True,
        "horizon": 1,
    },
    "point/modes": {
        "speed": 1.0,
        "start": 0.0,
        "goals": ((0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8)),
        "bonus": (2.0, 0.0, 0.0, 1.3),
        "reach": 0.2,
        "shaping": "none",
        "finite": True,
        "horizon": 1,
    },
    "point/corridor": {
        "low": 0.0,
        "speed": 0.05,
        "start": ((0.05, 0.05), (0.15, 0.95)),
        "goals": (0.9, 0.5),
        "reach": 0.05,
        "bonus": 1.0,
        "shaping": "none",
        "walls": (((0.3, 0.0), (0.7, 0.45)), ((0.3, 0.55), (0.7, 1.0))),
        "scripts": {
            **SCRIPTS,
            "expert": Script(route=((0.15, 0.5), (0.9, 0.5))),
            "noisy": Script(route=((0.15, 0.5), (0.9, 0.5)), jitter=0.3),
            "down": Script(route=((0.2, 0.5), (0.2, 0.05), (0.05, 0.05)), jitter=0.3),
            "up": Script(route=((0.2, 0.5), (0.2, 0.95), (0.05, 0.95)), jitter=0.3),
        },
        "horizon": 60,
    },
    "point/grid": {
        "low": -5.0,
        "high": 5.0,
        "speed": 1.0,
        "start": (-5.0, 0.0),
        "goals": (5.0, 5.0),
        "reach": 0.5,
        "bonus": 1.0,
        "shaping": "none",
        "horizon": 30,
    },
    "point/lava": {
        "start": ((-0.9, -0.6), (-0.7, 0.2)),
        "goals": (0.8, 0.0),
        "weight": 0.1,
        "zones": (Zone(low=(-0.2, -1.0), high=(0.2, 0.4), reward=-1.0, cost=1.0),),
        "scripts": {
            **SCRIPTS,
            "risky": Script(jitter=0.2),
            "expert": Script(route=((-0.3, 0.6), (0.3, 0.6), (0.8, 0.0))),
            "safe": Script(route=((-0.3, 0.6), (0.3, 0.6), (0.8, 0.0)), jitter=0.2),
            "wide": Script(route=((-0.3, 0.8), (0.3, 0.8), (0.8, 0.0)), jitter=0.2),
        },
    },
    "point/navigation": {
        "speed": 0.05,
        "goals": "uniform",
        "ends": False,
        "scripts": {**SCRIPTS, "flawed": Script(pace=0.5, drift=0.2, stray=0.3)},
        "horizon": 100,
    },
    "point/regulation": {
        "dims": 4,
        "low": None,
        "high": None,
        "speed": 0.3,
        "noise": 0.05,
        "start": "normal",
        "goals": "normal",
        "ends": False,
        "shaping": "square",
        "reward_noise": 2.0,
        "scale": 0.1,
        "horizon": 16,
    },
    "point/front": {
        "speed": 1.0,
        "start": 0.0,
        "goals": ((0.707, 0.707), (-0.707, -0.707)),
        "shaping": "bell",
        "objectives": True,
        "finite": True,
        "horizon": 1,
    },
    "point/robot": {
        "low": 0.0,
        "speed": 0.02,
        "start": 0.5,
        "goals": (),
        "step_reward": 1.0,
        "effort": 0.5,
        "obs": "place,time",
        "finite": True,
        "horizon": 50,
    },
}
