"""The bases of methods for language models, with a second language policy that has no density of a token."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import pytest
import torch
from torch import Tensor

from polopt.bases.language import CompletionMethod, GroupMethod, LanguageMethod
from polopt.config import param
from polopt.config.parse import apply, parse
from polopt.config.serialize import from_dict, to_dict
from polopt.core.batch import Batch, weighted_mean
from polopt.core.errors import UsageError
from polopt.methods.language.dpo import DPO
from polopt.methods.language.rec import REC
from polopt.methods.language.sft import SFT
from polopt.policies import CausalLM
from polopt.policies.base import with_noise
from polopt.tasks import make_task
from polopt.values import GroupBaseline
from tests.policies.language_models import tiny_folder
from tests.policies.masked import MaskedToy, MaskedToyPolicy


class AnySFT(SFT):
    @dataclass(frozen=True)
    class Config(SFT.Config):
        policy: CausalLM | MaskedToy = param(CausalLM(), "a test")


class AnyREC(REC):
    @dataclass(frozen=True)
    class Config(REC.Config):
        policy: CausalLM | MaskedToy = param(CausalLM(), "a test")


class AnyDPO(DPO):
    @dataclass(frozen=True)
    class Config(DPO.Config):
        policy: CausalLM | MaskedToy = param(CausalLM(), "a test")


class Drawn(CompletionMethod):
    """REINFORCE with what the policy's imitation loss says of a whole completion."""

    @dataclass(frozen=True)
    class Config(CompletionMethod.Config):
        policy: CausalLM | MaskedToy = param(CausalLM(), "a test")

    slug = "drawn"

    def policy_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = self.policy.imitation_loss(batch, batch.get("noise", None)).sum(1)
        return weighted_mean(batch["advantage"] * loss, batch["weight"]), {}

    def update(self, batch: Batch) -> dict[str, Tensor]:
        batch = batch.clone(False)
        batch["advantage"] = GroupBaseline().advantage(batch["reward"], batch["group"], ~batch["failed"])
        for part in self.optimizer_batches(with_noise(self.policy, batch)):
            self.optimizer.minimize(self.policy_loss, part)
        return self.batch_metrics(batch)


TOY = {"model": str(tiny_folder()), "policy": "masked-toy", "policy.max_tokens": 6, "lr": 1e-3}
SMALL = TOY | {"batch_prompts": 3, "samples_per_prompt": 4}


def make(cls: type[LanguageMethod], task: str = "vowels", **settings: Any) -> Any:
    torch.manual_seed(0)
    options = {"pool": 16, "score_truncated": True} if task == "vowels" else {"digits": 1}
    return cls(apply(cls.Config, settings), make_task(task, **options))


# Configs


def test_one_member_today_is_a_choice_as_well():
    assert parse(SFT.Config, ["--policy", "causal-lm", "--policy.top-k", "5"])[0].policy == CausalLM(top_k=5)
    with pytest.raises(UsageError, match="policy"):
        parse(SFT.Config, ["--policy", "masked-toy"])


def test_another_member_is_one_more_choice():
    config, _ = parse(AnySFT.Config, ["--policy", "masked-toy", "--policy.steps", "2", "--policy.max-tokens", "6"])
    assert config.policy == MaskedToy(steps=2, max_tokens=6)
    assert from_dict(AnySFT.Config, to_dict(config)) == config
    assert parse(AnySFT.Config, ["--policy.top-k", "5"])[0].policy == CausalLM(top_k=5)
    with pytest.raises(UsageError, match=r"--policy\.steps belongs to --policy masked-toy, but --policy is causal-lm"):
        parse(AnySFT.Config, ["--policy.steps", "2"])
    with pytest.raises(UsageError, match="must be one of causal-lm, masked-toy, not 'masked'"):
        parse(AnySFT.Config, ["--policy", "masked"])


def test_runs_of_today_are_read_when_there_are_more():
    old = to_dict(apply(SFT.Config, {"policy.top_k": 5, "policy.max_tokens": 7})) | {"kind": "any-sft"}
    assert from_dict(AnySFT.Config, old).policy == CausalLM(top_k=5, max_tokens=7)


def test_options_that_would_do_nothing_without_a_density_are_not_offered():
    per_token = {"aggregate", "reference_kl", "engine_correction", "engine_cap"}
    assert not per_token & {item.name for item in fields(CompletionMethod.Config)}
    assert {item.name for item in fields(GroupMethod.Config)} == per_token | {
        item.name for item in fields(CompletionMethod.Config)
    }


