from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from polopt.core.errors import Notice, RunError, UsageError
from polopt.core.ledger import Ledger
from polopt.core.state import gather, restore
from polopt.data import Episodes, PromptGroups, Sequential, Shuffled

from .test_rollouts import equal
from .texts import EOS, Turns, Typist


def text(row: torch.Tensor, mask: torch.Tensor) -> str:
    return "".join("." if code == EOS else chr(code) for code in row[mask].tolist())


def test_single_turns_are_packed_as_written_by_hand() -> None:
    ledger = Ledger()
    task = Turns()
    source = PromptGroups(task, 2, 2, starts=[3, 14], ledger=ledger)
    batch = source.next(Typist({"q3": "ab"}))
    assert batch.batch_size == (4,)
    q, a, b = ord("q"), ord("a"), ord("b")
    assert batch["prompt"].tolist() == [[0, q, ord("3")]] * 2 + [[q, ord("1"), ord("4")]] * 2
    assert batch["prompt_mask"].tolist() == [[False, True, True]] * 2 + [[True] * 3] * 2
    assert batch["completion"].tolist() == [[a, b, EOS, 0]] * 2 + [[q, ord("1"), ord("4"), EOS]] * 2
    assert batch["mask"].tolist() == [[True, True, True, False]] * 2 + [[True] * 4] * 2
    assert torch.equal(batch["attention"], batch["mask"])
    assert not batch["turn"].any()
    torch.testing.assert_close(batch["log_prob"], -batch["completion"] / 100)
    torch.testing.assert_close(batch["engine_log_prob"], 2 * batch["log_prob"])
    assert batch["reward"].tolist() == [2, 2, 3, 3]
    assert batch["terminated"].all()
    assert not batch["truncated"].any()
    assert not batch["failed"].any()
    assert batch["index"].tolist() == [3, 3, 14, 14]
    assert batch["group"].tolist() == [0, 0, 1, 1]
    assert batch["level"].tolist() == [1, 1, 0, 0]
    assert "turn_reward" not in batch.keys()
    assert "obs" not in batch.keys()
    assert ledger.counts() == {"env_steps": 4, "episodes": 4, "completions": 4, "tokens": 14, "updates": 0}
    assert source.episodes() == [(2, 3), (2, 3), (3, 4), (3, 4)]
    assert source.episodes() == []
    assert task.num == 4


def test_turns_and_feedback_are_packed_in_order() -> None:
    ledger = Ledger()
    task = Turns(most=3)
    source = PromptGroups(task, 3, 1, ledger=ledger)  # 1, 2 and 3 turns
    actor = Typist({"q0": "a", "q1": "bcd", "q2": "e", "0": "fg", "1": ""})
    batch = source.next(actor)
    rows = [text(ids, mask) for ids, mask in zip(batch["completion"], batch["attention"])]
    assert rows == ["a.", "bcd.0fg.", "e.0fg.1."]
    sampled = [text(ids, mask) for ids, mask in zip(batch["completion"], batch["mask"])]
    assert sampled == ["a.", "bcd.fg.", "e.fg.."]
    assert batch["attention"].tolist() == [[True] * 2 + [False] * 6, [True] * 8, [True] * 8]
    assert batch["turn"].tolist() == [[0] * 8, [0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1, 2, 2]]
    torch.testing.assert_close(batch["log_prob"], -batch["completion"] / 100 * batch["mask"])
    assert batch["turn_reward"].tolist() == [[1, 0, 0], [3, 2, 0], [1, 2, 0]]
    assert batch["reward"].tolist() == [1, 5, 3]
    assert batch["acted"].tolist() == [0, 1, 2]  # what is not per token: as recorded in the last turn
    assert batch["prompt"].shape == (3, 2)
    assert ledger.counts() == {"env_steps": 6, "episodes": 3, "completions": 3, "tokens": 15, "updates": 0}
    assert source.episodes() == [(1, 2), (5, 7), (3, 6)]
    # Conversations that are over cost nothing: neither generation nor verification.
    assert actor.seen == [["q0", "q1", "q2"], ["0", "0"], ["1"]]
    assert task.replies == 6
    assert [len(messages) for messages in task.transcripts] == [2, 4, 6]


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_the_batch_does_not_depend_on_how_many_rows_are_generated_at_once(rows: int) -> None:
    answers = {"q0": "hello", "q1": "boom", "q4": "a" * 9, "1": "stop"}
    with pytest.warns(Notice, match="the reward of 2 of 12 completions could not be computed"):
        batches = [
            PromptGroups(Turns(most=3), 6, 2, rows=count).next(Typist(answers, max_tokens=6)) for count in (rows, None)
        ]
    assert equal(batches[0], batches[1])


