"""Keras models as graphs of nodes, which the runner's ops read and run.

`compile_model` walks a model and has each layer add its nodes, by the table of
`keras_nodes`; passes then simplify them.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import internals, keras_nodes, ops
from reuse_tf.nodes import (
    IDENTITY_WINDOW,
    Node,
    Unsupported,
    Value,
    require,
    settle,
)

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
    outputs = _walk(model, [Value(frames, tuple(shape))], trace)
    outputs = [settle(value) for value in outputs]
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
    for variable in model.variables:
        if isinstance(variable.value, tf.distribute.DistributedValues):
            raise ValueError(
                "Expected `model` to be made outside of the scope of a "
                f"`tf.distribute.Strategy`. Received: model {model.name!r}, "
                f"whose {variable.path!r} is one variable for each replica"
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
        arguments, keywords = keras.tree.map_structure(
            lambda a: values.get(id(a), a), (call.positional, call.arguments)
        )
        outputs = _of_layer(
            keras_nodes.LayerCall(call.layer, given, arguments, keywords),
            call,
            trace,
        )
        values.update(
            (id(t), v) for t, v in zip(call.outputs, outputs, strict=True)
        )
    return [values[id(tensor)] for tensor in model.outputs]


def _of_layer(call, symbolic, trace):
    """The values of a layer's outputs, in the place of symbolic ones."""
    layer = call.layer
    try:
        keras_nodes.check_call(layer, symbolic)
        if isinstance(layer, keras.Model):
            return _walk(layer, _inputs_of(layer, call, symbolic), trace)
        value = keras_nodes.value_of(call, symbolic)
    except Unsupported as error:
        raise ValueError(
            f"Runner does not support layer {layer.name!r} "
            f"({type(layer).__name__}): {error}. `reuse_tf.convert` leaves "
            "such layers to Keras. Those that are supported are named in "
            "`reuse_tf.keras_nodes.SUPPORTED`."
        ) from None
    same = any(value.node is given.node for given in call.values)
    trace.append((layer, None if same else value))
    return [value]


def _inputs_of(model, call, symbolic):
    """What a model within another is given, in the order of its inputs."""
    given = [*symbolic.positional, *symbolic.arguments.values()][:1]
    form = model.input
    if isinstance(given[0], dict) and not isinstance(form, dict):
        names = [tensor.name for tensor in model.inputs]
        require(set(names) <= given[0].keys(), f"its inputs are {names}")
        given = [given[0][name] for name in names]
    elif isinstance(given[0], dict) or isinstance(form, dict):
        require(
            isinstance(given[0], dict) and given[0].keys() == form.keys(),
            f"its inputs are {list(form)}",
        )
    values = dict(zip(map(id, symbolic.inputs), call.values, strict=True))
    given = keras.tree.flatten(given)
    require(
        len(given) == len(model.inputs) and all(id(t) in values for t in given),
        "of its arguments",
    )
    for tensor, expected in zip(given, model.inputs, strict=True):
        require(
            tensor.dtype == expected.dtype,
            f"it converts {tensor.dtype} to {expected.dtype}",
        )
        require(
            len(tensor.shape) == len(expected.shape),
            f"its input has the shape {expected.shape}, and is given "
            f"{tensor.shape}",
        )
    return [values[id(tensor)] for tensor in given]


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
            node.window = IDENTITY_WINDOW
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
