"""The models of the language benchmarks: folders in Hugging Face format that polopt and TRL load alike.

- `random_model`: a Llama of 1 million random weights with polopt's character tokenizer, and made-up texts to train on
  (`grpo.jsonl`, `sft.jsonl`, `sft-ragged.jsonl`, `dpo.jsonl`). It never ends a completion by itself: the first
  coordinate of its states is constant, and the end token's score falls with it. So every completion is as long as it
  may be, while both sides look for an end at every token, as they do in any training.
- `warm_started`: a model that polopt's own supervised fine-tuning has taught a task until it is sometimes right, with
  `problems.json`: training and held-out prompts and what `verified` of `workers/language_shared.py` needs to judge.
  Verifier and task are compared on thousands of answers, right and damaged, before the file is written.

Folders are made once, in polopt's cache, and named after their recipe.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import string
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.workers.language_shared import Problem, verified
from polopt.core.errors import RunError
from polopt.core.files import cache_folder
from polopt.policies.small_lm import character_tokenizer, make_language_model
from polopt.tasks import make_task
from polopt.training.warm_start import warm_start

SIZE = "1m"
PROMPT, SFT_LENGTH, DPO_LENGTH = 16, 64, 64  # tokens: of every prompt, of a whole sequence, of a completion
RAGGED = 8, 232  # characters of the shortest and the longest completion of texts of mixed lengths, uniform in logarithm
ROWS = 4096  # of each file of texts
VOCABULARY = 32_000  # tokens of Llama's
END = -64.0  # weight of the end token on the constant coordinate: a probability below 1e-9

RECIPES: dict[str, dict[str, Any]] = {
    "addition": {"accuracy": 0.3, "size": "0.5m", "lr": 2e-3, "batch_size": 64, "policy.max_tokens": 24},
    "countdown": {"accuracy": 0.15, "size": "0.5m", "lr": 2e-3, "batch_size": 64, "policy.max_tokens": 32},
}
TRAIN, HELDOUT = 20_000, 256  # problems in problems.json
SEED = 7  # of its problems


def random_model(vocabulary: int | None = None) -> Path:
    """The folder of the model of the rates, with the texts that are trained on; with more tokens than the texts have,
    if it is to have a `vocabulary` of a usual size."""
    lengths = [PROMPT, SFT_LENGTH, DPO_LENGTH, *RAGGED]
    recipe = {"size": SIZE, "lengths": lengths, "rows": ROWS, "end": END}
    folder = _place("random", recipe if vocabulary is None else recipe | {"vocabulary": vocabulary})
    if not (folder / "grpo.jsonl").is_file():  # written last
        make_language_model(folder, SIZE)
        _never_ending(folder / "model.safetensors")
        if vocabulary is not None:
            _widen(folder, vocabulary)
        rng = random.Random(0)
        completion, answer = SFT_LENGTH - PROMPT - 1, DPO_LENGTH - 1  # and the end token
        _write(folder / "sft.jsonl", [_texts(rng, prompt=PROMPT, completion=completion) for _ in range(ROWS)])
        ragged = [round(math.exp(rng.uniform(*map(math.log, RAGGED)))) for _ in range(ROWS)]
        _write(folder / "sft-ragged.jsonl", [_texts(rng, prompt=PROMPT, completion=length) for length in ragged])
        _write(folder / "dpo.jsonl", [_texts(rng, prompt=PROMPT, chosen=answer, rejected=answer) for _ in range(ROWS)])
        _write(folder / "grpo.jsonl", [_texts(rng, prompt=PROMPT) for _ in range(ROWS)])
    return folder


def warm_started(task: str) -> Path:
    """The folder of the model from which the curves on `task` (addition, countdown) begin, with `problems.json`."""
    recipe = RECIPES[task]
    folder = warm_start(task, folder=_place(task, recipe | {"problems": [TRAIN, HELDOUT, SEED]}), **recipe)
    if not (folder / "problems.json").is_file():
        sides = {"train": TRAIN, "heldout": HELDOUT}
        drawn: dict[str, list[Problem]] = {}
        for side, count in sides.items():
            text_task: Any = make_task(task, seed=SEED, evaluation=side == "heldout")
            problems = text_task.problems(range(count))
            drawn[side] = [_problem(task, problem) for problem in problems]
            _compare(text_task, problems[:1000], drawn[side])
        content = {"task": task, "max_tokens": recipe["policy.max_tokens"], "seed": SEED, **drawn}
        (folder / "problems.json").write_text(json.dumps(content))
    return folder


def _place(name: str, recipe: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    return cache_folder() / "models" / f"benchmark-{name}-{key}"


def _never_ending(file: Path) -> None:
    """Fixes the first coordinate of all states, which no layer writes to, and lets it decide against the end token."""
    weights = load_file(file)
    embeddings = weights["model.embed_tokens.weight"]  # tied: they are the output head too
    embeddings[:, 0] = 1.0
    embeddings[character_tokenizer().eos_token_id, 0] = END
    for name, weight in weights.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight[0] = 0.0
    save_file(weights, file, metadata={"format": "pt"})


def _widen(folder: Path, vocabulary: int) -> None:
    """Adds random embeddings, as far from each other as those that are there, up to so many tokens."""
    file, config = folder / "model.safetensors", folder / "config.json"
    weights = load_file(file)
    own = weights["model.embed_tokens.weight"]
    more = torch.randn(vocabulary - len(own), own.shape[1], generator=torch.Generator().manual_seed(0)) * own.std()
    more[:, 0] = own[0, 0]
    weights["model.embed_tokens.weight"] = torch.cat([own, more])
    save_file(weights, file, metadata={"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": vocabulary}))


def _texts(rng: random.Random, **lengths: int) -> dict[str, str]:
    """A random text of so many characters, which are tokens, for each name."""
    characters = string.ascii_letters + string.digits
    return {name: "".join(rng.choices(characters, k=length)) for name, length in lengths.items()}


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _problem(task: str, problem: Any) -> Problem:
    """A problem as `verified` reads it, with its prompt."""
    if task == "addition":
        return {"prompt": problem.prompt, "answer": problem.answer}
    numbers, target = problem.prompt.rstrip(":").split(" make ")
    return {"prompt": problem.prompt, "numbers": numbers.split(), "target": int(target)}


def _compare(task: Any, problems: list[Any], written: list[Problem]) -> None:
    """Raises RunError unless `verified` and the task's own verifier agree on solutions and on damaged ones."""
    rng, right = random.Random(0), 0
    for problem, row in zip(problems, written):
        for text in (problem.solution, problem.answer, *(_damaged(rng, problem.solution) for _ in range(5))):
            own = bool(task.verify(problem, text))
            right += own
            if verified(row, text) != own:
                raise RunError(f"the two verifiers of {task.spec.name} disagree about {text!r} to {problem.prompt!r}")
    if not 2 * len(problems) <= right < 6 * len(problems):
        raise RunError(f"the answers to {task.spec.name} are too seldom right, or too seldom wrong, to compare by")


def _damaged(rng: random.Random, text: str) -> str:
    """The text with one or two characters of its end replaced, dropped or added."""
    letters = list(text)
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(max(0, len(letters) - 8), len(letters))
        letters[at : at + rng.randint(0, 1)] = rng.choice(["", *"0123456789+-*/()=; \n_.a"])
        letters = letters or ["0"]
    return "".join(letters)


if __name__ == "__main__":
    makers: dict[str, Callable[[], Path]] = {"random": random_model, "vocabulary": partial(random_model, VOCABULARY)}
    makers |= {task: partial(warm_started, task) for task in RECIPES}
    for name in sys.argv[1:] or makers:
        print(makers[name]())
