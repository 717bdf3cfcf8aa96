"""Keras layers that recompute only what changed since their last call."""

import math
import sys
import threading
from typing import NamedTuple

import keras
import tensorflow as tf

from reuse_tf import activations, ops


class Stats(NamedTuple):
    """What a layer has computed since it was made or reset.

    Attributes:
        frames: Frames seen, those of every stream counted.
        positions: Positions of all these frames (of a dense layer, leaves of
            its tree of sums).
        recomputed_positions: How many of them were recomputed.
        multiply_adds: Multiply-adds made.
        dense_multiply_adds: Multiply-adds that recomputing everything would
            have taken.
    """

    frames: int = 0
    positions: int = 0
    recomputed_positions: int = 0
    multiply_adds: int = 0
    dense_multiply_adds: int = 0


# Threads that meet in a layer's first call are to share one state.
_making_a_state = threading.Lock()


class _Incremental:
    """What the incremental layers share: their state beside their weights.

    The state is a TensorFlow resource and not a weight, so that files and
    `set_weights` are those of the plain layer.
    """

    # Custom ops do not compile under XLA.
    supports_jit = False

    _state = None

    def reset_state(self):
        """Forgets all frames and sets the counters to zero.

        Never needed for a right result: it frees the buffers.
        """
        if self._state is not None:
            ops.reset_state(self._state)

    @property
    def stats(self):
        """What was computed since the layer was made or reset: `Stats`."""
        if self._state is None:
            return Stats()
        return Stats(*ops.state_stats(self._state).numpy().tolist())

    def _state_handle(self):
        if self._state is None:
            with _making_a_state:
                if self._state is None:
                    self._state = ops.new_state()
        return self._state

    def _reuses(self, inputs, training):
        """Whether this call reuses activations, or is a plain one."""
        if training is not None and (tf.is_tensor(training) or training):
            return False
        if not tf.is_tensor(inputs) or inputs.dtype != tf.float32:
            return False
        if self.compute_dtype != "float32":
            return False
        return tf.executing_eagerly() or not _must_stay_plain()

    def _run(self, op, inputs, fused, **arguments):
        """Runs a layer's op; `fused` is the `Activation` that it applies."""
        name, values = fused or activations.LINEAR
        return op(
            self._state_handle(),
            inputs,
            *self._weights(),
            activation=name,
            activation_arguments=values,
            use_bias=self.use_bias,
            **arguments,
        )

    def _weights(self):
        bias = self.bias if self.use_bias else tf.zeros([0])
        return _value(self.kernel), _value(bias)


def _value(weight):
    """What TensorFlow holds of a Keras variable: an op takes it faster."""
    return getattr(weight, "value", weight)


def _must_stay_plain():
    """Whether the graph being traced is for XLA or for `Model.export`.

    XLA cannot compile custom ops, and an exported model is to load without
    this package. Neither says so in a public way: XLA is seen by the control
    flow context of the graph, an export by who is calling.
    """
    graph = tf.compat.v1.get_default_graph()
    while graph is not None:
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    frame = sys._getframe()
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.startswith("keras.src.export"):
            return True
        if frame.f_code.co_name == "_default_save_signature":
            return True
        frame = frame.f_back
    return False


@keras.saving.register_keras_serializable(package="reuse_tf")
class IncrementalConv2D(_Incremental, keras.layers.Conv2D):
    """A 2D convolution that recomputes only the positions that changed.

    It is a `keras.layers.Conv2D` in every respect: the arguments, the weights
    and their order, the contents of saved files, and, to float rounding, the
    outputs and gradients. Outside training it keeps its input and its
    activations from call to call, compares each new input with the last one
    and recomputes those positions whose patch differs (temporal reuse; the
    paper, section 3, does so for one bounding box). It is right whatever it is
    called with, and fast when frames follow each other.

    Positions are compared bit by bit unless a threshold is set. A result does
    not depend, to the bit, on what was computed before it, unless the
    activation is a function of your own: that is applied to the whole output,
    and its rounding is TensorFlow's.

    With `training=True`, under XLA, in `Model.export()`, and for inputs or
    policies other than float32 and `channels_last`, it is the plain
    convolution.

    Args:
        filters: Number of filters.
        kernel_size: Integer, or two for height and width.
        threshold: Values that differ by at most this much from those last
            used count as unchanged, and the old values are used for them: the
            outputs are those of an input that is off by at most the
            threshold, however slowly a scene drifts. For noisy cameras. 0
            (the default) is exact.
        **kwargs: The other arguments of `keras.layers.Conv2D`: `strides`,
            `padding`, `data_format`, `dilation_rate`, `groups`, `activation`,
            `use_bias`, initializers, regularizers, constraints.

    Input shape:
        `[N, height, width, channels]`: one frame of each of N streams.

    Output shape:
        `[N, new_height, new_width, filters]`.

    Raises:
        ValueError: If an argument is not valid.

    Example:

    >>> layer = IncrementalConv2D(8, 3, padding="same", activation="relu")
    >>> frame = np.zeros([1, 20, 20, 1], "float32")
    >>> outputs = layer(frame)
    >>> frame[0, 10, 10] = 1
    >>> outputs = layer(frame)
    >>> layer.stats.recomputed_positions - 20 * 20
    9
    """

    def __init__(self, filters, kernel_size, *args, threshold=0.0, **kwargs):
        super().__init__(filters, kernel_size, *args, **kwargs)
        try:
            self.threshold = float(threshold)
        except (TypeError, ValueError):
            self.threshold = math.nan
        if not 0 <= self.threshold < math.inf:
            raise ValueError(
                "Invalid value for argument `threshold`. Expected a finite "
                f"number that is not negative. Received: threshold={threshold}"
            )

    def call(self, inputs, training=None):
        if (
            not self._reuses(inputs, training)
            or self.data_format != "channels_last"
        ):
            return super().call(inputs)
        fused = activations.describe(self.activation)
        outputs = self._run(
            ops.incremental_conv2d,
            inputs,
            fused,
            strides=self.strides,
            dilations=self.dilation_rate,
            padding=self.padding.upper(),
            groups=self.groups,
            threshold=self.threshold,
        )
        if 0 in outputs.shape[1:3]:
            return super().call(inputs)  # Raises, as the input is too small.
        return outputs if fused else self.activation(outputs)

    def get_config(self):
        return {**super().get_config(), "threshold": self.threshold}


