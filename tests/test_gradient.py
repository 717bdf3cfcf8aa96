"""The gradient of whole videos against a plain tape over plain layers."""

import ctypes

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import breaks_tensorflow
from hypothesis import given, settings
from hypothesis import strategies as st
from test_runner import GAMES, chains, layers_of, record

import reuse_tf
from reuse_tf import Runner

L = keras.layers


def convolve(layer, inputs):
    """A convolution, group by group: Keras would take XLA to the groups."""
    if len(inputs) > 1 and breaks_tensorflow(layer, inputs.shape):
        return tf.concat([convolve(layer, x[None]) for x in inputs], 0)
    outputs = tf.concat(
        [
            tf.nn.convolution(
                part,
                kernel,
                strides=layer.strides,
                padding=layer.padding.upper(),
                dilations=layer.dilation_rate,
            )
            for part, kernel in zip(
                tf.split(inputs, layer.groups, -1),
                tf.split(layer.kernel.value, layer.groups, -1),
                strict=True,
            )
        ],
        -1,
    )
    if layer.use_bias:
        outputs += layer.bias.value
    return layer.activation(outputs)


def dense(model, frames):
    """What Keras computes, layer by layer."""
    outputs = tf.cast(frames, tf.float32)
    for layer in layers_of(model):
        if isinstance(layer, L.Conv2D):
            outputs = convolve(layer, outputs)
        else:
            outputs = layer(outputs, training=False)
    return outputs


def gradients(forward, model, loss):
    with tf.GradientTape() as tape:
        outputs = forward()
        value = loss(outputs)
    return outputs, tape.gradient(value, model.trainable_variables)


def assert_close(got, want, tolerance=2e-4):
    scale = max(1e-3, float(np.max(np.abs(want), initial=0)))
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


def assert_same_gradients(got, want):
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        if other is not None:
            assert_close(one, tf.convert_to_tensor(other))


