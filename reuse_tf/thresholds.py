"""Thresholds that are found rather than guessed, from frames of a camera."""

import numbers
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from numpy.typing import ArrayLike

from reuse_tf.batches import read_only
from reuse_tf.runner import Runner

# Factors that are tried: from the smallest, doubled until outputs will not do,
# and in between.
_SMALLEST, _LARGEST, _HALVINGS = 2.0**-8, 2.0**3, 2
# How much of what would do for the frames alone is left to them beside others:
# all against noise, nothing where all that moves in the frames matters.
_PARTS = (1, 0.5, 0)
# Of the tolerance, as frames to come are others.
_MARGIN = 0.8
# A larger threshold has to save so much of the work.
_WORTH = 0.02
_SAMPLES = 8  # frames that standard deviations are taken of


class FoundThresholds(NamedTuple):
    """What `find_thresholds` has found.

    Attributes:
        thresholds: By map, for `Runner(model, threshold=...)`. None is above
            0 if none is within the tolerance.
        error: On frames that were held out: see `relative_error`. How much
            outputs vary is taken of all frames.
        work: Multiply-adds made for these frames, as a part of those that
            computing everything would take.
        exact_work: The same without thresholds.
        is_within: Whether the tolerance is kept on the held-out frames too.
    """

    thresholds: dict[str, float]
    error: float
    work: float
    exact_work: float
    is_within: bool

    def __str__(self) -> str:
        return (
            f"{self.work:.1%} of the multiply-adds (without thresholds "
            f"{self.exact_work:.1%}), error {self.error:.3g} on held-out "
            f"frames, {'within' if self.is_within else 'NOT WITHIN'} the "
            "tolerance"
        )


def relative_error(
    reference: Any,
    outputs: Any,
    before: Any = None,
) -> float:
    """Computes how far outputs are off, relative to how much they vary.

        sqrt(mean((outputs - reference)^2) / mean((reference - always)^2))

    over all frames and values of an output, `always` being the mean of each
    value over the frames: 1 is the error of an output that is always the same.

    Args:
        reference: A list of arrays `[T, ...]`, one for each output, or, as a
            model gives them, an array or a dict of arrays. T > 0.
        outputs: Likewise, of the same shapes.
        before: Likewise, of other frames. How much outputs vary is then taken
            of these and `reference` together: in a part of a video in which
            nothing happens they vary by noise alone.

    Returns:
        A float, the largest of all outputs: 0 if all are equal, infinite if one
        that never varies is not, or a value is not finite.

    Raises:
        ValueError: If an argument is not as above.
    """
    wanted, got, known = (
        [np.asarray(array) for array in keras.tree.flatten(arrays)]
        for arrays in (reference, outputs, [] if before is None else before)
    )
    shapes = [array.shape for array in wanted]
    if not shapes or any(not shape or not shape[0] for shape in shapes):
        raise ValueError(
            "Expected `reference` to be arrays [T, ...], T > 0. Received: "
            f"arrays of shapes {shapes}"
        )
    if (received := [array.shape for array in got]) != shapes:
        raise ValueError(
            f"Expected `outputs` to be of the shapes of `reference`, {shapes}. "
            f"Received: {received}"
        )
    of_frame = [shape[1:] for shape in shapes]
    received = [array.shape for array in known]
    if before is not None and [s[1:] for s in received] != of_frame:
        raise ValueError(
            "Expected `before` to be of the shapes of `reference`, but for T, "
            f"{shapes}. Received: {received}"
        )
    error = RunningError()
    if before is not None:
        error.vary(known)
    error.add(wanted, got)
    return error.value


class RunningError:
    """The `relative_error` of more and more frames, none of which is kept."""

    def __init__(self) -> None:
        self._sums = []

    def vary(self, reference: Sequence[ArrayLike]) -> None:
        """Adds frames to those of which it is taken how much outputs vary."""
        self._sums = self._sums or [_Sums() for _ in reference]
        for sums, want in zip(self._sums, reference, strict=True):
            sums.vary(np.asarray(want, np.float64))

    def add(
        self, reference: Sequence[ArrayLike], outputs: Sequence[ArrayLike]
    ) -> None:
        """Adds frames: see `relative_error`."""
        self.vary(reference)
        for sums, want, got in zip(self._sums, reference, outputs, strict=True):
            sums.compare(want, got)

    @property
    def value(self) -> float:
        """A float, of all frames so far: 0 if there are none."""
        return max((sums.error for sums in self._sums), default=0.0)


