"""One convolution: incremental against dense, by what part of it changes.

For each fraction of positions changed, in blobs and as noise, these are timed
in alternation on the same frames: `keras.layers.Conv2D` in a `tf.function`,
and `IncrementalConv2D` called eagerly and in a `tf.function`; beside them, both
ways of calling when nothing has changed, which is a call's own overhead, and
what that consists of: a call with a single value, and a comparison of two
frames (memcmp, on one thread). Results in `--out` are kept: only what is
missing is measured.
"""

import math

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from reuse_tf.benchmark import report, timing
from reuse_tf.benchmark.frames import SIDES, cyclic_frames
from reuse_tf.layers import IncrementalConv2D

FRACTIONS = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
# What tells the rows of a file apart.
KEY = (
    *("height", "width", "channels", "filters", "kernel_size"),
    *("change", "target", "rounds", "seed", "threads"),
)

FLAGS = flags.FlagValues()
HEIGHT = report.define_count(FLAGS, "height", 105, "Height of a frame.")
WIDTH = report.define_count(FLAGS, "width", 80, "Width of a frame.")
CHANNELS = report.define_count(FLAGS, "channels", 40, "Channels of a frame.")
FILTERS = report.define_count(FLAGS, "filters", 80, "Filters of the layer.")
KERNEL_SIZE = report.define_count(
    FLAGS, "kernel_size", 3, "Height and width of the kernel."
)
ROUNDS = report.define_count(
    FLAGS, "rounds", 200, "Times that each function is called."
)
THREADS = report.define_threads(FLAGS)
SEED = report.define_seed(FLAGS, "Decides weights and frames.", 2**32 - 1)
OUT = report.define_out(FLAGS)


def measure(
    *,
    height,
    width,
    channels,
    filters,
    kernel_size,
    change,
    target,
    rounds,
    seed,
):
    """Measures one layer: "same" padding, strides of 1, ReLU.

    Args:
        height: Height of a frame.
        width: Its width.
        channels: Its channels.
        filters: Filters of the layer.
        kernel_size: Height and width of the kernel.
        change: A key of `SIDES`.
        target: The fraction of positions that is to change.
        rounds: How often to call each function.
        seed: Decides weights and frames.

    Returns:
        A dict. `changed` is the fraction that the layer recomputed. In
        microseconds, medians: `dense_us`; of the incremental layer
        `eager_us` and `graph_us`, the same when nothing changed,
        `eager_still_us` and `graph_still_us`, and with a single value,
        `eager_call_us` and `graph_call_us`; `compare_us`. `eager_speed_up`
        and `graph_speed_up` are the ratios of `dense_us` to `eager_us` and
        `graph_us`; in `eager_net` and `graph_net` the time of a call when
        nothing changed is taken off these two. `promised` is what the net
        ratio should be at least; it is infinite if nothing changes.

    Raises:
        RuntimeError: If the incremental and the dense result differ.
    """
    keras.utils.set_random_seed(seed)
    shape = (height, width, channels)
    arguments = {
        "padding": "same",
        "activation": "relu",
        # Whatever the user's defaults of Keras are.
        "data_format": "channels_last",
        "dtype": "float32",
    }
    dense = keras.layers.Conv2D(filters, kernel_size, **arguments)

    def incremental():
        # One for each use: a second call with the same frame would find
        # nothing changed.
        layer = IncrementalConv2D(filters, kernel_size, **arguments)
        layer.build((None, *shape))
        layer.set_weights(dense.get_weights())
        return layer

    dense.build((None, *shape))
    dense_function = tf.function(dense)
    eager, eager_still = incremental(), incremental()
    graph_function, graph_still = map(
        tf.function, (incremental(), incremental())
    )
    still = tf.zeros([1, *shape])
    still_bytes = memoryview(still)
    equal_bytes = bytearray(still_bytes)
    single = tf.zeros([1, 1, 1, 1])
    eager_single = IncrementalConv2D(1, 1, **arguments)
    graph_single = tf.function(IncrementalConv2D(1, 1, **arguments))
    frames = [
        tf.constant(frame[None])
        for frame in cyclic_frames(
            shape, kernel_size, target, change, np.random.default_rng(seed)
        )
    ]

    def frame(i):
        return frames[i % len(frames)]

    # Round the whole circle, so that the timed frames follow it.
    for i in range(len(frames)):
        eager(frame(i))
    before = eager.stats
    turns = timing.alternate(
        {
            "dense": lambda i: dense_function(frame(i)),
            "eager": lambda i: eager(frame(i)),
            "graph": lambda i: graph_function(frame(i)),
            "eager_still": lambda i: eager_still(still),
            "graph_still": lambda i: graph_still(still),
            "eager_call": lambda i: eager_single(single),
            "graph_call": lambda i: graph_single(single),
            "compare": lambda i: equal_bytes == still_bytes,
        },
        rounds,
        warm_up=len(frames),
    )
    after = eager.stats
    for name in ("eager", "graph"):
        _check_equal(turns.results["dense"], turns.results[name])
    changed = (after.recomputed_positions - before.recomputed_positions) / (
        after.positions - before.positions
    )
    medians = timing.medians(turns.seconds)
    row = {"changed": changed}
    row.update((f"{name}_us", median) for name, median in medians.items())
    for way in ("eager", "graph"):
        net = medians[way] - medians[f"{way}_still"]
        row[f"{way}_speed_up"] = medians["dense"] / medians[way]
        row[f"{way}_net"] = medians["dense"] / net if net > 0 else math.inf
    return {**row, "promised": promised(changed)}


