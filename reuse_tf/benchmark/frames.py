"""Sequences of frames of which a given fraction changes at each step."""

import numpy as np

# Largest side, in pixels, of what changes at one place.
SIDES = {"blobs": 12, "noise": 1}

# A set of changes is complete when so many more in a row did not fit in.
_MISSES = 1000


def cyclic_frames(shape, kernel_size, fraction, change, generator, steps=3):
    """Makes frames that follow each other in a circle.

    Each differs from the one before it, and the first from the last, in
    random pixels that lie in the patches of the given fraction of positions.

    Args:
        shape: Height, width and channels of a frame.
        kernel_size: Of the convolution; its padding is "same", its strides 1.
        fraction: Of the positions, in [0, 1].
        change: Key of `SIDES`. blobs: about square, at most so many pixels
            wide, scattered. noise: single pixels, scattered.
        generator: NumPy random generator.
        steps: Number of sets of changed pixels.

    Returns:
        `2 * steps` frames, float32 `[height, width, channels]`.
    """
    low = generator.uniform(0, 1, shape).astype(np.float32)
    high = low + 1
    changes = [
        changed_pixels(
            shape[:2], kernel_size, fraction, SIDES[change], generator
        )
        for _ in range(steps)
    ]
    state = np.zeros(shape[:2], bool)
    frames = []
    # Every pixel is flipped an even number of times on the way round.
    for pixels in changes + changes:
        frames.append(np.where(state[..., None], high, low))
        state = state ^ pixels
    return frames


def changed_pixels(size, kernel_size, fraction, side, generator):
    """Chooses pixels that lie in the patches of a fraction of the positions.

    Blobs of random place and size are added as long as they fit in, smaller
    ones as it gets tight: the fraction is met as nearly as it can be without
    exceeding it.

    Args:
        size: Height and width.
        kernel_size: Of the convolution; its padding is "same", its strides 1.
        fraction: Of the positions, in [0, 1].
        side: Largest side of a blob, in pixels.
        generator: NumPy random generator.

    Returns:
        bool `[height, width]`.
    """
    height, width = size
    wanted = round(fraction * height * width)
    if wanted == height * width:
        return np.ones(size, bool)
    pixels = np.zeros(size, bool)
    positions = np.zeros(size, bool)
    before = kernel_size - 1 - (kernel_size - 1) // 2
    after = kernel_size - 1 - before
    misses = 0
    while wanted > 0 and misses < _MISSES:
        longest = generator.integers(1, side + 1)
        tall, wide = generator.integers((longest + 1) // 2, longest + 1, 2)
        y, x = generator.integers(0, height), generator.integers(0, width)
        reached = positions[
            max(y - before, 0) : y + tall + after,
            max(x - before, 0) : x + wide + after,
        ]
        added = reached.size - np.count_nonzero(reached)
        if added > wanted:
            misses += 1
            side = max(side - 1, 1)
            continue
        if added > 0:
            misses = 0
        reached[...] = True
        pixels[y : y + tall, x : x + wide] = True
        wanted -= added
    return pixels
