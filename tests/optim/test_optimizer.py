"""Optimizers that move their own parameters only, and frozen copies."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import nn

from polopt.config import Linear
from polopt.core.batch import weigh
from polopt.core.compiling import ISOLATES
from polopt.core.state import gather, restore
from polopt.networks.normalizer import Normalizer
from polopt.optim import Optimizer, frozen_copy, polyak_update
from polopt.optim.optimizer import backward


def net(*, zero: bool = False) -> nn.Linear:
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.zeros(1, 2) if zero else torch.tensor([[1.0, -2.0]]))
    return module


def batch(size: int = 6) -> Any:
    x = torch.linspace(-1, 1, 2 * size).reshape(size, 2)
    return weigh(TensorDict({"x": x, "y": x.sum(-1)}, batch_size=[size]))


def squared(module: nn.Module) -> Any:
    def loss(batch: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        value = (batch["weight"] * (module(batch["x"]).squeeze(-1) - batch["y"]).square()).sum()
        return value, {"loss": value}

    return loss


def test_sgd_takes_the_step_worked_out_by_hand(float64):
    module, data = net(), batch()
    optimizer = Optimizer(module, lr=0.1, kind="sgd")
    x, error = data["x"].numpy(), (data["x"] @ torch.tensor([1.0, -2.0]) - data["y"]).numpy()
    expected = [1.0, -2.0] - 0.1 * 2 * (error[:, None] * x).mean(0)
    metrics = optimizer.minimize(squared(module), data)
    assert module.weight.detach().numpy()[0] == pytest.approx(expected)
    assert float(metrics["loss"]) == pytest.approx((error**2).mean())
    assert not metrics["loss"].requires_grad


@pytest.mark.parametrize("piece", [1, 2, 4, 6, 100])
def test_micro_batches_change_nothing(piece, float64):
    results = []
    for micro_batch in (None, piece):
        module = net()
        optimizer = Optimizer(module, lr=0.1, micro_batch=micro_batch, max_grad_norm=0.3)
        for _ in range(3):
            metrics = optimizer.minimize(squared(module), batch())
        results.append([*module.weight.detach().flatten().tolist(), *(float(v) for v in metrics.values())])
    assert results[0] == pytest.approx(results[1], rel=1e-12)


def gap(module: nn.Module) -> Any:
    """The squared distance of each side's mean output, taken around `center`: a sum over rows once that is given."""

    def loss(batch: Any, center: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        parts = [(side["weight"] * (module(side["x"]).squeeze(-1) - center).square()).sum() for side in batch.values()]
        return parts[0] - 0.5 * parts[1], {"first": parts[0], "second": parts[1]}

    return loss


@pytest.mark.parametrize("piece", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("compiled", [False, True])
def test_sides_are_split_by_themselves_and_share_what_is_given(piece, compiled, float64):
    """Two sides of 5 and 2 rows, and the mean output over all of them, which no piece has: by hand."""
    module = net()
    optimizer = Optimizer(module, lr=0.1, micro_batch=piece, max_grad_norm=1e9)
    if compiled:
        optimizer.compile(backend=Graphs(), fullgraph=True)
    pair = weigh(TensorDict({"expert": batch(5), "offline": batch(2)}, []))
    one, two = (side["x"].numpy() for side in pair.values())
    weights = module.weight.detach().numpy()[0].copy()
    outputs = [rows @ weights for rows in (one, two)]
    center = (outputs[0].sum() + outputs[1].sum()) / 7
    gradient = 2 * (outputs[0] - center) @ one / 5 - (outputs[1] - center) @ two / 2
    metrics = optimizer.minimize(gap(module), pair, center=torch.tensor(center))
    assert float(metrics["first"]) == pytest.approx(((outputs[0] - center) ** 2).mean())
    assert float(metrics["second"]) == pytest.approx(((outputs[1] - center) ** 2).mean())
    assert float(metrics["grad_norm"]) == pytest.approx((gradient**2).sum() ** 0.5)
    moved = module.weight.detach().numpy()[0] - weights  # Adam's first step
    assert moved == pytest.approx(-0.1 * gradient / (abs(gradient) + 1e-8), rel=1e-4)


def test_a_shared_number_that_changes_is_no_constant_of_a_compiled_step(float64):
    module, graphs = net(zero=True), Graphs()
    optimizer = Optimizer(module, lr=0.1, max_grad_norm=1e9)
    optimizer.compile(backend=graphs)
    norms = []
    for scale in (1.0, 2.0, 3.0):
        loss = lambda batch, scale: (scale * module.weight.sum(), {})  # noqa: E731
        norms.append(float(optimizer.minimize(loss, batch(), scale=torch.tensor(scale))["grad_norm"]))
    assert norms == pytest.approx([scale * 2**0.5 for scale in (1.0, 2.0, 3.0)])


def test_the_global_norm_is_clipped_and_reported(float64):
    one, two = net(), net()
    optimizer = Optimizer(one, two, lr=1.0, kind="sgd", max_grad_norm=0.5)
    before = torch.cat([one.weight.flatten(), two.weight.flatten()]).detach()
    loss = 3.0 * one.weight[0, 0] + 4.0 * two.weight[0, 1]
    metrics = optimizer.step(loss)
    after = torch.cat([one.weight.flatten(), two.weight.flatten()]).detach()
    assert float(metrics["grad_norm"]) == pytest.approx(5.0)
    torch.testing.assert_close(before - after, torch.tensor([0.3, 0.0, 0.0, 0.4]), rtol=1e-5, atol=1e-6)


def test_only_its_own_parameters_get_gradients():
    policy, critic = net(), net()
    optimizer = Optimizer(policy, lr=0.1)
    before = critic.weight.clone()
    optimizer.step((policy(torch.ones(1, 2)) * critic(torch.ones(1, 2))).sum())
    assert critic.weight.grad is None
    assert torch.equal(critic.weight, before)


def test_the_schedule_scales_the_rate():
    module = net()
    optimizer = Optimizer(module, lr=0.1, kind="sgd", schedule=Linear())
    for progress, moved in ((0.0, 0.1), (0.75, 0.025)):
        optimizer.progress = progress
        before = module.weight.clone()
        optimizer.step(module.weight.sum())
        torch.testing.assert_close(before - module.weight, torch.full((1, 2), moved))
    optimizer.lr = 0.4  # an adaptive rule
    before = module.weight.clone()
    optimizer.step(module.weight.sum())
    torch.testing.assert_close(before - module.weight, torch.full((1, 2), 0.1))


def test_accumulated_gradients_are_one_step(float64):
    one, other = net(), net()
    first, second = Optimizer(one, lr=0.1, kind="sgd"), Optimizer(other, lr=0.1, kind="sgd")
    for _ in range(2):  # twice: nothing of the first step is left in the second
        data = torch.rand(3, 2)
        for row in data:
            first.accumulate(one(row).square().sum())
        first.step()
        second.step(other(data).square().sum())
        torch.testing.assert_close(one.weight, other.weight)


def test_given_gradients(float64):
    module = nn.Linear(2, 1)
    optimizer = Optimizer(module, lr=0.5, kind="sgd")
    before = [p.detach().clone() for p in module.parameters()]
    optimizer.step(grads=[torch.ones(1, 2), torch.tensor([2.0])])
    for old, new, moved in zip(before, module.parameters(), (0.5, 1.0)):
        torch.testing.assert_close(old - new, torch.full_like(old, moved))
    with pytest.raises(ValueError, match="shorter"):
        optimizer.step(grads=[torch.ones(1, 2)])


def test_parameters_are_taken_once_and_frozen_ones_left_out():
    module, extra = net(), nn.Parameter(torch.zeros(()))
    frozen = net().requires_grad_(False)
    assert len(Optimizer(module, module, extra, frozen, lr=0.1).parameters) == 2


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("after", [0, 3])
def test_saved_and_restored_it_goes_on_bitwise(kind, after):
    def fresh() -> tuple[nn.Linear, Optimizer]:
        torch.manual_seed(0)
        module = nn.Linear(2, 1)
        return module, Optimizer(module, lr=0.1, kind=kind, max_grad_norm=0.3)

    module, optimizer = fresh()
    for _ in range(after):
        optimizer.minimize(squared(module), batch())
    optimizer.lr = 0.05
    state = {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in gather(optimizer).items()}
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    other, restored = fresh()
    other.load_state_dict(weights)
    restore(restored, state)
    assert restored.lr == 0.05
    for each, each_optimizer in ((module, optimizer), (other, restored)):
        for _ in range(2):
            each_optimizer.minimize(squared(each), batch())
    assert torch.equal(module.weight, other.weight)


def test_what_an_optimizer_was_given_back_stays_as_it_is():
    module, data = net(), batch()
    optimizer = Optimizer(module, lr=0.1)
    optimizer.minimize(squared(module), data)
    state = gather(optimizer)
    given = {path: leaf.clone() if torch.is_tensor(leaf) else leaf for path, leaf in state.items()}
    before = copy.deepcopy(given)
    restore(optimizer, given)
    optimizer.minimize(squared(module), data)
    assert before.keys() == given.keys()
    assert all(torch.equal(torch.as_tensor(given[path]), torch.as_tensor(leaf)) for path, leaf in before.items())
    assert not torch.equal(gather(optimizer)["@0.exp_avg"], before["@0.exp_avg"])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_state_of_a_fresh_optimizer_clears_the_moments_of_another(compiled, float64):
    """Its next step is then the first one of Adam, whose length is the learning rate."""
    module, fresh = net(), gather(Optimizer(net(), lr=0.1))
    optimizer = Optimizer(module, lr=0.1)
    if compiled:
        optimizer.compile(backend=Graphs())
    for _ in range(3):
        optimizer.minimize(squared(module), batch())
    restore(optimizer, fresh)
    assert gather(optimizer).keys() == fresh.keys()
    before = module.weight.detach().clone()
    optimizer.minimize(squared(module), batch())
    torch.testing.assert_close((module.weight - before).abs(), torch.full((1, 2), 0.1), rtol=1e-5, atol=0.0)


def test_the_pass_backward_is_that_of_torch():
    """It calls the engine of torch itself."""
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    other = copy.deepcopy(own)
    for module, call in ((own, backward), (other, lambda loss, inputs: loss.backward(inputs=inputs))):
        for scale in (1.0, 2.0):  # gradients add up
            call(module(scale * torch.eye(2)).square().sum(), [*module[0].parameters()])
    assert all(torch.equal(one.grad, two.grad) for one, two in zip(own[0].parameters(), other[0].parameters()))
    assert own[2].weight.grad is None
    before = own[0].bias.grad.clone()
    backward(own[0].bias[:1].square(), [own[0].bias])  # one number of another shape
    torch.testing.assert_close(own[0].bias.grad - before, 2.0 * own[0].bias * torch.eye(5)[0])
    with pytest.raises(RuntimeError, match="does not require grad"):
        backward(torch.ones(()), [own[0].weight])
    with pytest.raises(RuntimeError, match="only for scalar outputs"):
        backward(own(torch.eye(2)).sum(1), [own[0].weight])


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_its_steps_are_those_of_torch_bitwise(kind):
    """Also where a parameter has no gradient in one of them, and with another rate each time."""
    torch.manual_seed(0)
    own = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    other = copy.deepcopy(own)
    peer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](
        other.parameters(), betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1, fused=True
    )
    optimizer = Optimizer(own, lr=0.0, kind=kind, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1)
    for step in range(12):
        optimizer.lr = peer.param_groups[0]["lr"] = 0.1 / (1 + step)
        x = torch.randn(4, 2)
        module, reached = (own, other) if step != 6 else (own[0], other[0])
        optimizer.step(module(x).square().sum())
        peer.zero_grad()
        reached(x).square().sum().backward()
        peer.step()
        assert all(map(torch.equal, own.parameters(), other.parameters())), step
    optimizer_state, peer_state = optimizer.torch.state_dict()["state"], peer.state_dict()["state"]
    for index, state in peer_state.items():
        assert all(torch.equal(value, optimizer_state[index][name]) for name, value in state.items())


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("lean", [False, True])
def test_a_clipped_step_is_that_of_torch_on_clipped_gradients(kind, dtype, close, lean, monkeypatch):
    """In every other step the norm is below the bound, and nothing is changed, to the bit while none was clipped. Not
    `lean`: as where gradients are large, and on devices whose kernel does not multiply them."""
    if not lean:
        monkeypatch.setattr("polopt.optim.clipping.SMALL", 0)
        monkeypatch.setattr("polopt.optim.adam.SCALING", ())
    torch.set_default_dtype(dtype)
    own = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 3))
    other = copy.deepcopy(own)
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    peer = cls(other.parameters(), lr=0.1, weight_decay=0.1, fused=True)
    optimizer = Optimizer(own, lr=0.1, kind=kind, weight_decay=0.1, max_grad_norm=0.5)
    norms = []
    for step in range(8):
        x, scale = torch.randn(4, 2), (0.01, 3.0)[step % 2]
        norms.append(float(optimizer.step(scale * own(x).square().sum())["grad_norm"]))
        peer.zero_grad()
        (scale * other(x).square().sum()).backward()
        assert norms[-1] == pytest.approx(float(nn.utils.clip_grad_norm_(other.parameters(), 0.5)), rel=close)
        peer.step()
        for one, two in zip(own.parameters(), other.parameters()):
            torch.testing.assert_close(one, two, rtol=close, atol=close)
        assert step or all(map(torch.equal, own.parameters(), other.parameters()))
    assert max(norms[::2]) < 0.5 < min(norms[1::2])


