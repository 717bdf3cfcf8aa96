"""From plain models to incremental ones and back, and what reuses in them."""

import tempfile
import types
import warnings
from typing import NamedTuple

import keras

from reuse_tf import internals
from reuse_tf.layers import IncrementalConv2D, IncrementalDense
from reuse_tf.runner import Runner, layers_of

_TWINS = {
    keras.layers.Conv2D: IncrementalConv2D,
    keras.layers.Dense: IncrementalDense,
}


def convert(model):
    """Replaces each `Conv2D` and `Dense` of a model by its incremental twin.

    Layers of other classes, subclasses of these two among them, and quantized
    layers are kept as they are, and so is what stands within a layer, as in
    `TimeDistributed`. `coverage` tells what reuses, layer by layer.

    A batch is one frame of each of N streams. `predict(video)` of a converted
    model takes each batch of 32 frames for as many streams: right, but hardly
    anything is reused. To go through a video, call the model frame by frame,
    use `predict(video, batch_size=1)`, or, much faster, a `Runner`.

    Args:
        model: A Sequential or functional Keras model, possibly nested.

    Returns:
        A new model of the same structure, names and weights, and with all
        else that its layers hold, such as vocabularies and statistics. It
        shares nothing with `model` but Python functions, and is not compiled.

    Raises:
        ValueError: If `model` is not such a model, or has a layer that cannot
            be made again from its config.
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
    copy = _Copies(twins).of(model)
    _copy_state(model, copy)
    return copy


class _Copies:
    """Makes one copy of each layer, without its state."""

    def __init__(self, twins):
        self._twins = twins
        self._copies = {}  # by the id of the original

    def of(self, layer):
        if id(layer) not in self._copies:
            if isinstance(layer, keras.Sequential):
                copy = self._sequential(layer)
            elif isinstance(layer, internals.Functional):
                copy = self._functional(layer)
            elif isinstance(layer, keras.Model):
                raise _not_a_graph(layer, "it is subclassed")
            else:
                copy = self._layer(layer)
            self._copies[id(layer)] = copy
        return self._copies[id(layer)]

    def _sequential(self, model):
        _check_call(model, keras.Sequential)
        # `Sequential.layers` leaves the input out.
        layers = keras.Model.layers.fget(model)
        return keras.Sequential(
            [self.of(layer) for layer in layers],
            trainable=model.trainable,
            name=model.name,
        )

    def _functional(self, model):
        _check_call(model, internals.Functional)
        inputs = {
            id(layer.output): layer
            for layer in model.layers
            if isinstance(layer, keras.layers.InputLayer)
        }
        copy = keras.models.clone_model(
            # Of the same layers, but not compiled.
            keras.Model(model.input, model.output, name=model.name),
            input_tensors=keras.tree.map_structure(
                lambda tensor: self.of(inputs[id(tensor)]).output, model.input
            ),
            clone_function=self.of,
        )
        if type(model).__init__ is not internals.Functional.__init__:
            return copy  # Its class asks for other arguments.
        return type(model)(copy.input, copy.output, name=model.name)

    def _layer(self, layer):
        cls = self._twins.get(type(layer), type(layer))
        if getattr(layer, "quantization_mode", None) and cls in _TWINS.values():
            cls = type(layer)
        try:
            copy = _from_config(cls, layer)
            if getattr(layer, "built", False) and not copy.built:
                copy.build_from_config(layer.get_build_config())
        except Exception as error:
            raise ValueError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be "
                f"made again from its config: {error}"
            ) from error
        return copy


def _check_call(model, base):
    if type(model).call is not base.call:
        raise _not_a_graph(model, "it has a `call` of its own")


def _not_a_graph(model, why):
    return ValueError(
        "Expected `model` to be a Sequential or functional model, and so the "
        "models within it, whose layers can be replaced one by one. Received: "
        f"{type(model).__name__} {model.name!r}: {why}"
    )


def _from_config(cls, layer):
    """A layer like another, but of a class and without its state."""
    with warnings.catch_warnings():
        # What is not safe to write to a file need not be here.
        warnings.filterwarnings("ignore", message=".*`lambda`")
        config = layer.get_config()
    if cls is keras.layers.Conv2D:
        config.pop("threshold", None)  # The incremental one's alone.
    # Functions themselves, as not all come back from a config.
    for key in config:
        value = getattr(layer, key, None)
        if isinstance(value, types.FunctionType | types.MethodType):
            config[key] = value
    if isinstance(layer, keras.layers.Lambda):
        # It would read the config of a function, and knows no other form.
        if layer._output_shape is not None:
            config["output_shape"] = layer._output_shape
        config["mask"] = layer.mask
        config["arguments"] = layer.arguments
        return keras.Layer.from_config.__func__(cls, config)
    classes = {type(part).__name__: type(part) for part in _parts(layer)}
    with keras.saving.custom_object_scope(classes):
        return cls.from_config(config)


def _parts(layer):
    """The layers within a layer; none within what is only an operation."""
    if not isinstance(layer, keras.Layer):
        return []
    return internals.sublayers(layer)[1:]


def _copy_state(model, copy):
    """Copies all that the layers of a model hold, by Keras's ways of saving."""
    pairs = list(
        zip(internals.sublayers(model), internals.sublayers(copy), strict=True)
    )
    for old, new in pairs:
        if isinstance(old, keras.Model):
            continue
        variables = {}
        old.save_own_variables(variables)
        new.load_own_variables(variables)
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)
        # What is saved is not all: LoRA is merged, the state of seeds left out.
        for ours, theirs in zip(new.variables, old.variables, strict=True):
            ours.assign(theirs)
    # The outer ones first, as they set those within.
    for old, new in pairs:
        if new.trainable != old.trainable:
            new.trainable = old.trainable
    for old, new in pairs:
        for ours, theirs in zip(new.variables, old.variables, strict=True):
            if ours.trainable != theirs.trainable:
                ours.trainable = theirs.trainable


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


