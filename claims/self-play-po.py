"""Self-play PO: where preferences go in a circle, or look at whole episodes, win rates arrive where a reward does not.

`circle`: three actions, one decision; each beats the next one in two comparisons of three. The minimax winner is
uniform. The policy begins at (0.8, 0.15, 0.05); 2,000 updates of 32 episodes, all of which are compared with each
other, one drawn answer a pair. `tv` is the total variation between the mean of all policies and uniform, `exploit`
what the best action wins against that mean, in [-1, 1]; `last_exploit` is of the last policy, `kept_tv` of the mixture
of 32 policies that the method keeps. Plain gradient steps with lr 0.15, 0.3 and 0.6; all metrics are means over them.

`walk`: eight steps, slow or fast. An episode with at most two fast steps beats all with more; among the first more fast
steps win, among the others fewer; the better one always wins. So one with two fast steps loses to none, whenever they
are. The observation is always the same; the policy counts its steps (`network.recurrent` clock). 300 updates of 32
episodes, lr 0.1, 0.2 and 0.4. `two` is the probability of two fast steps, `fast` their mean number, `wins` the exact
probability to win against the reward model's last policy of the same rate and seed (ties count half), which has the
`model_two` and `model_fast`.

The model is the same learner with the same comparisons: in every update a Bradley-Terry model of a reward of each step,
r(observation, action), is fitted to all answers so far, to the largest likelihood, and its return takes the place of
the win rate. As observations are equal, r is one number for each action.

Pilots (seeds 1000 and 1001): `tv` 0.03 of circle on 1000, 0.03 and 0.10 in an earlier pilot with lr 0.2, 0.4 and 0.8,
of which the last goes round too far out (0.19 on 1001): hence the lower rates and 2,000 updates in place of 1,500.
`exploit` 0.01 and, earlier, 0.02 and 0.05; of circle-model 0.31 and 0.30; `last_exploit` 0.2 to 0.3 of circle, which is
no failure; `two` 0.91 and 0.78, `wins` 0.96 and 0.91, `model_fast` below 1e-8.

Expectations: perfect self-play has `tv` 0 but for the noise of drawn answers, and `two` 1; one that compares with a
fixed set of episodes, or fits a reward, goes to one action (`exploit` 1/3, `tv` 2/3). The model can only say that fast
is better, or slow, everywhere: most of the first episodes have too many fast steps, so it learns slow. Where a model
fitted to the latest answers alone, or one that sees the clock, would end is not asked here.

What was found: all expectations hold. In the circle the mean of all policies is 0.06 from uniform in total variation
and loses 0.03 to the best action; the reward model goes to one action (0.62 and 0.30). The last policy goes round
(0.27), and the 32 policies that are kept are 0.10 from uniform, a sample's distance. In the walk self-play has two fast
steps with probability 0.86 and wins 0.94 against the model's policy, which never goes fast. The model has a reward of
steps that cannot count; what one that sees the clock would do is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from polopt.claims import Above, Below, Claim, Greater

EPISODES, START, STEPS, MOST = 32, (0.8, 0.15, 0.05), 8, 2
RATES = {"circle": (0.15, 0.3, 0.6), "walk": (0.1, 0.2, 0.4)}


def world(name: str) -> Any:
    """One observation; an episode of one step with three actions, or of eight with two."""
    import torch
    from gymnasium import spaces

    from polopt.core.spec import Spec
    from polopt.tasks.simulated import Simulated

    class Blind(Simulated):
        finite = True

        def __init__(self, *args: Any, **rest: Any) -> None:
            super().__init__(*args, horizon=1 if name == "circle" else STEPS, **rest)
            actions = spaces.Discrete(3 if name == "circle" else 2)
            self.spec = Spec(spaces.Discrete(1), actions, name, {"horizon": self.horizon})

        def begin(self, draws: Any) -> Any:
            return {"index": draws["index"]}

        def advance(self, state: Any, time: Any, action: Any) -> Any:
            return state, torch.zeros(len(time)), torch.zeros(len(time), dtype=torch.bool), {}

        def observe(self, state: Any, time: Any) -> Any:
            return torch.zeros_like(time)

    return Blind


def table(name: str) -> Any:
    """P [O, O] in [-1, 1] between outcomes: the action, or the number of fast steps."""
    import torch

    if name == "circle":
        ahead = torch.eye(3, dtype=torch.float64).roll(1, 1)
        return (ahead - ahead.T) / 3
    fast = torch.arange(STEPS + 1, dtype=torch.float64)
    worth = torch.where(fast <= MOST, fast, -fast)
    return (worth.unsqueeze(1) - worth).sign()


def outcome(rows: Any) -> Any:
    """int64 [N] of episodes: the sum of their actions."""
    return rows["action"].sum(1)


@dataclass(frozen=True)
class Judge:
    """Says the probabilities of the table."""

    name: str

    def __call__(self, mine: Any, theirs: Any) -> Any:
        return (1 + table(self.name)[outcome(mine)][:, outcome(theirs)]) / 2


def fitted(wins: Any, features: Any, theta: Any) -> Any:
    """theta [d] of the largest likelihood of `wins` [O, O] of outcomes with returns `features` [O, d] @ theta, with a
    normal prior of deviation 100: Newton steps from where it was."""
    import torch

    difference = features.unsqueeze(1) - features  # [O, O, d]
    for _ in range(8):
        lost = torch.sigmoid(-difference @ theta)
        slope = torch.einsum("uv,uvd->d", wins * lost, difference) - 1e-4 * theta
        curve = torch.einsum("uv,uvd,uve->de", wins * lost * (1 - lost), difference, difference)
        step = torch.linalg.solve(curve + 1e-4 * torch.eye(len(theta), dtype=theta.dtype), slope)
        theta = theta + step * min(1.0, 1.0 / max(float(step.abs().max()), 1e-12))
    return theta


def play(name: str, model: bool, lr: float, seed: int, updates: int) -> tuple[Any, Any, Any]:
    """The mean of all policies, the last one, and the mean of those that were kept, each [T, A]."""
    import torch

    from polopt.training.api import plan

    settings = {"judge": Judge(name), "drawn": True, "queue": EPISODES, "episodes": EPISODES, "envs": EPISODES}
    settings |= {"network.sizes": (), "optimizer": "sgd", "lr": lr, "average": 0 if model else 32, "loggers": ()}
    if name == "walk":
        settings |= {"network.recurrent": "clock", "network.recurrent_size": 16}
    method: Any = plan("self-play-po", world(name), seed=seed, **settings).build()
    weight, bias = method.actor.parameters()
    with torch.no_grad():
        weight.zero_()
        bias.copy_(torch.tensor(START).log() if name == "circle" else torch.zeros(2))
    if model:
        learn_reward(method, name)
    steps = torch.arange(method.task.horizon)
    blind = {"obs": torch.zeros_like(steps), "first": steps == 0, "hidden": torch.zeros(len(steps), 1)}

    def policy(actor: Any) -> Any:
        return actor.logits(blind).detach().double().softmax(-1)

    mean = torch.zeros(len(steps), len(bias), dtype=torch.float64)
    for _ in range(updates):
        mean += policy(method.actor) / updates
        method.update(method.collect())
    kept = mean if model else torch.stack([policy(copy) for copy in method.policy.copies]).mean(0)
    return mean, policy(method.actor), kept


def learn_reward(method: Any, name: str) -> None:
    """From now on its win rates are the returns of a reward model of all answers so far."""
    import torch

    count = len(table(name))
    features = torch.eye(3, dtype=torch.float64) if name == "circle" else torch.arange(float(count)).double()[:, None]
    wins, theta = torch.zeros(count, count, dtype=torch.float64), torch.zeros(features.shape[1], dtype=torch.float64)

    def compared(batch: Any) -> tuple[Any, dict[str, Any]]:
        nonlocal wins, theta
        answers, _ = method.answers(batch)  # all are of this batch: each pair is 1 in one order and -1 in the other
        mine, theirs = outcome(batch), outcome(method.queue.rows)
        pair = (mine.unsqueeze(1) * count + theirs)[answers > 0]
        wins = wins + torch.bincount(pair, minlength=count * count).view(count, count)
        theta = fitted(wins, features, theta)
        returns = (features @ theta)[mine].to(batch["reward"])
        shared = (returns / batch.shape[1]).unsqueeze(1).expand(batch.shape)
        return batch.clone(False).set("shared", shared), {}

    method.compared = compared


def chances(policy: Any) -> Any:
    """The distribution [9] of the number of fast steps of a policy [8, 2]."""
    import torch

    found = torch.ones(1, dtype=torch.float64)
    for slow, fast in policy:
        none = found.new_zeros(1)
        found = torch.cat([found * slow, none]) + torch.cat([none, found * fast])
    return found


@dataclass(frozen=True)
class Played:
    """An arm: a world, and whether a reward is learned; the mean over the rates."""

    name: str
    model: bool = False

    trains = ("self-play-po",)

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        import torch

        torch.set_num_threads(1)
        runs = [self.run(lr, seed, budget) for lr in RATES[self.name]]
        each = {f"{name}@{lr}": run[name] for lr, run in zip(RATES[self.name], runs) for name in run}
        return {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]} | each

    def run(self, lr: float, seed: int, budget: Mapping[str, int]) -> dict[str, float]:
        game = table(self.name)
        mean, last, kept = play(self.name, self.model, lr, seed, budget[self.name])
        if self.name == "circle":
            apart = [float((each - 1 / 3).abs().sum() / 2) for each in (mean, kept)]
            exploit = [float((game @ each[0]).max()) for each in (mean, last)]
            return {"tv": apart[0], "kept_tv": apart[1], "exploit": exploit[0], "last_exploit": exploit[1]}
        number = chances(last)
        theirs = play("walk", True, lr, seed, budget["walk"])[1]
        rival = chances(theirs)
        return {
            "two": float(number[MOST]),
            "fast": float(last[:, 1].sum()),
            "wins": float(1 + number @ game @ rival) / 2,
            "model_two": float(rival[MOST]),
            "model_fast": float(theirs[:, 1].sum()),
        }


CLAIM = Claim(
    method="self-play-po",
    statement="where preferences go in a circle the mean of the policies of self-play comes to the minimax winner, and "
    "where they look at whole episodes its last policy beats the one that a reward model of the same comparisons "
    "leads to",
    budget={"circle": 2_000, "walk": 300},
    seeds=5,
    minutes=6,
    arms={
        "circle": Played("circle"),
        "circle-model": Played("circle", model=True),
        "walk": Played("walk"),
    },
    expect=(
        Above("exploit", "circle-model", 0.2, control=True),
        Below("tv", "circle", 0.1),
        Greater("exploit", "circle-model", "circle", by=0.15),
        Above("two", "walk", 0.5),
        Above("wins", "walk", 0.6),
    ),
)


def figures(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The circle at one rate and seed: the policy after every 20 updates, and the mean of all so far, in a triangle."""
    import torch

    from polopt.evaluation.figures import Paths

    def plane(policies: Any) -> tuple[Any, Any]:
        """The places [n] of distributions [n, 3] in a triangle with corners (0, 0), (1, 0) and (1/2, sqrt(3)/2)."""
        return policies[:, 1] + policies[:, 2] / 2, 0.75**0.5 * policies[:, 2]

    start = torch.tensor(START, dtype=torch.float64)
    runs = [play("circle", False, 0.3, 1000, updates) for updates in range(20, 401, 20)]
    model = [play("circle", True, 0.3, 1000, updates) for updates in range(20, 201, 20)]
    paths = {
        "self-play, the last": plane(torch.stack([start, *(last[0] for _, last, _ in runs)])),
        "self-play, the mean": plane(torch.stack([start, *(mean[0] for mean, _, _ in runs)])),
        "reward model, the last": plane(torch.stack([start, *(last[0] for _, last, _ in model)])),
    }
    x, y = plane(torch.full((1, 3), 1 / 3, dtype=torch.float64))
    return {"policies in the circle; corners are sure actions": Paths(paths, {"uniform": (float(x[0]), float(y[0]))})}
