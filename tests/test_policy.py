"""Policies: construction, conversion, loading, and drawing actions."""

import json
import os
import sys

import children
import defaults
import keras
import numpy as np
import pytest

from reuse_tf.layers import IncrementalConv2D, IncrementalDense
from reuse_tf.policies import Sampler, build_policy, load_policy

SHAPE, ACTIONS = (20, 16, 1), 6


@pytest.fixture
def frames():
    """Frames `[time, 1, height, width, 1]` in which a square moves."""
    frames = np.zeros([8, 1, *SHAPE], np.uint8)
    for time, frame in enumerate(frames):
        frame[0, 2 * time : 2 * time + 3, time : time + 3] = 200
    return frames


@pytest.mark.parametrize("incremental", [False, True])
def test_layers_are_as_documented(incremental):
    model = build_policy(SHAPE, ACTIONS, (4, 8, 2), 5, incremental)
    conv = IncrementalConv2D if incremental else keras.layers.Conv2D
    dense = IncrementalDense if incremental else keras.layers.Dense
    assert [type(layer) for layer in model.layers] == [
        keras.layers.Rescaling,
        *[conv] * 3,
        keras.layers.Flatten,
        dense,
    ]
    assert model.input_shape == (None, *SHAPE)
    assert model.output_shape == (None, ACTIONS)
    assert [tuple(weight.shape) for weight in model.weights] == [
        (5, 5, 1, 4),
        (4,),
        (5, 5, 4, 8),
        (8,),
        (5, 5, 8, 2),
        (2,),
        (20 * 16 * 2, ACTIONS),
    ]


def test_pixels_are_scaled_to_the_unit_interval():
    model = build_policy(SHAPE, ACTIONS, (4,), incremental=False)
    frame = np.full([1, *SHAPE], 255, np.uint8)
    scaled = model.get_layer("scale")(frame)
    np.testing.assert_allclose(scaled, 1, rtol=1e-6)


