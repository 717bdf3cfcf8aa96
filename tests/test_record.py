"""What changes, what is new, and the moving picture of it."""

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies
from PIL import Image

from reuse_tf import atari
from reuse_tf.playing.changes import Changes
from reuse_tf.playing.play import play
from reuse_tf.playing.record import Recorder, _receptive_field
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
    changes = Changes(field)
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


@pytest.mark.parametrize("reuse", ["content", "temporal", "none"])
def test_the_picture_shows_what_is_computed(reuse, tmp_path):
    env = atari.make("Breakout", downsample=2)
    policy = build_policy(env.observation_space.shape, 4, (2, 3))
    recorder = Recorder(env, policy, reuse)
    # The frame after the last step is recorded too, and is not played.
    summary = play(recorder, policy, steps=41, reuse=reuse, seed=0)
    fractions = recorder._fractions[:-1]
    assert len(fractions) == 41
    if reuse == "none":
        assert fractions == [1] * 41
    else:
        conv2 = summary.stats.layers["conv2"]
        assert np.mean(fractions) == pytest.approx(
            conv2.new_rows / conv2.positions
        )
    (tmp_path / "agent.gif").write_bytes(recorder.gif())
    with Image.open(tmp_path / "agent.gif") as picture:
        # Every second one; equal pictures that follow each other are one.
        assert 15 <= picture.n_frames <= 21
        picture.seek(picture.n_frames - 1)
        pixels = np.asarray(picture.convert("RGB"), int)
    game, seen = np.split(pixels[-420:], 2, axis=1)
    # The game as it is, but for the few colours of the picture.
    screen = env.unwrapped.ale.getScreenRGB().repeat(2, 0).repeat(2, 1)
    assert game.shape == screen.shape == (420, 320, 3)
    lit = np.abs(seen - [255, 140, 0]).sum(-1) < 30
    if reuse == "none":
        assert lit.all()
    else:
        # The ball and the paddle at most.
        assert 0 < lit.mean() < 0.05
        assert np.abs(game - screen).max(-1).mean() < 10


def test_receptive_fields():
    def field(*layers):
        return _receptive_field(
            keras.Sequential([keras.Input((40, 40, 1)), *layers])
        )

    conv, pool = keras.layers.Conv2D, keras.layers.MaxPooling2D
    assert field(conv(1, 3), conv(1, 3)) == 5
    assert field(conv(1, 8, strides=4), conv(1, 4, strides=2)) == 20
    assert field(conv(1, (3, 5), dilation_rate=2)) == 9
    assert field(conv(1, 3), pool(2), conv(1, 3)) == 8
    assert field(keras.layers.Flatten()) == 1


def test_no_more_than_300_steps_are_recorded():
    env = atari.make("Pong", downsample=4)
    policy = build_policy(env.observation_space.shape, 6, (2,))
    recorder = Recorder(env, policy, "content")
    play(recorder, policy, steps=320, seed=0)
    assert len(recorder._fractions) == 301
    assert len(recorder._pictures) == 151
