"""A whole Keras model as one op, with activations reused at every layer."""

import itertools
import math
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import activations, internals, ops
from reuse_tf.layers import IncrementalConv2D, IncrementalDense

SUPPORTED = (
    "Rescaling, Conv2D, IncrementalConv2D, Activation, ReLU, LeakyReLU, ELU, "
    "Softmax, MaxPooling2D, AveragePooling2D, GlobalAveragePooling2D, "
    "BatchNormalization, Dropout, Flatten, Dense, IncrementalDense"
)


class LayerStats(NamedTuple):
    """What a runner has computed for one layer.

    Attributes:
        positions: Positions of all frames.
        changed: Positions whose patch was not that of the frame before.
        new_rows: Rows that were computed: for content reuse, patches never
            seen before; of the dense sum, its leaves that had to be updated.
        multiply_adds: Multiply-adds made.
        dense_multiply_adds: Multiply-adds that computing everything would
            have taken.
    """

    positions: int
    changed: int
    new_rows: int
    multiply_adds: int
    dense_multiply_adds: int


class RunnerStats(NamedTuple):
    """What a runner has done since it was made or reset.

    Attributes:
        frames: Frames stepped, those of every stream counted.
        layers: `LayerStats` by layer name, for convolutions, poolings and the
            layer that sums over positions.
        reuse: The kind of reuse at present. It is `"temporal"` under
            `reuse="content"` while content reuse does not pay.
        rows: Rows in use by table: `"frames"` and the layers' names.
        max_rows: The bound of each of them.
        clears: How often the tables were full and were cleared.
        switches: How often the kind of reuse was switched.
        seconds: Spent in `step`'s kernels, by part: `"structure"`, `"rows"`
            and `"dense"`.
    """

    frames: int
    layers: dict
    reuse: str
    rows: dict
    max_rows: dict
    clears: int
    switches: int
    seconds: dict


class Structure(NamedTuple):
    """What is distinct in a video, at every layer of a runner's model.

    It depends on the frames and not on the weights: one structure serves any
    number of passes. Integers but for the pixels; see `Runner.structure`.

    Attributes:
        pixels: The distinct pixels, float32 `[U, C]`.
        pairs: The distinct (position, row) pairs of the last map, int32
            `[D, 2]`, ordered by position.
        contents: What tiles of 4 x 4 positions of the last map show, as pairs:
            int32 `[E, 16]`, -1 where a tile reaches beyond the map.
        runs: When a tile shows a content: (tile, content, first frame, last
            frame + 1), int32 `[K, 4]`.
        order: By frame, its number in `runs`: int32 `[T]`, from 0 on. The
            frames of a stream have consecutive numbers. Outputs follow it: to
            have them in another order, permute it.
        patches: For each convolution and pooling, the distinct patches, as
            ids of the rows of the layer before: int32 `[M, taps]`, -1 being
            padding.
    """

    pixels: tf.Tensor
    pairs: tf.Tensor
    contents: tf.Tensor
    runs: tf.Tensor
    order: tf.Tensor
    patches: list


