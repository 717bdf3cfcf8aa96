"""A whole Keras model as one op, with activations reused at every layer."""

import ctypes
import itertools
import weakref
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, DTypeLike

from reuse_tf import internals, ops
from reuse_tf.batches import frame_batches, read_only, sizes_text
from reuse_tf.graph import Graph, check_model, compile_model
from reuse_tf.layers import check_threshold
from reuse_tf.structure import (
    Structure,
    find_structure,
    structure_of,
    text_of,
)


class LayerStats(NamedTuple):
    """What a runner has computed for one layer.

    Attributes:
        positions: Positions of all frames.
        changed: Positions whose patch was not that of the frame before; with
            a threshold, those whose row was handed on.
        new_rows: Rows that were computed: for content reuse, patches never
            seen before; of the dense sum, its leaves that had to be updated.
        multiply_adds: Multiply-adds made.
        dense_multiply_adds: Multiply-adds that computing everything would
            have taken.
        reuse: The kind of reuse of its rows at present.
    """

    positions: int
    changed: int
    new_rows: int
    multiply_adds: int
    dense_multiply_adds: int
    reuse: str


class RunnerStats(NamedTuple):
    """What a runner has done since it was made or reset.

    Attributes:
        frames: Frames stepped, those of every stream counted.
        layers: `LayerStats` by layer name, for all layers that are not merely
            functions of single rows.
        reuse: The kind of reuse at present, `"mixed"` where layers differ. A
            layer is of temporal reuse under `reuse="auto"` while content reuse
            does not pay.
        rows: Rows in use by table: `"frames"` and the layers' names.
        max_rows: The bound of each of them.
        clears: How often the tables were full and were cleared.
        switches: How often the kind of reuse was switched.
        seconds: Spent in `step`'s kernels, by part: `"structure"`, `"rows"`
            and, for layers that look at whole maps, `"dense"`.
    """

    frames: int
    layers: dict[str, LayerStats]
    reuse: str
    rows: dict[str, int]
    max_rows: dict[str, int]
    clears: int
    switches: int
    seconds: dict[str, float]

    @property
    def multiply_adds(self) -> tuple[int, int]:
        """Those of all layers: made, and those that everything would take."""
        layers = self.layers.values()
        return (
            sum(layer.multiply_adds for layer in layers),
            sum(layer.dense_multiply_adds for layer in layers),
        )


