"""A policy that all agents of a team share, on an environment of PettingZoo.    python examples/team.py [STEPS]

Needs `pip install "polopt[pz]"`. On the command line: `polopt train ppo --task pz/mpe/simple_spread_v3 --task.N 2`.
"""

import sys

import numpy as np
from mpe2 import simple_spread_v3

import polopt

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
options = {"N": 2, "max_cycles": 25, "agent_id": True}  # agent_id: each agent also sees which one it is

# Every agent of every copy is a row for PPO. Steps, episodes and returns are the team's; rewards are each agent's own.
settings = {"envs": 8, "window": 25, "lr": 1e-3, "discount": 0.95, "normalize_obs": True, "normalize_reward": True}
run = polopt.train("ppo", "pz/mpe/simple_spread_v3", steps=steps, task_options=options, **settings)
print(f"return of the team: {run.evaluations[0]['eval/return']:.1f} before, {run.final['eval/return']:.1f} after")

# The actor is one for one agent: PettingZoo's own loop asks it once for each.
actor, total = polopt.load(run.folder), 0.0
env = simple_spread_v3.parallel_env(N=2, max_cycles=25)
observations, _ = env.reset(seed=0)
while env.agents:
    marks = dict(zip(env.possible_agents, np.eye(2, dtype=np.float32)))
    actions = {name: actor.predict(np.append(observations[name], marks[name])) for name in env.agents}
    observations, rewards, _, _, _ = env.step(actions)
    total += sum(rewards.values())
print(f"return of one more episode: {total:.1f}")
