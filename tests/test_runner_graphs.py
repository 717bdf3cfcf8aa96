"""Runner on models that are no chains, against plain Keras and a plain tape.

Each kind of layer by itself, networks as people build them, and random graphs:
joins of joins, shared layers, branches of different strides, outputs inside.
"""

import functools

import children
import graphs
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import assert_same_bits
from graphs import (
    CHOICES,
    assert_gradient,
    assert_step,
    randomize,
    short_video,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import reuse_tf
from reuse_tf import Runner, ops

L = keras.layers


def assert_right(model, shape):
    randomize(model)
    video = short_video(shape)
    runners = [Runner(model, choice) for choice in CHOICES]
    for frame in video:
        assert_step(runners[0], frame[None], runners[1:])
        assert_step(
            runners[0],
            np.stack([frame, video[0]]),
            [Runner(model), *runners[1:]],
        )
    assert_gradient(runners[0], video)
    for runner in runners:
        runner.record()
        for frame in video:
            runner.step(frame[None])
        structure = runner.recorded()
        if structure is not None:
            keras.tree.map_structure(
                assert_same_bits, runner(structure), runner(video)
            )


# -- Layers, one by one ------------------------------------------------------


def squeeze_and_excite(x):
    channels = x.shape[-1]
    y = L.GlobalAveragePooling2D(keepdims=True)(x)
    y = L.Conv2D(2, 1, activation="silu")(y)
    y = L.Conv2D(channels, 1, activation="sigmoid")(y)
    return L.Multiply()([x, y])


def decoder(x):
    x = L.Dense(2 * 3 * 2, activation="relu")(L.Flatten()(x))
    return L.Conv2DTranspose(2, 3, strides=2)(L.Reshape((2, 3, 2))(x))


def normalized(x):
    x = L.GroupNormalization(2)(L.LayerNormalization()(x))
    return L.Conv2D(2, 3)(x)


def four_axes(x):
    return L.Reshape((x.shape[1], 1, *x.shape[2:]))(x)


def attention_pooling(x):
    """A mean of positions, weighted by a softmax over all of them."""
    scores = L.Reshape((-1, 1))(L.Conv2D(1, 1)(x))
    weights = L.Permute((2, 1))(L.Softmax()(L.Permute((2, 1))(scores)))
    return keras.ops.sum(
        x * keras.ops.reshape(weights, (-1, *x.shape[1:3], 1)), axis=(1, 2)
    )


LAYERS = {
    "depthwise": lambda x: L.DepthwiseConv2D(3, padding="same")(x),
    "depthwise of 2": lambda x: L.DepthwiseConv2D(
        (2, 3), strides=2, depth_multiplier=2, activation="relu"
    )(x),
    "separable": lambda x: L.SeparableConv2D(
        5, 3, padding="same", activation="silu"
    )(x),
    "transposed same": lambda x: L.Conv2DTranspose(
        3, 3, strides=2, padding="same", activation="relu"
    )(x),
    "transposed valid": lambda x: L.Conv2DTranspose(3, (2, 4), (2, 3))(x),
    "transposed with output padding": lambda x: L.Conv2DTranspose(
        3, 4, strides=2, padding="same", output_padding=1
    )(x),
    "transposed with holes": lambda x: L.Conv2DTranspose(
        3, 2, strides=3, padding="same", use_bias=False
    )(x),
    "dense on a map": lambda x: L.Dense(5, activation="tanh")(x),
    "padding": lambda x: L.ZeroPadding2D(((0, 1), (2, 0)))(x),
    "padding before a convolution": lambda x: L.Conv2D(3, 3, strides=2)(
        L.ZeroPadding2D(((0, 1), (0, 1)))(x)
    ),
    "padding before a pooling": lambda x: L.MaxPooling2D(3, 2)(
        L.ZeroPadding2D(1)(x - 1.0)
    ),
    "cropping": lambda x: L.Cropping2D(((1, 2), (0, 3)))(x),
    "cropping of the center": lambda x: L.CenterCrop(4, 7)(x),
    "upsampling": lambda x: L.UpSampling2D((2, 3))(x),
    "bilinear": lambda x: L.UpSampling2D(2, interpolation="bilinear")(x),
    "bilinear, odd": lambda x: L.UpSampling2D((3, 1), interpolation="bilinear")(
        x
    ),
    "bilinear of both": lambda x: L.UpSampling2D(
        (4, 5), interpolation="bilinear"
    )(L.Conv2D(2, 7)(x)),
    "bilinear of a vector": lambda x: L.UpSampling2D(
        2, interpolation="bilinear"
    )(L.GlobalAveragePooling2D(keepdims=True)(x)),
    "global maximum": lambda x: L.GlobalMaxPooling2D()(L.Conv2D(3, 3)(x)),
    "global maximum as a map": lambda x: L.GlobalMaxPooling2D(keepdims=True)(x),
    "global mean as a map": lambda x: L.GlobalAveragePooling2D(keepdims=True)(
        x
    ),
    "layer normalization": lambda x: L.LayerNormalization()(L.Conv2D(4, 3)(x)),
    "layer normalization of maps": lambda x: L.LayerNormalization(
        axis=[1, 2, 3]
    )(x),
    "layer normalization of maps, at the end": lambda x: L.GlobalMaxPooling2D()(
        L.LayerNormalization(axis=[-3, -2, -1], center=False)(L.Conv2D(3, 2)(x))
    ),
    "layer normalization of lines": lambda x: L.LayerNormalization(
        axis=[1, 2], scale=False
    )(L.Reshape((-1, 4))(x)),
    "layer normalization of a vector": lambda x: L.LayerNormalization()(
        L.Dense(6)(L.Flatten()(x))
    ),
    "layer normalization of one position": lambda x: L.LayerNormalization(
        axis=[1, 2, 3]
    )(L.GlobalMaxPooling2D(keepdims=True)(x)),
    "group normalization of a vector": lambda x: L.GroupNormalization(3)(
        L.Dense(6)(L.Flatten()(x))
    ),
    "group normalization of a flat map": lambda x: L.Dense(2)(
        L.GroupNormalization(4)(L.Flatten()(x))
    ),
    "group normalization": lambda x: L.GroupNormalization(2)(x),
    "normalizations": normalized,
    "prelu": lambda x: L.PReLU()(x - 1.0),
    "prelu by channel": lambda x: L.PReLU(shared_axes=[1, 2])(x - 1.0),
    "positions transposed": lambda x: L.Conv2D(2, (1, 3))(
        L.Permute((2, 1, 3))(x)
    ),
    "channels first": lambda x: L.Permute((3, 1, 2))(L.Conv2D(3, 2)(x)),
    "channels first, flat": lambda x: L.Dense(2)(
        L.Flatten()(L.Activation("tanh")(L.Permute((3, 1, 2))(x)))
    ),
    "lines transposed": lambda x: L.Dense(3)(
        L.Permute((2, 1))(L.Reshape((-1, 4))(x))
    ),
    "permuted as it was": lambda x: L.Permute((1,))(
        L.Flatten()(L.Permute((1, 2, 3))(x))
    ),
    "four axes": lambda x: L.Softmax()(L.Reshape((9, 2, 4, 4))(x)),
    "reshape": lambda x: L.Softmax()(L.Reshape((-1, 2))(x)),
    "concatenate": lambda x: L.Concatenate()([x, L.Conv2D(2, 1)(x), x]),
    "boxes of two maps": lambda x: L.Concatenate(1)(
        [
            L.Reshape((-1, 2))(L.Conv2D(6, 3)(x)),
            L.Reshape((-1, 2))(L.Conv2D(4, 3, 2)(x)),
        ]
    ),
    "rows of two maps": lambda x: L.Conv2D(2, 3)(
        L.Concatenate(1)([x, L.Conv2D(4, 1)(x)])
    ),
    "flat vectors": lambda x: L.Dense(3)(
        L.Concatenate()([L.Flatten()(x), L.GlobalAveragePooling2D()(x)])
    ),
    "squeeze and excite": squeeze_and_excite,
    "excited by a vector": lambda x: L.Multiply()(
        [L.Dense(4, "sigmoid")(L.GlobalAveragePooling2D()(x)), x]
    ),
    "a vector, a map and one of one channel": lambda x: L.Average()(
        [L.GlobalMaxPooling2D()(x), x, L.Dense(1)(x)]
    ),
    "a line and a map": lambda x: L.Add()(
        [L.Reshape((8, 4))(L.MaxPooling2D((9, 1))(x)), x]
    ),
    "a line and a column": lambda x: L.Multiply()(
        [L.MaxPooling2D((9, 1))(x), L.AveragePooling2D((1, 8))(x)]
    ),
    "attention to positions": attention_pooling,
    "attention": lambda x: x * L.Conv2D(1, 3, padding="same")(x),
    "decoder": decoder,
    "operations": lambda x: keras.ops.relu(2.0 - x * 3.0) / 2.0,
    "operations on maps": lambda x: keras.ops.concatenate(
        [keras.ops.square(x), -x, keras.ops.abs(x - 1.0)], axis=-1
    ),
    "operations on flat values": lambda x: keras.ops.concatenate(
        [
            keras.ops.mean(x, axis=(1, 2)),
            keras.ops.reshape(x - 1.0, (-1, 9 * 8 * 4)),
            keras.ops.squeeze(
                keras.ops.max(x, (-3, -2), keepdims=True), (1, 2)
            ),
            keras.ops.amax(x, axis=[2, 1]),
        ],
        axis=1,
    ),
    "operations on shapes": lambda x: L.Conv2D(2, 2)(
        keras.ops.pad(
            keras.ops.transpose(
                keras.ops.squeeze(keras.ops.expand_dims(x, -2), 3), (0, 2, 3, 1)
            ),
            [[0, 0], [1, 0], [0, 2], [0, 0]],
        )
    ),
    "operations of two": lambda x: keras.ops.maximum(
        x - L.ReLU()(x - 1.0), L.ELU()(x)
    ),
    "between flatten and dense": lambda x: L.Dense(2)(
        L.BatchNormalization()(L.Dropout(0.5)(L.ReLU()(L.Flatten()(x))))
    ),
    "vectors joined": lambda x: L.Subtract()(
        [L.Dense(3)(L.Flatten()(x)), L.Dense(3)(L.GlobalMaxPooling2D()(x))]
    ),
    "dueling": lambda x: L.Add()(
        [L.Dense(4)(L.Flatten()(x)), L.Dense(1)(L.Flatten()(x))]
    ),
    "minimum and average": lambda x: L.Average()(
        [L.Minimum()([x, L.Activation("tanh")(x)]), x, x]
    ),
    "the input itself": lambda x: x,
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer(kind):
    inputs = keras.Input((9, 8, 4))
    assert_right(keras.Model(inputs, LAYERS[kind](inputs)), (9, 8, 4))


@pytest.mark.parametrize(
    "function",
    [
        functools.partial(keras.activations.relu, max_value=1.5),
        functools.partial(keras.ops.celu, alpha=0.5),
        functools.partial(keras.ops.elu, alpha=0.5),
        keras.ops.exp,
        functools.partial(keras.ops.clip, x_min=-0.5, x_max=0.75),
        functools.partial(keras.ops.clip, x_min=0, x_max=np.inf),
        lambda x: keras.ops.maximum(x, 0.25),
        lambda x: keras.ops.maximum(0.0, x),
        lambda x: keras.ops.minimum(x, -0.25),
        lambda x: keras.ops.minimum(0, x),
        lambda x: x**2,
        keras.ops.gelu,
        functools.partial(keras.ops.gelu, approximate=False),
        functools.partial(keras.ops.hard_shrink, threshold=0.75),
        keras.ops.hard_sigmoid,
        keras.ops.hard_silu,
        keras.ops.hard_tanh,
        functools.partial(keras.ops.leaky_relu, negative_slope=0.5),
        keras.ops.log_sigmoid,
        keras.ops.log_softmax,
        keras.ops.relu6,
        keras.ops.selu,
        keras.ops.sigmoid,
        keras.ops.silu,
        functools.partial(keras.ops.soft_shrink, threshold=0.75),
        keras.ops.softmax,
        functools.partial(keras.ops.softmax, axis=3),
        keras.ops.softplus,
        keras.ops.softsign,
        keras.ops.sparse_plus,
        keras.ops.sparse_sigmoid,
        functools.partial(keras.ops.squareplus, b=2),
        keras.ops.tanh,
        keras.ops.tanh_shrink,
        functools.partial(
            keras.ops.threshold, threshold=0.5, default_value=-1.0
        ),
    ],
)
def test_operations_of_one_value(function):
    inputs = keras.Input((3, 4, 2))
    model = keras.Model(inputs, function(L.Conv2D(3, 1)(inputs)))
    randomize(model)
    video = short_video((3, 4, 2), 3) - 1
    runner = Runner(model)
    for frame in video:
        assert_step(runner, frame[None])
    assert_gradient(runner, video)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_transposed_convolution_of_a_dilation(padding):
    """TensorFlow computes it on CPUs when it is compiled by XLA only."""
    inputs = keras.Input((6, 5, 2))
    layer = L.Conv2DTranspose(
        3, (3, 2), padding=padding, dilation_rate=(2, 3), activation="relu"
    )
    model = keras.Model(inputs, layer(inputs))
    randomize(model)
    video = short_video((6, 5, 2))
    runner = Runner(model)
    plain = tf.function(model, jit_compile=True)
    for frame in video:
        np.testing.assert_allclose(
            runner.step(frame[None]), plain(frame[None]), 1e-4, 1e-5
        )
    gradients = []
    for call in runner, plain:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(call(video) ** 2)
        gradients.append(tape.gradient(loss, model.trainable_variables))
    for mine, want in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, want, 1e-4, 1e-3)


def two_maps(named=False):
    now, before = (
        keras.Input((5, 4, 4), name=name) for name in ("now", "before")
    )
    inputs = {"now": now, "before": before} if named else [now, before]
    return keras.Model(inputs, now - before)


def within(dtype, shape):
    inputs = keras.Input(shape, dtype=dtype)
    return keras.Model(inputs, L.Rescaling(2.0)(inputs))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: two_maps()({"now": x, "before": 3 * x}),
        lambda x: two_maps()({"before": 3 * x, "now": x, "more": x}),
        lambda x: two_maps(named=True)({"now": x, "before": 3 * x}),
        lambda x: two_maps(named=True)({"before": 3 * x, "now": x}),
        lambda x: two_maps()([x, 3 * x]),
        lambda x: two_maps()(inputs=[x, 3 * x]),
        lambda x: two_maps()([x, x]),
    ],
)
def test_models_within_by_the_names_of_their_inputs(make):
    inputs = keras.Input((5, 4, 4))
    model = keras.Model(inputs, make(inputs))
    frames = np.random.default_rng(0).normal(size=(2, 5, 4, 4))
    frames = frames.astype(np.float32)
    np.testing.assert_allclose(
        Runner(model).step(frames), model(frames), 1e-5, 1e-6
    )


