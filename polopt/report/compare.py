"""`compare`, `report` and `record`: what is made of finished runs."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polopt import registry
from polopt.core import files
from polopt.core.errors import UsageError
from polopt.data.teams import playing
from polopt.evaluation.score import Score, common
from polopt.report.page import write_report
from polopt.report.tables import compare_table
from polopt.report.video import record_video
from polopt.training import seeding
from polopt.training.api import load_method, train_or_resume
from polopt.training.beginning import check
from polopt.training.folder import Run
from polopt.training.plan import OwnCode, TaskLike, check_picture, plan, runtime, task_name


@dataclass(frozen=True)
class Comparison:
    """The runs of `compare`, the table over seeds as text, and the report page."""

    runs: list[Run]
    table: str
    page: Path


def compare(
    methods: Sequence[str],
    task: TaskLike,
    *,
    seeds: int = 5,
    jobs: int = 1,
    out: str | Path | None = None,
    score: str | None = None,
    progress: bool = False,
    **settings: Any,
) -> Comparison:
    """Trains every method with the same seeds 0..seeds-1 and writes one report; what is finished is not run again.

    Args:
        jobs: runs at a time, each in a process of its own with one torch thread.
        out: the folder that holds the runs, out/METHOD-sSEED, and report.html.
        score: the number of the evaluations that all are compared by; by default the one that they are judged by.
        settings: as for `train`; every method must have the fields that are named.

    Raises:
        UsageError: wrong names or values, or methods that are judged by different numbers and no `score`.
    """
    if score is None:
        common((method, Score(registry.load(method).score)) for method in methods)
    folder = (
        Path(out)
        if out is not None
        else Path("runs") / f"compare-{task_name(task)}".replace(":", "_").replace("/", "_")
    )
    plans = [plan(method, task, **settings) for method in methods]
    for planned in plans:  # what is wrong is found before hours are spent
        if not all((folder / f"{planned.method}-s{seed}" / "config.json").exists() for seed in range(seeds)):
            check(planned)
    todo = [(method, seed, folder / f"{method}-s{seed}") for seed in range(seeds) for method in methods]
    if jobs == 1:
        for method, seed, place in todo:
            train_or_resume(method, task, seed, place, settings, progress)
    else:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting = [
                pool.submit(train_or_resume, method, task, seed, place, {"threads": 1} | settings, False)
                for method, seed, place in todo
            ]
            for number, future in enumerate(as_completed(waiting), 1):
                future.result()
                if progress:
                    print(f"{number} of {len(todo)} runs done", file=sys.stderr)
    places = [place for _, _, place in todo]
    page = report(places, folder / "report.html", score=score)
    return Comparison([Run(place) for place in places], compare_table(places, score), page)


def report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    score: str | None = None,
    video: bool = True,
    **own: Any,
) -> Path:
    """Writes one self-contained HTML page; of one run by default into its folder, of many into the current one.

    Args:
        score: the number of the evaluations that the page follows; by default the one that the methods are judged by.
        video: record one of the policy for the page of a single run that has none yet.
        own: `task`, `network`, `rewards`, `judge`, `tables`, `criterion`, `trust_remote_code` again: code of your own
            (`OwnCode`).
    """
    places = [Path(folder) for folder in folders]
    OwnCode.of(own)
    for place in places:
        Run(place).config  # noqa: B018  a folder that is no run is refused before anything is written
    if video and len(places) == 1 and not list((places[0] / "videos").glob("*.mp4")):
        record(places[0], **own)
    target = Path(out) if out is not None else (places[0] if len(places) == 1 else Path(".")) / "report.html"
    return write_report(places, target, score)


def record(
    folder: str | Path,
    *,
    seconds: float = 20,
    **own: Any,
) -> Path | str:
    """Records one greedy episode of the trained policy into videos/; returns the path, or why there is no video."""
    run, again = Run(Path(folder)), OwnCode.of(own)
    try:
        check_picture(run.config.get("task") if again.task is None else again.task)
        method, planned = load_method(run.folder, "latest", again)
        with runtime(planned.options):
            maker = planned.make_renderer()
            _, player = playing(method.task, method.policy)
            name = f"step-{run.checkpoints.steps()[-1]:09d}.mp4"
            seed = seeding.derive(planned.options.seed, seeding.TEST_TASK)
            video = record_video(player, maker, run.folder / "videos" / name, seed, seconds=seconds)
    except UsageError as error:
        video = f"No video: {error}."
    if isinstance(video, str):
        files.make_folder(run.folder / "videos")
        files.replace(run.folder / "videos" / "none.txt", video.encode())
    return video
