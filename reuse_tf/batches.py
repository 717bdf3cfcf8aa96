"""Arrays of frames: what `Runner.predict` is given, as batches."""

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

# Of an array, as in `keras.Model.predict`.
_BATCH_SIZE = 32
_DTYPES = [np.dtype(np.uint8), np.dtype(np.float32)]


def frame_batches(
    x: Any,
    shape: tuple[int | None, ...],
    batch_size: int | None = None,
    steps: int | None = None,
) -> tuple[Iterator[np.ndarray], int | None]:
    """Batches of successive frames.

    Args:
        x: As in `Runner.predict`.
        shape: What frames are to be, `[H, W, C]`, where H and W may be None.
        batch_size: As in `Runner.predict`.
        steps: As in `Runner.predict`.

    Returns:
        An iterator of NumPy arrays `[B, H, W, C]` of one size and dtype, and
        how many they are, or None.

    Raises:
        ValueError: If an argument is not as above; by the iterator, if a batch
            is not.
    """
    batch_size = check_count("batch_size", batch_size)
    steps = check_count("steps", steps)
    batches: Iterator[np.ndarray]
    count: int | None
    if hasattr(x, "__array__"):
        frames = _checked(np.asarray(x), shape)
        size = batch_size or _BATCH_SIZE
        starts = range(0, max(1, len(frames)), size)  # none are a batch too
        batches = (frames[start : start + size] for start in starts)
        count = len(starts)
    else:
        # Of a list it would not be plain whether it has frames, batches,
        # videos or, as Keras takes it, a model's inputs.
        if not hasattr(x, "__iter__") or isinstance(x, (list, tuple, dict)):
            raise ValueError(
                "Expected `x` to be an array of frames [T, H, W, C], a "
                "tf.data.Dataset, or a generator or the like of batches of "
                f"frames. Received: {type(x).__name__}"
            )
        if batch_size is not None:
            raise ValueError(
                "Expected no `batch_size` where `x` is not an array but has "
                f"batches of its own. Received: batch_size={batch_size}"
            )
        batches = _alike(x, shape)
        try:
            count = len(x)
        except TypeError:  # not known, or no end
            count = None
    if steps is not None:
        batches = itertools.islice(batches, steps)
        count = steps if count is None else min(count, steps)
    return batches, count


def check_count(name: str, value: Any) -> int | None:
    """Returns a positive integer as Python's, or None; or a `ValueError`."""
    if value is None:
        return None
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(
            f"Expected `{name}` to be a positive integer, or None. Received: "
            f"{name}={value!r}"
        )
    return count


def _alike(batches, shape):
    """The frames of batches, which may have labels: of one size and dtype."""
    dtypes = _DTYPES
    for batch in batches:
        frames, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        frames = _checked(np.asarray(frames), shape, dtypes)
        shape = frames.shape[1:]
        dtypes = [frames.dtype.newbyteorder("=")]
        yield frames


def _checked(frames, shape, dtypes=_DTYPES):
    """An array, if it is one of frames of such a shape and dtype."""
    if (
        frames.ndim == 4
        and all(
            want in (None, size)
            for want, size in zip(shape, frames.shape[1:], strict=True)
        )
        and frames.dtype.newbyteorder("=") in dtypes
    ):
        return frames
    raise ValueError(
        f"Expected `x` to be {' or '.join(map(str, dtypes))} frames [T, "
        f"{sizes_text(shape)}], or to give batches of such, all of one dtype "
        f"and size. Received: {frames.dtype} {list(frames.shape)}"
    )


def sizes_text(shape):
    """A shape as messages have it: `40, 30, 1`, or `any, any, 1`."""
    return ", ".join("any" if size is None else str(size) for size in shape)


def read_only(array):
    """A view of an array that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
