"""Lists of deterministic policies: against tables, and their core against every trajectory that there could be."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.policies import listed
from polopt.policies.listed import PolicyList, from_tables, probabilities, sequences, tons


def spec(horizon=3, states=2, actions=2):
    obs = spaces.Dict({"state": spaces.Discrete(states), "step": spaces.Discrete(horizon + 1)})
    return Spec(obs, spaces.Discrete(actions), "small")


@st.composite
def lists(draw):
    """A list of random tables, and the tables."""
    horizon, states, actions, count = (draw(st.integers(low, high)) for low, high in ((1, 3), (1, 3), (2, 3), (1, 5)))
    seed, centres = draw(st.integers(0, 999)), draw(st.integers(1, count))
    tables = torch.randint(actions, (count, horizon, states), generator=torch.Generator().manual_seed(seed))
    return from_tables(spec(horizon, states, actions), tables, centres), tables


def test_tons_are_all_policies_that_act_unusually_in_at_most_so_many_states():
    found = tons(spec(horizon=2, states=2, actions=3), size=2, usual=1)
    tables = [tuple(found.table(which).flatten().tolist()) for which in range(len(found))]
    expected = {table for table in product(range(3), repeat=4) if sum(action != 1 for action in table) <= 2}
    assert set(tables) == expected
    assert len(tables) == len(expected) == 1 + 4 * 2 + 6 * 4
    assert tables[0] == (1, 1, 1, 1)
    assert len(tons(spec(), size=0)) == 1
    assert len(tons(spec(horizon=1, states=2), size=5)) == 4


def test_singletons_have_the_core_that_acts_unusually_in_one_step():
    core = tons(spec(horizon=3, states=4)).core()
    assert core.shape == (1 + 3, 3, 4)
    assert core[0].sum() == 0
    assert torch.equal(core[1:].sum(-1), 4 * torch.eye(3, dtype=torch.int64))
    assert torch.equal(tons(spec(horizon=3, states=4), size=2).core(), core)
    assert len(tons(spec(horizon=3, states=2, actions=4)).core()) == 1 + 3 * 3


@settings(max_examples=40, deadline=None)
@given(lists())
def test_a_list_is_its_tables(pair):
    found, tables = pair
    assert all(torch.equal(found.table(which), table) for which, table in enumerate(tables))
    horizon, states = tables.shape[1:]
    which = torch.arange(len(tables))
    for step, state in product(range(horizon), range(states)):
        assert torch.equal(found.act(which, step, torch.tensor(state)), tables[:, step, state])
        parts = found.split(which[1:], step, state) if len(which) > 1 else {}
        expected = {
            action: (1 + (tables[1:, step, state] == action).nonzero().flatten()).tolist() for action in range(3)
        }
        assert {action: part.tolist() for action, part in parts.items()} == {k: v for k, v in expected.items() if v}
    assert (found.states.diff(dim=1) >= 0).all()
    petals = [set(row.tolist()) - {horizon * states} for row in found.states]
    for own, table, centre in zip(petals, tables.flatten(1), found.centres[found.follows].flatten(1)):
        assert own == set((table != centre).nonzero().flatten().tolist())


@settings(max_examples=40, deadline=None)
@given(lists())
def test_pairs_that_pass_a_petal(pair):
    found, tables = pair
    horizon, states = tables.shape[1:]
    rows = torch.tensor(list(product(range(states), repeat=horizon)))
    numbers = rows + states * torch.arange(horizon)
    numbers[0, horizon - 1 :] = -1  # an episode that ended early
    which, row = found.passing(numbers)
    expected = {
        (policy, index)
        for policy in range(len(tables))
        for index in range(len(rows))
        if set(found.states[policy].tolist()) & set(numbers[index].tolist())
    }
    assert set(zip(which.tolist(), row.tolist())) == expected
    assert len(which) == len(expected)


def covered(found: PolicyList, core: torch.Tensor) -> bool:
    """Whether every piece that a policy could have made, from the beginning or a petal on, and without another petal
    after its first state, is one that a policy of the core could have made."""
    horizon, states = found.centres.shape[1:]
    for which in range(len(found)):
        own, petals = found.table(which), set(found.states[which].tolist())
        for begin, way in ((begin, way) for begin in range(horizon) for way in product(range(states), repeat=horizon)):
            numbers = [step * states + way[step] for step in range(begin, horizon)]
            if begin > 0 and numbers[0] not in petals:
                continue
            later = [index for index, number in enumerate(numbers) if index > 0 and number in petals]
            length = later[0] if later else len(numbers)  # a piece of length 0 is one of every policy
            steps = range(begin, begin + length)
            if not any(all(table[step, way[step]] == own[step, way[step]] for step in steps) for table in core):
                return False
    return True


@settings(max_examples=25, deadline=None)
@given(lists())
def test_every_list_is_a_sunflower(pair):
    found, _ = pair
    assert covered(found, found.core())


def test_a_core_without_the_unusual_action_of_a_step_is_none():
    found = tons(spec(), size=2)
    core = found.core()
    assert covered(found, core)
    assert not any(covered(found, core[[k for k in range(len(core)) if k != drop]]) for drop in range(len(core)))


def test_centres_are_chosen_where_they_describe_the_others_best():
    one, other = torch.zeros(1, 3, 2, dtype=torch.int64), torch.ones(1, 3, 2, dtype=torch.int64)
    near, far = one.clone(), other.clone()
    near[0, 1, 0], far[0, 2, 1] = 1, 0
    found = from_tables(spec(), torch.cat((near, one, far, other)), centres=2)
    assert found.petals == 1
    assert found.follows.tolist() in ([0, 0, 1, 1], [1, 1, 0, 0])
    assert from_tables(spec(), torch.cat((near, one, far, other)), centres=4).petals == 0
    middle = from_tables(spec(), torch.cat((near, one, one)))  # one of those from which the others are 1 apart
    assert middle.petals == 1


def test_sequences_are_all_of_them_whatever_the_states():
    found = sequences(spec(horizon=2, states=3, actions=3))
    assert found.shape == (9, 2, 3)
    assert [tuple(table[:, 0].tolist()) for table in found] == list(product(range(3), repeat=2))
    assert (found == found[..., :1]).all()
    assert torch.equal(probabilities(found, 3).argmax(-1), found)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tons(spec(), usual=2), "the usual action 2 is none of the 2 actions of small"),
        (
            lambda: tons(spec(horizon=9, states=900), size=2),
            r"32,809,051 policies act unusually in at most 2 of 8,100 states",
        ),
        (
            lambda: from_tables(spec(), torch.zeros(4, 2, 2).long()),
            r"policies of small are integers \[P, 3, 2\], not tor",
        ),
        (
            lambda: from_tables(spec(), torch.zeros(4, 3, 2)),
            r"policies of small are integers .*, not torch.float32 \[4, 3",
        ),
        (lambda: from_tables(spec(), torch.full((4, 3, 2), 2)), "actions of small are 0 to 1, and a policy has 2"),
        (
            lambda: from_tables(spec(), torch.tensor([[[0, 1], [0, -1], [1, 0]]])),
            "actions of small are 0 to 1, and a policy has -1",
        ),
        (lambda: from_tables(spec(), torch.zeros(4, 3, 2).long(), 5), "5 centres cannot be chosen among 4 policies"),
        (lambda: sequences(spec(horizon=13)), r"small has 2\^13 sequences of actions, and 4,096 are the most served"),
        (
            lambda: listed.sizes(Spec(spaces.Discrete(3), spaces.Discrete(2), "plain")),
            "a list of policies is over 'state' and 'step' of a tabular task; plain has none",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(make, message):
    with pytest.raises(UsageError, match=message):
        make()
