"""Policy evaluation in continuous time: CTD(lambda), CLSTD, CGTD and the martingale loss.

Jia and Zhou, "Policy Evaluation and Temporal-Difference Learning in Continuous Time and Space: A Martingale Approach",
JMLR 2022, arXiv 2108.06655.

Under a fixed policy the state X follows a diffusion, r is the rate of reward and h what the end pays. J is the policy's
value exactly if J(t, X_t) plus all reward so far is a martingale M: no test function xi_t that knows the past only may
predict its increments. The choice of xi is the method; J = h(x) + (T - t) weights . monomials(T - t, x) has the
gradient `phi`, and J(T, .) = h for all weights. With discount g = exp(-discount_rate dt), over the grid t_i:

    dM_i = g J(t_{i+1}, X_{i+1}) - J(t_i, X_i) + r_i dt     never divided by dt;  g J = 0 beyond the end
    0    = E sum_i xi_i dM_i                                martingale orthogonality, in short E[b - A weights] = 0
    CTD(0)            xi_i = phi_i
    CTD(lambda)       xi_i = g lambda^dt xi_{i-1} + phi_i dt     lambda is the decay of the trace in one unit of time
    martingale loss   lambda = 1: gradient Monte Carlo, the gradient of E sum_i (return after t_i - J)^2 dt / 2
    TD error          xi_i = -d(dM_i)/d(weights), which knows X_{i+1}: the gradient of E sum_i (dM_i)^2 / 2. As dt -> 0
                      that is the quadratic variation of M, least for a J that is flat in x: the wrong one, to compare

    steps             weights <- weights + lr k^-power (b - A weights)        CTD; `online`: dM_i by dM_i
    least squares     weights = (sum A)^-1 sum b over all episodes            CLSTD
    two time scales   w <- w + tracking_lr (b - A weights - C w), weights <- weights + lr k^-power A^T w,
                      C = E sum_i xi_i xi_i^T dt                              CGTD

Differs from TD(lambda), its base, in the time: lambda and the discount are per unit of it and steps do not shrink with
dt, so that results do not depend on the grid. For the value of a given policy where decisions are close in time;
`--preset clstd` needs no rate.

Departs from the paper in: J is linear in its weights, and exp(-discount_rate dt) is what the paper has to the first
order, 1 - discount_rate dt. Where a task does not say that it is a diffusion (`spec.info["diffusion"]`), a decision
takes time 1, J = weights . monomials(observation), and what is cut off goes on with the value of its end.
"""

import math
from dataclasses import dataclass
from functools import reduce
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from polopt.bases.method import Method, Smoke
from polopt.config import Config, param
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.random import paired
from polopt.core.spec import Spec
from polopt.data.episodes import Episodes
from polopt.networks import Network
from polopt.networks.encoders import Obs, make_encoder
from polopt.policies import AnyPolicy, Auto
from polopt.tasks.base import Task
from polopt.tasks.diffusions import Diffusion
from polopt.values.returns import recursion

MOST = 2000  # monomials: least squares invert a matrix of them at every update


def monomials(x: Tensor, degree: int) -> Tensor:
    """All products of at most `degree` coordinates of x [..., n], the empty one first: [..., d], in float64."""
    columns = x.double().unbind(-1)
    chosen = [each for count in range(degree + 1) for each in combinations_with_replacement(columns, count)]
    return torch.stack([reduce(torch.mul, each, torch.ones_like(columns[0])) for each in chosen], -1)


def traces(phi: Tensor, decay: float, dt: float) -> Tensor:
    """sum_{j <= i} decay^(i - j) phi_j dt for every i along the second dimension of phi [R, T, d]."""
    trace, found = torch.zeros_like(phi[:, 0]), []
    for column in phi.unbind(1):
        trace = decay * trace + column * dt
        found.append(trace)
    return torch.stack(found, 1)


@dataclass(frozen=True)
class CTD(Config):
    """CTD(lambda)."""

    trace: float = param(0.0, "section 4.2", low=0, high=1, help="lambda: what is left of a trace after time 1")

    def test_functions(self, phi: Tensor, change: Tensor, discount: float, dt: float) -> Tensor:
        """xi [R, T, d] for the gradients `phi` of J and `change` of dM, both [R, T, d]."""
        return traces(phi, discount * self.trace**dt, dt) if self.trace > 0 else phi


@dataclass(frozen=True)
class MartingaleLoss(Config):
    """The squared distance of J from the return that followed."""

    def test_functions(self, phi: Tensor, change: Tensor, discount: float, dt: float) -> Tensor:
        return traces(phi, discount, dt)


@dataclass(frozen=True)
class TDError(Config):
    """The mean-square TD error: what not to use."""

    def test_functions(self, phi: Tensor, change: Tensor, discount: float, dt: float) -> Tensor:
        return -change


