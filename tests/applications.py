"""The models of keras.applications, and what a runner makes of each.

python tests/applications.py [NAME ...]

Checks these models, or all, where test_applications.py checks the smallest of
each family, and the gradients of each, with SiLU in the place of ReLU. Prints a
line for each check.
"""

import gc
import inspect
import sys
import time
import traceback

import keras
import numpy as np
import tensorflow as tf
from cases import assert_same_bits

from reuse_tf import Runner

# The smallest model of each family is the first; the others have the same kinds
# of layers, more of them or wider ones.
FAMILIES = [
    "ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge",
    "DenseNet121 DenseNet169 DenseNet201",
    "EfficientNetB0 EfficientNetB1 EfficientNetB2 EfficientNetB3 "
    "EfficientNetB4 EfficientNetB5 EfficientNetB6 EfficientNetB7",
    "EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3",
    "EfficientNetV2S EfficientNetV2M EfficientNetV2L",
    "InceptionResNetV2",
    "InceptionV3",
    "MobileNet",
    "MobileNetV2",
    "MobileNetV3Small MobileNetV3Large",
    "NASNetMobile NASNetLarge",
    "ResNet50 ResNet101 ResNet152",
    "ResNet50V2 ResNet101V2 ResNet152V2",
    "VGG16 VGG19",
    "Xception",
]
KNOWN = [name for names in FAMILIES for name in names.split()]
LARGER = {name for names in FAMILIES for name in names.split()[1:]}

# Two units in the last place: what an input is multiplied by, to see what
# rounding makes of a model's outputs.
_NUDGE = np.float32(1 + 2e-7)


def names():
    """The constructors of keras.applications, whichever it has."""
    members = vars(keras.applications).items()
    return sorted(name for name, it in members if inspect.isfunction(it))


def build(name, **arguments):
    """A model of the smallest frames that it takes, with its head.

    Without the softmax, under which differences could vanish.
    """
    arguments = {
        "weights": None,
        "classes": 10,
        "classifier_activation": None,
        **arguments,
    }
    for size in 32, 71, 75, 224, 331:
        try:
            return getattr(keras.applications, name)(
                input_shape=(size, size, 3), **arguments
            )
        except ValueError as error:
            refusal = error
    raise refusal


