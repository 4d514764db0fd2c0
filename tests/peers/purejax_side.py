"""Runs in the environment of JAX: python purejax_side.py GIVEN.npz ANSWER.npz. One gradient step on the given window,
and one step of the world without noise."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks" / "workers"))
import peer_purejax

given = dict(np.load(sys.argv[1]))
job = {name[4:]: value.item() for name, value in given.items() if name.startswith("job/")}
learner = peer_purejax.ppo(job | {"rows": len(given["last"]), "sizes": []})


def layers(name: str) -> list[dict[str, jax.Array]]:
    count = sum(key.startswith(f"{name}/w") for key in given)
    return [{"w": jnp.asarray(given[f"{name}/w{i}"].T), "b": jnp.asarray(given[f"{name}/b{i}"])} for i in range(count)]


params = {"policy": layers("policy"), "log_std": jnp.asarray(given["log_std"]), "critic": layers("critic")}
zeros = jax.tree.map(jnp.zeros_like, params)
names = ("obs", "action", "log_prob", "value", "reward")
columns = learner.evaluated({name: jnp.asarray(given[name]) for name in names} | {"last": jnp.asarray(given["last"])})
(after, _), _ = learner.improved((params, (zeros, zeros, jnp.zeros(()))), columns)
answer = {"advantage": columns["advantage"], "target": columns["target"], "log_std": after["log_std"]}
for name in ("policy", "critic"):
    for index, layer in enumerate(after[name]):
        answer |= {f"{name}/w{index}": layer["w"].T, f"{name}/b{index}": layer["b"]}
peer_purejax.NOISE = peer_purejax.REWARD_NOISE = 0.0
answer["seen"], answer["paid"] = peer_purejax.moved(jax.random.PRNGKey(0), given["obs"][0], given["action"][0])
np.savez(sys.argv[2], **{name: np.asarray(value) for name, value in answer.items()})
