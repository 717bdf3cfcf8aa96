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


def make_games(settings, make_env=None, num_envs=None):
    """Makes environments that are stepped together.

    Args:
        settings: `Settings`.
        make_env: A function that makes one `gymnasium.Env`. By default they
            are Atari games that threads step.
        num_envs: Their number. By default that of the settings.

    Returns:
        An `atari.ResumableGames`, or `Gathered`, which is used alike.

    Raises:
        ValueError: If there is no such game, or the environment is not one
            of uint8 frames and discrete actions.
    """
    num_envs = num_envs or settings.num_envs
    if make_env is not None:
        return Gathered([make_env() for _ in range(num_envs)])
    return atari.ResumableGames(
        settings.game,
        num_envs,
        preprocessing=settings.preprocessing,
        downsample=settings.downsample,
    )


class Gathered:
    """Environments of any kind in the form of `atari.ResumableGames`.

    Args:
        envs: A list of `gymnasium.Env`, as `training.train` takes them.
    """

    def __init__(self, envs):
        self._envs = envs
        self.num_envs = len(envs)
        self.frame_shape, self.num_actions = spaces(envs[0])

    def reset(self, seed):
        seeds = np.random.SeedSequence(seed).generate_state(self.num_envs)
        self._returns = [0.0] * self.num_envs
        self._lengths = [0] * self.num_envs
        self._frames = np.stack(
            [
                env.reset(seed=seed)[0]
                for env, seed in zip(self._envs, seeds.tolist(), strict=True)
            ]
        )
        return self._frames

    def step(self, actions):
        frames, parts, episodes = np.empty_like(self._frames), [], []
        for i, (env, action) in enumerate(
            zip(self._envs, actions, strict=True)
        ):
            frames[i], reward, terminated, truncated, _ = env.step(action)
            self._returns[i] += float(reward)
            self._lengths[i] += 1
            if terminated or truncated:
                episodes.append(
                    atari.Episode(
                        i, self._returns[i], self._lengths[i], frames[i].copy()
                    )
                )
                self._returns[i], self._lengths[i] = 0.0, 0
                frames[i], _ = env.reset()
            parts.append((reward, False, terminated, truncated))
        self._frames = frames
        rewards, *flags = zip(*parts, strict=True)
        return atari.Step(
            frames,
            np.array(rewards, np.float32),
            *(np.array(flag, bool) for flag in flags),
            tuple(episodes),
        )

    def state(self):
        return {
            "environments": [state(env) for env in self._envs],
            "frames": base64.b64encode(self._frames).decode("ascii"),
            "returns": list(self._returns),
            "lengths": list(self._lengths),
        }

    def restore(self, values):
        for env, saved in zip(self._envs, values["environments"], strict=True):
            restore(env, saved)
        self._frames = (
            np.frombuffer(base64.b64decode(values["frames"]), np.uint8)
            .reshape(self.num_envs, *self.frame_shape)
            .copy()
        )
        self._returns = list(map(float, values["returns"]))
        self._lengths = list(map(int, values["lengths"]))
        return self._frames

    def close(self):
        for env in self._envs:
            env.close()


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
