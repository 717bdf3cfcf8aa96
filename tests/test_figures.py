"""Every figure, made from small files of measurements."""

import pathlib
import sys

import numpy as np
import pytest
from test_files import full_disk

from reuse_tf.benchmark import __main__ as program
from reuse_tf.benchmark import figures

GAMES = ("Alien", "Pong", "Seaquest")
# The paper's heatmaps: a mode, a downsampling, filters.
HEATMAPS = [
    *(
        ("inference", d, f)
        for d in (2, 4)
        for f in ("20,40", "40,80", "80,160")
    ),
    *(("training", 4, f) for f in ("20,40", "40,80", "80,160")),
    *(("training", 2, f) for f in ("20,40", "40,80")),
]
# Seconds of each column for 3000 steps, but of dense for 300 steps.
SECONDS = {"bare_env": 3.0, "content": 3.75, "temporal": 6.0, "dense": 7.5}


def write(path, rows):
    """Writes dicts as CSV, quoting what has a comma."""
    lines = [list(rows[0])] + [list(row.values()) for row in rows]
    path.write_text(
        "".join(
            ",".join(f'"{v}"' if "," in str(v) else str(v) for v in line) + "\n"
            for line in lines
        )
    )
    return str(path)


def plays(settings, games=GAMES, columns=tuple(SECONDS), factors=(1,)):
    """Rows as the commands infer and train write them.

    The i-th game takes i + 1 times as long as the first, and the run i
    `factors[i]` times as long as `SECONDS`.
    """
    rows = []
    for mode, downsample, filters in settings:
        for i, game in enumerate(games):
            for column in columns:
                for run, factor in enumerate(factors):
                    total = SECONDS[column] * (i + 1) * factor
                    policy = total - 0.3 * (i + 1) * factor
                    bare = column == "bare_env"
                    rows.append(
                        {
                            "mode": mode,
                            "game": game,
                            "downsample": downsample,
                            "filters": filters,
                            "column": column,
                            "run": run,
                            "steps": 300 if column == "dense" else 3000,
                            "total_seconds": total,
                            "policy_seconds": 0 if bare else policy,
                            "policy_tenths": ""
                            if bare
                            else " ".join(
                                str(policy * (part + 1) / 10)
                                for part in range(10)
                            ),
                            "changed_positions": "" if bare else 100 * (i + 1),
                            "new_rows": 10 if column == "content" else "",
                        }
                    )
    return rows


def drawn(tmp_path, *tables):
    paths = [
        write(tmp_path / f"{i}.csv", rows) for i, rows in enumerate(tables)
    ]
    return dict(figures.draw(figures.read(paths)))


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def test_the_eleven_heatmaps(tmp_path):
    inference = plays(HEATMAPS[:6])
    training = plays(HEATMAPS[6:])
    for row in training:
        for name in ("policy_tenths", "changed_positions", "new_rows"):
            del row[name]
    all_figures = drawn(tmp_path, inference, training)
    heatmaps = [name for name in all_figures if name.startswith("heatmap")]
    assert sorted(heatmaps) == sorted(
        f"heatmap_{mode}_d{downsample}_{filters.replace(',', '-')}"
        for mode, downsample, filters in HEATMAPS
    )
    for name in heatmaps:
        axes, bar = all_figures[name].axes
        assert labels(axes.get_yticklabels()) == [*GAMES, "mean"]
        assert labels(axes.get_xticklabels()) == [
            *("bare_env", "dense", "temporal", "content")
        ]
        assert [text.get_text() for text in axes.texts] == [
            *("3.00", "75.0*", "6.00", "3.75"),
            *("6.00", "150*", "12.0", "7.50"),
            *("9.00", "225*", "18.0", "11.2"),
            *("6.00", "150*", "12.0", "7.50"),
        ]
        ratios = 10 ** axes.collections[0].get_array().reshape(4, 4)
        np.testing.assert_allclose(ratios, [[1, 25, 2, 1.25]] * 4)
        assert axes.get_xlabel() == "* scaled, from 300 steps"
        assert "bare" in bar.get_ylabel()
    title = all_figures["heatmap_training_d4_80-160"].axes[0].get_title()
    assert title == (
        "Training, downsample 4, filters 80, 160: seconds for 3000 steps"
    )


def test_cells_are_medians_of_runs_of_the_most_steps(tmp_path):
    rows = plays(HEATMAPS[:1], factors=(1, 9, 2))
    short = {**rows[0], "steps": 10, "total_seconds": 77, "run": 0}
    (heatmap, *_) = drawn(tmp_path, [*rows, short]).values()
    texts = [text.get_text() for text in heatmap.axes[0].texts]
    assert texts[:4] == ["6.00", "150*", "12.0", "7.50"]


