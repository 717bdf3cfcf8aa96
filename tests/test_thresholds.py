"""Thresholds: how far what a runner hands on may be off, and what it saves."""

import copy
import itertools
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import assert_same_bits
from graphs import assert_gradient, randomize
from hypothesis import given
from hypothesis import strategies as st

import reuse_tf
from reuse_tf import Runner
from reuse_tf.thresholds import RunningError

L = keras.layers
SHAPE = (16, 12, 3)


def chain(x):
    x = L.Conv2D(6, 3, padding="same", name="conv")(x)
    x = L.BatchNormalization()(x)
    x = L.ReLU()(x)
    x = L.MaxPooling2D()(x)
    return L.Dense(4)(L.Flatten()(L.Conv2D(5, 3, activation="relu")(x)))


def residual(x):
    x = L.Conv2D(6, 3, padding="same", activation="relu")(x)
    y = L.DepthwiseConv2D(3, padding="same")(x)
    y = L.Conv2D(6, 1)(L.BatchNormalization()(y))
    x = L.ReLU()(L.Add()([x, y]))
    return L.Concatenate()([x, L.UpSampling2D()(L.AveragePooling2D(2)(x))])


def excited(x):
    x = L.Conv2D(4, 3, strides=2)(x)
    y = L.GlobalAveragePooling2D(keepdims=True)(x)
    y = L.Conv2D(4, 1, activation="sigmoid")(y)
    return L.GroupNormalization(2)(L.Multiply()([x, y]))


def straight(x):
    return L.Dense(4)(
        L.Flatten()(L.Conv2D(3, 3, name="conv", padding="same")(x))
    )


NETWORKS = {f.__name__: f for f in (chain, residual, excited)}


def model_of(network, dtype="uint8", everything=False):
    """A model of a network, every layer of which may be an output."""
    frames = keras.Input(SHAPE, dtype=dtype)
    output = network(L.Rescaling(1 / 255, name="scale")(frames))
    model = keras.Model(frames, output)
    if everything:
        model = keras.Model(
            frames,
            {layer.name: layer.output for layer in model.layers[1:]},
        )
    randomize(model)
    return model


def drifting(rng, streams=1, dtype="uint8"):
    """Frames of a still scene with noise, a drift, and something on its way."""
    scene = rng.uniform(40, 200, (streams, *SHAPE))
    for t in range(12):
        scene += rng.uniform(0, 1, scene.shape)
        frames = scene + rng.normal(0, 1.5, scene.shape)
        frames[:, t : t + 3, 2:6] = 250
        frames = np.clip(np.round(frames), 0, 255).astype(dtype)
        yield frames


def thresholds_of(model, rng):
    """Random thresholds, of some maps that are those of whole layers."""
    names = set(Runner(model).stats.layers) & {x.name for x in model.layers}
    limits = {name: rng.choice([0, 0.02, 0.1, 0.4]) for name in sorted(names)}
    return {**limits, "frames": rng.choice([0, 2, 6])}


def inputs_of(layer, maps):
    """What a layer is given, of the maps by the names of layers."""
    return keras.tree.map_structure(
        lambda tensor: maps[tensor._keras_history.operation.name], layer.input
    )


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@given(seed=st.integers(0, 10**6))
def test_every_map_is_within_its_threshold(network, dtype, seed):
    rng = np.random.default_rng(seed)
    model = model_of(NETWORKS[network], dtype, everything=True)
    limits = thresholds_of(model, rng)
    runner = Runner(model, threshold=limits)
    kept = Runner(model, threshold=limits)
    last = None
    for frames in drifting(rng, rng.integers(1, 3), dtype):
        if rng.random() < 0.1:
            model.set_weights([w * 1.01 for w in model.get_weights()])
            last = None
        handed = runner.step(frames)
        for name, same in kept.step(frames, copy=False).items():
            assert_same_bits(handed[name], same)
        for layer in model.layers[1:]:
            name = layer.name
            if layer.name == "scale":
                # Of the frames, the threshold is of what comes in.
                want = frames.astype("float32") / 255
                limit = limits["frames"] / 255 + limits.get("scale", 0)
            else:
                want = layer(inputs_of(layer, handed)).numpy()
                limit = limits.get(name, 0)
            tolerance = 1e-4 * (1 + np.abs(want))
            far = np.abs(handed[name] - want)
            assert (far <= limit + tolerance).all(), name
            if last is None or name == "scale":
                continue
            # A row is handed on whole, or not at all.
            moved = np.abs(last[name] - want) > limit + tolerance
            moved = moved.any(-1, keepdims=True)
            assert (far <= np.where(moved, tolerance, np.inf)).all(), name
        last = handed


