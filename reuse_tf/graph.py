"""Keras models as lists of nodes, which the runner's ops read and run.

`compile_model` walks a model and has each layer add its nodes, by the one table
of layers (`_LAYERS`). A node says three things of itself: its line for the ops
(`custom_ops/ops/node_list.h`), its variables, and how its rows follow from
those of the nodes before, in TensorFlow, for the differentiable path.

A node's value is a map of positions, each with a row of channels; a vector is a
map of 1 x 1.
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import activations, internals, ops
from reuse_tf.layers import IncrementalConv2D, IncrementalDense

# What looks at a whole map of a frame, and so has a value for each frame.
_WHOLE = ("dense", "global", "reshape", "permute", "group_norm")
_IDENTITY_WINDOW = (1, 1, 1, 1, 1, 1, 1, 1, "VALID")


class _Function(NamedTuple):
    """A function of single rows, as the ops and TensorFlow know it."""

    words: tuple
    call: Callable
    variables: tuple = ()


@dataclasses.dataclass(eq=False)
class Node:
    """One step of a network.

    Attributes:
        kind: As the ops name it; `"function"` before passes have placed it.
        inputs: The nodes that it looks at.
        words: What follows the inputs in its line, but for the window.
        shape: `(height, width, channels)` of its map.
        layer: The layer that it is of.
        call: How its rows follow from what it looks at; see `Graph.evaluate`.
        window: Of a convolution or pooling, as in its line.
        variables: In the order of the line.
        functions: What is applied to its rows, one after the other.
        number: Its place in the list.
        per_frame: Whether it has a value for each frame that is its own.
        threshold: When stepping, rows of which no value moved by more than
            this since they were last handed on are not handed on. Of the
            frames, the values are those that come in.
        is_input: Whether it is a copy of what its layer is given, which has the
            layer's own threshold.
    """

    kind: str
    inputs: list
    words: tuple
    shape: tuple
    layer: Any
    call: Callable | None = None
    window: tuple = ()
    variables: tuple = ()
    functions: list = dataclasses.field(default_factory=list)
    number: int = -1
    per_frame: bool = False
    threshold: float = 0.0
    is_input: bool = False

    @property
    def name(self):
        """What it is called: its layer, or that layer's input."""
        return f"{self.layer.name}/input" if self.is_input else self.layer.name

    @property
    def whole(self):
        return self.kind in _WHOLE

    @property
    def positions(self):
        return self.shape[0] * self.shape[1]

    @property
    def all_variables(self):
        """In the order of the line: its own, and those of its functions."""
        return [
            variable
            for part in (self, *self.functions)
            for variable in part.variables
        ]

    @property
    def has_patches(self):
        return self.kind in ("conv", "pool", "join") and not self.per_frame


class _Value(NamedTuple):
    """What a symbolic tensor is: a node, and the shape that Keras sees.

    The shape may be another one with as many values: functions of single values
    need not care.
    """

    node: Node
    shape: tuple


def _map_shape(shape):
    """A shape of Keras's as one of a map."""
    *outer, channels = shape
    if len(outer) < 2:
        return (*outer, 1, 1)[:2] + (channels,)
    return (math.prod(outer[:-1]), outer[-1], channels)


class Unsupported(ValueError):
    """Why a layer cannot be a node."""


def _require(condition, why):
    if not condition:
        raise Unsupported(why)


class _Call(NamedTuple):
    """A layer that is called: what a handler is given.

    Attributes:
        layer: The layer.
        values: What it is called with, `_Value`s.
        arguments: Its positional arguments, tensors in their places.
        keywords: Its keyword arguments.
    """

    layer: Any
    values: list
    arguments: tuple
    keywords: dict

    @property
    def value(self):
        return self.values[0]

    def settled(self, value=None):
        """A value whose node has the shape that Keras sees."""
        return _settle(value or self.value, self.layer)

    def map(self):
        """The value, which has to be a map."""
        _require(len(self.value.shape) == 3, "it does not stand over a map")
        return self.settled()

    def output_shape(self, *shapes):
        shapes = [(1, *shape) for shape in shapes or [self.value.shape]]
        shape = self.layer.compute_output_shape(*shapes)
        return tuple(shape[1:])

    def add(self, kind, inputs, words, shape, call=None, variables=()):
        return Node(
            kind,
            list(inputs),
            words,
            shape,
            self.layer,
            call,
            variables=tuple(variables),
        )


def _settle(value, layer=None):
    if _map_shape(value.shape) == value.node.shape:
        return value
    shape = _map_shape(value.shape)
    node = Node(
        "reshape", [value.node], shape, shape, layer or value.node.layer
    )
    node.call = lambda maps: tf.reshape(maps, [-1, *shape])
    return _Value(node, value.shape)


def _apply(call, value, *functions, single=False):
    """Applies functions of rows; if `single`, of single values."""
    if not single:
        value = call.settled(value)
    for function in functions:
        node = call.add("function", [value.node], (), value.node.shape)
        node.functions = [function]
        value = _Value(node, value.shape)
    return value


def _with_activation(call, value, activation):
    described = activations.describe(activation, len(value.shape))
    _require(described is not None, f"of its activation {activation!r}")
    if described == activations.LINEAR:
        return value
    words = ("activation", described.name, *described.arguments)
    single = described.name not in ("softmax", "log_softmax")
    function = activations.function(described)
    return _apply(call, value, _Function(words, function), single=single)


# -- Layers ------------------------------------------------------------------


def _identity(call):
    return call.value


def _augmentation(call):
    """What Keras leaves out of `predict`."""
    return call.value


def _activation(call):
    return _with_activation(call, call.value, call.layer)


def _affine(scale, offset):
    """A scale and an offset, of one value or one a channel."""
    words = [
        ",".join(repr(float(v)) for v in np.ravel(x)) for x in (scale, offset)
    ]
    scale, offset = (
        np.asarray(np.ravel(x), np.float32) for x in (scale, offset)
    )
    return _Function(("affine", *words), lambda rows: rows * scale + offset)


def _rescaling(call):
    layer, value = call.layer, call.value
    for values in layer.scale, layer.offset:
        shape = np.shape(values)
        _require(
            all(size == 1 for size in shape[:-1])
            and len(shape) <= len(value.shape) + 1
            and (np.size(values) in (1, value.shape[-1])),
            f"its scale or offset has the shape {shape}",
        )
    single = np.size(layer.scale) == np.size(layer.offset) == 1
    return _apply(
        call, value, _affine(layer.scale, layer.offset), single=single
    )


