"""The benchmark's frames, rows and flags. Times are not looked at."""

import csv
import io
import itertools
import json
import math
import os
import re
import sys

import children
import keras
import numpy as np
import pytest
import tensorflow as tf
from test_files import full_disk

from reuse_tf import Runner, atari
from reuse_tf.benchmark import __main__ as program
from reuse_tf.benchmark import (
    figures,
    grid,
    infer,
    layer,
    models,
    networks,
    replay,
    statistics,
    timing,
    train,
)
from reuse_tf.benchmark.frames import SIDES, cyclic_frames
from reuse_tf.layers import IncrementalConv2D
from reuse_tf.policies.policy import build_policy


@pytest.fixture(autouse=True)
def _flags_as_at_the_start():
    yield
    unparse()


def unparse():
    """Flags that are given twice add up, as do runs of a program here."""
    for command in program.commands().values():
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
    turns = timing.alternate(
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
    assert turns.results == {name: (name, 2) for name in "abc"}
    for times in (turns.seconds, turns.processor):
        assert set(times) == set("abc")
        assert all(of.shape == (3,) for of in times.values())
    assert timing.medians({"a": np.array([1.0, 5.0, 2.0])}) == {"a": 2e6}


def measured_layer(height, width, change, target, rounds=12):
    return layer.measure(
        height=height,
        width=width,
        channels=2,
        filters=3,
        kernel_size=3,
        change=change,
        target=target,
        rounds=rounds,
        seed=0,
    )


@pytest.mark.parametrize("change", ["blobs", "noise"])
@pytest.mark.parametrize("target", [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1])
def test_a_row_holds_what_was_asked_for(change, target):
    row = measured_layer(16, 16, change, target)
    # The least that can change is one position in 256, in a corner four.
    assert abs(row["changed"] - target) <= 4 / 256
    for name in ("eager", "graph"):
        assert row[f"{name}_speed_up"] == row["dense_us"] / row[f"{name}_us"]
        assert row[f"{name}_net"] > row[f"{name}_speed_up"]
        assert row[f"{name}_still_us"] > 0 < row[f"{name}_call_us"]
    if target == 0:
        assert row["changed"] == 0 and row["promised"] == math.inf
    if target == 1:
        assert row["changed"] == 1 and row["promised"] == 1 / 1.3


def test_promised_speed_up():
    assert layer.promised(0) == math.inf
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
        measured_layer(6, 6, "blobs", 0, rounds=1)


def test_the_table_is_printed_and_written(capsys, tmp_path):
    path = tmp_path / "layer.csv"
    command = ["benchmark", "layer", *TINY, "--rounds=2", f"--out={path}"]
    program.main(command)
    output = capsys.readouterr().out
    assert output.startswith("One convolution, 12x10x2 -> 3 filters 3x3, relu.")
    assert f"tensorflow {tf.__version__}, keras " in output
    assert re.search(r"threads [1-9]\d*, medians of 2 calls", output)
    assert "Net: less the time of a call when nothing changed" in output
    assert "times memcmp of the same bytes" in output
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 14
    # A ratio of two times that are equal but for noise is as wide as it is.
    assert len(table[0]) == len(table[1])
    assert len({line.count("|") for line in table}) == 1
    assert set(table[1]) == set("|-: ")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        *("height", "width", "channels", "filters", "kernel_size"),
        *("change", "target", "rounds", "seed", "threads"),
        *("changed", "dense_us", "eager_us", "graph_us"),
        *("eager_still_us", "graph_still_us"),
        *("eager_call_us", "graph_call_us", "compare_us"),
        *("eager_speed_up", "eager_net", "graph_speed_up", "graph_net"),
        *("promised", "tensorflow", "keras", "reuse_tf", "processor"),
    ]
    for line, row in zip(table[2:], rows, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == row["change"]
        assert cells[1] == f"{float(row['target']):.0%}"
        assert cells[2] == f"{float(row['changed']):.2%}"
        assert cells[3] == f"{float(row['dense_us']):.0f}"
        assert row["tensorflow"] == tf.__version__
    assert [(row["change"], float(row["target"])) for row in rows] == [
        (change, fraction)
        for change in ("blobs", "noise")
        for fraction in (0, 0.01, 0.05, 0.1, 0.25, 0.5, 1)
    ]
    # A row that is taken out is measured again, and nothing else.
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    path.write_text("".join(lines[:4] + lines[5:]), encoding="utf-8")
    unparse()
    program.main(command)
    again = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert again[:-1] == lines[:4] + lines[5:]
    assert again[-1].split(",")[:10] == lines[4].split(",")[:10]


BAD_ARGUMENTS = {
    "--rounds=0": "rounds",
    "--rounds=many": "rounds",
    "--height=0": "height",
    "--filters=-3": "filters",
    "--threads=-1": "threads",
    "--seed=-1": "seed",
    "--out=missing/layer.csv": "out",
    "--out=.": "out",
    "--out=": "out",
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
    result = children.run(
        *(sys.executable, "-m", "reuse_tf.benchmark", "layers"),
        env=children.environment(TF_CPP_MIN_LOG_LEVEL="3"),
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == (
        "reuse_tf.benchmark: expected a command (infer, train, layer, "
        "networks, learners, cameras, statistics, figures, merge), got 'layers'"
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "layer: "),
        ([], "infer: "),
        ([], "train: "),
        ([], "statistics: "),
        (["layer"], "--rounds"),
        (["infer"], "--games"),
        (["train"], "--filters"),
        (["statistics"], "--steps"),
    ],
)
def test_help(arguments, named, capsys):
    program.main(["benchmark", *arguments, "--help"])
    assert named in capsys.readouterr().out


# -- Files and output --------------------------------------------------------

STATISTICS = ["statistics", "--games=Pong", "--downsample=4", "--steps=5"]


COLUMNS = b"game,downsample,steps,seed,pixels,box,positions,new"


def failure_of(*arguments):
    """Runs a command that fails; returns the line that it ends in."""
    unparse()
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", *arguments])
    message = failure.value.code
    assert message.startswith("reuse_tf.benchmark: ") and "\n" not in message
    return message


def broken_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def unbuffered():
    raw = open("/dev/full", "wb", buffering=0)
    return io.TextIOWrapper(raw, write_through=True)


@pytest.mark.parametrize(
    ("open_output", "named"),
    [
        (lambda: open("/dev/full", "w"), "No space left on device"),
        (unbuffered, "No space left on device"),
        (broken_pipe, "Broken pipe"),
    ],
)
def test_an_output_that_cannot_be_written(
    open_output, named, tmp_path, monkeypatch
):
    path = tmp_path / "rows.csv"
    for arguments in ([*STATISTICS, f"--out={path}"], ["--help"]):
        with open_output() as output, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            assert f"standard output: {named}" in failure_of(*arguments)
    # Of a full output the heading alone would have been told.
    (row,) = rows_of(path) if path.exists() else [{"game": "Pong"}]
    assert row["game"] == "Pong"


def test_an_output_of_ascii(tmp_path, monkeypatch):
    with (
        open(tmp_path / "out.txt", "w", encoding="ascii") as output,
        monkeypatch.context() as patch,
    ):
        patch.setattr(sys, "stdout", output)
        program.main(["benchmark", "layer", *TINY, "--rounds=1"])
    assert "| dense ?s |" in (tmp_path / "out.txt").read_text()


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"my only notes", "other columns"),
        (b"my notes\nof today", "other columns"),
        (b"\xff\xfe\0", "other columns"),
        (COLUMNS + b"\nPong,4\n", "line 2 has not one"),
        (COLUMNS + b"\nPong,4,5,0,1,1,1,1,1\n", "line 2 has not one"),
        (COLUMNS + b"\nPong,4,5,0,1,1,1,x\n", "its new, but 'x'"),
        # Of another command.
        (COLUMNS + b"ty\nPong,4,5,0,1,1,1,1\n", "other columns"),
    ],
)
def test_a_file_of_something_else_stays_as_it_is(content, named, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    message = failure_of(*STATISTICS, f"--out={path}")
    assert str(path) in message and named in message
    assert path.read_bytes() == content


def test_a_full_disk_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "rows.csv"
    # In the first row, and in the middle of the second one.
    for size, steps in ((10, 5), (100, 6)):
        command = [*STATISTICS[:-1], f"--steps={steps}", "--out=~/rows.csv"]
        before = rows_of(path) if path.exists() else []
        with open(os.devnull, "w") as nowhere, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", nowhere)
            with full_disk(size):
                message = failure_of(*command)
        assert message.endswith(f"'{path}': File too large")
        assert path.exists() == bool(before)
        # What was not written to its end is measured again.
        unparse()
        program.main(["benchmark", *command])
        rows = rows_of(path)
        assert rows[:-1] == before and rows[-1]["steps"] == str(steps)


# -- Replays -----------------------------------------------------------------


def test_a_replay_does_the_same_whatever_it_is_told():
    def frames_of(steps, action):
        env = atari.make("Breakout", downsample=4)
        replayed = replay.Replay(env, steps, seed=3)
        frame, _ = env.reset(seed=steps)
        frame, _ = env.reset()
        frames = []
        for _ in range(steps):
            frames.append(frame)
            frame, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                frame, _ = env.reset()
        assert replayed.chosen == [action] * steps
        assert replayed.emulator_seconds > 0
        assert len(replayed.other_seconds) == 10
        assert replayed.other_seconds == sorted(replayed.other_seconds)
        return np.array(frames)

    long = frames_of(400, 0)
    # Several episodes, as five balls do not last.
    assert len(np.unique(long.reshape(400, -1), axis=0)) > 100
    np.testing.assert_array_equal(frames_of(150, 1), long[:150])
    frames = replay.frames("Breakout", downsample=4, steps=400, seed=3)
    np.testing.assert_array_equal(np.array(list(frames)), long)
    other = replay.frames("Breakout", downsample=4, steps=400, seed=4)
    assert not np.array_equal(np.array(list(other)), long)


def test_the_bare_emulator_plays_the_same_game(monkeypatch):
    games = []
    make = atari.make

    def watched(*arguments, **settings):
        games.append(make(*arguments, **settings))
        return games[-1]

    monkeypatch.setattr(atari, "make", watched)
    bare = replay.Bare("Breakout", 270, 1)
    list(replay.frames("Breakout", downsample=4, steps=270, seed=1))
    env = atari.make("Breakout")
    replayed = replay.Replay(env, 270, 1, bare)
    env.reset()
    for step in range(270):
        # In turns of 50 steps.
        assert len(bare._replay.chosen) == step // 50 * 50
        _, _, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            env.reset()
    assert len(bare._replay.chosen) == 270
    assert replayed.beside_seconds >= bare.seconds > 0
    first, *others = (game.unwrapped.ale.getRAM() for game in games)
    assert len(others) == 2
    for other in others:
        np.testing.assert_array_equal(first, other)


# -- Acting and learning -----------------------------------------------------

PLAY = ["--downsample=4", "--filters=3,5", "--steps=60", "--dense_steps=20"]
COMMANDS = ["infer", "train"]


def run(command, capsys, *arguments):
    """Returns the cells of the lines of each table, by game."""
    unparse()
    program.main(["benchmark", command, *PLAY, *arguments])
    tables = []
    for line in capsys.readouterr().out.splitlines():
        if line.startswith("|"):
            name, *cells = [c.strip() for c in line.strip("|").split("|")]
            if name == "game":
                tables.append({})
            tables[-1][name] = cells
    for table in tables:
        assert set(table[list(table)[1]][0]) == set("-:")
        del table[list(table)[1]]
    return tables


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_the_games_of_the_paper_are_games():
    assert len(set(grid.GAMES)) == 24
    assert set(grid.GAMES) <= set(atari.games())


@pytest.mark.parametrize("column", grid.COLUMNS)
def test_acting_is_measured(column):
    if column == "dense_gpu" and not tf.config.list_physical_devices("GPU"):
        pytest.skip("TensorFlow sees no GPU")

    def measure():
        return infer.measure(
            "Pong",
            downsample=4,
            filters=(3, 5),
            column=column,
            steps=60,
            seed=0,
            idle_mb=1.0,
        )

    row = measure()
    total, environment = row["total_seconds"], row["environment_seconds"]
    assert 0 < environment <= total
    assert row["bare_seconds"] > 0
    assert row["policy_seconds"] == pytest.approx(total - environment, abs=2e-6)
    assert 0 < row["start_mb"] <= row["peak_mb"]
    tenths = [float(seconds) for seconds in row["policy_tenths"].split()]
    if column == "bare_env":
        assert environment == total and tenths == []
        return
    assert tenths == sorted(tenths) and len(tenths) == 10
    assert tenths[-1] == pytest.approx(row["policy_seconds"], abs=5e-3)
    if column.startswith("dense"):
        assert row["new_rows"] == ""
        return
    # The first frame changes everything.
    positions = 53 * 40
    assert positions / 60 < row["changed_positions"] < positions / 2
    if column == "content":
        assert 0 < row["new_rows"] < row["changed_positions"]
        assert 0 < row["rows"] < positions
    else:
        assert row["new_rows"] > row["changed_positions"]
        assert row["rows"] == positions
    assert row["clears"] == row["switches"] == 0
    assert measure()["new_rows"] == row["new_rows"]


@pytest.mark.parametrize("column", ["bare_env", "content", "temporal", "dense"])
def test_learning_is_measured(column):
    # Breakout ends an episode in between.
    row = train.measure(
        "Breakout",
        downsample=4,
        filters=(3, 5),
        column=column,
        steps=300,
        seed=0,
        resident={"idle_mb": 1.0, "warm_mb": 2.0},
    )
    total, update = row["total_seconds"], row["update_seconds"]
    assert total == pytest.approx(
        row["environment_seconds"] + row["policy_seconds"] + update, abs=3e-6
    )
    assert 0 < row["environment_seconds"] <= total
    assert row["bare_seconds"] > 0
    assert (row["idle_mb"], row["warm_mb"]) == (1, 2)
    assert 0 < row["start_mb"] <= row["peak_mb"]
    if column == "bare_env":
        assert update == 0 and row["gradient_seconds"] == ""
        return
    assert update > 0 < row["policy_seconds"]
    assert row["episodes"] >= 1
    assert row["gradient_seconds"] > 0
    assert row["gradient_frames"] == 300
    if column == "dense":
        assert row["gradient_rows"] == ""
    else:
        assert 0 < row["gradient_rows"] < 300 * 53 * 40


@pytest.mark.parametrize("command", COMMANDS)
def test_finished_rows_are_kept(command, capsys, tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    # Four columns, one of them on fewer steps, and two runs.
    arguments = ["--games=Pong", "--runs=2", f"--out={path}"]
    owner = {"infer": infer, "train": train.Fresh}[command]
    measured = []
    measure = owner.measure

    def watched(*positional, **asked):
        measured.append(asked["column"])
        return measure(*positional, **asked)

    monkeypatch.setattr(owner, "measure", watched)
    (first,) = run(command, capsys, *arguments)
    assert list(first) == ["game", "Pong", "median", "largest"]
    assert first["Pong"] == first["median"] == first["largest"]
    columns = ["bare_env", "content", "temporal", "dense"]
    assert measured == columns * 2
    rows = rows_of(path)
    assert [(row["column"], row["run"]) for row in rows] == [
        (column, number) for number in "01" for column in columns
    ]
    for row in rows:
        assert row["steps"] == ("20" if row["column"] == "dense" else "60")
        assert row["filters"] == "3,5" and row["downsample"] == "4"
        assert row["tensorflow"] == tf.__version__ and row["processor"]
    # Everything is there: nothing is measured, and the table is the same.
    del measured[:]
    assert run(command, capsys, *arguments) == [first]
    assert measured == []
    # A deleted row, and one that was not written to its end.
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], *lines[4:-1], lines[-1][:-9]]))
    run(command, capsys, *arguments)
    assert measured == ["temporal", "dense"]
    kept = rows_of(path)
    assert kept[:-2] == rows[:2] + rows[3:-1]
    assert [(row["column"], row["run"]) for row in kept[-2:]] == [
        ("temporal", "0"),
        ("dense", "1"),
    ]
    # Other settings are other rows.
    del measured[:]
    tables = run(
        command,
        capsys,
        *(*arguments, "--runs=1", "--columns=content,bare_env", "--seed=1"),
        "--filters=2",
    )
    assert len(tables) == 2
    assert measured == ["bare_env", "content"] * 2
    assert len(rows_of(path)) == 12
    assert {row["filters"] for row in rows_of(path)} == {"3,5", "2"}


