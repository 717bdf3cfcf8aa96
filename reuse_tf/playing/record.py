"""A picture of a play: the game, and beside it what was recomputed."""

import fractions

import numpy as np

from reuse_tf import atari
from reuse_tf.extras import extra
from reuse_tf.graph import compile_model
from reuse_tf.playing.changes import Changes, Window, taps

with extra("atari"):
    import gymnasium as gym
    from PIL import Image, ImageDraw

    from reuse_tf.playing.video import Writer

# Steps that are shown, every how many-th, and how many of these in a second.
_STEPS, _EVERY, _RATE = 300, 2, fractions.Fraction(25, 2)
_SCALE = 2
_CAPTION = 18
# "auto" reuses content where that pays.
_CONTENT = ("auto", "content")
_CHANGED, _NEW = (255, 140, 0), (255, 255, 255)


class Recorder(gym.Wrapper):
    """Takes a moving picture of the first 300 steps of an Atari game.

    On its left is the game in its colours, on its right the newest channel of
    the frames that the policy sees. Lit up there are positions of one map of
    the policy. The map is that of the first convolution or pooling with
    strides, as what is behind it sees ever more of the frame at once; or, if
    the policy branches, becomes dense or ends before, the one behind the last
    convolution or pooling till then. In the paper's network it is the last
    convolution's, in `nature` the first convolution's, in `impala` the first
    pooling's. A pixel is lit as the position is that sees the pixels around
    it.

    - Orange: a position that sees, in any channel, a pixel that is not what it
      was in the frame before, even if it was seen elsewhere. Under temporal
      reuse these are computed. Without reuse all positions are orange, as all
      are computed.
    - White, under content reuse: such a position that sees what no position
      has seen in any frame so far; of several that see the same, one. These
      are computed (but for some at the border, which strides behind may leave
      out), and the orange ones are not. Where content reuse does not pay,
      `"auto"` reuses what did not change instead: then the orange ones are
      computed too.

    The caption has the map, its size and how much a position sees; above the
    right picture, the fraction of its positions that has changed, and that was
    never seen (under content reuse) or recomputed (otherwise), in this frame
    and on average so far. In the first frame all is new.

    Args:
        env: An environment as `atari.make` or `atari.make_only` makes it.
        policy: The Keras model that plays it.
        reuse: What it reuses: `"auto"`, `"content"`, `"temporal"` or `"none"`.
        ending: See `Writer`.

    Raises:
        ImportError: As `Writer`.
    """

    def __init__(self, env, policy, reuse, ending=".gif"):
        super().__init__(env)
        self._reuse = reuse
        self._map = _Map(policy, env.observation_space.shape)
        self._changes = Changes(self._map.windows)
        self._fractions = []
        self._writer = Writer(ending, _RATE)
        self._ale = getattr(env.unwrapped, "ale", None)
        self._screen = None
        if self._ale is None:
            settings = env.spec.kwargs
            self._screen = atari.Screen(
                env.spec.id,
                settings["repeat_action_probability"],
                "standard" if settings["maxpool"] else "paper",
            )

    def reset(self, *, seed=None, options=None):
        if seed is None and not self._fractions:
            seed = int(np.random.default_rng().integers(2**31))
        frame, info = self.env.reset(seed=seed, options=options)
        self._record(frame, lambda screen: screen.reset(seed))
        return frame, info

    def step(self, action):
        frame, *others = self.env.step(action)
        self._record(frame, lambda screen: screen.step(action))
        return frame, *others

    def finish(self):
        """Returns what was recorded, as the bytes of a file."""
        return self._writer.finish()

    def _record(self, frame, follow):
        if len(self._fractions) > _STEPS:
            return
        game = follow(self._screen) if self._screen else None
        change = self._changes.update(frame)
        if self._reuse in _CONTENT:
            computed = change.new
        elif self._reuse == "temporal":
            computed = change.positions
        else:
            computed = np.ones_like(change.positions)
        self._fractions.append(computed.mean())
        if len(self._fractions) % _EVERY == 1:
            if game is None:
                game = self._ale.getScreenRGB()
            self._writer.add(self._picture(game, frame, change, computed))

    def _picture(self, game, frame, change, computed):
        content = self._reuse in _CONTENT
        seen = np.repeat(frame[..., -1:] // 3, 3, axis=-1)
        lit = change.positions if content else computed
        seen[self._map.of_pixels(lit)] = _CHANGED
        if content:
            seen[self._map.of_pixels(computed)] = _NEW
        height, width, _ = game.shape
        size = (_SCALE * width, _SCALE * height)
        picture = Image.new("RGB", (2 * size[0], size[1] + _CAPTION))
        for i, pixels in enumerate((game, seen)):
            part = Image.fromarray(pixels).resize(
                size, Image.Resampling.NEAREST
            )
            picture.paste(part, (i * size[0], _CAPTION))
        draw = ImageDraw.Draw(picture)
        what = "never seen" if content else "recomputed"
        for left, color, text in (
            (-0.98, _NEW, str(self._map)),
            (0.02, _CHANGED, f"changed {change.positions.mean():.2%}"),
            (0.34, _NEW, f"{what} {self._fractions[-1]:.2%}"),
            (0.72, _NEW, f"so far {np.mean(self._fractions):.2%}"),
        ):
            position = (int((1 + left) * size[0]), 3)
            draw.text(position, text, color, font_size=11)
        return np.asarray(picture)


class _Map:
    """The map of a policy that is shown: see `Recorder`.

    Args:
        policy: A Keras model.
        shape: Of a frame, `(height, width, channels)`.

    Attributes:
        name: That of its layer.
        size: Height and width.
        field: Height and width of what a position sees, in pixels.
        windows: `Window`s, from the frames to the map.
    """

    def __init__(self, policy, shape):
        self.name, self.size, self.windows = "pixels", shape[:2], []
        self.field, stride, first = np.ones((3, 2), int)
        first -= 1  # The first pixel that the first position sees.
        for name, node in _path(policy, shape):
            size, strides, dilation = np.reshape(node.window[:6], (3, 2))
            before = _padding(node)
            self.windows.append(
                Window(
                    *map(
                        taps,
                        node.shape[:2],
                        self.size,
                        size,
                        strides,
                        dilation,
                        before,
                    )
                )
            )
            first -= stride * before
            self.field += stride * dilation * (size - 1)
            stride *= strides
            self.name, self.size = name, node.shape[:2]
        # The position that sees what is around a pixel: it is in the middle.
        middle = first + (self.field - stride) // 2
        self._rows, self._columns = (
            np.clip(
                (np.arange(shape[i]) - middle[i]) // stride[i], 0, count - 1
            )
            for i, count in enumerate(self.size)
        )

    def __str__(self):
        return "{}: {} x {} positions, each sees {} x {} pixels".format(
            self.name, *self.size, *self.field
        )

    def of_pixels(self, positions):
        """What is of positions, `[height, width]`, as what is of pixels."""
        return positions[self._rows[:, np.newaxis], self._columns]


def _path(policy, shape):
    """Yields name and node of the convolutions and poolings up to the map."""
    try:
        graph = compile_model(policy, shape)
    except ValueError:  # It can be played without reuse, and has pixels.
        return
    names = dict(zip(graph.counted, graph.names, strict=True))
    node = graph.nodes[0]
    strides = (1, 1)
    while strides == (1, 1):
        behind = [other for other in graph.nodes if node in other.inputs]
        # A window over a stretched map makes more of it.
        if len(behind) != 1 or behind[0].window[6:8] != (1, 1):
            return
        (node,) = behind
        yield names[node], node
        strides = node.window[2:4]


def _padding(node):
    """Rows and columns of padding before the first of what a node sees."""
    *window, padding = node.window
    if padding == "VALID":
        return np.zeros(2, int)
    if padding != "SAME":
        return np.array(padding.split(","), int)[::2]
    size, strides, dilation = np.reshape(window[:6], (3, 2))
    count, inputs = node.shape[:2], node.inputs[0].shape[:2]
    total = (np.array(count) - 1) * strides + dilation * (size - 1) + 1 - inputs
    return np.maximum(total, 0) // 2
