"""Learning: REINFORCE with and without reuse, against the bare emulator.

`training.train` trains a policy in each game, with an update at the end of
every episode, as `train.py` does; in turns, in one process for each game, by
plain Keras and a plain tape, in chunks of frames (dense), with temporal and
with content reuse, and, as the limit, the emulator alone (bare_env). All do the
same random actions and see the same frames: the actions that a policy draws
are timed and thrown away. Beside it, the gradient of one long episode. Results
in `--out` are kept: only what is missing is measured.
"""

import concurrent.futures
import contextlib
import io
import multiprocessing
import tempfile
import time

import numpy as np
from absl import flags

from reuse_tf import atari, process
from reuse_tf.benchmark import grid, memory, replay, report
from reuse_tf.learning import reinforce, training
from reuse_tf.learning.settings import Settings
from reuse_tf.policies.evaluators import evaluator

# Frames of the episode whose gradient is measured.
EPISODE = 1500

# See `resident`.
_ABOVE_IDLE = {"peak": 1, "start": -1, "warm": 1, "idle": -1}

FLAGS = flags.FlagValues()
GRID = grid.Grid(FLAGS)


def measure(game, *, downsample, filters, column, steps, seed, resident):
    """Measures a column of one game.

    Args:
        game: Its short name.
        downsample: See `atari.make`.
        filters: See `build_policy`.
        column: A key of `grid.COLUMNS`.
        steps: Steps to train for.
        seed: Decides weights, game and actions.
        resident: What the function of that name returned at the beginning.

    Returns:
        A dict. `total_seconds`, from the first step to the end of the last
        update, when an unfinished episode is cut; of these, in the emulator,
        `environment_seconds`; in updates, `update_seconds`; and all else,
        which is reading the frame, the network, softmax, sampling and keeping
        the episode, `policy_seconds`. `bare_seconds`: of the bare emulator,
        which does the same steps, in turns of 50, and is not in the above. The
        number of `episodes` that ended. `gradient_seconds` and
        `gradient_frames`: of one episode, of `EPISODE` frames or as many as
        there are steps; `gradient_rows`: the distinct patches in it, of all
        layers, that reuse computes. In MB, those of `resident`, and of
        `memory.Meter` in training alone.
    """
    reuse = grid.COLUMNS[column]
    row = dict.fromkeys(
        [
            *("total_seconds", "environment_seconds", "policy_seconds"),
            *("update_seconds", "bare_seconds", "episodes"),
            *("gradient_seconds", "gradient_frames", "gradient_rows"),
        ],
        "",
    )
    with memory.Meter() as meter, grid.device(column):
        bare = replay.Bare(game, steps, seed)
        if reuse is None:
            bare.play(steps)
            total = emulator = bare.seconds
            update = 0.0
        else:
            model, summary, replayed = _train(
                game, downsample, filters, reuse, steps, seed, bare
            )
            total = summary.total_seconds - replayed.beside_seconds
            emulator = replayed.emulator_seconds
            update = summary.update_seconds
            row["episodes"] = len(summary.returns)
    row["total_seconds"] = round(total, 6)
    row["environment_seconds"] = round(emulator, 6)
    row["policy_seconds"] = round(total - emulator - update, 6)
    row["update_seconds"] = round(update, 6)
    row["bare_seconds"] = round(bare.seconds, 6)
    if reuse is not None:
        frames = list(
            replay.frames(
                game,
                downsample=downsample,
                steps=min(EPISODE, steps),
                seed=seed,
            )
        )
        with grid.device(column):
            row.update(_gradient(model, reuse, frames))
    return {**row, **resident, **meter.as_dict()}


class Fresh:
    """Runs `measure` in a process that is new for each game and setting.

    TensorFlow keeps to the end of a process what a compiled update of a Keras
    optimizer writes to (in the graph of a custom gradient, which it registers
    for good): one process for all would run out of memory.
    """

    def __init__(self):
        self._setting = None
        self._process = None

    def measure(self, **asked):
        """Returns what `measure` does, of the same arguments."""
        setting = (asked["game"], asked["downsample"], asked["filters"])
        if setting != self._setting:
            self.close()
            self._process = concurrent.futures.ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), _start
            )
            self._setting = setting
        return self._process.submit(_measure_above, **asked).result()

    def close(self):
        """Ends the process."""
        if self._process is not None:
            self._process.shutdown()


_resident = None


def _start():
    global _resident
    process.settle()  # as train.py does
    _resident = resident()


def _measure_above(**asked):
    return measure(**asked, resident=_resident)


