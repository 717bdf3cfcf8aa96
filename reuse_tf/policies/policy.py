"""Convolutional policies: from a frame to the logits of its actions."""

import numbers
import os
import zipfile
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from reuse_tf import internals, ops
from reuse_tf.convert import convert, plain
from reuse_tf.layers import IncrementalConv2D, IncrementalDense
from reuse_tf.policies.run_directory import policies


def build_policy(
    input_shape: Sequence[int],
    num_actions: int,
    filters: Sequence[int] = (40, 80),
    kernel_size: int = 3,
    incremental: bool = True,
) -> keras.Model:
    """Builds a policy: convolutions, then one dense layer without bias.

    Pixels are scaled to [0, 1], every convolution keeps the height and width
    ("same" padding, strides of 1) and is followed by a ReLU. The model and its
    weights are those of plain Keras either way: `incremental` decides only
    whether activations are reused from frame to frame.

    Args:
        input_shape: Shape of a frame, `(height, width, channels)`.
        num_actions: Number of actions.
        filters: Filters of each convolution. At least one.
        kernel_size: Height and width of every kernel.
        incremental: Whether to build of `IncrementalConv2D` and
            `IncrementalDense`, or of `Conv2D` and `Dense`.

    Returns:
        A Keras model, frames `[batch, height, width, channels]` (uint8) to
        logits `[batch, num_actions]` (float32).

    Raises:
        ValueError: If an argument is not positive, or of another rank.
    """
    input_shape, filters = tuple(input_shape), tuple(filters)
    check_arguments(
        input_shape, filters, num_actions=num_actions, kernel_size=kernel_size
    )
    conv, dense = (
        (IncrementalConv2D, IncrementalDense)
        if incremental
        else (keras.layers.Conv2D, keras.layers.Dense)
    )
    # Stated, as a user may have configured other defaults of Keras.
    dtype = {"dtype": "float32"}
    positions: dict[str, Any] = {"data_format": "channels_last", **dtype}
    return keras.Sequential(
        [
            keras.Input(input_shape, dtype="uint8", name="frames"),
            keras.layers.Rescaling(1 / 255, name="scale", **dtype),
            *(
                conv(
                    count,
                    kernel_size,
                    padding="same",
                    activation="relu",
                    name=f"conv{index}",
                    **positions,
                )
                for index, count in enumerate(filters, start=1)
            ),
            keras.layers.Flatten(name="flatten", **positions),
            dense(num_actions, use_bias=False, name="logits", **dtype),
        ],
        name="policy",
    )


def check_arguments(
    input_shape: Sequence[int], filters: Sequence[int], **counts: int
) -> None:
    """Refuses what no network can be built of.

    Args:
        input_shape: Expected to be three positive integers.
        filters: Expected to be one or more positive integers.
        **counts: Expected to be positive integers.

    Raises:
        ValueError: If something is not as expected; it names the argument.
    """
    if len(input_shape) != 3 or not all(map(_is_positive, input_shape)):
        raise ValueError(
            "`input_shape` must be three positive integers, (height, width, "
            f"channels). Received: input_shape={input_shape}"
        )
    if not filters or not all(map(_is_positive, filters)):
        raise ValueError(
            "`filters` must be one or more positive integers. "
            f"Received: filters={filters}"
        )
    for name, value in counts.items():
        if not _is_positive(value):
            raise ValueError(
                f"`{name}` must be a positive integer. Received: {name}={value}"
            )


def load_policy(
    path: str | os.PathLike[str],
    input_shape: Sequence[int],
    num_actions: int,
    incremental: bool = True,
    *,
    value: bool = False,
) -> keras.Model:
    """Loads a saved policy.

    Args:
        path: A `.keras` file, of plain or incremental layers, or a run
            directory (see `RunDirectory`), whose newest policy it is then.
        input_shape: Shape of the frames it is to take, `(height, width,
            channels)`.
        num_actions: Number of actions it is to choose among.
        incremental: Whether activations are to be reused, whichever way it
            was saved.
        value: See `policy_of`.

    Returns:
        A Keras model, as of `policy_of`.

    Raises:
        ValueError: If the file holds no such policy.
    """
    *older, path = policies(path) if os.path.isdir(path) else [path]
    try:
        # Of what is no archive Keras says that it is not found.
        if os.path.isfile(path) and os.fspath(path).endswith(".keras"):
            zipfile.ZipFile(path).close()
        model = keras.models.load_model(path)
    # Keras raises errors of many kinds for a file it cannot read.
    except Exception as error:
        hint = f" The policy before it is {str(older[-1])!r}." if older else ""
        reason = str(error).rstrip(".")
        raise ValueError(
            f"Cannot load a policy from {str(path)!r}: {reason}.{hint}"
        ) from error
    policy = policy_of(
        model,
        f"The policy in {str(path)!r}",
        input_shape,
        num_actions,
        value=value,
    )
    return convert(policy) if incremental else plain(policy)


