"""Whole networks: a runner against plain Keras, by what of a frame changes.

Those of keras.applications at 224x224, batch 1, with random statistics. Frames
of random pixels, of which nothing changes, a block of 16x16 that is elsewhere
each time, or everything. And IMPALA's small residual network (Espeholt et al.,
2018, arXiv 1802.01561) on four stacked frames, 84x84, of a game that is played
at random: its steps, and the gradient of an episode. Plain Keras runs in a
`tf.function`. Results in `--out` are kept: only what is missing is measured.
"""

import time

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf
from absl import flags

from reuse_tf import atari
from reuse_tf.atari.games import full_id
from reuse_tf.benchmark import report, timing
from reuse_tf.runner import Runner

SIZE, BLOCK = 224, 16
CHANGES = ("none", "block", "all")
IMPALA = "IMPALA"
# Of a runner, before anything is timed: it has chosen its kinds of reuse then.
_WARM_UP = 80
# Frames of which plain Keras takes the gradient at once, for its memory.
_CHUNK = 64
# What tells the rows of a file apart.
KEY = ("network", "change", "reuse", "rounds", "seed", "threads")

FLAGS = flags.FlagValues()
NETWORKS = flags.DEFINE_list(
    "networks",
    ["MobileNetV2", "ResNet50", "DenseNet121", "EfficientNetB0", "VGG16"]
    + [IMPALA],
    f"Names of models in keras.applications, and {IMPALA}.",
    flag_values=FLAGS,
)
REUSE = flags.DEFINE_enum(
    "reuse",
    "auto",
    ["auto", "content", "temporal"],
    "The runner's kind of reuse.",
    flag_values=FLAGS,
)
GAME = flags.DEFINE_string(
    "game", "Pong", f"What {IMPALA} plays.", flag_values=FLAGS
)
ROUNDS = flags.DEFINE_integer(
    "rounds",
    25,
    "Times that each function is called.",
    lower_bound=1,
    flag_values=FLAGS,
)
THREADS = report.define_threads(FLAGS)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Decides weights and frames.",
    lower_bound=0,
    upper_bound=2**31 - 1,
    flag_values=FLAGS,
)
OUT = report.define_out(FLAGS)


