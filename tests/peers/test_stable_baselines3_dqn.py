"""Gradients of DQN's loss against Stable-Baselines3's own `DQN.train()`, on the same weights and transitions, in
float64: `make test-peers`. How its settings are called here is in docs/moving.md.
"""

import pytest
import torch
from stable_baselines3 import DQN

from polopt.core.batch import weigh
from tests.guards import spaces
from tests.peers.gradients import load, perturb, record, relative_error, stacked
from tests.peers.sb3 import SIZE, TOLERANCE, WholeReplay, ours, theirs, transitions

torch.set_num_threads(1)
pytestmark = pytest.mark.usefixtures("float64")


def pair(**settings):
    model = theirs(DQN, spaces.discrete, buffer_size=SIZE, replay_buffer_class=WholeReplay, gamma=0.9)
    for module, scale in ((model.q_net, 0.3), (model.q_net_target, 0.5)):
        perturb(module, scale)
    method = ours("dqn", spaces.discrete, **{"replay_size": SIZE, "max_grad_norm": None} | settings)
    for critic, its in ((method.policy.net, model.q_net), (method.target_critic, model.q_net_target)):
        load(critic.parameters(), stacked([its], lambda p: p))
    return model, method


def gradients_of(ends="terminated", **settings):
    """Our and their gradients; `ends` is the key that ours takes for the end of an episode."""
    model, method = pair(**settings)
    model.max_grad_norm = float("inf")
    batch = transitions().set("action", torch.randint(3, (SIZE,)))
    batch["reward"] *= 3.0  # errors on both sides of where the loss becomes linear
    for row in batch:
        done, info = row["terminated"] | row["truncated"], {"TimeLimit.truncated": bool(row["truncated"])}
        model.replay_buffer.add(row["obs"], row["next_obs"], row["action"].numpy(), row["reward"], done, [info])
    its = record(model.policy.optimizer)
    model.train(gradient_steps=1, batch_size=SIZE)
    seen = record(method.optimizer)
    method.update(weigh(batch).set("terminated", batch[ends]))
    return [seen[p] for p in method.policy.net.parameters()], stacked([model.q_net], its.get)


@pytest.mark.parametrize("changed", [{"ends": "truncated"}, {"double": True}, {"delta": 2.0}])
def test_the_loss(changed):
    assert relative_error(*gradients_of()) < TOLERANCE
    assert relative_error(*gradients_of(**changed)) > 1e-3


def test_both_explore_as_much_at_every_moment_of_a_run():
    model, method = pair(exploration=0.2, epsilon_start=0.9, epsilon=0.05)
    model.exploration_initial_eps, model.exploration_fraction, model.exploration_final_eps = 0.9, 0.2, 0.05
    model._setup_model()
    for method.progress in (0.0, 0.05, 0.19, 0.5, 1.0):
        assert method.epsilon == pytest.approx(model.exploration_schedule(1.0 - method.progress))
