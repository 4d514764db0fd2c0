"""HARPG and N-PG-IGT: a momentum of policy gradients that goes along with the policy.

Fatkhullin, Barakat, Kireeva and He, "Stochastic Policy Gradient Methods: Improved Sample Complexity for
Fisher-non-degenerate Policies", ICML 2023, arXiv 2302.01734.

The mean of past gradients has less noise than the last one, but it is of policies of the past. HARPG adds to it what
the gradient has changed by since: Hessian times step, which at a random point between the last two iterates is right in
the mean. N-PG-IGT plays its episodes ahead of the policy, so far that the mean is right where gradients are linear.
Neither weighs episodes by importance. With u_t = theta_t - theta_{t-1} and episodes tau:

    Phi(tau, theta) = sum_t advantage_t log pi(a_t|s_t)      advantage_t = sum_{h >= t} gamma^h r_h - baseline, constant
    g(tau, theta)   = grad Phi                                                           E g = grad J
    B(tau, theta) u = grad Phi <grad sum_t log pi(a_t|s_t), u> + hess Phi u              E B u = hess J u

    Hessian     v_t = B(tau^, theta^) u_t,  tau^ ~ theta^ = theta_{t-1} + q u_t,  q ~ U[0, 1]
                E v_t = grad J(theta_t) - grad J(theta_{t-1});   g_t = g(tau, theta_t) of other episodes
    Transport   v_t = 0;   g_t = g(tau~, theta~),  tau~ ~ theta~ = theta_t + min((1 - eta) / eta, longest) u_t
    Plain       v_t = 0;   g_t = g(tau, theta_t)

    d_t         = (1 - eta) (d_{t-1} + v_t) + eta g_t                                    d_0 = g_0
    theta_{t+1} = theta_t + lr d_t / |d_t|     with `normalize`, so that lr is the length of the step;  or + lr d_t

The presets are N-HARPG (none), `harpg`, `n-pg-igt` and `n-mpg`, and with `paper-` the schedules of the theory, in which
eta and lr fall together from the first update on: `decay_after` k0 gives the powers of k0 / (k0 + k) that each has.

Differs from REINFORCE in the direction d. For smooth policies, noisy gradients and small steps; networks of tanh, since
a ReLU has no curvature of its own.

Departs from the paper in: means over `episodes` and a baseline from the others of them, which keeps g and B unbiased;
eta and lr are constant by default, and the extrapolation is bounded. Departs from the authors' code in: B, where that
multiplies means over all decisions of a batch, with the other sign; credit, there gamma^(h - t) over a fitted baseline;
theta~, which lies ahead by the eta of this update and not of the last one; lr without `normalize`, as there g is a mean
over decisions.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from polopt.bases.method import Limit, Method, Smoke
from polopt.config import Config, param
from polopt.core.batch import Batch, decision_mean, decision_sum, pieces, weigh
from polopt.core.functional import assign, directional, flatten, gradient, hessian_product, unflatten
from polopt.data.episodes import Episodes
from polopt.losses.estimator import token_weights
from polopt.methods.control.reinforce import gpomdp, over_baseline
from polopt.networks import Network
from polopt.policies import AnyPolicy, Auto
from polopt.policies.base import Scores
from polopt.tasks.base import Task


def change(phi: Tensor, log_prob: Tensor, parameters: Sequence[Tensor], step: Tensor) -> Tensor:
    """B u [P] of episodes whose Phi and log-probability [R] are given, summed; u is the step [P]."""
    along = directional(log_prob, parameters, step)
    return gradient(along @ phi, parameters) + hessian_product(phi.sum(), parameters)(step)


def direction(past: Tensor, correction: Tensor, newest: Tensor, eta: float) -> Tensor:
    """d_t of d_{t-1}, v_t and g_t, all [P]."""
    return (1 - eta) * (past + correction) + eta * newest


@dataclass(frozen=True)
class Hessian(Config):
    """HARPG: past gradients change by a Hessian-vector product."""

    episodes: int | None = param(None, "polopt", low=1, help="at the point in between; None: as many as at the policy")
    power: ClassVar[float] = 1.0  # with which eta falls

    def ahead(self, eta: float) -> float:
        """How many steps beyond the policy episodes are played."""
        return 0.0


@dataclass(frozen=True)
class Transport(Config):
    """N-PG-IGT: episodes are played ahead of the policy."""

    longest: float = param(20.0, "assumed", low=0, help="steps ahead at most, where eta is small")
    power: ClassVar[float] = 0.8

    def ahead(self, eta: float) -> float:
        return min((1 - eta) / eta, self.longest)


@dataclass(frozen=True)
class Plain(Config):
    """N-MPG: past gradients stay as they are."""

    power: ClassVar[float] = 2 / 3

    def ahead(self, eta: float) -> float:
        return 0.0


class Memory(nn.Module):
    """Buffers [P]: `previous`, the iterate of the last update, and its `direction`."""

    previous: Tensor
    direction: Tensor

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.register_buffer("previous", theta)
        self.register_buffer("direction", torch.zeros_like(theta))


class Harpg(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        episodes: int = param(10, "assumed: 1 in the theory", low=1, help="per update, of all copies together")
        discount: float = param(0.99, "official code", low=0, high=1)
        baseline: str = param("leave-one-out", "polopt", choices=("none", "leave-one-out"))
        correction: Hessian | Transport | Plain = param(Hessian(), "algorithms 1 and 2", help="of past gradients")
        eta: float = param(0.1, "assumed", above=0, high=1, help="weight of the newest gradient; 1: there is no past")
        normalize: bool = param(True, "algorithms 1 and 2", help="steps of length lr, whatever the gradient's")
        lr: float = param(0.03, "assumed", above=0)
        decay_after: float | None = param(
            None, "assumed; theory and official code: 2", above=0, help="k0: eta and lr fall with k0 / (k0 + updates)"
        )
        network: Network = param(Network((64, 64), "tanh"), "official code")
        policy: AnyPolicy = param(Auto(), "official code: Gaussian or softmax")

    slug = "harpg"
    requires = (Scores,)
    headline = ("gradient_norm", "direction_norm", "entropy")
    trains_on = "tasks with episodes that end"
    metrics = {
        "gradient_norm": "|g|, mostly noise | stays",
        "direction_norm": "|d|, what is left when the noise is averaged | well below gradient_norm; falls to 0",
        "correction_norm": "|v|; 0 without one | about lr times the curvature, and noise",
        "entropy": "of the policy, in nats | falls slowly",
    }
    default_steps = 200_000
    presets = {
        "harpg": {"normalize": False, "lr": 2e-4},
        "n-pg-igt": {"correction": Transport()},
        "n-mpg": {"correction": Plain()},
        "paper-n-harpg": {"eta": 1.0, "lr": 0.1, "decay_after": 2.0},
        "paper-harpg": {"eta": 1.0, "lr": 1e-3, "decay_after": 2.0, "normalize": False},
        "paper-n-pg-igt": {"eta": 1.0, "lr": 0.1, "decay_after": 2.0, "correction": Transport()},
    }
    limits = (
        Limit(
            base="reinforce",
            base_at={"credit": "gpomdp", "optimizer": "sgd", "lr": 0.05},
            at={"eta": 1.0, "normalize": False, "lr": 0.05},
            apart={"eta": 0.5},
            because="without a past the direction is the newest gradient",
            collects="each",
        ),
    )
    smoke = Smoke("CartPole-v1", 400, {"envs": 2, "episodes": 3, "eta": 0.5, "network.sizes": (16,)})

    saved = ("updates",)

    def build(self, task: Task) -> None:
        config = self.config
        self.policy = self.make_policy(config.policy, network=config.network)
        self.optimizer = self.make_optimizer(self.policy, lr=config.lr, kind="sgd")
        self.memory = Memory(flatten(self.optimizer.parameters).detach())
        self.updates = 0
        self.source = Episodes(task, config.episodes, ledger=self.ledger)
        if isinstance(config.correction, Hessian):
            count = config.correction.episodes or config.episodes
            self.between = Episodes(task.twin(task.num), count, ledger=self.ledger)

    def decayed(self, value: float, power: float) -> float:
        """eta or lr of this update."""
        after = self.config.decay_after
        return value if after is None else value * (after / (after + self.updates)) ** power

    @property
    def eta(self) -> float:
        return self.decayed(self.config.eta, self.config.correction.power)

    @contextmanager
    def moved(self, steps: float | Tensor) -> Iterator[Tensor]:
        """Inside, the parameters are theta_t + steps u_t; gives u_t [P], which is 0 in the first update."""
        parameters = self.optimizer.parameters
        theta = flatten(parameters).detach()
        step = theta - self.memory.previous if self.updates else torch.zeros_like(theta)
        assign(parameters, theta + steps * step)
        try:
            yield step
        finally:
            assign(parameters, theta)

    def collect(self) -> Batch:
        """Episodes [R, T] at theta_t or theta~; with a Hessian, from the second update on, beside them those `between`,
        at theta^, and `back`, how many steps that is from theta_t: q - 1."""
        with self.moved(self.config.correction.ahead(self.eta)):
            batch = self.source.next(self.behavior)
        if not isinstance(self.config.correction, Hessian) or not self.updates:
            return batch
        back = torch.rand((), generator=self.generator) - 1
        with self.moved(back):
            between = self.between.next(self.behavior)
        return TensorDict({"newest": batch, "between": between, "back": back}, [])

    @torch.no_grad()
    def evaluate_episodes(self, batch: Batch) -> Batch:
        """Adds `advantage`, and `weight`, 1 / R, and `share`, the weight in a mean over all decisions, [R, T]."""
        config, batch = self.config, weigh(batch)
        mask, batch["share"] = batch["mask"], batch["weight"]
        batch["weight"] = token_weights(mask, "sum")
        batch["advantage"] = over_baseline(gpomdp(batch["reward"], config.discount, mask), mask, config.baseline)
        return batch

    def phi(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Phi of each episode over their number, its log-probability, both [R], and the mean entropy."""
        mask, (log_prob, entropy) = batch["mask"], self.policy.score(batch)
        log_prob = torch.where(mask, decision_sum(log_prob, mask), 0.0)
        phi = (batch["weight"] * batch["advantage"] * log_prob).sum(-1)
        return phi, log_prob.sum(-1), decision_mean(entropy.detach(), batch["share"])

    def update(self, batch: Batch) -> dict[str, Tensor]:
        config, eta, memory = self.config, self.eta, self.memory
        parameters, size = self.optimizer.parameters, config.micro_batch
        newest = correction = torch.zeros_like(memory.direction)
        entropy = newest.new_zeros(())
        with self.moved(config.correction.ahead(eta)):
            for part in pieces(self.evaluate_episodes(batch if batch.batch_dims else batch["newest"]), size):
                phi, _, part_entropy = self.phi(part)
                newest, entropy = newest + gradient(phi.sum(), parameters), entropy + part_entropy
        if not batch.batch_dims:
            with self.moved(batch["back"]) as step:
                for part in pieces(self.evaluate_episodes(batch["between"]), size):
                    phi, log_prob, _ = self.phi(part)
                    correction = correction + change(phi, log_prob, parameters, step)
        chosen = direction(memory.direction, correction, newest, eta) if self.updates else newest
        length = chosen.norm()
        ascent = chosen / length.clamp_min(torch.finfo(length.dtype).tiny) if config.normalize else chosen
        memory.previous, memory.direction = flatten(parameters).detach(), chosen
        self.optimizer.lr = self.decayed(config.lr, 1.0 if config.normalize else 0.5)
        self.optimizer.step(grads=unflatten(-ascent, parameters))
        self.updates += 1
        return {
            "gradient_norm": newest.norm(),
            "direction_norm": length,
            "correction_norm": correction.norm(),
            "entropy": entropy,
        }
