"""The module extension behind MODULE.bazel.

A file of its own, as Bazel before 6 knows no module extensions.
"""

load("//bazel:tensorflow.bzl", "tensorflow_repository")

def _tensorflow_impl(_ctx):
    tensorflow_repository(name = "pip_tensorflow", rules_python = True)

tensorflow = module_extension(implementation = _tensorflow_impl)
