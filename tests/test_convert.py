"""convert(): a plain model becomes an incremental one. plain(): the inverse."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import assert_close, label

from reuse_tf import (
    IncrementalConv2D,
    IncrementalDense,
    Runner,
    Stats,
    convert,
    coverage,
)
from reuse_tf.convert import plain

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

    def test_thresholds_are_passed_to_the_layers(self, make):
        model = make()
        convolutions = [
            layer.name
            for layer in _layers(model)
            if type(layer) is keras.layers.Conv2D
        ]

        def thresholds(converted):
            return {
                layer.name: layer.threshold
                for layer in _layers(converted)
                if isinstance(layer, IncrementalConv2D)
            }

        everywhere = dict.fromkeys(convolutions, 0.25)
        assert thresholds(convert(model, threshold=0.25)) == everywhere
        first = convolutions[0]
        one = convert(convert(model, 0.25), threshold={first: 0.5})
        assert thresholds(one) == {**everywhere, first: 0.5}
        assert thresholds(convert(model, 0)) == dict.fromkeys(convolutions, 0)
        with pytest.raises(ValueError, match=f"{first}.*Received: 'other'"):
            convert(model, threshold={"other": 1})
        for other in model, keras.Sequential([keras.Input((3,))]):
            with pytest.raises(ValueError, match="threshold=-1"):
                convert(other, threshold=-1)

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


def _with(*layers, shape=SHAPE, dtype="float32"):
    return keras.Sequential([keras.Input(shape, dtype=dtype), *layers])


def _adapted(layer, data):
    layer.adapt(data)
    return layer


WORDS = np.array([["a"], ["b"], ["never seen"]])
OUTPUT_MODES = ["int", "one_hot", "multi_hot", "count", "tf_idf"]


def _assert_equal(got, want):
    tf.nest.assert_same_structure(got, want)
    for a, b in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind == "f":
            assert_close(a, b)
        else:
            np.testing.assert_array_equal(a, b)


class TestState:
    """What a layer holds beside its weights."""

    @staticmethod
    def _assert_kept(model, inputs):
        want = model(inputs)
        converted = convert(model)
        _assert_equal(converted(inputs), want)
        _assert_equal(plain(converted)(inputs), want)
        return converted

    @pytest.mark.parametrize("nested", [False, True])
    def test_normalization(self, nested):
        frames = 100 + 9 * _frames()
        layer = _adapted(keras.layers.Normalization(), frames)
        conv = keras.layers.Conv2D(2, 3)
        model = _with(layer, conv)
        if nested:
            inputs = keras.Input(SHAPE)
            model = keras.Model(inputs, [model(inputs), model(2 * inputs)])
        self._assert_kept(model, frames)
        self._assert_kept(
            _with(keras.layers.Normalization(mean=3.0, variance=2.0), conv),
            frames,
        )

    def test_normalization_by_its_weights(self):
        layer = keras.layers.Normalization()
        model = _with(layer, keras.layers.Dense(2))
        layer.set_weights([np.full(3, 100.0), np.full(3, 9.0), np.array(5)])
        layer.finalize_state()
        self._assert_kept(model, 100 + _frames())

    @pytest.mark.parametrize("mode", OUTPUT_MODES)
    def test_lookups(self, mode):
        vocabulary = np.array(["a", "b", "b", "c"])
        layer = keras.layers.StringLookup(output_mode=mode)
        model = _with(_adapted(layer, vocabulary), shape=(1,), dtype="string")
        self._assert_kept(model, tf.constant(WORDS))
        layer = keras.layers.IntegerLookup(output_mode=mode)
        model = _with(
            _adapted(layer, np.array([1, 5, 5, 7])), shape=(1,), dtype="int64"
        )
        self._assert_kept(model, np.array([[1], [5], [99]]))

    @pytest.mark.parametrize("mode", ["int", "multi_hot", "tf_idf"])
    def test_text(self, mode):
        layer = keras.layers.TextVectorization(output_mode=mode)
        layer.adapt(np.array(["a b c", "b d"]))
        dense = [] if mode == "int" else [keras.layers.Dense(3)]
        model = _with(layer, *dense, shape=(), dtype="string")
        self._assert_kept(model, tf.constant(["a b", "d x"]))

    def test_discretization(self):
        layer = keras.layers.Discretization(num_bins=4)
        layer.adapt(np.arange(100.0)[:, None])
        converted = self._assert_kept(
            _with(layer, shape=(1,)), np.array([[1.0], [50.0], [99.0]])
        )
        assert len(np.unique(converted(np.arange(100.0)[:, None]))) == 4

    def test_seeds(self):
        model = _with(keras.layers.Dropout(0.5, seed=3), keras.layers.Dense(2))
        model(_frames(), training=True)
        converted = convert(model)
        frames = _frames()
        for _ in range(2):
            assert_close(
                converted(frames, training=True), model(frames, training=True)
            )

    def test_lora_and_frozen_weights(self):
        dense = keras.layers.Dense(2)
        model = _with(keras.layers.Flatten(), dense)
        dense.enable_lora(2)
        dense.lora_kernel_b.assign(np.ones([2, 2]))
        dense.bias.trainable = False
        converted = self._assert_kept(model, _frames())
        for got, want in zip(converted.weights, model.weights, strict=True):
            np.testing.assert_array_equal(got, want)
            assert got.trainable == want.trainable
            assert got.path == want.path

    def test_layers_within_layers(self):
        model = _with(
            keras.layers.Conv2D(
                2, 3, activation=keras.layers.PReLU("random_normal")
            ),
            keras.layers.SpectralNormalization(keras.layers.Conv2D(2, 3)),
            Mixed(3),
            keras.layers.Reshape((30, 3)),
            keras.layers.Bidirectional(keras.layers.GRU(3)),
        )
        self._assert_kept(model, _frames())

    def test_trainable_parts_of_frozen_models(self):
        inner = _with(
            keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()
        )
        inner.trainable = False
        inner.layers[1].trainable = True
        inputs = keras.Input(SHAPE)
        model = keras.Model(inputs, keras.layers.Dense(2)(inner(inputs)))
        converted = convert(model)
        assert [w.path for w in converted.trainable_weights] == [
            w.path for w in model.trainable_weights
        ]
        assert not converted.layers[1].trainable

    def test_an_unbuilt_model_of_built_layers(self):
        model = keras.Sequential([keras.layers.Dense(2), keras.layers.Dense(3)])
        model.layers[0].build((None, 4))
        converted = convert(model)
        np.testing.assert_array_equal(
            converted.layers[0].kernel, model.layers[0].kernel
        )
        assert not converted.layers[1].built


class Mixed(keras.Layer):
    """Holds layers in every way, and is not registered with Keras."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.first = keras.layers.Dense(units)
        self.others = [{"second": keras.layers.Dense(units)}]

    def build(self, shape):
        self.first.build(shape)
        self.others[0]["second"].build((*shape[:-1], self.units))
        self.scale = self.add_weight((self.units,), "random_normal")

    def call(self, inputs):
        return self.others[0]["second"](self.first(inputs)) * self.scale

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class TestCompiled:
    @pytest.mark.parametrize("make", [_sequential, _functional])
    def test_the_result_is_not(self, make):
        model = make()
        model.compile("adam", loss=lambda targets, outputs: outputs)
        converted = convert(model)
        assert not converted.compiled
        assert model.compiled
        frames = _frames()
        _assert_equal(converted(frames), model(frames))

    def test_after_training(self):
        model = _with(keras.layers.Flatten(), keras.layers.Dense(1))
        model.compile("adam", loss=lambda y, p: (y - p) ** 2, metrics=["mae"])
        model.fit(_frames(), np.ones([3, 1]), verbose=0)
        converted = convert(model)
        frames = _frames()
        assert_close(converted(frames), model(frames))
        assert len(converted.variables) == len(model.variables)


