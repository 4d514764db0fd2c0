"""python -m benchmarks page: the figures of docs/benchmarks.md, from `benchmarks/results/`.

Draws docs/images/bench-*.png, and writes what stands between `<!-- table: NAME -->` and `<!-- end -->`. Everything else
on the page is written by hand.

Of a speed case the newest line counts. Of a learning curve those lines count whose job is that of the arm's newest
line, one per seed. The unit of all intervals is the seed: mean and 95 % percentile bootstrap.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environments import ROOT
from benchmarks.returns import EXPERIMENTS, Line, file_of, pilot_scores, read
from benchmarks.speed import CASES
from polopt.evaluation.statistics import Array, Interval, aggregate_curves, bootstrap, mean
from polopt.report.sheets import FAINT, INK, SERIES, sheet

RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
UNITS = {"steps": "environment steps", "updates": "updates", "completions": "completions"}
EMPTY = "No results yet."


@dataclass(frozen=True)
class Comparison:
    """Two arms side by side, each (label, experiment, arm)."""

    name: str
    first: tuple[str, str, str]
    second: tuple[str, str, str]


SB3, IN_SB3 = "stable-baselines3", "Stable-Baselines3"
COMPARISONS = (
    Comparison("sac", ("polopt", "sac", "ours"), (IN_SB3, "sac", SB3)),
    Comparison("sac-short", ("polopt", "sac-short", "ours"), (IN_SB3, "sac-short", SB3)),
    Comparison("td3", ("polopt", "td3", "ours"), (IN_SB3, "td3", SB3)),
    Comparison("ppo", ("polopt", "ppo", "ours"), (IN_SB3, "ppo", SB3)),
    Comparison("trpo", ("polopt", "trpo", "ours"), ("sb3-contrib", "trpo", SB3)),
    Comparison("dqn", ("polopt", "dqn", "ours"), (IN_SB3, "dqn", SB3)),
    Comparison("dsac-t", ("DSAC-T", "dsac-t", "ours"), ("SAC", "sac", "ours")),
    Comparison("mdpo-off", ("off-policy MDPO", "mdpo-off", "ours"), ("SAC", "sac", "ours")),
    Comparison("mdpo", ("MDPO", "mdpo", "ours"), ("PPO", "ppo", "ours")),
    Comparison("iql", ("polopt", "iql", "ours"), ("d3rlpy", "iql", "d3rlpy")),
    Comparison("td3-bc", ("polopt", "td3-bc", "ours"), ("d3rlpy", "td3-bc", "d3rlpy")),
    Comparison("iql-start", ("polopt, from d3rlpy's start", "iql-start", "ours"), ("d3rlpy", "iql", "d3rlpy")),
    Comparison("ofql", ("OFQL", "ofql", "ofql"), ("DQL, 5 steps", "ofql", "dql")),
    Comparison("grpo", ("polopt", "grpo", "ours"), ("TRL", "grpo", "trl")),
)


# Learning curves, in numbers


@dataclass(frozen=True)
class Curves:
    """The runs of one arm on one task with one budget.

    Attributes:
        label: of the arm. runs: one line per seed.
        unit: what the rows count; `score` is "return" or "accuracy".
    """

    label: str
    runs: tuple[Line, ...]

    @property
    def unit(self) -> str:
        return next(unit for unit in UNITS if unit in self.runs[0]["rows"][0])

    @property
    def score(self) -> str:
        return next(score for score in ("return", "accuracy") if score in self.runs[0]["rows"][0])

    def series(self, run: Line, along: str) -> tuple[Array, Array]:
        """Steps, seconds or whatever `along` names, and scores of one run."""
        rows = run["rows"]
        return np.array([row[along] for row in rows], float), np.array([row[self.score] for row in rows], float)

    def ends(self, along: str) -> Array:
        return np.array([run["rows"][-1][along] for run in self.runs], float)

    def at(self, along: str, value: float) -> Interval:
        """Score at a moment, interpolated."""
        return bootstrap([np.interp(value, *self.series(run, along)) for run in self.runs], mean)

    def area(self, until: float) -> Interval:
        """Area under the score up to `until`, over its width: the mean score on the way."""
        areas = []
        for run in self.runs:
            steps, scores = self.series(run, self.unit)
            grid = np.append(steps[steps < until], until)
            areas.append(np.trapezoid(np.interp(grid, steps, scores), grid) / (until - grid[0]))
        return bootstrap(areas, mean)


@dataclass(frozen=True)
class Result:
    """One arm beside another one, on one task.

    Attributes:
        final: score after as many steps as every run of both has.
        area: mean score up to there.
        at_time: score at the time when the fastest run of both had ended.
        minutes, cpu_minutes: of training, of a whole run.
    """

    label: str
    seeds: int
    final: Interval
    area: Interval
    at_time: Interval
    minutes: Interval
    cpu_minutes: Interval


def summary(sides: Sequence[Curves]) -> tuple[list[Result], float, float]:
    """Each side beside the others, the steps and the seconds at which they are compared."""
    unit = sides[0].unit
    until = min(side.ends(unit).min() for side in sides)
    seconds = min(side.ends("seconds").min() for side in sides)
    results = [
        Result(
            side.label,
            len(side.runs),
            side.at(unit, until),
            side.area(until),
            side.at("seconds", seconds),
            bootstrap(side.ends("seconds") / 60, mean),
            bootstrap(side.ends("cpu_seconds") / 60, mean),
        )
        for side in sides
    ]
    return results, float(until), float(seconds)


def verdict(first: Interval, second: Interval) -> str:
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return "one seed"
    if first.low > second.high:
        return "above"
    return "below" if first.high < second.low else "overlap"


def arm_runs(lines: Sequence[Line], arm: str) -> dict[tuple[str, int], tuple[Line, ...]]:
    """The runs of an arm by task and budget: those with the job of the newest one, the newest of each seed."""
    groups: dict[tuple[str, int], list[Line]] = {}
    for line in lines:
        if line["arm"] == arm:
            groups.setdefault((line["task"], _budget(line)), []).append(line)
    kept = {}
    for group, runs in groups.items():
        seeds = {line["seed"]: line for line in runs if _settings(line) == _settings(runs[-1])}
        kept[group] = tuple(seeds[seed] for seed in sorted(seeds))
    return kept


def _budget(line: Line) -> int:
    return next(line["job"][unit] for unit in ("steps", "updates", "minutes") if unit in line["job"])


def _settings(line: Line) -> dict[str, Any]:
    return {name: value for name, value in line["job"].items() if name != "seed"}


def panels(comparison: Comparison, lines: dict[str, list[Line]]) -> list[tuple[str, list[Curves]]]:
    """Both sides for each task and budget that the first one has, under a title."""
    sides = [(label, arm_runs(lines[name], arm)) for label, name, arm in (comparison.first, comparison.second)]
    found = []
    for task, budget in sorted(sides[0][1], key=lambda group: group[1]):
        curves = [Curves(label, runs[task, budget]) for label, runs in sides if (task, budget) in runs]
        unit = "minutes" if curves[0].score == "accuracy" else UNITS[curves[0].unit]
        found.append((f"{task}, {budget:,} {unit}", curves))
    return found


# Pictures


def draw_curves(file: Path, titled: Sequence[tuple[str, list[Curves]]]) -> None:
    """A row per task: scores against what was learned from, and against the minutes of training."""
    from matplotlib.ticker import EngFormatter

    with sheet(file, len(titled), 2, 10.4, 0.55 + 3.1 * len(titled)) as (drawing, axes):
        shown: dict[str, Any] = {}
        for (title, sides), (left, right) in zip(titled, axes):
            for color, side in zip(SERIES, sides):
                for place, along, scale in ((left, side.unit, 1.0), (right, "seconds", 60.0)):
                    curves = [(x / scale, y) for x, y in (side.series(run, along) for run in side.runs)]
                    shown[side.label] = _band(place, curves, color)
            left.set_title(title)
            left.set_ylabel("accuracy, greedy" if sides[0].score == "accuracy" else "return, deterministic policy")
            left.set_xlabel(UNITS[sides[0].unit])
            left.xaxis.set_major_formatter(EngFormatter(sep=""))
            right.set_xlabel("training time, minutes")
            right.sharey(left)
            if len(sides) > 1:
                right.axvline(summary(sides)[2] / 60, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        drawing.legend(shown.values(), shown, loc="outside upper left", ncols=len(shown), frameon=False, labelcolor=INK)


def _band(axes: Any, curves: Sequence[tuple[Array, Array]], color: str) -> Any:
    """Single seeds as thin lines, mean and interval over them. Returns the line of the mean."""
    for curve in curves:
        axes.plot(*curve, color=color, linewidth=0.7, alpha=0.35)
    total = aggregate_curves(curves, mean)
    if total.n > 1:
        axes.fill_between(total.steps, total.low, total.high, color=color, alpha=0.16, linewidth=0)
    return axes.plot(total.steps, total.center, color=color, linewidth=2.2)[0]


def draw_speed(file: Path, lines: Sequence[Line]) -> None:
    """A bar per case and peer at its fastest, from 1 to the median of ours / peer, with the smallest and the largest of
    the rounds; a second one for our fastest side, if that is not the first."""
    bars = []
    for line in lines:
        first, best = line["sides"][0], fastest(of_ours(line))
        for side in of_peers(line):
            for mine in (first, best) if best is not first else (first,):
                bars.append((f"{line['case']}: {mine['name']} / {side['name']}", ratios(mine, side)))
    labels = [label for label, _ in bars]
    with sheet(file, 1, 1, 10.4, 0.9 + 0.36 * len(bars)) as (_, (((axes,),))):
        for index, (_, found) in enumerate(bars):
            middle = statistics.median(found)
            color = SERIES[0] if middle >= 1 else SERIES[1]
            axes.barh(index, middle - 1, left=1, height=0.62, color=color, alpha=0.85)
            axes.plot([min(found), max(found)], [index, index], color=INK, linewidth=1.4, marker="|", markersize=7)
            end = max(*found, 1.0)
            axes.annotate(
                f"{middle:.2f}", (end, index), xytext=(7, 0), textcoords="offset points", va="center", fontsize=10
            )
        everything = [ratio for _, found in bars for ratio in found]
        low, high = min(everything), max(everything)
        ticks = [
            tick for tick in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50) if low * 0.9 <= tick <= high * 1.1 or tick == 1
        ]
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlim(min(low * 0.93, 0.93), high * 1.25)
        axes.axvline(1, color=INK, linewidth=1)
        axes.set_yticks(range(len(bars)), labels)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("how many times as fast (units a second / units a second; log scale)")


def of_ours(line: Line) -> list[Line]:
    """The first side of a case and those that are the same in another way: "polopt", "polopt --compile"."""
    name = line["sides"][0]["name"]
    return [side for side in line["sides"] if side["name"] == name or side["name"].startswith((f"{name} ", f"{name},"))]


def of_peers(line: Line) -> list[Line]:
    """Every other library at its fastest."""
    others = [side for side in line["sides"] if side["library"] != line["sides"][0]["library"]]
    names = dict.fromkeys(side["library"] for side in others)
    return [fastest([side for side in others if side["library"] == name]) for name in names]


def fastest(sides: Sequence[Line]) -> Line:
    return max(sides, key=lambda side: side["rate"])


def ratios(side: Line, other: Line) -> list[float]:
    """By round."""
    return [a / b for a, b in zip(side["rates"], other["rates"])]


def catches_up(side: Line, other: Line) -> str:
    """After how many units a compiled side has caught up with the other one, from when both are warm; "" of sides that
    do not compile, and of lines of before this was recorded."""
    if not side.get("job", {}).get("compile") or "ready_seconds" not in side:
        return ""
    behind, saved = side["ready_seconds"] - other["ready_seconds"], 1 / other["rate"] - 1 / side["rate"]
    return "never" if saved <= 0 else number(max(behind, 0.0) / saved)


def is_world(line: Line) -> bool:
    """Whether a line is of the cases that have a table of their own."""
    return str(line["case"]).startswith(("world-", "points-", "many-"))


# Tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interval(found: Interval) -> str:
    if found.low is None or found.high is None:
        return number(found.estimate)
    return f"{number(found.estimate)} [{number(found.low)}, {number(found.high)}]"


def curve_table(titled: Sequence[tuple[str, list[Curves]]]) -> str:
    rows = []
    for title, sides in titled:
        results, until, seconds = summary(sides)
        for result in results:
            first, alone = result is results[0], len(results) == 1
            beside = "nothing beside it yet"
            if not alone:
                steps = verdict(result.final, results[1].final)
                time = verdict(result.at_time, results[1].at_time)
                beside = f"{steps}; {time}"
            rows.append(
                [
                    title if first else "",
                    result.label,
                    str(result.seeds),
                    f"{interval(result.final)} at {until:,.0f}",
                    interval(result.area),
                    f"{interval(result.at_time)} at {seconds / 60:.1f} min",
                    f"{number(result.minutes.estimate)} ({number(result.cpu_minutes.estimate)})",
                    beside if first else "",
                ]
            )
    score = "accuracy" if titled[0][1][0].score == "accuracy" else "return"
    head = ["", "", "seeds", f"{score} at equal amounts", f"mean {score} up to there", f"{score} at equal time"]
    return table([*head, "training, minutes (processor)", "first beside second: amounts; time"], rows)


def pilot_table(lines: Sequence[Line]) -> str:
    rows = [[arm, number(score)] for arm, score in pilot_scores(lines).items()]
    return table(["pilot", "return, last two evaluations"], rows) if rows else EMPTY


def speed_table(lines: Sequence[Line]) -> str:
    rows = []
    for line in lines:
        ours, limit = line["sides"][0], line["limit"]
        for side in line["sides"]:
            arithmetic, best = line["arithmetic"].get(side["name"]), fastest(of_ours(line))
            compared = side["name"] in line["ratios"]
            rows.append(
                [
                    f"`{line['case']}`, {line['unit']}" if side is ours else "",
                    side["name"],
                    str(side["threads"]),
                    f"{number(side['rate'])}/s" if side["rate"] >= 10 else f"{1 / side['rate']:.3g} s each",
                    spread(ratios(ours, side)) if compared else "",
                    spread(ratios(best, side)) if compared and best is not ours and best is not side else "",
                    f"{arithmetic:.2f}" if arithmetic else "",
                    f"{limit['fraction']:.0%} of {limit['name']}" if limit and side is ours else "",
                    f"{side['peak_mb']:,.0f}",
                    catches_up(side, ours),
                ]
            )
    head = [
        "case, unit",
        "",
        "threads",
        "median rate",
        "first / this",
        "our fastest / this",
        "by arithmetic",
        "of the limit",
    ]
    known = any(row[-1] for row in rows)
    head += ["peak memory, MB", *(["catches up with the first after"] if known else [])]
    return table(head, [row[: len(head)] for row in rows])


def worlds_table(lines: Sequence[Line]) -> str:
    """Steps a second by rows, one column a side, and how many times as fast as each peer the first side is."""
    names = [side["name"] for side in max((line["sides"] for line in lines), key=len)] if lines else []
    peers = [name for name in names if any(name in line["ratios"] for line in lines) and not name.startswith("polopt")]
    rows = []
    for line in lines:
        sides = {side["name"]: side for side in line["sides"]}
        rates = [f"{number(sides[name]['rate'])}" if name in sides else "" for name in names]
        found = [spread(line["ratios"][name]) if name in line["ratios"] else "" for name in peers]
        rows.append([f"{line['sides'][0]['job']['rows']:,}", *rates, *found])
    head = ["rows", *(f"{name}, steps/s" for name in names), *(f"polopt / {name}" for name in peers)]
    return table(head, rows) if rows else EMPTY


def many_table(lines: Sequence[Line]) -> str:
    """What a step of each side costs by rows, its memory, and how many times as fast as the peer ours are."""
    rows = []
    for line in lines:
        ours, peer = of_ours(line), of_peers(line)
        runs = line["unit"] == "runs"
        for side in [*ours, *peer]:
            cost = f"{1 / side['rate']:.3g} s" if runs else f"{1e6 / side['rate']:.3g} us"
            beside = spread(ratios(side, peer[0])) if peer and side in ours else ""
            first = side is ours[0]
            what = f"a run to a mean reward of {side['job']['reward']}" if runs else "an environment step"
            rows.append(
                [
                    f"{side['job']['rows']:,}" if first else "",
                    what if first else "",
                    side["name"],
                    cost,
                    "" if runs else number(side["rate"]),
                    beside,
                    f"{side['peak_mb']:,.0f}",
                ]
            )
    head = ["rows", "what", "", "costs", "steps/s", "times as fast as JAX", "peak memory, MB"]
    return table(head, rows) if rows else EMPTY


def spread(found: Sequence[float]) -> str:
    return f"**{statistics.median(found):.2f}** ({min(found):.2f} to {max(found):.2f})"


def parts_table(lines: Sequence[Line]) -> str:
    """Where the time of each first side goes."""
    rows = []
    for line in lines:
        slices = line["sides"][0]["slices"]
        names = [name for name in slices[0]["parts"] if name != "tokens"]
        if names:
            total = sum(slice["seconds"] for slice in slices)
            shares = {name: sum(slice["parts"].get(name, 0.0) for slice in slices) / total for name in names}
            shares["the rest"] = 1 - sum(shares.values())
            rows.append(
                [f"`{line['case']}`", ", ".join(f"{name.replace('_', ' ')} {x:.0%}" for name, x in shares.items())]
            )
    return table(["case", "share of the time"], rows) if rows else EMPTY


def machine_table(lines: Sequence[Line]) -> str:
    """Where, when and with which versions the speed cases were measured."""
    rows = []
    for line in lines:
        sides: dict[str, list[str]] = {}
        for side in line["sides"]:
            sides.setdefault(_versions(side["versions"]), []).append(side["name"])
        versions = "; ".join(f"{' and '.join(names)}: {found}" for found, names in sides.items() if found)
        about = line["machine"]
        where = f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, {about['system']}"
        rows.append([f"`{line['case']}`", line["date"][:10], f"`{about['commit']}`", where, versions])
    return table(["case", "date", "commit", "machine", "versions"], rows)


def runs_table(lines: dict[str, list[Line]]) -> str:
    """How every curve was made."""
    rows = []
    for experiment, each in lines.items():
        for arm in dict.fromkeys(line["arm"] for line in each):
            for (task, budget), runs in arm_runs(each, arm).items():
                about = runs[-1]["machine"]
                rows.append(
                    [
                        f"{experiment}, {arm}, {task}, {budget:,}",
                        ", ".join(str(run["seed"]) for run in runs),
                        _range(run["minutes"] for run in runs),
                        _range(run["peak_mb"] for run in runs),
                        _range(run["jobs"] for run in runs),
                        _range(load for run in runs for load in run["load"]),
                        " ".join(dict.fromkeys(f"`{run['commit']}`" for run in runs)),
                        " to ".join(dict.fromkeys(end(run["date"][:10] for run in runs) for end in (min, max))),
                        f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB",
                        _versions(runs[-1]["versions"]),
                    ]
                )
    head = ["runs", "seeds", "minutes each", "peak MB", "at once", "load", "commit", "date", "machine", "versions"]
    return table(head, rows) if rows else EMPTY


def jobs_table(lines: dict[str, list[Line]]) -> str:
    """Every setting of every curve."""
    rows = []
    for experiment, each in lines.items():
        for arm in dict.fromkeys(line["arm"] for line in each):
            for (task, _), runs in arm_runs(each, arm).items():
                rows.append([experiment, arm, task, f"`{json.dumps(_settings(runs[-1]))}`"])
    return table(["experiment", "arm", "task", "job, without its seed"], rows) if rows else EMPTY


def _range(values: Iterator[float]) -> str:
    found = list(values)
    low, high = number(min(found)), number(max(found))
    return low if low == high else f"{low} to {high}"


def _versions(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version)


# The page


def fill(text: str, tables: dict[str, str]) -> str:
    """The page with these tables. Raises ValueError when a table has no place or a place has no table."""
    places = re.findall(r"<!-- table: (\S+) -->", text)
    for name in {*places} ^ {*tables}:
        raise ValueError(f"'{name}' is {'on the page, but nothing makes it' if name in places else 'not on the page'}")

    def put(match: re.Match[str]) -> str:
        return f"<!-- table: {match[1]} -->\n\n{tables[match[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->.*?<!-- end -->", put, text, flags=re.DOTALL)


def write(page: Path = PAGE, results: Path = RESULTS, template: str | None = None) -> list[Path]:
    """Draws the pictures beside the page and fills its tables; returns the files that were written."""
    text = page.read_text() if template is None else template
    newest = {line["case"]: line for line in read(results / "speed.jsonl")}
    measured = [newest[case.name] for case in CASES if case.name in newest]
    speed = [line for line in measured if not is_world(line)]
    lines = {
        name: [line for full in (False, True) for line in read(file_of(name, full, results / "returns"))]
        for name in EXPERIMENTS
    }
    images, written = page.parent / "images", [page]

    def picture(name: str, what: str, draw: Callable[..., None], *data: Any) -> str:
        written.append(images / f"bench-{name}.png")
        draw(written[-1], *data)
        return f"![{what}](images/bench-{name}.png)"

    tables = {"speed": EMPTY, "speed-parts": EMPTY, "speed-machine": EMPTY}
    if speed:
        shown = picture("speed", "How many times as fast as each peer", draw_speed, speed)
        tables = {"speed": f"{shown}\n\n{speed_table(speed)}", "speed-parts": parts_table(speed)}
        tables["speed-machine"] = machine_table(measured)
    for name, begin, show in (
        ("worlds", "world-", worlds_table),
        ("points", "points-", worlds_table),
        ("many", "many-", many_table),
    ):
        tables[name] = show([line for line in measured if line["case"].startswith(begin)])
    for comparison in COMPARISONS:
        name, titled = comparison.name, panels(comparison, lines)
        tables[f"returns-{name}"] = EMPTY
        if titled:
            what = f"{comparison.first[0]} beside {comparison.second[0]}: learning curves of {name}"
            tables[f"returns-{name}"] = f"{picture(name, what, draw_curves, titled)}\n\n{curve_table(titled)}"
    tables |= {"pilots": pilot_table(lines["ofql-pilots"]), "runs": runs_table(lines), "jobs": jobs_table(lines)}
    page.write_text(fill(text, tables))
    return written


def main(argv: list[str]) -> int:
    argparse.ArgumentParser(prog="python -m benchmarks page", description=(__doc__ or "").split("\n\n")[0]).parse_args(
        argv
    )
    for file in write():
        print(file.relative_to(ROOT))
    return 0
