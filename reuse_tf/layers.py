"""Keras layers that recompute only what changed since their last call."""

import contextlib
import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from reuse_tf import activations, internals, layer_ops


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

    # Of the Keras layer that it makes incremental.
    kernel: Any
    bias: Any
    use_bias: bool
    data_format: str
    compute_dtype: str
    quantization_mode: str | None
    activation: Any

    _state = None

    def reset_state(self) -> None:
        """Forgets all frames and sets the counters to zero.

        Never needed for a right result: it frees the buffers.
        """
        if self._state is not None:
            self._state.reset()

    @property
    def stats(self) -> Stats:
        """What was computed since the layer was made or reset: `Stats`."""
        if self._state is None:
            return Stats()
        return Stats(*self._state.stats())

    def _made_state(self):
        if self._state is None:
            with _making_a_state:
                if self._state is None:
                    self._state = layer_ops.LayerState()
        return self._state

    # What the class computes with, by name. If any is overridden, by a subclass
    # or on one layer, all is left to Keras.
    _computing = {}

    def _why_plain(self):
        """Why the layer is a plain one even outside training, or None."""
        for name, own in self._computing.items():
            if name in vars(self) or getattr(type(self), name) is not own:
                return f"its `{name}` is overridden"
        if getattr(self, "quantization_mode", None) is not None:
            return f"it is quantized ({self.quantization_mode})"
        if self.compute_dtype != "float32":
            return f"it computes in {self.compute_dtype}"
        if getattr(self, "data_format", "channels_last") != "channels_last":
            return f"it is {self.data_format}"
        return None

    def _reuses(self, inputs, training):
        """Whether this call reuses activations, or is a plain one."""
        if training is not None and (tf.is_tensor(training) or training):
            return False
        if not isinstance(inputs, (tf.Tensor, tf.Variable)):
            return False  # sparse, say
        return inputs.dtype == tf.float32 and self._why_plain() is None

    def _run(self, op, inputs, fused, **arguments):
        """Runs a layer's op; `fused` is the `Activation` that it applies."""
        name, values = fused or activations.LINEAR
        return op(
            self._made_state(),
            inputs,
            *self._weights(),
            activation=name,
            activation_arguments=values,
            use_bias=bool(self.use_bias),
            **arguments,
        )

    def _fused(self):
        """The `Activation` that the op applies, or None: Keras does."""
        activation = self.activation
        if getattr(activation, "activity_regularizer", None) is not None:
            return None
        return activations.describe(activation)

    def _weights(self):
        bias = self.bias if self.use_bias else tf.zeros([0])
        return _value(self.kernel), _value(bias)


def _value(weight):
    """What TensorFlow holds of a Keras variable: an op takes it faster."""
    return getattr(weight, "value", weight)


def check_threshold(threshold: Any) -> float:
    """Returns a threshold as a float, or raises a `ValueError`."""
    value = math.nan
    if not isinstance(threshold, bool | str | bytes):
        with contextlib.suppress(TypeError, ValueError):
            value = float(threshold)
    if not 0 <= value < math.inf:
        raise ValueError(
            "Invalid value for argument `threshold`. Expected a finite number "
            f"that is not negative. Received: threshold={threshold!r}"
        )
    # The kernels take denormals for 0.
    return value if value >= 2.0**-126 else 0.0


