import csv
import json
import re

import gymnasium
import numpy as np
import pytest

from polopt.cli import main
from polopt.core.errors import RunError, UsageError
from polopt.report import compare_table, comparison, read_run, record_video, write_report
from polopt.report.runs import flatten, labels

HEAD = [
    "env_steps",
    "episodes",
    "updates",
    "seconds",
    "stage",
    "eval/return",
    "eval/return_std",
    "train/return",
    "loss",
]


def make_run(folder, method="sac", task="Pendulum-v1", seed=0, final=100.0, rows=11, config=None, steps=1000):
    folder.mkdir(parents=True)
    record = {
        "method": method,
        "task": task,
        "steps": steps,
        "unit": "env_steps",
        "seed": seed,
        "config": config
        or {"kind": "config", "lr": 0.0003, "policy": {"kind": "squashed-gaussian", "log_std_low": -20}},
        "sources": {"lr": "table 1"},
        "run": {"kind": "run-options", "eval_episodes": 10},
        "versions": {"torch": "2.13"},
        "git": "abc123",
        "command": "polopt train <sac>",
        "created": "2025-01-02T03:04:05+00:00",
    }
    (folder / "config.json").write_text(json.dumps(record))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEAD)
        for index in range(rows):
            value = final * index / 10
            evaluation = [value, 5.0] if index % 2 == 0 else ["", ""]
            writer.writerow([100 * index, index, index, index / 10, "", *evaluation, value - 1, 1 / (index + 1)])
    return folder


def check_page(path):
    """The page needs nothing from outside and its SVG and tables are whole."""
    page = path.read_text()
    assert not re.search(r"https?://", page)
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    assert "url(#" in page or "<svg" in page or "No evaluation" in page
    assert page.count("<svg") == page.count("</svg>")
    assert page.count("<table") == page.count("</table>")
    assert "#0101" not in page
    assert "#0404" not in page
    return page


def test_page_of_one_run(tmp_path):
    run = make_run(tmp_path / "run")
    page = check_page(write_report([run], run / "report.html"))
    for text in ("table 1", "squashed-gaussian", "policy.log-std-low", "abc123", "polopt train &lt;sac&gt;", "2.13"):
        assert text in page
    assert "95 % interval over the 10 episodes of each evaluation of this one run, not over seeds." in page
    assert "This run has no video." in page
    assert "<video" not in page
    assert "loss" in page
    assert write_report([run], tmp_path / "again.html").read_text() == page  # the same run gives the same bytes


def test_page_embeds_the_video(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "videos").mkdir()
    (run / "videos" / "last.mp4").write_bytes(b"film")
    (run / "videos" / "last.json").write_text(json.dumps({"return": 12.34, "length": 200, "whole_episode": True}))
    page = check_page(write_report([run], tmp_path / "page.html"))
    assert '<video controls autoplay loop muted playsinline src="data:video/mp4;base64,ZmlsbQ=="' in page
    assert "Greedy policy, a whole episode: return 12.3 in 200 steps." in page


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_short_runs(tmp_path, rows):
    run = make_run(tmp_path / "run", rows=rows)
    page = check_page(write_report([run], tmp_path / "page.html"))
    assert ("recorded nothing" in page) == (rows == 0)
    assert ("This run stopped at" in page) == (rows > 0)


def test_a_torn_last_line_is_a_short_run(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run / "metrics.csv", "a") as file:
        file.write("1200,1")
    data = read_run(run)
    assert (data.rows, data.damage) == (11, "")
    check_page(write_report([run], tmp_path / "page.html"))
    (run / "metrics.csv").unlink()
    assert read_run(run).damage == ""
    check_page(write_report([run], tmp_path / "page.html"))


