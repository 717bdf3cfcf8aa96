"""Networks that play games: their layers, their critics, and in a runner."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from reuse_tf import Runner, internals
from reuse_tf.learning import ppo
from reuse_tf.policies import (
    NETWORKS,
    build_network,
    build_policy,
    load_policy,
    networks,
)

ACTIONS = 5
# Small ones: shapes of frames, and filters.
SMALL = {
    "paper": ((9, 7, 1), (3, 4)),
    "nature": ((40, 36, 2), (2, 3, 4)),
    "impala": ((11, 9, 2), (2, 3)),
}
each_network = pytest.mark.parametrize("network", NETWORKS)
with_or_without_value = pytest.mark.parametrize("value", [False, True])


def small(network, value=False):
    shape, filters = SMALL[network]
    model = build_network(network, shape, ACTIONS, filters=filters, value=value)
    for weight in model.weights:  # Biases, which begin with zeros.
        weight.assign(weight + np.random.uniform(-0.1, 0.1, weight.shape))
    return model


def video(shape, frames=12):
    """Frames `[T, *shape]` in which a square moves over a still picture."""
    rng = np.random.default_rng(0)
    made = np.repeat(rng.integers(0, 256, (1, *shape), np.uint8), frames, 0)
    for time, frame in enumerate(made):
        frame[time % 5 : time % 5 + 3, time % 4 : time % 4 + 2] = 200
    return made


def assert_equal(got, want, tolerance=1e-5):
    keras.tree.assert_same_structure(got, want)
    for a, b in zip(
        keras.tree.flatten(got), keras.tree.flatten(want), strict=True
    ):
        atol = tolerance * max(1e-3, np.max(np.abs(b)))
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=atol)


def convolved(x, model, name, stride, padding):
    kernel, bias = model.get_layer(name).weights
    return tf.nn.conv2d(x, kernel, stride, padding) + bias


def dense(x, model, name):
    weights = model.get_layer(name).weights
    return x @ weights[0] + (weights[1] if len(weights) > 1 else 0)


def paper_features(model, x):
    for name in ("conv1", "conv2"):
        x = tf.nn.relu(convolved(x, model, name, 1, "SAME"))
    return tf.reshape(x, [len(x), -1])


def nature_features(model, x):
    for name, stride in (("conv1", 4), ("conv2", 2), ("conv3", 1)):
        x = tf.nn.relu(convolved(x, model, name, stride, "VALID"))
    x = tf.reshape(x, [len(x), -1])
    return tf.nn.relu(dense(x, model, "hidden"))


def impala_features(model, x):
    for part in "12":
        x = convolved(x, model, f"conv{part}", 1, "SAME")
        x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        for block in "ab":
            y = convolved(
                tf.nn.relu(x), model, f"conv{part}{block}1", 1, "SAME"
            )
            x += convolved(
                tf.nn.relu(y), model, f"conv{part}{block}2", 1, "SAME"
            )
    x = tf.reshape(tf.nn.relu(x), [len(x), -1])
    return tf.nn.relu(dense(x, model, "hidden"))


@with_or_without_value
@each_network
def test_networks_compute_what_is_written_of_them(network, value):
    model = small(network, value)
    frames = video(SMALL[network][0], 4)
    features = {
        "paper": paper_features,
        "nature": nature_features,
        "impala": impala_features,
    }[network](model, tf.constant(frames / 255, tf.float32))
    logits = dense(features, model, "logits")
    want = logits
    if value:
        want = {"logits": logits, "value": dense(features, model, "value")}
        assert want["value"].shape == (4, 1)
    assert logits.shape == (4, ACTIONS)
    assert_equal(model(frames), want, 1e-4)


@each_network
def test_sizes_are_those_of_the_papers(network):
    model = build_network(network, (84, 84, 4), 6, value=True)
    filters = {
        "paper": [(3, 3, 4, 40), (3, 3, 40, 80)],
        "nature": [(8, 8, 4, 32), (4, 4, 32, 64), (3, 3, 64, 64)],
        "impala": [(3, 3, 4, 16)]
        + [(3, 3, 16, 16)] * 4
        + [(3, 3, 16, 32)]
        + [(3, 3, 32, 32)] * 9,
    }[network]
    units = {
        "paper": [(84 * 84 * 80, 6), (84 * 84 * 80, 1)],
        "nature": [(7 * 7 * 64, 512), (512, 6), (512, 1)],
        "impala": [(11 * 11 * 32, 256), (256, 6), (256, 1)],
    }[network]
    kernels = [tuple(w.shape) for w in model.weights if w.name == "kernel"]
    assert kernels == filters + units
    biases = [tuple(w.shape) for w in model.weights if w.name == "bias"]
    if network == "paper":
        units = units[1:]  # Its logits have none.
    assert biases == [kernel[-1:] for kernel in filters + units]


@with_or_without_value
@each_network
def test_what_goes_in_and_comes_out(network, value):
    shape, filters = SMALL[network]
    model = build_network(network, shape, ACTIONS, filters=filters, value=value)
    (frames,) = model.inputs
    assert frames.shape == (None, *shape)
    assert frames.dtype == "uint8"
    outputs = internals.outputs_of(model)
    if value:
        assert list(outputs) == ["logits", "value"]
        assert outputs["value"].shape == (None, 1)
        outputs = outputs["logits"]
    assert outputs.shape == (None, ACTIONS)


def test_the_paper_s_network_is_the_policy():
    shape, filters = SMALL["paper"]
    keras.utils.set_random_seed(0)
    want = build_policy(shape, ACTIONS, filters, incremental=False)
    for value in (False, True):
        keras.utils.set_random_seed(0)
        got = build_network(
            "paper", shape, ACTIONS, filters=filters, value=value
        )
        for weight in want.weights:
            (same,) = [w for w in got.weights if w.path == weight.path]
            np.testing.assert_array_equal(same, weight)
        assert len(got.weights) - len(want.weights) == (2 if value else 0)


def gain_of(kernel):
    """The gain of an orthogonal kernel: of columns, or of rows if fewer."""
    matrix = np.reshape(kernel, [-1, kernel.shape[-1]])
    if matrix.shape[0] < matrix.shape[1]:
        matrix = matrix.T
    products = matrix.T @ matrix
    gain = math.sqrt(products[0, 0])
    np.testing.assert_allclose(
        products, gain**2 * np.eye(len(products)), atol=1e-5 * gain**2
    )
    return gain


@pytest.mark.parametrize("network", ["nature", "impala"])
def test_weights_are_orthogonal(network):
    shape, filters = SMALL[network]
    model = build_network(network, shape, ACTIONS, filters=filters, value=True)
    gains = {"logits": 0.01, "value": 1}
    if network == "nature":
        hidden = ("conv1", "conv2", "conv3", "hidden")
        gains.update(dict.fromkeys(hidden, math.sqrt(2)))
    for name, gain in gains.items():
        kernel, bias = model.get_layer(name).get_weights()
        assert gain_of(kernel) == pytest.approx(gain, rel=1e-5)
        assert not bias.any()


def test_a_seed_decides_all_weights_and_no_two_are_alike():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        # Of layers of the same shape.
        model = networks.impala((5, 5, 2), 1, (2, 2), units=1)
        model = networks._with_value(model)
        return [w for w in model.get_weights() if w.ndim > 1]

    for one, same, other in zip(
        weights(1), weights(1), weights(2), strict=True
    ):
        np.testing.assert_array_equal(one, same)
        assert one.size == 1 or np.any(one != other)
    kernels = [w for w in weights(1) if w.shape == (3, 3, 2, 2)]
    assert len({kernel.tobytes() for kernel in kernels}) == len(kernels) == 10


@with_or_without_value
@each_network
def test_a_runner_steps_as_keras_does(network, value):
    model = small(network, value)
    frames = video(SMALL[network][0])
    streams = np.stack([frames, frames[::-1]], axis=1)
    runner = Runner(model)
    for batch in streams:
        assert_equal(runner.step(batch), model(batch), 1e-4)


@with_or_without_value
@each_network
def test_a_runner_s_gradient_is_that_of_keras(network, value):
    model = small(network, value)
    frames = video(SMALL[network][0])
    rng = np.random.default_rng(0)
    places = rng.integers(12, size=9)
    actions = rng.integers(ACTIONS, size=9)
    old, advantages, targets = rng.normal(size=(3, 9))
    old = ppo.log_probabilities(rng.normal(0, 0.1, (9, ACTIONS)), actions)

    def gradient(evaluate, inputs):
        with tf.GradientTape() as tape:
            outputs = evaluate(inputs)
            if not value:
                outputs = {"logits": outputs}
            logits = outputs["logits"]
            loss = ppo.clipped_policy_loss(
                logits, actions, old, advantages, 0.5
            )
            loss -= 0.01 * ppo.mean_entropy(logits)
            if value:
                loss += ppo.value_loss(outputs["value"][:, 0], targets)
        return tape.gradient(loss, model.trainable_variables)

    runner = Runner(model)
    got = gradient(runner, runner.structure(frames).take(places))
    want = gradient(model, frames[places])
    for weight, a, b in zip(model.trainable_variables, got, want, strict=True):
        assert np.any(b), weight.path
        assert_equal(a, b, 1e-3)


@pytest.mark.parametrize("incremental", [False, True])
@each_network
def test_a_saved_critic_is_loaded(tmp_path, network, incremental):
    path = tmp_path / "policy.keras"
    model = small(network, value=True)
    model.save(path)
    shape, _ = SMALL[network]
    loaded = load_policy(path, shape, ACTIONS, incremental, value=True)
    # One that plays needs none.
    alone = load_policy(path, shape, ACTIONS, incremental)
    assert len(loaded.weights) == len(model.weights) == len(alone.weights) + 2
    for other in (loaded, alone):
        names = {type(layer).__name__ for layer in other.layers}
        assert ("IncrementalConv2D" in names) == incremental
        assert ("Conv2D" in names) != incremental
    for got, want in zip(
        loaded.get_weights(), model.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(got, want)
    frames = video(shape, 3)
    want = model(frames)
    assert_equal(loaded(frames), dict(want))
    assert_equal(alone(frames), want["logits"])
    assert_equal(Runner(alone).step(frames), want["logits"].numpy(), 1e-4)


def test_a_critic_that_is_not_there_is_missed(tmp_path):
    path = tmp_path / "policy.keras"
    shape, _ = SMALL["paper"]
    small("paper").save(path)
    with pytest.raises(
        ValueError,
        match=r"policy.keras' does not fit: expected output shape .*'value': "
        r"\(None, 1\)\}. Received: \(None, 5\)",
    ):
        load_policy(path, shape, ACTIONS, value=True)


# -- Models of a function ----------------------------------------------------


def two_heads(shape, num_actions, values=1, **others):
    inputs = keras.Input(shape)
    x = keras.layers.Conv2D(2, 3, strides=2, activation="relu")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = {"logits": num_actions, "value": values, **others}
    return keras.Model(
        inputs,
        {name: keras.layers.Dense(units)(x) for name, units in outputs.items()},
    )


def only_logits(shape, num_actions):
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Flatten(),
            keras.layers.Dense(num_actions),
        ]
    )


def test_a_function_may_make_the_model(tmp_path):
    calls = []

    def make(*arguments):
        calls.append(arguments)
        return two_heads(*arguments, surprise=2)

    shape = (9, 7, 2)
    frames = video(shape, 3)
    path = tmp_path / "policy.keras"
    for value in (False, True):
        model = build_network(make, shape, 4, value=value)
        outputs = model(frames)
        model.save(path)
        if value:
            assert outputs.keys() == {"logits", "value"}
        else:
            outputs = {"logits": outputs}
        assert outputs["logits"].shape == (3, 4)
        assert_equal(Runner(model).step(frames), model(frames), 1e-4)
        for loaded in (False, True)[: value + 1]:
            policy = load_policy(path, shape, 4, value=loaded)
            want = dict(outputs) if loaded else outputs["logits"]
            assert_equal(policy(frames), want)
    assert calls == [(shape, 4)] * 2
    model = build_network(only_logits, shape, 4)
    assert type(model) is keras.Sequential
    assert_equal(Runner(model).step(frames), model(frames), 1e-4)


class Subclassed(keras.Model):
    def call(self, frames):
        return keras.ops.mean(frames, (1, 2))


LOGITS_AND_VALUE = r"output shape \{'logits': \(None, 4\), 'value': \(None, 1"


@pytest.mark.parametrize(
    ("make", "value", "expected"),
    [
        (lambda shape, n: two_heads((8, 8, 1), n), True, "input shape .*9, 7"),
        (lambda shape, n: two_heads((None, 7, 2), n), True, "input shape"),
        (lambda shape, n: two_heads(shape, n + 1), True, LOGITS_AND_VALUE),
        (lambda shape, n: two_heads(shape, n, 2), True, LOGITS_AND_VALUE),
        (only_logits, True, LOGITS_AND_VALUE),
        (lambda shape, n: only_logits(shape, 3), False, r"output .*\(None, 4"),
        (lambda shape, n: two_heads(shape, 3), False, r"output .*\(None, 4"),
        (
            lambda shape, n: keras.Sequential([keras.layers.Dense(n)]),
            False,
            "functional Keras model that is built. Received: <Sequential",
        ),
        (lambda shape, n: Subclassed(), False, "Received: <Subclassed"),
        (lambda shape, n: None, False, "Received: None"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(make, value, expected):
    with pytest.raises(
        ValueError, match=f"that `network` makes does not fit: .*{expected}"
    ):
        build_network(make, (9, 7, 2), 4, value=value)


def test_filters_are_not_for_a_function():
    with pytest.raises(ValueError, match="`filters` are not .* Received"):
        build_network(two_heads, (9, 7, 2), 4, filters=(3,))


# -- What is refused ---------------------------------------------------------


def test_an_unknown_network_is_refused():
    with pytest.raises(
        ValueError,
        match="`network` must be one of paper, nature, impala.*'Nature'",
    ):
        build_network("Nature", (84, 84, 4), 6)


@each_network
@pytest.mark.parametrize(
    "arguments",
    [
        {"filters": ()},
        {"filters": (4, 0, 4)},
        {"num_actions": 0},
        {"input_shape": (84, 84)},
        {"input_shape": (84, None, 4)},
    ],
)
def test_bad_arguments_are_named(network, arguments):
    (name,) = arguments
    arguments = {"input_shape": (84, 84, 4), "num_actions": 6, **arguments}
    with pytest.raises(ValueError, match=f"`{name}` must .* Received: {name}="):
        build_network(network, **arguments)


@pytest.mark.parametrize("make", [networks.nature, networks.impala])
def test_bad_units_are_named(make):
    with pytest.raises(ValueError, match="`units` must .* Received: units=0"):
        make((84, 84, 4), 6, units=0)


@pytest.mark.parametrize("filters", [(4, 4), (4, 4, 4, 4)])
def test_nature_has_three_convolutions(filters):
    with pytest.raises(ValueError, match="`filters` must be three integers"):
        build_network("nature", (84, 84, 4), 6, filters=filters)


def test_nature_needs_frames_of_36_pixels():
    model = networks.nature((36, 36, 1), 2, (1, 1, 1), units=1)
    assert model.get_layer("conv3").output.shape == (None, 1, 1, 1)
    for shape in ((35, 80, 1), (80, 35, 1)):
        with pytest.raises(ValueError, match="36 x 36 .*nature. Received.*35"):
            networks.nature(shape, 2)


@pytest.mark.parametrize("network", ["paper", "impala"])
def test_other_networks_take_frames_of_any_size(network):
    model = build_network(network, (1, 2, 1), 3, filters=(2,), value=True)
    frames = video((1, 2, 1), 2)
    assert_equal(Runner(model).step(frames), model(frames), 1e-4)
