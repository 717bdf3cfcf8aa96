"""Training a policy by REINFORCE, in runs that can be killed and resumed."""

import contextlib
import dataclasses
import functools
import io
import sys
import time
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from reuse_tf import files, process
from reuse_tf.learning import environments, reinforce
from reuse_tf.learning.evaluators import evaluator
from reuse_tf.learning.optimizer import make_optimizer
from reuse_tf.learning.settings import (
    MAY_CHANGE,
    is_finite,
    saved_settings,
)
from reuse_tf.playing.play import Summary, recomputed
from reuse_tf.policies import (
    Sampler,
    build_policy,
    load_policy,
    run_directory,
)
from reuse_tf.policies.run_directory import CURVE, POLICY, RunDirectory

_OPTIMIZER = "optimizer.npz"
# Seconds between two updates of the progress bar, and of the learning curve.
_BAR_INTERVAL = 0.2
_CURVE_INTERVAL = 300
# The progress bar shows the mean return of this many episodes.
_RECENT = 100


@dataclasses.dataclass(frozen=True)
class TrainingSummary(Summary):
    """What was trained, and the time it took, from the beginning of the run.

    Attributes:
        update_seconds: Time spent in updates. The total runs from the
            beginning of the first step to the end of the last update, without
            what was lost to a kill.
    """

    update_seconds: float = 0.0

    def as_dict(self):
        values = super().as_dict()
        values["seconds"]["update"] = self.update_seconds
        return values


class _Row(NamedTuple):
    """A row of `episodes.csv`."""

    episode: int
    update: int
    length: int  # in steps
    return_: float
    end: str  # "terminated", "truncated" or "cut": see `Settings`
    steps: int  # of the run, when the episode's update began
    seconds: float  # of the run, likewise


@dataclasses.dataclass
class _Progress:
    """How far a run is: what a checkpoint holds besides arrays."""

    updates: int = 0
    episodes: int = 0
    steps: int = 0
    environment_seconds: float = 0.0
    policy_seconds: float = 0.0
    update_seconds: float = 0.0
    total_seconds: float = 0.0


