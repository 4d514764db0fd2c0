"""What a command says to who meets it for the first time: what is wrong, where, and what to do, in one sentence."""

from __future__ import annotations

import re

import numpy as np
import pytest

from polopt.cli import main
from polopt.core.errors import UsageError
from polopt.networks import Network
from polopt.policies import Auto
from polopt.tasks import make_task

SAID = {  # "@" stands for the module of misused environments
    "ppo @:VALUE": "@:VALUE is int, not a function or class of environments",
    "ppo @:Bare": "@:Bare has no observation_space: set it to a space of gymnasium.spaces when it is made",
    "ppo @:Plian": "the module '@' has no 'Plian'; did you mean 'Plain'?",
    "ppo @:words": "@:words failed: its step returned a reward of type str, not a number (row 0, step 1 of the "
    "episode)",
    "ppo @:bits": "@:bits has a MultiBinary action space; polopt serves Box, Discrete and MultiDiscrete: declare "
    "MultiDiscrete([2] * 3)",
    "ppo @:masked_box": "@:masked_box says with action_mask which actions are legal, and a Gaussian policy ignores it: "
    "masks are for Discrete and MultiDiscrete actions",
    "ppo @:keys": "@:keys failed: its reset returned an observation with the keys ['a'], but its observation space has "
    "['a', 'b'] (row 0, step 0 of the episode)",
    "ppo @:Plain --facts coste": "the info of @:Plain has no 'coste' at the first step; did you mean 'cost'?",
    "ppo @:Plain --facts action_mask": "@:Plain may say which actions are legal in its observation only, a Dict with "
    "action_mask",
    "ppo @:Plain --task.preset image": "the preset 'image' needs a picture, and Plain takes no render_mode 'rgb_array'",
    "ppo @:Plain --objective-weights 1,2": "@:Plain has one reward, so there is nothing to weigh: leave out "
    "--objective-weights",
    "sac @:Plain": "a squashed Gaussian needs a Box action space with finite bounds; @:Plain has Discrete(3): choose "
    "another --policy, or a method that takes it",
    "ppo addition": "addition asks for texts, which methods for language models give: 'polopt methods --family "
    "language'",
    "ppo Zzz": "there is no task 'Zzz': tasks are ids of Gymnasium, names of 'polopt train --help', or module:function",
    "ppo CartPole-v9": "there is no task 'CartPole-v9'; did you mean 'CartPole-v1'?",
    "ppo chain --task.states six": "the states of chain must be of the type of 6, not 'six'",
    "ppo random-mdp --workers 2": "the task random-mdp makes and steps all its rows itself: leave out workers",
    "ppo u-maze --task.horizon 0": "the horizon of a maze is at least 1 step, not 0",
    "ppo nothing.jsonl": "there is no file nothing.jsonl",
    "bc CartPole-v1 --demonstrations nowhere": "there are no demonstrations at nowhere: 'polopt eval RUN --record "
    "FILE' writes some",
}


@pytest.mark.filterwarnings("ignore:tests.tasks.misused.words does not repeat itself")
@pytest.mark.parametrize("words", SAID)
def test_the_command_says_it_in_one_sentence(words, tmp_path, capsys):
    def here(text: str) -> str:
        return text.replace("@", "tests.tasks.misused")

    method, task, *rest = here(words).split()
    assert main(["train", method, "--task", task, "--out", str(tmp_path / "run"), *rest]) in (1, 2)
    assert capsys.readouterr().err.splitlines()[-1] == f"polopt: {here(SAID[words])}"


def test_a_module_that_fails_says_where(tmp_path, monkeypatch):
    (tmp_path / "half_written.py").write_text("import gymnasium\n\nx = 1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError) as error:
        make_task("half_written:Env")
    assert str(error.value) == (
        "the task 'half_written:Env' needs the module 'half_written', whose import failed: ZeroDivisionError: division "
        f"by zero ({tmp_path / 'half_written.py'}, line 3)"
    )


def test_predict_says_what_it_takes():
    policy = Auto().build(make_task("CartPole-v1").spec, network=Network((4,)))
    said = (
        "predict was given an observation of shape (2, 5), but its observation space has shape (4,): it takes one, or "
        "a batch of them with one more dimension in front"
    )
    with pytest.raises(UsageError, match=f"^{re.escape(said)}$"):
        policy.predict(np.zeros((2, 5), np.float32))