def _require_last_axis(call, what="axis"):
    axis = getattr(call.layer, what)
    rank = len(call.value.shape)
    _require(
        [a % (rank + 1) for a in np.ravel(axis)] == [rank],
        f"of its {what} {axis}",
    )


def _batch_normalization(call):
    layer = call.layer
    _require_last_axis(call)
    variables = [layer.gamma] if layer.scale else []
    variables += [layer.beta] if layer.center else []
    variables += [layer.moving_mean, layer.moving_variance]

    def normalize(rows):
        return tf.nn.batch_normalization(
            rows,
            layer.moving_mean.value,
            layer.moving_variance.value,
            layer.beta.value if layer.center else None,
            layer.gamma.value if layer.scale else None,
            layer.epsilon,
        )

    words = ("batch_norm", layer.epsilon, int(layer.scale), int(layer.center))
    return _apply(
        call, call.value, _Function(words, normalize, tuple(variables))
    )


def _normalization(call):
    layer = call.layer
    rank = len(call.value.shape)
    axes = [axis % (rank + 1) for axis in layer.axis]
    _require(axes in ([], [rank]), f"of its axis {layer.axis}")
    _require(not layer.invert, "of its invert")
    epsilon = keras.config.epsilon()
    if layer.input_mean is not None:
        mean, variance = np.float64(layer.mean), np.float64(layer.variance)
        scale = 1 / np.maximum(np.sqrt(variance), epsilon)
        return _apply(call, call.value, _affine(scale, -mean * scale))
    # What `adapt` finds is in variables: it may be called again.
    mean, variance = layer.adapt_mean, layer.adapt_variance

    def normalize(rows):
        size = tf.maximum(tf.sqrt(variance.value), epsilon)
        return (rows - mean.value) / size

    words = ("normalization", epsilon, math.prod(mean.shape))
    return _apply(
        call, call.value, _Function(words, normalize, (mean, variance))
    )


def _layer_normalization(call):
    layer = call.layer
    _require(not getattr(layer, "rms_scaling", False), "of its rms_scaling")
    rank = len(call.value.shape)
    axes = [axis % (rank + 1) for axis in np.ravel(layer.axis)]
    if rank > 1 and axes == list(range(1, rank + 1)):
        return _whole_normalization(call)
    _require_last_axis(call)
    variables = [layer.gamma] if layer.scale else []
    variables += [layer.beta] if layer.center else []

    def normalize(rows):
        mean, variance = tf.nn.moments(rows, [-1], keepdims=True)
        return tf.nn.batch_normalization(
            rows,
            mean,
            variance,
            layer.beta.value if layer.center else None,
            layer.gamma.value if layer.scale else None,
            layer.epsilon,
        )

    words = ("layer_norm", layer.epsilon, int(layer.scale), int(layer.center))
    return _apply(
        call, call.value, _Function(words, normalize, tuple(variables))
    )


