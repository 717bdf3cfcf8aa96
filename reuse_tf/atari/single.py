"""One Atari game, as a stream of small frames."""

from typing import Any

import gymnasium as gym
import numpy as np

from reuse_tf import ops
from reuse_tf.atari.games import full_id
from reuse_tf.atari.vector import (
    REPEAT,
    check_preprocessing,
    check_probability,
    make_vector,
)

# Stands for "not known yet" in a table of luminances.
_UNKNOWN = 256


def make(
    game: str = "Pong",
    *,
    preprocessing: str = "paper",
    downsample: int = 2,
    repeat_action_probability: float = REPEAT,
) -> gym.Env:
    """Makes a game whose observations are small frames.

    The game is gymnasium's `ALE/<game>-v5`: each step repeats its action for
    4 frames, in each of which the action before may be repeated in its place.
    Seed it by `reset(seed=...)`. Rewards are the game's
    own, and an episode is a whole game. When one ends, `info["episode"]["r"]`
    holds its return. An observation is a uint8 array, by `preprocessing`:

    - `"paper"`: every `downsample`-th pixel of the screen in one channel, as in
      [Khachatourian (2019)](https://arxiv.org/abs/1909.05632). The channel is
      the luminance, as one of red, green and blue would hide objects that
      differ from what is behind them in the other two only. It is read-only,
      of shape `[ceil(rows / downsample), ceil(160 / downsample), 1]`, where
      `rows` is 210 in most games and up to 250 in others.
    - `"standard"`: the last four pictures as channels, the newest last, each
      the luminance of the screen shrunk to 84 x 84, of shape `[84, 84, 4]`, as
      in [Mnih et al. (2015)](https://doi.org/10.1038/nature14236). A picture
      is the maximum of the last two frames of a step. A game begins with up to
      29 frames without an action, the first of which presses FIRE where the
      game has that button, and with black pictures before the first. They are
      the observations of `make_vector(game, 1, preprocessing="standard")`.

    Args:
        game: A short name (`"Pong"`) or a full id (`"ALE/Pong-v5"`).
        preprocessing: `"paper"` or `"standard"`.
        downsample: 1, 2 or 4. Only `"paper"` uses it.
        repeat_action_probability: How likely that is, from 0 to 1. At 0 the
            game is the `NoFrameskip-v4` of older results: see [Machado et al.
            (2018)](https://arxiv.org/abs/1709.06009).

    Returns:
        A `gymnasium.Env`.

    Raises:
        ValueError: If there is no such game (the message names the closest),
            or another argument is none of the above.
    """
    check_preprocessing(preprocessing, downsample)
    check_probability(repeat_action_probability)
    if preprocessing == "standard":
        return make_only(
            game,
            preprocessing=preprocessing,
            repeat_action_probability=repeat_action_probability,
        )
    env = gym.make(
        full_id(game),
        # The emulator converts a screen to colours or grey at every step
        # for any other type. The frames are read from it directly instead.
        obs_type="ram",
        repeat_action_probability=repeat_action_probability,
    )
    return gym.wrappers.RecordEpisodeStatistics(_Frames(env, downsample))


def make_only(game: str = "Pong", **settings: Any) -> gym.Env:
    """Makes the only environment of `make_vector(game, 1, **settings)`.

    With a seed of `s + k` it does what number `k` of several does with `s`,
    which `make` does not for `preprocessing="paper"`: there the emulators are
    seeded in other ways.

    Args:
        game: See `make`.
        **settings: Other arguments of `make`.

    Returns:
        A `gymnasium.Env`, as of `make`.

    Raises:
        ValueError: As `make`.
    """
    # It is reset by its user.
    mode = gym.vector.AutoresetMode.NEXT_STEP
    env = _Only(make_vector(game, 1, autoreset_mode=mode, **settings))
    return gym.wrappers.RecordEpisodeStatistics(env)


class _Only(gym.Env):
    """The only environment of a vector environment."""

    def __init__(self, env):
        self._env = env
        self.spec = env.spec
        self.observation_space = env.single_observation_space
        self.action_space = env.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        frames, info = self._env.reset(seed=seed, options=options)
        return frames[0], _first(info)

    def step(self, action):
        frames, rewards, terminated, truncated, info = self._env.step([action])
        return (
            frames[0],
            float(rewards[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            _first(info),
        )

    def close(self):
        self._env.close()


def _first(info):
    return {name: values[0].item() for name, values in info.items()}


class _Frames(gym.ObservationWrapper):
    """Reads every d-th pixel of an Atari screen, as luminance.

    Converting the whole screen in the emulator costs 18 microseconds; reading
    its palette indices 1, and translating the pixels kept, at a downsample of
    2, less than 5. The emulator does not tell its palette, so the table is
    filled from its own grey screens as colours appear.
    """

    def __init__(self, env, downsample):
        super().__init__(env)
        self._ale = env.unwrapped.ale
        self._screen = np.empty(self._ale.getScreenDims(), np.uint8)
        self._luminance = np.full(256, _UNKNOWN, np.uint16)
        kept = self._screen[::downsample, ::downsample]
        self._frame = np.empty((*kept.shape, 1), np.uint8)
        self.observation_space = gym.spaces.Box(
            0, 255, self._frame.shape, np.uint8
        )
        # Of buffers that stay where they are.
        self._buffers = (
            downsample,
            ops.address_of(self._screen),
            *self._screen.shape,
            ops.address_of(self._luminance),
            ops.address_of(self._frame),
        )

    def observation(self, observation):
        del observation
        self._ale.getScreen(self._screen)
        if not ops.look_up(*self._buffers):
            self._luminance[self._screen] = self._ale.getScreenGrayscale()
            ops.look_up(*self._buffers)
        frame = self._frame.copy()
        frame.flags.writeable = False
        return frame
