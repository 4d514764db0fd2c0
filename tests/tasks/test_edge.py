"""The edge of a network against an event simulation of one task at a time, what it shows, and what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.edge import Edge, attained, marginal_delay

from .worlds import check_world


class Server:
    """Tasks that share a processor, event by event: `queue` what is left of each, `coming` (time, size) to arrive."""

    def __init__(self, speed: float, queue: list[float]) -> None:
        self.speed, self.queue, self.coming, self.now = speed, list(queue), [], 0.0
        self.finished: list[float] = []

    def run(self, until: float) -> None:
        while self.now < until and (self.queue or self.coming):
            each = self.speed / max(len(self.queue), 1)
            first = min(self.queue, default=math.inf) / each
            arrival = min((time for time, _ in self.coming), default=math.inf) - self.now
            step = min(first, arrival, until - self.now)
            self.queue = [left - each * step for left in self.queue]
            self.now += step
            self.finished += [self.now] * sum(left <= 1e-9 for left in self.queue)
            self.queue = [left for left in self.queue if left > 1e-9]
            self.queue += [size for time, size in self.coming if time <= self.now + 1e-12]
            self.coming = [(time, size) for time, size in self.coming if time > self.now + 1e-12]
        self.now = max(self.now, until) if until < math.inf else self.now


def rise(queue: list[float], size: float, speed: float, offload: float) -> float:
    """What the new task adds to the sum of the times at which tasks are finished, without its own way there."""
    alone, joined = Server(speed, queue), Server(speed, queue)
    alone.run(math.inf)
    joined.run(offload)
    joined.coming, joined.now = [(offload, size)], offload
    joined.run(math.inf)
    return sum(joined.finished) - offload - sum(alone.finished)


@pytest.mark.parametrize(
    ("queue", "size", "speed", "offload", "delay"),
    [
        ([4.0, 10.0], 5.0, 2.0, 7.0, 2.5),  # the queue is empty before the task is there
        ([4.0, 10.0], 5.0, 2.0, 0.0, 11.5),  # 5 of its own, 4 and 5 of the others, twice
        ([4.0, 10.0], 5.0, 2.0, 2.0, 9.5),  # 2 and 8 are left
        ([4.0, 10.0], 5.0, 2.0, 4.0, 7.5),  # the first one has just been finished
        ([], 5.0, 2.0, 1.0, 2.5),
    ],
)
def test_the_marginal_delay_by_hand(
    queue: list[float], size: float, speed: float, offload: float, delay: float, float64: None
) -> None:
    remain = torch.tensor([[*queue, 0.0, 3.0]])  # an empty slot, and a task of somebody else
    own = torch.tensor([[[True] * len(queue) + [True, False]]])
    arguments = (torch.tensor([size]), torch.tensor([[speed]]), torch.tensor([[offload]]))
    assert marginal_delay(remain, own, *arguments).item() == pytest.approx(delay)
    assert rise(queue, size, speed, offload) == pytest.approx(delay)


def test_the_marginal_delay_of_drawn_queues(float64: None) -> None:
    generator = torch.Generator().manual_seed(1)
    remain = 10 * torch.rand(40, 6, generator=generator) * (torch.rand(40, 6, generator=generator) < 0.7)
    owner = torch.randint(3, (40, 6), generator=generator)
    own = owner.unsqueeze(1) == torch.arange(3).unsqueeze(-1)
    size, speed = 10 * torch.rand(40, generator=generator), 1 + torch.rand(40, 3, generator=generator)
    offload = 6 * torch.rand(40, 3, generator=generator)
    found = marginal_delay(remain, own, size, speed, offload)
    for row in range(40):
        for server in range(3):
            queue = [x for x, who in zip(remain[row].tolist(), owner[row].tolist()) if who == server and x > 0]
            expected = rise(queue, float(size[row]), float(speed[row, server]), float(offload[row, server]))
            assert found[row, server].item() == pytest.approx(expected)


def test_what_is_attained_uses_up_the_budget(float64: None) -> None:
    remain = torch.tensor([[3.0, 1.0, 2.0, 2.0]])
    own = torch.ones(1, 1, 4, dtype=torch.bool)
    for budget, level in ((0.0, 0.0), (2.0, 0.5), (4.0, 1.0), (5.5, 1.5), (7.0, 2.0), (7.5, 2.5), (8.0, math.inf)):
        assert attained(remain, own, torch.tensor([[budget]])).item() == level
    assert attained(remain, ~own, torch.tensor([[1.0]])).item() == math.inf


@pytest.mark.parametrize("options", [{"edges": "1-3", "channel": "textbook"}, {"edges": 2}, {"arrivals": 3.0}])
def test_episodes_are_those_of_the_event_simulation(options: dict[str, Any], float64: None) -> None:
    """Everything that happens to the tasks, and both rewards, from sizes, users and links as the world drew them."""
    world: Any = make_task("edge", 3, 5, horizon=25, users=2, **options)
    power = {"textbook": 10.0}.get(options.get("channel", ""), 0.01)
    obs = world.reset()
    servers = [[Server(float(speed), []) for speed in row] for row in world.state["speed"]]
    arrived, sent = 0, 0
    for time in range(25):
        state, action = world.state, world.behave("random", world.state, world.time)
        assert obs["action_mask"].gather(1, action.unsqueeze(-1)).all()
        expected = torch.zeros(3, 2)
        for row, (size, to, user) in enumerate(zip(state["size"].tolist(), action.tolist(), state["user"].tolist())):
            if size:
                server, rate = servers[row][to], float(state["rate"][row, to, user])
                delay = rise(server.queue, size, server.speed, size / rate)
                joules = power * size / rate + 5e-31 * 1e3 * (size * 1e6) * (server.speed * 1e9) ** 2
                expected[row] = torch.tensor([-0.01 * delay, -50 * joules])
                server.coming.append((time + size / rate, size))
                sent += 1
            for each in servers[row]:
                each.run(time + 1.0)
        obs, reward, terminated, truncated = world.step({"action": action})
        torch.testing.assert_close(world.facts["rewards"], expected)
        torch.testing.assert_close(reward, expected @ torch.tensor([0.95, 0.05]))
        for row, edge in enumerate(servers):
            for number, each in enumerate(edge):
                shown = obs["servers"][row, number]
                bins = [0.0] * 60
                for left in each.queue:
                    bins[min(int(left), 59)] += 1
                if each.speed:
                    rate = world.state["rate"][row, number, world.state["user"][row]] / 100
                    edges = sum(other.speed > 0 for other in edge) - 1
                    numbers = [1.0, each.speed, edges, world.state["size"][row].item(), rate.item(), len(each.queue)]
                    torch.testing.assert_close(shown, torch.tensor([*numbers, *bins]))
                else:
                    assert not shown.any()
                arrived += int(time == 24) * (len(each.finished) + len(each.queue))
        assert not terminated.any()
        assert truncated.all() == (time == 24)
    coming = sum(len(each.coming) for row in servers for each in row)
    assert arrived + coming == sent > 30
    if options.get("channel") == "textbook":
        assert coming > 0


def test_starts_and_arrivals_have_their_distributions(float64: None) -> None:
    world: Any = make_task("edge", 20_000, 2, edges="1-4", slots=5, users=3, horizon=2)
    obs, state = world.reset(), world.state
    speed, count = state["speed"], (state["speed"][:, 1:] > 0).sum(-1)
    assert (count.bincount()[1:] / 20_000).tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert not speed[:, 5].any()
    assert (float(speed[:, 0].min()), float(speed[:, 0].max())) == pytest.approx((3.0, 5.0), abs=0.01)
    assert float(speed[:, 0].mean()) == pytest.approx(4.0, abs=0.02)
    edges = speed[:, 1:][speed[:, 1:] > 0]
    assert (float(edges.min()), float(edges.max())) == pytest.approx((1.5, 2.5), abs=0.01)
    size = state["size"]
    assert float((size == 0).double().mean()) == pytest.approx(math.exp(-1), abs=0.01)
    work = size / speed.sum(-1)
    assert float(work[size > 0].mean()) == pytest.approx(1.0, abs=0.03)  # load 1, but for what is cut
    assert (float(size[size > 0].min()), float(size.max())) == pytest.approx((0.1, 100.0))
    assert float((state["waiting"] + (size > 0)).double().mean()) == pytest.approx(1.0, abs=0.02)
    idle = obs["action_mask"][size == 0]
    assert torch.equal(obs["action_mask"][size > 0], speed[size > 0] > 0)
    assert torch.equal(idle, (torch.arange(6) == 0).expand_as(idle))
    cloud = 16.6 * math.log2(1 + 0.01 * (10 ** (-(141.6 + 35 * math.log10(1.5)) / 10) / NOISE) ** 2 / NOISE)
    distance, fading = torch.tensor([1.5, 0.2]), torch.ones(2)
    assert world.data_rate(distance, fading).tolist() == pytest.approx([cloud, 780.0], rel=0.01)
    assert cloud == pytest.approx(440.0, rel=0.01)
    textbook: Any = make_task("edge", channel="textbook")
    strength = 10 * 10 ** (-(141.6 + 35 * math.log10(1.5)) / 10) / NOISE
    found = textbook.data_rate(distance, torch.tensor([2.0, 1.0]))[0].item()
    assert found == pytest.approx(16.6 * math.log2(1 + 2 * strength))


NOISE = 10**-20.4 * 16.6e6


def test_tasks_wait_in_line_and_each_has_luck_of_its_own(float64: None) -> None:
    world: Any = make_task("edge", 4_000, 3, edges=1, users=2, arrivals=2.0, horizon=9)
    world.reset()
    none = torch.zeros(4_000, dtype=torch.int64)
    seen = []
    for time in range(8):
        state = world.state
        arrived = time + state["waiting"] + (state["size"] > 0)  # but for the few seconds without a task
        idle = sum(each["size"] == 0 for each in seen) if seen else 0
        assert float((arrived - idle).double().mean()) == pytest.approx(2.0 * (time + 1), abs=0.25)
        seen.append(dict(state))
        world.step({"action": none})
    busy = (seen[6]["size"] > 0) & (seen[7]["size"] > 0)
    assert (seen[6]["size"] != seen[7]["size"])[busy].double().mean() > 0.9
    assert float((seen[6]["user"] != seen[7]["user"]).double().mean()) == pytest.approx(0.5, abs=0.03)
    assert float(seen[7]["user"].double().mean()) == pytest.approx(0.5, abs=0.03)


def test_users_are_near_the_edge_and_far_from_the_cloud_and_their_links_fade(float64: None) -> None:
    drawn = []

    class Watched(Edge):
        def data_rate(self, distance: torch.Tensor, fading: torch.Tensor) -> torch.Tensor:
            drawn.append((distance, fading))
            return super().data_rate(distance, fading)

    Watched(2_000, 3, edges=2, users=3).reset()
    distance, fading = drawn[-1]
    assert distance.shape == fading.shape == (2_000, 3, 3)  # servers, users
    for place, (near, far) in ((distance[:, 0], (1.0, 2.0)), (distance[:, 1:], (0.05, 0.5))):
        assert (float(place.min()), float(place.max())) == pytest.approx((near, far), rel=0.02)
        assert float(place.mean()) == pytest.approx((near + far) / 2, rel=0.02)
    assert float(fading.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(fading.log().mean()) == pytest.approx(-0.5772, abs=0.05)  # exponential: the power of Rayleigh's law
    assert len(distance[0].unique()) == len(fading[0].unique()) == 9


def test_what_cannot_be_done_changes_nothing(float64: None) -> None:
    """Without a task nothing happens, and a task for an absent server goes to the cloud."""
    world: Any = make_task("edge", 400, 3, edges=1, slots=2)
    world.reset()
    idle = world.state["size"] == 0
    twin = world.twin(400)
    twin.reset()
    twin.restore(world.snapshot())
    world.step({"action": torch.full((400,), 2)})
    twin.step({"action": torch.zeros(400, dtype=torch.int64)})
    assert torch.equal(world.facts["rewards"], twin.facts["rewards"])
    assert torch.equal(world.state["remain"], twin.state["remain"])
    assert 100 < idle.sum() < 200
    assert not world.facts["rewards"][idle].any()
    assert not world.state["remain"][idle].any()
    assert (world.facts["rewards"][~idle] < 0).all()


def test_behaviors() -> None:
    """Greedy takes the best reward of the step; without weight on delay that is the slowest server."""
    world: Any = make_task("edge", 200, 3, edges="1-4", weight=0.0)
    world.reset()
    task = world.state["size"] > 0
    speed = torch.where(world.state["speed"] > 0, world.state["speed"], math.inf)
    greedy = world.behave("greedy", world.state, world.time)
    assert torch.equal(greedy[task], speed.argmin(-1)[task])
    assert not greedy[~task].any()
    random = world.behave("random", world.state, world.time)
    assert world.obs["action_mask"].gather(1, random.unsqueeze(-1)).all()
    assert len(random.unique()) == 5
    returns = []
    for weight in (0.5, 1.0):
        each: Any = make_task("edge", 100, 3, edges="1-4", weight=weight, horizon=40)
        each.reset()
        total = torch.zeros(2)
        for _ in range(40):
            each.step({"action": each.behave("greedy", each.state, each.time)})
            total += each.facts["rewards"].mean(0)
        returns.append(total.tolist())
    assert returns[0][0] < 2 * returns[1][0] < 0
    assert returns[1][1] < 1.5 * returns[0][1] < 0


@pytest.mark.parametrize("options", [{"edges": "1-3", "slots": 4, "horizon": 12}, {"channel": "textbook"}])
def test_it_keeps_the_promises_of_worlds(options: dict[str, Any]) -> None:
    check_world(lambda num, seed, evaluation: make_task("edge", num, seed, evaluation=evaluation, **options))


def test_refusals() -> None:
    with pytest.raises(UsageError, match="edges must be"):
        make_task("edge", edges="0-3")
    with pytest.raises(UsageError, match="slots must be a whole number of at least 4"):
        make_task("edge", edges="1-4", slots=3)
    with pytest.raises(UsageError, match="a spread of at least 0 that is less than they are"):
        make_task("edge", cloud=1.0)
    with pytest.raises(UsageError, match="arrivals and load are above 0"):
        make_task("edge", load=0.0)
    with pytest.raises(UsageError, match="weight is a probability"):
        make_task("edge", weight=2.0)
    with pytest.raises(UsageError, match="channel is one of squared, textbook"):
        make_task("edge", channel="radio")