def test_noise_within_the_thresholds_costs_nothing():
    model = model_of(chain)
    runner = Runner(model, threshold=3)
    rng = np.random.default_rng(0)
    scene = rng.integers(10, 240, (2, *SHAPE))
    first = runner.step(scene.astype("uint8"))
    before = runner.stats
    for _ in range(5):
        noise = rng.integers(-3, 4, scene.shape)
        assert_same_bits(runner.step((scene + noise).astype("uint8")), first)
    after = runner.stats
    for name, layer in after.layers.items():
        assert layer.new_rows == before.layers[name].new_rows
        assert layer.multiply_adds == before.layers[name].multiply_adds
    noise[0, 3, 3, 1] = 4
    assert np.any(runner.step((scene + noise).astype("uint8")) != first)
    now = runner.stats.layers["conv"].new_rows
    assert now - after.layers["conv"].new_rows == 9


def test_a_threshold_of_a_map_saves_what_is_behind_it():
    model = model_of(chain)
    exact, limited = (
        Runner(model, "temporal"),
        Runner(model, threshold={"conv": 0.5}),
    )
    rng = np.random.default_rng(0)
    for frames in drifting(rng):
        exact.step(frames)
        limited.step(frames)
    exact, limited = exact.stats.layers, limited.stats.layers
    assert limited["conv"].new_rows == exact["conv"].new_rows
    assert limited["conv"].changed < exact["conv"].changed / 2
    for name in ("max_pooling2d", "conv2d", "dense"):
        name = next(key for key in exact if key.startswith(name))
        assert limited[name].multiply_adds <= exact[name].multiply_adds
        assert limited[name].new_rows < exact[name].new_rows


def test_none_is_exact():
    model = model_of(residual)
    plain = Runner(model, "content")
    for threshold in (0, 0.0, {}, {"frames": 0}):
        runner = Runner(model, "content", threshold=threshold)
        for frames in drifting(np.random.default_rng(1), 2):
            assert_same_bits(runner.step(frames), plain.step(frames))
        assert runner.stats.reuse == "content"


def test_what_is_known_is_forgotten_like_without():
    keras.backend.clear_session()  # for the names
    model = model_of(excited)
    limits = {"frames": 4, "multiply": 0.1}
    frames = list(drifting(np.random.default_rng(2), 3))

    def fresh(batch):
        return Runner(model, threshold=limits).step(batch)

    runner = Runner(model, threshold=limits)
    for batch in frames[:3]:
        runner.step(batch)
    model.set_weights([weight * 1.1 for weight in model.get_weights()])
    assert_same_bits(runner.step(frames[3]), fresh(frames[3]))
    runner.step(frames[4])
    runner.reset_state([1])
    assert_same_bits(runner.step(frames[5])[1], fresh(frames[5])[1])
    runner.reset_state()
    assert_same_bits(runner.step(frames[6]), fresh(frames[6]))
    # Fewer streams, and then new ones.
    runner.step(frames[7][:1])
    assert_same_bits(runner.step(frames[8])[1:], fresh(frames[8])[1:])
    assert runner.stats.clears == 0


def test_a_nan_always_counts_as_changed():
    model = model_of(straight, "float32")
    runner = Runner(model, threshold={"frames": 1e30, "conv": 1e30})
    frames = np.zeros((1, *SHAPE), "float32")
    runner.step(frames)
    frames[0, 5, 5, 0] = np.nan
    assert np.isnan(runner.step(frames)).any()
    made = runner.stats.layers["conv"].new_rows
    frames[0, 0, 0, 0] = 1  # within the threshold
    assert np.isnan(runner.step(frames)).any()
    assert runner.stats.layers["conv"].new_rows == made + 9
    frames[0, 5, 5, 0] = 0
    assert not np.isnan(runner.step(frames)).any()


def test_all_but_step_is_exact():
    model = model_of(residual)
    runner = Runner(model, threshold={"frames": 9, "add": 0.3})
    video = np.concatenate(list(drifting(np.random.default_rng(3))))[:4]
    assert_gradient(runner, video)
    runner.record()
    for frame in video:
        runner.step(frame[None])
    assert runner.recorded() is None


