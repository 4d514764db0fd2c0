from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polopt.core.errors import UsageError
from polopt.tasks import make_task
from polopt.tasks.prompts import Prompts

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?"}]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return str(path)


def made(name: str, **options: Any) -> Prompts:
    task = make_task(name, **options)
    assert isinstance(task, Prompts)
    return task


def constant(completions: list[Any], **kwargs: Any) -> list[float]:
    return [0.5] * len(completions)


def test_prompts_with_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "1+1=", "answer": 2, "level": 3}, {"prompt": "capital?", "answer": "Rome", "hint": "R"}, ""]
    task = made(write(tmp_path / "a.jsonl", rows), num=3)
    assert task.size == 2
    assert task.reset() == ["1+1=", "capital?", "1+1="]
    assert task.level.tolist() == [3, 0, 3]
    assert task.problem(1).hint == "R"
    _, reward, _, _ = task.step({"action": [" 2 ", "I think\nRome\n", "1+1=2"]})
    assert reward.tolist() == [1.0, 1.0, 0.0]
    assert task.correct.tolist() == [True, True, False]


def test_the_last_number_may_be_the_answer(tmp_path: Path) -> None:
    task = made(write(tmp_path / "a.jsonl", [{"prompt": "?", "answer": "1200"}]), match="number")
    problem = task.problem(0)
    assert [task.verify(problem, text) for text in ("so 3 gives 1,200.", "1200 or 7", "", "-1200")] == [1, 0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        (3.0, "so it is 3", 1),
        ("0.5", "0.50", 1),
        ("0.5", "1/2", 1),
        (1000, "1000.0", 1),
        ("#### 1,000", "1000", 1),
        (7, "-7", 0),
        ("-7", "7", 0),
        ("1/3", "0.333", 0),
    ],
)
def test_numbers_are_compared_as_numbers(answer, text, right, tmp_path: Path) -> None:
    task = made(write(tmp_path / "a.jsonl", [{"prompt": "?", "answer": answer}]), match="number")
    assert task.verify(task.problem(0), text) == right


def test_an_answer_without_a_number_cannot_be_matched_as_one(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "?", "answer": 3}, {"prompt": "!", "answer": "Rome"}])
    with pytest.raises(UsageError, match=r"match number needs answers with a number; .* has the answer 'Rome'"):
        made(path, match="number")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "?", "answer": "3"}])
    Path(path).write_bytes(b"\xef\xbb\xbf" + Path(path).read_bytes())
    assert made(path).problem(0).prompt == "?"


def test_messages_and_their_solutions(tmp_path: Path) -> None:
    rows = [
        {"messages": [*CHAT, {"role": "assistant", "content": "2"}], "answer": "2"},
        {"prompt": CHAT, "completion": [{"role": "assistant", "content": "two"}]},
        {"messages": CHAT, "solution": "It is 2"},
        {"prompt": CHAT, "solution": [*CHAT, {"role": "assistant", "content": "2!"}]},
        {"prompt": "1+1?", "solution": [{"role": "assistant", "content": "2?"}]},
    ]
    task = made(write(tmp_path / "a.jsonl", rows), num=1)
    assert task.spec.info["conversational"]
    assert task.reset() == [CHAT]
    answers = ["2", "two", "It is 2", "2!"]
    assert task.demonstrations([0, 1, 2, 3]) == [(CHAT, answer) for answer in answers]
    assert task.demonstrations([4]) == [([user("1+1?")], "2?")]  # its answer belongs to a conversation


