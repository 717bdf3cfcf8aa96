"""What the programs share: their common flags, and how they start and fail."""

import contextlib
import os
import sys

import ale_py
from absl import app, flags


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


GAME = flags.DEFINE_string(
    "game", "Pong", "Atari game, by short name (Pong) or id (ALE/Pong-v5)."
)
FILTERS = flags.DEFINE(
    _FiltersParser(),
    "filters",
    "40,80",
    "Filters of each convolution of the policy.",
    serializer=flags.CsvListSerializer(","),
)
DOWNSAMPLE = flags.DEFINE_integer(
    "downsample", 2, "Keep every n-th pixel of the screen: 1, 2 or 4."
)
STEPS = flags.DEFINE_integer(
    "steps", 3000, "Steps of the environments in all.", lower_bound=1
)
REUSE = flags.DEFINE_enum(
    "reuse",
    "content",
    ["content", "temporal", "none"],
    "What is reused. content: an activation whose inputs were seen before, "
    "anywhere. temporal: one whose inputs are those of the last frame. none: "
    "nothing, by plain Keras layers.",
)
SEED = flags.DEFINE_integer(
    "seed",
    0,
    "Decides the initial weights, the game and the actions.",
    lower_bound=0,
    upper_bound=2**32 - 1,
)
SUMMARY_JSON = flags.DEFINE_string(
    "summary_json", None, "File to write the summary to, as JSON."
)


@flags.validator(DOWNSAMPLE, message="must be 1, 2 or 4")
def _is_downsample(value):
    return value in (1, 2, 4)


def is_writable(path):
    """Whether a path is None, or of a file that can be written."""
    if path is None:
        return True
    folder = os.path.dirname(path) or os.curdir
    if os.path.exists(path):
        return os.path.isfile(path) and os.access(path, os.W_OK)
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


flags.register_validator(SUMMARY_JSON, is_writable, message="cannot be written")


def run(main):
    """Runs a program, whose flags are checked before anything is loaded.

    Args:
        main: A function of the remaining arguments, of which there are none
            but the program's name.
    """

    def main_unless_interrupted(argv):
        try:
            main(argv)
        except KeyboardInterrupt:
            fail("interrupted")

    app.run(main_unless_interrupted, flags_parser=_parse)


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
