"""What breaks learning from recorded data, found by looking at them: one sentence each."""

from __future__ import annotations

import torch
from gymnasium import spaces
from torch import Tensor

from polopt.data.datasets import Dataset

AT = 1e-3  # within this share of its range an action is at a bound
MANY = 0.2  # so many coordinates at the bounds are worth a sentence
NARROW = 0.1  # of the bounds: actions that use no more of them may be in other units
UNEQUAL = 1e3  # largest deviation of a coordinate of the observations over the smallest


def at_bounds(data: Dataset) -> tuple[float | None, float | None]:
    """Share of the coordinates of actions that are at (or beyond) their bounds, and beyond; None without bounds."""
    if not data.spec.bounded:
        return None, None
    low, high, action = _bounds(data)
    margin = AT * (high - low)
    at = ((action <= low + margin) | (action >= high - margin)).double().mean().item()
    return at, ((action < low - 1e-6) | (action > high + 1e-6)).double().mean().item()


def concerns(data: Dataset) -> list[str]:
    """Sentences about what a user should know before learning from a dataset; none where nothing was found."""
    return [*data.metadata.get("notes", ()), *_of_ends(data), *_of_rewards(data), *_of_actions(data), *_of_obs(data)]


def _of_ends(data: Dataset) -> list[str]:
    batch, lengths = data.data, data.lengths
    ended, count = batch["terminated"], len(lengths)
    if count == 1:
        return ["one episode: nothing can be held out, and all that is known is what one start led to"] + (
            []
            if ended.any()
            else ["it does not terminate: right where a task has no end, wrong where it failed or won"]
        )
    if not ended.any():
        return ["no episode terminates: right where a task has no end, wrong where one failed or reached a goal"]
    if int(ended.sum()) == count and bool((lengths == lengths[0]).all()) and lengths[0] > 1:
        return [
            f"all {count:,} episodes terminate after exactly {int(lengths[0])} decisions: if that is a time limit, "
            "they are truncated (timeouts), and as terminals they teach that nothing follows"
        ]
    return []


def _of_rewards(data: Dataset) -> list[str]:
    reward, returns = data.data["reward"], data.returns
    if (reward == reward[0]).all():
        if not data.data["terminated"].any():
            return [f"every reward is {reward[0].item():g} and nothing terminates: no decision is better than another"]
        return [
            f"every reward is {reward[0].item():g}: what is learned is to live longer, or shorter if it is negative"
        ]
    if len(returns) > 1 and float(returns.max() - returns.min()) == 0.0:
        return ["all episodes have the same return: rewards cannot be scaled by their range (--rewards return-range)"]
    return []


def _of_actions(data: Dataset) -> list[str]:
    action, space, found = data.data["action"], data.spec.action, list[str]()
    if isinstance(space, spaces.Discrete):
        taken = torch.bincount(action.flatten() - int(space.start), minlength=int(space.n)) > 0
        if not taken.all():
            never = ", ".join(str(int(number) + int(space.start)) for number in (~taken).nonzero().flatten()[:10])
            found.append(f"{int((~taken).sum())} of {int(space.n)} actions never occur: {never}")
    constant = bool((action == action[:1]).all())
    if constant:
        found.append("all decisions take the same action: nothing is known of any other")
    at, beyond = at_bounds(data)
    if at is None or beyond is None or constant:
        return found
    if beyond > 0.0:
        found.append(
            f"{100 * beyond:.3g} % of the coordinates of actions are beyond the bounds {space}: they count as the bound"
        )
    if at > MANY:
        found.append(
            f"{100 * at:.3g} % of the coordinates of actions are at the bounds, where log-probabilities of a tanh grow "
            "without limit and a Gaussian cannot put its mass"
        )
    low, high, flat = _bounds(data)
    used = ((flat.amax(0) - flat.amin(0)) / (high - low)).max().item()
    if used < NARROW:
        found.append(f"the actions use {100 * used:.2g} % of their bounds: they may be in other units than {space}")
    return found


def _of_obs(data: Dataset) -> list[str]:
    obs = data.data["obs"]
    if not isinstance(obs, Tensor) or not obs.is_floating_point() or obs.dim() != 2:
        return []
    deviation = obs.double().std(0, correction=0)
    moving = deviation[deviation > 0]
    if not len(moving):
        return ["the observations never change"]
    if (ratio := (moving.max() / moving.min()).item()) > UNEQUAL:
        return [
            f"coordinates of the observations differ in scale by {ratio:.2g}: scale them (of bc: --normalize-obs), or "
            "the small ones go unnoticed"
        ]
    return []


def _bounds(data: Dataset) -> tuple[Tensor, Tensor, Tensor]:
    """Low and high [A] and the actions [B, A], float64."""
    space = data.spec.action
    assert isinstance(space, spaces.Box)
    low, high = (torch.from_numpy(bound.reshape(-1).astype("float64")) for bound in (space.low, space.high))
    return low, high, data.data["action"].double().reshape(len(data.data), -1)
