"""Behavioral cloning, and the staged bc-ppo: its loss by hand, its demonstrations, and that both learn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polopt
from polopt.core.batch import weigh
from polopt.core.errors import UsageError
from polopt.data.demonstrations import load_demonstrations, record, save_demonstrations
from polopt.policies.wrappers import Uniform
from polopt.tasks import make_task
from polopt.training import api
from polopt.training.folder import Run, write_config
from polopt.training.loop import Trainer
from tests.guards import spaces

MUST = 3
SMALL = {"demonstrations": "random", "random_episodes": 3, "batch_size": 8, "network.sizes": (8,), "loggers": ()}


def make(task: Any = "CartPole-v1", **changes: Any) -> Any:
    return api.plan("bc", task, seed=1, **SMALL | changes).build()


def test_must_1_the_loss_is_the_negative_log_likelihood_of_what_was_done(float64):
    method = make()
    batch = weigh(method.collect())
    logits = method.policy.net(batch["obs"]).detach().numpy()
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    chosen = np.take_along_axis(log_softmax, batch["action"].numpy()[:, None], 1)
    loss, metrics = method.imitation_loss(batch)
    assert float(loss.detach()) == pytest.approx(-chosen.mean())
    assert float(metrics["imitation_loss"].detach()) == pytest.approx(-chosen.mean())
    bonus = make(entropy_coefficient=0.5)
    bonus.policy = method.policy
    entropy = -(np.exp(log_softmax) * log_softmax).sum(-1).mean()
    assert float(bonus.imitation_loss(batch)[0].detach()) == pytest.approx(-chosen.mean() - 0.5 * entropy)


def test_must_1_deterministic_policies_take_the_squared_error(float64):
    method = make(spaces.box, policy="deterministic")
    batch = weigh(method.collect())
    mean = method.policy.net(batch["obs"]).tanh().detach().numpy()
    error = ((mean - batch["action"].numpy()) ** 2).sum(-1).mean()
    assert float(method.imitation_loss(batch)[0].detach()) in (pytest.approx(error), pytest.approx(error / 2))


def test_must_2_actions_are_learned_in_the_units_of_the_policy():
    """Demonstrations are in the environment's units, [-2, 1]; a squashed policy acts in [-1, 1]."""
    plain, squashed = make(spaces.box, policy="gaussian"), make(spaces.box, policy="squashed-gaussian")
    for method, low, high in ((plain, -2.0, 1.0), (squashed, -1.0, 1.0)):
        actions = method.source.data["action"]
        assert low <= float(actions.min()) < low + 0.3
        assert high - 0.3 < float(actions.max()) <= high
    ends = torch.tensor([[-2.0, 1.0], [-0.5, -0.5]])
    torch.testing.assert_close(squashed.policy.own_action(ends), torch.tensor([[-1.0, 1.0], [0.0, 0.0]]))
    assert torch.equal(plain.policy.own_action(ends), ends)


def test_must_3_it_costs_no_environment_steps_and_normalizes_by_the_demonstrations():
    method = make(normalize_obs=True)
    for _ in range(3):
        method.update(method.collect())
    assert method.ledger.env_steps == 0
    assert int(method.policy.normalizer.count) == len(method.source.data)
    torch.testing.assert_close(method.policy.normalizer.mean, method.source.data["obs"].double().mean(0))


def test_demonstrations_must_be_named_and_there():
    for name, said in (
        ("", "bc needs demonstrations: a file that 'polopt eval RUN --record FILE' writes"),
        ("nowhere.safetensors", "there are no demonstrations at"),
    ):
        with pytest.raises(UsageError, match=said):
            make(demonstrations=name, random_episodes=10)


def test_a_recurrent_network_is_refused():
    with pytest.raises(UsageError, match="which a recurrent policy cannot learn from"):
        make(**{"network.recurrent": "gru"})


