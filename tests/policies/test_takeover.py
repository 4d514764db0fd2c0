"""Actors in which several have a say."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.core.state import gather, restore
from polopt.data.relabel import shares
from polopt.networks import Network
from polopt.policies import Categorical, Deterministic, Gaussian, SquashedGaussian
from polopt.policies.overseers import Overseer
from polopt.policies.takeover import Corrected, Intervened, PerEpisode, Residual, Selector, widened

VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)
BOX = spaces.Box(np.float32([-2, 0]), np.float32([2, 5]))
SPEC = Spec(VECTOR, BOX, "Toy-v0")
DISCRETE = Spec(VECTOR, spaces.Discrete(2), "CartPole-v1")
NETWORK = Network(sizes=(8,))
GRU = Network(sizes=(8,), recurrent="gru", recurrent_size=6)


class Shift(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        return self.by * torch.ones_like(action)


def test_a_correction_of_nothing_is_the_base_bitwise():
    for config in (SquashedGaussian(), Gaussian()):
        base, obs = config.build(SPEC, NETWORK), 5 * torch.randn(40, 3)
        for greedy in (True, False):
            torch.manual_seed(0)
            alone = base.act(obs, greedy=greedy)[0]["action"]
            torch.manual_seed(0)
            record, _ = Corrected(base, Shift(0.0)).act(obs, greedy=greedy)
            assert record["action"].equal(alone)
            assert set(record) == {"action", "base_action"}


def test_a_correction_is_added_and_stays_where_the_policy_acts():
    base, obs = Deterministic().build(SPEC, NETWORK), torch.randn(40, 3)
    corrected = Corrected(base, Shift(0.75))
    record, _ = corrected.act(obs)
    alone = base.act(obs)[0]["action"]
    assert record["action"].equal((alone + 0.75).clamp(-1, 1))
    assert record["base_action"].equal(alone)
    assert float(corrected.act(obs)[0]["action"].max()) == 1.0
    assert "correction.by" in gather(corrected)
    plain = Gaussian().build(SPEC, NETWORK)
    assert float(Corrected(plain, Shift(9.0)).act(obs)[0]["action"].min()) > 1.0
    with pytest.raises(UsageError, match=r"CartPole-v1 has Discrete\(2\)"):
        Corrected(Categorical().build(DISCRETE, NETWORK), Shift(0.0))


def residual(base=None, scale=0.5, **options):
    base = base or Gaussian().build(SPEC, NETWORK)
    return Residual(base, Deterministic().build(Residual.inner(SPEC), NETWORK), scale=scale, **options)


def test_a_residual_of_scale_0_is_the_base():
    """Its actions reach the environment as the base's own, whatever the range between -1 and 1 is."""
    base, obs = Deterministic().build(SPEC, NETWORK), torch.randn(40, 3)
    wanted = base.env_action(base.act(obs)[0]["action"])
    for low, high in ((None, None), widened(torch.tensor([-2.0, 0.0]), torch.tensor([2.0, 5.0]), 0.2)):
        actor = residual(base, 0.0, low=low, high=high)
        record, _ = actor.act(obs)
        torch.testing.assert_close(actor.env_action(record["action"]), wanted)
        torch.testing.assert_close(actor.own_action(wanted), record["action"])
    assert not any(parameter.requires_grad for parameter in actor.actor.parameters())
    assert all(parameter.requires_grad for parameter in actor.correction.parameters())


def test_a_residual_sees_the_base_and_adds_its_share():
    actor, obs = residual(), torch.randn(40, 3)
    record, _ = actor.act(obs, greedy=True)
    base = actor.actor.env_action(actor.actor.act(obs, greedy=True)[0]["action"])
    unit = torch.stack([base[:, 0] / 2, base[:, 1] / 2.5 - 1], 1)
    torch.testing.assert_close(record["base_action"], unit)
    seen = TensorDict({"obs": obs, "base_action": unit}, batch_size=[40])
    with torch.no_grad():
        own = actor.correction.rsample(seen)[0]
    torch.testing.assert_close(record["action"], (unit + 0.5 * own).clamp(-1, 1))
    torch.testing.assert_close(actor.combine(unit, own), record["action"])
    assert set(record) == {"action", "base_action"}
    other = TensorDict({"obs": obs, "base_action": -unit}, batch_size=[40])
    assert not actor.correction.rsample(other)[0].equal(own)


def test_the_noise_of_a_residual_is_in_the_units_of_the_action():
    actor, obs = residual(Deterministic().build(SPEC, NETWORK), std=0.05), torch.zeros(20_000, 3)
    clean = actor.act(obs, greedy=True)[0]["action"]
    assert (actor.act(obs)[0]["action"] - clean).std(0).tolist() == pytest.approx([0.05, 0.05], rel=0.05)


def test_the_gradient_of_a_residual_reaches_the_correction_only():
    actor = residual()
    own = actor.correction.rsample(Residual.seen(torch.randn(5, 3), torch.zeros(5, 2)))[0]
    actor.combine(torch.zeros(5, 2), own).sum().backward()
    assert all(parameter.grad is not None for parameter in actor.correction.parameters())
    assert all(parameter.grad is None for parameter in actor.actor.parameters())


