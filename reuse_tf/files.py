"""Files that are written whole, or not at all."""

import contextlib
import os
import pathlib
import re
import secrets
import sys
import tempfile

# Ends the name of a file that is being written, and so is not whole.
TEMPORARY = ".tmp"
_STREAMS = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}


def write(path, data):
    """Writes a file. If that fails, what was there before stays whole.

    A device or a pipe is written to as it is. So is a file that is open as
    `/dev/stdout`, at the place that it has come to.

    Args:
        path: The file.
        data: Its new content, as bytes.

    Raises:
        OSError: If it cannot be written. The error names the file.
    """
    path = os.fspath(path)
    try:
        stream = _stream(path)
        if stream is not None:
            sys.stdout.flush()
            with open(os.dup(stream), "wb") as file:
                file.write(data)
        elif os.path.exists(path) and not os.path.isfile(path):
            with open(path, "wb") as file:
                file.write(data)
        else:
            # What a link points to, not the link.
            _replace(os.path.realpath(path), data)
    except OSError as error:
        raise of_file(error, path) from error


def write_model(path, model):
    """Writes a Keras model to a file, as `write` does."""
    path = pathlib.Path(path)
    try:
        with tempfile.TemporaryDirectory(
            # On the same disk: another may be full.
            dir=path.resolve().parent,
            prefix=f"{path.name}.",
            suffix=TEMPORARY,
        ) as folder:
            file = pathlib.Path(folder) / path.name
            model.save(file)
            write(path, file.read_bytes())
    except OSError as error:
        raise of_file(error, path) from error


def of_file(error, path):
    """An `OSError` of the same kind that names a file."""
    reason = error.strerror or str(error)
    return OSError(error.errno, reason, os.fspath(path))


def sync(path):
    """Waits until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain(error):
    """Returns an error in one line; of a file, its name and what is wrong."""
    if isinstance(error, OSError) and error.strerror:
        name = error.filename
        return f"{str(name)!r}: {error.strerror}" if name else error.strerror
    text = " ".join(str(error).split())
    # Of others the text may be no more than the key that is missing.
    known = isinstance(
        error, (FloatingPointError, ImportError, OSError, ValueError)
    )
    return text if known and text else f"{type(error).__name__} {text}".strip()


def _stream(path):
    """Returns the number of the open file that a path stands for, or None."""
    match = re.fullmatch(r"(?:/dev|/proc/self)/fd/(\d+)", path)
    return int(match[1]) if match else _STREAMS.get(path)


def _replace(path, data):
    temporary = f"{path}.{secrets.token_hex(4)}{TEMPORARY}"
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if os.path.exists(path):
            os.chmod(temporary, os.stat(path).st_mode)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(os.path.dirname(path))
