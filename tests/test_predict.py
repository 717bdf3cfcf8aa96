"""`Runner.predict` against `keras.Model.predict`, and against `step`."""

import itertools
import re
import weakref

import children
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import assert_same_bits

from reuse_tf import Runner

L = keras.layers
SHAPE = (12, 10, 2)


def _body(shape=SHAPE):
    inputs = keras.Input(shape, name="frames")
    maps = L.Conv2D(4, 3, activation="relu", padding="same", name="maps")(
        inputs
    )
    return inputs, maps, L.Conv2D(3, 3, strides=2, activation="relu")(maps)


def vector():
    inputs, _, maps = _body()
    outputs = L.Dense(5, bias_initializer="random_normal")(L.Flatten()(maps))
    return keras.Model(inputs, outputs)


def heads():
    inputs, _, maps = _body()
    flat = L.Flatten()(maps)
    return keras.Model(
        inputs, {"policy": L.Dense(4)(flat), "value": L.Dense(1)(flat)}
    )


def maps():
    inputs, first, second = _body()
    return keras.Model(inputs, [second, first])


def pooled(shape=(None, None, 2)):
    inputs, first, second = _body(shape)
    return keras.Model(inputs, [L.GlobalAveragePooling2D()(second), first])


MODELS = [vector, heads, maps, pooled]


def video(frames=40, dtype=np.uint8, shape=SHAPE, seed=0):
    """A square that wanders over a still picture."""
    rng = np.random.default_rng(seed)
    frames = np.tile(rng.integers(0, 3, shape), (frames, 1, 1, 1))
    for t, frame in enumerate(frames):
        y, x = 2 + t % 5, t % (shape[1] - 3)
        frame[y : y + 3, x : x + 3] = 7
    return frames.astype(dtype)


def assert_equal(got, want):
    """The same structure, and equal to float rounding."""
    keras.tree.assert_same_structure(got, want)
    for one, other in zip(
        keras.tree.flatten(got), keras.tree.flatten(want), strict=True
    ):
        assert isinstance(one, np.ndarray) and one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def assert_same(got, want):
    """The same structure, and the same bits."""
    keras.tree.assert_same_structure(got, want)
    keras.tree.map_structure(assert_same_bits, got, want)


def stepped(runner, frames):
    """The outputs of `step`, frame by frame, of one stream."""
    steps = [runner.step(frame[None]) for frame in frames]
    return keras.tree.map_structure(lambda *o: np.concatenate(o), *steps)


def parts(frames, sizes=(1, 7, 0, 20, 100)):
    ends = np.minimum(np.cumsum(sizes), len(frames))
    return np.split(frames, ends[:-1])


@pytest.mark.parametrize("make", MODELS)
class TestEqual:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    @pytest.mark.parametrize("reuse", ["auto", "temporal"])
    def test_to_keras_and_step(self, make, dtype, reuse):
        model, frames = make(), video(dtype=dtype)
        outputs = Runner(model, reuse).predict(frames, verbose=0)
        assert_equal(outputs, model.predict(frames, verbose=0))
        assert_same(outputs, stepped(Runner(model, reuse), frames))

    def test_whatever_the_frames_come_in(self, make):
        runner, frames = Runner(make()), video()
        want = runner.predict(frames, verbose=0)
        batches = parts(frames)
        dataset = tf.data.Dataset.from_tensor_slices(frames)
        for x in (
            tf.constant(frames),
            np.asfortranarray(frames),
            (batch for batch in batches),
            map(tf.constant, batches),
            ((batch, None) for batch in batches),  # and labels
            dataset.batch(9),
            dataset.batch(9).map(lambda x: (x, x)),
            dataset.batch(9).filter(lambda x: True),  # of unknown length
        ):
            assert_same(runner.predict(x, verbose=0), want)
        assert_same(runner.predict(frames, 3, verbose=0), want)
        # Of any order of bytes.
        big = runner.predict(frames.astype(">f4"), verbose=0)
        assert_same(big, runner.predict(frames.astype(np.float32), verbose=0))

    def test_no_frames(self, make):
        model = make()
        outputs = Runner(model).predict(video(0), verbose=0)
        want = model.predict(video(1), verbose=0)
        keras.tree.assert_same_structure(outputs, want)
        assert [o.shape for o in keras.tree.flatten(outputs)] == [
            (0, *o.shape[1:]) for o in keras.tree.flatten(want)
        ]

    def test_weights_that_change_between_calls_and_within(self, make):
        model, frames = make(), video()
        runner = Runner(model)
        runner.predict(frames, verbose=0)
        weights = model.get_weights()
        changed = [weight * 1.5 for weight in weights]
        model.set_weights(changed)
        want = model.predict(frames, verbose=0)
        assert_equal(runner.predict(frames, verbose=0), want)

        def batches():
            yield frames
            model.set_weights(weights)
            yield frames

        both = runner.predict(batches(), verbose=0)
        back = model.predict(frames, verbose=0)
        assert_equal(
            both,
            keras.tree.map_structure(lambda *o: np.concatenate(o), want, back),
        )


