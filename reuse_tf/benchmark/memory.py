"""The resident memory of this process."""

import ctypes
import gc
import math

import keras
import tensorflow as tf


def idle_mb():
    """Starts TensorFlow; returns what is resident before it does anything.

    Everything is loaded then, and nothing made: in MB, NaN where the system
    does not tell.
    """
    float(tf.reduce_sum(tf.zeros([1])))
    return _status_mb("VmRSS")


class Meter:
    """Measures the memory that something takes, as a context.

    What was freed before is given back to the system first, and the system's
    record of the peak is set to what is resident then, so that one process
    can measure one thing after another. What an earlier one still holds, such
    as TensorFlow's threads and compiled code, counts for the later one too.

    Attributes:
        start_mb: Resident memory at the beginning, in MB. This and the others
            are NaN where the system does not tell.
        peak_mb: The most that was resident in between.
        end_mb: Resident memory at the end.
    """

    def as_dict(self):
        """Returns the attributes by name."""
        return {
            name: getattr(self, name)
            for name in ("start_mb", "peak_mb", "end_mb")
        }

    def __enter__(self):
        keras.backend.clear_session()
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
            self._resets = True
        except (AttributeError, OSError):
            self._resets = False
        self.start_mb = _status_mb("VmRSS")
        return self

    def __exit__(self, *_):
        self.end_mb = _status_mb("VmRSS")
        self.peak_mb = _status_mb("VmHWM") if self._resets else math.nan


def _status_mb(name):
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
    except OSError:
        return math.nan
    return round(int(lines[name].split()[0]) / 1024, 1)
