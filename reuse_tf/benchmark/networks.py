"""Whole networks: a runner against plain Keras, on games and random pixels.

Networks of games, for each game, which is played at random: the package's own
policy (paper), three convolutions with strides (nature) and a residual network
(IMPALA). Of them are measured steps of several environments side by side; the
gradient of 8 videos of 128 frames, given as frames, whose structure is found
each time; and the gradients of 4 shuffled minibatches of 256 of these frames,
taken of their structure. Models of keras.applications at 224x224, batch 1, with
random statistics: steps through frames of random pixels, of which nothing
changes, a block of 16x16 that is elsewhere each time, or everything.

Plain Keras runs in a `tf.function`, and takes gradients of 256 frames at once.
Steps of networks of games are made by PyTorch too, where it is installed, on
one thread. Times are means over the steps, of medians over the runs. Results in
`--out` are kept: only what is missing is measured. A row without PyTorch stays
one, until it is taken out.
"""

import collections
import functools
import inspect
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from reuse_tf.benchmark import models, report, timing
from reuse_tf.runner import Runner

# Steps of a runner before anything is timed, for it to choose its kinds of
# reuse and fill its tables: by change, and of games. Where everything is new,
# few are enough.
_WARM_UP = {"none": 80, "block": 80, "all": 10}
_WARM_UP_OF_GAMES = 500
# Steps of one function before it is the next one's turn. Alone they find their
# own data in the caches, as far as it fits, whatever the others read.
_TURN = 25
# What gradients are taken of.
_VIDEOS, _FRAMES, _BATCH = 8, 128, 256

FLAGS = flags.FlagValues()
NETWORKS = flags.DEFINE_list(
    "networks",
    [*models.GAME_NETWORKS]
    + ["MobileNetV2", "ResNet50", "DenseNet121", "EfficientNetB0", "VGG16"],
    f"Of {', '.join(models.GAME_NETWORKS)} and the names of models in "
    "keras.applications.",
    flag_values=FLAGS,
)
GAMES = flags.DEFINE_list(
    "games",
    ["Pong", "Breakout", "SpaceInvaders", "Frostbite"],
    "What networks of games play.",
    flag_values=FLAGS,
)
STREAMS = flags.DEFINE_list(
    "streams",
    ["1", "8"],
    "Environments side by side, in steps of networks of games.",
    flag_values=FLAGS,
)
for _flag in NETWORKS, GAMES:
    flags.register_validator(
        _flag.name, bool, message="must name one", flag_values=FLAGS
    )
flags.register_validator(
    "streams",
    lambda values: values and all(v.isdecimal() and int(v) for v in values),
    message="must be positive integers separated by commas",
    flag_values=FLAGS,
)
REUSE = flags.DEFINE_enum(
    "reuse",
    "auto",
    ["auto", "content", "temporal"],
    "The runner's kind of reuse.",
    flag_values=FLAGS,
)
ROUNDS = report.define_count(FLAGS, "rounds", 50, "Steps that are timed.")
RUNS = report.define_count(
    FLAGS,
    "runs",
    3,
    "How often to measure everything: these steps, and gradients.",
)
THREADS = report.define_threads(FLAGS)
SEED = report.define_seed(
    FLAGS, "Decides weights, games, actions and frames.", 2**31 - 1
)
OUT = report.define_out(FLAGS)


class Measurement(NamedTuple):
    """What is measured for a row.

    Attributes:
        network: One of `models.GAME_NETWORKS`, or of keras.applications.
        frames: A game, or one of `models.CHANGES`.
        what: `"step"`, `"gradient"` or `"minibatches"`.
        streams: Environments side by side.
    """

    network: str
    frames: str
    what: str
    streams: int

    def measure(self, *, reuse, rounds, runs, seed):
        """Measures it; returns what `measure_steps` or `measure_gradient` do.

        Args:
            reuse: The runner's, of steps.
            rounds: Steps that are timed.
            runs: How often to measure.
            seed: Decides weights, games, actions and frames.
        """
        if self.network not in models.GAME_NETWORKS:
            frames = models.frames_of_pixels(
                self.frames, _WARM_UP[self.frames] + rounds, seed
            )
            model = models.application(self.network, seed)
            return measure_steps(model, list(frames), rounds, runs, reuse)
        is_step = self.what == "step"
        model, frames = models.of_game(
            self.network,
            self.frames,
            self.streams,
            _WARM_UP_OF_GAMES + rounds if is_step else _FRAMES,
            seed,
        )
        if is_step:
            return measure_steps(
                model, frames, rounds, runs, reuse, beside_pytorch=True
            )
        frames = np.concatenate(frames.swapaxes(0, 1))  # video after video
        batches = None
        if self.what == "minibatches":
            order = np.random.default_rng(seed).permutation(len(frames))
            batches = order.reshape(-1, _BATCH)
        return measure_gradient(model, frames, runs, _BATCH, batches)


