"""The benchmark's frames, rows and flags. Times are not looked at."""

import csv
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from reuse_tf import Runner, atari
from reuse_tf.benchmark import __main__ as program
from reuse_tf.benchmark import layer, step, timing
from reuse_tf.benchmark.frames import SIDES, cyclic_frames
from reuse_tf.layers import IncrementalConv2D


@pytest.fixture(autouse=True)
def _flags_as_at_the_start():
    yield
    for command in program.COMMANDS.values():
        for name in command.FLAGS:
            command.FLAGS[name].unparse()


TINY = ["--height=12", "--width=10", "--channels=2", "--filters=3"]


def changed_fraction(before, after, kernel_size):
    """The fraction of positions in whose patch a pixel differs."""
    pixels = np.any(before != after, -1).astype(np.float32)
    touched = tf.nn.conv2d(
        pixels[None, ..., None],
        tf.ones([kernel_size, kernel_size, 1, 1]),
        strides=1,
        padding="SAME",
    )
    return float(tf.reduce_mean(tf.cast(touched > 0, tf.float32)))


@pytest.mark.parametrize("change", SIDES)
@pytest.mark.parametrize("fraction", layer.FRACTIONS)
@pytest.mark.parametrize("kernel_size", [1, 2, 3, 6])
def test_frames_change_in_the_promised_fraction(change, fraction, kernel_size):
    frames = cyclic_frames(
        (105, 80, 2), kernel_size, fraction, change, np.random.default_rng(1)
    )
    assert len(frames) == 6
    for i, frame in enumerate(frames):
        assert frame.dtype == np.float32
        actual = changed_fraction(frames[i - 1], frame, kernel_size)
        assert fraction - 0.002 <= actual <= fraction + 1e-4


def test_noise_is_of_single_pixels_and_blobs_are_not():
    def neighbours(change):
        first, second, *_ = cyclic_frames(
            (105, 80, 1), 3, 0.1, change, np.random.default_rng(2)
        )
        pixels = (first != second)[..., 0]
        beside = pixels[:, 1:] & pixels[:, :-1]
        return np.count_nonzero(beside) / np.count_nonzero(pixels)

    assert neighbours("noise") < 0.1
    assert neighbours("blobs") > 0.5


def test_successive_sets_of_changes_differ():
    frames = cyclic_frames(
        (20, 20, 1), 3, 0.25, "blobs", np.random.default_rng(3)
    )
    changes = [frames[i] != frames[i - 1] for i in range(len(frames))]
    for i in range(len(changes)):
        assert not np.array_equal(changes[i], changes[i - 1])


def test_functions_take_turns():
    calls = []
    seconds, results = timing.alternate(
        {
            name: lambda i, name=name: calls.append((name, i)) or (name, i)
            for name in "abc"
        },
        rounds=3,
        warm_up=1,
    )
    order = "".join(name for name, _ in calls)
    assert order == "abc" + "abc" + "bca" + "cab"
    assert [i for _, i in calls] == [0] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    assert results == {name: (name, 2) for name in "abc"}
    assert set(seconds) == set("abc")
    assert all(times.shape == (3,) for times in seconds.values())
    assert timing.medians({"a": np.array([1.0, 5.0, 2.0])}) == {"a": 2e6}


def test_rows_hold_what_was_asked_for():
    rows = list(layer.measure((16, 16, 2), 3, 3, rounds=12))
    assert [(row["change"], row["target"]) for row in rows] == [
        (change, fraction)
        for change in ("blobs", "noise")
        for fraction in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
    ]
    for row in rows:
        # The least that can change is one position in 256, in a corner four.
        assert abs(row["changed"] - row["target"]) <= 4 / 256
        for name in ("eager", "graph"):
            assert row[f"{name}_speed_up"] == (
                row["dense_us"] / row[f"{name}_us"]
            )
            assert row[f"{name}_net"] > row[f"{name}_speed_up"]
            assert row[f"{name}_still_us"] > 0 < row[f"{name}_call_us"]
    assert rows[0]["changed"] == 0 and rows[0]["promised"] == math.inf
    assert rows[6]["changed"] == 1 and rows[6]["promised"] == 1 / 1.3