def test_what_was_not_measured_is_left_out(tmp_path):
    rows = plays(HEATMAPS[:1])
    rows = [
        row for row in rows if (row["game"], row["column"]) != ("Pong", "dense")
    ]
    (heatmap, *_) = drawn(tmp_path, rows).values()
    (axes, _) = heatmap.axes
    # An empty cell has no text.
    texts = [text.get_text() for text in axes.texts if text.get_text()]
    assert texts[4:7] == ["6.00", "12.0", "7.50"]
    assert len(texts) == 15
    with pytest.raises(ValueError, match="bare_env"):
        drawn(tmp_path, plays(HEATMAPS[:1], columns=("content", "dense")))


def test_policies_of_one_layer(tmp_path):
    """Whose filters look like a number."""
    rows = [row | {"filters": "40"} for row in plays(HEATMAPS[:1])]
    names = set(drawn(tmp_path, rows))
    assert any(name.endswith("_40") for name in names)


def test_speed_ups_of_this_project_and_of_the_paper(tmp_path):
    name = "speed_up_inference_d2_20-40"
    figure = drawn(tmp_path, plays(HEATMAPS[:1]))[name]
    (axes,) = figure.axes
    assert labels(axes.get_yticklabels()) == [*GAMES, "median"]
    (legend,) = figure.legends
    assert labels(legend.get_texts()) == [
        "content",
        "temporal",
        "the paper, reuse",
    ]
    content, temporal, paper = (
        [bar.get_width() for bar in bars] for bars in axes.containers
    )
    np.testing.assert_allclose(content, [20] * 4)
    np.testing.assert_allclose(temporal, [12.5] * 4)
    # 11.06 and 8.01 seconds are published for Alien.
    assert paper[0] == pytest.approx(11.06 / 8.01)
    assert paper[3] == pytest.approx(np.median(paper[:3]))
    texts = labels(axes.texts)
    assert texts[:8] == ["20×"] * 4 + ["12×"] * 4
    assert texts[8] == "1.4×"


def test_costs_by_filters_and_by_changes(tmp_path):
    all_figures = drawn(tmp_path, plays(HEATMAPS[:6]))
    by_filters, by_changes = all_figures["cost_filters_d2"].axes
    assert labels(by_filters.get_xticklabels()) == ["20,40", "40,80", "80,160"]
    lines = {
        line.get_color(): line.get_ydata()
        for line in by_filters.get_lines()
        if len(line.get_ydata())
    }
    # Of the game in the middle: 7.5 s less 0.6 in the emulator, 3000 steps.
    content = figures._COLORS["content"]
    (values,) = [
        lines[color] for color in lines if np.allclose(_rgb(color), content)
    ]
    np.testing.assert_allclose(values, [2300] * 3)
    points = by_changes.collections[0].get_offsets()
    assert len(points) == 3 * len(GAMES)
    assert set(points[:, 0]) == {100, 200, 300}
    assert "cost_filters_d4" in all_figures
    assert "cost_filters_d2" not in drawn(tmp_path, plays(HEATMAPS[:1]))


def _rgb(color):
    from matplotlib.colors import to_rgb

    return to_rgb(color)


def test_costs_as_frames_go_by(tmp_path):
    rows = plays(HEATMAPS[:1], games=["Pong"], columns=("bare_env", "content"))
    rows[1]["policy_tenths"] = ".3 .45 .48 .51 .54 .57 .6 .63 .66 .69"
    figure = drawn(tmp_path, rows)["cost_frames_inference_d2_20-40"]
    (axes,) = figure.axes
    line = axes.get_lines()[0]
    np.testing.assert_allclose(line.get_xdata(), np.arange(300, 3001, 300))
    np.testing.assert_allclose(line.get_ydata(), [1000, 500] + [100] * 8)


def test_statistics(tmp_path):
    rows = [
        {
            "game": game,
            "downsample": 2,
            "steps": steps,
            "seed": seed,
            "pixels": 0.5 * i * times,
            "box": 20 * i * times,
            "positions": 2 * i * times,
            "new": 0.01 * i * times,
        }
        for i, game in enumerate(GAMES, start=1)
        # The medians of what was measured of most steps.
        for steps, seed, times in (
            *((3000, 0, 0.5), (3000, 1, 1), (3000, 2, 9)),
            (100, 0, 5),
        )
    ]
    figure = drawn(tmp_path, rows)["statistics_d2"]
    assert len(figure.axes) == 4
    assert labels(figure.axes[0].get_yticklabels()) == list(GAMES)
    for axes, texts in zip(
        figure.axes,
        (
            ["0.5", "1", "1.5"],
            ["20", "40", "60"],
            ["2", "4", "6"],
            ["0.01", "0.02", "0.03"],
        ),
        strict=True,
    ):
        assert labels(axes.texts) == texts
        widths = [bar.get_width() for bar in axes.containers[0]]
        np.testing.assert_allclose(widths, [float(text) for text in texts])


