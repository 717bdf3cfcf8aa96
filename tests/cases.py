"""Generated geometries and frames, and how results are compared."""

import functools
import re

import keras
import numpy as np
import tensorflow as tf
from hypothesis import strategies as st

from reuse_tf import IncrementalConv2D, IncrementalDense

# Activations that the ops compute, in every way in which Keras takes them.
ACTIVATIONS = [
    None,
    *("linear", "relu", "relu6", "leaky_relu", "elu", "celu", "selu"),
    *("sigmoid", "hard_sigmoid", "log_sigmoid", "sparse_sigmoid"),
    *("tanh", "hard_tanh", "tanh_shrink", "silu", "hard_silu", "mish"),
    *("softplus", "sparse_plus", "squareplus", "softsign"),
    *("soft_shrink", "hard_shrink", "gelu", "exponential"),
    *("softmax", "log_softmax"),
    *(
        functools.partial(getattr(keras.activations, name), **arguments)
        for name, arguments in [
            ("relu", {"negative_slope": 0.25, "max_value": 2}),
            ("relu", {"threshold": 0.5}),
            ("relu", {"max_value": 6.0}),
            ("relu", {}),
            ("leaky_relu", {"negative_slope": 0.1}),
            ("elu", {"alpha": 0.5}),
            ("celu", {"alpha": 2}),
            ("soft_shrink", {"threshold": 1.5}),
            ("hard_shrink", {"threshold": 1.5}),
            ("threshold", {"threshold": 0.25, "default_value": -1}),
            ("squareplus", {"b": 1}),
            ("gelu", {"approximate": True}),
        ]
    ),
    keras.layers.ReLU(2.5, 0.25, 0.5),
    keras.layers.LeakyReLU(0.125),
    keras.layers.ELU(0.5),
    keras.layers.Softmax(),
    keras.layers.Activation("mish"),
]

# How a frame differs from the one before it.
CHANGES = [
    "none",
    "one",
    "some",
    "corner",
    "border",
    "full",
    "nan",
    "infinity",
]
changes = st.sampled_from(CHANGES)


def change(frames, kind, rng):
    """Returns `frames` `[N, H, W, C]`, or of any other rank, changed."""
    frames = frames.copy()
    flat = frames.reshape(-1)
    if kind == "one":
        flat[rng.integers(flat.size)] = rng.normal()
    elif kind == "some":
        few = rng.random(flat.size) < rng.choice([0.01, 0.1, 0.5])
        flat[few] = rng.normal(size=few.sum())
    elif kind == "corner":  # the far one, of the last stream
        flat[-1] = rng.normal()
    elif kind == "border":
        frames[:, 0] = rng.normal(size=frames[:, 0].shape)
        frames[:, -1] = rng.normal(size=frames[:, -1].shape)
    elif kind == "full":
        frames[:] = rng.normal(size=frames.shape)
    elif kind == "nan":
        flat[rng.integers(flat.size)] = np.nan
    elif kind == "infinity":
        flat[rng.integers(flat.size)] = rng.choice([np.inf, -np.inf])
    return frames


@st.composite
def convolutions(draw):
    """Arguments of a `Conv2D`, and the shape `[N, H, W, C]` of an input."""
    kernel_size = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    # Keras takes strides or dilation, not both.
    strides, dilation_rate = (1, 1), (1, 1)
    if draw(st.booleans()):
        strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    else:
        dilation_rate = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    kind = draw(st.sampled_from(["dense", "dense", "grouped", "depthwise"]))
    groups = 1 if kind == "dense" else draw(st.integers(2, 5))
    channels = groups * (1 if kind == "depthwise" else draw(st.integers(1, 3)))
    filters = groups * draw(
        st.integers(1, 20) if kind == "dense" else st.integers(1, 3)
    )
    padding = draw(st.sampled_from(["same", "valid"]))
    smallest = [
        (kernel - 1) * rate + 1 if padding == "valid" else 1
        for kernel, rate in zip(kernel_size, dilation_rate, strict=True)
    ]
    shape = (
        draw(st.integers(1, 3)),
        smallest[0] + draw(st.integers(0, 7)),
        smallest[1] + draw(st.integers(0, 7)),
        channels,
    )
    arguments = {
        "filters": filters,
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": padding,
        "dilation_rate": dilation_rate,
        "groups": groups,
        "activation": draw(st.sampled_from([None, "relu", "mish"])),
        "use_bias": draw(st.booleans()),
        "bias_initializer": "random_normal",
    }
    return arguments, shape


def plain_twin(layer):
    """A layer of Keras's own, with copies of the weights of `layer`."""
    config = _config(layer)
    config.pop("threshold", None)
    cls = {
        IncrementalConv2D: keras.layers.Conv2D,
        IncrementalDense: keras.layers.Dense,
    }[type(layer)]
    return _twin(cls, config, layer)


def fresh_twin(layer):
    """A layer like `layer` that has seen nothing."""
    return _twin(type(layer), _config(layer), layer)


def _config(layer):
    """All but the activation, which need not be serializable."""
    attributes = vars(layer)
    activation = attributes["activation"]
    attributes["activation"] = keras.activations.linear
    config = layer.get_config()
    attributes["activation"] = activation
    return config


def _twin(cls, config, layer):
    twin = cls.from_config(config)
    twin.activation = layer.activation
    twin.build(layer._build_shapes_dict["input_shape"])
    twin.set_weights(layer.get_weights())
    return twin


def breaks_tensorflow(layer, shape):
    """Whether TensorFlow convolves batches of this shape wrongly.

    On some processors TensorFlow 2.21 returns garbage for a batch of more than
    one if the output is one wide and strides are (1, s > 1). A single frame is
    right.
    """
    return (
        layer.strides[0] != layer.strides[1]
        and layer.compute_output_shape(tuple(shape))[2] == 1
    )


def plain_conv2d(layer, inputs):
    """What Keras computes with the arguments and weights of `layer`.

    Keras compiles each grouped convolution by XLA, which takes long; here
    each group is a convolution of its own.
    """
    inputs = np.asarray(inputs)
    if len(inputs) > 1 and breaks_tensorflow(layer, inputs.shape):
        return tf.concat(
            [plain_conv2d(layer, frame[None]) for frame in inputs], 0
        )
    weights = layer.get_weights()
    kernels = np.split(weights[0], layer.groups, -1)
    inputs = np.split(inputs, layer.groups, -1)
    outputs = tf.concat(
        [
            keras.ops.conv(
                part,
                kernel,
                strides=layer.strides,
                padding=layer.padding,
                dilation_rate=layer.dilation_rate,
                data_format="channels_last",
            )
            for part, kernel in zip(inputs, kernels, strict=True)
        ],
        -1,
    )
    if layer.use_bias:
        outputs += weights[1]
    return layer.activation(outputs)


def assert_close(got, want):
    """Equal to float rounding: of sums of up to 1000 terms of around one."""
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=2e-5)


def assert_same_bits(got, want):
    got, want = np.asarray(got), np.asarray(want)
    assert got.dtype == want.dtype == np.float32
    assert got.shape == want.shape
    np.testing.assert_array_equal(got.view(np.uint32), want.view(np.uint32))


def label(value):
    """What a case is called: the same in every process."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))