def test_promised_speed_up():
    assert layer.promised(0.05) == pytest.approx(10)
    assert layer.promised(0.5) == 1
    assert layer.promised(0.9) == pytest.approx(0.769, abs=1e-3)


def test_a_wrong_result_is_not_measured(monkeypatch):
    call = IncrementalConv2D.call
    monkeypatch.setattr(
        IncrementalConv2D,
        "call",
        lambda self, inputs: call(self, inputs) + 1e-3,
    )
    with pytest.raises(RuntimeError, match="is off by"):
        next(layer.measure((6, 6, 2), 3, 3, rounds=1))


def test_the_table_is_printed_and_written(capsys, tmp_path):
    path = tmp_path / "layer.csv"
    program.main(["benchmark", "layer", *TINY, "--rounds=2", f"--out={path}"])
    output = capsys.readouterr().out
    assert output.startswith("One convolution, 12x10x2 -> 3 filters 3x3, relu.")
    assert f"tensorflow {tf.__version__}, keras " in output
    assert re.search(r"threads [1-9]\d*, medians of 2 calls", output)
    assert "Net: less the time of a call when nothing changed" in output
    assert "times memcmp of the same bytes" in output
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 14
    assert len({len(line) for line in table}) == 1
    assert len({line.count("|") for line in table}) == 1
    assert set(table[1]) == set("|-: ")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("change", "target", "changed", "dense_us", "eager_us", "graph_us"),
        *("eager_still_us", "graph_still_us"),
        *("eager_call_us", "graph_call_us", "compare_us"),
        *("eager_speed_up", "eager_net", "graph_speed_up", "graph_net"),
        *("promised", "tensorflow", "keras", "reuse_tf", "threads"),
    ]
    for line, row in zip(table[2:], rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == row["change"]
        assert cells[1] == f"{float(row['target']):.0%}"
        assert cells[2] == f"{float(row['changed']):.2%}"
        assert cells[3] == f"{float(row['dense_us']):.0f}"
        assert row["tensorflow"] == tf.__version__


BAD_ARGUMENTS = {
    "--rounds=0": "rounds",
    "--rounds=many": "rounds",
    "--height=0": "height",
    "--filters=-3": "filters",
    "--threads=-1": "threads",
    "--seed=-1": "seed",
    "--out=missing/layer.csv": "out",
    "--out=.": "out",
    "--layers=3": "layers",
    "stray": "stray",
}


@pytest.mark.parametrize(("argument", "named"), BAD_ARGUMENTS.items())
def test_a_bad_argument_is_one_clear_line(argument, named):
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", "layer", argument])
    message = failure.value.code
    assert re.match(r"reuse_tf\.benchmark: .+\Z", message)
    assert named in message


def test_the_command_is_named_in_full():
    result = subprocess.run(
        [sys.executable, "-m", "reuse_tf.benchmark", "layers"],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "reuse_tf.benchmark: expected a command (layer, step), got 'layers'"
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "layer: "),
        ([], "step: "),
        (["layer"], "--rounds"),
        (["step"], "--games"),
    ],
)
def test_help(arguments, named, capsys):
    program.main(["benchmark", *arguments, "--help"])
    assert named in capsys.readouterr().out


# -- Acting ------------------------------------------------------------------

PLAY = ["--downsample=4", "--filters=3,5", "--steps=60", "--dense_every=7"]


