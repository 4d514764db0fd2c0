"""CAPO (arXiv 2510.00819): without the tokens of large predicted shift, a rate at which GRPO collapses is a good one.

A small model (0.1 million weights, characters) is taught sums of one and two digits, answered at once, until three of
ten greedy answers are right; then 150 updates of one optimizer step on 4 prompts x 8 completions, out of a pool of 256
prompts, at a constant rate after a tenth of warm-up. Only the one text of the solution is right, so the accuracy of a
policy is computed: the mean probability of the solutions of the pool. Every seed is another start and pool.

At 2e-3, four times the best rate of GRPO, batches are small and the rate is too high for GRPO: `grpo`; `capo`, whose
bounds are 1000 lr^2 on m_F and 30 lr on |m_H|, about the 95th percentiles of an unmasked run; `capo-wide`, with 4000
and 130, about the 99.5th; `random`, which leaves out as many tokens as `capo` did at each update of that seed, drawn at
random. At 5e-4, the best of GRPO's grid: `grpo-best`, and `capo-best`, with the bounds of `capo` over the rate. All are
CAPO (`grpo` without bounds is GRPO to the bit), so that all measure the same. `accuracy` is the mean over the last
fifth of the measurements, `area` over all; `gain` is accuracy less that of the start. `rejected` is the share of tokens
left out; `rank` the rank correlation, over the tokens of an update, of m_F and the exact divergence of the policies
before and after the step that was really taken, mean over the updates that moved; `moved` the mean of that divergence.
To see what is left out: `chance`, the mean probability of those tokens; `caught`, the share left out of the tokens with
which answers go wrong; `blameless`, that of the right tokens before these.

Expected is what the paper says: CAPO above GRPO and above random masking at the high rate, few tokens left out, m_F in
order with the divergence (its figure has 0.62 for GRPO and 0.46 for CAPO), and steps that move the policy less. Of its
accuracy the pilots give no hope.

Pilots (seed 1000, 50 to 150 updates, accuracy at the end). GRPO at 2.5e-4, 5e-4, 1e-3, 2e-3, 5e-3: 0.38, 0.38, 0.34,
0.20, 0.07. CAPO at 2e-3, bounds on m_F and |m_H|: 0.03 and 0.3 (0.4 % rejected) 0.10; 0.01 and 0.1 (2 %) 0.00; 3e-3 and
0.05 (2 %) 0.00; 5e-4 and 0.02 (9 %) 0.03. From a start of 0.54, 100 updates: GRPO 0.49 at 1e-3 and 0.23 at 2e-3, CAPO
at 2e-3 0.00 (2 %) and 0.15 (5 %). With worked sums of 10 to 20 tokens, 50 updates at 1e-3, from 0.37: GRPO 0.16, CAPO
0.00 with both bounds or that on m_F alone; with Dr. GRPO's loss 0.26, and 0.03 with the bound on |m_H| alone. The
design below, accuracy of grpo, capo, capo-wide, random, grpo-best, capo-best: 0.20, 0.08, 0.10, 0.14, 0.36, 0.02; rank
0.73, 0.42, 0.66, 0.74, 0.76, 0.42; moved 0.016, 0.011, 0.018, 0.017, 0.0033, 0.0020; rejected 4 % by capo and 9 % by
capo-best, of mean probability 0.10 and 0.16. In 20 updates capo leaves out 2.4 % of the tokens with which answers go
wrong and 0.3 % of the right ones before these, which are then blamed alone.

What was found: the steps move the policy less (0.010 against 0.021) and few tokens are left out (1.6 %), as stated, and
the accuracy is lost: 0.00 at the high rate, where GRPO has 0.17 and random masking 0.19; at the better rate 0.06
against 0.35. What the shares hide: most tokens stand in groups without an advantage or are certain. Weighed by their
pull, |A| (1 - p), the 8.6 % that are left out at the better rate are 71 % (seed 1000, 80 updates), a third of all
negative tokens. The wide bounds, which take 11 % of the pull, end at GRPO's accuracy there (0.32 and 0.33), and at 0.07
at the high rate. Masking only positive or only negative tokens, the old normalizer, Dr. GRPO's loss, and 10 unmasked
updates first change little. m_F is in order with the divergence (rank correlation 0.31, and 0.67 with wide bounds, 0.75
where nothing is left out); that of CAPO is not surely above 0.3, in runs that have forgotten everything. So with
answers of five tokens, bounds at the 95th percentile of all tokens take away most of what there is to learn. A second
registration would bound the share of the pull, and have long answers in which a few percent are few.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, shared

TASK, POOL, TOKENS = "addition", 256, 5
OPTIONS: dict[str, Any] = {"levels": (1, 2), "scratchpad": False, "heldout": False}
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 224}
PROMPTS, SAMPLES, UPDATES, CHECK = 4, 8, 150, 10
BEST, HIGH = 5e-4, 2e-3
COMMON: dict[str, Any] = {
    "batch_prompts": PROMPTS,
    "samples_per_prompt": SAMPLES,
    "lr_schedule.warmup": 0.1,
    "policy.max_tokens": TOKENS,
    "policy.log_probs": "engine",  # sampler and trainer are one program here, so a second pass would find the same
}


def written(completion: str, solution: str) -> float:
    """The reward: 1 for the solution and nothing else."""
    return float(completion == solution)


def start(seed: int) -> Path:
    """The model with which all runs of a seed begin."""
    from polopt.training.warm_start import warm_start

    settings: dict[str, Any] = {"batch_size": 64, "lr": 2e-3, "policy.max_tokens": TOKENS}
    return warm_start(TASK, accuracy=0.3, size=SHAPE, updates=3_000, seed=seed, task_options=OPTIONS, **settings)


def accuracy_of(policy: Any, task: Any) -> float:
    """The mean probability of the solutions of the pool."""
    import torch

    from polopt.data.demonstrated import demonstrated

    with torch.no_grad():
        rows = demonstrated(task, policy, list(range(POOL)))
        return float((policy.log_prob(rows) * rows["mask"]).sum(1).exp().mean())


def distributions(policy: Any, batch: Any) -> Any:
    """log pi [N, V] of the decisions of a batch."""
    import torch

    with torch.no_grad():
        return policy.of_logits(batch, lambda logits, token: logits.log_softmax(-1))[batch["mask"]]


def mistakes(policy: Any, task: Any, part: Any) -> tuple[Any, Any]:
    """Which tokens [B, T] are the first that differ from the solution, and which stand before these: of the answers
    that go wrong."""
    import torch

    from polopt.data.demonstrated import demonstrated

    solution = demonstrated(task, policy, part["index"].tolist())
    given, asked = [torch.where(rows["mask"], rows["completion"], -1) for rows in (part, solution)]
    width = max(given.shape[1], asked.shape[1])
    given, asked = [torch.nn.functional.pad(x, (0, width - x.shape[1]), value=-1) for x in (given, asked)]
    wrong = (given != asked)[:, : part["mask"].shape[1]].cumsum(1)
    first = (wrong == 1) & (wrong.cumsum(1) == 1)
    return first & part["mask"], (wrong == 0) & (wrong[:, -1:] > 0) & part["mask"]


def rank_correlation(one: Any, other: Any) -> float:
    """Spearman's, of vectors [N] without ties to speak of."""
    import torch

    ranks = [each.argsort().argsort().double() for each in (one, other)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def mean(values: list[float]) -> float:
    return sum(values) / max(len(values), 1)


def trained(seed: int, budget: Mapping[str, int], settings: Mapping[str, Any], shares: list[float] | None) -> Any:
    """Metrics of a run, and the share of tokens that it left out at each update; with `shares`, so many at random."""
    import torch

    from polopt.methods.language.capo import reweighed
    from polopt.training import api

    torch.set_num_threads(1)
    common = COMMON | {"model": str(start(seed)), "seed": seed, "steps": budget["completions"], "loggers": ()}
    options = OPTIONS | {"pool": POOL, "rewards": written}
    method: Any = api.plan("capo", TASK, task_options=options, **common, **settings).build()
    draws = torch.Generator().manual_seed(seed)
    seen: list[Any] = []
    original = method.select

    def select(part: Any) -> Any:
        weight = part["weight"]
        part, metrics = original(part)
        if shares is not None:
            mask = part["mask"]
            stay = mask & (torch.rand(mask.shape, generator=draws) >= shares[len(rejected)])
            part["weight"] = reweighed(weight, mask, stay, method.config.aggregate)
            metrics = metrics | {"rejected": 1 - stay.sum() / mask.sum()}
        seen.append((part, distributions(method.policy, part)))
        return part, metrics

    method.select = select
    accuracy, rejected, ranks, moved = [accuracy_of(method.policy, method.task)], [], [], []
    chance: list[float] = []
    caught: list[float] = []
    blameless: list[float] = []
    while method.ledger.completions < budget["completions"]:
        method.progress = method.ledger.completions / budget["completions"]
        rejected.append(float(method.update(method.collect())["rejected"]))
        method.ledger.updates += 1
        part, before = seen.pop()
        mask = part["mask"]
        kl = (before.exp() * (before - distributions(method.policy, part)).nan_to_num()).sum(1)
        out = mask & (part["weight"] == 0)
        if float(kl.mean()) > 1e-9:
            moved.append(float(kl.mean()))
            ranks.append(rank_correlation(part["policy_shift"][mask], kl))
        chance += part["log_prob"][out].exp().tolist()
        first, before_it = mistakes(method.policy, method.task, part)
        caught += out[first].double().tolist()
        blameless += out[before_it].double().tolist()
        if method.ledger.updates % CHECK == 0:
            accuracy.append(accuracy_of(method.policy, method.task))
    last = mean(accuracy[-(len(accuracy) // 5 or 1) :])
    found = {"accuracy": last, "area": mean(accuracy), "gain": last - accuracy[0], "rejected": mean(rejected)}
    found |= {"rank": mean(ranks), "moved": mean(moved), "chance": mean(chance)}
    found |= {"caught": mean(caught), "blameless": mean(blameless)}
    return {"metrics": found, "rejected": rejected}


@dataclass(frozen=True)
class Arm:
    """A run at one rate with bounds on m_F over lr^2 and on |m_H| over lr (none: GRPO); `random` draws as many tokens
    at random as the run with these bounds left out."""

    lr: float
    bounds: tuple[float, float] | None = None
    random: bool = False

    def run(self, seed: int, budget: Mapping[str, int], shares: list[float] | None = None) -> Any:
        policy, objective = (None, None) if self.bounds is None else self.bounds
        settings = {
            "lr": self.lr,
            "policy_bound": None if policy is None else policy * self.lr**2,
            "objective_bound": None if objective is None else objective * self.lr,
        }
        return trained(seed, budget, settings, shares)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        if self.bounds is None:
            return dict(self.run(seed, budget)["metrics"])

        def make(folder: Path) -> None:
            (folder / "run.json").write_text(json.dumps(self.run(seed, budget)))

        key = f"capo {self.lr} {self.bounds} {seed} {dict(budget)}"
        found = json.loads((shared(key, make) / "run.json").read_text())
        if self.random:
            found = Arm(self.lr).run(seed, budget, found["rejected"])
        return dict(found["metrics"])


CLAIM = Claim(
    method="capo",
    statement="at a rate and batch size at which GRPO collapses, leaving out the few tokens of largest predicted shift "
    "keeps it learning, and leaving out as many at random does not; the predicted shift of the policy at a token is in "
    "order with the divergence after the real step",
    budget={"completions": UPDATES * PROMPTS * SAMPLES},
    seeds=5,
    minutes=6,
    arms={
        "grpo": Arm(HIGH),
        "capo": Arm(HIGH, (1000.0, 30.0)),
        "capo-wide": Arm(HIGH, (4000.0, 130.0)),
        "random": Arm(HIGH, (1000.0, 30.0), random=True),
        "grpo-best": Arm(BEST),
        "capo-best": Arm(BEST, (1000.0, 30.0)),
    },
    expect=(
        Above("gain", "grpo-best", 0.05, control=True),
        Greater("accuracy", "grpo-best", "grpo", by=0.05, control=True),
        Below("rejected", "capo", 0.08),
        Above("rejected", "capo", 0.005, control=True),
        Above("rank", "grpo", 0.3),
        Above("rank", "capo", 0.3),
        Greater("moved", "grpo", "capo"),
        Greater("moved", "random", "capo"),
        Greater("accuracy", "capo", "grpo"),
        Greater("accuracy", "capo", "random"),
        Greater("area", "capo", "grpo-best"),
    ),
)
