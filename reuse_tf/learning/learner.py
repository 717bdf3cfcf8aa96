"""What learns: a model, the optimizer of its weights, and how it acts."""

import itertools
import pathlib
import tempfile
import threading

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import internals
from reuse_tf.learning.optimizer import make_optimizer
from reuse_tf.policies import build_network, load_policy, run_directory
from reuse_tf.policies.evaluators import evaluator
from reuse_tf.policies.run_directory import POLICY

_OPTIMIZER = "optimizer.npz"
# What is drawn, and of which type, is decided by settings of Keras that all
# threads share.
_building = threading.Lock()


class Learner:
    """A model that learns, which takes seconds to make.

    Args:
        settings: `Settings`.
        frame_shape: `(height, width, channels)`.
        num_actions: Number of actions.
        network: See `training.train`.
        value: Whether it has a critic; see `build_network`.
        epsilon: What the optimizer adds to denominators.

    Attributes:
        model: A plain Keras model.
        optimizer: The `Optimizer` of its weights.
        evaluator: A `Reusing` or `Plain` of it.
    """

    def __init__(
        self,
        settings,
        frame_shape,
        num_actions,
        *,
        network=None,
        value=False,
        epsilon,
    ):
        self._kind = (frame_shape, num_actions)
        self._value = value
        with _building:
            keras.utils.set_random_seed(settings.seed)
            self.model = build_network(
                network or settings.network,
                frame_shape,
                num_actions,
                filters=None if network else settings.filters,
                value=value,
            )
        if not self.model.trainable_variables:
            raise ValueError(
                "Expected `network` to make a model that can learn. Received: "
                "one without trainable weights"
            )
        if network is not None:
            _check_dtypes(self.model)
            _check_losses(self.model)
            self._check_it_can_be_read()
        with _building:
            self.optimizer = make_optimizer(
                settings, self.model.trainable_variables, epsilon
            )
        self.evaluator = evaluator(self.model, settings.reuse)

    def _check_it_can_be_read(self):
        """Refuses, before anything is trained, what no run could go on with."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / POLICY
            try:
                self.model.save(path)
                self._load(path)
            except Exception as error:  # of many kinds
                raise ValueError(
                    "Expected `network` to make a model that Keras can save "
                    "and load, with all its classes registered "
                    "(`keras.saving.register_keras_serializable`). Received: "
                    f"one of which it says: {error}"
                ) from error

    def _load(self, path):
        return load_policy(
            path, *self._kind, incremental=False, value=self._value
        )

    def follow(self, team):
        """Takes over the weights of the chief, and the optimizer's state.

        Args:
            team: `workers.Workers`.
        """
        optimizer = self.optimizer.state()
        count = len(optimizer)
        arrays = team.from_chief([*optimizer, *self.model.get_weights()])
        self.optimizer.set_state(arrays[:count])
        self.model.set_weights(arrays[count:])

    def write(self, path):
        """Writes the policy and the optimizer into a directory."""
        self.model.save(path / POLICY)
        self.optimizer.save(path / _OPTIMIZER)

    def read(self, path):
        """Reads what `write` has written.

        Raises:
            ValueError: If it is damaged. The error names the file. Or if it is
                of another network.
        """
        with run_directory.reading(path / POLICY):
            saved = self._load(path / POLICY)
        if difference := _difference(saved, self.model):
            raise run_directory.OtherRun(
                f"The run's network is another one than that to train: "
                f"{difference}"
            )
        self.model.set_weights(saved.get_weights())
        if not _agree(saved, self.model):
            raise run_directory.OtherRun(
                "The run's network is another one than that to train: with the "
                "same layers and weights it computes something else"
            )
        with run_directory.reading(path / _OPTIMIZER):
            self.optimizer.load(path / _OPTIMIZER)


def _check_dtypes(model):
    """Refuses weights and outputs that updates cannot be made with."""
    outputs = keras.tree.flatten(internals.outputs_of(model))
    for tensors, dtypes in (
        (model.trainable_variables, ("float32",)),
        # Of mixed precision.
        (outputs, ("float32", "float16", "bfloat16")),
    ):
        for tensor in tensors:
            if tensor.dtype not in dtypes:
                raise ValueError(
                    "Expected `network` to make a model of float32 weights, "
                    f"and outputs of {' or '.join(dtypes)}. Received: "
                    f"{tensor.name!r} of {tensor.dtype}"
                )


def _check_losses(model):
    """Refuses losses of a model's own, which updates would leave out."""
    for layer in internals.sublayers(model):
        for name, value in vars(layer).items():
            if name.endswith("regularizer") and value is not None:
                raise ValueError(
                    "Expected `network` to make a model without losses of its "
                    f"own. Received: layer {layer.name!r} with a `{name}`"
                )
    # Those that `add_loss` adds are there once the model has been called.
    model(tf.zeros((1, *model.input_shape[1:]), tf.uint8), training=False)
    if model.losses:
        raise ValueError(
            "Expected `network` to make a model without losses of its own. "
            f"Received: one with {len(model.losses)}"
        )


def _difference(saved, model):
    """Says where two models differ, in a line; or None, if in nothing seen."""
    for ours, theirs in itertools.zip_longest(*map(_described, (model, saved))):
        if ours != theirs:
            return (
                f"it has {theirs or 'nothing'} in place of {ours or 'nothing'}"
            )
    return None


def _agree(saved, model):
    """Whether models compute the same of two frames of noise.

    So they do if `saved` does not compute the same twice.
    """
    shape = model.input_shape[1:]
    frames = np.random.default_rng(0).integers(0, 256, (2, *shape), np.uint8)

    def outputs(of):
        return keras.tree.flatten(of(frames, training=False))

    def close(ones, others):
        return all(
            np.allclose(one, other, rtol=1e-3, atol=1e-4, equal_nan=True)
            for one, other in zip(ones, others, strict=True)
        )

    want = outputs(saved)
    return not close(outputs(saved), want) or close(outputs(model), want)


def _described(model):
    """What its layers are, one by one, but for their names."""
    for layer in internals.sublayers(model):
        if isinstance(layer, keras.Model | keras.layers.InputLayer):
            continue
        plain = {
            name: value
            for name, value in layer.get_config().items()
            if name not in ("name", "trainable", "seed")
            and isinstance(value, str | int | float | list | tuple)
        }
        constraints = {
            name: type(value).__name__
            for name, value in vars(layer).items()
            if name.endswith("_constraint") and value is not None
        }
        weights = [tuple(weight.shape) for weight in layer.weights]
        frozen = "" if layer.trainable else "frozen "
        yield (
            f"{frozen}{type(layer).__name__} {plain | constraints}, weights "
            f"{weights}"
        )