class LinearValue(nn.Module):
    """J = payoff + time left * weights . monomials where the task is a diffusion, else weights . monomials.

    Monomials are of the observation as one vector: entries of a dict side by side, one-hot where it is a number.

    Buffers, all float64: `weights` [d], and what solvers keep: the sums `matrix` [d, d] of A and `vector` [d] of b over
    all updates, `tracked` w [d], and the number of `updates`. Raises UsageError for more than `MOST` monomials.
    """

    weights: Tensor
    matrix: Tensor
    vector: Tensor
    tracked: Tensor
    updates: Tensor

    def __init__(self, spec: Spec, degree: int) -> None:
        super().__init__()
        self.degree = degree
        self.diffusion: Diffusion | None = spec.info.get("diffusion")
        self.vectors = make_encoder(spec.obs, "flat")
        count = math.comb(self.vectors.size + degree, degree)
        if count > MOST:
            raise UsageError(
                f"polynomials of degree {degree} in the {self.vectors.size} numbers that {spec.name} shows have "
                f"{count:,} terms, and {MOST:,} are the most that are served: a lower degree has fewer"
            )
        shapes = {"weights": (count,), "matrix": (count, count), "vector": (count,), "tracked": (count,), "updates": ()}
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def phi(self, obs: Obs) -> Tensor:
        """The gradient of J in the weights, [..., d]."""
        found = monomials(self.vectors(obs), self.degree)
        return found if self.diffusion is None else self.diffusion.left(obs.double()).unsqueeze(-1) * found

    def payoff(self, obs: Obs) -> Tensor | float:
        """J [...] without weights."""
        return 0.0 if self.diffusion is None else self.diffusion.payoff(obs.double())

    def forward(self, obs: Obs) -> Tensor:
        return self.payoff(obs) + self.phi(obs) @ self.weights


def increments(value: LinearValue, batch: Batch, discount: float) -> tuple[Tensor, Tensor, Tensor]:
    """phi [R, T, d], known [R, T] and change [R, T, d]: dM = known + change . weights. All are 0 in padding."""
    obs, ends, exists = batch["obs"], batch["final_obs"], batch["mask"].double()
    later = discount * (batch["mask"] & ~batch["terminated"]).double()
    known = later * value.payoff(ends) - exists * value.payoff(obs) + batch["reward"].double()
    phi = exists.unsqueeze(-1) * value.phi(obs)
    return phi, known, later.unsqueeze(-1) * value.phi(ends) - phi


def martingale_loss(errors: Tensor, discount: float, dt: float) -> Tensor:
    """Mean over episodes of sum_i (return after t_i - J)^2 dt / 2: that difference is the sum of dM [R, T] from t_i."""
    return recursion(errors, torch.full_like(errors, discount)).square().sum(1).mean() * dt / 2