class Runner:
    """Runs a chain of Keras layers as one op, without dense activations.

    Ids and changed positions are passed from layer to layer inside C++; only
    positions whose patch changed are looked at, and with content reuse only
    patches never seen before, at any position, in any frame, of any stream,
    are multiplied. The outputs are those of the model, to float rounding; a
    result does not depend, to the bit, on what was run before or beside it.

    The model's own variables are used: when they change, the next output is
    of the new weights. Its layers and their other settings (activations,
    LoRA) are read once, when the runner is made.

    Safe to call from several threads, one of which is served at a time. A deep
    copy, or one by pickle, is a new runner of a copy of the model.

    Args:
        model: A built Sequential or functional Keras model that is a chain of
            `Rescaling`, `Conv2D`, `IncrementalConv2D`, `Activation`, `ReLU`,
            `LeakyReLU`, `ELU`, `Softmax`, `MaxPooling2D`, `AveragePooling2D`,
            `BatchNormalization` and `Dropout` layers (both as in inference),
            ended by `GlobalAveragePooling2D` or `Flatten`, and `Dense` or
            `IncrementalDense` layers after it (at least one after `Flatten`).
            float32, `channels_last`, with a fixed input shape `[H, W, C]`.
        reuse: `"content"`: equal patches share one row of activations.
            `"temporal"`: a position keeps its row while its patch does not
            change. Content reuse goes over to temporal by itself for a while
            when it does not pay, as with the noise of a camera.
        max_rows: The most rows that each layer's table holds under content
            reuse. When one is full, all are cleared. By default, all tables
            of a model together stay within some 400 MB.

    Raises:
        ValueError: If the model has a layer that is not supported, or an
            argument is not as above.

    Example:

    >>> runner = Runner(model)
    >>> logits = runner.step(frames)   # frames: uint8 [N, H, W, C]

    The gradient of a whole episode, at the cost of what is distinct in it:

    >>> with tf.GradientTape() as tape:
    ...     logits = runner(episode)   # episode: uint8 [T, H, W, C]
    ...     loss = ...
    >>> gradients = tape.gradient(loss, model.trainable_variables)
    """

    def __init__(self, model, reuse="content", max_rows=None):
        if reuse not in ("content", "temporal"):
            raise ValueError(
                "Expected `reuse` to be 'content' or 'temporal'. Received: "
                f"reuse={reuse!r}"
            )
        if max_rows is not None and not (
            isinstance(max_rows, (int, np.integer))
            and not isinstance(max_rows, bool)
            and 0 < max_rows < 2**31
        ):
            raise ValueError(
                "Expected `max_rows` to be a positive integer below 2^31, or "
                f"None. Received: max_rows={max_rows!r}"
            )
        self.model = model
        self.reuse = reuse
        self._chain = _Chain(model)
        self._max_rows = int(max_rows or 0)
        self._states = {}  # by the dtype of the frames
        self._last = self._state(tf.uint8)
        self._recorded = None  # the state that records

    def __reduce__(self):
        """A copy, or what is read from a pickle, is a new runner."""
        return Runner, (self.model, self.reuse, self._max_rows or None)

    def step(self, frames):
        """Computes the outputs for the next frame of each stream.

        Stateful and without gradient; the path of lowest latency. Streams are
        told apart by their place in the batch. When there are more than at
        the last call the further ones are new; when there are fewer the
        missing ones are forgotten.

        Args:
            frames: uint8 or float32 `[N, H, W, C]`, NumPy or tensor: one frame
                of each of N streams.

        Returns:
            float32 `[N, units]`: a NumPy array for a NumPy array, and a tensor
            for a tensor.

        Raises:
            ValueError: If `frames` are of another dtype.
            tf.errors.InvalidArgumentError: If they are of another shape.
        """
        if isinstance(frames, tf.Tensor):
            return ops.runner_step(self._state(frames.dtype).handle, frames)
        frames = np.ascontiguousarray(frames)
        if not (frames.dtype.isnative and frames.flags.aligned):
            frames = _native(frames)
        state = self._state(frames.dtype)
        if frames.shape[1:] == self._chain.frame_shape:
            outputs = np.empty((len(frames), self._chain.units), np.float32)
            if len(frames) == 0 or ops.step_numpy(
                state.address,
                frames.__array_interface__["data"][0],
                len(frames),
                outputs.__array_interface__["data"][0],
            ):
                return outputs
        return ops.runner_step(state.handle, frames).numpy()

    def __call__(self, frames):
        """Computes the outputs for whole videos; differentiable.

        Stateless, and independent of `step`. Under `tf.GradientTape` it gives
        the gradient of any loss on the outputs with respect to every weight
        of the model (batch normalization and dropout as in inference). Each
        distinct patch is multiplied once, each distinct pair of a position
        and a row meets the dense layer once, and the outputs are sums of
        these over time; the gradients likewise, backwards.

        Args:
            frames: One video in time order, uint8 or float32 `[T, H, W, C]`,
                NumPy or tensor; or a list of such videos, whose patches are
                then shared; or a `Structure`.

        Returns:
            float32 `[T, units]`; for a list of videos, a list of these.

        Raises:
            ValueError: If `frames` are of another dtype.
            tf.errors.InvalidArgumentError: If they are of another shape.
            NotImplementedError: By the tape, if a gradient with respect to
                frames is asked for, or a second derivative.
        """
        if isinstance(frames, (list, tuple)) and not isinstance(
            frames, Structure
        ):
            if not frames:
                return []
            # The outputs of a frame depend on that frame alone: several videos
            # are one.
            videos = [_tensor(video) for video in frames]
            outputs = self(tf.concat(videos, 0))
            sizes = tf.stack([tf.shape(video)[0] for video in videos])
            return tf.split(outputs, sizes, num=len(videos))
        if not isinstance(frames, Structure):
            frames = self.structure(frames)
        rows = frames.pixels
        patches = iter(frames.patches)
        for layer in self._chain.row_functions:
            rows = layer(rows, patches)
        return self._chain.sum_over_time(rows, frames)

    def structure(self, frames):
        """Finds what is distinct in a video, for several passes over it.

        Args:
            frames: uint8 or float32 `[T, H, W, C]`, NumPy or tensor.

        Returns:
            A `Structure`, to be given to the runner in place of the frames.
        """
        frames = _tensor(frames)
        return Structure(
            *ops.video_structure(
                frames,
                program=self._chain.program(frames.dtype),
                num_stages=self._chain.num_stages,
            )
        )

    def record(self, dtype=tf.uint8):
        """Has `step` leave the structure of its frames behind, from now on.

        Then `recorded` need not search the frames again. Clears the tables,
        so that the recording holds only what follows. A recording under way
        is dropped.

        Args:
            dtype: That of the frames to come, uint8 or float32.
        """
        state = self._state(dtype)
        if self._recorded not in (None, state):
            self.recorded()
        self._recorded = state
        ops.runner_record(state.handle)

    def recorded(self):
        """Ends a recording, and gives the memory of all tables back.

        Returns:
            The `Structure` of all frames that were stepped since `record` was
            called, in the order of the steps, and within a step in that of
            the streams. None if the tables were cleared in between, because
            one was full, weights changed, or content reuse did not pay; if
            tiles changed more than 16 million times, or showed more than 4
            million contents; if nothing was stepped; or if there is no
            recording.
        """
        if self._recorded is None:
            return None
        structure = Structure(
            *ops.runner_recording(
                self._recorded.handle, num_stages=self._chain.num_stages
            )
        )
        self._recorded = None
        return structure if len(structure.order) else None

    def reset_state(self, streams=None):
        """Forgets streams. Never needed for a right result.

        Args:
            streams: Integers: the streams whose next frames have nothing to do
                with their last ones. By default all, and then the tables and
                the counters too.
        """
        if streams is not None:
            streams = np.atleast_1d(np.asarray(streams))
            if streams.size == 0:
                return
            if (
                streams.dtype.kind not in "iu"
                or streams.min() < 0
                or streams.max() >= 2**31
            ):
                raise ValueError(
                    "Expected `streams` to be integers in [0, 2^31). "
                    f"Received: streams={streams.tolist()}"
                )
        for state in set(self._states.values()):
            ops.runner_reset(state.handle, [] if streams is None else streams)

    @property
    def stats(self):
        """What was done since the runner was made or reset: `RunnerStats`.

        Of frames of the dtype that was stepped last.
        """
        totals, seconds, maps, rows = (
            part.numpy().tolist()
            for part in ops.runner_stats(self._last.handle)
        )
        tables = ["frames", *self._chain.map_names[:-1]]
        return RunnerStats(
            frames=totals[0],
            layers={
                name: LayerStats(*line)
                for name, line in zip(self._chain.map_names, maps, strict=True)
            },
            reuse="content" if totals[3] else "temporal",
            rows={n: line[0] for n, line in zip(tables, rows, strict=True)},
            max_rows={n: line[1] for n, line in zip(tables, rows, strict=True)},
            clears=totals[1],
            switches=totals[2],
            seconds=dict(
                zip(("structure", "rows", "dense"), seconds, strict=True)
            ),
        )

    def _state(self, dtype):
        """The state for frames of a dtype, TensorFlow's or NumPy's."""
        state = self._states.get(dtype)
        if state is None:
            _check_dtype(dtype)
            kind = tf.as_dtype(dtype)
            state = _State(
                *ops.new_runner_state(
                    self._chain.program(kind),
                    self._chain.handles,
                    self.reuse,
                    self._max_rows,
                )
            )
            # A thread that came second takes the state of the first.
            state = self._states.setdefault(kind, state)
            self._states[np.dtype(kind.as_numpy_dtype)] = state
        self._last = state
        return state


