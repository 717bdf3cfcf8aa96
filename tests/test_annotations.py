"""What is public says its types; mypy sees to it that they are right."""

import importlib
import inspect

import pytest

import reuse_tf

MODULES = [
    "reuse_tf",
    *("reuse_tf.callbacks", "reuse_tf.convert", "reuse_tf.coverage"),
    *("reuse_tf.layers", "reuse_tf.ops", "reuse_tf.runner"),
    "reuse_tf.thresholds",
    *("reuse_tf.atari", "reuse_tf.policies", "reuse_tf.learning.training"),
]


def public_functions(module):
    """Public functions of a module, and those that its classes define."""
    names = getattr(module, "__all__", None) or [
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
        and not name.startswith("_")
    ]
    for name in names:
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for attribute, of_class in vars(value).items():
                if isinstance(of_class, property):
                    of_class = of_class.fget
                own = inspect.isfunction(of_class) and (
                    of_class.__module__ == value.__module__
                )
                called = attribute in ("__init__", "__call__")
                if own and (called or not attribute.startswith("_")):
                    yield f"{name}.{attribute}", of_class


@pytest.mark.parametrize("name", MODULES)
def test_public_functions_say_their_types(name):
    functions = dict(public_functions(importlib.import_module(name)))
    without = []
    for where, function in functions.items():
        # A hook of Keras is as Keras has it.
        if where.startswith("StatsLogger.") and not where.endswith("__init__"):
            continue
        signature = inspect.signature(function)
        without += [
            f"{where}({parameter})"
            for parameter, of in signature.parameters.items()
            if of.annotation is of.empty and parameter != "self"
        ]
        if signature.return_annotation is signature.empty:
            without.append(f"{where} ->")
    assert functions and not without


def test_what_is_looked_at():
    names = dict(public_functions(reuse_tf))
    assert {
        *("convert", "sparse_gather", "find_thresholds"),
        *("Runner.__init__", "Runner.__call__", "Runner.step", "Runner.stats"),
        *("Runner.predict", "Structure.take", "IncrementalConv2D.call"),
    } <= names.keys()
