"""TRL's side of the language benchmarks, beside `ours_language.py`, whose docstring says what is equal.

Every job has `model`, a folder of `benchmarks.language_model`. Trainers are used as documented, on a CPU at their best:
no gradient checkpointing, no bfloat16, one generation batch per optimizer step, which spares them the old
log-probabilities, fused AdamW, transformers' dynamic cache, and no logging, saving or progress bar. A trainer runs in a
thread of its own, except where arithmetic is counted; a callback makes it wait between measurements, and reads the
clock for curves.

`log_prob` is the time of `compute_loss`: the forward pass over whole completions, the loss and its metrics. DPO scores
its reference with every batch, as polopt does; `precompute_ref_log_probs` would move that out of what is measured.
"""

from __future__ import annotations

import json
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from language_shared import (
    DPO_PAIRS,
    OPTIMIZER,
    RATE_LR,
    SAMPLES,
    SFT_ROWS,
    Clock,
    Lap,
    letter_share,
    read_problems,
    verified,
)
from protocol import Job, Run, serve
from transformers import AutoTokenizer, GenerationConfig, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

WITHOUT_END = 10**9  # updates


def settings(job: Job, rows: int, lr: float) -> dict[str, Any]:
    """What all trainers are told. A job's `micro_batch` rows go through a backward pass at a time, by default all."""
    micro = job.get("micro_batch") or rows
    return OPTIMIZER | {
        "output_dir": str(Path(tempfile.gettempdir()) / "trl"),  # nothing is saved
        "model_init_kwargs": {"dtype": "float32"},
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": rows // micro,
        "learning_rate": lr,
        "lr_scheduler_type": "constant",
        "max_steps": WITHOUT_END,
        "seed": job.get("seed", 0),
        "use_cpu": True,
        "torch_compile": job.get("compile", False),
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def grpo_settings(job: Job, completions: int, length: int, lr: float) -> GRPOConfig:
    return GRPOConfig(
        **settings(job, completions, lr),
        num_generations=SAMPLES,
        max_completion_length=length,
        num_iterations=1,
        temperature=1.0,
        beta=0.0,
        epsilon=0.2,
        loss_type="grpo",
        scale_rewards="group",
        use_vllm=False,
    )


class Results(queue.Queue):
    """What the callbacks of a trainer hand over, at last what ended it: None or an error."""

    def of(self, trainer: Any) -> None:
        """Trains in a thread."""

        def train() -> None:
            try:
                trainer.train()
                self.put(None)
            except BaseException as error:
                self.put(error)

        threading.Thread(target=train, daemon=True).start()

    def next(self) -> Any:
        """The next result, None at the end. Raises what the trainer raised."""
        result = self.get()
        if isinstance(result, BaseException):
            raise result
        return result


class Paced(TrainerCallback):
    """Lets the trainer make as many updates as were asked for, and wait in between."""

    def __init__(self, results: Results) -> None:
        self.asked: queue.Queue[int] = queue.Queue()
        self._results, self._left = results, 0

    def on_train_begin(self, *args: Any, **options: Any) -> None:
        self._left = self.asked.get()

    def on_step_end(self, *args: Any, **options: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self._results.put(True)
            self._left = self.asked.get()


def rate(job: Job, trainer: Any, clock: Clock, tokens: Callable[[], int], expected: int | None) -> Run:
    """Updates of `trainer`. `tokens` says how many there were since its last call; raises RuntimeError unless every
    update had `expected`, if that is known."""
    clock.watch("backward", torch.Tensor, "backward")
    clock.watch("optimizer", torch.optim.AdamW, "step")
    clock.watch("log_prob", trainer, "compute_loss")
    results = Results()
    paced = Paced(results)

    def run(units: int) -> dict[str, float]:
        if job.get("count"):
            trainer.args.max_steps = units
            trainer.train()  # in this thread, where the counter is
        else:
            paced.asked.put(units)
            results.next()
        count = tokens()
        if expected is not None and count != units * expected:
            raise RuntimeError(f"{units} updates had {count} tokens, not {units * expected}")
        return {"tokens": count, **clock.take()}

    if not job.get("count"):
        trainer.add_callback(paced)
        results.of(trainer)
        run(2)
    return run


def read(file: Path) -> Dataset:
    return Dataset.from_list([json.loads(line) for line in file.read_text().splitlines()])


def grpo(job: Job) -> Run:
    completions, length = job.get("completions", 64), job.get("length", 16)
    clock, counts = Clock(), []

    def reward(completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
        counts.append(sum(map(len, completion_ids)))
        return letter_share(completions)

    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=clock.timed("score", reward),
        args=grpo_settings(job, completions, length, RATE_LR),
        train_dataset=read(Path(job["model"]) / "grpo.jsonl"),
    )
    clock.watch("generate", trainer.model, "generate")

    def tokens() -> int:
        total = sum(counts)
        counts.clear()
        return total

    return rate(job, trainer, clock, tokens, completions * length)


def supervised(job: Job, trainer: Any, expected: int | None) -> Run:
    """A rate whose tokens are counted in the batches that are collated."""
    counts: list[int] = []
    collate = trainer.data_collator

    def counted(rows: list[dict[str, Any]]) -> Any:
        batch = collate(rows)
        learned = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] != 0
        counts.append(int(learned.sum()))
        return batch

    trainer.data_collator = counted
    made = 0

    def tokens() -> int:
        """Of the updates since the last call: batches are collated in their order, ahead of them."""
        nonlocal made
        before, made = made, trainer.state.global_step
        batches = (made - before) * trainer.args.gradient_accumulation_steps
        taken, counts[:batches] = counts[:batches], []
        return sum(taken)

    return rate(job, trainer, Clock(), tokens, expected)


def sft(job: Job) -> Run:
    ragged = job.get("ragged", False)
    alike = {"train_sampling_strategy": "group_by_length"} if job.get("by_length") else {}
    args = SFTConfig(**settings(job, SFT_ROWS, RATE_LR), **alike, loss_type="nll", max_length=None)
    rows = read(Path(job["model"]) / ("sft-ragged.jsonl" if ragged else "sft.jsonl"))
    trainer = SFTTrainer(model=job["model"], args=args, train_dataset=rows)
    return supervised(job, trainer, None if ragged else SFT_ROWS * 48)


def dpo(job: Job) -> Run:
    args = DPOConfig(**settings(job, DPO_PAIRS, RATE_LR), beta=0.1, loss_type=["sigmoid"], max_length=None)
    rows = read(Path(job["model"]) / "dpo.jsonl")
    return supervised(job, DPOTrainer(model=job["model"], args=args, train_dataset=rows), 2 * DPO_PAIRS * 64)


class Evaluated(TrainerCallback):
    """Stops the clock after every update, evaluates when it is time, and ends the training."""

    def __init__(self, results: Results, lap: Lap, completions: int, accuracy: Callable[[], float]) -> None:
        self.results, self.lap, self.completions, self.accuracy = results, lap, completions, accuracy

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._go_on(state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self.lap.stop()
        self._go_on(state, control)

    def _go_on(self, state: Any, control: Any) -> None:
        if self.lap.due:
            self.results.put(self.lap.row(state.global_step * self.completions, self.accuracy()))
        control.should_training_stop = self.lap.over
        self.lap.start()


def grpo_curve(job: Job) -> Iterator[dict]:
    """GRPO on `task`; a completion that was cut at the limit earns nothing, as in polopt."""
    problems = read_problems(job["model"])
    completions, length, heldout = job.get("prompts", 16) * SAMPLES, problems["max_tokens"], problems["heldout"]
    tokenizer = AutoTokenizer.from_pretrained(job["model"], padding_side="left")
    end = tokenizer.eos_token_id

    def reward(completions: list[str], completion_ids: list[list[int]], row: list[int], **columns: Any) -> list[float]:
        rows = zip(completions, completion_ids, row)
        return [float(ids[-1] == end and verified(problems["train"][index], text)) for text, ids, index in rows]

    train = [{"prompt": problem["prompt"], "row": index} for index, problem in enumerate(problems["train"])]
    trainer = GRPOTrainer(
        model=job["model"],
        reward_funcs=reward,
        args=grpo_settings(job, completions, length, job["lr"]),
        train_dataset=Dataset.from_list(train),
        processing_class=tokenizer,
    )
    inputs = tokenizer([problem["prompt"] for problem in heldout], return_tensors="pt", padding=True)
    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=length, eos_token_id=end, pad_token_id=tokenizer.pad_token_id
    )

    @torch.no_grad()
    def accuracy() -> float:
        model = trainer.model.eval()
        made = model.generate(**inputs, generation_config=greedy)[:, inputs["input_ids"].shape[1] :]
        model.train()
        rows = [ids[: ids.index(end)] if end in ids else None for ids in made.tolist()]
        texts = tokenizer.batch_decode([row or [] for row in rows], skip_special_tokens=True)
        right = [row is not None and verified(problem, text) for row, problem, text in zip(rows, heldout, texts)]
        return sum(right) / len(right)

    results, lap = Results(), Lap(job["minutes"], job.get("every", 20))
    trainer.add_callback(Evaluated(results, lap, completions, accuracy))
    results.of(trainer)
    while (row := results.next()) is not None:
        yield row


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    cases = {"grpo": grpo, "sft": sft, "dpo": dpo, "grpo-curve": grpo_curve}
    serve(cases, ("torch", "trl", "transformers"))