def test_the_layer(tmp_path):
    rows = [
        {
            "change": change,
            "target": changed,
            "changed": changed,
            "eager_speed_up": 5 - 4 * changed,
            "eager_net": "inf" if changed == 0 else 1 / changed,
        }
        for change in ("blobs", "noise")
        for changed in (0.0, 0.1, 1.0)
    ]
    (axes,) = drawn(tmp_path, rows)["layer"].axes
    lines = [
        [list(line.get_xdata()), list(line.get_ydata())]
        for line in axes.get_lines()
        if len(line.get_xdata()) > 1 and line.get_label().startswith("_")
    ]
    whole = [[0, 10, 100], [5, 4.6, 1]]
    net = [[10, 100], [10, 1]]
    assert lines.count(whole) == 2 and lines.count(net) == 2
    assert {"blobs", "noise", "whole call", "net of the call"} <= set(
        labels(axes.get_legend().get_texts())
    )


def test_networks(tmp_path):
    def row(network, frames, what, streams, speed_up, seed=0):
        return {
            "network": network,
            "frames": frames,
            "what": what,
            "streams": streams,
            "reuse": "auto",
            "threads": 2,
            "seed": seed,
            "speed_up": speed_up,
        }

    rows = [
        row(network, game, what, streams, factor * (i + 1))
        for network, factor in (("paper", 20), ("nature", 2))
        for game in ("Pong", "Breakout")
        for i, (what, streams) in enumerate(
            [("step", 1), ("step", 8), ("gradient", 8), ("minibatches", 8)]
        )
    ]
    rows += [
        row(network, change, "step", 1, times)
        for network in ("VGG16", "ResNet50")
        for change, times in (("none", 500), ("block", 4), ("all", 0.9))
    ]
    # Of a bar that was measured several times, the median.
    rows += [
        row("VGG16", "all", "step", 1, times, seed)
        for seed, times in enumerate([8, 0.1, 0.9, 0.9], start=1)
    ]
    figure = drawn(tmp_path, rows)["networks"]
    paper, nature, applications = figure.axes
    for axes, title, names in (
        (paper, "paper", ["Pong", "Breakout"]),
        (nature, "nature", []),  # as beside it
        (applications, "keras.applications", ["VGG16", "ResNet50"]),
    ):
        assert axes.get_title() == title
        assert labels(axes.get_yticklabels()) == names
        assert axes.get_xscale() == "log"
        assert list(axes.get_lines()[0].get_xdata()) == [1, 1]
    for axes, times in (
        (paper, [20, 40, 60, 80]),
        (nature, [2, 4, 6, 8]),
        (applications, [500, 4, 0.9]),
    ):
        widths = [[bar.get_width() for bar in of] for of in axes.containers]
        np.testing.assert_allclose(widths, [[t, t] for t in times])
    assert labels(applications.texts)[::2] == ["500×", "4.0×", "0.9×"]
    (legend,) = figure.legends
    assert labels(legend.get_texts()) == [
        *("step of 1", "step of 8", "gradient", "minibatches"),
        *("nothing changes", "a block", "everything"),
    ]
    (alone,) = drawn(tmp_path, rows[:8])["networks"].axes
    assert alone.get_title() == "paper"
    for other in {"reuse": "content"}, {"threads": 1}:
        (name,) = other
        with pytest.raises(ValueError, match=f"one value of {name}"):
            drawn(tmp_path, [*rows, rows[0] | other])


