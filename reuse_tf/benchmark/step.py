"""Acting: a policy through `Runner.step`, against the bare emulator.

A policy with random weights plays each game. In the same process, in turns,
these are timed: E, the emulator's own step on the same actions, in an
environment of its own; P, all that playing adds to it, which is reading the
frame, `Runner.step`, and drawing an action from the softmax; and D, plain
Keras in a `tf.function` on every so many of the same frames, whose logits
must agree. Results in `--out` are kept: only what is missing is measured.
"""

import gc
import math
import os
import time

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf
from absl import flags

from reuse_tf import atari
from reuse_tf.benchmark import report
from reuse_tf.policy import build_policy, sample
from reuse_tf.runner import Runner

# Those of Khachatourian (2019).
GAMES = (
    *("Alien", "Amidar", "Assault", "Asterix", "BankHeist", "BattleZone"),
    *("Boxing", "Breakout", "ChopperCommand", "CrazyClimber", "DemonAttack"),
    *("Freeway", "Gopher", "Hero", "Kangaroo", "Krull", "KungFuMaster"),
    *("MsPacman", "Pong", "PrivateEye", "Qbert", "RoadRunner", "Seaquest"),
    "YarsRevenge",
)
# What tells the rows of a file apart.
KEY = ("game", "downsample", "filters", "kernel_size", "steps", "reuse", "seed")
# Steps that one environment makes before it is the other's turn.
_BLOCK = 50

FLAGS = flags.FlagValues()
GAME_NAMES = flags.DEFINE_list(
    "games", ["all"], "Short names of games, or all.", flag_values=FLAGS
)
STEPS = flags.DEFINE_integer(
    "steps", 3000, "Steps of each game.", lower_bound=1, flag_values=FLAGS
)
DOWNSAMPLE = flags.DEFINE_enum(
    "downsample",
    "2",
    ["1", "2", "4"],
    "Keep every n-th pixel of the screen.",
    flag_values=FLAGS,
)
FILTERS = flags.DEFINE_list(
    "filters", ["40", "80"], "Filters of each layer.", flag_values=FLAGS
)
KERNEL_SIZE = flags.DEFINE_integer(
    "kernel_size",
    3,
    "Height and width of the kernels.",
    lower_bound=1,
    flag_values=FLAGS,
)
REUSE = flags.DEFINE_enum(
    "reuse",
    "content",
    ["content", "temporal"],
    "The kind of reuse.",
    flag_values=FLAGS,
)
DENSE_EVERY = flags.DEFINE_integer(
    "dense_every",
    20,
    "Evaluate plain Keras on every so many-th frame.",
    lower_bound=1,
    flag_values=FLAGS,
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Decides weights, games and actions.",
    lower_bound=0,
    upper_bound=2**31 - 1,
    flag_values=FLAGS,
)
OUT = report.define_out(FLAGS)


@flags.validator(
    "filters", message="must be positive integers", flag_values=FLAGS
)
def _are_filters(values):
    return bool(values) and all(v.isdecimal() and int(v) for v in values)


def measure(
    game,
    *,
    steps=3000,
    downsample=2,
    filters=(40, 80),
    kernel_size=3,
    reuse="content",
    dense_every=20,
    seed=0,
):
    """Measures one game.

    Args:
        game: Its short name.
        steps: Steps to play.
        downsample: See `atari.make`.
        filters: See `build_policy`.
        kernel_size: See `build_policy`.
        reuse: See `Runner`.
        dense_every: How many frames there are to each one that plain Keras
            sees.
        seed: Decides weights, games and actions.

    Returns:
        A dict. What was asked for, as in `KEY`, and `dense_every`. Means in
        microseconds for a step: `bare_us` (E), `play_us` (P), `dense_us` (D,
        of the frames that it saw), of P its median `play_median_us`, its 99th
        percentile `play_p99_us` and its first `first_us`. The ratios
        `slowdown`, (E + P) / E, and `speed_up`, D / P. For a frame,
        `changed_positions` of the last convolution, and `new_rows`, of all of
        them. `rows` of the last table at the end, `clears` of the tables,
        `switches` of the kind of reuse. Resident memory before and after, in
        MB, `resident_start_mb` and `resident_end_mb`; NaN where the system
        does not tell.

    Raises:
        RuntimeError: If the runner's logits are not those of plain Keras.
    """
    gc.collect()
    resident_start = _resident_mb()
    env = atari.make(game, downsample=downsample)
    bare = gym.make(env.spec.id, obs_type="ram").unwrapped
    keras.utils.set_random_seed(seed)
    policy = build_policy(
        env.observation_space.shape,
        int(env.action_space.n),
        filters,
        kernel_size,
        incremental=False,
    )
    shape = (1, *env.observation_space.shape)
    dense = tf.function(policy).get_concrete_function(
        tf.TensorSpec(shape, tf.uint8)
    )
    dense(tf.zeros(shape, tf.uint8))  # The first call is slow.
    runner = Runner(policy, reuse)
    uniforms = np.random.default_rng(seed).random(steps).tolist()
    play_seconds, dense_seconds = np.empty(steps), []
    bare_seconds = 0.0
    clock = time.perf_counter
    observe = env.env.observation  # what reads the emulator's screen
    played = env.unwrapped
    played.reset(seed=seed)
    bare.reset(seed=seed)
    for first in range(0, steps, _BLOCK):
        actions, samples = [], []
        for i in range(first, min(first + _BLOCK, steps)):
            begin = clock()
            frame = observe(None)[np.newaxis]
            logits = runner.step(frame)[0]
            action = sample(logits, uniforms[i])
            play_seconds[i] = clock() - begin
            actions.append(action)
            if i % dense_every == 0:
                samples.append((frame, logits))
            _, _, terminated, truncated, _ = played.step(action)
            if terminated or truncated:
                played.reset()
        begin = clock()
        for action in actions:
            _, _, terminated, truncated, _ = bare.step(action)
            if terminated or truncated:
                bare.reset()
        bare_seconds += clock() - begin
        for frame, logits in samples:
            begin = clock()
            want = dense(tf.constant(frame)).numpy()[0]
            dense_seconds.append(clock() - begin)
            _check_equal(want, logits)
    if not np.array_equal(bare.ale.getRAM(), played.ale.getRAM()):
        raise RuntimeError(f"The two environments of {game} went apart.")
    stats = runner.stats
    convolutions = list(stats.layers.values())[: len(filters)]
    bare_us = 1e6 * bare_seconds / steps
    play_us = 1e6 * float(play_seconds.mean())
    dense_us = 1e6 * float(np.mean(dense_seconds))
    median, p99 = np.percentile(play_seconds, [50, 99])
    row = {
        "game": game,
        "downsample": downsample,
        "filters": ",".join(map(str, filters)),
        "kernel_size": kernel_size,
        "steps": steps,
        "reuse": reuse,
        "seed": seed,
        "dense_every": dense_every,
        "bare_us": bare_us,
        "play_us": play_us,
        "slowdown": (bare_us + play_us) / bare_us,
        "dense_us": dense_us,
        "speed_up": dense_us / play_us,
        "play_median_us": 1e6 * float(median),
        "play_p99_us": 1e6 * float(p99),
        "first_us": 1e6 * float(play_seconds[0]),
        "changed_positions": convolutions[-1].changed / steps,
        "new_rows": sum(layer.new_rows for layer in convolutions) / steps,
        "rows": list(stats.rows.values())[-1],
        "clears": stats.clears,
        "switches": stats.switches,
        "resident_start_mb": resident_start,
        "resident_end_mb": _resident_mb(),
    }
    env.close()
    bare.close()
    keras.backend.clear_session()
    return row


