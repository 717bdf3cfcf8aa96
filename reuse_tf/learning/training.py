"""Training a policy, in runs that can be killed and resumed."""

import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import keras

from reuse_tf import process
from reuse_tf.learning import curve, environments, evaluation, workers
from reuse_tf.learning.evaluation import Evaluation
from reuse_tf.learning.ppo import PPO
from reuse_tf.learning.progress import (
    COLUMNS,
    Bar,
    Progress,
    Row,
    TensorBoard,
    parse_rows,
)
from reuse_tf.learning.reinforce import Reinforce
from reuse_tf.learning.settings import MAY_CHANGE, Settings, saved_settings
from reuse_tf.playing.play import Summary, recomputed
from reuse_tf.policies import run_directory
from reuse_tf.policies.run_directory import (
    EPISODES,
    EVALUATIONS,
    STATE,
    NoDirectory,
    RunDirectory,
)

if TYPE_CHECKING:
    import gymnasium as gym

# Classes with the methods and attributes of `Reinforce`.
ALGORITHMS: dict[str, Any] = {"reinforce": Reinforce, "ppo": PPO, "a2c": PPO}
# Seconds between two drawings of the learning curve.
_CURVE_INTERVAL = 300


@dataclasses.dataclass(frozen=True)
class TrainingSummary(Summary):
    """What was trained, and the time it took, from the beginning of the run.

    But `recomputed` and `stats` are of the steps of this process. Where it
    made none, as the run was finished, the first is empty.

    Attributes:
        update_seconds: Time spent in updates. The total runs from the
            beginning of the first step to the end of the last update, without
            evaluations and what was lost to a kill.
        evaluation_seconds: Time spent in evaluations.
    """

    update_seconds: float = 0.0
    evaluation_seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        values = super().as_dict()
        values["seconds"]["update"] = self.update_seconds
        values["seconds"]["evaluation"] = self.evaluation_seconds
        return values