def test_a_replaced_method_is_refused():
    layer = L.Conv2D(1, 1)
    model = keras.Sequential([keras.Input((5, 4, 4)), layer])
    layer.convolution_op = lambda x, kernel: 3 * x
    with pytest.raises(ValueError, match="its `convolution_op` was replaced"):
        Runner(model)


def test_maps_that_do_not_fit_each_other_are_named():
    inputs = keras.Input((None, None, 1))
    small = L.MaxPooling2D()(inputs)
    for joined in L.Concatenate(), L.Add():
        model = keras.Model(inputs, joined([inputs, L.UpSampling2D()(small)]))
        runner = Runner(model)
        assert runner.step(np.ones((1, 6, 4, 1), np.uint8)).shape[1] == 6
        with pytest.raises(ValueError, match=r"its inputs have the shapes"):
            runner.step(np.ones((1, 5, 5, 1), np.uint8))


@pytest.mark.parametrize(
    "why, make",
    [
        ("its axis", lambda x: L.LayerNormalization(axis=[1, 2])(x)),
        ("its axis", lambda x: L.GroupNormalization(2, axis=2)(x)),
        ("interpolation", lambda x: L.UpSampling2D(2, None, "bicubic")(x)),
        ("its input", lambda x: L.Permute((2, 1, 3, 4))(four_axes(x))),
        (
            "its inputs",
            lambda x: L.Add()([four_axes(x), L.GlobalMaxPooling2D()(x)]),
        ),
        ("the batch", lambda x: x * L.GlobalAveragePooling2D()(x)),
        ("the batch", lambda x: L.Flatten()(x) + L.Reshape((1, 80))(x)),
        ("its axes", lambda x: keras.ops.transpose(x)),
        ("its axes", lambda x: keras.ops.transpose(x, (1, 0, 2, 3))),
        ("its axis", lambda x: keras.ops.mean(x, axis=-1)),
        ("its axis", lambda x: keras.ops.max(x)),
        ("its initial", lambda x: keras.ops.max(x, (1, 2), initial=0.0)),
        ("its axis", lambda x: keras.ops.concatenate([x, x])),
        ("its axis", lambda x: L.Concatenate(2)([x, x])),
        ("no square", lambda x: x**3),
        ("no square", lambda x: 2.0**x),
        ("its bounds", lambda x: keras.ops.clip(x, 1, 0)),
        ("its bounds", lambda x: keras.ops.clip(x, np.zeros(4), 1)),
        ("larger than its input", lambda x: L.CenterCrop(6, 4)(x)),
        ("its activation", lambda x: keras.ops.softmax(x, axis=1)),
        ("frames apart", lambda x: keras.ops.reshape(x, (-1, 4))),
        ("frames apart", lambda x: keras.ops.reshape(x, (1, 80))),
        ("frames apart", lambda x: keras.ops.expand_dims(x, 0)),
        ("frames apart", lambda x: keras.ops.squeeze(x)),
        ("frames apart", lambda x: keras.ops.squeeze(x, axis=[])),
        ("supported class", lambda x: L.Resizing(3, 3)(x)),
        ("its pad_width", lambda x: keras.ops.pad(x, 1)),
        (
            "its arguments",
            lambda x: keras.ops.pad(
                x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=2.0
            ),
        ),
        ("supported class", lambda x: keras.ops.log(x)),
        ("no square", lambda x: x**x),
        ("its arguments", lambda x: L.Add()([x, tf.ones((1, 5, 4, 4))])),
        ("its arguments", lambda x: L.Multiply()([x, np.ones((1, 5, 4, 4))])),
        ("its arguments", lambda x: L.Subtract()([x, tf.ones((1, 5, 4, 4))])),
        ("its arguments", lambda x: L.Softmax()(x, mask=np.ones((5, 4, 4)))),
        ("its arguments", lambda x: two_maps()([x, tf.ones((1, 5, 4, 4))])),
        ("uint8", lambda x: within("uint8", (5, 4, 4))(x)),
        ("float16", lambda x: within("float16", (5, 4, 4))(x)),
        (
            "has the shape",
            lambda x: within("float32", (80,))(L.Reshape((80, 1))(x)),
        ),
    ],
)
def test_what_is_refused_is_named_with_the_reason(why, make):
    inputs = keras.Input((5, 4, 4))
    model = keras.Model(inputs, make(inputs))
    with pytest.raises(ValueError, match=f"support layer .*: .*{why}"):
        Runner(model)


