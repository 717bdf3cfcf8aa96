"""What the programs share: their common flags, and how they start and fail."""

import contextlib
import errno
import json
import os
import stat
import sys
from typing import NamedTuple

from absl import app, flags

# What is open already, perhaps as a file.
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/self/fd/")


class _PathParser(flags.ArgumentParser):
    """Parses a path, in which ~ is the user's home."""

    syntactic_help = "a path, which is not empty"

    def parse(self, argument):
        if not argument:
            raise ValueError(f"expected {self.syntactic_help}")
        return os.path.expanduser(argument)

    def flag_type(self):
        return "path"


def define_path(name, help_):
    """Defines the flag of a path. By default there is none."""
    return flags.DEFINE(
        _PathParser(),
        name,
        None,
        help_,
        serializer=flags.ArgumentSerializer(),
    )


def define_output(name, help_):
    """Defines the flag of a file to write, if it can be, or of none."""
    flag = define_path(name, help_)
    flags.register_validator(flag, _check_writable)
    return flag


class Shard(NamedTuple):
    """One of `count` equal shares, as near as they can be."""

    index: int
    count: int

    def of(self, what):
        """Returns this share of a list or a range.

        Raises:
            ValueError: If nothing is in it.
        """
        begin, end = (
            len(what) * i // self.count for i in (self.index, self.index + 1)
        )
        if begin == end:
            raise ValueError(
                f"--shard={self.index}/{self.count} is empty: there are "
                f"{len(what)} to share"
            )
        return what[begin:end]


class _ShardParser(flags.ArgumentParser):
    """Parses `i/n`."""

    syntactic_help = "i/n with 0 <= i < n"

    def parse(self, argument):
        try:
            shard = Shard(*map(int, str(argument).split("/")))
        except (TypeError, ValueError):
            shard = None
        if shard is None or not 0 <= shard.index < shard.count:
            raise ValueError(f"expected {self.syntactic_help}, as in 0/2")
        return shard

    def flag_type(self):
        return "i/n"


class _ShardSerializer(flags.ArgumentSerializer):
    def serialize(self, value):
        return f"{value.index}/{value.count}"


def define_shard(what):
    """Defines the flag of the share of some things that a process plays."""
    return flags.DEFINE(
        _ShardParser(),
        "shard",
        None,
        f"Play one of n shares of {what}, number i from 0 on. `python -m "
        "reuse_tf.benchmark merge` puts the summaries together.",
        serializer=_ShardSerializer(),
    )


def define_picture(name, help_):
    """Defines the flag of a moving picture to write, .gif or .mp4."""
    flag = define_output(name, help_)
    flags.register_validator(
        flag,
        lambda path: path is None or ending(path) in (".gif", ".mp4"),
        "must end in .gif or .mp4",
    )
    keep_apart([], [name, SUMMARY_JSON.name])
    return flag


def keep_apart(read, written):
    """Refuses flags by which a file would be written over what was read.

    Args:
        read: Names of flags of files that are read, one or several each.
        written: Names of flags of files that are written.
    """

    def are_apart(values):
        before = {
            os.path.realpath(os.fspath(path).removeprefix("file:"))
            for name in read
            for path in _list(values[name])
        }
        for name in written:
            for path in map(os.path.realpath, _list(values[name])):
                if path in before:
                    return False
                before.add(path)
        return True

    names = ", ".join(f"--{name}" for name in written)
    flags.register_multi_flags_validator(
        [*read, *written],
        are_apart,
        f"{names}: what is written must be another file than all that is read "
        "or written beside it",
    )


def _list(value):
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def ending(path):
    """Returns the ending of a file's name, in lower case."""
    return os.path.splitext(path)[1].lower()


def _check_writable(path):
    reason = path and _why_not_writable(path)
    if reason:
        raise flags.ValidationError(f"{path!r} cannot be written: {reason}")
    return True


