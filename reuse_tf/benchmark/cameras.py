"""Networks on cameras: thresholds against looking at fewer frames.

Of the first frames of each video, networks learn where in the picture
something covers the background, and thresholds are found; both go on to the
frames behind these, which alone are measured. Pixels get noise of several
strengths, as videos that were compressed have less than cameras.

On each frame are timed, in turns and in one process: plain Keras in a
`tf.function` (dense), a runner without thresholds (exact), and with those found
for each tolerance. Looking at every second or fourth frame only, and holding
the outputs in between, takes a half or a quarter of the dense time by
definition. Errors are `reuse_tf.relative_error` against dense on every frame,
relative to how much outputs vary over all frames, the known ones too.
Times are means over the frames, of medians over the runs. Results in `--out`
are kept: only what is missing is measured.
"""

import functools
import hashlib
import os
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf
from absl import flags

from reuse_tf import files, ops
from reuse_tf.benchmark import models, report, timing
from reuse_tf.benchmark.networks import check_equal
from reuse_tf.playing import video
from reuse_tf.runner import Runner
from reuse_tf.thresholds import find_thresholds, relative_error

# Which part of a clip is to learn and to find thresholds of, and the fewest
# frames that can be parted so.
_CALIBRATION, _FEWEST = 0.6, 10
# How far a pixel is from the background that covers it.
_COVERED = 25
_BATCH, _LEARNING_RATE = 8, 1e-3
# How many frames each one that is looked at stands for, and its name.
SKIPS = {2: "every 2nd", 4: "every 4th"}

KEY = (
    *("clip", "noise", "network", "what", "size", "fps", "frames"),
    *("train_steps", "learned_of", "trials", "runs", "seed", "threads"),
)
COLUMNS = (
    *("ms", "cpu_ms", "time_over_dense", "cpu_over_dense", "work", "error"),
    # Within the tolerance: on what was measured, and by `find_thresholds`.
    *("is_within", "found_within", "calibration_seconds"),
)


# -- Clips -------------------------------------------------------------------


def read(path, size, fps, count):
    """Reads frames of a video, evenly.

    Args:
        path: The file.
        size: Height and width to scale them to, whatever their proportions.
        fps: Frames per second; at most as many as the video has.
        count: The most frames to read.

    Returns:
        uint8 `[T, size, size, 3]`.

    Raises:
        ValueError: If there are too few frames.
    """
    chosen = []
    with video.Frames(path, size=(size, size)) as frames:
        step = max(1.0, float(frames.rate) / fps)
        for i, frame in enumerate(frames):
            if i >= len(chosen) * step:
                chosen.append(frame)
            if len(chosen) == count:
                break
    if len(chosen) < _FEWEST:
        raise ValueError(
            f"Expected {path} to have {_FEWEST} frames at {fps:g} per second. "
            f"Received: {len(chosen)}"
        )
    return np.stack(chosen)


def with_noise(frames, deviation, seed=0):
    """Adds Gaussian noise of a standard deviation to uint8 frames."""
    noise = np.random.default_rng(seed).normal(0, deviation, frames.shape)
    return np.clip(np.round(frames + noise), 0, 255).astype(np.uint8)


def split(frames):
    """Parts frames into those that are known before, and the measured ones."""
    first = int(_CALIBRATION * len(frames))
    return frames[:first], frames[first:]


