"""Models of the world, with losses by hand, worlds whose answers are known, and members that do not meet."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch, weigh
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.models.dynamics import Dynamics
from polopt.models.ensemble import Ensemble
from polopt.models.fitting import Fitting
from polopt.models.inverse import Inverse
from polopt.networks import Network
from polopt.optim import Optimizer, frozen_copy, polyak_update
from polopt.policies import Gaussian

SPEC = Spec(spaces.Box(-5.0, 5.0, (2,)), spaces.Box(-1.0, 1.0, (1,)), "a line")
SMALL = Ensemble(members=3, elites=2, network=Network((16,), "silu"), weight_decay=(0.0,))


def line(count: int, noise: float = 0.0, seed: int = 0) -> Batch:
    """(x, v): v' = v + a / 2, x' = x + v'; the reward is -x, and it ends beyond x' = 2."""
    draw = torch.Generator().manual_seed(seed)
    obs = torch.randn(count, 2, generator=draw)
    action = 2 * torch.rand(count, 1, generator=draw) - 1
    speed = obs[:, 1] + action[:, 0] / 2
    place = obs[:, 0] + speed + noise * torch.randn(count, generator=draw)
    ended = place > 2
    data = {"obs": obs, "action": action, "next_obs": torch.stack([place, speed], 1), "reward": -obs[:, 0]}
    return TensorDict({**data, "terminated": ended, "truncated": torch.zeros(count, dtype=torch.bool)}, [count])


def told(model: Dynamics, value: dict[str, float]) -> None:
    """Makes all members answer the same whatever they see: by the bias of the last layer."""
    with torch.no_grad():
        for parameter in model.net.parameters():
            parameter.zero_()
        for place, number in value.items():
            model.linear[-1].bias[:, 0, int(place)] = number


def test_the_gaussian_loss_by_hand(float64):
    """Two rows, known scales; raw log variance 0 between bounds -10 and 0.5 goes through both softpluses."""
    model = SMALL.build(SPEC, ends=lambda obs, action, after: after[:, 0] > 2)
    rows = line(2)
    told(model, {"0": 0.5, "1": -1.0, "2": 0.25, "3": -1.0, "4": 0.0, "5": 0.3})
    model.target_scale.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    model.target_scale.variance.copy_(torch.tensor([4.0, 1.0, 0.25]))
    soft = lambda x: math.log1p(math.exp(x))  # noqa: E731
    bound = lambda raw: -10 + soft(0.5 - soft(0.5 - raw) + 10)  # noqa: E731
    expected = []
    for row in range(2):
        change = (rows["next_obs"] - rows["obs"])[row].tolist()
        answers = [(change[0] - 1) / 2, change[1] - 2, (float(rows["reward"][row]) - 3) / 0.5]
        parts = zip(answers, (0.5, -1.0, 0.25), (-1.0, 0.0, 0.3))
        expected.append(sum((y - m) ** 2 / math.exp(bound(raw)) + bound(raw) for y, m, raw in parts) / 3)
    torch.testing.assert_close(model.row_losses(rows), torch.tensor(expected).expand(3, 2))
    with torch.no_grad():
        loss, metrics = model.loss(weigh(rows))
    bounds = 3 * 0.01 * 3 * 10.5  # members, coefficient, coordinates, distance
    assert float(loss) == pytest.approx(3 * sum(expected) / 2 + bounds)
    assert float(metrics["model_loss"]) == pytest.approx(sum(expected) / 2)
    assert model.errors(rows)[0] == pytest.approx(
        sum(((model.target_scale(model.answers(rows)) - torch.tensor([0.5, -1.0, 0.25])) ** 2).flatten().tolist()) / 6
    )


def test_squared_error_ends_and_decay_by_hand(float64):
    config = Ensemble(members=2, elites=1, head="mean", network=Network((4,), "relu"), weight_decay=(0.1, 0.3))
    model = config.build(SPEC, delta=False)
    weights = [float(layer.weight[1].square().sum()) for layer in model.linear]
    assert float(model.restraint()[1]) == pytest.approx(0.05 * weights[0] + 0.15 * weights[1])
    told(model, {"0": 1.0, "1": 2.0, "2": 3.0, "3": -0.4})
    rows = line(1)
    rows["terminated"] = torch.tensor([True])
    answers = [*rows["next_obs"][0].tolist(), float(rows["reward"])]
    square = [(y - m) ** 2 for y, m in zip(answers, (1.0, 2.0, 3.0))]
    cross = math.log1p(math.exp(0.4))
    assert float(model.row_losses(rows)[0]) == pytest.approx(sum(square) / 3 + cross)
    assert float(model.errors(rows)[0]) == pytest.approx(sum(square) / 3 + cross)
    latent = config.build(SPEC, delta=False, terminal_successors=False)
    latent.load_state_dict(model.state_dict())
    assert float(latent.row_losses(rows)[0]) == pytest.approx(square[2] / 3 + cross)
    rows["terminated"] = torch.tensor([False])
    assert float(latent.row_losses(rows)[0]) == pytest.approx(sum(square) / 3 + math.log1p(math.exp(-0.4)))


def test_members_are_alone(float64):
    """On rows of its own each member has the loss and the gradient that it has by itself."""
    model = SMALL.build(SPEC)
    rows = torch.stack([line(5, seed=seed) for seed in range(3)])
    apart = model.row_losses(rows, apart=True)
    for member in range(3):
        torch.testing.assert_close(apart[member], model.row_losses(rows[member])[member])
    grads = torch.autograd.grad(apart[1].sum(), list(model.parameters()), allow_unused=True)
    for grad in grads:
        assert grad is None or (not grad[0].any() and not grad[2].any())


def test_fitting_finds_a_line_and_its_end():
    torch.manual_seed(0)
    data, fresh = line(2_000), line(300, seed=9)
    network = Network((32,), "silu")
    config = Ensemble(members=3, elites=2, network=network, patience=3, epochs=12, lr=5e-3, batch_size=64)
    model = config.build(SPEC)
    fitting = Fitting(model, data)
    assert len(fitting.held_out) == 400
    assert len(fitting.data) == 1_600
    metrics = fitting.run()
    assert float(metrics["model_error"]) < 0.15
    after = model.step(fresh["obs"], fresh["action"], noise=False)
    assert float((after.next_obs - fresh["next_obs"]).abs().mean()) < 0.1
    assert float((after.reward - fresh["reward"]).abs().mean()) < 0.1
    sure = (fresh["next_obs"][:, 0] - 2).abs() > 0.3
    assert float((after.terminated == fresh["terminated"])[sure].double().mean()) > 0.97
    assert fitting.step() == {}


def test_the_noise_of_the_world_is_learned():
    torch.manual_seed(0)
    config = Ensemble(members=2, elites=2, network=Network((16,), "silu"), weight_decay=(0.0,), epochs=25, lr=5e-3)
    model = config.build(SPEC, ends=never)
    Fitting(model, line(2_000, noise=0.5)).run()
    rows = line(500, seed=5)
    std = model(rows["obs"], rows["action"]).std[..., 0]
    assert float(std.mean()) == pytest.approx(0.5, rel=0.25)
    with paired(1):
        one = model.step(rows["obs"], rows["action"])
    with paired(1):
        again = model.step(rows["obs"], rows["action"])
    assert torch.equal(one.next_obs, again.next_obs)
    error = one.next_obs[:, 0] - rows["next_obs"][:, 0]
    assert float(error.std()) == pytest.approx(0.5, rel=0.3)


def never(obs: Tensor, action: Tensor, after: Tensor) -> Tensor:
    return torch.zeros(len(obs), dtype=torch.bool)


def test_early_stopping_keeps_the_best_weights_of_each_member():
    """Held-out errors that are told: member 0 is best after pass 1, member 1 after pass 2, member 2 after pass 3."""
    told_errors = iter([[1.0, 4.0, 9.0], [0.995, 3.0, 9.0], [2.0, 5.0, 8.0], [1.0, 3.0, 8.0], [1.0, 3.0, 8.0]])

    class Told(Dynamics):
        def errors(self, batch: Batch) -> Tensor:
            seen.append([parameter.detach().clone() for parameter in self.parameters()])
            return torch.tensor(next(told_errors))

    seen: list[list[Tensor]] = []
    config = Ensemble(members=3, elites=2, network=Network((4,), "silu"), weight_decay=(0.0,), patience=2, batch_size=8)
    model = Told(SPEC, config)
    fitting = Fitting(model, line(20))
    fitting.run()
    assert fitting.passes == 5
    assert fitting.done
    assert fitting.best.tolist() == pytest.approx([1.0, 3.0, 8.0])
    for number, parameter in enumerate(model.parameters()):
        for member, best_pass in enumerate((0, 1, 2)):  # 0.995 is no fall of 1 percent
            assert torch.equal(parameter[member], seen[best_pass][number][member])
    assert model.elites.tolist() == [0, 1]


def test_a_fit_goes_on_exactly():
    def made() -> tuple[Dynamics, Fitting]:
        torch.manual_seed(3)
        model = SMALL.build(SPEC)
        return model, Fitting(model, line(300), seed=4)

    whole, fitting = made()
    for _ in range(7):
        fitting.step()
    _broken, first = made()
    for _ in range(4):
        first.step()
    assert first.passes == 4
    assert first.position == 0
    state = {path: leaf.clone() if isinstance(leaf, Tensor) else leaf for path, leaf in gather(first).items()}
    other, second = made()
    restore(second, state)
    for _ in range(3):
        second.step()
    for one, two in zip(whole.parameters(), other.parameters()):
        assert torch.equal(one, two)
    assert torch.equal(fitting.best, second.best)


def test_members_learn_from_resamples_of_what_is_not_held_out():
    fitting = Fitting(SMALL.build(SPEC), line(50))
    assert fitting.resample.shape == (3, 40)
    assert not torch.equal(fitting.resample[0], fitting.resample[1])
    assert len(fitting.resample[0].unique()) < 40
    both = torch.cat([fitting.held_out["obs"], fitting.data["obs"]])
    assert torch.equal(both.sort(0).values, line(50)["obs"].sort(0).values)
    assert torch.equal(fitting._order.sort(1).values, fitting.resample.sort(1).values)


class Mover(torch.nn.Module):
    """Acts 3, of which the bounds make 1, and records how often it was asked."""

    def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> tuple[dict[str, Tensor], Any]:
        count = torch.zeros(len(obs)) if carry is None else carry["count"]
        return {"action": torch.full((len(obs), 1), 3.0), "count": count}, {"count": count + 1}

    def env_action(self, action: Tensor) -> Tensor:
        return action.clamp(-1, 1)

    def own_action(self, action: Tensor) -> Tensor:
        return action


def test_a_rollout_by_hand(float64):
    """Each step adds 1 to x and 0 to v for a reward of 2; it ends beyond x = 2."""
    model = SMALL.build(SPEC, ends=lambda obs, action, after: after[:, 0] > 2)
    told(model, {"0": 1.0, "1": 0.0, "2": 2.0, "3": -100.0, "4": -100.0, "5": -100.0})
    rows = model.rollout(Mover(), torch.tensor([[0.5, 7.0], [-9.0, 7.0]]), 4, noise=False)
    assert rows.batch_size == torch.Size([2, 4])
    assert rows["obs"][:, :, 0].tolist() == [[0.5, 1.5, 2.5, 2.5], [-9.0, -8.0, -7.0, -6.0]]
    assert rows["next_obs"][0, :, 0].tolist() == [1.5, 2.5, 2.5, 2.5]
    assert rows["mask"].tolist() == [[True, True, False, False], [True] * 4]
    assert rows["terminated"].tolist() == [[False, True, False, False], [False] * 4]
    assert rows["reward"].tolist() == [[2, 2, 0, 0], [2, 2, 2, 2]]
    assert rows["count"][0].tolist() == [0, 1, 2, 3]
    assert rows["action"].unique().tolist() == [1]


def test_only_elites_act(float64):
    model = SMALL.build(SPEC, ends=never)
    told(model, {"3": -100.0, "4": -100.0, "5": -100.0})
    with torch.no_grad():
        model.linear[-1].bias[:, 0, 0] = torch.tensor([1.0, 2.0, 4.0])
    model.choose(torch.tensor([3.0, 1.0, 2.0]))
    assert model.elites.tolist() == [1, 2]
    start = torch.zeros(200, 2)
    drawn = model.step(start, torch.zeros(200, 1)).next_obs[:, 0]
    assert {round(value) for value in drawn.tolist()} == {2, 4}
    assert 60 < int((drawn < 3).sum()) < 140
    assert model.step(start, torch.zeros(200, 1), noise=False).next_obs[0, 0] == 3


def test_a_lagged_model_follows_and_shares_the_scales():
    config = Ensemble(members=1, elites=1, head="mean", network=Network((4,), "relu"), weight_decay=(0.0,))
    model = config.build(SPEC, ends=never, delta=False)
    lagged = frozen_copy(model)
    before = lagged.linear[0].weight.clone()
    model.fit_scales(line(30))
    assert torch.equal(lagged.input_scale.mean, model.input_scale.mean)
    optimizer = Optimizer(model, lr=0.1)
    optimizer.minimize(model.loss, weigh(line(30)))
    polyak_update(lagged, model, 0.25)
    torch.testing.assert_close(lagged.linear[0].weight, before + 0.25 * (model.linear[0].weight - before))


@pytest.mark.parametrize("action", [spaces.Discrete(3), spaces.MultiDiscrete([3, 2])])
def test_discrete_actions_are_one_hot(action: spaces.Space):
    spec = Spec(spaces.Box(-1.0, 1.0, (2,)), action, "buttons")
    model = SMALL.build(spec)
    acted = torch.tensor([2, 0]) if isinstance(action, spaces.Discrete) else torch.tensor([[2, 1], [0, 0]])
    inputs = model.inputs(torch.zeros(2, 2), acted)
    expected = (
        [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]] if acted.dim() == 1 else [[0, 0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 1, 0]]
    )
    assert inputs.tolist() == expected


def test_a_column_that_never_changes_has_deviation_one():
    model = SMALL.build(SPEC)
    data = line(30)
    data["obs"][:, 1] = 3.0
    model.fit_scales(data)
    scaled = model.input_scale(model.inputs(data["obs"], data["action"]))
    assert scaled[:, 1].abs().max() == 0
    assert scaled[:, 0].std(correction=0) == pytest.approx(1, rel=1e-5)
    torch.testing.assert_close(model.target_scale.back(model.target_scale(model.answers(data))), model.answers(data))


def test_what_is_refused():
    with pytest.raises(UsageError, match="needs Box observations of real numbers; a room has"):
        SMALL.build(Spec(spaces.Discrete(4), spaces.Discrete(2), "a room"))
    with pytest.raises(UsageError, match="elites are some of the members"):
        Ensemble(members=2, elites=3)
    with pytest.raises(UsageError, match="one of each of the 2 layers"):
        Ensemble(network=Network((8,)), weight_decay=(0.1, 0.1, 0.1))
    with pytest.raises(UsageError, match="plain layers"):
        Ensemble(network=Network((8,), recurrent="gru"), weight_decay=(0.1,))
    with pytest.raises(UsageError, match="to learn from and to hold out, and there is 1"):
        Fitting(SMALL.build(SPEC), line(1))
    with pytest.raises(UsageError, match="no probabilities"):
        Inverse(SPEC, Network((8,))).log_prob(line(3))
    with pytest.raises(UsageError, match="inverse model is feed-forward"):
        Inverse(SPEC, Network((8,), recurrent="gru"))


def test_policies_play_in_the_model():
    policy = Gaussian(mean="tanh").build(SPEC, Network((8,)))
    rows = SMALL.build(SPEC).rollout(policy, torch.zeros(5, 2), 3)
    assert rows["log_prob"].shape == (5, 3)
    assert rows["action"].abs().max() <= 1


def test_observations_may_be_dicts(float64):
    """Vectors of a Dict are side by side, and come back under their names, also along a rollout."""
    parts = {"place": spaces.Box(-9.0, 9.0, (2,)), "wind": spaces.Box(-1.0, 1.0, (1, 1))}
    spec = Spec(spaces.Dict(parts), SPEC.action, "a windy place")
    model = SMALL.build(spec, ends=never)
    told(model, {"0": 1.0, "1": 2.0, "2": 3.0, "4": -100.0, "5": -100.0, "6": -100.0})
    obs = TensorDict({"place": torch.tensor([[4.0, 5.0]]), "wind": torch.tensor([[[6.0]]])}, [1])
    assert model.vector(obs).tolist() == [[4, 5, 6]]
    rows = model.rollout(Mover(), obs, 2, noise=False)
    assert rows["obs", "wind"].flatten().tolist() == [6, 9]
    assert rows["next_obs", "place"].tolist() == [[[5, 7], [6, 9]]]
    assert rows["obs", "wind"].shape == (1, 2, 1, 1)
    answers = model.answers(rows.clone().set("reward", torch.tensor([[7.0, 8.0]])))
    assert answers.tolist() == [[[1, 2, 3, 7], [1, 2, 3, 8]]]
    with pytest.raises(UsageError, match="of real numbers"):
        SMALL.build(Spec(spaces.Dict({"picture": spaces.Box(0, 255, (4,), "uint8")}), SPEC.action, "a film"))


def test_the_inverse_reads_actions_back(float64):
    torch.manual_seed(0)
    model = Inverse(SPEC, Network((32,), "tanh"))
    optimizer, data = Optimizer(model, lr=1e-2), weigh(line(400))
    rows = data[:2]
    by_hand = (model(rows["obs"], rows["next_obs"]) - rows["action"]).square().sum() / 2
    assert float(model.loss(weigh(line(400)[:2]))[0]) == pytest.approx(float(by_hand))
    for _ in range(300):
        optimizer.minimize(model.loss, data)
    fresh = line(200, seed=7)
    assert float((model.action(fresh["obs"], fresh["next_obs"]) - fresh["action"]).abs().mean()) < 0.1


def test_the_inverse_of_discrete_actions(float64):
    """Tokens in, tokens out: cross-entropy, summed over factors."""
    spec = Spec(spaces.MultiDiscrete([4, 4]), spaces.MultiDiscrete([3, 2]), "tokens")
    model = Inverse(spec, Network((8,)))
    before, after = torch.tensor([[0, 3], [1, 1]]), torch.tensor([[1, 3], [2, 0]])
    rows = TensorDict({"obs": before, "next_obs": after, "action": torch.tensor([[2, 0], [1, 1]])}, [2])
    logits = model(before, after)
    first, second = logits[:, :3].log_softmax(1), logits[:, 3:].log_softmax(1)
    expected = [first[0, 2] + second[0, 0], first[1, 1] + second[1, 1]]
    torch.testing.assert_close(model.log_prob(rows), torch.stack(expected))
    assert float(model.loss(weigh(rows))[0]) == pytest.approx(-float(sum(expected)) / 2)
    assert model.action(before, after).tolist() == torch.stack([first.argmax(1), second.argmax(1)], 1).tolist()
    one = Inverse(Spec(spaces.MultiDiscrete([4, 4]), spaces.Discrete(3), "tokens"), Network((8,)))
    assert one.action(before, after).shape == (2,)
    rows["action"] = torch.tensor([2, 1])
    torch.testing.assert_close(one.log_prob(rows), one(before, after).log_softmax(1)[torch.arange(2), rows["action"]])
