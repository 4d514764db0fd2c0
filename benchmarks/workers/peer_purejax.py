"""PPO in JAX in the shape of PureJaxRL (Lu et al. 2022, "Discovered policy optimisation"): rows, collecting, advantages
and all gradient steps are one compiled function, in which training loops without coming back to Python.

The world is `point/regulation` of polopt, the network, the loss and Adam are written out, and every number comes from
the job. What the rows of a window have in common is used, as there: all episodes end in its last column, so that the
value of the true successor is needed there only. Nothing is checked, logged or saved.
"""

import time
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from protocol import Job, Run, serve

DIMS, SPEED, NOISE, REWARD_NOISE, SCALE = 4, 0.3, 0.05, 2.0, 0.1
HALF_LOG_TWO_PI = 0.9189385332046727
Tree = Any


def linear(key: Any, inputs: int, outputs: int, gain: float) -> Tree:
    return {"w": jax.nn.initializers.orthogonal(gain)(key, (inputs, outputs)), "b": jnp.zeros(outputs)}


def mlp(key: Any, inputs: int, sizes: list[int], outputs: int, head_gain: float) -> Tree:
    keys, widths = jax.random.split(key, len(sizes) + 1), [inputs, *sizes]
    hidden = [linear(k, a, b, 2**0.5) for k, a, b in zip(keys, widths, widths[1:])]
    return [*hidden, linear(keys[-1], widths[-1], outputs, head_gain)]


def applied(layers: Tree, x: Any) -> Any:
    for layer in layers[:-1]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def log_prob(action: Any, mean: Any, log_std: Any) -> Any:
    return (-0.5 * ((action - mean) * jnp.exp(-log_std)) ** 2 - log_std - HALF_LOG_TWO_PI).sum(-1)


def starts(key: Any, rows: int) -> Any:
    """Place and goal [rows, 2 DIMS], which are also what is seen."""
    return jax.random.normal(key, (rows, 2 * DIMS))


def moved(key: Any, seen: Any, action: Any) -> tuple[Any, Any]:
    """One step: what is seen afterwards, and the reward [rows]."""
    luck = jax.random.normal(key, (len(seen), DIMS + 1))
    place, goal = seen[:, :DIMS], seen[:, DIMS:]
    place = place + SPEED * jnp.clip(action, -1, 1) + NOISE * luck[:, :DIMS]
    reward = SCALE * (REWARD_NOISE * luck[:, DIMS] - ((place - goal) ** 2).sum(-1))
    return jnp.concatenate([place, goal], 1), reward


