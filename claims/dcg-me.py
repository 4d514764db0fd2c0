"""DCG-MAP-Elites: gradients that are told a descriptor help where those of the return alone do not.

A robot moves for 50 steps from the middle of a square, at most 0.02 a step along each axis, and is paid 1 - |a|^2 / 2
in each: most for staying where it is, 0.75 and more a step for walking straight to a corner. Its descriptor is where it
ends. All arms play 4,000 episodes in 100 iterations, those of the actor included, with the same networks and an archive
of 256 cells; those with a critic take 200 steps of it and 30 of each offspring's gradient in an iteration, with the
authors' rates. `dcg-me` plays 32 offspring and 8 episodes of its actor in an iteration, the others 40 offspring:
`passive` is DCG-MAP-Elites whose critic never sees an episode that ended elsewhere than it was told; `pga-me` has a
critic that is told nothing, and without the original's injection of its actor; `map-elites` has no gradients.

`accepted` is the share of the offspring by gradients that came into the archive, over the last 50 iterations; `line`
that of the others; `error` how far from 64 descriptors of the archive the episodes of the actor end, as a share of the
square's side (without an actor the archive's policies play, and it is 0); `qd_score` and `coverage` are the archive's
at the end. The best archive there is has a `qd_score` of about 11,730: straight lines at an even pace to all of 256
places, 50 (1 - |d|^2 / 2) for one at the distance d from the middle. An actor that heeds nothing and ends in the middle
has an `error` of about 0.38, the mean distance of a place from there. Where rewards are
not scaled the actor is such a one; a critic that is told nothing has the `accepted` of `pga-me`.

Pilot, seed 1000, one run each: `accepted` 0.14 of `dcg-me` and 0.097 of `pga-me`; `error` 0.054 of `dcg-me`, and 0.84
of `passive` after 30 of the 100 iterations, where the run was ended: its actor runs to where its critic has seen
nothing. `coverage` 0.82 of `dcg-me`, 0.76 of `pga-me` and 0.54 of `map-elites`, `qd_score` 8,909 and 6,493 of the last
two. `passive` had filled 0.74 with a `qd_score` of 8,594 by then: what its offspring are worth is reported, and so is
every `qd_score`.
"""

from __future__ import annotations

import statistics
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, train_arm

SETTINGS: dict[str, Any] = {
    "cells": 256,
    "critic_steps": 200,
    "network.sizes": (32, 32),
    "critic_network.sizes": (64, 64),
    "log_every": 1,
    "eval_every": 10**9,
}
UNTOLD: dict[str, Any] = {"envs": 40, "actor_episodes": 0, "conditioned": False}
CLIMB = {"gradient_steps": 30}


def last_half(run: Any, name: str) -> float:
    shares = [float(row[name]) for row in run.rows if row.get(name) is not None]
    return statistics.mean(shares[len(shares) // 2 :])


def accepted(run: Any) -> float:
    return last_half(run, "gradient_accepted")


def line(run: Any) -> float:
    return last_half(run, "line_accepted")


def arm(**settings: Any) -> Any:
    metrics = {
        "accepted": accepted,
        "line": line,
        "error": "eval/descriptor_error:last",
        "qd_score": "eval/qd_score:last",
        "coverage": "eval/coverage:last",
    }
    return train_arm("dcg-me", "point/robot", metrics=metrics, **SETTINGS, **settings)


CLAIM = Claim(
    method="dcg-me",
    statement="gradients that are told a descriptor give more policies that come into the archive than gradients of "
    "the return alone, and an actor that goes where it is told, which needs episodes that ended elsewhere",
    budget={"env_steps": 200_000},
    quick={"env_steps": 10_000},
    seeds=5,
    minutes=15,
    arms={
        "dcg-me": arm(envs=32, actor_episodes=8, **CLIMB),
        "passive": arm(envs=40, actor_episodes=0, **CLIMB),
        "pga-me": arm(**UNTOLD, **CLIMB),
        "map-elites": arm(gradient_share=0.0, **UNTOLD),
    },
    expect=(
        Greater("accepted", "dcg-me", "pga-me", by=0.02),
        Below("error", "dcg-me", 0.15),
        Greater("error", "passive", "dcg-me", by=0.2),
        Above("coverage", "map-elites", 0.35, control=True),
    ),
)
