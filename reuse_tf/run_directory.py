"""The directory of a training run, which a kill at any moment leaves whole.

    flags.json          the run's settings
    episodes.csv        one row per episode
    checkpoint-000123/  everything to go on from; the number counts updates

A checkpoint is written beside under the name `checkpoint-000123.tmp`, and
renamed when it is on the disk, so that one of the final name is complete.
"""

import csv
import fcntl
import json
import os
import pathlib
import shutil

POLICY = "policy.keras"
_SETTINGS = "flags.json"
_EPISODES = "episodes.csv"
_STATE = "state.json"
_PREFIX = "checkpoint-"
_TEMPORARY = ".tmp"


def newest_policy(path):
    """Returns the path of the newest saved policy of a run.

    Args:
        path: A run directory.

    Raises:
        ValueError: If it holds none.
    """
    checkpoints = _checkpoints(pathlib.Path(path))
    if not checkpoints:
        raise ValueError(f"There is no checkpoint of a run in {str(path)!r}")
    return checkpoints[-1] / POLICY


def saved_settings(path):
    """Returns the settings of a run, or an empty dict if there is none.

    Args:
        path: A run directory, which need not exist.
    """
    try:
        return json.loads((pathlib.Path(path) / _SETTINGS).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return {}


class RunDirectory:
    """A run's directory, made or opened by the one process that writes to it.

    Args:
        path: Where it is to be. Made if it does not exist.
        settings: A dict of values that JSON can hold. Those of an existing run
            must be the same.
        may_change: Names of settings that need not be the same.
        columns: Names of the columns of `episodes.csv`.

    Raises:
        ValueError: If `path` holds something else than a run, or a run of
            other settings, or another process uses it.
    """

    def __init__(self, path, settings, *, may_change, columns):
        self.path = pathlib.Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ValueError(
                f"Cannot use {str(path)!r} as `run_dir`: {error.strerror}"
            ) from error
        self._columns = columns
        self._episodes = None
        try:
            # The lock ends with the process, however that ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._check(settings, may_change)
        except BaseException as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise ValueError(
                    f"Another process is training in `run_dir` {str(path)!r}"
                ) from error
            raise
        self._write_settings(settings)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._episodes is not None:
            self._episodes.close()
        os.close(self._lock)

    def restore(self, read):
        """Goes back to the newest checkpoint, or to an empty run.

        Rows of episodes after it are dropped.

        Args:
            read: A function of the checkpoint's directory and the dict that
                was saved with it. Called if there is a checkpoint.

        Returns:
            The rows of `episodes.csv`, as lists of strings.
        """
        for leftover in self.path.glob(f"{_PREFIX}*{_TEMPORARY}"):
            shutil.rmtree(leftover)
        file = self.path / _EPISODES
        checkpoints = _checkpoints(self.path)
        if checkpoints:
            state = json.loads((checkpoints[-1] / _STATE).read_text())
            size = state.pop("episodes_bytes")
            if not file.exists() or file.stat().st_size < size:
                raise ValueError(f"Rows are missing from {str(file)!r}")
            os.truncate(file, size)
            read(checkpoints[-1], state)
        else:
            with file.open("w", newline="") as new:
                csv.writer(new).writerow(self._columns)
        with file.open(newline="") as old:
            rows = list(csv.reader(old))[1:]
        self._episodes = file.open("a", newline="")
        return rows

    @property
    def is_saved(self):
        """Whether there is a checkpoint."""
        return bool(_checkpoints(self.path))

    def append(self, rows):
        """Adds rows to `episodes.csv`."""
        csv.writer(self._episodes).writerows(rows)
        self._episodes.flush()

    def save(self, number, state, write):
        """Writes a checkpoint, and removes those before it.

        Args:
            number: A number above those of all checkpoints so far.
            state: A dict of values that JSON can hold.
            write: A function of a directory, in which it writes files.
        """
        # The rows that the checkpoint counts on are to last as it does.
        os.fsync(self._episodes.fileno())
        final = self.path / f"{_PREFIX}{number:06}"
        temporary = final.with_name(final.name + _TEMPORARY)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        write(temporary)
        size = os.fstat(self._episodes.fileno()).st_size
        state = {**state, "episodes_bytes": size}
        (temporary / _STATE).write_text(json.dumps(state))
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        temporary.rename(final)
        _sync(self.path)
        for other in _checkpoints(self.path):
            if other != final:
                shutil.rmtree(other)

    def _check(self, settings, may_change):
        saved = saved_settings(self.path)
        if not saved:
            others = set(os.listdir(self.path)) - {_SETTINGS + _TEMPORARY}
            if others:
                raise ValueError(
                    f"`run_dir` {str(self.path)!r} is not empty, and holds no "
                    f"run: it has {min(others)!r} but no {_SETTINGS}"
                )
            return
        for name, value in json.loads(json.dumps(settings)).items():
            if name not in may_change and saved.get(name) != value:
                raise ValueError(
                    f"The run in `run_dir` {str(self.path)!r} has "
                    f"--{name}={_flag(saved.get(name))}. Received: "
                    f"--{name}={_flag(value)}"
                )

    def _write_settings(self, settings):
        temporary = self.path / (_SETTINGS + _TEMPORARY)
        temporary.write_text(json.dumps(settings, indent=2) + "\n")
        _sync(temporary)
        temporary.replace(self.path / _SETTINGS)
        _sync(self.path)


def _checkpoints(path):
    """Returns the complete checkpoints of a run, the newest last."""
    return sorted(
        (
            checkpoint
            for checkpoint in path.glob(f"{_PREFIX}*")
            if _number(checkpoint).isdecimal()
        ),
        key=lambda checkpoint: int(_number(checkpoint)),
    )


def _number(checkpoint):
    return checkpoint.name.removeprefix(_PREFIX)


def _flag(value):
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value


def _sync(path):
    """Waits until a file or a directory is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