def resident():
    """Measures a process before and after a tiny training.

    A first training leaves behind what further ones use too, such as what
    compiles the update. So the memory of a training above that of the idle
    process is `warm_mb - idle_mb + peak_mb - start_mb`.

    Returns:
        A dict of `idle_mb` and `warm_mb`.
    """
    idle_mb = memory.idle_mb()
    _train("Pong", 4, (1,), "content", 2, 0)
    with memory.Meter() as meter:
        return {"idle_mb": idle_mb, "warm_mb": meter.start_mb}


def _train(game, downsample, filters, reuse, steps, seed, bare=None):
    replays = []

    def make_env():
        env = atari.make(game, downsample=downsample)
        replays.append(replay.Replay(env, steps, seed, bare))
        return env

    settings = Settings(
        game=game,
        downsample=downsample,
        filters=filters,
        reuse=reuse,
        steps=steps,
        seed=seed,
        checkpoint_seconds=1e9,
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),  # It shows its progress.
    ):
        model, summary = training.train(settings, folder, make_env)
    (replayed,) = replays
    return model, summary, replayed


def _gradient(model, reuse, frames):
    """Measures the gradient of an episode of these frames."""
    episode = reinforce.Episode()
    for i, frame in enumerate(frames):
        episode.append(frame, 0, float(i == len(frames) - 1))
    short = reinforce.Episode()
    short.append(frames[0], 0, 1.0)
    evaluate = evaluator(model, reuse)
    for played in (short, episode):  # The first time takes longer.
        begin = time.perf_counter()
        reinforce.policy_gradient(
            evaluate.outputs_fn,
            model.trainable_variables,
            [played],
            discount=0.99,
            max_frames=evaluate.max_frames,
        )
        seconds = time.perf_counter() - begin
    row = {
        "gradient_seconds": round(seconds, 6),
        "gradient_frames": len(frames),
    }
    if reuse != "none":
        patches = evaluate.outputs_fn.structure(np.stack(frames)).patches
        row["gradient_rows"] = sum(len(table) for table in patches)
    return row


def main():
    """Measures what the flags describe; prints and writes the results."""
    with contextlib.closing(Fresh()) as fresh:
        _print(GRID.measured("training", fresh.measure))


def _print(tables):
    for about, games in tables:
        print(about + "\n")
        table = report.NumberTable(
            "game",
            {
                "E s": ".2f",
                "content s": ".2f",
                "total/E": ".2f",
                "spread": ".0%",
                "update s": ".2f",
                "temporal s": ".2f",
                "dense s": ".1f",
                "dense/content": ".1f",
                "gradient s": ".2f",
                "rows": ".0f",
                "dense g. s": ".1f",
                "ratio": ".1f",
                "MB": ".0f",
                "temporal MB": ".0f",
                "dense MB": ".0f",
            },
        )
        for game, rows in games:
            table.print_row(game, _numbers(rows, GRID.steps))
        table.print_summary()
        print(
            f"\nSeconds for {GRID.steps} steps. E: the bare emulator; in "
            "total/E, in turns with the training. Content, temporal, dense: "
            "training in all; spread: of total/E over the runs, (largest - "
            "least) / median. Update: of content's total. Gradient: of an "
            f"episode of {min(EPISODE, GRID.steps)} frames, with content "
            "reuse, and by a dense tape in chunks; rows: its distinct patches, "
            "of all layers. MB: the most resident in training above the idle "
            "process. What ran fewer steps or frames, as dense columns do, is "
            "scaled to these.\n"
        )


def _numbers(rows, steps):
    bare, content, update, temporal, dense = (
        steps * rows.median(column, name, per_step=True)
        for column, name in (
            ("bare_env", "total_seconds"),
            ("content", "total_seconds"),
            ("content", "update_seconds"),
            ("temporal", "total_seconds"),
            ("dense", "total_seconds"),
        )
    )
    gradient, dense_gradient = (
        min(EPISODE, steps)
        * rows.median(column, "gradient_seconds")
        / rows.median(column, "gradient_frames")
        for column in ("content", "dense")
    )
    return [
        bare,
        content,
        rows.ratio("content", "total_seconds", "bare_seconds"),
        rows.spread("content", "total_seconds", "bare_seconds"),
        update,
        temporal,
        dense,
        dense / content,
        gradient,
        rows.median("content", "gradient_rows"),
        dense_gradient,
        dense_gradient / gradient,
        *(
            sum(
                sign * rows.median(column, f"{name}_mb")
                for name, sign in _ABOVE_IDLE.items()
            )
            for column in ("content", "temporal", "dense")
        ),
    ]
