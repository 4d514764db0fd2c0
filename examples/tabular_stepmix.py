"""A learner without a network: StepMix explores a tabular MDP, every episode at least as good as a threshold.

python examples/tabular_stepmix.py [EPISODES]
"""

import sys

import polopt

episodes = int(sys.argv[1]) if len(sys.argv) > 1 else 500
mdp = {"states": 3, "actions": 2, "horizon": 3}

for method in ("stepmix", "epsmix"):
    run = polopt.train(
        method, "random-mdp", task_options=mdp, steps=episodes, episodes=episodes, out=f"runs/{method}", seed=0
    )
    last = run.rows[-1]
    print(
        f"{method}: value {run.final['eval/return']:.3f} after {last['episodes']} episodes, "
        f"regret so far {last['total_regret']:.1f}, violations in the last rows {last['violation']:.2f}"
    )
