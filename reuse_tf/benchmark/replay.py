"""Atari games in which everything is decided beforehand, timed."""

import time

import numpy as np

from reuse_tf import atari

# Parts of a play of which the seconds are kept.
_PARTS = 10


class Replay:
    """Makes a game do the same whatever it is told, and times the emulator.

    The actions that the game takes are random, and with the episodes depend on
    the seed alone: whoever plays sees the same frames, and the first `n` steps
    of a longer play are those of a shorter one.

    Args:
        env: An environment as `atari.make` makes it, which is changed.
        steps: The most steps that will be played.
        seed: Decides the game and the actions.

    Attributes:
        emulator_seconds: Time spent in the emulator, from the first step on:
            steps and the resets that begin further episodes. Neither reading
            a frame nor a wrapper is in it.
        other_seconds: Time spent elsewhere between the first reset and the
            end of each tenth of the steps: a list that grows.
        chosen: The actions that were asked for, and not done.
    """

    def __init__(self, env, steps, seed):
        self._emulator = env.unwrapped
        self._step, self._reset = self._emulator.step, self._emulator.reset
        self._emulator.step, self._emulator.reset = self.step, self.reset
        rng = np.random.default_rng(seed)
        self._actions = rng.integers(env.action_space.n, size=steps).tolist()
        self._marks = {
            -(-steps * part // _PARTS) for part in range(1, _PARTS + 1)
        }
        self._seed = seed
        self._begin = None
        self.emulator_seconds = 0.0
        self.other_seconds = []
        self.chosen = []

    def step(self, action):
        """Does the step that was decided, instead of `action`."""
        begin = time.perf_counter()
        result = self._step(self._actions[len(self.chosen)])
        end = time.perf_counter()
        self.emulator_seconds += end - begin
        self.chosen.append(action)
        if len(self.chosen) in self._marks:
            self.other_seconds.append(end - self._begin - self.emulator_seconds)
        return result

    def reset(self, *, seed=None, options=None):
        """Begins an episode: before the first step always the same one."""
        if self.chosen:
            begin = time.perf_counter()
            result = self._reset()
            self.emulator_seconds += time.perf_counter() - begin
            return result
        if self._begin is None:  # It takes half a second.
            self._first = self._reset(seed=self._seed)
        self._begin = time.perf_counter()
        return self._first


def frames(game, *, downsample, steps, seed):
    """Yields the frames of a replayed game.

    Args:
        game: See `atari.make`.
        downsample: See `atari.make`.
        steps: Their number.
        seed: See `Replay`.

    Yields:
        uint8 `[height, width, 1]`: the frame before each step.
    """
    env = atari.make(game, downsample=downsample)
    Replay(env, steps, seed)
    frame, _ = env.reset()
    for _ in range(steps):
        yield frame
        frame, _, terminated, truncated, _ = env.step(0)
        if terminated or truncated:
            frame, _ = env.reset()


def bare_seconds(game, *, steps, seed):
    """Plays a game by the emulator alone: no frame is read.

    Args:
        game: See `atari.make`.
        steps: Steps to play.
        seed: See `Replay`.

    Returns:
        The seconds that the steps and the resets between them took.
    """
    env = atari.make(game)
    replay = Replay(env, steps, seed)
    emulator = env.unwrapped
    emulator.reset()
    for _ in range(steps):
        _, _, terminated, truncated, _ = emulator.step(0)
        if terminated or truncated:
            emulator.reset()
    return replay.emulator_seconds