class TestInputs:
    def test_names_and_structure(self):
        inputs = {
            "frames": keras.Input(SHAPE, name="frames"),
            "more": keras.Input((4,), 3, dtype="int32", name="more"),
        }
        flat = keras.layers.Flatten()(inputs["frames"])
        model = keras.Model(
            inputs, [keras.layers.Dense(2)(flat), inputs["more"]]
        )
        for each in model, convert(model):
            assert each.get_layer("frames").batch_shape == (None, *SHAPE)
            assert each.get_layer("more").batch_shape == (3, 4)
            assert each.get_layer("more").dtype == "int32"
            outputs, more = each({"frames": _frames(), "more": np.ones([3, 4])})
            assert outputs.shape == (3, 2) and more.dtype == tf.int32

    def test_sequential(self):
        model = _with(keras.layers.Dense(2))
        name = keras.Model.layers.fget(model)[0].name
        assert keras.Model.layers.fget(convert(model))[0].name == name

    def test_optional(self):
        class Sum(keras.Layer):
            def call(self, first, second=None):
                return first if second is None else first + second

        first = keras.Input((4,), name="first")
        second = keras.Input((4,), name="second", optional=True)
        outputs = keras.layers.Dense(2)(Sum()(first, second))
        model = keras.Model([first, second], outputs)
        converted = convert(model)
        x = np.ones([2, 4], "float32")
        for inputs in [x, None], [x, x]:
            assert_close(converted(inputs), model(inputs))
        with pytest.raises(ValueError, match="not optional"):
            converted([None, x])

    def test_sparse(self):
        inputs = keras.Input((40,), sparse=True)
        model = keras.Model(inputs, keras.layers.Dense(3)(inputs))
        converted = convert(model)
        assert converted.inputs[0].sparse
        values = np.zeros([2, 40], "float32")
        values[0, 3] = values[1, 30] = 2
        sparse = tf.sparse.from_dense(values)
        for _ in range(2):
            assert_close(converted(sparse), model(values))
            assert_close(tf.function(converted)(sparse), model(values))
        # As in Keras, the gradient is sparse too.
        for each in model, converted:
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(each(sparse))
            gradient = tape.gradient(loss, each.layers[1].kernel.value)
            assert isinstance(gradient, tf.IndexedSlices)


