"""CoPG: from pairs of any origin it finds the optimum of reward and KL; other baselines end elsewhere.

Every seed is another bandit with ten arms: rewards are uniform in [0, 1], logits of pi_ref are standard normal, beta is
0.3, so that rewards ask for up to 3 nats. The optimum pi* is known. Pairs of independent arms come from a behavior that
prefers bad arms, mu ~ exp(-2 R), the same ones for all rules: 4,000 batches of 32. The policy is a softmax
that begins at pi_ref; Adam's rate falls linearly from 0.02 to 0.0002 in every arm, so that nothing is judged on the
noise of a late step. `kl` is KL(pi || pi*) at the end; beta times it is what is missing of the objective.

`copg` is the method, `copg-uniform` and `copg-good` from other behaviors (mu uniform, and ~ exp(2 R)). The others take
for the advantage of an arm R - beta h without a baseline (`none`), less the mean reward of the data (`mean`), or less
the reward of the other arm without its log ratio (`raw-pair`): what a policy gradient off-policy would do. Controls:
`value`, whose baseline is the exact value of pi*, and `importance`, whose ratios are exact, without a baseline, do find
pi*. `copg-uncovered` has no data of the best arm, which the theorem asks for. `ipo` and `dpo` are told which arm of a
pair is better, and nothing else; they are reported and not judged.

`exact-*` have all pairs as often as they are expected, in place of draws: what is left then is where a rule leads. (In
expectation `raw-pair` is `mean`.)

Pilots (seeds 1000 and 1001): KL below 1e-15 of CoPG from all three behaviors, sampled and exact; 0.12 and 0.44 of
`none`, 0.006 and 0.13 of `mean` and `raw-pair`, the same when exact; 5e-4 and 4e-4 of `importance`; 0.05 and 0.21 of
`copg-uncovered`, 0.02 and 0.05 of `ipo`, 0.7 and 1.9 of `dpo`, which does not stop. Over ten such seeds `exact-mean`
has 0.10, between 0.006 and 0.22, so that one seed alone may lie below 0.01.

Expectations: the paper says that the baseline decides whether policy gradients off-policy find pi*. Perfect code gets
rounding, since at pi* every pair of CoPG has a loss of 0 and so no noise; importance sampling keeps the noise of its
last steps. Code that lacked the log ratio on one side would be `raw-pair`.

What was found: all expectations hold. From pairs of all three behaviors CoPG is at pi* to rounding, as with the exact
baseline, while importance sampling is at 3e-4. Without a baseline KL is 0.36, with the mean reward or the raw reward of
the other arm 0.088, and expected pairs in place of drawn ones give the same: it is a bias and no noise. Without data of
the best arm CoPG is 0.09 away. IPO, which sees the order alone, is nearer (0.022) than the biased policy gradients; DPO
goes on and on (1.4).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, together

ARMS, BETA, PAIRS, SKEW, RATES = 10, 0.3, 32, 2.0, (0.02, 0.0002)


def bandits(seeds: tuple[int, ...]) -> tuple[Any, Any]:
    """Rewards and log pi_ref, [S, A]."""
    import torch

    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    reward = torch.stack([torch.rand(ARMS, generator=each, dtype=torch.float64) for each in generators])
    logits = torch.stack([torch.randn(ARMS, generator=each, dtype=torch.float64) for each in generators])
    return reward, logits.log_softmax(1)


def behavior(reward: Any, kind: str) -> Any:
    """mu [S, A]."""
    import torch

    mu = ({"good": SKEW, "uniform": 0.0}.get(kind, -SKEW) * reward).softmax(1)
    if kind == "uncovered":
        best = torch.nn.functional.one_hot(reward.argmax(1), ARMS).bool()
        mu = mu.masked_fill(best, 0.0)
    return mu / mu.sum(1, keepdim=True)


@dataclass(frozen=True)
class Rule:
    """One rule on the bandits of all seeds at once."""

    rule: str
    behavior: str = "bad"
    exact: bool = False

    def __call__(self, seeds: tuple[int, ...], budget: Mapping[str, int]) -> dict[int, dict[str, float]]:
        import torch

        torch.set_num_threads(1)
        reward, start = bandits(seeds)
        mu, steps = behavior(reward, self.behavior), budget["updates"]
        best = (start + reward / BETA).log_softmax(1)
        draws = None if self.exact else self.drawn(seeds, mu, steps)
        logits = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=RATES[0])
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = RATES[0] + (RATES[1] - RATES[0]) * step / steps
            if draws is None:
                one, other = (torch.arange(ARMS**2) // ARMS).expand(len(mu), -1), torch.arange(ARMS**2) % ARMS
                other = other.expand(len(mu), -1)
                weight = mu.gather(1, one) * mu.gather(1, other)
            else:
                one, other = draws[:, :, step].unbind(1)
                weight = torch.full(one.shape, 1 / PAIRS, dtype=torch.float64)
            optimizer.zero_grad()
            self.loss(logits.log_softmax(1), start, reward, mu, (one, other), weight).backward()
            optimizer.step()
        found = logits.detach().log_softmax(1)
        kl = (found.exp() * (found - best)).sum(1)
        return {seed: {"kl": float(value)} for seed, value in zip(seeds, kl)}

    def drawn(self, seeds: tuple[int, ...], mu: Any, steps: int) -> Any:
        """Arms [S, 2, steps, PAIRS], of each seed the same whatever the others."""
        import torch

        rows = []
        for seed, each in zip(seeds, mu):
            generator = torch.Generator().manual_seed(10_000 + seed)
            drawn = torch.multinomial(each, 2 * steps * PAIRS, replacement=True, generator=generator)
            rows.append(drawn.reshape(2, steps, PAIRS))
        return torch.stack(rows)

    def loss(self, log_prob: Any, start: Any, reward: Any, mu: Any, pair: Any, weight: Any) -> Any:
        """Of pairs [S, P], summed over the seeds."""
        import torch

        from polopt.losses.pairwise import pairwise
        from polopt.methods.language.copg import copg, regularized

        h = log_prob - start
        gap, margin = (table.gather(1, pair[0]) - table.gather(1, pair[1]) for table in (reward, h))
        if self.rule == "copg":
            return copg(gap.flatten(), margin.flatten(), BETA, weight.flatten())
        if self.rule in ("ipo", "dpo"):
            chosen, kind = (gap.sign() * margin).flatten(), {"ipo": "ipo", "dpo": "sigmoid"}[self.rule]
            return pairwise(chosen, torch.zeros_like(chosen), BETA, weight.flatten(), kind=kind)
        value = regularized(reward, h, BETA).detach()
        total = torch.zeros((), dtype=torch.float64)
        for arm, other in (pair, pair[::-1]):
            advantage = value.gather(1, arm)
            if self.rule == "mean":
                advantage = advantage - (mu * reward).sum(1, keepdim=True)
            elif self.rule == "raw-pair":
                advantage = advantage - reward.gather(1, other)
            elif self.rule == "value":
                advantage = advantage - BETA * (start + reward / BETA).logsumexp(1, keepdim=True)
            elif self.rule == "importance":
                advantage = advantage * (log_prob.detach() - mu.log()).exp().gather(1, arm)
            total = total - (weight * advantage * log_prob.gather(1, arm)).sum() / 2
        return total


def rule(name: str, behavior: str = "bad", exact: bool = False) -> Any:
    return together(Rule(name, behavior, exact))


CLAIM = Claim(
    method="copg",
    statement="on a bandit with ten arms CoPG finds the optimum of reward and KL from pairs of any behavior that "
    "covers them, without importance weights; policy gradients without a baseline, or with one that lacks the log "
    "ratio, end elsewhere on the same pairs",
    budget={"updates": 4_000},
    seeds=10,
    minutes=3,
    arms={
        "copg": rule("copg"),
        "copg-uniform": rule("copg", "uniform"),
        "copg-good": rule("copg", "good"),
        "copg-uncovered": rule("copg", "uncovered"),
        "none": rule("none"),
        "mean": rule("mean"),
        "raw-pair": rule("raw-pair"),
        "value": rule("value"),
        "importance": rule("importance"),
        "ipo": rule("ipo"),
        "dpo": rule("dpo"),
        "exact-copg": rule("copg", exact=True),
        "exact-value": rule("value", exact=True),
        "exact-none": rule("none", exact=True),
        "exact-mean": rule("mean", exact=True),
    },
    expect=(
        Below("kl", "*value", 1e-3, control=True),
        Below("kl", "importance", 1e-2, control=True),
        Above("kl", "copg-uncovered", 1e-2, control=True),
        Below("kl", "copg", 1e-3),
        Below("kl", "copg-uniform", 1e-3),
        Below("kl", "copg-good", 1e-3),
        Below("kl", "exact-copg", 1e-3),
        Above("kl", "*none", 1e-2),
        Above("kl", "*mean", 1e-2),
        Above("kl", "raw-pair", 1e-2),
    ),
)
