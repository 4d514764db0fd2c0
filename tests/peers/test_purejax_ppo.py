"""What the benchmark of many environments has in common with JAX: the world, the window, and a step of Adam on it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import torch

from benchmarks.environments import python_of
from benchmarks.speed import MANY
from polopt.tasks import make_task
from polopt.training import api

SIDE = Path(__file__).with_name("purejax_side.py")
JOB = ("window", "horizon", "minibatch_size", "epochs", "lr", "discount", "gae_lambda", "clip", "value_coefficient")


def weights(name, module):
    found = [parameter.detach().numpy() for key, parameter in module.named_parameters() if key != "log_std"]
    return {f"{name}/{'bw'[each.ndim - 1]}{index // 2}": each.copy() for index, each in enumerate(found)}


def test_one_gradient_step_is_the_same(tmp_path):
    own = {name: MANY[name] for name in ("window", "epochs", "lr", "discount", "gae_lambda", "value_coefficient")}
    own |= {
        "envs": 64,
        "minibatches": 1,
        "advantage_over": "batch",
        "value_clip": None,
        "entropy_coefficient": 0.0,
        "max_grad_norm": 0.5,
    }
    method = api.plan("ppo", MANY["task"], seed=1, **own).build()
    before = weights("policy", method.policy) | weights("critic", method.critic)
    batch = method.evaluate_window(method.collect())
    given = {name: batch[name].transpose(0, 1).numpy() for name in ("obs", "action", "log_prob", "value", "reward")}
    with torch.no_grad():
        given["last"] = method.critic(batch["final_obs"][:, -1]).numpy()
        given["log_std"] = method.policy.log_std.numpy().copy()
    job = {f"job/{name}": np.asarray(value) for name, value in MANY.items() if name in (*JOB, "max_grad_norm")}
    np.savez(tmp_path / "given.npz", **given, **before, **job)
    subprocess.run([python_of("purejax"), SIDE, tmp_path / "given.npz", tmp_path / "answer.npz"], check=True)
    answer = dict(np.load(tmp_path / "answer.npz"))

    for name, key in (("advantage", "advantage"), ("target", "returns")):
        mine = batch[key].transpose(0, 1).numpy().reshape(-1)
        np.testing.assert_allclose(answer[name], mine, rtol=1e-3, atol=1e-4)
    method.optimizer.minimize(method.total_loss, next(iter(method.minibatches(batch))))
    after = weights("policy", method.policy) | weights("critic", method.critic)
    after["log_std"] = method.policy.log_std.detach().numpy()
    for name, value in after.items():
        moved = np.abs(value - before.get(name, given["log_std"]))
        assert np.median(moved) > 1e-4, name
        np.testing.assert_allclose(answer[name], value, atol=5e-5, err_msg=name)  # of steps of 1e-3

    world = make_task(MANY["task"], 64, noise=0.0, reward_noise=0.0)
    world.reset()
    world.state = world.state | {"place": batch["obs"][:, 0, :4], "goal": batch["obs"][:, 0, 4:]}
    seen, paid, _, _ = world.step({"action": batch["action"][:, 0]})
    np.testing.assert_allclose(answer["seen"], seen, atol=1e-6)
    np.testing.assert_allclose(answer["paid"], paid, rtol=1e-5)
