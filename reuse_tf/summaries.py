"""Numbers that TensorBoard shows as curves."""

import functools
import os
import re
from collections.abc import Mapping

import numpy as np
import tensorflow as tf


class Scalars:
    """A log of numbers, in a folder for TensorBoard.

    `tf.summary.scalar` needs TensorBoard to be installed; what it writes does
    not.
    """

    _METADATA = tf.compat.v1.SummaryMetadata(
        plugin_data={"plugin_name": "scalars"},
        data_class="DATA_CLASS_SCALAR",
    )

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)

    @functools.cached_property
    def _writer(self):
        """Made with the first numbers, and not before: it makes a file."""
        # As bytes: not every name of a file is text.
        return tf.summary.create_file_writer(os.fsencode(self._path))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Writes numbers by name, at a step.

        Raises:
            OSError: If they cannot be written.
        """
        try:
            with self._writer.as_default(step=step):
                for name, value in scalars.items():
                    tf.summary.write(
                        name, np.float32(value), metadata=self._METADATA
                    )
            self._writer.flush()
        except tf.errors.OpError as error:
            # Without the names of TensorFlow's functions and ops.
            reason = re.sub(r"\{\{.*?\}\}\s*|\s*\[Op:.*", "", error.message)
            raise OSError(
                f"cannot write to {self._path!r}: {reason}"
            ) from error
