"""The activations of the compiled ops against those of Keras."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import (
    ACTIVATIONS,
    assert_close,
    assert_same_bits,
    change,
    fresh_twin,
    label,
    plain_twin,
)

import reuse_tf
from reuse_tf import IncrementalConv2D, IncrementalDense, activations

# What the ops have no form of: rounding is promised for these, not bits.
OTHERS = [
    tf.sin,
    "sparsemax",
    lambda x: keras.activations.elu(x, 0.5),
    functools.partial(
        keras.activations.threshold,
        threshold=tf.constant([-0.5, 0, 0.5, 1]),
        default_value=0,
    ),
    functools.partial(keras.activations.softmax, axis=1),
    keras.layers.Softmax(axis=1),
]
VALUES = np.concatenate(
    [
        np.linspace(-20, 20, 2001),
        np.linspace(-1.5, 1.5, 25),
        [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-8, -1e-8, 80, -200, -1e30],
    ]
).astype("float32")


def identity(activation):
    """A layer that applies the activation to each value: it multiplies by 1."""
    layer = IncrementalConv2D(1, 1, activation=activation)
    layer.build((None, None, 1, 1))
    layer.set_weights([np.ones([1, 1, 1, 1]), np.zeros([1])])
    return layer


def test_all_of_keras_but_those_that_are_not_of_rows():
    names = {
        name
        for name in dir(keras.activations)
        if not name.startswith("_") and name not in ("get", "serialize")
    }
    functions = {getattr(keras.activations, name) for name in names}
    functions -= {
        keras.activations.deserialize,
        keras.activations.glu,
        keras.activations.sparsemax,
        keras.activations.threshold,  # has no defaults
    }
    for function in functions:
        assert activations.describe(function) is not None, function
    assert len(functions) >= 27


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=label)
def test_the_description_is_of_the_same_function(activation):
    described = activations.describe(keras.activations.get(activation))
    back = activations.function(described)
    assert activations.describe(back) == described
    x = np.linspace(-3, 3, 60, dtype="float32").reshape(4, 15)
    np.testing.assert_array_equal(
        back(tf.constant(x)), keras.activations.get(activation)(tf.constant(x))
    )


@pytest.mark.parametrize("activation", OTHERS, ids=label)
def test_what_the_ops_do_not_have(activation):
    assert activations.describe(keras.activations.get(activation)) is None


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=label)
@pytest.mark.parametrize("in_graph", [False, True])
def test_values_are_those_of_keras(activation, in_graph):
    layer = identity(activation)
    values = VALUES[None, :, None, None]
    got = (tf.function(layer) if in_graph else layer)(values)
    want = keras.activations.get(activation)(tf.constant(values)).numpy()
    # TensorFlow's own clipping of a NaN differs between processors.
    ordinary = ~np.isnan(values)
    np.testing.assert_allclose(
        got[ordinary], want[ordinary], rtol=2e-5, atol=2e-6
    )
    # The same value has the same bits wherever it stands.
    assert_same_bits(got, fresh_twin(layer)(values[:, ::-1])[:, ::-1])


@pytest.mark.parametrize("activation", [*ACTIVATIONS, *OTHERS], ids=label)
@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_layers(activation, kind):
    rng = np.random.default_rng(0)
    if kind == "conv":
        layer = IncrementalConv2D(4, 3, bias_initializer="random_normal")
        shape = (2, 6, 6, 2)
    else:
        layer = IncrementalDense(4, bias_initializer="random_normal")
        shape = (3, 2, 70)
    layer.activation = keras.activations.get(activation)
    layer.build(shape)
    plain, in_graph = plain_twin(layer), tf.function(layer, autograph=False)
    inputs = rng.normal(size=shape).astype("float32")
    for event in ["none", "some", "corner", "nan", "full", "some"]:
        inputs = change(inputs, event, rng)
        outputs = layer(inputs)
        want = plain(inputs).numpy()
        if event == "nan":
            finite = np.isfinite(want)
            np.testing.assert_array_equal(np.isfinite(outputs), finite)
            assert_close(outputs.numpy()[finite], want[finite])
        else:
            assert_close(outputs, want)
        if activation in OTHERS:
            assert_close(outputs, fresh_twin(layer)(inputs))
            continue
        for other in in_graph(inputs), fresh_twin(layer)(inputs):
            assert_same_bits(outputs, other)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=label)
def test_gradients_are_those_of_keras(activation):
    layer = identity(activation)
    # Not where it has a corner.
    values = tf.constant(np.linspace(-7.03, 7.01, 50)[None, :, None, None])
    values = tf.cast(values, tf.float32)
    gradients = []
    for each in layer, plain_twin(layer):
        with tf.GradientTape() as tape:
            tape.watch(values)
            loss = tf.reduce_sum(each(values) ** 2)
        gradients.append(tape.gradient(loss, [values, *each.trainable_weights]))
    for got, want in zip(*gradients, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=label)
def test_runners(activation):
    rng = np.random.default_rng(0)
    L = keras.layers
    model = keras.Sequential(
        [
            keras.Input((6, 5, 2)),
            L.Rescaling(1 / 128, -1),
            L.Conv2D(3, 3, activation=activation),
            L.Conv2D(4, 2, bias_initializer="random_normal"),
            L.Activation(activation),
            L.Flatten(),
            L.Dense(5, activation=activation),
        ]
    )
    runner = reuse_tf.Runner(model)
    frames = rng.integers(0, 256, (4, 6, 5, 2), np.uint8)
    outputs = [runner.step(frame[None]) for frame in frames]
    assert_close(np.concatenate(outputs), model(frames))
    assert_close(runner(frames), model(frames))
    for reuse in "content", "temporal":
        fresh = reuse_tf.Runner(model, reuse).step(frames[::-1])
        assert_same_bits(np.concatenate(outputs[::-1]), fresh)


def test_changed_and_unusual_ones():
    """Whatever `activation` is set to, at any time."""

    class Unhashable:
        __hash__ = None

        def __call__(self, x):
            return 2 * x

    layer = identity("relu")
    values = tf.constant([[[[-1.5]], [[2.0]]]])
    for activation, want in [
        (None, [-1.5, 2]),
        (functools.partial(keras.activations.elu, alpha=0), [0, 2]),
        (Unhashable(), [-3, 4]),
        (keras.activations.linear, [-1.5, 2]),
    ]:
        layer.activation = activation
        np.testing.assert_array_equal(np.ravel(layer(values)), want)


@pytest.mark.parametrize("size", [1e3, 1e7, 1e30])
def test_log_softmax_of_large_values(size):
    """The logarithm of the sum is not lost beside them."""
    layer = IncrementalDense(4, "log_softmax", kernel_initializer="ones")
    outputs = layer(np.full((1, 1), size, np.float32))
    np.testing.assert_allclose(outputs, np.full((1, 4), -np.log(4)), 1e-6)


def test_softmax_of_other_ranks():
    layer = IncrementalDense(
        4, activation=functools.partial(keras.activations.softmax, axis=-2)
    )
    inputs = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    outputs = layer(inputs)
    np.testing.assert_allclose(np.sum(outputs, -2), 1, rtol=1e-5)
    assert_close(outputs, plain_twin(layer)(inputs))