def test_frozen_copies_share_normalizers():
    normalizer = Normalizer(spaces.Box(-1, 1, (2,)))
    module = nn.Sequential(normalizer, net())
    twin = frozen_copy(module)
    assert twin[0] is normalizer
    assert twin[1].weight is not module[1].weight
    assert not any(p.requires_grad for p in twin.parameters())
    assert all(p.requires_grad for p in module.parameters())
    assert not twin[1].training
    assert module[1].training
    normalizer.update(torch.ones(4, 2))
    assert float(normalizer.count) == 4  # the copy did not put it to sleep
    with torch.no_grad():
        module[1].weight.add_(1.0)
    assert torch.equal(twin[1].weight, torch.tensor([[1.0, -2.0]]))


def test_a_sleeping_normalizer_stays_asleep():
    normalizer = Normalizer(spaces.Box(-1, 1, (2,))).eval()
    frozen_copy(nn.Sequential(normalizer, net()))
    assert not normalizer.training


def test_polyak_update():
    target, source = net(zero=True), net()
    polyak_update(target, source, 0.25)
    torch.testing.assert_close(target.weight, torch.tensor([[0.25, -0.5]]))
    polyak_update(target, source, 1.0)
    assert torch.equal(target.weight, source.weight)
    assert source.weight.grad is None


