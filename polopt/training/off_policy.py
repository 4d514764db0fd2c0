"""Off-policy estimates of a saved policy on recorded data: `polopt eval RUN --ope`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polopt.bases.language import LanguageMethod
from polopt.bases.method import Method
from polopt.bases.offline import recorded_data
from polopt.core.batch import Batch
from polopt.core.errors import UsageError
from polopt.core.modules import device_of
from polopt.core.random import paired
from polopt.data.datasets import lengths
from polopt.evaluation.ope import (
    BEHAVIOR,
    FittedQ,
    by_episode,
    environment_log_prob,
    importance_sampling,
    mean_interval,
    model_returns,
)
from polopt.evaluation.statistics import Interval
from polopt.models.ensemble import Ensemble
from polopt.models.fitting import Fitting
from polopt.networks import Network
from polopt.policies.base import Density, require
from polopt.tasks.agents import AgentRows
from polopt.training import seeding
from polopt.training.api import load_method
from polopt.training.plan import OwnCode, runtime

HOLDOUT = 0.2  # share of the episodes that models and critics do not learn from, and that are judged
MODEL = Ensemble(members=5, elites=3, network=Network((128, 128), "silu"), weight_decay=(2.5e-5,))


def off_policy(
    folder: str | Path,
    data: str = "",
    *,
    checkpoint: str | int = "latest",
    stochastic: bool = False,
    discount: float | None = None,
    updates: int = 20_000,
    device: str | None = None,
    **own: Any,
) -> tuple[dict[str, Interval], dict[str, float], list[str]]:
    """Estimates of the discounted return of a saved policy by name, further numbers, and, in one sentence each, what
    could not be estimated and why.

    Models and critics learn from four episodes in five, all numbers are about the others. Of these `data` is the return
    of whoever recorded them.

    Args:
        data: a dataset or a file, as `--dataset` takes it; "" is what the run learned from.
        stochastic: of the policy's samples; else of its mode, which has no importance weights.
        discount: None takes that of the run's method, 0.99 where it has none.
        updates: steps of fitted Q evaluation.

    Raises UsageError for methods of language models, teams, policies with memory, and where there are no data.
    """
    method, planned = load_method(Path(folder), checkpoint, OwnCode.of(own), device)
    policy, config = method.policy, planned.config
    _check(method)
    discount = getattr(config, "discount", 0.99) if discount is None else discount
    learned = [config, *(getattr(config, stage) for stage in ("offline", "bc") if hasattr(config, stage))]
    names = (getattr(each, field, "") for each in learned for field in ("dataset", "demonstrations"))
    name = data or next(filter(None, names), "")
    with runtime(planned.options), closing(planned.make_task(seeding.TEST_TASK, 1)) as task:
        count = next((each.random_episodes for each in learned if hasattr(each, "random_episodes")), 10)
        records = recorded_data(name, task, random_episodes=count, facts=(BEHAVIOR,))
        if records is None:
            raise UsageError(f"{folder} has learned from no dataset: name the recorded data, --ope DATASET")
        if "next_obs" not in records.keys() or int(records["first"].sum()) < 2:
            raise UsageError(f"off-policy estimates need two recorded episodes or more, with next_obs: {name} has not")
        fitted, judged = _split(records)
        mask, reward = by_episode(judged["first"], judged["reward"])
        factor = discount ** torch.arange(mask.shape[1])
        estimates = {"data": mean_interval((factor * reward).sum(1))}
        numbers: dict[str, float] = {"discount": discount, "held_out_episodes": float(len(mask))}
        missing: list[str] = []
        ours = fitted.clone(False).set("action", policy.own_action(fitted["action"]))
        start = judged["obs"][judged["first"]].to(device_of(policy))
        estimates["fitted q"] = (
            FittedQ(policy, ours, discount=discount, greedy=not stochastic).fit(updates).value(start)
        )
        try:
            estimates["model"] = _model(policy, ours, start, int(lengths(records).max()), discount, not stochastic)
        except UsageError as error:
            missing.append(str(error))
        try:
            found, sizes = importance_sampling(reward, _log_ratio(policy, judged, stochastic), mask, discount=discount)
            estimates |= {f"{kind} importance sampling": value for kind, value in found.items()}
            numbers |= {f"{kind} effective size": size for kind, size in sizes.items()}
        except UsageError as error:
            missing.append(str(error))
    return estimates, numbers, missing


def _check(method: Method) -> None:
    if isinstance(method, LanguageMethod):
        raise UsageError(f"off-policy estimates are of control, and {method.slug} is a method for language models")
    if method.spec.agents > 1 or isinstance(method.task, AgentRows):
        raise UsageError("off-policy estimates are of single agents, and this run has a team")
    if method.policy.recurrent:
        raise UsageError("off-policy estimates ask about single observations, which a recurrent policy cannot judge")


def _split(records: Batch) -> tuple[Batch, Batch]:
    """Recorded decisions of the episodes to learn from, and of those that are held out, drawn once and for all."""
    episode = records["first"].long().cumsum(0) - 1
    count = int(episode[-1]) + 1
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    out = torch.zeros(count, dtype=torch.bool)
    out[order[: max(round(HOLDOUT * count), 1)]] = True
    return records[~out[episode]], records[out[episode]]


def _model(policy: Any, data: Batch, start: Tensor, horizon: int, discount: float, greedy: bool) -> Interval:
    with paired(0):
        model = MODEL.build(policy.spec).to(device_of(policy))
        Fitting(model, data).run()
    return mean_interval(model_returns(model, policy, start, horizon, discount=discount, greedy=greedy))


def _log_ratio(policy: Any, judged: Batch, stochastic: bool) -> Tensor:
    """[R, T]. Raises UsageError, one sentence, where there is none."""
    require(policy, Density, by="importance sampling")
    if BEHAVIOR not in judged.keys():
        raise UsageError(
            f"importance sampling needs the densities of the recorded actions, {BEHAVIOR}, which these data lack: "
            "'polopt eval RUN --stochastic --record FILE' keeps them"
        )
    if not stochastic:
        raise UsageError("importance sampling is of a policy that samples: add --stochastic")
    with torch.no_grad():
        rows = judged.to(device_of(policy))
        log_ratio = environment_log_prob(policy, rows).cpu() - judged[BEHAVIOR]
    return by_episode(judged["first"], log_ratio)[1]