class _Sums:
    """Of one output, what its error follows from."""

    def __init__(self):
        self._equal = True
        self._compared = self._count = 0  # frames
        self._apart = self._spread = self._mean = 0.0

    def vary(self, want):
        with np.errstate(all="ignore"):
            mean = want.mean(0)
            # The sum of squares about the mean of the old and new together.
            moved, part = (
                mean - self._mean,
                len(want) / (self._count + len(want)),
            )
            self._spread += np.sum(np.square(want - mean))
            self._spread += self._count * part * np.sum(np.square(moved))
            self._mean = self._mean + part * moved
        self._count += len(want)

    def compare(self, want, got):
        self._equal &= np.array_equal(want, got, equal_nan=True)
        want, got = np.asarray(want, np.float64), np.asarray(got, np.float64)
        with np.errstate(all="ignore"):
            self._apart += np.sum(np.square(got - want))
        self._compared += len(want)

    @property
    def error(self):
        if self._equal:
            return 0.0
        with np.errstate(all="ignore"):
            apart = np.divide(self._apart, self._compared)
            error = float(np.sqrt(apart / (self._spread / self._count)))
        return error if np.isfinite(error) else np.inf


def find_thresholds(
    model: keras.Model | Runner,
    frames: ArrayLike | Sequence[ArrayLike],
    tolerance: float
    | Callable[[list[np.ndarray], list[np.ndarray]], bool] = 0.05,
    *,
    held_out: float = 0.3,
    trials: int = 24,
    verbose: bool = True,
) -> FoundThresholds:
    """Finds the thresholds of least work that keep outputs within a tolerance.

    A factor for the frames and one for all other maps, times the standard
    deviation of each map's values; then, for those maps in turn behind which
    most is computed, twice as much as long as that saves work and the error
    allows it. The same arguments find the same thresholds.

    It steps through the frames some 30 + `trials` times, one stream at a time.

    Args:
        model: What `Runner` takes, or a `Runner`, of which only the model
            counts. Thresholds of layers count as 0.
        frames: uint8 or float32 `[T, H, W, C]`, in the order of time; or a list
            of such videos. They should show what the camera will see: its
            noise, and what moves.
        tolerance: The largest `relative_error` that is accepted, a positive
            number. Or a function of reference and outputs, lists of arrays
            `[T, ...]`, that tells whether these outputs will do.
        held_out: Which part of each video, at its end, only the report is
            about.
        trials: How many thresholds of single maps are tried.
        verbose: Whether to show a progress bar.

    Returns:
        A `FoundThresholds`.

    Raises:
        ValueError: If an argument is not as above.

    Examples:
        >>> found = find_thresholds(model, frames, tolerance=0.05)
        >>> print(found)
        >>> runner = Runner(model, threshold=found.thresholds)
    """
    model = model.model if isinstance(model, Runner) else model
    accepts = _acceptance(tolerance)
    videos = _videos(frames)
    if not isinstance(held_out, numbers.Real) or not 0 < held_out < 1:
        raise ValueError(
            "Expected `held_out` between 0 and 1. Received: "
            f"held_out={held_out!r}"
        )
    if (
        isinstance(trials, bool)
        or not isinstance(trials, numbers.Integral)
        or trials < 0
    ):
        raise ValueError(
            "Expected `trials` to be an integer that is not negative. "
            f"Received: trials={trials!r}"
        )
    lengths = [max(1, int(len(v) * (1 - held_out))) for v in videos]
    # One frame alone does not vary, and none is what an error is relative to.
    if not any(
        n > 1 and len(v) - n > 1 for v, n in zip(videos, lengths, strict=True)
    ):
        raise ValueError(
            "Expected `frames` of a video that has two or more to find "
            "thresholds with and as many to hold out. Received: videos of "
            f"{[len(v) for v in videos]} frames, held_out={held_out}"
        )
    search = _Search(model, videos, lengths, accepts, trials, verbose)
    return search.report(search.refine(*search.two_factors()))


