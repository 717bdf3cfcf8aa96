"""The layers in Keras models: every way to run, save and copy one."""

import copy
import pickle
import sys
import textwrap

import children
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import assert_close, assert_same_bits, change

from reuse_tf import IncrementalConv2D, IncrementalDense, Stats

SHAPE = (10, 9, 3)


def _sequential(conv, dense):
    return keras.Sequential(
        [
            keras.Input(SHAPE),
            conv(6, 3, activation="relu", name="first"),
            conv(4, (2, 3), strides=2, padding="same", name="second"),
            keras.layers.Flatten(),
            dense(5, activation="softmax", name="head"),
        ]
    )


def _functional(conv, dense):
    """Branches, a layer at two places, a nested model, dropout."""
    inputs = keras.Input(SHAPE)
    shared = conv(3, 3, padding="same", activation="relu", name="shared")
    x = shared(shared(inputs))
    y = conv(3, 1, name="one")(inputs)
    x = keras.layers.Add()([x, y])
    x = keras.layers.BatchNormalization(name="norm")(x)
    inner_in = keras.Input(SHAPE)
    inner = keras.Model(
        inner_in, conv(4, 3, name="inner")(inner_in), name="nested"
    )
    x = keras.layers.Dropout(0.5)(inner(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, [dense(2, name="a")(x), dense(1, name="b")(x)])


MODELS = [_sequential, _functional]
models = pytest.mark.parametrize(
    "make", MODELS, ids=["sequential", "functional"]
)


def _pair(make):
    """An incremental model, and a plain one with the same weights."""
    incremental = make(IncrementalConv2D, IncrementalDense)
    plain = make(keras.layers.Conv2D, keras.layers.Dense)
    plain.set_weights(
        [np.random.normal(size=w.shape) for w in incremental.get_weights()]
    )
    for weight in plain.weights:
        if "variance" in weight.path:
            weight.assign(np.abs(weight))
    incremental.set_weights(plain.get_weights())
    return incremental, plain


def _frames(count=1, streams=2):
    rng = np.random.default_rng(0)
    frames = rng.normal(size=[streams, *SHAPE]).astype("float32")
    for step in range(count):
        frames = change(frames, ["none", "some", "corner"][step % 3], rng)
        yield frames


def _assert_equal(got, want):
    for a, b in zip(tf.nest.flatten(got), tf.nest.flatten(want), strict=True):
        assert_close(a, b)


def _incremental_layers(model):
    for layer in model._flatten_layers():
        if isinstance(layer, IncrementalConv2D | IncrementalDense):
            yield layer


class TestRunning:
    @models
    def test_called(self, make):
        incremental, plain = _pair(make)
        in_graph = tf.function(incremental)
        for frames in _frames(6):
            want = plain(frames)
            _assert_equal(incremental(frames), want)
            _assert_equal(in_graph(frames), want)
            _assert_equal(incremental(frames, training=False), want)
        for layer in _incremental_layers(incremental):
            assert layer.stats.frames > 0

    @models
    def test_alternating_with_training(self, make):
        incremental, plain = _pair(make)
        for frames in _frames(4):
            incremental(frames, training=True)
            incremental.set_weights(plain.get_weights())  # moving averages
            _assert_equal(incremental(frames), plain(frames))

    @models
    @pytest.mark.parametrize("batch_size", [1, 3, 7, 32])
    def test_predict(self, make, batch_size):
        incremental, plain = _pair(make)
        frames = np.concatenate(list(_frames(5)))  # 10: ragged last batches
        want = plain.predict(frames, batch_size=5, verbose=0)
        for _ in range(2):
            got = incremental.predict(frames, batch_size=batch_size, verbose=0)
            _assert_equal(got, want)
        _assert_equal(incremental.predict_on_batch(frames), want)

    @models
    @pytest.mark.parametrize(
        "options",
        [
            {"jit_compile": True},
            {"run_eagerly": True},
            {"steps_per_execution": 2},
        ],
        ids=str,
    )
    def test_compiled_in_other_ways(self, make, options):
        incremental, plain = _pair(make)
        incremental.compile("sgd", "mse", **options)
        frames = np.concatenate(list(_frames(4)))
        want = plain.predict(frames, verbose=0)
        for _ in range(2):
            got = incremental.predict(frames, batch_size=2, verbose=0)
            _assert_equal(got, want)

    @models
    def test_training_is_that_of_keras(self, make):
        incremental, plain = _pair(make)
        frames = np.concatenate(list(_frames(4)))
        targets = [np.ones(out.shape) for out in tf.nest.flatten(plain(frames))]
        targets = targets[0] if len(targets) == 1 else targets
        for layer in [*plain._flatten_layers(), *incremental._flatten_layers()]:
            if isinstance(layer, keras.layers.Dropout):
                layer.rate = 0.0
        for model in incremental, plain:
            model.compile(keras.optimizers.SGD(0.01), "mse", jit_compile=False)
            model.fit(
                frames,
                targets,
                epochs=2,
                batch_size=3,
                shuffle=False,
                verbose=0,
            )
        for got, want in zip(
            incremental.get_weights(), plain.get_weights(), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
        _assert_equal(incremental(frames), plain(frames))

    @models
    def test_gradients(self, make):
        incremental, plain = _pair(make)
        for frames in _frames(3):
            gradients = []
            for model in incremental, plain:
                weights = [weight.value for weight in model.trainable_weights]
                with tf.GradientTape() as tape:
                    outputs = tf.nest.flatten(model(frames))
                    loss = sum(tf.reduce_sum(out**2) for out in outputs)
                gradients.append(tape.gradient(loss, weights))
            for got, want in zip(*gradients, strict=True):
                np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)

    def test_two_models_share_a_layer(self):
        layer = IncrementalConv2D(3, 3)
        first = keras.Sequential([keras.Input(SHAPE), layer])
        second = keras.Sequential(
            [keras.Input(SHAPE), keras.layers.Rescaling(0.5), layer]
        )
        for frames in _frames(5):
            got, half = first(frames), second(frames)
            fresh = IncrementalConv2D(3, 3)
            fresh.build((None, *SHAPE))
            fresh.set_weights(layer.get_weights())
            assert_same_bits(got, fresh(frames))
            assert_same_bits(half, fresh(frames * np.float32(0.5)))

    def test_time_distributed(self):
        layer = IncrementalConv2D(3, 3, activation="relu")
        model = keras.Sequential(
            [keras.Input((4, *SHAPE)), keras.layers.TimeDistributed(layer)]
        )
        clips = np.stack(list(_frames(4)), axis=1)
        want = np.stack([layer(clip) for clip in clips])
        for _ in range(2):
            assert_close(model(clips), want)

    def test_subclassed_model(self):
        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.conv = IncrementalConv2D(3, 3)
                self.head = IncrementalDense(2)

            def call(self, inputs):
                x = self.conv(inputs)
                return self.head(tf.reshape(x, [tf.shape(x)[0], -1]))

        model = Model()
        for frames in _frames(4):
            outputs = model(frames)
            model.conv.reset_state()
            model.head.reset_state()
            assert_same_bits(model(frames), outputs)
        assert_close(model.predict(frames, verbose=0), outputs)


class TestSaving:
    @models
    @pytest.mark.parametrize("suffix", ["keras", "h5"])
    def test_save_and_load(self, make, suffix, tmp_path):
        incremental, plain = _pair(make)
        for frames in _frames(2):
            want = incremental(frames)
        path = tmp_path / f"model.{suffix}"
        incremental.save(path)
        loaded = keras.models.load_model(path)
        assert [type(layer) for layer in loaded._flatten_layers()] == [
            type(layer) for layer in incremental._flatten_layers()
        ]
        for layer in _incremental_layers(loaded):
            assert layer.stats == Stats()
        _assert_equal(loaded(frames), want)
        _assert_equal(incremental(frames), want)

    @models
    def test_weights_of_plain_and_incremental_are_the_same(
        self, make, tmp_path
    ):
        incremental, plain = _pair(make)
        frames = next(_frames())
        want = plain(frames)
        assert [tuple(w.shape) for w in incremental.weights] == [
            tuple(w.shape) for w in plain.weights
        ]
        assert len(incremental.variables) == len(plain.variables)
        incremental(frames)
        incremental.save_weights(tmp_path / "incremental.weights.h5")
        plain.save_weights(tmp_path / "plain.weights.h5")
        for model, name in [(plain, "incremental"), (incremental, "plain")]:
            model.set_weights([0 * w for w in model.get_weights()])
            model(frames)
            model.load_weights(tmp_path / f"{name}.weights.h5")
            _assert_equal(model(frames), want)

    def test_files_do_not_grow_with_the_frames(self, tmp_path):
        layer = IncrementalConv2D(3, 3)
        layer.build((None, None, None, 3))
        model = keras.Sequential([keras.Input((None, None, 3)), layer])
        sizes = []
        for size in 5, 300:
            model(np.random.normal(size=[1, size, size, 3]))
            model.save(tmp_path / "model.keras")
            model.save_weights(tmp_path / "model.weights.h5")
            sizes.append(
                [path.stat().st_size for path in sorted(tmp_path.iterdir())]
            )
        np.testing.assert_allclose(*sizes, rtol=0.02)

    @models
    def test_export_is_plain(self, make, tmp_path):
        incremental, plain = _pair(make)
        frames = next(_frames())
        incremental(frames)
        want = [np.asarray(out) for out in tf.nest.flatten(plain(frames))]
        incremental.export(tmp_path / "exported", verbose=False)
        graph = (tmp_path / "exported" / "saved_model.pb").read_bytes()
        assert b"ReuseTF" not in graph
        np.savez(tmp_path / "want.npz", frames, *want)
        program = f"""
            import sys
            import numpy as np
            import tensorflow as tf
            frames, *want = np.load({str(tmp_path / "want.npz")!r}).values()
            model = tf.saved_model.load({str(tmp_path / "exported")!r})
            got = tf.nest.flatten(model.serve(frames))
            for a, b in zip(got, want, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
            assert not any(name.startswith("reuse_tf") for name in sys.modules)
        """
        run = children.run(
            sys.executable, "-c", textwrap.dedent(program), cwd=tmp_path
        )
        assert run.returncode == 0, run.stderr
        # And the model goes on as before.
        _assert_equal(incremental(frames), want)
        for layer in _incremental_layers(incremental):
            assert layer.stats.frames > 0


class TestCopies:
    COPIES = {
        "clone_model": lambda model: keras.models.clone_model(model),
        "from_config": lambda model: type(model).from_config(
            model.get_config()
        ),
        "from_json": lambda model: keras.models.model_from_json(
            model.to_json()
        ),
        "deepcopy": copy.deepcopy,
        "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    }

    @models
    @pytest.mark.parametrize("how", COPIES)
    def test_copies_are_independent(self, make, how):
        incremental, plain = _pair(make)
        for frames in _frames(2):
            want = incremental(frames)
        other = self.COPIES[how](incremental)
        for layer in _incremental_layers(other):
            assert layer.stats == Stats()
        other.set_weights(incremental.get_weights())
        _assert_equal(other(frames), want)
        other.set_weights([2 * w for w in other.get_weights()])
        other(frames * 3)
        counts = [layer.stats for layer in _incremental_layers(incremental)]
        _assert_equal(incremental(frames), want)
        if make is _sequential:  # in the other one a layer is called twice
            for before, layer in zip(
                counts, _incremental_layers(incremental), strict=True
            ):
                after = layer.stats.recomputed_positions
                assert after == before.recomputed_positions

    @pytest.mark.parametrize("how", ["deepcopy", "pickle"])
    @pytest.mark.parametrize("kind", [IncrementalConv2D, IncrementalDense])
    def test_layers_alone(self, kind, how):
        layer = kind(4, 3) if kind is IncrementalConv2D else kind(4)
        frames = next(_frames())
        want = layer(frames)
        other = self.COPIES[how](layer)
        assert other.stats == Stats()
        assert_same_bits(other(frames), want)
        other.set_weights([w + 1 for w in other.get_weights()])
        assert not np.allclose(other(frames), want)
        assert_same_bits(layer(frames), want)

    def test_config_of_every_argument(self):
        layer = IncrementalConv2D(
            6,
            (3, 2),
            strides=(1, 2),
            padding="same",
            data_format="channels_last",
            dilation_rate=1,
            groups=3,
            activation="gelu",
            use_bias=False,
            kernel_initializer="he_normal",
            kernel_regularizer=keras.regularizers.L2(0.1),
            kernel_constraint="non_neg",
            threshold=0.5,
            name="mine",
            trainable=False,
        )
        twin = IncrementalConv2D.from_config(layer.get_config())
        assert twin.get_config() == layer.get_config()
        assert twin.name == "mine" and not twin.trainable
        plain = layer.get_config()
        plain.pop("threshold")
        assert keras.layers.Conv2D.from_config(plain).groups == 3
        dense = IncrementalDense(3, activation="relu", use_bias=False)
        assert IncrementalDense.from_config(dense.get_config()).units == 3
        assert dense.get_config().keys() == (
            keras.layers.Dense(3).get_config().keys()
        )