class CoverageTable(list):
    """The `Coverage` of each layer of a model; prints as a table."""

    def __str__(self):
        rows = [Coverage._fields, *self]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width)
                for cell, width in zip(row, widths, strict=True)
            ).rstrip()
            for row in rows
        )


def coverage(model):
    """Tells of each layer whether it reuses what was computed, and why not.

    Args:
        model: A Keras model of any kind, converted or not, or a `Runner`.

    Returns:
        A `CoverageTable`: a list of `Coverage`, in the order of the layers.

    Raises:
        ValueError: If `model` is neither.

    Example:

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
    return CoverageTable(_rows(model, ""))


def _rows(model, prefix):
    for layer in keras.Model.layers.fget(model):
        name = prefix + layer.name
        if isinstance(layer, keras.Model):
            yield from _rows(layer, name + "/")
            continue
        if isinstance(layer, keras.layers.InputLayer):
            continue
        yield _row(layer, name)
        for part in _parts(layer):
            if isinstance(part, tuple(_TWINS)):
                yield _row(part, f"{name}/{part.name}", within=layer)


def _row(layer, name, within=None):
    kind = type(layer)
    if isinstance(layer, tuple(_TWINS.values())):
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
    elif kind in _TWINS and within:
        why = f"it stands within a {type(within).__name__}"
    elif kind in _TWINS:
        why = f"convert() would make it {_TWINS[kind].__name__}"
    elif isinstance(layer, tuple(_TWINS)):
        why = "it is of a subclass, which may compute otherwise"
    else:
        why = "it has no incremental form"
    return Coverage(name, kind.__name__, "plain", why)


def _runner_rows(runner):
    patches = {
        "content": "patches seen before, anywhere",
        "temporal": "positions whose patch did not change",
    }[runner.reuse]
    flat = summed = False
    for layer in layers_of(runner.model)[0]:
        how = "reuses"
        if isinstance(layer, keras.layers.Dropout | keras.layers.Flatten):
            why = "computes nothing"
            flat = flat or isinstance(layer, keras.layers.Flatten)
        elif isinstance(layer, keras.layers.GlobalAveragePooling2D) or (
            isinstance(layer, keras.layers.Dense) and flat and not summed
        ):
            flat = summed = True
            why = "sums over positions that did not change"
        elif flat:
            how, why = "plain", "it is computed in whole for each frame"
        elif isinstance(
            layer,
            keras.layers.Conv2D
            | keras.layers.MaxPooling2D
            | keras.layers.AveragePooling2D,
        ):
            why = patches
        else:
            why = "all but new rows"
        yield Coverage(layer.name, type(layer).__name__, how, why)
