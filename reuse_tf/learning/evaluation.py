"""What a policy scores: whole games, beside its training."""

import math
from typing import NamedTuple

import numpy as np

from reuse_tf.learning import environments
from reuse_tf.policies import Sampler
from reuse_tf.policies.evaluators import evaluator

# Tells the seeds of evaluations from those of the training.
_SPAWN_KEY = (1,)
# The most games that are played at once.
_MOST_AT_ONCE = 8


class Evaluation(NamedTuple):
    """A row of `evaluations.csv`.

    Attributes:
        update: The number of updates before it.
        steps: Steps of the training before it.
        episodes: Games that were played.
        mean: Their mean score: the sum of a game's own rewards.
        standard_error: Of the mean; 0 if it was one game.
        seconds: Of the training before it.
        processor_seconds: The same of all processors' time.
    """

    update: int
    steps: int
    episodes: int
    mean: float
    standard_error: float
    seconds: float
    processor_seconds: float


COLUMNS = list(Evaluation._fields)


def is_due(settings, progress, evaluations):
    """Returns whether it is time for an evaluation.

    Args:
        settings: `Settings`.
        progress: `Progress`.
        evaluations: The `Evaluation`s so far.
    """
    every = settings.eval_every
    if every is None:
        return False
    last = evaluations[-1].steps if evaluations else 0
    return progress.steps // every > last // every


def play(model, settings, make_env, stop):
    """Plays whole games with a policy, drawing its actions.

    The training is not disturbed: all is of its own, and always of the same
    seed.

    Args:
        model: A Keras model, frames to logits, or to a dict with `"logits"`.
        settings: `Settings`.
        make_env: See `training.train`.
        stop: A `process.Stop`, at whose request it ends.

    Returns:
        The scores, floats. None if it was stopped.

    Raises:
        FloatingPointError: If a logit is not finite.
    """
    num_envs = min(settings.eval_episodes, _MOST_AT_ONCE)
    games = environments.make_games(settings, make_env, range(num_envs))
    seeds = np.random.SeedSequence(settings.seed, spawn_key=_SPAWN_KEY)
    games_seed, actions_seed = seeds.generate_state(2).tolist()
    act = evaluator(model, settings.reuse).act
    sample = Sampler(np.random.default_rng(actions_seed))
    # Each environment plays its share to the end. Were it the first games to
    # end that count, short ones would count for more.
    left = [
        len(part)
        for part in np.array_split(range(settings.eval_episodes), num_envs)
    ]
    scores = []
    frames = np.empty((num_envs, *games.frame_shape), np.uint8)
    try:
        frames[:] = games.reset(games_seed)
        while any(left):
            if stop.requested:
                return None
            outputs = act(frames)
            logits = outputs["logits"] if isinstance(outputs, dict) else outputs
            step = games.step(sample(logits))
            frames[:] = step.frames
            for episode in step.episodes:
                if left[episode.environment]:
                    left[episode.environment] -= 1
                    scores.append(episode.total_reward)
    finally:
        games.close()
    return scores


def evaluate(model, settings, make_env, stop, progress):
    """Plays whole games and says how they went.

    Args:
        model: See `play`.
        settings: See `play`.
        make_env: See `play`.
        stop: See `play`.
        progress: The `Progress` of the training.

    Returns:
        An `Evaluation`. None if it was stopped.

    Raises:
        FloatingPointError: As `play`.
    """
    scores = play(model, settings, make_env, stop)
    if scores is None:
        return None
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else 0.0
    return Evaluation(
        progress.updates,
        progress.steps,
        len(scores),
        float(np.mean(scores)),
        deviation / math.sqrt(len(scores)),
        round(progress.total_seconds, 3),
        round(progress.processor_seconds, 3),
    )