def _why_not_writable(path):
    """Returns what is in the way of writing a file, or None."""
    folder, name = os.path.split(os.path.realpath(path))
    try:
        # While it is written it has a longer name.
        with contextlib.suppress(FileNotFoundError):
            os.stat(os.path.join(folder, name + 16 * "x"))
        if path.endswith(os.sep) or os.path.isdir(path):
            return os.strerror(errno.EISDIR)
        with contextlib.suppress(FileNotFoundError):
            is_file = stat.S_ISREG(os.stat(path).st_mode)
            if not os.access(path, os.W_OK):
                return os.strerror(errno.EACCES)
            if not is_file or path.startswith(_STREAMS):
                return None
        os.stat(folder)
    except OSError as error:
        return error.strerror
    # It is replaced as a whole.
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder!r}: {os.strerror(errno.EACCES)}"
    return None


SUMMARY_JSON = define_output(
    "summary_json", "File to write the summary to, as JSON."
)


def run(main):
    """Runs a program, whose flags are checked before anything is loaded.

    A standard output that is closed, full or read by nobody is one line at
    the end, and not the end.

    Args:
        main: A function of the remaining arguments, of which there are none
            but the program's name.
    """

    def main_unless_interrupted(argv):
        try:
            main(argv)
        except KeyboardInterrupt:
            fail("interrupted")

    _open_what_is_closed()
    with contextlib.redirect_stdout(_Output(sys.stdout)) as output:
        try:
            app.run(main_unless_interrupted, flags_parser=_parse)
        except SystemExit as end:
            output.flush()
            if output.error is None or isinstance(end.code, str):
                raise
        fail(f"cannot write to the standard output: {output.error}")


class _Output:
    """A standard output that goes on, in silence, when it cannot be written.

    Args:
        stream: The stream to write to, or None if it is closed.

    Attributes:
        error: Why it could not be written, or None.
    """

    def __init__(self, stream):
        self.error = None
        if stream is None:
            self.error = "it is closed"
            stream = open(os.devnull, "w")
        elif hasattr(stream, "reconfigure"):
            # The bar of a terminal and some units are not ASCII.
            stream.reconfigure(errors="replace")
        self._stream = stream

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def write(self, text):
        self._do(self._stream.write, text)
        return len(text)

    def flush(self):
        self._do(self._stream.flush)

    def _do(self, action, *arguments):
        if self.error is not None:
            return
        try:
            action(*arguments)
        except OSError as error:
            self.error = error.strerror
            # Python writes what is left at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def _open_what_is_closed():
    """Has no file that is opened later become the standard output."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # The lowest number is taken.
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")


def finish(summary, contents):
    """Writes files, as `write` does; then prints.

    Args:
        summary: What to print.
        contents: See `write`.
    """
    errors = write(contents)
    print(summary, flush=True)
    if errors:
        fail("; ".join(errors))


def write(contents):
    """Writes files, whatever becomes of each.

    Args:
        contents: By path, functions that return the content, in bytes. A path
            of None is left out.

    Returns:
        A list of what went wrong, in a line each.
    """
    from reuse_tf import files

    errors = []
    for path, content in contents.items():
        if path is None:
            continue
        try:
            files.write(path, content())
        except OSError as error:
            errors.append(f"cannot write {files.explain(error)}")
    return errors


def as_json(summary):
    """Returns a `Summary`, or a dict, as the bytes of a JSON file."""
    values = summary if isinstance(summary, dict) else summary.as_dict()
    return (json.dumps(values, indent=2) + "\n").encode()


def fail(*errors):
    """Ends the program, exit code 1, with one line for each error."""
    name = os.path.basename(sys.argv[0])
    lines = (" ".join(str(error).split()) for error in errors)
    sys.exit("\n".join(f"{name}: {line}" for line in lines))


@contextlib.contextmanager
def loading():
    """The context in which a program imports what takes seconds to load.

    What TensorFlow says then is silenced, unless `TF_CPP_MIN_LOG_LEVEL` is set.
    What is not installed ends the program.

    Yields:
        Whether it is silenced.
    """
    quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    try:
        with _silence() if quiet else contextlib.nullcontext():
            yield quiet
    except ImportError as error:
        fail(error)
    from reuse_tf import process

    process.settle()


@contextlib.contextmanager
def _silence():
    """Closes the standard error, as TensorFlow reports missing GPUs early.

    It does so before it looks at its log level.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    standard_error = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(standard_error, 2)
        os.close(standard_error)


def _parse(argv):
    try:
        arguments = flags.FLAGS(argv)
    except flags.Error as error:
        fail(error)
    if len(arguments) > 1:
        fail(f"unexpected argument {arguments[1]!r}")
    return arguments
