"""How far a training is: counted, and shown as it goes on."""

import contextlib
import dataclasses
import sys
import time
from typing import NamedTuple

import keras
import numpy as np

from reuse_tf.learning.settings import is_finite
from reuse_tf.policies import run_directory
from reuse_tf.summaries import Scalars

# The progress bar and the curve show the mean return of this many episodes.
RECENT = 100
# Seconds between two updates of the progress bar.
_INTERVAL = 0.2


class Row(NamedTuple):
    """A row of `episodes.csv`."""

    episode: int
    update: int
    length: int  # in steps
    return_: float
    end: str  # "terminated", "truncated" or "cut": see `Settings`
    steps: int  # of the run, as of the episode's update
    seconds: float  # of the run, at the end of the episode's update
    processor_seconds: float  # the same of all processors' time


COLUMNS = [name.rstrip("_") for name in Row._fields]


@dataclasses.dataclass
class Progress:
    """How far a run is.

    Raises:
        ValueError: If one of its fields is not a finite number.
    """

    updates: int = 0
    episodes: int = 0
    steps: int = 0
    environment_seconds: float = 0.0
    policy_seconds: float = 0.0
    update_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    total_seconds: float = 0.0
    processor_seconds: float = 0.0

    def __post_init__(self):
        if not all(map(is_finite, vars(self).values())):
            raise ValueError(f"expected numbers, got {self}")

    def is_finished(self, settings):
        """Returns whether a bound of `Settings` is reached."""
        return any(
            bound is not None and count >= bound
            for count, bound in (
                (self.steps, settings.steps),
                (self.episodes, settings.episodes),
            )
        )


def parse_rows(kind, rows, path, name):
    """Returns rows of a table of a run as tuples.

    Args:
        kind: Their class: a `NamedTuple` of columns.
        rows: Lists of strings.
        path: The run's directory.
        name: The table's file there.

    Raises:
        ValueError: If a row is not of that kind.
    """
    columns = kind.__annotations__.values()
    parsed = []
    for row in rows:
        try:
            pairs = zip(columns, row, strict=True)
            parsed.append(kind(*(column(value) for column, value in pairs)))
        except ValueError as error:
            raise run_directory.damaged_rows(
                path,
                f"row {len(parsed) + 1} is {','.join(row)!r}: {error}",
                name,
            ) from error
    return parsed


class Bar:
    """A progress bar with the return and the steps per second.

    It counts steps, or episodes if only they are bounded, and begins at those
    of the checkpoint. If the standard output is no terminal it is one line at
    the end.
    """

    def __init__(self, settings, rows, show=True):
        self._of_steps = settings.steps is not None
        verbose = 1 if sys.stdout.isatty() else 2
        self._bar = keras.utils.Progbar(
            settings.steps if self._of_steps else settings.episodes,
            verbose=verbose if show else 0,
            interval=0,
            stateful_metrics=["return", "steps/s"],
            unit_name="step" if self._of_steps else "episode",
        )
        self._episodes = 0
        self._values = []
        self._first = None
        self._next = 0.0
        self._show(rows)

    def update(self, steps, rows=None, finalize=False):
        """Counts `steps` of the run, and its episodes if `rows` are given."""
        now = time.perf_counter()
        if self._first is None:
            self._first = (steps, now)
        if rows is not None:
            self._show(rows)
        if now < self._next and not finalize:
            return
        self._next = now + _INTERVAL
        since = now - self._first[1]
        speed = (steps - self._first[0]) / since if since else 0.0
        self._bar.update(
            steps if self._of_steps else self._episodes,
            [*self._values, ("steps/s", speed)],
            finalize=finalize,
        )

    @contextlib.contextmanager
    def paused(self):
        """The context in which time does not count."""
        begin = time.perf_counter()
        yield
        if self._first is not None:
            steps, since = self._first
            self._first = steps, since + time.perf_counter() - begin

    def _show(self, rows):
        self._episodes = len(rows)
        if rows:
            recent = [row.return_ for row in rows[-RECENT:]]
            self._values = [("return", np.mean(recent))]


class TensorBoard:
    """A log of each update for TensorBoard, in a folder of the run.

    Args:
        path: The run's directory. If it is None nothing is logged.
    """

    def __init__(self, path):
        self._scalars = None if path is None else Scalars(path / "tensorboard")

    def log_update(self, progress, rows, scalars):
        """Logs an update, of these rows and these numbers by name.

        Raises:
            OSError: If it cannot be written.
        """
        values = {"steps_per_second": progress.steps / progress.total_seconds}
        if rows:  # An update need not end an episode.
            values["return"] = np.mean([row.return_ for row in rows])
            values["length"] = np.mean([row.length for row in rows])
        self.log(progress, {**values, **scalars})

    def log(self, progress, scalars):
        """Logs numbers by name.

        Raises:
            OSError: If they cannot be written.
        """
        if self._scalars is not None:
            self._scalars.write(scalars, progress.steps)
