"""Training a policy by REINFORCE, in runs that can be killed and resumed."""

import dataclasses
import time

import keras
import numpy as np

from reuse_tf import process
from reuse_tf.learning import curve, environments, reinforce
from reuse_tf.learning.evaluators import evaluator
from reuse_tf.learning.optimizer import make_optimizer
from reuse_tf.learning.progress import (
    COLUMNS,
    Bar,
    Progress,
    Row,
    TensorBoard,
    parse_rows,
)
from reuse_tf.learning.settings import MAY_CHANGE, saved_settings
from reuse_tf.playing.play import Summary, recomputed
from reuse_tf.policies import (
    Sampler,
    build_policy,
    load_policy,
    run_directory,
)
from reuse_tf.policies.run_directory import POLICY, STATE, RunDirectory

_OPTIMIZER = "optimizer.npz"
# Seconds between two drawings of the learning curve.
_CURVE_INTERVAL = 300


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
            columns=COLUMNS,
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
        progress = Progress()

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
            with run_directory.reading(path / POLICY):
                saved = load_policy(
                    path / POLICY, frame_shape, num_actions, incremental=False
                )
                model.set_weights(saved.get_weights())
            with run_directory.reading(path / _OPTIMIZER):
                optimizer.load(path / _OPTIMIZER)
            with run_directory.reading(path / STATE):
                vars(progress).update(vars(Progress(**state["progress"])))
                rng.bit_generator.state = state["actions"]
                for env, saved in zip(envs, state["environments"], strict=True):
                    environments.restore(env, saved)
            return progress.episodes

        rows = parse_rows(directory.restore(read), directory.path)
        # As of the last update, to which a play that is stopped goes back.
        last = state()
        if not directory.is_saved:
            directory.save(progress.updates, last, write)
        evaluate = evaluator(model, settings.reuse)
        bar = Bar(settings, rows)
        tensorboard = TensorBoard(directory.path)
        earlier = progress.total_seconds
        saved_updates = progress.updates
        start = saved_at = drawn_at = time.perf_counter()

        while (
            not (finished := progress.is_finished(settings))
            and not stop.requested
        ):
            count = settings.batch_episodes
            max_steps = None
            if settings.episodes is not None:
                count = min(count, settings.episodes - progress.episodes)
            if settings.steps is not None:
                max_steps = settings.steps - progress.steps

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
                Row(
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
            tensorboard.log(progress, new, update)
            bar.update(progress.steps, rows)
            if now - saved_at >= settings.checkpoint_seconds:
                directory.save(progress.updates, last, write)
                saved_updates = progress.updates
                saved_at = time.perf_counter()
                if saved_at - drawn_at >= _CURVE_INTERVAL:
                    curve.draw(rows, settings, directory.path)
                    drawn_at = saved_at

        bar.update(progress.steps, rows, finalize=True)
        if saved_updates != progress.updates:
            directory.save(progress.updates, last, write)
        if not finished:
            raise KeyboardInterrupt
        curve.draw(rows, settings, directory.path)
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