class Runner:
    """Runs a Keras model as one op, without dense activations.

    Ids and changed positions are passed from layer to layer inside C++; only
    positions whose patch changed are looked at, and with content reuse only
    patches never seen before, at any position, in any frame, of any stream,
    are multiplied. The outputs are those of the model, to float rounding; a
    result does not depend, to the bit, on what was run before or beside it.

    The model's own variables are used: when they change, the next output is
    of the new weights. Its layers and their other settings (activations,
    LoRA) are read once, when the runner is made, and, if the model's input has
    any height and width, again for frames of another size.

    Safe to call from several threads, one of which is served at a time. A deep
    copy, or one by pickle, is a new runner of a copy of the model.

    Args:
        model: A built Sequential or functional Keras model, possibly nested, of
            one input `[H, W, C]`, in which H and W may be None, and any
            outputs. float32 and `channels_last`; its layers as in inference.
            `reuse_tf.keras_nodes.SUPPORTED` names them.
        reuse: `"content"`: equal patches share one row of activations.
            `"temporal"`: a position keeps its row while its patch does not
            change. `"auto"`: content reuse, and temporal reuse for a while in
            those layers in which it does not pay, as with the noise of a
            camera. Vectors that are merged into a map, as in
            squeeze-and-excite, have temporal reuse behind them.
        threshold: For noisy cameras: how far values may move before they
            count as changed. A number, not negative, is of the values of
            frames: 4 of uint8 frames lets pixels be off by 4. A dict has a
            number by map: `"frames"`, and the names of `stats.layers`, whose
            rows are meant as they are handed on, behind the functions of
            single rows (normalizations, activations) that follow the layer.
            Where no value of a row moved by more than this since it was last
            handed on, the layers behind it go on with what they have. So what
            a layer computes is never off by more than its own threshold, for
            what was handed on to it, however slowly a scene drifts, and
            nothing accumulates; a NaN always counts as changed. All reuse is
            temporal then. Outputs may depend on the frames before; with 0,
            the default, they are exact. The `threshold` of an incremental
            layer is kept likewise, as one of the map that it is given; where
            others look at that too, of a copy, `"NAME/input"`. That of a dict
            goes before it. Of `step` and `predict`: everything else is exact.
            `find_thresholds` finds them.
        max_rows: The most rows that each layer's table holds under content
            reuse. When one is full, all are cleared. By default they share
            some 400 MB: a layer may have up to eight times its part of them.

    Raises:
        ValueError: If the model has a layer that is not supported, or an
            argument is not as above.

    Examples:
        >>> runner = Runner(model)
        >>> logits = runner.step(frames)   # frames: uint8 [N, H, W, C]

        The gradient of a whole episode, at the cost of what is distinct in it:

        >>> with tf.GradientTape() as tape:
        ...     logits = runner(episode)   # episode: uint8 [T, H, W, C]
        ...     loss = ...
        >>> gradients = tape.gradient(loss, model.trainable_variables)
    """

    def __init__(
        self,
        model: keras.Model,
        reuse: str = "auto",
        max_rows: int | None = None,
        threshold: float | dict[str, float] = 0.0,
    ) -> None:
        if reuse not in ("auto", "content", "temporal"):
            raise ValueError(
                "Expected `reuse` to be 'auto', 'content' or 'temporal'. "
                f"Received: reuse={reuse!r}"
            )
        if max_rows is not None and not (
            isinstance(max_rows, (int, np.integer))
            and not isinstance(max_rows, bool)
            and 0 < max_rows < 2**31
        ):
            raise ValueError(
                "Expected `max_rows` to be a positive integer below 2^31, or "
                f"None. Received: max_rows={max_rows!r}"
            )
        check_model(model)
        if len(model.inputs) != 1:
            raise ValueError(
                "Expected `model` to have one input. Received: "
                f"{len(model.inputs)}"
            )
        shape = tuple(model.inputs[0].shape[1:])
        if len(shape) != 3 or shape[2] is None:
            raise ValueError(
                "Expected `model` to have an input of shape [N, H, W, C], "
                f"where only H and W may be None. Received: {(None, *shape)}"
            )
        self.model = model
        self.reuse = reuse
        self._threshold = _by_name(threshold)
        self._max_rows = int(max_rows or 0)
        self._shape = shape
        # What Keras converts frames to, and of which dtypes that changes some.
        self._kind = tf.as_dtype(model.inputs[0].dtype)
        self._converted = {
            dtype.as_numpy_dtype
            for dtype in (tf.uint8, tf.float32)
            if not _holds(self._kind, dtype)
        }
        self._fitted: _Fitted | None = None
        # What `stats` are of: a state, or what is left of that of `predict`.
        self._last = None
        # The state that records, and how many frames the others had stepped.
        self._recorded: _State | None = None
        self._stepped: dict[int, int] = {}
        # Of all states, also those for frames of other sizes, which a traced
        # function may step.
        self._handles: dict[int, weakref.ref] = {}
        self._numbers = itertools.count()  # by which these are told apart
        # What the last step with `copy=False` wrote.
        self._kept: _Kept | None = None
        if None not in shape:
            self._last = self._state(self._fit((None, *shape)), tf.uint8)

    def __reduce__(self):
        """A copy, or what is read from a pickle, is a new runner."""
        arguments = self.model, self.reuse, self._max_rows or None
        return Runner, (*arguments, self._threshold)

    @internals.as_it_is
    def step(self, frames: ArrayLike | tf.Tensor, copy: bool = True) -> Any:
        """Computes the outputs for the next frame of each stream.

        Stateful and without gradient; the path of lowest latency. Streams are
        told apart by their place in the batch. When there are more than at
        the last call the further ones are new; when there are fewer the
        missing ones are forgotten.

        Args:
            frames: uint8 or float32 `[N, H, W, C]`, NumPy or tensor: one frame
                of each of N streams. If the model's input is of another dtype
                they are converted to that, as Keras does. In a `tf.function`
                NumPy arrays are constants of the graph.
            copy: Whether outputs are the caller's own. If not, those of NumPy
                arrays are read-only, and the next step with `copy=False`
                writes into them: of maps only what changed. With an array of
                frames that is filled anew for each step this is the fastest
                way of all.

        Returns:
            The model's outputs, float32 `[N, ...]`, in the form in which it
            gives them: NumPy arrays for a NumPy array, and tensors for a
            tensor, and in a `tf.function`. They have no gradient.

        Raises:
            ValueError: If `frames` are of another dtype or shape. In a
                `tf.function` that knows the shape only when it runs, it is
                `tf.errors.InvalidArgumentError`.
        """
        if isinstance(frames, tf.Tensor) or not tf.executing_eagerly():
            frames = self._as_input(_tensor(frames))
            return self._run(self._fit(frames.shape), frames)
        kept = None
        if not copy:
            # Nobody else may write into it meanwhile.
            kept, self._kept = self._kept, None
            if (
                kept is not None
                and kept.fits(frames)
                and ops.step_numpy(*kept.arguments)
            ):
                self._last, self._kept = kept.state, kept
                return kept.outputs
        given = frames
        if not isinstance(frames, np.ndarray):
            frames = _converted(frames, np.asarray)
        frames = np.ascontiguousarray(frames)
        if not (frames.dtype.isnative and frames.flags.aligned):
            frames = _native(frames)
        if self._converted and frames.dtype.type in self._converted:
            frames = self._as_input(tf.constant(frames)).numpy()
        fitted = self._fitted
        if fitted is None or frames.shape[1:] != fitted.graph.frame_shape:
            fitted = self._fit(frames.shape)
        state = self._state(fitted, frames.dtype)
        if len(frames) == 0:
            return fitted.graph.packed(state.new_outputs(0))
        if kept is not None and not kept.has(state, len(frames)):
            kept = None
        arrays = kept.arrays if kept else state.new_outputs(len(frames))
        arguments = (
            state.address,
            ops.address_of(frames),
            len(frames),
            fitted.address_of(arrays),
        )
        if not ops.step_numpy(*arguments, kept is not None):
            return keras.tree.map_structure(
                lambda tensor: tensor.numpy(), self._run(fitted, frames)
            )
        if copy:
            return fitted.graph.packed(arrays)
        # By its own name: another thread may take it from `self` at once.
        kept = self._kept = _Kept(state, arrays, given, frames, arguments)
        return kept.outputs

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: str | int = "auto",
        steps: int | None = None,
        callbacks: keras.callbacks.CallbackList
        | list[keras.callbacks.Callback]
        | None = None,
    ) -> Any:
        """Computes the outputs for a video, as `keras.Model.predict` does.

        The frames follow each other in time, whatever batches they come in:
        they are one new stream, stepped through one by one. It ends with the
        call. `step` and its streams do not notice: the stream has tables of
        its own, for as long as the call takes. Of the frames none are kept, so
        a video may have any length. Without gradient.

        Args:
            x: Frames in the order of time, uint8 or float32: an array or a
                tensor `[T, H, W, C]`; or a `tf.data.Dataset`, a generator or
                any other iterable that is no list, of batches of successive
                frames `[B, H, W, C]`, where B may vary. As in Keras, a batch
                may be a tuple `(frames, labels)`, whose labels are ignored.
            batch_size: Of an array, how many frames go by between two updates
                of the progress bar, or calls of `callbacks`. By default 32.
            verbose: The progress bar: `"auto"` or 1 shows it, 2 shows one line
                at the end, 0 nothing.
            steps: The most batches to take. By default all that there are. A
                generator can be gone on with where it is left.
            callbacks: `keras.callbacks.Callback`s, whose methods for
                prediction are called as Keras does. Their model is the
                runner's.

        Returns:
            The model's outputs, float32 `[T, ...]`, in the form in which it
            gives them: NumPy arrays with the bits that `step` returns.

        Raises:
            ValueError: If an argument is not as above; if batches differ in
                dtype or in the size of frames; if there are no batches, and
                the model's input has any height and width; in a `tf.function`.

        Examples:
            >>> logits = runner.predict(video)   # video: uint8 [T, H, W, C]
        """
        if not tf.executing_eagerly():
            raise ValueError(
                "`predict` cannot be called in a `tf.function`, as its results "
                "are NumPy arrays. Call the runner itself: runner(frames)"
            )
        batches, count = frame_batches(x, self._shape, batch_size, steps)
        self._last = None  # before callbacks look at `stats`
        called: Any = callbacks
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            called = keras.callbacks.CallbackList(
                callbacks,
                add_progbar=verbose != 0,
                verbose=verbose,
                epochs=1,
                steps=count,
                model=self.model,
            )
        runner = self._fresh()
        stream = _Stream(runner)
        parts = []
        self.model.stop_predicting = False  # as callbacks know it
        called.on_predict_begin()
        try:
            for number, frames in enumerate(batches):
                called.on_predict_batch_begin(number)
                parts.append(stream.outputs_of(frames))
                self._last = runner._last
                outputs = parts[-1]
                if callbacks:  # They may write into what they are given.
                    outputs = keras.tree.map_structure(np.copy, outputs)
                called.on_predict_batch_end(number, {"outputs": outputs})
                if self.model.stop_predicting:
                    break
        finally:
            if parts:
                self._last = runner.stats
        called.on_predict_end()
        if not parts:
            if None in self._shape:
                raise ValueError(
                    "Expected `x` to have batches, as the model's input has "
                    "any height and width. Received none"
                )
            parts.append(runner.step(np.empty((0, *self._shape), np.uint8)))
        return keras.tree.map_structure(
            lambda *of_output: np.concatenate(of_output), *parts
        )

    def _fresh(self):
        """A runner of the same graph that has stepped nothing."""
        runner = object.__new__(type(self))
        vars(runner).update(vars(self))
        if self._fitted is not None:
            runner._fitted = _Fitted(self._fitted.graph)
        runner._last = runner._recorded = runner._kept = None
        runner._handles = {}
        return runner

    def _run(self, fitted, frames):
        """Steps by the op."""
        values = fitted.graph.outputs
        variables = []
        if not tf.executing_eagerly():
            # For a graph to keep the order of steps and assignments.
            variables = [*map(internals.handle_of, fitted.graph.variables)]
        outputs = ops.runner_step(
            self._state(fitted, frames.dtype).handle,
            frames,
            variables,
            num_outputs=len(values),
        )
        return fitted.graph.packed(
            tf.reshape(tensor, [-1, *value.shape])
            for tensor, value in zip(outputs, values, strict=True)
        )

    def _fit(self, shape):
        """What is fitted to frames of this shape, made anew if need be.

        What a `tf.function` does not know of the shape yet, the ops check.
        """
        fitted = self._fitted
        if fitted is not None and shape[1:] == fitted.graph.frame_shape:
            return fitted
        shape = self._check_shape(shape)
        if fitted is not None and None not in self._shape:
            return fitted
        if not shape[1:].is_fully_defined():
            raise self._other_shape(shape)
        # Before what is known is given up: a layer may not fit.
        fitted = _Fitted(self._graph(tuple(shape[1:])))
        self._fitted = fitted
        self._last = self._recorded = self._kept = None
        return fitted

    def _check_shape(self, shape):
        """Refuses a shape that frames cannot have, and returns it."""
        shape = tf.TensorShape(shape)
        if not shape.is_compatible_with([None, *self._shape]):
            raise self._other_shape(shape)
        return shape

    def _other_shape(self, shape):
        return ValueError(
            f"Expected `frames` to be of shape [N, {sizes_text(self._shape)}]. "
            f"Received: {shape}"
        )

    def _graph(self, shape):
        """The model's graph, with the thresholds of its maps."""
        graph = compile_model(self.model, shape)
        for name, threshold in self._threshold.items():
            if name not in graph.maps:
                raise ValueError(
                    "Expected `threshold` to name maps among "
                    f"{', '.join(graph.maps)}. Received: {name!r}"
                )
            graph.maps[name].threshold = threshold
        if self.reuse == "content" and graph.has_thresholds:
            raise ValueError(
                "Expected `reuse` to be 'temporal' or 'auto' where there are "
                "thresholds. Received: reuse='content'"
            )
        return graph

    @internals.as_it_is
    def __call__(self, frames: ArrayLike | tf.Tensor | Structure) -> Any:
        """Computes the outputs for whole videos; differentiable.

        Stateless, and independent of `step`. Under `tf.GradientTape` it gives
        the gradient of any loss on the outputs with respect to every weight
        of the model (batch normalization and dropout as in inference). Each
        distinct patch is multiplied once, each distinct pair of a position
        and a row meets the dense layer once, and the outputs are sums of
        these over time; the gradients likewise, backwards.

        Args:
            frames: One video in time order, uint8 or float32 `[T, H, W, C]`,
                NumPy or tensor; or a list of such videos, whose patches are
                then shared; or a `Structure`.

        Returns:
            The model's outputs, float32 `[T, ...]`, in the form in which it
            gives them; for a list of videos, a list of these.

        Raises:
            ValueError: If `frames` are of another dtype or shape. In a
                `tf.function` that knows the shape only when it runs, it is
                `tf.errors.InvalidArgumentError`.
            NotImplementedError: By the tape, if it watches the frames, or if a
                second derivative is asked for.
        """
        if isinstance(frames, (list, tuple)) and not isinstance(
            frames, Structure
        ):
            if not frames:
                return []
            if any(isinstance(video, Structure) for video in frames):
                raise ValueError(
                    "Expected `frames` to be a video, a list of videos or one "
                    "structure. Received: a list with structures"
                )
            # The outputs of a frame depend on that frame alone: several videos
            # are one.
            videos = [_tensor(video) for video in frames]
            if len({video.dtype for video in videos}) > 1:
                raise ValueError(
                    "Expected `frames` to be videos of one dtype. Received: "
                    f"{', '.join(video.dtype.name for video in videos)}"
                )
            for video in videos:
                self._check_shape(video.shape)
            sizes = {
                tuple(video.shape[1:3])
                for video in videos
                if video.shape[1:].is_fully_defined()
            }
            if len(sizes) > 1:
                raise ValueError(
                    "Expected `frames` to be videos of one size. Received: "
                    f"{', '.join(f'{h}x{w}' for h, w in sorted(sizes))}"
                )
            outputs = self(tf.concat(videos, 0))
            sizes = tf.stack([tf.shape(video)[0] for video in videos])
            split = [
                tf.split(output, sizes, num=len(videos))
                for output in keras.tree.flatten(outputs)
            ]
            return [
                keras.tree.pack_sequence_as(outputs, list(parts))
                for parts in zip(*split, strict=True)
            ]
        if isinstance(frames, Structure):
            graph = self._graph_of(frames)
        else:
            frames = self._as_input(_tensor(frames))
            # Another thread may fit the runner to frames of another size.
            graph = self._fit(frames.shape).graph
            frames = find_structure(frames, graph)
        with internals.uncast():
            return graph.evaluate(frames)

    def _graph_of(self, structure):
        """The graph for a structure that was given, which it has to be of."""
        if self._fitted is None:
            raise ValueError(
                "Expected frames before a structure: the model's input has any "
                "height and width"
            )
        graph = self._fitted.graph
        if None in self._shape:
            tf.debugging.assert_equal(
                structure.size,
                graph.frame_shape[:2],
                "The structure is that of frames of another size.",
            )
        nodes = text_of(structure.nodes)
        # In a graph it may be known later.
        if isinstance(nodes, str) and nodes not in graph.texts.values():
            raise ValueError(
                "Expected `frames` to be a structure of this model, or of one "
                "of the same layers and settings. Received: that of another"
            )
        return graph

    @internals.as_it_is
    def structure(self, frames: ArrayLike | tf.Tensor) -> Structure:
        """Finds what is distinct in a video, for several passes over it.

        Args:
            frames: uint8 or float32 `[T, H, W, C]`, NumPy or tensor.

        Returns:
            A `Structure`, to be given to the runner in place of the frames.

        Raises:
            ValueError: If `frames` are of another dtype or shape, as for a
                call.
        """
        frames = self._as_input(_tensor(frames))
        return find_structure(frames, self._fit(frames.shape).graph)

    def record(self, dtype: DTypeLike | tf.DType = tf.uint8) -> None:
        """Has `step` leave the structure of its frames behind, from now on.

        Then `recorded` need not search the frames again. Clears the tables,
        so that the recording holds only what follows, and stays with content
        reuse meanwhile. A recording under way is dropped.

        Args:
            dtype: That of the frames to come, uint8 or float32.

        Raises:
            ValueError: If the size of frames is not known yet.
        """
        if self._fitted is None:
            raise ValueError(
                "Expected a step before `record`: the model's input has any "
                "height and width"
            )
        _check_dtype(dtype)
        # An array that has been stepped is looked at anew.
        self._kept = None
        state = self._state(
            self._fitted, self._as_input(tf.zeros(0, dtype)).dtype
        )
        if self._recorded not in (None, state):
            self.recorded()
        self._recorded, self._stepped = state, self._stepped_by_others(state)
        ops.runner_record(state.handle)

    def recorded(self) -> Structure | None:
        """Ends a recording, and gives the memory of all tables back.

        Returns:
            The `Structure` of all frames that were stepped since `record` was
            called, in the order of the steps, and within a step in that of
            the streams. None if the tables were cleared in between, because
            one was full or weights changed; if the model merges vectors into
            maps; if there are thresholds; if tiles changed more than 16 million
            times, or showed more than 4 million contents; if nothing was
            stepped, or frames of another dtype were; or if there is no
            recording.
        """
        state, self._recorded = self._recorded, None
        if state is None:
            return None
        graph = state.graph
        parts = ops.runner_recording(state.handle, **graph.counts)
        structure = structure_of(parts, graph, state.dtype)
        missed = self._stepped_by_others(state) != self._stepped
        return structure if len(structure.order) and not missed else None

    def _stepped_by_others(self, state):
        """How many frames the states for other frames have stepped, if any."""
        counts = {
            number: int(ops.runner_stats(handle)[0][0])
            for number, reference in self._handles.items()
            if (handle := reference()) is not None
            and handle is not state.handle
        }
        return {number: count for number, count in counts.items() if count}

    def reset_state(self, streams: ArrayLike | None = None) -> None:
        """Forgets streams. Never needed for a right result.

        Args:
            streams: Integers: the streams whose next frames have nothing to do
                with their last ones. By default all, and then the tables and
                the counters too.
        """
        if streams is not None:
            streams = np.atleast_1d(np.asarray(streams))
            if streams.size == 0:
                return
            if (
                streams.dtype.kind not in "iu"
                or streams.min() < 0
                or streams.max() >= 2**31
            ):
                raise ValueError(
                    "Expected `streams` to be integers in [0, 2^31). "
                    f"Received: streams={streams.tolist()}"
                )
        elif isinstance(self._last, RunnerStats):
            self._last = None
        if self._fitted is None:
            return
        for state in set(self._fitted.states.values()):
            ops.runner_reset(state.handle, [] if streams is None else streams)

    @property
    def stats(self) -> RunnerStats:
        """What was done since the runner was made or reset: `RunnerStats`.

        Of frames of the dtype that was stepped last. During `predict`, and
        after it until the next step, what that did. A `tf.function` that steps
        counts as its tracing does: what is traced last is looked at.
        """
        last = self._last
        if isinstance(last, RunnerStats):
            return last
        if last is None:
            return RunnerStats(0, {}, self.reuse, {}, {}, 0, 0, {})
        totals, seconds, maps, rows = (
            part.numpy().tolist() for part in ops.runner_stats(last.handle)
        )
        graph = last.graph
        names = graph.names
        tables = ["frames"] + [
            name
            for name, node in zip(names, graph.counted, strict=True)
            if node.has_patches
        ]
        kinds = {0: "temporal", 1: "content"}
        content, temporal = totals[3:]
        return RunnerStats(
            frames=totals[0],
            layers={
                name: LayerStats._make([*line[:5], kinds[line[5]]])
                for name, line in zip(names, maps, strict=True)
            },
            reuse="temporal"
            if not content
            else "mixed"
            if temporal
            else "content",
            rows={n: line[0] for n, line in zip(tables, rows, strict=True)},
            max_rows={n: line[1] for n, line in zip(tables, rows, strict=True)},
            clears=totals[1],
            switches=totals[2],
            seconds=dict(
                zip(("structure", "rows", "dense"), seconds, strict=True)
            ),
        )

    @property
    def threshold(self) -> dict[str, float]:
        """Those that the runner was made with, a dict by the names of maps."""
        return dict(self._threshold)

    @property
    def graph(self) -> Graph | None:
        """The `Graph` of the model; None while the frames' size is unknown."""
        return self._fitted.graph if self._fitted is not None else None

    def _state(self, fitted, dtype):
        """The state for frames of a dtype, TensorFlow's or NumPy's."""
        state = fitted.states.get(dtype)
        if state is None:
            _check_dtype(dtype)
            kind = tf.as_dtype(dtype)
            state = _State(
                fitted.graph,
                kind,
                *ops.new_runner_state(
                    fitted.graph.lines(kind, thresholds=True),
                    [*map(internals.handle_of, fitted.graph.variables)],
                    "temporal" if fitted.graph.has_thresholds else self.reuse,
                    self._max_rows,
                ),
            )
            # Anew, as another thread may go through it.
            self._handles = {
                **{n: h for n, h in self._handles.items() if h() is not None},
                next(self._numbers): weakref.ref(state.handle),
            }
            # A thread that came second takes the state of the first.
            state = fitted.states.setdefault(kind, state)
            fitted.states[np.dtype(kind.as_numpy_dtype)] = state
        self._last = state
        return state

    def _as_input(self, frames):
        """Frames, a tensor, as Keras gives them to the model.

        Values of other dtypes than uint8 and float32 are those of float32.
        """
        _check_dtype(frames.dtype)
        if frames.dtype.as_numpy_dtype not in self._converted:
            return frames
        frames = tf.cast(frames, self._kind)
        if frames.dtype == tf.uint8:
            return frames
        return tf.cast(frames, tf.float32)