def test_it_clones_a_policy(tmp_path):
    """An expert that pushes where the pole falls is recorded, and cloned from the file."""

    class Expert:
        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            return {"action": (obs[:, 2] + obs[:, 3] > 0).long()}, {}

        def env_action(self, action: Any) -> Any:
            return action

    task = make_task("CartPole-v1", num=4, seed=0)
    data = record(Expert(), task, 4)
    assert len(data) > 500
    file = tmp_path / "expert.safetensors"
    save_demonstrations(file, data, task.spec)
    settings = {"demonstrations": str(file), "network.sizes": (32,), "lr": 1e-2, "loggers": (), "threads": 1}
    run = polopt.train(
        "bc", "CartPole-v1", steps=300, out=tmp_path / "run", eval_every=300, eval_episodes=5, **settings
    )
    assert run.final["eval/return"] > 150
    other = {"demonstrations": str(file), "loggers": ()}
    with pytest.raises(UsageError, match="are of CartPole-v1, whose spaces differ from those"):
        polopt.train("bc", "Acrobot-v1", steps=2, out=tmp_path / "other", **other)


def staged(**changes: Any) -> Any:
    config = {"envs": 2, "window": 8, "minibatches": 2, "epochs": 1, "network.sizes": (8,), "bc_updates": 3}
    bc = {"bc": {"demonstrations": "random", "random_episodes": 2, "batch_size": 8}}
    return api.plan("bc-ppo", "CartPole-v1", seed=1, loggers=(), **config | bc | changes).build()


def advance(method: Any) -> dict[str, torch.Tensor]:
    metrics = method.update(method.collect())
    method.ledger.updates += 1
    return metrics


def test_the_stages_share_one_policy_and_the_first_costs_no_steps():
    method = staged()
    policy, names = method.policy, []
    for _ in range(5):
        names.append(method.stage_name)
        advance(method)
        assert method.learner.policy is policy
    assert names == ["bc", "bc", "bc", "ppo", "ppo"]
    assert method.ledger.env_steps == 2 * 16


def test_the_policy_rests_while_the_critic_warms_up():
    method = staged(critic_warmup=2)
    for _ in range(3):
        advance(method)
    before = [p.clone() for p in method.policy.parameters()]
    critic = [p.clone() for p in method.learner.critic.parameters()]
    for _ in range(2):
        advance(method)
        assert all(torch.equal(a, b) for a, b in zip(before, method.policy.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(critic, method.learner.critic.parameters()))
    advance(method)
    assert not all(torch.equal(a, b) for a, b in zip(before, method.policy.parameters()))


def test_the_first_real_step_of_the_policy_is_a_first_step_of_adam():
    """Adam's first step moves a coordinate by the learning rate; with an advanced step count it is another length."""
    method = staged(critic_warmup=2, minibatches=1, epochs=1, entropy_coefficient=0.0, max_grad_norm=None)
    for _ in range(5):
        advance(method)
    optimizer = method.learner.optimizer
    steps = [int(optimizer.torch.state[p]["step"]) if p in optimizer.torch.state else 0 for p in optimizer.parameters]
    count = len(list(method.policy.parameters()))
    assert steps == [0] * count + [2] * (len(steps) - count)
    before = [p.detach().clone() for p in method.policy.parameters()]
    advance(method)
    moved = [(now.detach() - then).abs().max() for now, then in zip(method.policy.parameters(), before)]
    assert float(torch.stack(moved).max()) == pytest.approx(optimizer.rate, rel=0.01)


def test_what_the_policy_does_stays_while_it_rests():
    method = staged(critic_warmup=3, normalize_obs=True)
    for _ in range(3):
        advance(method)
    obs = method.learner.task.reset()
    before, count = method.policy.net(obs).detach(), int(method.policy.normalizer.count)
    assert count > 0  # of the demonstrations
    for _ in range(3):
        advance(method)
        assert torch.equal(method.policy.net(obs).detach(), before)
    advance(method)
    assert int(method.policy.normalizer.count) == count + 16


def test_the_learning_rate_waits_while_the_policy_rests():
    """A policy at rest has a KL of 0, which is no reason for larger steps."""
    method = staged(critic_warmup=2, adaptive_lr="adaptive-kl")
    for _ in range(5):
        advance(method)
    assert method.learner.optimizer.lr == method.config.lr
    advance(method)
    assert method.learner.optimizer.lr != method.config.lr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"bc.network.sizes": (3,)}, "bc.network.sizes does nothing here: there is one network for all"),
        ({"bc.policy": "gaussian"}, "bc.policy does nothing here: there is one policy for all"),
        ({"bc.normalize_obs": True}, "bc.normalize_obs does nothing here"),
        ({"bc.envs": 2}, "bc.envs does nothing here: there is one envs for all"),
        ({"bc.micro_batch": 2}, "bc.micro_batch does nothing here: there is one micro_batch for all"),
    ],
)
def test_options_of_the_first_stage_that_would_do_nothing_are_refused(option, said):
    with pytest.raises(UsageError, match=said):
        api.plan("bc-ppo", "CartPole-v1", **option)


