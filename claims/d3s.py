"""D3S (arXiv 2509.22115): learning from a sixth of what is sampled, chosen by advantage and entropy or by luck.

Sums of one and two digits, answered at once, by a model of 0.1 million weights that supervised fine-tuning has brought
to four of ten greedy answers. 256 prompts are all there is; a batch has 8 of them with 16 completions each, and one
optimizer step. Three arms sample the same number of completions: `grpo` learns from all of them, with a mean over
tokens; `d3s` from a quarter of the completions and a tenth of their tokens at first, three quarters and a half at the
end; `random` from as many completions and tokens, drawn by luck. All train at the same three rates, the best in the
middle, from the same start of their seed, and what is compared are means over them, which choose nothing.

Only the one text of the solution is right, so what a policy knows is computed, not sampled: `accuracy` is the mean
probability of the solutions of the pool over the last five of twenty measurements, `area` that over all, `gain` the
accuracy above that of the start. `excess` is the share of the completions learned from that have an advantage other
than 0, minus that of all that were sampled, mean over the updates; `astray` counts the updates that learned from a
completion without an advantage while one with an advantage was left out; `share` is that of the sampled tokens that is
learned from, and `tokens` the mean number of them in an update. `variance` is that of the advantages learned from.

Pilots (seeds 1000 and 1001, 75 updates at 1e-4, 3e-4, 1e-3). `area` of d3s 0.390, 0.407, 0.386 and 0.363, 0.387,
0.336; of random 0.369, 0.372, 0.287 and 0.344, 0.351, 0.289; of grpo 0.401, 0.423, 0.413 and -, 0.400, 0.380. At 3e-3
nothing learns any more (0.22, 0.06). So D3S is ahead of luck at every rate, the more the higher it is, and behind
learning from all of a batch, which takes 370 tokens an update where D3S takes 59: that it ends above GRPO, as the paper
says of its large models, is expected all the same. `excess` 0.31 to 0.35 of d3s and at most 0.02 away from 0 of random,
`astray` 0 of d3s and 73 to 75 of random, `share` 0.16; `gain` of grpo 0.09 to 0.12, `variance` 0.9 to 1.2 and 0.4 to
0.6. In a pool whose groups were all informative there would be less to choose.

What was found: what is chosen is worth it beside luck and does not beat learning from everything. With a sixth of the
tokens D3S has an area of 0.366 and as many completions and tokens drawn by luck 0.298, GRPO on all of them 0.385; at
the end 0.428, 0.348 and 0.436. It never learned from a completion without an advantage while one with an advantage was
left out, luck did so in 118 of 120 updates. That it ends above GRPO, as in the paper, does not hold in any seed. What
it saves is the backward pass of five of six tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, mean_of
from polopt.claims.starts import SMALL, solution_probability

TASK, POOL, TOKENS = "addition", 256, 5
OPTIONS: dict[str, Any] = {"levels": (1, 2), "scratchpad": False, "heldout": False}
RATES = (1e-4, 3e-4, 1e-3)
PROMPTS, SAMPLES, CHECK, LAST = 8, 16, 6, 5


def written(completion: str, solution: str) -> float:
    """The reward: 1 for the solution and nothing else."""
    return float(completion == solution)


def start(seed: int) -> Path:
    """The model with which all runs of a seed begin."""
    from polopt.training.warm_start import warm_start

    settings: dict[str, Any] = {"batch_size": 64, "lr": 2e-3, "policy.max_tokens": TOKENS}
    return warm_start(TASK, accuracy=0.4, size=SMALL, updates=3_000, seed=seed, task_options=OPTIONS, **settings)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Trained:
    """An arm that trains one method at one rate, and measures its pool exactly on the way."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.training import api

        torch.set_num_threads(1)
        common = {"batch_prompts": PROMPTS, "samples_per_prompt": SAMPLES, "aggregate": "token", "reference_kl": None}
        common |= {"policy.max_tokens": TOKENS, "policy.log_probs": "engine", "loggers": (), "seed": seed}
        options = OPTIONS | {"pool": POOL, "rewards": written}
        own = common | {"model": str(start(seed))} | dict(self.settings)
        method: Any = api.plan(self.method, TASK, task_options=options, **own).build()
        evaluate, rows = method.evaluate_groups, {}

        def watched(batch: Any) -> Any:
            rows["latest"] = evaluate(batch)
            return rows["latest"]

        method.evaluate_groups = watched
        accuracy, steps = [solution_probability(method.policy, method.task, range(POOL))], budget["updates"]
        seen: dict[str, list[float]] = {name: [] for name in ("excess", "astray", "share", "tokens", "variance")}
        for step in range(steps):
            method.progress = step / steps
            found = method.update(method.collect())
            method.ledger.updates += 1
            batch = rows["latest"]
            selected = batch.get("selected", torch.ones_like(batch["failed"]))
            learned, advantage = batch.get("learned", batch["mask"]), batch["advantage"]
            useful = advantage != 0
            seen["excess"].append(float(useful[selected].double().mean()) - float(found["informative"]))
            seen["astray"].append(float((selected & ~useful).any() and (useful & ~selected).any()))
            seen["share"].append(float(learned.sum() / batch["mask"].sum()))
            seen["tokens"].append(float(learned.sum()))
            seen["variance"].append(float(advantage[selected].var(correction=0)))
            if (step + 1) % CHECK == 0:
                accuracy.append(solution_probability(method.policy, method.task, range(POOL)))
        result = {name: mean(values) for name, values in seen.items()} | {"astray": sum(seen["astray"])}
        last = mean(accuracy[-LAST:])
        return result | {"accuracy": last, "area": mean(accuracy[1:]), "gain": last - accuracy[0]}


def arm(method: str, **settings: Any) -> Any:
    return mean_of(lambda lr: Trained(method, tuple({**settings, "lr": lr}.items())), RATES)


CLAIM = Claim(
    method="d3s",
    statement="at equal samples and updates, the completions of largest variance of advantages and their tokens of "
    "largest advantage times entropy teach more than as many drawn by luck, and more than all of them",
    budget={"updates": 120},
    seeds=5,
    minutes=7,
    arms={
        "grpo": arm("grpo"),
        "random": arm("d3s", selection="random", token_choice="random"),
        "d3s": arm("d3s"),
    },
    expect=(
        Above("gain", "grpo", 0.04, control=True),
        Below("excess", "random", 0.05, control=True),
        Above("excess", "random", -0.05, control=True),
        Below("share", "d3s", 0.2, control=True),
        Above("excess", "d3s", 0.15),
        Below("astray", "d3s", 0.5),
        Greater("area", "d3s", "random", by=0.02),
        Greater("accuracy", "d3s", "grpo"),
    ),
)
