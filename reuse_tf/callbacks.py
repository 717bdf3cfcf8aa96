"""What is reused, as a callback of Keras logs it."""

import os

import keras

from reuse_tf.batches import check_count
from reuse_tf.coverage import named_layers
from reuse_tf.layers import IncrementalConv2D, IncrementalDense
from reuse_tf.runner import Runner
from reuse_tf.summaries import Scalars


class StatsLogger(keras.callbacks.Callback):
    """Logs the `stats` of incremental layers and of a `Runner` for TensorBoard.

    For `evaluate` and `predict` of a model that `convert` made, for `fit` with
    validation data, and for `Runner.predict`. While it trains a layer is the
    plain one, so that of training itself there is nothing to tell. TensorBoard
    need not be installed where this runs.

    An entry is of what was done since the one before, or since `fit`,
    `evaluate` or `predict` began. What was not used meanwhile is left out. By
    layer, where NAME is that of `coverage`:

    - `NAME/recomputed_positions`: how many, as a part of all positions.
    - `NAME/multiply_adds`: how many were made, as a part of all that computing
      everything takes.

    Of a runner:

    - `runner/multiply_adds`: likewise, of all layers.
    - `runner/NAME/changed`, `runner/NAME/new_rows`,
      `runner/NAME/multiply_adds`: the same by layer, of `LayerStats`.
    - `runner/rows/NAME`, `runner/clears`, `runner/switches`: of
      `RunnerStats`, as they are.
    - `runner/seconds/NAME`: by part, for a frame.

    The step of an entry is the number of batches since the callback was made.

    Args:
        log_dir: The folder to write to.
        runner: A `Runner`, to be logged too.
        update_freq: How many batches of `evaluate` or `predict` go by between
            two entries. There is one at the end of each epoch, evaluation and
            prediction too.

    Raises:
        ValueError: If an argument is not as above; by `fit`, `evaluate` and
            `predict`, if there is neither a runner nor a model with
            incremental layers.
        OSError: By the same, if it cannot be written.

    Examples:
        >>> runner.predict(video, callbacks=[StatsLogger("logs", runner)])
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str],
        runner: Runner | None = None,
        update_freq: int = 1,
    ) -> None:
        super().__init__()
        if runner is not None and not isinstance(runner, Runner):
            raise ValueError(
                "Expected `runner` to be a Runner, or None. Received: "
                f"runner={runner!r}"
            )
        self._runner = runner
        self._update_freq = check_count("update_freq", update_freq) or 1
        self._scalars = Scalars(log_dir)
        self._batches = 0
        self._layers = {}
        self._seen = {}  # what there was at the last entry

    def set_model(self, model):
        super().set_model(model)
        self._layers = {
            name: layer
            for name, layer in named_layers(model)
            if isinstance(layer, (IncrementalConv2D, IncrementalDense))
        }
        if not self._layers and self._runner is None:
            raise ValueError(
                "Expected a model with incremental layers, as convert() makes "
                "it, or a `runner`. Received neither"
            )
        self._seen = self._parts()

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1

    def on_test_batch_end(self, batch, logs=None):
        self._count()

    def on_predict_batch_end(self, batch, logs=None):
        self._count()

    def on_epoch_end(self, epoch, logs=None):
        self._log()

    def on_test_end(self, logs=None):
        self._log()

    def on_predict_end(self, logs=None):
        self._log()

    def _count(self):
        self._batches += 1
        if self._batches % self._update_freq == 0:
            self._log()

    def _log(self):
        """Writes an entry, if anything was done."""
        parts = self._parts()
        scalars = {}
        for name, (part, whole) in parts.items():
            old_part, old_whole = self._seen.get(name, (0, 0))
            if whole < old_whole:  # reset meanwhile
                old_part = old_whole = 0
            if whole > old_whole:
                scalars[name] = (part - old_part) / (whole - old_whole)
        self._seen = parts
        if self._runner and any(n.startswith("runner/") for n in scalars):
            stats = self._runner.stats
            scalars["runner/clears"] = stats.clears
            scalars["runner/switches"] = stats.switches
            for name, rows in stats.rows.items():
                scalars[f"runner/rows/{name}"] = rows
        if scalars:
            self._scalars.write(scalars, self._batches)

    def _parts(self):
        """All that is logged as a part of something: both, by name."""
        parts = {}
        for name, layer in self._layers.items():
            stats = layer.stats
            parts[f"{name}/recomputed_positions"] = (
                stats.recomputed_positions,
                stats.positions,
            )
            parts[f"{name}/multiply_adds"] = (
                stats.multiply_adds,
                stats.dense_multiply_adds,
            )
        if self._runner is None:
            return parts
        stats = self._runner.stats
        parts["runner/multiply_adds"] = stats.multiply_adds
        for name, layer in stats.layers.items():
            parts[f"runner/{name}/changed"] = layer.changed, layer.positions
            parts[f"runner/{name}/new_rows"] = layer.new_rows, layer.positions
            parts[f"runner/{name}/multiply_adds"] = (
                layer.multiply_adds,
                layer.dense_multiply_adds,
            )
        for name, seconds in stats.seconds.items():
            parts[f"runner/seconds/{name}"] = seconds, stats.frames
        return parts
