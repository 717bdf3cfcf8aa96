"""A picture of a play: the game, and beside it what was recomputed."""

import io

import gymnasium as gym
import keras
import numpy as np
from PIL import Image, ImageDraw

from reuse_tf.playing.changes import Changes

# Steps that are shown, every how many-th, and for how long, in milliseconds.
_STEPS, _EVERY, _DURATION = 300, 2, 80
_COLORS = 64
_SCALE = 2
_CAPTION = 18
_POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
# "auto" reuses content where that pays.
_CONTENT = ("auto", "content")
_CHANGED, _NEW = (255, 140, 0), (255, 255, 255)


class Recorder(gym.Wrapper):
    """Takes a moving picture of the first 300 steps of an Atari game.

    On its left is the game in its colours, on its right the frames that the
    policy sees, with the positions of its last convolution lit up whose
    receptive field has changed, orange. Those that it computes are white if it
    reuses content, as it computes only what it has never seen, and the orange
    ones if not. A line above says what fraction changed, and what was computed
    of this frame and of all so far.

    Args:
        env: An environment as `atari.make` makes it.
        policy: The Keras model that plays it, a chain of layers.
        reuse: What it reuses: `"auto"`, `"content"`, `"temporal"` or `"none"`.
    """

    def __init__(self, env, policy, reuse):
        super().__init__(env)
        self._reuse = reuse
        self._changes = Changes(_receptive_field(policy))
        self._fractions = []
        self._pictures = []

    def reset(self, **arguments):
        frame, info = self.env.reset(**arguments)
        self._record(frame)
        return frame, info

    def step(self, action):
        frame, *others = self.env.step(action)
        self._record(frame)
        return frame, *others

    def gif(self):
        """Returns what was recorded so far, as the bytes of an animated GIF."""
        first, *others = self._pictures
        file = io.BytesIO()
        first.save(
            file,
            format="GIF",
            save_all=True,
            append_images=others,
            duration=_DURATION,
            loop=0,
        )
        return file.getvalue()

    def _record(self, frame):
        if len(self._fractions) > _STEPS:
            return
        change = self._changes.update(frame)
        if self._reuse == "none":
            change = change._replace(positions=np.ones_like(change.positions))
        computed = change.new if self._reuse in _CONTENT else change.positions
        self._fractions.append(computed.mean())
        if len(self._fractions) % _EVERY == 1:
            self._pictures.append(self._picture(frame, change))

    def _picture(self, frame, change):
        game = self.env.unwrapped.ale.getScreenRGB()
        seen = np.repeat(frame[..., :1] // 3, 3, axis=-1)
        seen[change.positions] = _CHANGED
        if self._reuse in _CONTENT:
            seen[change.new] = _NEW
        height, width, _ = game.shape
        size = (_SCALE * width, _SCALE * height)
        picture = Image.new("RGB", (2 * size[0], size[1] + _CAPTION))
        for i, pixels in enumerate((game, seen)):
            part = Image.fromarray(pixels).resize(
                size, Image.Resampling.NEAREST
            )
            picture.paste(part, (i * size[0], _CAPTION))
        draw = ImageDraw.Draw(picture)
        for left, color, text in (
            (0.02, _CHANGED, f"changed {change.positions.mean():.2%}"),
            (0.34, _NEW, f"recomputed {self._fractions[-1]:.2%}"),
            (0.72, _NEW, f"so far {np.mean(self._fractions):.2%}"),
        ):
            position = (int((1 + left) * size[0]), 3)
            draw.text(position, text, color, font_size=11)
        return picture.quantize(_COLORS, dither=Image.Dither.NONE)


def _receptive_field(model):
    """Height and width of what a position of the last map sees."""
    field, stride = 1, 1
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            reach = max(
                dilation * (size - 1)
                for dilation, size in zip(
                    layer.dilation_rate, layer.kernel_size, strict=True
                )
            )
        elif isinstance(layer, _POOLINGS):
            reach = max(layer.pool_size) - 1
        else:
            continue
        field += stride * reach
        stride *= max(layer.strides)
    return field
