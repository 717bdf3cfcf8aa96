"""Nodes, of which networks are lists, and the values that they make.

A node's value is a map of positions, each with a row of channels; a vector is a
map of 1 x 1. A node says three things of itself: its line for the ops
(`custom_ops/ops/node_list.h`), its variables, and how its rows follow from
those of the nodes before, in TensorFlow, for the differentiable path.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

# What looks at a whole map of a frame, and so has a value for each frame.
_WHOLE = ("dense", "global", "reshape", "permute", "group_norm")
IDENTITY_WINDOW = (1, 1, 1, 1, 1, 1, 1, 1, "VALID")


class Function(NamedTuple):
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


class Value(NamedTuple):
    """What a symbolic tensor is: a node, and the shape that Keras sees.

    The shape may be another one with as many values: functions of single values
    need not care.
    """

    node: Node
    shape: tuple


def map_shape(shape):
    """A shape of Keras's as one of a map."""
    *outer, channels = shape or (1,)
    if len(outer) < 2:
        return (*outer, 1, 1)[:2] + (channels,)
    return (math.prod(outer[:-1]), outer[-1], channels)


class Unsupported(ValueError):
    """Why a layer cannot be a node."""


def require(condition, why):
    """Raises `Unsupported` unless a condition holds."""
    if not condition:
        raise Unsupported(why)


def settle(value, layer=None):
    """A value whose node has the shape that Keras sees, behind a reshaping."""
    if map_shape(value.shape) == value.node.shape:
        return value
    shape = map_shape(value.shape)
    node = Node(
        "reshape", [value.node], shape, shape, layer or value.node.layer
    )
    node.call = lambda maps: tf.reshape(maps, [-1, *shape])
    return Value(node, value.shape)
