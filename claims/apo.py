"""APO: momentum between the solutions of rounds makes each round count for more, up to 1 / (1 - momentum).

Every seed is another world of tables: 20 prompts with 50 answers each, whose true rewards are standard normal; the
reference is uniform, beta is 5. The preferences are those of Bradley and Terry. `exact` arms solve every round from the
probabilities of all pairs, weighted alike, to the last digit: then a solution should be the reference tilted by
exp(c reward / beta), and the coefficient c, fitted by least squares, should grow in round t by (1 - m^t) / (1 - m) for
the momentum m, 1 without. `deviation` is the largest relative error of this in eight rounds; `rounds` is how many it
takes until the expected reward of the solution is 0.05 below that of the best answers, and `surprise` its distance from
the number that the law of c predicts. `from-round` takes the momentum from the policy of the round in place of the
solution before, and `fixed` keeps the reference of the first round: two ways to get it wrong.

`sampled` arms have what a user has: in each of eight rounds 200 pairs for each prompt, drawn from the policy, each with
one drawn label, for 50 steps of Adam on the logits, from the policy of the round on, with beta 1. `reward` is the
expected true reward of the policy that goes into the next round, mean over rounds 2 to 8, averaged over three rates.
`matched` has no momentum, but beta times 1 - m, which has the same steps in the long run.

`text` arms train a language model of 0.1 million weights to write vowels, six rounds of 128 pairs: `reward` is that of
the samples of rounds 2 to 6, again averaged over three rates. They are reported and not judged.

Second registration; in the first (seeds 0 to 4, kept on the page) all held but one expectation, which by mistake asked
a broken variant to be right: see the diagnosis.

Pilots (seeds 1000 and 1001): deviations of 1e-9 and 39 and 36, 28 and 26, 21 and 19, 14 and 13 rounds, all as
predicted; 0.25 and 5 rounds off with the momentum from the round. The law holds because all pairs weigh alike: with
pairs as rare as the policy makes bad answers, their probabilities stay unfitted in the end, and c says nothing.
Sampled rewards were 1.69 and 1.87 without momentum, 1.76 and 1.91 with 0.3, 1.82 and 1.97 with 0.7, and 1.77 and 1.88
of `matched`: much of the gain is that of a smaller beta. At the largest rate a momentum of 0.7 or 0.9 ends below none.
Of texts (seed 1000, rates of which the largest was the best, and which are larger now) 0.26, 0.32 with momentum, and
0.26 of `matched`: where a round takes few steps beta matters little, and momentum is a longer step.

What was found: all expectations hold. Exact steps obey the law to 1e-9, and the gap closes in 34, 24, 18 and 13 rounds
with momentum 0, 0.3, 0.5 and 0.7, as predicted each time. From sampled pairs a momentum of 0.3 gains 0.09 (1.98 against
1.89), but a smaller beta alone gains most of that: `matched` has 1.96, is ahead in two of five seeds, and is the better
one at the two larger rates. More momentum gains at small rates (2.12 with 0.9 against 1.82 at 0.03), where rounds end
before they are solved, and nothing at the largest (1.86 and 1.86). So it is with texts: 0.61 against 0.54 and 0.55 of
`matched`, most at the smallest rate. What momentum does beyond a longer step was not to be seen here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater, Ordered, mean_of, train_arm

PROMPTS, ANSWERS, BETA, ROUNDS, NEAR, MOST = 20, 50, 5.0, 8, 0.05, 60
PAIRS, STEPS, SAMPLED_BETA, TEXT_BETA = 200, 50, 1.0, 0.1
MOMENTA = (0.3, 0.5, 0.7)


def rewards(seed: int) -> Any:
    import torch

    return torch.randn(PROMPTS, ANSWERS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap(log_prob: Any, reward: Any) -> float:
    return float((reward.max(1).values - (log_prob.exp() * reward).sum(1)).mean())


def solved(log_prob: Any, reference: Any, wins: Any, beta: float) -> Any:
    """log pi [N, Y] that minimizes DPO's loss over all ordered pairs, each as often as it is labeled so."""
    import torch

    from polopt.losses.pairwise import pairwise

    logits = log_prob.clone().requires_grad_()
    weight = (wins / wins.sum()).flatten()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=500,
        tolerance_grad=1e-12,
        tolerance_change=0.0,
        history_size=30,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Any:
        optimizer.zero_grad()
        ratio = logits.log_softmax(1) - reference
        chosen, rejected = (each.expand(wins.shape).flatten() for each in (ratio.unsqueeze(2), ratio.unsqueeze(1)))
        loss = pairwise(chosen, rejected, beta, weight)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().log_softmax(1)


