"""VADE: beliefs that cost nothing find the prompts whose groups say something.

Sums of one and two digits, answered at once, by a model of 0.1 million weights that supervised fine-tuning has brought
to seven of ten greedy answers. Of a pool of 256 prompts half are solved then, an eighth is hopeless, and of the groups
of eight of a prompt drawn at random less than half hold both right and wrong completions (`possible`, computed). Only
the one text of the solution is right, so the pass rate of a prompt is the probability of that text: `accuracy`, the
mean pass rate of the pool over the last fifth of a run, and `area`, that over all of it, are exact. Every seed is
another start with another pool.

Three arms train for 12,800 completions in batches of 16 prompts, at the one rate that was best of three for both of the
first two in the pilot: `uniform` is GRPO on shuffled prompts, `vade` the same with VADE's choice, `filter` GRPO on
batches of groups that say something, for which the others are sampled and thrown away (DAPO), all counted.
`informative` is the share of groups, of all that were sampled in the last two thirds of the budget, that say something.
`follows` is how much nearer the beliefs of `vade` are to the exact pass rates than the plain counts of the same
completions, which never fade: the difference of mean distances over pool and run; `forgets` is the same against
beliefs that know the last visit only.

Arms `drift-*` need no model: 256 pass rates that are known and move, those of a batch up by training, all by a slow
drift and at random (logits N(0, 4^2) at first, then +0.01 and N(0, 0.05^2) a step, and 0.3 times the probability that
its group says something for prompts of the batch). The method's own beliefs and scores choose from them, `error` is the
mean distance of belief and pass rate, `informative` is computed. `kept` forgets nothing, `slow` has 0.999 and `fast`
0.2 for all prompts, `last` knows the last visit only, `mean` does not sample, and `known` is given the pass rates.

Pilots (seeds 1000 and 1001). 75 updates at 1e-4, 3e-4, 1e-3, one seed: accuracy 0.713, 0.793, 0.768 uniform and 0.736,
0.807, 0.770 VADE, informative 0.46, 0.45, 0.43 and 0.87, 0.85, 0.69. 100 updates at 3e-4, two seeds: informative 0.445
and 0.238 uniform, 0.820 and 0.534 VADE, 0.455 and 0.243 filter; area 0.745 and 0.758, 0.758 and 0.767, 0.698 and 0.742;
accuracy 0.830 and 0.795, 0.840 and 0.793, 0.755 and 0.766; follows 0.030 and 0.023, forgets 0.002 and 0.000. Drift,
eight seeds: informative 0.39 uniform, 0.57 VADE, 0.40 fast, 0.54 last, 0.51 mean, 0.64 known; error 0.087 VADE, 0.13
kept and slow, 0.37 fast, 0.09 last. What a single slow rate gets wrong does not cost it informative groups within 100
steps (0.59 and 0.60), so that is not expected.

Where it was different: at starts with three of four prompts hopeless (sums of one to three digits, 0.4 right) the share
of VADE's choice, computed with the start frozen, was 0.20 and that of uniform draws 0.27, for eight failures leave
Beta(1, 9), which is worth a try more often than a prompt that is solved nine times of ten. And at a start with half of
the prompts solved and nearly all others hopeless (0.5 right), VADE's accuracy fell behind at every rate (0.50 and 0.52
at 2.5e-4): what was solved was no longer trained on, and the small model forgot it.

What was found: all but one expectation hold. In every seed VADE's groups say something far more often than uniform ones
(0.69 of them and 0.38) and than those that filtering pays for (0.41), its beliefs are nearer to the pass rates than
counts that never fade (by 0.029), and where pass rates are known and move, the two rates of forgetting together are
nearer to them (0.090) than either for all prompts (0.14 and 0.36) or none at all (0.14). But nearly twice as many
groups that say something did not make GRPO learn faster: area 0.733 and 0.730, ahead in six seeds of eight and not
surely, and the ends are equal (0.80). A likely reason: VADE's groups are of harder prompts, with few right answers, and
what is solved is not trained on. Against filtering at equal completions it is ahead in all seeds, in area (0.698) and
at the end (0.75), but so are uniform draws. What was not expected of anything: without forgetting more of the groups
say something in the drifting world (0.64 against 0.58), for stale counts keep to prompts that were in between; and
knowing the last visit only is hardly worse in training (beliefs 0.002 further from the pass rates).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater

TASK, POOL, PROMPTS, SAMPLES, CHECK = "addition", 256, 16, 8, 1_280
OPTIONS: dict[str, Any] = {"levels": (1, 2), "scratchpad": False, "heldout": False}
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 224}
TOKENS, RATE, EARLY = 5, 3e-4, 1 / 3  # what is judged begins after a third of a run
COMMON: dict[str, Any] = {
    "batch_prompts": PROMPTS,
    "samples_per_prompt": SAMPLES,
    "aggregate": "token",
    "reference_kl": None,
    "lr": RATE,
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
    return warm_start(TASK, accuracy=0.7, size=SHAPE, updates=3_000, seed=seed, task_options=OPTIONS, **settings)


def pass_rates(policy: Any, task: Any) -> Any:
    """The exact probability of the solution of every prompt of the pool, [POOL]."""
    import torch

    from polopt.data.demonstrated import demonstrated

    with torch.no_grad():
        rows = demonstrated(task, policy, list(range(POOL)))
        return (policy.log_prob(rows) * rows["mask"]).sum(1).exp()


def share(rates: Any) -> Any:
    """The probability that a group says something, from the pass rates of prompts."""
    return 1 - rates**SAMPLES - (1 - rates) ** SAMPLES


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def groups(method: Any, batch: Any) -> tuple[int, int]:
    """How many of the groups that were sampled for a batch say something, and how many were sampled."""
    if method.config.dynamic_sampling:
        return method.source.kept, method.source.tried
    solved = batch["correct"].reshape(-1, SAMPLES).sum(1)
    return int(((solved > 0) & (solved < SAMPLES)).sum()), len(solved)


@dataclass(frozen=True)
class Training:
    """An arm that trains, and measures its pool exactly on the way."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.training import api
        from polopt.values.tracker import BetaBelief

        torch.set_num_threads(1)
        own = COMMON | {"model": str(start(seed)), "seed": seed, **dict(self.settings)}
        options = OPTIONS | {"pool": POOL, "rewards": written}
        method: Any = api.plan(self.method, TASK, task_options=options, steps=1, loggers=(), **own).build()
        rates = pass_rates(method.policy, method.task)
        accuracy, possible = [float(rates.mean())], float(share(rates).mean())
        beliefs = {"kept": BetaBelief(POOL, tried=1.0, untried=1.0), "last": BetaBelief(POOL, tried=0.0, untried=1.0)}
        errors: dict[str, list[float]] = {name: [] for name in ("own", *beliefs)}
        spoke = sampled = 0
        while method.ledger.completions < budget["completions"]:
            batch = method.collect()
            found, count = groups(method, batch)
            if method.ledger.completions > EARLY * budget["completions"]:
                spoke, sampled = spoke + found, sampled + count
            method.update(batch)
            for belief in beliefs.values():
                belief.update(batch["index"], batch["correct"].to(rates))
            if method.ledger.completions >= len(accuracy) * CHECK:
                rates = pass_rates(method.policy, method.task)
                accuracy.append(float(rates.mean()))
                seen = beliefs | ({"own": method.belief} if self.method == "vade" else {})
                for name, belief in seen.items():
                    errors[name].append(float((belief.value() - rates).abs().mean()))
        last = mean(accuracy[-(len(accuracy) // 5) :])
        result = {"accuracy": last, "area": mean(accuracy), "gain": last - accuracy[0]}
        result |= {"informative": spoke / sampled, "possible": possible}
        if self.method == "vade":
            result["follows"] = mean(errors["kept"]) - mean(errors["own"])
            result["forgets"] = mean(errors["last"]) - mean(errors["own"])
            result["visited"] = float((method.belief.alpha + method.belief.beta > 0).double().mean())
        return result


@dataclass(frozen=True)
class Drifting:
    """Prompts whose pass rates are known and move: training moves those of the batch, and everything drifts."""

    chooses: str = "vade"
    tried: float = 0.2
    untried: float = 0.999

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.data.curricula import Best
        from polopt.data.samplers import Shuffled
        from polopt.methods.language.vade import information
        from polopt.values.tracker import BetaBelief

        generator = torch.Generator().manual_seed(seed)

        def normal() -> Any:
            return torch.randn(POOL, generator=generator, dtype=torch.float64)

        belief = BetaBelief(POOL, tried=self.tried, untried=self.untried)
        logit, shares, errors = 4 * normal(), [], []
        believed = {
            "vade": lambda: belief.draw(generator),
            "mean": belief.value,
            "known": lambda: logit.sigmoid(),
        }
        sampler: Any = Shuffled(POOL, generator)
        if self.chooses != "uniform":
            sampler = Best(POOL, lambda: information(believed[self.chooses]()))
        steps = budget["completions"] // (PROMPTS * SAMPLES)
        for step in range(steps):
            rates, index = logit.sigmoid(), torch.tensor(sampler.draw(PROMPTS))
            rows = index.repeat_interleave(SAMPLES)
            if step >= EARLY * steps:
                shares.append(float(share(rates[index]).mean()))
                errors.append(float((belief.value() - rates).abs().mean()))
            belief.update(rows, torch.bernoulli(rates[rows], generator=generator))
            logit = logit + 0.01 + 0.05 * normal()
            logit[index] += 0.3 * share(rates[index])
        return {"informative": mean(shares), "error": mean(errors)}


CLAIM = Claim(
    method="vade",
    statement="choosing prompts by what is believed of their pass rates has more groups that say something than "
    "uniform draws, at no cost in completions, where throwing groups away pays for all of them, and learns faster; "
    "beliefs that fade at two rates are nearer to pass rates that move than counts with one",
    budget={"completions": 100 * PROMPTS * SAMPLES},
    seeds=8,
    minutes=6,
    arms={
        "uniform": Training("grpo"),
        "vade": Training("vade"),
        "filter": Training("grpo", (("dynamic_sampling", 16),)),
        "drift-uniform": Drifting("uniform"),
        "drift-vade": Drifting(),
        "drift-kept": Drifting(tried=1.0, untried=1.0),
        "drift-slow": Drifting(tried=0.999),
        "drift-fast": Drifting(untried=0.2),
        "drift-last": Drifting(tried=0.0),
        "drift-mean": Drifting("mean"),
        "drift-known": Drifting("known"),
    },
    expect=(
        Below("possible", "uniform", 0.5, control=True),
        Above("gain", "uniform", 0.04, control=True),
        Above("visited", "vade", 0.95, control=True),
        Greater("informative", "drift-known", "drift-vade", by=0.02, control=True),
        Greater("informative", "vade", "uniform", ratio=1.4),
        Greater("informative", "vade", "filter", ratio=1.4),
        Greater("area", "vade", "uniform"),
        Greater("area", "vade", "filter", by=0.01),
        Above("follows", "vade", 0.01),
        Greater("informative", "drift-vade", "drift-uniform", ratio=1.2),
        Greater("informative", "drift-vade", "drift-fast", by=0.08),
        Greater("informative", "drift-vade", "drift-last"),
        Greater("error", "drift-kept", "drift-vade", by=0.025),
        Greater("error", "drift-slow", "drift-vade", by=0.025),
    ),
)
