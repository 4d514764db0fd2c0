from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from polopt.core.ledger import Ledger
from polopt.core.scoring import scored
from polopt.core.state import gather, restore
from polopt.data import Episodes, Played, Sequential
from polopt.tasks import make_task

from .actors import Counting, Lengths, Random
from .test_rollouts import equal


@pytest.mark.parametrize("num", [1, 3, 16])
def test_whole_episodes_padded_and_counted(num: int) -> None:
    ledger = Ledger()
    source = Episodes(make_task(Lengths, num=num), episodes=10, ledger=ledger)
    batch = source.next(Counting())
    mask, obs = batch["mask"], batch["obs"]
    lengths = mask.sum(1)
    starts = obs[:, 0, 0]
    assert torch.equal(lengths, (1 + starts % 4).long())
    assert batch.batch_size == (10, int(lengths.max()))
    time = torch.arange(batch.batch_size[1])
    assert torch.equal(obs[..., 1], time * mask)
    assert torch.equal(batch["hidden"].squeeze(-1), time * mask)  # the carry begins anew with each episode
    assert torch.equal(batch["reward"], (starts.unsqueeze(1) + time + 1) * mask)
    assert torch.equal(batch["first"], (time == 0).expand_as(mask))
    done = batch["terminated"] | batch["truncated"]
    assert torch.equal(done, (time + 1 == lengths.unsqueeze(1)))
    assert torch.equal(batch["final_obs"][done][:, 1], lengths.float())
    assert not any(value[~mask].any() for value in (obs, batch["final_obs"], batch["action"]))
    assert (ledger.env_steps, ledger.episodes) == (int(lengths.sum()), 10)  # parked rows are not counted
    assert source.episodes() == list(zip(batch["reward"].sum(1).tolist(), lengths.tolist()))


def test_the_result_does_not_depend_on_how_many_rows_play() -> None:
    batches = [Episodes(make_task(Lengths, num=num), episodes=9).next(Counting()) for num in (1, 4, 20)]
    assert equal(batches[0], batches[1])
    assert equal(batches[0], batches[2])


def test_groups_share_their_start() -> None:
    source = Episodes(make_task(Lengths, num=5), starts=[4, 9], samples=3)
    batch = source.next(Counting())
    assert batch["group"][:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["index"][:, 0].tolist() == [4, 4, 4, 9, 9, 9]
    starts = batch["obs"][:, 0, 0]
    assert len(set(starts[:3].tolist())) == len(set(starts[3:].tolist())) == 1
    assert starts[0] != starts[3]
    assert equal(batch, source.next(Counting()))  # chosen starts stay


def test_new_starts_each_time_and_after_a_resume() -> None:
    source = Episodes(make_task(Lengths, num=3), episodes=4)
    first, second = source.next(Counting()), source.next(Counting())
    assert first["index"][:, 0].tolist() == [0, 1, 2, 3]
    assert second["index"][:, 0].tolist() == [4, 5, 6, 7]
    other = Episodes(make_task(Lengths, num=3), episodes=4)
    restore(other, gather(source))
    assert equal(source.next(Counting()), other.next(Counting()))
    assert source.episodes() == other.episodes()


def test_a_sampler_chooses_the_starts_and_collate_makes_the_batch() -> None:
    def returns(played: Played) -> TensorDict:
        total = torch.stack([step["reward"] for step in played.steps]).sum()
        return TensorDict({"total": total, "index": played.index, "length": played.length}, batch_size=[])

    task = make_task(Lengths, num=2)
    source = Episodes(task, episodes=3, samples=2, sampler=Sequential(4), collate=returns)
    batches = [source.next(Counting()) for _ in range(2)]
    assert [batch["index"].tolist() for batch in batches] == [[0, 0, 1, 1, 2, 2], [3, 3, 0, 0, 1, 1]]
    assert batches[0]["length"][:4].tolist() == batches[1]["length"][2:].tolist()
    assert source.episodes() == []  # the batch has no reward
    whole = Episodes(make_task(Lengths, num=2), starts=[0, 1, 2], samples=2).next(Counting())
    assert torch.equal(whole["mask"].sum(1), batches[0]["length"])


def test_training_is_not_told_by_evaluation() -> None:
    train = Episodes(make_task(Lengths), episodes=5).next(Counting())["obs"][:, 0, 0]
    evaluation = Episodes(make_task(Lengths, evaluation=True), episodes=5).next(Counting())["obs"][:, 0, 0]
    assert not torch.equal(train, evaluation)


def test_greedy_keep_and_max_steps() -> None:
    task = make_task("Pendulum-v1", num=2)
    source = Episodes(task, episodes=3, greedy=True, keep=("reward", "action"), max_steps=20)
    batch = source.next(Random(task.spec))
    assert not batch["action"].any()
    assert set(batch.keys()) == {"reward", "action", "terminated", "truncated", "mask", "index", "group"}
    assert batch["truncated"].nonzero().tolist() == [[0, 19], [1, 19], [2, 19]]
    assert source.ledger.env_steps == 60
    assert source.cut == 3


def test_an_end_at_the_last_step_is_no_cut() -> None:
    """Episodes of 1 to 4 decisions: those of three that terminate there are whole."""
    whole = Episodes(make_task(Lengths, num=3), episodes=12).next(Counting())
    source = Episodes(make_task(Lengths, num=3), episodes=12, max_steps=3)
    batch = source.next(Counting())
    lengths = whole["mask"].sum(1)
    assert {3, 4} <= set(lengths.tolist())
    assert source.cut == (lengths == 4).sum()
    assert torch.equal(batch["terminated"], whole["terminated"][:, :3])
    assert torch.equal(batch["truncated"][lengths == 4].sum(1), torch.ones(source.cut, dtype=torch.int64))
    assert torch.equal(batch["truncated"][lengths < 4], whole["truncated"][lengths < 4, :3])


@pytest.mark.parametrize(("keep", "asked"), [(None, True), (("reward",), False), (("log_prob",), True)])
def test_how_likely_actions_were_is_asked_where_it_is_kept(keep: Any, asked: bool) -> None:
    class Asked(Counting):
        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            found.add(scored())
            return super().act(obs, carry)

    found: set[bool] = set()
    Episodes(make_task(Lengths), episodes=2, keep=keep).next(Asked())
    assert found == {asked}


def test_dict_observations_are_padded() -> None:
    task = make_task("masked", num=2, horizon=3)
    batch: Any = Episodes(task, episodes=3).next(Random(task.spec))
    assert batch["obs", "worth"].shape == (3, 3, 5)
    assert torch.equal(batch["action_mask"], batch["obs", "action_mask"])


def test_tabular_episodes_estimate_the_exact_value() -> None:
    task = make_task("random-mdp", num=50)
    mdp = task.spec.info["mdp"]
    batch = Episodes(task, episodes=500).next(Counting())
    policy = torch.zeros_like(mdp.reward)
    policy[..., 0] = 1.0
    returns = batch["reward"].sum(1)
    assert abs(returns.mean().item() - mdp.value(policy)[0, 0].item()) < 4 * returns.std().item() / 500**0.5
    assert batch["terminated"][:, -1].all()
