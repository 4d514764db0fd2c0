"""INPO: in a game of preferences that go in a circle its last policy is near Nash; iterative DPO's is not.

A table of answers to one prompt. Three of them beat each other in a circle with probability 0.9; with `six`, three
further ones lose against these with probability 0.9. The reference has 0.6, 0.3 and 0.1 on the circle (with `six` 0.4
of it, and 0.2 on each of the others). The game is held to it with tau = 1/6; its Nash policy is computed to 1e-12.

In each of 50 rounds 2,000 pairs of independent answers are drawn from the policy, with a drawn label each, and the loss
is minimized on them, from the policy of the round on. All arms have eta = 1/2 where their losses have a place for it
(beta of DPO, SPPO and IPO). `ipo` holds to the reference alone (tau = eta); `ipo-offline` does so with pairs of the
reference, and tau for its beta, once more in each round; `no-reference` is INPO with tau = 0. SPPO is given the exact
win rates. `exact` is the step of mirror descent itself, with the win rates that nobody knows, and `exact@0.1` the same
at eta = 0.1, tau = 1/30, where the condition of stability fails.

`kl` is KL(Nash || policy) after the last round, `gap` the duality gap of the regularized game there, `average_kl` the
mean of the KL over the last ten rounds.

Pilots (seeds 1000 and 1001): KL 0.0002 and 0.0004 of INPO, 0.0011 and 0.0005 with `six`; below 1e-4 of `exact`. Gap of
iterative DPO 1.05 and 1.18, with `six` 1.05 and 0.38: it does not stop, as it renews its reference, and where the few
labels of a rare answer agree its loss has no least. KL of SPPO 2.0 and 2.0 (3.5 with `six`), of `ipo` 0.054 and 0.048,
with `six` 0.23 and 0.25: that is the Nash policy of a game with a larger tau, so the distance is only one of
temperatures; of `ipo-offline` 0.13 and 0.09, of `no-reference` 0.9 and 8, of `exact@0.1` 2.4, which goes round.

What was found: INPO's last policy is at KL 0.0006 from Nash, 0.0007 with `six`, from drawn labels alone; the exact step
arrives to 1e-12. Iterative DPO collapses on one answer (gap 1.05 and 1.00), SPPO wanders (KL 7 and 6), IPO stays where
a larger tau leads (0.057), a little worse with old pairs (0.14), and without the reference, or with steps above the
bound of stability, the policy goes round (mean KL of the last ten rounds 3.0 and 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim

ROUNDS, PAIRS, SURE, ETA = 50, 2_000, 0.9, 0.5


def game(six: bool) -> tuple[Any, Any]:
    """P [Y, Y] and log pi_ref [Y]."""
    import torch

    wins = torch.full((3, 3), 0.5, dtype=torch.float64)
    for i in range(3):
        wins[i, (i + 1) % 3], wins[(i + 1) % 3, i] = SURE, 1 - SURE
    start = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    if six:
        upper = torch.full((3, 3), SURE, dtype=torch.float64)
        wins = torch.cat([torch.cat([wins, upper], 1), torch.cat([1 - upper, torch.full_like(wins, 0.5)], 1)])
        start = torch.cat([0.4 * start, torch.full((3,), 0.2, dtype=torch.float64)])
    return wins, start.log()


def nash(wins: Any, start: Any, tau: float) -> Any:
    """log pi* [Y]: log pi = log pi_ref + P pi / tau + constant."""
    found = start
    for _ in range(20_000):
        found = (0.98 * found + 0.02 * (start + wins @ found.exp() / tau)).log_softmax(0)
    assert ((start + wins @ found.exp() / tau).log_softmax(0) - found).abs().max() < 1e-10
    return found


def kl(one: Any, other: Any) -> float:
    return float((one.exp() * (one - other)).sum())


def duality_gap(wins: Any, start: Any, log_prob: Any, tau: float) -> float:
    """Twice what the best answer to pi gets, J(best, pi), minus 1, since J(a, b) + J(b, a) = 1."""
    best = tau * (start + wins @ log_prob.exp() / tau).logsumexp(0) + tau * kl(log_prob, start)
    return float(2 * best - 1)


@dataclass(frozen=True)
class Game:
    """One rule on one game."""

    rule: str
    six: bool = False
    eta: float = ETA
    tau: float = ETA / 3  # of the rule

    trains = ("inpo",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(seed)
        wins, start = game(self.six)
        tau = self.eta / 3  # of the game
        wanted, now, kls = nash(wins, start, tau), start, []
        for _ in range(budget["rounds"]):
            now = self.step(wins, start, now, generator)
            kls.append(kl(wanted, now))
        gap = duality_gap(wins, start, now, tau)
        return {"kl": kls[-1], "gap": gap, "average_kl": sum(kls[-10:]) / len(kls[-10:])}

    def step(self, wins: Any, start: Any, now: Any, generator: Any) -> Any:
        """log pi_{t+1} [Y]."""
        import torch

        from polopt.losses.pairwise import pairwise, win_rates
        from polopt.methods.language.inpo import inpo, mirror_step
        from polopt.methods.language.iterative_dpo import anchored

        win, count = wins @ now.exp(), len(now)
        if self.rule == "exact":
            return mirror_step(start, now, win, self.eta, self.tau)
        source = (start if self.rule == "ipo-offline" else now).exp()
        often = 2 * source.unsqueeze(1) * source * wins  # of (chosen, rejected), in either order
        drawn = torch.multinomial(often.flatten(), PAIRS, replacement=True, generator=generator)
        weight = torch.bincount(drawn, minlength=count * count).double() / PAIRS
        share = {"inpo": self.tau / self.eta, "ipo": 1.0, "ipo-offline": 1.0, "dpo": 0.0, "sppo": 0.0}[self.rule]
        logits = now.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

        def closure() -> Any:
            optimizer.zero_grad()
            h = logits.log_softmax(0) - anchored(share, start, now)
            chosen, rejected = (each.expand(count, count).flatten() for each in (h.unsqueeze(1), h.unsqueeze(0)))
            if self.rule == "dpo":
                loss = pairwise(chosen, rejected, self.eta, weight)
            elif self.rule == "sppo":
                sides = (each.expand(count, count).flatten() for each in (win.unsqueeze(1), win.unsqueeze(0)))
                loss = win_rates(chosen, rejected, *sides, self.eta, weight)
            else:
                loss = inpo(chosen, rejected, self.tau if self.rule == "ipo-offline" else self.eta, weight)
            loss.backward()
            return loss

        optimizer.step(closure)
        return logits.detach().log_softmax(0)


CLAIM = Claim(
    method="inpo",
    statement="where preferences go in a circle INPO's last policy is near the Nash policy of the regularized game, "
    "from drawn labels alone; iterative DPO collapses, SPPO and IPO end elsewhere, and "
    "without the reference, or at too large a step, INPO goes round",
    budget={"rounds": ROUNDS},
    seeds=10,
    minutes=4,
    arms={
        "exact": Game("exact"),
        "inpo": Game("inpo"),
        "inpo-six": Game("inpo", six=True),
        "iterative-dpo": Game("dpo"),
        "iterative-dpo-six": Game("dpo", six=True),
        "ipo": Game("ipo"),
        "ipo-six": Game("ipo", six=True),
        "ipo-offline": Game("ipo-offline"),
        "sppo": Game("sppo"),
        "sppo-six": Game("sppo", six=True),
        "no-reference": Game("inpo", tau=0.0),
        "exact@0.1": Game("exact", eta=0.1, tau=0.1 / 3),
    },
    deterministic=("exact*",),
    expect=(
        Below("kl", "exact", 0.001, control=True),
        Below("kl", "inpo*", 0.02),
        Above("gap", "iterative-dpo*", 0.2),
        Above("kl", "sppo*", 0.05),
        Above("kl", "ipo", 0.02),
        Above("kl", "ipo-*", 0.05),
        Above("average_kl", "no-reference", 0.05),
        Above("average_kl", "exact@0.1", 0.5),
    ),
)


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The circle of three answers: the policies of the rounds of one seed, in the plane of the probabilities."""
    import torch

    from polopt.evaluation.figures import Paths

    def plane(log_probs: Any) -> tuple[Any, Any]:
        """The places [n] of distributions [n, 3] in a triangle with corners (0, 0), (1, 0) and (1/2, sqrt(3)/2)."""
        prob = log_probs.exp()
        return prob[:, 1] + prob[:, 2] / 2, 0.75**0.5 * prob[:, 2]

    wins, start = game(False)
    tau, paths = ETA / 3, {}
    arms = {"inpo": Game("inpo"), "no reference": Game("inpo", tau=0.0), "sppo": Game("sppo"), "dpo": Game("dpo")}
    for name, arm in arms.items():
        generator, rounds = torch.Generator().manual_seed(0), [start]
        for _ in range(60):
            rounds.append(arm.step(wins, start, rounds[-1], generator))
        paths[name] = plane(torch.stack(rounds))
    x, y = plane(nash(wins, start, tau).unsqueeze(0))
    marks = {"Nash policy": (float(x[0]), float(y[0]))}
    return {"policies of 60 rounds; corners are sure answers": Paths(paths, marks)}