def two_frames(model, seed=0):
    """A random frame, and the same one with another block of 8 x 8."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(0, 256, model.input_shape[1:], np.uint8)
    frames = np.stack([frame, frame])
    frames[1, 8:16, 12:20] = rng.integers(0, 256, (8, 8, 3))
    return frames


def randomize(model, frames):
    """Gives a model random scales and offsets, and statistics that suit them.

    Under others, and those that it begins with, a network that is deep makes
    very different outputs of frames that are nearly the same, or nearly the
    same of frames that are not.
    """
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        if len(weight.shape) > 1:
            continue
        if np.any(weight):  # large enough for what comes to reach a ReLU6's end
            weight.assign(rng.uniform(0.5, 3, weight.shape))
        else:  # an offset is zero at first
            weight.assign(rng.normal(0, 0.1, weight.shape))
    layers = list(model._flatten_layers(include_self=False))
    for layer in layers:
        if (
            isinstance(layer, keras.layers.Normalization)
            and layer.input_mean is None
        ):
            pixels = rng.normal([0.4, 0.5, 0.6], [0.2, 0.3, 0.4], (99, 1, 1, 3))
            layer.adapt(pixels.astype(np.float32))
    layers = [
        layer
        for layer in layers
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not layers:
        return
    for layer in layers:
        layer.momentum = 0
    others = rng.integers(0, 256, (14, *frames.shape[1:]), np.uint8)
    batch = tf.cast(np.concatenate([frames, others]), tf.float32)
    model(batch, training=True)
    for layer in layers:
        # What hardly varies here would be blown up where it does.
        variance = layer.moving_variance
        variance.assign(variance + tf.reduce_mean(variance) / 10)


def check(name):
    """Checks that a model is accepted and right.

    Returns:
        `step`'s largest error, relative to the outputs.
    """
    model = build(name)
    frames = two_frames(model)
    randomize(model, frames)
    return check_step(model, frames)


def check_step(model, frames):
    """Steps a runner through two frames, and again the second.

    Returns:
        The largest error, relative to the outputs.
    """
    order = [0, 1, 1]
    runner = Runner(model)
    outputs = np.concatenate([runner.step(frames[i, None]) for i in order])
    floats = tf.cast(frames, tf.float32)
    want, nudged = np.split(
        model(tf.concat([floats, floats * _NUDGE], 0), training=False), 2
    )
    tolerance = _tolerance(want, nudged, 1e-6)
    # What it lets pass is small beside what the block changes.
    assert tolerance < _difference(*want) / 100
    np.testing.assert_allclose(outputs, want[order], rtol=0, atol=tolerance)
    for reuse in "auto", "temporal":
        fresh = Runner(model, reuse)
        for i in 1, 0:
            assert_same_bits(fresh.step(frames[i, None])[0], outputs[i])
    assert_same_bits(outputs[2], outputs[1])
    return _difference(outputs, want[order]) / np.abs(want).max()


def check_gradient(model, frames):
    """Compares the gradients of a video of three frames with a plain tape's.

    Returns:
        The largest error, relative to the largest gradient of its variable.
    """
    video = frames[[0, 1, 0]]
    floats = tf.cast(video, tf.float32)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, *model.output_shape[1:])).astype(np.float32)

    def gradients(call, video):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(video) * weights)
        return tape.gradient(loss, model.trainable_variables)

    def plain(video):
        return model(video, training=False)

    errors = []
    for variable, got, want, nudged in zip(
        model.trainable_variables,
        gradients(Runner(model), video),
        gradients(plain, floats),
        gradients(plain, floats * _NUDGE),
        strict=True,
    ):
        tolerance = _tolerance(want, nudged, 1e-5)
        largest = np.abs(want).max()
        assert tolerance < largest / 100, variable.path
        np.testing.assert_allclose(
            got, want, rtol=0, atol=tolerance, err_msg=variable.path
        )
        errors.append(_difference(got, want) / largest)
    return max(errors)


# The gradient jumps where a ReLU has its kink. In a deep network some unit is
# always so near to it that rounding decides on which side.


def far_from_kinks(model):
    """Two frames, of some, for which no unit is near a kink of its ReLU6."""
    candidates = np.stack([two_frames(model, seed) for seed in range(10)])
    batch = tf.cast(np.concatenate(candidates), tf.float32)
    inputs = [
        layer.input
        for layer in model.layers
        if isinstance(layer, keras.layers.ReLU)
    ]
    nearest = [
        np.abs([units, units - 6.0]).min(0).reshape(len(candidates), -1).min(1)
        for units in keras.Model(model.input, inputs)(batch, training=False)
    ]
    return candidates[np.argmax(np.min(nearest, 0))]


def without_kinks(model):
    """A model like this one, with SiLU in the place of ReLU."""

    def clone(layer):
        if isinstance(layer, keras.layers.ReLU):
            return keras.layers.Activation("silu", name=layer.name)
        config = layer.get_config()
        if config.get("activation") == "relu":
            config["activation"] = "silu"
        return type(layer).from_config(config)

    return keras.models.clone_model(model, clone_function=clone)


def _difference(a, b):
    return np.abs(np.subtract(a, b)).max()


def _tolerance(want, nudged, rounding):
    """What right results may differ by.

    A nudge is what rounding does to the input; layers do it again, each for
    itself. Of 40 models `step` was off by 0.3 to 6 times what the nudge makes.
    """
    return 16 * _difference(nudged, want) + rounding * np.abs(want).max()


def _step(name):
    return f"error {check(name):.1e}"


def _gradient(name):
    model = without_kinks(build(name))
    frames = two_frames(model)
    randomize(model, frames)
    return f"error {check_gradient(model, frames):.1e}"


def main(chosen):
    failures = 0
    for name in chosen or names():
        for what in _step, _gradient:
            keras.utils.set_random_seed(1)
            start = time.monotonic()
            try:
                result = what(name)
            except Exception:
                failures += 1
                result = "failed"
                traceback.print_exc()
            seconds = time.monotonic() - start
            print(f"{name} {what.__name__[1:]}: {result}, {seconds:.1f} s")
            sys.stdout.flush()
            keras.backend.clear_session()
            gc.collect()
    return min(1, failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
