"""From plain models to incremental ones and back."""

import copy as copying
import enum
import numbers
import re
import tempfile
import types

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import internals
from reuse_tf.layers import (
    IncrementalConv2D,
    IncrementalDense,
    check_threshold,
)

_PLAIN_VALUES = (bool, numbers.Number, str, bytes, tuple, np.ndarray)
# What Keras does not know of as state.
_ARRAYS = (np.ndarray, np.generic, tf.Tensor)
_HOLDERS = (tf.Variable, tf.Module)
_VALUES = _ARRAYS + _HOLDERS
# What has no state.
_CONSTANTS = (
    *(enum.Enum, type, np.ufunc),
    *(types.FunctionType, types.BuiltinFunctionType),
)
# The incremental layer of a plain one.
TWINS = {
    keras.layers.Conv2D: IncrementalConv2D,
    keras.layers.Dense: IncrementalDense,
}


def convert(
    model: keras.Model, threshold: float | dict[str, float] | None = None
) -> keras.Model:
    """Replaces each `Conv2D` and `Dense` of a model by its incremental twin.

    Layers of other classes, subclasses of these two among them, and quantized
    layers are kept as they are, and so is what stands within a layer, as in
    `TimeDistributed`. `coverage` tells what reuses, layer by layer.

    A batch is one frame of each of N streams. `predict(video)` of a converted
    model takes each batch of 32 frames for as many streams: right, but hardly
    anything is reused. To go through a video, call the model frame by frame,
    use `predict(video, batch_size=1)`, or, much faster, `Runner.predict`.

    Args:
        model: A Sequential or functional Keras model, possibly nested.
        threshold: That of `IncrementalConv2D`: a number for all of them, or a
            dict by the names of layers. By default, and of layers that are not
            named, what a layer has.

    Returns:
        A new model of the same structure, names and weights, and with all
        else that its layers hold, such as vocabularies and statistics; but
        states of recurrent layers begin anew, as those of a model that is
        loaded. It shares nothing with `model` but Python functions, and is not
        compiled. Weights that `model` has not yet, as it was not built, are
        its own. Layers are made from their configs: what was set on them
        later, and is neither there nor in their files, is lost. A model whose
        class has an `__init__` becomes one of Keras's own class, without what
        that class adds; of others numbers, texts, arrays, and whatever stands
        for an attribute of the class, are copied.

    Raises:
        ValueError: If `model` is not such a model; if it, or a layer, has
            others in place of Keras's methods that train, test or predict,
            which a copy would lack; if a layer cannot be made again from its
            config, or is held by something else than the model's graph too; if
            a threshold is not valid, or of no layer that becomes an
            `IncrementalConv2D`.
    """
    if threshold is not None and not isinstance(threshold, dict):
        check_threshold(threshold)
    converted = _copy(model, TWINS)
    if threshold is not None:
        _set_thresholds(converted, threshold)
    return converted


def _set_thresholds(model, threshold):
    layers = {}
    for layer in internals.sublayers(model):
        if isinstance(layer, IncrementalConv2D):
            layers.setdefault(layer.name, []).append(layer)
    if not isinstance(threshold, dict):
        threshold = dict.fromkeys(layers, threshold)
    for name, value in threshold.items():
        if name not in layers:
            among = ", ".join(layers) or "none, as `model` has none"
            raise ValueError(
                f"Expected `threshold` to name convolutions among {among}. "
                f"Received: {name!r}"
            )
        for layer in layers[name]:
            layer.threshold = value


def plain(model: keras.Model) -> keras.Model:
    """Replaces each incremental layer of a model by its plain twin.

    The inverse of `convert`, with the same argument, result and errors.
    """
    return _copy(model, {twin: cls for cls, twin in TWINS.items()})