@pytest.mark.parametrize("clone", [copy.deepcopy, "pickle"])
def test_copies_have_the_thresholds(clone):
    if clone == "pickle":

        def clone(runner):
            return pickle.loads(pickle.dumps(runner))

    model = model_of(chain)
    runner = Runner(model, threshold={"frames": 4, "conv": 0.1})
    other = clone(runner)
    assert other.threshold == runner.threshold
    for frames in drifting(np.random.default_rng(4)):
        np.testing.assert_array_equal(other.step(frames), runner.step(frames))


def test_rows_that_are_taken_back_were_computed():
    x = inputs = keras.Input(SHAPE)
    x = L.GroupNormalization(1, name="norm")(L.Conv2D(4, 1)(x))
    runner = Runner(keras.Model(inputs, x), threshold={"norm": 1e30})
    for frames in drifting(np.random.default_rng(7), dtype="float32"):
        runner.step(frames)
    norm = runner.stats.layers["norm"]
    assert norm.new_rows == norm.positions
    assert norm.changed == norm.positions / 12  # the first frame's


def test_frames_of_any_size():
    frames = keras.Input((None, None, 3), dtype="uint8")
    x = L.Conv2D(4, 3, name="conv")(L.Rescaling(1 / 255)(frames))
    model = keras.Model(frames, L.GlobalAveragePooling2D()(x))
    runner = Runner(model, threshold={"frames": 3, "conv": 0.1})
    for size in (8, 12):
        frames = np.full((1, size, size, 3), 100, np.uint8)
        first = runner.step(frames)
        np.testing.assert_allclose(first, model(frames), rtol=1e-4, atol=1e-5)
        assert_same_bits(runner.step(frames + 3), first)
    with pytest.raises(ValueError, match="frames.*Received: 'other'"):
        Runner(model, threshold={"other": 1}).step(frames)


class TestLayers:
    """The `threshold` of incremental layers."""

    @pytest.mark.parametrize("limits", [(0.5, 0), (0, 0.5), (0.25, 1.0)])
    @pytest.mark.parametrize("shared", [False, True])
    def test_is_that_of_the_model_itself(self, limits, shared):
        frames = keras.Input(SHAPE)
        x = L.ZeroPadding2D(1)(L.Rescaling(0.5)(frames))
        x = reuse_tf.IncrementalConv2D(
            4, 3, threshold=limits[0], activation="relu"
        )(x)
        y = reuse_tf.IncrementalConv2D(3, 3, threshold=limits[1])(x)
        outputs = [y, x] if shared else y
        model = keras.Model(frames, outputs)
        # Values that are sums of few bits, so that none is rounded.
        rng = np.random.default_rng(5)
        model.set_weights(
            [rng.integers(-2, 3, w.shape) / 4 for w in model.get_weights()]
        )
        runner = Runner(model)
        frames = rng.integers(0, 8, (1, *SHAPE)) / 4
        for _ in range(20):
            step = rng.integers(-1, 2, frames.shape) * (
                rng.random(frames.shape) < 0.2
            )
            frames = frames + step / 4
            batch = frames.astype("float32")
            keras.tree.map_structure(
                np.testing.assert_array_equal, runner.step(batch), model(batch)
            )
        assert runner.stats.reuse == "temporal"

    def test_what_others_look_at_too_has_a_copy(self):
        inputs = keras.Input(SHAPE)
        x = L.Conv2D(3, 3, name="first")(inputs)
        limited = reuse_tf.IncrementalConv2D(4, 3, threshold=9, name="limited")
        y = L.Conv2D(4, 3, name="limited_1")(x)
        outputs = {"x": limited(x), "y": y, "z": limited(inputs)}
        model = keras.Model(inputs, outputs)
        limits = {"limited/input": 1e30, "limited/input_1": 0, "frames": 0}
        for _ in range(2):  # The names are always the same.
            runner = Runner(model, threshold=limits)
            names = set(runner.graph.names)
            # Whoever comes again does not take the name of another.
            assert names == {
                "first",
                *("limited", "limited_1", "limited_2"),
                *("limited/input", "limited/input_1"),
            }
            frames = np.random.default_rng(0).normal(size=(2, 1, *SHAPE))
            first, second = frames.astype("float32")
            before = runner.step(first)
            after = runner.step(second)
            exact = Runner(model, threshold=dict.fromkeys(limits, 0))
            want = exact.step(second)
            assert_same_bits(after["x"], before["x"])
            for name in "y", "z":
                assert_same_bits(after[name], want[name])

    def test_content_reuse_is_refused(self):
        model = keras.Sequential(
            [
                keras.Input(SHAPE),
                reuse_tf.IncrementalConv2D(4, 3, threshold=0.1),
            ]
        )
        with pytest.raises(ValueError, match="reuse='content'"):
            Runner(model, "content")


