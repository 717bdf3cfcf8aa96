"""Runner against Keras's own models, and against itself.

Frames of games, and generated ones; any chain of layers, any history.
"""

import copy
import functools
import gc
import pickle
import re
import threading

import children
import keras
import numpy as np
import pytest
import tensorflow as tf
from cases import ACTIVATIONS, assert_same_bits, change, plain_conv2d
from hypothesis import given, settings
from hypothesis import strategies as st

import reuse_tf
import reuse_tf.policies
from reuse_tf import LayerStats, Runner, atari, keras_nodes
from reuse_tf.convert import plain

L = keras.layers
KINDS = ["content", "temporal"]
CHOICES = ["auto", *KINDS]
GAMES = ["Alien", "BankHeist", "Breakout", "Freeway", "Krull", "Pong"]


def layers_of(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from layers_of(layer)
        elif not isinstance(layer, L.InputLayer):
            yield layer


def dense(model, frames):
    """What Keras computes, layer by layer."""
    outputs = tf.cast(frames, tf.float32)
    for layer in layers_of(model):
        if isinstance(layer, L.Conv2D) and layer.groups > 1:
            # Keras would compile it by XLA, which takes long.
            outputs = plain_conv2d(layer, outputs)
        else:
            outputs = layer(outputs, training=False)
    return outputs.numpy()


def assert_right(runner, frames):
    """Steps, and checks the result against Keras and fresh runners."""
    outputs = runner.step(frames)
    want = dense(runner.model, frames)
    np.testing.assert_allclose(outputs, want, rtol=2e-4, atol=5e-5)
    for reuse in KINDS:
        assert_same_bits(outputs, Runner(runner.model, reuse).step(frames))
    return outputs


def small_model(shape=(9, 8, 1), units=3, activation="relu"):
    return keras.Sequential(
        [
            keras.Input(shape),
            L.Conv2D(
                4,
                3,
                padding="same",
                activation=activation,
                bias_initializer="random_normal",
                name="conv1",
            ),
            L.Conv2D(5, 3, padding="same", activation=activation, name="conv2"),
            L.BatchNormalization(name="norm"),
            L.Flatten(),
            L.Dense(units, bias_initializer="random_normal", name="dense"),
        ]
    )


def random_bytes(rng, *shape):
    return rng.integers(0, 256, shape, np.uint8)


# -- Games -------------------------------------------------------------------


def record(game, steps, downsample=4):
    env = atari.make(game, downsample=downsample)
    rng = np.random.default_rng(0)
    frames = [env.reset(seed=0)[0]]
    for action in rng.integers(env.action_space.n, size=steps - 1):
        frame, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            frame, _ = env.reset()
        frames.append(frame)
    return np.stack(frames)


@pytest.fixture(scope="module")
def recordings():
    """Frames `[time, height, width, 1]` of each game."""
    return [record(game, 70) for game in GAMES]


@pytest.fixture(scope="module")
def game_policy(recordings):
    keras.utils.set_random_seed(1)
    return reuse_tf.policies.build_policy(recordings[0].shape[1:], 6, (6, 10))


@pytest.fixture(scope="module")
def game_outputs(recordings, game_policy):
    """The bits of a runner that meets each frame as its first."""
    runner = Runner(game_policy)
    outputs = []
    for frames in recordings:
        for frame in frames:
            runner.reset_state()
            outputs.append(runner.step(frame[None]))
    return np.reshape(outputs, (len(recordings), len(recordings[0]), -1))


class TestGames:
    def test_equal_to_keras(self, recordings, game_policy, game_outputs):
        plain_policy = plain(game_policy)
        for frames, outputs in zip(recordings, game_outputs, strict=True):
            assert len(np.unique(frames, axis=0)) > 15
            np.testing.assert_allclose(
                outputs, plain_policy(frames), rtol=1e-4, atol=1e-5
            )

    @pytest.mark.parametrize("reuse", KINDS)
    @pytest.mark.parametrize("max_rows", [None, 400])
    def test_one_after_the_other(
        self, recordings, game_policy, game_outputs, reuse, max_rows
    ):
        runner = Runner(game_policy, reuse, max_rows)
        for frames, wants in zip(recordings, game_outputs, strict=True):
            for frame, want in zip(frames, wants, strict=True):
                assert_same_bits(runner.step(frame[None])[0], want)
        stats = runner.stats
        conv = stats.layers["conv2"]
        assert conv.changed < 0.5 * conv.positions
        if reuse == "temporal":
            assert conv.new_rows == conv.changed
        elif max_rows is None:
            assert conv.new_rows < 0.5 * conv.changed
            assert stats.clears == 0
        else:
            assert stats.clears > 0

    @pytest.mark.parametrize("reuse", KINDS)
    def test_streams_that_come_and_go(
        self, recordings, game_policy, game_outputs, reuse
    ):
        runner = Runner(game_policy, reuse)
        rng = np.random.default_rng(0)
        for time in range(len(recordings[0])):
            streams = [
                (game + time // 20) % len(GAMES)
                for game in range(1 + (time // 5) % len(GAMES))
            ]
            if time % 7 == 0:
                runner.reset_state(rng.integers(0, 8, 2))
            outputs = runner.step(
                np.stack([recordings[game][time] for game in streams])
            )
            assert_same_bits(
                outputs, np.stack([game_outputs[s][time] for s in streams])
            )


# -- Chains ------------------------------------------------------------------


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def row_functions(draw, channels):
    """A function that makes a layer that works on each row."""
    options = [
        (L.Activation, draw(st.sampled_from(ACTIVATIONS[1:]))),
        (L.ReLU,),
        (L.ReLU, 1.5),
        (L.ReLU, None, 0.25),
        (L.ReLU, 2, 0.1, 0.5),
        (L.ReLU, 2, 0, 0.5),
        (L.LeakyReLU, 0.3),
        (L.Dropout, 0.5),
        (L.Rescaling, 2),
        (
            L.Rescaling,
            np.linspace(0.5, 2, channels).tolist(),
            np.linspace(-1, 1, channels).tolist(),
        ),
        (
            functools.partial(
                L.BatchNormalization,
                epsilon=draw(st.sampled_from([1e-3, 0.1])),
                center=draw(st.booleans()),
                scale=draw(st.booleans()),
            ),
        ),
    ]
    return functools.partial(*draw(st.sampled_from(options)))


@st.composite
def chains(draw):
    """A function that makes a model, and the shape of its frames."""
    channels = draw(st.integers(1, 4))
    size = list(draw(pairs(1, 11)))
    shape = (*size, channels)
    layers = [functools.partial(keras.Input, shape)]

    def maybe_function():
        if draw(st.integers(0, 2)) == 0:
            layers.append(draw(row_functions(channels)))

    maybe_function()
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(
            st.sampled_from(["conv", "conv", "grouped", "max", "average"])
        )
        padding = draw(st.sampled_from(["same", "valid"]))
        window, strides, dilation = draw(pairs(1, 4)), draw(pairs(1, 3)), (1, 1)
        if kind in ("conv", "grouped") and draw(st.booleans()):
            strides, dilation = (1, 1), draw(pairs(1, 3))
        extents = [
            (k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)
        ]
        if any(e > s for e, s in zip(extents, size, strict=True)):
            padding = "same"
        for axis in range(2):
            used = extents[axis] - 1 if padding == "valid" else 0
            size[axis] = -(-(size[axis] - used) // strides[axis])
        if kind in ("max", "average"):
            pool = L.MaxPooling2D if kind == "max" else L.AveragePooling2D
            layers.append(functools.partial(pool, window, strides, padding))
        else:
            groups = 1
            if kind == "grouped":
                groups = draw(
                    st.sampled_from(
                        [g for g in range(1, channels + 1) if channels % g == 0]
                    )
                )
            filters = groups * draw(st.integers(1, 9 if groups == 1 else 2))
            conv = draw(st.sampled_from([L.Conv2D, reuse_tf.IncrementalConv2D]))
            layers.append(
                functools.partial(
                    conv,
                    filters,
                    window,
                    strides=strides,
                    padding=padding,
                    dilation_rate=dilation,
                    groups=groups,
                    activation=draw(st.sampled_from(ACTIVATIONS)),
                    use_bias=draw(st.booleans()),
                )
            )
            channels = filters
        maybe_function()
    if draw(st.booleans()):
        layers.append(L.GlobalAveragePooling2D)
        maybe_function()
        least = 0
    else:
        layers.append(L.Flatten)
        least = 1
    for _ in range(draw(st.integers(least, 3))):
        channels = draw(st.integers(1, 9))
        layer = draw(st.sampled_from([L.Dense, reuse_tf.IncrementalDense]))
        layers.append(
            functools.partial(
                layer,
                channels,
                activation=draw(st.sampled_from(ACTIVATIONS)),
                use_bias=draw(st.booleans()),
            )
        )
        maybe_function()
    how = draw(st.sampled_from(["flat", "nested", "graph"]))
    seed = draw(st.integers(0, 2**32))
    return functools.partial(random_model, layers, how, seed), shape


def random_model(layers, how, seed):
    model = arrange([make() for make in layers], how)
    rng = np.random.default_rng(seed)
    model.set_weights(
        [
            rng.uniform(0.5, 1.5, weight.shape)
            if "variance" in weight.path or "gamma" in weight.path
            else rng.normal(size=weight.shape) / (1 + weight.shape[0]) ** 0.5
            for weight in model.weights
        ]
    )
    return model


def arrange(layers, how):
    if how == "graph":
        outputs = layers[0]
        for layer in layers[1:]:
            outputs = layer(outputs)
        return keras.Model(layers[0], outputs)
    if how == "nested" and len(layers) > 2:
        half = max(2, len(layers) // 2)  # more than the input
        front = keras.Sequential(layers[:half])
        back = keras.Sequential(
            [keras.Input(front.output_shape[1:]), *layers[half:]]
        )
        return keras.Sequential(
            [keras.Input(front.input_shape[1:]), front, back]
        )
    return keras.Sequential(layers)


EVENTS = ["none", "some", "some", "corner", "border", "full", "nan", "infinity"]
EVENTS += ["repeat", "weight", "streams", "reset", "forget", "bytes", "floats"]


# Keras warns of it; here it is meant.
@pytest.mark.filterwarnings("ignore:You are using a softmax over axis -1")
class TestChains:
    @settings(max_examples=60)
    @given(
        chains(),
        st.sampled_from(KINDS),
        st.sampled_from([None, None, 40, 7, 1]),
        st.lists(st.sampled_from(EVENTS), min_size=2, max_size=8),
        st.integers(0, 2**32),
    )
    def test_right_after_any_history(
        self, chain, reuse, max_rows, events, seed
    ):
        make, shape = chain
        model = make()
        rng = np.random.default_rng(seed)
        runner = Runner(model, reuse, max_rows)
        floats = rng.integers(-1, 2, (2, *shape)).astype(np.float32)
        bytes_ = False
        seen = []
        for event in ["full", *events]:
            if event == "repeat" and seen:
                floats = seen[0]
            elif event == "weight" and model.weights:
                weight = model.weights[rng.integers(len(model.weights))]
                weight.assign(weight * 0.75 + 0.125)
            elif event == "streams":
                count = rng.choice([1, 3, 6])
                floats = np.repeat(floats, 6, 0)[:count]
                floats[-1] = rng.normal(size=shape)
            elif event == "reset":
                runner.reset_state(rng.integers(0, 4, 2))
            elif event == "forget":
                runner.reset_state()
            elif event in ("bytes", "floats"):
                bytes_ = event == "bytes"
            else:
                floats = change(floats, event, rng)
            seen.append(floats)
            if bytes_:
                finite = np.nan_to_num(floats, posinf=9, neginf=-9)
                frames = np.clip(finite * 8 + 9, 0, 255).astype(np.uint8)
            else:
                frames = floats
            assert_right(runner, frames)

    @pytest.mark.parametrize("reuse", KINDS)
    @pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 40])
    def test_a_result_does_not_depend_on_the_batch(self, reuse, count):
        rng = np.random.default_rng(0)
        model = small_model((9, 8, 2), units=19)
        frames = random_bytes(rng, count, 9, 8, 2)
        runner = Runner(model, reuse)
        for _ in range(3):
            outputs = runner.step(frames)
            for frame, output in zip(frames, outputs, strict=True):
                assert_same_bits(Runner(model).step(frame[None])[0], output)
            frames[rng.integers(count), :, 3:5] += 1

    def test_bytes_and_floats_are_the_same_numbers(self):
        rng = np.random.default_rng(0)
        runner = Runner(small_model())
        frames = random_bytes(rng, 2, 9, 8, 1)
        assert_same_bits(
            runner.step(frames), runner.step(frames.astype(np.float32))
        )

    def test_a_layer_at_two_places(self):
        conv = L.Conv2D(2, 3, padding="same", activation="relu")
        model = keras.Sequential(
            [keras.Input((6, 6, 2)), conv, L.ReLU(), conv, L.Flatten()]
        )
        model.add(L.Dense(3))
        runner = Runner(model)
        rng = np.random.default_rng(0)
        for _ in range(3):
            assert_right(runner, random_bytes(rng, 2, 6, 6, 2))
            conv.kernel.assign(conv.kernel * 1.5)
        layers = list(runner.stats.layers.values())
        assert len(layers) == 3
        assert all(layer.positions == 6 * 36 for layer in layers)

    def test_several_runners_of_one_model(self):
        rng = np.random.default_rng(0)
        model = small_model()
        runners = [Runner(model), Runner(model), Runner(model, "temporal")]
        for i in range(9):
            assert_right(runners[i % 3], random_bytes(rng, 1 + i % 2, 9, 8, 1))
        assert [runner.stats.frames for runner in runners] == [4, 5, 4]


# -- Weights -----------------------------------------------------------------


def optimize(optimizer, compiled=False, in_graph=False):
    def update(model, variable, rng):
        del rng
        made = optimizer(0.5)
        made.build([variable])

        def apply():
            gradient = tf.ones(variable.shape)
            made.apply([gradient], [variable])

        if in_graph or compiled:
            apply = tf.function(apply, jit_compile=compiled)
        for _ in range(2):
            apply()

    return update


def scatter(times, read=False):
    def update(model, variable, rng):
        del model, rng
        for _ in range(times):
            value = variable.value
            last = [size - 1 for size in value.shape]
            value.scatter_nd_add([last], [0.5])
            if read:
                value.read_value()

    return update


def load(model, variable, rng):
    del rng
    before = model.get_weights()
    variable.assign(variable + 0.5)
    model.save_weights("changed.weights.h5")
    model.set_weights(before)
    model.load_weights("changed.weights.h5")


def set_weights(model, variable, rng):
    del rng
    model.set_weights(
        [
            np.asarray(weight) + 0.5 * (weight is variable)
            for weight in model.weights
        ]
    )


WAYS = {
    "assign": lambda m, v, r: v.assign(r.uniform(0.5, 1, v.shape)),
    "assign_add": lambda m, v, r: v.assign_add(tf.ones(v.shape)),
    "assign_sub": lambda m, v, r: v.assign_sub(0.5 * tf.ones(v.shape)),
    "assign in a function": lambda m, v, r: tf.function(
        lambda: v.assign(v + 0.5) is None
    )(),
    "assign under XLA": lambda m, v, r: tf.function(
        lambda: v.value.assign(v.value + 0.5), jit_compile=True
    )(),
    "assign to the tf.Variable": lambda m, v, r: v.value.assign(v.value * 1.5),
    "set_weights": set_weights,
    "load_weights": load,
    "SGD": optimize(keras.optimizers.SGD),
    "Adam": optimize(keras.optimizers.Adam),
    "Adam in a function": optimize(keras.optimizers.Adam, in_graph=True),
    "Adam under XLA": optimize(keras.optimizers.Adam, compiled=True),
    "RMSprop in a function": optimize(keras.optimizers.RMSprop, in_graph=True),
    "one scatter": scatter(1),
    "three scatters": scatter(3),
    "scatters and reads": scatter(2, read=True),
}


@pytest.mark.parametrize("reuse", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_change_of_any_weight_is_noticed(way, reuse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    # In which every weight matters.
    model = small_model((5, 4, 1), activation="leaky_relu")
    model.set_weights([rng.uniform(0.1, 0.9, w.shape) for w in model.weights])
    runner = Runner(model, reuse)
    frames = rng.uniform(0, 1, (2, 5, 4, 1)).astype(np.float32)
    before = runner.step(frames)
    for variable in model.weights:
        if way.startswith(("Adam", "SGD", "RMSprop")) and not (
            variable.trainable
        ):
            continue
        if "XLA" in way and variable is not model.weights[0]:
            continue  # compiling takes long
        # In a row too: the second finds what the first has left.
        for _ in range(2):
            WAYS[way](model, variable, rng)
            outputs = assert_right(runner, frames)
            assert np.all(np.any(outputs != before, -1)), variable.path
            before = outputs


def test_equal_weights_are_no_change():
    rng = np.random.default_rng(0)
    model = small_model()
    runner = Runner(model)
    frames = random_bytes(rng, 1, 9, 8, 1)
    outputs = runner.step(frames)
    before = runner.stats.layers
    model.set_weights(model.get_weights())
    assert_same_bits(runner.step(frames), outputs)
    after = runner.stats.layers
    for name in before:
        assert after[name].new_rows == before[name].new_rows


def test_weights_written_by_another_thread():
    rng = np.random.default_rng(0)
    model = small_model()
    frames = random_bytes(rng, 1, 9, 8, 1)
    kernel = model.get_layer("conv1").kernel
    values = [kernel.numpy(), kernel.numpy() * 2]
    wants = []
    for value in values:
        kernel.assign(value)
        wants.append(Runner(model).step(frames).tobytes())
    runner = Runner(model)
    done = threading.Event()

    def write():
        while not done.is_set():
            for value in values:
                kernel.assign(value)

    def step():
        try:
            for _ in range(300):
                assert runner.step(frames).tobytes() in wants
        finally:
            done.set()

    children.in_threads(lambda call: call(), [write], [step])
    kernel.assign(values[0])
    assert runner.step(frames).tobytes() == wants[0]


# -- Tables ------------------------------------------------------------------


def pointwise_model(shape=(1, 6, 1)):
    return keras.Sequential(
        [
            keras.Input(shape),
            L.Conv2D(2, 1, name="conv"),
            L.Flatten(),
            L.Dense(2, name="dense"),
        ]
    )


def frame_of(*values):
    return np.array(values, np.uint8).reshape(1, 1, -1, 1)


class TestTables:
    def test_a_full_table_is_cleared(self):
        runner = Runner(pointwise_model(), max_rows=4)
        assert_right(runner, frame_of(1, 2, 3, 1, 2, 3))
        assert runner.stats.rows == {"frames": 256, "conv": 3}
        assert runner.stats.max_rows == {"frames": 256, "conv": 4}
        assert_right(runner, frame_of(1, 2, 3, 1, 2, 4))
        assert runner.stats.rows["conv"] == 4
        assert runner.stats.clears == 0
        assert_right(runner, frame_of(4, 5, 3, 4, 5, 3))
        assert runner.stats.rows["conv"] == 3
        assert runner.stats.clears == 1
        assert_right(runner, frame_of(1, 1, 1, 1, 1, 1))
        stats = runner.stats
        assert stats.rows["conv"] == 4
        assert (stats.clears, stats.switches) == (1, 0)
        assert stats.reuse == "content"

    def test_a_frame_that_does_not_fit_is_computed_nevertheless(self):
        runner = Runner(pointwise_model(), max_rows=4)
        assert_right(runner, frame_of(1, 2, 3, 4, 5, 6))
        stats = runner.stats
        assert (stats.clears, stats.switches) == (1, 1)
        assert stats.reuse == "temporal"
        # All bytes there are, and all positions.
        assert stats.rows == {"frames": 256, "conv": 6}
        assert_right(runner, frame_of(1, 2, 3, 4, 5, 7))
        runner.reset_state()
        assert runner.stats.reuse == "content"
        assert runner.stats.clears == 0

    @pytest.mark.parametrize("max_rows", [1, 2, 5, 30])
    def test_few_rows(self, max_rows):
        rng = np.random.default_rng(0)
        runner = Runner(small_model(), max_rows=max_rows)
        frames = random_bytes(rng, 1, 9, 8, 1) // 128
        for _ in range(30):
            frames[:, rng.integers(9), rng.integers(8)] ^= 1
            assert_right(runner, frames)
            stats = runner.stats
            if stats.reuse == "content":
                assert stats.rows["conv1"] <= max_rows

    def test_noise_switches_to_temporal_reuse_and_back(self):
        rng = np.random.default_rng(0)
        model = small_model((6, 5, 1))
        runner = Runner(model)

        def until(reuse, steps, frames):
            for step in range(steps):
                outputs = runner.step(frames(step))
                assert_same_bits(outputs, want(frames(step)))
                if step % 16 == 0 and runner.stats.reuse == reuse:
                    return
            raise AssertionError(f"still not {reuse}")

        fresh = Runner(model, "temporal")

        def want(frames):
            fresh.reset_state()
            return fresh.step(frames)

        noise = rng.normal(size=(200, 1, 6, 5, 1)).astype(np.float32)
        until("temporal", 200, lambda step: noise[step])
        assert runner.stats.switches == 1
        until("content", 5000, lambda step: noise[step % 2])
        assert runner.stats.switches == 2
        # Two frames in turns are worth remembering.
        for step in range(300):
            runner.step(noise[step % 2])
        assert runner.stats.reuse == "content"
        assert runner.stats.switches == 2

    def test_temporal_reuse_stays_what_it_is(self):
        rng = np.random.default_rng(0)
        runner = Runner(small_model(), "temporal")
        for frame in random_bytes(rng, 200, 1, 9, 8, 1):
            runner.step(frame)
        assert runner.stats.reuse == "temporal"
        assert runner.stats.switches == runner.stats.clears == 0


class TestStats:
    COST1, COST2, COST3 = 9 * 1 * 4, 9 * 4 * 5, 5 * 3

    def model(self):
        model = small_model((6, 7, 1))
        model.get_layer("dense")
        return model

    @pytest.mark.parametrize("reuse", KINDS)
    def test_counts(self, reuse):
        runner = Runner(self.model(), reuse)
        content = reuse == "content"
        frames = np.zeros([1, 6, 7, 1], np.uint8)
        names = ["conv1", "conv2", "dense"]
        kinds = [reuse, reuse, "temporal"]
        assert runner.stats.frames == 0
        assert runner.stats.layers == {
            name: LayerStats(0, 0, 0, 0, 0, kind)
            for name, kind in zip(names, kinds, strict=True)
        }
        totals = np.zeros([3, 2], int)  # of changed, new rows
        costs = [self.COST1, self.COST2, self.COST3]
        # Of equal pixels, patches differ in what padding they hold: three
        # kinds of them along an axis, and five of patches of patches.
        steps = [
            (lambda: None, [42, 42, 42], [9, 25, 42]),
            (lambda: None, [0, 0, 0], [0, 0, 0]),
            (
                lambda: frames.__setitem__((0, 3, 3), 1),
                [9, 25, 25],
                [9, 25, 25],
            ),
            # Tiles that were there before: nothing is looked at.
            (lambda: frames.__setitem__((0, 3, 3), 0), [9, 25, 25], [0, 0, 0]),
            (lambda: frames.__setitem__((0, 3, 3), 1), [9, 25, 25], [0, 0, 0]),
            # In the corner, where the padding is: one patch has none of it.
            # In its two tiles, four leaves more were left as they had been.
            (lambda: frames.__setitem__((0, 5, 6), 1), [4, 9, 9], [3, 9, 13]),
        ]
        for step, (edit, changed, new) in enumerate(steps, start=1):
            edit()
            runner.step(frames)
            totals[:, 0] += changed
            totals[:, 1] += new if content else changed
            stats = runner.stats
            assert stats.frames == step
            assert stats.layers == {
                name: LayerStats(
                    42 * step, *total, total[1] * cost, 42 * step * cost, kind
                )
                for name, total, cost, kind in zip(
                    names, totals.tolist(), costs, kinds, strict=True
                )
            }
            assert stats.rows == (
                {
                    "frames": 256,
                    "conv1": totals[0, 1],
                    "conv2": totals[1, 1],
                }
                if content
                else {"frames": 42, "conv1": 42, "conv2": 42}
            )
        assert stats.reuse == reuse
        assert (stats.clears, stats.switches) == (0, 0)
        assert set(stats.seconds) == {"structure", "rows", "dense"}
        assert all(0 <= s < 60 for s in stats.seconds.values())
        assert sum(stats.seconds.values()) > 0
        runner.reset_state()
        assert runner.stats.frames == 0
        assert runner.stats.layers["conv1"] == LayerStats(0, 0, 0, 0, 0, reuse)

    def test_streams_share_rows(self):
        rng = np.random.default_rng(0)
        frame = random_bytes(rng, 1, 6, 7, 1)
        one, three = Runner(self.model()), Runner(self.model())
        one.step(frame)
        three.step(np.repeat(frame, 3, 0))
        ones, threes = one.stats, three.stats
        assert (ones.frames, threes.frames) == (1, 3)
        assert ones.rows == threes.rows
        for name in ("conv1", "conv2"):
            assert threes.layers[name].positions == 3 * 42
            assert threes.layers[name].changed == 3 * 42
            assert threes.layers[name].new_rows == ones.layers[name].new_rows

    @pytest.mark.parametrize("reuse", KINDS)
    def test_one_stream_is_reset(self, reuse):
        rng = np.random.default_rng(0)
        runner = Runner(self.model(), reuse)
        frames = random_bytes(rng, 3, 6, 7, 1)
        outputs = runner.step(frames)
        before = runner.stats.layers["conv2"]
        runner.reset_state([1, 7])
        assert_same_bits(runner.step(frames), outputs)
        after = runner.stats.layers["conv2"]
        assert after.changed - before.changed == 42
        new = after.new_rows - before.new_rows
        assert new == (0 if reuse == "content" else 42)
        runner.reset_state(2)
        runner.reset_state([])
        assert_same_bits(runner.step(frames), outputs)
        assert runner.stats.layers["conv2"].changed - after.changed == 42

    def test_windows_of_any_kind(self):
        model = keras.Sequential(
            [
                keras.Input((8, 9, 4)),
                L.Conv2D(6, (1, 2), strides=(2, 3), groups=2, name="conv"),
                L.MaxPooling2D(2, 1, name="max"),
                L.AveragePooling2D(2, 1, "same", name="average"),
                L.GlobalAveragePooling2D(name="mean"),
                L.Dense(3, name="dense"),
            ]
        )
        runner = Runner(model, "temporal")
        frames = np.zeros([2, 8, 9, 4], np.float32)
        runner.step(frames)
        frames[0, :, 2] = 1  # between windows
        frames[0, 1] = 1
        frames[1, 4, 4, 3] = 1  # under one window
        runner.step(frames)
        assert runner.stats.layers == {
            "conv": LayerStats(48, 25, 25, 25 * 24, 48 * 24, "temporal"),
            "max": LayerStats(24, 16, 16, 0, 0, "temporal"),
            "average": LayerStats(24, 18, 18, 0, 0, "temporal"),
            "mean": LayerStats(24, 18, 18, 0, 0, "temporal"),
            "dense": LayerStats(4, 3, 3, 3 * 18, 4 * 18, "temporal"),
        }


# -- Arguments ---------------------------------------------------------------


def model_of(*layers, shape=(8, 8, 2)):
    return keras.Sequential([keras.Input(shape), *layers])


END = (L.Flatten, lambda: L.Dense(2))


def ended(*layers):
    return lambda: model_of(*layers, *(make() for make in END))


class OwnCall(keras.Sequential):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


class OwnFunctional(keras.Model):
    def __call__(self, inputs, *args, **kwargs):
        return 2 * super().__call__(inputs, *args, **kwargs)


def own_functional(shape=(8, 8, 2)):
    inputs = keras.Input(shape)
    return OwnFunctional(inputs, L.GlobalAveragePooling2D()(inputs))


def in_training(layer):
    """A model in which a layer computes as in training."""
    inputs = keras.Input((8, 8, 2))
    x = layer(inputs, training=True)
    return keras.Model(inputs, L.GlobalAveragePooling2D()(x))


class Own(L.Conv2D):
    pass


def joined(layer, *before):
    """A layer of several maps, each of what stands before it."""
    inputs = keras.Input((8, 8, 2))
    return keras.Model(inputs, layer([make(inputs) for make in before]))


def shaped(shape):
    inputs = keras.Input(shape)
    return keras.Model(
        inputs, L.GlobalAveragePooling2D()(L.Conv2D(2, 1)(inputs))
    )


def two_inputs():
    inputs = [keras.Input((8, 8, 2)), keras.Input((8, 8, 2))]
    return keras.Model(inputs, L.Flatten()(L.Add()(inputs)))


UNSUPPORTED = {
    "class": ended(L.UnitNormalization(name="bad")),
    "interpolation": ended(L.UpSampling2D(interpolation="bicubic", name="bad")),
    "normalization": ended(L.LayerNormalization(axis=1, name="bad")),
    "shared axes": ended(L.PReLU(shared_axes=[1], name="bad")),
    "subclass": ended(Own(2, 3, name="bad")),
    "activation": ended(L.Conv2D(2, 3, activation=tf.sin, name="bad")),
    "activation layer": ended(L.Activation("sparsemax", name="bad")),
    "dense activation": lambda: model_of(
        L.Flatten(), L.Dense(2, activation="sparsemax", name="bad")
    ),
    "float16": ended(L.Conv2D(2, 3, dtype="mixed_float16", name="bad")),
    "float64": ended(L.Conv2D(2, 3, dtype="float64", name="bad")),
    "axis": ended(L.BatchNormalization(axis=1, name="bad")),
    "concatenation by line": lambda: joined(
        L.Concatenate(axis=2, name="bad"), L.ReLU(), L.ELU()
    ),
    "in training": lambda: in_training(L.BatchNormalization(name="bad")),
    "dropout in training": lambda: in_training(L.Dropout(0.5, name="bad")),
    "nested in training": lambda: in_training(
        keras.Sequential([keras.Input((8, 8, 2)), L.ReLU()], name="bad")
    ),
    "scale by column": ended(L.Rescaling([[0.5], [2.0]] * 4, name="bad")),
    "offset by row": lambda: model_of(
        L.Rescaling(1, [[[1.0]]] * 8, name="bad"), L.Flatten(), L.Dense(1)
    ),
    "nested": lambda: model_of(
        keras.Sequential(
            [keras.Input((8, 8, 2)), L.UnitNormalization(name="bad")]
        ),
        L.Flatten(),
        L.Dense(1),
    ),
}


class TestArguments:
    @pytest.mark.parametrize("kind", UNSUPPORTED)
    def test_an_unsupported_layer_is_named(self, kind):
        with pytest.raises(ValueError) as error:
            Runner(UNSUPPORTED[kind]())
        message = str(error.value)
        assert "'bad'" in message
        assert "`reuse_tf.convert` leaves such layers to Keras" in message
        assert keras_nodes.SUPPORTED.startswith("Conv2D, IncrementalConv2D,")

    @pytest.mark.parametrize(
        "make",
        [
            lambda: keras.Sequential([L.Flatten(), L.Dense(2)]),
            lambda: model_of(L.Dense(2), shape=(8,)),
            two_inputs,
            lambda: OwnCall([keras.Input((8, 8, 2)), L.Flatten(), L.Dense(2)]),
            own_functional,
            lambda: L.Conv2D(2, 3),
            lambda: None,
        ],
    )
    def test_other_models_are_refused(self, make):
        with pytest.raises(ValueError, match=r"Expected `model`.*Received: "):
            Runner(make())

    @pytest.mark.parametrize("reuse", ["all", "none", None, True])
    def test_reuse_is_checked(self, reuse):
        with pytest.raises(ValueError, match="Received: reuse="):
            Runner(pointwise_model(), reuse)

    @pytest.mark.parametrize("max_rows", [0, -1, 2.5, "8", 2**31, True])
    def test_max_rows_is_checked(self, max_rows):
        with pytest.raises(ValueError, match="Received: max_rows="):
            Runner(pointwise_model(), max_rows=max_rows)

    @pytest.mark.parametrize(
        "streams",
        [-1, [0, -2], 0.5, ["a"], 2**31, [2**32 + 1], [2**64], True],
    )
    def test_streams_are_checked(self, streams):
        runner = Runner(pointwise_model())
        with pytest.raises(ValueError, match="Received: streams="):
            runner.reset_state(streams)

    @pytest.mark.parametrize(
        "shape", [(9, 8, 1), (1, 1, 9, 8, 1), (1, 8, 9, 1), (1, 9, 8, 3), (1,)]
    )
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32])
    def test_bad_shapes_are_named(self, shape, dtype):
        rng = np.random.default_rng(0)
        runner = Runner(small_model())
        good = random_bytes(rng, 2, 9, 8, 1).astype(dtype)
        runner.step(good)
        frames = np.zeros(shape, dtype)
        for call in (
            runner.step,
            lambda frames: runner.step(tf.constant(frames)),
            runner,
            runner.structure,
        ):
            words = rf"`frames` .* \[N, 9, 8, 1\]. .*: {re.escape(str(shape))}"
            with pytest.raises(ValueError, match=words):
                call(frames)
        assert_right(runner, good)

    def test_bad_shapes_that_a_graph_does_not_know(self):
        runner = Runner(small_model())
        for call in (runner.step, runner):
            graph = tf.function(call).get_concrete_function(
                tf.TensorSpec(None, tf.uint8)
            )
            graph(tf.zeros([1, 9, 8, 1], tf.uint8))
            for shape in ((9, 8, 1), (1, 8, 9, 1)):
                with pytest.raises(
                    tf.errors.InvalidArgumentError,
                    match=r"frames must be .* \[[NT], 9, 8, 1\], got",
                ):
                    graph(tf.zeros(shape, tf.uint8))

    @pytest.mark.parametrize(
        "dtype",
        [np.float64, np.float16, np.int32, np.int8, bool, ">u2", "O", "c8"],
    )
    def test_bad_dtypes_are_named(self, dtype):
        runner = Runner(small_model())
        with pytest.raises(ValueError, match="uint8 or float32. Received"):
            runner.step(np.zeros([1, 9, 8, 1], dtype))
        with pytest.raises(ValueError, match="uint8 or float32. Received"):
            runner(np.zeros([1, 9, 8, 1], dtype))

    @pytest.mark.parametrize(
        "dtype",
        [
            *("uint8", "int8", "uint16", "int32", "int64", "bool"),
            *("float16", "bfloat16", "float64"),
        ],
    )
    @pytest.mark.parametrize("given", [np.uint8, np.float32])
    def test_frames_are_converted_as_keras_does(self, dtype, given):
        inputs = keras.Input((3, 4, 1), dtype=dtype)
        outputs = L.Flatten()(L.Rescaling(0.5)(inputs))
        model = keras.Model(inputs, outputs)
        rng = np.random.default_rng(0)
        # No dtype has to be left: what comes of that may be anything.
        frames = rng.integers(0, 128, (5, 3, 4, 1)).astype(given)
        if given is np.uint8:
            frames[0] += 128
        else:
            frames += rng.choice([0, 0.25, 0.75], frames.shape).astype(given)
        want = model(frames).numpy()
        runner = Runner(model)
        runner.record(given)
        for got in (
            np.concatenate([runner.step(frame[None]) for frame in frames]),
            runner(frames),
            runner(runner.recorded()),
            runner.predict(frames, verbose=0),
            runner.step(tf.constant(frames)),
            runner.step(frames, copy=False),
            runner.step(frames, copy=False),
        ):
            np.testing.assert_array_equal(got, want)

    def test_structures_of_other_models_are_refused(self):
        def model(dilation):
            return model_of(
                L.Conv2D(2, 3, padding="same", dilation_rate=dilation),
                shape=(9, 8, 1),
            )

        frames = random_bytes(np.random.default_rng(0), 3, 9, 8, 1)
        structure = Runner(model(1)).structure(frames)
        with pytest.raises(ValueError, match="structure of this model"):
            Runner(model(2))(structure)
        # Those of one like it are its own.
        runner = Runner(model(1))
        assert_same_bits(runner(structure), runner(frames))

    def test_videos_of_two_dtypes_are_refused(self):
        frames = random_bytes(np.random.default_rng(0), 2, 9, 8, 1)
        with pytest.raises(ValueError, match="one dtype.*uint8, float32"):
            Runner(small_model())([frames, frames.astype(np.float32)])

    def test_a_recording_is_whole_or_none(self):
        """Frames of another dtype are not in it."""
        frames = random_bytes(np.random.default_rng(0), 2, 9, 8, 1)
        runner = Runner(small_model())
        runner.record(tf.float32)
        runner.step(frames.astype(np.float32))
        runner.step(frames)
        assert runner.recorded() is None
        runner.step(frames, copy=False)
        runner.record(tf.float32)
        runner.step(frames, copy=False)
        runner.step(frames.astype(np.float32))
        assert runner.recorded() is None
        runner.record()
        runner.step(frames, copy=False)
        assert len(runner.recorded().order) == 2

    def test_no_streams(self):
        runner = Runner(small_model())
        outputs = runner.step(np.zeros([0, 9, 8, 1], np.uint8))
        assert outputs.shape == (0, 3)
        assert_right(runner, np.ones([1, 9, 8, 1], np.uint8))

    def test_arrays_of_any_layout(self):
        rng = np.random.default_rng(0)
        runner = Runner(small_model())
        big = random_bytes(rng, 1, 18, 16, 1)
        for frames in (
            big[:, ::2, ::2],
            big[:, 8::-1, 7::-1],
            np.asfortranarray(big[:, ::2, ::2]),
            np.broadcast_to(big[:, :9, :8], (3, 9, 8, 1)),
        ):
            want = Runner(runner.model).step(frames.copy("C"))
            assert_same_bits(runner.step(frames), want)
            assert_same_bits(runner.step(tf.constant(frames)), want)

    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    def test_arrays_of_any_bytes(self, dtype):
        """Order, alignment, subclasses: right, as is a frame of a file."""
        rng = np.random.default_rng(0)
        runner = Runner(small_model())
        frames = random_bytes(rng, 2, 9, 8, 1).astype(dtype)
        want = runner.step(frames)
        kind = np.dtype(dtype)
        unaligned = np.zeros(frames.nbytes + 1, np.uint8)[1:].view(kind)
        unaligned = unaligned.reshape(frames.shape)
        unaligned[:] = frames
        read_only = frames.copy()
        read_only.flags.writeable = False
        record = np.zeros(frames.shape, [("a", "u1"), ("b", kind)])
        record["b"] = frames
        for array in (
            frames.astype(kind.newbyteorder(">")),
            frames.astype(kind.newbyteorder("<")),
            unaligned,
            read_only,
            record["b"],
            np.ma.masked_array(frames),
            frames[::-1][::-1],
            frames.astype(kind.newbyteorder(">"))[:, ::-1][:, ::-1],
        ):
            np.testing.assert_array_equal(runner.step(array), want)
            np.testing.assert_allclose(runner(array), want, atol=1e-5)

    def test_an_array_that_is_written_to(self):
        rng = np.random.default_rng(0)
        runner = Runner(small_model())
        frames = random_bytes(rng, 1, 9, 8, 1)
        kept = []
        for _ in range(10):
            frames[:, rng.integers(9)] += 1
            want = Runner(runner.model).step(frames.copy())
            kept.append((runner.step(frames), want))
        for outputs, want in kept:
            assert_same_bits(outputs, want)

    def test_in_a_function(self):
        rng = np.random.default_rng(0)
        runner = Runner(small_model())
        function = tf.function(runner.step)
        for frames in random_bytes(rng, 3, 2, 9, 8, 1):
            outputs = function(frames)
            assert outputs.shape == (2, 3)
            assert_same_bits(outputs, Runner(runner.model).step(frames))
        assert runner.stats.frames == 6

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda step: tf.function(step),
            lambda step: tf.function(lambda frames: step(frames)),
            lambda step: (
                lambda frames: next(
                    iter(tf.data.Dataset.from_tensors(frames).map(step))
                )
            ),
        ],
    )
    def test_a_function_before_all_others(self, wrap):
        # AutoGraph would make tensors of numbers, and of an address another.
        frames = np.ones((2, 9, 8, 1), np.float32)
        runner = Runner(small_model())
        want = Runner(runner.model).step(frames)
        assert_same_bits(wrap(runner.step)(tf.constant(frames)), want)
        assert_same_bits(runner.step(frames), want)

    @pytest.mark.parametrize("kept", [False, True])
    def test_an_array_in_a_function(self, kept):
        frames = np.ones((2, 9, 8, 1), np.uint8)
        runner = Runner(small_model())
        if kept:
            runner.step(frames, copy=False)

        @tf.function
        def step():
            return runner.step(frames, copy=not kept)

        for _ in range(2):
            assert_same_bits(step(), Runner(runner.model).step(frames))
            for variable in runner.model.trainable_variables:
                variable.assign(2 * variable)

    @pytest.mark.parametrize("shape", [(9, 8, 1), (64, 64, 1)])
    def test_steps_and_assignments_keep_their_order(self, shape):
        model = keras.Sequential(
            [
                keras.Input(shape),
                keras.layers.Conv2D(4, 3, strides=2),
                keras.layers.Flatten(),
                keras.layers.Dense(2),
            ]
        )
        runner = Runner(model)
        frames = tf.ones((1, *shape))

        @tf.function
        def play():
            before = runner.step(frames)
            for variable in model.trainable_variables:
                variable.assign(1.5 * variable)
            after = runner.step(frames)
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(runner.step(frames))
            assert tape.gradient(loss, model.trainable_variables[0]) is None
            return before, after

        for _ in range(20):
            want_before = Runner(model).step(frames)
            before, after = play()
            assert_same_bits(before, want_before)
            assert_same_bits(after, Runner(model).step(frames))


# -- Threads -----------------------------------------------------------------


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))]
)
def test_copies_stand_for_themselves(copied):
    """Of their own weights, frames and counters."""
    rng = np.random.default_rng(0)
    runner = Runner(small_model(), "temporal", max_rows=77)
    frames = random_bytes(rng, 2, 9, 8, 1)
    want = runner.step(frames)
    other = copied(runner)
    assert other.stats.frames == 0
    assert (other.reuse, other.stats.reuse) == ("temporal", "temporal")
    np.testing.assert_array_equal(other.step(frames), want)
    for variable in runner.model.weights:
        variable.assign(variable + 1)
    np.testing.assert_array_equal(other.step(frames), want)
    assert_right(runner, frames)
    assert np.any(runner.step(frames) != want)
    assert runner.stats.frames == 3 * 2


