"""Train PPO on CartPole, look at the result, and write a report.    python examples/train_ppo.py [STEPS]"""

import sys

import polopt

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000

run = polopt.train("ppo", "CartPole-v1", steps=steps, seed=0, progress=True)

print("return at the end:", run.final["eval/return"])
print("in fresh episodes:", polopt.evaluate(run.folder, episodes=20)["return"])
print("report:", polopt.report([run.folder]))