def test_a_killed_run_keeps_what_it_has_measured(tmp_path, monkeypatch):
    path = tmp_path / "rows.csv"
    measure = infer.measure

    def killed(*positional, **asked):
        if asked["column"] == "temporal":
            raise KeyboardInterrupt
        return measure(*positional, **asked)

    monkeypatch.setattr(infer, "measure", killed)
    with pytest.raises(SystemExit, match="interrupted"):
        program.main(
            ["benchmark", "infer", *PLAY, "--games=Pong", f"--out={path}"]
        )
    assert [row["column"] for row in rows_of(path)] == ["bare_env", "content"]


def test_numbers_of_the_table_are_those_of_the_rows():
    def row(column, total, policy, steps, bare=2.0):
        return {
            "column": column,
            "steps": str(steps),
            "total_seconds": str(total),
            "policy_seconds": str(policy),
            "bare_seconds": str(bare),
            **dict.fromkeys(
                ["new_rows", "changed_positions", "rows", "start_mb", "end_mb"],
                "7" if column == "content" else "",
            ),
        }

    rows = grid.Rows(
        [
            row("bare_env", 1.0, 0.0, 1000),
            row("bare_env", 3.0, 0.0, 1000),
            row("bare_env", 2.0, 0.0, 1000),
            row("content", 3.0, 1.0, 1000),
            row("content", 3.3, 1.0, 1000, bare=3.0),
            row("dense", 2.0, 1.0, 100),
        ]
    )
    bare, policy, slowdown, total, spread, temporal, dense, ratio, *counts = (
        infer._numbers(rows)
    )
    assert (bare, policy) == (2000, 1000)
    # Of the runs' own ratios: 1 / 2 and 1 / 3, and 3 / 2 and 3.3 / 3.
    assert slowdown == pytest.approx(1 + 5 / 12)
    assert total == pytest.approx(1.3)
    assert spread == pytest.approx(0.4 / 1.3)
    assert math.isnan(temporal)
    assert dense == pytest.approx(10000) and ratio == pytest.approx(10)
    assert counts == [7] * 5


