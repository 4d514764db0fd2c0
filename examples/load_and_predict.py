"""Use a trained policy in your own program.    python examples/load_and_predict.py [RUN]"""

import sys

import gymnasium

import polopt

if len(sys.argv) > 1 and not sys.argv[1].isdigit():
    folder = sys.argv[1]
else:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    folder = polopt.train("ppo", "CartPole-v1", steps=steps).folder

actor = polopt.load(folder, checkpoint="best")  # or "latest", which is the default

env = gymnasium.make("CartPole-v1")
obs, _ = env.reset(seed=0)
actor.reset()  # a recurrent policy forgets the episode before
total, done = 0.0, False
while not done:
    action = actor.predict(obs)  # greedy; greedy=False samples
    obs, reward, terminated, truncated, _ = env.step(action)
    total += float(reward)
    done = terminated or truncated
print("return of one episode:", total)
