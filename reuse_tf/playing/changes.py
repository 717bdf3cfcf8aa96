"""What changes from frame to frame, and what of it was never seen before."""

from typing import NamedTuple

import numpy as np

# Stands for what lies outside a map, and for what was never seen.
_NOTHING = -1


class Change(NamedTuple):
    """How a frame differs from those before it.

    Attributes:
        pixels: bool `[height, width]`: those that differ from the last frame.
        positions: Of the map: those that see such a pixel.
        new: Those of them that see what no position has seen in any frame. Of
            several that see the same, the first.
    """

    pixels: np.ndarray
    positions: np.ndarray
    new: np.ndarray


class Window(NamedTuple):
    """What the positions of a map see of the map before.

    Attributes:
        rows: int `[height, taps]`: the rows that each row of positions sees,
            -1 outside.
        columns: Likewise, `[width, taps]`.
    """

    rows: np.ndarray
    columns: np.ndarray


def taps(count, inputs, size, stride=1, dilation=1, before=0):
    """Returns the rows, or columns, that those of a map see.

    Args:
        count: How many there are.
        inputs: How many the map before has.
        size: Of the kernel.
        stride: Of the kernel.
        dilation: Of the kernel.
        before: How many of padding there are before the first.

    Returns:
        int `[count, size]`, -1 for padding.
    """
    seen = stride * np.arange(count)[:, np.newaxis] - before
    seen = seen + dilation * np.arange(size)
    return np.where((seen >= 0) & (seen < inputs), seen, _NOTHING)


def same(shape, size):
    """Returns the `Window` of a kernel, with "same" padding and no strides.

    Args:
        shape: Height and width of the map before, and others behind.
        size: Height and width of the kernel.
    """
    before = (size - 1) // 2
    return Window(
        *(taps(length, length, size, before=before) for length in shape[:2])
    )


class Changes:
    """Compares the frames of a stream, as a map of a network sees them.

    What it finds is what temporal and content reuse compute of the map.

    Args:
        windows: The `Window`s between the frames and the map, in order. If
            there are none, its positions are the pixels.
    """

    def __init__(self, windows=()):
        self._windows = windows
        self._last = None
        # By map, the number of what each position sees, and of all so far.
        self._maps = [None] * (len(windows) + 1)
        self._numbers = [{} for _ in self._maps]

    def update(self, frame):
        """Compares a frame with those before it.

        Args:
            frame: uint8 `[height, width, channels]`.

        Returns:
            A `Change`; for the first frame everything has changed.
        """
        first = self._last is None
        last = ~frame if first else self._last
        self._last = frame
        pixels = changed = np.any(frame != last, -1)
        new = self._number(0, changed, frame[changed])
        for i, window in enumerate(self._windows):
            # Some see nothing but padding, which is new once.
            changed = first | _sees(changed, window)
            rows, columns = (
                side[at]
                for side, at in zip(window, np.nonzero(changed), strict=True)
            )
            before = _with_nothing(self._maps[i], _NOTHING)
            patches = before[rows[:, :, np.newaxis], columns[:, np.newaxis]]
            new = self._number(i + 1, changed, patches)
        return Change(pixels, changed, new)

    def _number(self, i, changed, patches):
        """Numbers what changed positions see; returns where that is new."""
        if self._maps[i] is None:
            self._maps[i] = np.full(changed.shape, _NOTHING)
        numbers = self._numbers[i]
        count = len(numbers)
        found = np.empty(len(patches), int)
        first = np.empty(len(patches), bool)
        for j, patch in enumerate(patches):
            found[j] = numbers.setdefault(patch.tobytes(), count)
            first[j] = found[j] == count
            count = len(numbers)
        self._maps[i][changed] = found
        new = np.zeros_like(changed)
        new[changed] = first
        return new


def _sees(changed, window):
    """Which positions see one that has changed."""
    changed = _with_nothing(changed, False)
    return changed[window.rows].any(1)[:, window.columns].any(2)


def _with_nothing(map_, value):
    """A map of which row and column -1 have this value."""
    return np.pad(map_, (0, 1), constant_values=value)
