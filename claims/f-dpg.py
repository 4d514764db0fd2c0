"""f-DPG: where few outcomes meet a constraint, Jensen-Shannon is soon near the target and forward KL is not.

Every seed is another softmax over 100 outcomes, a, with standard normal logits, and another constraint b, true of 5 %
of its mass. The target is P = a max(b, 0.001); it, its Z and every divergence are sums. A policy of free logits begins
at a and takes 400 steps of Adam on 256 of its own samples, by the method's loss, running Z and baseline. All arms
train at the same three rates, the best of them (0.1, for every arm of the pilots) in the middle, and what is compared
are means over them. `js` is the Jensen-Shannon divergence from the target after 100 steps, at most log 2, `satisfied`
the probability of b, `entropy` that of the policy; `js_end` and so on are those after 400, where all are near: a table
can hold any target, and what differs is the way there. `reward` arms have P = a exp(2 r) with standard normal rewards;
they are reported. `no-z` arms take Z for 1. For Jensen-Shannon that moves the slope of f and not its optimum, since
E_p f(c t) is least at t = 1 for every c; total variation has a constant reward then, and stands still.

`gradient` arms compare, half-way to the target in logits, with autograd of D_f: `error` is the relative distance of
the expected gradient, summed over all outcomes as if sampled from a, `cosine` that of 100,000 samples.

`text` arms are the method as it is trained: a language model of 13,500 weights that supervised fine-tuning has taught
to write strings of six letters out of four, and that is to write those with abc in them, 3 % of what it writes. What
it writes is known for all 4,096 strings, and anything else is one outcome more. 60 steps of 256 strings; `_end` is
after those. The best of three rates is again the middle one (0.004).

Pilots (seeds 1000 and 1001): `js` 0.009 and 0.011 of Jensen-Shannon, 0.020 and 0.020 of forward KL, 0.009 and 0.010 of
reverse KL, 0.005 and 0.005 of total variation; satisfied 0.95 against 0.90 and 0.91, entropy of forward KL 0.24 and
0.23 above that of reverse KL. The difference is that of the lowest rate: at the middle one forward KL is 0.0007 from
the target and Jensen-Shannon 0.0002 and 0.0015, so that a table with as high a rate as one likes would not show it.
`no-z` 0.027 and 0.029, and 0.51 and 0.52 with total variation. Of text after 60 steps 0.25 and 0.27 of Jensen-Shannon,
0.33 and 0.29 of forward KL, which is behind at every rate; satisfied 0.57 and 0.53 against 0.36 and 0.44.

Expectations: the paper says that forward KL is slow where the constraint is sparse, that Jensen-Shannon is better by a
wide margin, and that reverse KL gives up entropy. Perfect code gets rounding for `error`; a wrong sign, ratio or f'
does not. Thresholds are about half of what the pilots show, and 0.7 was set for the divergence before.

What was found: all but the last expectation hold. The expected gradients are those of the divergences to rounding. On
the constraint Jensen-Shannon is after 100 steps at 0.48 of the divergence of forward KL (0.011 and 0.022, in every
seed), satisfies 0.95 against 0.91, and reverse KL has 0.21 less entropy than forward KL. As in the pilots this is the
lowest rate's doing (0.028 and 0.065); at the middle one both are below 0.002, and at the highest forward KL is the
nearer one (0.001 against 0.004). Total variation is nearest of all (0.006), reverse KL as near as Jensen-Shannon, also
with rewards. With strings Jensen-Shannon is ahead of forward KL in every seed (0.25 and 0.30; 0.19 and 0.25 at the
middle rate) and satisfies 0.61 against 0.42. That reverse KL has less entropy there is so in every seed, by 0.72, but
by less than the 0.5 asked for in three of six: at the highest rate, and in two of these at the lowest, it had hardly
left the start, which has the entropy of no constraint. At the middle rate it has 5.4 against 6.6, with 0.82 satisfied.
The threshold came from one pilot seed, in which reverse KL learned at every rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, mean_of, shared

OUTCOMES, MASS, BETA, FLOOR = 100, 0.05, 0.5, 1e-3
SAMPLES, WINDOW, MANY = 256, 1024, 100_000
KINDS = ("jensen-shannon", "forward-kl", "reverse-kl", "total-variation")
RATES = (0.03, 0.1, 0.3)
TOKENS, TEXT_RATES = 6, (1e-3, 4e-3, 1.6e-2)


def world(seed: int, target: str) -> tuple[Any, Any, Any]:
    """log a, log P / a and what counts as right, [OUTCOMES] each: a random softmax, and a constraint of 5 % of its mass
    (all outcomes of a random order that fit), or rewards that are standard normal, of which half count as right."""
    import torch

    from polopt.methods.language.f_dpg import log_preference

    generator = torch.Generator().manual_seed(seed)
    log_a, reward = torch.randn(2, OUTCOMES, generator=generator, dtype=torch.float64)
    log_a = log_a.log_softmax(0)
    if target == "constraint":
        left, order = MASS, torch.randperm(OUTCOMES, generator=generator)
        reward = torch.zeros_like(reward)
        for outcome in order.tolist():
            if log_a[outcome].exp() <= left:
                reward[outcome], left = 1.0, left - float(log_a[outcome].exp())
    return log_a, log_preference(reward, target, BETA, FLOOR), (reward > 0).to(reward)


def measured(log_prob: Any, log_p: Any, right: Any, log_a: Any) -> dict[str, float]:
    """What is known of a policy; the Jensen-Shannon divergence is the usual one, at most log 2."""
    from polopt.regularizers.divergences import divergence

    chance = log_prob.exp()

    def apart(kind: str, other: Any = log_p) -> float:
        return float((chance * divergence(log_prob, other, kind)).sum())

    js = apart("jensen-shannon") / 2
    return {
        "js": js,
        "log_js": math.log(max(js, 1e-12)),
        "forward_kl": apart("forward-kl"),
        "satisfied": float((chance * right).sum()),
        "entropy": float(-(chance * log_prob).sum()),
        "from_start": apart("reverse-kl", log_a),
    }


@dataclass(frozen=True)
class Gradient:
    """The estimator on the way to the target, half of it in logits, with samples of the start: beside autograd."""

    kind: str

    trains = ("f-dpg",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.methods.language.f_dpg import dpg_loss
        from polopt.regularizers.divergences import divergence

        torch.set_num_threads(1)
        log_a, preference, _ = world(seed, "constraint")
        log_p = (log_a + preference).log_softmax(0)
        logits = ((log_a + log_p) / 2).requires_grad_()
        log_prob = logits.log_softmax(0)

        def gradient(loss: Any) -> Any:
            return torch.autograd.grad(loss, logits, retain_graph=True)[0]

        exact = gradient((log_prob.exp() * divergence(log_prob, log_p, self.kind)).sum())
        expected = gradient(dpg_loss(log_prob, log_a, log_p, log_a.exp(), self.kind)[0])
        drawn = torch.multinomial(
            log_prob.detach().exp(), MANY, replacement=True, generator=torch.Generator().manual_seed(seed)
        )
        weight = torch.full((MANY,), 1 / MANY, dtype=torch.float64)
        columns = (log_prob[drawn], log_prob.detach()[drawn], log_p[drawn])
        sampled = gradient(dpg_loss(*columns, weight, self.kind)[0])
        return {
            "error": float((expected - exact).norm() / exact.norm()),
            "cosine": float(torch.cosine_similarity(sampled, exact, 0)),
        }


@dataclass(frozen=True)
class Trained:
    """The logits of a softmax, from the start; `proposal` "start" samples from it always."""

    kind: str
    lr: float
    target: str = "constraint"
    proposal: str = "policy"
    z: bool = True  # False: Z is taken for 1
    ratio: bool = True  # False: samples count as if they were the policy's

    trains = ("f-dpg",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.methods.language.f_dpg import dpg_loss
        from polopt.values.running import Latest, Partition

        torch.set_num_threads(1)
        log_a, preference, right = world(seed, self.target)
        log_p = (log_a + preference).log_softmax(0)
        logits = log_a.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=self.lr)
        partition, baseline = Partition(), Latest(WINDOW)
        generator = torch.Generator().manual_seed(seed)
        weight = torch.full((SAMPLES,), 1 / SAMPLES, dtype=torch.float64)
        one = torch.zeros(SAMPLES, dtype=torch.int64)
        updates, found = budget["updates"], {}
        for update in range(1, updates + 1):
            log_prob = logits.log_softmax(0)
            now = log_a if self.proposal == "start" else log_prob.detach()
            x = torch.multinomial(now.exp(), SAMPLES, replacement=True, generator=generator)
            log_q, unnormalized = now[x], (log_a + preference)[x]
            _, log_z = partition.update(unnormalized - log_q, one, one, one == 0)
            mine = log_prob[x]
            loss, reward = dpg_loss(
                mine,
                log_q if self.ratio else mine.detach(),
                unnormalized - log_z if self.z else unnormalized,
                weight,
                self.kind,
                baseline.mean,
            )
            baseline.add(reward.mean(), SAMPLES)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if update in (updates // 4, updates):
                numbers = measured(logits.detach().log_softmax(0), log_p, right, log_a)
                found |= numbers if update < updates else {f"{name}_end": value for name, value in numbers.items()}
        return found


def start(seed: int) -> Path:
    """A run whose model writes the strings of the task, and knows of no pattern; another one for every seed."""
    from polopt.training.api import train

    settings: dict[str, Any] = {"batch_size": 128, "lr": 3e-3, "lr_schedule": "cosine", "policy.max_tokens": TOKENS}
    settings |= {"eval_every": 10**9, "checkpoint_every": 10**9, "eval_episodes": 1, "loggers": ()}

    def make(folder: Path) -> None:
        train("sft", "strings", model="tiny", seed=seed, steps=300, out=folder / "run", **settings)

    return shared(f"strings {seed}", make) / "run"


@dataclass(frozen=True)
class Texts:
    """The method on strings of six letters: of four, in which abc is asked for."""

    kind: str
    lr: float

    trains = ("f-dpg",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.methods.language.f_dpg import log_preference
        from polopt.training import api

        torch.set_num_threads(1)
        settings: dict[str, Any] = {
            "model": str(start(seed)),
            "seed": seed,
            "batch_prompts": 1,
            "samples_per_prompt": SAMPLES,
            "divergence": self.kind,
            "target": "constraint",
            "floor": FLOOR,
            "lr": self.lr,
            "lr_schedule": "constant",
            "policy.max_tokens": TOKENS,
            "policy.log_probs": "engine",
            "loggers": (),
        }
        options = {"pool": 1, "score_truncated": True}
        method: Any = api.plan("f-dpg", "strings", task_options=options, **settings).build()
        right, log_a = method.task.right(0), method.task.distribution(method.policy, 0)
        log_p = (log_a + log_preference(right, "constraint", BETA, FLOOR)).log_softmax(0)
        updates, found = budget["text_updates"], {"rate": float((log_a.exp() * right).sum())}
        for update in range(1, updates + 1):
            method.update(method.collect())
            if update in (updates // 4, updates):
                numbers = measured(method.task.distribution(method.policy, 0), log_p, right, log_a)
                found |= numbers if update < updates else {f"{name}_end": value for name, value in numbers.items()}
        return found


def trained(kind: str, **settings: Any) -> Any:
    return mean_of(lambda lr: Trained(kind, lr, **settings), RATES)


CLAIM = Claim(
    method="f-dpg",
    statement="the loss has the gradient of the divergence for every f; on a sparse constraint Jensen-Shannon is at a "
    "quarter of the budget at no more than 0.7 of the divergence that forward KL is at, and satisfies more; reverse KL "
    "has less entropy; and a language model is so brought to the constraint sooner by Jensen-Shannon",
    budget={"updates": 400, "text_updates": 60},
    seeds=6,
    minutes=5,
    arms={
        **{f"gradient-{kind}": Gradient(kind) for kind in KINDS},
        **{kind: trained(kind) for kind in KINDS},
        "no-z": trained("jensen-shannon", z=False),
        "no-z-total-variation": trained("total-variation", z=False),
        **{f"reward-{kind}": trained(kind, target="reward") for kind in KINDS},
        **{f"text-{kind}": mean_of(lambda lr, kind=kind: Texts(kind, lr), TEXT_RATES) for kind in KINDS[:3]},
    },
    expect=(
        Below("error", "gradient-*", 1e-9),
        Above("cosine", "gradient-*", 0.99),
        Below("js_end", "jensen-shannon", 0.02, control=True),
        Below("js_end", "forward-kl", 0.02, control=True),
        Greater("js", "no-z-total-variation", "total-variation", by=0.2, control=True),
        Greater("js", "forward-kl", "jensen-shannon", ratio=1 / 0.7),
        Greater("satisfied", "jensen-shannon", "forward-kl", by=0.02),
        Greater("entropy", "forward-kl", "reverse-kl", by=0.1),
        Greater("js", "no-z", "jensen-shannon", by=0.009),
        Above("satisfied_end", "text-jensen-shannon", 0.25, control=True),
        Greater("js_end", "text-forward-kl", "text-jensen-shannon"),
        Greater("satisfied_end", "text-jensen-shannon", "text-forward-kl", by=0.05),
        Greater("entropy_end", "text-forward-kl", "text-reverse-kl", by=0.5),
    ),
)