@pytest.mark.parametrize(
    ("cls", "task", "promise"),
    [(AnyREC, "vowels", "has a density for any action"), (AnyDPO, "addition", "scores the actions that it took")],
)
def test_a_policy_without_scores_is_refused_in_one_sentence(cls, task, promise):
    sentence = f"{cls.slug} needs a policy that {promise}, and a masked language model does not"
    with pytest.raises(UsageError, match=f"^{sentence}$"):
        make(cls, task, **TOY)


# Demonstrations


def test_a_policy_with_a_random_loss_learns_from_demonstrations(float64):
    whole, parts = (
        make(AnySFT, "addition", **TOY | {"policy.max_tokens": 16, "lr": 1e-2, "batch_size": 8, "micro_batch": size})
        for size in (None, 3)
    )
    assert isinstance(whole.policy, MaskedToyPolicy)
    task = make_task("addition", evaluation=True, digits=1)
    before = whole.evaluate(task, 8)
    state = torch.get_rng_state()
    assert whole.evaluate(task, 8) == before, "the same draws every time"
    assert torch.equal(torch.get_rng_state(), state)
    for learner in (whole, parts):
        torch.manual_seed(1)
        for _ in range(20):
            learner.update(learner.collect())
    assert whole.evaluate(task, 8)["token_loss"] < 0.7 * before["token_loss"]
    for one, other in zip(whole.policy.parameters(), parts.policy.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)  # the norms of the model are in single precision


# Completions


def test_completions_of_a_policy_without_a_density(float64):
    learner = make(Drawn, **SMALL)
    batch = learner.collect()
    assert "log_prob" not in batch.keys()
    assert batch["completion"].shape == (12, 6)
    ends = batch["completion"] == learner.policy.tokens.eos
    decided = ends.cumsum(1) - ends.long() == 0
    assert torch.equal(batch["mask"], decided)
    assert batch["attention"].all()
    assert not batch["mask"].all(), "some have tokens behind the end, which the policy wants to keep"
    before = [parameter.clone() for parameter in learner.policy.parameters()]
    metrics = learner.update(batch)
    assert metrics["completion_length"] == decided.sum(1).double().mean()
    assert any(not torch.equal(a, b) for a, b in zip(before, learner.policy.parameters()))
    assert {name for name in metrics if name.startswith("engine")} == set()


def test_a_completion_is_one_decision_and_counts_as_much_as_its_row_says():
    learner = make(Drawn, **SMALL)
    batch = learner.collect().clone(False)
    batch["mask"] = batch["mask"].clone()
    batch["mask"][2] = False  # nothing was sampled, or it failed
    weight = learner.weigh(batch)["weight"]
    wanted = torch.full((12,), 1 / 11)
    wanted[2] = 0.0
    torch.testing.assert_close(weight, wanted)
    batch["row_weight"] = torch.tensor([1.0, 0.0, 5.0, 3.0] * 3)
    weight = learner.weigh(batch)["weight"]
    total = 3 * (1 + 0 + 5 + 3) - 5
    torch.testing.assert_close(weight, torch.tensor([1, 0, 0, 3, 1, 0, 5, 3, 1, 0, 5, 3]) / total)


@pytest.mark.parametrize("cls", [Drawn, REC])
def test_a_row_of_weight_0_might_as_well_not_be_there(cls, float64):
    settings = SMALL if cls is Drawn else {**SMALL, "policy": "causal-lm"}
    learner = make(cls, **settings)
    batch = with_noise(learner.policy, learner.collect())
    batch["advantage"] = torch.randn(12)
    kept = torch.tensor([True, False, True, True] * 3)

    def gradient(batch: Batch) -> list[Tensor]:
        loss, _ = learner.policy_loss(learner.weigh(batch))
        return list(torch.autograd.grad(loss, list(learner.policy.parameters())))

    weighted = batch.clone(False)
    weighted["row_weight"] = kept.double()
    for one, other in zip(gradient(weighted), gradient(batch[kept])):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    weighted["row_weight"] = 1.0 + kept.double()
    twice = torch.cat((batch, batch[kept]))
    for one, other in zip(gradient(weighted), gradient(twice)):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)


def test_micro_batches_of_weighted_completions_add_up(float64):
    found = []
    for size in (None, 5):
        learner = make(Drawn, **SMALL | {"micro_batch": size, "updates_per_batch": 2})
        batch = learner.collect()
        batch["row_weight"] = torch.arange(12.0)
        learner.update(batch)
        found.append(list(learner.policy.parameters()))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)