def _holds(kind, dtype):
    """Whether a dtype holds all values of uint8 or float32, as they are."""
    if dtype == tf.uint8:
        return kind not in (tf.int8, tf.bool)
    return kind in (tf.float32, tf.float64)


def _by_name(threshold):
    """Thresholds as a dict of floats, by the names of maps."""
    if isinstance(threshold, dict):
        return {name: check_threshold(t) for name, t in threshold.items()}
    # A default sets none: a layer may have its own.
    threshold = check_threshold(threshold)
    return {"frames": threshold} if threshold else {}


class _Fitted:
    """What a runner has for frames of one size. Never changed, but replaced.

    Whoever holds one can go on with it, whatever another thread does.
    """

    def __init__(self, graph):
        self.graph = graph
        self.states = {}  # by the dtype of the frames
        self._addresses = ctypes.c_void_p * len(graph.outputs)

    def address_of(self, outputs):
        """Where the only output is, or where the addresses of several are."""
        if len(outputs) == 1:
            return ops.address_of(outputs[0])
        return self._addresses(*map(ops.address_of, outputs))


class _State:
    """A runner's network: its resource handle, and where it is.

    Nothing here leads back to who holds it: a network is to go, with its
    tables, as soon as nobody does, and not when Python looks for cycles.
    """

    def __init__(self, graph, dtype, handle, address):
        self.graph = graph
        self.dtype = dtype
        self.handle = handle
        self.address = address

    def new_outputs(self, count):
        return [
            np.empty((count, *value.shape), np.float32)
            for value in self.graph.outputs
        ]