def _tripled(x):
    return 3 * x


class Unhashable:
    __hash__ = None

    def __call__(self, x):
        return 2 * x


class TestFunctions:
    """Python functions in a model are those of the converted one."""

    @pytest.mark.parametrize(
        "make",
        {
            "lambda": lambda: keras.layers.Lambda(lambda x: tf.sin(x)),
            "function": lambda: keras.layers.Lambda(
                _tripled, output_shape=SHAPE
            ),
            "closure": lambda n=7: keras.layers.Lambda(lambda x: x * n),
            "arguments": lambda: keras.layers.Lambda(
                lambda x, by: x * by, arguments={"by": 4.0}
            ),
            "activation": lambda: keras.layers.Conv2D(
                2, 3, activation=lambda x: 3 * x
            ),
            "made by exec": lambda: keras.layers.Dense(
                2, activation=eval("lambda x: 3 * x")
            ),
            "partial": lambda: keras.layers.Dense(
                2, activation=functools.partial(tf.nn.leaky_relu, alpha=0.4)
            ),
            "unhashable": lambda: keras.layers.Conv2D(
                2, 3, activation=Unhashable()
            ),
            "no activation": lambda: _without_activation(keras.layers.Dense(2)),
            "initializer": lambda: keras.layers.Dense(
                2, kernel_initializer=lambda shape, dtype: tf.ones(shape, dtype)
            ),
            "activation layer": lambda: keras.layers.Activation(_tripled),
            "within a layer": lambda: keras.layers.TimeDistributed(
                keras.layers.Lambda(_tripled)
            ),
            "within a model within a layer": lambda: (
                keras.layers.TimeDistributed(
                    keras.Sequential(
                        [
                            keras.Input((9, 3)),
                            keras.layers.Dense(3, activation=_local()),
                        ]
                    )
                )
            ),
            "another name": lambda: Holding(lambda x: 3 * x, "serialized"),
            "as it is": lambda: Holding(tf.exp, "raw"),
            "in a dict": lambda: Holding(lambda x: 3 * x, "in a dict"),
            "by its name": lambda: Holding(tf.exp, "name"),
            "called": lambda: Holding(lambda x: 3 * x, "called"),
            "held by a held layer": lambda: keras.layers.TimeDistributed(
                Holding(lambda x: 3 * x, "serialized")
            ),
            "regularizer": lambda: keras.layers.Dense(
                2, kernel_regularizer=lambda kernel: tf.reduce_sum(kernel**2)
            ),
        }.items(),
        ids=lambda pair: pair[0],
    )
    @pytest.mark.filterwarnings("error::UserWarning")
    def test_kept(self, make):
        model = _with(make[1](), keras.layers.Conv2D(2, 3))
        frames = _frames()
        converted = convert(model)
        for _ in range(2):
            assert_close(converted(frames), model(frames))
        assert_close(converted.losses, model.losses)
        assert_close(plain(converted)(frames), model(frames))

    def test_what_cannot_be_made_again_is_named(self):
        class Opaque(keras.Layer):
            def __init__(self, function):
                super().__init__(name="mine")
                self.function = function

            def call(self, inputs):
                return self.function(inputs)

        with pytest.raises(ValueError, match="'mine' \\(Opaque\\)"):
            convert(_with(Opaque(_tripled), keras.layers.Dense(2)))


