"""The TensorFlow that pip installed, as a repository.

The interpreter asked is $PYTHON_BIN_PATH if set, else python3 on the PATH,
else that of the checkout's .venv.
"""

_ASK = """
import tensorflow as tf
print()
print(".".join(tf.__version__.split(".")[:2]))
print(tf.sysconfig.get_include())
print(tf.sysconfig.get_lib())
print(" ".join(tf.sysconfig.get_compile_flags()))
"""

_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_library")

# One directory, not a glob: it holds 18,000 files.
cc_library(
    name = "tensorflow",
    srcs = ["{library}"],
    hdrs = [":include"],
    defines = {defines},
    includes = ["include"],
    visibility = ["//visibility:public"],
)
"""

# Python rules are part of Bazel until 7 and of rules_python from 8 on.
_PYTHON_RULES = """
load("@rules_python//python:defs.bzl", _binary = "py_binary", _library = "py_library", _test = "py_test")

py_binary = _binary
py_library = _library
py_test = _test
"""

_NATIVE_PYTHON_RULES = """
py_binary = native.py_binary
py_library = native.py_library
py_test = native.py_test
"""

def _ask_python(ctx):
    """Returns what the first interpreter that has TensorFlow prints."""
    chosen = ctx.os.environ.get("PYTHON_BIN_PATH")
    venv = "{}/.venv/bin/python3".format(ctx.path(Label("//:BUILD")).dirname)
    pythons = [chosen] if chosen else [ctx.which("python3"), venv]
    for python in pythons:
        if python:
            answer = ctx.execute([python, "-c", _ASK])
            if answer.return_code == 0:
                return answer.stdout
    fail("No TensorFlow in {}: pip install it, or set PYTHON_BIN_PATH.".format(
        " or ".join([str(python) for python in pythons if python]),
    ))

def _tensorflow_repository_impl(ctx):
    minor, include, lib, flags = _ask_python(ctx).strip().split("\n")[-4:]

    ctx.symlink(include, "include")
    library = None
    for path in ctx.path(lib).readdir():
        if path.basename in ["libtensorflow_framework.so.2", "libtensorflow_framework.2.dylib"]:
            library = path.basename
            ctx.symlink(path, library)
    if not library:
        fail("Found no libtensorflow_framework in {}.".format(lib))

    defines = [flag[2:] for flag in flags.split(" ") if flag.startswith("-D")]
    ctx.file("BUILD", _BUILD.format(library = library, defines = repr(defines)))
    ctx.file("minor.bzl", "TENSORFLOW_MINOR = {}\n".format(repr(minor)))
    ctx.file("python.bzl", _PYTHON_RULES if ctx.attr.rules_python else _NATIVE_PYTHON_RULES)

tensorflow_repository = repository_rule(
    implementation = _tensorflow_repository_impl,
    attrs = {
        "rules_python": attr.bool(
            doc = "Whether python.bzl takes the Python rules from rules_python.",
        ),
    },
    environ = ["PATH", "PYTHON_BIN_PATH"],
    local = True,
    doc = "The installed TensorFlow's headers, framework library, flags and minor.",
)