def _acceptance(tolerance):
    """A function of reference and outputs that tells whether these will do."""
    if callable(tolerance):
        # Both serve again.
        return lambda reference, outputs, margin=1, before=None: _answer(
            tolerance([*map(read_only, reference)], [*map(read_only, outputs)])
        )
    if (
        isinstance(tolerance, bool)
        or not isinstance(tolerance, (int, float, np.number))
        or not 0 < tolerance < np.inf
    ):
        raise ValueError(
            "Expected `tolerance` to be a positive number, or a function. "
            f"Received: tolerance={tolerance!r}"
        )
    return lambda reference, outputs, margin=1, before=None: bool(
        relative_error(reference, outputs, before) <= margin * tolerance
    )


def _answer(given):
    if given is None:  # of a function that lacks its `return`
        raise ValueError(
            "Expected the function `tolerance` to return True or False. "
            "Received: None"
        )
    return bool(given)


def _check_size(videos, model):
    want = model.inputs[0].shape[1:]
    got = videos[0].shape[1:]
    if len(want) == 3 and any(
        size not in (None, of_video)
        for size, of_video in zip(want, got, strict=True)
    ):
        raise ValueError(
            f"Expected `frames` to be [T, {', '.join(map(str, want))}], as the "
            f"model's input is. Received: {list(videos[0].shape)}"
        )


def _videos(frames):
    videos = list(frames) if isinstance(frames, (list, tuple)) else [frames]
    videos = [np.asarray(video) for video in videos]
    if not videos:
        raise ValueError("Expected `frames` of a video. Received: no videos")
    for video in videos:
        if (
            video.ndim != 4
            or not len(video)
            or video.dtype not in (np.uint8, np.float32)
        ):
            raise ValueError(
                "Expected `frames` to be uint8 or float32 [T, H, W, C], T > 0, "
                f"or a list of such. Received: {video.dtype} "
                f"{list(video.shape)}"
            )
    if len({(video.dtype, video.shape[1:]) for video in videos}) != 1:
        raise ValueError(
            "Expected `frames` to be videos of one dtype and size. Received: "
            + ", ".join(f"{v.dtype} {list(v.shape)}" for v in videos)
        )
    return videos


class _Trial(NamedTuple):
    """What came of a trial: outputs `[T, ...]` and the work they took."""

    outputs: list
    work: float
    by_layer: dict


