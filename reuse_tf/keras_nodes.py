"""How each kind of Keras layer becomes nodes: one table, and what is in it."""

import functools
import inspect
import math
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import activations, internals, ops
from reuse_tf.layers import IncrementalConv2D, IncrementalDense
from reuse_tf.nodes import (
    IDENTITY_WINDOW,
    Function,
    Node,
    Value,
    map_shape,
    require,
    settle,
)


class LayerCall(NamedTuple):
    """A layer that is called: what a handler is given.

    Attributes:
        layer: The layer.
        values: What it is called with, `Value`s.
        arguments: Its positional arguments, `Value`s in their places.
        keywords: Its keyword arguments, likewise.
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
        return settle(value or self.value, self.layer)

    def map(self):
        """The value, which has to be a map."""
        require(len(self.value.shape) == 3, "it does not stand over a map")
        return self.settled()

    def output_shape(self, *shapes):
        shapes = [(1, *shape) for shape in shapes or [self.value.shape]]
        try:
            shape = self.layer.compute_output_shape(*shapes)
        except ValueError as error:
            # Of a model that takes frames of any size.
            raise ValueError(
                "Expected `frames` to be of a size that layer "
                f"{self.layer.name!r} can take. Received: what comes to it as "
                f"{' and '.join(str(shape[1:]) for shape in shapes)}: {error}"
            ) from error
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


def _apply(call, value, *functions, single=False):
    """Applies functions of rows; if `single`, of single values."""
    if not single:
        value = call.settled(value)
    for function in functions:
        node = call.add("function", [value.node], (), value.node.shape)
        node.functions = [function]
        value = Value(node, value.shape)
    return value


def _with_activation(call, value, activation):
    described = activations.describe(activation, len(value.shape))
    require(described is not None, f"of its activation {activation!r}")
    if described == activations.LINEAR:
        return value
    words = ("activation", described.name, *described.arguments)
    single = described.name not in ("softmax", "log_softmax")
    function = activations.function(described)
    return _apply(call, value, Function(words, function), single=single)


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
    return Function(("affine", *words), lambda rows: rows * scale + offset)


def _rescaling(call):
    layer, value = call.layer, call.value
    for values in layer.scale, layer.offset:
        shape = np.shape(values)
        require(
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
    require(
        [a % (rank + 1) for a in np.ravel(axis)] == [rank],
        f"of its {what} {axis}",
    )


def _gamma_and_beta(layer):
    """The variables of a normalization, as far as it has them."""
    gamma = [layer.gamma] if layer.scale else []
    return gamma + ([layer.beta] if layer.center else [])


def _scaled(layer, rows, mean, variance):
    """Normalized rows, with the scale and the offset of a layer."""
    return tf.nn.batch_normalization(
        rows,
        mean,
        variance,
        layer.beta.value if layer.center else None,
        layer.gamma.value if layer.scale else None,
        layer.epsilon,
    )


def _normalized(call, name, normalize, *more):
    """Adds a normalization of rows, of its variables and others."""
    layer = call.layer
    words = (name, layer.epsilon, int(layer.scale), int(layer.center))
    variables = (*_gamma_and_beta(layer), *more)
    return _apply(call, call.value, Function(words, normalize, variables))


def _batch_normalization(call):
    layer = call.layer
    _require_last_axis(call)

    def normalize(rows):
        return _scaled(
            layer, rows, layer.moving_mean.value, layer.moving_variance.value
        )

    return _normalized(
        call, "batch_norm", normalize, layer.moving_mean, layer.moving_variance
    )


def _normalization(call):
    layer = call.layer
    rank = len(call.value.shape)
    axes = [axis % (rank + 1) for axis in layer.axis]
    require(axes in ([], [rank]), f"of its axis {layer.axis}")
    require(not layer.invert, "of its invert")
    epsilon = keras.config.epsilon()
    if layer.input_mean is not None:
        mean, variance = np.float64(layer.mean), np.float64(layer.variance)
        scale = 1 / np.maximum(np.sqrt(variance), epsilon)
        # Near the mean a difference is exact, which one of products is not.
        centered = _apply(call, call.value, _affine(1, -mean))
        return _apply(call, centered, _affine(scale, 0))
    # What `adapt` finds is in variables: it may be called again.
    mean, variance = layer.adapt_mean, layer.adapt_variance

    def normalize(rows):
        size = tf.maximum(tf.sqrt(variance.value), epsilon)
        return (rows - mean.value) / size

    words = ("normalization", epsilon, math.prod(mean.shape))
    return _apply(
        call, call.value, Function(words, normalize, (mean, variance))
    )


def _layer_normalization(call):
    layer = call.layer
    require(not getattr(layer, "rms_scaling", False), "of its rms_scaling")
    rank = len(call.value.shape)
    axes = [axis % (rank + 1) for axis in np.ravel(layer.axis)]
    if rank > 1 and axes == list(range(1, rank + 1)):
        return _whole_normalization(call)
    _require_last_axis(call)

    def normalize(rows):
        mean, variance = tf.nn.moments(rows, [-1], keepdims=True)
        return _scaled(layer, rows, mean, variance)

    return _normalized(call, "layer_norm", normalize)


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
    return Value(node, value.shape)


def _add_weights(call, variable, value):
    """Adds a map that is a variable, of as many values as another."""
    shape = value.node.shape
    node = call.add("weights", [], shape, shape, variables=[variable])
    node.call = lambda: tf.reshape(variable.value, [-1, shape[2]])
    return Value(node, value.shape)


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
    variables = _gamma_and_beta(layer)

    def scale(rows):
        if layer.scale:
            rows = rows * layer.gamma.value
        return rows + layer.beta.value if layer.center else rows

    words = ("scale", int(layer.scale), int(layer.center))
    return _apply(call, value, Function(words, scale, tuple(variables)))


def _prelu(call):
    layer, value = call.layer, call.settled()
    shape = value.node.shape
    alpha = layer.alpha
    if math.prod(alpha.shape[:-1]) == 1 and alpha.shape[-1] == shape[2]:

        def shared(rows):
            return tf.where(
                rows > 0, rows, rows * tf.reshape(alpha.value, [-1])
            )

        return _apply(call, value, Function(("prelu",), shared, (alpha,)))
    require(
        math.prod(alpha.shape) == math.prod(shape),
        f"of its shared_axes {layer.shared_axes}",
    )
    return _join(call, "prelu", [value, _add_weights(call, alpha, value)])


def _check_weights(layer):
    require(not getattr(layer, "lora_enabled", False), "LoRA is enabled on it")
    require(not getattr(layer, "quantization_mode", None), "it is quantized")


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
    return Value(node, shape)


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
        IDENTITY_WINDOW,
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
    return Value(node, shape)


def _pooling(call):
    layer, value = call.layer, call.map()
    kind = "max" if type(layer) is keras.layers.MaxPooling2D else "mean"
    window = _window(layer, layer.pool_size, layer.strides, (1, 1))
    return _add_pool(call, value, kind, window, call.output_shape())


def _moved(call, value, padding, shape):
    """A map with lines of zeros around it, or cut off."""
    window = (*IDENTITY_WINDOW[:-1], ",".join(map(str, np.ravel(padding))))
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
    require(min(more) >= 0, "it is larger than its input")
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
    require(
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
    return Value(node, node.shape if layer.keepdims else node.shape[2:])


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
        output = Value(node, (units,))
    else:
        value = call.settled()
        node = _add_conv(
            call,
            value,
            IDENTITY_WINDOW,
            (*value.node.shape[:2], units),
            _Matrix(layer.kernel),
            bias,
        ).node
        node.variables = (layer.kernel, *node.variables[1:])
        output = Value(node, (*value.shape[:-1], units))
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
    require(rank in (2, 3), f"its input has the shape {value.shape}")
    # Of two axes, those are the first one and the channels.
    order = axes if rank == 3 else (2 * axes[0], 1, 2 * axes[1])
    shape = tuple(value.node.shape[axis] for axis in order)

    def permute(maps):
        return tf.transpose(maps, [0, *(axis + 1 for axis in order)])

    words = (",".join(map(str, order)),)
    node = call.add("permute", [value.node], words, shape, permute)
    return Value(node, tuple(value.shape[axis] for axis in axes))


def _permute(call):
    return _permuted(call, [axis - 1 for axis in call.layer.dims])


def _flatten(call):
    return Value(call.value.node, (math.prod(call.value.shape),))


def _reshape(call):
    return Value(call.value.node, call.output_shape())


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
        try:
            seen = np.broadcast_shapes(*shapes)
        except ValueError:
            seen = None
        require(
            seen is not None and (len(seen) <= 3 or set(shapes) == {seen}),
            f"its inputs have the shapes {shapes}",
        )
    shape = map_shape(seen)
    values = [_broadcast(call, value, kind, seen) for value in values]
    node = call.add(
        "join", [value.node for value in values], (kind,), shape, _JOINS[kind]
    )
    return Value(node, seen)


def _broadcast(call, value, kind, seen):
    """A value that a join can take beside others."""
    # Keras puts the axes that are missing behind the batch.
    missing = len(seen) - len(value.shape)
    value = call.settled(Value(value.node, (1,) * missing + value.shape))
    size, want = value.node.shape[:2], map_shape(seen)[:2]
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
    for argument in call.arguments:
        require(
            all(isinstance(part, Value) for part in _parts(argument)),
            "of its arguments",
        )


def _concatenate(call):
    _require_tensors(call)
    values, axis = call.values, call.layer.axis
    if len(values) == 1:
        return call.value
    rank = len(call.value.shape)
    if axis % (rank + 1) == rank:
        shapes = [value.shape for value in values]
        require(
            len({shape[:-1] for shape in shapes}) == 1,
            f"its inputs have the shapes {shapes}",
        )
        return _join(call, "concatenate", values)
    # Along the first axis behind the batch, values follow each other.
    require(axis % (rank + 1) == 1, f"of its axis {axis}")
    flat = [Value(v.node, (math.prod(v.shape),)) for v in values]
    joined = _join(call, "concatenate", flat)
    count = sum(value.shape[0] for value in values)
    return Value(joined.node, (count, *call.value.shape[1:]))


def _arithmetic(kind):
    """`x + y` and the like, of tensors or a tensor and a constant."""

    def handle(call):
        tensors = [isinstance(a, Value) for a in call.arguments]
        require(len(tensors) == 2 and any(tensors), "of its arguments")
        if all(tensors):
            require(kind != "divide", "it divides by a tensor")
            shapes = [value.shape for value in call.arguments]
            require(
                len(set(map(len, shapes))) == 1,
                f"its inputs have the shapes {shapes}: Keras would take the "
                "batch for another axis",
            )
            return _join(call, kind, call.arguments)
        value = call.value
        constant = call.arguments[tensors.index(False)]
        require(
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
            require(
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
    require(low <= high, f"of its bounds {low} and {high}")
    return Function(("activation", "clip", low, high), function)


def _clipped(call):
    _require_tensors(call)
    bounds = call.layer.x_min, call.layer.x_max
    require(
        all(np.ndim(x) == 0 and not tf.is_tensor(x) for x in bounds),
        "of its bounds, which are no numbers",
    )
    low, high = map(float, bounds)
    function = _clip(low, high, lambda rows: tf.clip_by_value(rows, low, high))
    return _apply(call, call.value, function, single=True)


def _absolute(call):
    _require_tensors(call)
    function = Function(("activation", "leaky_relu", -1), tf.abs)
    return _apply(call, call.value, function, single=True)


def _square(call):
    _require_tensors(call)
    return _join(call, "multiply", [call.value, call.value])


def _power(call):
    base, exponent = call.arguments
    require(
        isinstance(base, Value)
        and not isinstance(exponent, Value)
        and np.ndim(exponent) == 0
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
        require(sorted(axes) == [1, 2], f"of its axis {layer.axis}")
        initial = getattr(layer, "initial", None)
        require(initial is None, f"of its initial {initial}")
        node = _add_global(call, value, "max" if kind == "max" else "mean")
        output = Value(node, node.shape if layer.keepdims else node.shape[2:])
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
    require(
        batch is None
        and None not in rest
        and math.prod(rest) == math.prod(shape)
        # Without an axis, `squeeze` may take a batch of one away.
        and getattr(layer, "axis", 0) not in (None, (), []),
        "it does not keep frames apart",
    )
    return Value(call.value.node, tuple(rest))


def _transpose(call):
    _require_tensors(call)
    axes = call.layer.axes
    rank = len(call.value.shape)
    order = [] if axes is None else [axis % (rank + 1) for axis in axes]
    require(order[:1] == [0], f"of its axes {axes}")
    return _permuted(call, [axis - 1 for axis in order[1:]])


def _pad(call):
    layer, value = call.layer, call.map()
    constant = call.keywords.get("constant_values")
    require(layer.mode == "constant" and not constant, "of its arguments")
    padding = list(map(tuple, layer.pad_width))
    require(
        len(padding) == 4 and padding[0] == padding[3] == (0, 0),
        f"of its pad_width {layer.pad_width}",
    )
    (top, bottom), (left, right) = padding[1:3]
    height, width, channels = value.shape
    shape = (top + height + bottom, left + width + right, channels)
    return _moved(call, value, padding[1:3], shape)


def _layer_scale(call):
    gamma = call.layer.gamma
    scale = Function(("scale", 1, 0), lambda rows: rows * gamma.value, (gamma,))
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

# What Keras calls with training=True by default, in every model.
_TRAINING = {_augmentation, _center_crop}
# What keeps values as they are, integers too, and what makes floats of them.
_MOVING = {_identity, _augmentation, _flatten, _reshape, _reshape_operation}
_CONVERTING = {_rescaling, _normalization, _center_crop}


def check_call(layer, symbolic):
    """Refuses a layer, or a model, that is not called as in inference.

    Args:
        layer: A Keras layer, or an operation.
        symbolic: The `internals.Call` of it.

    Raises:
        Unsupported: If it is so.
    """
    if not isinstance(layer, keras.Model):  # of which `check_model` does
        replaced = internals.replaced_method(layer)
        require(replaced is None, f"its `{replaced}` was replaced")
    known = isinstance(layer, keras.Model) or type(layer) in _LAYERS
    require(
        not symbolic.arguments.get("training")
        or not known  # for which there is another reason
        or _LAYERS.get(type(layer)) in _TRAINING,
        "it is called with training=True",
    )


def value_of(call, symbolic):
    """Adds the nodes of a layer that is called.

    Args:
        call: A `LayerCall`.
        symbolic: The same call as the model has it, an `internals.Call`.

    Returns:
        The `Value` of its output.

    Raises:
        Unsupported: If there are no nodes for it.
    """
    layer = call.layer
    if isinstance(layer, keras.Layer):
        _check_arguments(call)
    handler = _LAYERS.get(type(layer)) or _OPERATIONS.get(
        internals.operation_name(layer)
    )
    require(
        handler is not None and call.values, "it is not of a supported class"
    )
    dtype = getattr(layer, "compute_dtype", "float32")
    require(dtype == "float32", f"it computes {dtype}")
    require(
        getattr(layer, "data_format", None) != "channels_first",
        "it is channels_first",
    )
    _check_floats(call, symbolic, handler)
    return handler(call)


def _check_arguments(call):
    """Refuses a layer that is called with more than tensors of the model."""
    keywords = {k: v for k, v in call.keywords.items() if k != "training"}
    mask = keywords.pop("mask", None)
    given = [*call.arguments, *keywords.values()]
    require(
        len(given) == 1
        and mask is None
        and all(isinstance(part, Value) for part in _parts(given[0])),
        "of its arguments",
    )


def _parts(argument):
    """The parts of a list; `Value`s are tuples too, but are their own parts."""
    if isinstance(argument, list | tuple) and not isinstance(argument, Value):
        return argument
    return [argument]


def _check_floats(call, symbolic, handler):
    """Refuses what Keras computes in integers, which wrap around."""
    if handler in _MOVING:
        return
    kinds = {tensor.dtype for tensor in symbolic.outputs}
    # Of operations that is what they give. Layers say float32, and compute what
    # they are given, unless they convert it.
    if isinstance(call.layer, keras.Layer) and handler not in _CONVERTING:
        kinds |= {
            value.node.layer.dtype
            for value in call.values
            if value.node.kind == "frames" and not value.node.functions
        }
    require(
        kinds == {"float32"},
        f"it computes {', '.join(kinds - {'float32'})}: a Rescaling layer of "
        "float32 before it would convert",
    )
