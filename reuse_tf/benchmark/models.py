"""Whole networks to measure, and frames for them."""

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np

from reuse_tf import atari
from reuse_tf.extras import extra
from reuse_tf.policies import build_network

with extra("benchmark"):
    import gymnasium as gym

SIZE, BLOCK = 224, 16
CHANGES = ("none", "block", "all")


def application(name, seed=0):
    """A model of keras.applications with random statistics.

    Args:
        name: Such as `"MobileNetV2"`.
        seed: Decides its weights.

    Returns:
        A Keras model of 224x224x3 that gives logits.
    """
    keras.utils.set_random_seed(seed)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), classifier_activation=None
    )
    generator = np.random.default_rng(seed)
    for weight in model.weights:
        # Of normalizations, whose first ones would leave no trace.
        if weight.path.endswith(("gamma", "variance")):
            weight.assign(generator.uniform(0.5, 1.5, weight.shape))
        elif weight.path.endswith(("beta", "mean")):
            weight.assign(generator.normal(0, 0.1, weight.shape))
    return model


def frames_of_pixels(change, count, seed=0):
    """Makes frames of random pixels.

    Args:
        change: From frame to frame, one of `CHANGES`.
        count: How many to make.
        seed: Decides the pixels.

    Yields:
        uint8 `[1, 224, 224, 3]`.
    """
    generator = np.random.default_rng(seed)

    def pixels(size):
        return generator.integers(0, 256, (1, size, size, 3), np.uint8)

    still, block = pixels(SIZE), pixels(BLOCK)
    for _ in range(count):
        frame = still.copy() if change != "all" else pixels(SIZE)
        if change == "block":
            y, x = generator.integers(0, SIZE - BLOCK + 1, 2)
            frame[:, y : y + BLOCK, x : x + BLOCK] = block
        yield frame


def _screens(game, num_envs):
    """Environments whose observations are screens, [N, H, W, 1]."""
    return atari.make_vector(game, num_envs, downsample=2)


def _stacks(game, num_envs):
    """Those whose observations are the last four screens, [N, 84, 84, 4]."""
    return atari.make_vector(
        game,
        num_envs,
        preprocessing="standard",
        autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP,
    )


class GameNetwork(NamedTuple):
    """A network that plays games.

    Attributes:
        build: A function of the shape of a frame and the number of actions
            that makes the Keras model.
        environments: A function of a game and a number N that makes a vector
            environment of frames uint8 `[N, H, W, C]`.
    """

    build: Callable
    environments: Callable


GAME_NETWORKS = {
    "paper": GameNetwork(functools.partial(build_network, "paper"), _screens),
    "nature": GameNetwork(functools.partial(build_network, "nature"), _stacks),
    "IMPALA": GameNetwork(
        functools.partial(build_network, "impala", value=True), _stacks
    ),
}


def of_game(network, game, streams, count, seed=0):
    """A network of a game, and what it sees when that is played at random.

    Args:
        network: One of `GAME_NETWORKS`.
        game: Such as `"Pong"`.
        streams: Environments side by side.
        count: Frames of each.
        seed: Decides weights, games and actions.

    Returns:
        A tuple of a Keras model and frames that follow each other, uint8
        `[count, streams, H, W, C]`.
    """
    build, environments = GAME_NETWORKS[network]
    generator = np.random.default_rng(seed)
    with contextlib.closing(environments(game, streams)) as env:
        num_actions = int(env.single_action_space.n)
        frames = [env.reset(seed=seed)[0].copy()]
        for _ in range(count - 1):
            actions = generator.integers(num_actions, size=streams)
            frames.append(env.step(actions)[0].copy())
    keras.utils.set_random_seed(seed)
    return build(frames[0].shape[1:], num_actions), np.stack(frames)


def _vgg(frames):
    x = keras.layers.Rescaling(1 / 127.5, -1)(frames)
    for stage, filters in enumerate((32, 64, 128)):
        x = keras.layers.MaxPooling2D()(x) if stage else x
        for _ in range(2):
            x = keras.layers.Conv2D(
                filters, 3, padding="same", activation="relu"
            )(x)
    return [x]


def _application(constructor, frames):
    x = keras.layers.Rescaling(1 / 127.5, -1)(frames)
    model = constructor(include_top=False, weights=None, input_tensor=x)
    return [model.output]


def _convolution(x, filters, kernel_size=1, strides=1):
    x = keras.layers.Conv2D(
        filters, kernel_size, strides, padding="same", use_bias=False
    )(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.layers.Activation("silu")(x)


def _cross_stage(x, filters, depth=1, is_residual=False):
    """A cross stage partial block (C2f), whose split is two convolutions."""
    parts = [_convolution(x, filters // 2), _convolution(x, filters // 2)]
    for _ in range(depth):
        y = _convolution(parts[-1], filters // 2, 3)
        y = _convolution(y, filters // 2, 3)
        parts.append(keras.layers.Add()([parts[-1], y]) if is_residual else y)
    return _convolution(keras.layers.Concatenate()(parts), filters)


def _detector(frames):
    """The backbone, neck and three heads of a small YOLOv8."""
    x = keras.layers.Rescaling(1 / 255)(frames)
    x = _convolution(x, 16, 3, 2)
    scales = []
    for filters, depth in ((32, 1), (64, 2), (128, 2), (256, 1)):
        x = _convolution(x, filters, 3, 2)
        x = _cross_stage(x, filters, depth, is_residual=True)
        scales.append(x)
    pooled = [_convolution(x, 128)]
    for _ in range(3):
        pool = keras.layers.MaxPooling2D(5, 1, "same")
        pooled.append(pool(pooled[-1]))
    coarse = _convolution(keras.layers.Concatenate()(pooled), 256)

    def joined(*maps):
        return keras.layers.Concatenate()(maps)

    up = keras.layers.UpSampling2D()
    middle = _cross_stage(joined(up(coarse), scales[2]), 128)
    fine = _cross_stage(joined(up(middle), scales[1]), 64)
    middle = _cross_stage(joined(_convolution(fine, 64, 3, 2), middle), 128)
    coarse = _cross_stage(joined(_convolution(middle, 128, 3, 2), coarse), 256)
    return [
        _convolution(_convolution(x, 64, 3), 64, 3)
        for x in (fine, middle, coarse)
    ]


# By name, functions of frames that make the maps that logits are made of.
CAMERA_NETWORKS = {
    "vgg": _vgg,
    "mobilenet": functools.partial(
        _application, keras.applications.MobileNetV2
    ),
    "resnet": functools.partial(_application, keras.applications.ResNet50),
    "yolo": _detector,
}


def of_camera(network, size, seed=0):
    """Makes a network that tells where something covers the background.

    Args:
        network: One of `CAMERA_NETWORKS`.
        size: Height and width of the frames, a multiple of 32.
        seed: Decides its weights.

    Returns:
        A Keras model of frames uint8 `[N, size, size, 3]`, whose outputs are
        logits `[N, h, w, 1]`, of one or more grids.
    """
    keras.utils.set_random_seed(seed)
    frames = keras.Input((size, size, 3), dtype="uint8", name="frames")
    logits = [
        keras.layers.Conv2D(1, 1)(x) for x in CAMERA_NETWORKS[network](frames)
    ]
    model = keras.Model(frames, logits)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.9  # Training is short.
    return model
