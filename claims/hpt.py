"""HPT: imitate what is never solved, reinforce the rest; against either alone, one after the other, and both at once.

Letters in alphabetical order: "dq6:" asks for six different ones with d and q among them, so many answers are right. A
small model (0.1 million weights, characters) is taught to write three letters; then 256 prompts for three to seven
letters are all that there is, each with one demonstration, drawn at random from its right answers. 150 batches of 16
prompts, one optimizer step each. `grpo` reinforces 8 completions of a prompt and sees no demonstration, `sft` imitates
the 16 demonstrations, `sft-grpo` does that for the first half of the batches and reinforces in the second, `mix` does
half of each for every prompt, `hpt` imitates where all 8 completions are wrong and reinforces elsewhere. Each arm has
the one of three learning rates that was best for it on a seed for tuning. Every seed is another start and another
pool.

`accuracy` is the share of right greedy answers to 256 problems outside of the pool, mean of the last three of ten
measurements, `hard` that of the two longest kinds, `area` the mean of all measurements, `sampled` the share of right
samples at the end. `imitated` is the mean share of prompts that are imitated, `fall` its mean over the first half of
the batches minus that over the last fifth. `ratio` is the geometric mean of |gradient of the reinforcement term| /
|gradient of the imitation term| over the batches that have both: neither half may be off.

Second registration: see the diagnosis. In the first (seeds 0 to 2, kept on the page) HPT ended at 0.22, GRPO at 0.22,
imitation at 0.31, the mixture at 0.30.

Pilots (seeds 1000 to 1002, 256 problems). Three to seven letters, 2e-3, after 150 batches: hpt 0.80 (0.56 after 100,
0.02 imitated at the end), mix 0.72; grpo 0.14 after 125, with no right answer of five letters or more; at 1.5e-3 sft
0.39, sft-grpo 0.67. In all pilots mix was ahead of hpt until after 75 to 100 batches, since it has both kinds of data
for every prompt: three to six letters, 0.79 against 0.67 after 80 and 0.77 against 0.84 after 120 at 1e-3; three to
eight letters, 0.61 against 0.52 after 120. With up to six letters grpo climbed them one by one (0.81 after 120), with
up to seven or eight it did not. `ratio` 0.3 to 1.5 on the way, near 0.1 at the start.

What was found: half of what the paper says. HPT ends at 0.60, surely above imitation (0.41), which overfits its 256
demonstrations; it is right on the longest answers (0.47), which GRPO hardly finds by itself (0.11), and ahead of GRPO
overall in four seeds of five (0.46; the fifth keeps that expectation from holding). It needs fewer demonstrations all
the time, down by 0.32 from the first half to the last fifth, and 23 % in all; both terms act (`ratio` 0.36). But it is
behind the mixture (0.73) and behind imitation followed by reinforcement (0.71), in every seed. As in the pilots the
mixture is ahead early, with both kinds of data for every prompt, and 150 batches are not enough for HPT to pass it, as
it did on one pilot seed; the one seed for tuning gave HPT the highest rate (0.564, against 0.556 and 0.522 at the
others), a choice within the noise at the edge of the grid, while the other arms got the middle one. Of how all five
compare once each has converged, this says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, isfinite, log
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, best_of

TASK, LEVELS, POOL, PROBLEMS, TOKENS = "ascending", (3, 7), 256, 256, 10
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 224}
RATES = (7e-4, 1.5e-3, 3e-3)
PROMPTS, SAMPLES, CHECK = 16, 8, 15
OF_HPT: dict[str, Any] = {
    "batch_prompts": PROMPTS,
    "samples_per_prompt": SAMPLES,
    "updates_per_batch": 1,
    "entropy_coefficient": 0.0,
    "rl_coefficient": 12.0,  # the official 64 for a limit of about 8 times an answer, as there; here it is 1.5 times
    "policy.log_probs": "engine",  # sampler and trainer are one program here, so a second pass would find the same
}


def start(seed: int) -> Path:
    """The model with which all runs of a seed begin: it writes three letters."""
    from polopt.training.warm_start import warm_start

    warm: dict[str, Any] = {"batch_size": 64, "lr": 2e-3, "policy.max_tokens": TOKENS}
    options = {"levels": LEVELS[0], "heldout": False}
    return warm_start(TASK, accuracy=0.85, size=SHAPE, updates=1_000, seed=seed, task_options=options, **warm)


def make(method: str, seed: int, **settings: Any) -> Any:
    """The method at the start of a seed, on its pool."""
    import torch

    from polopt.training import api

    torch.set_num_threads(1)
    own = {"model": str(start(seed)), "seed": seed, "policy.max_tokens": TOKENS} | settings
    return api.plan(method, TASK, task_options={"levels": LEVELS, "pool": POOL}, steps=1, loggers=(), **own).build()


def solved(method: Any, greedy: bool = True) -> dict[str, float]:
    """Shares of right answers to problems that are not in the pool; moves no random state."""
    import torch

    from polopt.data import PromptGroups
    from polopt.tasks import make_task

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = make_task(TASK, seed=1, evaluation=True, levels=LEVELS)
        batch = PromptGroups(task, PROBLEMS, 1, starts=range(PROBLEMS), greedy=greedy).next(method.policy)
    right, hard = batch["correct"].double(), batch["level"] > LEVELS[1] - 2
    return {"accuracy": float(right.mean()), "hard": float(right[hard].mean())}


def norms_apart(method: Any, batch: Any) -> float:
    """log of |gradient of the reinforcement term| / |gradient of the imitation term| of a batch."""
    import torch

    from polopt.methods.language.hpt import IMITATED

    rows = method.weigh(method.mix(batch))
    imitated = (rows["origin"] == IMITATED).unsqueeze(1)
    if bool(imitated.all()) or not bool(imitated.any()):
        return float("nan")
    scores = rows["weight"] * rows["advantage"].unsqueeze(1) * method.policy.log_prob(rows)
    parts = ((scores * ~imitated).sum(), (scores * imitated).sum())
    parameters = list(method.policy.parameters())
    gradients = [torch.autograd.grad(part, parameters, retain_graph=True) for part in parts]
    own, taught = (float(torch.cat([each.flatten() for each in gradient]).norm()) for gradient in gradients)
    return log(own / taught) if own else float("nan")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@dataclass(frozen=True)
class Trained:
    """An arm that trains at one rate: `imitate` batches by imitation alone, then the rest by HPT with its settings."""

    lr: float
    imitate: float = 0.0  # share of the batches
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        batches = budget["updates"]
        first = round(self.imitate * batches)
        begin = solved(make("sft", seed))["accuracy"]
        method = make("sft", seed, batch_size=PROMPTS, lr=self.lr) if first else None
        checks, imitated, ratios = [], [], []
        for number in range(1, batches + 1):
            if number == first + 1:
                before, method = method, make("hpt", seed, lr=self.lr, **OF_HPT | dict(self.settings))
                if before is not None:
                    method.policy.load_state_dict(before.policy.state_dict())
            batch = method.collect()
            if number > first and number % (2 * CHECK) == 1 and not self.settings:
                ratios.append(norms_apart(method, batch))
            found = method.update(batch)
            imitated.append(float(found.get("imitated", 1.0)))
            if number % CHECK == 0:
                checks.append(solved(method))
        half, fifth = imitated[: batches // 2], imitated[-(batches // 5) :]
        result = {name: mean([each[name] for each in checks[-3:]]) for name in ("accuracy", "hard")}
        result["gain"] = result["accuracy"] - begin
        result |= {"area": mean([each["accuracy"] for each in checks])}
        result |= {"sampled": solved(method, greedy=False)["accuracy"]}
        result |= {"imitated": mean(imitated), "fall": mean(half) - mean(fifth)}
        known = [value for value in ratios if isfinite(value)]
        return result | ({"ratio": exp(mean(known))} if known else {})


def hpt(**settings: Any) -> Any:
    return trained(settings=tuple(settings.items()))


def trained(**fields: Any) -> Any:
    return best_of(lambda lr: Trained(lr, **fields), RATES, by="accuracy", tuning_seeds=1)


CLAIM = Claim(
    method="hpt",
    statement="imitating the prompts that are never solved and reinforcing the others is right more often than either"
    " alone, one after the other, or a fixed mixture of both, and needs fewer and fewer demonstrations",
    budget={"updates": 150},
    seeds=5,
    revision=2,
    first_seed=100,
    diagnosis="In the first experiment the reinforcement term of HPT was about 28 times too weak beside the imitation"
    " term, a fault of the method's file that has been mended, so HPT was imitation of some of the prompts. The task "
    "favored imitation: demonstrations without end, all of one style, of problems with one right way, which a model "
    "this small had only begun to learn when the budget ended; and both learning rates were too high for "
    "reinforcement. Now there are 256 demonstrations, many right answers to each prompt, a control on the two terms, a"
    " pipeline of both stages among the arms, and three rates.",
    minutes=11,
    arms={
        "grpo": hpt(gate=-1),
        "sft": trained(imitate=1.0),
        "sft-grpo": trained(imitate=0.5, settings=(("gate", -1),)),
        "mix": hpt(gating="fixed"),
        "hpt": hpt(),
    },
    expect=(
        Above("gain", "sft", 0.1, control=True),
        Above("ratio", "hpt", 0.1, control=True),
        Below("ratio", "hpt", 10, control=True),
        Greater("accuracy", "hpt", "grpo"),
        Greater("accuracy", "hpt", "sft"),
        Greater("accuracy", "hpt", "sft-grpo"),
        Greater("accuracy", "hpt", "mix"),
        Greater("hard", "hpt", "grpo", by=0.1),
        Above("fall", "hpt", 0.1),
    ),
)