def test_the_first_stage_takes_the_micro_batches_of_the_whole():
    method = staged(micro_batch=4)
    assert method.stage_name == "bc"
    assert method.learner.optimizer.micro_batch == 4


def test_stages_show_in_the_rows(tmp_path):
    bc = {"demonstrations": "random", "random_episodes": 2, "batch_size": 8}
    settings = {"envs": 2, "window": 8, "network.sizes": (8,), "bc_updates": 3, "loggers": (), "eval_episodes": 1}
    run = polopt.train("bc-ppo", "CartPole-v1", steps=48, out=tmp_path / "run", log_every=16, bc=bc, **settings)
    rows = Run(run.folder).rows
    assert [row["stage"] for row in rows][:2] == ["bc", "ppo"]
    assert rows[-1]["stage"] == "ppo"
    assert rows[-1]["env_steps"] == 48
    assert math.isfinite(rows[-1]["explained_variance"])


def test_a_cloned_policy_is_loaded_without_its_demonstrations(tmp_path: Path) -> None:
    expert = polopt.train("ppo", "CartPole-v1", steps=128, out=tmp_path / "expert", envs=2, window=32, loggers=())
    file = api.demonstrate(expert.folder, tmp_path / "demonstrations.safetensors", episodes=2)
    run = polopt.train("bc", "CartPole-v1", steps=4, out=tmp_path / "bc", demonstrations=str(file), loggers=())
    file.unlink()
    assert polopt.evaluate(run.folder, episodes=2)["length"] > 0
    with pytest.raises(UsageError, match="there are no demonstrations"):
        polopt.resume(run.folder, extend=8)


def test_random_demonstrations_are_the_same_at_a_resume_within_the_first_stage(tmp_path: Path) -> None:
    settings = {"steps": 128, "seed": 3, "envs": 2, "window": 32, "loggers": (), "eval_episodes": 1, "bc_updates": 6}
    settings |= {"bc.demonstrations": "random", "bc.batch_size": 16, "bc.random_episodes": 2, "eval_every": 128}
    whole = polopt.train("bc-ppo", "CartPole-v1", out=tmp_path / "whole", **settings)
    planned = api.plan("bc-ppo", "CartPole-v1", **settings)
    stopped = tmp_path / "stopped"
    write_config(stopped, planned.record())
    method = planned.build()
    trainer = Trainer(method, 128, planned.options, Run(stopped).checkpoints, method.task, [])
    for _ in range(3):  # half of the first stage
        method.update(method.collect())
        method.ledger.updates += 1
    trainer.rows = 1
    trainer.save()
    polopt.resume(stopped)
    states = [run.checkpoints.load(run.checkpoints.steps()[-1]) for run in (whole, Run(stopped))]
    weights = [path for path in states[0] if path.startswith("method.policy.")]
    assert weights
    assert all(torch.equal(states[0][path], states[1][path]) for path in weights)


@pytest.mark.parametrize("key", ["obs", "action", "reward"])
def test_demonstrations_that_are_not_finite_are_refused(key, tmp_path):
    task = make_task("Pendulum-v1")
    data = record(Uniform(task.spec), task, 1, greedy=False)[:4]
    data[key].view(-1)[1] = torch.nan
    save_demonstrations(tmp_path / "nan.safetensors", data, task.spec)
    with pytest.raises(
        UsageError, match=rf"row \d of '{key}' in the demonstrations at .*nan.safetensors is not finite"
    ):
        load_demonstrations(tmp_path / "nan.safetensors", task.spec)
