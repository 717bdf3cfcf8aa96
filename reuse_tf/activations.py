"""The activations that the compiled ops apply, and those of Keras they are."""

import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import NamedTuple

import keras


class Activation(NamedTuple):
    """An activation as the ops name it (`kernels/activations.inc`).

    Attributes:
        name: What the ops call it.
        arguments: Floats.
    """

    name: str
    arguments: tuple[float, ...] = ()


class _Form(NamedTuple):
    """How an activation of the ops is written in Keras.

    Attributes:
        function: Of `keras.activations`.
        parameters: Those of the function that are the arguments of the ops.
        fixed: What the others are, if they are not as by default.
    """

    function: Callable
    parameters: tuple[str, ...] = ()
    fixed: dict = {}


_KERAS = keras.activations

# Of the forms of one function the first that says all of it is taken.
_FORMS = {
    "linear": _Form(_KERAS.linear),
    "relu": _Form(_KERAS.relu),
    "general_relu": _Form(
        _KERAS.relu, ("negative_slope", "max_value", "threshold")
    ),
    "relu6": _Form(_KERAS.relu6),
    "leaky_relu": _Form(_KERAS.leaky_relu, ("negative_slope",)),
    "elu": _Form(_KERAS.elu, ("alpha",)),
    "celu": _Form(_KERAS.celu, ("alpha",)),
    "selu": _Form(_KERAS.selu),
    "sigmoid": _Form(_KERAS.sigmoid),
    "hard_sigmoid": _Form(_KERAS.hard_sigmoid),
    "log_sigmoid": _Form(_KERAS.log_sigmoid),
    "sparse_sigmoid": _Form(_KERAS.sparse_sigmoid),
    "tanh": _Form(_KERAS.tanh),
    "hard_tanh": _Form(_KERAS.hard_tanh),
    "tanh_shrink": _Form(_KERAS.tanh_shrink),
    "silu": _Form(_KERAS.silu),
    "hard_silu": _Form(_KERAS.hard_silu),
    "mish": _Form(_KERAS.mish),
    "softplus": _Form(_KERAS.softplus),
    "sparse_plus": _Form(_KERAS.sparse_plus),
    "squareplus": _Form(_KERAS.squareplus, ("b",)),
    "softsign": _Form(_KERAS.softsign),
    "soft_shrink": _Form(_KERAS.soft_shrink, ("threshold",)),
    "hard_shrink": _Form(_KERAS.hard_shrink, ("threshold",)),
    "threshold": _Form(_KERAS.threshold, ("threshold", "default_value")),
    "gelu": _Form(_KERAS.gelu),
    "tanh_gelu": _Form(_KERAS.gelu, (), {"approximate": True}),
    "exponential": _Form(_KERAS.exponential),
    "softmax": _Form(_KERAS.softmax),
    "log_softmax": _Form(_KERAS.log_softmax),
}

LINEAR = Activation("linear")
RELU = Activation("relu")


@functools.cache
def _default_arguments(function):
    return {
        name: parameter.default
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "x"
    }


def _call_of(activation):
    """An activation as a function of Keras and its keyword arguments."""
    keywords = {}
    kind = type(activation)
    if getattr(activation, "compute_dtype", "float32") != "float32":
        return activation, keywords  # a layer that casts
    if kind is functools.partial and not activation.args:
        activation, keywords = activation.func, activation.keywords
    elif kind is keras.layers.Activation:
        return _call_of(activation.activation)
    elif kind is keras.layers.ReLU:
        activation, keywords = (
            _KERAS.relu,
            {
                name: getattr(activation, name)
                for name in ("negative_slope", "max_value", "threshold")
            },
        )
    elif kind is keras.layers.LeakyReLU:
        keywords = {"negative_slope": activation.negative_slope}
        activation = _KERAS.leaky_relu
    elif kind is keras.layers.ELU:
        activation, keywords = _KERAS.elu, {"alpha": activation.alpha}
    elif kind is keras.layers.Softmax:
        activation, keywords = _KERAS.softmax, {"axis": activation.axis}
    return activation, keywords


def describe(activation, rank=None):
    """Finds out which activation of the ops one of Keras is.

    Args:
        activation: A function of `keras.activations`, a `functools.partial` of
            one with keyword arguments, an activation layer of Keras, or None.
        rank: How many axes it is applied to, without the batch: so many is
            another name of the last one.

    Returns:
        An `Activation`; None if the ops have no such one.
    """
    if activation is None:
        return LINEAR
    if isinstance(activation, types.FunctionType):
        return _PLAIN.get(activation)
    function, keywords = _call_of(activation)
    if rank is not None and keywords.get("axis") == rank:
        keywords = {**keywords, "axis": -1}
    return _describe(function, keywords)


def _describe(function, keywords):
    for name, form in _FORMS.items():
        if form.function is not function:
            continue
        defaults = _default_arguments(function)
        arguments = {**defaults, **keywords}
        others = {**defaults, **form.fixed}
        if arguments.keys() != defaults.keys() or any(
            value != others[key]
            for key, value in arguments.items()
            if key not in form.parameters
        ):
            continue
        try:
            values = tuple(
                # Of the maximum of a relu, None is none.
                math.inf if arguments[key] is None else float(arguments[key])
                for key in form.parameters
            )
        except (TypeError, ValueError):
            return None
        # Of a celu of 0 Keras makes NaN.
        return (
            None
            if name == "celu" and not values[0]
            else Activation(name, values)
        )
    return None


# Without arguments: found at every call of a layer.
_PLAIN = {
    form.function: _describe(form.function, {}) for form in _FORMS.values()
}


def function(activation):
    """The inverse of `describe`.

    Args:
        activation: An `Activation`.

    Returns:
        A function of Keras from a tensor to a tensor.
    """
    form = _FORMS[activation.name]
    arguments = {
        name: None if name == "max_value" and math.isinf(value) else value
        for name, value in zip(
            form.parameters, activation.arguments, strict=True
        )
    }
    return functools.partial(form.function, **arguments, **form.fixed)