def test_the_room_around_data():
    low, high = widened(torch.tensor([0.0, 1.0]), torch.tensor([2.0, 1.0]), 0.2)
    assert low.tolist() == pytest.approx([-0.2, 0.88])  # the second has no width: half of 0.1
    assert high.tolist() == pytest.approx([2.2, 1.12])


def test_what_a_residual_cannot_correct():
    dictionary = Spec(spaces.Dict({"a": VECTOR, "b": VECTOR}), BOX, "Dict-v0")
    assert set(Residual.inner(dictionary).obs.spaces) == {"a", "b", "base_action"}
    endless = Spec(VECTOR, spaces.Box(-np.inf, np.inf, (2,)), "Endless-v0")
    base = Gaussian().build(endless, NETWORK)
    with pytest.raises(UsageError, match="between bounds, and Endless-v0 has"):
        Residual(base, base, scale=0.1)


def test_a_residual_keeps_the_memory_of_its_base():
    base = Gaussian(log_std_init=-20.0).build(SPEC, GRU)
    actor, obs = residual(base), torch.randn(2, 4, 3)
    _first, carry = actor.act(obs[0], greedy=True)
    second, _ = actor.act(obs[1], carry, greedy=True)
    _, memory = base.act(obs[0], greedy=True)
    later = base.env_action(base.act(obs[1], memory, greedy=True)[0]["action"])
    torch.testing.assert_close(second["base_action"][:, 0], later[:, 0] / 2, atol=1e-6, rtol=0)
    assert actor.recurrent


class Plan(Overseer):
    """Wants to take over in the calls that it is told, does 1, and counts the calls of each row in its mind."""

    def __init__(self, wants: list[list[bool]]) -> None:
        super().__init__()
        self.wants = torch.tensor(wants)

    def watch(self, obs, action, mind):
        count = torch.zeros(len(action), dtype=torch.int64) if mind is None else mind["count"]
        wants = self.wants[count.clamp_max(len(self.wants) - 1), torch.arange(len(action))]
        return wants, torch.ones_like(action), {"count": count + 1}


def watched(wants: list[list[bool]], hold: int | None, config=None, network=NETWORK) -> Intervened:
    return Intervened((config or SquashedGaussian()).build(SPEC, network), Plan(wants), hold)


def play(actor: Intervened, steps: int, rows: int = 1):
    carry, records = None, []
    for _ in range(steps):
        record, carry = actor.act(torch.randn(rows, 3), carry)
        records.append(record)
    return records, carry