def train(settings, run_dir, make_env=None):
    """Trains a policy by REINFORCE.

    Every episode of an update is played to its end with the weights of the
    update before. When the function is called again with the same run
    directory it goes on from the newest checkpoint there; the weights at the
    end are, bit for bit, those of a run that was never stopped.

    Args:
        settings: `Settings`.
        run_dir: A directory, made if it does not exist. See `RunDirectory`.
        make_env: A function that makes a `gymnasium.Env` of uint8 frames
            `[height, width, channels]` and discrete actions, instead of
            `atari.make`. All that an episode depends on must be the `seed`
            that its first `reset` is given, `env.unwrapped.np_random`, and
            what `env.unwrapped.clone_state(include_rng=True)` returns if it
            is an Atari game.

    Returns:
        A pair of the policy, a plain Keras model, and a `TrainingSummary`.

    Raises:
        KeyboardInterrupt: After Ctrl-C, SIGTERM or SIGHUP. However often they
            come, the last checkpoint is of the last update.
        OSError: If the directory cannot be written. Its checkpoints are whole.
        ValueError: If the directory is not that of a run, or of one with
            other settings, or is damaged; if there is no such game; or if the
            environment is not as above.
        FloatingPointError: If the loss, a gradient, a weight or a logit is
            not finite. The last checkpoint is from before.
    """
    saved_settings(run_dir)  # Are not damaged.
    envs = environments.make(settings, make_env)
    frame_shape, num_actions = environments.spaces(envs[0])
    with (
        process.Stop() as stop,
        RunDirectory(
            run_dir,
            dataclasses.asdict(settings),
            may_change=MAY_CHANGE,
            columns=[name.rstrip("_") for name in _Row._fields],
        ) as directory,
    ):
        seeds = np.random.SeedSequence(settings.seed).generate_state(
            settings.num_envs + 1
        )
        for env, seed in zip(envs, seeds[1:].tolist(), strict=True):
            env.reset(seed=seed)
        rng = np.random.default_rng(seeds[0])
        sample = Sampler(rng)
        keras.utils.set_random_seed(settings.seed)
        model = build_policy(
            frame_shape, num_actions, settings.filters, incremental=False
        )
        optimizer = make_optimizer(settings, model.trainable_variables)
        progress = _Progress()

        def write(path):
            model.save(path / POLICY)
            optimizer.save(path / _OPTIMIZER)

        def state():
            return {
                "progress": dataclasses.asdict(progress),
                "actions": rng.bit_generator.state,
                "environments": [environments.state(env) for env in envs],
            }

        def read(path, state):
            with _reading(path / POLICY):
                saved = load_policy(
                    path / POLICY, frame_shape, num_actions, incremental=False
                )
                model.set_weights(saved.get_weights())
            with _reading(path / _OPTIMIZER):
                optimizer.load(path / _OPTIMIZER)
            with _reading(path / "state.json"):
                vars(progress).update(vars(_Progress(**state["progress"])))
                if not all(map(is_finite, vars(progress).values())):
                    raise ValueError(f"expected numbers, got {progress}")
                rng.bit_generator.state = state["actions"]
                for env, saved in zip(envs, state["environments"], strict=True):
                    environments.restore(env, saved)
            return progress.episodes

        rows = _parse(directory.restore(read), directory.path)
        # As of the last update, to which a play that is stopped goes back.
        last = state()
        if not directory.is_saved:
            directory.save(progress.updates, last, write)
        evaluate = evaluator(model, settings.reuse)
        bar = _Bar(settings, rows)
        log = _tensorboard(directory.path)
        earlier = progress.total_seconds
        saved_updates = progress.updates
        start = saved_at = drawn_at = time.perf_counter()

        while True:
            count = settings.batch_episodes
            max_steps = None
            if settings.episodes is not None:
                count = min(count, settings.episodes - progress.episodes)
            if settings.steps is not None:
                max_steps = settings.steps - progress.steps
            finished = count <= 0 or (max_steps is not None and max_steps <= 0)
            if finished or stop.requested:
                break

            try:
                evaluate.begin()
                played, order = _play(
                    envs,
                    evaluate.act,
                    sample,
                    count,
                    max_steps,
                    progress,
                    bar,
                    stop,
                )
                if stop.requested:
                    break
                begin = time.perf_counter()
                episodes = [episode for episode, _ in played]
                update = _update(evaluate, optimizer, episodes, order, settings)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"Update {progress.updates + 1} failed: {error}. The last "
                    f"good checkpoint, of update {saved_updates}, is kept in "
                    f"{str(directory.path)!r}"
                ) from error
            now = time.perf_counter()
            progress.update_seconds += now - begin
            progress.total_seconds = earlier + now - start
            progress.updates += 1

            new = [
                _Row(
                    progress.episodes + index,
                    progress.updates,
                    len(episode),
                    sum(episode.rewards),
                    end,
                    progress.steps,
                    round(progress.total_seconds, 3),
                )
                for index, (episode, end) in enumerate(played, start=1)
            ]
            progress.episodes += len(new)
            rows += new
            last = state()
            directory.append(new)
            log(progress, new, update)
            bar.update(progress.steps, rows)
            if now - saved_at >= settings.checkpoint_seconds:
                directory.save(progress.updates, last, write)
                saved_updates = progress.updates
                saved_at = time.perf_counter()
                if saved_at - drawn_at >= _CURVE_INTERVAL:
                    _draw(rows, settings, directory.path)
                    drawn_at = saved_at

        bar.update(progress.steps, rows, finalize=True)
        if saved_updates != progress.updates:
            directory.save(progress.updates, last, write)
        if not finished:
            raise KeyboardInterrupt
        _draw(rows, settings, directory.path)
    stats = evaluate.stats
    return model, TrainingSummary(
        game=settings.game,
        steps=progress.steps,
        environment_seconds=progress.environment_seconds,
        policy_seconds=progress.policy_seconds,
        update_seconds=progress.update_seconds,
        total_seconds=progress.total_seconds,
        returns=tuple(row.return_ for row in rows if row.end != "cut"),
        recomputed=recomputed(model, stats),
        stats=stats,
    )