def assert_same_structures(got, want):
    for one, other in zip(
        tf.nest.flatten(got), tf.nest.flatten(want), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def random_video(rng, frames, shape, dtype):
    """Frames of few values, some of which change from one to the next."""
    values = rng.integers(0, 4, (frames, *shape))
    for t in range(1, frames):
        keeps = rng.random(shape) < rng.choice([0, 0.7, 0.95, 1])
        values[t][keeps] = values[t - 1][keeps]
    video = values.astype(dtype)
    return video if dtype == "uint8" else video / 3 - 0.4


def random_loss(rng, outputs_shape):
    """Of every output, not linear, and different at every time."""
    weights = tf.constant(rng.normal(size=outputs_shape), tf.float32)
    return lambda outputs: tf.reduce_sum(weights * tf.sin(outputs))


def policy(shape=(12, 10, 1), units=3, filters=(4, 6)):
    return reuse_tf.policies.build_policy(shape, units, filters)


def of_floats():
    """A model whose input is float32, so that bytes are another dtype."""
    return keras.Sequential(
        [keras.Input((12, 10, 1)), L.Conv2D(4, 3), L.Flatten(), L.Dense(3)]
    )


class TestChains:
    @settings(max_examples=60)
    @given(
        chains(),
        st.integers(1, 6),
        st.sampled_from(["uint8", "float32"]),
        st.integers(0, 2**32),
    )
    def test_equal_to_a_plain_tape(self, chain, frames, dtype, seed):
        make, shape = chain
        model = make()
        rng = np.random.default_rng(seed)
        video = random_video(rng, frames, shape, dtype)
        loss = random_loss(rng, (frames, *model.output_shape[1:]))
        runner = Runner(model)
        want, wanted = gradients(lambda: dense(model, video), model, loss)
        got, gradient = gradients(lambda: runner(video), model, loss)
        assert_close(got, want)
        assert_same_gradients(gradient, wanted)


class TestGames:
    @pytest.mark.parametrize("game", GAMES)
    def test_equal_to_a_plain_tape(self, game):
        video = record(game, 50)
        keras.utils.set_random_seed(0)
        model = policy(video.shape[1:], 6, (8, 16))
        rng = np.random.default_rng(0)
        loss = random_loss(rng, (len(video), 6))
        want, wanted = gradients(lambda: dense(model, video), model, loss)
        got, gradient = gradients(lambda: Runner(model)(video), model, loss)
        assert_close(got, want)
        assert_same_gradients(gradient, wanted)


class TestVideos:
    @pytest.mark.parametrize("kind", ["one", "identical", "all different"])
    def test_special_videos(self, kind):
        rng = np.random.default_rng(0)
        model = policy()
        frames = {"one": 1, "identical": 9, "all different": 9}[kind]
        video = rng.integers(0, 256, (frames, 12, 10, 1), np.uint8)
        if kind == "identical":
            video[:] = video[0]
        loss = random_loss(rng, (frames, 3))
        want, wanted = gradients(lambda: dense(model, video), model, loss)
        got, gradient = gradients(lambda: Runner(model)(video), model, loss)
        assert_close(got, want)
        assert_same_gradients(gradient, wanted)

    # Around the width from which on matrix products are other ones, and with
    # fewer and more frames than a product takes at once.
    @pytest.mark.parametrize("units", [3, 4, 31, 32, 33, 100])
    @pytest.mark.parametrize("frames", [3, 50])
    def test_wide_dense_layers(self, units, frames):
        rng = np.random.default_rng(units)
        keras.utils.set_random_seed(units)
        model = keras.Sequential(
            [
                keras.Input((9, 8, 2)),
                L.Conv2D(5, 3, strides=2, activation="relu"),
                L.Flatten(),
                L.Dense(units, activation="tanh"),
                L.Dense(2),
            ]
        )
        video = random_video(rng, frames, (9, 8, 2), "uint8")
        loss = random_loss(rng, (frames, 2))
        runner = Runner(model)
        want, wanted = gradients(lambda: dense(model, video), model, loss)
        got, gradient = gradients(lambda: runner(video), model, loss)
        assert_close(got, want)
        assert_same_gradients(gradient, wanted)
        for t, frame in enumerate(video):
            assert_close(runner.step(frame[None])[0], got[t], 1e-5)

    # What stands before a convolution is learned in some of these models: the
    # gradient then has to reach it, however deep it is.
    @pytest.mark.parametrize(
        "before",
        [
            [],
            [L.Rescaling(0.1)],
            [L.Rescaling(0.1), L.AveragePooling2D(2)],
            [L.BatchNormalization()],
            [L.BatchNormalization(), L.MaxPooling2D(2)],
            [L.PReLU(shared_axes=[1, 2])],
        ],
    )
    def test_what_is_learned_before_the_first_convolution(self, before):
        rng = np.random.default_rng(0)
        model = keras.Sequential(
            [
                keras.Input((8, 8, 2)),
                *(type(one).from_config(one.get_config()) for one in before),
                L.Conv2D(3, 3, activation="relu"),
                L.Flatten(),
                L.Dense(2),
            ]
        )
        for weight in model.weights:
            weight.assign(rng.uniform(0.2, 1, weight.shape))
        video = random_video(rng, 6, (8, 8, 2), "float32")
        loss = random_loss(rng, (6, 2))
        plain = lambda: model(video, training=False)  # noqa: E731
        want, wanted = gradients(plain, model, loss)
        got, gradient = gradients(lambda: Runner(model)(video), model, loss)
        assert_close(got, want)
        assert_same_gradients(gradient, wanted)

    def test_no_frames(self):
        model = policy()
        video = np.zeros((0, 12, 10, 1), np.uint8)
        outputs, gradient = gradients(
            lambda: Runner(model)(video), model, tf.reduce_sum
        )
        assert outputs.shape == (0, 3)
        for variable, value in zip(
            model.trainable_variables, gradient, strict=True
        ):
            assert_close(value, tf.zeros(variable.shape))

    def test_several_videos(self):
        rng = np.random.default_rng(0)
        model = policy()
        runner = Runner(model)
        videos = [
            random_video(rng, frames, (12, 10, 1), "uint8")
            for frames in (5, 0, 1, 7)
        ]
        losses = [random_loss(rng, (len(video), 3)) for video in videos]

        def total(outputs):
            return tf.add_n(
                [f(y) for f, y in zip(losses, outputs, strict=True)]
            )

        got, gradient = gradients(lambda: runner(videos), model, total)
        # TensorFlow's own convolution of an empty batch has a wrong shape on
        # some processors.
        want, wanted = gradients(
            lambda: [
                dense(model, video) if len(video) else tf.zeros([0, 3])
                for video in videos
            ],
            model,
            total,
        )
        assert [len(y) for y in got] == [5, 0, 1, 7]
        for one, other in zip(got, want, strict=True):
            assert_close(one, other)
        assert_same_gradients(gradient, wanted)
        assert runner([]) == []

    def test_structures_come_one_by_one(self):
        runner = Runner(of_floats())
        structure = runner.structure(np.zeros((2, 12, 10, 1), np.uint8))
        with pytest.raises(ValueError, match="a list with structures"):
            runner([structure, structure])

    def test_several_videos_of_unknown_lengths(self):
        rng = np.random.default_rng(0)
        runner = Runner(policy())
        signature = [tf.TensorSpec([None, 12, 10, 1], tf.uint8)] * 2
        function = tf.function(
            lambda *videos: runner(videos), input_signature=signature
        )
        for lengths in (3, 2), (0, 4), (1, 1):
            videos = [
                random_video(rng, frames, (12, 10, 1), "uint8")
                for frames in lengths
            ]
            got = function(*videos)
            for one, other in zip(got, runner(videos), strict=True):
                assert_close(one, other)
            assert tuple(len(y) for y in got) == lengths

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e15, 1e30])
    @pytest.mark.parametrize("end", [L.Flatten, L.GlobalAveragePooling2D])
    def test_no_frame_touches_another(self, value, end):
        """To the bit: each is what a step makes of it alone."""
        rng = np.random.default_rng(0)
        model = keras.Sequential(
            [keras.Input((12, 10, 1)), L.Conv2D(4, 3), end(), L.Dense(3)]
        )
        video = random_video(rng, 5, (12, 10, 1), "float32")
        video[1, 3, 3] = value
        # Of a model that ends with the sum.
        outputs = Runner(model)(video).numpy()
        want = [Runner(model).step(frame[None])[0] for frame in video]
        if end is L.Flatten:
            np.testing.assert_array_equal(outputs, want)
        others = [0, 2, 3, 4]
        assert_close(outputs[others], np.stack(want)[others])
        assert np.isfinite(outputs[others]).all()
        finite = np.isfinite(model(video)[1].numpy())
        np.testing.assert_array_equal(np.isfinite(outputs[1]), finite)

    def test_gradients_that_there_are_none_of(self):
        runner = Runner(of_floats())
        frames = tf.ones([3, 12, 10, 1])
        weights = runner.model.trainable_variables
        with tf.GradientTape(persistent=True) as outer:
            outer.watch(frames)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(runner(frames) ** 2)
            gradient = tape.gradient(loss, weights)
            penalty = tf.reduce_sum(gradient[0] ** 2)
        with pytest.raises(NotImplementedError, match="respect to frames"):
            outer.gradient(loss, frames)
        with pytest.raises(NotImplementedError, match="second derivative"):
            outer.gradient(penalty, weights)

    def test_one_structure_many_weights(self):
        rng = np.random.default_rng(0)
        model = policy()
        runner = Runner(model)
        video = random_video(rng, 12, (12, 10, 1), "uint8")
        structure = runner.structure(video)
        loss = random_loss(rng, (12, 3))
        optimizer = keras.optimizers.SGD(0.1)
        for _ in range(3):
            want, wanted = gradients(lambda: dense(model, video), model, loss)
            got, gradient = gradients(lambda: runner(structure), model, loss)
            assert_close(got, want)
            assert_same_gradients(gradient, wanted)
            optimizer.apply(gradient, model.trainable_variables)

    def test_same_bits_again(self):
        rng = np.random.default_rng(0)
        model = policy((40, 40, 1), 5, (16, 24))
        runner = Runner(model)
        video = rng.integers(0, 256, (4, 40, 40, 1), np.uint8)
        loss = random_loss(rng, (4, 5))
        first = gradients(lambda: runner(video), model, loss)
        for _ in range(3):
            again = gradients(lambda: runner(video), model, loss)
            np.testing.assert_array_equal(first[0], again[0])
            for one, other in zip(first[1], again[1], strict=True):
                np.testing.assert_array_equal(one, other)

    def test_in_a_function(self):
        rng = np.random.default_rng(0)
        model = policy()
        runner = Runner(model)
        video = random_video(rng, 6, (12, 10, 1), "uint8")
        loss = random_loss(rng, (6, 3))

        @tf.function
        def update(frames):
            return gradients(lambda: runner(frames), model, loss)

        got, gradient = update(tf.constant(video))
        want, wanted = gradients(lambda: dense(model, video), model, loss)
        assert_close(got, want)
        assert_same_gradients(gradient, wanted)

    def test_leaves_stepping_alone(self):
        rng = np.random.default_rng(0)
        model = policy()
        runner = Runner(model)
        video = random_video(rng, 6, (12, 10, 1), "uint8")
        runner.step(video[:1])
        before = runner.stats
        runner(video)
        assert runner.stats == before

    def test_bad_dtype(self):
        with pytest.raises(ValueError, match="uint8 or float32"):
            Runner(policy())(np.zeros((3, 12, 10, 1), np.int64))