class TestStreams:
    """A call is one new stream, which nobody else notices."""

    @pytest.mark.parametrize("make", [vector, maps, pooled])
    def test_step_goes_on(self, make):
        model = make()
        first, second = video(seed=1), video(seed=2)
        runner, alone = (
            Runner(model, threshold={"frames": 2, "maps": 0.1})
            for _ in range(2)
        )
        for number, both in enumerate(np.stack([first, second], 1)):
            assert_same(runner.step(both), alone.step(both))
            if number % 20 == 10:
                runner.predict(first, verbose=0)

    def test_thresholds_begin_anew(self):
        model = vector()
        frames = video() + np.random.default_rng(0).integers(
            0, 2, (40, *SHAPE), np.uint8
        )
        runner = Runner(model, threshold=2)
        want = stepped(Runner(model, threshold=2), frames)
        exact = stepped(Runner(model), frames)
        assert np.abs(want - exact).max() > 1e-3
        runner.step(frames[20:21])
        for _ in range(2):
            assert_same(runner.predict(frames, verbose=0), want)
        assert_same(runner.predict(iter(parts(frames)), verbose=0), want)

    def test_a_recording_goes_on(self):
        runner, frames = Runner(vector()), video()
        runner.record()
        outputs = []
        for t, frame in enumerate(frames):
            outputs.append(runner.step(frame[None]))
            if t % 20 == 10:
                runner.predict(video(seed=2), verbose=0)
        recorded = runner(runner.recorded())
        assert_equal(recorded.numpy(), np.concatenate(outputs))

    def test_frames_of_another_size(self):
        model = pooled()
        runner = Runner(model)
        frames, larger = video(), video(shape=(16, 20, 2))
        before = stepped(runner, frames[:20])
        assert_equal(
            runner.predict(larger, verbose=0), model.predict(larger, verbose=0)
        )
        graph = runner.graph
        after = stepped(runner, frames[20:])
        assert runner.graph is graph
        both = keras.tree.map_structure(
            lambda *o: np.concatenate(o), before, after
        )
        assert_same(both, stepped(Runner(model), frames))

    def test_threads(self):
        runner = Runner(heads())
        videos = [video(60, seed=seed) for seed in range(3)]
        wants = [runner.predict(frames, verbose=0) for frames in videos]

        def predict(frames, want):
            for _ in range(3):
                assert_same(runner.predict(frames, verbose=0), want)

        children.in_threads(predict, *zip(videos, wants, strict=True))

    def test_frames_are_not_kept(self):
        runner = Runner(vector())
        alive = []

        def batches():
            for _ in range(6):
                frames = video(4)
                alive.append(weakref.ref(frames))
                yield frames
                del frames
                # The last one may still be in somebody's hands.
                assert sum(ref() is not None for ref in alive) <= 1

        assert len(runner.predict(batches(), verbose=0)) == 24