class _State:
    """A runner's network: its resource handle, and where it is."""

    def __init__(self, handle, address):
        self.handle = handle
        self.address = address


def _check_dtype(dtype):
    """Refuses a dtype, TensorFlow's or NumPy's, that frames cannot have."""
    if dtype not in (tf.uint8, tf.float32):
        raise ValueError(
            f"Expected `frames` to be uint8 or float32. Received: {dtype}"
        )


def _native(frames):
    """An array in the order of bytes, and aligned, as the kernels read it."""
    _check_dtype(frames.dtype.newbyteorder("="))
    return np.require(frames, frames.dtype.newbyteorder("="), "CA")


def _tensor(frames):
    if isinstance(frames, np.ndarray):
        frames = _native(frames)
    frames = tf.convert_to_tensor(frames)
    _check_dtype(frames.dtype)
    return frames


class _Chain:
    """A Keras model as what the runner's ops need.

    For `step`: a program, and the variables in its order. For the
    differentiable path: functions of rows, one after the other.
    """

    def __init__(self, model):
        layers, shape = layers_of(model)
        if len(shape) != 3 or None in shape:
            raise ValueError(
                "Expected `model` to have an input of fixed shape [N, H, W, "
                f"C]. Received: {(None, *shape)}"
            )
        self.frame_shape = shape
        self.map_names = []
        self.variables = []
        self.num_stages = 0
        # (rows, patches) -> rows, taking the next of `patches` if need be.
        self.row_functions = []
        self._output_functions = []  # [T, *] -> [T, *]
        self._sum = None  # (rows, structure) -> [T, *]
        self._lines = []
        self._flat = False  # behind Flatten or global pooling
        self._bare_flatten = False  # behind Flatten, before a Dense
        for layer in layers:
            handler = _HANDLERS.get(type(layer))
            if handler is None:
                raise _unsupported(layer, "it is not of a supported class")
            if layer.compute_dtype != "float32":
                raise _unsupported(layer, f"it computes {layer.compute_dtype}")
            if getattr(layer, "data_format", None) == "channels_first":
                raise _unsupported(layer, "it is channels_first")
            handler(self, layer)
        if not self._flat or self._bare_flatten:
            raise ValueError(
                "Expected `model` to end in GlobalAveragePooling2D, or in "
                "Flatten and at least one Dense layer. Received: "
                f"{[type(layer).__name__ for layer in layers]}"
            )
        self.map_names = _unique(self.map_names)
        self.handles = [v.value.handle for v in self.variables]
        self.units = model.outputs[0].shape[-1]

    def program(self, dtype):
        height, width, channels = self.frame_shape
        kind = "uint8" if dtype == tf.uint8 else "float"
        return [f"frames {height} {width} {channels} {kind}", *self._lines]

    def sum_over_time(self, rows, structure):
        outputs = self._sum(rows, structure)
        for function in self._output_functions:
            outputs = function(outputs)
        return outputs

    def _add(self, *words):
        self._lines.append(" ".join(str(w) for w in words))

    def _require_map(self, layer):
        if self._flat:
            raise _unsupported(layer, "it stands behind the flattening")

    def _window(self, size, strides, dilation, padding):
        return (*size, *strides, *dilation, padding.upper())

    def _add_activation(self, layer, activation):
        described = activations.describe(activation)
        if described is None:
            raise _unsupported(layer, f"of its activation {activation!r}")
        if described != activations.LINEAR:
            self._add_function(
                layer,
                activation,
                "activation",
                described.name,
                *described.arguments,
            )

    def _add_function(self, layer, function, *words):
        """Adds a function of single rows."""
        if self._bare_flatten:
            raise _unsupported(layer, "it stands between Flatten and Dense")
        self._add(*words)
        if self._flat:
            self._output_functions.append(function)
        else:
            self.row_functions.append(lambda rows, patches: function(rows))

    def dropout(self, layer):
        pass

    def rescaling(self, layer):
        for values in layer.scale, layer.offset:
            shape = np.shape(values)
            if any(size != 1 for size in shape[:-1]) or len(shape) > (
                2 if self._flat else 4
            ):
                raise _unsupported(
                    layer, f"its scale or offset has the shape {shape}"
                )
        scale, offset = (
            ",".join(repr(float(v)) for v in np.ravel(values))
            for values in (layer.scale, layer.offset)
        )
        self._add_function(
            layer,
            lambda rows: rows * layer.scale + layer.offset,
            "affine",
            scale,
            offset,
        )

    def activation(self, layer):
        self._add_activation(layer, layer)

    def batch_normalization(self, layer):
        if list(np.ravel(layer.axis)) not in ([-1], [1 if self._flat else 3]):
            raise _unsupported(layer, f"of its axis {layer.axis}")
        self.variables += [layer.gamma] if layer.scale else []
        self.variables += [layer.beta] if layer.center else []
        self.variables += [layer.moving_mean, layer.moving_variance]

        def normalize(rows):
            return tf.nn.batch_normalization(
                rows,
                layer.moving_mean.value,
                layer.moving_variance.value,
                layer.beta.value if layer.center else None,
                layer.gamma.value if layer.scale else None,
                layer.epsilon,
            )

        self._add_function(
            layer,
            normalize,
            "batch_norm",
            layer.epsilon,
            int(layer.scale),
            int(layer.center),
        )

    def conv2d(self, layer):
        self._require_map(layer)
        if getattr(layer, "threshold", 0):
            raise _unsupported(layer, f"of its threshold {layer.threshold}")
        self._add(
            "conv",
            *self._window(
                layer.kernel_size,
                layer.strides,
                layer.dilation_rate,
                layer.padding,
            ),
            layer.filters,
            layer.groups,
            int(layer.use_bias),
        )
        self._add_weights(layer)
        self._add_stage(layer)
        # The usual activation is cheaper where the product is.
        relu = activations.describe(layer.activation) == activations.RELU

        def convolve(rows, patches):
            return ops.patch_product(
                rows,
                next(patches),
                layer.kernel.value,
                layer.bias.value if layer.use_bias else tf.zeros([0]),
                groups=layer.groups,
                relu=relu,
            )

        self.row_functions.append(convolve)
        if relu:
            self._add("activation relu")
        else:
            self._add_activation(layer, layer.activation)

    def pooling(self, layer):
        self._require_map(layer)
        kind = "max" if type(layer) is keras.layers.MaxPooling2D else "average"
        self._add(
            f"{kind}_pool",
            *self._window(
                layer.pool_size, layer.strides, (1, 1), layer.padding
            ),
        )
        self._add_stage(layer)
        self.row_functions.append(
            lambda rows, patches: ops.patch_pool(
                rows,
                next(patches),
                kind="max" if kind == "max" else "mean",
            )
        )

    def global_average(self, layer):
        self._require_map(layer)
        if layer.keepdims:
            raise _unsupported(layer, "of its keepdims")
        self._add("average")
        self._flat = True
        self.map_names.append(layer.name)
        positions = math.prod(layer.input.shape[1:3])

        def average(rows, structure):
            values = tf.gather(rows, structure.pairs[:, 1])
            sums = ops.patch_pool(values, structure.contents, kind="sum")
            return _over_time(sums, structure) / positions

        self._sum = average

    def flatten(self, layer):
        if self._flat:
            return
        self._add("flatten")
        self._flat = self._bare_flatten = True

    def dense(self, layer):
        if not self._flat:
            raise _unsupported(layer, "it does not stand behind a flattening")
        if getattr(layer, "quantization_mode", None):
            raise _unsupported(layer, "it is quantized")
        self._add("dense", layer.units, int(layer.use_bias))
        self._add_weights(layer)
        if self._bare_flatten:
            self._bare_flatten = False
            self.map_names.append(layer.name)

            def multiply(rows, structure):
                weights = tf.reshape(
                    layer.kernel.value, [-1, rows.shape[1], layer.units]
                )
                return _over_time(
                    ops.content_product(
                        rows, structure.pairs, structure.contents, weights
                    ),
                    structure,
                )

            self._sum = multiply
        else:
            self._output_functions.append(
                lambda values: tf.matmul(values, layer.kernel.value)
            )
        if layer.use_bias:
            self._output_functions.append(
                lambda values: values + layer.bias.value
            )
        self._add_activation(layer, layer.activation)

    def _add_stage(self, layer):
        self.map_names.append(layer.name)
        self.num_stages += 1

    def _add_weights(self, layer):
        if getattr(layer, "lora_enabled", False):
            raise _unsupported(layer, "LoRA is enabled on it")
        self.variables.append(layer.kernel)
        if layer.use_bias:
            self.variables.append(layer.bias)


