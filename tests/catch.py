"""A small game to learn from pixels: a falling ball to catch."""

import gymnasium as gym
import numpy as np

SIZE = 21
_CELL = 3
_CELLS = SIZE // _CELL


class Catch(gym.Env):
    """A ball falls a cell a step; the paddle below stays or moves by a cell.

    The return is the number of balls caught minus those missed, of `balls`.
    """

    observation_space = gym.spaces.Box(0, 255, (SIZE, SIZE, 1), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, balls=1):
        self._balls = balls

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._left = self._balls
        self._paddle = _CELLS // 2
        self._drop()
        return self._frame(), {}

    def step(self, action):
        self._paddle = min(max(self._paddle + int(action) - 1, 0), _CELLS - 1)
        self._row += 1
        reward = 0.0
        if self._row == _CELLS - 1:
            reward = 1.0 if self._column == self._paddle else -1.0
            self._left -= 1
            self._drop()
        return self._frame(), reward, self._left == 0, False, {}

    def _drop(self):
        self._row, self._column = 0, int(self.np_random.integers(_CELLS))

    def _frame(self):
        cells = np.zeros((_CELLS, _CELLS), np.uint8)
        cells[self._row, self._column] = 255
        cells[_CELLS - 1, self._paddle] = 128
        return np.kron(cells, np.ones((_CELL, _CELL), np.uint8))[..., None]
