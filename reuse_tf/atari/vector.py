"""Several Atari games at once, stepped by threads."""

import contextlib

import gymnasium as gym
import numpy as np

from reuse_tf.atari.games import check_downsample, full_id


def make_vector(game="Pong", num_envs=2, *, downsample=2):
    """Makes several environments of a game, stepped at once by threads.

    They are ale-py's `AtariVectorEnv`, with the games, the frames and the
    rewards of `make`. An environment whose episode ends is reset in the same
    step: the frame is the first of the next episode, the reward the last of
    the one before.

    Args:
        game: See `make`.
        num_envs: Number of environments.
        downsample: See `make`.

    Returns:
        A `gymnasium.vector.VectorEnv` with observations uint8 `[num_envs,
        height, width, 1]`, views of whole screens. A seed `reset(seed=s)`
        seeds them with `s`, `s + 1` and so on.

    Raises:
        ValueError: As `make`.
    """
    check_downsample(downsample)
    with contextlib.closing(gym.make(full_id(game), obs_type="ram")) as env:
        height, width = env.unwrapped.ale.getScreenDims()
    env = gym.make_vec(
        full_id(game),
        num_envs,
        vectorization_mode="vector_entry_point",
        autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
        # The bare screen and reward, without what DeepMind's agents added.
        img_height=height,
        img_width=width,
        stack_num=1,
        maxpool=False,
        noop_max=0,
        reward_clipping=False,
        use_fire_reset=False,
    )
    return _VectorFrames(env, downsample)


class _VectorFrames(gym.vector.VectorWrapper):
    """Views every d-th pixel of several Atari screens."""

    def __init__(self, env, downsample):
        super().__init__(env)
        self._kept = (slice(None), 0, *[slice(None, None, downsample)] * 2)
        space = env.observation_space
        shape = self._frames(np.empty(space.shape, np.uint8)).shape
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.single_observation_space = gym.spaces.Box(
            0, 255, shape[1:], np.uint8
        )

    def reset(self, **arguments):
        screens, info = self.env.reset(**arguments)
        return self._frames(screens), info

    def step(self, actions):
        screens, *others = self.env.step(actions)
        return self._frames(screens), *others

    def _frames(self, screens):
        return screens[self._kept][..., np.newaxis]