_HANDLERS = {
    keras.layers.Rescaling: _Chain.rescaling,
    keras.layers.Conv2D: _Chain.conv2d,
    IncrementalConv2D: _Chain.conv2d,
    keras.layers.Activation: _Chain.activation,
    keras.layers.ReLU: _Chain.activation,
    keras.layers.LeakyReLU: _Chain.activation,
    keras.layers.ELU: _Chain.activation,
    keras.layers.Softmax: _Chain.activation,
    keras.layers.MaxPooling2D: _Chain.pooling,
    keras.layers.AveragePooling2D: _Chain.pooling,
    keras.layers.GlobalAveragePooling2D: _Chain.global_average,
    keras.layers.BatchNormalization: _Chain.batch_normalization,
    keras.layers.Dropout: _Chain.dropout,
    keras.layers.Flatten: _Chain.flatten,
    keras.layers.Dense: _Chain.dense,
    IncrementalDense: _Chain.dense,
}


def _over_time(values, structure):
    """From values by content, `[E, *]`, to their sums by frame, `[T, *]`."""
    sums = ops.run_sum(values, structure.runs, structure.order)
    return tf.gather(sums, structure.order)


def _unique(names):
    """Numbers names that come again, as of a layer at two places."""
    unique = []
    for name in names:
        candidates = itertools.chain(
            [name], (f"{name}_{i}" for i in itertools.count(1))
        )
        unique.append(next(c for c in candidates if c not in unique))
    return unique


