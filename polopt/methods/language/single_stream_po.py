"""SPO: one completion per prompt, against a baseline that remembers.

Xu and Ding, "Single-stream Policy Optimization", 2025, arXiv 2509.13232.

No groups: each prompt x keeps a Beta tracker of its success, p(x) = alpha(x) / (alpha(x) + beta(x)), which is the
baseline BEFORE the new reward is seen. Advantages are whitened over the whole batch.

    A_i     = r_i - p(x_i),   then   A_i <- (A_i - mean A) / (std A + 1e-8)
    loss    - mean over tokens of min(rho A, clip(rho, 1 - 0.2, 1 + 0.28) A), dual clip at 10      rho = pi / pi_old
    drift   D(x)   = mean over tokens of |log pi_last(y') - log pi(y')|    y' the completion of the last visit of x,
    forget  rho(x) = clip(2^(-D(x) / D_half), rho_min, rho_max)            pi_last the policy just after that visit
    track   alpha <- rho alpha + r,   beta <- rho beta + (1 - r)           after the policy's update
    sample  P(x) proportional to sqrt(p (1 - p)) + eps, without replacement

Before the first step `initial_samples` completions of every prompt start the trackers at an effective count of
1 / (1 - rho_min); they are charged to the budget. At the first visit of a prompt D is 0, so rho is rho_max.

Differs from its base, GRPO, in all of this: no group, no barrier, no prompt whose completions teach nothing.

Departs from the paper in: rewards between 0 and 1 enter the tracker as they are; completions whose reward could not be
computed move neither policy nor tracker; of a prompt that is twice in a batch both rewards count, one after the other;
a batch larger than the pool is refused (the official code draws with replacement then); D leaves out feedback tokens.
A batch as large as the pool is the whole pool: only smaller ones are prioritized. `--sampling shuffled`, `--forgetting
constant`, `--baseline batch`, `--whiten false` and `--initial-samples 0` are the ablations; where neither baseline nor
sampling looks at the trackers, nothing is spent on their start.
"""

from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.bases.language import GroupMethod, pool_size
from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.core.batch import Batch, average
from polopt.core.errors import UsageError
from polopt.core.state import Stateful
from polopt.data.mixing import cat_rows
from polopt.data.samplers import Shuffled, Weighted
from polopt.data.sweeps import Sweep
from polopt.data.tokens import ROW, trim
from polopt.losses import Surrogate
from polopt.losses.surrogate import surrogate_loss
from polopt.policies.language import need_text
from polopt.tasks.base import Task
from polopt.values import GroupBaseline
from polopt.values.groups import group_count, group_mean
from polopt.values.tracker import BetaTracker

KEPT = (*ROW, "log_prob")


def whiten(advantage: Tensor, valid: Tensor, eps: float = 1e-8) -> Tensor:
    """(A - mean) / (std + eps) over the valid rows [B] of the whole batch; 0 for the others. Section 3.2."""
    count = valid.sum().clamp_min(1)
    mean = torch.where(valid, advantage, 0.0).sum() / count
    centered = torch.where(valid, advantage - mean, 0.0)
    return centered / ((centered.square().sum() / (count - 1).clamp_min(1)).sqrt() + eps)


def drift(last_log_prob: Tensor, log_prob: Tensor, mask: Tensor) -> Tensor:
    """D [B]: mean over the tokens of each row of |log pi_last - log pi|, all arguments [B, T]. Section 3.1."""
    distance = torch.where(mask, (last_log_prob - log_prob).abs(), 0.0)
    return distance.sum(1) / mask.sum(1).clamp_min(1)