@keras.saving.register_keras_serializable(package="reuse_tf")
class IncrementalDense(_Incremental, keras.layers.Dense):
    """A dense layer that recomputes only what its changed inputs reach.

    It is a `keras.layers.Dense` in every respect: arguments, weights, saved
    files, and, to float rounding, outputs and gradients. Outside training its
    output is the root of a fixed tree of sums over the inputs; inputs that
    differ from those of the last call have their leaves, and these leaves'
    ancestors, recomputed. Nothing is accumulated from call to call, so nothing
    drifts: a result does not depend, to the bit, on what was computed before
    (with an activation of your own, to rounding).

    With `training=True`, under XLA, in `Model.export()`, and for inputs or
    policies other than float32, it is the plain product.

    Args:
        units: Number of outputs.
        **kwargs: The other arguments of `keras.layers.Dense`.

    Input shape:
        `[N, ..., input_dim]`: one frame of each of N streams.

    Output shape:
        `[N, ..., units]`.
    """

    def call(self, inputs, training=None):
        if (
            not self._reuses(inputs, training)
            or self.quantization_mode is not None
        ):
            return super().call(inputs, training=training)
        fused = activations.describe(self.activation)
        flat = inputs
        if inputs.shape.rank != 2:
            flat = tf.reshape(inputs, [-1, inputs.shape[-1]])
        outputs = self._run(ops.incremental_dense, flat, fused)
        if inputs.shape.rank != 2:
            shape = tf.concat([tf.shape(inputs)[:-1], [self.units]], 0)
            outputs = tf.reshape(outputs, shape)
            outputs.set_shape([*inputs.shape[:-1], self.units])
        return outputs if fused else self.activation(outputs)


# Keras files a layer's weights under the name of its class. Under this one, the
# weights files of a plain model and of its incremental twin are the same.
IncrementalConv2D.__name__ = "Conv2D"
IncrementalDense.__name__ = "Dense"

_TWINS = {
    keras.layers.Conv2D: IncrementalConv2D,
    keras.layers.Dense: IncrementalDense,
}


def convert(model):
    """Replaces each `Conv2D` and `Dense` of a model by its incremental twin.

    Layers of other classes, subclasses of these two among them, and quantized
    layers are kept as they are.

    Args:
        model: A Sequential or functional Keras model, possibly nested.

    Returns:
        A new model of the same structure, names and weights. It shares nothing
        with `model` and is not compiled.

    Raises:
        ValueError: If `model` is not such a model.
    """
    return _copy(model, _TWINS)


def plain(model):
    """Replaces each incremental layer of a model by its plain twin.

    The inverse of `convert`, with the same argument, result and errors.
    """
    return _copy(model, {twin: cls for cls, twin in _TWINS.items()})


def _copy(model, twins):
    """Copies a model with layers of the classes that `twins` maps theirs to."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected `model` to be a Keras model. Received: {model!r}"
        )

    def twin(layer):
        config = layer.get_config()
        cls = twins.get(type(layer), type(layer))
        if getattr(layer, "quantization_mode", None):
            cls = type(layer)
        if cls is keras.layers.Conv2D:
            config.pop("threshold", None)  # The incremental one's alone.
        return cls.from_config(config)

    try:
        copy = keras.models.clone_model(
            model, clone_function=twin, recursive=True
        )
    except ValueError as error:
        raise ValueError(
            "Expected `model` to be a Sequential or functional model, whose "
            "layers can be replaced one by one. Received: "
            f"{model.__class__.__name__} {model.name!r}: {error}"
        ) from error
    if model.built:
        copy.set_weights(model.get_weights())
    return copy