def test_damaged_metrics_are_told_and_drawn_as_far_as_they_go(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run / "metrics.csv", "a") as file:
        file.write("1100,11,11,1.1,,nan,inf,words,\n1200,1")
    data = read_run(run)
    assert data.rows == 12
    assert np.isnan(data.columns["eval/return"][-1])
    assert data.score == 80  # (60 + 80 + 100) / 3
    told = "metrics.csv is damaged: 1 cells are no numbers and are left out. What is drawn here may be wrong."
    assert data.damage == told
    with pytest.warns(UserWarning, match=re.escape(f"{run}: {told}")):
        page = check_page(write_report([run], tmp_path / "page.html"))
    assert told in page
    other = make_run(tmp_path / "other", seed=1)
    with pytest.warns(UserWarning, match="is damaged"):
        page = check_page(write_report([run, other], tmp_path / "page.html"))
    assert f"seed 0: {told}" in page
    assert page.count("is damaged") == 1


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda lines: [*lines[:3], "5,5\n", *lines[3:]], "1 of 12 lines have another length than its head"),
        (
            lambda lines: [*lines[:-1], "5,5\n"],
            "1 of 11 lines have another length",
        ),  # whole, as no killed run leaves it
        (lambda lines: lines + lines[1:], "its count goes backwards once, as when two processes write it"),
        (lambda lines: [lines[0].replace("episodes", "env_steps"), *lines[1:]], "its head names a column twice"),
        (lambda lines: ["\xff\x00\n"], "damaged"),
        (lambda lines: lines, ""),
    ],
)
def test_what_a_run_cannot_have_written(tmp_path, spoil, told):
    run = make_run(tmp_path / "run")
    lines = (run / "metrics.csv").read_text().splitlines(keepends=True)
    assert len(lines) == 12
    (run / "metrics.csv").write_bytes("".join(spoil(lines)).encode("latin-1"))
    assert told in read_run(run).damage
    assert bool(told) == bool(read_run(run).damage)


