"""`compare`, `report` and `record`: what is made of finished runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polopt.core import files
from polopt.core.errors import UsageError
from polopt.data.teams import playing
from polopt.evaluation.score import Score, common, measured_apart
from polopt.report.compared import write_figures
from polopt.report.members import members, seeds_of, settings_of
from polopt.report.page import write_report
from polopt.report.runs import read_run, read_runs, run_folders
from polopt.report.tables import as_text, comparison
from polopt.report.together import Ranges, check_ranges
from polopt.report.trained import about, file_name, planned, raise_first, train_all
from polopt.report.video import record_video
from polopt.training import seeding
from polopt.training.api import load_method
from polopt.training.beginning import check
from polopt.training.folder import Run
from polopt.training.jobs import Engine
from polopt.training.plan import OwnCode, TaskLike, check_picture, runtime, task_name


@dataclass(frozen=True)
class Comparison:
    """What `compare` gives.

    Attributes:
        runs: seeds outside, methods inside.
        facts: the numbers of the table, the page and the figures as plain data: see `polopt.report.comparison`.
        page: report.html.
        figures: SVG and PDF of what the page draws, and evaluations.csv.
    """

    runs: list[Run]
    facts: dict[str, Any]
    page: Path
    figures: list[Path]

    @property
    def table(self) -> str:
        """The table over seeds as text."""
        return as_text(self.facts)


def compare(
    methods: Sequence[str],
    task: TaskLike,
    *,
    seeds: int | str | Sequence[int] = 5,
    jobs: int | None = None,
    ray: str | None = None,
    gpus_per_job: float = 0.0,
    out: str | Path | None = None,
    score: str | None = None,
    ranges: Ranges | None = None,
    each: Mapping[str, Mapping[str, Any]] | None = None,
    progress: bool = False,
    **settings: Any,
) -> Comparison:
    """Trains methods, or several settings of one, with the same seeds and writes one report.

    What is finished is not run again, and what was stopped goes on: call it again to continue.

    Args:
        methods: names of `polopt methods`; "fast=sac" is sac under the name "fast".
        seeds: how many, 0..seeds-1, or which: a list, or "0,1,7".
        jobs, ray, gpus_per_job: where runs train: by default one after another, with more `jobs` so many at a time in
            processes of their own, or on a Ray cluster (`polopt.training.jobs.Engine`). Each has one torch thread,
            unless `threads` says otherwise.
        out: the folder that holds the runs, out/NAME-sSEED, report.html, and figures/ with evaluations.csv.
        score: the number of the evaluations that all are compared by; by default the one that they are judged by.
        ranges: (low, high) of the scores under the task's name or "": see `comparison`.
        each: settings of one, by name, or by method for all of that method; they take the place of those for all.
        settings: as for `train`; every method must have the fields that are named.

    Raises:
        UsageError: wrong names or values, a method that does not fit the task, methods that are judged by different
            numbers and no `score`, a score that they do not measure alike (other reference points of a hypervolume), or
            a folder that holds other runs. All of this is found before the first run begins.
        RunError: a run failed, or its process died three times; the sentence says which. The others have ended.
    """
    among, numbers = members(methods), seeds_of(seeds)
    engine = Engine(jobs, ray, gpus_per_job)
    check_ranges([task_name(task)], ranges or {})
    folder = Path(out) if out is not None else Path("runs") / f"compare-{file_name(task_name(task))}"
    files.check_folder(folder)
    given = {member.name: settings_of(member, among, settings, each or {}) for member in among}
    todo, new, judged, measured = [], [], [], []
    for member in among:
        with about(member.name if len(among) > 1 else ""):
            theirs, plans = planned(member, task, numbers, folder, dict(given[member.name]))
            todo.append(theirs)
            new += [(member.name, one) for one in plans[:1]]
            if not plans:
                judged.append((member.name, read_run(theirs[0].place).judged_by))
            measured.append((member.name, plans[0].record() if plans else read_run(theirs[0].place).config))
    for name, one in new:  # names and values are right: now what takes longer
        with about(name if len(among) > 1 else ""):
            judged.append((name, check(one, score)))
    followed = common(judged) if score is None else Score(score)
    if apart := measured_apart(followed.key, measured):
        raise UsageError(f"{apart}: give both the same, or name another number with --score")
    calls = [theirs[place] for place in range(len(numbers)) for theirs in todo]
    raise_first(calls, train_all(calls, engine, folder, progress))
    places = [call.place for call in calls]
    runs = read_runs(places, score)
    facts = comparison(runs, ranges=ranges)
    page = write_report(runs, folder / "report.html", ranges=ranges)
    return Comparison([Run(place) for place in places], facts, page, write_figures(facts, runs, folder / "figures"))


def report(
    folders: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    score: str | None = None,
    ranges: Ranges | None = None,
    figures: str | Path | None = None,
    video: bool = True,
    **own: Any,
) -> Path:
    """Writes one self-contained HTML page; of one folder by default into it, of many into the current one.

    With `out` nothing is written to the folders of the runs, unless it is in there.

    Args:
        folders: run folders, and folders of runs as `compare` makes them: of one task or of several.
        score: the number of the evaluations that the page follows; by default the one that the methods are judged by.
        ranges: (low, high) of the scores of each task: see `comparison`.
        figures: a folder for what the page of several runs draws, as SVG and PDF, and for evaluations.csv.
        video: record one of the policy for the page of a single run that has none yet.
        own: `task`, `network`, `rewards`, `judge`, `tables`, `criterion`, `overseer`, `trust_remote_code` again:
            code of your own (`OwnCode`).
    """
    places = run_folders(folders)
    OwnCode.of(own)
    for place in places:
        Run(place).config  # noqa: B018  a folder that is no run is refused before anything is written
    target = Path(out) if out is not None else (Path(folders[0]) if len(folders) == 1 else Path(".")) / "report.html"
    files.check_file(target)
    if figures is not None:
        files.check_folder(Path(figures))
    runs = read_runs(places, score)
    if ranges and len(runs) == 1:
        raise UsageError("--range puts several runs on one scale: here is only one")
    with files.temporary_folder("polopt-film-") as apart:
        if video and len(runs) == 1 and runs[0].video is None:
            inside = target.resolve().is_relative_to(places[0].resolve())
            films = places[0] / "videos" if inside else apart
            record(places[0], out=films, **own)
            runs = [replace(runs[0], films=films)]
        write_report(runs, target, ranges=ranges)
    if figures is not None:
        write_figures(comparison(runs, ranges=ranges), runs, Path(figures))
    return target


def record(
    folder: str | Path,
    *,
    seconds: float = 20,
    out: str | Path | None = None,
    **own: Any,
) -> Path | str:
    """Records one greedy episode of the trained policy; returns the path, or why there is no video.

    `out` is the folder to write to, by default videos/ of the run.
    """
    run, again = Run(Path(folder)), OwnCode.of(own)
    videos = run.folder / "videos" if out is None else Path(out)
    try:
        check_picture(run.config.get("task") if again.task is None else again.task)
        method, planned = load_method(run.folder, "latest", again)
        with runtime(planned.options):
            maker = planned.make_renderer()
            _, player = playing(method.task, method.policy)
            name = f"step-{run.checkpoints.steps()[-1]:09d}.mp4"
            seed = seeding.derive(planned.options.seed, seeding.TEST_TASK)
            video = record_video(player, maker, videos / name, seed, seconds=seconds)
    except UsageError as error:
        video = f"No video: {error}."
    if isinstance(video, str):
        files.make_folder(videos)
        files.replace(videos / "none.txt", video.encode())
    return video
