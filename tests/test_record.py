"""What changes, what is new, and the moving picture of it."""

import io

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies
from PIL import Image

from reuse_tf import Runner, atari
from reuse_tf.playing.changes import Changes, same
from reuse_tf.playing.play import play
from reuse_tf.playing.record import Recorder, _Map
from reuse_tf.policies import build_network
from reuse_tf.policies.policy import build_policy


@hypothesis.given(
    frames=strategies.lists(
        strategies.lists(strategies.integers(0, 1), min_size=20, max_size=20),
        min_size=1,
        max_size=4,
    ),
    field=strategies.integers(1, 5),
)
def test_changes_are_those_of_the_definition(frames, field):
    frames = np.array(frames, np.uint8).reshape(-1, 5, 4, 1)
    before = (field - 1) // 2
    changes = Changes([same(frames.shape[1:], field)])
    seen = set()
    for i, frame in enumerate(frames):
        change = changes.update(frame)
        last = frames[i - 1] if i else ~frame
        pixels = (frame != last)[..., 0]
        np.testing.assert_array_equal(change.pixels, pixels)
        # The definition, position by position. Padding is a 9.
        frame_9 = np.pad(frame[..., 0], field, constant_values=9)
        pixels_0 = np.pad(pixels, field)
        for y, x in np.ndindex(5, 4):
            window = (
                slice(y + field - before, y + 2 * field - before),
                slice(x + field - before, x + 2 * field - before),
            )
            changed = pixels_0[window].any()
            patch = frame_9[window].tobytes()
            assert change.positions[y, x] == changed
            assert change.new[y, x] == (patch not in seen)
            seen.add(patch)


# -- Which map is shown --------------------------------------------------------


def conv(size, name, **arguments):
    return keras.layers.Conv2D(2, size, name=name, **arguments)


def pool(size, name, **arguments):
    return keras.layers.MaxPooling2D(size, name=name, **arguments)


