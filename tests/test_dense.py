"""IncrementalDense against keras.layers.Dense, and against itself."""

import children
import numpy as np
import pytest
import tensorflow as tf
from cases import (
    CHANGES,
    assert_close,
    assert_same_bits,
    change,
    fresh_twin,
    plain_twin,
)
from hypothesis import given
from hypothesis import strategies as st

from reuse_tf import IncrementalDense, Stats


def _layer(depth, units, **kwargs):
    layer = IncrementalDense(units, bias_initializer="random_normal", **kwargs)
    layer.build((None, depth))
    return layer


def _normal(rng, shape):
    return rng.normal(size=shape).astype("float32")


# A changed leaf is multiplied in one way when it is that of one stream, and in
# another when it is that of many.
streams = st.one_of(st.integers(1, 9), st.integers(1, 40))


class TestExact:
    @given(
        streams,
        st.integers(1, 300),
        st.integers(1, 40),
        st.booleans(),
        st.sampled_from([None, "relu", "mish"]),
        st.lists(
            st.sampled_from(
                [*CHANGES, "streams", "weights", "bias", "reset", "training"]
            ),
            min_size=2,
            max_size=8,
        ),
        st.integers(0, 2**32),
    )
    def test_right_after_any_history(
        self, count, depth, units, use_bias, activation, events, seed
    ):
        rng = np.random.default_rng(seed)
        layer = _layer(depth, units, use_bias=use_bias, activation=activation)
        in_graph = tf.function(layer, autograph=False)
        inputs = _normal(rng, (count, depth))
        kept = []
        for event in ["full", *events]:
            if event in CHANGES:
                inputs = change(inputs, event, rng)
            elif event == "streams":
                inputs = np.resize(inputs, (rng.integers(1, 20), depth))
            elif event == "weights":
                layer.set_weights(
                    [_normal(rng, w.shape) for w in layer.get_weights()]
                )
            elif event == "bias" and use_bias:
                layer.bias.assign_add(_normal(rng, units))
            elif event == "reset":
                layer.reset_state()
                assert layer.stats == Stats()
            elif event == "training":
                layer(_normal(rng, inputs.shape), training=True)
            outputs = (in_graph if rng.random() < 0.2 else layer)(inputs)
            want = plain_twin(layer)(inputs).numpy()
            assert_close(outputs, want)
            assert_same_bits(outputs, fresh_twin(layer)(inputs))
            # Each stream alone has the same bits as in company.
            if rng.random() < 0.3:
                one = rng.integers(len(inputs))
                alone = fresh_twin(layer)(inputs[one : one + 1])
                assert_same_bits(outputs[one : one + 1], alone)
            kept.append((outputs, want))
        for outputs, want in kept:
            assert_close(outputs, want)

    def test_does_not_drift(self):
        """20,000 frames later, the bits are those of a fresh layer."""
        rng = np.random.default_rng(0)
        layer = _layer(1100, 7)
        inputs = tf.Variable(_normal(rng, [3, 1100]))
        at = tf.constant(rng.integers([3, 1100], size=[20000, 2]), tf.int32)
        values = tf.constant(1e3 * _normal(rng, [20000]))

        @tf.function
        def play():
            used = tf.zeros([])  # What is used by nobody is not computed.
            for t in tf.range(20000):
                # Large values and back to small ones: what accumulates
                # differences loses the small ones.
                inputs.scatter_nd_update(at[t : t + 1], values[t : t + 1])
                used += tf.reduce_sum(layer(inputs))
                inputs.scatter_nd_update(at[t : t + 1], values[t : t + 1] / 1e3)
            return layer(inputs), used

        outputs, _ = play()
        assert layer.stats.frames == 3 * 20001
        assert_same_bits(outputs, fresh_twin(layer)(inputs))
        # Of that size are the terms: what is lost is lost at once.
        np.testing.assert_allclose(
            outputs, plain_twin(layer)(inputs), atol=1e-4
        )

    def test_many_streams_and_inputs(self):
        """Enough for several threads, and several words of the mask."""
        rng = np.random.default_rng(0)
        layer = _layer(5003, 33)
        inputs = _normal(rng, [17, 5003])
        for kind in "full", "corner", "some", "border":
            inputs = change(inputs, kind, rng)
            outputs = layer(inputs)
            np.testing.assert_allclose(
                outputs, plain_twin(layer)(inputs), rtol=1e-3, atol=1e-4
            )
            assert_same_bits(outputs, fresh_twin(layer)(inputs))

    @pytest.mark.parametrize("in_graph", [False, True])
    @pytest.mark.parametrize(
        "shape", [(2, 3, 40), (2, 1, 3, 40), (1, 40), (0, 40), (2, 0, 40)]
    )
    def test_other_ranks(self, shape, in_graph):
        rng = np.random.default_rng(0)
        layer = _layer(40, 5, activation="relu")
        function = tf.function(layer) if in_graph else layer
        inputs = _normal(rng, shape)
        for kind in ["none"] + ["some"] * 3 * (inputs.size > 0):
            inputs = change(inputs, kind, rng)
            outputs = function(inputs)
            assert_close(outputs, plain_twin(layer)(inputs))
            assert_same_bits(outputs, fresh_twin(layer)(inputs))

    @pytest.mark.parametrize("specified", [[None, None, 40], [2, None, 40]])
    def test_unknown_shapes_in_graphs(self, specified):
        layer = _layer(40, 5)
        function = tf.function(
            layer, input_signature=[tf.TensorSpec(specified, tf.float32)]
        )
        outputs = function.get_concrete_function().outputs[0]
        assert outputs.shape.as_list() == [*specified[:-1], 5]
        inputs = np.ones([2, 3, 40], "float32")
        assert_close(function(inputs), plain_twin(layer)(inputs))

    @pytest.mark.parametrize("shape", [(40,), (2, 41), (2, 3, 39)])
    def test_wrong_inputs_raise_as_in_keras(self, shape):
        layer = _layer(40, 5)
        for each in plain_twin(layer), layer:
            with pytest.raises(ValueError):
                each(np.ones(shape, "float32"))

    @pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "float16"])
    def test_inputs_of_other_dtypes(self, dtype):
        layer = _layer(40, 5)
        inputs = tf.ones([2, 40], dtype)
        want = plain_twin(layer)(inputs)
        got = layer(inputs)
        assert got.dtype == want.dtype
        assert_close(got, want)

    @pytest.mark.parametrize("policy", ["mixed_float16", "float64", "bfloat16"])
    def test_policies(self, policy):
        layer = _layer(40, 5, dtype=policy)
        inputs = np.ones([2, 40], "float32")
        got, want = layer(inputs), plain_twin(layer)(inputs)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(
            tf.cast(got, "float64"), tf.cast(want, "float64")
        )
        assert layer.stats == Stats()

    def test_xla_and_training_are_plain(self):
        rng = np.random.default_rng(0)
        layer = _layer(40, 5)
        inputs = _normal(rng, [2, 40])
        want = plain_twin(layer)(inputs)
        assert_same_bits(layer(inputs, training=True), want)
        assert_close(tf.function(layer, jit_compile=True)(inputs), want)
        assert layer.stats == Stats()

    def test_quantized_layers_stay_right(self):
        rng = np.random.default_rng(0)
        layer = _layer(40, 5)
        inputs = _normal(rng, [2, 40])
        want = layer(inputs)
        layer.quantize("int8", type_check=False)
        np.testing.assert_allclose(layer(inputs), want, atol=0.2)
        assert layer.stats.frames == 2


