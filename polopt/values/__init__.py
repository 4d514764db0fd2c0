"""How good decisions are: returns and advantages, targets, critics, baselines of groups, and the scale of rewards.

This file imports no torch: it holds the configs that the command line reads.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from polopt.config import Config, param
from polopt.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from polopt.core.spec import Spec
    from polopt.networks import Network
    from polopt.values.conservative import ConservativeQ
    from polopt.values.in_sample import InSample


@dataclass(frozen=True)
class GroupBaseline(Config):
    """The advantage of whole rows (responses, episodes) from the rewards of the rows of their group.

    advantage = (reward - baseline - shift) / scale. A row that is alone in its group (with the baseline "batch", in
    that) has baseline and shift 0 and scale 1, so that its advantage is its reward, unless `single` is "zero". Where
    all rewards of a group are equal the baseline is exactly that reward; where all that a deviation is taken over are,
    the advantage is 0.
    """

    baseline: str = param(
        "mean",
        "arXiv 2402.03300",
        choices=("mean", "leave-one-out", "log-avg-exp", "batch", "none"),
        help="mean of the group, mean of the others in it, soft maximum of the group, mean of the batch, 0",
    )
    temperature: float = param(
        1.0,
        "arXiv 2509.24203",
        above=0,
        unit="reward",
        help="of log-avg-exp: temperature * log mean exp(x / temperature)",
    )
    std: str = param(
        "none",
        "arXiv 2503.20783",
        choices=("none", "group", "batch", "batch-centered"),
        help="divide by the standard deviation of the rewards of the group, of the batch, or of the batch's rewards "
        "minus their baselines",
    )
    std_eps: float = param(1e-6, "arXiv 2509.24203", low=0, help="added to the standard deviation")
    ddof: int = param(1, "verl", choices=(0, 1), help="the deviation divides by n - ddof: 1 in verl and TRL, 0 in REC")
    shift: float = param(
        0.0,
        "arXiv 2506.20520",
        unit="reward",
        help="added to the baseline; below 0, good rows weigh more than bad",
    )
    single: str = param(
        "reward", "verl", choices=("reward", "zero"), help="the advantage of a row that is alone in its group"
    )

    named: ClassVar[dict[str, "GroupBaseline"]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.baseline != "log-avg-exp" and self.temperature != 1.0:
            raise UsageError(f"temperature has no effect on the baseline '{self.baseline}'")
        if self.std == "none" and self.std_eps != 1e-6:
            raise UsageError("std_eps has no effect on a baseline with std 'none'")
        if self.std == "none" and self.ddof != 1:
            raise UsageError("ddof has no effect on a baseline with std 'none'")
        if (self.baseline, self.std) == ("none", "none") and self.single != "reward":
            raise UsageError("single has no effect on the baseline 'none': no row has a group")

    def advantage(self, reward: "Tensor", group: "Tensor", valid: "Tensor | None" = None) -> "Tensor":
        """Advantages shaped like `reward`; `group` (int64, dense ids) and `valid` (bool) have its shape.

        Rows that are not valid are in no statistic and get 0. Raises ValueError when shapes differ.
        """
        from polopt.values.groups import group_advantage

        return group_advantage(self, reward, group, valid)


GroupBaseline.named.update(
    {
        "dr-grpo": GroupBaseline(),  # arXiv 2503.20783
        "grpo": GroupBaseline(std="group"),  # arXiv 2402.03300
        "rloo": GroupBaseline(baseline="leave-one-out"),  # arXiv 2402.14740
        "opmd": GroupBaseline(baseline="log-avg-exp"),  # arXiv 2501.12599
        "asymre": GroupBaseline(shift=-0.1),  # arXiv 2506.20520
        "rec": GroupBaseline(std="group", ddof=0),  # arXiv 2509.24203, official code with std_normalize
        "batch-mean": GroupBaseline(baseline="batch"),
        "lite-ppo": GroupBaseline(std="batch"),  # arXiv 2508.08221
        "reinforce-plus-plus": GroupBaseline(baseline="batch", std="batch"),  # arXiv 2501.03262
    }
)


@dataclass(frozen=True)
class Overlong(Config):
    """What becomes of completions near and at the token limit (DAPO, arXiv 2503.14476, section 3.4)."""

    cut: str = param(
        "train",
        "arXiv 2503.14476",
        choices=("train", "mask", "drop"),
        help="completions cut at the limit: trained on; without loss, but in the baseline; in neither",
    )
    buffer: float = param(
        0.0,
        "arXiv 2503.14476, equation 13",
        low=0,
        high=1,
        help="last part of the limit, over which the soft penalty of the reward grows; 0: none (DAPO: 0.2)",
    )
    penalty: float = param(1.0, "arXiv 2503.14476, equation 13", low=0, unit="reward", help="at the limit")

    named: ClassVar[dict[str, "Overlong"]] = {}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.buffer == 0 and self.penalty != 1.0:
            raise UsageError("the penalty of overlong completions has no effect without a buffer")

    def penalized(self, reward: "Tensor", length: "Tensor", limit: int) -> "Tensor":
        """Rewards [B] after the soft penalty of completions of `length` [B] tokens, of which `limit` are allowed."""
        if self.buffer == 0:
            return reward
        from polopt.values.groups import soft_penalty

        return reward + self.penalty * soft_penalty(length.to(reward.dtype), limit, self.buffer * limit)


Overlong.named.update({"filter": Overlong(cut="mask"), "soft-penalty": Overlong(buffer=0.2)})


@dataclass(frozen=True)
class Histogram(Config):
    """Values as histograms, learned by classification (HL-Gauss, arXiv 2403.03950)."""

    bins: int = param(128, "arXiv 2412.06685", low=2, help="equal parts of the values from low to high")
    low: float | None = param(
        None, "assumed", unit="value", help="lower end; none: from the data's rewards (-100 for costs of 1 at 0.99)"
    )
    high: float | None = param(None, "assumed", unit="value", help="upper end; none: from the data's rewards")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise UsageError(f"the support of a value is from low to high, not from {self.low:g} to {self.high:g}")


@dataclass(frozen=True)
class Conservative(Config):
    """Q by one-step targets, pushed down at the policy's actions and up at the data's: CQL, or calibrated Cal-QL."""

    usual_tau: ClassVar[float] = 0.005  # official code of arXiv 2412.06685

    coefficient: float = param(0.005, "arXiv 2412.06685", low=0, help="of the conservative term; 0 leaves it out")
    random_actions: int = param(10, "arXiv 2412.06685", low=0, help="uniform random actions in the term")
    actions: str = param(
        "both",
        "arXiv 2412.06685",
        choices=("both", "state", "next"),
        help="the policy's actions in the term: those in s, those in s' (which the target needs anyway), or both",
    )
    calibrate: bool = param(True, "arXiv 2303.05479", help="the policy's values count as at least the data's return")
    calibrate_random: bool = param(False, "arXiv 2412.06685", help="those of random actions, too")
    temperature: float = param(1.0, "arXiv 2006.04779", above=0, unit="value", help="of the logsumexp over actions")
    histogram: Histogram | None = param(Histogram(), "arXiv 2412.06685", help="none: values are numbers")

    def build(self, spec: "Spec", network: "Network", *, discount: float, tau: float, members: int) -> "ConservativeQ":
        """A module with `critic`, `target_critic`, `columns`, `critic_loss` and `follow`."""
        from polopt.values.conservative import ConservativeQ

        return ConservativeQ(spec, network, self, discount=discount, tau=tau, members=members)


@dataclass(frozen=True)
class Implicit(Config):
    """Q and V that ask for no action outside the data: implicit Q-learning."""

    usual_tau: ClassVar[float] = 0.002  # official code of arXiv 2412.06685

    expectile: float = param(
        0.7, "arXiv 2110.06169", above=0, below=1, help="0.5: mean over the data's actions; 1: best"
    )
    histogram: Histogram | None = param(Histogram(), "arXiv 2412.06685", help="of Q; none: values are numbers")

    def build(self, spec: "Spec", network: "Network", *, discount: float, tau: float, members: int) -> "InSample":
        """A module with `critic`, `target_critic`, `value`, `value_loss`, `critic_loss` and `follow`."""
        from polopt.values.in_sample import InSample

        return InSample(
            spec,
            network,
            expectile=self.expectile,
            histogram=self.histogram,
            discount=discount,
            tau=tau,
            members=members,
        )
