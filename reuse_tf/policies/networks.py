"""Networks that play games: policies, and critics beside them."""

import inspect
import math
from collections.abc import Callable, Sequence

import keras

from reuse_tf.policies.policy import build_policy, check_arguments, policy_of

# Stated, as a user may have configured other defaults of Keras.
_DTYPE = {"dtype": "float32"}
_POSITIONS = {"data_format": "channels_last", **_DTYPE}
# Height and width of the smallest frame that the strides leave a position of.
_NATURE_SIZE = 36


def build_network(
    network: str | Callable[..., keras.Model],
    input_shape: Sequence[int],
    num_actions: int,
    *,
    filters: Sequence[int] | None = None,
    value: bool = False,
) -> keras.Model:
    """Builds a policy of one of several networks, with a critic if wanted.

    The critic is one more dense layer, of one unit, beside that of the logits.

    Args:
        network: A key of `NETWORKS`; or a function of `input_shape` and
            `num_actions` that makes a Keras model, as `policy_of` takes.
        input_shape: Shape of a frame, `(height, width, channels)`.
        num_actions: Number of actions.
        filters: See the network. By default those of its paper. Not for a
            function.
        value: Whether to give the value of a frame too.

    Returns:
        A Keras model, frames `[batch, height, width, channels]` (uint8) to
        logits `[batch, num_actions]`, or, if `value`, to a dict
        `{"logits": [batch, num_actions], "value": [batch, 1]}`, all float32.

    Raises:
        ValueError: If there is no such network, if an argument is not positive
            or of another rank, if the frames are too small for the network,
            or if the function's model does not fit.
    """
    if callable(network):
        if filters is not None:
            raise ValueError(
                "`filters` are not for a `network` that is a function. "
                f"Received: filters={filters}"
            )
        return policy_of(
            network(input_shape, num_actions),
            "The model that `network` makes",
            input_shape,
            num_actions,
            value=value,
        )
    if network not in NETWORKS:
        raise ValueError(
            f"`network` must be one of {', '.join(NETWORKS)}, or a function. "
            f"Received: network={network!r}"
        )
    settings = {} if filters is None else {"filters": filters}
    model = NETWORKS[network](input_shape, num_actions, **settings)
    return _with_value(model) if value else model


def paper(
    input_shape: Sequence[int],
    num_actions: int,
    filters: Sequence[int] = (40, 80),
) -> keras.Model:
    """Builds the policy of Khachatourian (2019): see `build_policy`."""
    return build_policy(input_shape, num_actions, filters, incremental=False)


def nature(
    input_shape: Sequence[int],
    num_actions: int,
    filters: Sequence[int] = (32, 64, 64),
    units: int = 512,
) -> keras.Model:
    """Builds the network of Mnih et al. (2015).

    Three convolutions with strides and a dense layer, each followed by a ReLU,
    and the logits. Weights are orthogonal, scaled by sqrt(2), those of the
    logits by 0.01, so that all actions are about as likely in the beginning.
    See [Nature 518](https://doi.org/10.1038/nature14236).

    Args:
        input_shape: Shape of a frame, at least 36 x 36.
        num_actions: Number of actions.
        filters: Filters of the three convolutions.
        units: Units of the dense layer.

    Returns:
        A Keras model, as of `build_network`.

    Raises:
        ValueError: If an argument is not as above.
    """
    input_shape, filters = tuple(input_shape), tuple(filters)
    check_arguments(input_shape, filters, num_actions=num_actions, units=units)
    if len(filters) != 3:
        raise ValueError(
            "`filters` must be three integers for the network nature. "
            f"Received: filters={filters}"
        )
    if min(input_shape[:2]) < _NATURE_SIZE:
        raise ValueError(
            f"`input_shape` must be at least {_NATURE_SIZE} x {_NATURE_SIZE} "
            f"for the network nature. Received: input_shape={input_shape}"
        )
    inputs, x = _pixels(input_shape)
    for index, (count, kernel_size, strides) in enumerate(
        zip(filters, (8, 4, 3), (4, 2, 1), strict=True), start=1
    ):
        x = keras.layers.Conv2D(
            count,
            kernel_size,
            strides,
            activation="relu",
            kernel_initializer=_orthogonal(math.sqrt(2)),
            name=f"conv{index}",
            **_POSITIONS,
        )(x)
    x = keras.layers.Flatten(name="flatten", **_POSITIONS)(x)
    x = keras.layers.Dense(
        units,
        activation="relu",
        kernel_initializer=_orthogonal(math.sqrt(2)),
        name="hidden",
        **_DTYPE,
    )(x)
    return _with_logits(inputs, x, num_actions)