def _local():
    def local(x):
        return 3 * x

    return local


class Holding(keras.layers.Layer):
    """Computes by a function, which it puts into its config in some `form`."""

    def __init__(self, function, form, **kwargs):
        super().__init__(**kwargs)
        self.form = form
        if form == "in a dict":
            function = function if callable(function) else function["f"]
        if form == "name" and isinstance(function, str):
            function = getattr(tf, function)
        if form == "called" and not callable(function):
            function = (lambda by: lambda x: by * x)(function)
        if isinstance(function, dict):
            function = keras.saving.deserialize_keras_object(function)
        self._kept = {"f": function} if form == "in a dict" else function

    def call(self, inputs):
        function = self._kept
        return (function["f"] if self.form == "in a dict" else function)(inputs)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        function = self._kept
        match self.form:
            case "serialized":
                function = keras.saving.serialize_keras_object(function)
            case "name":
                function = function.__name__
            case "called":
                function = function(1.0)
        return {
            **super().get_config(),
            "function": function,
            "form": self.form,
        }


def _without_activation(layer):
    layer.activation = None
    return layer


class TestClasses:
    """The incremental classes have their own names."""

    def test_are_shown(self, capsys):
        convert(_sequential()).summary(line_length=100)
        text = capsys.readouterr().out
        assert "IncrementalConv2D" in text and "IncrementalDense" in text
        assert "IncrementalConv2D" in repr(IncrementalConv2D(2, 3))
        config = keras.saving.serialize_keras_object(IncrementalConv2D(2, 3))
        assert config["class_name"] == "IncrementalConv2D"
        assert config["registered_name"] == "reuse_tf>IncrementalConv2D"

    def test_configs_are_of_use_to_one_another(self):
        for cls, twin, arguments in [
            (keras.layers.Conv2D, IncrementalConv2D, (2, 3)),
            (keras.layers.Dense, IncrementalDense, (2,)),
        ]:
            config = cls(*arguments, activation="relu").get_config()
            assert twin.from_config(config).get_config() == config
            config = twin(*arguments, activation="relu").get_config()
            assert cls.from_config(config).get_config() == config

    def test_files_of_before_load(self):
        """When the class was named "Conv2D"."""
        config = keras.saving.serialize_keras_object(
            IncrementalConv2D(2, 3, threshold=0.5, name="x")
        )
        config["class_name"] = "Conv2D"
        layer = keras.saving.deserialize_keras_object(config)
        assert type(layer) is IncrementalConv2D and layer.threshold == 0.5

    def test_weights_files_agree_where_both_kinds_stand(self, tmp_path):
        def make(first, second):
            return _with(
                first(2, 3),
                second(3, 3, padding="same"),
                first(3, 3, padding="same"),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
                IncrementalDense(3),
            )

        plain_conv, incremental = keras.layers.Conv2D, IncrementalConv2D
        kinds = [
            make(plain_conv, incremental),
            make(incremental, plain_conv),
            make(plain_conv, plain_conv),
        ]
        frames = _frames()
        for suffix in "weights.h5", "keras":
            for source in kinds:
                want = source(frames)
                path = tmp_path / f"model.{suffix}"
                if suffix == "keras":
                    source.save(path)
                else:
                    source.save_weights(path)
                for model in kinds:
                    weights = model.get_weights()
                    model.set_weights([0 * w for w in weights])
                    model.load_weights(path)
                    assert_close(model(frames), want)
                    if model is not source:
                        model.set_weights(weights)


