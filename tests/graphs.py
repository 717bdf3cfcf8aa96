"""Random functional models, and checks of a runner against plain Keras.

All of it follows from a seed: of a model that fails the seed says everything.
"""

import functools
import random

import keras
import numpy as np
import tensorflow as tf
from cases import assert_same_bits, change

from reuse_tf import Runner

L = keras.layers
CHOICES = ["auto", "content", "temporal"]


def randomize(model, seed=0):
    """Gives a model weights under which no value grows or dies out."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" in weight.path:
            continue
        if "variance" in weight.path or "gamma" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
        else:
            inputs = np.prod(weight.shape[:-1]) if weight.shape else 1
            weight.assign(rng.normal(size=weight.shape) / (1 + inputs) ** 0.5)


def plain(model, frames):
    """What Keras computes, frame by frame: [outputs][N, ...]."""
    outputs = [
        keras.tree.flatten(model(frame[None], training=False))
        for frame in tf.cast(frames, tf.float32)
    ]
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]


def assert_step(runner, frames, others=()):
    """Steps, and checks all outputs against Keras and against other runners."""
    outputs = runner.step(frames)
    got = keras.tree.flatten(outputs)
    for mine, want in zip(got, plain(runner.model, frames), strict=True):
        assert mine.shape == want.shape
        np.testing.assert_allclose(mine, want, rtol=1e-3, atol=2e-4)
    for other in others:
        theirs = keras.tree.flatten(other.step(frames))
        for mine, same in zip(got, theirs, strict=True):
            assert_same_bits(mine, same)
    return outputs


def assert_gradient(runner, video, seed=0):
    """Compares outputs and all gradients of a video with a plain tape."""
    model = runner.model
    rng = np.random.default_rng(seed)

    def loss_of(outputs):
        return tf.add_n(
            [
                tf.reduce_sum(
                    tf.cast(rng.normal(size=output.shape), tf.float32) * output
                )
                for output in keras.tree.flatten(outputs)
            ]
        )

    results = []
    for call in (
        lambda: runner(video),
        lambda: model(tf.cast(video, tf.float32), training=False),
    ):
        rng = np.random.default_rng(seed)
        with tf.GradientTape() as tape:
            outputs = call()
            loss = loss_of(outputs)
        results.append(
            (outputs, tape.gradient(loss, model.trainable_variables))
        )
    (outputs, gradients), (want_outputs, want_gradients) = results
    keras.tree.assert_same_structure(outputs, want_outputs)
    for mine, want in zip(
        keras.tree.flatten(outputs),
        keras.tree.flatten(want_outputs),
        strict=True,
    ):
        np.testing.assert_allclose(mine, want, rtol=1e-3, atol=2e-4)
    # Gradients of zero are sums of larger ones, and rounded as these.
    largest = max(
        (np.abs(want).max() for want in want_gradients if want is not None),
        default=0,
    )
    for mine, want, variable in zip(
        gradients, want_gradients, model.trainable_variables, strict=True
    ):
        assert (mine is None) == (want is None), variable.path
        if want is None:
            continue
        size = 1e-3 * (1 + largest) + np.abs(want).max()
        np.testing.assert_allclose(
            mine, want, rtol=5e-3, atol=2e-3 * size, err_msg=variable.path
        )


def assert_take(runner, video, seed=0):
    """Compares some frames of a structure with the structure of some frames."""

    def sizes(structure):
        of_maps = [len(part) for m in structure.shown for part in m[:2]]
        return [*map(len, structure.patches), *of_maps]

    rng = np.random.default_rng(seed)
    whole = runner.structure(video)
    all_outputs = keras.tree.flatten(runner(whole))
    count = len(video)
    for frames in (
        np.arange(count)[::-1],
        rng.integers(0, count, rng.integers(1, 2 * count)),
        np.sort(rng.permutation(count)[: count // 2 + 1]),
        np.zeros(0, int),
    ):
        taken = whole.take(frames)
        alone = runner.structure(video[frames])
        # Vectors that are merged into maps are as many as changes of them, and
        # of these some are between other frames.
        if not taken.states:
            assert sizes(taken) == sizes(alone)
            assert len(taken.pixels) <= len(alone.pixels)
        results = []
        for structure in taken, alone, taken.take(np.arange(len(frames))):
            with tf.GradientTape() as tape:
                outputs = keras.tree.flatten(runner(structure))
                loss = tf.add_n([tf.reduce_sum(x * x) for x in outputs])
            results.append(
                tape.gradient(loss, runner.model.trainable_variables)
            )
            for mine, everything in zip(outputs, all_outputs, strict=True):
                np.testing.assert_allclose(
                    mine, tf.gather(everything, frames), rtol=1e-5, atol=1e-6
                )
        largest = max(
            (np.abs(x).max() for x in results[1] if x is not None), default=0
        )
        for mine, want, again in zip(*results, strict=True):
            assert (mine is None) == (want is None) == (again is None)
            if want is not None:
                np.testing.assert_allclose(
                    mine, want, rtol=1e-3, atol=1e-5 * (1 + largest)
                )
                assert_same_bits(mine, again)


def short_video(shape, frames=6, seed=0):
    """Frames of few values, of which little changes, and one comes again."""
    rng = np.random.default_rng(seed)
    video = [rng.integers(0, 3, shape).astype(np.float32)]
    for _ in range(frames - 2):
        video.append(video[-1].copy())
        y, x = rng.integers(shape[0]), rng.integers(shape[1])
        video[-1][y, x] = rng.integers(0, 3, shape[2])
    return np.stack([*video, video[0]])


class Builder:
    """Makes a random functional model, of maps and vectors."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        integer = self.random.randint
        self.inputs = keras.Input((integer(2, 9), integer(2, 9), integer(1, 3)))
        self.tensors = [self.inputs]
        self.layers = {}  # a layer by the channels that it takes

    def pick(self, rank=None):
        some = [t for t in self.tensors if rank in (None, len(t.shape))]
        # Mostly the last ones.
        last = self.random.random() < 0.5
        return some[-1] if last else self.random.choice(some)

    def step(self):
        kinds = [
            *("conv", "conv", "depthwise", "transposed", "pool", "shared"),
            *("function", "function", "norm", "move", "resample"),
            *("operation", "permute"),
            *("join", "join", "join", "vector", "excite", "concatenate"),
        ]
        kind = self.random.choice(kinds)
        new = getattr(self, kind)(self.pick(4))
        if new is not None and 0 not in new.shape:
            self.tensors.append(new)

    def window(self, x, most=3):
        sizes = [
            self.random.randint(1, min(most, size)) for size in x.shape[1:3]
        ]
        return tuple(sizes)

    def conv(self, x):
        return L.Conv2D(
            self.random.randint(1, 4),
            self.window(x),
            strides=self.random.choice([1, 1, 2]),
            padding=self.random.choice(["same", "valid"]),
            activation=self.random.choice([None, "relu", "tanh"]),
            use_bias=self.random.random() < 0.5,
        )(x)

    def depthwise(self, x):
        return L.DepthwiseConv2D(
            self.window(x), padding="same", depth_multiplier=1
        )(x)

    def transposed(self, x):
        if max(x.shape[1:3]) > 9:
            return None
        return L.Conv2DTranspose(
            self.random.randint(1, 3),
            self.random.randint(1, 3),
            strides=self.random.randint(1, 2),
            padding=self.random.choice(["same", "valid"]),
        )(x)

    def pool(self, x):
        pool = self.random.choice([L.MaxPooling2D, L.AveragePooling2D])
        return pool(self.window(x, 2), padding="same")(x)

    def shared(self, x):
        channels = x.shape[-1]
        if channels not in self.layers:
            self.layers[channels] = L.Conv2D(channels, 3, padding="same")
        return self.layers[channels](x)

    def function(self, x):
        layer = self.random.choice(
            [L.ReLU, L.ELU, L.Dropout(0.5), L.Activation("sigmoid")]
        )
        return (
            layer()
            if isinstance(layer, type)
            else type(layer).from_config(layer.get_config() | {"name": None})
        )(x)

    def operation(self, x):
        operations = [
            keras.ops.abs,
            keras.ops.negative,
            keras.ops.gelu,
            functools.partial(keras.ops.elu, alpha=0.5),
            lambda x: keras.ops.square(keras.ops.tanh(x)),
            lambda x: keras.ops.clip(x, -0.5, 1.5),
            lambda x: keras.ops.maximum(x, 0.25),
            lambda x: keras.ops.pad(x, [[0, 0], [0, 1], [1, 0], [0, 0]]),
        ]
        return self.random.choice(operations)(x)

    def permute(self, x):
        order = self.random.choice([(2, 1, 3), (3, 1, 2), (1, 3, 2)])
        return L.Permute(order)(x)

    def norm(self, x):
        layer = self.random.choice(
            [
                L.BatchNormalization,
                L.LayerNormalization,
                functools.partial(L.GroupNormalization, 1, epsilon=0.1),
                functools.partial(
                    L.LayerNormalization, axis=[1, 2, 3], epsilon=0.1
                ),
                functools.partial(L.PReLU, shared_axes=[1, 2]),
                L.PReLU,
            ]
        )
        return layer()(x)

    def move(self, x):
        if self.random.random() < 0.5:
            return L.ZeroPadding2D(self.random.randint(0, 1))(x)
        if min(x.shape[1:3]) < 3:
            return None
        return L.Cropping2D(((1, 0), (0, self.random.randint(0, 1))))(x)

    def resample(self, x):
        """Back to the size of the input, from half of it."""
        half = L.AveragePooling2D(2, padding="same")(x)
        up = L.UpSampling2D(
            2, interpolation=self.random.choice(["nearest", "bilinear"])
        )(half)
        return L.Cropping2D(
            ((0, up.shape[1] - x.shape[1]), (0, up.shape[2] - x.shape[2]))
        )(up)

    def join(self, x):
        others = [
            t
            for t in self.tensors
            if t.shape[1:3] == x.shape[1:3] and len(t.shape) == 4
        ]
        y = self.random.choice(others)
        if y.shape != x.shape:
            y = L.Conv2D(x.shape[-1], 1)(y)
        kind = self.random.choice(
            [
                L.Add(),
                L.Subtract(),
                L.Multiply(),
                L.Average(),
                L.Maximum(),
                L.Minimum(),
                None,
            ]
        )
        if kind is None:
            return x + y
        return type(kind)()([x, y])

    def concatenate(self, x):
        axis = self.random.choice([1, 3])
        others = [
            t
            for t in self.tensors
            if len(t.shape) == 4
            and all(t.shape[i] == x.shape[i] for i in (1, 2, 3) if i != axis)
        ]
        if x.shape[axis] > (6 if axis == 3 else 12):
            return None
        return L.Concatenate(axis)([x, self.random.choice(others)])

    def vector(self, x):
        head = self.random.choice(
            [
                L.Flatten,
                L.GlobalAveragePooling2D,
                L.GlobalMaxPooling2D,
                lambda: functools.partial(keras.ops.sum, axis=(1, 2)),
            ]
        )
        return L.Dense(self.random.randint(1, 4))(head()(x))

    def excite(self, x):
        vectors = [t for t in self.tensors if len(t.shape) == 2]
        y = (
            self.random.choice(vectors)
            if vectors
            else L.GlobalAveragePooling2D()(x)
        )
        y = L.Dense(x.shape[-1], activation="sigmoid")(y)
        if self.random.random() < 0.5:
            y = L.Reshape((1, 1, x.shape[-1]))(y)
        return L.Multiply()([x, y])

    def model(self):
        outputs = [self.tensors[-1]]
        while self.random.randint(0, 2) == 0:
            outputs.append(self.pick())
        return keras.Model(self.inputs, outputs)


