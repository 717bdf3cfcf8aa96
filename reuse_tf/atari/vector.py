"""Several Atari games at once, stepped by threads."""

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from reuse_tf.atari.games import full_id

_SEEDS = 2**31  # are what the emulator takes
_FRAMES_PER_STEP = 4
# How likely an action is repeated, where nothing else is said.
REPEAT = 0.25
# What DQN added to the bare screen.
_STANDARD = {
    "img_height": 84,
    "img_width": 84,
    "stack_num": 4,
    "maxpool": True,
    "noop_max": 30,
    "use_fire_reset": True,
}
# What leaves the beginning of a game alone.
_BARE = {"noop_max": 0, "use_fire_reset": False}
_MAX_STEPS = 27_000


def make_vector(
    game: str = "Pong",
    num_envs: int = 2,
    *,
    preprocessing: str = "paper",
    downsample: int = 2,
    repeat_action_probability: float = REPEAT,
    max_steps: int = _MAX_STEPS,
    num_threads: int = 0,
    autoreset_mode: AutoresetMode = AutoresetMode.SAME_STEP,
) -> gym.vector.VectorEnv:
    """Makes several environments of a game, stepped at once by threads.

    They are ale-py's `AtariVectorEnv`, with the games, the frames and the
    rewards of `make`. An environment whose episode ends is reset in the same
    step: the frame is the first of the next episode, the reward the last of
    the one before, and `info["final_obs"]` holds its last frame, in an array of
    the shape of the observations, of which the others are undefined.

    Args:
        game: See `make`.
        num_envs: Number of environments, 1 or more.
        preprocessing: See `make`.
        downsample: See `make`.
        repeat_action_probability: See `make`.
        max_steps: An episode of so many steps is truncated. By default half an
            hour at the speed of the game, as everywhere.
        num_threads: Number of threads. By default as many as there are
            processors, and no more than environments.
        autoreset_mode: `SAME_STEP`, or `NEXT_STEP`: an environment whose
            episode has ended shows its last frame, and is reset by the next
            step.

    Returns:
        A `gymnasium.vector.VectorEnv` with observations uint8 `[num_envs,
        height, width, channels]`. A seed `reset(seed=s)` seeds them with `s`,
        `s + 1` and so on, modulo 2^31. An array seeds each, or each that
        `options={"reset_mask": mask}` selects. Besides `step(actions)` there
        are `send(actions)`, which begins a step, and `recv()`, which returns
        what it gives. Actions that are no actions raise a `ValueError`.

    Raises:
        ValueError: As `make`.
    """
    check_preprocessing(preprocessing, downsample)
    check_probability(repeat_action_probability)
    num_envs = check_number("num_envs", num_envs, 1)
    max_steps = check_number("max_steps", max_steps, 1)
    num_threads = check_number("num_threads", num_threads, 0)
    paper = preprocessing == "paper"
    env = _make(
        game,
        num_envs,
        max_steps=max_steps,
        repeat_action_probability=repeat_action_probability,
        num_threads=num_threads,
        autoreset_mode=autoreset_mode,
        **(_screen(game) | _BARE if paper else _STANDARD),
    )
    return _VectorFrames(env, downsample if paper else 1)