class _Stream:
    """The only stream of a runner, of which many frames are known at once."""

    def __init__(self, runner):
        self._runner = runner
        # The array that each frame is put into: with one and the same, and
        # outputs that are written over, a step costs least.
        self._frame = None
        self._step = None
        self._arrays = []

    def outputs_of(self, frames):
        """The outputs of the next frames, NumPy `[B, H, W, C]`."""
        if not len(frames):
            return self._runner.step(frames)
        if self._frame is None:
            native = frames.dtype.newbyteorder("=")
            self._frame = np.empty((1, *frames.shape[1:]), native)
        rows = []
        for t, frame in enumerate(frames):
            self._frame[0] = frame
            step = self._runner.step(self._frame, copy=False)
            if step is not self._step:  # which it usually is
                self._step, self._arrays = step, keras.tree.flatten(step)
            if not rows:
                rows = [
                    np.empty((len(frames), *array.shape[1:]), array.dtype)
                    for array in self._arrays
                ]
            for of_output, array in zip(rows, self._arrays, strict=True):
                of_output[t] = array[0]
        return keras.tree.pack_sequence_as(step, rows)


class _Kept:
    """Outputs that steps write into, and the array whose frames they are of.

    Attributes:
        state: The state that stepped.
        arrays: The outputs.
        outputs: The same in the form in which the model gives them, read-only.
        arguments: Those of `ops.step_numpy` for the next frames in the same
            array.
    """

    def __init__(self, state, arrays, given, frames, arguments):
        self.state = state
        self.arrays = arrays
        self.arguments = (*arguments, True)
        self.outputs = state.graph.packed(map(read_only, arrays))
        # Frames that had to be copied are looked at anew.
        self._frames: Any = frames if frames is given else None
        self._shape, self._dtype = frames.shape, frames.dtype

    def fits(self, frames):
        """Whether these are the same array, which may hold other numbers."""
        return (
            self._frames is not None
            and frames is self._frames
            # NumPy lets these be assigned to.
            and frames.shape == self._shape
            and frames.dtype is self._dtype
            and frames.flags.c_contiguous
        )

    def has(self, state, count):
        """Whether the outputs are those of so many streams of a state."""
        return state is self.state and count == len(self.arrays[0])


def _check_dtype(dtype):
    """Refuses a dtype, TensorFlow's or NumPy's, that frames cannot have."""
    if dtype not in (tf.uint8, tf.float32):
        raise ValueError(
            f"Expected `frames` to be uint8 or float32. Received: {dtype}"
        )


def _native(frames):
    """An array in the order of bytes, and aligned, as the kernels read it."""
    _check_dtype(frames.dtype.newbyteorder("="))
    return np.require(frames, frames.dtype.newbyteorder("="), ["C", "A"])


def _tensor(frames):
    if isinstance(frames, np.ndarray):
        frames = _native(frames)
    frames = _converted(frames, tf.convert_to_tensor)
    _check_dtype(frames.dtype)
    return frames


def _converted(frames, convert):
    """What a user gave for frames, by a function that makes an array of it."""
    try:
        converted = convert(frames)
    # TensorFlow raises errors of several kinds for what is no array.
    except (TypeError, ValueError, tf.errors.OpError) as error:
        raise _no_frames(frames) from error
    if converted.dtype == object:
        raise _no_frames(frames)
    return converted


def _no_frames(frames):
    return ValueError(
        "Expected `frames` to be an array or a tensor. Received: "
        f"{type(frames).__name__}"
    )