def random_graph(seed):
    """A model of up to nine random steps, with random weights."""
    builder = Builder(seed)
    for _ in range(builder.random.randint(1, 9)):
        builder.step()
    model = builder.model()
    randomize(model, seed)
    return model


EVENTS = ["none", "some", "some", "corner", "border", "full"]
EVENTS += ["repeat", "weight", "streams", "reset", "forget"]


def check_history(seed):
    """Steps a runner of a random model through a random history."""
    model = random_graph(seed)
    rng = np.random.default_rng(seed)
    shape = model.input_shape[1:]
    runner = Runner(model, rng.choice(CHOICES), rng.choice([None, None, 40, 3]))
    frames = rng.integers(-1, 2, (2, *shape)).astype(np.float32)
    seen = []
    for event in ["full", *rng.choice(EVENTS, rng.integers(2, 7))]:
        if event == "repeat" and seen:
            frames = seen[0]
        elif event == "weight" and model.weights:
            weight = model.weights[rng.integers(len(model.weights))]
            if "seed" not in weight.path:
                weight.assign(weight * 0.75 + 0.125)
        elif event == "streams":
            frames = np.repeat(frames, 6, 0)[: rng.choice([1, 3])]
            frames[-1] = rng.normal(size=shape)
        elif event == "reset":
            runner.reset_state(rng.integers(0, 4, 2))
        elif event == "forget":
            runner.reset_state()
        else:
            frames = change(frames, event, rng)
        seen.append(frames)
        assert_step(
            runner, frames, [Runner(model, choice) for choice in CHOICES]
        )


def check_gradient(seed):
    """Compares the gradients of a random model for a short video."""
    model = random_graph(seed)
    video = short_video(model.input_shape[1:], 5, seed)
    runner = Runner(model)
    assert_gradient(runner, video, seed)
    assert_take(runner, video, seed)