def ppo(job: Job) -> SimpleNamespace:
    """begin(seed) -> state, update(state) -> (state, mean reward of the window), and parts of it; none is compiled."""
    rows, window, size = job["rows"], job["window"], job["minibatch_size"]
    if window != job["horizon"]:
        raise ValueError("a window is an episode here")
    decisions = rows * window
    parts = max(1, round(decisions / size))

    def begin(seed: Any) -> Tree:
        keys = jax.random.split(jax.random.PRNGKey(seed), 4)
        params = {
            "policy": mlp(keys[0], 2 * DIMS, job["sizes"], DIMS, 0.01),
            "log_std": jnp.zeros(DIMS),
            "critic": mlp(keys[1], 2 * DIMS, job["sizes"], 1, 1.0),
        }
        zeros = jax.tree.map(jnp.zeros_like, params)
        seen, clock = starts(keys[2], rows), jnp.zeros(rows, jnp.int32)
        return {
            "params": params,
            "adam": (zeros, zeros, jnp.zeros(())),
            "seen": seen,
            "clock": clock,
            "key": keys[3],
        }

    def collect(state: Tree) -> tuple[Tree, Tree]:
        params = state["params"]

        def step(carry: Tree, _: None) -> tuple[Tree, Tree]:
            seen, clock, key = carry
            key, act, move, anew = jax.random.split(key, 4)
            mean = applied(params["policy"], seen)
            action = mean + jnp.exp(params["log_std"]) * jax.random.normal(act, mean.shape)
            after, reward = moved(move, seen, action)
            done = clock + 1 >= job["horizon"]
            row = {
                "obs": seen,
                "action": action,
                "log_prob": log_prob(action, mean, params["log_std"]),
                "value": applied(params["critic"], seen)[:, 0],
                "reward": reward,
            }
            following = jnp.where(done[:, None], starts(anew, rows), after)
            return (following, jnp.where(done, 0, clock + 1), key), (row, after)

        carry = state["seen"], state["clock"], state["key"]
        (seen, clock, key), (batch, after) = lax.scan(step, carry, None, window)
        state = {**state, "seen": seen, "clock": clock, "key": key}
        return state, {**batch, "last": applied(params["critic"], after[-1])[:, 0]}

    def evaluated(batch: Tree) -> Tree:
        """Advantages, standardized over the window, and returns; all flat."""
        last = batch["last"]

        def back(carry: Tree, row: Tree) -> tuple[Tree, Any]:
            advantage, following = carry
            delta = row["reward"] + job["discount"] * following - row["value"]
            advantage = delta + job["discount"] * job["gae_lambda"] * advantage
            return (advantage, row["value"]), advantage

        rows_back = {name: batch[name] for name in ("reward", "value")}
        _, advantage = lax.scan(back, (jnp.zeros_like(last), last), rows_back, reverse=True)
        columns = {name: batch[name] for name in ("obs", "action", "log_prob")}
        columns["target"] = advantage + batch["value"]
        columns["advantage"] = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        return jax.tree.map(lambda x: x.reshape(decisions, *x.shape[2:]), columns)

    def loss(params: Tree, part: Tree) -> Any:
        mean = applied(params["policy"], part["obs"])
        ratio = jnp.exp(log_prob(part["action"], mean, params["log_std"]) - part["log_prob"])
        clipped = jnp.clip(ratio, 1 - job["clip"], 1 + job["clip"])
        policy = -jnp.minimum(ratio * part["advantage"], clipped * part["advantage"]).mean()
        value = 0.5 * ((applied(params["critic"], part["obs"])[:, 0] - part["target"]) ** 2).mean()
        return policy + job["value_coefficient"] * value

    def improved(carry: Tree, part: Tree) -> tuple[Tree, None]:
        params, (first, second, count) = carry
        grads = jax.grad(loss)(params, part)
        norm = jnp.sqrt(sum((g**2).sum() for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, job["max_grad_norm"] / (norm + 1e-6)), grads)
        count = count + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)

        def stepped(p: Any, m: Any, v: Any) -> Any:
            return p - job["lr"] * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-5)

        return (jax.tree.map(stepped, params, first, second), (first, second, count)), None

    def update(state: Tree) -> tuple[Tree, Any]:
        state, batch = collect(state)
        reward, columns = batch["reward"].mean(), evaluated(batch)

        def epoch(carry: Tree, key: Any) -> tuple[Tree, None]:
            order = jax.random.permutation(key, decisions)[: parts * (decisions // parts)]
            shuffled = jax.tree.map(lambda x: x[order].reshape(parts, -1, *x.shape[1:]), columns)
            return lax.scan(improved, carry, shuffled)

        key, *keys = jax.random.split(state["key"], job["epochs"] + 1)
        (params, adam), _ = lax.scan(epoch, (state["params"], state["adam"]), jnp.stack(keys))
        return {**state, "params": params, "adam": adam, "key": key}, reward

    return SimpleNamespace(begin=begin, update=update, evaluated=evaluated, improved=improved)


def many(job: Job) -> Run:
    """A unit is a step of one environment; a slice is one call of a compiled loop."""
    update, state = ppo(job).update, jax.jit(ppo(job).begin)(job["seed"])
    looped = jax.jit(lambda state, count: lax.fori_loop(0, count, lambda _, s: update(s)[0], state), donate_argnums=0)

    def run(units: int) -> None:
        nonlocal state
        state = jax.block_until_ready(looped(state, -(-units // (job["rows"] * job["window"]))))

    run(1)
    return timed(run)


def many_return(job: Job) -> Run:
    """A unit is a run from its beginning to a window whose mean reward is at least `reward`."""
    begin, update = jax.jit(ppo(job).begin), jax.jit(ppo(job).update)
    seed = job["seed"]
    jax.block_until_ready(update(begin(seed)))

    def run(units: int) -> None:
        nonlocal seed
        for _ in range(units):
            seed += 1
            state, reward = update(begin(seed))
            while float(reward) < job["reward"]:
                state, reward = update(state)

    return timed(run)


def timed(run: Run) -> Run:
    """The same, which says how many seconds of the processor it took."""

    def clocked(units: int) -> dict[str, float]:
        before = time.process_time()
        run(units)
        return {"processor": time.process_time() - before}

    return clocked


if __name__ == "__main__":
    serve({"many": many, "many-return": many_return}, ("jax", "jaxlib", "numpy"))