def test_both_kinds_are_one_model(frames):
    keras.utils.set_random_seed(0)
    incremental = build_policy(SHAPE, ACTIONS, (4, 8))
    keras.utils.set_random_seed(0)
    dense = build_policy(SHAPE, ACTIONS, (4, 8), incremental=False)
    assert [weight.path for weight in incremental.weights] == [
        weight.path for weight in dense.weights
    ]
    for ours, theirs in zip(
        incremental.get_weights(), dense.get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    for frame in frames:
        np.testing.assert_allclose(
            incremental(frame), dense(frame), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize(
    "arguments",
    [
        {"filters": ()},
        {"filters": (40, 0)},
        {"filters": (40, 1.5)},
        {"kernel_size": 0},
        {"num_actions": -1},
        {"input_shape": (20, 16)},
        {"input_shape": (20, None, 1)},
    ],
)
def test_bad_arguments_are_named(arguments):
    (name,) = arguments
    arguments = {"input_shape": SHAPE, "num_actions": ACTIONS, **arguments}
    with pytest.raises(ValueError, match=f"`{name}` must .* Received: {name}="):
        build_policy(**arguments)


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [(False, False), (False, True), (True, False), (True, True)],
)
def test_a_saved_policy_loads_as_either_kind(tmp_path, frames, saved, loaded):
    path = tmp_path / "policy.keras"
    model = build_policy(SHAPE, ACTIONS, (4, 8), incremental=saved)
    model.save(path)
    policy = load_policy(path, SHAPE, ACTIONS, incremental=loaded)
    assert (
        any(isinstance(layer, IncrementalConv2D) for layer in policy.layers)
        == any(isinstance(layer, IncrementalDense) for layer in policy.layers)
        == loaded
    )
    for frame in frames:
        np.testing.assert_allclose(
            policy(frame), model(frame), rtol=1e-5, atol=1e-6
        )


def test_a_policy_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "policy.keras"
    build_policy(SHAPE, ACTIONS, (4,), incremental=False).save(path)
    with pytest.raises(ValueError, match=r"input shape \(None, 9, 16, 1\)"):
        load_policy(path, (9, 16, 1), ACTIONS)
    with pytest.raises(ValueError, match=r"output shape \(None, 4\)"):
        load_policy(path, SHAPE, 4)


def test_a_file_that_is_no_policy_is_refused(tmp_path):
    path = tmp_path / "policy.keras"
    path.write_bytes(b"not a policy")
    with pytest.raises(ValueError, match=r"load .*policy\.keras'.* not a zip"):
        load_policy(path, SHAPE, ACTIONS)


class Uniforms:
    """A generator of given numbers."""

    def __init__(self, *numbers):
        self.numbers = numbers

    def random(self, out):
        out[:] = self.numbers[: len(out)]
        self.numbers = self.numbers[len(out) :]


def drawn(logits, *uniforms):
    """The actions for given numbers, of one row of logits."""
    return Sampler(Uniforms(*uniforms))(np.tile(logits, (len(uniforms), 1)))


def test_sampling_inverts_the_cumulative_distribution():
    logits = np.log(np.float32([0.1, 0.2, 0.3, 0.4]))
    assert drawn(logits, 0, 0.09, 0.11, 0.31, 0.61) == [0, 0, 1, 2, 3]


def test_sampling_frequencies_are_the_softmax():
    logits = np.float32([900.0, 901.0, 899.0])
    actions = drawn(logits, *(np.arange(3000) + 0.5) / 3000)
    expected = np.exp(logits - 900) / np.exp(logits - 900).sum()
    np.testing.assert_allclose(
        np.bincount(actions) / len(actions), expected, atol=1e-3
    )


def test_an_impossible_action_is_never_drawn():
    below_one = np.nextafter(1.0, 0.0)
    logits = np.float32([-np.inf, 0.0, -np.inf])
    assert drawn(logits, 0.0, below_one) == [1, 1]
    assert drawn(np.float32([0.1] * 18), below_one) == [17]


def test_actions_are_of_the_numbers_that_come_next():
    """Whatever array the logits are in, and whether it is the last one."""
    rng = np.random.default_rng(0)
    sample = Sampler(np.random.default_rng(1))
    uniforms = np.random.default_rng(1).random(100).tolist()
    kept = np.zeros((2, 5), np.float32)
    for kind in rng.integers(4, size=20):
        logits = rng.normal(size=(2, 5)).astype(np.float32)
        if kind == 0:
            kept[:] = logits
            logits = kept
        elif kind == 1:
            logits = np.asfortranarray(logits)
        elif kind == 2:
            logits = logits[:1].astype(np.float64)
        cumulative = np.cumsum(np.exp(np.float64(logits)), 1)
        want = [
            np.searchsorted(row, uniforms.pop(0) * row[-1], "right")
            for row in cumulative
        ]
        assert sample(logits) == want


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("index", [0, 1])
def test_logits_that_are_not_finite_are_refused(bad, index):
    logits = np.zeros((2, 3), np.float32)
    logits[1, index] = bad
    with pytest.raises(FloatingPointError, match="not finite"):
        Sampler(np.random.default_rng(0))(logits)


@pytest.mark.parametrize("shape", [(3,), (), (1, 2, 3), (2, 0)])
def test_logits_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="`logits` of shape"):
        Sampler(np.random.default_rng(0))(np.zeros(shape, np.float32))


def test_other_defaults_of_keras_change_nothing(tmp_path):
    configured = {"floatx": "float16", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(configured))
    result = children.run(
        *(sys.executable, defaults.__file__, tmp_path / "built.npz"),
        env=children.environment(
            KERAS_HOME=str(tmp_path),
            PYTHONPATH=os.pathsep.join(filter(None, sys.path)),
        ),
    )
    assert result.returncode == 0, result.stderr
    with np.load(tmp_path / "built.npz") as store:
        got = dict(store)
    assert got.pop("defaults").tolist() == ["float16", "channels_first"]
    want = defaults.built()
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)