def test_inputs_of_an_unknown_size():
    layer = _layer(5, 4)
    run = tf.function(
        layer, input_signature=[tf.TensorSpec([None, None, None])]
    )
    inputs = np.arange(30, dtype=np.float32).reshape(2, 3, 5)
    assert_close(run(inputs), plain_twin(layer)(inputs))
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(inputs.reshape(1, 3, 10))


class TestStats:
    def test_counts(self):
        """A leaf of the tree is 32 inputs."""
        layer = IncrementalDense(5)
        inputs = np.zeros([2, 96], "float32")
        cost = 32 * 5
        layer(inputs)
        assert layer.stats == Stats(2, 6, 6, 6 * cost, 6 * cost)
        layer(inputs)
        assert layer.stats == Stats(4, 12, 6, 6 * cost, 12 * cost)
        inputs[1, 32:34] = 1
        layer(inputs)
        assert layer.stats == Stats(6, 18, 7, 7 * cost, 18 * cost)
        layer.reset_state()
        assert layer.stats == Stats()


class TestGradient:
    @pytest.mark.parametrize("in_graph", [False, True])
    @pytest.mark.parametrize(
        "arguments",
        [{"activation": "tanh"}, {"use_bias": False, "activation": "softmax"}],
        ids=str,
    )
    @pytest.mark.parametrize("shape", [(2, 40), (2, 3, 40)])
    def test_is_the_dense_one(self, shape, arguments, in_graph):
        rng = np.random.default_rng(0)
        layer = _layer(40, 5, **arguments)
        plain = plain_twin(layer)

        def gradients(layer):
            def function(inputs):
                sources = [inputs, *[w.value for w in layer.trainable_weights]]
                with tf.GradientTape() as outer:
                    outer.watch(inputs)
                    with tf.GradientTape() as tape:
                        tape.watch(inputs)
                        loss = tf.reduce_sum(layer(inputs) ** 2)
                    first = tape.gradient(loss, sources)
                    penalty = tf.reduce_sum(first[0] ** 2)
                return first, outer.gradient(penalty, sources)

            return tf.function(function) if in_graph else function

        inputs = _normal(rng, shape)
        for kind in "none", "some":
            inputs = change(inputs, kind, rng)
            got = gradients(layer)(tf.constant(inputs))
            want = gradients(plain)(tf.constant(inputs))
            for a, b in zip(
                tf.nest.flatten(got), tf.nest.flatten(want), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_threads_get_their_own_answers():
    rng = np.random.default_rng(0)
    layer = _layer(200, 5)
    first = _normal(rng, [2, 200])
    inputs = [change(first, "some", rng) for _ in range(3)]
    inputs.append(_normal(rng, [3, 200]))
    wants = [fresh_twin(layer)(each).numpy() for each in inputs]

    def call(each, want):
        for _ in range(100):
            assert_same_bits(layer(each), want)

    children.in_threads(call, *zip(inputs, wants, strict=True))