@pytest.mark.parametrize("axis", [-1, 3, None])
@pytest.mark.parametrize("given", [True, False])
def test_normalization(axis, given):
    arguments = {"mean": 1.5, "variance": 2.0} if given else {}
    layer = L.Normalization(axis, **arguments)
    inputs = keras.Input((5, 4, 3))
    model = keras.Model(inputs, L.Conv2D(2, 2)(layer(inputs)))
    video = short_video((5, 4, 3))
    runner = Runner(model)
    for data in video, video * [2, 1, 3] + 4:
        if not given:
            layer.adapt(data.astype(np.float32))
        for frame in video:
            assert_step(runner, frame[None], [Runner(model, "temporal")])
        assert_gradient(runner, video)


@pytest.mark.parametrize("given", [True, False])
def test_normalization_near_a_mean_that_is_large(given):
    """A difference is exact there, one of products is not."""
    mean, variance = np.float32([147.5, 101, 232]), [1e-4, 0, 1e-6]
    inputs = keras.Input((2, 3, 3))
    if given:
        layer = L.Normalization(mean=mean, variance=variance)
    else:
        layer = L.Normalization()
        layer.build((None, 2, 3, 3))
        layer.adapt_mean.assign(mean)
        layer.adapt_variance.assign(variance)
        layer.finalize_state()
    model = keras.Model(inputs, layer(inputs))
    frames = np.broadcast_to(mean, (1, 2, 3, 3)).copy()
    frames[0, 0] = np.nextafter(mean, np.float32(999))
    assert_step(Runner(model), frames)
    assert_gradient(Runner(model), frames)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("layers", ["pooling", "operation", "pooling of rows"])