def _check_equal(dense, incremental):
    scale = float(tf.reduce_max(tf.abs(dense)))
    error = float(tf.reduce_max(tf.abs(dense - incremental)))
    if not error <= 1e-5 * scale:
        raise RuntimeError(
            f"The incremental result is off by {error} where the dense one "
            f"has values of up to {scale}."
        )


def promised(changed):
    """The least speed-up, net of the call, at a fraction of changed positions.

    At most twice the dense layer's time for what changed, and never more than
    1.3 times its whole time.
    """
    return max(0.5 / changed, 1 / 1.3) if changed else math.inf


def main():
    """Measures what the flags describe; prints and writes the results."""
    report.use_threads(THREADS.value)
    layer = {
        flag.name: flag.value
        for flag in (HEIGHT, WIDTH, CHANNELS, FILTERS, KERNEL_SIZE)
    }
    results = report.Results(OUT.value, KEY)
    environment = report.environment()
    print(
        "One convolution, {height}x{width}x{channels} -> {filters} filters "
        "{kernel_size}x{kernel_size}, relu. ".format(**layer)
        + ", ".join(f"{name} {value}" for name, value in environment.items())
        + f", medians of {ROUNDS.value} calls in alternation.\n"
    )

    def row(**asked):
        return results.row(
            {**asked, "threads": environment["threads"]},
            lambda: {**measure(**asked), **environment},
        )

    # The device on which the incremental ops run.
    with tf.device("CPU:0"):
        _print(
            row(
                **layer,
                change=change,
                target=target,
                rounds=ROUNDS.value,
                seed=SEED.value,
            )
            for change in SIDES
            for target in FRACTIONS
        )


def _print(rows):
    # Headings, widths, names in a row and formats.
    columns = [
        ("target", 6, "target", ".0%"),
        ("changed", 8, "changed", ".2%"),
        ("dense µs", 8, "dense_us", ".0f"),
        ("layer(x) µs", 8, "eager_us", ".0f"),
        ("speed-up", 8, "eager_speed_up", ".2f"),
        ("net", 7, "eager_net", ".2f"),
        ("tf.function µs", 8, "graph_us", ".0f"),
        ("speed-up", 8, "graph_speed_up", ".2f"),
        ("net", 7, "graph_net", ".2f"),
        ("promised", 8, "promised", ".2f"),
    ]
    table = report.Table(
        [("change", 6), *((heading, width) for heading, width, *_ in columns)]
    )
    # Of no meaning where nothing changed.
    ratios = ("eager_net", "graph_net", "promised")
    printed = []
    for row in rows:
        printed.append(row)
        still = float(row["changed"]) == 0
        table.print_row(
            row["change"],
            *(
                "-"
                if still and name in ratios
                else f"{float(row[name]):{form}}"
                for *_, name, form in columns
            ),
        )

    def median(name):
        return float(np.median([float(row[name]) for row in printed]))

    print(
        "\nNet: less the time of a call when nothing changed, layer(x) "
        f"{median('eager_still_us'):.0f} µs, in a tf.function "
        f"{median('graph_still_us'):.0f} µs. Promised: that the net speed-up "
        f"is at least 0.5 / changed, and {1 / 1.3:.2f}."
    )
    call, compare = median("eager_call_us"), median("compare_us")
    found = median("eager_still_us") - call
    print(
        f"\nOf layer(x) when nothing changed, {call:.0f} µs are the call, "
        "measured with a single value. Finding that nothing changed is "
        f"the other {found:.0f} µs, {found / compare:.2f} times memcmp of "
        f"the same bytes on one thread ({compare:.0f} µs)."
    )
