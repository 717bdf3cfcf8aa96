"""The directory of a training run, which a kill at any moment leaves whole.

    flags.json          the run's settings
    episodes.csv        one row per episode
    evaluations.csv     one row per evaluation, if there are any
    best.keras          the policy of the best one
    learning_curve.png  their returns
    tensorboard/        a log of each update
    checkpoint-000123/  everything to go on from; the number counts updates

A checkpoint is written beside under the name `checkpoint-000123.tmp`, and
renamed when it is on the disk, so that one of the final name is complete. The
last two are kept.
"""

import contextlib
import csv
import errno
import fcntl
import io
import itertools
import json
import os
import pathlib
import shutil
import weakref
from typing import Any

from reuse_tf import files

POLICY = "policy.keras"
CURVE = "learning_curve.png"
STATE = "state.json"
_SETTINGS = "flags.json"
EPISODES = "episodes.csv"
EVALUATIONS = "evaluations.csv"
BEST = "best.keras"
_PREFIX = "checkpoint-"
_TEMPORARY = files.TEMPORARY
# Checkpoints that are kept: one to go on from if the newest is damaged.
_KEPT = 2
# Errors of a path at which there is no file.
_NONE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
# Of these, and of checkpoints, a run consists.
_PARTS = (_SETTINGS, EPISODES, EVALUATIONS, BEST, CURVE, "tensorboard")
_ADVICE = (
    "Restore it from a copy, or begin another run in another directory "
    "(--run_dir)."
)


# Those that hold a lock, which forked processes share, and would keep when this
# one has ended.
_locked: weakref.WeakSet["RunDirectory"] = weakref.WeakSet()


def _unlock_in_child():
    for directory in [*_locked]:
        directory._unlock()


os.register_at_fork(after_in_child=_unlock_in_child)


class OtherRun(ValueError):
    """Why a checkpoint, though it is whole, is not one to go on from."""


def check_outputs(path: str | os.PathLike[str], *outputs: str | None) -> None:
    """Refuses files to write that would be in the place of parts of a run.

    Args:
        path: A run directory, which need not exist.
        *outputs: The files; None is none.

    Raises:
        ValueError: If one is what a run consists of, or the run.
    """
    for output in outputs:
        if output is None:
            continue
        part = os.path.relpath(os.path.realpath(output), os.path.realpath(path))
        first = part.split(os.sep)[0]
        if first in (*_PARTS, os.curdir) or first.startswith(_PREFIX):
            raise ValueError(
                f"{output!r} is a part of the run in {str(path)!r}, or the run "
                "itself: write to another file"
            )


