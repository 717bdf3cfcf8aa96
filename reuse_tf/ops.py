"""The compiled ops: their loader, their Python faces and their gradients."""

import ctypes
import operator
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from reuse_tf import library

_PATH = library.path()
_ops = tf.load_op_library(_PATH)
_functions = ctypes.CDLL(_PATH)


def _instruction_sets():
    """The sets that this processor runs, and the one that is used."""
    _functions.reuse_tf_instruction_sets.restype = ctypes.c_char_p
    names = _functions.reuse_tf_instruction_sets().decode().split()
    used = os.environ.get("REUSE_TF_ISA") or names[0]
    if used not in names:
        raise ImportError(
            "reuse_tf: expected the environment variable REUSE_TF_ISA to be "
            f"unset or one of {', '.join(names)}. Received: {used!r}"
        )
    return tuple(names), used


# The fastest first. Results have the same bits within a set, and differ by
# rounding between sets.
INSTRUCTION_SETS, INSTRUCTION_SET = _instruction_sets()


def sparse_gather(
    rows: ArrayLike | tf.Tensor, patches: ArrayLike | tf.Tensor
) -> tf.Tensor:
    """Gathers the rows that make up each patch.

    Differentiable with respect to `rows`: the gradient adds each part of a
    patch to the row it came from.

    Args:
        rows: Activation table, `[U, C]`; float16, bfloat16, float32, float64,
            uint8 or int32.
        patches: Row ids, integers `[M, k]`, each in `[-1, U)`; -1 stands for a
            row of zeros.

    Returns:
        `[M, k * C]`, of the dtype of `rows`: row `m` is the rows
        `patches[m, 0]` to `patches[m, k - 1]` behind each other.

    Raises:
        tf.errors.InvalidArgumentError: If a rank or an id is not as above.
        ValueError: If `patches` are not integers.

    Examples:
        >>> sparse_gather([[1.0, 2.0], [3.0, 4.0]], [[1, -1]]).numpy()
        array([[3., 4., 0., 0.]], dtype=float32)
    """
    return _ops.reuse_tf_sparse_gather(rows, _ids("patches", patches))


def sparse_scatter(
    table: ArrayLike | tf.Tensor,
    ids: ArrayLike | tf.Tensor,
    rows: ArrayLike | tf.Tensor,
) -> tf.Tensor:
    """Replaces rows of a table.

    The table is changed in place if nobody else holds it (as inside a
    `tf.function`), and copied otherwise. Differentiable with respect to
    `table` and `rows`.

    Args:
        table: `[U, C]`; float16, bfloat16, float32, float64, uint8 or int32.
        ids: The rows to replace, integers `[M]`, each in `[0, U)`. Of equal
            ids the last one holds.
        rows: `[M, C]`, of the dtype of `table`.

    Returns:
        `[U, C]`: the table with those rows replaced.

    Raises:
        tf.errors.InvalidArgumentError: If a shape or an id is not as above.
        ValueError: If `ids` are not integers, or `rows` of another dtype.

    Examples:
        >>> sparse_scatter([[1.0], [2.0]], [1], [[5.0]]).numpy()
        array([[1.],
               [5.]], dtype=float32)
    """
    table = tf.convert_to_tensor(table)
    return _ops.reuse_tf_sparse_scatter(
        table, _ids("ids", ids), _of_dtype("rows", rows, table.dtype)
    )


def _of_dtype(name, values, dtype):
    """A tensor of a dtype, of values that are of it, or bare numbers.

    Values of one floating dtype may be given for another one, as elsewhere in
    TensorFlow. An integer would be cut off.
    """
    given = getattr(values, "dtype", dtype)
    if given != dtype and not (
        isinstance(values, np.ndarray | np.generic)
        and given.kind == "f"
        and dtype.is_floating
    ):
        raise ValueError(
            f"Expected `{name}` to be {dtype.name}. Received: "
            f"{tf.as_dtype(given).name}"
        )
    try:
        tensor = tf.convert_to_tensor(values, dtype)
        is_held = hasattr(values, "dtype") or not dtype.is_integer
        if is_held or np.array_equal(values, tf.get_static_value(tensor)):
            return tensor
    except (OverflowError, TypeError):
        pass
    raise ValueError(
        f"Expected `{name}` to be {dtype.name}. Received: {values!r}"
    )


def _ids(name, values):
    """Ids as int32 or int64, whichever holds them: the op checks the range."""
    try:
        ids = tf.convert_to_tensor(values)
    except (OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"Expected `{name}` to be integers of 64 bits. "
            f"Received: {name}={values!r}"
        ) from error
    if ids.dtype in (tf.int32, tf.int64):
        return ids
    # An empty list says nothing of its type.
    empty = not tf.is_tensor(values) and ids.shape.num_elements() == 0
    if empty or (ids.dtype.is_integer and ids.dtype != tf.uint64):
        return tf.cast(ids, tf.int64)
    raise ValueError(
        f"Expected `{name}` to be integers, and not uint64. "
        f"Received: {ids.dtype.name}"
    )