def _add_group_norm(call, value, groups):
    shape, epsilon = value.node.shape, call.layer.epsilon

    def normalize(maps):
        grouped = tf.reshape(maps, [-1, *shape[:2], groups, shape[2] // groups])
        mean, variance = tf.nn.moments(grouped, [1, 2, 4], keepdims=True)
        normal = (grouped - mean) * tf.math.rsqrt(variance + epsilon)
        return tf.reshape(normal, [-1, *shape])

    node = call.add(
        "group_norm", [value.node], (groups, epsilon), shape, normalize
    )
    return _Value(node, value.shape)


def _add_weights(call, variable, value):
    """Adds a map that is a variable, of as many values as another."""
    shape = value.node.shape
    node = call.add("weights", [], shape, shape, variables=[variable])
    node.call = lambda: tf.reshape(variable.value, [-1, shape[2]])
    return _Value(node, value.shape)


def _whole_normalization(call):
    """A layer normalization over all axes."""
    layer = call.layer
    value = _add_group_norm(call, call.settled(), 1)
    for join, variable in ("multiply", layer.gamma), ("add", layer.beta):
        if variable is not None:
            weights = _add_weights(call, variable, value)
            value = _join(call, join, [value, weights])
    return value


def _group_normalization(call):
    layer, value = call.layer, call.settled()
    _require_last_axis(call)
    groups = value.shape[-1] if layer.groups == -1 else layer.groups
    value = _add_group_norm(call, value, groups)
    variables = [layer.gamma] if layer.scale else []
    variables += [layer.beta] if layer.center else []

    def scale(rows):
        if layer.scale:
            rows = rows * layer.gamma.value
        return rows + layer.beta.value if layer.center else rows

    words = ("scale", int(layer.scale), int(layer.center))
    return _apply(call, value, _Function(words, scale, tuple(variables)))


def _prelu(call):
    layer, value = call.layer, call.settled()
    shape = value.node.shape
    alpha = layer.alpha
    if math.prod(alpha.shape[:-1]) == 1 and alpha.shape[-1] == shape[2]:

        def shared(rows):
            return tf.where(
                rows > 0, rows, rows * tf.reshape(alpha.value, [-1])
            )

        return _apply(call, value, _Function(("prelu",), shared, (alpha,)))
    _require(
        math.prod(alpha.shape) == math.prod(shape),
        f"of its shared_axes {layer.shared_axes}",
    )
    return _join(call, "prelu", [value, _add_weights(call, alpha, value)])


def _check_weights(layer):
    _require(not getattr(layer, "lora_enabled", False), "LoRA is enabled on it")
    _require(not getattr(layer, "quantization_mode", None), "it is quantized")


def _window(layer, size, strides, dilation):
    return (*size, *strides, *dilation, 1, 1, layer.padding.upper())


def _add_conv(
    call, value, window, shape, kernel, bias, groups=1, transposed=False
):
    """Adds a convolution; `kernel` as TensorFlow's, `bias` or None."""

    def matrix():
        if not transposed:
            return kernel.value
        return tf.transpose(tf.reverse(kernel.value, [0, 1]), [0, 1, 3, 2])

    def convolve(rows, patches, relu, constant):
        weights = matrix()
        if groups > 1:  # a depthwise kernel has two last dimensions of filters
            weights = tf.reshape(
                weights, [*window[:2], value.node.shape[2] // groups, shape[2]]
            )
        return ops.patch_product(
            rows,
            patches,
            weights,
            bias.value if bias is not None else tf.zeros([0]),
            groups=groups,
            relu=relu,
            constant=constant,
        )

    words = (shape[2], groups, int(bias is not None), int(transposed))
    variables = [kernel] if bias is None else [kernel, bias]
    node = call.add("conv", [value.node], words, shape, convolve, variables)
    node.window = window
    return _Value(node, shape)


def _conv2d(call):
    layer, value = call.layer, call.map()
    _check_weights(layer)
    if getattr(layer, "threshold", 0):
        value = _limited(call, value, layer.threshold)
    output = _add_conv(
        call,
        value,
        _window(layer, layer.kernel_size, layer.strides, layer.dilation_rate),
        call.output_shape(),
        layer.kernel,
        layer.bias if layer.use_bias else None,
        layer.groups,
    )
    return _with_activation(call, output, layer.activation)


def _limited(call, value, threshold):
    """A copy of a map, as others may look at it too, with a threshold."""
    copy = _moved(call, value, [0, 0, 0, 0], value.shape)
    copy.node.threshold = threshold
    copy.node.is_input = True
    return copy


def _depthwise_conv2d(call):
    layer, value = call.layer, call.map()
    _check_weights(layer)
    output = _add_conv(
        call,
        value,
        _window(layer, layer.kernel_size, layer.strides, layer.dilation_rate),
        call.output_shape(),
        layer.kernel,
        layer.bias if layer.use_bias else None,
        groups=value.shape[2],
    )
    return _with_activation(call, output, layer.activation)


def _separable_conv2d(call):
    layer, value = call.layer, call.map()
    _check_weights(layer)
    shape = call.output_shape()
    depthwise = _add_conv(
        call,
        value,
        _window(layer, layer.kernel_size, layer.strides, layer.dilation_rate),
        (*shape[:2], value.shape[2] * layer.depth_multiplier),
        layer.depthwise_kernel,
        None,
        groups=value.shape[2],
    )
    output = _add_conv(
        call,
        depthwise,
        _IDENTITY_WINDOW,
        shape,
        layer.pointwise_kernel,
        layer.bias if layer.use_bias else None,
    )
    return _with_activation(call, output, layer.activation)


def _conv2d_transpose(call):
    layer, value = call.layer, call.map()
    _check_weights(layer)
    shape = call.output_shape()
    padding = []
    for axis in range(2):
        stride = layer.strides[axis]
        size = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis] + 1
        # The converse of a convolution from `shape` to the value's shape.
        grid = (value.shape[axis] - 1) * stride + 1
        before = 0
        if layer.padding == "same":
            total = (value.shape[axis] - 1) * stride + size - shape[axis]
            before = max(0, total) // 2
        first = size - 1 - before
        padding += [first, shape[axis] + size - 1 - grid - first]
    window = (
        *layer.kernel_size,
        *(1, 1),
        *layer.dilation_rate,
        *layer.strides,
        ",".join(map(str, padding)),
    )
    output = _add_conv(
        call,
        value,
        window,
        shape,
        layer.kernel,
        layer.bias if layer.use_bias else None,
        transposed=True,
    )
    return _with_activation(call, output, layer.activation)


def _add_pool(call, value, kind, window, shape):
    def pool(rows, patches):
        return ops.patch_pool(rows, patches, kind=kind)

    node = call.add("pool", [value.node], (kind,), shape, pool)
    node.window = window
    return _Value(node, shape)


def _pooling(call):
    layer, value = call.layer, call.map()
    kind = "max" if type(layer) is keras.layers.MaxPooling2D else "mean"
    window = _window(layer, layer.pool_size, layer.strides, (1, 1))
    return _add_pool(call, value, kind, window, call.output_shape())


def _moved(call, value, padding, shape):
    """A map with lines of zeros around it, or cut off."""
    window = (*_IDENTITY_WINDOW[:-1], ",".join(map(str, np.ravel(padding))))
    return _add_pool(call, value, "sum", window, shape)


def _zero_padding2d(call):
    return _moved(call, call.map(), call.layer.padding, call.output_shape())


def _cropping2d(call):
    cut = -np.asarray(call.layer.cropping)
    return _moved(call, call.map(), cut, call.output_shape())


def _center_crop(call):
    layer, value = call.layer, call.map()
    height, width, channels = value.shape
    more = height - layer.height, width - layer.width
    _require(min(more) >= 0, "it is larger than its input")
    cut = [(-(size // 2), size // 2 - size) for size in more]
    return _moved(call, value, cut, (layer.height, layer.width, channels))


def _repeated(call, value, height, width):
    """A map of which each position is there `height` times `width` times."""
    shape = value.node.shape
    # A window that sees one pixel of the grid at every place.
    padding = f"{height - 1},{height - 1},{width - 1},{width - 1}"
    window = (height, width, 1, 1, 1, 1, height, width, padding)
    shape = (shape[0] * height, shape[1] * width, shape[2])
    return _add_pool(call, value, "sum", window, shape)


def _up_sampling2d(call):
    layer, value = call.layer, call.map()
    if layer.interpolation == "nearest":
        return _repeated(call, value, *layer.size)
    _require(
        layer.interpolation == "bilinear",
        f"of its interpolation {layer.interpolation!r}",
    )
    # Along each axis, means of as many neighbours in a map where each position
    # is repeated: of two positions, each as often as it is near. Beyond the
    # border a mean sees nothing, as if the last position went on. Where `size`
    # is even the new positions lie between the repeated ones.
    for axis, size in enumerate(layer.size):
        if size == 1:
            continue
        strides, counts, padding = [1, 1], [1, 1], [0, 0, 0, 0]
        strides[axis] = 1 if size % 2 else 2
        counts[axis] = strides[axis] * size
        padding[2 * axis] = (counts[axis] - strides[axis]) // 2
        padding[2 * axis + 1] = padding[2 * axis]
        value = _repeated(call, value, *counts)
        height, width, channels = value.shape
        shape = (height // strides[0], width // strides[1], channels)
        window = (*counts, *strides, 1, 1, 1, 1, ",".join(map(str, padding)))
        value = _add_pool(call, value, "mean", window, shape)
    return value


def _add_global(call, value, kind):
    shape = (1, 1, value.node.shape[2])

    def pool(maps):
        reduce = tf.reduce_max if kind == "max" else tf.reduce_mean
        return reduce(maps, [1, 2], keepdims=True)

    node = call.add("global", [value.node], (kind,), shape, pool)
    return node


def _global_pooling(call):
    layer, value = call.layer, call.map()
    is_max = type(layer) is keras.layers.GlobalMaxPooling2D
    node = _add_global(call, value, "max" if is_max else "mean")
    return _Value(node, node.shape if layer.keepdims else node.shape[2:])


def _dense(call):
    layer, value = call.layer, call.value
    _check_weights(layer)
    bias = layer.bias if layer.use_bias else None
    units = layer.units
    if len(value.shape) == 1 and value.node.positions > 1:
        variables = [layer.kernel] if bias is None else [layer.kernel, bias]
        node = call.add(
            "dense",
            [value.node],
            (units, int(layer.use_bias)),
            (1, 1, units),
            variables=variables,
        )

        def multiply(maps):
            sums = tf.matmul(
                tf.reshape(maps, [-1, layer.kernel.shape[0]]),
                layer.kernel.value,
            )
            return sums[:, None, None]

        node.call = multiply
        output = _Value(node, (units,))
    else:
        value = call.settled()
        node = _add_conv(
            call,
            value,
            _IDENTITY_WINDOW,
            (*value.node.shape[:2], units),
            _Matrix(layer.kernel),
            bias,
        ).node
        node.variables = (layer.kernel, *node.variables[1:])
        output = _Value(node, (*value.shape[:-1], units))
    return _with_activation(call, output, layer.activation)


class _Matrix:
    """The kernel of a dense layer as that of a convolution of one pixel."""

    def __init__(self, kernel):
        self._kernel = kernel

    @property
    def value(self):
        return self._kernel.value[None, None]


def _permuted(call, axes):
    """A map, or one of lines, whose axes are others; all of them from 0 on."""
    rank = len(call.value.shape)
    if list(axes) == list(range(rank)):
        return call.value
    value = call.settled()
    _require(rank in (2, 3), f"its input has the shape {value.shape}")
    # Of two axes, those are the first one and the channels.
    order = axes if rank == 3 else (2 * axes[0], 1, 2 * axes[1])
    shape = tuple(value.node.shape[axis] for axis in order)

    def permute(maps):
        return tf.transpose(maps, [0, *(axis + 1 for axis in order)])

    words = (",".join(map(str, order)),)
    node = call.add("permute", [value.node], words, shape, permute)
    return _Value(node, tuple(value.shape[axis] for axis in axes))


def _permute(call):
    return _permuted(call, [axis - 1 for axis in call.layer.dims])


def _flatten(call):
    return _Value(call.value.node, (math.prod(call.value.shape),))


def _reshape(call):
    return _Value(call.value.node, call.output_shape())


_JOINS = {
    "add": lambda rows: functools.reduce(tf.add, rows),
    "subtract": lambda rows: functools.reduce(tf.subtract, rows),
    "multiply": lambda rows: functools.reduce(tf.multiply, rows),
    "average": lambda rows: functools.reduce(tf.add, rows) / len(rows),
    "maximum": lambda rows: functools.reduce(tf.maximum, rows),
    "minimum": lambda rows: functools.reduce(tf.minimum, rows),
    "concatenate": lambda rows: tf.concat(rows, -1),
    "prelu": lambda rows: tf.where(rows[0] > 0, rows[0], rows[0] * rows[1]),
}


def _join(call, kind, values):
    shapes = [value.shape for value in values]
    if kind == "concatenate":
        seen = (*shapes[0][:-1], sum(shape[-1] for shape in shapes))
    else:
        seen = np.broadcast_shapes(*shapes)
        _require(
            len(seen) <= 3 or set(shapes) == {seen},
            f"its inputs have the shapes {shapes}",
        )
    shape = _map_shape(seen)
    values = [_broadcast(call, value, kind, seen) for value in values]
    node = call.add(
        "join", [value.node for value in values], (kind,), shape, _JOINS[kind]
    )
    return _Value(node, seen)


def _broadcast(call, value, kind, seen):
    """A value that a join can take beside others."""
    # Keras puts the axes that are missing behind the batch.
    missing = len(seen) - len(value.shape)
    value = call.settled(_Value(value.node, (1,) * missing + value.shape))
    size, want = value.node.shape[:2], _map_shape(seen)[:2]
    if kind == "concatenate" or size in (want, (1, 1)):
        return value
    return _repeated(call, value, want[0] // size[0], want[1] // size[1])


def _merging(kind):
    def handle(call):
        if len(call.values) == 1:
            return call.value
        return _join(call, kind, call.values)

    return handle


def _require_tensors(call):
    """Refuses an operation that is called with anything but tensors."""
    # `_Value` is a tuple too.
    for argument in call.arguments:
        parts = [argument] if isinstance(argument, _Value) else argument
        _require(
            isinstance(parts, list | tuple)
            and all(isinstance(part, _Value) for part in parts),
            "of its arguments",
        )


def _concatenate(call):
    _require_tensors(call)
    values, axis = call.values, call.layer.axis
    if len(values) == 1:
        return call.value
    rank = len(call.value.shape)
    if axis % (rank + 1) == rank:
        return _join(call, "concatenate", values)
    # Along the first axis behind the batch, values follow each other.
    _require(axis % (rank + 1) == 1, f"of its axis {axis}")
    flat = [_Value(v.node, (math.prod(v.shape),)) for v in values]
    joined = _join(call, "concatenate", flat)
    count = sum(value.shape[0] for value in values)
    return _Value(joined.node, (count, *call.value.shape[1:]))


def _arithmetic(kind):
    """`x + y` and the like, of tensors or a tensor and a constant."""

    def handle(call):
        tensors = [isinstance(a, _Value) for a in call.arguments]
        _require(len(tensors) == 2 and any(tensors), "of its arguments")
        if all(tensors):
            _require(kind != "divide", "it divides by a tensor")
            shapes = [value.shape for value in call.arguments]
            _require(
                len(set(map(len, shapes))) == 1,
                f"its inputs have the shapes {shapes}: Keras would take the "
                "batch for another axis",
            )
            return _join(call, kind, call.arguments)
        value = call.value
        constant = call.arguments[tensors.index(False)]
        _require(
            np.ndim(constant) == 0 and not tf.is_tensor(constant),
            "of an argument that is neither a layer's output nor a number",
        )
        constant = float(constant)
        first = tensors[0]
        if kind == "add":
            function = _affine(1, constant)
        elif kind == "subtract":
            function = _affine(1, -constant) if first else _affine(-1, constant)
        elif kind == "multiply":
            function = _affine(constant, 0)
        elif kind in ("maximum", "minimum"):
            low, high = (
                (constant, np.inf) if kind == "maximum" else (-np.inf, constant)
            )
            join = _JOINS[kind]
            # At a tie the gradient is that of the first one.
            function = _clip(
                low,
                high,
                lambda rows: join(
                    [rows, constant] if first else [constant, rows]
                ),
            )
        else:
            _require(
                kind == "divide" and first and constant != 0, "of its arguments"
            )
            function = _affine(1 / constant, 0)
        return _apply(call, value, function, single=True)

    return handle


def _operation(activation):
    """An activation, whose arguments the operation holds."""
    _, *names = inspect.signature(activation).parameters

    def handle(call):
        _require_tensors(call)
        arguments = {
            name: getattr(call.layer, name)
            for name in names
            if hasattr(call.layer, name)
        }
        return _with_activation(
            call, call.value, functools.partial(activation, **arguments)
        )

    return handle


def _negative(call):
    _require_tensors(call)
    return _apply(call, call.value, _affine(-1, 0), single=True)


def _clip(low, high, function):
    _require(low <= high, f"of its bounds {low} and {high}")
    return _Function(("activation", "clip", low, high), function)


def _clipped(call):
    _require_tensors(call)
    bounds = call.layer.x_min, call.layer.x_max
    _require(
        all(np.ndim(x) == 0 and not tf.is_tensor(x) for x in bounds),
        "of its bounds, which are no numbers",
    )
    low, high = map(float, bounds)
    function = _clip(low, high, lambda rows: tf.clip_by_value(rows, low, high))
    return _apply(call, call.value, function, single=True)


def _absolute(call):
    _require_tensors(call)
    function = _Function(("activation", "leaky_relu", -1), tf.abs)
    return _apply(call, call.value, function, single=True)


def _square(call):
    _require_tensors(call)
    return _join(call, "multiply", [call.value, call.value])


def _power(call):
    base, exponent = call.arguments
    _require(
        isinstance(base, _Value)
        and np.ndim(exponent) == 0
        and not isinstance(exponent, _Value)
        and float(exponent) == 2,
        "it is no square",
    )
    return _join(call, "multiply", [base, base])


def _reduction(kind):
    """A pooling of all positions of a map."""

    def handle(call):
        _require_tensors(call)
        layer, value = call.layer, call.map()
        axes = [] if layer.axis is None else np.ravel(layer.axis) % 4
        _require(sorted(axes) == [1, 2], f"of its axis {layer.axis}")
        initial = getattr(layer, "initial", None)
        _require(initial is None, f"of its initial {initial}")
        node = _add_global(call, value, "max" if kind == "max" else "mean")
        output = _Value(node, node.shape if layer.keepdims else node.shape[2:])
        if kind == "sum":
            count = _affine(value.node.positions, 0)
            output = _apply(call, output, count, single=True)
        return output

    return handle


def _reshape_operation(call):
    """What gives the same values another shape."""
    _require_tensors(call)
    layer, shape = call.layer, call.value.shape
    batch, *rest = layer.compute_output_spec(
        keras.KerasTensor((None, *shape))
    ).shape
    _require(
        batch is None
        and None not in rest
        and math.prod(rest) == math.prod(shape)
        # Without an axis, `squeeze` takes a batch of one away.
        and getattr(layer, "axis", 0) is not None,
        "it does not keep frames apart",
    )
    return _Value(call.value.node, tuple(rest))


def _transpose(call):
    _require_tensors(call)
    axes = call.layer.axes
    rank = len(call.value.shape)
    order = [] if axes is None else [axis % (rank + 1) for axis in axes]
    _require(order[:1] == [0], f"of its axes {axes}")
    return _permuted(call, [axis - 1 for axis in order[1:]])


def _pad(call):
    layer, value = call.layer, call.map()
    constant = call.keywords.get("constant_values")
    _require(layer.mode == "constant" and not constant, "of its arguments")
    padding = list(map(tuple, layer.pad_width))
    _require(
        len(padding) == 4 and padding[0] == padding[3] == (0, 0),
        f"of its pad_width {layer.pad_width}",
    )
    (top, bottom), (left, right) = padding[1:3]
    height, width, channels = value.shape
    shape = (top + height + bottom, left + width + right, channels)
    return _moved(call, value, padding[1:3], shape)


def _layer_scale(call):
    gamma = call.layer.gamma
    scale = _Function(
        ("scale", 1, 0), lambda rows: rows * gamma.value, (gamma,)
    )
    return _apply(call, call.value, scale)


def _custom_scale(call):
    value, scaled = call.values
    scaled = _apply(call, scaled, _affine(call.layer.scale, 0), single=True)
    return _join(call, "add", [value, scaled])


_L = keras.layers

# How each kind of layer becomes nodes.
_LAYERS = {
    _L.Conv2D: _conv2d,
    IncrementalConv2D: _conv2d,
    _L.DepthwiseConv2D: _depthwise_conv2d,
    _L.SeparableConv2D: _separable_conv2d,
    _L.Conv2DTranspose: _conv2d_transpose,
    _L.Dense: _dense,
    IncrementalDense: _dense,
    _L.Rescaling: _rescaling,
    _L.Normalization: _normalization,
    _L.BatchNormalization: _batch_normalization,
    _L.LayerNormalization: _layer_normalization,
    _L.GroupNormalization: _group_normalization,
    _L.Activation: _activation,
    _L.ReLU: _activation,
    _L.LeakyReLU: _activation,
    _L.PReLU: _prelu,
    _L.ELU: _activation,
    _L.Softmax: _activation,
    _L.MaxPooling2D: _pooling,
    _L.AveragePooling2D: _pooling,
    _L.GlobalAveragePooling2D: _global_pooling,
    _L.GlobalMaxPooling2D: _global_pooling,
    _L.ZeroPadding2D: _zero_padding2d,
    _L.Cropping2D: _cropping2d,
    _L.UpSampling2D: _up_sampling2d,
    _L.Add: _merging("add"),
    _L.Subtract: _merging("subtract"),
    _L.Multiply: _merging("multiply"),
    _L.Average: _merging("average"),
    _L.Maximum: _merging("maximum"),
    _L.Minimum: _merging("minimum"),
    _L.Concatenate: _concatenate,
    _L.Permute: _permute,
    _L.Flatten: _flatten,
    _L.Reshape: _reshape,
    _L.Dropout: _identity,
    _L.SpatialDropout2D: _identity,
    _L.GaussianDropout: _identity,
    _L.GaussianNoise: _identity,
    _L.AlphaDropout: _identity,
    _L.ActivityRegularization: _identity,
    _L.Identity: _identity,
    _L.CenterCrop: _center_crop,
    # Those of keras.applications.
    internals.LayerScale: _layer_scale,
    internals.CustomScaleLayer: _custom_scale,
}
# What augments frames in training alone. Not all versions of Keras have all.
_LAYERS |= {
    getattr(_L, name): _augmentation
    for name in (
        *("RandomFlip", "RandomRotation", "RandomTranslation", "RandomZoom"),
        *("RandomShear", "RandomPerspective", "RandomElasticTransform"),
        *("RandomBrightness", "RandomContrast", "RandomHue"),
        *("RandomSaturation", "RandomColorDegeneration", "RandomColorJitter"),
        *("RandomGrayscale", "RandomInvert", "RandomPosterization"),
        *("RandomSharpness", "RandomGaussianBlur", "RandomErasing"),
        *("RandAugment", "AugMix", "MixUp", "CutMix"),
    )
    if hasattr(_L, name)
}
# The operations that functional models hold as layers.
_OPERATIONS = {
    "Add": _arithmetic("add"),
    "Subtract": _arithmetic("subtract"),
    "Multiply": _arithmetic("multiply"),
    "TrueDivide": _arithmetic("divide"),
    "Divide": _arithmetic("divide"),
    "Maximum": _arithmetic("maximum"),
    "Minimum": _arithmetic("minimum"),
    "Negative": _negative,
    "Absolute": _absolute,
    "Abs": _absolute,
    "Square": _square,
    "Power": _power,
    "Clip": _clipped,
    "Concatenate": _concatenate,
    "Mean": _reduction("mean"),
    "Sum": _reduction("sum"),
    "Max": _reduction("max"),
    "Amax": _reduction("max"),
    "Reshape": _reshape_operation,
    "ExpandDims": _reshape_operation,
    "Squeeze": _reshape_operation,
    "Transpose": _transpose,
    "Pad": _pad,
    "ReLU": _operation(keras.activations.relu),
    "Exp": _operation(keras.activations.exponential),
}
# And those that are called as activations are.
_OPERATIONS |= {
    name: _operation(getattr(keras.activations, function))
    for name, function in {
        "Celu": "celu",
        "Elu": "elu",
        "Gelu": "gelu",
        "HardShrink": "hard_shrink",
        "HardSigmoid": "hard_sigmoid",
        "HardSilu": "hard_silu",
        "HardTanh": "hard_tanh",
        "LeakyRelu": "leaky_relu",
        "LogSigmoid": "log_sigmoid",
        "LogSoftmax": "log_softmax",
        "Relu": "relu",
        "Relu6": "relu6",
        "Selu": "selu",
        "Sigmoid": "sigmoid",
        "Silu": "silu",
        "SoftShrink": "soft_shrink",
        "Softmax": "softmax",
        "Softplus": "softplus",
        "Softsign": "softsign",
        "SparsePlus": "sparse_plus",
        "SparseSigmoid": "sparse_sigmoid",
        "Squareplus": "squareplus",
        "Tanh": "tanh",
        "TanhShrink": "tanh_shrink",
        "Threshold": "threshold",
    }.items()
}

SUPPORTED = ", ".join(kind.__name__ for kind in _LAYERS)


# -- Models ------------------------------------------------------------------


def compile_model(model, shape):
    """Turns a model into a graph.

    Args:
        model: A built Sequential or functional model of one input.
        shape: That of a frame, `(height, width, channels)`.

    Returns:
        A `Graph`.

    Raises:
        ValueError: If the model or a layer is not supported.
    """
    check_model(model)
    layer = keras.layers.InputLayer(shape, dtype=model.inputs[0].dtype)
    frames = Node("frames", [], (), tuple(shape), layer)
    trace = []
    outputs = _walk(model, [_Value(frames, tuple(shape))], trace)
    outputs = [_settle(value) for value in outputs]
    nodes = _in_order([value.node for value in outputs])
    if frames not in nodes:
        raise ValueError(
            "Expected the outputs of `model` to depend on its input"
        )
    draft = _Draft(nodes, outputs, trace)
    for simplify in _fold_padding, _fold_functions, _fold_thresholds:
        simplify(draft)
    return Graph(draft, model)


def check_model(model):
    """Refuses what is no model that a runner can take apart."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected `model` to be a Keras model. Received: {model!r}"
        )
    if not model.built or not hasattr(model, "inputs"):
        raise ValueError(
            "Expected `model` to be a built Sequential or functional model. "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    if (own := internals.own_call(model)) is not None:
        raise ValueError(
            "Expected `model` to be a Sequential or functional model. "
            f"Received: {type(model).__name__} {model.name!r}, which has a "
            f"`{own}` of its own"
        )


def _walk(model, inputs, trace):
    """The values of a model's outputs, given those of its inputs.

    Adds to `trace` each layer and the value it gives, None if that is what it
    was given.
    """
    check_model(model)
    values = {
        id(tensor): value
        for tensor, value in zip(model.inputs, inputs, strict=True)
    }
    stack = list(reversed(model.outputs))
    while stack:
        tensor = stack[-1]
        if id(tensor) in values:
            stack.pop()
            continue
        call = internals.call_of(tensor)
        missing = [t for t in call.inputs if id(t) not in values]
        if missing:
            stack += reversed(missing)
            continue
        given = [values[id(t)] for t in call.inputs]
        arguments = keras.tree.map_structure(
            lambda a: values.get(id(a), a), call.positional
        )
        outputs = _of_layer(
            _Call(call.layer, given, arguments, call.arguments), call, trace
        )
        values.update(
            (id(t), v) for t, v in zip(call.outputs, outputs, strict=True)
        )
    return [values[id(tensor)] for tensor in model.outputs]


def _of_layer(call, symbolic, trace):
    """The values of a layer's outputs, in the place of symbolic ones."""
    layer = call.layer
    try:
        _require("call" not in vars(layer), "its `call` was replaced")
        handler = _LAYERS.get(type(layer))
        _require(
            not symbolic.arguments.get("training")
            # By default these are, in every model.
            or handler in (_augmentation, _center_crop),
            "it is called with training=True",
        )
        if isinstance(layer, keras.Model):
            return _walk(layer, call.values, trace)
        if handler is None:
            handler = _OPERATIONS.get(internals.operation_name(layer))
        _require(
            handler is not None and call.values,
            "it is not of a supported class",
        )
        dtype = getattr(layer, "compute_dtype", "float32")
        _require(dtype == "float32", f"it computes {dtype}")
        _require(
            getattr(layer, "data_format", None) != "channels_first",
            "it is channels_first",
        )
        _check_floats(call, symbolic, handler)
        value = handler(call)
        same = any(value.node is given.node for given in call.values)
        trace.append((layer, None if same else value))
        return [value]
    except Unsupported as error:
        raise ValueError(
            f"Runner does not support layer {layer.name!r} "
            f"({type(layer).__name__}): {error}. Supported are: {SUPPORTED}."
        ) from None


def _in_order(outputs):
    """The nodes that outputs need, each behind those that it looks at."""
    order, done = [], set()
    stack = list(reversed(outputs))
    while stack:
        node = stack[-1]
        missing = [i for i in node.inputs if id(i) not in done]
        if id(node) in done or not missing:
            stack.pop()
            if id(node) not in done:
                done.add(id(node))
                order.append(node)
        else:
            stack += reversed(missing)
    # The frames stand first, whatever looks at weights before.
    return sorted(order, key=lambda node: node.kind != "frames")


def _check_floats(call, symbolic, handler):
    """Refuses what Keras computes in integers, which wrap around."""
    if handler in (
        *(_identity, _augmentation, _flatten),
        *(_reshape, _reshape_operation),
    ):
        return
    kinds = {tensor.dtype for tensor in symbolic.outputs}
    # Of operations that is what they give. Layers say float32, and compute what
    # they are given, unless they convert it.
    if isinstance(call.layer, keras.Layer) and handler not in (
        _rescaling,
        _normalization,
        _center_crop,
    ):
        kinds |= {
            value.node.layer.dtype
            for value in call.values
            if value.node.kind == "frames" and not value.node.functions
        }
    _require(
        kinds == {"float32"},
        f"it computes {', '.join(kinds - {'float32'})}: a Rescaling layer "
        "before it would convert",
    )


# -- Passes, from nodes to nodes ---------------------------------------------


class _Draft:
    """What passes work on: nodes, outputs and where each layer's value is."""

    def __init__(self, nodes, outputs, trace):
        self.nodes = nodes
        self.outputs = outputs
        self.trace = trace

    def consumers(self):
        """By the id of a node, how often others and outputs look at it."""
        count = dict.fromkeys(map(id, self.nodes), 0)
        for node in self.nodes:
            for i in node.inputs:
                count[id(i)] += 1
        for value in self.outputs:
            count[id(value.node)] += 1
        return count

    def replace(self, instead):
        """Puts others in the place of nodes, by the ids of these."""

        def replaced(value):
            if value is None:
                return None
            return value._replace(node=instead.get(id(value.node), value.node))

        for node in self.nodes:
            node.inputs = [instead.get(id(i), i) for i in node.inputs]
        self.nodes = [node for node in self.nodes if id(node) not in instead]
        self.outputs = [replaced(value) for value in self.outputs]
        self.trace = [(layer, replaced(value)) for layer, value in self.trace]


def _fold_padding(draft):
    """Zeros around a map become the padding of the convolution behind them."""
    count = draft.consumers()
    instead = {}
    for node in draft.nodes:
        if node.kind != "conv" or node.window[-1] != "VALID":
            continue
        pad = node.inputs[0]
        if (
            isinstance(pad.layer, keras.layers.ZeroPadding2D)
            and pad.kind == "pool"
            and count[id(pad)] == 1
        ):
            node.window = (*node.window[:-1], pad.window[-1])
            instead[id(pad)] = pad.inputs[0]
    draft.replace(instead)


def _fold_functions(draft):
    """Functions of rows go to the node before, if nobody else looks at it.

    Else they go to a copy of its map.
    """
    count = draft.consumers()
    instead = {}
    for node in draft.nodes:
        if node.kind != "function":
            continue
        before = instead.get(id(node.inputs[0]), node.inputs[0])
        if count[id(node.inputs[0])] == 1:
            before.functions += node.functions
            instead[id(node)] = before
        else:
            node.kind = "pool"
            node.words = ("sum",)
            node.window = _IDENTITY_WINDOW
            node.call = functools.partial(ops.patch_pool, kind="sum")
    draft.replace(instead)


def _fold_thresholds(draft):
    """What a copy with a threshold is of needs none, if nobody else looks."""
    count = draft.consumers()
    instead = {}
    for node in draft.nodes:
        if not node.threshold:
            continue
        before = node.inputs[0]
        raw = before.kind != "frames" or not before.functions
        if count[id(before)] == 1 and not before.threshold and raw:
            before.threshold = node.threshold
            instead[id(node)] = before
    draft.replace(instead)


# -- Graphs ------------------------------------------------------------------


class Graph:
    """A model as what the runner's ops need.

    Attributes:
        nodes: `Node`s, the frames first.
        outputs: By output, its node and the shape of it that Keras sees.
        variables: Of all nodes, in the order of the lines.
        counts: How many tensors of each kind a structure has, as attributes of
            the ops.
        layers: By layer, in the order of the model, the node that has its
            value, None if that is what the layer was given.
    """

    def __init__(self, draft, model):
        self.nodes = nodes = draft.nodes
        self.outputs = outputs = draft.outputs
        self._form = internals.outputs_of(model)
        self._nested = isinstance(self._form, list | tuple | dict)
        self.layers = [
            (layer, value and value.node) for layer, value in draft.trace
        ]
        for number, node in enumerate(nodes):
            node.number = number
            node.per_frame = node.whole or (
                bool(node.inputs)
                and node.positions == 1
                and any(i.per_frame for i in node.inputs)
                and all(
                    i.positions == 1 and (i.per_frame or i.kind == "weights")
                    for i in node.inputs
                )
            )
        self.variables = [
            variable for node in nodes for variable in node.all_variables
        ]
        self.frame_shape = nodes[0].shape
        self.patched = [node for node in nodes if node.has_patches]
        self._shown = self._distinct(
            [node.inputs[0] for node in nodes if node.whole]
            + [value.node for value in outputs],
            lambda node: not node.per_frame,
        )
        self._states = self._distinct(
            [i for node in self.patched for i in node.inputs],
            lambda node: node.per_frame,
        )
        self.counts = {
            "num_patches": len(self.patched),
            "num_shown": len(self._shown),
            "num_states": len(self._states),
        }
        # Those that are counted, and what they are called.
        self.counted = [n for n in nodes if n.kind not in ("frames", "weights")]
        _, *self.names = _unique(["frames", *(n.name for n in self.counted)])
        # The maps whose rows are handed on, "frames" being what comes in.
        self.maps = {
            **dict(zip(self.names, self.counted, strict=True)),
            "frames": nodes[0],
        }

    @property
    def has_thresholds(self):
        return any(node.threshold for node in self.nodes)

    @staticmethod
    def _distinct(nodes, condition):
        found = {node.number: node for node in nodes if condition(node)}
        return [found[number] for number in sorted(found)]

    def lines(self, dtype, thresholds=False):
        """The nodes as the ops read them, for frames of a dtype.

        With `thresholds` or, as if all were 0, without them.
        """
        lines = []

        def add(*words):
            lines.append(" ".join(map(str, words)))

        for node in self.nodes:
            if node.kind == "frames":
                kind = "uint8" if dtype == tf.uint8 else "float"
                add("frames", *node.shape, kind)
            elif node.kind == "weights":
                add("weights", *node.shape)
            else:
                inputs = ",".join(str(i.number) for i in node.inputs)
                window, words = node.window, node.words
                if node.kind == "pool":
                    window, words = words, window
                add(node.kind, inputs, *window, *words)
            for function in node.functions:
                add(*function.words)
            if thresholds and node.threshold:
                add("threshold", node.threshold)
        for value in self.outputs:
            add("output", value.node.number)
        return lines

    @functools.cached_property
    def texts(self):
        """What a structure says of its network, by the dtype of its frames."""
        return {
            dtype: "\n".join(self.lines(dtype))
            for dtype in (tf.uint8, tf.float32)
        }

    def packed(self, outputs):
        """Outputs in the form that the model gives them."""
        if not self._nested:  # as usual
            (output,) = outputs
            return output
        return keras.tree.pack_sequence_as(self._form, list(outputs))

    def evaluate(self, structure):
        """The outputs of all frames of a structure, differentiably.

        Args:
            structure: A `Structure` of this graph.

        Returns:
            The outputs, `[T, ...]`, as the model gives them.
        """
        values = self.rows(structure)
        outputs = []
        for value in self.outputs:
            maps = self._maps(value.node, values[value.node], structure)
            outputs.append(tf.reshape(maps, [-1, *value.shape]))
        return self.packed(outputs)

    def rows(self, structure):
        """The rows of every node, as in `evaluate`.

        Returns:
            A dict by node. Of a map its distinct rows, `[U, C]`. Of a node of
            one value a frame `[T * positions, C]`, by frame in the order of
            `structure.order`.
        """
        values = {}
        constants = set()  # follow from the frames alone
        patches = dict(zip(self.patched, structure.patches, strict=True))
        for node in self.nodes:
            inputs = [values[i] for i in node.inputs]
            functions = node.functions
            if node.kind == "frames":
                rows = structure.pixels
            elif node.kind == "weights":
                rows = node.call()
            elif node.whole:
                rows = tf.reshape(
                    self._of_whole(node, inputs[0], structure),
                    [-1, node.shape[2]],
                )
            elif node.kind == "join":
                if not node.per_frame:
                    ids = patches[node]
                    inputs = [
                        ops.sparse_gather(rows, ids[:, i : i + 1])
                        for i, rows in enumerate(inputs)
                    ]
                rows = node.call(inputs)
            else:
                ids = (
                    _one_pixel_patches(node, inputs[0])
                    if node.per_frame
                    else patches[node]
                )
                if node.kind == "conv":
                    # The usual activation is cheaper where the product is.
                    relu = [f.words for f in functions[:1]] == [
                        ("activation", "relu")
                    ]
                    constant = node.inputs[0] in constants
                    rows = node.call(inputs[0], ids, relu, constant)
                    functions = functions[relu:]
                else:
                    rows = node.call(inputs[0], ids)
            for function in functions:
                rows = function.call(rows)
            values[node] = rows
            if constants.issuperset(node.inputs) and not node.all_variables:
                constants.add(node)
        return values

    def _shown_map(self, node, structure):
        return structure.shown[self._shown.index(node)]

    def _maps(self, node, rows, structure):
        """The map of a node in each frame, `[T, height, width, channels]`."""
        if not node.per_frame:
            ids = ops.frame_ids(
                *self._shown_map(node, structure),
                structure.order,
                height=node.shape[0],
                width=node.shape[1],
            )
            rows = ops.sparse_gather(rows, tf.reshape(ids, [-1, 1]))
        return tf.reshape(rows, [-1, *node.shape])

    def _of_whole(self, node, rows, structure):
        """What a node makes of a whole map, in each frame."""
        before = node.inputs[0]
        summed = node.kind == "dense" or node.words == ("mean",)
        if before.per_frame or not summed:
            maps = node.call(self._maps(before, rows, structure))
        else:
            # Each content of a tile is summed up once, and then over tiles, at
            # each frame.
            pairs, contents, runs = self._shown_map(before, structure)
            if node.kind == "dense":
                weights = tf.reshape(
                    node.variables[0].value,
                    [before.positions, before.shape[2], node.shape[2]],
                )
                sums = ops.content_product(rows, pairs, contents, weights)
            else:
                sums = ops.patch_pool(
                    tf.gather(rows, pairs[:, 1]), contents, kind="sum"
                )
            maps = tf.gather(
                ops.run_sum(sums, runs, structure.order), structure.order
            )
            if node.kind == "global":
                maps = maps / before.positions
        if node.kind == "dense" and len(node.variables) > 1:
            maps = maps + node.variables[1].value
        return maps


def _one_pixel_patches(node, rows):
    """The patches of a window over maps of one pixel, `[T, taps]`."""
    height, width, _, _, *dilation, _, _, padding = node.window
    before = [0, 0]
    if padding == "SAME":
        sizes = zip((height, width), dilation, strict=True)
        before = [(size - 1) * apart // 2 for size, apart in sizes]
    elif padding != "VALID":
        before = [int(word) for word in padding.split(",")][::2]
    taps = np.full((height, width), False)
    for y in range(height):
        for x in range(width):
            taps[y, x] = [y * dilation[0], x * dilation[1]] == before
    frames = tf.range(tf.shape(rows)[0])[:, None]
    return tf.where(taps.reshape(1, -1), frames, -1)


def _unique(names):
    """Numbers names that come again, as of a layer at two places.

    No number makes a name that another has by itself.
    """
    unique, taken, count = [], set(names), {}
    for name in names:
        candidate = name
        while name in count and candidate in taken:
            candidate = f"{name}_{count[name]}"
            count[name] += 1
        count.setdefault(name, 1)
        taken.add(candidate)
        unique.append(candidate)
    return unique