@pytest.mark.parametrize(
    ("hold", "expected"),
    [
        (4, [0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 0, 1]),  # one decision of its own before the overseer is asked again
        (1, [0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1]),
        (None, [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_a_takeover_lasts_as_long_as_it_is_told(hold, expected):
    records, _ = play(watched([[False], [True]], hold), 12)
    assert [int(record["takeover"]) for record in records] == expected
    for record in records:
        done = torch.ones(1, 2) if record["takeover"] else record["own_action"]
        assert record["action"].equal(done)
        assert not record["own_action"].equal(torch.ones(1, 2))


def test_a_takeover_goes_on_where_the_overseer_would_not_begin_one():
    records, _ = play(watched([[True], [False]], 3), 6)
    assert [int(record["takeover"]) for record in records] == [1, 1, 1, 0, 0, 0]
    records, _ = play(watched([[True], [False]], None), 3)
    assert [int(record["takeover"]) for record in records] == [1, 0, 0]


def test_who_is_asked_may_let_go_within_a_takeover():
    """Nobody acts in the learner's place where nothing was said, and then the takeover is over."""
    actor = watched([[True], [True], [False], [False], [True], [True], [True], [True], [True], [True]], 4)
    actor.overseer.lets_go = True
    records, _ = play(actor, 10)
    assert [int(record["takeover"]) for record in records] == [1, 1, 0, 0, 1, 1, 1, 1, 0, 1]
    for record in records:
        assert record["action"].equal(torch.ones(1, 2)) == bool(record["takeover"])


def test_rows_are_watched_by_themselves_and_anew_in_a_new_episode():
    actor = watched([[True, False], [False, True], [False, False]], 3)
    records, carry = play(actor, 2, rows=2)
    assert [record["takeover"].tolist() for record in records] == [[True, False], [True, True]]
    carry = {name: value * torch.tensor([0, 1]) for name, value in carry.items()}  # row 0 begins anew
    record, carry = actor.act(torch.randn(2, 3), carry)
    assert record["takeover"].tolist() == [True, True]
    assert carry["held"].tolist() == [3, 2]
    assert carry["overseer.count"].tolist() == [1, 3]


def test_the_record_has_nothing_that_scores_the_own_action_and_memory_goes_on():
    record, _ = watched([[False]], None).act(torch.randn(1, 3))
    assert set(record) == {"action", "own_action", "takeover"}
    actor = watched([[False] * 4], 2, Gaussian(log_std_init=-20.0), GRU)
    obs = torch.randn(2, 4, 3)
    record, carry = actor.act(obs[0])
    record, _ = actor.act(obs[1], carry)
    _, memory = actor.actor.act(obs[0])
    torch.testing.assert_close(record["action"], actor.actor.act(obs[1], memory)[0]["action"], atol=1e-5, rtol=0)
    with pytest.raises(UsageError, match="lasts 1 decision or more, not 0"):
        watched([[False]], 0)


def changed(policy: nn.Module) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))


def ensemble(size: int, kept: int, weights=torch.ones, network=NETWORK) -> PerEpisode:
    policy = Gaussian(log_std_init=-20.0).build(SPEC, network)
    mixture = PerEpisode(policy, size, weights)
    for _ in range(kept):
        changed(policy)
        mixture.keep()
    return mixture


def test_an_episode_is_played_by_one_member_with_its_own_memory():
    torch.manual_seed(0)
    mixture, obs = ensemble(3, 3, network=GRU), torch.randn(2, 60, 3)
    record, carry = mixture.act(obs[0])
    assert sorted(carry["member"].unique().tolist()) == [1, 2, 3]
    later, after = mixture.act(obs[1], carry)
    assert after["member"].equal(carry["member"])
    for number, member in enumerate(mixture.members, 1):
        rows = carry["member"] == number
        alone, memory = member.act(obs[0][rows])
        torch.testing.assert_close(record["action"][rows], alone["action"], atol=1e-5, rtol=0)
        alone, _ = member.act(obs[1][rows], memory)
        torch.testing.assert_close(later["action"][rows], alone["action"], atol=1e-5, rtol=0)
    again = {name: value * (torch.arange(60) > 0).view(-1, *[1] * (value.dim() - 1)) for name, value in after.items()}
    assert mixture.act(obs[0], again)[1]["member"][1:].equal(carry["member"][1:])


def test_members_are_drawn_by_their_weights_also_when_the_oldest_made_room():
    torch.manual_seed(0)
    for size, kept in ((4, 3), (4, 4), (3, 5)):
        mixture = ensemble(size, kept, partial(shares, 0.5))
        _, carry = mixture.act(torch.zeros(20_000, 3))
        found = torch.bincount(carry["member"] - 1, minlength=len(mixture.members)) / 20_000
        order = [number % size for number in range(max(kept - size, 0), kept)]  # slots, oldest member first
        chance = shares(0.5, kept)[-len(order) :]
        assert found[order].tolist() == pytest.approx((chance / chance.sum()).tolist(), abs=0.015)


def test_the_newest_member_is_the_actor_and_stays_when_that_changes():
    torch.manual_seed(0)
    mixture, obs = ensemble(2, 3), torch.randn(5, 3)
    newest = mixture.members[0]  # the third took the place of the first
    assert newest.act(obs, greedy=True)[0]["action"].equal(mixture.actor.act(obs, greedy=True)[0]["action"])
    changed(mixture.actor)
    assert not newest.act(obs, greedy=True)[0]["action"].equal(mixture.actor.act(obs, greedy=True)[0]["action"])
    assert not any(parameter.requires_grad for parameter in mixture.members.parameters())


def test_an_empty_ensemble_acts_as_its_actor_and_members_are_state():
    empty, obs = ensemble(3, 0), torch.randn(5, 3)
    record, carry = empty.act(obs, greedy=True)
    assert record["action"].equal(empty.actor.act(obs, greedy=True)[0]["action"])
    assert carry == {}
    full = ensemble(3, 2)
    restore(empty, gather(full))
    assert empty.count == 2
    assert gather(empty).keys() == gather(full).keys()
    torch.manual_seed(0)
    one = full.act(obs)[0]["action"]
    torch.manual_seed(0)
    assert empty.act(obs)[0]["action"].equal(one)
    with pytest.raises(UsageError, match="room for 1 or more, not 0"):
        ensemble(0, 0)


def test_a_selector_does_what_the_chosen_actor_does():
    actors = [Deterministic().build(SPEC, NETWORK) for _ in range(3)]
    obs = torch.randn(30, 3)
    chosen = torch.arange(30) % 3
    record, carry = Selector(actors, lambda obs: chosen).act(obs)
    for number, actor in enumerate(actors):
        rows = chosen == number
        torch.testing.assert_close(record["action"][rows], actor.act(obs)[0]["action"][rows])
    assert record["chosen"].equal(chosen)
    assert carry == {}
    with pytest.raises(UsageError, match="use feed-forward networks"):
        Selector([Gaussian().build(SPEC, GRU)], lambda obs: chosen)


def test_observations_in_parts_are_taken_apart_too():
    spec = Spec(spaces.Dict({"a": VECTOR, "b": VECTOR}), BOX, "Dict-v0")
    actors = [Deterministic().build(spec, NETWORK) for _ in range(2)]
    parts = {"a": torch.randn(6, 3), "b": torch.randn(6, 3)}
    place = torch.tensor([0, 1, 0, 1, 1, 1])
    plain, _ = Selector(actors, lambda obs: place).act(parts)
    nested, _ = Selector(actors, lambda obs: place).act(TensorDict(parts, batch_size=[6]))
    assert plain["action"].equal(nested["action"])