def train(
    settings: Settings,
    run_dir: str | os.PathLike[str],
    make_env: "Callable[[], gym.Env] | None" = None,
    network: Callable[..., keras.Model] | None = None,
) -> tuple[keras.Model, TrainingSummary]:
    """Trains a policy.

    When the function is called again with the same run directory it goes on
    from the newest checkpoint there; the weights at the end are, bit for bit,
    those of a run that was never stopped.

    Where `TF_CONFIG` names several workers, they train together: see
    `workers.connect`. All of them call this function, and get the same policy.
    The chief alone keeps the run, evaluates and draws.

    Args:
        settings: `Settings`, the same for all workers.
        run_dir: A directory, made if it does not exist. See `RunDirectory`.
            Workers but the chief do not look at it.
        make_env: A function that makes a `gymnasium.Env` of uint8 frames
            `[height, width, channels]` and discrete actions, instead of
            `atari.make` and its like. All that an episode depends on must be
            its actions, the `seed` that the first `reset` is given,
            `env.unwrapped.np_random`, and what
            `env.unwrapped.clone_state(include_rng=True)` returns if it is an
            Atari game.
        network: A function of the shape of a frame and the number of actions
            that makes the Keras model to train, instead of the settings'
            `network` and `filters`: frames (uint8) to logits, or for PPO to a
            dict of `"logits"` and `"value"`. See `policies.build_network`.

    Returns:
        A pair of the policy, a plain Keras model, and a `TrainingSummary`.

    Raises:
        KeyboardInterrupt: After Ctrl-C, SIGTERM or SIGHUP. However often they
            come, the last checkpoint is of the last update.
        OSError: If the directory cannot be written. Its checkpoints are whole.
        ValueError: If the directory is not that of a run, or of one with
            other settings, or is damaged; if there is no such game; or if the
            environment or the network is not as above; or if the workers have
            other settings than the chief.
        WorkerLost: If another worker has ended, or cannot be reached. The
            last checkpoint is kept.
        FloatingPointError: If the loss, a gradient, a weight or a logit is
            not finite. The last checkpoint is from before.
    """
    if not isinstance(settings, Settings):
        raise ValueError(
            "Expected `settings` to be `Settings`. Received: "
            f"{type(settings).__name__}"
        )
    if make_env is not None:
        make_env = environments.Maker(make_env)
    team = workers.connect()
    _check_same(settings, team)
    if team.is_chief:
        if not isinstance(run_dir, str | os.PathLike):
            raise ValueError(
                f"Expected `run_dir` to be a path. Received: {run_dir!r}"
            )
        saved_settings(run_dir)  # Are not damaged.
    make = ALGORITHMS[settings.algorithm]
    algorithm = make(settings, make_env, network, team)
    with (
        contextlib.closing(algorithm),
        process.Stop() as stop,
        RunDirectory(
            run_dir,
            dataclasses.asdict(settings),
            may_change=MAY_CHANGE,
            columns=COLUMNS,
        )
        if team.is_chief
        else NoDirectory() as directory,
    ):
        algorithm.build()
        run = _Run(algorithm, directory, team)
        progress = run.progress
        bar = Bar(settings, run.rows, show=team.is_chief)
        tensorboard = TensorBoard(directory.path)
        clock = _Clock(progress)
        saved_at = drawn_at = time.perf_counter()

        def is_due():
            return team.is_chief and evaluation.is_due(
                settings, progress, run.evaluations
            )

        def evaluate_if_due():
            if not is_due():
                return
            with clock.paused(), bar.paused():
                scored = evaluation.evaluate(
                    algorithm.learner.model,
                    settings,
                    make_env,
                    stop,
                    progress,
                )
            if scored is not None:  # or else when the run goes on
                run.score(scored)
                tensorboard.log(progress, {"score": scored.mean})

        stopped = False
        try:
            evaluate_if_due()
            # An iteration ends at once if a stop was requested of any worker.
            while not progress.is_finished(settings):
                iteration = algorithm.iterate(progress, bar, stop)
                if iteration is None:
                    stopped = True
                    break
                clock.update()
                episodes, scalars = iteration
                rows = run.add(episodes)
                tensorboard.log_update(progress, rows, scalars)
                bar.update(progress.steps, run.rows)
                evaluate_if_due()
                now = time.perf_counter()
                if (
                    team.is_chief
                    and now - saved_at >= settings.checkpoint_seconds
                ):
                    run.save()
                    saved_at = time.perf_counter()
                    if saved_at - drawn_at >= _CURVE_INTERVAL:
                        curve.draw(run, settings, directory.path)
                        drawn_at = saved_at
        except FloatingPointError as error:
            raise FloatingPointError(
                f"Update {progress.updates + 1} failed: {error}. The last "
                f"good checkpoint, of update {run.saved_updates}, is kept "
                f"in {str(directory.path)!r}"
            ) from error

        bar.update(progress.steps, run.rows, finalize=True)
        run.save()
        unfinished = stopped or not progress.is_finished(settings)
        # Nobody leaves while the chief evaluates, nor if that was stopped.
        if unfinished or any(team.gather(is_due())):
            raise KeyboardInterrupt
        if team.is_chief:
            curve.draw(run, settings, directory.path)
    model, stats = algorithm.learner.model, algorithm.learner.evaluator.stats
    return model, TrainingSummary(
        game=settings.game,
        steps=progress.steps,
        environment_seconds=progress.environment_seconds,
        policy_seconds=progress.policy_seconds,
        update_seconds=progress.update_seconds,
        evaluation_seconds=progress.evaluation_seconds,
        total_seconds=progress.total_seconds,
        returns=tuple(row.return_ for row in run.rows if row.end != "cut"),
        recomputed=recomputed(model, stats),
        stats=stats,
    )


def _check_same(settings, team):
    """Refuses workers that would train otherwise than the chief does."""
    chief, *others = team.gather(dataclasses.asdict(settings))
    for index, other in enumerate(others, 1):
        for name, value in chief.items():
            if other[name] != value:
                raise ValueError(
                    f"Expected --{name}={value}, as the chief has. Received: "
                    f"--{name}={other[name]} of worker {index}"
                )


