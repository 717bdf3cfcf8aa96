"""What changes from frame to frame, and what of it was never seen before."""

from typing import NamedTuple

import numpy as np

from reuse_tf import ops

# Stands for padding, which is no value of a pixel.
_PADDING = -1


class Change(NamedTuple):
    """How a frame differs from those before it.

    Attributes:
        pixels: bool `[height, width]`: those that differ from the last frame.
        positions: Those with such a pixel in their receptive field.
        new: Those of them whose receptive field shows what no position of any
            frame has shown.
    """

    pixels: np.ndarray
    positions: np.ndarray
    new: np.ndarray


class Changes:
    """Compares the frames of a stream.

    What it finds is what temporal and content reuse compute for the last of
    some convolutions with "same" padding and strides of 1.

    Args:
        field: Height and width of the receptive field of a position: 5 for two
            convolutions of 3x3.
    """

    def __init__(self, field=5):
        self._field = field
        self._before = (field - 1) // 2
        self._last = None
        self._known = set()

    def update(self, frame):
        """Compares a frame with those before it.

        Args:
            frame: uint8 `[height, width, channels]`.

        Returns:
            A `Change`; for the first frame everything has changed.
        """
        last = ~frame if self._last is None else self._last
        self._last = frame
        changed, _ = ops.changed_positions(
            frame[np.newaxis], last[np.newaxis], kernel_size=self._field
        )
        positions = np.zeros(frame.shape[:2], bool)
        positions.flat[changed.numpy()] = True
        new = np.zeros_like(positions)
        new[positions] = self._add(self._patches(frame)[positions])
        return Change(np.any(frame != last, -1), positions, new)

    def _patches(self, frame):
        """Views `[height, width, channels, field, field]`."""
        around = (self._before, self._field - 1 - self._before)
        padded = np.pad(
            frame.astype(np.int16),
            (around, around, (0, 0)),
            constant_values=_PADDING,
        )
        return np.lib.stride_tricks.sliding_window_view(
            padded, (self._field, self._field), (0, 1)
        )

    def _add(self, patches):
        """Remembers patches; returns for each whether it was not known."""
        count, known = len(self._known), self._known
        new = np.zeros(len(patches), bool)
        for i, patch in enumerate(patches):
            known.add(patch.tobytes())
            new[i] = len(known) > count
            count = len(known)
        return new
