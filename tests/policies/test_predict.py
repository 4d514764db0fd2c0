"""`predict`: one observation or a batch of them, and one sentence for what is neither."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polopt.core.errors import UsageError
from polopt.core.observations import served
from polopt.core.spec import Spec
from polopt.data.teams import Together
from polopt.networks import Network
from polopt.policies import Auto, CausalLM
from polopt.policies.small_lm import make_language_model
from polopt.tasks import make_task
from polopt.tasks.agents import AgentRows
from tests.tasks.duo import duo

LINE = spaces.Box(-1.0, 1.0, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (2, 4), np.uint8)
MASKED = spaces.Dict({"x": LINE, "action_mask": spaces.MultiBinary(3)})
PAIR = spaces.Tuple([spaces.Discrete(4, start=2), LINE])
SPACES = [LINE, spaces.Discrete(5, start=-1), spaces.MultiDiscrete([3, 4]), spaces.MultiBinary(3), MASKED, PAIR]
ACTIONS = [spaces.Discrete(3, start=1), spaces.Box(-2.0, 3.0, (2, 1), np.float32), spaces.MultiDiscrete([2, 3])]


def policy(obs: spaces.Space, action: spaces.Space, recurrent: str = "none") -> Any:
    torch.manual_seed(0)
    spec = Spec(obs=served(obs), action=action, env_obs=obs)
    actor = Auto().build(spec, network=Network((8,), recurrent=recurrent))
    with torch.no_grad():
        for weight in actor.parameters():
            weight.copy_(torch.randn_like(weight) * (weight.dim() > 1))  # so that other observations are other actions
    return actor


def together(space: spaces.Space, rows: list[Any]) -> Any:
    """Observations as vector environments stack them."""
    if isinstance(space, spaces.Dict):
        return {key: together(part, [row[key] for row in rows]) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(together(part, [row[place] for row in rows]) for place, part in enumerate(space.spaces))
    return np.stack([np.asarray(row) for row in rows])


def sampled(space: spaces.Space, count: int) -> list[Any]:
    space.seed(0)
    rows = [space.sample() for _ in range(count)]
    for row in rows:
        if isinstance(row, dict) and "action_mask" in row:
            row["action_mask"][1] = 1
    return rows


@pytest.mark.parametrize("action", ACTIONS, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize("obs", SPACES, ids=lambda space: type(space).__name__)
def test_a_batch_is_its_rows(obs, action):
    if obs is MASKED and not isinstance(action, spaces.Discrete):
        pytest.skip("the mask is of three actions")
    actor, rows = policy(obs, action), sampled(obs, 40)
    found, alone = actor.predict(together(obs, rows)), np.stack([actor.predict(row) for row in rows])
    assert found.shape == (40, *(action.shape or ()))
    np.testing.assert_allclose(found, alone, rtol=1e-5, atol=1e-5)
    assert all(action.contains(row) for row in found)
    assert len(np.unique(found.reshape(40, -1), axis=0)) > 1  # rows of their own
    assert actor.predict(together(obs, rows[:1])).shape == (1, *(action.shape or ()))


@pytest.mark.parametrize(
    ("space", "given", "said"),
    [
        (LINE, np.zeros((2, 4), np.float32), r"\(2, 4\), .* has shape \(3,\): it takes one, or a batch of them"),
        (LINE, np.zeros((1, 2, 3), np.float32), r"of shape \(1, 2, 3\), but its observation space has shape \(3,\)"),
        (LINE, np.zeros((0, 3), np.float32), "a batch without an observation"),
        (LINE, np.array([[0, 0, 0], [0, np.nan, 0]], np.float32), r"an observation that is not finite \(row 1\)"),
        (LINE, np.zeros(3, np.complex64), "complex64 numbers for a space of float32: cast them"),
        (LINE, "abc", "an observation of type str, not an array of numbers"),
        (LINE, None, "an observation of type NoneType, not an array of numbers"),
        (LINE, [[1.0, 2.0], [3.0]], "an observation that is not an array"),
        (LINE, torch.zeros(3, requires_grad=True), "an observation that is not an array"),
        (IMAGE, np.zeros((5, 2, 4), np.float32), r"float32 numbers for a space of uint8: cast them, .* \(row 0\)"),
        (
            IMAGE,
            np.array([[[0] * 4] * 2, [[300] * 4] * 2], np.uint16),
            r"the number 300 for a space of uint8, .* \(row 1\)",
        ),
        (SPACES[1], np.array([0, 4]), r"np.int64\(4\), which is not in Discrete\(5, start=-1\) \(row 1\)"),
        (SPACES[1], "1", "the observation '1', which is not in"),
        (SPACES[1], 1.5, "the observation 1.5, which is not in"),
        (SPACES[2], [[0, 1], [3, 1]], r"which is not in MultiDiscrete\(\[3 4\]\) \(row 1\)"),
        (SPACES[2], "ab", "the observation 'ab', which is not in"),
        (MASKED, np.zeros(3), r"the keys ndarray, but its observation space has \['action_mask', 'x'\]"),
        (MASKED, {"x": np.zeros((2, 3)), "action_mask": np.ones(3, np.int8)}, r"of shape \(2, 3\), .* under 'x'"),
        (
            MASKED,
            {"x": np.zeros((2, 3)), "action_mask": np.array([[1, 0, 0], [0, 0, 0]], np.int8)},
            r"whose action_mask forbids every action \(row 1\)",
        ),
        (PAIR, (2, np.zeros((2, 3))), "at place 1"),
    ],
)
def test_what_is_no_observation_is_said_in_one_sentence(space, given, said):
    with pytest.raises(UsageError, match=f"^predict was given .*{said}") as error:
        policy(space, ACTIONS[0]).predict(given)
    assert "\n" not in str(error.value)


def test_a_recurrent_policy_follows_as_many_episodes_as_it_was_given():
    actor, rows = policy(LINE, ACTIONS[1], "gru"), np.stack(sampled(LINE, 4))
    first, second = actor.predict(rows), actor.predict(rows)
    assert not np.allclose(first, second)  # it remembers
    for row in range(4):
        actor.reset()
        np.testing.assert_allclose(actor.predict(rows[row]), first[row], atol=1e-5)
        np.testing.assert_allclose(actor.predict(rows[row]), second[row], atol=1e-5)
    with pytest.raises(
        UsageError, match=r"^predict follows 1 episode and was given 4 observations: call reset\(\) fir"
    ):
        actor.predict(rows)


def test_teams_in_a_batch():
    rows = AgentRows(make_task(duo, num=1, seed=0))
    joint = rows.joint.spec
    actor = Together(Auto().build(rows.spec, network=Network((8,))), rows)
    teams = sampled(joint.raw_obs, 3)
    found = actor.predict(together(joint.raw_obs, teams))
    assert found.shape == (3, *joint.action.shape)
    for team, actions in zip(teams, found, strict=True):
        np.testing.assert_allclose(actor.predict(team), actions, atol=1e-5)


@pytest.fixture(scope="module")
def writer_(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_language_model(tmp_path_factory.mktemp("lm") / "model", "tiny")
    return CausalLM(model=str(folder), max_tokens=5).build(make_task("vowels").spec)


def test_a_list_of_prompts_gives_a_list_of_answers(writer_):
    prompts = ["bc:", "a longer one:", [{"role": "user", "content": "hello"}]]
    answers = writer_.predict(prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        writer_.reset()
        assert writer_.predict(prompt) == answer
    with pytest.raises(UsageError, match=r"^predict follows 1 conversation and was given 3 observations: call reset"):
        writer_.predict(prompts)
    writer_.reset()
    assert writer_.predict(["bc:"]) == answers[:1]
    writer_.reset()


@pytest.mark.parametrize("given", [3, None, {"content": "x"}, ["a", 3], [["a"]], [[]], [{"role": "user"}], ["a", None]])
def test_what_is_no_prompt_is_said_in_one_sentence(given, writer_):
    with pytest.raises(UsageError, match=r"^predict takes a text, a list of messages with role and content"):
        writer_.predict(given)
    with pytest.raises(UsageError, match=r"^predict was given a list without a prompt$"):
        writer_.predict([])