def test_a_nan_stays_one_in_a_global_maximum(layers, place):
    inputs = keras.Input((2, 2, 1))
    if layers == "pooling":
        x = L.GlobalMaxPooling2D()(inputs)
    elif layers == "operation":
        x = keras.ops.max(inputs, (1, 2))
    else:
        x = L.GlobalMaxPooling2D()(L.Conv2D(3, 1)(inputs))
    model = keras.Model(inputs, x)
    frames = np.zeros((3, 2, 2, 1), np.float32)
    frames[1].flat[place] = np.nan
    want = model(frames).numpy()
    assert np.isnan(want[1]).all() and not np.isnan(want[::2]).any()
    for reuse in CHOICES:
        runner = Runner(model, reuse)
        steps = [runner.step(frame[None])[0] for frame in frames]
        for got in steps, runner.predict(frames, verbose=0), runner(frames):
            np.testing.assert_allclose(got, want, 1e-5, 1e-5)


@pytest.mark.parametrize(
    "layer",
    [
        L.GaussianNoise(0.5),
        L.GaussianDropout(0.5),
        L.SpatialDropout2D(0.5),
        L.AlphaDropout(0.5),
        L.ActivityRegularization(0.1),
        L.Identity(),
    ],
)
def test_layers_that_compute_nothing(layer):
    inputs = keras.Input((5, 4, 2))
    outputs = L.Conv2D(2, 2)(layer(L.Conv2D(3, 2)(inputs)))
    assert_right(keras.Model(inputs, outputs), (5, 4, 2))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_what_augments_in_training_alone_is_left_out(dtype):
    """As in `predict`; a model that is called by itself augments, by default.

    The crop is the same then, too.
    """
    inputs = keras.Input((9, 8, 2), dtype=dtype)
    x = inputs
    for layer in (
        L.RandomFlip(),
        L.RandomRotation(0.3),
        L.RandomZoom(0.3),
        L.RandomTranslation(0.3, 0.3),
        L.RandomContrast(0.3),
        L.RandomBrightness(0.3),
        L.CenterCrop(6, 5),
        L.Rescaling(1 / 255),
    ):
        x = layer(x)
    model = keras.Model(inputs, L.Conv2D(3, 3)(x))
    randomize(model)
    video = short_video((9, 8, 2)).astype(dtype)
    want = model.predict(video, verbose=0)
    runner = Runner(model)
    for frame, outputs in zip(video, want, strict=True):
        np.testing.assert_allclose(
            runner.step(frame[None])[0], outputs, 1e-5, 1e-5
        )
    np.testing.assert_allclose(runner(video), want, 1e-5, 1e-5)