class TestOverridden:
    """A subclass computes in its own way, whatever it overrides."""

    def test_subclasses_of_the_incremental_ones_are_plain(self):
        class Flipped(IncrementalConv2D):
            def convolution_op(self, inputs, kernel):
                return super().convolution_op(inputs, kernel[::-1])

        class Doubled(IncrementalConv2D):
            def call(self, inputs):
                return 2 * super().call(inputs)

        class Halved(IncrementalDense):
            @property
            def kernel(self):
                return super().kernel / 2

        frames = _frames()
        for cls, change in [
            (Flipped, lambda kernel, bias: (kernel[::-1], bias)),
            (Doubled, lambda kernel, bias: (2 * kernel, 2 * bias)),
            (Halved, lambda kernel, bias: (kernel / 2, bias)),
        ]:
            of_conv = issubclass(cls, IncrementalConv2D)
            layer = cls(2, 3) if of_conv else cls(2)
            model = _with(layer)
            want = _with(
                keras.layers.Conv2D(2, 3) if of_conv else keras.layers.Dense(2)
            )
            weights = [np.random.normal(size=w.shape) for w in layer.weights]
            layer.set_weights(weights)
            want.set_weights(change(*weights))
            for call in model, tf.function(model):
                for _ in range(2):
                    assert_close(call(frames), want(frames))
            assert layer.stats == Stats()
            assert type(convert(model).layers[0]) is cls
            (row,) = coverage(model)
            assert row.how == "plain" and "overridden" in row.why

    def test_of_one_layer(self):
        layer = IncrementalConv2D(2, 3)
        frames = _frames()
        before = layer(frames)
        original = layer.convolution_op
        layer.convolution_op = lambda inputs, kernel: original(inputs, -kernel)
        assert_close(layer(frames), -before)

    def test_a_subclass_that_overrides_nothing_of_it_reuses(self):
        class Named(IncrementalConv2D):
            """Only another name."""

        layer = Named(2, 3)
        layer(_frames())
        assert layer.stats.frames == 3

    def test_models_with_a_call_of_their_own_are_refused(self):
        class Scaled(keras.Model):
            def call(self, inputs):
                return 2 * super().call(inputs)

        class Other(keras.Sequential):
            def call(self, inputs):
                return 2 * super().call(inputs)

        inputs = keras.Input((4,))
        scaled = Scaled(inputs, keras.layers.Dense(2)(inputs))
        other = Other([inputs, keras.layers.Dense(2)])
        for model in scaled, other, keras.Sequential([inputs, scaled]):
            with pytest.raises(ValueError, match="`call` of its own"):
                convert(model)

    def test_models_with_other_methods_of_their_own_are_kept(self):
        class Trained(keras.Model):
            def train_step(self, data):
                return {"mine": 1.0}

        inputs = keras.Input((4,))
        model = Trained(inputs, keras.layers.Dense(2)(inputs))
        converted = convert(model)
        assert type(converted) is Trained
        converted.compile("sgd")
        x = np.ones([2, 4], "float32")
        assert converted.fit(x, verbose=0).history == {"mine": [1.0]}
        assert_close(converted(x), model(x))


class TestQuantized:
    @pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
    @pytest.mark.filterwarnings("ignore:.*quantize")
    def test_as_the_plain_model(self, mode, tmp_path):
        model = _with(
            keras.layers.Conv2D(2, 3, name="conv"),
            keras.layers.Flatten(),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.Dense(4),
        )
        converted = convert(model)
        frames = _frames()
        converted(frames)
        for each in model, converted:
            each.quantize(mode)
        want = model(frames)
        assert_close(converted(frames), want)
        assert converted.layers[2].quantization_mode == mode
        assert type(converted.layers[2]) is IncrementalDense
        converted.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert_close(loaded(frames), want)
        how = {row.layer: row.how for row in coverage(converted)}
        assert how["conv"] == "reuses"
        assert how[converted.layers[3].name] == "plain"
        assert_close(plain(converted)(frames), want)

    def test_subclasses_are_refused_as_in_keras(self):
        class Mine(IncrementalDense):
            pass

        layer = Mine(2)
        layer.build((None, 4))
        with pytest.raises(NotImplementedError):
            layer.quantize("int8")


