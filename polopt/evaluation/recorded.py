"""What can be said of a policy where no environment can be played: how it does on decisions that it has not seen."""

from __future__ import annotations

import torch

from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.random import paired
from polopt.data.arrays import held_out_data
from polopt.data.base import put
from polopt.policies.base import Actor, Imitates
from polopt.tasks.unplayed import Unplayed

ROWS = 4096  # decisions that are passed through the policy at once


@torch.no_grad()
def evaluate_recorded(actor: Actor, task: Unplayed, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
    """How close the policy is to the recorded decisions of at most `episodes` held-out episodes.

    Returns `action_error`, the mean over decisions of the squared difference between its action and the recorded one,
    averaged over coordinates, in the policy's units ([-1, 1] where there are bounds); of whole actions, the share of
    coordinates that differ. Also `imitation_loss` of the recorded actions, of policies that can imitate (as while
    training: often -log pi in nats), `decisions`, their number, and `held_out`, the number of the episodes; 0 where
    none could be held out and these are decisions that it has learned from.

    None of it is a return: a policy that is better than its data acts otherwise than they do.
    """
    if actor.recurrent:
        raise UsageError(f"{task.spec.name} has no environment, which a policy with a memory is evaluated in")
    data, held_out = held_out_data(task, episodes)
    data = data.clone(False).set("action", actor.own_action(data["action"]))
    if actor.unit:  # what was recorded beyond the bounds had the effect of the bound
        data["action"] = data["action"].clamp(-1.0, 1.0)
    sums: dict[str, float] = {}
    with paired():
        for rows in data.split(ROWS):
            rows = put(rows, device_of(actor))
            acted, recorded = actor.act(rows["obs"], greedy=greedy)[0]["action"], rows["action"]
            wrong = (acted - recorded).square() if recorded.is_floating_point() else (acted != recorded).double()
            found = {"action_error": wrong.double().reshape(len(rows), -1).mean(1)}
            if isinstance(actor, Imitates):
                loss = actor.imitation_loss(rows, actor.draw_noise(rows)).double()
                found["imitation_loss"] = loss.reshape(len(rows), -1).mean(1)
            sums = {name: sums.get(name, 0.0) + value.sum().item() for name, value in found.items()}
    means = {name: total / len(data) for name, total in sums.items()}
    return means | {"decisions": float(len(data)), "held_out": float(held_out)}
