"""Scripted behavior of points, and what goes wrong in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from polopt.tasks.luck import even, normal, uniform
from polopt.tasks.point.layout import Place, Script, Use
from polopt.tasks.simulated import State

if TYPE_CHECKING:
    from polopt.tasks.point.world import Point

AHEAD = 2.0
"""How many steps ahead one looks along a route that one is on."""
CALM = 0.3
"""The share of the way that a point with a velocity wants to go in one step: less, and it stops in time."""


def behave(world: Point, script: Script, route: tuple[Place, ...], miss: Place, state: State, time: Tensor) -> Tensor:
    """The actions [N, D] of a script."""
    key, place, dims = state["key"], state["place"], world.dims
    drawn = even(key, time, dims, Use.STRAYED)
    if script.to == "random" and not route:
        turn = time // script.hold if script.hold else 0
        action = even(key, turn, dims, Use.WAY)
    else:
        like = place.new_tensor
        goal = on_route(like(route), place, world.speed) if route else _goal(world, script, state)
        goal = goal + like(miss)
        if script.drift:
            goal = goal + script.drift * normal(key, 0, dims, Use.DRIFT)
        action = _towards(world, goal - place, state, straight=bool(route))
    action = script.pace * action
    if script.jitter:
        action = action + script.jitter * normal(key, time, dims, Use.JITTER)
    if script.stray:
        strays = uniform(key, time, 1, Use.STRAY) < script.stray
        action = torch.where(strays, drawn, action)
    return action.clamp(-1.0, 1.0)


def _goal(world: Point, script: Script, state: State) -> Tensor:
    """The goal [N, D] that is gone to."""
    goals = world.goals_of(state)
    away = state["place"].unsqueeze(1) - goals
    which = (away * away).sum(-1).argmin(1)
    if script.to == "any":
        which = (uniform(state["key"], 0, 1, Use.AIM).squeeze(1) * goals.shape[1]).long()
    return goals.expand(len(which), -1, -1)[torch.arange(len(which), device=which.device), which]


def _towards(world: Point, way: Tensor, state: State, straight: bool) -> Tensor:
    """The action that goes `way` [N, D]: as far as it can along each axis, or `straight`."""
    action = (CALM * way - world.damping * state["velocity"]) / world.speed if world.forces else way / world.speed
    return action / action.abs().amax(-1, keepdim=True).clamp(min=1.0) if straight else action.clamp(-1.0, 1.0)


def on_route(route: Tensor, place: Tensor, speed: float) -> Tensor:
    """Where to go [N, D] from the places [N, D] along a route [R, D]: to the nearest point of it or, once that is near,
    ahead of it within its leg; of legs that are about as near, the last counts."""
    if len(route) == 1:
        return route.expand(len(place), -1)
    begin, leg = route[:-1], route[1:] - route[:-1]
    square = (leg * leg).sum(-1)
    off = place.unsqueeze(1) - begin
    along = ((off * leg).sum(-1) / square).clamp(0.0, 1.0)
    gap = off - along.unsqueeze(-1) * leg
    gap = (gap * gap).sum(-1).sqrt()  # [N, R - 1]
    near = gap <= gap.amin(1, keepdim=True) + 0.25 * speed
    which = (near * torch.arange(1, len(route), device=route.device)).amax(1) - 1
    ahead = along + (AHEAD * speed - gap).clamp(min=0.0) / square.sqrt()
    ahead = ahead.clamp(max=1.0)[torch.arange(len(which), device=which.device), which]
    return begin[which] + ahead.unsqueeze(-1) * leg[which]