# -- Networks ----------------------------------------------------------------


def two_heads():
    inputs = keras.Input((12, 10, 1))
    x = L.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    x = L.Flatten()(L.Conv2D(5, 3, activation="relu")(x))
    return keras.Model(
        inputs, {"logits": L.Dense(4)(x), "value": [L.Dense(1)(x)]}
    )


def impala():
    def residual(x):
        y = L.Conv2D(4, 3, padding="same")(L.ReLU()(x))
        return x + L.Conv2D(4, 3, padding="same")(L.ReLU()(y))

    inputs = keras.Input((12, 10, 1))
    x = L.Conv2D(4, 3, padding="same")(L.Rescaling(1 / 255)(inputs))
    x = L.MaxPooling2D(3, 2, "same")(x)
    x = L.Flatten()(L.ReLU()(residual(residual(x))))
    x = L.Dense(8, activation="relu")(x)
    return keras.Model(inputs, [L.Dense(3)(x), L.Dense(1)(x)])


def mobilenet():
    def block(x, filters, stride):
        y = L.ReLU(6)(L.BatchNormalization()(L.Conv2D(12, 1)(x)))
        if stride == 2:
            y = L.ZeroPadding2D(((0, 1), (0, 1)))(y)
        padding = "same" if stride == 1 else "valid"
        y = L.DepthwiseConv2D(3, stride, padding, use_bias=False)(y)
        y = L.ReLU(6)(L.BatchNormalization()(y))
        y = L.BatchNormalization()(L.Conv2D(filters, 1)(y))
        return L.Add()([x, y]) if x.shape == y.shape else y

    inputs = keras.Input((12, 10, 3))
    x = block(block(block(inputs, 6, 2), 6, 1), 8, 2)
    return keras.Model(inputs, L.Dense(5)(L.GlobalAveragePooling2D()(x)))


@pytest.mark.parametrize("channels", [1, 2, 5, 16, 37])
@pytest.mark.parametrize("multiplier", [1, 3])
def test_gradients_of_many_depthwise_patches(channels, multiplier):
    """More than a block of them, of which most are distinct."""
    inputs = keras.Input((19, 20, 2))
    x = L.Conv2D(channels, 3, activation="relu")(inputs)
    x = L.DepthwiseConv2D(
        3, 2, "same", depth_multiplier=multiplier, activation="relu"
    )(x)
    model = keras.Model(inputs, L.Conv2D(3, 3)(x))
    randomize(model)
    video = np.random.default_rng(0).normal(size=(7, 19, 20, 2))
    assert_gradient(Runner(model), video.astype(np.float32))


