"""Completions of prompts in groups: the batches of methods for language models.

A batch is [B], B = prompts * samples, with the rows of a group adjacent and tokens trailing; zero outside of masks:

    prompt, prompt_mask     [B, P]  what the episode began with, padded on the left
    completion, attention   [B, T]  all turns and the feedback between them in order, without holes, padded on the right
    mask                    [B, T]  the token was decided by the actor: all False in rows that failed
    turn                    [B, T]  int64, the turn a token was sampled in; feedback belongs to the turn that answers it
    log_prob, ...           [B, T]  per token: `log_prob`, `engine_log_prob`, and whatever else the actor recorded per
                                    token, zero where `mask` is False
    reward                  [B]     of the episode, the sum over its turns
    turn_reward             [B, M]  of each turn, if the task has several
    terminated, truncated   [B]     how it ended; truncated also when cut at the token limit
    correct, failed, level  [B]     of the task: verified, reward could not be computed, level of difficulty
    components, ...         [B, K]  with reward functions: what each gave (`polopt.tasks.rewards.COMPONENTS`)
    answer                  [B]     int64, equal for equal answers, 0 for none: see `TextTask.extract`
    index, group            [B]     id of the prompt; 0 .. prompts - 1
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from polopt.core.batch import Batch, align_left
from polopt.core.errors import Notice, RunError
from polopt.core.ledger import Ledger
from polopt.data.base import Acts
from polopt.data.components import Tally, added, tally
from polopt.data.episodes import Draws, Episodes, Played
from polopt.data.tokens import LEFT, pack, stack, used
from polopt.tasks.base import Task
from polopt.tasks.rewards import COMPONENTS

OF_STEPS = ("reward", "terminated", "truncated", "first", "correct", "failed", "level", "answer", *COMPONENTS)
OF_TOKENS = ("prompt", "prompt_mask", "action", "mask", "attention")


def join_tokens(played: Played) -> Batch:
    """Joins the turns of each episode into one row; the keys are those of the module's description.

    Reads what a language policy records: prompt, prompt_mask [N, P] (what is new for this turn, padded on the left)
    and action, mask [N, T] (what was decided). What is in `action` besides, behind the end for one, is kept where the
    actor recorded `attention` [N, T] as well, and cut where it did not. Other recorded keys with the shape of `action`
    are per token; the rest is per turn, and the batch has what the last turn of the row recorded.
    """
    steps, device = played.steps, played.device
    when, exists = (value.to(device) for value in played.when())  # [B, M]
    row = played.row.to(device)
    last = (played.begin + played.length - 1).to(device)

    def column(name: str, left: bool = False) -> Any:
        return stack([step[name] for step in steps], left).to(device)

    tokens = {name: column(name, left=name in LEFT) for name in OF_TOKENS if name in steps[0]}  # [steps, N, ...]
    tokens.setdefault("attention", tokens["mask"])
    shapes = [step["action"].shape for step in steps]
    recorded = [name for name in steps[0] if name not in OF_STEPS + OF_TOKENS]
    per_token = [name for name in recorded if all(step[name].shape[:2] == s for step, s in zip(steps, shapes))]
    pieces: dict[str, list[Tensor]] = {name: [] for name in ("completion", "attention", "mask", "turn", *per_token)}

    def add(turn: int, ids: Tensor, there: Tensor, decided: Tensor | None = None) -> None:
        """One turn of all rows, or, where nothing was decided, the feedback before it."""
        there = there & exists[:, turn].unsqueeze(1)
        mask = torch.zeros_like(there) if decided is None else decided & there
        pieces["completion"].append(ids * there)
        pieces["attention"].append(there)
        pieces["mask"].append(mask)
        pieces["turn"].append(turn * there.long())
        for name in per_token:
            value = columns[name][when[:, turn], row]
            if decided is None:
                pieces[name].append(value.new_zeros(*ids.shape, *value.shape[2:]))
            else:
                pieces[name].append(value * align_left(mask, value))

    columns = {name: column(name) for name in per_token}
    for turn in range(exists.shape[1]):
        at = when[:, turn], row
        if turn:
            add(turn, tokens["prompt"][at], tokens["prompt_mask"][at])
        add(turn, tokens["action"][at], tokens["attention"][at], tokens["mask"][at])
    batch: dict[str, Any] = pack({name: torch.cat(parts, 1) for name, parts in pieces.items()})

    prompt, prompt_mask = tokens["prompt"][when[:, 0], row], tokens["prompt_mask"][when[:, 0], row]
    width = used(prompt_mask, left=True)
    batch |= {"prompt": (prompt * prompt_mask)[:, -width:], "prompt_mask": prompt_mask[:, -width:]}

    reward = column("reward")[when, row.unsqueeze(1)] * exists
    batch["reward"] = reward.sum(1)
    if exists.shape[1] > 1:
        batch["turn_reward"] = reward
    of_last = ("terminated", "truncated", "correct", "level", "answer", *COMPONENTS)
    for name in (*of_last, *(n for n in recorded if n not in per_token)):
        if name in steps[0]:
            batch[name] = column(name)[last, row]
    if "failed" in steps[0]:
        batch["failed"] = (column("failed")[when, row.unsqueeze(1)] & exists).any(1)
        scored = ~batch["failed"]
        for name in ("mask", *per_token):
            batch[name] = batch[name] * align_left(scored, batch[name])
    batch["index"], batch["group"] = played.index.to(device), played.group.to(device)
    return TensorDict(batch, batch_size=[len(row)], device=None if device.type == "cpu" else device)


class PromptGroups(Episodes):
    """`samples` completions of each of `prompts` prompts of a text task; the batch is described in the module.

    Args:
        sampler: draws the ids of the prompts (see `polopt.data.samplers`); None takes new ones each time.
        starts: ids of the prompts, the same in every call.
        greedy: take the most likely token.
        rows: most completions that are generated at once; None generates all of them together.
        max_steps: longer conversations are cut after this many turns and count as truncated.
        extra: its batches are learned from beside others, so one of which every row failed is only warned of.

    The ledger's `completions` grow by B, `tokens` by the sampled tokens, `episodes` by B and `env_steps` by the turns.
    `failures` counts rows whose reward could not be computed. Nothing is kept between two calls but the sampler's state
    and these counts, so a resumed run goes through the same prompts. Raises RunError when every row of a batch failed,
    unless it is `extra`.
    """

    saved = ("failures",)

    def __init__(
        self,
        task: Task,
        prompts: int,
        samples: int,
        *,
        sampler: Draws | None = None,
        starts: Sequence[int] | None = None,
        ledger: Ledger | None = None,
        greedy: bool = False,
        rows: int | None = None,
        max_steps: int = 100_000,
        extra: bool = False,
    ) -> None:
        super().__init__(
            task,
            prompts,
            starts=starts,
            samples=samples,
            sampler=sampler,
            collate=join_tokens,
            greedy=greedy,
            ledger=ledger,
            rows=rows,
            max_steps=max_steps,
        )
        self.extra = extra
        self.failures = 0
        self._tally: Tally = {}

    def play(self, actor: Acts) -> Played:
        played = super().play(actor)
        self.ledger.completions += len(played.row)
        when, exists = played.when()
        sampled = torch.stack([step["mask"].sum(1).cpu() for step in played.steps])  # [steps, N]
        self._tokens = sampled[when, played.row.unsqueeze(1)].mul(exists).sum(1)  # [B]
        self.ledger.tokens += int(self._tokens.sum())
        return played

    def next(self, actor: Acts) -> Batch:
        batch = super().next(actor)
        self._tally = added(self._tally, tally(batch, self.task.spec.info.get("components", ())))
        failed = int(batch["failed"].sum()) if "failed" in batch.keys() else 0
        if self.task.spec.info.get("turns", 1) > 1 and "turn_reward" not in batch.keys():
            batch["turn_reward"] = batch["reward"].unsqueeze(1)
        if failed == len(batch) and not self.extra:
            raise RunError(f"no reward of the {failed} completions of a batch could be computed{_reason(self.task)}")
        if failed and not self.failures:  # said once; `failed` is in every row
            said = f"the reward of {failed} of {len(batch)} completions could not be computed{_reason(self.task)}"
            warnings.warn(f"{said}; such completions teach nothing", Notice, stacklevel=2)
        self.failures += failed
        return batch

    def summaries(self, batch: Batch, played: Played) -> list[tuple[float, int]]:
        """(reward, sampled tokens) of each completion that was scored."""
        scored = ~batch["failed"] if "failed" in batch.keys() else torch.ones(len(batch), dtype=torch.bool)
        return list(zip(batch["reward"][scored].tolist(), self._tokens[scored.cpu()].tolist()))

    def components(self) -> Tally:
        counted, self._tally = self._tally, {}
        return counted

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | ({"components": self._tally} if self._tally else {})

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._tally = {name: list(counts) for name, counts in state.get("components", {}).items()}


def _reason(task: Any) -> str:
    """ ": " and the first line of the failure that the task noted, if it did."""
    lines = str(getattr(task, "failure", "")).strip().splitlines()
    return f": {lines[0].rstrip('.')}" if lines else ""