def run_step(capsys, *arguments):
    """Returns the cells of the table's lines, by game."""
    program.main(["benchmark", "step", *PLAY, *arguments])
    output = capsys.readouterr().out
    lines = [line for line in output.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert cells[0][0] == "game"
    return {line[0]: line[1:] for line in cells[2:]}


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_games_of_the_paper_are_games():
    assert len(set(step.GAMES)) == 24
    assert set(step.GAMES) <= set(atari.games())


@pytest.mark.parametrize("reuse", ["content", "temporal"])
def test_a_game_is_measured(reuse):
    row = step.measure(
        "Pong", steps=60, downsample=4, filters=(3, 5), reuse=reuse
    )
    assert row["slowdown"] == pytest.approx(
        (row["bare_us"] + row["play_us"]) / row["bare_us"]
    )
    assert row["speed_up"] == pytest.approx(row["dense_us"] / row["play_us"])
    assert 0 < row["play_median_us"] <= row["play_p99_us"]
    assert row["first_us"] <= 60 * row["play_us"]
    # The first frame changes everything.
    positions = 53 * 40
    assert positions / 60 < row["changed_positions"] < positions / 2
    if reuse == "content":
        assert 0 < row["new_rows"] < row["changed_positions"]
        assert 0 < row["rows"] < positions
    else:
        assert row["new_rows"] > row["changed_positions"]
        assert row["rows"] == positions
    assert row["clears"] == row["switches"] == 0
    again = step.measure(
        "Pong", steps=60, downsample=4, filters=(3, 5), reuse=reuse
    )
    assert again["new_rows"] == row["new_rows"]


def test_finished_games_are_kept(capsys, tmp_path, monkeypatch):
    path = tmp_path / "step.csv"
    out = f"--out={path}"
    first = run_step(capsys, "--games=Pong,Breakout", out)
    assert list(first) == ["Pong", "Breakout", "median", "largest"]
    rows = rows_of(path)
    assert [row["game"] for row in rows] == ["Pong", "Breakout"]
    assert set(step.KEY) <= set(rows[0])
    assert rows[0]["filters"] == "3,5" and rows[0]["dense_every"] == "7"
    assert rows[0]["tensorflow"] == tf.__version__
    for game, row in zip(("Pong", "Breakout"), rows, strict=True):
        assert first[game][0] == f"{float(row['bare_us']):.0f}"
        assert first[game][2] == f"{float(row['slowdown']):.2f}"
    for cell, a, b in zip(
        first["median"][2:4],
        first["Pong"][2:4],
        first["Breakout"][2:4],
        strict=True,
    ):
        assert min(float(a), float(b)) <= float(cell) <= max(float(a), float(b))

    measured = []
    measure = step.measure

    def watched(game, **arguments):
        measured.append(game)
        return measure(game, **arguments)

    monkeypatch.setattr(step, "measure", watched)
    assert run_step(capsys, "--games=Pong,Breakout", out) == first
    assert measured == []
    # A deleted row, and one that was not written to its end.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[2] + lines[1][:-9])
    again = run_step(capsys, "--games=Pong,Breakout", out)
    assert measured == ["Pong"]
    assert again["Breakout"] == first["Breakout"]
    assert [row["game"] for row in rows_of(path)] == ["Breakout", "Pong"]
    # Other settings are other rows.
    run_step(capsys, "--games=Pong", "--seed=1", out)
    run_step(capsys, "--games=Pong", "--reuse=temporal", out)
    assert measured == ["Pong"] * 3
    assert len(rows_of(path)) == 4


def test_a_file_of_something_else_is_not_written_to(tmp_path, capsys):
    path = tmp_path / "layer.csv"
    path.write_text("change,target\nblobs,1\n")
    with pytest.raises(SystemExit) as failure:
        program.main(
            ["benchmark", "step", *PLAY, "--games=Pong", f"--out={path}"]
        )
    assert "other columns" in failure.value.code
    assert path.read_text() == "change,target\nblobs,1\n"


def test_wrong_logits_are_not_measured(monkeypatch):
    runner_step = Runner.step
    monkeypatch.setattr(
        Runner, "step", lambda self, frames: runner_step(self, frames) + 1e-3
    )
    with pytest.raises(RuntimeError, match="off by"):
        step.measure("Pong", steps=3, downsample=4, filters=(3,))


BAD_STEP_ARGUMENTS = {
    "--games=Pnog": "Pong",
    "--games=Pong,": "Unknown game",
    "--steps=0": "steps",
    "--downsample=3": "downsample",
    "--filters=3,0": "filters",
    "--filters=": "filters",
    "--filters=a": "filters",
    "--reuse=none": "reuse",
    "--dense_every=0": "dense_every",
    "--out=missing/step.csv": "out",
}


@pytest.mark.parametrize(("argument", "named"), BAD_STEP_ARGUMENTS.items())
def test_a_bad_argument_of_step_is_one_clear_line(argument, named):
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", "step", argument])
    message = failure.value.code
    assert re.match(r"reuse_tf\.benchmark: .+\Z", message)
    assert named in message