def policy_of(
    model: keras.Model,
    what: str,
    input_shape: Sequence[int],
    num_actions: int,
    *,
    value: bool = False,
) -> keras.Model:
    """Takes of a model what is asked for.

    Args:
        model: A Keras model, frames to logits or to a dict of `"logits"`,
            `"value"` and whatever else.
        what: What to call it in errors.
        input_shape: Shape of a frame, `(height, width, channels)`.
        num_actions: Number of actions.
        value: Whether the value is wanted beside the logits.

    Returns:
        A Keras model of the same layers, frames `[batch, height, width,
        channels]` to logits `[batch, num_actions]`, or, if `value`, to a dict
        `{"logits": [batch, num_actions], "value": [batch, 1]}`.

    Raises:
        ValueError: If the model does not give these.
    """
    if not isinstance(model, keras.Sequential | internals.Functional) or not (
        model.built and hasattr(model, "inputs")
    ):
        raise ValueError(
            f"{what} does not fit: expected a Sequential or functional Keras "
            f"model that is built. Received: {model!r}"
        )
    outputs = internals.outputs_of(model)
    if isinstance(outputs, dict) and not value:
        outputs = outputs.get("logits", outputs)
    expected: Any = (None, num_actions)
    if value:
        expected = {"logits": expected, "value": (None, 1)}
        if isinstance(outputs, dict) and expected.keys() <= outputs.keys():
            outputs = {name: outputs[name] for name in expected}
    inputs = model.inputs[0] if len(model.inputs) == 1 else model.inputs
    for part, want, tensors in (
        ("input", (None, *input_shape), inputs),
        ("output", expected, outputs),
    ):
        got = keras.tree.map_structure(lambda tensor: tensor.shape, tensors)
        if got != want:
            raise ValueError(
                f"{what} does not fit: expected {part} shape {want}. "
                f"Received: {got}"
            )
    if outputs is internals.outputs_of(model):
        return model
    return keras.Model(inputs, outputs, name=model.name)


class Sampler:
    """Draws actions from the softmax of logits by inverse transform sampling.

    Args:
        rng: A `numpy.random.Generator`, of which each action takes one number.
        share: A range of numbers, if the rows of logits are these among more,
            of which each gets the action that it has among all.
        total: How many there are in all then.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        share: range | None = None,
        total: int | None = None,
    ) -> None:
        self._rng = rng
        self._share = share
        self._total = total
        self._logits = None

    def __call__(self, logits: np.ndarray) -> list[int]:
        """Draws an action of each row.

        Args:
            logits: Float32 array `[N, num_actions]`, of one action or more.

        Returns:
            A list of N integers: the first actions whose cumulative
            probability is above a number that is uniform in [0, 1).

        Raises:
            FloatingPointError: If a logit is NaN, or the largest of a row is
                infinite.
            ValueError: If the logits are of another shape, or their rows not
                those of the share.
        """
        if logits is not self._logits:
            self._take(logits)
        self._rng.random(out=self._drawn)
        if not ops.sample(*self._arguments):
            raise FloatingPointError(
                f"The logits are not finite: {logits.tolist()}"
            )
        return self._actions.tolist()

    def _take(self, logits):
        """Looks where the logits are, which a runner may leave there anew."""
        # Compiled code trusts these sizes.
        if np.ndim(logits) != 2 or not np.shape(logits)[1]:
            raise ValueError(
                "Expected `logits` of shape [N, num_actions]. Received: shape "
                f"{np.shape(logits)}"
            )
        count = len(logits)
        share = range(count) if self._share is None else self._share
        drawn = np.empty(count if self._total is None else self._total)
        uniforms = drawn[share.start : share.stop]
        if len(uniforms) != count:
            raise ValueError(
                f"Expected `logits` of {len(uniforms)} rows, those of {share} "
                f"among {len(drawn)}. Received: {count} rows"
            )
        self._logits = np.ascontiguousarray(logits, np.float32)
        self._drawn, self._uniforms = drawn, uniforms
        self._actions = np.empty(count, np.int64)
        self._arguments = (
            ops.address_of(self._logits),
            *self._logits.shape,
            ops.address_of(self._uniforms),
            ops.address_of(self._actions),
        )


def likeliest(logits: np.ndarray) -> list[int]:
    """Returns the likeliest action of each row of logits, as a list.

    Args:
        logits: Float array `[N, num_actions]`.

    Raises:
        FloatingPointError: If a logit is NaN.
    """
    if np.isnan(logits).any():
        raise FloatingPointError(
            f"The logits are not finite: {logits.tolist()}"
        )
    return logits.argmax(1).tolist()


def _is_positive(value):
    return isinstance(value, numbers.Integral) and value > 0
