"""What learns: a model, the optimizer of its weights, and how it acts."""

import keras

from reuse_tf.learning.evaluators import evaluator
from reuse_tf.learning.optimizer import make_optimizer
from reuse_tf.policies import build_network, load_policy, run_directory
from reuse_tf.policies.run_directory import POLICY

_OPTIMIZER = "optimizer.npz"


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
        keras.utils.set_random_seed(settings.seed)
        self.model = build_network(
            network or settings.network,
            frame_shape,
            num_actions,
            filters=None if network else settings.filters,
            value=value,
        )
        self.optimizer = make_optimizer(
            settings, self.model.trainable_variables, epsilon
        )
        self.evaluator = evaluator(self.model, settings.reuse)

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
            ValueError: If it is damaged. The error names the file.
        """
        with run_directory.reading(path / POLICY):
            saved = load_policy(
                path / POLICY,
                *self._kind,
                incremental=False,
                value=self._value,
            )
            self.model.set_weights(saved.get_weights())
        with run_directory.reading(path / _OPTIMIZER):
            self.optimizer.load(path / _OPTIMIZER)