def test_a_multi_turn_task_always_has_turn_rewards() -> None:
    batch = PromptGroups(Turns(most=3), 1, 2, starts=[3]).next(Typist())
    assert batch["turn_reward"].tolist() == [[2], [2]]


def test_cut_completions_are_truncated_not_scored() -> None:
    batch = PromptGroups(Turns(), 2, 1).next(Typist({"q0": "abcdef"}, max_tokens=4))
    assert batch["completion"][0].tolist() == [ord(c) for c in "abcd"]
    assert batch["truncated"].tolist() == [True, False]
    assert batch["terminated"].tolist() == [False, True]
    assert batch["ended"].tolist() == [False, True]
    assert batch["reward"].tolist() == [0, 2]


def test_too_many_turns_are_truncated() -> None:
    batch = PromptGroups(Turns(most=3), 3, 1, max_steps=2).next(Typist())
    assert batch["truncated"].tolist() == [False, False, True]
    assert batch["turn_reward"].shape == (3, 2)


def test_rows_that_fail_are_masked_and_counted() -> None:
    ledger = Ledger()
    source = PromptGroups(Turns(), 3, 1, ledger=ledger)
    with pytest.warns(
        UserWarning, match="the reward of 1 of 3 completions could not be computed: the verifier of turns"
    ):
        batch = source.next(Typist({"q1": "boom"}))
    assert batch["failed"].tolist() == [False, True, False]
    assert batch["mask"].any(1).tolist() == [True, False, True]
    assert not batch["log_prob"][1].any()
    assert not batch["engine_log_prob"][1].any()
    assert text(batch["completion"][1], batch["attention"][1]) == "boom."
    assert batch["reward"][1] == 0
    assert (source.failures, ledger.tokens, ledger.completions) == (1, 11, 3)
    assert len(source.episodes()) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        source.next(Typist({"q4": "boom"}))  # said once, counted always
    assert source.failures == 2


def test_when_all_fail_the_run_does_and_says_why() -> None:
    source = PromptGroups(Turns(), 2, 2)
    with pytest.raises(RunError) as error:
        source.next(Typist({"q0": "boom", "q1": "boom"}))
    assert "4 completions" in str(error.value)
    assert "no number" in str(error.value)
    assert "\n" not in str(error.value)
    assert not str(error.value).endswith(".")


def test_empty_completions_leave_one_position() -> None:
    class Silent(Typist):
        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            record, carry = super().act(obs, carry)
            for name in ("action", "mask", "log_prob", "engine_log_prob"):
                record[name] = record[name] * False
            return record, carry

    batch = PromptGroups(Turns(), 2, 1).next(Silent())
    assert batch["completion"].tolist() == [[0], [0]]
    assert not batch["mask"].any()
    assert batch["reward"].tolist() == [0, 0]


@pytest.mark.parametrize("kept", [True, False])
def test_what_stands_behind_the_first_end_is_the_actors_decision(kept: bool) -> None:
    class Canvas(Typist):
        """Writes "!!" behind the end, and decides nothing there."""

        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            record, carry = super().act(obs, carry)
            mask, action = record["mask"], record["action"]
            wide = torch.zeros(len(mask), mask.shape[1] + 2, dtype=torch.int64)
            wide[:, : mask.shape[1]] = action
            length = mask.sum(1, keepdim=True)
            wide = wide.scatter(1, torch.cat((length, length + 1), 1), ord("!"))
            there = torch.arange(wide.shape[1]) < length + 2
            record |= {"action": wide, "mask": there & (torch.arange(wide.shape[1]) < length)}
            record |= dict.fromkeys(("log_prob", "engine_log_prob"), wide / 100)
            return record | ({"attention": there} if kept else {}), carry

        def env_action(self, action: torch.Tensor) -> list[str]:
            return [row.split(chr(EOS))[0] for row in ("".join(map(chr, codes)) for codes in action.tolist())]

    ledger = Ledger()
    actor = Canvas({"q0": "a", "q1": "bcd", "0": "fg"})
    batch = PromptGroups(Turns(most=2), 2, 1, ledger=ledger).next(actor)  # one turn and two
    rows = [text(ids, mask) for ids, mask in zip(batch["completion"], batch["attention"])]
    assert rows == (["a.!!", "bcd.!!0fg.!!"] if kept else ["a.", "bcd.0fg."])
    decided = [text(ids, mask) for ids, mask in zip(batch["completion"], batch["mask"])]
    assert decided == ["a.", "bcd.fg."]
    torch.testing.assert_close(batch["log_prob"], batch["completion"] / 100 * batch["mask"])
    assert batch["reward"].tolist() == [1, 5]
    assert ledger.tokens == 2 + 4 + 3


