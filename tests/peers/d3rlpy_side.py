"""One update of d3rlpy's IQL or TD3PlusBC, run by the Python of d3rlpy's own environment: `d3rlpy_side.py BATCH.npz
ANSWER.npz`.

BATCH holds the keys of polopt's batch, the name of the algorithm ("algorithm") and the settings of its config (0-d,
named "config/NAME"). The update runs as it is, up to each `optimizer.step()`, with the seed 5. ANSWER holds, in the
layout and order of polopt's networks, the weights before it and the gradients: "weight/NAME/0" ..., "gradient/NAME/0"
... for policy and critic, for value (of IQL), and the weights of their targets.
"""

import sys

import numpy as np
import torch
from d3rlpy.algos import IQLConfig, TD3PlusBCConfig
from d3rlpy.models.encoders import VectorEncoderFactory
from d3rlpy.torch_utility import TorchMiniBatch
from gradients import linear, perturb, plain, record, stacked

CONFIGS = {"iql": IQLConfig, "td3-bc": TD3PlusBCConfig}
ENCODED = {"iql": ("actor", "critic", "value"), "td3-bc": ("actor", "critic")}
MOVED = {"policy": 0.3, "q_funcs": 0.3, "targ_q_funcs": 0.8, "targ_policy": 0.4, "value_func": 0.2}


def make(name, settings, observation_size, action_size):
    """d3rlpy's algorithm in float64, with targets and a policy that have moved."""
    encoders = {f"{part}_encoder_factory": VectorEncoderFactory([16, 16]) for part in ENCODED[name]}
    algorithm = CONFIGS[name](**encoders, **settings).create(device="cpu:0")
    algorithm.create_impl((observation_size,), action_size)
    modules = algorithm.impl.modules
    for part, scale in MOVED.items():
        if hasattr(modules, part):
            perturb(getattr(modules, part).double(), scale)
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
        next_actions=rows["action"],  # neither these nor the returns are read
        returns_to_go=column("reward"),
        terminals=column("terminated"),
        intervals=torch.ones_like(column("reward")),
        device="cpu:0",
    )


def read(modules, value):
    """{network: its tensors}; the first of a Gaussian policy is what its standard deviation is computed from."""
    std = [value(modules.policy._logstd).detach()[0]] if hasattr(modules.policy, "_logstd") else []
    found = {"policy": [*std, *plain(linear(modules.policy), value)], "critic": stacked(modules.q_funcs, value)}
    if hasattr(modules, "value_func"):
        found["value"] = plain(linear(modules.value_func), value)
    return found


def targets(modules):
    found = {"target_critic": stacked(modules.targ_q_funcs, lambda p: p)}
    if hasattr(modules, "targ_policy"):
        found["target_policy"] = plain(linear(modules.targ_policy), lambda p: p)
    return found


def main(source, goal):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    given = dict(np.load(source))
    settings = {name.split("/")[1]: given[name].item() for name in given if name.startswith("config/")}
    impl = make(str(given["algorithm"]), settings, given["obs"].shape[1], given["action"].shape[1])
    modules = impl.modules
    weights = read(modules, lambda p: p) | targets(modules)
    answer = {f"weight/{name}/{i}": t.numpy().copy() for name, ts in weights.items() for i, t in enumerate(ts)}
    critic_and_value, policy = record(impl.q_function_optim), record(impl.policy_optim)
    torch.manual_seed(5)
    impl.update(mini_batch(given), 0)
    gradients = read(modules, (critic_and_value | policy).get)
    answer |= {f"gradient/{name}/{i}": t.numpy() for name, ts in gradients.items() for i, t in enumerate(ts)}
    np.savez(goal, **answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