def _copy(model, twins):
    """Copies a model with layers of the classes that `twins` maps theirs to."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"Expected `model` to be a Keras model. Received: {model!r}"
        )
    copies = _Copies(twins)
    copy = copies.of(model)
    copies.finish(model, copy)
    return copy


class _Copies:
    """Makes one copy of each layer."""

    def __init__(self, twins):
        self._twins = twins
        self._copies = {}  # by the id of the original
        self._complete = set()  # ids of originals whose state is copied

    def finish(self, model, copy):
        """Copies what layers could not hold before the model was whole."""
        pairs = _pairs(model, copy)
        for old, new in pairs:
            if id(old) not in self._complete:
                _copy_state(old, new)
        # The outer ones first, as they set those within.
        for old, new in pairs:
            if new.trainable != old.trainable:
                new.trainable = old.trainable
        for old, new in pairs:
            for theirs, ours in _variable_pairs(old, new):
                if ours.trainable != theirs.trainable:
                    ours.trainable = theirs.trainable

    def of(self, layer):
        if id(layer) not in self._copies:
            if isinstance(layer, keras.Model):
                _check_model(layer)
            if isinstance(layer, keras.Sequential):
                copy = self._sequential(layer)
            elif isinstance(layer, internals.Functional):
                copy = self._functional(layer)
            else:
                copy = self._layer(layer)
            if isinstance(layer, keras.Model):
                for name in internals.own_methods(layer):
                    _check_kept(name, layer, copy)
                _copy_attributes(layer, copy)
            self._copies[id(layer)] = copy
        return self._copies[id(layer)]

    def _sequential(self, model):
        # `Sequential.layers` leaves the input out.
        layers = keras.Model.layers.fget(model)
        cls = type(model)
        if cls.__init__ is not keras.Sequential.__init__:
            cls = keras.Sequential  # Its class asks for other arguments.
        return cls(
            [self.of(layer) for layer in layers],
            trainable=model.trainable,
            name=model.name,
        )

    def _functional(self, model):
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
        if getattr(layer, "quantization_mode", None) and cls in TWINS.values():
            cls = type(layer)
        for part in (layer, *parts_of(layer)):
            # What a model has of its own is more.
            if isinstance(part, keras.Model):
                continue
            if replaced := internals.replaced_method(part):
                raise ValueError(
                    f"Layer {part.name!r} ({type(part).__name__}) cannot be "
                    f"made again: its `{replaced}` was replaced"
                )
        try:
            copy = _from_config(cls, layer)
            if isinstance(layer, keras.Layer):
                self._restore(layer, copy)
        except Exception as error:
            raise ValueError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be "
                f"made again from its config: {error}"
            ) from error
        return copy

    def _restore(self, layer, copy):
        """Gives a copy what its output's shape may depend on: a vocabulary.

        All else comes in the end, when the model has built the copy.
        """
        if any(hasattr(p, "save_assets") for p in internals.sublayers(layer)):
            if layer.built and not copy.built:
                copy.build_from_config(layer.get_build_config())
            for old, new in _pairs(layer, copy):
                _copy_state(old, new)
                self._complete.add(id(old))


def _check_model(model):
    if not isinstance(model, keras.Sequential | internals.Functional):
        why = "it is subclassed"
    elif own := internals.own_call(model):
        why = f"it has a `{own}` of its own"
    else:
        return
    raise ValueError(
        "Expected `model` to be a Sequential or functional model, and so the "
        "models within it, whose layers can be replaced one by one. Received: "
        f"{type(model).__name__} {model.name!r}: {why}"
    )


def _check_kept(name, model, copy):
    """Refuses a model whose own method `name` its copy would lack."""
    if name in vars(model):
        why = "was replaced"
    elif type(copy) is not type(model):
        why = "is of a class whose `__init__` asks for other arguments"
    else:
        return
    raise ValueError(
        "Expected `model`, and the models within it, to have no methods that "
        f"a copy would lack. Received: {type(model).__name__} {model.name!r}, "
        f"whose `{name}` {why}"
    )


def _copy_attributes(model, copy):
    """Copies what a model of a class of its own was given: numbers, texts.

    What else its methods may read, a copy would lack.
    """
    if type(copy) in (keras.Sequential, internals.Functional):
        return
    for name in vars(model).keys() - vars(copy).keys():
        value = vars(model)[name]
        # What the class says otherwise is what its methods are to find.
        if hasattr(type(model), name) or isinstance(value, _PLAIN_VALUES):
            try:
                setattr(copy, name, copying.deepcopy(value))
            except Exception as error:
                raise ValueError(
                    f"{type(model).__name__} {model.name!r} cannot be made "
                    f"again: its `{name}` cannot be copied: {error}"
                ) from error


def _from_config(cls, layer):
    """A layer like another, but of a class and without its state.

    With functions as they are: not all can be put into a config, and not all
    of these come back.
    """
    stand_ins = _StandIns()
    config = stand_ins.without(type(layer).get_config(stand_ins.of(layer)))
    if vars(layer).get("activation", config) is None and "activation" in config:
        config["activation"] = None  # Keras puts none into a config.
    if cls is keras.layers.Conv2D:
        config.pop("threshold", None)  # The incremental one's alone.
    known = _custom_objects(layer) | stand_ins.functions
    with keras.saving.custom_object_scope(known):
        if not isinstance(layer, keras.layers.Lambda):
            return cls.from_config(config)
        # Its `from_config` takes no function as it is.
        config.update(
            function=layer.function, mask=layer.mask, arguments=layer.arguments
        )
        output_shape = internals.lambda_output_shape(layer)
        if output_shape is not None:
            config["output_shape"] = output_shape
        return cls(**config)


def _custom_objects(layer):
    """The classes and functions that the config of a layer may name."""
    known = {}
    for part in parts_of(layer):
        known[type(part).__name__] = type(part)
        for function in vars(part).values():
            if isinstance(function, types.FunctionType):
                known[function.__name__] = function
    return known


class _StandIns:
    """Layers and functions to ask for a config in the place of others.

    The functions have names that no other has, by which Keras writes them into
    a config and finds those that they stand for.

    Attributes:
        functions: What they stand for, by these names.
    """

    def __init__(self):
        self.functions = {}
        self._made = {}  # by the id of what it stands for, with that

    def of(self, value):
        """What stands in for a layer, and for what a layer holds."""
        if id(value) in self._made:
            return self._made[id(value)][1]
        if isinstance(value, keras.Model | type):
            return value
        if isinstance(value, keras.Operation):
            stand_in = object.__new__(type(value))
            self._made[id(value)] = value, stand_in
            held = {
                name: part if name in internals.OF_EACH_LAYER else self.of(part)
                for name, part in vars(value).items()
            }
            if held.get("activation", held) is None:
                held["activation"] = keras.activations.linear
            vars(stand_in).update(held)
            return stand_in
        if isinstance(value, dict | list | tuple):
            return self._of_parts(value)
        if callable(value) and not hasattr(value, "get_config"):
            stand_in = self._function(value)
            self._made[id(value)] = value, stand_in
            return stand_in
        return value

    def _of_parts(self, value):
        """A dict, list or tuple of what stands in, where anything does."""
        self._made[id(value)] = value, value  # which may hold itself
        is_dict = isinstance(value, dict)
        parts = [*value.values()] if is_dict else [*value]
        held = [self.of(part) for part in parts]
        if all(a is b for a, b in zip(parts, held, strict=True)):
            return value
        if is_dict:
            made = dict(zip(value, held, strict=True))
        elif isinstance(value, list):
            made = held
        elif hasattr(value, "_fields"):
            made = type(value)(*held)
        else:
            made = tuple(held)
        self._made[id(value)] = value, made
        return made

    def _function(self, function):
        def stand_in(*arguments, **named):
            return function(*arguments, **named)

        vars(stand_in).update(getattr(function, "__dict__", {}))
        name = f"reuse_tf_function_{len(self.functions)}"
        stand_in.__name__ = stand_in.__qualname__ = name
        self.functions[name] = function
        return stand_in

    def without(self, config):
        """A config with the functions themselves, and their own names."""
        if isinstance(config, dict):
            if config.get("class_name") == "function":
                return config  # by whose name Keras finds it
            return {key: self.without(part) for key, part in config.items()}
        if isinstance(config, list | tuple) and not hasattr(config, "_fields"):
            return type(config)(map(self.without, config))
        if isinstance(config, str) and config in self.functions:
            return getattr(self.functions[config], "__name__", config)
        name = getattr(config, "__name__", None)
        if isinstance(name, str) and name in self.functions:
            return self.functions[name]
        return config


def parts_of(layer: object) -> list[keras.Layer]:
    """The layers within a layer; none within what is only an operation."""
    if not isinstance(layer, keras.Layer):
        return []
    return internals.sublayers(layer)[1:]


def _pairs(old, new):
    theirs, ours = internals.sublayers(old), internals.sublayers(new)
    if len(theirs) != len(ours):
        raise ValueError(
            "Expected `model` to hold each layer in its graph alone. Received: "
            f"{type(old).__name__} {old.name!r}, which holds one by an "
            "attribute, or within another layer, too"
        )
    return list(zip(theirs, ours, strict=True))


def _variable_pairs(old, new):
    """The variables of a layer and those of its copy, whichever came first."""
    theirs, ours = (
        sorted(layer.variables, key=_by_name) for layer in (old, new)
    )
    return zip(theirs, ours, strict=True)


def _by_name(variable):
    """Sorts by name, and by the numbers that Keras puts behind names."""
    name, number = re.fullmatch(r"(.*?)(\d*)", variable.name).groups()
    return name, int(number or -1)


def _copy_state(old, new):
    """Copies what a layer itself holds, by Keras's ways of saving it."""
    if isinstance(old, keras.Model):
        return
    if old.built and not new.built:
        new.build_from_config(old.get_build_config())
    store = {}
    old.save_own_variables(store)
    new.load_own_variables(store)
    if hasattr(old, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            old.save_assets(folder)
            new.load_assets(folder)
    # What is saved is not all: LoRA is merged, the state of seeds left out.
    for theirs, ours in _variable_pairs(old, new):
        ours.assign(theirs)
    if type(old).__module__.split(".")[0] not in ("keras", "reuse_tf"):
        _copy_values(old, new)


def _copy_values(old, new):
    """Copies what a user's layer holds that Keras does not know of.

    These are TensorFlow's variables and tensors, and arrays, which `build` or
    `__init__` may have drawn; and lists and dicts that hold any.
    """
    of_each = vars(keras.Layer()).keys()
    for name, value in vars(old).items():
        if name in of_each or name.startswith("_self_"):
            continue  # Keras's own, or TensorFlow's.
        if not any(isinstance(part, _VALUES) for part in _parts_in(value)):
            continue
        try:
            copy = _copied(value, vars(new).get(name))
        except LookupError as error:
            raise ValueError(
                "Expected the layers of `model` to hold the same variables and "
                "objects when they are made of their configs. Received: "
                f"{type(old).__name__} {old.name!r}, whose copy lacks those of "
                f"its `{name}`"
            ) from error
        vars(new)[name] = copy


def _parts_in(value):
    """A value, or what is in it if it is a dict, list or tuple."""
    if isinstance(value, dict):
        value = [*value.values()]
    if not isinstance(value, list | tuple):
        return [value]
    return [part for held in value for part in _parts_in(held)]


def _copied(value, made):
    """A value of a layer, for a copy of it.

    Args:
        value: The layer's, or a part of it.
        made: The same of the copy, as it was made, or None. Variables in it are
            assigned the layer's values, and objects stay.

    Raises:
        LookupError: If there are no such variables or objects in it.
    """
    if isinstance(value, _ARRAYS):
        return copying.copy(value)
    if isinstance(value, dict):
        made = made if isinstance(made, dict) else {}
        return {key: _copied(v, made.get(key)) for key, v in value.items()}
    if isinstance(value, list | tuple):
        made = [*made] if isinstance(made, list | tuple) else []
        made += [None] * (len(value) - len(made))
        parts = [_copied(v, m) for v, m in zip(value, made, strict=False)]
        if isinstance(value, list):
            return parts
        return type(value)(*parts) if hasattr(value, "_fields") else (*parts,)
    if value is None or isinstance(value, _PLAIN_VALUES + _CONSTANTS):
        return value
    if type(made) is not type(value):
        raise LookupError
    if isinstance(value, _HOLDERS) and not _assigned(made, value):
        raise LookupError
    return made


def _assigned(holder, other):
    """Assigns a `tf.Variable` or `tf.Module` another's values, if it can."""
    ours, theirs = (
        [held]
        if isinstance(held, tf.Variable)
        else [*getattr(held, "variables", ())]
        for held in (holder, other)
    )
    if [v.shape for v in ours] != [v.shape for v in theirs]:
        return False
    for mine, variable in zip(ours, theirs, strict=True):
        mine.assign(variable)
    return True