class TestCoverage:
    def test_of_a_model(self):
        @keras.saving.register_keras_serializable("tests")
        class MyDense(keras.layers.Dense):
            pass

        inputs = keras.Input((2, *SHAPE), name="clips")
        x = keras.layers.TimeDistributed(
            keras.layers.Conv2D(2, 3, name="inside"), name="wrapper"
        )(inputs)
        inner = keras.Sequential(
            [keras.Input(x.shape[1:]), keras.layers.Dense(2, name="dense")],
            name="inner",
        )
        x = keras.layers.Flatten(name="flat")(inner(x))
        x = MyDense(2, name="mine")(x)
        x = keras.layers.Dense(3, dtype="float64", name="wide")(x)
        model = keras.Model(inputs, x)
        before, after = coverage(model), coverage(convert(model))
        assert [row[:3] for row in after] == [
            ("wrapper", "TimeDistributed", "plain"),
            ("wrapper/inside", "Conv2D", "plain"),
            ("inner/dense", "IncrementalDense", "reuses"),
            ("flat", "Flatten", "plain"),
            ("mine", "MyDense", "plain"),
            ("wide", "IncrementalDense", "plain"),
        ]
        why = {row.layer: row.why for row in after}
        assert "within a TimeDistributed" in why["wrapper/inside"]
        assert "did not change" in why["inner/dense"]
        assert "subclass" in why["mine"]
        assert "float64" in why["wide"]
        assert {row.how for row in before} == {"plain"}
        assert "IncrementalDense" in before[2].why

    def test_prints_as_a_table(self):
        lines = str(coverage(convert(_sequential()))).splitlines()
        assert lines[0].split() == ["layer", "kind", "how", "why"]
        assert len(lines) == 1 + 7
        column = lines[0].index("how")
        for line in lines[1:]:
            assert line[column:].split()[0] in ("reuses", "plain")
            assert line[column - 1] == " "
        assert str(coverage(keras.Sequential())) == "layer  kind  how  why"

    def test_says_what_the_layers_do(self):
        """A row says `reuses` if, and only if, the layer does."""
        for make in _sequential, _functional:
            model = convert(make())
            model(_frames())
            for row in coverage(model):
                layer = model
                for name in row.layer.split("/"):
                    layer = layer.get_layer(name)
                reuses = getattr(layer, "stats", Stats()).frames > 0
                assert reuses == (row.how == "reuses"), row

    @pytest.mark.parametrize("reuse", ["content", "temporal"])
    def test_of_a_runner(self, reuse):
        model = _with(
            keras.layers.Rescaling(0.5, name="scale"),
            keras.layers.Conv2D(2, 3, name="conv"),
            keras.layers.MaxPooling2D(name="pool"),
            keras.layers.LayerNormalization([1, 2, 3], name="whole"),
            keras.layers.Dropout(0.5, name="drop"),
            keras.layers.Flatten(name="flat"),
            keras.layers.Dense(4, name="first"),
            keras.layers.ReLU(name="relu"),
            keras.layers.Dense(2, name="second"),
        )
        rows = coverage(Runner(model, reuse))
        assert [row.layer for row in rows] == [
            layer.name for layer in model.layers
        ]
        how = {row.layer: row.how for row in rows}
        assert [name for name in how if how[name] == "plain"] == [
            "whole",
            "relu",
            "second",
        ]
        why = {row.layer: row.why for row in rows}
        assert (
            why["conv"]
            == why["pool"]
            == (
                "patches seen before, anywhere"
                if reuse == "content"
                else "positions whose patch did not change"
            )
        )

    @pytest.mark.parametrize("model", [None, IncrementalDense(2), _sequential])
    def test_what_is_neither_is_refused(self, model):
        with pytest.raises(ValueError, match="`model`"):
            coverage(model)

    def test_a_runner_of_any_size_needs_a_step(self):
        inputs = keras.Input((None, None, 1))
        runner = Runner(keras.Model(inputs, keras.layers.Conv2D(2, 3)(inputs)))
        with pytest.raises(ValueError, match="a step before `coverage`"):
            coverage(runner)
        runner.step(np.zeros((1, 5, 5, 1), np.uint8))
        assert coverage(runner)[-1].how == "reuses"