def test_a_file_of_something_else_is_not_written_to(tmp_path, capsys):
    path = tmp_path / "layer.csv"
    path.write_text("change,target\nblobs,1\n")
    with pytest.raises(SystemExit) as failure:
        program.main(
            ["benchmark", "infer", *PLAY, "--games=Pong", f"--out={path}"]
        )
    assert "other columns" in failure.value.code
    assert path.read_text() == "change,target\nblobs,1\n"


def test_policies_that_draw_other_actions_are_not_measured(monkeypatch):
    arguments = {
        "downsample": 4,
        "filters": (3,),
        "steps": 100,
        "seed": 0,
        "idle_mb": 1.0,
    }
    chosen = []
    for column in ("dense", "content", "temporal"):
        infer.measure("Pong", column=column, chosen=chosen, **arguments)
    assert len(chosen) == 100
    runner_step = Runner.step
    monkeypatch.setattr(
        Runner,
        "step",
        lambda *given, **named: -10 * runner_step(*given, **named),
    )
    with pytest.raises(RuntimeError, match="drew different actions"):
        infer.measure("Pong", column="content", chosen=chosen, **arguments)


BAD_PLAY_ARGUMENTS = {
    "--games=Pnog": "Pong",
    "--games=Pong,": "Unknown game",
    "--games=": "games",
    "--steps=0": "steps",
    "--dense_steps=0": "dense_steps",
    "--runs=0": "runs",
    "--downsample=3": "downsample",
    "--downsample=": "downsample",
    "--filters=3,0": "filters",
    "--filters=": "filters",
    "--filters=a": "filters",
    "--columns=none": "columns",
    "--columns=": "columns",
    "--out=missing/rows.csv": "out",
}