class TestArguments:
    @pytest.mark.parametrize(
        "threshold",
        [-1, np.nan, np.inf, "much", [], {"frames": -1}, {"conv": None}],
    )
    def test_bad_values_are_named(self, threshold):
        with pytest.raises(ValueError, match="`threshold`.*Received"):
            Runner(model_of(chain), threshold=threshold)

    def test_unknown_maps_are_named(self):
        with pytest.raises(ValueError, match="frames.*Received: 'batch"):
            Runner(model_of(chain), threshold={"batch_normalization": 1})

    def test_content_reuse_is_refused(self):
        with pytest.raises(ValueError, match="reuse='content'"):
            Runner(model_of(chain), "content", threshold=1)

    def test_a_layer_may_have_the_name_of_the_frames(self):
        inputs = keras.Input(SHAPE)
        model = keras.Model(inputs, L.Conv2D(2, 3, name="frames")(inputs))
        runner = Runner(model, threshold={"frames": 1, "frames_1": 1e30})
        zeros = np.zeros((1, *SHAPE), np.float32)
        first = runner.step(zeros)
        assert_same_bits(runner.step(zeros + 2), first)
        assert set(runner.stats.layers) == {"frames_1"}
        assert set(runner.stats.rows) == {"frames", "frames_1"}

    @pytest.mark.parametrize("threshold", [1e-60, 1e-40, 1e39])
    def test_what_float32_does_not_hold(self, threshold):
        limits = {"frames": threshold, "conv": threshold}
        runner = Runner(model_of(chain), threshold=limits)
        exact = Runner(runner.model)
        first, second = itertools.islice(drifting(np.random.default_rng(8)), 2)
        want = runner.step(first)
        if threshold < 1:
            want = exact.step(second)
        assert_same_bits(runner.step(second), want)

    def test_numpy_numbers_and_tensors(self):
        for value in (np.float32(2), np.array(2), tf.constant(2.0)):
            assert Runner(model_of(chain), threshold=value).threshold == {
                "frames": 2.0
            }


@pytest.fixture(scope="module")
def scene():
    """A model, and frames of noise and something that moves."""
    model = model_of(chain)
    rng = np.random.default_rng(6)
    still = rng.uniform(40, 200, SHAPE)
    frames = []
    for t in range(40):
        frame = still + rng.integers(-1, 2, SHAPE)
        frame[t % 13 : t % 13 + 3, 2:6] = 250
        frames.append(np.clip(np.round(frame), 0, 255))
    return model, np.array(frames, np.uint8)


@pytest.fixture(scope="module")
def found(scene):
    return find(*scene, 0.1)