class _Slot:
    """An environment and the episode it is in."""

    def __init__(self, env):
        self.env = env
        self.episode = reinforce.Episode()
        self.frame, _ = env.reset()


def _play(envs, act, sample, count, max_steps, progress, bar, stop):
    """Plays episodes, as many at once as there are environments.

    Args:
        envs: Environments, none of them within an episode.
        act: A function from frames of several streams to their logits.
        sample: A `Sampler` of actions.
        count: Episodes to begin.
        max_steps: Steps after which episodes are cut, or None.
        progress: Has its steps and seconds counted up.
        bar: The progress bar.
        stop: A `process.Stop`, at whose request episodes are left where they
            are.

    Returns:
        Pairs of an `Episode` and how it ended, in the order in which they
        began; and of each of their frames its number among all in the order
        of acting.
    """
    begin = time.perf_counter()
    slots = [_Slot(env) for env in envs[:count]]
    progress.environment_seconds += time.perf_counter() - begin
    episodes = [slot.episode for slot in slots]
    numbers = {}  # by episode
    ends = {}
    played = 0
    while slots and played != max_steps and not stop.requested:
        left = None if max_steps is None else max_steps - played
        begin = time.perf_counter()
        acting = slots[:left]
        logits = act(np.stack([slot.frame for slot in acting]))
        actions = sample(logits)
        chosen = time.perf_counter()
        for index, (slot, action) in enumerate(
            zip(acting, actions, strict=True)
        ):
            frame, reward, terminated, truncated, _ = slot.env.step(action)
            slot.episode.append(slot.frame, action, reward)
            numbers.setdefault(slot.episode, []).append(played + index)
            slot.frame = frame
            if terminated or truncated:
                ends[slot.episode] = "terminated" if terminated else "truncated"
                slots[index] = None
                if len(episodes) < count:
                    slots[index] = _Slot(slot.env)
                    episodes.append(slots[index].episode)
        slots = [slot for slot in slots if slot is not None]
        played += len(acting)
        end = time.perf_counter()
        progress.policy_seconds += chosen - begin
        progress.environment_seconds += end - chosen
        progress.steps += len(acting)
        bar.update(progress.steps)
    episodes = [episode for episode in episodes if len(episode)]
    return (
        [(episode, ends.get(episode, "cut")) for episode in episodes],
        [number for episode in episodes for number in numbers[episode]],
    )


def _update(evaluate, optimizer, episodes, order, settings):
    """Differentiates episodes and updates the weights.

    Nothing large is left behind, for the next episodes to be played in the
    memory that this took.

    Args:
        evaluate: See `evaluator`.
        optimizer: An `Optimizer`.
        episodes: What was played. Their frames are dropped if not needed.
        order: See `Reusing.end`.
        settings: `Settings`.

    Returns:
        A dict of what there is to log.
    """
    structure = evaluate.end(order)
    if structure is not None:
        for episode in episodes:
            episode.frames.clear()
    gradient = reinforce.policy_gradient(
        evaluate.logits_fn,
        optimizer.variables,
        episodes,
        discount=settings.discount,
        entropy=settings.entropy,
        max_frames=evaluate.max_frames,
        structure=structure,
    )
    norm = optimizer.apply(gradient.gradients)
    return {
        "loss": gradient.loss,
        "entropy": gradient.entropy,
        "gradient_norm": norm,
    }


@contextlib.contextmanager
def _reading(file):
    """Has errors name the file of a checkpoint that they come from."""
    try:
        yield
    # A damaged file is a zip, HDF5, JSON, Keras or emulator error.
    except Exception as error:
        raise run_directory.damaged(file, error) from error