@pytest.mark.parametrize("bias", [92, 100])
def test_denormals_are_zero_in_every_thread(bias):
    """As in TensorFlow, whose threads flush them."""
    model = model_of(L.Flatten(), L.Dense(2, "softmax"), shape=(2, 2, 1))
    model.layers[-1].bias.assign([0.0, float(bias)])
    frames = np.zeros((3, 2, 2, 1), np.uint8)
    runner = Runner(model)
    want = [[0, 1]] * 3
    for outputs in (
        runner.step(frames),
        runner.step(tf.constant(frames)),
        tf.function(runner.step)(tf.constant(frames)),
        runner(frames),
        model(frames),
    ):
        np.testing.assert_array_equal(outputs, want)
    # What a caller computes afterwards is not flushed.
    assert np.float32(1e-30) * np.float32(1e-10) != 0


@pytest.mark.parametrize("reuse", KINDS)
@pytest.mark.parametrize("count", [2, 4])
def test_threads_get_their_own_answers(reuse, count):
    rng = np.random.default_rng(0)
    model = small_model((12, 12, 1))
    runner = Runner(model, reuse, max_rows=200)
    videos, wants = [], []
    for thread in range(count):
        frames = random_bytes(rng, 1 + thread % 3, 12, 12, 1)
        video = []
        for _ in range(5):
            frames = frames.copy()
            frames[:, rng.integers(12)] = rng.integers(256)
            video.append(frames)
        videos.append(video)
        wants.append([Runner(model).step(f) for f in video])

    def run(video, want):
        for _ in range(20):
            kept = [runner.step(frames) for frames in video]
            for outputs, expected in zip(kept, want, strict=True):
                assert_same_bits(outputs, expected)
            runner.reset_state([0])
            assert runner.stats.frames > 0

    children.in_threads(run, *zip(videos, wants, strict=True))
    assert runner.stats.frames == sum(
        20 * sum(map(len, video)) for video in videos
    )


