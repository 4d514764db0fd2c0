"""Self-play PO: win rates against the policy's own latest episodes, antisymmetric, spread over steps, and the mean of
all policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

import polopt
from polopt import registry
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.functional import gradient
from polopt.core.random import paired
from polopt.data.episodes import Episodes
from polopt.methods.language.self_play_po import Memory, asked, drawn, of_returns, win_rates
from polopt.policies.wrappers import Mixture
from polopt.tasks.tabular_sets import paths
from polopt.training import api
from tests.guards.harness import advance, built, parameters, plan

MUST = 5


def episodes(returns: list[float], length: int = 2) -> Batch:
    """Episodes of so many steps, the whole reward in the first."""
    reward = torch.zeros(len(returns), length)
    reward[:, 0] = torch.tensor(returns)
    parts = {"reward": reward, "mask": torch.ones(reward.shape, dtype=torch.bool)}
    parts |= {"obs": reward.unsqueeze(-1).repeat(1, 1, 4), "action": torch.zeros(reward.shape, dtype=torch.int64)}
    return TensorDict(parts, reward.shape)


def small(**settings: Any) -> Any:
    """On an MDP of 2 states, 2 actions and 2 steps."""
    options = {"states": 2, "actions": 2, "horizon": 2, "mdp_seed": 3, "reward_rate": 1.0}
    common = {"steps": 100, "seed": 3, "loggers": (), "network.sizes": (3,), "envs": 4, "episodes": 4}
    return api.plan("self-play-po", "random-mdp", task_options=options, **{**common, **settings}).build()


# Must 1: against the policy's own latest episodes


def test_must_1_win_rates_against_the_queue_by_hand():
    """A queue of three: first all of one batch, then the last of it beside the new two; signs of differences."""
    with built("self-play-po", queue=3, drawn=False) as method:
        first, numbers = method.compared(episodes([1.0, 2.0, 3.0]))
        assert (2 * first["shared"]).tolist() == [[-1, -1], [0, 0], [1, 1]]
        assert numbers["win_rate"] == 0.5
        assert numbers["comparisons"] == 3
        second, numbers = method.compared(episodes([2.5, 9.0]))  # against 3, 2.5 and 9
        assert (2 * second["shared"]).tolist() == [[-1, -1], [1, 1]]
        assert method.queue.rows["reward"].sum(1).tolist() == [3.0, 2.5, 9.0]
        assert numbers["comparisons"] == 3
        third, numbers = method.compared(episodes([5.0, 4.0, 4.0, 7.0]))  # more than the queue holds: 4, 4 and 7
        assert (2 * third["shared"][:, 0]).tolist() == pytest.approx([1 / 3, -0.5, -0.5, 1])
        assert numbers["win_rate"].item() == pytest.approx(0.5 + 1 / 24)
        assert numbers["comparisons"] == 6


def test_must_1_a_good_episode_is_worth_less_when_the_policy_is_better():
    with built("self-play-po", queue=4, drawn=False) as method:
        found = [method.compared(episodes([5.0, other]))[0]["shared"][0, 0].item() for other in (1.0, 9.0)]
        assert found == [0.5, 0.0]  # beats 1; then beats 1, loses against 9 and equals itself


def test_must_1_the_queue_is_the_policys_own(float64):
    """The episodes of the last updates, oldest out, padded to the longest; no model of rewards is kept."""
    with built("self-play-po", average=0) as method:
        seen = []
        for _ in range(3):
            batch = method.collect()
            seen += [row["reward"].sum() for row in batch]
            method.update(batch)
            assert torch.stack(seen[-6:]).equal(method.queue.rows["reward"].sum(1))
        assert len(method.queue) == 6
        assert {name for name, _ in method.modules()} <= {"policy", "actor"}


def test_must_1_the_reward_of_the_task_is_not_learned_from(float64):
    """Twice the reward gives the same win rates, and so the same step."""
    after = []
    for factor in (1.0, 2.0):
        with built("self-play-po") as method:
            batch = method.collect()
            batch["reward"] = factor * batch["reward"]
            method.update(batch)
            after.append(parameters(method))
    assert all(after[0][name].equal(after[1][name]) for name in after[0])


# Must 2: antisymmetric, without itself


def test_must_2_preferences_of_returns_by_hand():
    margin = torch.tensor([[0.0, 2.0], [-2.0, 0.0]])
    assert of_returns(margin, "sign", 1.0).tolist() == [[0, 1], [-1, 0]]
    assert of_returns(margin, "margin", 4.0).tolist() == [[0, 0.5], [-0.5, 0]]
    found = of_returns(margin, "bradley-terry", 0.5)
    torch.testing.assert_close(found, 2 * torch.sigmoid(margin / 0.5) - 1)
    assert found.equal(-found.T)


def test_must_2_itself_is_left_out():
    """A preference for itself, which no antisymmetric one has, does not count."""
    preference = torch.full((3, 4), 0.5) + 7 * torch.tensor([[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert win_rates(preference, 3).tolist() == [0.5] * 3
    assert win_rates(preference[1:, 1:], 1).tolist() == pytest.approx([(0.5 + 7.5 + 0.5) / 3, 0.5])
    assert win_rates(torch.ones(1, 1), 1).tolist() == [0.0]  # nobody to compare with


def first_wins(mine: Batch, theirs: Batch) -> Tensor:
    """A judge that favors what it is shown first, and a bit what has the larger return."""
    better = (mine["reward"].sum(1).unsqueeze(1) > theirs["reward"].sum(1)).float()
    return 0.8 + 0.2 * better


def test_must_2_a_judge_is_asked_in_both_orders():
    mine, theirs = episodes([1.0, 5.0]), episodes([3.0, 4.0, 6.0])
    found = asked(first_wins, mine, theirs)
    torch.testing.assert_close(found, 0.2 * torch.tensor([[-1.0, -1, -1], [1, 1, -1]]))
    torch.testing.assert_close(asked(first_wins, theirs, mine), -found.T)


@pytest.mark.parametrize("said", [torch.zeros(2, 2), torch.full((2, 3), 1.5), torch.full((2, 3), -0.1)])
def test_must_2_a_judge_that_gives_no_probabilities_is_refused(said):
    with pytest.raises(UsageError, match=r"^the judge is asked for probabilities \(2, 3\)"):
        asked(lambda one, other: said, episodes([1.0, 2.0]), episodes([1.0, 2.0, 3.0]))


def test_must_2_drawn_answers(float64):
    """One answer to each pair of the same episodes, in its frequency; none of an episode with itself."""
    generator = torch.Generator().manual_seed(0)
    preference = torch.full((3, 4), 0.5)
    preference[:, 1:] = torch.tensor([[0.0, 0.4, -0.4], [-0.4, 0.0, 1.0], [0.4, -1.0, 0.0]])
    many = torch.stack([drawn(preference, 3, generator) for _ in range(2000)])
    assert many[:, :, 0].abs().eq(1).all()
    among = many[:, :, 1:]
    assert among.equal(-among.transpose(1, 2))
    assert among[:, 1, 2].eq(1).all()
    torch.testing.assert_close(many.mean(0), preference, rtol=0, atol=4 / 2000**0.5)


# Must 3: whole episodes are compared, and all steps share


def test_must_3_every_step_has_the_same_share():
    """Of episodes of 1 and 3 steps: 1 and -1/3 each; no reward outside [-1, 1]."""
    with built("self-play-po", drawn=False) as method:
        batch = episodes([4.0, 2.0], 3)
        batch["mask"][0, 1:] = False
        found, _ = method.compared(batch)
        torch.testing.assert_close(found["shared"], torch.tensor([[1.0, 0, 0], [-1 / 3] * 3]))
        evaluated = method.evaluate_episodes(found)
        torch.testing.assert_close(evaluated["returns"], torch.tensor([[1.0, 0, 0], [-1.0] * 3]))


def slopes(credit: str) -> tuple[Tensor, Tensor]:
    """The gradient of the win rate against fixed rivals over all paths, and the mean gradient of the loss."""
    method = small(credit=credit, baseline="none")
    own, mdp = list(method.policy.parameters()), method.spec.info["mdp"]
    found = paths(mdp)
    shape = found.state.shape
    step = torch.arange(shape[1]).expand(shape)
    parts = {"obs": TensorDict({"state": found.state, "step": step}, shape), "action": found.action}
    parts["reward"] = mdp.reward[step, found.state, found.action]
    batch = TensorDict({**parts, "mask": torch.ones(shape, dtype=torch.bool)}, shape)
    table = method.policy.logits(TensorDict({"obs": mdp.observations()}, [mdp.horizon, mdp.states])).softmax(-1)
    probability = found.probability(table)
    rate = method.preferences(batch, batch[:3]).mean(1)
    exact = gradient((probability * rate).sum(), own)
    batch["shared"] = (rate / shape[1]).unsqueeze(1).expand(shape)
    batch = method.evaluate_episodes(batch)
    batch["weight"] = probability.detach().unsqueeze(1).expand(shape)
    return exact, -gradient(method.policy_loss(batch)[0], own)


def test_must_3_the_expected_gradient_is_that_of_the_win_rate(float64):
    exact, found = slopes("return")
    torch.testing.assert_close(found, exact)
    assert exact.norm() > 0.01
    exact, found = slopes("reward-to-go")
    assert not torch.allclose(found, exact, rtol=0.1)


def test_margins_are_leave_one_out_exactly(float64):
    """sum_{j != i} (R_i - R_j) / (n - 1) = R_i - mean of the others."""
    returns = torch.tensor([3.0, -1.0, 4.0, 1.0, 5.0])
    found = win_rates(of_returns(returns.unsqueeze(1) - returns, "margin", 2.0), 5)
    others = (returns.sum() - returns) / 4
    torch.testing.assert_close(found, (returns - others) / 2)


# Must 4: the mean of all policies


def rigged(method: Any, action: int) -> None:
    """The actor always takes one of the actions."""
    with torch.no_grad():
        for parameter in method.actor.parameters():
            parameter.zero_()
        [*method.actor.parameters()][-1][action] = 50.0


def test_must_4_the_mixture_plays_one_of_all_policies_for_a_whole_episode():
    """Of three policies two always go left and one right: a third of the episodes go right, each all the way."""
    method = small(average=4)
    assert method.evaluate(method.task.twin(2), 2)["win_rate"] == 0.5  # nobody was there yet
    for action in (0, 1, 0):
        rigged(method, action)
        method.policy.keep(method.generator)
    obs = TensorDict({"state": torch.zeros(600, dtype=torch.int64), "step": torch.zeros(600, dtype=torch.int64)}, [600])
    record, carry = method.policy.act(obs, None, greedy=True)
    assert record["action"].double().mean().item() == pytest.approx(1 / 3, abs=0.08)
    assert carry["copy"].min() >= 1
    again, after = method.policy.act(obs, carry)
    assert again["action"].equal(record["action"])
    assert after["copy"].equal(carry["copy"])
    fresh, _ = method.policy.act(obs, {name: torch.zeros_like(value) for name, value in carry.items()})
    assert not fresh["action"].equal(record["action"])


def test_must_4_all_policies_are_as_likely_to_be_kept():
    """Of 12 policies two are kept: each in a sixth of 900 runs."""
    method = small(average=2)
    counts = torch.zeros(12)
    marked = [*method.actor.parameters()][-1]
    generator = torch.Generator().manual_seed(1)
    mixture = Mixture(method.actor, 2)
    for _ in range(900):
        mixture.count = 0
        for number in range(12):
            with torch.no_grad():
                marked.fill_(float(number))
            mixture.keep(generator)
        for copy in mixture.copies:
            counts[int([*copy.parameters()][-1][0])] += 1
    assert (counts / 900 - 1 / 6).abs().max() < 4 * (1 / 6 * 5 / 6 / 900) ** 0.5


def test_must_4_the_mean_is_what_is_saved_and_evaluated(tmp_path):
    smoke = registry.load("self-play-po").smoke
    polopt.train("self-play-po", smoke.task, steps=100, out=tmp_path / "run", loggers=(), **smoke.config)
    actor = polopt.load(tmp_path / "run")
    assert isinstance(actor, Mixture)
    assert actor.count >= 2
    assert "win_rate" in polopt.evaluate(tmp_path / "run", episodes=2)
    with built("self-play-po") as method:
        advance(method, 40)
        rigged(method, 0)
        poor = method.evaluate(method.task.twin(2), 4)
        for copy in method.policy.copies:
            [*copy.parameters()][-1].data[0] = 50.0
        assert method.evaluate(method.task.twin(2), 4)["length"] < 11 < poor["length"]  # one action: a fall


def test_must_4_the_population_is_a_sample_of_all_episodes():
    """Of 12 in three batches four are kept: each in a third of 600 runs."""
    counts, generator = torch.zeros(12), torch.Generator().manual_seed(0)
    for _ in range(600):
        memory = Memory(4)
        for begin in (0, 4, 8):
            memory.mix(episodes([float(begin + each) for each in range(4)]), generator)
        assert memory.count == 12
        counts[memory.rows["reward"].sum(1).long()] += 1
    assert (counts / 600 - 1 / 3).abs().max() < 4 * (2 / 9 / 600) ** 0.5


def test_must_4_the_win_rate_is_against_the_population():
    with built("self-play-po", average=0, population=3) as method:
        for low, expected in ((1e6, 0.0), (-1e6, 1.0)):
            method.population = Memory(3)
            method.population.mix(episodes([low, low, low]), method.generator)
            assert method.evaluate(method.task.twin(2), 2)["win_rate"] == expected
    with built("self-play-po", average=0, population=3, compare="margin", drawn=False) as method:
        method.population.mix(episodes([-1e6] * 3), method.generator)
        found = method.evaluate(method.task.twin(2), 2)
        assert found["win_rate"] == 1.0  # margins have no bound, and count as sure
        assert found["return"] == found["length"]


def test_must_4_every_update_gives_a_policy_and_episodes(float64):
    """To the mixture, and to the population: not only the latest are there."""
    with built("self-play-po", population=4) as method:
        seen = []
        for count in (1, 2, 3):
            batch = method.collect()
            seen += batch["reward"].sum(1).tolist()
            method.update(batch)
            assert method.policy.count == count
            assert method.population.count == 4 * count
        assert {*method.population.rows["reward"].sum(1).tolist()} <= {*seen}
        assert method.population.rows["reward"].sum(1).tolist() != seen[-4:]


def test_drawn_answers_are_what_is_learned_from(float64):
    """At a temperature at which all are nearly even, win rates are those of coins."""
    with built("self-play-po", drawn=True, compare="bradley-terry", scale=1e9) as method:
        answers, own = method.answers(method.collect())
        assert own == 4
        among = answers[-4:, -4:]
        assert among.abs().sum() == 12
        assert among.equal(-among.T)
    with built("self-play-po", drawn=False, compare="bradley-terry", scale=1e9) as method:
        assert method.answers(method.collect())[0].abs().max() < 1e-6


# Must 5: nothing stale


def test_must_5_only_the_episodes_of_this_update_are_learned_from(float64):
    """Their scores, weighed with win rates of this moment; the queue is compared with and not learned from."""
    with built("self-play-po", drawn=False, baseline="none") as method:
        method.update(method.collect())
        batch, _ = method.compared(method.collect())
        mask = batch["mask"]
        evaluated = method.evaluate_episodes(batch)
        returns = batch["reward"].sum(1)
        queue = method.queue.rows["reward"].sum(1)
        rate = (returns.unsqueeze(1) - queue).sign().sum(1) / 5  # of six, itself left out
        log_prob = method.actor.log_prob(batch)
        expected = -(rate.unsqueeze(1) * log_prob * mask).sum() / len(mask)
        torch.testing.assert_close(method.policy_loss(evaluated)[0], expected)


def test_episodes_of_different_lengths_are_padded():
    memory = Memory(3)
    memory.push(episodes([1.0, 2.0], 2))
    memory.push(episodes([3.0, 4.0], 4))
    assert memory.rows.shape == (3, 4)
    assert memory.rows["mask"].sum(1).tolist() == [2, 4, 4]
    assert memory.rows["obs"].shape == (3, 4, 4)
    other = Memory(3)
    other.load_extra_state(memory.extra_state())
    assert (other.rows == memory.rows).all()
    other.load_extra_state({})
    assert len(other) == 0
    with pytest.raises(UsageError, match=r"^there are no episodes to compare with before the first update"):
        _ = other.rows


def test_a_judge_trains_and_is_given_again(tmp_path):
    smoke = registry.load("self-play-po").smoke
    polopt.train(
        "self-play-po", smoke.task, steps=100, out=tmp_path / "run", loggers=(), judge=first_wins, **smoke.config
    )
    with pytest.raises(UsageError, match=r"^judge was .*: say it again with --judge"):
        polopt.evaluate(tmp_path / "run", episodes=1)
    assert "win_rate" in polopt.evaluate(tmp_path / "run", episodes=1, judge=first_wins)
    assert polopt.load(tmp_path / "run").spec == polopt.load(tmp_path / "run", judge=first_wins).spec


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"scale": 2.0}, r"^scale has no effect where the sign of a difference counts"),
        ({"judge": first_wins, "compare": "margin"}, r"^compare has no effect beside a judge"),
        ({"compare": "margin"}, r"^no answers can be drawn from compare margin"),
    ],
)
def test_what_cannot_act_is_refused(settings, sentence):
    with pytest.raises(UsageError, match=sentence):
        plan("self-play-po", **settings)


def test_it_learns_from_comparisons_alone():
    method = small(lr=0.05, episodes=32, envs=32, **{"network.sizes": (16,)})
    mdp = method.spec.info["mdp"]
    best = mdp.optimal()[1][0, mdp.start]
    observations = TensorDict({"obs": mdp.observations()}, [mdp.horizon, mdp.states])
    for _ in range(60):
        method.update(method.collect())
    value = mdp.value(method.policy.logits(observations).softmax(-1))[0, mdp.start]
    assert value > 0.9 * best


@pytest.mark.parametrize("greedy", [True, False])
def test_what_is_evaluated(float64, greedy):
    """The first starts, as it is asked to act: by the episodes themselves."""
    with built("self-play-po", average=0) as method:
        task = method.task.twin(3)
        found = method.evaluate(task, 3, greedy=greedy)
        with paired():
            batch = Episodes(task, starts=range(3), greedy=greedy).next(method.policy)
        returns = batch["reward"].sum(1).tolist()
        assert found["return"] == pytest.approx(np.mean(returns))
        assert found["return_std"] == pytest.approx(np.std(returns))
        assert found["return_std"] > 0 or greedy
        assert method.evaluate(task, 3, greedy=not greedy)["return"] != found["return"]
