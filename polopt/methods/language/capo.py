"""CAPO: Curvature-Aware Policy Optimization, GRPO without the tokens whose own step would move the policy too far.

Melo, Abate and Gal, "Stabilizing Policy Gradients for Sample-Efficient Reinforcement Learning in LLM Reasoning", 2025,
arXiv 2510.00819; official code luckeciano/stable-pg-llm.

Before each optimizer step, every token is asked what the optimizer's step on it alone would do to it, in a model of the
policy that is its last layer, pi = softmax(W h), to second order. `h` is the state that the head W reads:

    v      = e_a - pi                                  score of the sampled token a, over the tokens that it is one of
    g      = A v h^T                                   gradient of A log pi(a) in W
    U      = p^ / (sqrt(q^) + eps)                     Adam's direction on g alone, after its moments p, q
    u      = U h                                       how the logits move there; <g, U> = A v.u
    m_H    = lr <g, U> + lr^2/2 A [ (v.u)^2 - Var_pi(u) ]       the objective shifts: A (pi'(a) / pi(a) - 1)
    m_F    = lr^2/2 (v.u)^2                                     the policy shifts: KL(pi || pi')
    M      = [ m_F < policy_bound ] [ |m_H| < objective_bound ]
    loss   = - mean over sequences of  sum_t M_t min(rho_t A, clip(rho_t) A) / sum_t M_t

p and q are the moments of the mean g over the tokens that passed (of each row of W, over those that it could be sampled
as), not of the trials. In the first step there are none, and U = g. What is bounded is a model: with the moments of
whole batches and the present learning rate, but one token at a time, without the layers below.

Differs from its base, GRPO, in M: the objective is the same on fewer tokens, so that rates may be higher and batches
smaller. The bounds scale with lr^2 and lr, and with the size of h: choose them from `policy_shift_95` and
`objective_shift_95` of a run that is well (the presets hold the paper's, for its model and rate).

Departs from the paper in: h is the state from which the token was predicted, where the official code takes the one
after it; the temperature is part of pi. Masks of sentences and batches, and the bounds as penalties, are left out.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from polopt.bases.method import Limit, Smoke, Study
from polopt.config import param
from polopt.core.batch import Batch, align_left
from polopt.losses.estimator import reweighed
from polopt.methods.language.rec import GRPO
from polopt.optim.shadow import ShadowAdam
from polopt.policies.causal_lm import scored_pieces
from polopt.regularizers import ReferenceKL
from polopt.tasks.base import Task
from polopt.values import GroupBaseline


def shifts(
    move: Tensor, pi: Tensor, score: Tensor, advantage: Tensor, lr: float, fisher: str = "sampled"
) -> tuple[Tensor, Tensor]:
    """m_H and m_F [C] of tokens whose logits would move by lr times `move` [C, K], with probabilities `pi` [C, K],
    `score` e_a - pi [C, K] and `advantage` [C]. `fisher` "expected" takes the mean of m_F over all actions."""
    slope = (score * move).sum(-1)
    variance = (pi * (move - (pi * move).sum(-1, keepdim=True)).square()).sum(-1)
    objective = advantage * (lr * slope + 0.5 * lr**2 * (slope.square() - variance))
    return objective, 0.5 * lr**2 * (slope.square() if fisher == "sampled" else variance)


def passes(objective: Tensor, policy: Tensor, bounds: tuple[float | None, float | None], test: str) -> Tensor:
    """Which tokens stay (bool [C]), by their m_H and m_F [C] and the bounds on these, in this order; None is none."""
    within, below = bounds
    stay = torch.ones_like(policy, dtype=torch.bool) if below is None else policy < below
    if within is None:
        return stay
    return stay & (objective < within) & (objective > -within if test == "symmetric" else objective >= 0)


class CAPO(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        policy_bound: float | None = param(1e-4, "recipe of CAPO", above=0, unit="nats", help="delta_F, on m_F")
        objective_bound: float | None = param(0.01, "recipe of CAPO", above=0, help="delta_H, on m_H")
        objective_test: str = param(
            "symmetric", "recipe of CAPO", choices=("symmetric", "increase"), help="increase: and 0 <= m_H"
        )
        fisher: str = param(
            "sampled", "official code", choices=("sampled", "expected"), help="m_F of the action, or mean"
        )
        trial: str = param("adam", "recipe of CAPO", choices=("adam", "sgd"), help="sgd: U = g")
        batch_prompts: int = param(12, "recipe of CAPO", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "recipe of CAPO", low=1, unit="completions")
        baseline: GroupBaseline = param(GroupBaseline(std="group", std_eps=1e-4), "official code")
        reference_kl: ReferenceKL | None = param(None, "recipe of CAPO", help="penalty against the start")
        lr: float = param(1.5e-5, "recipe of CAPO", above=0)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.objective_bound is None:
                self.refuse("objective_test", because="without an objective_bound")

    slug = "capo"
    headline = ("reward", "accuracy", "rejected", "approx_kl", "completion_length")
    metrics = {
        "rejected": "share of tokens that were left out | below 0.1; if more, raise the bounds or lower `lr`",
        "policy_shift_95": "m_F that 95 % of the tokens stay below | what `policy_bound` is chosen from",
        "objective_shift_95": "the same of |m_H| | what `objective_bound` is chosen from",
    }
    probes = {"objective_test": {"lr": 0.1, "policy_bound": None, "objective_bound": 100.0}}
    presets = {
        "paper": {
            "model": "Qwen/Qwen2.5-Math-7B",
            "lr_schedule": "cosine",
            "lr_schedule.warmup": 0.1,
            "policy.max_tokens": 1024,
            "policy.top_k": 50,
            "policy.temperature": 0.9,
        },
        "dr-capo": {"baseline": "group-baseline", "aggregate": "constant", "policy_bound": 1e-3}
        | {"objective_bound": 5e-4},
        "reincapo": {"baseline": "group-baseline", "baseline.baseline": "none", "policy_bound": 1e-5}
        | {"objective_bound": 0.1},
        "small": {"lr": 3e-4, "objective_bound": 0.02, "policy.max_tokens": 32},
    }
    studies = {"paper": Study("datasets/DigitalLearningGmbH/MATH-lighteval", steps=100 * 12 * 8)}
    limits = (
        Limit(
            base="grpo",
            at={"policy_bound": None, "objective_bound": None},
            apart={"policy_bound": 1e-4},
            base_at={"reference_kl": None, "baseline.std_eps": 1e-4},
            because="without bounds every token passes",
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        GRPO.smoke.config | {"policy_bound": 0.07, "objective_bound": 0.6},
        GRPO.smoke.task_options,
    )

    def build(self, task: Task) -> None:
        super().build(task)
        self.policy.need_states()
        adam = self.optimizer.torch.defaults
        self.shadow = ShadowAdam(adam["betas"], adam["eps"])

    @torch.no_grad()
    def select(self, part: Batch) -> tuple[Batch, dict[str, Tensor]]:
        """The part with m_H `objective_shift` and m_F `policy_shift` [B, T], and the `weight` of the tokens that pass;
        and metrics. Then the shadow takes its step on the tokens that passed."""
        config, policy, mask = self.config, self.policy, part["mask"]
        bounds = config.objective_bound, config.policy_bound
        whole = config.policy.top_k == 0 and config.policy.top_p == 1.0  # any token may be sampled
        total, count = torch.zeros(()), torch.zeros(())

        def measure(states: Tensor, logits: Tensor, token: Tensor, advantage: Tensor) -> Tensor:
            nonlocal total, count
            logits = policy.cut(logits, token)
            states, advantage = states.to(logits) / config.policy.temperature, advantage.to(logits)
            support, pi = logits > float("-inf"), logits.softmax(-1)
            score = one_hot(token, pi.shape[1]) - pi
            ids, near = None, (pi, score)
            if not whole and len(token):
                ids = logits.topk(int(support.sum(1).max()), dim=1).indices
                near = pi.gather(1, ids), score.gather(1, ids)
            move = self.shadow.moves(states, advantage.unsqueeze(1) * near[1], ids)
            objective, moved = shifts(move, *near, advantage, self.optimizer.rate, config.fisher)
            passed = passes(objective, moved, bounds, config.objective_test).to(logits)
            total = total + (score * (advantage * passed).unsqueeze(1)).T @ states
            count = count + passed @ support.to(logits)
            return torch.stack((objective, moved, passed), 1)

        found = []
        for rows in scored_pieces(part, config.micro_batch, config.micro_tokens):
            advantage = align_left(rows["advantage"], rows["mask"]).expand_as(rows["mask"])
            found.append(policy.of_states(rows, measure, advantage))
        objective, moved, passed = torch.cat(found).unbind(2)
        if config.trial == "adam":
            self.shadow.step(total, count)
        part = part.clone(False)
        part["objective_shift"], part["policy_shift"] = objective, moved
        part["weight"] = reweighed(part["weight"], mask, passed, config.aggregate, part.get("row_weight", None))
        return part, {
            "rejected": 1.0 - passed.sum() / mask.sum().clamp_min(1),
            "policy_shift_95": upper(moved[mask]),
            "objective_shift_95": upper(objective[mask].abs()),
        }

    def step_on(self, part: Batch) -> dict[str, Tensor]:
        part, metrics = self.select(part)
        return super().step_on(part) | metrics


def upper(values: Tensor, share: float = 0.95) -> Tensor:
    """The smallest number [] that this share of `values` [N] does not exceed; 0 of none."""
    return values.kthvalue(max(1, round(share * len(values)))).values if len(values) else values.sum()
