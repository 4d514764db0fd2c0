"""RPO: with preferences of few of the answers, DPO makes the preferred answers themselves unlikely; RPO does not.

Each seed is another world: 100 prompts, 40 answers of two characters to all of them, and a true reward of mean 0 and
standard deviation 1 over the answers to a prompt, partly a bilinear function of prompt and answer, partly noise. The
reference is a transformer with 88,000 parameters, fine-tuned on all answers alike. 1,000 noisy (Bradley-Terry) pairs
are drawn among 8 answers per prompt, and every arm trains on them for the same number of updates, 6 epochs.

`chosen_change` is log pi - log pi_ref of the chosen answers in the end, summed over tokens, mean over the pairs;
`separation` is how much larger it is than that of the rejected ones, and `preferred` the share of pairs where it is
larger: neither tells whether chosen answers were lost. `reward` is the exact expected true reward in the end, 0 for
strings that are none of the 40 answers, `peak` its best along training and `fall` what is lost again; `answer_reward`
is the same among the answers only. `covered`, `uncovered` and `outside` are the probability of the 8 answers, of the
other 32 and of other strings.

True rewards are reported and not judged: in so small a model that of DPO may keep rising. The controls are that DPO
learns its pairs, and that RPO is no better than DPO where nothing is left uncovered: ten prompts, 6,400 fresh pairs
among all 40 answers, and the reward among the answers, for strings that are no answers are in no pair even then.

Pilots (seeds 1000 to 1005) chose the size of the model, the learning rate (of 0.001 and 0.002, with half the updates),
labels with log odds of 2 per unit of reward, and the ten prompts of the second control: with 100 nothing was learned
from fresh pairs. In them DPO lost its mass to strings that are no answers, more than to uncovered answers, and did so
with full coverage too: by the plain `reward` RPO was better there as well (0.59 against 0.02 on seed 1002), which is
why that control is about `answer_reward`. With few answers covered, on two seeds (one with log odds of 1) true rewards
ended at 0.03 and 0.05 for DPO, and at 0.23 and 0.24 for RPO with eta 0.2.

What was found: all expectations hold. The chosen answers become 7.8 nats less likely under DPO, which orders the pairs
as well as the others do (76 %), and 0.4 nats likelier under RPO with eta 1. True reward, reported only: 0.06 for DPO,
0.16 for RPO with eta 0.2, 0.12 for mere imitation; among the answers alone DPO is ahead (0.21 against 0.18), since
three quarters of its mass are on strings that are no answers. It falls little after its peak (0.03 of 0.08) except
with full coverage (0.22 of 0.50): the dramatic fall of large models is not seen here.
"""

from __future__ import annotations

import functools
import itertools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from polopt.claims import Above, Below, Claim, Greater, Ordered
from polopt.policies.small_lm import make_language_model
from polopt.training.api import plan

PROMPTS = tuple(f"{number:02d}:" for number in range(100))
ANSWERS = tuple(map("".join, itertools.product("abcde", "stuvwxyz")))
SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
COVERED, PAIRS, BATCH, LOOKS = 8, 1_000, 32, 5
CERTAINTY = 2.0  # of the labels: the log odds per unit of reward


@dataclass(frozen=True)
class World:
    """The true reward [prompts, 40], which answers are covered, and the pairs as rows of a file."""

    reward: np.ndarray
    covered: np.ndarray
    pairs: list[dict[str, str]]


def make_world(seed: int, prompts: int, covered: int, pairs: int) -> World:
    rng = np.random.default_rng(seed)
    shape = (prompts, len(ANSWERS))
    reward = rng.normal(size=(shape[0], 4)) @ rng.normal(size=(4, shape[1])) / 2 + rng.normal(size=shape) / 2
    reward = (reward - reward.mean(1, keepdims=True)) / reward.std(1, keepdims=True)
    chosen = rng.random(shape).argsort(1)[:, :covered]
    mask = np.zeros(shape, dtype=bool)
    np.put_along_axis(mask, chosen, True, 1)
    rows = []
    for prompt in np.arange(pairs) % shape[0]:
        one, other = rng.choice(chosen[prompt], 2, replace=False)
        if rng.random() > 1 / (1 + np.exp(CERTAINTY * (reward[prompt, other] - reward[prompt, one]))):
            one, other = other, one
        rows.append({"prompt": PROMPTS[prompt], "chosen": ANSWERS[one], "rejected": ANSWERS[other]})
    return World(reward, mask, rows)


def write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


@functools.lru_cache(maxsize=1)
def reference(seed: int) -> Any:
    """A temporary folder with the model `ref`; the arms of a seed share it."""
    kept = tempfile.TemporaryDirectory(prefix="polopt-claim-")
    folder = Path(kept.name)
    make_language_model(folder / "new", SHAPE, seed=seed, context=16)
    rows = [{"prompt": prompt, "solution": answer} for prompt in PROMPTS for answer in ANSWERS]
    settings = {"model": str(folder / "new"), "lr": 3e-3, "batch_size": 128, "seed": seed}
    method: Any = plan("sft", write(folder / "all.jsonl", rows), task_options={"heldout": False}, **settings).build()
    for _ in range(200):
        method.update(method.collect())
    method.policy.export(folder / "ref")
    return kept