def _check_equal(want, got):
    error = float(np.max(np.abs(want - got)))
    if not error <= 1e-5 * (1 + float(np.max(np.abs(want)))):
        raise RuntimeError(
            f"The runner's logits are off by {error}: {got}, where plain "
            f"Keras has {want}."
        )


def _resident_mb():
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
    except OSError:
        return math.nan
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main():
    """Measures what the flags describe; prints and writes the results."""
    games = GAMES if GAME_NAMES.value == ["all"] else GAME_NAMES.value
    try:
        games = [atari.short_name(game) for game in games]
    except ValueError as error:
        raise flags.Error(error) from error
    settings = {
        "downsample": int(DOWNSAMPLE.value),
        "filters": tuple(map(int, FILTERS.value)),
        "kernel_size": KERNEL_SIZE.value,
        "steps": STEPS.value,
        "reuse": REUSE.value,
        "seed": SEED.value,
    }
    environment = report.environment()
    print(
        f"{STEPS.value} steps of a random policy, downsample "
        f"{DOWNSAMPLE.value}, filters {','.join(FILTERS.value)}, kernel "
        f"{KERNEL_SIZE.value}, {REUSE.value} reuse. "
        + ", ".join(f"{name} {value}" for name, value in environment.items())
        + f". Dense Keras on every {DENSE_EVERY.value}th frame.\n"
    )
    finished = report.finished(OUT.value, KEY)

    def rows():
        for game in games:
            key = {"game": game, **settings}
            key["filters"] = ",".join(FILTERS.value)
            row = finished.get(tuple(str(key[name]) for name in KEY))
            if row is None:
                row = measure(game, dense_every=DENSE_EVERY.value, **settings)
                row.update(environment)
                report.append(row, OUT.value)
            yield row

    with tf.device("CPU:0"):
        _print(rows())


def _print(rows):
    columns = {  # heading: the name of the value, its width and its format
        "E µs": ("bare_us", 6, ".0f"),
        "P µs": ("play_us", 6, ".0f"),
        "(E+P)/E": ("slowdown", 6, ".2f"),
        "D/P": ("speed_up", 6, ".1f"),
        "new rows": ("new_rows", 6, ".1f"),
        "changed": ("changed_positions", 6, ".0f"),
        "rows": ("rows", 7, ".0f"),
        "MB before": ("resident_start_mb", 6, ".0f"),
        "MB after": ("resident_end_mb", 6, ".0f"),
    }
    table = report.Table(
        [
            ("game", 14),
            *((name, width) for name, (_, width, _) in columns.items()),
        ]
    )
    printed = []

    def print_row(name, values):
        table.print_row(
            name,
            *(
                format(value, form)
                for value, (_, _, form) in zip(
                    values, columns.values(), strict=True
                )
            ),
        )

    for row in rows:
        printed.append([float(row[name]) for name, _, _ in columns.values()])
        print_row(row["game"], printed[-1])
    print_row("median", np.median(printed, 0))
    print_row("largest", np.max(printed, 0))
    print(
        "\nMeans for a step. E: the bare emulator. P: reading the frame, "
        "Runner.step, softmax and sampling. D: dense Keras. New rows: of all "
        "convolutions. Changed: positions of the last one. Rows: of its "
        "table, at the end. MB: resident."
    )
