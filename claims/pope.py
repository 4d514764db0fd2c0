"""POPE (arXiv 2601.18779): on problems that no sample solves, help in the prompt makes them solved without it.

"2g:" is answered by the 16 letters to which a hidden map leads from g, again and again. A small model (0.1 million
weights, characters), taught on noisy answers with and without their beginnings in the prompt, takes about every second
step right after any beginning, so that a whole answer succeeds once in 100,000 times. 16 such problems are all there
is. Every arm writes the same number of tokens, in groups of 8, from the same start of its seed: `grpo` is asked the
problems as they stand; `pope` also with the shortest of seven beginnings (2 to 14 letters) with which one of 8 samples
is right, half and half, and its search is charged; `longest` with 14 letters of every answer instead; `guided` only
with the beginnings of `pope`, never as they stand.

One text is right for each problem, so what a policy solves is computed, not sampled, and always without help:
`solved` is the mean probability of the solutions of the pool at the end, `area` its mean over all measurements,
`pass@16` the mean probability that one of 16 samples is right, `others` the mean probability of the solutions of the 48
problems that are not in the pool, `before` that of the pool at the start. `informative` is the mean share of
completions with an advantage other than 0; where it is 0 nothing moves, whatever the rate. `shown` is the mean number
of letters of help. The paper finds that bonuses and clipping do not replace help, and that easy problems do not either;
here the former would have nothing to multiply and the latter share their one skill with the hard ones, so neither is
asked.

Pilots (seeds 1000 and 1001, 75,000 tokens). `solved` at the rates 5e-4, 1e-3, 2e-3: pope 0.42, 0.75, 0.74 (the first
of one seed; at 4e-3 nothing is left), longest 0.41, 0.75, 0.71, guided 0.33, 0.18, 0.03 (the last two of one seed),
which falls again while its help is used better and better; grpo 0.00001, with no advantage other than 0 in 150,000
tokens. So the first three have 1e-3, which no rate would help grpo over, and guided, which is compared with nobody,
5e-4. At 150,000 tokens pope 0.92 and longest 0.86. `others` of pope 0.35 and 0.46, `shown` 13.25 and 12.5, `area` of
guided 0.21 and 0.27. Help is long because 8 samples find three or four steps of which every second goes wrong.

What was found: all expectations hold. Without help nothing moves: GRPO has not one advantage other than 0 in 80,000
tokens, and still solves one problem in 100,000 tries. With it a sample without help is right with probability 0.75
(0.70 to 0.77), and one of 16 nearly always. The skill is that of the steps: the 48 problems that nobody trained on are
solved with 0.36, and guided prompts alone lead to 0.42 on problems that were never asked as they stand, in 2.5 times as
many updates, for their answers are short. That help should be as short as possible does not show: with 14 letters for
all in place of the 12.8 of the search it is 0.75 as well, and 0.32 on the others. The two are too near to each other to
be a test of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater
from polopt.claims.starts import ORBIT, TOKENS, orbit_start, solution_probability

POOL, PROMPTS, SAMPLES, CHECK, LR = 16, 16, 8, 10, 1e-3
HELP: dict[str, Any] = {"max_fraction": 0.9, "words": "{prompt}{given}"}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Trained:
    """An arm that trains one method with settings of its own for the tokens of the budget."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.tasks import make_task
        from polopt.training import api

        torch.set_num_threads(1)
        common = {"batch_prompts": PROMPTS, "samples_per_prompt": SAMPLES, "lr": LR, "reference_kl": None}
        common |= {"policy.max_tokens": TOKENS, "policy.log_probs": "engine", "loggers": (), "seed": seed}
        own = common | {"model": str(orbit_start(seed))} | dict(self.settings)
        method: Any = api.plan(self.method, "orbit", task_options=ORBIT | {"pool": POOL}, **own).build()
        policy, pool = method.policy, method.task
        before = solution_probability(policy, pool, range(POOL))
        checks, informative = [], []
        while method.ledger.tokens < budget["tokens"]:
            found = method.update(method.collect())
            method.ledger.updates += 1
            if "informative" in found:
                informative.append(float(found["informative"]))
                if len(informative) % CHECK == 0:
                    checks.append(solution_probability(policy, pool, range(POOL)))
        chances = [solution_probability(policy, pool, [problem]) for problem in range(POOL)]
        whole = make_task("orbit", seed=pool.seed, **ORBIT)
        result = {
            "solved": mean(chances),
            "area": mean(checks),
            "pass@16": mean([1 - (1 - chance) ** 16 for chance in chances]),
            "others": solution_probability(policy, whole, range(POOL, 64)),
            "before": before,
            "informative": mean(informative),
            "updates": float(len(informative)),
        }
        if self.method == "pope":
            asked = [method.asked(problem, method.search.level[problem]) for problem in method.search.hard]
            result["shown"] = mean([float(len(problem.given)) for problem in method.helped.problems(asked)])
        return result


def pope(**settings: Any) -> Trained:
    return Trained("pope", tuple((HELP | settings).items()))


CLAIM = Claim(
    method="pope",
    statement="where no sample is ever right, beginnings of solutions in half of the prompts, which are never "
    "imitated, lead to policies that solve the problems without help; group-relative learning without them does not "
    "move",
    budget={"tokens": 80_000},
    seeds=5,
    minutes=6,
    arms={
        "grpo": Trained("grpo"),
        "pope": pope(cuts=7),
        "longest": pope(prefix="longest"),
        "guided": pope(cuts=7, guided_share=1.0, lr=LR / 2),
    },
    expect=(
        Below("before", "*", 0.001, control=True),
        Below("solved", "grpo", 0.05),
        Greater("solved", "pope", "grpo", by=0.4),
        Greater("pass@16", "pope", "grpo", by=0.5),
        Above("others", "pope", 0.2),
        Below("shown", "pope", 13.6),
        Above("area", "guided", 0.1),
    ),
)
