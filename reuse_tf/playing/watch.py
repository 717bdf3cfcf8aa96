"""Playing a video through a model, and measuring it against plain Keras."""

import dataclasses
import importlib
import inspect
import itertools
import os
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import ops, process
from reuse_tf.extras import extra
from reuse_tf.playing.video import Writer
from reuse_tf.runner import Runner
from reuse_tf.thresholds import (
    FoundThresholds,
    RunningError,
    find_thresholds,
)

with extra("video"):
    from PIL import Image, ImageDraw

# Seconds between two updates of the progress bar.
_INTERVAL = 0.2
# Of the picture that is taken: its height at least, and that of the caption.
_HEIGHT, _CAPTION = 224, 18
_CHANGED = (255, 140, 0)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What was watched, and the time it took.

    Attributes:
        video: Its name.
        frames: Frames that were played.
        milliseconds: Median time of a frame with reuse.
        dense_milliseconds: Median time of plain Keras in a `tf.function`, on
            every n-th of these frames.
        work: Multiply-adds made, as a part of those of computing everything.
        error: The `relative_error` on these frames against plain Keras, which
            is infinite where outputs do not vary, as those of one frame.
        damaged: Packets and frames that were left out.
        resized: Frames that had not the size of the first.
        reopened: How often the video was opened again.
        found: The `FoundThresholds`; None without a tolerance.
        recomputed: By layer, which part of its positions was computed.
    """

    video: str
    frames: int
    milliseconds: float
    dense_milliseconds: float
    work: float
    error: float
    damaged: int
    resized: int
    reopened: int
    found: FoundThresholds | None
    recomputed: dict[str, float]

    def as_dict(self):
        """Returns the summary as values that JSON can hold."""
        values = dataclasses.asdict(self)
        values["found"] = self.found and self.found._asdict()
        # JSON has no infinity.
        for part in (values, values["found"] or {}):
            for name, value in part.items():
                if isinstance(value, float) and not np.isfinite(value):
                    part[name] = None
        return values

    def __str__(self):
        times = self.dense_milliseconds / self.milliseconds
        lines = {
            "video": self.video,
            "frames": f"{self.frames} (damaged {self.damaged}, of another "
            f"size {self.resized}; opened again {self.reopened} times)",
            "a frame": f"{self.milliseconds:.2f} ms, plain Keras "
            f"{self.dense_milliseconds:.2f} ms: {times:.1f} times as fast",
            "work": f"{self.work:.1%} of the multiply-adds",
            "error": f"{self.error:.3g} of what the outputs vary"
            if np.isfinite(self.error)
            else "unknown: in what was compared the outputs did not vary, or "
            "were not finite",
        }
        if self.found is not None:
            lines["thresholds"] = str(self.found)
        width = max(map(len, lines)) + 2
        return "\n".join(
            f"{name + ':':{width}}{value}" for name, value in lines.items()
        )


def load_model(name, weights="imagenet"):
    """Loads a model to look at pictures with.

    Args:
        name: A `.keras` file, or the name of a model of `keras.applications`,
            such as `"MobileNetV2"`, to which what has to be done to pixels
            before it is put in front.
        weights: Of the latter: `"imagenet"`, which Keras downloads once, or
            None for random ones.

    Returns:
        A Keras model of pictures of red, green and blue, 0 to 255.

    Raises:
        ValueError: If there is no such file or model, or it cannot be read.
    """
    if name.endswith(".keras"):
        if not os.path.isfile(name):
            raise ValueError(f"There is no file {name!r}")
        try:
            return keras.saving.load_model(name, compile=False)
        except Exception as error:  # of many kinds
            raise ValueError(
                f"Cannot load a model from {name!r}: {error}"
            ) from error
    constructor = getattr(keras.applications, name, None)
    if not inspect.isfunction(constructor):
        known = [
            other
            for other, value in vars(keras.applications).items()
            if inspect.isfunction(value)
        ]
        raise ValueError(
            f"`model` must be a .keras file or one of {', '.join(known)}. "
            f"Received: {name!r}"
        )
    try:
        model = constructor(weights=weights)
    except Exception as error:  # of many kinds, where there is no network
        raise ValueError(
            f"The weights of {name} cannot be had ({error}). With "
            "--weights=random there is no need for them."
        ) from error
    module = importlib.import_module(constructor.__module__)
    return _with_preprocessing(model, module.preprocess_input)


def _with_preprocessing(model, preprocess):
    """Puts what has to be done to pixels in front of a model.

    It is an affine function of a pixel's three values, and as such a
    convolution of 1 x 1, which a `Runner` takes.
    """
    probes = np.zeros((4, 1, 1, 3), np.float32)
    probes[1:, 0, 0] = np.eye(3) * 255
    values = np.asarray(preprocess(probes.copy()), np.float64)[:, 0, 0]
    kernel, bias = (values[1:] - values[0]) / 255, values[0]
    inputs = keras.Input(model.input_shape[1:], dtype="uint8", name="frames")
    x = keras.layers.Rescaling(1.0, name="pixels")(inputs)
    if not (np.allclose(kernel, np.eye(3)) and np.allclose(bias, 0)):
        layer = keras.layers.Conv2D(3, 1, name="preprocessing")
        x = layer(x)
        layer.set_weights([kernel[None, None], bias])
        layer.trainable = False
    return keras.Model(inputs, model(x), name=model.name)


def frame_size(model):
    """Height and width of a model's frames; None if they may be any.

    Raises:
        ValueError: If it takes no pictures of one or three channels.
    """
    shapes = [tensor.shape for tensor in model.inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][3] not in (1, 3):
        raise ValueError(
            "Expected a model of one input [N, H, W, 1 or 3]. Received: inputs "
            f"of the shapes {[tuple(shape) for shape in shapes]}"
        )
    size = shapes[0][1:3]
    return None if None in size else tuple(size)


def calibrate(model, video, tolerance, count=100, *, name="video"):
    """Finds thresholds with the next frames of a video.

    Args:
        model: As for `watch`.
        video: Likewise; `count` of its frames are taken.
        tolerance: That of `find_thresholds`.
        count: How many frames to find thresholds with, 4 at least.
        name: What to call the video.

    Returns:
        A `FoundThresholds`.

    Raises:
        ValueError: If `Runner` does not support the model, or there are fewer
            than 4 frames.
    """
    frame_size(model)
    frames = list(map(_conversion(model), itertools.islice(video, count)))
    if len(frames) < 4:  # Some are held out.
        raise ValueError(f"{name} has too few frames to find thresholds")
    return find_thresholds(
        model, np.stack(frames), tolerance, verbose=sys.stdout.isatty()
    )


def watch(
    model,
    video,
    *,
    name="video",
    found=None,
    max_frames=None,
    compare_every=10,
    recorder=None,
):
    """Plays a video through a model.

    Shows a progress bar if the standard output is a terminal, and a line at
    the end if not. Ctrl-C and SIGTERM end it early.

    Args:
        model: A Keras model as `Runner` takes it; see `frame_size`.
        video: The frames, an iterator of uint8 arrays `[height, width, 3]`,
            such as `video.Frames`.
        name: What to call it.
        found: A `FoundThresholds`, whose thresholds are taken. If None, it is
            exact.
        max_frames: The most frames to play, or None.
        compare_every: Plain Keras computes every n-th frame too.
        recorder: A function that is given each frame that was played, what was
            found of the frames' threshold (0 if there is none), and the work
            for this frame and for all so far.

    Returns:
        A `Summary`.

    Raises:
        ValueError: If `Runner` does not support the model, or the video ends
            before anything was played.
    """
    frame_size(model)
    to_input = _conversion(model)
    frames = (to_input(frame) for frame in video)
    runner = Runner(model, threshold=found.thresholds if found else 0)
    compiled = tf.function(lambda x: model(x, training=False))
    dense = None
    bar = keras.utils.Progbar(
        max_frames, verbose=1 if sys.stdout.isatty() else 2, interval=0
    )
    seconds, dense_seconds = [], []
    error = RunningError()
    played, next_update = 0, 0.0
    work = _Work(runner)
    with process.Stop() as stop:
        for frame in itertools.islice(frames, max_frames):
            if stop.requested:
                break
            batch = frame[np.newaxis]
            begin = time.perf_counter()
            output = runner.step(batch)
            end = time.perf_counter()
            seconds.append(end - begin)
            if played % compare_every == 0:
                constant = tf.constant(batch)
                if dense is None:
                    dense = compiled.get_concrete_function(constant)
                    dense(constant)  # slow at first
                begin = time.perf_counter()
                want = dense(constant)
                dense_seconds.append(time.perf_counter() - begin)
                error.add(
                    [x.numpy() for x in keras.tree.flatten(want)],
                    keras.tree.flatten(output),
                )
            if recorder is not None:
                limit = runner.graph.maps["frames"].threshold
                recorder(frame, limit, *work.update())
            played += 1
            if end >= next_update:
                bar.update(played, finalize=False)
                next_update = end + _INTERVAL
    if not played:
        rest = " after those that thresholds were found with" if found else ""
        raise ValueError(f"{name} has no frame that could be played{rest}")
    bar.update(played, finalize=True)
    return Summary(
        video=name,
        frames=played,
        # Of the first frame all is computed.
        milliseconds=1e3 * float(np.median(seconds[1:] or seconds)),
        dense_milliseconds=1e3 * float(np.median(dense_seconds)),
        work=work.update()[1],
        error=error.value,
        damaged=getattr(video, "corrupt", 0),
        resized=getattr(video, "resized", 0),
        reopened=getattr(video, "reopened", 0),
        found=found,
        recomputed={
            layer: stats.new_rows / max(1, stats.positions)
            for layer, stats in runner.stats.layers.items()
        },
    )


class _Work:
    """How many multiply-adds a runner makes."""

    def __init__(self, runner):
        self._runner = runner
        self._last = (0, 0)

    def update(self):
        """The parts that were made since the last call, and so far."""
        made, dense = self._runner.stats.multiply_adds
        before, self._last = self._last, (made, dense)
        return (
            (made - before[0]) / max(1, dense - before[1]),
            made / max(1, dense),
        )


class Drawing:
    """Takes a moving picture of what is watched.

    On its left are the frames, on its right, in orange, the pixels that were
    handed on to the network: those that are not what they were when they were
    handed on last, by more than the threshold of the frames. The caption has
    the part of the multiply-adds that was made.

    Args:
        ending: That of the file: see `video.Writer`.
        rate: Frames per second.
    """

    def __init__(self, ending, rate):
        self._writer = Writer(ending, rate)
        self._seen = None

    def __call__(self, frame, threshold, work, so_far):
        """Adds a frame: see `watch`."""
        if self._seen is None:
            changed, self._seen = slice(None), frame[np.newaxis]
        else:
            positions, self._seen = ops.changed_positions(
                frame[np.newaxis],
                self._seen,
                kernel_size=1,
                threshold=threshold,
            )
            changed = positions.numpy()
        picture = np.broadcast_to(frame, (*frame.shape[:2], 3))
        lit = picture // 3
        pixels = lit.reshape(-1, 3)
        pixels[changed] = _CHANGED
        scale = -(-_HEIGHT // frame.shape[0])
        both = np.concatenate([picture, lit], 1).repeat(scale, 0)
        both = both.repeat(scale, 1).astype(np.uint8)
        caption = Image.new("RGB", (both.shape[1], _CAPTION))
        ImageDraw.Draw(caption).text(
            (4, 3),
            f"pixels {len(pixels[changed]) / len(pixels):.1%}  "
            f"work {work:.1%}  so far {so_far:.1%}",
            _CHANGED,
            font_size=11,
        )
        self._writer.add(np.concatenate([caption, both]))

    def finish(self):
        """Returns what was drawn, as the bytes of a file."""
        return self._writer.finish()


def _conversion(model):
    """A function that makes of a picture what a model takes."""
    tensor = model.inputs[0]
    gray = tensor.shape[3] == 1
    bytes_ = tensor.dtype == "uint8"

    def convert(frame):
        if gray:
            # The luma of ITU-R BT.601, as of a black and white television.
            frame = frame @ np.array([0.299, 0.587, 0.114])
            frame = np.round(frame).astype(np.uint8)[..., np.newaxis]
        return frame if bytes_ else frame.astype(np.float32)

    return convert
