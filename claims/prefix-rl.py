"""PrefixRL (arXiv 2601.18795): what is learned behind the beginning of a right answer carries back to the question.

Orbits: "2g:" is to be answered by the 16 states behind g under map 2 of four hidden permutations of 16 states, and only
a whole answer is rewarded. A small model (0.1 million weights, characters) is taught with solutions of which 55 % of
the steps are random, half of them whole and half from where a beginning of random length leaves them, so that it takes
every second step right, and a whole answer about once in 50,000 times. Then there are 16 problems, each with its right
answer, given for nothing to every arm that uses it: rejection sampling would need 50,000 samples each. Every seed is
another start and pool.

`rl` trains on the problems as they stand, `prefixed` on three beginnings of each answer only, 40 to 80 % of it, `mix`
on both, 3 to 1, in batches of 16 prompts x 8 completions, one optimizer step each; `sft-rl` imitates the 16 answers in
steps of 64 rows first, and goes on as `rl`. The budget is what goes through the model: 6,400 times a question with a
whole answer (20 tokens), shown or written, which are read once to sample and once to learn. A row that is imitated is
not sampled and costs three quarters of that; a quarter of the budget of `sft-rl` is imitation.

All numbers are of problems without a beginning, and computed, not sampled: `accuracy` is the mean probability of the
right answer over the 16 problems, mean of the last fifth of the measurements, `area` that of all of them, `others` that
over the 48 problems of which no answer was known, at the end, `imitated` the accuracy after imitation. `entropy` is
that of the policy in the first batch, in nats per token, `informative` the mean share of completions with an advantage.
Every arm trains at the same three rates, and what is compared are means over them.

Pilots. Seed 1000, 7,680 completions at 7.5e-4, 1.5e-3 and 3e-3: prefixed 0.36, 0.64 and 0.26, mix 0.83, 0.86 and 0.73,
sft-rl 0.93, 0.97 and 0.88. Seed 1001, 6,400 at 6e-4, 1.2e-3 and 2.4e-3: prefixed 0.67, 0.65 and 0.21, mix 0.74, 0.85
and 0.58, sft-rl 0.88, 0.93 and 0.79; hence the rates of the claim. `others`, means over the rates: prefixed 0.27 and
0.32, mix 0.31 and 0.45, sft-rl 0.27 and 0.44. rl stays at 0.000 (a trial of GRPO from the same start: no informative
group). Imitation lowers the entropy from 1.9 to 0.06 and 0.10, as in the paper, but is right at once, 0.91 and 0.84:
one answer is all that there is to a problem here, and 16 of them are learned by heart. So no method could be ahead of
sft-rl on these problems, where the paper finds PrefixRL ahead, and only `others` compares the two.

What was found: what is learned behind beginnings carries back to the question, which is the distinctive part of the
claim: 0.55 on the 16 problems though they are never asked as they stand, 0.72 with both, where training on the problems
themselves stays at the start's 0.00001; and 0.32 and 0.37 on the 48 problems of which no beginning was shown. That this
carries further than imitation of the same answers does not show: imitation and then reinforcement have 0.41 there, and
0.88 on the 16, of which there is one answer each to be learned by heart. The paper's problems have long answers of
which imitation keeps the words and loses the entropy; a skill of one step has no such room.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, mean_of
from polopt.claims.starts import ORBIT, TOKENS, orbit_start, solution_probability

POOL, ALL, PROMPTS, SAMPLES, CHECK = 16, 64, 16, 8, 2
RATES = (4e-4, 8e-4, 1.6e-3)
COMMON: dict[str, Any] = {
    "batch_prompts": PROMPTS,
    "samples_per_prompt": SAMPLES,
    "policy.max_tokens": TOKENS,
    "policy.log_probs": "engine",  # sampler and trainer are one program here, so a second pass would find the same
}
IMITATED, COST = 64, 0.75  # rows of a step of imitation; what one costs beside a completion that is sampled and learned


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def entropy_of(policy: Any, batch: Any) -> float:
    """Of the policy, in nats per token of a batch."""
    import torch

    with torch.no_grad():
        return float((policy.entropy(batch) * batch["mask"]).sum() / batch["mask"].sum())


@dataclass(frozen=True)
class Trained:
    """An arm that trains at one rate, `imitate` of its budget on the traces, and measures its pool on the way."""

    settings: tuple[tuple[str, Any], ...]
    imitate: float = 0.0

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.tasks import make_task
        from polopt.training import api

        torch.set_num_threads(1)
        shared = {"model": str(orbit_start(seed)), "seed": seed, "steps": 1, "loggers": ()}
        settings, options = dict(self.settings), ORBIT | {"pool": POOL}
        method: Any = api.plan("prefix-rl", "orbit", task_options=options, **COMMON, **shared, **settings).build()
        whole = make_task("orbit", seed=method.task.seed, pool=ALL, **ORBIT)
        assert whole.problems(range(POOL)) == method.task.problems(range(POOL))
        found = {"start": solution_probability(method.policy, whole, range(POOL))}
        spent = self.imitate * budget["completions"]
        if spent:
            sft: Any = api.plan(
                "sft", "orbit", task_options=options, batch_size=IMITATED, lr=settings["lr"], **shared
            ).build()
            for _ in range(round(spent / IMITATED / COST)):
                sft.update(sft.collect())
            method.policy.load_state_dict(sft.policy.state_dict())
            found["imitated"] = solution_probability(method.policy, whole, range(POOL))
        accuracy, informative = [], []
        while method.ledger.completions + spent < budget["completions"]:
            batch = method.collect()
            if not method.ledger.updates:
                found["entropy"] = entropy_of(method.policy, batch)
            numbers = method.update(batch)
            method.ledger.updates += 1
            informative.append(float(numbers["informative"]))
            if method.ledger.updates % CHECK == 0:
                accuracy.append(solution_probability(method.policy, whole, range(POOL)))
        return found | {
            "accuracy": mean(accuracy[-(len(accuracy) // 5 or 1) :]),
            "area": mean(accuracy),
            "others": solution_probability(method.policy, whole, range(POOL, ALL)),
            "informative": mean(informative),
        }


def arm(imitate: float = 0.0, **settings: Any) -> Any:
    return mean_of(lambda lr: Trained(tuple({**settings, "lr": lr}.items()), imitate), RATES)


CLAIM = Claim(
    method="prefix-rl",
    statement="on problems that a model never solves reinforcement learns nothing; from beginnings of right answers "
    "alone it learns to solve them without one, and mixed with the problems as they stand it gets further beyond the "
    "problems whose answers were known than imitation of these followed by reinforcement",
    budget={"completions": 50 * PROMPTS * SAMPLES},
    seeds=5,
    minutes=5,
    arms={
        "rl": arm(share=0.0),
        "sft-rl": arm(imitate=0.25, share=0.0),
        "prefixed": arm(share=1.0),
        "mix": arm(),
    },
    expect=(
        Below("start", "*", 0.001, control=True),
        Below("accuracy", "rl", 0.05, control=True),
        Above("imitated", "sft-rl", 0.5, control=True),
        Above("accuracy", "prefixed", 0.25),
        Greater("others", "prefixed", "rl", by=0.1),
        Greater("accuracy", "mix", "rl", by=0.35),
        Greater("others", "mix", "sft-rl"),
    ),
)
