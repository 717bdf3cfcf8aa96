"""What is distinct in a video, at every layer of a model."""

from typing import NamedTuple

import tensorflow as tf
from numpy.typing import ArrayLike

from reuse_tf import internals, ops


class Shown(NamedTuple):
    """What a map shows in a video that is looked at all over.

    Attributes:
        pairs: The distinct (position, row) pairs, int32 `[D, 2]`, ordered by
            position.
        contents: What tiles of 4 x 4 positions show, as pairs: int32
            `[E, 16]`, -1 where a tile reaches beyond the map.
        runs: When a tile shows a content: (tile, content, first frame, last
            frame + 1), int32 `[K, 4]`.
    """

    pairs: tf.Tensor
    contents: tf.Tensor
    runs: tf.Tensor


class Structure(NamedTuple):
    """What is distinct in a video, at every layer of a runner's model.

    It depends on the frames and not on the weights: one structure serves any
    number of passes. Integers but for the pixels; see `Runner.structure`.

    Attributes:
        pixels: The distinct pixels, float32 `[U, C]`. Constants: no gradient
            flows into them.
        order: By frame, its number in `runs`: int32 `[T]`, from 0 on. The
            frames of a stream have consecutive numbers. Outputs follow it: to
            have them in another order, permute it.
        patches: For each convolution, pooling and merging of maps, the
            distinct patches, as ids of the rows of the layers before: int32
            `[M, taps]`, -1 being padding.
        shown: `Shown` for each map that is an output, or that a dense layer, a
            global pooling or the like looks at.
        states: For each vector that is merged into a map: by frame, in the
            order of `order`, the last one that changed it, int32 `[T]`.
        size: Height and width of the frames, int32 `[2]`.
        nodes: The network, as the ops read it: a string.
    """

    pixels: tf.Tensor
    order: tf.Tensor
    patches: list[tf.Tensor]
    shown: list[Shown]
    states: list[tf.Tensor]
    size: tf.Tensor
    nodes: str

    @internals.as_it_is
    def take(self, frames: ArrayLike | tf.Tensor) -> "Structure":
        """The structure of some of the frames, as of a minibatch.

        Finds it without looking at pixels: it costs about as much as reading
        the structure once. What none of the frames shows is left out, so that
        passes over it cost what is distinct in these frames alone.

        Args:
            frames: Integers `[F]`, the frames' places in `order`: any of them,
                in any order, and as often as wanted.

        Returns:
            A `Structure` whose outputs are those of these frames, `[F, ...]`.

        Raises:
            ValueError: If `frames` are no integers.
            tf.errors.InvalidArgumentError: If there is no such frame, or
                `frames` have another shape.
        """
        parts = ops.take_frames(
            frames,
            self.pixels,
            self.order,
            self.patches,
            *[list(of_map) for of_map in zip(*self.shown, strict=True)],
            self.states,
            nodes=text_of(self.nodes).split("\n"),
        )
        return self._replace(**_parts(*parts))


def text_of(nodes):
    """The nodes of a structure, of which a `tf.function` makes a tensor."""
    if tf.is_tensor(nodes) and tf.executing_eagerly():
        return nodes.numpy().decode()
    return nodes


def find_structure(frames, graph):
    """The structure of a video, a tensor as it is given to the model."""
    parts = ops.video_structure(
        frames, nodes=graph.lines(frames.dtype), **graph.counts
    )
    return structure_of(parts, graph, frames.dtype)


def structure_of(parts, graph, dtype):
    """A structure of the outputs of an op."""
    return Structure(
        **_parts(*parts),
        size=tf.constant(graph.frame_shape[:2]),
        nodes=graph.texts[dtype],
    )


def _parts(pixels, order, patches, pairs, contents, runs, states):
    shown = zip(pairs, contents, runs, strict=True)
    return {
        "pixels": pixels,
        "order": order,
        "patches": list(patches),
        "shown": [Shown(*of_map) for of_map in shown],
        "states": list(states),
    }
