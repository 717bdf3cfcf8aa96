"""IncrementalConv2D against keras.layers.Conv2D, and against itself."""

import children
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import (
    CHANGES,
    assert_close,
    assert_same_bits,
    change,
    changes,
    convolutions,
    fresh_twin,
    plain_conv2d,
    plain_twin,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from reuse_tf import IncrementalConv2D, Stats, ops


def _layer(shape, *args, **kwargs):
    layer = IncrementalConv2D(*args, **kwargs)
    layer.build((None, *shape[1:]))
    return layer


def _normal(rng, shape):
    return rng.normal(size=shape).astype("float32")


class TestExact:
    @given(convolutions(), st.lists(changes, max_size=5), st.integers(0, 2**32))
    def test_equals_keras_and_a_fresh_layer(self, convolution, kinds, seed):
        arguments, shape = convolution
        rng = np.random.default_rng(seed)
        layer = _layer(shape, **arguments)
        frames = _normal(rng, shape)
        recomputed = []
        for kind in ["full", *kinds]:
            frames = change(frames, kind, rng)
            outputs = layer(frames)
            assert_close(outputs, plain_conv2d(layer, frames))
            fresh = fresh_twin(layer)
            assert_same_bits(outputs, fresh(frames))
            total = layer.stats.recomputed_positions
            recomputed.append(total - sum(recomputed))
            positions = fresh.stats.positions
            assert recomputed[-1] <= positions
            if kind == "none":
                assert recomputed[-1] == 0
        assert recomputed[0] == positions
        assert layer.stats.positions == len(recomputed) * positions

    @settings(max_examples=60)
    @given(
        convolutions(),
        st.lists(
            st.sampled_from(
                [
                    *CHANGES,
                    "batch",
                    "shape",
                    "weights",
                    "bias",
                    "reset",
                    "training",
                    "gradient",
                    "graph",
                ]
            ),
            min_size=3,
            max_size=9,
        ),
        st.integers(0, 2**32),
    )
    def test_right_after_any_history(self, convolution, events, seed):
        arguments, shape = convolution
        rng = np.random.default_rng(seed)
        layer = _layer(shape, **arguments)
        in_graph = tf.function(layer, autograph=False)
        frames = _normal(rng, shape)
        kept = [(layer(frames), plain_conv2d(layer, frames).numpy())]
        for event in events:
            function = layer
            if event in CHANGES:
                frames = change(frames, event, rng)
            elif event == "batch":
                frames = np.resize(
                    frames, (rng.integers(1, 5), *frames.shape[1:])
                )
            elif event == "shape":
                taller, wider = rng.integers(0, 3, 2)
                frames = _normal(
                    rng,
                    (shape[0], shape[1] + taller, shape[2] + wider, shape[3]),
                )
            elif event == "weights":
                layer.set_weights(
                    [_normal(rng, w.shape) for w in layer.get_weights()]
                )
            elif event == "bias" and layer.use_bias:
                layer.bias.assign_add(_normal(rng, layer.bias.shape))
            elif event == "reset":
                layer.reset_state()
                assert layer.stats == Stats()
            elif event == "training" and layer.groups == 1:
                layer(_normal(rng, frames.shape), training=True)
            elif event == "gradient" and layer.groups == 1:
                with tf.GradientTape() as tape:
                    loss = tf.reduce_sum(layer(frames))
                tape.gradient(loss, layer.kernel.value)
            elif event == "graph":
                function = in_graph
                frames = change(frames, "some", rng)
            outputs = function(frames)
            want = plain_conv2d(layer, frames).numpy()
            assert_close(outputs, want)
            assert_same_bits(outputs, fresh_twin(layer)(frames))
            # Outputs that somebody holds are never written to, in whatever
            # order they are let go.
            kept.append((outputs, want))
            del outputs
            if rng.random() < 0.5:
                kept.pop(rng.integers(len(kept)))
        for outputs, want in kept:
            assert_close(outputs, want)

    @pytest.mark.parametrize("held", range(4))
    def test_outputs_are_not_overwritten(self, held):
        """The last `held` outputs are kept, besides every fifth."""
        rng = np.random.default_rng(0)
        layer = _layer([1, 9, 9, 2], 3, 3)
        frames = _normal(rng, [2, 9, 9, 2])
        forever, recent = [], []
        for step in range(30):
            frames = change(frames, "corner" if step % 3 else "some", rng)
            if step % 4 == 3:
                frames = change(frames, "none", rng)
            outputs = layer(frames)
            pair = outputs, outputs.numpy()
            del outputs
            recent = [*recent, pair][len(recent) + 1 - held :]
            if step % 5 == 0:
                forever.append(pair)
            del pair
            for got, want in forever + recent:
                assert_same_bits(got, want)

    def test_outputs_held_and_let_go_at_random(self):
        """Two tables take turns; each must catch up with the other."""
        rng = np.random.default_rng(0)
        layer = _layer([1, 12, 12, 1], 2, 3)
        fresh = fresh_twin(layer)
        frames = _normal(rng, [2, 12, 12, 1])
        held = []
        for _ in range(300):
            frames = change(frames, "one", rng)
            outputs = layer(frames)
            fresh.reset_state()
            want = fresh(frames).numpy()
            assert_same_bits(outputs, want)
            if rng.random() < 0.5:
                held.append((outputs, want))
            del outputs
            if rng.random() < 0.3:
                held.clear()
            for got, want in held:
                assert_same_bits(got, want)
        # Few positions at a time, or this would not be tested.
        assert layer.stats.recomputed_positions < 0.1 * layer.stats.positions

    def test_the_same_values_in_another_shape(self):
        rng = np.random.default_rng(0)
        layer = _layer([1, 8, 6, 2], 3, 3, padding="same")
        values = _normal(rng, [2 * 8 * 6 * 2])
        for shape in [(2, 8, 6, 2), (2, 6, 8, 2), (1, 16, 6, 2), (4, 4, 6, 2)]:
            frames = values.reshape(shape)
            assert_close(layer(frames), plain_conv2d(layer, frames))

    def test_parts_and_arrays_of_outputs_are_not_overwritten(self):
        rng = np.random.default_rng(0)
        layer = _layer([1, 9, 9, 2], 3, 3)
        frames = _normal(rng, [4, 9, 9, 2])
        kept = []
        for _ in range(6):
            frames = change(frames, "some", rng)
            outputs = layer(frames)
            want = outputs.numpy()
            kept.append((tf.reshape(outputs, [-1]), want.reshape(-1)))
            kept.append((outputs[1:3], want[1:3]))
            kept.append((np.asarray(outputs), want))
            if hasattr(outputs, "__dlpack__"):  # From TensorFlow 2.20 on.
                kept.append((np.from_dlpack(outputs), want))
            del outputs
            layer(change(frames, "full", rng))
        for got, want in kept:
            assert_same_bits(got, want)

    def test_inputs_may_be_written_to_afterwards(self):
        """Frames are often kept in one array that is overwritten."""
        rng = np.random.default_rng(0)
        layer = _layer([1, 9, 9, 2], 3, 3)
        frames = _normal(rng, [1, 9, 9, 2])
        variable = tf.Variable(frames)
        for step in range(6):
            frames[0, step, step] += 1
            assert_close(layer(frames), plain_conv2d(layer, frames))
            variable[0, step, step].assign([5.0, step])
            assert_close(layer(variable), plain_conv2d(layer, variable))

    @pytest.mark.parametrize(
        "groups, channels, filters", [(2, 4, 6), (3, 3, 3), (3, 3, 6)]
    )
    def test_groups_equal_keras(self, groups, channels, filters):
        rng = np.random.default_rng(0)
        layer = _layer([1, 7, 7, channels], filters, 3, groups=groups)
        plain = plain_twin(layer)
        frames = _normal(rng, [2, 7, 7, channels])
        for kind in "none", "some":
            frames = change(frames, kind, rng)
            assert_close(layer(frames), plain(frames))

    def test_large_frames(self):
        """Enough for several threads and blocks, and words of the mask."""
        rng = np.random.default_rng(0)
        layer = _layer([1, 100, 130, 3], 37, (3, 5), padding="same")
        frames = _normal(rng, [2, 100, 130, 3])
        for kind in "full", "corner", "some", "border":
            frames = change(frames, kind, rng)
            outputs = layer(frames)
            assert_close(outputs, plain_conv2d(layer, frames))
            assert_same_bits(outputs, fresh_twin(layer)(frames))

    def test_empty_batch(self):
        layer = _layer([1, 6, 6, 2], 4, 3)
        frames = np.ones([2, 6, 6, 2], "float32")
        before = layer(frames)
        assert layer(frames[:0]).shape == (0, 4, 4, 4)
        assert_same_bits(layer(frames), before)

    @pytest.mark.parametrize(
        "shape",
        [(6, 6, 2), (1, 6, 6, 3), (1, 1, 6, 6, 2), (1, 1, 6, 2), (1, 2, 2, 2)],
    )
    def test_wrong_inputs_raise_as_in_keras(self, shape):
        layer = _layer([1, 6, 6, 2], 4, 3)
        frames = np.ones([1, 6, 6, 2], "float32")
        want = layer(frames)
        errors = ValueError, tf.errors.InvalidArgumentError
        for each in plain_twin(layer), layer, tf.function(layer):
            with pytest.raises(errors):
                each(np.ones(shape, "float32"))
        assert_same_bits(layer(frames), want)

    def test_no_position_stays_stale_after_an_error(self):
        layer = _layer([1, 6, 6, 2], 4, 3)
        frames = np.ones([1, 6, 6, 2], "float32")
        layer(frames)
        with pytest.raises(tf.errors.InvalidArgumentError):
            ops.incremental_conv2d(
                layer._state.handle,
                2 * frames,
                tf.ones([3, 3, 2, 4]),
                tf.zeros([5]),
                strides=[1, 1],
                dilations=[1, 1],
                padding="VALID",
            )
        assert_close(layer(2 * frames), plain_conv2d(layer, 2 * frames))


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize("use_bias", [1, 0, np.True_, None])
def test_use_bias_is_what_keras_takes(use_bias, in_graph):
    layer = IncrementalConv2D(4, 3, use_bias=use_bias)
    frame = np.ones((1, 5, 5, 1), np.float32)
    layer.build(frame.shape)
    call = tf.function(layer) if in_graph else layer
    assert_close(call(frame), plain_twin(layer)(frame))


def test_layers_as_activations_do_all_that_they_do():
    relu = keras.layers.ReLU
    frame = np.ones((1, 5, 5, 1), np.float32)
    layer = IncrementalConv2D(4, 3, activation=relu(dtype="float16"))
    assert layer(frame).dtype == tf.float16
    layer = IncrementalConv2D(4, 3, activation=relu(activity_regularizer="l2"))
    layer(frame)
    assert len(layer.losses) == 1


class TestStats:
    def test_counts(self):
        layer = IncrementalConv2D(5, 3, padding="same")
        assert layer.stats == Stats(0, 0, 0, 0, 0)
        frames = np.zeros([2, 6, 7, 4], "float32")
        cost = 3 * 3 * 4 * 5
        layer(frames)
        assert layer.stats == Stats(2, 84, 84, 84 * cost, 84 * cost)
        layer(frames)
        assert layer.stats == Stats(4, 168, 84, 84 * cost, 168 * cost)
        frames[0, 3, 3, 1] = 1  # nine windows hold it
        layer(frames)
        assert layer.stats == Stats(6, 252, 93, 93 * cost, 252 * cost)
        frames[1, 5, 6, 0] = 1  # four
        frames[0, 0, 0, 0] = 1  # four
        layer(frames)
        assert layer.stats == Stats(8, 336, 101, 101 * cost, 336 * cost)
        layer.bias.assign_add(np.ones(5))
        layer(frames)
        assert layer.stats.recomputed_positions == 185
        assert layer.stats.frames == 10
        assert all(type(count) is int for count in layer.stats)
        layer.reset_state()
        assert layer.stats == Stats()

    def test_counts_of_strides_dilation_and_groups(self):
        layer = IncrementalConv2D(4, (1, 2), strides=(2, 3), groups=2)
        frames = np.zeros([1, 5, 8, 2], "float32")
        layer(frames)  # 3 x 3 positions, at x of 0, 3 and 6
        frames[0, :, 2] = 1  # between windows
        frames[0, 1] = 1
        layer(frames)
        assert layer.stats == Stats(2, 18, 9, 9 * 8, 18 * 8)
        frames[0, 2, 4] = 2
        layer(frames)
        assert layer.stats.recomputed_positions == 10
        layer = IncrementalConv2D(1, 2, dilation_rate=3)
        frames = np.zeros([1, 9, 9, 1], "float32")
        layer(frames)
        frames[0, 4, 4] = 1
        layer(frames)
        assert layer.stats.recomputed_positions == 36 + 4

    def test_plain_calls_are_not_counted(self):
        layer = IncrementalConv2D(4, 3)
        layer(np.zeros([1, 6, 6, 2], "float32"), training=True)
        assert layer.stats == Stats()


class TestThreshold:
    @pytest.mark.parametrize(
        "threshold",
        [-1, -1e-9, float("nan"), float("inf"), "much", "0.1", True, None, []],
    )
    def test_bad_values_are_named(self, threshold):
        with pytest.raises(ValueError, match="threshold"):
            IncrementalConv2D(4, 3, threshold=threshold)

    def test_may_be_set(self):
        layer = IncrementalConv2D(4, 3)
        frame = np.zeros((1, 5, 5, 1), np.float32)
        layer(frame)
        layer.threshold = 1
        want = np.array(layer(frame))
        assert_same_bits(tf.function(layer)(frame + 0.5), want)
        with pytest.raises(ValueError, match="threshold"):
            layer.threshold = -1
        assert layer.threshold == 1

    def test_is_in_the_config(self):
        layer = IncrementalConv2D(4, 3, threshold=0.25)
        assert layer.get_config()["threshold"] == 0.25
        assert IncrementalConv2D.from_config(layer.get_config()).threshold == (
            0.25
        )
        assert IncrementalConv2D(4, 3).threshold == 0

    def test_the_error_stays_bounded_over_a_slow_drift(self):
        rng = np.random.default_rng(0)
        threshold = 0.1
        layer = _layer([1, 8, 8, 2], 4, 3, padding="same", threshold=threshold)
        plain = plain_twin(layer)
        bound = threshold * np.abs(layer.get_weights()[0]).sum((0, 1, 2))
        frames = _normal(rng, [1, 8, 8, 2])
        for _ in range(200):
            drift = rng.uniform(0, threshold / 8, frames.shape)
            frames = (frames + drift).astype("float32")
            error = np.abs(layer(frames) - plain(frames))
            assert np.all(error <= bound + 1e-4)
        # It has skipped some, and not lost track of the drift of 1.25.
        assert (
            0.02
            < (layer.stats.recomputed_positions / layer.stats.positions)
            < 1
        )

    @given(
        convolutions(),
        st.lists(changes, max_size=5),
        st.sampled_from([0.2, 1.0]),
        st.integers(0, 2**32),
    )
    def test_is_the_convolution_of_what_is_remembered(
        self, convolution, kinds, threshold, seed
    ):
        arguments, shape = convolution
        rng = np.random.default_rng(seed)
        layer = _layer(shape, **arguments, threshold=threshold)
        frames = seen = _normal(rng, shape)
        layer(frames)
        for kind in kinds:
            frames = frames + _normal(rng, shape) * threshold / 3
            frames = change(frames, kind, rng)
            with np.errstate(invalid="ignore"):
                far = (frames != seen) & ~(abs(frames - seen) <= threshold)
            far = np.any(far, -1, keepdims=True)
            seen = np.where(far, frames, seen)
            assert_close(layer(frames), plain_conv2d(layer, seen))

    def test_new_weights_use_the_newest_frame(self):
        layer = _layer([1, 6, 6, 2], 4, 3, threshold=1.0)
        frames = np.zeros([1, 6, 6, 2], "float32")
        layer(frames)
        frames += 0.5
        layer.kernel.assign(layer.kernel + 1)
        assert_close(layer(frames), plain_conv2d(layer, frames))


class TestPlain:
    """When it is the plain convolution."""

    @pytest.mark.parametrize("policy", ["mixed_float16", "float64", "bfloat16"])
    def test_policies(self, policy):
        rng = np.random.default_rng(0)
        layer = IncrementalConv2D(4, 3, dtype=policy)
        layer.build((None, 6, 6, 2))
        plain = plain_twin(layer)
        frames = _normal(rng, [1, 6, 6, 2])
        for _ in range(2):
            frames = change(frames, "some", rng)
            got, want = layer(frames), plain(frames)
            assert got.dtype == want.dtype
            np.testing.assert_array_equal(
                tf.cast(got, "float64"), tf.cast(want, "float64")
            )
        assert layer.stats == Stats()

    @pytest.mark.parametrize("dtype", ["uint8", "int32", "float64", "float16"])
    def test_inputs_of_other_dtypes(self, dtype):
        """Keras casts floats to the policy, and refuses integers."""
        layer = _layer([1, 6, 6, 2], 4, 3)
        plain = plain_twin(layer)
        frames = tf.ones([1, 6, 6, 2], dtype)
        try:
            want = plain(frames)
        except Exception as error:
            with pytest.raises(type(error)):
                layer(frames)
        else:
            assert_close(layer(frames), want)

    def test_training(self):
        rng = np.random.default_rng(0)
        layer = _layer([1, 6, 6, 2], 4, 3, activation="relu")
        frames = _normal(rng, [1, 6, 6, 2])
        assert_same_bits(
            layer(frames, training=True), plain_twin(layer)(frames)
        )
        training = tf.function(lambda frames, t: layer(frames, training=t))
        assert_close(
            training(frames, tf.constant(True)), plain_twin(layer)(frames)
        )
        assert layer.stats == Stats()
        layer(frames, training=False)
        assert layer.stats.frames == 1

    def test_xla(self):
        rng = np.random.default_rng(0)
        layer = _layer([1, 6, 6, 2], 4, 3, activation="relu")
        frames = _normal(rng, [1, 6, 6, 2])
        inner = tf.function(layer)
        for function in [
            tf.function(layer, jit_compile=True),
            tf.function(lambda x: inner(x) + 0, jit_compile=True),
            tf.function(
                lambda x: tf.cond(
                    tf.reduce_sum(x) < 1e9, lambda: layer(x), lambda: layer(-x)
                ),
                jit_compile=True,
            ),
        ]:
            assert_close(function(frames), plain_twin(layer)(frames))
        assert_close(layer(frames), plain_twin(layer)(frames))

    def test_channels_first(self):
        """Behaves as Keras does, which depends on the processor."""
        layer = IncrementalConv2D(4, 3, data_format="channels_first")
        layer.build((None, 2, 6, 6))
        frames = np.ones([1, 2, 6, 6], "float32")
        try:
            want = plain_twin(layer)(frames)
        except Exception as error:
            with pytest.raises(type(error)):
                layer(frames)
        else:
            assert_close(layer(frames), want)
        assert layer.stats == Stats()

    def test_symbolic_inputs(self):
        layer = IncrementalConv2D(4, 3)
        outputs = layer(keras.Input((6, None, 2)))
        assert outputs.shape == (None, 4, None, 4)

    def test_arguments_are_checked_as_in_keras(self):
        for arguments in [
            {"filters": 0, "kernel_size": 3},
            {"filters": 4, "kernel_size": 0},
            {"filters": 4, "kernel_size": 3, "strides": 2, "dilation_rate": 2},
            {"filters": 4, "kernel_size": 3, "groups": 3},
            {"filters": 4, "kernel_size": 3, "padding": "causal"},
        ]:
            with pytest.raises(ValueError):
                IncrementalConv2D(**arguments)


class TestGradient:
    @pytest.mark.parametrize("in_graph", [False, True])
    @pytest.mark.parametrize(
        "arguments",
        [
            {"activation": "relu"},
            {"activation": "gelu", "padding": "same", "strides": (1, 2)},
            {"activation": "softmax", "dilation_rate": (2, 1)},
            {"use_bias": False, "activation": "elu"},
            {"groups": 2, "padding": "same"},
        ],
        ids=str,
    )
    def test_is_the_dense_one(self, arguments, in_graph):
        rng = np.random.default_rng(0)
        layer = _layer([1, 6, 7, 4], 6, (3, 2), **arguments)
        plain = plain_twin(layer)
        frames = _normal(rng, [2, 6, 7, 4])

        def gradients(layer):
            def function(frames):
                sources = [frames, *[w.value for w in layer.trainable_weights]]
                with tf.GradientTape(persistent=True) as tape:
                    tape.watch(frames)
                    outputs = layer(frames)
                    loss = tf.reduce_sum(outputs**2)
                    other = tf.reduce_sum(tf.sin(outputs))
                return tape.gradient(loss, sources), tape.gradient(
                    other, sources
                )

            return tf.function(function) if in_graph else function

        mine, dense = gradients(layer), gradients(plain)
        for kind in "none", "corner", "some":
            frames = tf.constant(change(np.asarray(frames), kind, rng))
            got, want = mine(frames), dense(frames)
            for a, b in zip(
                tf.nest.flatten(got), tf.nest.flatten(want), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        assert layer.stats.frames == 6

    @pytest.mark.parametrize("in_graph", [False, True])
    def test_second_order(self, in_graph):
        rng = np.random.default_rng(0)
        layer = _layer([1, 5, 5, 2], 3, 3, activation="tanh")
        plain = plain_twin(layer)
        frames = tf.constant(_normal(rng, [2, 5, 5, 2]))

        def gradients(layer):
            def function(frames):
                sources = [frames, *[w.value for w in layer.trainable_weights]]
                with tf.GradientTape() as outer:
                    outer.watch(frames)
                    with tf.GradientTape() as tape:
                        tape.watch(frames)
                        loss = tf.reduce_sum(layer(frames) ** 2)
                    penalty = tf.reduce_sum(tape.gradient(loss, frames) ** 2)
                return outer.gradient(penalty, sources)

            return tf.function(function) if in_graph else function

        for got, want in zip(
            gradients(layer)(frames), gradients(plain)(frames), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


class TestSharing:
    @pytest.mark.parametrize("in_graph", [False, True])
    def test_threads_get_their_own_answers(self, in_graph):
        rng = np.random.default_rng(0)
        # Large enough for calls to overlap.
        layer = _layer([1, 50, 50, 8], 16, 3)
        function = tf.function(layer) if in_graph else layer
        # Of two shapes, and resembling each other.
        first = _normal(rng, [1, 50, 50, 8])
        inputs = [change(first, "some", rng) for _ in range(3)]
        inputs.append(_normal(rng, [2, 50, 50, 8]))
        wants = [fresh_twin(layer)(frames).numpy() for frames in inputs]

        def call(frames, want):
            kept = [function(frames) for _ in range(40)]
            for outputs in kept:
                assert_same_bits(outputs, want)

        children.in_threads(call, *zip(inputs, wants, strict=True))
        assert layer.stats.frames == 40 * 5

    def test_in_a_dataset(self):
        rng = np.random.default_rng(0)
        layer = _layer([1, 6, 6, 2], 4, 3)
        frames = _normal(rng, [8, 1, 6, 6, 2])
        dataset = tf.data.Dataset.from_tensor_slices(frames).map(
            layer, num_parallel_calls=2
        )
        for got, one in zip(dataset, frames, strict=True):
            assert_same_bits(got, fresh_twin(layer)(one))
