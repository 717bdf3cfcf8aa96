"""The layers' ops: run eagerly, or written into a graph, with their gradients.

A graph gets the plain layer, as a function whose attribute `_implements` says
which op computes the same. So a graph can be saved, exported, frozen, compiled
and loaded elsewhere like that of any Keras layer. graph_pass.cc puts the op in
where the graph is run in this process.
"""

import numbers
import secrets

import keras
import tensorflow as tf

from reuse_tf import activations, internals, ops


class LayerState:
    """What an incremental layer keeps from call to call.

    Attributes:
        id: By which graphs find it.
        handle: Of the resource; None where there is no eager execution
            (TensorFlow 1): there each graph keeps a state of its own.
    """

    def __init__(self):
        self.id = secrets.randbits(62)
        self.handle = None
        if tf.compat.v1.executing_eagerly_outside_functions():
            # Beside the graph that is being traced, if any: it outlives it.
            with tf.init_scope(), tf.device("CPU:0"):
                self.handle = ops.incremental_state(id=self.id)

    def reset(self):
        """Forgets the buffers and sets the counters to zero."""
        if self.handle is not None:
            ops.reset_state(self.handle)

    def stats(self):
        """The five counters."""
        if self.handle is None:
            return [0] * 5
        with tf.init_scope():
            return ops.state_stats(self.handle).numpy().tolist()


def incremental_conv2d(state, inputs, kernel, bias, **attributes):
    """A convolution of which only what changed is computed.

    Args:
        state: `LayerState` of the layer.
        inputs: float32 `[N, H, W, C]`.
        kernel: float32.
        bias: float32; `[0]` if not `use_bias`.
        **attributes: Of the op; see incremental_ops.cc.
    """
    return _incremental(
        "IncrementalConv2D",
        ops.incremental_conv2d,
        state,
        (inputs, kernel, bias),
        attributes,
    )


def incremental_dense(state, inputs, kernel, bias, **attributes):
    """A dense layer of which only what changed is computed: `[N, D]`."""
    return _incremental(
        "IncrementalDense",
        ops.incremental_dense,
        state,
        (inputs, kernel, bias),
        attributes,
    )


def _incremental(name, op, state, arguments, attributes):
    """Runs the op of a layer, or adds what stands for it to a graph."""
    if tf.executing_eagerly():
        return op(state.handle, *arguments, **attributes)
    plain = _PLAIN[name]
    # Each is a tensor of this very graph, also within a branch or a loop.
    arguments = [*map(tf.identity, arguments)]
    # In a graph, `custom_gradient` gives these no tangents.
    if internals.has_tangents(arguments):
        return plain(*arguments, attributes)
    function = tf.function(
        lambda *arguments: plain(*arguments, attributes),
        autograph=False,
        experimental_implements=_implements(name, state, attributes),
    )

    @tf.custom_gradient
    def call(*arguments):
        # Whoever differentiates is to see the gradient below alone.
        outputs = function(*map(tf.stop_gradient, arguments))
        return outputs, lambda upstream: _plain_gradient(
            plain, arguments, attributes, upstream
        )

    outputs = call(*arguments)
    internals.keep_gradient_with_graph(outputs)
    return outputs


def _implements(name, state, attributes):
    """What graph_pass.cc reads: a `NameAttrList`, in text form."""
    attributes = {**attributes, "state_id": state.id}
    return f'reuse_tf: name: "{name}" ' + " ".join(
        f'attr {{ key: "{key}" value {{ {_text(value)} }} }}'
        for key, value in attributes.items()
    )


def _text(value):
    """The text form of an `AttrValue`."""
    if isinstance(value, list | tuple):
        return f"list {{ {' '.join(map(_text, value))} }}"
    if isinstance(value, str):
        return f's: "{value}"'
    if isinstance(value, bool):
        return f"b: {str(value).lower()}"
    if isinstance(value, numbers.Integral):
        return f"i: {int(value)}"
    return f"f: {float(value)!r}"


def _plain_conv2d(inputs, kernel, bias, attributes):
    outputs = keras.ops.conv(
        inputs,
        kernel,
        strides=attributes["strides"],
        padding=attributes["padding"].lower(),
        dilation_rate=attributes["dilations"],
        data_format="channels_last",
    )
    return _with_bias_and_activation(outputs, bias, attributes)


def _plain_dense(inputs, kernel, bias, attributes):
    return _with_bias_and_activation(
        tf.matmul(inputs, kernel), bias, attributes
    )


def _with_bias_and_activation(outputs, bias, attributes):
    if attributes["use_bias"]:
        outputs = outputs + bias
    activation = activations.Activation(
        attributes["activation"], attributes["activation_arguments"]
    )
    return activations.function(activation)(outputs)


# What the ops of the layers compute, as Keras does.
_PLAIN = {"IncrementalConv2D": _plain_conv2d, "IncrementalDense": _plain_dense}


def _plain_gradient(plain, arguments, attributes, upstream):
    """The gradients of a plain layer to its inputs, kernel and bias."""
    # In the gradient of a loop or a branch they come from another graph, and
    # only what comes of them in this one can be watched.
    arguments = [*map(tf.identity, arguments)]
    with tf.GradientTape() as tape:
        tape.watch(arguments)
        outputs = plain(*arguments, attributes)
    return tape.gradient(
        outputs,
        arguments,
        upstream,
        unconnected_gradients=tf.UnconnectedGradients.ZERO,
    )


def _layer_gradient(op, upstream):
    """The gradient of a layer's op, in eager execution."""
    name = op.type.removeprefix("ReuseTF>")
    names = ["activation", "activation_arguments", "use_bias"]
    if name == "IncrementalConv2D":
        names += ["strides", "dilations", "padding"]
    attributes = {key: op.get_attr(key) for key in names}
    for key in {"activation", "padding"} & attributes.keys():
        attributes[key] = attributes[key].decode()
    _, *arguments = op.inputs
    # To the state a number, not None: forward-mode differentiation asks for it.
    return tf.zeros([]), *_plain_gradient(
        _PLAIN[name], arguments, attributes, upstream
    )


for _name in _PLAIN:
    tf.RegisterGradient(f"ReuseTF>{_name}")(_layer_gradient)