def targets(frames, grids):
    """Which part of each cell covers the background.

    The background is the median of the frames that are known before.

    Args:
        frames: A clip, uint8 `[T, H, W, 3]`.
        grids: Pairs of a height and a width, which divide those of the frames.

    Returns:
        A list of float32 `[T, h, w, 1]`, by grid.
    """
    background = np.median(split(frames)[0], axis=0)
    covered = (np.abs(frames - background) > _COVERED).any(-1)
    count, height, width = covered.shape
    return [
        covered.reshape(count, h, height // h, w, width // w)
        .mean((2, 4), dtype=np.float32)[..., np.newaxis]
        .copy()
        for h, w in grids
    ]


# -- Training ----------------------------------------------------------------


def trained(network, clips, noisy, size, steps, seed=0, path=None):
    """Makes a network and trains it on what is known before of all clips.

    Args:
        network: One of `models.CAMERA_NETWORKS`.
        clips: Clips without noise, which targets are made of, uint8
            `[T, size, size, 3]`.
        noisy: By clip, versions of it with noise, of all of which it learns.
        size: Height and width of the frames.
        steps: Batches to learn of.
        seed: Decides its weights, and the batches.
        path: A `.keras` file, which is read if it is there, else written.

    Returns:
        A tuple of the Keras model and a dict of losses on the frames that are
        measured: `loss_before`, `loss_after`, and `loss_constant`, that of
        always the mean of each cell.
    """
    model = models.of_camera(network, size, seed)
    grids = [tensor.shape[1:3] for tensor in model.outputs]
    known, measured = [], []  # pairs of frames and targets
    for clip, versions in zip(clips, noisy, strict=True):
        parts = [split(of) for of in targets(clip, grids)]
        for frames in versions:
            for i, pairs in enumerate((known, measured)):
                pairs.append((split(frames)[i], [part[i] for part in parts]))
    known, measured = _joined(known), _joined(measured)
    losses = {"loss_before": _loss(model, *measured)}
    if path is not None and path.exists():
        model = keras.models.load_model(path, compile=False)
    else:
        _train(model, *known, steps, seed)
        if path is not None:
            files.write_model(path, model)
    losses["loss_after"] = _loss(model, *measured)
    losses["loss_constant"] = float(
        sum(map(_loss_of_means, known[1], measured[1]))
    )
    return model, losses


def _joined(pairs):
    frames, cells = zip(*pairs, strict=True)
    return np.concatenate(frames), [
        np.concatenate(grid) for grid in zip(*cells, strict=True)
    ]


def _compile(model, **arguments):
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(loss=[loss] * len(model.outputs), **arguments)


def _loss(model, frames, cells):
    _compile(model)
    return model.evaluate(
        frames, cells, batch_size=_BATCH, verbose=0, return_dict=True
    )["loss"]


def _train(model, frames, cells, steps, seed):
    # Slower towards the end, so that statistics catch up with the weights.
    rate = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)
    _compile(model, optimizer=keras.optimizers.Adam(rate))
    generator = np.random.default_rng(seed)
    for _ in range(steps):
        some = generator.integers(len(frames), size=_BATCH)
        model.train_on_batch(frames[some], [of[some] for of in cells])


def _loss_of_means(known, cells):
    """The cross-entropy of the mean of each cell, and of one that is a half."""
    means = (known.sum(0) + 0.5) / (len(known) + 1)
    return -np.mean(cells * np.log(means) + (1 - cells) * np.log1p(-means))


# -- Measuring ---------------------------------------------------------------


def threshold_name(tolerance):
    """What a row of a tolerance is called."""
    return f"threshold {tolerance:g}"