def test_columns_go_to_the_rewards_as_in_trl(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def reward(prompts: list[Any], completions: list[Any], source: list[Any], **kwargs: Any) -> list[float]:
        seen.update(prompts=prompts, completions=completions, source=source, **kwargs)
        return [0.5] * len(prompts)

    rows = [{"prompt": CHAT, "source": "a", "answer": 2}, {"prompt": CHAT, "source": "b", "extra": [1]}]
    task = made(write(tmp_path / "a.jsonl", rows), num=2, rewards=reward)
    task.reset()
    _, scores, _, _ = task.step({"action": ["x", "2"]})
    assert scores.tolist() == [0.5, 0.5]
    assert seen["prompts"] == [CHAT, CHAT]
    assert seen["completions"] == [[{"role": "assistant", "content": text}] for text in ("x", "2")]
    assert seen["source"] == ["a", "b"]
    assert seen["answer"] == [2, None]
    assert seen["extra"] == [None, [1]]
    with pytest.raises(UsageError, match="asks for 'source', not in the task"):
        made(write(tmp_path / "b.jsonl", [{"prompt": "a"}]), rewards=reward)


def test_preferences(tmp_path: Path) -> None:
    rows = [
        {"prompt": "hi", "chosen": "hello", "rejected": "no"},
        {"prompt": "hi", "chosen": [{"role": "assistant", "content": "a"}], "rejected": "b"},
        {"prompt": "bye", "chosen": "x"},
    ]
    task = made(write(tmp_path / "a.jsonl", rows))
    assert task.preferences([1, 0]) == [([user("hi")], "a", "b"), ("hi", "hello", "no")]
    with pytest.raises(UsageError, match=r"prompt 2 of .* has no 'chosen' and 'rejected'"):
        task.preferences([2])
    assert not task.scores
    task.reset()
    with pytest.raises(UsageError, match=r"nothing can be scored: give --task.rewards"):
        task.step({"action": ["a"]})
    with pytest.raises(UsageError, match="no worked solutions"):
        task.demonstrations([0])


def test_every_form_of_a_pair(tmp_path: Path) -> None:
    rows = [
        {"prompt": "2+2=", "chosen": "4", "rejected": "5", "source": "me"},
        "",
        {"messages": [user("hi")], "chosen": "hello", "rejected": [assistant("go away")]},
        {"prompt": [user("hi")], "chosen": [user("hi"), assistant("a")], "rejected": [assistant("b")]},
        {"prompt": "hi", "chosen": [user("hi"), assistant("a")], "rejected": "b"},
        {"prompt": "1+1?", "chosen": [*CHAT, assistant("2")], "rejected": [*CHAT, assistant("3")]},
        {"messages": [*CHAT, assistant("2")], "chosen": [*CHAT, assistant("2")], "rejected": [*CHAT, assistant("3")]},
        {"chosen": [user("x"), assistant("a")], "rejected": [user("x"), assistant("b")]},
    ]
    task = made(write(tmp_path / "a.jsonl", rows))
    prompts, chosen, rejected = zip(*task.preferences(range(7)))
    # Answers in messages belong to a conversation, so their prompt goes through the chat template too.
    assert list(prompts) == ["2+2=", [user("hi")], [user("hi")], [user("hi")], CHAT, CHAT, [user("x")]]
    assert chosen == ("4", "hello", "a", "a", "2", "2", "a")
    assert rejected == ("5", "go away", "b", "b", "3", "3", "b")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"chosen": "c", "rejected": "r"}, "line 2 of .* has neither 'prompt' nor 'messages'"),
        ({"prompt": 3, "chosen": "c", "rejected": "r"}, "'prompt' in line 2 of .* must be a list of messages"),
        ({"prompt": "p", "chosen": 1, "rejected": "r"}, "'chosen' in line 2 of .* must be a text or messages with"),
        ({"prompt": "p", "chosen": [], "rejected": "r"}, "'chosen' in line 2 of .* must be a text or messages with"),
        ({"prompt": "p", "chosen": "c", "rejected": [user("r")]}, "'rejected' in line 2 .* last is the assistant's"),
        ({"prompt": "p", "chosen": [user("q"), assistant("c")], "rejected": "r"}, "begins with other messages than"),
        (
            {"chosen": [*CHAT, assistant("a"), assistant("b")], "rejected": "c"},
            "'chosen' in line 2 of .* ends in two messages of the assistant: join them",
        ),
        ({"chosen": [user("x"), assistant("a")], "rejected": "b"}, "its two sides do not both begin with one"),
        ({"chosen": [user("x"), assistant("a")], "rejected": [user("y"), assistant("b")]}, "do not begin alike"),
    ],
)
def test_a_wrong_pair_is_one_sentence(tmp_path: Path, row: Any, words: str) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "chosen": "c", "rejected": "r"}, row])
    with pytest.raises(UsageError, match=words) as error:
        make_task(path)
    assert "\n" not in str(error.value)


def test_a_column_that_is_called_chosen_need_not_be_an_answer(tmp_path: Path) -> None:
    task = made(write(tmp_path / "a.jsonl", [{"prompt": "p", "answer": "a", "chosen": 3}]))
    assert task.problem(0).columns["chosen"] == 3


def test_without_a_verifier_nothing_counts_as_correct(tmp_path: Path) -> None:
    task = made(write(tmp_path / "a.jsonl", [{"prompt": "hi"}]), rewards=lambda completions: [1.0])
    task.reset()
    assert task.step({"action": ["a"]})[1].tolist() == [1.0]
    assert not task.correct.any()
    assert not task.verifiable