def balance(xi: Tensor, known: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """A [d, d] and b [d]: the mean over episodes of sum_i xi_i dM_i is b - A weights."""
    matrix = -torch.einsum("rti,rtj->ij", xi, change) / len(xi)
    return matrix, torch.einsum("rti,rt->i", xi, known) / len(xi)


@dataclass(frozen=True)
class Steps(Config):
    """Stochastic approximation."""

    lr: float = param(0.5, "assumed", above=0, help="of the first update")
    power: float = param(0.67, "assumed", low=0, high=1, help="lr is divided by this power of the number of updates")
    online: bool = param(False, "section 4.2", help="a step after every decision, in place of whole episodes")

    def solve(self, value: LinearValue, xi: Tensor, known: Tensor, change: Tensor, dt: float) -> Tensor:
        """The next weights [d], from a batch of xi and `change` [R, T, d] and `known` [R, T]."""
        rate, weights = self.lr * float(value.updates) ** -self.power, value.weights
        parts = [part.split(1 if self.online else part.shape[1], 1) for part in (xi, known, change)]
        for some in zip(*parts):
            matrix, vector = balance(*some)
            weights = weights + rate * (vector - matrix @ weights)
        return weights


@dataclass(frozen=True)
class LeastSquares(Config):
    """The weights at which all episodes so far balance; the smallest where several do."""

    def solve(self, value: LinearValue, xi: Tensor, known: Tensor, change: Tensor, dt: float) -> Tensor:
        for total, part in zip((value.matrix, value.vector), balance(xi, known, change)):
            total += part
        return torch.linalg.pinv(value.matrix) @ value.vector


@dataclass(frozen=True)
class TwoTimescales(Config):
    """Gradient steps on the squared imbalance, in the norm of the inverse covariance of the test functions."""

    lr: float = param(0.5, "assumed", above=0, help="of the first update")
    power: float = param(0.67, "assumed", low=0, high=1, help="lr is divided by this power of the number of updates")
    tracking_lr: float = param(0.3, "assumed", above=0, help="of the imbalance that the gradient follows")

    def solve(self, value: LinearValue, xi: Tensor, known: Tensor, change: Tensor, dt: float) -> Tensor:
        matrix, vector = balance(xi, known, change)
        covariance = torch.einsum("rti,rtj->ij", xi, xi) * dt / len(xi)
        imbalance = vector - matrix @ value.weights
        value.tracked += self.tracking_lr * (imbalance - covariance @ value.tracked)
        return value.weights + self.lr * float(value.updates) ** -self.power * matrix.T @ value.tracked


class MartingaleTD(Method):
    @dataclass(frozen=True)
    class Config(Method.Config):
        envs: int = param(256, "assumed", low=1, help="copies of the task that are stepped together")
        batch_episodes: int = param(256, "assumed", low=1, help="whole episodes per update")
        condition: CTD | MartingaleLoss | TDError = param(CTD(), "sections 3 and 4", help="which test function")
        solver: Steps | LeastSquares | TwoTimescales = param(Steps(), "section 4", help="how its equation is solved")
        degree: int = param(2, "assumed", low=0, help="of the polynomials in time left and state")
        discount_rate: float = param(0.0, "section 2", low=0, help="per unit of time")
        network: Network = param(Network(), "assumed", help="of the policy")
        policy: AnyPolicy = param(Auto(), "assumed", help="what is evaluated; it is not trained, --init gives weights")

        inert = {"network.dropout": "policies act without it, and nothing else is done with this one"}

    slug = "martingale-td"
    unit = "episodes"
    score = "-martingale_loss"
    default_steps = 64_000
    eval_episodes = 200
    headline = ("martingale_loss", "quadratic_variation", "imbalance")
    trains_on = "any task, whose policy it evaluates and does not train"
    metrics = {
        "martingale_loss": "half the squared distance of J from the return that followed, summed over an episode's time"
        " | falls to that of the true value, which is not 0",
        "quadratic_variation": "sum of (dM)^2 over an episode | nothing that should be small",
        "imbalance": "norm of b - A weights for the batch | towards the noise of a batch",
        "eval/martingale_loss": "of fresh episodes, the same every time",
        "eval/value_error": "root mean square of J minus the exact value over the states of these episodes, where the "
        "task knows it",
    }
    presets = {
        "clstd": {"solver": LeastSquares()},
        "cgtd": {"solver": TwoTimescales()},
        "martingale-loss": {"condition": MartingaleLoss(), "solver": LeastSquares()},
        "td-error": {"condition": TDError(), "solver": LeastSquares()},
    }
    no_limit = "its bases TD(lambda), LSTD and gradient Monte Carlo are no entries; its test has them and compares"
    smoke = Smoke("brownian", 24, {"envs": 4, "batch_episodes": 4}, task_options={"horizon": 8, "control": 1.0})

    def build(self, task: Task) -> None:
        config = self.config
        self.policy = self.make_policy(config.policy, network=config.network).requires_grad_(False)
        self.value = LinearValue(self.spec, config.degree)
        self.dt = self.value.diffusion.dt if self.value.diffusion else 1.0
        self.discount = math.exp(-config.discount_rate * self.dt)
        self.source = Episodes(task, config.batch_episodes, ledger=self.ledger)

    @torch.no_grad()
    def update(self, batch: Batch) -> dict[str, Tensor]:
        config, value = self.config, self.value
        phi, known, change = increments(value, batch, self.discount)
        errors = known + change @ value.weights
        xi = config.condition.test_functions(phi, change, self.discount, self.dt)
        matrix, vector = balance(xi, known, change)
        metrics = {
            "martingale_loss": martingale_loss(errors, self.discount, self.dt),
            "quadratic_variation": errors.square().sum(1).mean(),
            "imbalance": (vector - matrix @ value.weights).norm(),
        }
        value.updates += 1
        value.weights = config.solver.solve(value, xi, known, change, self.dt)
        return metrics

    @torch.no_grad()
    def evaluate(self, task: Task, episodes: int = 10, *, greedy: bool = True) -> dict[str, float]:
        """Of fresh episodes, the same at every call, of the policy as it acts (`greedy` does not matter)."""
        with paired():
            batch = Episodes(task, starts=range(episodes)).next(self.policy)
        _, known, change = increments(self.value, batch, self.discount)
        loss = martingale_loss(known + change @ self.value.weights, self.discount, self.dt)
        length = batch["mask"].sum(1).double().mean()
        scores = {"martingale_loss": loss, "return": batch["reward"].sum(1).mean(), "length": length}
        exact = self.value.diffusion.value if self.value.diffusion else None
        if exact and self.config.discount_rate == 0:
            states = batch["obs"][batch["mask"]].double()
            scores["value_error"] = (self.value(states) - exact(states)).square().mean().sqrt()
        return {name: float(score) for name, score in scores.items()}
