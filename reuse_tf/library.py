"""The compiled library: which file it is, for the TensorFlow that runs."""

import importlib.metadata
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

import keras
import tensorflow as tf

# A library is built against one TensorFlow minor and loads in no other. So an
# installation has one library for each minor that it serves.
_NAME = "libreuse_tf-{}.so"


def folders() -> list[pathlib.Path]:
    """Where libraries may be: beside this file, or where pip put them."""
    found = [pathlib.Path(__file__).parent]
    try:
        files = importlib.metadata.distribution("reuse-tf")
        found.append(pathlib.Path(str(files.locate_file("reuse_tf"))))
    except importlib.metadata.PackageNotFoundError:
        pass
    return found


def installed(folders: Iterable[pathlib.Path]) -> dict[str, pathlib.Path]:
    """The libraries in some folders.

    Args:
        folders: Paths. Of two libraries for one minor, that of the first folder
            counts.

    Returns:
        A dictionary of paths by TensorFlow minor, such as `"2.21"`, the oldest
        first.
    """
    found: dict[tuple[int, int], pathlib.Path] = {}
    for folder in folders:
        for path in folder.glob(_NAME.format("*")):
            name = re.fullmatch(_NAME.format(r"(\d+)\.(\d+)"), path.name)
            if name:
                found.setdefault((int(name[1]), int(name[2])), path)
    return {f"{a}.{b}": found[a, b] for a, b in sorted(found)}


def choose(libraries: Mapping[str, pathlib.Path], version: str) -> pathlib.Path:
    """Chooses the library for a TensorFlow.

    Args:
        libraries: What `installed` returns.
        version: The version of TensorFlow, such as `"2.21.0"`.

    Returns:
        The path of the library.

    Raises:
        ImportError: If there is none for this TensorFlow.
    """
    minor = ".".join(version.split(".")[:2])
    if minor in libraries:
        return libraries[minor]
    if not libraries:
        raise ImportError(
            f"reuse_tf: the compiled library {_NAME.format(minor)} is missing. "
            "Build and install it with `pip install -e .` in the folder that "
            "holds pyproject.toml."
        )
    *others, newest = libraries
    minors = f"{', '.join(others)} or {newest}" if others else newest
    raise ImportError(
        f"reuse_tf is built for TensorFlow {minors} here, but TensorFlow "
        f"{version} is installed. Install one that it is built for: "
        f"`pip install 'tensorflow=={newest}.*'`. Or, in the folder that holds "
        "pyproject.toml, build it for the one installed: `pip install "
        "scikit-build-core cmake ninja && pip install --no-build-isolation "
        "-e .`"
    )


def path() -> str:
    """The path of the library to load: $REUSE_TF_LIBRARY, or one installed.

    Raises:
        ImportError: If none is installed for the TensorFlow that runs, or Keras
            does not run on TensorFlow.
    """
    override = os.environ.get("REUSE_TF_LIBRARY")
    found = override or choose(installed(folders()), tf.__version__)
    if keras.backend.backend() != "tensorflow":
        raise ImportError(
            "reuse_tf needs Keras to run on TensorFlow, but its backend is "
            f"{keras.backend.backend()!r}. Set the environment variable "
            "KERAS_BACKEND=tensorflow before Keras is imported."
        )
    return str(found)