@pytest.mark.parametrize(("argument", "named"), BAD_PLAY_ARGUMENTS.items())
@pytest.mark.parametrize("command", COMMANDS)
def test_a_bad_argument_of_a_play_is_one_clear_line(command, argument, named):
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", command, argument])
    message = failure.value.code
    assert re.match(r"reuse_tf\.benchmark: .+\Z", message)
    assert named in message


def test_a_gpu_that_is_not_there_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(SystemExit) as failure:
        program.main(["benchmark", "infer", "--columns=dense_gpu"])
    assert "dense_gpu: TensorFlow sees no GPU" in failure.value.code


MEASURE = """
import json
import numpy as np
from reuse_tf.benchmark import memory
with memory.Meter() as meter:
    values = np.ones(25 * 2**20)  # 200 MB
    del values
with memory.Meter() as again:
    pass
print(json.dumps([meter.as_dict(), again.as_dict()]))
"""


def test_memory_is_measured():
    # In a process of its own: after much else the allocator keeps pages.
    result = children.run(sys.executable, "-c", MEASURE)
    first, again = json.loads(result.stdout.splitlines()[-1])
    assert 195 < first["peak_mb"] - first["start_mb"] < 300
    assert first["end_mb"] - first["start_mb"] < 50
    # The peak is that of the time in between.
    assert again["peak_mb"] - again["start_mb"] < 50


