"""The optimizer of a training: compiled, and kept in checkpoints."""

import keras
import numpy as np
import tensorflow as tf


class Adam(keras.optimizers.Adam):
    """Adam by an op of TensorFlow's own, which computes in place.

    What XLA compiles of Keras's writes to new memory instead, and takes three
    times as long where weights fill more than the caches. Without `amsgrad`.

    `epsilon` stands where algorithm 1 of Kingma and Ba (2014),
    [arXiv 1412.6980](https://arxiv.org/abs/1412.6980), and PyTorch have it:
    beside the root of the mean square that was corrected for its beginning.
    Keras has it beside that of the other one, where the same number weighs more
    in the first thousand steps, 30 times as much in the first.
    """

    def update_step(self, gradient, variable, learning_rate):
        index = self._get_variable_index(variable)

        def number(value):
            return tf.cast(value, variable.dtype)

        step = number(self.iterations + 1)
        power = tf.pow(number(self.beta_2), step)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=tf.pow(number(self.beta_1), step),
            beta2_power=power,
            lr=number(learning_rate),
            beta1=number(self.beta_1),
            beta2=number(self.beta_2),
            epsilon=number(self.epsilon) * tf.sqrt(1 - power),
            grad=number(gradient),
        )


class RMSprop(keras.optimizers.RMSprop):
    """RMSprop whose mean squares begin at 1, as those of TensorFlow 1 did.

    It is what the usual learning rates of A2C are for: OpenAI Baselines' and,
    as `RMSpropTFLike`, Stable-Baselines3's. From 0 the first steps are some
    hundred times as large.
    """

    def build(self, var_list):
        super().build(var_list)
        for velocity in self._velocities:
            velocity.assign(tf.ones_like(velocity))


_OPTIMIZERS = {
    "adam": Adam,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": keras.optimizers.SGD,
}


def make_optimizer(settings, variables, epsilon):
    """Returns the `Optimizer` of variables that `Settings` describe."""
    kind = _OPTIMIZERS[settings.optimizer]
    others = {} if settings.optimizer == "sgd" else {"epsilon": epsilon}
    if (settings.algorithm, settings.optimizer) == ("a2c", "rmsprop"):
        kind, others["rho"] = RMSprop, 0.99  # as is usual there
    # Keras keeps the learning rate in its default type, whichever that is.
    floatx = keras.config.floatx()
    keras.config.set_floatx("float32")
    try:
        optimizer = kind(settings.learning_rate, **others)
    finally:
        keras.config.set_floatx(floatx)
    return Optimizer(optimizer, variables, settings.clip_norm)


class Optimizer:
    """A Keras optimizer and the variables it updates, compiled together.

    A step is one pass over the memory of each variable, or few, where op by op
    it takes twenty times as long.

    Args:
        optimizer: A Keras optimizer that has not been used, without weight
            decay or moving averages of weights.
        variables: A list of Keras variables.
        clip_norm: Gradients of a larger global norm are scaled down to it.
            By default none are.

    Raises:
        ValueError: If `optimizer` is not as above.
    """

    def __init__(self, optimizer, variables, clip_norm=None):
        if optimizer.weight_decay or optimizer.use_ema or optimizer.built:
            raise ValueError(
                "Expected `optimizer` to be new, without weight decay or "
                f"moving averages. Received: {optimizer.get_config()}"
            )
        self.variables = variables
        self._optimizer = optimizer
        optimizer.build(variables)

        @tf.function(
            jit_compile=not isinstance(optimizer, Adam), autograph=False
        )
        def apply(gradients):
            norm = tf.linalg.global_norm(gradients)

            def update():
                clipped = gradients
                if clip_norm is not None:
                    # At most 1, and not 0 / 0.
                    scale = clip_norm / tf.maximum(norm, clip_norm)
                    clipped = [g * scale for g in gradients]
                optimizer.apply(clipped, variables)
                return tf.stack([tf.nn.l2_loss(v) for v in variables])

            squares = tf.cond(
                tf.math.is_finite(norm),
                update,
                lambda: tf.zeros(len(variables)),
            )
            return norm, squares

        # Compiled here and not at the first update: a step with gradients of
        # zero, of which nothing remains.
        before = self.state()
        apply([tf.zeros_like(v) for v in variables])
        self.set_state(before)
        self._apply = apply

    def apply(self, gradients):
        """Updates the variables.

        Args:
            gradients: A list of tensors, one per variable.

        Returns:
            The global norm of the gradients, before they were clipped.

        Raises:
            FloatingPointError: If the gradients are not finite, in which case
                the variables are left as they were, or if a variable is not
                finite any more.
        """
        norm, squares = self._apply(gradients)
        norm = float(norm)
        if not np.isfinite(norm):
            raise FloatingPointError(
                f"the norm of the gradient is not finite: {norm}"
            )
        for variable, number in zip(
            self.variables, squares.numpy(), strict=True
        ):
            # Squares of finite ones may not be finite.
            if not np.isfinite(number) and not np.isfinite(variable).all():
                raise FloatingPointError(
                    f"the weights {variable.path!r} are not finite any more"
                )
        return norm

    @property
    def learning_rate(self):
        """The learning rate, which may be assigned to."""
        return float(self._optimizer.learning_rate)

    @learning_rate.setter
    def learning_rate(self, value):
        self._optimizer.learning_rate = value

    def state(self):
        """Returns the values of the optimizer's own variables, arrays."""
        return [variable.numpy() for variable in self._optimizer.variables]

    def set_state(self, values):
        """Goes back to what `state` has returned."""
        for variable, value in zip(
            self._optimizer.variables, values, strict=True
        ):
            variable.assign(value)

    def save(self, path):
        """Writes the optimizer's own variables to an `.npz` file."""
        store = {}
        self._optimizer.save_own_variables(store)
        with open(path, "wb") as file:
            np.savez(file, **store)

    def load(self, path):
        """Reads what `save` has written.

        Args:
            path: The file.

        Raises:
            ValueError: If its arrays are not those of this optimizer. Keras
                would skip what does not fit.
            Exception: Of other kinds, if it cannot be read.
        """
        # What is not an archive NumPy would leave open.
        with open(path, "rb") as file, np.load(file) as store:
            values = dict(store)
        got = {name: value.shape for name, value in values.items()}
        want = {
            str(i): tuple(variable.shape)
            for i, variable in enumerate(self._optimizer.variables)
        }
        if got != want:
            raise ValueError(f"expected arrays of shapes {want}, got {got}")
        self._optimizer.load_own_variables(values)