@pytest.mark.parametrize(
    "scalar",
    [
        lambda x: keras.ops.squeeze(x, -1),
        L.Reshape(()),
        lambda x: keras.ops.reshape(x, (-1,)),
    ],
    ids=["squeeze", "reshape", "ops.reshape"],
)
def test_a_scalar_of_each_frame(scalar):
    inputs = keras.Input((6, 5, 2))
    x = L.Flatten()(L.Conv2D(4, 3, activation="relu")(inputs))
    model = keras.Model(inputs, [L.Dense(3)(x), scalar(L.Dense(1)(x))])
    randomize(model)
    runner = Runner(model)
    video = short_video((6, 5, 2))
    for frame in video:
        assert_step(runner, frame[None])
    assert_gradient(runner, video)


def densenet():
    inputs = keras.Input((12, 10, 3))
    x = L.Conv2D(4, 3, padding="same")(inputs)
    for _ in range(3):
        y = L.ReLU()(L.BatchNormalization()(x))
        x = L.Concatenate()([x, L.Conv2D(3, 3, padding="same")(y)])
    x = L.AveragePooling2D(2)(L.ReLU()(L.BatchNormalization()(x)))
    return keras.Model(inputs, L.Dense(4)(L.GlobalAveragePooling2D()(x)))


def u_net():
    inputs = keras.Input((12, 8, 2))
    a = L.Conv2D(3, 3, padding="same", activation="relu")(inputs)
    b = L.Conv2D(4, 3, padding="same", activation="relu")(L.MaxPooling2D(2)(a))
    c = L.Conv2D(5, 3, padding="same", activation="relu")(L.MaxPooling2D(2)(b))
    b = L.Concatenate()([b, L.UpSampling2D(2)(c)])
    b = L.Conv2D(4, 3, padding="same", activation="relu")(b)
    a = L.Concatenate()([a, L.Conv2DTranspose(3, 2, strides=2)(b)])
    return keras.Model(inputs, [L.Conv2D(2, 1, activation="softmax")(a), c])


def nested():
    inner_input = keras.Input((6, 5, 2))
    conv = L.Conv2D(2, 3, padding="same", name="shared")
    inner = keras.Model(inner_input, [conv(inner_input), inner_input * 2.0])
    inputs = keras.Input((6, 5, 2))
    x, y = inner(inputs)
    x, z = inner(x)
    return keras.Model(inputs, L.Add()([conv(x), y, z]))


NETWORKS = [two_heads, impala, mobilenet, densenet, u_net, nested]


@pytest.mark.parametrize("make", NETWORKS)
def test_a_network(make):
    model = make()
    assert_right(model, model.input_shape[1:])


@pytest.mark.parametrize("make", [two_heads, u_net, mobilenet])
def test_incremental_layers_likewise(make):
    model = reuse_tf.convert(make())
    assert_right(model, model.input_shape[1:])


def test_statistics_name_layers():
    runner = Runner(mobilenet())
    runner.step(short_video((12, 10, 3))[:1])
    stats = runner.stats
    assert "add" in " ".join(stats.layers)
    assert all(
        layer.multiply_adds <= layer.dense_multiply_adds
        for layer in stats.layers.values()
    )
    assert sum(name.startswith("depthwise") for name in stats.layers) == 3


# -- Outputs and sizes -------------------------------------------------------