class TestSteps:
    def test_batches_that_are_left_can_be_gone_on_with(self):
        runner, frames = Runner(vector()), video(48)
        batches = iter(np.split(frames, 12))
        want = runner.predict(frames, verbose=0)
        for start in range(0, 48, 16):
            outputs = runner.predict(batches, verbose=0, steps=4)
            assert_same(outputs, want[start : start + 16])

    def test_the_most_that_there_are(self):
        runner, frames = Runner(vector()), video(40)
        want = runner.predict(frames, verbose=0)
        assert_same(runner.predict(frames, steps=1, verbose=0), want[:32])
        assert_same(runner.predict(frames, steps=9, verbose=0), want)
        assert_same(runner.predict(frames, 6, steps=3, verbose=0), want[:18])
        endless = itertools.repeat(frames[:4])
        assert runner.predict(endless, steps=3, verbose=0).shape == (12, 5)

    @pytest.mark.parametrize("make", [vector, heads, maps])
    def test_no_batches(self, make):
        model = make()
        outputs = Runner(model).predict(iter([]), verbose=1)
        assert_same(outputs, Runner(model).step(video(0)))

    def test_no_batches_of_an_unknown_size(self):
        with pytest.raises(ValueError, match="Expected `x` to have batches"):
            Runner(pooled()).predict(iter([]), verbose=0)


class _Calls(keras.callbacks.Callback):
    """Keeps how it was called."""

    def __init__(self, stop=None):
        super().__init__()
        self.calls = []
        self._stop = stop

    def on_predict_begin(self, logs=None):
        self.calls.append(("begin", self.params, self.model))

    def on_predict_end(self, logs=None):
        self.calls.append(("end", logs))

    def on_predict_batch_begin(self, batch, logs=None):
        self.calls.append(("batch begin", batch, logs))

    def on_predict_batch_end(self, batch, logs=None):
        shape = keras.tree.map_structure(np.shape, logs)
        self.calls.append(("batch end", batch, shape))
        if batch == self._stop:
            self.model.stop_predicting = True


class TestProgress:
    @pytest.mark.parametrize("steps", [None, 2])
    @pytest.mark.parametrize("verbose", ["auto", 0, 1, 2])
    def test_the_bar_is_that_of_keras(self, verbose, steps, capsys):
        model, frames = vector(), video(80)
        shown = []
        for predict in (model.predict, Runner(model).predict):
            predict(frames, verbose=verbose, steps=steps)
            # Times differ, and so does how often it is drawn meanwhile.
            last = re.split("[\r\b]+", capsys.readouterr().out.rstrip())[-1]
            plain = re.sub("\x1b\\[\\d+m", "", last)  # without its colours
            shown.append(re.sub(r"\d+[mu]?s\b", "_", plain))
        assert shown[0] == shown[1]
        assert bool(shown[1]) == (verbose != 0)

    @pytest.mark.parametrize("stop", [None, 1])
    def test_callbacks_are_called_as_by_keras(self, stop):
        model, frames = heads(), video(80)
        calls = []
        for predict in (model.predict, Runner(model).predict):
            callback = _Calls(stop)
            outputs = predict(frames, verbose=0, callbacks=[callback])
            calls.append(callback.calls)
            assert len(outputs["value"]) == (80 if stop is None else 64)
        assert calls[0] == calls[1]

    def test_callbacks_may_write_into_what_they_are_given(self):
        class Writing(keras.callbacks.Callback):
            def on_predict_batch_end(self, batch, logs=None):
                logs["outputs"] *= 0

        runner = Runner(vector())
        want = runner.predict(video(), verbose=0)
        got = runner.predict(video(), verbose=0, callbacks=[Writing()])
        np.testing.assert_array_equal(got, want)

    def test_a_list_of_callbacks(self):
        callback = _Calls()
        callbacks = keras.callbacks.CallbackList([callback])
        Runner(vector()).predict(video(), verbose=0, callbacks=callbacks)
        assert [call[0] for call in callback.calls] == [
            "begin",
            *["batch begin", "batch end"] * 2,
            "end",
        ]

    def test_stats(self):
        runner, frames = Runner(vector()), video(40)
        seen = []
        callback = keras.callbacks.LambdaCallback()
        callback.on_predict_batch_end = lambda *_, **__: seen.append(
            runner.stats.frames
        )
        runner.predict(frames, verbose=0, callbacks=[callback])
        assert seen == [32, 40]
        alone = Runner(runner.model)
        stepped(alone, frames)
        assert runner.stats.layers == alone.stats.layers
        runner.reset_state([0])
        assert runner.stats.frames == 40
        runner.step(frames[:3])
        assert runner.stats.frames == 3
        runner.predict(frames, verbose=0)
        runner.reset_state()
        assert runner.stats.frames == 0
        runner.step(frames[:2])
        assert runner.stats.frames == 2

    def test_an_error_on_the_way(self):
        runner, frames = Runner(vector()), video()

        def batches():
            yield frames
            raise OSError("no more")

        with pytest.raises(OSError, match="no more"):
            runner.predict(batches(), verbose=0)
        assert runner.stats.frames == 40
        want = runner.model.predict(frames, verbose=0)
        assert_equal(runner.predict(frames, verbose=0), want)