class _Search:
    """The trials of `find_thresholds`."""

    def __init__(self, model, videos, lengths, accepts, trials, verbose):
        self._model = model
        self._videos = videos
        self._lengths = lengths
        self._accepts = accepts
        self._trials = trials
        self._verbose = verbose
        self._done = 0
        self._bar = keras.utils.Progbar(
            None, verbose=int(verbose), stateful_metrics=["work"]
        )
        runner = Runner(model)
        _check_size(videos, model)
        self._look_at(runner)
        self._exact = self._run({})

    def two_factors(self):
        """Thresholds of one factor for the frames and one for other maps.

        What moves little in the frames is best stopped there, and needs nothing
        more; but that uses up the tolerance, of which what moves more may need
        a part for the maps behind.
        """
        best = {}, self._exact
        # They have no scale if they never vary, or nothing is behind them.
        frames, trial = self._best_factor(
            {k: size for k, size in self._scales.items() if k == "frames"}
        )
        pays = trial.work <= (1 - _WORTH) * self._exact.work
        for part in _PARTS if pays else (0,):
            first = {name: part * limit for name, limit in frames.items()}
            others = {
                name: size
                for name, size in self._scales.items()
                if name != "frames"
            }
            found, trial = self._best_factor(others, first)
            if trial.work < best[1].work:
                best = found, trial
        return best

    def _best_factor(self, sizes, fixed=None):
        """Thresholds of the factor times sizes that saves most and will do.

        Args:
            sizes: By map.
            fixed: Other thresholds.

        Returns:
            A pair of all thresholds and their trial: of `fixed` alone if not
            the smallest factor will do.
        """
        if not sizes:
            return fixed or {}, self._run(fixed or {})
        found = []

        def will_do(factor):
            thresholds = {
                **(fixed or {}),
                **{name: factor * size for name, size in sizes.items()},
            }
            trial = self._run(thresholds)
            if self._will_do(trial):
                found.append((factor, thresholds, trial))
                return True
            return False

        low, high = _SMALLEST, _SMALLEST
        while high <= _LARGEST and will_do(high):
            low, high = high, high * 2
        for _ in range(_HALVINGS if low < high <= _LARGEST else 0):
            middle = (low * high) ** 0.5
            if will_do(middle):
                low = middle
            else:
                high = middle
        if not found:
            return fixed or {}, self._run(fixed or {})
        # Frames to come may show what a larger one than needed would hide.
        enough = (1 + _WORTH) * min(trial.work for *_, trial in found)
        _, thresholds, trial = min(
            (one for one in found if one[2].work <= enough),
            key=lambda one: one[0],
        )
        return thresholds, trial

    def refine(self, thresholds, best):
        """Doubles thresholds of single maps while that pays."""
        # Those that much is computed behind, the frames first of all.
        order = sorted(
            thresholds,
            key=lambda name: (
                name != "frames",
                -sum(best.by_layer[other] for other in self._behind[name]),
            ),
        )
        left = self._trials
        for name in order:
            largest = _LARGEST * self._scales[name]
            while left > 0 and 0 < thresholds[name] <= largest / 2:
                left -= 1
                larger = {**thresholds, name: 2 * thresholds[name]}
                trial = self._run(larger)
                if trial.work > best.work * (1 - _WORTH) or not self._will_do(
                    trial
                ):
                    break
                thresholds, best = larger, trial
        return thresholds

    def report(self, thresholds):
        """What the thresholds do to the frames that were held out."""
        exact = self._run({}, whole=True)
        found = self._run(thresholds, whole=True) if thresholds else exact
        if self._verbose:
            self._bar.update(self._done, finalize=True)
        before = self._exact.outputs
        return FoundThresholds(
            {**self._none, **thresholds},
            relative_error(exact.outputs, found.outputs, before),
            found.work,
            exact.work,
            self._accepts(exact.outputs, found.outputs, before=before),
        )

    def _will_do(self, trial):
        return self._accepts(self._exact.outputs, trial.outputs, _MARGIN)

    def _look_at(self, runner):
        """Finds the standard deviations of maps, and what is behind them."""
        sums = {}
        every = -(-sum(self._lengths) // _SAMPLES)
        number = 0
        for video, length in zip(self._videos, self._lengths, strict=True):
            for frame in video[:length]:
                number += 1
                if number % every:
                    continue
                structure = runner.structure(frame[np.newaxis])
                graph = runner.graph
                rows = graph.rows(structure)
                for name, node in graph.maps.items():
                    # Of the frames, the values are those that come in.
                    values = frame if name == "frames" else rows[node].numpy()
                    values = values[np.isfinite(values)].astype(np.float64)
                    count, total, squares = sums.get(name, (0, 0, 0))
                    sums[name] = (
                        count + values.size,
                        total + values.sum(),
                        squares + np.square(values).sum(),
                    )
        self._behind = {
            name: [
                other
                for other, behind in graph.maps.items()
                if node in behind.inputs
            ]
            for name, node in graph.maps.items()
        }
        # Incremental layers may have thresholds of their own.
        self._none = {
            name: 0.0 for name, n in graph.maps.items() if n.threshold
        }
        self._scales = {}
        for name, (count, total, squares) in sums.items():
            if not count or not self._behind[name]:
                continue
            variance = squares / count - (total / count) ** 2
            if variance > 0:
                self._scales[name] = float(np.sqrt(variance))

    def _run(self, thresholds, whole=False):
        """Steps through what thresholds are found with, or what is held out.

        Of the latter, what lies before it is stepped through too.
        """
        runner = Runner(
            self._model, "temporal", threshold={**self._none, **thresholds}
        )
        outputs, by_layer, made, dense = [], {}, 0, 0
        for video, length in zip(self._videos, self._lengths, strict=True):
            runner.reset_state()
            first = length if whole else 1
            for t, frame in enumerate(video if whole else video[:length]):
                step = keras.tree.flatten(runner.step(frame[np.newaxis]))
                if not whole or t >= length:
                    outputs.append(step)
                if t + 1 == first:  # The first frame is computed anyway.
                    before = runner.stats.layers
            for name, layer in runner.stats.layers.items():
                work = layer.multiply_adds - before[name].multiply_adds
                by_layer[name] = by_layer.get(name, 0) + work
                made += work
                dense += (
                    layer.dense_multiply_adds - before[name].dense_multiply_adds
                )
        self._done += 1
        if self._verbose:
            self._bar.update(
                self._done, [("work", made / max(1, dense))], finalize=False
            )
        return _Trial(
            [np.concatenate(parts) for parts in zip(*outputs, strict=True)],
            made / max(1, dense),
            by_layer,
        )