@dataclass(frozen=True)
class Exact:
    """All pairs, exactly."""

    momentum: float = 0.0
    past: str = "solution"  # where the momentum comes from
    fixed: bool = False

    trains = ("apo",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        import torch

        from polopt.methods.language.apo import extrapolated
        from polopt.methods.language.iterative_dpo import preferences

        torch.set_num_threads(1)
        reward = rewards(seed)
        wins = preferences(reward, 1.0)
        start = torch.zeros_like(reward).log_softmax(1)
        centered = (reward - reward.mean(1, keepdim=True)) / BETA

        def coefficient(log_prob: Any) -> float:
            return float(((log_prob - start) * centered).sum() / centered.square().sum())

        now = before = start
        found, law, gaps, expected = [0.0], [0.0], [], []
        while len(gaps) < ROUNDS or (gaps[-1] > NEAR and len(gaps) < MOST and not self.fixed):
            solution = solved(now, start if self.fixed else now, wins, BETA)
            now, before = extrapolated(solution, now if self.past == "round" else before, self.momentum), solution
            found.append(coefficient(solution))
            law.append(law[-1] + (1 - self.momentum ** len(found[1:])) / (1 - self.momentum))
            gaps.append(gap(solution, reward))
            expected.append(gap((start + law[-1] * centered).log_softmax(1), reward))
        steps = [(b - a, d - c) for a, b, c, d in zip(found, found[1:], law, law[1:])][:ROUNDS]
        needed = [next((t for t, value in enumerate(each, 1) if value <= NEAR), MOST) for each in (gaps, expected)]
        return {
            "deviation": max(abs(step / lawful - 1) for step, lawful in steps),
            "rounds": float(needed[0]),
            "surprise": float(abs(needed[0] - needed[1])),
            "increments": [step for step, _ in steps],
        }


@dataclass(frozen=True)
class Sampled:
    """Drawn pairs and labels, a few gradient steps."""

    lr: float
    beta: float = SAMPLED_BETA
    momentum: float = 0.0

    trains = ("apo",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.losses.pairwise import pairwise
        from polopt.methods.language.apo import extrapolated
        from polopt.methods.language.iterative_dpo import preferences

        torch.set_num_threads(1)
        reward = rewards(seed)
        generator = torch.Generator().manual_seed(seed)
        wins, row = preferences(reward, 1.0), torch.arange(PROMPTS).unsqueeze(1)
        now = before = torch.zeros_like(reward).log_softmax(1)
        weight = torch.full((PROMPTS * PAIRS,), 1 / (PROMPTS * PAIRS), dtype=torch.float64)
        curve = []
        for _ in range(ROUNDS):
            drawn = torch.multinomial(now.exp(), 2 * PAIRS, replacement=True, generator=generator)
            one, other = drawn.split(PAIRS, 1)
            right = torch.rand(one.shape, generator=generator) < wins[row, one, other]
            chosen, rejected = torch.where(right, one, other), torch.where(right, other, one)
            logits = now.clone().requires_grad_()
            optimizer = torch.optim.Adam([logits], lr=self.lr)
            for _ in range(STEPS):
                ratio = logits.log_softmax(1) - now
                loss = pairwise(ratio[row, chosen].flatten(), ratio[row, rejected].flatten(), self.beta, weight)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            solution = logits.detach().log_softmax(1)
            now, before = extrapolated(solution, before, self.momentum), solution
            curve.append(float((now.exp() * reward).sum(1).mean()))
        return {"reward": sum(curve[1:]) / len(curve[1:]), "last": curve[-1], "gap": gap(now, reward)}


def sampled(**settings: float) -> Any:
    return mean_of(lambda lr: Sampled(lr, **settings), (0.03, 0.1, 0.3))


def later(run: Any) -> float:
    """Mean reward of what was sampled in rounds 2 to 6."""
    rewards = [float(row["reward"]) for row in run.rows if row.get("round", 0) >= 2]
    return sum(rewards) / len(rewards)


def text(method: str, beta: float = TEXT_BETA, **settings: float) -> Any:
    fixed: dict[str, Any] = {
        "model": "tiny",
        "task_options": {"score_truncated": True},
        "policy": {"max_tokens": 4},
        "pairs": 128,
        "batch_size": 32,
        "samples_per_prompt": 4,
        "epochs": 2,
        "beta": beta,
        "log_every": 1,
        "eval_every": 16,
        "unit": "updates",
        "metrics": {"reward": later},
    }
    return mean_of(lambda lr: train_arm(method, "vowels", lr=lr, **fixed, **settings), (1e-3, 3e-3, 1e-2))


CLAIM = Claim(
    method="apo",
    statement="with momentum m between exact solutions of rounds the t-th round moves the policy (1 - m^t) / (1 - m) "
    "times as far as a round of iterative DPO, so that fewer rounds are needed, as many as that predicts; and with as "
    "many sampled pairs the expected reward rises faster",
    budget={"updates": 48},
    seeds=5,
    first_seed=100,
    revision=2,
    diagnosis="The pattern of the expectation about the number of rounds also matched the arm with the momentum from "
    "the round, a variant that is wrong on purpose and that a control wants to be off, so it could not hold. Now it "
    "names the arms of the method. Nothing else has changed but the seeds.",
    minutes=3,
    arms={
        "exact": Exact(),
        **{f"exact@{momentum}": Exact(momentum) for momentum in MOMENTA},
        "exact-from-round@0.5": Exact(0.5, past="round"),
        "exact-fixed@0.5": Exact(0.5, fixed=True),
        "sampled": sampled(),
        "sampled@0.3": sampled(momentum=0.3),
        "sampled@0.7": sampled(momentum=0.7),
        "sampled@0.9": sampled(momentum=0.9),
        "sampled-matched@0.3": sampled(beta=0.7 * SAMPLED_BETA),
        "text": text("iterative-dpo"),
        "text@0.3": text("apo", momentum=0.3),
        "text-matched@0.3": text("iterative-dpo", beta=0.7 * TEXT_BETA),
    },
    expect=(
        Below("deviation", "exact", 0.02, control=True),
        Above("deviation", "exact-f*", 0.1, control=True),
        Below("deviation", "exact@*", 0.02),
        Below("surprise", "exact", 0.5),
        Below("surprise", "exact@*", 0.5),
        Ordered("rounds", ("exact@0.7", "exact@0.5", "exact@0.3", "exact"), by=1.0),
        Greater("reward", "sampled@0.3", "sampled", by=0.02),
    ),
)
