"""The model of forces: its loss beside a pendulum that is stepped by hand, and what it imagines."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.rollouts import Rollouts
from polopt.models.ensemble import Ensemble
from polopt.models.fitting import Fitting
from polopt.models.inputs import Vector
from polopt.models.structured import Structured, blur, limits, windows
from polopt.networks import Network
from polopt.policies import SquashedGaussian
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task
from polopt.tasks.torch_control import Rod, moved

LIMITS = torch.tensor([1.0, 1.0, 8.0])


def model(world: Any, known: bool = True, **config: Any) -> Structured:
    settings: dict[str, Any] = {"members": 2, "elites": 1, "network": Network((8,), "silu"), "weight_decay": (0.1, 0.2)}
    return Structured(world.spec, Ensemble(**settings | config), world.mechanics(), known=known)


def constant(found: Structured, force: list[float], raw: float) -> None:
    """All networks say the same everywhere: member i this force, and so raw a log variance."""
    last = found.linear[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(raw)
        last.bias[:, 0, 0] = torch.tensor(force)


def rows(count: int = 4, horizon: int = 3) -> TensorDict:
    torch.manual_seed(3)
    angle, speed = torch.randn(2, count, horizon, 2)
    obs, after = (torch.stack([angle[..., i].cos(), angle[..., i].sin(), speed[..., i]], -1) for i in (0, 1))
    mask = torch.arange(horizon) < torch.tensor([3, 2, 1, 3])[:, None]
    return TensorDict(
        {"obs": obs, "next_obs": after, "action": 3 * torch.randn(count, horizon, 1), "mask": mask}, batch_size=[count]
    )


def clamped(raw: float) -> float:
    """Softly into [-10, 0.5]."""
    below = 0.5 - math.log1p(math.exp(0.5 - raw))
    return -10 + math.log1p(math.exp(below + 10))


def by_hand(batch: TensorDict, force: float, raw: float) -> tuple[Tensor, Tensor]:
    """Loss [B] and squared error [B] of a constant force on a pendulum of mass 1 and length 1."""
    one, log_var, losses, squares = torch.tensor(1.0), clamped(raw), [], []
    for row in range(len(batch)):
        angle = torch.atan2(batch["obs"][row, 0, 1], batch["obs"][row, 0, 0])
        speed, loss, square = batch["obs"][row, 0, 2], 0.0, 0.0
        for step in range(3):
            torque = batch["action"][row, step, 0].clamp(-2, 2)
            angle, speed = moved(angle, speed, torque, one, one, force)
            if batch["mask"][row, step]:
                seen = torch.stack([angle.cos(), angle.sin(), speed])
                error = ((seen - batch["next_obs"][row, step]) / LIMITS).square()
                loss += float((error * math.exp(-log_var) + log_var).sum())
                square += float(error.sum())
        losses.append(loss / 9)  # three steps of three coordinates, masked ones too
        squares.append(square / 9)
    return torch.tensor(losses), torch.tensor(squares)


@pytest.mark.parametrize("apart", [False, True])
def test_the_loss_of_a_rollout(apart: bool, float64: None) -> None:
    found, batch = model(make_task("pendulum", 1)), rows()
    constant(found, [0.7, -1.5], 0.3)
    first, second = by_hand(batch, 0.7, 0.3), by_hand(batch, -1.5, 0.3)
    given: Any = torch.stack([batch, batch]) if apart else batch
    torch.testing.assert_close(found.row_losses(given, apart=apart), torch.stack([first[0], second[0]]))
    if not apart:
        torch.testing.assert_close(found.errors(batch), torch.stack([first[1].mean(), second[1].mean()]))
        found.choose(found.errors(batch))
        assert found.elites.tolist() == [int(first[1].mean() > second[1].mean())]
    constant(found, [0.7, 0.7], -30.0)
    torch.testing.assert_close(found.row_losses(batch)[0], by_hand(batch, 0.7, -30.0)[0])
    decay: Any = sum(c * layer.weight[0].square().sum() / 2 for c, layer in zip((0.1, 0.2), found.linear))
    assert found.restraint()[0].item() == pytest.approx(float(decay.detach()))


def test_the_gradient_goes_through_the_rollout(float64: None) -> None:
    """As finite differences have it, in a force that acts in every step; later errors hear of earlier forces."""
    found, batch = model(make_task("pendulum", 1)), rows()
    constant(found, [0.7, -1.5], 0.3)
    bias = found.linear[-1].bias
    (slope,) = torch.autograd.grad(found.row_losses(batch).sum(), bias)
    for member, force in enumerate([0.7, -1.5]):
        up, down = (by_hand(batch, force + sign * 1e-5, 0.3)[0].sum() for sign in (1, -1))
        assert slope[member, 0, 0].item() == pytest.approx(float((up - down) / 2e-5), rel=1e-5)


def test_changes_in_place_of_forces(float64: None) -> None:
    found, batch = model(make_task("pendulum", 1), known=False), rows()
    assert found.outputs == 3
    constant(found, [0.0, 0.0], 0.0)
    with torch.no_grad():
        found.linear[-1].bias[:, 0, 2] = 0.25  # of the largest speed
    error, _ = found.rollout_errors(batch)
    expected = (batch["obs"][0, 0, 2] + 2 * 0.25 * 8 - batch["next_obs"][0, 1, 2]) / 8
    assert error[0, 0, 1, 2].item() == pytest.approx(expected.item())


def test_windows_follow_each_other() -> None:
    """Two rows side by side, of which the first ends with its second decision and the second with its last."""
    numbers = torch.arange(8)
    ends = {"terminated": numbers == 2, "truncated": numbers == 7}
    replay = TensorDict({"obs": numbers, "action": numbers, "next_obs": 10 * numbers, **ends}, batch_size=[8])
    found = windows(replay, 3, 2)
    assert found["obs"].tolist() == [[0, 2, 4], [1, 3, 5], [2, 4, 6], [3, 5, 7]]
    assert found["next_obs"].tolist() == [[10 * place for place in row] for row in found["obs"].tolist()]
    assert found["mask"].tolist() == [[True, True, False], [True] * 3, [True, False, False], [True] * 3]
    assert windows(replay, 1).batch_size == (8,)
    assert len(windows(replay[:3], 3, 2)) == 0


def test_it_learns_what_is_missing() -> None:
    """A heavier pendulum that rubs, told as one of mass 1 without friction: the force is that of test_mechanics."""
    torch.manual_seed(0)
    world: Any = make_task("pendulum", 20, mass=1.4, friction=0.2)
    seen = Rollouts(world, 30).next(Uniform(world.spec, None))
    whole = seen.clone(False).set("next_obs", seen["final_obs"])
    keys = ("obs", "action", "next_obs", "terminated", "truncated")
    data: Any = torch.cat([windows(row.select(*keys), 2) for row in whole])
    fit: dict[str, Any] = {"members": 1, "elites": 1, "patience": 99, "epochs": 40, "batch_size": 100, "lr": 1e-2}
    config = Ensemble(network=Network((16,), "silu"), **fit)
    found = Structured(world.spec, config, world.mechanics(mass=1.0, friction=0.0))
    drawn = copy.deepcopy(found.linear[-1].state_dict())
    constant(found, [0.0], 0.0)
    before = float(found.errors(data))
    found.linear[-1].load_state_dict(drawn)
    Fitting(found, data).run()
    assert float(found.errors(data)) < before / 10
    state, action = data["obs"][:50, 0], data["action"][:50, 0]
    force, _ = found.predict(state[None], action[None])
    exact = world.mechanics().advance(state, action, torch.zeros(50, 1))
    acceleration = (exact[:, 2] - state[:, 2]) / 0.05
    missing = 0.4 * 5 * state[:, 1] - 0.2 * state[:, 2] - 0.4 / 3 * acceleration
    assert (force[0, :, 0] - missing).square().mean() < 0.1 * missing.square().mean()


class Ending(Rod):
    """An episode ends where it turns fast to the left."""

    def ended(self, before: Tensor, action: Tensor, after: Tensor) -> Tensor:
        return after[..., 2] > 0.4


def test_what_is_imagined(float64: None) -> None:
    """States follow the mean, what is shown has noise, and what has ended begins again where it began."""
    world: Any = make_task("pendulum", 1)
    found = model(world, members=1)
    found.mechanics = Ending(1.0, 1.0, 0.0)
    constant(found, [0.6], -2.0)
    policy: Any = SquashedGaussian().build(world.spec, Network((8,)))
    torch.manual_seed(4)
    start = torch.tensor([[math.cos(0.1 * i), math.sin(0.1 * i), 0.1] for i in range(300)])
    seen = found.imagine(policy, start, 4)
    assert seen.batch_size == (300, 4)
    assert torch.equal(seen["obs"][:, 0], start)
    one, state, noise = torch.tensor(1.0), start, []
    for step in range(4):
        angle, speed = torch.atan2(state[:, 1], state[:, 0]), state[:, 2]
        torque = 2 * seen["action"][:, step, 0]
        assert (torque.abs() <= 2).all()
        torch.testing.assert_close(
            seen["reward"][:, step], -(angle.square() + 0.1 * speed.square() + 0.001 * torque.square())
        )
        angle, speed = moved(angle, speed, torque, one, one, 0.6)
        after = torch.stack([angle.cos(), angle.sin(), speed], -1)
        noise.append((seen["next_obs"][:, step] - after) / LIMITS)
        over = speed > 0.4
        assert torch.equal(seen["terminated"][:, step], over)
        state = torch.where(over[:, None], start, after)
        if step < 3:
            shown = torch.where(over[:, None], start, seen["next_obs"][:, step])
            assert torch.equal(seen["obs"][:, step + 1], shown)
    assert 100 < int(seen["terminated"].sum()) < 1100
    spread = torch.stack(noise).std((0, 1)).numpy()
    np.testing.assert_allclose(spread, math.exp(0.5 * clamped(-2.0)), rtol=0.06)
    assert not seen["truncated"].any()
    modes = policy.act(start, greedy=True)[0]["action"]
    assert (seen["action"][:, 0] - modes).abs().mean() > 0.1
    torch.testing.assert_close(found.imagine(policy, start, 1, greedy=True)["action"][:, 0], modes)


def test_elites_imagine() -> None:
    world: Any = make_task("pendulum", 1)
    found = model(world, members=3, elites=2)
    constant(found, [0.0, 5.0, -5.0], -50.0)
    found.choose(torch.tensor([0.3, 0.1, 0.2]))
    policy: Any = SquashedGaussian().build(world.spec, Network((8,)))
    start = torch.tensor([1.0, 0.0, 0.0]).expand(400, 3)
    seen = found.imagine(policy, start, 1, greedy=True)
    right = seen["next_obs"][:, 0, 2] > 0
    assert 0.4 < right.double().mean() < 0.6
    assert (seen["next_obs"][:, 0, 2].abs() > 0.4).all()


def test_units_and_noise_of_a_dict() -> None:
    far = spaces.Box(-np.inf, np.inf, (1,))
    parts = spaces.Dict({"a": spaces.Box(-3, 2, (2,)), "b": spaces.Dict({"c": far, "d": spaces.Box(0, 0.5, (1,))})})
    vector = Vector(Spec(parts, spaces.Box(-1, 1, (1,))))
    assert limits(vector).tolist() == [3, 3, 1, 0.5]
    assert blur(vector, ("b",)).tolist() == [0, 0, 1, 1]
    assert blur(vector, ()).tolist() == [1] * 4


def test_what_it_cannot_be() -> None:
    world: Any = make_task("pendulum", 1)
    with pytest.raises(UsageError, match="a model of forces tells how sure it is: its head is gaussian"):
        model(world, head="mean")
    world.spec = Spec(world.spec.obs, spaces.Discrete(2))
    with pytest.raises(UsageError, match="forces follow from actions of a Box; this task has Discrete"):
        model(world)