class LastVisits(Stateful):
    """The completion of the last visit of each prompt, with its log-probabilities just after that visit."""

    def __init__(self) -> None:
        self._rows: dict[int, Batch] = {}

    def known(self, index: Tensor) -> Tensor:
        """Which prompts [B] were visited before."""
        return torch.tensor([number in self._rows for number in index.tolist()], device=index.device)

    def get(self, index: Tensor) -> Batch:
        """The rows [B] of prompts that were visited, on the device of `index` [B], padded to the longest of them."""
        return trim(cat_rows([self._rows[number] for number in index.tolist()])).to(index.device)

    def put(self, batch: Batch) -> None:
        """Keeps the rows [B] of a batch; of a prompt that is there twice, the last."""
        rows = batch.select(*KEPT).cpu().split(1)
        # Views would keep whole batches in memory.
        self._rows |= {number: row.clone() for number, row in zip(batch["index"].tolist(), rows)}

    def extra_state(self) -> dict[str, Any]:
        index = torch.tensor(sorted(self._rows))
        return {"index": index, **self.get(index)} if len(index) else {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._rows = {}
        if state:
            rows = TensorDict({name: state[name] for name in KEPT}, [len(state["index"])])
            self.put(rows.set("index", state["index"]))


class SingleStreamPO(GroupMethod):
    @dataclass(frozen=True)
    class Config(GroupMethod.Config):
        batch_prompts: int = param(1024, "official code", low=2, unit="prompts", help="per batch")
        samples_per_prompt: int = param(1, "section 3", low=1, high=1, unit="completions", help="that is the method")
        updates_per_batch: int = param(8, "official code", low=1, help="optimizer steps per batch, on parts of it")
        surrogate: Surrogate = param(Surrogate(clip_low=0.2, clip_high=0.28, dual_clip=10.0), "official code")
        baseline: str = param("tracker", "section 3.1", choices=("tracker", "batch"), help="batch: its mean reward")
        whiten: bool = param(True, "section 3.2", help="standardize advantages over the whole batch")
        initial_samples: int = param(
            8, "official code", low=0, unit="completions", help="of every prompt before the first step"
        )
        sampling: str = param("prioritized", "section 3.3", choices=("prioritized", "shuffled"))
        exploration: float = param(0.05, "official code", above=0, help="added to every sampling weight")
        forgetting: str = param("adaptive", "section 3.1", choices=("adaptive", "constant"), help="constant: rho_min")
        half_drift: float = param(0.06, "official code", above=0, unit="nats", help="drift that halves the memory")
        rho_min: float = param(0.875, "official code", above=0, below=1, help="least share of the memory that stays")
        rho_max: float = param(0.96, "official code", above=0, below=1, help="largest share of it")

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.rho_min > self.rho_max:
                raise UsageError(f"rho_min must be at most rho_max, and {self.rho_min:g} is above {self.rho_max:g}")
            if self.sampling == "shuffled":
                self.refuse("exploration", because="on the sampling 'shuffled'")
            if self.forgetting == "constant":
                self.refuse("half_drift", "rho_max", because="on the forgetting 'constant'")
            if not self.uses_tracker:
                tracked = ("initial_samples", "forgetting", "half_drift", "rho_min", "rho_max")
                self.refuse(*tracked, because="where neither baseline nor sampling looks at the tracker")

        @property
        def uses_tracker(self) -> bool:
            return (self.baseline, self.sampling) != ("batch", "shuffled")

    slug = "single-stream-po"
    probes = {"rho_max": {"rho_max": 0.9}, "half_drift": {"half_drift": 1.0}}
    headline = ("reward", "accuracy", "forgetting", "tracked", "completion_length")
    trains_on = "a pool of prompts"
    metrics = {
        "drift": "mean change of log-probabilities since the last visit",
        "forgetting": "share of memory that stays",
        "tracked": "mean of the trackers",
    }
    presets = {"small": {"batch_prompts": 128, "updates_per_batch": 1, "lr": 1e-4, "policy.max_tokens": 32}}
    limits = (
        Limit(
            base="rec",
            at={
                "samples_per_prompt": 1,
                "baseline": "batch",
                "whiten": False,
                "surrogate": "reinforce",
                "updates_per_batch": 1,
            },
            apart={"baseline": "tracker"},
            base_at={"samples_per_prompt": 1, "baseline": "batch-mean", "surrogate": "reinforce", "restraint": "none"},
            because="with the mean reward of the batch as baseline nothing is left of the tracker",
        ),
    )
    smoke = Smoke(
        "vowels",
        96,
        {
            "model": "tiny",
            "batch_prompts": 8,
            "initial_samples": 2,
            "updates_per_batch": 2,
            "lr": 1e-2,
            "policy.max_tokens": 4,
        },
        {"pool": 16, "score_truncated": True},
    )

    def build(self, task: Task) -> None:
        need_text(self.spec)
        config = self.config
        size = pool_size(task, config.batch_prompts, by=self.slug)
        self.tracker = BetaTracker(
            size,
            half_drift=config.half_drift,
            rho_low=config.rho_min,
            rho_high=config.rho_max,
            floor=config.exploration,
        )
        super().build(task)
        self.visits = LastVisits()
        prompts = config.batch_prompts // max(config.initial_samples, 1)
        self.initial_source = Sweep(task, prompts, config.initial_samples, ledger=self.ledger)
        if config.uses_tracker and config.initial_samples:
            self.initial_source.begin()

    def make_sampler(self, task: Any) -> Any:
        prioritized = self.config.sampling == "prioritized"
        return Weighted(task.size, self.tracker.weight) if prioritized else Shuffled(task.size)

    def collect(self) -> Batch:
        """One completion of each of a batch of prompts; at first, `initial_samples` of each prompt of the pool."""
        if not self.initial_source.left:
            return super().collect()
        batch = self.initial_source.next(self.behavior)
        batch["initial"] = torch.ones_like(batch["failed"])
        return batch

    @torch.no_grad()
    def start_trackers(self, batch: Batch) -> dict[str, Tensor]:
        """The first completions of some prompts set their trackers and teach nothing else."""
        samples, group, valid = self.config.initial_samples, batch["group"], ~batch["failed"]
        success = group_mean(batch["reward"], group, valid)  # completions that failed count like the others
        success = torch.where(group_count(success, group, valid) > 0, success, 0.5)[::samples]
        self.tracker.initialize(samples * success.cpu(), samples, batch["index"][::samples].cpu())
        return self.batch_metrics(batch) | {"tracked": self.tracker.value().mean()}

    @torch.no_grad()
    def evaluate_prompts(self, batch: Batch) -> Batch:
        """Adds `advantage` [B], against trackers that have not seen these rewards."""
        config = self.config
        batch = self.score_reference(batch)
        reward, valid = batch["reward"], ~batch["failed"]
        if config.baseline == "batch":
            advantage = GroupBaseline.named["batch-mean"].advantage(reward, batch["group"], valid)
        else:
            value = self.tracker.value(batch["index"].cpu()).to(reward)
            advantage = torch.where(valid, reward - value, 0.0)
        batch["advantage"] = whiten(advantage, valid) if config.whiten else advantage
        return batch

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        log_prob, weight = self.policy.log_prob(batch), batch["weight"]
        loss, metrics = surrogate_loss(
            self.config.surrogate, log_prob, batch["log_prob"], batch["advantage"], weight, mask=batch["mask"]
        )
        penalty, penalty_metrics = self.reference_term(log_prob, batch)
        return loss + penalty, metrics | penalty_metrics

    @torch.no_grad()
    def track(self, batch: Batch) -> dict[str, Tensor]:
        """Moves the trackers of the prompts of `batch` by its rewards, and remembers its completions."""
        rows = batch[~batch["failed"]].clone(False)
        index = rows["index"]
        moved, known = torch.zeros_like(rows["reward"]), self.visits.known(index)
        if known.any():
            last = self.visits.get(index[known])
            moved[known] = drift(last["log_prob"], self.policy.log_prob(last), last["mask"])
        adaptive = self.config.forgetting == "adaptive"
        rho = self.tracker.forget(moved) if adaptive else torch.full_like(moved, self.config.rho_min)
        self.tracker.update(index, rows["reward"], rho)
        rows["log_prob"] = self.policy.log_prob(rows)
        self.visits.put(rows)
        return {"drift": moved.mean(), "forgetting": rho.mean(), "tracked": self.tracker.value().mean()}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        if "initial" in batch.keys():
            return self.start_trackers(batch)
        batch = self.evaluate_prompts(batch)
        steps = [self.optimizer.minimize(self.policy_loss, part) for part in self.optimizer_batches(batch)]
        informative = (batch["advantage"].abs() > 1e-6).to(batch["advantage"].dtype).mean()
        return average(steps) | self.batch_metrics(batch) | self.track(batch) | {"informative": informative}
