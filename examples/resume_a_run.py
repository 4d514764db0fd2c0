"""Stop a run, go on, and end as a run that never stopped.    python examples/resume_a_run.py [STEPS]"""

import sys

import torch

import polopt

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
settings = {"steps": steps, "seed": 3, "checkpoint_every": steps // 4, "eval_every": steps // 2}

whole = polopt.train("ppo", "CartPole-v1", out="runs/whole", **settings)

rows = polopt.iterate("ppo", "CartPole-v1", out="runs/stopped", **settings)
for row in rows:
    if row["env_steps"] > steps // 2:
        break  # as Ctrl-C, kill -9 or a power cut would: what is saved is a checkpoint or nothing
rows.close()
stopped = polopt.resume("runs/stopped")

one, other = polopt.load(whole.folder).state_dict(), polopt.load(stopped.folder).state_dict()
assert all(torch.equal(one[name], other[name]) for name in one)
print("bitwise equal:", len(one), "tensors")

# A finished run can be extended; schedules then run over the new total.
longer = polopt.resume("runs/stopped", extend=2 * steps)
print("steps in the end:", longer.rows[-1]["env_steps"])
