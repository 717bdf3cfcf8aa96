"""Environments to train in: how they are made, and their state."""

import base64
import functools
import math
import weakref

import keras
import numpy as np

from reuse_tf import atari
from reuse_tf.extras import extra

with extra("atari"):
    import ale_py
    import gymnasium as gym


def make_one(settings, make_env=None):
    """Makes a single environment, to be played one episode after the other.

    Args:
        settings: `Settings`, of the paper's preprocessing.
        make_env: A function that makes it. By default `atari.make` does.

    Returns:
        A `One`.

    Raises:
        ValueError: As `make_games`.
    """
    make_env = make_env or functools.partial(
        atari.make,
        settings.game,
        downsample=settings.downsample,
        repeat_action_probability=settings.repeat_action_probability,
    )
    return One(make_env())


def spaces(env):
    """Returns the shape of an environment's frames and its actions' number.

    Raises:
        ValueError: If its frames are not uint8 `[height, width, channels]`, or
            its actions not discrete, from 0 on.
    """
    frames, actions = env.observation_space, env.action_space
    if frames.dtype != np.uint8 or len(frames.shape) != 3:
        raise ValueError(
            "Expected an environment of uint8 frames [height, width, "
            f"channels]. Received: observation_space={frames}"
        )
    if not isinstance(actions, gym.spaces.Discrete) or actions.start != 0:
        raise ValueError(
            "Expected an environment of discrete actions, numbered from 0 on. "
            f"Received: action_space={actions}"
        )
    return frames.shape, int(actions.n)


def make_games(settings, make_env=None, share=None):
    """Makes environments that are stepped together.

    Args:
        settings: `Settings`.
        make_env: A function that makes one `gymnasium.Env`. By default they
            are Atari games that threads step.
        share: A range of their numbers, if they are a part of more: each is
            the same as among all. By default all that the settings ask for.

    Returns:
        An `atari.ResumableGames`, or `Gathered`, which is used alike.

    Raises:
        ValueError: If there is no such game, or the environment is not one
            of uint8 frames and discrete actions.
    """
    share = share or range(settings.num_envs)
    if make_env is not None:
        return Gathered([make_env() for _ in share], share.start)
    return atari.ResumableGames(
        settings.game,
        len(share),
        preprocessing=settings.preprocessing,
        downsample=settings.downsample,
        repeat_action_probability=settings.repeat_action_probability,
        first=share.start,
    )


class Maker:
    """A user's function that makes environments, of which none comes twice.

    Args:
        make_env: See `training.train`.

    Raises:
        ValueError: If it is no function. By a call, if what it makes is no
            `gymnasium.Env`, or was made before.
    """

    def __init__(self, make_env):
        if not callable(make_env):
            raise ValueError(
                "Expected `make_env` to be a function that makes an "
                f"environment. Received: {type(make_env).__name__}"
            )
        self._make_env = make_env
        # Not a set, as environments need not have a hash.
        self._made = []

    def __call__(self):
        env = self._make_env()
        if not isinstance(env, gym.Env):
            raise ValueError(
                "Expected `make_env` to make a `gymnasium.Env`. Received: "
                f"{type(env).__name__}"
            )
        # Perhaps within a new wrapper.
        if any(made() is env.unwrapped for made in self._made):
            raise ValueError(
                "Expected `make_env` to make a new environment whenever it is "
                "called. Received: the same one again"
            )
        self._made.append(weakref.ref(env.unwrapped))
        return env


def join_states(states):
    """Returns the state of all environments, from those of parts in order.

    Args:
        states: What `state()` of games of `make_games` has returned.
    """
    first = states[0]
    if isinstance(first, list):
        return [one for state in states for one in state]
    return {
        **first,
        "num_envs": sum(state["num_envs"] for state in states),
        **{
            name: [one for state in states for one in state[name]]
            for name, value in first.items()
            if isinstance(value, list)
        },
    }


def part_of_state(state, share):
    """Returns the state of a range of environments, from that of all."""
    part = slice(share.start, share.stop)
    if isinstance(state, list):
        return state[part]
    return {
        name: value[part] if isinstance(value, list) else value
        for name, value in state.items()
    } | {"num_envs": len(state["actions"][part])}