def policies(path: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Returns the paths of the saved policies of a run, the newest last.

    Args:
        path: A run directory.

    Raises:
        ValueError: If it holds none.
    """
    checkpoints = _checkpoints(pathlib.Path(path))
    if not checkpoints:
        policy = pathlib.Path(path) / POLICY
        advice = f". Expected the run, or {str(policy)!r}"
        raise ValueError(
            f"There is no checkpoint of a run in {str(path)!r}"
            + (advice if policy.exists() else "")
        )
    return [checkpoint / POLICY for checkpoint in checkpoints]


def newest_policy(path: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the last of `policies(path)`."""
    return policies(path)[-1]


def saved_settings(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Returns the settings of a run, or None if there is none.

    Args:
        path: A run directory, which need not exist.

    Returns:
        A dict.

    Raises:
        ValueError: If the file of the settings holds something else.
    """
    file = pathlib.Path(path) / _SETTINGS
    try:
        settings = json.loads(file.read_bytes())
        if not isinstance(settings, dict):
            raise ValueError(f"expected an object, got {settings!r:.40}")
    except (OSError, ValueError, RecursionError) as error:
        if getattr(error, "errno", None) in _NONE:
            return None
        raise damaged_settings(path, error) from error
    return settings


def damaged_settings(
    path: str | os.PathLike[str], error: BaseException
) -> ValueError:
    """Returns the `ValueError` of a run whose settings are damaged."""
    file = pathlib.Path(path) / _SETTINGS
    return ValueError(
        f"{str(file)!r} does not hold the settings of a run: "
        f"{files.explain(error)}. {_ADVICE}"
    )


def damaged_rows(
    path: str | os.PathLike[str],
    error: BaseException | str,
    name: str = EPISODES,
) -> ValueError:
    """Returns the `ValueError` of a run with a table that is damaged."""
    file = pathlib.Path(path) / name
    return ValueError(f"{str(file)!r} is damaged: {error}. {_ADVICE}")


def make_new(path):
    """Makes a directory that was not there, of the next free name.

    Args:
        path: Its name, to which a number is added if it is taken.

    Returns:
        The path of the directory.
    """
    os.makedirs(os.path.dirname(path) or os.curdir, exist_ok=True)
    for number in itertools.count(2):
        try:
            os.mkdir(path)
            return path
        except FileExistsError:
            path = f"{path.removesuffix(f'-{number - 1}')}-{number}"


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
        OSError: If it cannot be written.
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
        self._settings = settings
        self._columns = columns
        self._episodes = None
        try:
            # The lock ends with the process, however that ends.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _locked.add(self)
            self._check(settings, may_change)
        except BaseException as error:
            self._unlock()
            if isinstance(error, BlockingIOError):
                raise ValueError(
                    f"Another process is training in `run_dir` {str(path)!r}"
                ) from error
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            if self._episodes is not None:
                self._episodes.close()
        finally:
            self._unlock()

    def _unlock(self):
        _locked.discard(self)
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None

    def restore(self, read):
        """Goes back to the newest checkpoint, or to an empty run.

        Nothing was written to the directory before. Rows of episodes after
        the checkpoint are dropped.

        Args:
            read: A function of the checkpoint's directory and the dict that
                was saved with it, that returns how many rows there were then.
                Called if there is a checkpoint; it raises an error of any
                kind if that is damaged.

        Returns:
            The rows of `episodes.csv`, as lists of strings.

        Raises:
            ValueError: If the newest checkpoint or the rows are damaged, or
                there are results without a checkpoint.
        """
        self._require_place()
        checkpoints = _checkpoints(self.path)
        if not checkpoints:
            self._require_no_results()
        for leftover in self._leftovers():
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()
        content = (json.dumps(self._settings, indent=2) + "\n").encode()
        files.write(self.path / _SETTINGS, content)
        file = self.path / EPISODES
        rows = []
        if checkpoints:
            rows = self._rows(_read_newest(checkpoints, read))
        content = _csv([self._columns, *rows])
        if not file.is_file() or file.read_bytes() != content:
            files.write(file, content)
        self._episodes = file.open("a", newline="", encoding="utf-8")
        return rows

    def _require_no_results(self):
        """Refuses to begin a run where it would write over another's results.

        A run has a checkpoint before it has any.
        """
        file = self.path / EPISODES
        lines = file.read_bytes().split() if file.is_file() else []
        for name, is_there in (
            (EPISODES, len(lines) > 1),
            (EVALUATIONS, (self.path / EVALUATIONS).exists()),
            (BEST, self.has_best),
        ):
            if is_there:
                raise ValueError(
                    f"The run in {str(self.path)!r} has its {name}, but no "
                    f"checkpoint to go on from. {_ADVICE}"
                )

    def _leftovers(self):
        """What was being written when the process was killed."""
        for name in (
            *(_SETTINGS, EPISODES, EVALUATIONS),
            *(BEST, CURVE, _PREFIX),
        ):
            yield from self.path.glob(f"{name}*{_TEMPORARY}")

    def _rows(self, count):
        """Reads so many rows of `episodes.csv`, however its lines end."""
        try:
            text = (self.path / EPISODES).read_text("utf-8")
            lines = [line for line in text.splitlines() if line.strip()]
            columns, *rows = csv.reader(lines[: count + 1])
        except (OSError, ValueError, csv.Error) as error:
            raise damaged_rows(self.path, files.explain(error)) from error
        if columns != self._columns:
            raise damaged_rows(
                self.path,
                f"expected columns {self._columns}, got {columns}",
            )
        if len(rows) < count:
            raise damaged_rows(
                self.path, f"rows are missing, {count - len(rows)} of {count}"
            )
        return rows

    @property
    def is_saved(self):
        """Whether there is a checkpoint."""
        return bool(_checkpoints(self.path))

    def append(self, rows):
        """Adds rows to `episodes.csv`."""
        self._require_place()
        csv.writer(self._episodes).writerows(rows)
        self._episodes.flush()

    def evaluations(self):
        """Returns the rows of `evaluations.csv`, as lists of strings.

        Raises:
            ValueError: If it is damaged.
        """
        try:
            text = (self.path / EVALUATIONS).read_text("utf-8")
            _, *rows = csv.reader(text.splitlines())
        except FileNotFoundError:
            return []
        except (ValueError, csv.Error) as error:
            raise damaged_rows(
                self.path, files.explain(error), EVALUATIONS
            ) from error
        return rows

    def write_evaluations(self, columns, rows):
        """Writes `evaluations.csv` anew."""
        self._require_place()
        files.write(self.path / EVALUATIONS, _csv([columns, *rows]))

    @property
    def has_best(self):
        """Whether there is a policy that has scored best."""
        return (self.path / BEST).exists()

    def remove_best(self):
        """Removes the policy that has scored best."""
        self._require_place()
        (self.path / BEST).unlink(missing_ok=True)

    def write_best(self, model):
        """Writes the policy that has scored best."""
        self._require_place()
        files.write_model(self.path / BEST, model)

    def save(self, number, state, write):
        """Writes a checkpoint, and removes all but the one before it.

        If that fails, the checkpoints are as they were.

        Args:
            number: A number above those of all checkpoints so far.
            state: A dict of values that JSON can hold.
            write: A function of a directory, in which it writes files.

        Raises:
            OSError: If it cannot be written.
            ValueError: If the directory is no longer where it was.
        """
        self._require_place()
        # The rows that the checkpoint counts on are to last as it does.
        os.fsync(self._episodes.fileno())
        final = self.path / f"{_PREFIX}{number:06}"
        temporary = final.with_name(final.name + _TEMPORARY)
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir()
            write(temporary)
            (temporary / STATE).write_text(json.dumps(state))
            for file in temporary.iterdir():
                files.sync(file)
            files.sync(temporary)
            temporary.rename(final)
        except Exception as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError):
                raise files.of_file(error, final) from error
            raise
        files.sync(self.path)
        for old in _checkpoints(self.path)[:-_KEPT]:
            # What has a checkpoint's name is complete.
            temporary = old.with_name(old.name + _TEMPORARY)
            old.rename(temporary)
            shutil.rmtree(temporary)

    def _require_place(self):
        """Refuses to write where another directory is now, or none.

        That which is locked was moved or removed. Another run may have begun
        under its name.
        """
        try:
            found = os.stat(self.path)
        except OSError as error:
            if error.errno not in _NONE:
                raise
            found = None
        if found is None or not os.path.samestat(os.fstat(self._lock), found):
            raise ValueError(
                f"`run_dir` {str(self.path)!r} was moved or removed. To go on "
                "from the last checkpoint, pass where it is now"
            )

    def _check(self, settings, may_change):
        saved = saved_settings(self.path)
        if saved is None:
            leftovers = {path.name for path in self._leftovers()}
            others = set(os.listdir(self.path)) - leftovers
            if others:
                raise ValueError(
                    f"`run_dir` {str(self.path)!r} is not empty, and holds no "
                    f"run: it has {min(others)!r} but no {_SETTINGS}. Expected "
                    "a run, or a directory that is empty or does not exist"
                )
            return
        for name, value in json.loads(json.dumps(settings)).items():
            if name not in may_change and saved.get(name) != value:
                raise ValueError(
                    f"The run in `run_dir` {str(self.path)!r} has "
                    f"--{name}={_flag(saved.get(name))}. Received: "
                    f"--{name}={_flag(value)}"
                )


class NoDirectory:
    """What a process that does not keep the run has in place of its directory.

    It takes everything, and holds nothing.
    """

    path = None
    is_saved = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def restore(self, read):
        return []

    def evaluations(self):
        return []

    def append(self, rows):
        pass

    def save(self, number, state, write):
        pass


def _csv(rows):
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _checkpoints(path):
    """Returns the complete checkpoints of a run, the newest last."""
    checkpoints = [
        checkpoint
        for checkpoint in path.glob(f"{_PREFIX}*")
        if _number(checkpoint).isdecimal()
    ]
    for checkpoint in checkpoints:
        if not checkpoint.is_dir():
            raise ValueError(
                f"{str(checkpoint)!r} has the name of a checkpoint, and is a "
                "file. Delete or rename it"
            )
    return sorted(checkpoints, key=lambda path: int(_number(path)))


def _read_newest(checkpoints, read):
    """Returns what `read` does of the newest of some checkpoints."""

    def read_one(checkpoint):
        file = checkpoint / STATE
        with reading(file):
            state = json.loads(file.read_bytes())
        return read(checkpoint, state)

    def is_whole(checkpoint):
        try:
            read_one(checkpoint)
        except Exception:
            return False
        return True

    *older, newest = checkpoints
    try:
        return read_one(newest)
    except OtherRun:
        raise
    except Exception as error:
        whole = next(filter(is_whole, reversed(older)), None)
        reason = files.explain(error).rstrip(".")
        raise ValueError(
            f"Checkpoint {str(newest)!r} is damaged: {reason}. "
            + (
                f"There is no older one that is whole. {_ADVICE}"
                if whole is None
                else f"{str(whole)!r} before it is whole. To go on from there, "
                f"delete {str(newest)!r}."
            )
        ) from error


@contextlib.contextmanager
def reading(file):
    """Has errors name the file of a checkpoint that they come from."""
    try:
        yield
    # A damaged file is a zip, HDF5, JSON, Keras or emulator error.
    except Exception as error:
        raise ValueError(f"{file.name}: {files.explain(error)}") from error


def _number(checkpoint):
    return checkpoint.name.removeprefix(_PREFIX)


def _flag(value):
    if isinstance(value, list):
        return ",".join(map(str, value))
    return value