NOW = {name: f"imitation.{name}" for name in ("eta", "coefficient")}  # the recorded lines have the names of that time


@dataclass(frozen=True)
class Arm:
    """One method on the pairs of a seed's world."""

    method: str
    settings: tuple[tuple[str, Any], ...] = ()
    full: bool = False  # all answers to the first ten prompts are covered, and every pair is new

    def __call__(self, seed: int, budget: Mapping[str, int]) -> dict[str, Any]:
        torch.set_num_threads(1)
        updates = budget["updates"]
        size = (10, len(ANSWERS), updates * BATCH) if self.full else (len(PROMPTS), COVERED, PAIRS)
        world = make_world(seed, *size)
        rows = [row | {"solution": row["chosen"]} for row in world.pairs]
        with tempfile.TemporaryDirectory(prefix="polopt-claim-") as folder:
            path = write(Path(folder) / "pairs.jsonl", rows)
            settings = {"model": str(Path(reference(seed).name) / "ref"), "lr": 2e-3, "batch_size": BATCH, "seed": seed}
            settings |= {NOW.get(name, name): value for name, value in self.settings}
            settings |= {} if self.method == "sft" else {"beta": 0.1}
            measured = {name: settings[name] for name in ("model", "seed")} | {"beta": 0.1}
            judge: Any = plan("dpo", path, task_options={"heldout": False}, **measured).build()
            method: Any = plan(self.method, path, task_options={"heldout": False}, **settings).build()
        judge.policy = method.policy  # measured with the pairs and the reference of DPO, whatever it was trained by
        table = method.policy.tokenize([p for p in PROMPTS[: size[0]] for _ in ANSWERS], list(ANSWERS) * size[0])
        curve = [[0, look(judge, world, table)["reward"]]]
        for update in range(1, updates + 1):
            method.update(method.collect())
            if update % max(1, updates // LOOKS) == 0 or update == updates:
                found = look(judge, world, table)
                curve.append([update, found["reward"]])
        peak = max(reward for _, reward in curve)
        return found | {"peak": peak, "fall": peak - found["reward"], "curve": curve}


@torch.no_grad()
def look(judge: Any, world: World, table: Any) -> dict[str, float]:
    """What the policy does with all answers to all prompts (`table`), and with the first 1,000 pairs."""
    log_prob = judge.policy.log_prob(table).sum(1)
    probability = log_prob.double().exp().reshape(world.reward.shape).numpy()
    metrics = judge.policy_loss(judge.score_reference(judge.source.data[:PAIRS]))[1]
    inside = probability.sum(1)
    expected = (probability * world.reward).sum(1)
    return {
        "reward": float(expected.mean()),
        "answer_reward": float((expected / inside).mean()),
        "covered": float((probability * world.covered).sum(1).mean()),
        "uncovered": float((probability * ~world.covered).sum(1).mean()),
        "outside": float(1 - inside.mean()),
        "chosen_change": float(metrics["chosen_log_ratio"]),
        "rejected_change": float(metrics["rejected_log_ratio"]),
        "separation": float(metrics["chosen_log_ratio"] - metrics["rejected_log_ratio"]),
        "preferred": float(metrics["preferred"]),
    }


def rpo(eta: float, **more: Any) -> Arm:
    return Arm("rpo", (("eta", float(eta)),), **more)


CLAIM = Claim(
    method="rpo",
    statement="trained on pairs of few answers, DPO makes the chosen answers less likely than they were; RPO does so "
    "less the larger eta is, and holds them with eta 1 and in its average form; a large eta is mere imitation",
    budget={"updates": 200},
    seeds=8,
    minutes=10,
    arms={
        "dpo": Arm("dpo"),
        "rpo@0.2": rpo(0.2),
        "rpo@1": rpo(1),
        "rpo@100": rpo(100),
        "rpo-average": Arm("rpo", (("imitation", "average"), ("coefficient", 0.2))),
        "sft": Arm("sft"),
        "dpo-full": Arm("dpo", full=True),
        "rpo-full": rpo(0.2, full=True),
    },
    expect=(
        Above("preferred", "dpo", 0.6, control=True),
        Greater("answer_reward", "dpo-full", "rpo-full", by=-0.1, control=True),
        Below("chosen_change", "dpo", -1),
        Above("chosen_change", "rpo@1", 0),
        Above("chosen_change", "rpo-average", 0),
        Ordered("chosen_change", ("dpo", "rpo@0.2", "rpo@1")),
        Greater("separation", "rpo@1", "rpo@100"),
        Greater("separation", "rpo@100", "sft", by=-0.5),
        Greater("separation", "sft", "rpo@100", by=-0.5),
    ),
)