def _parse(rows, path):
    """Returns rows of `episodes.csv` as `_Row`s."""
    kinds = _Row.__annotations__.values()
    parsed = []
    for row in rows:
        try:
            pairs = zip(kinds, row, strict=True)
            parsed.append(_Row(*(kind(value) for kind, value in pairs)))
        except ValueError as error:
            raise run_directory.damaged_rows(
                path, f"row {len(parsed) + 1} is {','.join(row)!r}: {error}"
            ) from error
    return parsed


class _Bar:
    """A progress bar with the return and the steps per second.

    It counts steps, or episodes if only they are bounded, and begins at those
    of the checkpoint. If the standard output is no terminal it is one line at
    the end.
    """

    def __init__(self, settings, rows):
        self._of_steps = settings.steps is not None
        self._bar = keras.utils.Progbar(
            settings.steps if self._of_steps else settings.episodes,
            verbose=1 if sys.stdout.isatty() else 2,
            interval=0,
            stateful_metrics=["return", "steps/s"],
            unit_name="step" if self._of_steps else "episode",
        )
        self._episodes = 0
        self._values = []
        self._first = None
        self._next = 0.0
        self._show(rows)

    def update(self, steps, rows=None, finalize=False):
        """Counts `steps` of the run, and its episodes if `rows` are given."""
        now = time.perf_counter()
        if self._first is None:
            self._first = (steps, now)
        if rows is not None:
            self._show(rows)
        if now < self._next and not finalize:
            return
        self._next = now + _BAR_INTERVAL
        since = now - self._first[1]
        speed = (steps - self._first[0]) / since if since else 0.0
        self._bar.update(
            steps if self._of_steps else self._episodes,
            [*self._values, ("steps/s", speed)],
            finalize=finalize,
        )

    def _show(self, rows):
        self._episodes = len(rows)
        if rows:
            recent = [row.return_ for row in rows[-_RECENT:]]
            self._values = [("return", np.mean(recent))]


def _tensorboard(path):
    """Returns a function that logs an update for TensorBoard.

    `tf.summary.scalar` needs TensorBoard to be installed; what it writes does
    not.
    """

    @functools.cache  # With a first update, and not before: it makes a file.
    def writer():
        return tf.summary.create_file_writer(str(path / "tensorboard"))

    scalar = tf.compat.v1.SummaryMetadata(
        plugin_data={"plugin_name": "scalars"},
        data_class="DATA_CLASS_SCALAR",
    )

    def log(progress, rows, update):
        try:
            write(progress, rows, update)
        except tf.errors.OpError as error:
            raise OSError(f"cannot write {error.message}") from error

    def write(progress, rows, update):
        with writer().as_default(step=progress.steps):
            for name, value in {
                "return": np.mean([row.return_ for row in rows]),
                "length": np.mean([row.length for row in rows]),
                "steps_per_second": progress.steps / progress.total_seconds,
                **update,
            }.items():
                tf.summary.write(name, np.float32(value), metadata=scalar)
        writer().flush()

    return log


def _draw(rows, settings, path):
    """Draws the learning curve: returns, and their running mean, by step."""
    if not rows:
        return
    # Here rather than above, as they take seconds.
    import seaborn
    from matplotlib.figure import Figure

    returns = np.array([row.return_ for row in rows])
    steps = np.cumsum([row.length for row in rows])
    sums = np.cumsum(np.concatenate([[0.0], returns]))
    last = np.arange(1, len(sums))
    first = np.maximum(0, last - _RECENT)
    with seaborn.axes_style("whitegrid"):
        figure = Figure(figsize=(7, 4))
        axes = figure.subplots()
    seaborn.scatterplot(
        x=steps, y=returns, ax=axes, s=12, alpha=0.4, label="episode"
    )
    seaborn.lineplot(
        x=steps,
        y=(sums[last] - sums[first]) / (last - first),
        ax=axes,
        label=f"mean of the last {_RECENT}",
    )
    axes.set(
        title=f"{settings.game}, reuse {settings.reuse}",
        xlabel="steps",
        ylabel="return",
    )
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    files.write(path / CURVE, picture.getvalue())