@keras.saving.register_keras_serializable()
class OwnValues(keras.layers.Layer):
    """Holds values that Keras does not know of, drawn anew in each copy."""

    def build(self, shape):
        self.variable = tf.Variable(tf.random.normal([shape[-1]]))
        self.array = np.random.normal(size=shape[-1]).astype(np.float32)
        self.tensor = tf.random.normal([shape[-1]])
        self.module = tf.Module()
        self.module.inner = tf.Variable(tf.random.normal([shape[-1]]))
        self.list = [tf.Variable([np.random.normal()])]
        self.dict = {"in": (np.random.normal(size=1).astype(np.float32), 2)}

    def call(self, inputs):
        scale = self.variable * self.array * self.tensor
        scale *= self.list[0] * self.dict["in"][0] * self.dict["in"][1]
        return inputs * scale * self.module.inner


def test_what_keras_does_not_know_of_is_copied():
    model = keras.Sequential(
        [keras.Input((6, 5, 2)), keras.layers.Conv2D(3, 3), OwnValues()]
    )
    frames = np.random.default_rng(0).normal(size=(2, 6, 5, 2))
    converted = convert(model)
    np.testing.assert_allclose(
        converted(frames), model(frames), rtol=1e-4, atol=1e-5
    )
    before = converted(frames)
    model.layers[1].variable.assign([0.0, 0.0, 0.0])
    model.layers[1].array[:] = 0
    np.testing.assert_array_equal(converted(frames), before)