def changed_positions(
    inputs: ArrayLike | tf.Tensor,
    seen: ArrayLike | tf.Tensor,
    kernel_size: int | Sequence[int] = 3,
    strides: int | Sequence[int] = 1,
    padding: str = "same",
    dilation_rate: int | Sequence[int] = 1,
    threshold: float = 0.0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Finds the positions whose patch is no longer what was last seen.

    Args:
        inputs: `[N, H, W, C]`, float32 or uint8.
        seen: What was last seen, of the same shape and dtype.
        kernel_size: Integer, or two for height and width.
        strides: Integer, or two.
        padding: `"same"` or `"valid"`.
        dilation_rate: Integer, or two.
        threshold: If 0, pixels are compared bit by bit. Otherwise a pixel has
            changed if one of its values differs by more than this, or is NaN.
            A finite number that is not negative.

    Returns:
        A tuple `(positions, seen)`. `positions` is int32 `[M]`, ascending, and
        counts the output positions through the batch:
        `(n * output_height + y) * output_width + x`. `seen` is what to
        remember for the next call: the old one with the changed pixels
        replaced, so that it is never off by more than the threshold. They
        have no gradient.

    Raises:
        tf.errors.InvalidArgumentError: If a shape is not as above.
        ValueError: If an argument is not as above.
    """
    inputs = tf.convert_to_tensor(inputs)
    if not isinstance(threshold, (int, float, np.number)) or not (
        0 <= threshold < np.inf
    ):
        raise ValueError(
            "Expected `threshold` to be a finite number that is not negative. "
            f"Received: threshold={threshold!r}"
        )
    return _ops.reuse_tf_changed_positions(
        inputs,
        _of_dtype("seen", seen, inputs.dtype),
        kernel_size=_pair("kernel_size", kernel_size),
        strides=_pair("strides", strides),
        padding=str(padding).upper(),
        dilations=_pair("dilation_rate", dilation_rate),
        threshold=threshold,
    )


def _pair(name, value):
    try:
        one = _positive(value)
        pair = (one, one) if one else tuple(_positive(v) for v in value)
    except TypeError:  # cannot be iterated over
        pair = ()
    if len(pair) != 2 or None in pair:
        raise ValueError(
            f"Expected `{name}` to be a positive integer below 2^31, or two. "
            f"Received: {name}={value!r}"
        )
    return pair


def _positive(value):
    """A positive integer of any kind as Python's, or None."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        value = operator.index(value)
    except TypeError:
        return None
    return value if 0 < value < 2**31 else None


def take_frames(
    frames: ArrayLike | tf.Tensor, *structure: Any, nodes: list[str]
) -> Any:
    """The parts of a structure that some frames show; see `Structure.take`."""
    return _ops.reuse_tf_take_frames(
        _ids("frames", frames), *structure, nodes=nodes
    )


def new_runner_state(
    nodes: list[str], handles: list[tf.Tensor], reuse: str, max_rows: int
) -> tuple[tf.Tensor, int]:
    """Makes the state of a runner; see node_list.h.

    Returns:
        A resource handle, and an address for `step_numpy` that is valid while
        the handle lives.
    """
    with tf.init_scope(), tf.device("CPU:0"):
        state, address = _ops.reuse_tf_runner_state(
            handles, nodes=nodes, reuse=reuse, max_rows=max_rows
        )
        return state, int(address)


_BYTE = ctypes.c_char * 1


def address_of(array: Any) -> int:
    """Where the values of a contiguous array are, which is not empty."""
    # Twice as fast as the other way, which is open to read-only arrays too.
    if array.flags.writeable:
        return ctypes.addressof(_BYTE.from_buffer(array))
    return array.__array_interface__["data"][0]


def _by_addresses(name, *argument_types):
    """A C function of the library, of these types, that returns a bool."""
    function = getattr(_functions, name)
    function.restype = ctypes.c_bool
    function.argtypes = argument_types
    return function


# `runner_step` for NumPy arrays, as addresses, without TensorFlow around it:
# (state, frames, streams, outputs, kept) -> whether it went well. `outputs` are
# the addresses of all outputs, or is that of the only one; `kept` tells that
# they hold those of the last step.
step_numpy = _by_addresses(
    "reuse_tf_runner_step",
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_bool,
)


# Every step-th pixel of a screen, by addresses: (step, screen, height, width,
# table, out) -> whether each has an entry below 256 in the table, which is of
# 256 numbers of 16 bits.
look_up = _by_addresses(
    "reuse_tf_look_up",
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_void_p,
)

# Draws of the softmax of rows of logits, by addresses: (logits, rows, row size,
# uniforms, samples) -> whether the logits are finite. Uniforms are of 64 bits,
# and so are the samples.
sample = _by_addresses(
    "reuse_tf_sample",
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_void_p,
    ctypes.c_void_p,
)


incremental_state = _ops.reuse_tf_incremental_state
reset_state = _ops.reuse_tf_reset_state
state_stats = _ops.reuse_tf_state_stats
incremental_conv2d = _ops.reuse_tf_incremental_conv2d
incremental_dense = _ops.reuse_tf_incremental_dense
runner_step = _ops.reuse_tf_runner_step
runner_reset = _ops.reuse_tf_runner_reset
runner_record = _ops.reuse_tf_runner_record
runner_recording = _ops.reuse_tf_runner_recording
runner_stats = _ops.reuse_tf_runner_stats
video_structure = _ops.reuse_tf_video_structure
frame_ids = _ops.reuse_tf_frame_ids
patch_product = _ops.reuse_tf_patch_product
patch_pool = _ops.reuse_tf_patch_pool
content_product = _ops.reuse_tf_content_product
run_sum = _ops.reuse_tf_run_sum


@tf.RegisterGradient("ReuseTF>SparseGather")
def _sparse_gather_grad(op, gradient):
    rows, patches = op.inputs
    num_rows = tf.shape(rows, out_type=tf.int64)[0]
    return _ops.reuse_tf_sparse_gather_grad(gradient, patches, num_rows), None


@tf.RegisterGradient("ReuseTF>SparseGatherGrad")
def _sparse_gather_grad_grad(op, gradient):
    return sparse_gather(gradient, op.inputs[1]), None, None


@tf.RegisterGradient("ReuseTF>SparseScatter")
def _sparse_scatter_grad(op, gradient):
    table, ids, rows = op.inputs
    table_gradient = sparse_scatter(gradient, ids, tf.zeros_like(rows))
    # Of equal ids only the last one is in the result.
    order = tf.range(tf.size(ids))[:, None]
    last = sparse_scatter(
        tf.zeros([tf.shape(table)[0], 1], tf.int32), ids, order
    )
    holds = sparse_gather(last, ids[:, None]) == order
    rows_gradient = tf.where(
        holds, sparse_gather(gradient, ids[:, None]), tf.zeros_like(rows)
    )
    return table_gradient, None, rows_gradient


@tf.RegisterGradient("ReuseTF>PatchProduct")
def _patch_product_grad(op, gradient):
    rows, patches, kernel, bias = op.inputs
    rows_gradient, kernel_gradient, bias_gradient = (
        _ops.reuse_tf_patch_product_grad(
            rows,
            patches,
            kernel,
            op.outputs[0],
            gradient,
            groups=op.get_attr("groups"),
            relu=op.get_attr("relu"),
            constant=op.get_attr("constant"),
        )
    )
    if bias.shape[0] == 0:
        bias_gradient = bias
    return rows_gradient, None, kernel_gradient, bias_gradient


@tf.RegisterGradient("ReuseTF>PatchPool")
def _patch_pool_grad(op, gradient):
    rows, patches = op.inputs
    return (
        _ops.reuse_tf_patch_pool_grad(
            rows, patches, gradient, kind=op.get_attr("kind").decode()
        ),
        None,
    )


@tf.RegisterGradient("ReuseTF>ContentProduct")
def _content_product_grad(op, gradient):
    rows_gradient, weights_gradient = _ops.reuse_tf_content_product_grad(
        *op.inputs, gradient
    )
    return rows_gradient, None, None, weights_gradient


@tf.RegisterGradient("ReuseTF>RunnerStep")
def _runner_step_grad(op, *_):
    # Steps are constants, in a graph too, where variables are inputs.
    return [None] * len(op.inputs)


@tf.RegisterGradient("ReuseTF>ChangedPositions")
def _changed_positions_grad(op, *_):
    return [None] * len(op.inputs)


def _no_gradient(op_name, what):
    """Has a tape that would need this gradient say so in one line."""

    @tf.RegisterGradient(f"ReuseTF>{op_name}")
    def _refuse(op, *gradients):
        raise NotImplementedError(
            f"reuse_tf.Runner has no {what}. Take it of the model itself: "
            "runner.model(frames)."
        )


for _name in "VideoStructure", "TakeFrames":
    _no_gradient(
        _name,
        "gradient with respect to frames, which this tape watches (as one does "
        "a trainable `tf.Variable`, and, around a `tf.function`, all of its "
        "floating arguments: give it `tf.stop_gradient(frames)`, or put the "
        "tape inside)",
    )
for _name in "PatchProductGrad", "PatchPoolGrad", "ContentProductGrad":
    _no_gradient(_name, "second derivative")


@tf.RegisterGradient("ReuseTF>RunSumGrad")
def _run_sum_grad_grad(op, gradient):
    sums_gradient, runs, _ = op.inputs
    # The order tells how many frames there are, and no more.
    order = tf.range(tf.shape(sums_gradient)[0])
    return run_sum(gradient, runs, order), None, None


@tf.RegisterGradient("ReuseTF>RunSum")
def _run_sum_grad(op, gradient):
    values, runs, _ = op.inputs
    return _ops.reuse_tf_run_sum_grad(gradient, runs, values), None, None