# Layers, the one that is shown, and what its positions see.
CHAINS = {
    "nothing": (lambda: [], "pixels", (1, 1)),
    "paper": (
        lambda: [
            conv(3, "a", padding="same"),
            conv(3, "b", padding="same", activation="relu"),
        ],
        *("b", (5, 5)),
    ),
    "even": (
        lambda: [conv(2, "a", padding="same"), conv((2, 4), "b")],
        *("b", (3, 5)),
    ),
    "strides": (
        lambda: [conv(4, "a", strides=(2, 3)), conv(3, "b")],
        *("a", (4, 4)),
    ),
    "a remainder, then strides": (
        lambda: [
            conv(3, "a", dilation_rate=2),
            pool(3, "b", strides=2, padding="same"),
            conv(3, "c"),
        ],
        *("b", (7, 7)),
    ),
    "padding": (
        lambda: [
            keras.layers.ZeroPadding2D(((1, 2), (3, 0))),
            conv(3, "a", strides=2),
        ],
        *("a", (3, 3)),
    ),
    "less": (
        lambda: [
            keras.layers.Cropping2D(((1, 2), (3, 0)), name="a"),
            conv(3, "b", padding="same"),
        ],
        *("b", (3, 3)),
    ),
    "more": (
        lambda: [
            conv(3, "a"),
            keras.layers.UpSampling2D(2),
            conv(3, "b"),
        ],
        *("a", (3, 3)),
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_the_map_is_as_a_runner_computes_it(chain):
    layers, name, field = CHAINS[chain]
    model = keras.Sequential(
        [
            keras.Input((12, 11, 2), dtype="uint8"),
            keras.layers.Rescaling(1 / 255),
            *layers(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    shown = _Map(model, (12, 11, 2))
    assert shown.name == name
    np.testing.assert_array_equal(shown.field, field)
    changes = Changes(shown.windows)
    temporal, content = (
        Runner(model, kind) for kind in ("temporal", "content")
    )
    rng = np.random.default_rng(0)
    frame = rng.integers(2, size=(12, 11, 2), dtype=np.uint8)
    changed = new = 0
    for t in range(12):
        change = changes.update(frame)
        assert change.positions.shape == shown.size
        assert change.positions.all() or t
        changed += change.positions.sum()
        new += change.new.sum()
        for runner in (temporal, content):
            runner.step(frame[np.newaxis])
        if name != "pixels":
            assert temporal.stats.layers[name].new_rows == changed
            assert content.stats.layers[name].new_rows == new
        frame = frame.copy()
        frame[t % 12, rng.integers(11), t % 2] ^= 1
        frame = np.roll(frame, t % 3 == 2, 1)
    assert new < changed < 12 * change.positions.size


@pytest.mark.parametrize(
    ("network", "name", "size", "stride", "first"),
    [
        ("paper", "conv2", 84, 1, 0),
        ("nature", "conv1", 20, 4, 3.5),
        # Of 5 pixels, the first of which lies outside.
        ("impala", "pool1", 42, 2, 1),
    ],
)
def test_pixels_are_lit_as_the_position_around_them(
    network, name, size, stride, first
):
    shown = _Map(build_network(network, (84, 84, 4), 3), (84, 84, 4))
    assert shown.name == name
    assert shown.size == (size, size)
    numbers = np.arange(size**2).reshape(size, size)
    middles = first + stride * np.arange(size)
    distances = np.abs(middles - np.arange(84)[:, np.newaxis])
    lit = shown.of_pixels(numbers)
    for rows in (lit[:, 0] // size, lit[0]):
        # Between two that are as near, either.
        assert (distances[np.arange(84), rows] == distances.min(1)).all()
        assert set(rows) == set(range(size))


def test_of_what_no_runner_takes_pixels_are_shown():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(1, 3),
            keras.layers.Resizing(4, 4),
        ]
    )
    assert str(_Map(model, (8, 8, 1))) == (
        "pixels: 8 x 8 positions, each sees 1 x 1 pixels"
    )


# -- The picture ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "filters", "preprocessing", "reuse"),
    [
        ("paper", (2, 3), "paper", "content"),
        ("paper", (2, 3), "paper", "temporal"),
        ("paper", (2, 3), "paper", "none"),
        ("nature", (2, 2, 2), "standard", "content"),
        ("nature", (2, 2, 2), "standard", "temporal"),
        ("impala", (2,), "standard", "content"),
        ("nature", (2, 2, 2), "paper", "temporal"),
    ],
)
def test_the_picture_shows_what_is_computed(
    network, filters, preprocessing, reuse
):
    env = atari.make("Breakout", preprocessing=preprocessing)
    policy = build_network(
        network, env.observation_space.shape, 4, filters=filters
    )
    recorder = Recorder(env, policy, reuse)
    # The frame after the last step is recorded too, and is not played.
    summary = play(recorder, policy, steps=40, reuse=reuse, seed=0)
    fractions = recorder._fractions[:-1]
    assert len(fractions) == 40
    if reuse == "none":
        assert fractions == [1] * 40
    else:
        layer = summary.stats.layers[recorder._map.name]
        assert np.mean(fractions) == pytest.approx(
            layer.new_rows / layer.positions
        )
    with Image.open(io.BytesIO(recorder.finish())) as picture:
        # Every second one; equal pictures that follow each other are one.
        assert 15 <= picture.n_frames <= 21
        picture.seek(picture.n_frames - 1)
        pixels = np.asarray(picture.convert("RGB"), int)
    game, seen = np.split(pixels[-420:], 2, axis=1)
    lit = np.abs(seen - [255, 140, 0]).sum(-1) < 30
    if reuse == "none":
        assert lit.all()
        return
    # The ball and the paddle at most, of four frames.
    assert 0 < lit.mean() < (0.05 if preprocessing == "paper" else 0.2)
    assert game.shape == (420, 320, 3)
    if preprocessing == "paper":
        # The game as it is, but for the few colours of the picture.
        screen = env.unwrapped.ale.getScreenRGB().repeat(2, 0).repeat(2, 1)
        assert np.abs(game - screen).max(-1).mean() < 10
    else:
        # In colours, what the newest channel shows in grey.
        small = Image.fromarray(game.astype(np.uint8)).convert("L")
        small = small.resize((84, 84), Image.Resampling.BOX)
        frame, *_ = recorder.env.step(0)
        assert np.abs(np.asarray(small, int) - frame[..., -2]).mean() < 5
        assert (game.max(-1) - game.min(-1)).max() > 100


def test_the_numbers_are_of_what_they_name():
    """Without reuse too: the fraction that changed is not that computed."""
    env = atari.make("Breakout", downsample=4)
    policy = build_policy(env.observation_space.shape, 4, (2,))
    texts = []

    class Noted(Recorder):
        def _picture(self, game, frame, change, computed):
            texts.append((change.positions.mean(), computed.mean()))
            return super()._picture(game, frame, change, computed)

    play(Noted(env, policy, "none"), policy, steps=20, reuse="none", seed=0)
    changed, computed = np.transpose(texts[1:])
    assert (changed < 0.1).all() and (computed == 1).all()


def test_the_only_environment_of_a_vector_is_shown():
    """Its screen is that of another such game."""
    env = atari.make_only("Breakout", preprocessing="paper", downsample=1)
    policy = build_policy(env.observation_space.shape, 4, (2,))
    recorder = Recorder(env, policy, "content")
    games = []
    recorder._writer.add = games.append
    for seed in (3, None):  # The second game begins when the first has ended.
        frame, _ = recorder.reset(seed=seed)
        done = False
        while not done and len(recorder._fractions) < 300:
            frame, _, done, _, _ = recorder.step(len(recorder._fractions) % 4)
            if len(recorder._fractions) % 2:
                game = Image.fromarray(games[-1][-420:, :320]).convert("L")
                game = np.asarray(game, int)[::2, ::2]
                assert np.abs(game - frame[..., 0]).max() <= 1
        # The second game is cut short; it has begun.
        assert seed is None or len(recorder._fractions) < 280


def test_a_game_without_a_seed_is_shown_too():
    env = atari.make("Pong", preprocessing="standard")
    policy = build_network("nature", (84, 84, 4), 6, filters=(2, 2, 2))
    recorder = Recorder(env, policy, "content")
    games = []
    add = recorder._writer.add
    recorder._writer.add = lambda frame: games.append(frame) or add(frame)
    frame, _ = recorder.reset()
    for _ in range(10):
        frame, *_ = recorder.step(0)
    small = Image.fromarray(games[-1][-420:, :320]).convert("L")
    small = small.resize((84, 84), Image.Resampling.BOX)
    assert np.abs(np.asarray(small, int) - frame[..., -1]).mean() < 5


def test_no_more_than_300_steps_are_recorded():
    env = atari.make("Pong", downsample=4)
    policy = build_policy(env.observation_space.shape, 6, (2,))
    recorder = Recorder(env, policy, "content")
    play(recorder, policy, steps=320, seed=0)
    assert len(recorder._fractions) == 301
    with Image.open(io.BytesIO(recorder.finish())) as picture:
        assert 100 < picture.n_frames <= 151
