"""Compare two methods over paired seeds.    python examples/compare_two.py [STEPS [SEEDS]]"""

import sys

import polopt

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
seeds = int(sys.argv[2]) if len(sys.argv) > 2 else 5

# Every method trains with the seeds 0 .. seeds - 1. Interrupt it and start again: finished runs are not run again.
comparison = polopt.compare(
    ["ppo", "mdpo"], "CartPole-v1", seeds=seeds, steps=steps, window=256, eval_every=5_000, out="runs/compared"
)

print(comparison.table)
print("report:", comparison.page)
