"""One update of d3rlpy's IQL, run by the Python of d3rlpy's own environment: `d3rlpy_side.py BATCH.npz ANSWER.npz`.

BATCH holds the keys of polopt's batch and the settings of `IQLConfig` (0-d, named "config/NAME"). The update runs as it
is, up to each `optimizer.step()`. ANSWER holds, in the layout and order of polopt's networks, the weights before it and
the gradients: "weight/NAME/0" ..., "gradient/NAME/0" ... for policy, value, critic (and target_critic).
"""

import sys

import numpy as np
import torch
from d3rlpy.algos import IQLConfig
from d3rlpy.models.encoders import VectorEncoderFactory
from d3rlpy.torch_utility import TorchMiniBatch
from gradients import linear, perturb, plain, record, stacked


def make(settings, observation_size, action_size):
    """d3rlpy's IQL in float64, with targets and a policy that have moved."""
    encoders = {f"{name}_encoder_factory": VectorEncoderFactory([16, 16]) for name in ("actor", "critic", "value")}
    algorithm = IQLConfig(**encoders, **settings).create(device="cpu:0")
    algorithm.create_impl((observation_size,), action_size)
    modules = algorithm.impl.modules
    for module, scale in ((modules.policy, 0.3), (modules.q_funcs, 0.3), (modules.targ_q_funcs, 0.8)):
        perturb(module.double(), scale)
    perturb(modules.value_func.double(), 0.2)
    return algorithm.impl


def mini_batch(batch):
    def column(name):
        return torch.from_numpy(batch[name]).double()[:, None]

    rows = {name: torch.from_numpy(batch[name]) for name in ("obs", "next_obs", "action")}
    return TorchMiniBatch(
        observations=rows["obs"],
        actions=rows["action"],
        rewards=column("reward"),
        next_observations=rows["next_obs"],
        next_actions=rows["action"],  # IQL reads neither these nor the returns
        returns_to_go=column("reward"),
        terminals=column("terminated"),
        intervals=torch.ones_like(column("reward")),
        device="cpu:0",
    )


def read(modules, value):
    """{network: its tensors}; the first of the policy is what its standard deviation is computed from."""
    return {
        "policy": [value(modules.policy._logstd).detach()[0], *plain(linear(modules.policy), value)],
        "value": plain(linear(modules.value_func), value),
        "critic": stacked(modules.q_funcs, value),
    }


def main(source, goal):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    given = dict(np.load(source))
    settings = {name.split("/")[1]: given[name].item() for name in given if name.startswith("config/")}
    impl = make(settings, given["obs"].shape[1], given["action"].shape[1])
    modules = impl.modules
    weights = read(modules, lambda p: p) | {"target_critic": stacked(modules.targ_q_funcs, lambda p: p)}
    answer = {f"weight/{name}/{i}": t.numpy().copy() for name, ts in weights.items() for i, t in enumerate(ts)}
    critic_and_value, policy = record(impl.q_function_optim), record(impl.policy_optim)
    impl.update(mini_batch(given), 0)
    gradients = read(modules, (critic_and_value | policy).get)
    answer |= {f"gradient/{name}/{i}": t.numpy() for name, ts in gradients.items() for i, t in enumerate(ts)}
    np.savez(goal, **answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