def _unsupported(layer, why):
    return ValueError(
        f"Runner does not support layer {layer.name!r} "
        f"({type(layer).__name__}): {why}. Supported is a chain of: "
        f"{SUPPORTED}."
    )


def layers_of(model):
    """The layers of a chain in order, and the shape of a frame."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected `model` to be a Keras model. Received: {model!r}"
        )
    if not model.built or not hasattr(model, "inputs"):
        raise ValueError(
            "Expected `model` to be a built Sequential or functional model. "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    layers = []
    if (own := internals.own_call(model)) is not None:
        raise ValueError(
            "Expected `model` to be a Sequential or functional model. "
            f"Received: {type(model).__name__} {model.name!r}, which has a "
            f"`{own}` of its own"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            "Expected `model` to have one input and one output. Received: "
            f"{len(model.inputs)} and {len(model.outputs)}"
        )
    shape = model.inputs[0].shape
    tensor = model.outputs[0]
    # Along the history of the output, back to the input.
    while True:
        layer, inputs, arguments = internals.call_of(tensor)
        if isinstance(layer, keras.layers.InputLayer):
            break
        layers.append(layer)
        if len(inputs) != 1:
            raise _unsupported(layer, "it has several inputs")
        if arguments.get("training"):
            raise _unsupported(layer, "it is called with training=True")
        if "call" in vars(layer):
            raise _unsupported(layer, "its `call` was replaced")
        tensor = inputs[0]
    flat = []
    for layer in reversed(layers):
        if isinstance(layer, keras.Model):  # a nested model
            flat += layers_of(layer)[0]
        else:
            flat.append(layer)
    return flat, tuple(shape[1:])