def test_what_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="is not a run folder"):
        write_report([tmp_path], tmp_path / "page.html")
    with pytest.raises(UsageError, match="at least one"):
        write_report([], tmp_path / "page.html")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        write_report([tmp_path], tmp_path / "page.html")
    run = make_run(tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not write"):
        write_report([run], tmp_path / "file" / "page.html")


def test_comparison_counts_seeds(tmp_path):
    good = [make_run(tmp_path / f"g{seed}", "sac", seed=seed, final=100 + seed) for seed in range(5)]
    poor = [make_run(tmp_path / f"p{seed}", "ppo", seed=seed, final=50 + 2 * seed) for seed in range(5)]
    result = comparison([*poor, *good])
    facts = result["tasks"]["Pendulum-v1"]
    assert list(facts["methods"]) == ["sac", "ppo"]  # best first
    sac = facts["methods"]["sac"]
    assert sac["seeds"] == [0, 1, 2, 3, 4]
    assert sac["scores"] == pytest.approx([0.8 * (100 + seed) for seed in range(5)])
    assert sac["iqm"]["estimate"] == pytest.approx(0.8 * 102)  # the middle three
    first = facts["improvement"][0]
    assert (first["a"], first["b"], first["probability"]["estimate"]) == ("sac", "ppo", 1)
    assert first["difference"]["estimate"] == pytest.approx(0.8 * 48)
    assert facts["warnings"] == []
    assert json.dumps(result, allow_nan=False)
    page = check_page(write_report([*poor, *good], tmp_path / "page.html"))
    assert "Probability of improvement" in page
    text = compare_table([*poor, *good])
    assert "sac > ppo" in text


def test_comparison_says_what_is_weak(tmp_path):
    runs = [
        make_run(tmp_path / "a", "sac", seed=0),
        make_run(tmp_path / "b", "ppo", seed=0),
        make_run(tmp_path / "c", "ppo", seed=1, rows=5),
        make_run(tmp_path / "d", "ppo", seed=1, rows=0),
        make_run(tmp_path / "e", "ppo", seed=2, rows=0),
        make_run(tmp_path / "f", "td3", seed=0, steps=500),
    ]
    result = comparison(runs)
    text = " ".join(result["tasks"]["Pendulum-v1"]["warnings"])
    for part in (
        "sac: one seed gives no interval",
        "ppo: 3 seeds; a bootstrap interval over so few is too narrow",
        "1 of 4 runs repeat a seed",
        "ppo: no evaluation for seed 1, 2",
        "stopped at 400 of 1,000 steps",
        "different budgets: 1,000 env_steps, 500 env_steps",
        "not run on the same seeds",
    ):
        assert part in text
    assert json.dumps(result, allow_nan=False)
    check_page(write_report(runs, tmp_path / "page.html"))
    assert "one seed: no interval" in compare_table(runs)


def test_comparison_of_runs_without_numbers(tmp_path):
    runs = [make_run(tmp_path / name, name, rows=0) for name in ("sac", "ppo")]
    check_page(write_report(runs, tmp_path / "page.html"))
    assert "no data" in compare_table(runs)


def test_several_tasks_and_settings(tmp_path):
    runs = [
        make_run(tmp_path / "a", config={"kind": "config", "discount": 0.9}),
        make_run(tmp_path / "b", config={"kind": "config", "discount": 0.99}),
        make_run(tmp_path / "c", task="CartPole-v1", config={"kind": "config", "discount": 0.9}),
    ]
    assert labels([read_run(run) for run in runs])[:2] == ["sac (discount=0.9)", "sac (discount=0.99)"]
    page = check_page(write_report(runs, tmp_path / "page.html"))
    assert "CartPole-v1" in page


def test_flatten():
    tree = {"kind": "config", "a": {"kind": "gaussian", "std": 1}, "b": {"c": {"d": 2}}, "e": {}}
    assert flatten(tree) == {"a": "gaussian", "a.std": 1, "b.c.d": 2, "e": {}}


class Still:
    """Always the same action."""

    resets = 0

    def __init__(self, action):
        self.action = action

    def predict(self, obs):
        return self.action

    def reset(self):
        self.resets += 1


class Dots(gymnasium.Env):
    """Odd frames of 31 x 45 pixels; ends after ten steps."""

    observation_space = gymnasium.spaces.Box(0, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    metadata = {"render_modes": ["rgb_array"], "render_fps": 60}

    def __init__(self, render_mode=None, fail=False):
        self.render_mode, self.count, self.fail = render_mode, 0, fail

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        if self.fail and self.count == 5:
            raise OSError("the simulator\nlost its GPU")
        return np.zeros(1, np.float32), 1.0, self.count == 10, False, {}

    def render(self):
        return np.full((31, 45, 3), 25 * self.count, np.uint8)


class Again(Dots):
    """Every episode has its ten steps."""

    def reset(self, *, seed=None, options=None):
        self.count = 0
        return super().reset(seed=seed)


def test_video_of_one_episode(tmp_path):
    import imageio.v2 as imageio

    actor = Still(0)
    path = record_video(actor, Dots, tmp_path / "videos" / "a.mp4", seed=1)
    assert path == tmp_path / "videos" / "a.mp4"
    assert sorted(item.name for item in path.parent.iterdir()) == ["a.json", "a.mp4"]
    facts = json.loads(path.with_suffix(".json").read_text())
    assert facts == {"seed": 1, "return": 10.0, "length": 10, "whole_episode": True}
    assert actor.resets == 2
    with imageio.get_reader(path) as reader:
        meta = reader.get_meta_data()
        frames = [frame.shape for frame in reader]
    assert meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    assert meta["fps"] == 30  # thinned from 60
    assert frames == [(32, 46, 3)] * 6


def test_video_of_a_gymnasium_task(tmp_path):
    path = record_video(Still(1), "CartPole-v1", tmp_path / "a.mp4", seconds=0.2)
    assert path == tmp_path / "a.mp4"
    assert path.stat().st_size > 500


def test_no_video_is_one_sentence(tmp_path):
    target = tmp_path / "a.mp4"
    cases = {
        "No video: the simulator lost its GPU.": (Dots, {"fail": True}),
        "No video: Bare does not render to arrays (render_mode is None).": (Bare, {}),
    }
    for sentence, (task, kwargs) in cases.items():
        assert record_video(Still(0), task, target, kwargs=kwargs) == sentence
    assert record_video(Still(0), "NoSuch-v9", target).startswith("No video: ")
    assert list(tmp_path.iterdir()) == []


class Bare(gymnasium.Env):
    render_mode = None


def test_ctrl_c_ends_a_recording_and_leaves_nothing(tmp_path, monkeypatch):
    """Also where ffmpeg, which has had half a video, fails to end."""
    import imageio.v2 as imageio

    class Broken:
        def append_data(self, frame):
            pass

        def close(self):
            raise OSError("Broken pipe")

    def stop(self, action):
        raise KeyboardInterrupt

    monkeypatch.setattr(Dots, "step", stop)
    for writer in (None, Broken()):
        if writer is not None:
            monkeypatch.setattr(imageio, "get_writer", lambda *args, writer=writer, **options: writer)
        with pytest.raises(KeyboardInterrupt):
            record_video(Still(0), Dots, tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_video_of_an_environment_and_a_network_of_ones_own(tmp_path, capsys):
    words = ["train", "ppo", "--task", f"{__name__}:Again", "--network", f"{__name__}:Net", "--steps", "16"]
    words += ["--envs", "1", "--window", "8", "--minibatches", "1", "--eval-episodes", "1", "--loggers", "csv"]
    assert main([*words, "--video", "--out", str(tmp_path / "run")]) == 0
    assert [path.suffix for path in sorted((tmp_path / "run" / "videos").iterdir())] == [".json", ".mp4"]
    assert "data:video/mp4" in (tmp_path / "run" / "report.html").read_text()


def Net(inputs, outputs):
    import torch

    return torch.nn.Linear(inputs, outputs)


def test_video_leaves_the_random_state_alone(tmp_path):
    import torch

    before = torch.get_rng_state()
    record_video(Still(0), Dots, tmp_path / "a.mp4")
    assert torch.equal(torch.get_rng_state(), before)