def test_learners(tmp_path):
    def row(
        game, learner, updates, seed=0, slow=1, mean="", settings="default"
    ):
        return {
            **{"algorithm": "ppo", "game": game, "learner": learner},
            "settings": settings,
            **{"num_envs": 8, "updates": updates, "seed": seed, "threads": 1},
            "steps": 1000 * updates,
            "processor_seconds": 60 * slow * updates,
            "mean_return": mean,
        }

    rows = [
        row(game, learner, updates, seed, slow, slow + updates + seed)
        for game in ("Pong", "Breakout")
        for learner, slow in (("reuse", 1), ("sb3", 4))
        for seed in (0, 1)
        for updates in (10, 20, 25)
    ]
    # What has no return, or has it at the end alone, is no curve.
    rows += [row("Pong", "emulator", updates) for updates in (10, 20)]
    rows += [row("Pong", "plain", 10, mean=7), row("Qbert", "reuse", 5, mean=7)]
    # Of other settings it is another curve.
    rows += [
        row("Pong", "sb3", updates, mean=updates, settings="lunch")
        for updates in (10, 30)
    ]
    figure = drawn(tmp_path, rows)["learners_ppo"]
    (legend,) = figure.legends
    assert labels(legend.get_texts()) == ["reuse", "Stable-Baselines3"]
    assert [axes.get_ylabel() for axes in figure.axes] == [
        *("Pong", "", "Breakout", "", "Pong, lunch", "")
    ]
    assert [
        line.get_ydata().tolist()
        for line in figure.axes[4].get_lines()
        if len(line.get_xdata())
    ] == [[10, 30]]
    for i, axes in enumerate(figure.axes[:4]):
        lines = [
            [line.get_xdata().tolist(), line.get_ydata().tolist()]
            for line in axes.get_lines()
            if len(line.get_xdata())
        ]
        assert lines == [
            [
                [(slow if i % 2 else 1) * n for n in (10, 20, 25)],
                [slow + n + seed for n in (10, 20, 25)],
            ]
            for slow in (1, 4)
            for seed in (0, 1)
        ]
    # The same seed on more threads is a run of its own.
    others = [{**row, "threads": 2} for row in rows[:3]]
    figure = drawn(tmp_path, [*rows[:3], *others])["learners_ppo"]
    for axes in figure.axes:
        assert sum(len(line.get_xdata()) == 3 for line in axes.get_lines()) == 2
    # Nothing is drawn of ends alone.
    assert not drawn(tmp_path, rows[-4:-2])


def test_the_program(tmp_path, capsys):
    path = write(tmp_path / "infer.csv", plays(HEATMAPS[:1]))
    out = tmp_path / "new" / "figures"
    program.main(["benchmark", "figures", f"--csv={path}", f"--out={out}"])
    written = capsys.readouterr().out.split()
    assert len(written) == 3
    for name in written:
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_figures_are_written_before_anything_is_printed(tmp_path, monkeypatch):
    path = write(tmp_path / "infer.csv", plays(HEATMAPS[:1]))
    command = [
        "benchmark",
        "figures",
        f"--csv={path}",
        f"--out={tmp_path / 'figures'}",
    ]
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit) as failure:
            program.main(command)
    message = failure.value.code
    assert message == (
        "reuse_tf.benchmark: cannot write to the standard output: No space "
        "left on device"
    )
    pictures = sorted((tmp_path / "figures").iterdir())
    assert len(pictures) == 3
    before = [picture.read_bytes() for picture in pictures]
    for content in before:
        assert content.startswith(b"\x89PNG") and b"IEND" in content[-12:]
    # And stay whole if they cannot be written again.
    monkeypatch.undo()
    with full_disk(1000), pytest.raises(SystemExit) as failure:
        program.main(command)
    assert failure.value.code.endswith(".png': File too large")
    assert [picture.read_bytes() for picture in pictures] == before
    assert sorted((tmp_path / "figures").iterdir()) == pictures


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": "many"}, "a steps in line 2. Received: many"),
        ({"total_seconds": ""}, "a total_seconds in line 2. Received: nan"),
        ({"game": ""}, "a game in line 2"),
        ({"policy_seconds": None}, "to have a column policy_seconds"),
    ],
)
def test_damaged_measurements_are_one_clear_line(change, named, tmp_path):
    rows = plays(HEATMAPS[:1])
    (name,) = change
    if change[name] is None:
        for row in rows:
            del row[name]
    else:
        rows[0] |= change
    path = write(tmp_path / "infer.csv", rows)
    with pytest.raises(SystemExit) as failure:
        program.main(
            ["benchmark", "figures", f"--csv={path}", f"--out={tmp_path}"]
        )
    message = failure.value.code
    assert message.startswith(f"reuse_tf.benchmark: Expected {path} to have ")
    assert named in message and "\n" not in message


BAD_ARGUMENTS = {
    "--csv=missing.csv": "missing.csv",
    "--csv=header.csv": "nothing to draw",
    "--csv=bytes.csv": "bytes.csv",
    "--csv=other.csv": "other.csv to be a file of the benchmark",
    "--csv=empty.csv": "empty.csv",
    "--out=figures": "--csv",
    "--size=3": "size",
    "stray": "stray",
}


@pytest.mark.parametrize(("argument", "named"), BAD_ARGUMENTS.items())
def test_a_bad_argument_is_one_clear_line(
    argument, named, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\0\n")
    header = write(tmp_path / "header.csv", plays(HEATMAPS[:1])[:1])
    (tmp_path / "header.csv").write_text(
        pathlib.Path(header).read_text().splitlines()[0] + "\n"
    )
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", "figures", argument])
    message = failure.value.code
    assert message.startswith("reuse_tf.benchmark: ") and "\n" not in message
    assert named in message


@pytest.fixture(autouse=True)
def _flags_as_at_the_start():
    yield
    for name in figures.FLAGS:
        figures.FLAGS[name].unparse()