def test_calls_of_all_kinds_in_threads():
    """Of one runner: steps, videos, recordings, resets, what was done."""
    model = small_model((12, 10, 2))
    runner = Runner(model)
    rng = np.random.default_rng(0)
    videos = [random_bytes(rng, 5, 2, 12, 10, 2) for _ in range(3)]
    videos[1] = videos[1][:, :1]
    videos[2] = videos[2].astype(np.float32)

    def steps(frames, want):
        assert_same_bits(runner.step(frames), want)
        runner.step(frames, copy=False)

    def whole(frames, want):
        for video in frames, runner.structure(frames):
            np.testing.assert_allclose(runner(video), want, atol=1e-4)
        assert_same_bits(runner.predict(frames, verbose=0), want)

    def recording(frames, want):
        runner.record(frames.dtype)
        assert_same_bits(runner.step(frames), want)
        runner.recorded()

    def others(frames, want):
        assert runner.stats.frames >= 0
        runner.reset_state([0] if len(frames) == 1 else None)

    def play(seed):
        rng = np.random.default_rng(seed)
        for _ in range(60):
            t = rng.choice(5)
            call = rng.choice([steps, whole, recording, others])
            call(videos[seed][t], wants[seed][t])

    wants = [[Runner(model).step(f) for f in video] for video in videos]
    children.in_threads(play, *[[seed] for seed in range(len(videos))])


