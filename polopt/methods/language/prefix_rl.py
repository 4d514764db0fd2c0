"""PrefixRL: problems that are never solved are trained on from beginnings of a solution that was found elsewhere.

Setlur et al., "Reuse your FLOPs: Scaling RL on Hard Problems by Conditioning on Very Off-Policy Prefixes", 2026, arXiv
2601.18795.

Of every problem x one right answer y^x of any origin is known. It is cut at `cuts` random places, drawn once, and each
beginning opens the answer of a problem of its own:

    x_pre     = x, y^x_1 .. y^x_h        h / |y^x| ~ U[low, high],  at the start of the assistant's turn
    J         = sum_{x_pre} E_{y ~ pi(.|x_pre)} r(x_pre, y) + sum_x E_{y ~ pi(.|x)} r(x, y)
    A_i       = r_i - mean_j r_j         of the n completions of one x_pre, or of one x: never of both together
    loss      - mean_i sum_{t > h} rho_it A_i log pi(y_it | x_pre, y_i<t) / length         a constant length; PPO's clip

Beginnings are context: they have no loss and no importance weight, so however unlikely they are under the policy, all
of it is on-policy. What is learned behind them carries back to the problem as it stands, and only that is evaluated.
With traces of a right policy that the model can express every maximizer of J is one of the plain objective.

`--share` is that of prompts with a beginning in every batch, 3/4 as with 3 cuts and the plain problem; at 1 there are
only these, at 0 it is GRPO. `--baseline.std group` divides by the deviation.

Differs from its base, GRPO with the settings of Dr. GRPO, in the prompts.

Departs from the paper in: the trace of a problem is its worked solution (the column `solution` of a file: put there
what an older run, another model or rejection sampling has found, and count what that cost); h counts characters, or
what `--piece` names, not tokens; every batch has the mixture of the whole pool, the two shuffled each by itself.
Optimizer, batch and lengths are not known and assumed.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polopt.bases.language import check_prompts
from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.data.curricula import Mixture
from polopt.data.samplers import Sequential, Shuffled
from polopt.methods.language.rec import GRPO
from polopt.policies.language import need_text
from polopt.regularizers import ReferenceKL
from polopt.tasks.base import Task
from polopt.tasks.ladders import PIECES, Cuts
from polopt.values import GroupBaseline


class PrefixRL(GRPO):
    @dataclass(frozen=True)
    class Config(GRPO.Config):
        batch_prompts: int = param(128, "assumed", low=1, unit="prompts", help="per batch")
        samples_per_prompt: int = param(8, "section 5", low=1, unit="completions")
        aggregate: str = param("constant", "assumed", choices=("token", "sequence", "constant", "sum"))
        baseline: GroupBaseline = param(GroupBaseline(), "assumed")
        reference_kl: ReferenceKL | None = param(None, "assumed", help="penalty against the model at the start")
        share: float = param(0.75, "section 5", low=0, high=1, help="of a batch's prompts with a beginning; 0: GRPO")
        cuts: int = param(3, "section 5", low=1, help="beginnings of every solution")
        low: float = param(0.4, "section 5", low=0, high=1, help="the least of a solution that is shown")
        high: float = param(0.8, "section 5", low=0, high=1, help="the most of it")
        piece: str = param("character", "assumed", choices=tuple(PIECES), help="what solutions are not cut through")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.low > self.high:
                raise UsageError(f"low must be at most high, and {self.low:g} is above {self.high:g}")
            if not self.share:
                self.refuse("cuts", "low", "high", "piece", because="on the share 0")
            elif self.share * self.batch_prompts < 1:
                raise UsageError(f"a share of {self.share:g} of {self.batch_prompts} prompts is less than one prompt")

    slug = "prefix-rl"
    headline = ("reward", "accuracy", "unprefixed", "prefixed", "completion_length")
    trains_on = "text tasks with rewards and worked solutions"
    probes = {"baseline.single": {"baseline.std": "group", "samples_per_prompt": 1}}
    metrics = {
        "unprefixed": "accuracy of the completions of problems as they stand | rises, later than with a beginning",
        "prefixed": "accuracy of those that a beginning opens | rises",
    }
    presets = {
        "paper": {"model": "meta-llama/Llama-3.1-8B-Instruct", "lr": 1e-6, "policy.max_tokens": 8192},
        "small": {"batch_prompts": 16, "lr": 1e-4, "policy.max_tokens": 32},
    }
    limits = (
        Limit(
            base="grpo",
            at={"share": 0.0},
            apart={"share": 0.75},
            base_at={"baseline.std": "none", "aggregate": "constant", "reference_kl": None},
            because="without beginnings it is GRPO with the settings of its preset dr-grpo",
            collects="each",
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        {"model": "tiny", "batch_prompts": 4, "samples_per_prompt": 4, "updates_per_batch": 2, "lr": 1e-2}
        | {"low": 0.2, "policy.max_tokens": 4},
        {"pool": 64, "score_truncated": True},
    )

    def build(self, task: Task) -> None:
        need_text(self.spec)
        config = self.config
        if config.share:
            ladder = Cuts(lambda rng: rng.uniform(config.low, config.high), count=config.cuts, piece=config.piece)
            task = task.with_ladder(ladder)  # type: ignore[attr-defined]
        self.asked = task
        super().build(task)

    def prepare(self) -> None:
        """Refuses also beginnings that are missing, that do not fit, or that the chat template does not let stand."""
        check_prompts(self.policy, self.asked)

    def make_sampler(self, task: Any) -> Any:
        """Every beginning once an epoch, and every problem as it stands once an epoch of its own."""
        cuts = self.config.cuts
        if not self.config.share:
            return super().make_sampler(task)
        begun, whole = (
            Sequential() if task.count is None else Shuffled(task.count * variants) for variants in (cuts, 1)
        )
        ids = (lambda number: number // cuts * (cuts + 1) + number % cuts + 1, lambda number: number * (cuts + 1))
        return Mixture(begun, whole, self.config.share, ids)

    def batch_metrics(self, batch: Batch) -> dict[str, Tensor]:
        """Also the accuracy of completions of problems as they stand, and of those that a beginning opens."""
        config = self.config
        begun = batch["index"] % (config.cuts + 1) > 0 if config.share else batch["index"] < 0
        right = batch["correct"].to(batch["reward"].dtype)
        kinds = {"unprefixed": ~begun} if config.share < 1 else {}
        kinds |= {"prefixed": begun} if config.share else {}
        kinds = {name: rows & ~batch["failed"] for name, rows in kinds.items()}
        accuracy = {name: (right * rows).sum() / rows.sum().clamp_min(1) for name, rows in kinds.items()}
        return super().batch_metrics(batch) | accuracy
