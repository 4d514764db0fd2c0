"""Record a trained policy, clone it, and go on from the clone.    python examples/demonstrations.py [STEPS]

By hand:
    polopt train ppo --task CartPole-v1 --steps 50000 --out runs/expert
    polopt eval runs/expert --episodes 20 --record demonstrations.safetensors
    polopt train bc --task CartPole-v1 --demonstrations demonstrations.safetensors --out runs/clone
    polopt train bc-ppo --task CartPole-v1 --bc.demonstrations demonstrations.safetensors --out runs/onwards
"""

import sys

import polopt

steps = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000

expert = polopt.train("ppo", "CartPole-v1", steps=steps, out="runs/expert")
file = polopt.demonstrate(expert.folder, "runs/demonstrations.safetensors", episodes=10, checkpoint="best")

clone = polopt.train(
    "bc", "CartPole-v1", steps=max(steps // 50, 20), eval_every=500, demonstrations=str(file), out="runs/clone"
)
print("expert", expert.final["eval/return"], "clone", clone.final["eval/return"])

onwards = polopt.train(
    "bc-ppo",
    "CartPole-v1",
    steps=steps,
    eval_every=10_000,
    bc={"demonstrations": str(file)},
    bc_updates=max(steps // 50, 20),
    out="runs/onwards",
)
print("cloned, then PPO:", onwards.final["eval/return"])