class Screen:
    """The screen of a game of `make_vector(game, 1)`.

    It is another such game, which does the same when given the same seeds and
    actions: the first one takes small grey pictures only.

    Args:
        game: See `make`.
        repeat_action_probability: See `make`.
        preprocessing: See `make`.
    """

    def __init__(
        self,
        game: str,
        repeat_action_probability: float = REPEAT,
        preprocessing: str = "standard",
    ) -> None:
        check_preprocessing(preprocessing, 1)
        begin = _BARE if preprocessing == "paper" else _STANDARD
        self._env = _make(
            game,
            1,
            repeat_action_probability=repeat_action_probability,
            autoreset_mode=AutoresetMode.NEXT_STEP,
            grayscale=False,
            **(begin | _screen(game)),
        )

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Returns the first screen of a game, uint8 `[rows, 160, 3]`."""
        seed = None if seed is None else int(seed) % _SEEDS
        return self._env.reset(seed=seed)[0][0, 0]

    def step(self, action: int) -> np.ndarray:
        """Returns the screen that an action leads to."""
        return self._env.step(np.array([action]))[0][0, 0]


def _make(game, num_envs, *, max_steps=_MAX_STEPS, **settings):
    """An `AtariVectorEnv` of these settings, and of what all have in common."""
    return gym.make_vec(
        full_id(game),
        num_envs,
        vectorization_mode="vector_entry_point",
        max_num_frames_per_episode=_FRAMES_PER_STEP * max_steps,
        # Clipped rewards tell no scores, and `episodic_life` begins a new
        # game where a life is lost.
        reward_clipping=False,
        episodic_life=False,
        **settings,
    )


def _screen(game):
    """What has a game give its whole screen."""
    with contextlib.closing(gym.make(full_id(game), obs_type="ram")) as env:
        height, width = env.unwrapped.ale.getScreenDims()
    return {
        "img_height": height,
        "img_width": width,
        "stack_num": 1,
        "maxpool": False,
    }


def check_preprocessing(preprocessing: str, downsample: int) -> None:
    """Refuses what `make` does not take."""
    if preprocessing not in ("paper", "standard"):
        raise ValueError(
            "`preprocessing` must be 'paper' or 'standard'. Received: "
            f"preprocessing={preprocessing!r}"
        )
    if downsample not in (1, 2, 4):
        raise ValueError(
            f"`downsample` must be 1, 2 or 4. Received: downsample={downsample}"
        )


def check_probability(value: Any) -> None:
    """Refuses what is no `repeat_action_probability`."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.number))
        or not 0 <= value <= 1
    ):
        raise ValueError(
            "`repeat_action_probability` must be from 0 to 1. Received: "
            f"repeat_action_probability={value!r}"
        )


def check_number(name: str, value: Any, least: int) -> int:
    """Returns an argument, if it is an integer of at least `least`."""
    if (
        not isinstance(value, (int, np.integer))
        or isinstance(value, bool)
        or value < least
    ):
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: "
            f"{name}={value!r}"
        )
    return int(value)


class _VectorFrames(gym.vector.VectorWrapper):
    """Keeps every d-th pixel of several pictures, channels last."""

    def __init__(self, env, downsample):
        super().__init__(env)
        self._downsample = downsample
        self._sent = False
        space = env.observation_space
        shape = self._frames(np.empty(space.shape, np.uint8)).shape
        self.observation_space = gym.spaces.Box(0, 255, shape, np.uint8)
        self.single_observation_space = gym.spaces.Box(
            0, 255, shape[1:], np.uint8
        )

    def reset(self, *, seed=None, options=None):
        if isinstance(seed, (int, np.integer)):
            mask = (options or {}).get("reset_mask", np.ones(self.num_envs))
            seed = seed % _SEEDS + np.arange(np.count_nonzero(mask))
        if seed is not None:
            seed = np.asarray(seed, np.int64) % _SEEDS
        pictures, info = self.env.reset(seed=seed, options=options)
        return self._frames(pictures), info

    def step(self, actions):
        self.send(actions)
        return self.recv()

    def send(self, actions):
        """Begins a step, which `recv` ends."""
        actions, count = np.asarray(actions), self.single_action_space.n
        # The emulator would wait forever for a thread that has failed.
        if (
            actions.shape != (self.num_envs,)
            or actions.dtype.kind not in "iu"
            or actions.min() < 0
            or actions.max() >= count
        ):
            raise ValueError(
                f"`actions` must be {self.num_envs} integers from 0 to "
                f"{count - 1}. Received: actions={actions.tolist()}"
            )
        self.env.send(actions.astype(np.int64, copy=False))
        self._sent = True

    def recv(self):
        """Returns what `step` returns, of the last `send`."""
        if not self._sent:  # The emulator would wait forever.
            raise RuntimeError("`recv` was called before `send`")
        self._sent = False
        pictures, *others, info = self.env.recv()
        if "final_obs" in info:
            info["final_obs"] = self._frames(info["final_obs"])
        return self._frames(pictures), *others, info

    def _frames(self, pictures):
        """[N, channels, rows, columns] -> [N, height, width, channels]."""
        kept = pictures[..., :: self._downsample, :: self._downsample]
        frames = np.empty((len(kept), *kept.shape[2:], kept.shape[1]), np.uint8)
        # One after the other takes a quarter of the time of all at once.
        for channel in range(kept.shape[1]):
            frames[..., channel] = kept[:, channel]
        return frames
