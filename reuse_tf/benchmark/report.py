"""What the commands write: tables, CSV files, and what they ran on."""

import csv
import importlib.metadata
import importlib.util
import io
import os
import platform

import keras
import numpy as np
import tensorflow as tf
from absl import flags

import reuse_tf
from reuse_tf import atari, files

# The columns that are no numbers, of all commands.
_TEXTS = (
    *("mode", "game", "filters", "column", "policy_tenths", "change"),
    *("network", "frames", "what", "reuse", "clip", "algorithm", "learner"),
    *("learned_of", "settings"),
    *(
        "instruction_set",
        "tensorflow",
        "keras",
        "reuse_tf",
        "processor",
        "torch",
        "stable_baselines3",
    ),
)


def define_out(flag_values):
    """Defines the flag `--out`, the CSV file that a command writes."""
    out = flags.DEFINE_string(
        "out",
        None,
        "File to write the measurements to, as CSV.",
        flag_values=flag_values,
    )
    flags.register_validator(
        out, _is_writable, message="cannot be written", flag_values=flag_values
    )
    return out


def define_count(flag_values, name, default, text, least=1):
    """Defines the flag of a number of something."""
    return flags.DEFINE_integer(
        name, default, text, lower_bound=least, flag_values=flag_values
    )


def define_seed(flag_values, text, largest):
    """Defines the flag `--seed`."""
    return flags.DEFINE_integer(
        "seed",
        0,
        text,
        lower_bound=0,
        upper_bound=largest,
        flag_values=flag_values,
    )


def define_threads(flag_values):
    """Defines the flag `--threads`, for `use_threads`."""
    text = "Threads of TensorFlow. 0: one for each processor."
    return define_count(flag_values, "threads", 0, text, 0)


def use_threads(count):
    """Has TensorFlow use so many threads, before it starts."""
    if count:
        tf.config.threading.set_intra_op_parallelism_threads(count)


def _is_writable(path):
    if path is None:
        return True
    if not path:
        return False
    path = os.path.expanduser(path)
    folder = os.path.dirname(path) or os.curdir
    if os.path.exists(path):
        return os.path.isfile(path) and os.access(path, os.W_OK)
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def short_names(games):
    """Returns the short names of games that `--games` gives, a list.

    Raises:
        flags.Error: If there are none, or one is not that of a game.
    """
    if not games:
        raise flags.Error("expected --games to be one or more, got ''")
    try:
        return [atari.short_name(game) for game in games]
    except ValueError as error:
        raise flags.Error(error) from error


def environment():
    """Returns what the measurements depend on, by name."""
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "reuse_tf": reuse_tf.__version__,
        "processor": _processor(),
        # 0 stands for as many as there are processors to run on.
        "threads": threads or _processors(),
    }


def version_of_rival(module):
    """Returns the version of a package that is compared with.

    Args:
        module: The name of its module.

    Returns:
        A string, which is empty if it is not installed.
    """
    if importlib.util.find_spec(module) is None:
        return ""
    return importlib.metadata.version(module)