@pytest.mark.parametrize("reuse", CHOICES)
def test_outputs_that_are_kept(reuse):
    model = u_net()
    randomize(model)
    runner, own = Runner(model, reuse), Runner(model, reuse)
    rng = np.random.default_rng(0)
    video = short_video((12, 8, 2), 30)
    arrays = None
    for step, frame in enumerate(video):
        frames = np.stack([frame, video[0]])[: 1 + (step // 7) % 2]
        kept = runner.step(frames, copy=False)
        for mine, want in zip(kept, own.step(frames), strict=True):
            assert_same_bits(mine, want)
            with pytest.raises(ValueError):
                mine[:] = 0
        if step % 7 and arrays is not None:
            assert np.shares_memory(arrays[0], kept[0])
        arrays = kept
        if step % 10 == 9:  # whatever comes in between
            runner.step(frames[:, ::-1].copy())
        if step % 13 == 12:
            model.weights[0].assign(rng.normal(size=model.weights[0].shape))


@pytest.mark.parametrize("make", [two_heads, u_net])
def test_one_array_filled_anew(make):
    """With `copy=False`, whatever is done to the array or comes in between."""
    model = make()
    randomize(model)
    runner, own = Runner(model), Runner(model)
    rng = np.random.default_rng(0)
    video = short_video(model.input_shape[1:], 60).astype(np.float32)
    frames = np.zeros_like(video[:2])
    shape = frames.shape
    for step, frame in enumerate(video):
        frames[step % 2] = frame
        outputs = runner.step(frames, copy=False)
        wants = own.step(frames.copy())
        keras.tree.map_structure(assert_same_bits, outputs, wants)
        match step % 10:
            case 1:
                model.weights[0].assign(rng.normal(size=model.weights[0].shape))
            case 3:
                runner.step(frames[:, ::-1].astype(np.uint8))
                other = runner.stats
            case 4:  # of frames of the dtype of the last step again
                assert runner.stats.frames > other.frames
            case 5:
                runner.reset_state()
            case 6:
                runner.step(frames[:1], copy=False)
            case 7:
                frames.shape = (1, 2 * shape[1], *shape[2:])
                with pytest.raises(ValueError, match="Expected `frames`"):
                    runner.step(frames, copy=False)
                frames.shape = shape
            case 8:
                runner.record()


def test_tensors_give_tensors():
    model = two_heads()
    frames = short_video((12, 10, 1))[:2]
    runner = Runner(model)
    outputs = runner.step(tf.constant(frames))
    keras.tree.map_structure(
        lambda tensor, array: assert_same_bits(tensor.numpy(), array),
        outputs,
        runner.step(frames),
    )
    assert set(outputs) == {"logits", "value"}
    assert [type(outputs["value"]), len(outputs["value"])] == [list, 1]


def test_frames_of_unknown_rank():
    model = two_heads()
    frames = short_video((12, 10, 1))
    runner = Runner(model)

    @tf.function(
        input_signature=[
            tf.TensorSpec(None, tf.float32),
            tf.TensorSpec(None, tf.float32),
        ]
    )
    def both(frame, video):
        return runner.step(frame), runner(video)

    step, video = both(frames[:1], frames)
    fresh = Runner(model)
    for mine, want in (step, fresh.step(frames[:1])), (video, fresh(frames)):
        keras.tree.map_structure(
            lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-5),
            mine,
            want,
        )


def test_sizes_of_any_kind():
    inputs = keras.Input((None, None, 3))
    x = L.Conv2D(4, 3, strides=2, padding="same", activation="relu")(inputs)
    model = keras.Model(inputs, [L.GlobalAveragePooling2D()(x), x])
    randomize(model)
    runner = Runner(model)
    assert runner.stats.frames == 0
    with pytest.raises(ValueError, match="a step before"):
        runner.record()
    for size in ((7, 6), (4, 9), (7, 6)):
        video = short_video((*size, 3))
        for frame in video:
            assert_step(runner, frame[None])
        assert_gradient(runner, video)
        assert runner.stats.frames == len(video)
    structure = runner.structure(np.zeros((1, 7, 6, 3), np.float32))
    runner.step(np.zeros((1, 9, 9, 3), np.float32))
    with pytest.raises(tf.errors.InvalidArgumentError, match="another size"):
        runner(structure)
    for bad in ((1, 7, 6, 2), (7, 6, 3)):
        with pytest.raises(ValueError, match="Expected `frames`"):
            runner.step(np.zeros(bad, np.float32))


def test_what_is_no_frames_is_named():
    inputs = keras.Input((None, None, 2))
    pooled = L.MaxPooling2D(4, name="pool")(inputs)
    runner = Runner(keras.Model(inputs, L.Conv2D(3, 3, name="top")(pooled)))
    video = short_video((20, 16, 2))
    runner.step(video)
    for bad in (
        {"frames": video},
        None,
        iter(video),
        tf.data.Dataset.from_tensors(video),
        tf.RaggedTensor.from_tensor(video),
        runner.structure(video),
    ):
        calls = [runner.step, runner.structure]
        if not isinstance(bad, reuse_tf.Structure):
            calls.append(runner)
        for call in calls:
            with pytest.raises(ValueError) as failure:
                call(bad)
            assert str(failure.value) == (
                "Expected `frames` to be an array or a tensor. Received: "
                + type(bad).__name__
            )
    with pytest.raises(ValueError, match="one size. Received: 16x16, 20x16"):
        runner([video, video[:, :16]])
    with pytest.raises(ValueError, match=r"Received: \(20, 16, 2\)"):
        runner([video, video[0]])
    for size, layer in (8, "top"), (3, "pool"):
        for call in runner, runner.step:
            with pytest.raises(ValueError, match=f"that layer '{layer}' can"):
                call(video[:, :size])
    assert_same_bits(runner.step(video), Runner(runner.model).step(video))


def test_frames_of_any_size_from_several_threads():
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, L.Conv2D(3, 3, padding="same")(inputs))
    videos = [short_video((size, size + 1, 2)) for size in (4, 9, 6)]
    wants = [Runner(model).step(video) for video in videos]
    runner = Runner(model)

    def play(video, want):
        for _ in range(50):
            for call in (runner.step, runner):
                np.testing.assert_allclose(call(video), want, atol=1e-5)
            runner.step(video, copy=False)
            assert runner.graph is not None
            runner.reset_state()

    children.in_threads(play, *zip(videos, wants, strict=True))


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x * 2,
        lambda x: L.Add()([x, x]),
        lambda x: L.Concatenate()([x, x]),
        lambda x: L.Permute((2, 1, 3))(x),
        keras.ops.negative,
        keras.ops.square,
        lambda x: keras.ops.max(x, axis=(1, 2)),
        lambda x: keras.ops.sum(x, axis=(1, 2)),
        lambda x: x * 2.0 / 0.0,
        lambda x: 2.0 / L.ReLU()(x * 1.0),
        lambda x: keras.ops.maximum(x, 1),
        lambda x: x * np.ones(3, np.float32),
    ],
)
def test_what_would_be_other_numbers_is_refused(make):
    inputs = keras.Input((5, 4, 3), dtype="uint8")
    with pytest.raises(ValueError, match="Runner does not support layer"):
        Runner(keras.Model(inputs, make(inputs)))