class _Clock:
    """Counts up the seconds of a run, without those of evaluations."""

    def __init__(self, progress):
        self._progress = progress
        self._start = time.perf_counter() - progress.total_seconds
        self._processor_start = time.process_time() - progress.processor_seconds

    def update(self):
        progress = self._progress
        progress.total_seconds = time.perf_counter() - self._start
        progress.processor_seconds = time.process_time() - self._processor_start

    @contextlib.contextmanager
    def paused(self):
        begin, processor_begin = time.perf_counter(), time.process_time()
        yield
        seconds = time.perf_counter() - begin
        self._start += seconds
        self._processor_start += time.process_time() - processor_begin
        self._progress.evaluation_seconds += seconds


class _Run:
    """An algorithm, how far it is, and the directory that keeps both.

    Goes on from the newest checkpoint of the directory, or writes a first one.

    Attributes:
        progress: `Progress`.
        rows: The `Row`s so far.
        evaluations: The `Evaluation`s so far.
        saved_updates: The number of updates as of the newest checkpoint.
    """

    def __init__(self, algorithm, directory, team):
        self._algorithm = algorithm
        self._directory = directory
        self.progress = Progress()
        self._saved = None  # the state of the checkpoint to go on from
        self._best = -math.inf  # the mean score of the best policy
        self.rows = parse_rows(
            Row, directory.restore(self._read), directory.path, EPISODES
        )
        self._restore_evaluations()
        self._follow(team)
        # As of the last update, to which an iteration that is stopped goes
        # back.
        self._state = self._current_state()
        self.saved_updates = None
        if directory.is_saved:
            self.saved_updates = self.progress.updates
        self.save()

    def add(self, episodes):
        """Counts an update and its episodes.

        Args:
            episodes: See `Reinforce.iterate`.

        Returns:
            Their `Row`s.
        """
        progress = self.progress
        progress.updates += 1
        rows = [
            Row._make(
                (
                    number,
                    progress.updates,
                    *episode,
                    progress.steps,
                    round(progress.total_seconds, 3),
                    round(progress.processor_seconds, 3),
                )
            )
            for number, episode in enumerate(episodes, progress.episodes + 1)
        ]
        progress.episodes += len(rows)
        self.rows += rows
        self._state = self._current_state()
        self._directory.append(rows)
        return rows

    def score(self, scored):
        """Keeps an `Evaluation`, and the policy if none before was better."""
        seconds = self.progress.evaluation_seconds
        self._state["progress"]["evaluation_seconds"] = seconds
        if scored.mean >= self._best:
            # A run that goes on from before would drop it.
            self.save()
            self._directory.write_best(self._algorithm.learner.model)
            self._best = scored.mean
        self.evaluations.append(scored)
        self._directory.write_evaluations(evaluation.COLUMNS, self.evaluations)

    def _restore_evaluations(self):
        """Reads evaluations; those after the checkpoint are to come again."""
        directory = self._directory
        rows = parse_rows(
            Evaluation, directory.evaluations(), directory.path, EVALUATIONS
        )
        self.evaluations = [
            row for row in rows if row.update <= self.progress.updates
        ]
        # Of several that are the best, the policy is the last one's.
        best = max(reversed(rows), key=lambda row: row.mean, default=None)
        if best is not None:
            if best in self.evaluations and directory.has_best:
                self._best = best.mean
            else:
                directory.remove_best()
        if len(self.evaluations) < len(rows):
            directory.write_evaluations(evaluation.COLUMNS, self.evaluations)

    def save(self):
        """Writes a checkpoint of the last update, if there is none."""
        updates = self.progress.updates
        if self.saved_updates != updates:
            write = self._algorithm.learner.write
            self._directory.save(updates, self._state, write)
            self.saved_updates = updates

    def _follow(self, team):
        """Has all workers be where the chief is."""
        if team.count == 1:
            return
        state, *_ = team.gather(self._saved)
        if state is not None and not team.is_chief:
            self._restore(state)
        self._algorithm.learner.follow(team)

    def _current_state(self):
        progress = dataclasses.asdict(self.progress)
        return {"progress": progress, **self._algorithm.state()}

    def _read(self, path, state):
        self._algorithm.learner.read(path)
        with run_directory.reading(path / STATE):
            self._restore(state)
        self._saved = state
        return self.progress.episodes

    def _restore(self, state):
        self.progress = Progress(**state["progress"])
        self._algorithm.restore(state)