def test_in_a_layer_of_mixed_precision():
    """Where Keras casts the variables of all that is called."""
    model = small_model((9, 8, 2))
    frames = random_bytes(np.random.default_rng(0), 3, 9, 8, 2)
    got = {}

    class Outer(keras.Layer):
        def call(self, inputs):
            runner = Runner(model)
            got["steps"] = runner.step(inputs.numpy())
            got["call"] = runner(inputs)
            return inputs

    Outer(dtype="mixed_float16", autocast=False)(tf.constant(frames))
    want = model(frames)
    for outputs in got.values():
        np.testing.assert_allclose(outputs, want, 1e-4, 1e-5)


def test_a_model_of_several_replicas_is_refused():
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = small_model((9, 8, 2))
    with pytest.raises(ValueError, match="outside of the scope"):
        Runner(model)


def test_threads_share_the_work_of_large_layers():
    """Large enough to be cut up: the same bits as computed one by one."""
    model = keras.Sequential(
        [
            keras.Input((40, 40, 3)),
            L.Conv2D(32, 3, padding="same", activation="relu"),
            L.Conv2D(48, 3, strides=2, activation="relu"),
            L.Flatten(),
            L.Dense(64),
        ]
    )
    rng = np.random.default_rng(0)
    frames = rng.normal(size=(6, 40, 40, 3)).astype(np.float32)
    for reuse in KINDS:
        outputs = Runner(model, reuse).step(frames)
        one = Runner(model, reuse)
        for frame, output in zip(frames, outputs, strict=True):
            assert_same_bits(one.step(frame[None])[0], output)
        np.testing.assert_allclose(outputs, model(frames), rtol=1e-3, atol=1e-4)


def test_tables_go_with_whoever_holds_them():
    """At once, and not when Python looks for cycles."""
    model = keras.Sequential(
        [keras.Input((None, None, 1)), keras.layers.Conv2D(2, 3)]
    )
    runner = Runner(model)

    gc.disable()
    try:
        for size in 5, 6, 7:
            frame = np.zeros((1, size, size, 1), np.uint8)
            runner.step(frame)
            runner.step(frame.astype(np.float32))
            runner.predict(frame, verbose=0)
            living = [h() for h in runner._handles.values()]
            living = [handle for handle in living if handle is not None]
            assert len(living) == 2
            del living
        *_, last = runner._handles.values()
        del runner
        assert last() is None
    finally:
        gc.enable()