class TestRecordings:
    @settings(max_examples=40)
    @given(
        chains(),
        st.lists(st.integers(0, 3), min_size=1, max_size=6),
        st.sampled_from(["uint8", "float32"]),
        st.integers(0, 2**32),
    )
    def test_equal_to_a_plain_tape(self, chain, streams, dtype, seed):
        """Of frames in the order in which they were stepped."""
        make, shape = chain
        model = make()
        rng = np.random.default_rng(seed)
        videos = [
            random_video(rng, len(streams), shape, dtype).astype(dtype)
            for _ in range(3)
        ]
        runner = Runner(model)
        # What was there before is no part of it.
        runner.step(random_video(rng, 1, shape, dtype).astype(dtype))
        runner.record(dtype)
        stepped, outputs = [], []
        for t, number in enumerate(streams):
            frames = np.stack([video[t] for video in videos])[:number]
            stepped += list(frames)
            outputs += list(runner.step(frames))
        structure = runner.recorded()
        if not stepped:
            assert structure is None
            return
        loss = random_loss(rng, (len(stepped), *model.output_shape[1:]))
        want, wanted = gradients(
            lambda: dense(model, np.stack(stepped)), model, loss
        )
        got, gradient = gradients(lambda: runner(structure), model, loss)
        assert_close(got, want)
        assert_close(np.stack(outputs), want)
        assert_same_gradients(gradient, wanted)

    def test_what_the_frames_alone_say(self):
        video = record("Alien", 40)
        runner = Runner(policy(video.shape[1:]))
        runner.record()
        for frame in video:
            runner.step(frame[None])
        assert_same_structures(runner.recorded(), runner.structure(video))

    def test_stepping_goes_on(self):
        video = record("Pong", 30)
        model = policy(video.shape[1:])
        want = [Runner(model).step(frame[None]) for frame in video]
        runner = Runner(model)
        for t, frame in enumerate(video):
            if t == 5:
                runner.record()
            if t in (20, 25):
                runner.recorded()
            if t == 22:
                model.layers[-1].kernel.assign(model.layers[-1].kernel)
            np.testing.assert_array_equal(runner.step(frame[None]), want[t])

    def test_weights_may_change_after_it(self):
        video = record("Breakout", 12)
        model = policy(video.shape[1:])
        runner = Runner(model)
        optimizer = keras.optimizers.SGD(0.1)
        for _ in range(3):
            runner.record()
            outputs = [runner.step(frame[None])[0] for frame in video]
            assert_close(np.stack(outputs), dense(model, video))
            loss = random_loss(np.random.default_rng(0), (12, 3))
            structure = runner.recorded()
            _, gradient = gradients(lambda s=structure: runner(s), model, loss)
            optimizer.apply(gradient, model.trainable_variables)

    @pytest.mark.parametrize("why", ["full", "weights", "temporal"])
    def test_one_that_was_cut_short_is_none(self, why):
        rng = np.random.default_rng(0)
        video = rng.integers(0, 256, (6, 1, 12, 10, 1), np.uint8)
        model = policy()
        runner = Runner(
            model,
            "temporal" if why == "temporal" else "auto",
            max_rows=300 if why == "full" else None,
        )
        runner.record()
        for frame in video:
            runner.step(frame)
            if why == "weights":
                kernel = model.layers[-1].kernel
                kernel.assign(kernel + 1)
        assert runner.recorded() is None

    def test_what_content_reuse_does_not_pay_for_is_recorded(self):
        rng = np.random.default_rng(0)
        video = rng.integers(0, 256, (80, 12, 10, 1), np.uint8)
        runner = Runner(policy())
        runner.record()
        for frame in video:
            runner.step(frame[None])
        assert runner.stats.switches == 0
        assert_same_structures(runner.recorded(), runner.structure(video))
        # It is given up when nobody asks for a structure any more.
        for frame in video:
            runner.step(frame[None])
        assert runner.stats.switches == 1

    def test_a_stream_that_is_reset_goes_on(self):
        video = record("Pong", 20)
        runner = Runner(policy(video.shape[1:]))
        runner.record()
        for t, frame in enumerate(video):
            if t % 7 == 3:
                runner.reset_state([0])
            runner.step(frame[None])
        assert_same_structures(runner.recorded(), runner.structure(video))

    def test_one_begins_anew(self):
        frames = np.zeros((1, 12, 10, 1), np.uint8)
        runner = Runner(policy())
        runner.record()
        runner.step(frames)
        runner.record()
        assert runner.recorded() is None
        runner.record()
        runner.step(frames)
        runner.record()
        runner.step(frames + 1)
        runner.step(frames + 2)
        assert len(runner.recorded().order) == 2

    def test_of_frames_of_another_dtype(self):
        """The first one ends: it does not go on for ever."""
        frames = np.zeros((1, 12, 10, 1), np.uint8)
        runner = Runner(of_floats())
        runner.record("uint8")
        runner.step(frames)
        runner.record("float32")
        runner.step(frames)
        assert runner.recorded() is None
        runner.record("float32")
        runner.step(frames.astype("float32"))
        assert len(runner.recorded().order) == 1
        runner.record("uint8")
        runner.step(frames)
        assert len(runner.recorded().order) == 1

    def test_of_frames_that_a_function_steps(self):
        frames = np.zeros((1, 12, 10, 1), np.uint8)
        floats = tf.zeros((1, 12, 10, 1))
        runner = Runner(of_floats())
        act = tf.function(runner.step)
        act(floats)
        runner.record()
        runner.step(frames)
        assert len(runner.recorded().order) == 1
        runner.record()
        runner.step(frames)
        act(floats)
        assert runner.recorded() is None

    def test_of_frames_of_another_size_that_a_function_steps(self):
        model = keras.Sequential(
            [
                keras.Input((None, None, 1)),
                keras.layers.Conv2D(2, 3),
                keras.layers.GlobalMaxPooling2D(),
            ]
        )
        frames = np.zeros((1, 12, 10, 1), np.uint8)
        runner = Runner(model)
        act = tf.function(runner.step)
        larger = tf.zeros((1, 14, 10, 1), tf.uint8)
        act(larger)
        runner.step(frames)
        runner.record()
        runner.step(frames)
        assert len(runner.recorded().order) == 1
        runner.record()
        runner.step(frames)
        act(larger)
        assert runner.recorded() is None

    @pytest.mark.skipif(
        not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc alone tells"
    )
    @pytest.mark.parametrize("reuse", ["content", "temporal"])
    def test_the_end_gives_memory_back(self, reuse):
        # What is allocated, as the system sees less of it: pages that are
        # given back may stay with the allocator.
        class Memory(ctypes.Structure):
            _fields_ = [
                (name, ctypes.c_size_t)
                for name in (
                    "arena ordblks smblks hblks hblkhd usmblks fsmblks "
                    "uordblks fordblks keepcost"
                ).split()
            ]

        mallinfo2 = ctypes.CDLL(None).mallinfo2
        mallinfo2.restype = Memory

        def allocated():
            memory = mallinfo2()
            return memory.uordblks + memory.hblkhd

        model = keras.Sequential(
            [
                keras.Input((40, 40, 1)),
                L.Conv2D(256, 3),
                L.GlobalAveragePooling2D(),
            ]
        )
        rng = np.random.default_rng(0)
        frames = rng.integers(0, 256, (60, 40, 40, 1), np.uint8)
        runner = Runner(model, reuse)
        runner.record()
        runner.step(frames)
        before = allocated()
        runner.recorded()
        rows = 60 * 38 * 38 * 256 * 4
        assert before - allocated() > 0.8 * rows

    def test_none_without_a_recording(self):
        runner = Runner(policy())
        assert runner.recorded() is None
        runner.record()
        assert runner.recorded() is None
        runner.record()
        runner.step(np.zeros((1, 12, 10, 1), np.uint8))
        assert runner.recorded() is not None
        assert runner.recorded() is None

    def test_bad_dtype(self):
        with pytest.raises(ValueError, match="uint8 or float32"):
            Runner(policy()).record("int64")


