"""PROPS: a policy that avoids what was drawn already leaves less sampling error than drawing from the policy itself.

The 5 x 5 grid, and a fixed softmax policy with standard normal logits, another one for each seed. 1,024 steps are
gathered in one row, by the policy itself (`own`), or by a second one that is changed every 16 steps: `props`, with 4
epochs of 4 minibatches, or `ros`, one gradient step. `ros-each`, of which nothing is expected, is changed every step,
as ROS was proposed, and has as many gradient steps as `props` has at most. `error` is the mean of
log pi_empirical - log pi over all steps, by counts, and `error@256` that of the first 256 of them; `log_error` its
logarithm, so that differences are ratios.

`old-...` begin with 384 steps of another policy, with logits a standard normal one away: what stays in a
buffer when the policy has been updated. The error is that of all 1,024 steps beside the present policy, by which the
other 640 are gathered. `forgetful` is a broken PROPS, which avoids what the latest 16 steps have and nothing else.

Each rule has the best of three rates on tuning seeds. `drift` is KL(pi_theta || pi_phi) over the buffer at the end.
The parts of the paper's experiment with training are left out: behind every 16 steps there are up to 16 gradient
steps, which is what a comparison at equal numbers of steps has to be read beside.

Second registration; in the first (seeds 0 to 9, kept on the page) a control failed, whose margin was too narrow, and
the comparison with ROS was not sure: see the diagnosis. Its pilots and what was found then, with 256 old steps 0.7
away, is below. Pilots of the second (seeds 1000 to 1007): old steps raise `log_error` of own by 0.79, deviation 0.28,
and it is 0.60 above old-props, deviation 0.27.

Pilots of the first (seeds 1000 to 1003): `error` 0.027 to 0.034 of own, 0.014 to 0.018 of props, 0.015 to 0.031 of
ros, whose best rate was the last of 10, 30 and 100, so that its grid begins at 30 now; 0.025 to 0.039 of forgetful;
0.039 to 0.053 of old-own, 0.015 to 0.023 of old-props, 0.020 to 0.024 of old-ros. `drift` is 0.02 of props.

A second look (seeds 1000 to 1002) moved the grid of ros once more, to 100, 300 and 1000, since 300 was its edge:
`error` 0.019, 0.012 and 0.013 beside 0.020, 0.015 and 0.019 of props, so that the comparison with ROS, which stays as
it was stated, will probably be lost. `ros-each` has 0.012 at 300, 0.006 at 1000 and 0.004 at 3000.

Expectations: the paper says that error is lower than that of on-policy samples (here by 35 % at least), with old steps
too, and not above that of ROS (by 10 % at most). A PROPS that does not avoid, or avoids what is not in the buffer, has
the error of `own` or of `forgetful`; one that gathered actions in exact proportion, as no rule that draws can, has 0.

What was found in the first: by geometric means props leaves 0.016 where own leaves 0.037, 57 % less, in all ten seeds;
0.021 beside 0.045 with old steps, and forgetful 0.028. So what PROPS is about holds here. Two things do not. ROS, with
one gradient step for up to 16, leaves 0.016 as well, with bounds that do not exclude that PROPS is more than 10 %
worse; it is lower with old steps (0.014), and with as many gradient steps, `ros-each`, it is far lower: 0.0065, at a
rate that may not be its best yet. It goes further from the policy for that, a `drift` of 0.05, 0.16 and 0.47 with old
steps, beside 0.02 and 0.03 of props, which its clip and its bound hold back. On a table, where every logit is free,
this costs nothing; a network is not tried. And the control that old steps raise the error of own by a fifth was set
too near the pilots: they raise it by 21 % (0.19 in the logarithm, of the 0.2 asked), not in every seed, as 256 steps
are few. Verdict and thresholds are left as they are.

What was found in the second: in twenty fresh seeds all holds but the comparison with ROS. By geometric means props
leaves 0.0145 where own leaves 0.035, and 0.045 where own leaves 0.085 with old steps; forgetful has 0.027. ROS leaves
0.0126, so that PROPS is 15 % above it, where 10 % were allowed: on a table its one long step for each change is at
least as good, and 0.0063 when it is changed every step; with old steps it has 0.039, at a drift of 2.0, where PROPS
stays at 0.04. What clip and penalty buy is that the second policy stays near, which a table does not need and a
network or a Gaussian might. That is the diagnosis, and it is not shown here. With the threshold of the first, 0.45,
old steps would hold as well: the lower bound is 0.52.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any

from polopt.claims import Below, Claim, Greater, best_of

EVERY, OLD, DISTANCE = 16, 384, 1.0
RATES = {"proximal": (0.03, 0.1, 0.3), "robust": (100.0, 300.0, 1000.0)}


@dataclass(frozen=True)
class Gathered:
    """Steps that a rule gathers for a fixed policy."""

    rule: str
    lr: float = 0.1
    old: bool = False
    forgetful: bool = False
    every: int = EVERY

    trains = ("props",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        from polopt.core.batch import weigh
        from polopt.core.random import paired
        from polopt.optim import renew
        from polopt.training.api import plan

        torch.set_num_threads(1)
        settings: dict[str, Any] = {"window": budget["env_steps"], "every": self.every, "batches": 1}
        settings |= {"policy": "tabular-softmax", "adaptation": "robust" if self.rule == "robust" else "proximal"}
        settings |= {"adaptation.lr": self.lr} | ({} if self.rule == "robust" else {"adaptation.drift": 0.1})
        generator = torch.Generator().manual_seed(seed)
        with paired(seed):
            method: Any = plan("props", "grid/5x5", seed=seed, **settings).build()
            table = method.policy.table
            present = torch.randn(table.shape, generator=generator)
            before = present + DISTANCE * torch.randn(table.shape, generator=generator)
            found: dict[str, float] = {}
            for taken in range(0, budget["env_steps"], self.every):
                if taken in (0, OLD):
                    table.data.copy_(before if self.old and taken < OLD else present)
                    renew(method.target_policy)
                if self.rule == "own" or (self.old and taken < OLD):
                    renew(method.behavior_policy)
                else:
                    self.adapt(method)
                batch = method.source.next(method.behavior)
                if taken + self.every in (256, budget["env_steps"]):
                    found[f"error@{taken + self.every}"] = self.error(method, batch)
            weight = weigh(batch)["weight"]
            found["drift"] = float(method.divergence(batch, weight).detach())
        method.task.close()
        error = found[f"error@{budget['env_steps']}"]
        return found | {"error": error, "log_error": log(error)}

    def adapt(self, method: Any) -> None:
        whole = method.source.window
        if self.forgetful and whole is not None:
            method.source.window = whole[:, -EVERY:]
        method.adapt()
        method.source.window = whole

    def error(self, method: Any, batch: Any) -> float:
        from polopt.methods.control.props import sampling_error

        log_prob = method.policy.log_prob(batch).detach()
        return float(sampling_error(batch["obs"].flatten(), batch["action"].flatten(), log_prob.flatten()))


def tuned(rule: str, **settings: Any) -> Any:
    return best_of(lambda lr: Gathered(rule, lr, **settings), RATES[rule], by="-error", tuning_seeds=3)


CLAIM = Claim(
    method="props",
    statement="a second policy that is kept from what the buffer has enough of leaves at least a third less sampling "
    "error than drawing from the policy itself, no more than the gradient step of ROS does, and makes up for old steps "
    "of another policy, which drawing from the policy cannot",
    budget={"env_steps": 1_024},
    seeds=20,
    minutes=8,
    revision=2,
    first_seed=10,
    diagnosis="the control that old steps raise the error of own by 0.2 was set at half of what four pilot seeds had, "
    "which was 0.4, and is 0.19 in the mean of ten: 256 steps of a near policy are too few to be sure of. Now they are "
    "384 of a policy that is further away. And ten seeds left open whether PROPS is within 10 % of ROS (0.12 in the "
    "mean, -0.03 to 0.26): now there are twenty. Expectations stay as they were, but that of old steps, which is half "
    "of what pilots have on the new stage.",
    arms={
        "own": Gathered("own"),
        "ros": tuned("robust"),
        "ros-each": tuned("robust", every=1),
        "props": tuned("proximal"),
        "forgetful": tuned("proximal", forgetful=True),
        "old-own": Gathered("own", old=True),
        "old-ros": tuned("robust", old=True),
        "old-props": tuned("proximal", old=True),
    },
    expect=(
        Greater("log_error", "old-own", "own", by=0.2, control=True),
        Below("drift", "props", 0.2, control=True),
        Greater("log_error", "own", "props", by=-log(0.65)),
        Greater("log_error", "ros", "props", by=-log(1.1)),
        Greater("log_error", "old-own", "old-props", by=0.3),
        Greater("log_error", "forgetful", "props", by=0.3),
    ),
)
