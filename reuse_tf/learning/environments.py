"""Environments to train in: how they are made, and their state."""

import base64
import functools

import ale_py
import numpy as np

from reuse_tf import atari


def make(settings, make_env=None):
    """Makes the environments of a training.

    Args:
        settings: `Settings`.
        make_env: A function that makes one. By default `atari.make` does.

    Returns:
        A list of `gymnasium.Env`.
    """
    make_env = make_env or functools.partial(
        atari.make, settings.game, downsample=settings.downsample
    )
    return [make_env() for _ in range(settings.num_envs)]


def spaces(env):
    """Returns the shape of an environment's frames and its actions' number.

    Raises:
        ValueError: If its frames are not uint8 `[height, width, channels]`, or
            its actions not discrete.
    """
    frames, actions = env.observation_space, env.action_space
    if frames.dtype != np.uint8 or len(frames.shape) != 3:
        raise ValueError(
            "Expected an environment of uint8 frames [height, width, "
            f"channels]. Received: observation_space={frames}"
        )
    if not hasattr(actions, "n"):
        raise ValueError(
            "Expected an environment of discrete actions. Received: "
            f"action_space={actions}"
        )
    return frames.shape, int(actions.n)


def state(env):
    """Returns what decides the next episodes, as values JSON can hold."""
    env = env.unwrapped
    values = {"np_random": env.np_random.bit_generator.state}
    if hasattr(env, "clone_state"):
        emulator = env.clone_state(include_rng=True).serialize()
        values["emulator"] = base64.b64encode(emulator).decode("ascii")
    return values


def restore(env, values):
    """Goes back to what `state` has returned."""
    env = env.unwrapped
    env.np_random.bit_generator.state = values["np_random"]
    if "emulator" in values:
        emulator = base64.b64decode(values["emulator"])
        env.restore_state(ale_py.ALEState(emulator))