def test_bytes_that_become_floats():
    inputs = keras.Input((5, 4, 3), dtype="uint8")
    x = L.Dropout(0.5)(L.Reshape((5, 4, 3))(inputs))
    x = keras.ops.reshape(x, (-1, 5, 4, 3)) / 255.0
    means = keras.ops.mean(inputs, (1, 2))
    model = keras.Model(inputs, [L.Conv2D(2, 3)(x), means])
    frames = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    for mine, want in zip(
        Runner(model).step(frames), model(frames), strict=True
    ):
        np.testing.assert_allclose(mine, want, 1e-4, 1e-5)


# -- Random graphs -----------------------------------------------------------


class TestRandomGraphs:
    @settings(max_examples=60)
    @given(st.integers(0, 2**32 - 1))
    def test_right_after_any_history(self, seed):
        graphs.check_history(seed)

    @settings(max_examples=40)
    @given(st.integers(0, 2**32 - 1))
    def test_gradients(self, seed):
        graphs.check_gradient(seed)


# -- Malformed lists ---------------------------------------------------------


GOOD = [
    "frames 6 5 2 float",
    "conv 0 3 3 1 1 1 1 1 1 SAME 2 1 1 0",
    "activation relu",
    "pool 1 max 2 2 1 1 1 1 1 1 0,1,0,1",
    "join 1,2 add",
    "weights 6 5 2",
    "join 3,4 multiply",
    "layer_norm 0.001 1 1",
    "global 5 mean",
    "join 5,6 multiply",
    "group_norm 7 2 0.01",
    "reshape 8 5 6 2",
    "dense 9 3 1",
    "permute 9 2,0,1",
    "output 10",
    "output 9",
]


def make_state(lines):
    """Makes a state of these nodes, with whatever weights it asks for."""
    for count in range(14):
        handles = [tf.Variable([0.0]).handle for _ in range(count)]
        try:
            return ops.new_runner_state(lines, handles, "auto", 0)
        except tf.errors.InvalidArgumentError as error:
            if "weights must be" not in str(error):
                raise
    raise AssertionError(lines)


def test_a_list_of_all_kinds_is_read():
    make_state(GOOD)


@pytest.mark.parametrize(
    "index, line",
    [
        (0, "conv 0 3 3 1 1 1 1 1 1 SAME 2 1 1 0"),
        (1, "frames 6 5 2 float"),
        (1, "conv 1 3 3 1 1 1 1 1 1 SAME 2 1 1 0"),
        (1, "conv 0,0 3 3 1 1 1 1 1 1 SAME 2 1 1 0"),
        (1, "conv -1 3 3 1 1 1 1 1 1 SAME 2 1 1 0"),
        (1, "conv 99999999999 3 3 1 1 1 1 1 1 SAME 2 1 1 0"),
        (1, "conv 0 3 3 1 1 1 1 1 1 FULL 2 1 1 0"),
        (1, "conv 0 3 3 1 1 1 1 1 1 1,1,1 2 1 1 0"),
        (1, "conv 0 3 3 1 1 1 1 1 1 1,1,1,-99 2 1 1 0"),
        (1, "conv 0 3 3 0 1 1 1 1 1 SAME 2 1 1 0"),
        (1, "conv 0 3 3 1 1 1 1 1 1 SAME 3 2 1 0"),
        (1, "conv 0 3 3 1 1 1 1 1 1 SAME 2 2 1 1"),
        (1, "conv 0 3 3 1 1 1 1 1000000 1000000 SAME 2 1 1 0"),
        (1, "conv 0 3 3 1 1 1 1 1 1 9999999,9999999,9999999,9999999 2 1 1 0"),
        (2, "activation jump"),
        (3, "pool 1 least 2 2 1 1 1 1 1 1 SAME"),
        (4, "join 1 add"),
        (4, "join 1,1,1 subtract"),
        (4, "join 1,9 add"),
        (4, "join 1,2 shuffle"),
        (5, "weights 0 5 2"),
        (6, "join 4,4 multiply"),
        (6, "conv 4 1 1 1 1 1 1 1 1 SAME 2 1 1 0"),
        (7, "layer_norm 0.001 1"),
        (8, "global 4 mean"),
        (9, "join 5,6 concatenate"),
        (10, "group_norm 7 3 0.01"),
        (11, "reshape 8 5 6 3"),
        (12, "dense 9 0 1"),
        (13, "permute 9 2,0"),
        (13, "permute 9 2,0,0"),
        (13, "permute 9 2,0,3"),
        (13, "permute 9 2,0,1,1"),
        (13, "permute 4 2,0,1"),
        (14, "output 4"),
        (14, "output 12"),
        (15, "activation relu"),
        (15, "output"),
    ],
)
def test_malformed_lists_are_errors(index, line):
    lines = [*GOOD]
    lines[index] = line
    with pytest.raises(tf.errors.InvalidArgumentError, match="cannot read"):
        make_state(lines)


def test_a_list_without_an_output_is_an_error():
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="end in an output"
    ):
        make_state(GOOD[:-2])