@pytest.mark.parametrize(
    "x, expected",
    [
        (np.zeros(SHAPE, np.uint8), r"\[T, 12, 10, 2\].*uint8 \[12, 10, 2\]"),
        (np.zeros((1, 2, *SHAPE), np.uint8), r"uint8 \[1, 2, 12, 10, 2\]"),
        (np.zeros((4, 12, 10, 3), np.uint8), r"uint8 \[4, 12, 10, 3\]"),
        (np.zeros((4, 10, 12, 2), np.uint8), r"uint8 \[4, 10, 12, 2\]"),
        (np.zeros((4, *SHAPE)), "uint8 or float32.*Received: float64"),
        (np.zeros((4, *SHAPE), np.int32), "Received: int32"),
        (tf.zeros([4, *SHAPE], tf.float16), "Received: float16"),
        (np.float32(1), r"Received: float32 \[\]"),
        (iter(np.zeros((4, *SHAPE), np.uint8)), r"uint8 \[12, 10, 2\]"),
        (iter([{"frames": video()}]), "Received: object"),
        (iter([video(), video(1, np.float32)]), "uint8 frames.*float32"),
        ([video(), video()], "generator.*Received: list"),
        ((video(),), "Received: tuple"),
        ({"frames": video()}, "Received: dict"),
        (None, "Received: NoneType"),
        (3, "Received: int"),
    ],
)
def test_what_is_not_frames(x, expected):
    runner = Runner(vector())
    with pytest.raises(
        ValueError, match=f"(?s)Expected `x` to be .*{expected}"
    ):
        runner.predict(x, verbose=0)
    assert runner.predict(video(2), verbose=0).shape == (2, 5)


def test_batches_of_several_sizes():
    batches = iter([video(2), video(2, shape=(14, 10, 2))])
    with pytest.raises(ValueError, match=r"\[T, 12, 10, 2\].*14, 10, 2\]"):
        Runner(pooled()).predict(batches, verbose=0)
    with pytest.raises(ValueError, match=r"\[T, any, any, 2\].*12, 10, 3\]"):
        Runner(pooled()).predict(video(2, shape=(12, 10, 3)), verbose=0)


@pytest.mark.parametrize("name", ["batch_size", "steps"])
@pytest.mark.parametrize("value", [0, -1, 1.5, "all", True])
def test_what_is_not_a_count(name, value):
    with pytest.raises(
        ValueError, match=f"Expected `{name}` .*{name}={value!r}"
    ):
        Runner(vector()).predict(video(), verbose=0, **{name: value})


def test_batches_have_their_size():
    with pytest.raises(ValueError, match="no `batch_size`.*batch_size=4"):
        Runner(vector()).predict(iter([video()]), batch_size=4, verbose=0)


def test_in_a_function_it_says_what_to_call():
    runner = Runner(vector())
    with pytest.raises(ValueError, match=r"runner\(frames\)"):
        tf.function(runner.predict)(video(2))
    np.testing.assert_array_equal(
        tf.function(runner)(video(2)), runner.predict(video(2), verbose=0)
    )
