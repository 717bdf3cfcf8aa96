"""What the programs share: their common flags, and how they start and fail."""

import contextlib
import errno
import json
import os
import stat
import sys

import ale_py
from absl import app, flags

# What is open already, perhaps as a file.
_STREAMS = ("/dev/std", "/dev/fd/", "/proc/self/fd/")


class _FiltersParser(flags.ArgumentParser):
    """Parses positive integers separated by commas."""

    syntactic_help = "positive integers separated by commas"

    def parse(self, argument):
        try:
            filters = [int(count) for count in str(argument).split(",")]
        except ValueError:
            filters = []
        if not filters or min(filters) <= 0:
            raise ValueError(f"expected {self.syntactic_help}, as in 40,80")
        return filters

    def flag_type(self):
        return "list of integers"


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


GAME = flags.DEFINE_string(
    "game", "Pong", "Atari game, by short name (Pong) or id (ALE/Pong-v5)."
)
NETWORK = flags.DEFINE_enum(
    "network",
    None,
    ["paper", "nature", "impala"],
    "Network of the policy. paper: convolutions and a dense layer. nature: "
    "that of DQN. impala: a residual network.",
)
FILTERS = flags.DEFINE(
    _FiltersParser(),
    "filters",
    None,
    "Filters of each convolution of the network. By default 40,80 for paper, "
    "32,64,64 for nature, and 16,32,32 for the parts of impala.",
    serializer=flags.CsvListSerializer(","),
)
PREPROCESSING = flags.DEFINE_enum(
    "preprocessing",
    None,
    ["paper", "standard"],
    "What of the screen is seen. paper: every n-th pixel in one channel. "
    "standard: four frames of 84 x 84, as channels.",
)
DOWNSAMPLE = flags.DEFINE_integer(
    "downsample",
    2,
    "Keep every n-th pixel of the screen: 1, 2 or 4. For "
    "--preprocessing=paper.",
)
STEPS = flags.DEFINE_integer(
    "steps",
    None,
    "Steps of the environments in all. By default 3000, and 1000000 for "
    "train.py --algorithm=ppo and a2c.",
    lower_bound=1,
)
NUM_ENVS = flags.DEFINE_integer(
    "num_envs",
    None,
    "Environments to play at once. By default 1; for train.py 8 with "
    "--algorithm=ppo, and 16 with a2c.",
    lower_bound=1,
)
REUSE = flags.DEFINE_enum(
    "reuse",
    "auto",
    ["auto", "content", "temporal", "none"],
    "What is reused. content: an activation whose inputs were seen before, "
    "anywhere. temporal: one whose inputs are those of the last frame. auto: "
    "content, and temporal while that does not pay. none: nothing, by plain "
    "Keras layers.",
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Decides the initial weights, the game and the actions.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
SUMMARY_JSON = define_output(
    "summary_json", "File to write the summary to, as JSON."
)


@flags.validator(DOWNSAMPLE, message="must be 1, 2 or 4")
def _is_downsample(value):
    return value in (1, 2, 4)


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
    """Writes files, whatever becomes of each; then prints.

    Args:
        summary: What to print.
        contents: By path, functions that return the content, in bytes. A path
            of None is left out.
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
    print(summary, flush=True)
    if errors:
        fail("; ".join(errors))


def as_json(summary):
    """Returns a `Summary` as the bytes of a JSON file."""
    return (json.dumps(summary.as_dict(), indent=2) + "\n").encode()


def fail(error):
    """Ends the program with one line on the standard error, exit code 1."""
    name = os.path.basename(sys.argv[0])
    sys.exit(f"{name}: {' '.join(str(error).split())}")


@contextlib.contextmanager
def loading():
    """The context in which a program imports what takes seconds to load.

    What TensorFlow and the emulator say then is silenced, unless
    `TF_CPP_MIN_LOG_LEVEL` is set.
    """
    quiet = "TF_CPP_MIN_LOG_LEVEL" not in os.environ
    with _silence() if quiet else contextlib.nullcontext():
        yield
    from reuse_tf import process

    process.settle()


@contextlib.contextmanager
def _silence():
    """Closes the standard error, as TensorFlow reports missing GPUs early.

    It does so before it looks at its log level.
    """
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
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
