"""The actor on vLLM, against a stand-in that samples with transformers and reports as vLLM does."""

from __future__ import annotations

import pickle
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from polopt.core.errors import UsageError
from polopt.data.tokenizing import pad_left
from polopt.policies import CausalLM
from polopt.policies.vllm import VLLMActor
from tests.policies.language_models import tiny_policy


@dataclass
class SamplingParams:
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    logprobs: int
    seed: int
    stop_token_ids: list[int]
    allowed_token_ids: list[int] | None
    detokenize: bool


@dataclass
class LLM:
    """Reads its weights from a folder, and again when its workers are told to."""

    model: str
    max_model_len: int
    dtype: str
    trust_remote_code: bool
    logprobs_mode: str
    calls: list[Any] = field(default_factory=list)

    def __post_init__(self):
        self._load()

    def _load(self):
        self.policy = tiny_policy(self.model)

    def collective_rpc(self, method):
        assert method == "reload_weights"
        self.calls.append(method)
        self._load()

    def reset_prefix_cache(self):
        self.calls.append("reset")

    def generate(self, prompts, params, use_tqdm):
        outputs = []
        for prompt, param in zip(prompts, params, strict=True):
            torch.manual_seed(param.seed)
            tokens, attention = pad_left([prompt["prompt_token_ids"]], 0)
            limit = torch.tensor([param.max_tokens])
            action, mask, log_prob, ended = self.policy.generate(tokens, attention, limit, param.temperature == 0)
            ids = action[0][mask[0]].tolist()
            logprobs = [
                {token: types.SimpleNamespace(logprob=float(value)), -1: types.SimpleNamespace(logprob=0.0)}
                for token, value in zip(ids, log_prob[0])
            ]
            reason = "stop" if ended[0] else "length"
            answer = types.SimpleNamespace(token_ids=tuple(ids), logprobs=logprobs, finish_reason=reason)
            outputs.append(types.SimpleNamespace(outputs=[answer]))
        self.params = params
        return outputs


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams = LLM, SamplingParams  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


@pytest.mark.usefixtures("vllm")
def test_records_what_the_policy_records():
    policy = tiny_policy(max_tokens=20)
    actor = VLLMActor(policy)
    record, carry = actor.act(["12+3=", "a", "b c"] * 5)
    plain, _ = policy.act(["12+3=", "a", "b c"] * 5)
    assert {k: (v.dtype, v.shape[0]) for k, v in record.items()} == {k: (v.dtype, v.shape[0]) for k, v in plain.items()}
    assert (record["log_prob"] - record["engine_log_prob"]).abs().max() < 1e-4
    assert record["mask"].sum(1).max() <= 20
    last = record["action"].gather(1, record["mask"].sum(1, keepdim=True) - 1).squeeze(1)
    assert ((last == 1) == record["ended"]).all()
    again, _ = actor.act(["?"] * 15, carry)
    assert (again["log_prob"] - again["engine_log_prob"]).abs().max() < 1e-4
    assert actor._engine.max_model_len == 64
    assert actor._engine.logprobs_mode == "processed_logprobs"
    assert actor._engine.params[0].top_k == -1
    assert actor.env_action(record["action"]) == policy.env_action(record["action"])


@pytest.mark.usefixtures("vllm")
def test_follows_the_weights():
    policy = tiny_policy()
    actor = VLLMActor(policy)
    actor.act(["a"])
    assert actor._engine.calls == []  # nothing has changed
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    record, _ = actor.act(["a"] * 4)
    assert actor._engine.calls == ["reload_weights", "reset"]
    assert (record["log_prob"] - record["engine_log_prob"]).abs().max() < 1e-4
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.01, fused=True)
    policy.log_prob(policy.tokenize(["a"], ["b"])).sum().backward()
    optimizer.step()
    actor.act(["a"])
    assert actor._engine.calls == ["reload_weights", "reset"] * 2


@pytest.mark.usefixtures("vllm")
def test_greedy_and_the_random_state():
    policy = tiny_policy()
    actor = CausalLM(**{**vars(policy.config), "engine": "vllm"}).behavior(policy)
    assert isinstance(actor, VLLMActor)
    greedy, _ = actor.act(["ab", "cd"], greedy=True)
    assert torch.equal(greedy["action"], policy.act(["ab", "cd"], greedy=True)[0]["action"])
    runs = []
    for _ in range(2):
        torch.manual_seed(4)
        runs.append(actor.act(["ab"] * 3)[0]["action"])
    assert torch.equal(*runs)
    assert not torch.equal(runs[0][0], runs[0][1])


@pytest.mark.usefixtures("vllm")
def test_what_has_not_acted_can_be_sent_and_acts_there():
    actor = VLLMActor(tiny_policy())
    assert actor._engine is None
    acted = []
    for each in (pickle.loads(pickle.dumps(actor)), actor):
        torch.manual_seed(4)
        acted.append(each.act(["ab"] * 3)[0]["action"])
    assert torch.equal(*acted)


@pytest.mark.usefixtures("vllm")
def test_rows_without_room_are_not_sent():
    policy = tiny_policy(max_tokens=60)
    actor = VLLMActor(policy)
    record, carry = actor.act(["a" * 62, "b"])
    record, _ = actor.act(["c" * 5, "d"], carry)
    assert not record["mask"][0].any()
    assert not record["ended"][0]


def test_without_vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UsageError, match=r'needs vLLM: pip install "polopt\[vllm\]"'):
        VLLMActor(tiny_policy())


def test_the_policy_is_its_own_engine_by_default():
    policy = tiny_policy()
    assert policy.config.behavior(policy) is policy
