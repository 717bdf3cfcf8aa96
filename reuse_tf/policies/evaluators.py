"""How to act by a policy and to differentiate it, with reuse or without."""

import functools

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import internals
from reuse_tf.runner import Runner

# The most bytes of frames whose gradient a runner takes at once: 3000 frames
# at a downsample of 2.
_VIDEO_BYTES = 26e6
# The most bytes of activations and their gradients in a dense model.
_DENSE_BYTES = 200e6


class Reusing:
    """Acts by a model and differentiates it, with reuse.

    Args:
        model: A Keras model of frames `[N, height, width, channels]`.
        reuse: That of `Runner`.

    Attributes:
        act: A function from frames of N streams to the model's outputs, arrays
            which the next call may overwrite.
        outputs_fn: A function from frames of one stream, or what
            `minibatches` gives, to the outputs, differentiable under
            `tf.GradientTape`.
        max_frames: The most frames to pass to a call of `outputs_fn`.
    """

    def __init__(self, model, reuse):
        self._runner = Runner(model, reuse)
        self.act = functools.partial(self._runner.step, copy=False)
        self.outputs_fn = self._runner
        frame_bytes = np.prod(model.input_shape[1:])
        self.max_frames = max(1, int(_VIDEO_BYTES / frame_bytes))

    @property
    def stats(self):
        """The `RunnerStats` of acting."""
        return self._runner.stats

    def begin(self):
        """Has what is acted from now on be differentiated at less cost."""
        self._runner.record()

    def end(self):
        """Returns the `Structure` of all frames acted upon since `begin`.

        They are in the order of acting. None if there is none: see
        `Runner.recorded`.
        """
        return self._runner.recorded()

    def minibatches(self, frames):
        """Ends what `begin` began, for parts of the frames.

        Args:
            frames: The frames acted upon since `begin`, `[T, height, width,
                channels]` in the order of acting, or the first T of them.

        Returns:
            A function from some of their numbers to what `outputs_fn` takes
            for these frames.
        """
        structure = self.end()
        if structure is None:
            structure = self._runner.structure(frames)
        return structure.take


class Plain:
    """The same without reuse."""

    stats = None

    def __init__(self, model):
        call = tf.function(
            lambda frames: model(frames, training=False),
            input_signature=[tf.TensorSpec(model.input_shape, tf.uint8)],
        ).get_concrete_function()
        # Slow at first.
        call(tf.zeros((1, *model.input_shape[1:]), tf.uint8))
        self.act = lambda frames: keras.tree.map_structure(
            lambda tensor: tensor.numpy(), call(tf.constant(frames))
        )
        self.outputs_fn = lambda frames: call(tf.convert_to_tensor(frames))
        activations = sum(
            np.prod(tensor.shape[1:])
            for layer in internals.sublayers(model)
            # Layers within others may have none.
            for tensor in keras.tree.flatten(getattr(layer, "output", ()))
        )
        # Of float32, and as many for their gradients.
        self.max_frames = max(1, int(_DENSE_BYTES / (2 * 4 * activations)))

    def begin(self):
        pass

    def end(self):
        return None

    def minibatches(self, frames):
        return lambda numbers: frames[numbers]


def evaluator(model, reuse):
    """Returns a `Reusing`, or, if `reuse` is `"none"`, a `Plain`."""
    return Plain(model) if reuse == "none" else Reusing(model, reuse)