def application(name, seed=0):
    """A model of keras.applications with random statistics.

    Args:
        name: Such as `"MobileNetV2"`.
        seed: Decides its weights.

    Returns:
        A Keras model of 224x224x3 that gives logits.
    """
    keras.utils.set_random_seed(seed)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), classifier_activation=None
    )
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        # Of normalizations, whose first ones would leave no trace.
        if weight.path.endswith(("gamma", "variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif weight.path.endswith(("beta", "mean")):
            weight.assign(generator.normal(0, 0.1, weight.shape))
    return model


def impala(num_actions, seed=0):
    """IMPALA's small residual network: 15 convolutions, a policy and a value.

    Args:
        num_actions: Of the policy.
        seed: Decides its weights.

    Returns:
        A Keras model of 84x84x4 that gives `[logits, value]`.
    """
    keras.utils.set_random_seed(seed)
    layers = keras.layers

    def convolution(x, filters):
        return layers.Conv2D(filters, 3, padding="same")(x)

    inputs = keras.Input((84, 84, 4))
    x = layers.Rescaling(1 / 255)(inputs)
    for filters in (16, 32, 32):
        x = convolution(x, filters)
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
        for _ in range(2):
            y = convolution(layers.ReLU()(x), filters)
            y = convolution(layers.ReLU()(y), filters)
            x = layers.Add()([x, y])
    x = layers.Flatten()(layers.ReLU()(x))
    x = layers.Dense(256, activation="relu")(x)
    return keras.Model(
        inputs, [layers.Dense(num_actions)(x), layers.Dense(1)(x)]
    )


def frames_of_pixels(change, count, seed=0):
    """Makes frames of random pixels.

    Args:
        change: From frame to frame, one of `CHANGES`.
        count: How many to make.
        seed: Decides the pixels.

    Yields:
        uint8 `[1, 224, 224, 3]`.
    """
    generator = np.random.default_rng(seed)

    def pixels(size):
        return generator.integers(0, 256, (1, size, size, 3), np.uint8)

    still, block = pixels(SIZE), pixels(BLOCK)
    for _ in range(count):
        frame = still.copy() if change != "all" else pixels(SIZE)
        if change == "block":
            y, x = generator.integers(0, SIZE - BLOCK + 1, 2)
            frame[:, y : y + BLOCK, x : x + BLOCK] = block
        yield frame


def frames_of_game(game, count, seed=0):
    """Plays a game at random.

    Args:
        game: Such as `"Pong"`.
        count: How many frames to make.
        seed: Decides the game and the actions.

    Yields:
        uint8 `[1, 84, 84, 4]`: the last four screens, in grey.
    """
    env = gym.make_vec(
        full_id(game), 1, vectorization_mode="vector_entry_point"
    )
    actions = np.random.default_rng(seed)
    screens, _ = env.reset(seed=seed)
    for _ in range(count):
        yield np.ascontiguousarray(np.moveaxis(screens, 1, -1))
        action = actions.integers(env.single_action_space.n, size=1)
        screens, *_ = env.step(action)
    env.close()


def _compare(functions, rounds):
    """Times `"dense"` and `"runner"` in turns, and checks their results."""
    processor = {name: [] for name in functions}

    def timed(name):
        def call(i):
            begin = time.process_time()
            result = functions[name](i)
            processor[name].append(time.process_time() - begin)
            return result

        return call

    seconds, results = timing.alternate(
        {name: timed(name) for name in functions}, rounds
    )
    _check_equal(results["dense"], results["runner"])
    wall = {name: 1e3 * np.median(s) for name, s in seconds.items()}
    # Without the round that warms up.
    processor = {name: np.median(s[1:]) for name, s in processor.items()}
    return {
        "dense_ms": wall["dense"],
        "runner_ms": wall["runner"],
        "ratio": wall["runner"] / wall["dense"],
        "processor_ratio": processor["runner"] / processor["dense"],
    }


def _check_equal(dense, runner):
    for want, got in zip(
        keras.tree.flatten(dense), keras.tree.flatten(runner), strict=True
    ):
        scale = float(np.max(np.abs(want)))
        error = float(np.max(np.abs(np.asarray(want) - got)))
        if not error <= 1e-3 * scale:
            raise RuntimeError(
                f"The runner's result is off by {error} where the plain one "
                f"has values of up to {scale}."
            )


def _work(stats):
    made = sum(layer.multiply_adds for layer in stats.layers.values())
    dense = sum(layer.dense_multiply_adds for layer in stats.layers.values())
    return np.array([made, dense])


def measure_steps(model, frames, rounds, reuse="auto"):
    """Measures a runner's steps through frames that follow each other.

    Args:
        model: A Keras model.
        frames: At least `rounds + 2` frames, uint8 `[1, H, W, C]`; all but the
            last `rounds + 1` are not timed.
        rounds: How often to call each function.
        reuse: The runner's.

    Returns:
        A dict: medians `dense_ms` and `runner_ms`, their `ratio`, that of the
        processor's time, and `work`, the multiply-adds made of those of a dense
        network.

    Raises:
        RuntimeError: If the results differ.
    """
    function = tf.function(lambda frame: model(frame, training=False))
    runner = Runner(model, reuse)
    timed = rounds + 1  # with the round that warms up
    for frame in frames[:-timed]:
        runner.step(frame)
    before = _work(runner.stats)
    integers = iter(frames[-timed:])
    floats = iter([tf.constant(f, tf.float32) for f in frames[-timed:]])

    def dense(i):
        outputs = function(next(floats))
        return keras.tree.map_structure(lambda x: x.numpy(), outputs)

    row = _compare(
        {"dense": dense, "runner": lambda i: runner.step(next(integers))},
        rounds,
    )
    made, dense = _work(runner.stats) - before
    return {**row, "work": made / dense}


def measure_gradient(model, frames, rounds):
    """Measures the gradient of an episode with respect to all weights.

    Args:
        model: A Keras model.
        frames: The episode, uint8 `[T, H, W, C]`.
        rounds: How often to take it.

    Returns:
        A dict as that of `measure_steps`. The `work` is not counted: NaN.

    Raises:
        RuntimeError: If the results differ.
    """
    runner = Runner(model)
    variables = model.trainable_variables
    floats = tf.constant(frames, tf.float32)

    def loss(outputs):
        return tf.add_n(
            [tf.reduce_sum(tf.sin(x)) for x in keras.tree.flatten(outputs)]
        )

    @tf.function(reduce_retracing=True)
    def of_chunk(chunk):
        with tf.GradientTape() as tape:
            value = loss(model(chunk, training=False))
        return tape.gradient(value, variables)

    def dense(i):
        parts = [
            of_chunk(floats[t : t + _CHUNK])
            for t in range(0, len(frames), _CHUNK)
        ]
        return [np.sum(part, 0) for part in zip(*parts, strict=True)]

    def reused(i):
        with tf.GradientTape() as tape:
            value = loss(runner(frames))
        return [part.numpy() for part in tape.gradient(value, variables)]

    row = _compare({"dense": dense, "runner": reused}, rounds)
    return {**row, "work": np.nan}


def promised(change, work):
    """The most that a step may take, as a part of plain Keras's time.

    Args:
        change: One of `CHANGES`.
        work: The part of all multiply-adds that it makes.
    """
    return {"none": 0.03, "all": 1.3}.get(change, 1.3 * work + 0.03)


def main():
    """Measures what the flags describe; prints and writes the results."""
    for name in NETWORKS.value:
        if name != IMPALA and not hasattr(keras.applications, name):
            raise flags.Error(
                f"expected --networks to be models of keras.applications or "
                f"{IMPALA}, got {name!r}"
            )
    game = atari.short_name(GAME.value)
    report.use_threads(THREADS.value)
    results = report.Results(OUT.value, KEY)
    environment = report.environment()
    print(
        "Whole networks, batch 1, against plain Keras in a tf.function. "
        + ", ".join(f"{name} {value}" for name, value in environment.items())
        + f", medians of {ROUNDS.value} calls in alternation.\n"
    )
    table = report.Table(
        [("network", 14), ("change", 13), ("plain ms", 7), ("runner ms", 7)]
        + [("time", 6), ("processor time", 6), ("multiply-adds", 6)]
        + [("promised", 6)]
    )
    with tf.device("CPU:0"):  # on which the runner's op runs
        for name, change, measure in _measurements(game):
            asked = {
                "network": name,
                "change": change,
                "reuse": REUSE.value,
                "rounds": ROUNDS.value,
                "seed": SEED.value,
                "threads": environment["threads"],
            }
            _print(
                table,
                results.row(asked, lambda m=measure: {**m(), **environment}),
            )


def _measurements(game):
    """Yields names, changes, and functions that measure."""
    rounds, seed = ROUNDS.value, SEED.value
    for name in NETWORKS.value:
        if name == IMPALA:

            def play(count):
                return list(frames_of_game(game, count, seed))

            def model():
                return impala(18, seed)

            yield (
                name,
                game,
                lambda: measure_steps(
                    model(), play(_WARM_UP + rounds + 1), rounds, REUSE.value
                ),
            )
            yield (
                name,
                f"{game} gradient",
                lambda: measure_gradient(
                    model(), np.concatenate(play(4 * _CHUNK)), min(rounds, 5)
                ),
            )
            continue
        for change in CHANGES:
            # To settle where everything is new, four frames are enough.
            warm_up = 10 if change == "all" else _WARM_UP

            def measure(name=name, change=change, warm_up=warm_up):
                frames = frames_of_pixels(change, warm_up + rounds + 1, seed)
                return measure_steps(
                    application(name, seed), list(frames), rounds, REUSE.value
                )

            yield name, change, measure


def _print(table, row):
    work = float(row["work"])
    table.print_row(
        row["network"],
        row["change"],
        *(f"{float(row[name]):.1f}" for name in ("dense_ms", "runner_ms")),
        *(f"{float(row[name]):.3f}" for name in ("ratio", "processor_ratio")),
        "-" if np.isnan(work) else f"{work:.3f}",
        f"{promised(row['change'], work):.3f}"
        if row["change"] in CHANGES
        else "-",
    )
