"""convert(): a plain model becomes an incremental one. plain(): the inverse."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import assert_close

from reuse_tf import IncrementalConv2D, IncrementalDense, convert
from reuse_tf.layers import plain

SHAPE = (10, 9, 3)


def _sequential():
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            keras.layers.Rescaling(0.5),
            keras.layers.Conv2D(6, 3, activation="relu", name="conv"),
            keras.layers.BatchNormalization(),
            keras.layers.MaxPooling2D(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(5, use_bias=False, name="head"),
        ],
        name="small",
    )


def _functional():
    inputs = keras.Input(SHAPE, name="frames")
    shared = keras.layers.Conv2D(3, 3, padding="same", name="shared")
    x = shared(shared(inputs))
    y = keras.layers.Conv2D(6, 1, groups=3, name="grouped")(inputs)
    y = keras.layers.SeparableConv2D(3, 1, name="separable")(y)
    x = keras.layers.Concatenate()([x, y])
    inner_in = keras.Input((10, 9, 6))
    innermost = keras.Sequential(
        [
            keras.Input((10, 9, 6)),
            keras.layers.Conv2D(2, 2, strides=2, name="innermost"),
        ]
    )
    inner = keras.Model(inner_in, innermost(inner_in), name="inner")
    x = keras.layers.Flatten()(inner(x))
    outputs = {
        "a": keras.layers.Dense(2, activation="softmax", name="a")(x),
        "b": keras.layers.Dense(1, name="b")(x),
    }
    return keras.Model(inputs, outputs, name="large")


def _frames():
    return np.random.normal(size=[3, *SHAPE]).astype("float32")


def _layers(model):
    return [
        layer
        for layer in model._flatten_layers()
        if not isinstance(layer, keras.Model)
    ]


def _randomize(model):
    model.set_weights([np.random.random(w.shape) for w in model.get_weights()])


@pytest.mark.parametrize("make", [_sequential, _functional])
class TestModels:
    def test_outputs_and_weights_are_equal(self, make):
        model = make()
        _randomize(model)
        converted = convert(model)
        for got, want in zip(
            converted.get_weights(), model.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(got, want)
        frames = _frames()
        for _ in range(3):
            got, want = converted(frames), model(frames)
            tf.nest.assert_same_structure(got, want)
            for a, b in zip(
                tf.nest.flatten(got), tf.nest.flatten(want), strict=True
            ):
                assert_close(a, b)
            frames[1, 4, 4] += 1
        assert converted.layers[-1].stats.frames == 9

    def test_every_conv_and_dense_has_a_twin(self, make):
        model = make()
        converted = convert(model)
        assert type(converted) is type(model)
        assert converted.name == model.name
        twins = {
            keras.layers.Conv2D: IncrementalConv2D,
            keras.layers.Dense: IncrementalDense,
        }
        replaced = 0
        for old, new in zip(_layers(model), _layers(converted), strict=True):
            assert new is not old
            assert type(new) is twins.get(type(old), type(old))
            if isinstance(old, keras.layers.InputLayer):
                continue  # Keras names those of inner models anew.
            assert new.name == old.name
            replaced += type(old) in twins
            config = new.get_config()
            assert config.pop("threshold", 0.0) == 0
            assert config == old.get_config()
        assert replaced == (2 if make is _sequential else 5)

    def test_the_plain_model_is_untouched(self, make):
        model = make()
        types = [type(layer) for layer in _layers(model)]
        weights = model.get_weights()
        frames = _frames()
        want = tf.nest.flatten(model(frames))
        converted = convert(model)
        _randomize(converted)
        converted(frames)
        assert [type(layer) for layer in _layers(model)] == types
        for a, b in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(tf.nest.flatten(model(frames)), want, strict=True):
            np.testing.assert_array_equal(a, b)
        # Nor does the plain one reach the converted one.
        before = converted.get_weights()
        _randomize(model)
        for a, b in zip(converted.get_weights(), before, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_a_converted_model_converts_to_its_like(self, make):
        once = convert(make())
        for layer in _layers(once):
            if isinstance(layer, IncrementalConv2D):
                layer.threshold = 0.5
        twice = convert(once)
        for old, new in zip(_layers(once), _layers(twice), strict=True):
            assert type(new) is type(old)
            assert getattr(new, "threshold", None) == (
                getattr(old, "threshold", None)
            )

    def test_plain_undoes_it(self, make):
        model = make()
        _randomize(model)
        converted = convert(model)
        for layer in _layers(converted):
            if isinstance(layer, IncrementalConv2D):
                layer.threshold = 0.5
        undone = plain(converted)
        for old, new in zip(_layers(model), _layers(undone), strict=True):
            assert type(new) is type(old)
            if not isinstance(old, keras.layers.InputLayer):
                assert new.get_config() == old.get_config()
        for got, want in zip(
            undone.get_weights(), model.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(got, want)

    def test_can_be_saved_and_trained(self, make, tmp_path):
        converted = convert(make())
        frames = _frames()
        outputs = converted(frames)
        converted.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        for a, b in zip(
            tf.nest.flatten(loaded(frames)),
            tf.nest.flatten(outputs),
            strict=True,
        ):
            assert_close(a, b)
        if make is _sequential:
            converted.compile("sgd", "mse")
            converted.fit(frames, np.ones([3, 5]), verbose=0)


def test_subclasses_of_conv2d_and_dense_are_kept():
    @keras.saving.register_keras_serializable("tests")
    class Doubled(keras.layers.Conv2D):
        def call(self, inputs):
            return 2 * super().call(inputs)

    model = keras.Sequential(
        [keras.Input(SHAPE), Doubled(2, 3), keras.layers.Conv2D(2, 3)]
    )
    converted = convert(model)
    assert [type(layer) for layer in converted.layers] == [
        Doubled,
        IncrementalConv2D,
    ]
    frames = _frames()
    assert_close(converted(frames), model(frames))


def test_shared_layers_stay_shared():
    converted = convert(_functional())
    shared = converted.get_layer("shared")
    assert len(shared._inbound_nodes) == 2
    assert len(converted.get_weights()) == len(_functional().get_weights())


def test_frozen_layers_and_dtypes_are_kept():
    model = _sequential()
    model.get_layer("conv").trainable = False
    converted = convert(model)
    assert not converted.get_layer("conv").trainable
    model = keras.Sequential(
        [keras.Input(SHAPE), keras.layers.Conv2D(2, 3, dtype="mixed_float16")]
    )
    assert convert(model).layers[0].compute_dtype == "float16"
    assert convert(model)(_frames()).dtype == "float16"


def test_a_model_that_is_not_built():
    model = keras.Sequential([keras.layers.Conv2D(2, 3)])
    converted = convert(model)
    assert isinstance(converted.layers[0], IncrementalConv2D)
    assert converted(_frames()).shape == (3, 8, 7, 2)


def test_quantized_layers_are_kept():
    model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(4)])
    inputs = np.random.normal(size=[2, 32]).astype("float32")
    model.quantize("int8")
    converted = convert(model)
    assert type(converted.layers[0]) is keras.layers.Dense
    assert_close(converted(inputs), model(inputs))


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = keras.layers.Conv2D(2, 3)

    def call(self, inputs):
        return self.conv(inputs)


@pytest.mark.parametrize("built", [False, True])
def test_subclassed_models_are_refused(built):
    model = Subclassed()
    if built:
        model(_frames())
    with pytest.raises(ValueError, match="Sequential or functional"):
        convert(model)


@pytest.mark.parametrize(
    "model",
    [None, "model.keras", keras.layers.Conv2D(2, 3), Subclassed, lambda x: x],
    ids=str,
)
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ValueError, match="model"):
        convert(model)
