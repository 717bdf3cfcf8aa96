"""Atari games as streams of small one-channel frames."""

import difflib

import ale_py
import gymnasium as gym
import numpy as np

from reuse_tf import ops

gym.register_envs(ale_py)

_PREFIX, _SUFFIX = "ALE/", "-v5"
# Stands for "not known yet" in a table of luminances.
_UNKNOWN = 256


def games():
    """Returns the short names of all games, sorted: `["Adventure", ...]`."""
    return sorted(
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX)
        for name in gym.registry
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX)
    )


def short_name(game):
    """Returns the short name of a game, such as `"Pong"`.

    Args:
        game: A short name (`"Pong"`) or a full id (`"ALE/Pong-v5"`).

    Raises:
        ValueError: If there is no such game. The message names the closest.
    """
    name = game.removeprefix(_PREFIX).removesuffix(_SUFFIX)
    by_lower_case = {known.lower(): known for known in games()}
    if by_lower_case.get(name.lower()) == name:
        return name
    closest = difflib.get_close_matches(
        name.lower(), by_lower_case, n=3, cutoff=0.0
    )
    raise ValueError(
        f"Unknown game {game!r}. Closest: "
        f"{', '.join(by_lower_case[match] for match in closest)}."
    )


def make(game="Pong", *, downsample=2):
    """Makes a game whose observations are small one-channel frames.

    The game is gymnasium's `ALE/<game>-v5`: each step repeats its action for
    4 frames, and an action is replaced by the one before it with a
    probability of 0.25. Seed it by `reset(seed=...)`.

    An observation is every `downsample`-th pixel of the screen in one channel,
    as in [Khachatourian (2019)](https://arxiv.org/abs/1909.05632). The channel
    is the luminance, as one of red, green and blue would hide objects that
    differ from what is behind them in the other two only. It is a read-only
    uint8 array of shape `[ceil(rows / downsample), ceil(160 / downsample), 1]`,
    where `rows` is 210 in most games and up to 250 in others. When an episode
    ends, `info["episode"]["r"]` holds its return.

    Args:
        game: A short name (`"Pong"`) or a full id (`"ALE/Pong-v5"`).
        downsample: 1, 2 or 4.

    Returns:
        A `gymnasium.Env`.

    Raises:
        ValueError: If there is no such game (the message names the closest),
            or `downsample` is none of the above.
    """
    check_downsample(downsample)
    env = gym.make(
        full_id(game),
        # The emulator converts a screen to colours or grey at every step for
        # any other type. The frames are read from it directly instead.
        obs_type="ram",
    )
    return gym.wrappers.RecordEpisodeStatistics(_Frames(env, downsample))


def full_id(game):
    """Returns the full id of a game, such as `"ALE/Pong-v5"`."""
    return f"{_PREFIX}{short_name(game)}{_SUFFIX}"


def check_downsample(downsample):
    """Refuses what `make` does not take."""
    if downsample not in (1, 2, 4):
        raise ValueError(
            f"`downsample` must be 1, 2 or 4. Received: downsample={downsample}"
        )


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