class Graphs:
    """A backend of torch.compile that runs what it is given, and keeps it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.seen.append(graph)
        return graph


@pytest.mark.parametrize(("kind", "betas"), [("adam", (0.9, 0.999)), ("adamw", (0.9, 0.999)), ("adam", (0.0, 0.99))])
def test_a_compiled_step_is_the_step(kind, betas, float64):
    """Also with a parameter that the loss does not reach at first, between other steps, and after loading a state."""
    moved, graphs = [], Graphs()
    for compiled in (False, True):
        module, apart = net(), net()
        options: Any = {"schedule": Linear(), "max_grad_norm": 0.3, "weight_decay": 0.1, "micro_batch": 6}
        options["betas"] = betas
        optimizer = Optimizer(apart, module, lr=0.1, kind=kind, **options)
        if compiled:
            optimizer.compile(backend=graphs, fullgraph=True)
        loss, metrics = squared(module), []
        for step in range(4):
            optimizer.progress = step / 5
            metrics.append(optimizer.minimize(loss, batch()))
        optimizer.step(module.weight.sum() + apart.weight.sum())
        metrics.append(optimizer.minimize(loss, batch()))
        restore(optimizer, {path: copy.deepcopy(leaf) for path, leaf in gather(optimizer).items()})
        metrics += [optimizer.minimize(loss, rows) for rows in (batch(), batch(10))]  # 10: in two pieces, not compiled
        assert not any(value.requires_grad for each in metrics for value in each.values())
        moved.append((module.weight, apart.weight, *(each[name] for each in metrics for name in ("loss", "grad_norm"))))
    assert graphs.seen
    for one, other in zip(*moved):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_a_compiled_step_moves_a_parameter_that_is_one_number(kind, float64):
    """Of double precision, such as a temperature, with what torch makes of the graph: it would lose it."""
    moved = []
    for compiled in (False, True):
        number, module = nn.Parameter(torch.tensor(0.5)), net()
        optimizer = Optimizer(number, module, lr=0.1, kind=kind, weight_decay=0.1)
        if compiled:
            optimizer.compile(backend="aot_eager", fullgraph=True)
        for _ in range(3):
            optimizer.minimize(lambda rows: (number.exp() * squared(module)(rows)[0], {}), batch())  # noqa: B023
        state = optimizer.torch.state[number]
        moved.append([number.detach(), module.weight.detach(), state["exp_avg"], state["exp_avg_sq"]])
        assert state["exp_avg"].shape == ()
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-10, atol=0.0)
    assert float(moved[1][0]) < 0.4


def test_ten_optimizers_compile_and_none_shares_the_versions_of_another():
    """Of one function torch keeps eight versions."""
    graphs, moved = Graphs(), []
    for _ in range(10):
        module = net()
        optimizer = Optimizer(module, lr=0.1)
        optimizer.compile(backend=graphs)
        optimizer.minimize(squared(module), batch())
        moved.append(module.weight.detach().clone())
    assert len(graphs.seen) == (10 if ISOLATES else 8)
    assert all(torch.equal(weight, moved[0]) for weight in moved[:8])
    torch.testing.assert_close(torch.stack(moved), moved[0].expand(10, 1, 2))


def test_a_step_that_torch_gives_up_on_is_the_step():
    """More versions than torch keeps: each loss is another one."""
    module, by_hand = net(), net()
    optimizer, plain = Optimizer(module, lr=0.1), Optimizer(by_hand, lr=0.1)
    optimizer.compile(backend=Graphs())
    for count in range(10):
        for each, steps in ((module, optimizer), (by_hand, plain)):
            steps.minimize(lambda rows, each=each, count=count: (count * each.weight.square().sum(), {}), batch())
    torch.testing.assert_close(module.weight, by_hand.weight, rtol=1e-3, atol=1e-5)


def test_a_changing_rate_does_not_compile_anew():
    module, graphs = net(), Graphs()
    optimizer = Optimizer(module, lr=0.1, schedule=Linear())
    optimizer.compile(backend=graphs)
    loss, data, moved = squared(module), batch(), []
    for step in range(4):
        optimizer.progress = step / 5
        before = module.weight.detach().clone()
        optimizer.minimize(loss, data)
        moved.append((module.weight - before).abs().max().item())
    assert len(graphs.seen) == 1
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 0.6 * moved[0]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_loss_of_other_parameters_moves_nothing(compiled):
    module, other = net(), net()
    optimizer = Optimizer(module, lr=0.1, max_grad_norm=1.0)
    if compiled:
        optimizer.compile(backend=Graphs())
    before = module.weight.detach().clone()
    assert float(optimizer.minimize(squared(other), batch())["grad_norm"]) == 0.0
    assert torch.equal(module.weight, before)
    assert other.weight.grad is None


def test_one_gradient_of_two_parameters_is_clipped_once(float64):
    """Both get the same tensor as their gradient, where nothing copies it."""
    one, two = net(), net()
    optimizer = Optimizer(one, two, lr=0.1, max_grad_norm=1e-3, eps=1.0)
    optimizer.compile(backend=Graphs())
    before = one.weight.detach().clone()
    metrics = optimizer.minimize(lambda batch: ((one.weight + two.weight).sum(), {}), batch())
    assert float(metrics["grad_norm"]) == pytest.approx(2.0)
    step = 0.1 * 5e-4 / (5e-4 + 1.0)
    torch.testing.assert_close(before - one.weight, torch.full((1, 2), step), rtol=1e-4, atol=0.0)
    assert torch.equal(one.weight, two.weight)


@pytest.mark.parametrize("compiled", [False, True])
def test_what_is_forgotten_was_never_learned(compiled, float64):
    """After `forget` the next step is the first one: Adam's, of the length of the rate."""
    module = net()
    optimizer = Optimizer(module, lr=0.1)
    if compiled:
        optimizer.compile(backend=Graphs())
    for _ in range(3):
        optimizer.minimize(squared(module), batch())
    optimizer.forget()
    before = module.weight.detach().clone()
    optimizer.minimize(squared(module), batch())
    torch.testing.assert_close((module.weight - before).abs().detach(), torch.full((1, 2), 0.1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
def test_without_its_correction_the_averages_of_adam_count_from_the_first_step_on(compiled, float64):
    """Three steps by hand, decay apart from the gradient; the last one after a state was loaded."""
    module = net()
    optimizer = Optimizer(module, lr=0.1, kind="adamw", betas=(0.6, 0.9), weight_decay=0.2, bias_correction=False)
    if compiled:
        optimizer.compile(backend=Graphs(), fullgraph=True)
    x, y, weight = batch()["x"].numpy(), batch()["y"].numpy(), np.array([1.0, -2.0])
    mean, square = 0.0, 0.0
    for step in range(3):
        grad = 2 * ((x @ weight - y)[:, None] * x).mean(0)
        mean, square = 0.6 * mean + 0.4 * grad, 0.9 * square + 0.1 * grad**2
        weight = weight - 0.1 * (mean / (square**0.5 + 1e-8) + 0.2 * weight)
        if step == 2:
            restore(optimizer, {path: copy.deepcopy(leaf) for path, leaf in gather(optimizer).items()})
        optimizer.minimize(squared(module), batch())
        assert module.weight.detach().numpy()[0] == pytest.approx(weight, rel=1e-6)
    optimizer.forget()
    before = module.weight.detach().clone()
    optimizer.step(module.weight.sum())
    moved = 0.4 / (0.1**0.5 + 1e-8) + 0.2 * before
    torch.testing.assert_close(module.weight.detach(), before - 0.1 * moved)
