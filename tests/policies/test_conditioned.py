"""Policies that are told what to do keep it for an episode, and record it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from polopt.core.errors import UsageError
from polopt.core.spec import Spec
from polopt.data.rollouts import Rollouts
from polopt.networks import Network
from polopt.policies import Categorical, Deterministic
from polopt.policies.conditioned import Conditioned, Preferring, join, told
from polopt.policies.exported import exported
from polopt.tasks import make_task

SPEC = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Box(-1.0, 1.0, (2,)))


def policy(spec=SPEC, **network):
    torch.manual_seed(0)
    return Conditioned(Deterministic().build(told(spec, 2), network=Network((8,), **network)), spec)


def test_it_acts_as_its_actor_does_beside_the_context():
    actor, obs = policy(), torch.randn(4, 3)
    contexts = torch.randn(4, 2)
    record, _ = actor.given(contexts).act(obs)
    inner, _ = actor.actor.act(join(obs, contexts))
    assert torch.equal(record["action"], inner["action"])
    assert torch.equal(record["context"], contexts)
    assert not torch.equal(actor.given(-contexts).act(obs)[0]["action"], inner["action"])


def test_a_context_is_kept_until_its_episode_ends():
    actor, obs = policy(), torch.randn(3, 3)
    record, carry = actor.given([1.0, 2.0]).act(obs)
    actor.given([[5.0, 5.0], [6.0, 6.0], [7.0, 7.0]])
    carry = {name: value * torch.tensor([1, 0, 1]).view(-1, *[1] * (value.dim() - 1)) for name, value in carry.items()}
    carry["begun"] = carry["begun"].bool()
    record, _ = actor.act(obs, carry)  # row 1 has begun anew
    assert record["context"].tolist() == [[1.0, 2.0], [6.0, 6.0], [1.0, 2.0]]


def test_windows_have_the_context_of_each_episode():
    task = make_task("point/robot", 2, 0, horizon=3)
    actor = policy(task.spec)
    source = Rollouts(task, 4)
    actor.given([[0.1, 0.2], [0.3, 0.4]])
    window = source.next(actor)
    assert window["context"][:, 0].tolist() == window["context"][:, 3].tolist()
    actor.given([0.9, 0.9])
    window = source.next(actor)
    begun = window["first"].cumsum(1) > 0
    assert window["context"][begun].unique().tolist() == pytest.approx([0.9])
    assert window["context"][0, 0].tolist() == pytest.approx([0.1, 0.2])


def test_a_memory_is_carried_beside_it():
    actor, obs = policy(recurrent="gru", recurrent_size=4), torch.randn(2, 3)
    contexts = torch.randn(2, 2)
    _, carry = actor.given(contexts).act(obs)
    record, _ = actor.act(obs, carry)
    inner, own = actor.actor.act(join(obs, contexts))
    inner, _ = actor.actor.act(join(obs, contexts), own)
    assert torch.equal(record["action"], inner["action"])


def test_predict_follows_one_context_and_begins_anew_with_another():
    actor, obs = policy(), np.array([0.1, 0.2, 0.3], np.float32)
    first = actor.given([1.0, 0.0]).predict(obs)
    assert np.array_equal(first, actor.predict(obs))
    other = actor.given([0.0, 1.0]).predict(obs)
    assert not np.array_equal(first, other)


def test_dict_observations_keep_their_entries():
    space = spaces.Dict({"place": SPEC.obs, "mode": spaces.Discrete(3)})
    spec = told(Spec(space, SPEC.action), 2)
    assert set(spec.obs.spaces) == {"place", "mode", "context"}
    joined = join({"place": torch.zeros(4, 3), "mode": torch.zeros(4, dtype=torch.int64)}, torch.ones(4, 2))
    assert joined["context"].shape == (4, 2)
    with pytest.raises(UsageError, match="has an entry 'context'"):
        told(spec, 2)


def test_what_it_is_told_fits():
    actor = policy()
    with pytest.raises(UsageError, match=r"^this policy is told 2 numbers, \[2\] or \[N, 2\], not \[3\]$"):
        actor.given([1.0, 2.0, 3.0])
    with pytest.raises(UsageError, match=r"^this policy was given contexts for 3 rows, and there are 2$"):
        actor.given(torch.zeros(3, 2)).act(torch.zeros(2, 3))


def test_it_reads_what_it_is_told_in_units_of_its_own():
    actor = policy()
    scaled = Conditioned(actor.actor, SPEC, torch.tensor([1.0, 2.0]), torch.tensor([0.5, 4.0]))
    record, _ = scaled.given([2.0, 0.0]).act(torch.zeros(1, 3))
    assert record["context"].tolist() == [[2.0, -0.5]]
    assert torch.equal(record["action"], actor.given([2.0, -0.5]).act(torch.zeros(1, 3))[0]["action"])


def test_a_preference_counts_by_its_proportions_and_is_scored_as_its_actor_does():
    spec = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(4))
    torch.manual_seed(0)
    actor = Preferring(Categorical().build(told(spec, 2), network=Network((8,))), spec)
    obs = torch.randn(6, 3)
    record, _ = actor.act(obs)
    assert torch.equal(record["context"], torch.full((6, 2), 0.5))
    record, _ = actor.prefer([3.0, 1.0]).act(obs)
    assert torch.equal(record["context"], torch.tensor([[0.75, 0.25]]).expand(6, 2))
    batch = TensorDict({**record, "obs": join(obs, record["context"])}, batch_size=[6])
    torch.testing.assert_close(actor.log_prob(batch), record["log_prob"])
    probability, log_prob = actor.probabilities(batch)
    torch.testing.assert_close(log_prob.gather(1, record["action"][:, None])[:, 0], record["log_prob"])
    torch.testing.assert_close(actor.entropy(batch), -(probability * log_prob).sum(-1))
    torch.testing.assert_close(actor.logits(batch).softmax(-1), probability)
    assert not actor.kl(batch, actor).abs().max() > 1e-6
    for wrong in ([1.0], [1.0, -1.0], [0.0, 0.0], [float("inf"), 1.0]):
        with pytest.raises(UsageError, match="a weight of at least 0 for each"):
            actor.prefer(wrong)


def test_what_it_is_told_is_where_its_actor_is():
    """One that is made of an actor on an accelerator has all that it needs there."""
    actor = policy().actor.to("meta")
    told_there = Conditioned(actor, SPEC, torch.tensor([1.0, 2.0])).given([2.0, 0.0])
    assert {value.device.type for value in told_there.buffers()} == {"meta"}


@pytest.mark.parametrize("kind", ["torchscript", "pt2"])
def test_a_file_holds_what_it_is_told(kind):
    spec = Spec(spaces.Box(-1.0, 1.0, (3,)), spaces.Discrete(4))
    torch.manual_seed(0)
    actor = Preferring(Categorical().build(told(spec, 2), network=Network((8,))), spec)
    for parameter in actor.parameters():
        parameter.data.normal_()
    obs, found = torch.randn(40, 3), []
    load = torch.jit.load if kind == "torchscript" else lambda file: torch.export.load(file).module()
    for weights in ([0.0, 1.0], [1.0, 0.0]):
        content = exported(actor.prefer(weights), kind)
        found.append(load(io.BytesIO(content))(obs).numpy())
        np.testing.assert_array_equal(found[-1], actor.predict(obs.numpy()))
    assert (found[0] != found[1]).any()