# What tells the rows of a file apart, and what is measured.
KEY = (*Measurement._fields, "reuse", "rounds", "runs", "seed", "threads")
COLUMNS = (
    *("dense_ms", "runner_ms", "speed_up"),
    *("dense_processor_ms", "runner_processor_ms", "processor_speed_up"),
    *("structure_ms", "work", "torch_ms", "torch_processor_ms"),
)


def measurements(networks, games, streams):
    """Yields the `Measurement`s of networks, games and numbers of streams."""
    for network in networks:
        if network in models.GAME_NETWORKS:
            for game in games:
                for count in streams:
                    yield Measurement(network, game, "step", count)
                for what in ("gradient", "minibatches"):
                    yield Measurement(network, game, what, _VIDEOS)
        else:
            for change in models.CHANGES:
                yield Measurement(network, change, "step", 1)


def measure_steps(
    model, frames, rounds, runs=1, reuse="auto", beside_pytorch=False
):
    """Measures a runner's steps through frames that follow each other.

    Args:
        model: A Keras model.
        frames: At least `rounds` batches, uint8 `[N, H, W, C]`; all but the
            last `rounds` are not timed.
        rounds: How many steps to time.
        runs: How often, each time with a new runner.
        reuse: The runner's.
        beside_pytorch: Whether to measure PyTorch too, if it is installed.

    Returns:
        A dict of `COLUMNS`: of plain Keras (dense), the runner and PyTorch the
        milliseconds of a step, and of the processor's time; how many times as
        fast as plain Keras the runner is, by both; and `work`, the
        multiply-adds that it makes of those of a dense network.

    Raises:
        RuntimeError: If the results differ.
    """
    timed = frames[-rounds:]
    tensors = [tf.constant(f, model.inputs[0].dtype) for f in timed]
    function = tf.function(functools.partial(model, training=False))

    def dense(i):
        outputs = function(tensors[i])
        return keras.tree.map_structure(lambda x: x.numpy(), outputs)

    in_pytorch = None
    if beside_pytorch and report.version_of_rival("torch"):
        from reuse_tf.benchmark import pytorch

        in_pytorch = pytorch.fastest(model, timed)
    turns = []
    for _ in range(runs):
        runner = Runner(model, reuse)
        for batch in frames[:-rounds]:
            runner.step(batch)
        before = runner.stats.multiply_adds
        dense(0)  # The first time takes longer.

        def reused(i, runner=runner):
            return runner.step(timed[i])

        calls = {"dense": dense, "runner": reused}
        turns.append(timing.alternate(calls, rounds, warm_up=0, turn=_TURN))
        if in_pytorch is not None:
            beside = timing.alternate({"torch": in_pytorch}, rounds)
            for measured, more in zip(turns[-1], beside, strict=True):
                measured.update(more)
    made, whole = np.subtract(runner.stats.multiply_adds, before)
    return {**_row(turns), "work": made / whole}


def measure_gradient(model, frames, runs=1, chunk=_BATCH, batches=None):
    """Measures the gradient of frames with respect to all weights.

    Args:
        model: A Keras model.
        frames: uint8 `[T, H, W, C]`.
        runs: How often to take it.
        chunk: The most frames that plain Keras is given at once.
        batches: Minibatches, arrays of places in `frames`, of each of which to
            take the gradient. The runner takes their structures of that of all
            frames, which it has beforehand. If None, the gradient is that of
            all frames, whose structure is found each time.

    Returns:
        A dict as that of `measure_steps`, of the time of all minibatches; and
        `structure_ms`: the part of the runner's in which structures are found,
        or taken. The `work` is not counted.

    Raises:
        RuntimeError: If the results differ.
    """
    runner = Runner(model)
    if batches is None:
        batches = [np.arange(len(frames))]

        def structure_of(_):
            return runner.structure(frames)
    else:
        structure_of = runner.structure(frames).take

    def gradient(network, inputs):
        with tf.GradientTape() as tape:
            outputs = keras.tree.flatten(network(inputs))
            loss = tf.add_n([tf.reduce_sum(tf.sin(x)) for x in outputs])
        return tape.gradient(loss, model.trainable_variables)

    plain = functools.partial(model, training=False)
    of_chunk = tf.function(
        functools.partial(gradient, plain), reduce_retracing=True
    )
    tensors = [
        [
            tf.constant(frames[batch[i : i + chunk]], model.inputs[0].dtype)
            for i in range(0, len(batch), chunk)
        ]
        for batch in batches
    ]

    def dense(_):
        return [
            [tf.add_n(parts) for parts in zip(*map(of_chunk, of), strict=True)]
            for of in tensors
        ]

    structure_seconds = []

    def reused(_):
        gradients, seconds = [], 0.0
        for batch in batches:
            begin = time.perf_counter()
            structure = structure_of(batch)
            seconds += time.perf_counter() - begin
            gradients.append(gradient(runner, structure))
        structure_seconds.append(seconds)
        return gradients

    of_chunk(tensors[0][0])  # The first time takes longer.
    reused(0)
    calls = {"dense": dense, "runner": reused}
    row = _row(timing.alternate(calls, 1, warm_up=0) for _ in range(runs))
    structure_ms = 1e3 * float(np.median(structure_seconds[1:]))
    return {**row, "structure_ms": structure_ms}