def test_a_tenth_of_the_prompts_is_held_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"prompt": f"p{row % 40}", "answer": "a"} for row in range(80)])

    def prompts(**options: Any) -> list[Any]:
        task = made(path, **options)
        assert task.size is not None
        return [task.problem(row).prompt for row in range(task.size)]

    train, test = prompts(), prompts(evaluation=True)
    assert (len(train), len(test)) == (72, 8)  # equal prompts stay together
    assert not set(train) & set(test)
    assert len(prompts(heldout=0.25, evaluation=True)) == 20
    assert prompts(heldout=False) == prompts(heldout=False, evaluation=True) == prompts(heldout=0)
    assert len(prompts(pool=5)) == 5
    few = write(tmp_path / "few.jsonl", [{"prompt": f"p{row}", "answer": "a"} for row in range(9)])
    assert made(few).size == made(few, evaluation=True).size == 9
    assert (made(path, heldout=few).size, made(path, heldout=few, evaluation=True).size) == (80, 9)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "answer": "b"}, "", '{"prompt": "a"'], "line 3 of .* is not JSON"),
        (["[1, 2]"], "line 1 of .* is not a JSON object"),
        ([], "is empty"),
        (["", "  "], "is empty"),
        (
            [{"question": "a", "id": 3}],
            "line 1 of .* has neither 'prompt' nor 'messages'; its columns are id, q",
        ),
        ([{"prompt": "a"}], "has no 'answer' column and there is no reward function: give --task.rewards module:fun"),
        ([{"prompt": 3, "answer": "a"}], "'prompt' in line 1 of .* must be a list of messages"),
        ([{"messages": "hi", "answer": "a"}], "'messages' in line 1 of .* must be a list of messages"),
        ([{"messages": [{"role": "user"}], "answer": "a"}], "must be a list of messages with the texts 'role'"),
        ([{"messages": [], "answer": "a"}], "must be a list of messages"),
        ([{"messages": [*CHAT, assistant("a"), assistant("b")]}], "ends in two messages of the assistant: join them"),
        ([{"prompt": CHAT, "completion": [user("a")]}], "solution in line 1 of .* last is the assistant's"),
        (
            [{"prompt": CHAT, "completion": [assistant("a"), user("b"), assistant("c")]}],
            "the solution in line 1 of .* has more messages than the answer: put the others in the prompt",
        ),
        ([{"prompt": "a", "answer": ["b"]}], "'answer' in line 1 of .* must be a text or a number, not list"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, rows: list[Any], said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        make_task(write(tmp_path / "a.jsonl", rows))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [])
    with pytest.raises(UsageError, match=r"there is no file .*trian.jsonl; did you mean '.*train.jsonl'"):
        make_task(str(tmp_path / "trian.jsonl"))
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not a text file in UTF-8"):
        make_task(str(tmp_path / "b.jsonl"))
    (tmp_path / "c.jsonl").mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        make_task(str(tmp_path / "c.jsonl"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heldout": 1.5}, "heldout must be"),
        ({"heldout": "none.jsonl", "evaluation": True}, "there is no file none.jsonl"),
        ({"match": "regex"}, "match is one of line, number, math, not 'regex'"),
        ({"split": "train"}, "split and subset belong to datasets/ID"),
        ({"reward": "a:b"}, "no option 'reward'; did you mean 'rewards'"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_task(write(tmp_path / "a.jsonl", [{"prompt": "a", "answer": "b"}]), **options)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return tmp_path


def test_a_folder_of_data_files_is_a_dataset(cache: Path) -> None:
    folder = cache / "sums"
    folder.mkdir()
    write(folder / "train.jsonl", [{"prompt": f"{row}+1=", "answer": str(row + 1)} for row in range(20)])
    write(folder / "test.jsonl", [{"prompt": "9+9=", "answer": "18"}])
    name = f"datasets/{folder}"
    assert (made(name).size, made(name, evaluation=True).size) == (18, 2)
    assert made(name, heldout="test", evaluation=True).problem(0).answer == "18"
    assert made(name, heldout="test").size == 20
    assert made(name, split="test").size == 1
    with pytest.raises(UsageError, match="has no split 'tests'; did you mean 'test'"):
        make_task(name, split="tests")


def test_a_dataset_saved_to_disk(cache: Path) -> None:
    import datasets

    rows = [{"messages": CHAT, "answer": "2"}, {"messages": CHAT, "answer": None}]
    datasets.Dataset.from_list(rows).save_to_disk(str(cache / "saved"))
    task = made(f"datasets/{cache / 'saved'}", num=1)
    assert task.reset() == [CHAT]
    assert task.step({"action": ["2"]})[1].tolist() == [1.0]


def test_datasets_that_cannot_be_loaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="datasets/nobody/nothing-here cannot be loaded") as caught:
        make_task("datasets/nobody/nothing-here")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(UsageError, match=r"polopt\[language\]"):
        make_task("datasets/a/b")
