"""What is not public in Keras and TensorFlow still does what we rely on."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.utils import naming

from reuse_tf import internals


def test_sublayers_are_in_one_order_and_the_outer_ones_first():
    def make():
        inner = keras.Sequential(
            [keras.Input((4,)), keras.layers.Dense(3, name="a")], name="inner"
        )
        wrapped = keras.layers.TimeDistributed(inner, name="wrapper")
        return keras.Sequential([keras.Input((2, 4)), wrapped], name="outer")

    model, twin = make(), make()
    layers = internals.sublayers(model)
    assert len({id(layer) for layer in layers}) == len(layers)
    for layer, other in zip(layers, internals.sublayers(twin), strict=True):
        assert type(layer) is type(other)
        if not isinstance(layer, keras.layers.InputLayer):
            assert layer.name == other.name
    names = [layer.name for layer in layers]
    assert names[0] == "outer"
    assert names.index("wrapper") < names.index("inner") < names.index("a")


def test_names_in_files():
    assert naming.to_snake_case("IncrementalConv2D") == "conv2d"
    assert naming.to_snake_case("IncrementalDense") == "dense"
    assert naming.to_snake_case("MyIncrementalDense") == "my_incremental_dense"
    assert naming.to_snake_case("BatchNormalization") == "batch_normalization"


def test_functional_is_the_class_of_functional_models():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    assert type(model) is internals.Functional


def test_call_of():
    inputs = keras.Input((2,))
    dropout = keras.layers.Dropout(0.5)
    model = keras.Model(inputs, dropout(dropout(inputs), training=True))
    last = internals.call_of(model.outputs[0])
    assert (last.layer, last.arguments) == (dropout, {"training": True})
    first = internals.call_of(last.inputs[0])
    assert first.layer is dropout and not first.arguments.get("training")
    start = internals.call_of(first.inputs[0]).layer
    assert isinstance(start, keras.layers.InputLayer)


def test_variables_in_a_layer_that_casts_them():
    seen = {}

    class Casting(keras.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(2,))

        def call(self, inputs):
            seen["cast"] = self.kernel.value.dtype
            with internals.uncast():
                seen["uncast"] = self.kernel.value.dtype
            seen["handle"] = internals.handle_of(self.kernel)
            return inputs

    layer = Casting(dtype="mixed_float16")
    layer(np.zeros((1, 2)))
    assert seen["cast"] == tf.float16
    assert seen["uncast"] == tf.float32
    assert seen["handle"] is layer.kernel.value.handle


def test_operation_name():
    inputs = keras.Input((2,))
    for call, name in (
        (lambda x: x + x, "Add"),
        (keras.ops.elu, "Elu"),
        (lambda x: keras.activations.relu(x, max_value=2.0), "ReLU"),
        (keras.layers.ReLU(), None),
    ):
        made = internals.call_of(call(inputs)).layer
        assert internals.operation_name(made) == name


def test_lambda_output_shape():
    shapes = [None, (3,), lambda shape: shape]
    for shape in shapes:
        layer = keras.layers.Lambda(lambda x: x, output_shape=shape)
        assert internals.lambda_output_shape(layer) == shape


def test_functions_that_autograph_leaves():
    def choose(x):
        return 1 if x > 0 else 2

    assert tf.function(lambda x: choose(x))(tf.constant(3)) == 1
    left = internals.as_it_is(choose)
    with pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        tf.function(lambda x: left(x))(tf.constant(3))


def test_replaced_methods():
    layers = [
        keras.layers.Conv2D(1, 1),
        keras.layers.Dense(1),
        keras.layers.BatchNormalization(),
        keras.layers.Activation("relu"),
    ]
    for layer in layers:
        layer(np.zeros((1, 4, 4, 2), np.float32))
        assert internals.replaced_method(layer) is None
        layer.call = lambda x: x
        assert internals.replaced_method(layer) == "call"


def test_own_call():
    class Twice(keras.Sequential):
        def call(self, *args, **kwargs):
            return 2 * super().call(*args, **kwargs)

    class Same(keras.Sequential):
        pass

    layers = [keras.Input((2,)), keras.layers.Dense(1)]
    plain = keras.Sequential(layers)
    assert internals.own_call(Twice(layers)) == "call"
    assert internals.own_call(Same(layers)) is None
    assert internals.own_call(plain) is None
    assert internals.own_call(keras.Model(plain.inputs, plain.outputs)) is None
    plain.call = lambda x: x
    assert internals.own_call(plain) == "call"


def test_tangents():
    x, y = tf.constant(1.0), tf.constant(2.0)
    assert not internals.has_tangents([x, y])
    with tf.autodiff.ForwardAccumulator(x, tf.constant(1.0)):
        assert internals.has_tangents([y, x])
        assert internals.has_tangents([x * y])
        assert not internals.has_tangents([y])
    assert not internals.has_tangents([x])
