"""Atari games in which everything is decided beforehand, timed."""

import time

import numpy as np

from reuse_tf import atari

# Parts of a play of which the seconds are kept.
_PARTS = 10
# Steps of a play before it is the turn of the bare emulator beside it.
_BLOCK = 50


class Replay:
    """Makes a game do the same whatever it is told, and times the emulator.

    The actions that the game takes are random, and with the episodes depend on
    the seed alone: whoever plays sees the same frames, and the first `n` steps
    of a longer play are those of a shorter one.

    Args:
        env: An environment as `atari.make` makes it, which is changed.
        steps: The most steps that will be played.
        seed: Decides the game and the actions.
        beside: A `Bare` of the same game, to play the same steps in turns of
            50, so that whatever else the machine does meets both alike.

    Attributes:
        emulator_seconds: Time spent in the emulator, from the first step on:
            steps and the resets that begin further episodes. Neither reading
            a frame nor a wrapper is in it.
        beside_seconds: Time in which `beside` had its turns.
        other_seconds: Time spent in neither between the first reset and the
            end of each tenth of the steps: a list that grows.
        chosen: The actions that were asked for, and not done.
    """

    def __init__(self, env, steps, seed, beside=None):
        self._emulator = env.unwrapped
        self._step, self._reset = self._emulator.step, self._emulator.reset
        self._emulator.step, self._emulator.reset = self.step, self.reset
        rng = np.random.default_rng(seed)
        self._actions = rng.integers(env.action_space.n, size=steps).tolist()
        self._marks = {
            -(-steps * part // _PARTS) for part in range(1, _PARTS + 1)
        }
        self._seed = seed
        self._steps = steps
        self._begin = None
        self._beside = beside
        self._in_block = 0
        self.emulator_seconds = 0.0
        self.beside_seconds = 0.0
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
            passed = end - self._begin
            self.other_seconds.append(
                passed - self.emulator_seconds - self.beside_seconds
            )
        if self._beside is not None:
            self._in_block += 1
            if self._in_block == _BLOCK or len(self.chosen) == self._steps:
                begin = time.perf_counter()
                self._beside.play(self._in_block)
                self.beside_seconds += time.perf_counter() - begin
                self._in_block = 0
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


class Bare:
    """A game's emulator alone: no frame is read.

    Args:
        game: See `atari.make`.
        steps: The most steps that will be played.
        seed: See `Replay`.
    """

    def __init__(self, game, steps, seed):
        env = atari.make(game)
        self._replay = Replay(env, steps, seed)
        self._emulator = env.unwrapped
        self._emulator.reset()

    def play(self, steps):
        """Plays so many steps more."""
        for _ in range(steps):
            _, _, terminated, truncated, _ = self._emulator.step(0)
            if terminated or truncated:
                self._emulator.reset()

    @property
    def seconds(self):
        """What the steps and the resets between them took."""
        return self._replay.emulator_seconds