# -- Statistics --------------------------------------------------------------


@pytest.mark.parametrize("game", ["Pong", "Breakout"])
def test_statistics_are_what_a_runner_finds(game):
    steps, size = 250, 53 * 40
    per_cent = statistics.measure(game, downsample=4, steps=steps, seed=2)
    env = atari.make(game, downsample=4)
    policy = build_policy(env.observation_space.shape, 4, (1, 1))
    runner = Runner(policy)
    frames = np.array(
        list(replay.frames(game, downsample=4, steps=steps, seed=2))
    )
    for i, frame in enumerate(frames):
        runner.step(frame[np.newaxis])
        if i == 0:
            first = runner.stats.layers["conv2"]
    last = runner.stats.layers["conv2"]
    scale = 100 / ((steps - 1) * size)
    changed = frames[1:] != frames[:-1]
    assert per_cent["pixels"] == pytest.approx(scale * changed.sum(), abs=1e-4)
    assert per_cent["positions"] == pytest.approx(
        scale * (last.changed - first.changed), abs=1e-4
    )
    assert per_cent["new"] == pytest.approx(
        scale * (last.new_rows - first.new_rows), abs=1e-4
    )
    assert per_cent["new"] < per_cent["positions"]
    assert per_cent["pixels"] < per_cent["positions"] < 25 * per_cent["pixels"]
    assert per_cent["pixels"] <= per_cent["box"] <= 100


