"""All that this package needs of Keras and TensorFlow and is not public.

Each function says what it relies on. tests/test_internals.py fails when a new
version no longer does it.
"""

import inspect
import weakref
from typing import NamedTuple

import keras
import tensorflow as tf
from keras.src import ops as operations
from keras.src.activations import activations
from keras.src.applications.convnext import LayerScale
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer
from keras.src.backend.common.variables import AutocastScope
from keras.src.models.functional import Functional
from keras.src.utils import naming
from tensorflow.python.eager import forwardprop_util
from tensorflow.python.framework.ops import gradient_registry

__all__ = [
    "OF_EACH_LAYER",
    "CustomScaleLayer",
    "Functional",
    "LayerScale",
    "as_it_is",
    "call_of",
    "handle_of",
    "has_tangents",
    "keep_gradient_with_graph",
    "lambda_output_shape",
    "name_in_files",
    "operation_name",
    "outputs_of",
    "own_call",
    "own_methods",
    "replaced_method",
    "sublayers",
    "uncast",
]


# Methods that Keras gives each layer of its own.
OF_EACH_LAYER = {"build", "quantize"}
# Methods of models that train, test or predict.
_OF_LEARNING = (
    *("predict", "predict_on_batch", "predict_step"),
    *("fit", "train_on_batch", "train_step"),
    *("evaluate", "test_on_batch", "test_step"),
    *("make_predict_function", "make_train_function", "make_test_function"),
    *("compute_loss", "compute_metrics"),
)


class Call(NamedTuple):
    """How a symbolic tensor was computed.

    Attributes:
        layer: By which layer; an `InputLayer` for an input.
        inputs: Of which symbolic tensors.
        outputs: Which ones the layer gave.
        positional: The positional arguments of the call.
        arguments: The keyword arguments of the call.
    """

    layer: keras.Layer
    inputs: list
    outputs: list
    positional: tuple
    arguments: dict


def call_of(tensor):
    """The call that a symbolic tensor of a functional model came from.

    Relies on `KerasTensor._keras_history`, `Layer._inbound_nodes` and the nodes
    in there.
    """
    layer, index = tensor._keras_history[:2]
    node = layer._inbound_nodes[index]
    return Call(
        layer,
        node.input_tensors,
        node.output_tensors,
        node.arguments.args,
        node.arguments.kwargs,
    )


def as_it_is(function):
    """Has AutoGraph run a function, and what it calls, as it is.

    In a `tf.function` AutoGraph makes TensorFlow of conditions, loops and
    numbers. `tf.autograph.experimental.do_not_convert` keeps it from that by a
    call around the function, which takes as long as a good part of a step.
    Relies on the attribute that tells its functions apart.
    """
    function.autograph_info__ = None
    return function


def handle_of(variable):
    """The handle of a Keras variable, also where Keras casts its values.

    Relies on `Variable._value`.
    """
    return variable._value.handle


def uncast():
    """A scope in which Keras does not cast the values of variables.

    In a layer of mixed precision it does, for all that is called there. Relies
    on `AutocastScope`.
    """
    return AutocastScope(None)


def replaced_method(layer):
    """A method that a layer has instead of that of its class, or None.

    Relies on Keras giving each layer but `OF_EACH_LAYER` of its own.
    """
    for name in vars(layer).keys() - OF_EACH_LAYER:
        if inspect.isfunction(getattr(type(layer), name, None)):
            return name
    return None


def operation_name(layer):
    """The name of an operation of Keras that a model holds as a layer, or None.

    Functional models hold what `keras.ops` and `keras.activations` are called
    with. Relies on where Keras keeps the classes.
    """
    kind = type(layer)
    modules = operations.numpy, operations.nn, activations
    if kind.__module__ in [module.__name__ for module in modules]:
        return kind.__name__
    return None


def outputs_of(model):
    """The symbolic outputs of a model, in the form in which it gives them.

    Relies on `Functional._outputs_struct`, as `Model.output` is there only once
    the model was called. Of a list of one output Keras gives that output.
    """
    if isinstance(model, keras.Sequential):
        return model.outputs[0]
    form = model._outputs_struct
    if isinstance(form, list | tuple) and len(form) == 1:
        return form[0]
    return form


def own_call(model):
    """Which of the methods that call a model is not Keras's own, or None.

    A Sequential or functional model that has one may compute something else
    than its layers say.
    """
    for name in "call", "__call__":
        if name in vars(model) or getattr(type(model), name) not in (
            getattr(keras.Sequential, name),
            getattr(Functional, name),
        ):
            return name
    return None


def own_methods(model):
    """The methods that train, test or predict and are not Keras's own."""
    is_sequential = isinstance(model, keras.Sequential)
    kind = keras.Sequential if is_sequential else Functional
    return [
        name
        for name in _OF_LEARNING
        if name in vars(model)
        or getattr(type(model), name) is not getattr(kind, name)
    ]


def sublayers(layer):
    """A layer and all layers within it, each once, the outer ones first.

    Relies on `Layer._flatten_layers`. Two layers made alike give their parts
    in the same order.
    """
    return list(layer._flatten_layers())


def lambda_output_shape(layer):
    """The `output_shape` that a `Lambda` was given, or None.

    Relies on `Lambda._output_shape`: the config has functions encoded.
    """
    return layer._output_shape


def name_in_files(cls, name):
    """Has Keras write the layers of a class to files as those of another.

    Keras names a layer's group in a file of weights by its class, as
    `naming.to_snake_case(type(layer).__name__)`, and so the layers that are
    given no name. There is no public way to say that two classes share their
    files.

    Args:
        cls: The class.
        name: The name of the other class.
    """
    to_snake_case = naming.to_snake_case

    def renamed(text):
        return to_snake_case(name if text == cls.__name__ else text)

    naming.to_snake_case = renamed


def has_tangents(tensors):
    """Whether a `tf.autodiff.ForwardAccumulator` follows one of the tensors.

    Relies on `forwardprop_util.pack_tangents`, which gives the tangents of the
    accumulators that are active.
    """
    return bool(forwardprop_util.pack_tangents(list(tensors)).tangents)


def keep_gradient_with_graph(outputs):
    """Has a custom gradient go when its graph goes.

    What `tf.custom_gradient` gives in a graph is registered until the process
    ends, and refers to the graph: each trace would stay in memory for ever.
    Relies on the attribute that names it, and on the registry.

    Args:
        outputs: What the function that was decorated gave, in a graph.
    """
    name = outputs.op.get_attr("_gradient_op_type").decode()
    registry = gradient_registry._registry
    gradient = gradient_registry.lookup(name)
    graph = tf.compat.v1.get_default_graph()
    kept = getattr(graph, "_reuse_tf_gradients", ())
    graph._reuse_tf_gradients = (*kept, gradient)
    while_it_lives = weakref.ref(gradient)

    def of_graph(*args):
        gradient = while_it_lives()
        if gradient is None:
            raise LookupError(f"The graph of gradient {name!r} is gone.")
        return gradient(*args)

    del registry[name]
    tf.RegisterGradient(name)(of_graph)
    weakref.finalize(graph, registry.pop, name, None).atexit = False
