"""What the commands write: tables, CSV files, and what they ran on."""

import csv
import importlib.metadata
import os

import keras
import tensorflow as tf
from absl import flags


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


def _is_writable(path):
    if path is None:
        return True
    folder = os.path.dirname(path) or os.curdir
    if os.path.exists(path):
        return os.path.isfile(path) and os.access(path, os.W_OK)
    return os.path.isdir(folder) and os.access(folder, os.W_OK)


def environment():
    """Returns what the measurements depend on, by name."""
    threads = tf.config.threading.get_intra_op_parallelism_threads()
    try:
        version = importlib.metadata.version("reuse-tf")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "reuse_tf": version,
        # 0 stands for as many as there are processors to run on.
        "threads": threads or _processors(),
    }


def _processors():
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def saved(rows, path):
    """Writes rows to a CSV file as they come, and passes them on.

    Args:
        rows: Iterable of dicts that have the same keys.
        path: The file, which is replaced; or None, to write nothing.

    Yields:
        The rows.
    """
    if path is None:
        yield from rows
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row))
                writer.writeheader()
            writer.writerow(row)
            file.flush()
            yield row


def finished(path, key):
    """Reads the rows of a CSV file that an earlier run has written.

    Args:
        path: The file, which need not exist; or None.
        key: Names of the columns that tell rows apart.

    Returns:
        By the tuple of the key's values, dicts of strings. A last row that
        was not written to its end is left out, and taken out of the file.

    Raises:
        flags.Error: If the file lacks one of the key's columns.
    """
    if path is None or not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        lines = file.readlines()
    whole = [line for line in lines if line.endswith("\n")]
    reader = csv.DictReader(whole)
    if not set(key) <= set(reader.fieldnames or key):
        raise flags.Error(
            f"{path} has other columns, of another version or command"
        )
    if whole != lines:
        with open(path, "w", encoding="utf-8", newline="") as file:
            file.writelines(whole)
    return {tuple(row[name] for name in key): row for row in reader}


def append(row, path):
    """Adds a row to a CSV file, which is made if there is none.

    Args:
        row: A dict.
        path: The file, with the columns of the row; or None, to write nothing.

    Raises:
        flags.Error: If the file has other columns.
    """
    if path is None:
        return
    with open(path, "a+", encoding="utf-8", newline="") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        writer = csv.DictWriter(file, list(row))
        if header is None:
            writer.writeheader()
        elif header != list(row):
            raise flags.Error(
                f"{path} has other columns, of another version or command"
            )
        writer.writerow(row)


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