def test_new_prompts_each_time_and_the_same_after_a_resume() -> None:
    def build() -> PromptGroups:
        return PromptGroups(Turns(pool=7), 3, 2, sampler=Shuffled(7))

    source = build()
    first = source.next(Typist())
    other = build()
    restore(other, gather(source))
    second, resumed = source.next(Typist()), other.next(Typist())
    assert equal(second, resumed)
    assert source.episodes() == other.episodes()
    assert source.ledger.counts() == other.ledger.counts()
    assert len({*first["index"].tolist(), *second["index"].tolist()}) == 6
    third = PromptGroups(Turns(), 2, 1, sampler=Sequential())
    assert [third.next(Typist())["index"].tolist() for _ in range(2)] == [[0, 1], [2, 3]]


def test_starts_or_a_sampler() -> None:
    with pytest.raises(UsageError, match="not both"):
        PromptGroups(Turns(), 2, 1, starts=[0, 1], sampler=Sequential())


def test_plain_episodes_of_a_text_task_are_padded() -> None:
    batch = Episodes(Turns(most=3), episodes=3, keep=("reward", "action", "prompt")).next(Typist({"q1": "long"}))
    assert batch.batch_size == (3, 3)
    assert batch["reward"].tolist() == [[2, 0, 0], [4, 1, 0], [2, 1, 1]]
    assert batch["action"].shape == (3, 3, 5)
    assert batch["prompt"].shape == (3, 3, 2)
    assert batch["prompt"][2].tolist() == [[ord("q"), ord("2")], [0, ord("0")], [0, ord("1")]]


def test_packed_rows_are_what_a_language_model_went_through(tmp_path: Path) -> None:
    """Log-probabilities recorded turn by turn are those of the joined row, through padding, feedback and gaps."""
    pytest.importorskip("transformers")
    from polopt.policies import CausalLM
    from polopt.policies.small_lm import make_language_model

    class Patient(Turns):
        def step(self, record: Any) -> Any:
            return super().step({**record, "ended": torch.ones(self.num, dtype=torch.bool)})

    torch.manual_seed(0)
    task = Patient(most=3)
    model = make_language_model(tmp_path / "model", size="0.5m")
    policy = CausalLM(model=str(model), max_tokens=12).build(task.spec)
    batch = PromptGroups(task, 6, 2, rows=5).next(policy)
    assert batch["turn"].max() == 2
    with torch.no_grad():
        torch.testing.assert_close(policy.log_prob(batch), batch["log_prob"], atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_are_where_the_actor_is() -> None:
    class OnGPU(torch.nn.Module, Typist):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            Typist.__init__(self)
            self.weight = torch.nn.Parameter(torch.zeros(1, device="cuda"))

        def act(self, obs: Any, carry: Any = None, *, greedy: bool = False) -> Any:
            carry = carry and {name: value.cpu() for name, value in carry.items()}
            record, carry = Typist.act(self, obs, carry)
            return {k: v.cuda() for k, v in record.items()}, {k: v.cuda() for k, v in carry.items()}

    batch = PromptGroups(Turns(most=3), 3, 2).next(OnGPU())
    assert {value.device.type for value in batch.values()} == {"cuda"}
    assert equal(batch.cpu(), PromptGroups(Turns(most=3), 3, 2).next(Typist()))