class TestTaking:
    """Some frames of a structure."""

    def runner_and_video(self):
        video = random_video(np.random.default_rng(0), 7, (12, 10, 1), "uint8")
        return Runner(policy()), video

    @pytest.mark.parametrize(
        "frames",
        [
            [2, 0, 0, 5],
            np.array([6], np.uint8),
            np.arange(7)[::-1],
            tf.constant([1, 3], tf.int64),
            [],
        ],
    )
    def test_the_outputs_are_those_of_the_frames(self, frames):
        runner, video = self.runner_and_video()
        structure = runner.structure(video).take(frames)
        want = runner(video[np.asarray(frames, int)])
        np.testing.assert_allclose(runner(structure), want, rtol=1e-5)

    def test_of_what_was_recorded_of_several_streams(self):
        runner, video = self.runner_and_video()
        runner.record()
        for frame in video:
            runner.step(np.stack([frame, video[0]]))
        taken = runner.recorded().take([5, 2, 12])
        # Places are those of the steps: frame 2 of stream 1, and so on.
        want = runner(video[[0, 1, 6]])
        np.testing.assert_allclose(runner(taken), want, rtol=1e-5)

    def test_in_a_function(self):
        runner, video = self.runner_and_video()
        structure = runner.structure(video)

        @tf.function
        def outputs(structure, frames):
            return runner(structure.take(frames))

        for frames in [0, 4], [3, 3, 6]:
            np.testing.assert_allclose(
                outputs(structure, tf.constant(frames)),
                runner(video[frames]),
                rtol=1e-5,
            )
        found = tf.function(runner.structure)(video)
        np.testing.assert_allclose(
            runner(found.take([1])), runner(video[[1]]), rtol=1e-5
        )

    @pytest.mark.parametrize("frames", [[7], [-1], [[0]], 3, [0.5], "all"])
    def test_what_is_no_frame_is_refused(self, frames):
        runner, video = self.runner_and_video()
        with pytest.raises(
            (ValueError, tf.errors.InvalidArgumentError), match="frames"
        ):
            runner.structure(video).take(frames)

    def test_malformed_structures_are_errors(self):
        """Or give something: never a crash."""
        rng = np.random.default_rng(0)
        inputs = keras.Input((6, 5, 1))
        x = keras.layers.Conv2D(2, 3)(inputs)
        y = keras.layers.GlobalMaxPooling2D(keepdims=True)(x)
        x = keras.layers.Add()([keras.layers.PReLU()(x), y])
        x = keras.layers.Flatten()(x)
        runner = Runner(keras.Model(inputs, keras.layers.Dense(2)(x)))
        video = random_video(rng, 5, (6, 5, 1), "uint8")
        structure = runner.structure(video)
        parts = tf.nest.flatten(structure)
        refused = 0
        for _ in range(300):
            wrong = list(parts)
            k = rng.integers(len(parts))
            if not (tf.is_tensor(parts[k]) and parts[k].dtype == tf.int32):
                continue
            values = parts[k].numpy()
            if rng.random() < 0.2:
                values = values[: rng.integers(len(values) + 1)]
            else:
                bad = rng.choice([-(2**31), -2, -1, 0, 1, 9, 99, 2**31 - 1])
                values.flat[rng.integers(values.size)] = bad
            wrong[k] = tf.constant(values)
            try:
                tf.nest.pack_sequence_as(structure, wrong).take([4, 1, 1])
            except tf.errors.InvalidArgumentError:
                refused += 1
        assert refused > 20