@keras.saving.register_keras_serializable(package="reuse_tf")
class IncrementalConv2D(_Incremental, keras.layers.Conv2D):
    """A 2D convolution that recomputes only the positions that changed.

    It is a `keras.layers.Conv2D` in every respect: the arguments, the weights
    and their order, files of weights, and, to float rounding, the outputs and
    gradients. Outside training it keeps its input and its activations from call
    to call, compares each new input with the last one and recomputes those
    positions whose patch differs (temporal reuse; the paper, section 3, does so
    for one bounding box). It is right whatever it is called with, and fast when
    frames follow each other.

    Positions are compared bit by bit unless a threshold is set. A result does
    not depend, to the bit, on what was computed before it, unless the
    activation is a function of your own: that is applied to the whole output,
    and its rounding is TensorFlow's.

    It is the plain convolution with `training=True`, under XLA, for inputs or
    policies other than float32 and `channels_last`, and in a subclass that
    overrides `call`, `convolution_op` or `kernel`. In a graph, too, and so in
    whatever is saved, exported or frozen, it is the plain convolution; its
    place is taken when the graph is run in a process that has this package.

    `Model.predict(video)` takes a batch of frames for as many streams, which is
    right, but finds little to reuse: see `convert`.

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

    Examples:
        >>> layer = IncrementalConv2D(8, 3, padding="same", activation="relu")
        >>> frame = np.zeros([1, 20, 20, 1], "float32")
        >>> outputs = layer(frame)
        >>> frame[0, 10, 10] = 1
        >>> outputs = layer(frame)
        >>> layer.stats.recomputed_positions - 20 * 20
        9
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        *args: Any,
        threshold: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, *args, **kwargs)
        self.threshold = threshold

    @property
    def threshold(self) -> float:
        """What counts as unchanged. May be set; graphs keep what they have."""
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        self._threshold = check_threshold(value)

    def call(
        self, inputs: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        if not self._reuses(inputs, training):
            return super().call(inputs)
        fused = self._fused()
        outputs = self._run(
            layer_ops.incremental_conv2d,
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

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.threshold:  # Without one, it is the config of a `Conv2D`.
            config["threshold"] = self.threshold
        return config


@keras.saving.register_keras_serializable(package="reuse_tf")
class IncrementalDense(_Incremental, keras.layers.Dense):
    """A dense layer that recomputes only what its changed inputs reach.

    It is a `keras.layers.Dense` in every respect: arguments, weights, files of
    weights, and, to float rounding, outputs and gradients. Outside training its
    output is the root of a fixed tree of sums over the inputs; inputs that
    differ from those of the last call have their leaves, and these leaves'
    ancestors, recomputed. Nothing is accumulated from call to call, so nothing
    drifts: a result does not depend, to the bit, on what was computed before
    (with an activation of your own, to rounding).

    When it is the plain product, and what to know of graphs and of
    `Model.predict`, is as for `IncrementalConv2D`.

    Args:
        units: Number of outputs.
        **kwargs: The other arguments of `keras.layers.Dense`.

    Input shape:
        `[N, ..., input_dim]`: one frame of each of N streams.

    Output shape:
        `[N, ..., units]`.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None
    ) -> tf.Tensor:
        if not self._reuses(inputs, training):
            return super().call(inputs, training=training)
        fused = self._fused()
        flat = inputs
        if inputs.shape.rank != 2:
            depth = self.kernel.shape[0]
            if inputs.shape[-1] is None:
                unknown = [None] * (inputs.shape.rank - 1)
                inputs = tf.ensure_shape(inputs, [*unknown, depth])
            flat = tf.reshape(inputs, [-1, depth])
        outputs = self._run(layer_ops.incremental_dense, flat, fused)
        if inputs.shape.rank != 2:
            shape = tf.concat([tf.shape(inputs)[:-1], [self.units]], 0)
            outputs = tf.reshape(outputs, shape)
            outputs.set_shape([*inputs.shape[:-1], self.units])
        return outputs if fused else self.activation(outputs)

    def quantize(
        self, mode: Any = None, type_check: bool = True, config: Any = None
    ) -> Any:
        # Keras refuses subclasses of its own, as they may compute otherwise.
        type_check = type_check and type(self) is not IncrementalDense
        return super().quantize(mode, type_check=type_check, config=config)


IncrementalConv2D._computing = {
    name: getattr(IncrementalConv2D, name)
    for name in ("call", "convolution_op", "kernel")
}
IncrementalDense._computing = {
    name: getattr(IncrementalDense, name) for name in ("call", "kernel")
}

# The files of weights of a plain model and its incremental twin are the same.
internals.name_in_files(IncrementalConv2D, "Conv2D")
internals.name_in_files(IncrementalDense, "Dense")
