"""Outputs are those of the weights of now, by whatever means they changed.

In each test the inputs stay the same: only the weights could tell the layer
that its activations are stale.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import assert_close, assert_same_bits, fresh_twin, plain_twin

from reuse_tf import IncrementalConv2D, IncrementalDense

CONV, DENSE = "conv", "dense"
kinds = pytest.mark.parametrize("kind", [CONV, DENSE])
calls = pytest.mark.parametrize(
    "in_graph", [False, True], ids=["eager", "graph"]
)


def _make(kind, **kwargs):
    if kind == CONV:
        layer = IncrementalConv2D(4, 3, **kwargs)
        inputs = np.random.default_rng(0).normal(size=[2, 6, 6, 3])
    else:
        layer = IncrementalDense(4, **kwargs)
        inputs = np.random.default_rng(0).normal(size=[2, 50])
    inputs = tf.constant(inputs, tf.float32)
    layer.build((None, *inputs.shape[1:]))
    return layer, inputs


def _like(variable):
    return np.random.normal(size=variable.shape).astype("float32")


def _aligned(array):
    """A copy at an address that TensorFlow could use without copying."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype)
    copy = copy.reshape(array.shape)
    copy[...] = array
    return copy


def _assign_array(layer):
    layer.kernel.assign(_like(layer.kernel))


def _assign_tensor(layer):
    layer.kernel.assign(tf.constant(_like(layer.kernel)))


def _assign_other_variable(layer):
    layer.kernel.assign(tf.Variable(_like(layer.kernel)))


def _assign_add(layer):
    layer.kernel.assign_add(_like(layer.kernel))


def _assign_sub(layer):
    layer.kernel.assign_sub(_like(layer.kernel))


def _set_weights(layer):
    layer.set_weights([_like(w) for w in layer.weights])


def _value_assign(layer):
    layer.kernel.value.assign(_like(layer.kernel))


def _raw_op(layer):
    tf.raw_ops.AssignVariableOp(
        resource=layer.kernel.value.handle, value=_like(layer.kernel)
    )


def _scatter_update(layer):
    variable = layer.kernel.value
    variable.scatter_update(
        tf.IndexedSlices(_like(variable)[:1], tf.constant([0]))
    )


def _scatter_nd_add(layer):
    variable = layer.kernel.value
    at = [[0] * len(variable.shape)]
    variable.scatter_nd_add(at, [float(np.random.normal())])


def _strided_slice_assign(layer):
    layer.kernel.value[1, :].assign(_like(layer.kernel)[1])


def _bias_only(layer):
    layer.bias.assign(_like(layer.bias))


def _one_value(layer):
    kernel = layer.kernel.numpy()
    kernel.flat[-1] += 1
    layer.kernel.assign(kernel)


def _sign_of_zero(layer):
    kernel = layer.kernel.numpy()
    layer.kernel.assign(np.where(np.random.random(kernel.shape) < 0.5, 0, -0.0))


def _in_graph(layer):
    tf.function(lambda: _assign_add(layer))()


def _in_xla(layer):
    value = tf.constant(_like(layer.kernel))
    tf.function(
        lambda: layer.kernel.value.assign_add(value), jit_compile=True
    )()


MEANS = [
    _assign_array,
    _assign_tensor,
    _assign_other_variable,
    _assign_add,
    _assign_sub,
    _set_weights,
    _value_assign,
    _raw_op,
    _scatter_update,
    _scatter_nd_add,
    _strided_slice_assign,
    _bias_only,
    _one_value,
    _sign_of_zero,
    _in_graph,
    _in_xla,
]


def _assert_right(layer, function, inputs):
    got = function(inputs)
    assert_close(got, plain_twin(layer)(inputs))
    assert_same_bits(got, fresh_twin(layer)(inputs))
    return got