def impala(
    input_shape: Sequence[int],
    num_actions: int,
    filters: Sequence[int] = (16, 32, 32),
    units: int = 256,
) -> keras.Model:
    """Builds the larger network of Espeholt et al. (2018), without its LSTM.

    Parts of a convolution, a pooling of stride 2 and two residual blocks of
    two convolutions each, 15 in all; then a dense layer and the logits.
    Weights are those of Keras's defaults, those of the logits as of `nature`.
    See figure 3 of [arXiv 1802.01561](https://arxiv.org/abs/1802.01561).

    Args:
        input_shape: Shape of a frame, of any size.
        num_actions: Number of actions.
        filters: Filters of the convolutions of each part. At least one.
        units: Units of the dense layer.

    Returns:
        A Keras model, as of `build_network`.

    Raises:
        ValueError: If an argument is not as above.
    """
    input_shape, filters = tuple(input_shape), tuple(filters)
    check_arguments(input_shape, filters, num_actions=num_actions, units=units)
    layers = keras.layers

    def convolution(x, count, name):
        return layers.Conv2D(
            count, 3, padding="same", name=f"conv{name}", **_POSITIONS
        )(x)

    inputs, x = _pixels(input_shape)
    for part, count in enumerate(filters, start=1):
        x = convolution(x, count, part)
        x = layers.MaxPooling2D(
            3, strides=2, padding="same", name=f"pool{part}", **_POSITIONS
        )(x)
        for block in ("a", "b"):
            y = x
            for index in (1, 2):
                name = f"{part}{block}{index}"
                y = layers.ReLU(name=f"relu{name}", **_DTYPE)(y)
                y = convolution(y, count, name)
            x = layers.Add(name=f"add{part}{block}", **_DTYPE)([x, y])
    x = layers.ReLU(name="relu", **_DTYPE)(x)
    x = layers.Flatten(name="flatten", **_POSITIONS)(x)
    x = layers.Dense(units, activation="relu", name="hidden", **_DTYPE)(x)
    return _with_logits(inputs, x, num_actions)


NETWORKS = {"paper": paper, "nature": nature, "impala": impala}


def default_filters(network: str) -> tuple[int, ...]:
    """Returns the filters that a network of `NETWORKS` has by default."""
    return inspect.signature(NETWORKS[network]).parameters["filters"].default


def _pixels(input_shape):
    inputs = keras.Input(input_shape, dtype="uint8", name="frames")
    return inputs, keras.layers.Rescaling(1 / 255, name="scale", **_DTYPE)(
        inputs
    )


def _with_logits(inputs, features, num_actions):
    logits = keras.layers.Dense(
        num_actions,
        kernel_initializer=_orthogonal(0.01),
        name="logits",
        **_DTYPE,
    )(features)
    return keras.Model(inputs, logits, name="policy")


def _with_value(model):
    """Puts a critic beside the logits, over what they are made of."""
    value = keras.layers.Dense(
        1, kernel_initializer=_orthogonal(1.0), name="value", **_DTYPE
    )(model.get_layer("logits").input)
    return keras.Model(
        model.inputs[0],
        {"logits": model.outputs[0], "value": value},
        name=model.name,
    )


def _orthogonal(gain):
    # Of one seed each: it gives the same values again for the same shape.
    return keras.initializers.Orthogonal(gain)
