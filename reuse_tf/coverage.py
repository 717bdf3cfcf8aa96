"""What each layer of a model reuses, and why it does not."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from reuse_tf.convert import TWINS, parts_of
from reuse_tf.layers import IncrementalConv2D
from reuse_tf.runner import Runner

_PLAIN: Any = tuple(TWINS)
_INCREMENTAL: Any = tuple(TWINS.values())


class Coverage(NamedTuple):
    """How one layer of a model computes.

    Attributes:
        layer: Its name, behind those of the models it stands in.
        kind: The name of its class.
        how: `"reuses"` or `"plain"`.
        why: What it reuses, or why it does not.
    """

    layer: str
    kind: str
    how: str
    why: str


class CoverageTable(list[Coverage]):
    """The `Coverage` of each layer of a model; prints as a table."""

    def __str__(self) -> str:
        rows = [Coverage._fields, *self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width)
                for cell, width in zip(row, widths, strict=True)
            ).rstrip()
            for row in rows
        )


def coverage(model: keras.Model | Runner) -> CoverageTable:
    """Tells of each layer whether it reuses what was computed, and why not.

    Args:
        model: A Keras model of any kind, converted or not, or a `Runner`.

    Returns:
        A `CoverageTable`: a list of `Coverage`, in the order of the layers.

    Raises:
        ValueError: If `model` is neither, or a `Runner` that does not know the
            size of its frames yet.

    Examples:
        >>> print(coverage(convert(model)))
        layer    kind               how     why
        conv2d   IncrementalConv2D  reuses  positions whose input did not change
        flatten  Flatten            plain   it has no incremental form
    """
    if isinstance(model, Runner):
        return CoverageTable(_runner_rows(model))
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Expected `model` to be a Keras model or a Runner. Received: "
            f"{model!r}"
        )
    return CoverageTable(_rows(model))


def named_layers(
    model: keras.Model, prefix: str = ""
) -> Iterator[tuple[str, keras.Layer]]:
    """The layers of a model and of models within it, each behind its name."""
    for layer in keras.Model.layers.fget(model):
        name = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from named_layers(layer, f"{name}/")
        else:
            yield name, layer


def _rows(model):
    for name, layer in named_layers(model):
        if isinstance(layer, keras.layers.InputLayer):
            continue
        yield _row(layer, name)
        for part in parts_of(layer):
            if isinstance(part, _PLAIN):
                yield _row(part, f"{name}/{part.name}", within=layer)


def _row(layer, name, within=None):
    kind = type(layer)
    if isinstance(layer, _INCREMENTAL):
        why = layer._why_plain()
        if why is None:
            reused = (
                "positions whose patch did not change"
                if isinstance(layer, IncrementalConv2D)
                else "sums of inputs that did not change"
            )
            return Coverage(name, kind.__name__, "reuses", reused)
    elif getattr(layer, "quantization_mode", None):
        why = f"it is quantized ({layer.quantization_mode})"
    elif kind in TWINS and within:
        why = f"it stands within a {type(within).__name__}"
    elif kind in TWINS:
        why = f"convert() would make it {TWINS[kind].__name__}"
    elif isinstance(layer, _PLAIN):
        why = "it is of a subclass, which may compute otherwise"
    else:
        why = "it has no incremental form"
    return Coverage(name, kind.__name__, "plain", why)


def _begins(node, layer):
    """What a layer of several nodes makes first, of which it joins others."""
    while node.kind == "join" and node.inputs[0].layer is layer:
        node = node.inputs[0]
    return node


def _runner_rows(runner):
    patches = {
        "auto": "patches seen before, anywhere",
        "content": "patches seen before, anywhere",
        "temporal": "positions whose patch did not change",
    }[runner.reuse]
    graph = runner.graph
    if graph is None:
        raise ValueError(
            "Expected a step before `coverage`: the model's input has any "
            "height and width"
        )
    if graph.has_thresholds:
        patches = "positions whose patch did not move beyond a threshold"
    for layer, node in graph.layers:
        how = "reuses"
        if node is None:
            why = "computes nothing"
        elif node.kind in ("dense", "global") and node.layer is layer:
            why = "sums over positions that did not change"
        elif _begins(node, layer).per_frame:
            how, why = "plain", "it is computed in whole for each frame"
        elif node.layer is layer:
            why = patches
        else:
            why = "all but new rows"
        yield Coverage(layer.name, type(layer).__name__, how, why)