def held(outputs, every):
    """Outputs `[T, ...]` of each n-th frame, in the places of all frames."""
    return [of[np.arange(len(of)) // every * every] for of in outputs]


def measure(model, frames, tolerances, *, trials=24, runs=1):
    """Measures a network on a clip.

    Args:
        model: A Keras model of one uint8 input.
        frames: The clip, uint8 `[T, H, W, 3]`.
        tolerances: What to find thresholds for.
        trials: Those of `find_thresholds`.
        runs: How often to time everything.

    Returns:
        A dict, by what was measured, of dicts of `COLUMNS`. Empty strings are
        where there is no number.

    Raises:
        RuntimeError: If results without thresholds differ.
    """
    calibration, measured = split(frames)
    runners, more = {"exact": Runner(model)}, {}
    for tolerance in tolerances:
        name, begin = threshold_name(tolerance), time.perf_counter()
        found = find_thresholds(
            model, calibration, tolerance, trials=trials, verbose=False
        )
        more[name] = {
            "tolerance": tolerance,
            "found_within": int(found.is_within),
            "calibration_seconds": time.perf_counter() - begin,
        }
        runners[name] = Runner(model, threshold=found.thresholds)
    tensors = [tf.constant(frame[np.newaxis]) for frame in measured]
    function = tf.function(
        functools.partial(model, training=False)
    ).get_concrete_function(tf.TensorSpec(tensors[0].shape, tf.uint8))

    def dense(i):
        outputs = function(tensors[i])
        return keras.tree.map_structure(lambda x: x.numpy(), outputs)

    known = _stacked([function(frame[np.newaxis]) for frame in calibration])

    calls = {"dense": dense}
    for name, runner in runners.items():
        calls[name] = lambda i, runner=runner: runner.step(measured[i : i + 1])
    outputs, turns = {}, []

    def kept(name):
        def call(i):
            outputs[name].append(calls[name](i))
            return outputs[name][-1]

        return call

    for _ in range(runs):
        outputs = {name: [] for name in calls}
        before = {}
        for name, runner in runners.items():
            runner.reset_state()
            for frame in calibration:
                runner.step(frame[np.newaxis])
            before[name] = runner.stats.multiply_adds
        dense(0)  # The first time takes longer.
        turns.append(
            timing.alternate(
                {name: kept(name) for name in calls}, len(measured), warm_up=0
            )
        )
    outputs = {name: _stacked(steps) for name, steps in outputs.items()}
    check_equal("exact", outputs["exact"], outputs["dense"])
    work = {"dense": 1.0}
    for name, runner in runners.items():
        made, whole = np.subtract(runner.stats.multiply_adds, before[name])
        work[name] = made / whole

    def mean_ms(times):
        return 1e3 * float(np.median(times, 0).mean())

    rows = {
        name: {
            "ms": mean_ms([of.seconds[name] for of in turns]),
            "cpu_ms": mean_ms([of.processor[name] for of in turns]),
            "work": work[name],
        }
        for name in calls
    }
    for every, name in SKIPS.items():
        outputs[name] = held(outputs["dense"], every)
        rows[name] = {key: of / every for key, of in rows["dense"].items()}
    for name, row in rows.items():
        row["time_over_dense"] = row["ms"] / rows["dense"]["ms"]
        row["cpu_over_dense"] = row["cpu_ms"] / rows["dense"]["cpu_ms"]
        row["error"] = relative_error(outputs["dense"], outputs[name], known)
        if name in more:
            tolerance = more[name].pop("tolerance")
            row |= more[name]
            row["is_within"] = int(row["error"] <= tolerance)
    return {
        name: {column: row.get(column, "") for column in COLUMNS}
        for name, row in rows.items()
    }


def _stacked(steps):
    return [
        np.concatenate(of)
        for of in zip(*map(keras.tree.flatten, steps), strict=True)
    ]


# -- The command -------------------------------------------------------------

FLAGS = flags.FlagValues()
VIDEOS = flags.DEFINE_list(
    "videos", None, "Files, of fixed cameras.", flag_values=FLAGS
)
NAMES = flags.DEFINE_list(
    "networks",
    [*models.CAMERA_NETWORKS],
    f"Of {', '.join(models.CAMERA_NETWORKS)}.",
    flag_values=FLAGS,
)
TOLERANCES = flags.DEFINE_list(
    "tolerances",
    ["0.01", "0.05", "0.1"],
    "Errors to find thresholds for.",
    flag_values=FLAGS,
)
NOISE = flags.DEFINE_list(
    "noise",
    ["0", "2"],
    "Standard deviations of noise that is added to pixels.",
    flag_values=FLAGS,
)
SIZE = report.define_count(
    FLAGS, "size", 160, "Height and width of frames, a multiple of 32.", 32
)
FPS = flags.DEFINE_float(
    "fps", 10.0, "Frames per second.", lower_bound=0.01, flag_values=FLAGS
)
FRAMES = report.define_count(
    FLAGS,
    "frames",
    90,
    "The most frames of a video; 60 % of them are not measured.",
    _FEWEST,
)
TRAIN_STEPS = report.define_count(
    FLAGS,
    "train_steps",
    150,
    f"Batches of {_BATCH} frames that each network learns of.",
)
TRIALS = report.define_count(
    FLAGS, "trials", 24, "How many thresholds of single maps are tried.", 0
)
RUNS = report.define_count(FLAGS, "runs", 3, "How often to time.")
THREADS = report.define_threads(FLAGS)
SEED = report.define_seed(
    FLAGS, "Decides weights, noise and batches.", 2**31 - 1
)
OUT = report.define_out(FLAGS)
MODELS = flags.DEFINE_string(
    "models",
    None,
    "Folder of trained networks, which are read again if they are there.",
    flag_values=FLAGS,
)


def _are_numbers(values, least):
    try:
        return bool(values) and all(least <= float(v) < np.inf for v in values)
    except ValueError:
        return False


flags.register_validator(
    VIDEOS,
    lambda values: (
        values and len({pathlib.Path(v).stem for v in values}) == len(values)
    ),
    message="must be files of different names",
    flag_values=FLAGS,
)
flags.register_validator(
    NAMES,
    lambda values: values and set(values) <= {*models.CAMERA_NETWORKS},
    message=f"must be of {', '.join(models.CAMERA_NETWORKS)}",
    flag_values=FLAGS,
)
flags.register_validator(
    TOLERANCES,
    lambda values: _are_numbers(values, 1e-6),
    message="must be positive numbers separated by commas",
    flag_values=FLAGS,
)
flags.register_validator(
    NOISE,
    lambda values: _are_numbers(values, 0),
    message="must be numbers separated by commas, not negative",
    flag_values=FLAGS,
)
flags.register_validator(
    SIZE,
    lambda value: value % 32 == 0,
    message="must be a multiple of 32",
    flag_values=FLAGS,
)


def main():
    """Measures what the flags describe; prints and writes the results."""
    report.use_threads(THREADS.value)
    results = report.Results(OUT.value, KEY)
    environment = report.environment()
    environment["instruction_set"] = ops.INSTRUCTION_SET
    try:
        clips = {
            pathlib.Path(path).stem: read(
                os.path.expanduser(path), SIZE.value, FPS.value, FRAMES.value
            )
            for path in VIDEOS.value
        }
    except ImportError as error:  # of PyAV
        raise flags.Error(error) from error
    settings = {
        "size": SIZE.value,
        "fps": f"{FPS.value:g}",
        "frames": FRAMES.value,
        "train_steps": TRAIN_STEPS.value,
        # A network learns of all clips, with and without noise.
        "learned_of": " ".join([*sorted(clips), *NOISE.value]),
        "trials": TRIALS.value,
        "runs": RUNS.value,
        "seed": SEED.value,
        "threads": environment["threads"],
    }
    # By clip and strength of the noise.
    noisy = {
        name: {
            f"{float(of):g}": with_noise(frames, float(of), SEED.value)
            for of in NOISE.value
        }
        for name, frames in clips.items()
    }
    print(
        f"Networks on {len(clips)} clips of up to {FRAMES.value} frames, "
        f"{SIZE.value} x {SIZE.value}. "
        + ", ".join(f"{name} {v}" for name, v in environment.items())
        + ".\n"
    )
    table = report.Table(
        [("clip", 28), ("noise", 4), ("network", 9), ("what", 14)]
        + [("ms", 7), ("processor ms", 7), ("of dense", 6)]
        + [("% multiply-adds", 5), ("error", 8), ("within", 3)]
        + [("calibration s", 5)]
    )
    losses = {}
    for network in NAMES.value:
        for asked, measured in _rows(network, clips, noisy):
            row = results.row(
                {**asked, **settings},
                lambda measured=measured: {**measured(), **environment},
            )
            _print(table, row)
        losses[network] = row
    print("\nLosses on what was measured, before and after training:")
    for network, row in losses.items():
        before, after, constant = (
            float(row[f"loss_{name}"])
            for name in ("before", "after", "constant")
        )
        print(
            f"{network} {before:.3f}, {after:.3f}; of always the mean of each "
            f"cell {constant:.3f}"
        )


def _rows(network, clips, noisy):
    """Yields what tells rows of a network apart, and functions that measure.

    It learns when the first of them is called, and what takes turns is
    measured together.
    """
    tolerances = [float(value) for value in TOLERANCES.value]

    @functools.cache
    def learned():
        return trained(
            network,
            list(clips.values()),
            [list(versions.values()) for versions in noisy.values()],
            SIZE.value,
            TRAIN_STEPS.value,
            SEED.value,
            _path(network, clips, noisy),
        )

    @functools.cache
    def measured(clip, noise):
        model, losses = learned()
        with tf.device("CPU:0"):  # on which the runner's op runs
            rows = measure(
                model,
                noisy[clip][noise],
                tolerances,
                trials=TRIALS.value,
                runs=RUNS.value,
            )
        return {what: {**row, **losses} for what, row in rows.items()}

    for clip in clips:
        for noise in noisy[clip]:
            for what in (
                *("dense", "exact", *SKIPS.values()),
                *map(threshold_name, tolerances),
            ):
                key = (clip, noise, network, what)
                yield (
                    dict(zip(KEY, key, strict=False)),
                    lambda key=key: measured(*key[:2])[key[3]],
                )


def _path(network, clips, noisy):
    """The file of a network; its name tells what it has learned of."""
    if MODELS.value is None:
        return None
    folder = pathlib.Path(MODELS.value).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(repr((TRAIN_STEPS.value, SEED.value)).encode())
    for name in clips:
        for noise, frames in noisy[name].items():
            digest.update(noise.encode())
            digest.update(frames)
    return folder / f"{network}-{digest.hexdigest()[:12]}.keras"


def _print(table, row):
    def number(name, form, factor=1):
        return format(factor * float(row[name]), form) if row[name] else "-"

    table.print_row(
        *(row[name] for name in ("clip", "noise", "network", "what")),
        number("ms", ".2f"),
        number("cpu_ms", ".2f"),
        number("time_over_dense", ".3f"),
        number("work", ".1f", 100),
        number("error", ".2g"),
        {"1": "yes", "0": "no"}.get(row["is_within"], "-"),
        number("calibration_seconds", ".0f"),
    )
