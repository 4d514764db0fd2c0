"""OTR: one-token rollout, fine-tuning on demonstrations with the candidates for each token drawn by the policy itself.

Ming et al., "One-Token Rollout: Guiding Supervised Fine-Tuning of LLMs with Policy Gradient", 2025, arXiv 2509.26313.

Every position of a demonstration (x, y) is an episode of one step: the state is s_t = (x, y_<t), K candidates are drawn
from the present policy at a higher temperature, and the demonstrated token is what is rewarded.

    a_1..a_K ~ pi'(. | s_t),  pi' = softmax(logits / kappa)       kappa: `sampling_temperature`, only for drawing
    R_k      = 1 if a_k = y_t else beta                           beta: `wrong_reward`, a little below 0
    loss     - sum_t weight_t (1 / K) sum_k R_k log pi(a_k | s_t)          REINFORCE, without a ratio pi / pi'

So a demonstrated token counts by how often the policy drew it, one that is never drawn gives no push towards it, and
wrong ones that were drawn are pushed down. `--exact` takes the mean over all candidates instead,

    loss     - sum_t weight_t sum_a sg[pi'(a)] R(a) log pi(a | s_t)        the limit of many candidates

With kappa = 1 beta cancels and the gradient is (1 - beta) pi(y_t) grad log pi(y_t): DFT's (`sft --emphasis
probability`). With kappa > 1 and beta < 0, where the demonstrated token is out of reach, logits move along
beta (pi' - pi): rare tokens lose, and the likeliest one, though wrong, gains. So begin with a model that is often right
(`sft`), and watch `entropy`: it would collapse.

Differs from its base, SFT, in the weights of the tokens, which SFT all gives 1, and in the push against wrong ones.
As these weights are below 1 it may need a higher rate than SFT.

Departs from the paper in: kappa, beta, and the rate, batch and data of `paper` are assumed. Candidates and log pi are
those of the whole distribution, before top_k and top_p.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from polopt.bases.method import Limit, Study
from polopt.config import param
from polopt.core.batch import Batch
from polopt.methods.language.sft import SFT
from polopt.policies.causal_lm import entropy_of


def drawn(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Ids [C, K] of tokens drawn with replacement from softmax(logits [C, V] / temperature), one for each of `uniform`
    [C, K], which are in [0, 1). A token of probability 0 is never drawn."""
    mass = (logits.detach() / temperature).softmax(-1).cumsum(-1)
    return torch.searchsorted(mass, (1 - uniform).to(mass) * mass[:, -1:])  # (0, total]: never past the end


def sampled_objective(log_p: Tensor, token: Tensor, ids: Tensor, wrong_reward: float) -> Tensor:
    """(1 / K) sum_k R_k log pi(a_k) [C] of candidates `ids` [C, K]; `log_p` is [C, V], `token` [C] was demonstrated."""
    right = (ids == token.unsqueeze(1)).to(log_p.dtype)
    reward = right + wrong_reward * (1 - right)
    return (reward * log_p.gather(1, ids)).mean(-1)


def exact_objective(log_p: Tensor, token: Tensor, behavior: Tensor, wrong_reward: float) -> Tensor:
    """sum_a pi'(a) R(a) log pi(a) [C], with `behavior` pi' [C, V] detached: the mean of `sampled_objective`."""
    reward = torch.full_like(log_p, wrong_reward).scatter(1, token.unsqueeze(1), 1.0)
    return (behavior.detach() * reward * log_p.masked_fill(log_p == float("-inf"), 0.0)).sum(-1)


class OTR(SFT):
    @dataclass(frozen=True)
    class Config(SFT.Config):
        aggregate: str = param("sequence", "assumed", choices=("token", "sequence"), help="what counts the same")
        candidates: int = param(256, "paper", low=1, unit="tokens", help="drawn at every position, K")
        sampling_temperature: float = param(1.3, "assumed", above=0, help="of the candidates only, kappa")
        wrong_reward: float = param(-0.1, "assumed", help="of candidates that are not the demonstrated token, beta")
        exact: bool = param(False, "polopt", help="the mean over all candidates, weighted with their probabilities")

        def __post_init__(self) -> None:
            super().__post_init__()
            self.refuse("emphasis", because="where candidates say how much a token counts")
            self.refuse("policy.top_k", "policy.top_p", because="where candidates come from the whole distribution")
            if self.exact:
                self.refuse("candidates", because="where the mean over all of them is exact")

    slug = "otr"
    headline = ("loss", "found", "entropy")
    metrics = {
        "objective": "mean reward-weighted log pi of the candidates, which is maximized | its level means little",
        "found": "share of the candidates that are the demonstrated token | rises",
        "entropy": "of the policy at the demonstrated positions, in nats | falls; near 0 while `loss` is high, it is "
        "sure of wrong tokens: bring `wrong_reward` nearer to 0",
    }
    presets = {
        "paper": {
            "model": "Qwen/Qwen2.5-7B",
            "lr": 1e-5,
            "lr_schedule": "cosine",
            "policy.max_tokens": 4096,
        },
        "small": {"candidates": 32, "policy.max_tokens": 32},
    }
    studies = {
        "paper": Study(
            "datasets/open-r1/OpenR1-Math-220k",
            task_options={"prompt_column": "problem", "solution_column": "solution", "match": "math"},
        )
    }
    limits = (
        Limit(
            base="sft",
            at={"exact": True, "sampling_temperature": 1.0, "wrong_reward": 0.0},
            apart={"sampling_temperature": 1.3},
            base_at={"emphasis": "probability", "aggregate": "sequence"},
            because="without a reward of wrong tokens, and at temperature 1, a token counts by its probability: DFT; "
            "equal up to rounding, since here the sum goes over the vocabulary",
            tolerance=1e-10,
        ),
    )
    smoke = SFT.smoke

    def weigh(self, batch: Batch) -> Batch:
        """Adds `uniform` [B, T, K], the numbers that candidates are drawn with: fresh ones at every update."""
        batch, config = super().weigh(batch), self.config
        if not config.exact:
            mask = batch["mask"]
            batch["uniform"] = torch.rand(*mask.shape, config.candidates, generator=self.generator).to(mask.device)
        return batch

    def one_token(self, logits: Tensor, token: Tensor, *uniform: Tensor) -> Tensor:
        """Of decisions [C]: the objective, log pi of the demonstrated token, how often it was drawn, and the entropy of
        the policy, [C, 4]; only the first has a gradient."""
        config = self.config
        log_p = logits.log_softmax(-1)
        truth = log_p.detach().gather(1, token.unsqueeze(1)).squeeze(1)
        if config.exact:
            behavior = (logits.detach() / config.sampling_temperature).softmax(-1)
            objective = exact_objective(log_p, token, behavior, config.wrong_reward)
            found = behavior.gather(1, token.unsqueeze(1)).squeeze(1)
        else:
            ids = drawn(logits, uniform[0], config.sampling_temperature)
            objective = sampled_objective(log_p, token, ids, config.wrong_reward)
            found = (ids == token.unsqueeze(1)).to(log_p.dtype).mean(-1)
        return torch.stack((objective, truth, found, entropy_of(logits.detach())), -1)

    def imitation_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        columns = () if self.config.exact else (batch["uniform"],)
        values = self.policy.of_logits(batch, self.one_token, *columns)
        objective, truth, found, entropy = (batch["weight"].unsqueeze(-1) * values).flatten(0, 1).sum(0)
        return -objective, {"objective": objective, "loss": -truth, "found": found, "entropy": entropy}
