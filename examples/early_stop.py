"""Stop early: by a condition on evaluations, or by your own code.    python examples/early_stop.py [STEPS]"""

import sys

import polopt

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000

# 1. `until` is checked after each evaluation; on the command line: --until 'return>=400'
run = polopt.train("ppo", "CartPole-v1", steps=steps, until="return>=400", eval_every=2_000, out="runs/until")
print("stopped after", run.rows[-1]["env_steps"], "steps with return", run.final["eval/return"])

# 2. `iterate` yields each logged row with the live method: there are no callbacks, only your loop.
for row in polopt.iterate("ppo", "CartPole-v1", steps=steps, seed=1, out="runs/iterated"):
    method = row["method"]
    if row.get("entropy", 1.0) < 0.5:
        print("entropy", row["entropy"], "after", row["env_steps"], "steps: decided enough")
        break
    if row["env_steps"] > steps // 2:
        method.optimizer.lr *= 0.99  # anything may be looked at and changed here