class Gathered:
    """Environments of any kind in the form of `atari.ResumableGames`.

    Their state is that in which each began its episode, and its actions since.

    Args:
        envs: A list of `gymnasium.Env`, as `training.train` takes them.
        first: The number of the first one, if they are a part of more.
    """

    def __init__(self, envs, first=0):
        self._envs = envs
        self._first = first
        self.num_envs = len(envs)
        kinds = [spaces(env) for env in envs]
        if len(set(kinds)) > 1:
            raise ValueError(
                "Expected `make_env` to make environments of the same frames "
                f"and actions. Received: {kinds}"
            )
        self.frame_shape, self.num_actions = kinds[0]

    def reset(self, seed):
        seeds = np.random.SeedSequence(seed).generate_state(
            self._first + self.num_envs
        )[self._first :]
        for env, env_seed in zip(self._envs, seeds.tolist(), strict=True):
            env.reset(seed=env_seed)
        return self.begin()

    def begin(self):
        self._running = [_Running(env) for env in self._envs]
        return np.stack([running.frame for running in self._running])

    def step(self, actions):
        steps = [
            running.step(action)
            for running, action in zip(self._running, actions, strict=True)
        ]
        episodes = []
        for i, (_, terminated, truncated) in enumerate(steps):
            if terminated or truncated:
                ended = self._running[i]
                episodes.append(
                    atari.Episode(
                        i, ended.total_reward, len(ended.actions), ended.frame
                    )
                )
                self._running[i] = _Running(self._envs[i])
        rewards, terminated, truncated = zip(*steps, strict=True)
        return atari.Step(
            np.stack([running.frame for running in self._running]),
            # float64, which is what an environment of any kind may give.
            np.array(rewards, np.float64),
            np.zeros(self.num_envs, bool),
            np.array(terminated, bool),
            np.array(truncated, bool),
            tuple(episodes),
        )

    def state(self):
        return [
            {
                "begin": running.begin,
                "actions": running.actions.copy(),
                "total_reward": running.total_reward,
            }
            for running in self._running
        ]

    def restore(self, values, watch=None):
        self._running = []
        for i, (env, saved) in enumerate(zip(self._envs, values, strict=True)):
            restore(env, saved["begin"])
            running = _Running(env)
            for action in saved["actions"]:
                frame = running.frame
                reward, *_ = running.step(action)
                if watch is not None:
                    watch(i, frame, action, reward)
            if running.total_reward != saved["total_reward"]:
                raise ValueError(
                    "an environment's actions lead to a total reward of "
                    f"{running.total_reward} in place of "
                    f"{saved['total_reward']}"
                )
            self._running.append(running)
        return np.stack([running.frame for running in self._running])

    def close(self):
        for env in self._envs:
            env.close()


class One(Gathered):
    """A single environment in that form, whose state is that of its beginning.

    It is asked for between episodes, so no action is to be played again.

    Args:
        env: A `gymnasium.Env`.
    """

    def __init__(self, env):
        super().__init__([env])

    def reset(self, seed):
        self._envs[0].reset(seed=seed)
        return self.begin()

    def state(self):
        return [self._running[0].begin]

    def restore(self, values, watch=None):
        (begin,) = values
        restore(self._envs[0], begin)
        return self.begin()


class _Running:
    """An episode that an environment is in, from its beginning."""

    def __init__(self, env):
        self._env = env
        self.begin = state(env)
        self.actions = []
        self.total_reward = 0.0
        frame, _ = _returned("reset", env.reset(), "(observation, info)")
        self.frame = self._checked(frame)

    def step(self, action):
        self.actions.append(int(action))
        frame, reward, terminated, truncated, _ = _returned(
            "step",
            self._env.step(self.actions[-1]),
            "(observation, reward, terminated, truncated, info)",
        )
        self.frame = self._checked(frame)
        for name, value, kind in (
            ("reward", reward, "biuf"),
            ("terminated", terminated, "biu"),
            ("truncated", truncated, "biu"),
        ):
            if np.ndim(value) or np.asarray(value).dtype.kind not in kind:
                raise ValueError(
                    f"Expected the environment's `{name}` to be a number. "
                    f"Received: {value!r}"
                )
        if not math.isfinite(reward):
            raise FloatingPointError(
                f"the environment gave a reward of {reward}"
            )
        self.total_reward += float(reward)
        return reward, terminated, truncated

    def _checked(self, frame):
        """A copy of a frame: environments may use the same array again."""
        frame, space = np.array(frame), self._env.observation_space
        if frame.dtype != np.uint8 or frame.shape != space.shape:
            raise ValueError(
                "Expected the environment's frames to be as its "
                f"observation_space says, uint8 {list(space.shape)}. Received: "
                f"{frame.dtype} {list(frame.shape)}"
            )
        return frame


def _returned(name, values, expected):
    """What a method of an environment has returned, if it is as expected."""
    if not isinstance(values, tuple) or len(values) != expected.count(",") + 1:
        raise ValueError(
            f"Expected the environment's `{name}` to return {expected}, as "
            f"gymnasium has it. Received: {type(values).__name__}"
            + (f" of {len(values)}" if isinstance(values, tuple) else "")
        )
    return values


def state(env):
    """Returns what decides the next episodes, as values JSON can hold.

    Raises:
        ValueError: If it is an Atari game whose emulator does not tell.
    """
    env = env.unwrapped
    if not hasattr(env, "clone_state") and "ALE/" in str(
        env.spec and env.spec.id
    ):
        raise ValueError(
            f"Expected an environment whose state can be saved. Received: {env}"
        )
    if not isinstance(env.np_random, np.random.Generator):
        raise ValueError(
            "Expected the environment's `np_random` to be a "
            f"`numpy.random.Generator`. Received: {env.np_random!r}"
        )
    # Of some kinds it has arrays.
    values = {
        "np_random": keras.tree.map_structure(
            lambda value: (
                value.tolist() if isinstance(value, np.ndarray) else value
            ),
            env.np_random.bit_generator.state,
        )
    }
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