@keras.saving.register_keras_serializable()
class Steps(keras.layers.Layer):
    """Is given what it does after it was made."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.steps = []
        self.stats = {"mean": 0.0, "scale": 1.0}
        self.scale = 1.0
        # No two of these can be told which is less.
        self.names = {0: "zero", "one": [1, {None: 2, (3, 4): "5"}]}

    def call(self, inputs):
        for kind, function, weights in self.steps:
            values = function(inputs)
            inputs = values * weights if kind == "times" else values + weights
        return (inputs - self.stats["mean"]) * self.stats["scale"] * self.scale


def test_values_set_later_are_copied_with_what_stands_beside_them():
    steps = Steps()
    model = keras.Sequential([keras.Input((4, 4, 3)), steps])
    converted = convert(model)  # in which there are none yet
    np.testing.assert_array_equal(converted(np.ones((1, 4, 4, 3))), 1)
    steps.steps.append(("times", abs, np.array([1, 2, 3], np.float32)))
    steps.steps.append(("plus", abs, 4))
    steps.stats = {"mean": np.array([1, 0, 2], np.float32), "scale": 2.0}
    steps.scale = np.float32(3)
    frames = np.random.default_rng(0).normal(size=(2, 4, 4, 3))
    np.testing.assert_array_equal(convert(model)(frames), model(frames))
    steps.steps.append(("plus", abs, object()))
    with pytest.raises(ValueError, match="copy lacks those of its `steps`"):
        convert(model)


@pytest.mark.parametrize("more", [lambda v: v, lambda v: [v], lambda v: {1: v}])
def test_variables_that_a_copy_lacks_are_refused(more):
    model = keras.Sequential(
        [keras.Input((6, 5, 2)), keras.layers.Conv2D(3, 3), OwnValues()]
    )
    model.layers[1].later = more(tf.Variable([1.0]))
    with pytest.raises(ValueError, match="copy lacks those of its `later`"):
        convert(model)


class TestPredict:
    """What is said of it in `convert` and the README."""

    def test_a_batch_is_of_as_many_streams(self):
        model = _with(keras.layers.Conv2D(2, 3, name="conv"))
        video = np.repeat(_frames()[:1], 12, axis=0)
        want = model.predict(video, verbose=0)
        for batch_size, computed in [(4, 4), (1, 1)]:
            converted = convert(model)
            got = converted.predict(video, batch_size=batch_size, verbose=0)
            assert_close(got, want)
            stats = converted.get_layer("conv").stats
            assert stats.recomputed_positions * 12 == (
                stats.positions * computed
            )


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


class Percent(keras.Sequential):
    def predict_step(self, data):
        return 100 * super().predict_step(data)


class PercentOfTwo(Percent):
    def __init__(self):
        super().__init__([keras.Input((3,)), keras.layers.Dense(2)])


def test_models_keep_how_they_predict_or_are_refused():
    inputs = np.ones((1, 3), np.float32)
    model = Percent([keras.Input((3,)), keras.layers.Dense(2)])
    converted = convert(model)
    assert type(converted) is Percent
    assert_close(
        converted.predict(inputs, verbose=0), model.predict(inputs, verbose=0)
    )
    for other in PercentOfTwo(), keras.Sequential([PercentOfTwo()]):
        with pytest.raises(ValueError, match="PercentOfTwo.*`predict_step` is"):
            convert(other)
    model.predict_step = lambda data: data
    with pytest.raises(ValueError, match="`predict_step` was replaced"):
        convert(model)


class Scaled(keras.Model):
    scale = 1.0
    _table: list | None = None

    def predict_step(self, data):
        return self.scale * super().predict_step(data)


class Predicting(keras.Sequential):
    def __init__(self):
        super().__init__([keras.Input((3,)), keras.layers.Dense(2)])

    def predict(self, *arguments, **named):
        return 100 * super().predict(*arguments, **named)


def test_what_a_model_was_set_to_is_kept():
    frames = np.ones((1, 3), np.float32)
    inputs = keras.Input((3,))
    model = Scaled(inputs, keras.layers.Dense(2)(inputs))
    model.scale, model._table, model.count = 5.0, [1, 2], 3
    want = model.predict(frames, verbose=0)
    converted = convert(model)
    assert_close(converted.predict(frames, verbose=0), want)
    assert (converted._table, converted.count) == ([1, 2], 3)


def test_methods_of_keras_that_a_model_has_of_its_own():
    with pytest.raises(ValueError, match="Predicting.*`predict` is of a class"):
        convert(Predicting())
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile("adam", lambda y, x: keras.ops.sum(y - x))
    model.fit(np.ones((1, 3)), np.ones((1, 2)), verbose=0)
    convert(model)
    model.predict = lambda *arguments: None
    with pytest.raises(ValueError, match="`predict` was replaced"):
        convert(model)


@pytest.mark.parametrize("how", ["an attribute", "within a layer"])
def test_layers_beside_the_graph_are_refused(how):
    layer = keras.layers.Dense(3)
    inputs = outputs = keras.Input((4, 3))
    if how == "within a layer":
        outputs = keras.layers.TimeDistributed(layer)(outputs)
    model = keras.Model(inputs, layer(outputs))
    if how == "an attribute":
        model.extra = keras.layers.Dense(2)
    with pytest.raises(ValueError, match="in its graph alone"):
        convert(model)


@pytest.mark.parametrize("name", ["call", "convolution_op"])
def test_replaced_methods_are_refused(name):
    layer = keras.layers.Conv2D(2, 3, name="conv")
    model = keras.Sequential([keras.Input((5, 5, 1)), layer])
    setattr(layer, name, lambda *arguments: arguments[0])
    with pytest.raises(ValueError, match=f"'conv'.*`{name}` was replaced"):
        convert(model)


class Affine(keras.layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[-1:], initializer="ones")
        self.shift = self.add_weight(shape=shape[-1:], initializer="zeros")

    def call(self, inputs):
        return inputs * self.scale + self.shift


def test_weights_without_names_are_not_mixed_up():
    for _ in range(12):  # Keras numbers them, from whichever number on.
        keras.Variable(0.0)
        model = keras.Sequential([keras.Input((3,)), Affine()])
        inputs = np.full((1, 3), 2, np.float32)
        assert_close(convert(model)(inputs), model(inputs))


@pytest.mark.parametrize(
    "model",
    [None, "model.keras", keras.layers.Conv2D(2, 3), Subclassed, lambda x: x],
    ids=label,
)
def test_what_is_no_model_is_refused(model):
    with pytest.raises(ValueError, match="model"):
        convert(model)