class TestFinding:
    """`find_thresholds`."""

    def test_what_is_reported_is_what_a_runner_does(self, scene, found):
        model, frames = scene
        exact = Runner(model, "temporal")
        runner = Runner(model, threshold=found.thresholds)
        outputs = []
        for t, frame in enumerate(frames):
            if t == 28:  # of 40, 0.3 are held out
                exact_before, before = work(exact), work(runner)
            outputs.append((exact.step(frame[None]), runner.step(frame[None])))
        made, dense = work(runner) - before
        assert made / dense == pytest.approx(found.work)
        made, dense = work(exact) - exact_before
        assert made / dense == pytest.approx(found.exact_work)
        want, got = map(np.concatenate, zip(*outputs[28:], strict=True))
        # Of all frames, as nothing may happen in some.
        always = np.concatenate([exact for exact, _ in outputs])
        variance = np.mean(np.square(always - always.mean(0)))
        error = np.sqrt(np.mean(np.square(got - want)) / variance)
        assert found.error == pytest.approx(error, rel=1e-4)
        assert found.is_within == (error <= 0.1)

    def test_it_saves_work_within_the_tolerance(self, found):
        assert found.is_within and 0 < found.error <= 0.1
        assert found.work < found.exact_work / 2
        assert "within" in str(found)

    def test_the_same_again(self, scene, found):
        assert find(*scene, 0.1) == found

    def test_a_larger_tolerance_saves_more(self, scene, found):
        assert find(*scene, 0.4).work < found.work < find(*scene, 0.02).work

    def test_a_function_decides(self, scene):
        model, frames = scene

        def is_near(reference, outputs):
            (want,), (got,) = reference, outputs
            assert not want.flags.writeable  # It serves again.
            return bool(np.abs(got - want).max() <= 0.05)

        found = find(model, frames, is_near)
        runner = Runner(model, threshold=found.thresholds)
        exact = Runner(model)
        for frame in frames[:28]:
            far = runner.step(frame[None]) - exact.step(frame[None])
            assert np.abs(far).max() <= 0.05
        assert found.work < found.exact_work

    def test_nothing_will_do(self, scene):
        found = find(*scene, lambda reference, outputs: False)
        assert not found.is_within
        assert "NOT WITHIN" in str(found)
        assert found.work == found.exact_work
        assert not any(found.thresholds.values())

    def test_several_videos_and_a_runner(self, scene):
        model, frames = scene
        found = find(Runner(model), [frames[:20], frames[20:]], 0.1, trials=2)
        assert 0 < found.work < found.exact_work

    def test_thresholds_of_layers_give_way(self, scene):
        _, frames = scene
        x = inputs = keras.Input(SHAPE, dtype="uint8")
        x = L.Rescaling(1 / 255)(x)
        x = reuse_tf.IncrementalConv2D(4, 3, threshold=0.5, name="conv")(x)
        model = keras.Model(inputs, L.Dense(3)(L.Flatten()(x)))
        found = find(model, frames, lambda reference, outputs: False)
        runner, plain = Runner(model, threshold=found.thresholds), None
        plain = Runner(reuse_tf.convert(model), threshold=found.thresholds)
        for frame in frames[:5]:
            want = model(frame[None].astype("float32"), training=True)
            np.testing.assert_allclose(
                runner.step(frame[None]), want, rtol=1e-4, atol=1e-4
            )
            assert_same_bits(plain.step(frame[None]), runner.step(frame[None]))

    def test_layers_with_thresholds_beside_others(self, scene):
        inputs = keras.Input(SHAPE)
        x = reuse_tf.IncrementalConv2D(2, 3, threshold=9)(inputs)
        x = L.Add()([x, L.Conv2D(2, 3)(inputs)])
        model = keras.Model(inputs, L.GlobalAveragePooling2D()(x))
        _, frames = scene
        found = find(model, frames.astype("float32"), 0.3, trials=0)
        assert found.is_within and found.work < found.exact_work

    def test_frames_that_have_no_scale(self):
        always = np.full((6, *SHAPE), 0.1, np.float32)
        found = find(model_of(chain, "float32"), always, 0.1)
        assert found.is_within and found.error == found.work == 0
        # Nor does what is behind them have one, if they are all there is.
        inputs = keras.Input(SHAPE)
        model = keras.Model(inputs, L.Rescaling(2.0)(inputs))
        frames = np.concatenate(
            list(drifting(np.random.default_rng(9), dtype="float32"))
        )
        assert find(model, frames, 0.1).thresholds == {}

    def test_values_that_are_not_finite_have_no_part_in_the_scale(self, scene):
        model = model_of(chain, "float32")
        frames = scene[1].astype("float32")
        broken = frames.copy()
        broken[:, 0, 0] = np.inf, np.nan, -np.inf
        found = [
            find(model, video, lambda *_: True, trials=0)
            for video in (frames, broken)
        ]
        limits = [one.thresholds["frames"] for one in found]
        assert limits[1] == pytest.approx(limits[0], rel=0.02)

    @pytest.mark.parametrize(
        "arguments, named",
        [
            ({"tolerance": 0}, "tolerance"),
            ({"tolerance": "small"}, "tolerance"),
            ({"tolerance": True}, "tolerance"),
            ({"held_out": 0}, "held_out"),
            ({"held_out": 1}, "held_out"),
            ({"held_out": "a"}, "held_out"),
            ({"trials": -1}, "trials"),
            ({"trials": 1.5}, "trials"),
            ({"trials": None}, "trials"),
            ({"frames": np.zeros((9, 16, 12))}, "frames"),
            ({"frames": np.zeros((9, *SHAPE))}, "frames.*float64"),
            ({"frames": np.zeros((1, *SHAPE), np.uint8)}, "frames.*1"),
            ({"frames": np.zeros((3, *SHAPE), np.uint8)}, "frames.*3"),
            ({"frames": []}, "frames"),
            (
                {"frames": np.zeros((9, 16, 8, 3), np.uint8)},
                r"frames.*16, 12, 3.*9, 16, 8, 3",
            ),
            ({"tolerance": lambda reference, outputs: None}, "tolerance.*None"),
            ({"frames": [np.zeros((0, *SHAPE), np.uint8)]}, "T > 0"),
            (
                {
                    "frames": [
                        np.zeros((9, *SHAPE), np.uint8),
                        np.zeros((9, *SHAPE), np.float32),
                    ]
                },
                "frames.*dtype",
            ),
            (
                {
                    "frames": [
                        np.zeros((9, *SHAPE), np.uint8),
                        np.zeros((9, 20, 12, 3), np.uint8),
                    ]
                },
                "frames.*size",
            ),
        ],
    )
    def test_bad_arguments_are_named(self, scene, arguments, named):
        model, frames = scene
        arguments = {"frames": frames, "tolerance": 0.1, **arguments}
        with pytest.raises(ValueError, match=named):
            reuse_tf.find_thresholds(model, verbose=False, **arguments)