def test_the_box_is_that_of_the_pixels():
    pixels = np.zeros([6, 8], bool)
    assert statistics._box(pixels) == 0
    pixels[1, 2] = True
    assert statistics._box(pixels) == 1
    pixels[4, 7] = True
    assert statistics._box(pixels) == 4 * 6


def test_statistics_are_printed_and_kept(tmp_path, capsys, monkeypatch):
    path = tmp_path / "statistics.csv"
    arguments = [
        *("benchmark", "statistics", "--games=Pong,Breakout", "--steps=20"),
        *("--downsample=2,4", f"--out={path}"),
    ]
    program.main(arguments)
    output = capsys.readouterr().out
    rows = rows_of(path)
    assert [(row["game"], row["downsample"]) for row in rows] == [
        *(("Pong", "2"), ("Breakout", "2"), ("Pong", "4"), ("Breakout", "4"))
    ]
    assert output.count("|           Pong |") == 2
    assert f"{float(rows[0]['box']):.3f}" in output
    monkeypatch.delattr(statistics, "measure")  # All is there.
    program.main(arguments)
    assert capsys.readouterr().out == output


# -- Whole networks ----------------------------------------------------------


def small_network(*_):
    inputs = keras.Input((models.SIZE, models.SIZE, 3))
    x = keras.layers.Conv2D(2, 7, strides=7, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


@pytest.mark.parametrize("change", models.CHANGES)
def test_a_network_is_measured(change):
    frames = list(models.frames_of_pixels(change, 6))
    differ = [np.any(a != b, -1).mean() for a, b in itertools.pairwise(frames)]
    low, high = {"none": (0, 0), "block": (0.005, 0.011), "all": (0.99, 1)}[
        change
    ]
    assert low <= min(differ) and max(differ) <= high
    row = networks.measure_steps(small_network(), frames, 3)
    assert tuple(row) == networks.COLUMNS
    assert row["speed_up"] == row["dense_ms"] / row["runner_ms"] > 0
    assert row["processor_speed_up"] == (
        row["dense_processor_ms"] / row["runner_processor_ms"]
    )
    assert (row["work"] == 0) == (change == "none")
    assert (row["work"] < 0.1) == (change != "all")
    assert row["structure_ms"] == row["torch_ms"] == ""


def test_times_are_means_of_medians():
    def run(dense, runner):
        times = {"dense": np.array(dense), "runner": np.array(runner)}
        return timing.Turns(
            times,
            {name: 2 * of for name, of in times.items()},
            {"dense": [np.ones(2)], "runner": [np.ones(2)]},
        )

    row = networks._row([run([1, 5], [1, 1]), run([9, 2], [2, 1])] * 2)
    # Halfway between the two runs that there are of each.
    assert row["dense_ms"] == pytest.approx(1e3 * (5 + 3.5) / 2)
    assert row["runner_ms"] == pytest.approx(1e3 * (1.5 + 1) / 2)
    assert row["dense_processor_ms"] == 2 * row["dense_ms"]
    assert row["speed_up"] == pytest.approx(3.4)
    assert row["processor_speed_up"] == pytest.approx(3.4)


def test_networks_that_differ_are_an_error(monkeypatch):
    model = small_network()
    frames = list(models.frames_of_pixels("all", 3))
    monkeypatch.setattr(
        networks.Runner, "step", lambda self, frame: np.ones([1, 3])
    )
    with pytest.raises(RuntimeError, match="runner is off by"):
        networks.measure_steps(model, frames, 1)


@pytest.mark.parametrize(
    ("network", "shape"),
    [("paper", (105, 80, 1)), ("nature", (84, 84, 4)), ("IMPALA", (84, 84, 4))],
)
def test_networks_of_games(network, shape):
    model, frames = models.of_game(network, "Pong", 2, 12, seed=3)
    assert frames.shape == (12, 2, *shape) and frames.dtype == np.uint8
    assert np.any(frames[0] != frames[-1])
    _, again = models.of_game(network, "Pong", 2, 12, seed=3)
    np.testing.assert_array_equal(frames, again)
    if network == "paper":
        first, _ = atari.make("Pong", downsample=2).reset(seed=3)
        np.testing.assert_array_equal(frames[0, 0], first)
    else:  # Each screen is there for four frames.
        np.testing.assert_array_equal(frames[1:, ..., :3], frames[:-1, ..., 1:])
    logits, *_ = keras.tree.flatten(model(frames[0]))
    assert logits.shape == (2, 6)
    convolutions = sum(
        isinstance(layer, keras.layers.Conv2D) for layer in model.layers
    )
    assert convolutions == {"paper": 2, "nature": 3, "IMPALA": 15}[network]


def test_gradients_are_measured(monkeypatch):
    model, frames = models.of_game("nature", "Pong", 1, 8)
    frames = frames[:, 0]
    batches = np.split(np.random.default_rng(0).permutation(8), 2)
    for some in (None, batches):
        # Plain Keras takes them of parts, of which the last is smaller.
        row = networks.measure_gradient(model, frames, 2, 3, some)
        assert tuple(row) == networks.COLUMNS
        assert 0 < row["structure_ms"] < row["runner_ms"]
        assert row["speed_up"] == row["dense_ms"] / row["runner_ms"]
        assert row["work"] == row["torch_ms"] == ""
    evaluate = Runner.__call__
    monkeypatch.setattr(
        Runner, "__call__", lambda self, frames: 2 * evaluate(self, frames)
    )
    with pytest.raises(RuntimeError, match="runner is off by"):
        networks.measure_gradient(model, frames)


@pytest.fixture
def few_frames(monkeypatch):
    """What takes seconds of whole networks."""
    monkeypatch.setattr(models, "application", small_network)
    monkeypatch.setattr(networks, "_WARM_UP_OF_GAMES", 4)
    monkeypatch.setattr(networks, "_VIDEOS", 2)
    monkeypatch.setattr(networks, "_FRAMES", 3)
    monkeypatch.setattr(networks, "_BATCH", 3)


NETWORKS = [
    *("benchmark", "networks", "--networks=nature,VGG16", "--games=Pong"),
    *("--streams=1,2", "--rounds=2", "--runs=1"),
]


def test_the_networks_command(few_frames, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)  # It is not installed.
    path = tmp_path / "networks.csv"
    command = [*NETWORKS, f"--out={path}"]
    program.main(command)
    output = capsys.readouterr().out
    assert "torch none" in output and "medians of 1 runs" in output
    lines = [line for line in output.splitlines() if line.startswith("|")]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    rows = rows_of(path)
    measured = [
        *(("nature", "Pong", "step", str(count)) for count in (1, 2)),
        ("nature", "Pong", "gradient", "2"),
        ("nature", "Pong", "minibatches", "2"),
        *(("VGG16", change, "step", "1") for change in models.CHANGES),
    ]
    assert [tuple(row.values())[:4] for row in rows] == measured
    assert list(rows[0]) == [
        *("network", "frames", "what", "streams"),
        *("reuse", "rounds", "runs", "seed", "threads"),
        *("dense_ms", "runner_ms", "speed_up"),
        *("dense_processor_ms", "runner_processor_ms", "processor_speed_up"),
        *("structure_ms", "work", "torch_ms", "torch_processor_ms"),
        *("tensorflow", "keras", "reuse_tf", "processor", "torch"),
    ]
    for row, printed in zip(rows, cells[2:], strict=True):
        assert printed[:2] == [row["network"], row["frames"]]
        assert printed[3:7] == [
            f"{float(row[name]):.2f}"
            for name in (
                *("dense_ms", "runner_ms", "speed_up"),
                "processor_speed_up",
            )
        ]
        assert (printed[7] == "-") == (row["network"] == "nature")
        assert (row["structure_ms"] == "") == (row["what"] == "step")
        assert (row["work"] == "") == (row["what"] != "step")
        assert row["torch_ms"] == row["torch_processor_ms"] == row["torch"]
        assert row["torch"] == "" and printed[-2:] == ["-", "-"]
    assert [printed[2] for printed in cells[2:6]] == [
        *("step of 1", "step of 2", "gradient", "minibatches")
    ]
    # A row that is taken out is measured again, and nothing else.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:3] + lines[4:]), encoding="utf-8")
    measure, again = networks.Measurement.measure, []
    monkeypatch.setattr(
        networks.Measurement,
        "measure",
        lambda self, **how: again.append(self) or measure(self, **how),
    )
    unparse()
    program.main(command)
    assert again == [("nature", "Pong", "gradient", 2)]
    kept = path.read_text(encoding="utf-8").splitlines(keepends=True)
    assert kept[:-1] == lines[:3] + lines[4:]
    # It is drawn, and by itself.
    ((name, figure),) = figures.draw(figures.read([path]))
    assert name == "networks" and len(figure.axes) == 2


def test_networks_beside_pytorch(few_frames, capsys, tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "networks.csv"
    program.main([*NETWORKS, f"--out={path}"])
    for row in rows_of(path):
        is_there = row["network"] == "nature" and row["what"] == "step"
        for name in ("torch_ms", "torch_processor_ms"):
            assert bool(row[name]) == is_there
        assert not is_there or float(row["torch_ms"]) > 0
        assert row["torch"]
    assert f"torch {row['torch']}" in capsys.readouterr().out


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("network", models.GAME_NETWORKS)
def test_networks_in_pytorch_are_those_of_keras(network, channels_last):
    pytest.importorskip("torch")
    from reuse_tf.benchmark import pytorch

    model, frames = models.of_game(network, "Pong", 2, 1)
    for weight in model.weights:  # Biases, which begin with zeros.
        weight.assign(weight + 0.01)
    same = pytorch.Network(model, channels_last)
    outputs = same(same.frames(frames[0]))
    keras.tree.map_structure(
        lambda got, want: np.testing.assert_allclose(
            got, want, rtol=1e-4, atol=1e-4 * np.max(np.abs(want))
        ),
        outputs,
        model(frames[0]),
    )


def test_other_layers_are_not_for_pytorch():
    pytest.importorskip("torch")
    from reuse_tf.benchmark import pytorch

    with pytest.raises(ValueError, match="GlobalAveragePooling2D"):
        pytorch.Network(small_network(), False)


@pytest.mark.parametrize(
    ("argument", "named"),
    {
        "--networks=VGG17": "VGG17",
        "--networks=resnet50": "resnet50",
        "--games=Pnog": "Pong",
        "--streams=1,0": "streams",
        "--streams=": "streams",
        "--rounds=0": "rounds",
        "--runs=0": "runs",
        "--game=Pong": "game",
    }.items(),
)
def test_a_bad_argument_of_networks_is_one_clear_line(argument, named):
    assert named in failure_of("networks", argument)


def test_a_promise_is_of_times_as_fast_as_plain_keras():
    assert networks.promised("none", 0) == pytest.approx(100 / 3)
    assert networks.promised("all", 1) == pytest.approx(1 / 1.3)
    assert networks.promised("block", 0.1) == pytest.approx(1 / 0.16)