@kinds
@calls
@pytest.mark.parametrize("change", MEANS, ids=lambda change: change.__name__)
def test_public_means(kind, in_graph, change):
    layer, inputs = _make(kind)
    function = tf.function(layer) if in_graph else layer
    for _ in range(3):
        before = layer.get_weights()
        _assert_right(layer, function, inputs)
        change(layer)
        after = layer.get_weights()
        assert any(
            a.tobytes() != b.tobytes()
            for a, b in zip(before, after, strict=True)
        )
        _assert_right(layer, function, inputs)
        # And unchanged weights do not make it compute anew.
        counted = layer.stats.recomputed_positions
        function(inputs)
        assert layer.stats.recomputed_positions == counted


@kinds
def test_an_alternation_of_all_means(kind):
    layer, inputs = _make(kind)
    order = np.random.default_rng(0).integers(len(MEANS), size=40)
    for index in order:
        MEANS[index](layer)
        _assert_right(layer, layer, inputs)


@kinds
def test_array_changed_in_place_after_it_was_assigned(kind):
    layer, inputs = _make(kind)
    plain = plain_twin(layer)
    for assign in [
        lambda each, array: each.kernel.assign(array),
        lambda each, array: each.kernel.value.assign(array),
        lambda each, array: each.kernel.assign(tf.convert_to_tensor(array)),
        lambda each, array: each.set_weights([array, each.bias.numpy()]),
    ]:
        array = _aligned(_like(layer.kernel))
        assign(layer, array)
        assign(plain, array)
        assert_close(layer(inputs), plain(inputs))
        array *= 2
        assert_close(layer(inputs), plain(inputs))


@kinds
def test_weights_read_by_somebody_else(kind):
    """Who holds the weights' old buffer, or gives it back, does not matter."""
    layer, inputs = _make(kind)
    held = []
    for step in range(12):
        held.append(tf.identity(layer.kernel.value))
        if step % 3 == 2:
            held.clear()
        _assert_right(layer, layer, inputs)
        layer.kernel.assign(_like(layer.kernel))


@kinds
@calls
@pytest.mark.parametrize("where", ["eager", "graph", "xla"])
@pytest.mark.parametrize(
    "optimizer",
    [
        keras.optimizers.SGD,
        keras.optimizers.Adam,
        keras.optimizers.RMSprop,
        lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    ],
    ids=["SGD", "Adam", "RMSprop", "momentum"],
)
def test_optimizers(kind, in_graph, where, optimizer):
    layer, inputs = _make(kind)
    function = tf.function(layer) if in_graph else layer
    optimizer = optimizer(0.1)
    optimizer.build(layer.trainable_weights)

    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(inputs, training=True) ** 2)
        weights = layer.trainable_weights
        values = [weight.value for weight in weights]
        optimizer.apply(tape.gradient(loss, values), weights)

    if where != "eager":
        step = tf.function(step, jit_compile=where == "xla")
    outputs = _assert_right(layer, function, inputs)
    for _ in range(3):
        step()
        before, outputs = outputs, _assert_right(layer, function, inputs)
        assert not np.allclose(before, outputs)


@kinds
def test_optimizer_of_incremental_gradients(kind):
    """Training through the incremental layer itself, in one graph."""
    layer, inputs = _make(kind, activation="tanh")
    plain = plain_twin(layer)

    def trainer(layer):
        optimizer = keras.optimizers.Adam(0.05)
        optimizer.build(layer.trainable_weights)

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((layer(inputs) - 0.5) ** 2)
            weights = layer.trainable_weights
            values = [weight.value for weight in weights]
            optimizer.apply(tape.gradient(loss, values), weights)
            return layer(inputs)  # After the update, in the same graph.

        return step

    mine, dense = trainer(layer), trainer(plain)
    for _ in range(10):
        np.testing.assert_allclose(mine(), dense(), rtol=1e-2, atol=1e-3)
        assert_close(layer(inputs), plain_twin(layer)(inputs))