def _processor():
    """The name of the processor, as well as the system knows it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _processors():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


class Results:
    """A CSV file of measurements, of which only the missing ones are made.

    A last row that was not written to its end is taken out of the file.

    Args:
        path: The file, which need not exist; or None, to keep nothing.
        key: Names of the columns that tell rows apart.
        others: Those of other columns that are needed.

    Raises:
        flags.Error: If the file lacks one of these columns, or a row a value.
    """

    def __init__(self, path, key, others=()):
        self._path = path and os.path.expanduser(path)
        self._key = key
        self._rows = {}
        if self._path is None or not os.path.exists(self._path):
            return
        with open(self._path, encoding="utf-8", newline="") as file:
            try:
                lines = file.readlines()
            except UnicodeDecodeError as error:
                raise self._other_columns() from error
        whole = [line for line in lines if line.endswith("\n")]
        if lines and not whole:
            raise self._other_columns()
        reader = csv.DictReader(whole)
        try:
            needed = {*key, *others}
            if not needed <= set(reader.fieldnames or needed):
                raise self._other_columns()
            for row in reader:
                if None in row or None in row.values():
                    raise flags.Error(
                        f"{path}: line {reader.line_num} has not one value for "
                        "each column. Take it out, to have it measured again"
                    )
                for name, value in row.items():
                    if name not in _TEXTS and value and not _is_number(value):
                        raise flags.Error(
                            f"{path}: line {reader.line_num} has no number as "
                            f"its {name}, but {value!r}. Take it out, to have "
                            "it measured again"
                        )
                self._rows[tuple(row[name] for name in key)] = row
        except csv.Error as error:
            raise flags.Error(
                f"{path}: line {reader.line_num}: {error}"
            ) from error
        if whole != lines:
            files.write(self._path, "".join(whole).encode())

    def row(self, asked, measure):
        """Returns a row of the file, which is measured if it is not there.

        Args:
            asked: A dict of the key's columns.
            measure: A function without arguments that returns a dict of the
                other columns.

        Returns:
            A dict of strings.

        Raises:
            flags.Error: If the file has other columns.
        """
        key = tuple(str(asked[name]) for name in self._key)
        if key not in self._rows:
            row = {**asked, **measure()}
            self._rows[key] = {name: str(value) for name, value in row.items()}
            self._append(row)
        return self._rows[key]

    def _append(self, row):
        if self._path is None:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(row), lineterminator="\n")
        writer.writeheader()
        start = text.tell()
        writer.writerow(row)
        lines = text.getvalue()
        try:
            with open(self._path, encoding="utf-8", newline="") as file:
                header = file.readline()
        except FileNotFoundError:
            header = ""
        if not header:
            files.write(self._path, lines.encode())
            return
        if next(csv.reader([header])) != list(row):
            raise self._other_columns()
        try:
            with open(self._path, "a", encoding="utf-8", newline="") as file:
                file.write(lines[start:])
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._path) from error

    def _other_columns(self):
        return flags.Error(
            f"{self._path} has other columns, of another version or command"
        )


class Table:
    """A Markdown table, printed line by line, aligned.

    Args:
        columns: Pairs of a heading and the width of the widest cell.
    """

    def __init__(self, columns):
        self._widths = [max(len(name), width) for name, width in columns]
        self.print_row(*(name for name, _ in columns))
        print("|", *(f"{'-' * (width - 1)}: |" for width in self._widths))

    def print_row(self, *cells):
        """Prints one line of strings."""
        pairs = zip(cells, self._widths, strict=True)
        print("|", *(f"{cell:>{width}} |" for cell, width in pairs), flush=True)


class NumberTable:
    """A table of numbers that ends with their medians and the largest ones.

    Args:
        name: Heading of the first column.
        columns: By heading, the format of a number, such as `".2f"`.
    """

    def __init__(self, name, columns):
        self._formats = list(columns.values())
        self._table = Table([(name, 14), *((name, 5) for name in columns)])
        self._rows = []

    def print_row(self, name, numbers):
        """Prints one line. A NaN is shown as a dash."""
        self._rows.append(list(numbers))
        self._print(name, self._rows[-1])

    def print_summary(self):
        """Prints the medians and the largest numbers of the lines so far."""
        numbers = np.array(self._rows, float)
        for name, function in (("median", np.median), ("largest", np.max)):
            # Of the games that have the number.
            self._print(
                name,
                [
                    function(known) if len(known) else np.nan
                    for known in (line[~np.isnan(line)] for line in numbers.T)
                ],
            )

    def _print(self, name, numbers):
        self._table.print_row(
            name,
            *(
                "-" if np.isnan(number) else format(number, form)
                for number, form in zip(numbers, self._formats, strict=True)
            ),
        )