def _row(runs):
    """The columns of times: means over the rounds of medians over the runs."""
    times = collections.defaultdict(list)
    for turns in runs:
        for name, result in turns.results.items():
            check_equal(name, result, turns.results["dense"])
            times[f"{name}_ms"].append(turns.seconds[name])
            times[f"{name}_processor_ms"].append(turns.processor[name])
    row = dict.fromkeys(COLUMNS, "")
    for column, seconds in times.items():
        row[column] = 1e3 * float(np.median(seconds, 0).mean())
    for clock in ("", "processor_"):
        row[f"{clock}speed_up"] = (
            row[f"dense_{clock}ms"] / row[f"runner_{clock}ms"]
        )
    return row


def check_equal(name, results, dense):
    """Raises a `RuntimeError` if results are not those of plain Keras."""
    for got, want in zip(
        keras.tree.flatten(results), keras.tree.flatten(dense), strict=True
    ):
        scale = float(np.max(np.abs(want)))
        error = float(np.max(np.abs(np.asarray(want) - got)))
        if not error <= 1e-3 * scale:
            raise RuntimeError(
                f"The result of {name} is off by {error} where the plain one "
                f"has values of up to {scale}."
            )


def promised(change, work):
    """The least that a step is to be times as fast as plain Keras.

    Args:
        change: One of `models.CHANGES`.
        work: The part of all multiply-adds that it makes.
    """
    return 1 / {"none": 0.03, "all": 1.3}.get(change, 1.3 * work + 0.03)


def main():
    """Measures what the flags describe; prints and writes the results."""
    for name in NETWORKS.value:
        if name not in models.GAME_NETWORKS and not inspect.isfunction(
            getattr(keras.applications, name, None)
        ):
            raise flags.Error(
                "expected --networks to be of "
                f"{', '.join(models.GAME_NETWORKS)} and the models of "
                f"keras.applications, got {name!r}"
            )
    games = report.short_names(GAMES.value)
    report.use_threads(THREADS.value)
    results = report.Results(OUT.value, KEY)
    environment = report.environment()
    environment["torch"] = report.version_of_rival("torch")
    settings = {
        "reuse": REUSE.value,
        "rounds": ROUNDS.value,
        "runs": RUNS.value,
        "seed": SEED.value,
    }
    print(
        "Whole networks against plain Keras in a tf.function, and PyTorch on "
        "one thread. "
        + ", ".join(f"{name} {v or 'none'}" for name, v in environment.items())
        + f". Means of {ROUNDS.value} steps, in turns of "
        f"{_TURN}, and gradients; "
        f"medians of {RUNS.value} runs.\n"
    )
    table = report.Table(
        [("network", 14), ("frames", 13), ("what", 11), ("plain ms", 8)]
        + [("runner ms", 8), ("times as fast", 6), ("by processor", 6)]
        + [("promised", 6), ("structure ms", 6), ("% multiply-adds", 6)]
        + [("torch ms", 8), ("times torch", 6)]
    )
    streams = [int(count) for count in STREAMS.value]
    with tf.device("CPU:0"):  # on which the runner's op runs
        for measurement in measurements(NETWORKS.value, games, streams):
            asked = {
                **measurement._asdict(),
                **settings,
                "threads": environment["threads"],
            }
            row = results.row(
                asked,
                lambda of=measurement: {
                    **of.measure(**settings),
                    **environment,
                },
            )
            _print(table, row)
    print(
        "\nTimes as fast: as plain Keras, by the clock and by the time of all "
        "processors, and the least that is promised. Times torch: as fast as "
        "PyTorch, by the time of all processors. Structure: finding or taking "
        "it, which is in runner ms. Multiply-adds: of those of a dense network."
    )


def _print(table, row):
    value = {name: float(row[name] or "nan") for name in COLUMNS}
    change = row["frames"]
    numbers = (
        value["dense_ms"],
        value["runner_ms"],
        value["speed_up"],
        value["processor_speed_up"],
        promised(change, value["work"]) if change in models.CHANGES else np.nan,
        value["structure_ms"],
        100 * value["work"],
        value["torch_ms"],
        value["torch_processor_ms"] / value["runner_processor_ms"],
    )
    table.print_row(
        row["network"],
        change,
        f"step of {row['streams']}" if row["what"] == "step" else row["what"],
        *("-" if np.isnan(n) else f"{n:.2f}" for n in numbers),
    )