@kinds
@pytest.mark.parametrize("options", [{}, {"run_eagerly": True}], ids=str)
def test_fit_and_train_on_batch(kind, options):
    layer, inputs = _make(kind)
    model = keras.Sequential([layer, keras.layers.Flatten()])
    model.compile("adam", "mse", metrics=["mae"], **options)
    targets = np.ones(model(inputs).shape, "float32")
    x = inputs.numpy()

    def assert_right():
        _assert_right(layer, layer, inputs)
        want = plain_twin(layer)(inputs).numpy().reshape(targets.shape)
        assert_close(model.predict(x, verbose=0), want)
        assert_close(model(inputs), want)
        loss, _ = model.evaluate(x, targets, verbose=0)
        assert loss == pytest.approx(np.mean((want - 1) ** 2), rel=1e-3)
        return loss

    losses = [assert_right()]
    for _ in range(2):
        model.train_on_batch(x, targets)
        losses.append(assert_right())
        history = model.fit(
            x,
            targets,
            epochs=2,
            batch_size=1,
            shuffle=False,
            validation_data=(x, targets),
            verbose=0,
        )
        losses.append(assert_right())
        # Validation came after the epoch's updates.
        assert history.history["val_loss"][-1] == pytest.approx(
            losses[-1], rel=1e-3
        )
    assert losses == sorted(losses, reverse=True)


@kinds
def test_load_weights(kind, tmp_path):
    layer, inputs = _make(kind)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    path = tmp_path / "model.weights.h5"
    model.save_weights(path)
    before = _assert_right(layer, layer, inputs)
    _set_weights(layer)
    assert not np.allclose(_assert_right(layer, layer, inputs), before)
    model.load_weights(path)
    assert_same_bits(_assert_right(layer, layer, inputs), before)


@kinds
def test_checkpoints(kind, tmp_path):
    layer, inputs = _make(kind)
    checkpoint = tf.train.Checkpoint(kernel=layer.kernel.value)
    before = layer(inputs)
    path = checkpoint.write(str(tmp_path / "checkpoint"))
    _assign_array(layer)
    assert not np.allclose(layer(inputs), before)
    checkpoint.read(path).assert_consumed()
    assert_same_bits(layer(inputs), before)


@kinds
def test_lora(kind):
    layer, inputs = _make(kind)
    before = layer(inputs)
    layer.enable_lora(2)
    assert_close(layer(inputs), before)
    for weight in layer.lora_kernel_a, layer.lora_kernel_b:
        weight.assign(_like(weight))
        plain = (
            keras.layers.Conv2D(4, 3) if kind == CONV else keras.layers.Dense(4)
        )
        plain.build((None, *inputs.shape[1:]))
        plain.set_weights([layer.kernel, layer.bias])
        assert_close(layer(inputs), plain(inputs))
    assert not np.allclose(layer(inputs), before)


@kinds
def test_constraints_and_regularizers(kind):
    def make(cls):
        arguments = {
            "kernel_constraint": keras.constraints.MaxNorm(0.5),
            "kernel_regularizer": keras.regularizers.L2(0.1),
            "activity_regularizer": keras.regularizers.L1(0.01),
        }
        args = (4, 3) if kind == CONV else (4,)
        return cls(*args, **arguments)

    layer, inputs = _make(kind)
    incremental = make(type(layer))
    plain = make(keras.layers.Conv2D if kind == CONV else keras.layers.Dense)
    models = []
    for each in incremental, plain:
        each.build((None, *inputs.shape[1:]))
        each.set_weights(layer.get_weights())
        model = keras.Sequential([each, keras.layers.Flatten()])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        models.append(model)
    targets = np.ones(models[0](inputs).shape, "float32")
    for _ in range(3):
        mine, dense = (
            each.train_on_batch(inputs.numpy(), targets) for each in models
        )
        np.testing.assert_allclose(mine, dense, rtol=1e-4)
        assert_close(models[0](inputs), models[1](inputs))
        assert_close(incremental(inputs), plain(inputs))
        np.testing.assert_allclose(
            sum(incremental.losses), sum(plain.losses), rtol=1e-4
        )