def test_relative_error():
    want = [np.array([[0.0, 10], [2, 10]]), np.zeros((2, 1))]
    off = [want[0] + [[0.5, 0], [0, 0]], want[1]]
    # Squares: 0.25 of 4 values, of a variance of 1 and of 0.
    assert reuse_tf.relative_error(want, off) == pytest.approx(
        np.sqrt((0.25 / 4) / 0.5)
    )
    assert reuse_tf.relative_error(want, want) == 0
    before = [np.array([[8.0, 10], [10, 10]]), np.ones((2, 1))]
    # Of 0, 2, 8 and 10 the variance is 17, beside 0.
    assert reuse_tf.relative_error(want, off, before) == pytest.approx(
        np.sqrt((0.25 / 4) / (17 / 2))
    )
    always = [np.full_like(want[0], [1, 10]), want[1]]
    assert reuse_tf.relative_error(want, always) == pytest.approx(1)
    assert reuse_tf.relative_error(want, [want[0], want[1] + 1]) == np.inf
    assert reuse_tf.relative_error([want[0] * np.nan], [want[0]]) == np.inf
    assert reuse_tf.relative_error([want[0] * np.nan] * 2, [want[0]] * 2) > 0
    # As models give them.
    for made in lambda x: x[0], lambda x: {"a": x[0], "b": x[1]}:
        assert reuse_tf.relative_error(made(want), made(off)) > 0


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        (([np.ones((4, 2))], [np.ones((4, 1))]), "`outputs`"),
        (([np.ones((4, 2))], [np.ones((4, 2))] * 2), "`outputs`"),
        (([np.ones((0, 2))], [np.ones((0, 2))]), "`reference`"),
        (([], []), "`reference`"),
        ((1.0, 1.0), "`reference`"),
        ((*[[np.ones((4, 2))]] * 2, [np.ones((3, 1))]), "`before`"),
    ],
)
def test_what_has_no_relative_error_is_refused(arrays, named):
    with pytest.raises(ValueError, match=f"Expected {named}"):
        reuse_tf.relative_error(*arrays)


def test_a_tolerance_cannot_spoil_what_it_looks_at():
    model = keras.Sequential(
        [keras.Input((6, 6, 1)), keras.layers.Conv2D(2, 3)]
    )
    frames = np.random.default_rng(0).random((12, 6, 6, 1), np.float32)

    def tolerance(reference, outputs):
        outputs[0] *= 0
        return True

    with pytest.raises(ValueError, match="read-only"):
        reuse_tf.find_thresholds(model, frames, tolerance, verbose=False)


def test_the_error_so_far_is_that_of_all_frames():
    rng = np.random.default_rng(0)
    want = [1e3 + rng.normal(size=(9, 2, 3)), rng.normal(size=(9, 1))]
    got = [w + 0.1 * rng.normal(size=w.shape) for w in want]
    error = RunningError()
    assert error.value == 0
    for begin, end in (0, 1), (1, 2), (2, 6), (6, 9):
        error.add([w[begin:end] for w in want], [g[begin:end] for g in got])
        if end > 1:  # one alone does not vary
            assert error.value == pytest.approx(
                max(
                    np.sqrt(np.mean((g - w) ** 2) / np.mean(np.var(w, 0)))
                    for w, g in (
                        (w[:end], g[:end])
                        for w, g in zip(want, got, strict=True)
                    )
                )
            )


def find(model, frames, tolerance, **arguments):
    return reuse_tf.find_thresholds(
        model, frames, tolerance, verbose=False, **arguments
    )


def work(runner):
    """Multiply-adds made, and those of a dense network."""
    layers = runner.stats.layers.values()
    return np.array(
        [
            sum(layer.multiply_adds for layer in layers),
            sum(layer.dense_multiply_adds for layer in layers),
        ]
    )
