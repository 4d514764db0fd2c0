"""One-Step Flow Q-Learning (OFQL): Diffusion Q-Learning whose policy needs one network call.

Nguyen, Yoo, "Revisiting Diffusion Q-Learning: From Iterative Denoising to One-Step Action Generation", 2025, arXiv
2508.13904.

A chain of denoising steps is slow in the actor, in the critic's target and when acting, its gradient goes back through
all steps, and cutting it to one step ruins it. Here the policy is a flow whose network predicts the MEAN velocity
between two times, so that one evaluation maps noise to an action, exactly for the right network: no distillation, no
auxiliary model, no back-propagation through time.

Time 1 is noise e, time 0 the action: a_t = (1 - t) a + t e, with velocity v = e - a. For r <= t the mean velocity
u(a_t, r, t; s) obeys u = v - (t - r) du/dt, with d/dt = v . d_a + d_t along the path. So (`MeanFlowPolicy`, which has
an embedding for each of r and t)

    target        u_tgt = v - (t - r) (v . d_a u + d_t u), constant, by one forward-mode product, tangents (v, 0, 1)
    imitation     E | u(a_t, r, t; s) - u_tgt |^2,  r <= t logit-normal, r = t with probability `policy.flow_ratio`
    rsample       a0 = e - u(e, 0, 1; s), clipped to [-1, 1]

and all else is Diffusion Q-Learning (dql.py): rsample gives the actions of the critic's target and of the policy's
ascent of Q, each by one call. Clipping is for Q and the environment; the regression sees no clipped action.

Differs from DQL in the policy, in acting with one sample, and in the weight `eta`, which the paper searches in 0.001,
0.01, 0.1, 0.3, 0.5. `--candidates N` is DQL's best of N, `--policy.steps N` follows the flow in N parts.

Departs from the paper in: nothing known, but there is no released code; what the paper leaves to DQL (averages of the
policy, clipping of gradients) is DQL's, the squared norm is a mean over coordinates as there, and eta is in its middle.
"""

from dataclasses import dataclass

from polopt.bases.method import Limit, Smoke
from polopt.config import param
from polopt.methods.offline.dql import CLONING, DQL
from polopt.policies import AnyPolicy, MeanFlow


class OFQL(DQL):
    @dataclass(frozen=True)
    class Config(DQL.Config):
        eta: float = param(0.1, "searched per task", low=0, help="weight of Q beside imitation, in units of E|Q|")
        candidates: int = param(1, "assumed", low=1, help="samples of which one acts; 1: a sample acts")
        policy: AnyPolicy = param(MeanFlow(flow_ratio=0.5), "section 4")

    slug = "ofql"
    presets = DQL.presets | {"kitchen": {"eta": 0.001, "max_grad_norm": 10.0}}
    limits = (
        Limit(
            "dql",
            at={"policy": "diffusion", "eta": 1.0, "candidates": 3},
            apart={"eta": 0.1},
            because="it is DQL with another policy",
        ),
        Limit(
            "bc",
            at=CLONING,
            apart={"eta": 0.1},
            because="without Q the policy only imitates",
            base_at={"policy": "mean-flow", "network.activation": "mish"},
            task="Pendulum-v1",
        ),
    )
    smoke = Smoke(DQL.smoke.task, DQL.smoke.steps, DQL.smoke.config | {"candidates": 1})
